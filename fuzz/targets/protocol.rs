//! What arrives at the socket: refused or read; what was read is written and read again as the same.

use wechsler::{
    driver::status::Status,
    front::protocol::{CommandRequest, HoldRequest},
};

use super::{Kinds, understood};

/// Whether it can be read as a `T`.
fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<T>(data) else {
        return false;
    };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(read, again);
    true
}

pub fn run(data: &[u8]) -> Kinds {
    understood([
        ("command", round_trip::<CommandRequest>(data)),
        ("hold", round_trip::<HoldRequest>(data)),
        // The client reads this one, from a daemon that may be of another version.
        ("status", serde_json::from_slice::<Status>(data).is_ok()),
    ])
}
