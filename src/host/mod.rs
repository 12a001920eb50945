//! The real world: SSH, HTTP, wake packets. [`Host`] composes them; the rooms beside know nothing of each other but plain
//! types, and every parser is a pure function.

pub mod ethtool;
pub mod gpu;
pub mod people;
pub mod remote;
pub mod slot_files;
pub mod slot_folder;
pub mod ssh;
pub mod systemd;
pub mod wake;
