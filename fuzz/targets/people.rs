//! Logins, inhibitors and Wake-on-LAN, as the server's tools print them.

use wechsler::{
    host::{ethtool, people},
    machine::reading::{People, WakeArmed},
};

use super::{Kinds, kind};

pub fn run(data: &[u8]) -> Kinds {
    let text = String::from_utf8_lossy(data);
    let people = kind("people", matches!(people::parse(&text, "wechsler"), People::Read { .. }));
    let card = kind("card", !matches!(ethtool::parse(&text), WakeArmed::Unknown(_)));
    people.into_iter().chain(card).collect()
}
