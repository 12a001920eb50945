//! Logins, inhibitors and Wake-on-LAN, as the server's tools print them.

use wechsler::host::{ethtool, people};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = people::parse(&text, "wechsler");
    let _ = ethtool::parse(&text);
}
