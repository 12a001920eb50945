//! One binary: the daemon, and every client of it.

use std::process::ExitCode;

use wechsler::{
    daemon,
    front::cli::{self, args::Verb},
};

fn main() -> ExitCode {
    // A virtual program as a process, for the test that holds it against the real one; and a faulty wire as one.
    #[cfg(feature = "virtual-server")]
    {
        use wechsler::virtual_server::{WIRE_VERB, programs, wire_command};
        let mut words = std::env::args_os().skip(1);
        match words.next() {
            Some(word) if word == programs::VERB => return programs::command(words),
            Some(word) if word == WIRE_VERB => return wire_command(words),
            _ => {}
        }
    }
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
