//! The daemon: everything put together.

use std::process::ExitCode;

use crate::config::Config;

/// Runs the daemon until it is told to stop.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "it is used up")]
pub fn run(config: Config) -> ExitCode {
    let _ = config;
    eprintln!("wechsler: the daemon is not built in");
    ExitCode::FAILURE
}
