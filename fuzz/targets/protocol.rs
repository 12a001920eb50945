//! What arrives at the socket: refused or read; what was read is written and read again as the same.

use wechsler::{
    driver::status::Status,
    front::protocol::{CommandRequest, HoldRequest},
};

fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(data) {
        let written = serde_json::to_vec(&read).expect("what was read can be written");
        let again: T = serde_json::from_slice(&written).expect("and read again");
        assert_eq!(read, again);
    }
}

pub fn run(data: &[u8]) {
    round_trip::<CommandRequest>(data);
    round_trip::<HoldRequest>(data);
    // The client reads this one, from a daemon that may be of another version.
    let _ = serde_json::from_slice::<Status>(data);
}
