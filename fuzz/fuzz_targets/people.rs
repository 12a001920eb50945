//! Logins, inhibitors and Wake-on-LAN, as the server's tools print them.
#![no_main]

use wechsler::host::{ethtool, people};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = people::parse(&text, "wechsler");
    let _ = ethtool::parse(&text);
});
