//! One binary: the daemon, and every client of it.

use std::process::ExitCode;

use wechsler::{
    daemon,
    front::cli::{self, args::Verb},
};

fn main() -> ExitCode {
    let args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match args.verb {
        Verb::Daemon => match cli::configuration(&args) {
            Ok(config) => daemon::process(config),
            Err(code) => code,
        },
        #[cfg(feature = "virtual-server")]
        Verb::Demo { fast, stay } => wechsler::demo::process(fast, stay),
        _ => cli::run(&args),
    }
}
