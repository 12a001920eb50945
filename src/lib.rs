//! Wechsler: a supervisor for a shared GPU server.
#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod driver;
pub mod front;
pub mod host;
pub mod machine;
#[cfg(feature = "virtual-server")]
pub mod virtual_server;
