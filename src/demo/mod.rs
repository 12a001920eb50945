//! `wechsler demo`: the real daemon and the real client at work on a virtual server, for a newcomer to watch.
//!
//! The virtual server lives in this process, the daemon and each client are children of it, and everything they write lies
//! in one temporary folder. However it ends, nothing is left.

mod stage;
mod tour;

use std::{io, process::ExitCode};

use stage::Stage;

use crate::daemon::Signals;

/// Why the tour broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// This machine does not let us.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// Something did not come out as told.
    #[error("{0}")]
    NotAsTold(String),
}

/// The process of `wechsler demo`. Exit code 0 only if every step came out as told.
#[must_use]
pub fn process(fast: bool, stay: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            stage::complain(&format!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(fast, stay)) {
        Ok(code) => ExitCode::from(code),
        Err(broken) => {
            stage::complain(&broken.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn run(fast: bool, stay: bool) -> Result<u8, Broken> {
    // Before there is anything to leave behind.
    let mut signals = Signals::listen().map_err(|error| Broken::System("signals", error))?;
    let mut stage = Stage::build(fast).await?;
    let ended = tokio::select! {
        biased;
        // As a shell tells of a program that ended by a signal.
        (_, number) = signals.next() => Ok(128 + number),
        told = tour::all(&mut stage) => told.map(|()| 0),
    };
    // The tour has come out as told then: whatever ends the stay is no failure.
    let ended = match ended {
        Ok(0) if stay => tokio::select! {
            biased;
            _ = signals.next() => Ok(0),
            broken = tour::linger(&mut stage) => broken.map(|()| 0),
        },
        ended => ended,
    };
    if ended.is_err() {
        stage.show_log();
    }
    stage.end().await;
    ended
}
