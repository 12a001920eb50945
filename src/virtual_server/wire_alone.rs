//! A faulty wire as a process of its own, for tests in other languages: before any server, real ones too.

use std::{ffi::OsString, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use super::FaultyWire;

/// The first word of a command line that is meant for [`wire_command`]. Not among the verbs people are shown.
pub const WIRE_VERB: &str = "virtual-wire";

/// Carries connections to a server, some of them badly, until SIGTERM; then says as JSON how often what struck.
#[derive(Debug, Parser)]
#[command(name = "wechsler virtual-wire")]
struct Words {
    /// Where to listen, as `127.0.0.1:2222`.
    listen: SocketAddr,
    /// The server.
    to: SocketAddr,
    /// What goes wrong is drawn from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many of a thousand connections go wrong.
    #[arg(long, default_value_t = 100)]
    chance: usize,
    /// By how much slow ones are late.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    slow: Duration,
}

/// Runs what a command line wants (without the verb).
#[must_use]
pub fn wire_command(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words = match Words::try_parse_from(std::iter::once(WIRE_VERB.into()).chain(words)) {
        Ok(words) => words,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(words))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no wire: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: Words) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let wire = FaultyWire::at(words.listen, words.to, words.seed).await?;
    wire.storm(words.chance, words.slow);
    println!("{}", wire.address());
    let _ = term.recv().await;
    println!("{}", serde_json::json!(wire.struck()));
    Ok(())
}
