//! What arrives at the socket: refused or read; what was read is written and read again as the same.

use wechsler::{
    driver::status::Status,
    front::protocol::{CommandRequest, HoldRequest},
};

use super::{Kinds, kind};

/// Whether it can be read as a `T`.
fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> bool {
    let read = serde_json::from_slice::<T>(data);
    if let Ok(read) = &read {
        let written = serde_json::to_vec(read).expect("what was read can be written");
        let again: T = serde_json::from_slice(&written).expect("and read again");
        assert_eq!(*read, again);
    }
    read.is_ok()
}

pub fn run(data: &[u8]) -> Kinds {
    let kinds = [
        kind("command", round_trip::<CommandRequest>(data)),
        kind("hold", round_trip::<HoldRequest>(data)),
        // The client reads this one, from a daemon that may be of another version.
        kind("status", serde_json::from_slice::<Status>(data).is_ok()),
    ];
    kinds.into_iter().flatten().collect()
}
