//! Logins, inhibitors and Wake-on-LAN, as the server's tools print them.

use wechsler::{
    host::{ethtool, people},
    machine::reading::{People, WakeArmed},
};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let text = String::from_utf8_lossy(data);
    understood([
        ("people", matches!(people::parse(&text, "wechsler"), People::Read { .. })),
        ("card", !matches!(ethtool::parse(&text), WakeArmed::Unknown(_))),
    ])
}
