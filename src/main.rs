//! One binary: the daemon, and every client of it.

use std::process::ExitCode;

use wechsler::{
    daemon,
    front::cli::{
        self,
        args::{Args, Verb},
    },
};

fn main() -> ExitCode {
    let args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match args.verb {
        Verb::Daemon => supervise(&args),
        _ => cli::run(&args),
    }
}

/// Runs the daemon, on one thread: it waits far more than it works.
fn supervise(args: &Args) -> ExitCode {
    let config = match cli::configuration(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    daemon::start_tracing();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime
            .block_on(daemon::run(config))
            .map_err(|error| error.to_string()),
        Err(error) => Err(format!("the system gives no runtime: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the daemon cannot go on");
            ExitCode::FAILURE
        }
    }
}
