//! A virtual program as a process of its own, with real signals: for comparing it with the real one.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Program, Signal, life::Phase};

/// Its output is printed so often.
const PRINTS_EVERY: Duration = Duration::from_millis(20);

/// Runs a program until it ends, and ends this process as it ended. SIGTERM means to it what it means to the real one.
#[must_use]
pub fn as_process(program: &Program) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(program)) {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        // The one signal that a program sends itself.
        Exit::Signal(_) => std::process::abort(),
    }
}

async fn run(program: &Program) -> Exit {
    let process = program.start(std::process::id(), Arc::default());
    let mut exited = process.exited();
    let mut printed = 0;
    let mut print = || {
        let lines = process.log();
        for line in lines.iter().skip(printed) {
            println!("{line}");
        }
        printed = lines.len();
    };
    let mut term = None;
    loop {
        let exit = *exited.borrow_and_update();
        if let Some(exit) = exit {
            print();
            return exit;
        }
        // Not before it is ready: without a handler SIGTERM kills at once, which is what it does to the real one while it
        // loads.
        if term.is_none() && process.life.phase() >= Phase::Ready {
            term = signal(SignalKind::terminate()).ok();
        }
        tokio::select! {
            _ = exited.changed() => {}
            () = tokio::time::sleep(PRINTS_EVERY) => {}
            () = terminated(&mut term) => process.signal(Signal::Term),
        }
        print();
    }
}

async fn terminated(term: &mut Option<tokio::signal::unix::Signal>) {
    match term {
        Some(term) => drop(term.recv().await),
        None => std::future::pending().await,
    }
}
