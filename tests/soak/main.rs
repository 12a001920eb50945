//! The soak: the daemon as a process of its own, on the virtual server, for as long as asked. Rounds of random commands,
//! strangers and faults, and after each of them a calm in which everything must work. What was really done to the server
//! is held against the laws; the end says what happened, and fails if one was broken.
//!
//! `cargo test --release --test soak -- --for 1h --seed 7`. Without a wish it runs for half a minute. The seed decides what
//! happens in each round; `--round N` begins with another than the first. `SOAK_LOG=1` tells every step.

mod calm;
mod checker;
mod ledger;
mod ops;
mod plan;
mod stage;
mod storm;

use std::{process::ExitCode, time::Duration};

use tokio::time::Instant;

use plan::Round;
use stage::{Life, Stage};

/// A run among other tests.
const BRIEF: Duration = Duration::from_secs(25);
const MINUTE: Duration = Duration::from_secs(60);
/// After so many nothing new is learnt.
const MOST_VIOLATIONS: usize = 20;
const USAGE: &str = "soak [--for 1h] [--seed 7] [--round 0]";

/// What is asked for.
struct Wish {
    lasts: Duration,
    seed: u64,
    round: u64,
}

impl Wish {
    /// `None`: another test is meant.
    fn read(words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut wish = Self { lasts: BRIEF, seed: 1, round: 0 };
        let mut words = words.peekable();
        let mut meant = true;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
            match word.as_str() {
                "--for" => {
                    let text = value()?;
                    wish.lasts = humantime::parse_duration(&text).map_err(|error| format!("{text}: {error}"))?;
                }
                "--seed" => wish.seed = number(value()?)?,
                "--round" => wish.round = number(value()?)?,
                // What is said to all tests at once, one word of which may be a name.
                "--test-threads" | "--skip" | "--color" | "--format" | "-Z" => drop(value()?),
                "--list" | "--ignored" => meant = false,
                "--nocapture" | "--no-capture" | "--show-output" | "--quiet" | "-q" | "--exact"
                | "--include-ignored" => {}
                flag if flag.starts_with('-') => return Err(format!("what is {flag}?")),
                name => meant &= "soak".contains(name),
            }
        }
        Ok(meant.then_some(wish))
    }
}

fn main() -> ExitCode {
    let wish = match Wish::read(std::env::args().skip(1)) {
        Ok(Some(wish)) => wish,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(soak(wish))
}

async fn soak(Wish { lasts, seed, round: first }: Wish) -> ExitCode {
    println!("soak: seed {seed}, for {}", humantime::format_duration(lasts));
    let begun = Instant::now();
    let mut stage = Stage::build().await;
    stage.start_daemon(false).await;
    let (mut number, mut told, mut said) = (first, begun, 0);
    while begun.elapsed() < lasts && said < MOST_VIOLATIONS {
        let round = Round::new(seed, number);
        stage.log.clear();
        stage.note(format!("round {number}"));
        stage.storm(&round).await;
        stage.calm(&round).await;
        stage.measure();
        for violation in stage.checker.violations.iter().skip(said) {
            println!("round {number} of seed {seed}: {violation}");
        }
        if stage.checker.violations.len() > said {
            let log: Vec<_> = stage.log.iter().cloned().collect();
            println!("  what was done:\n    {}\n  the daemon's words:\n{}", log.join("\n    "), stage.daemon_log());
        }
        said = stage.checker.violations.len();
        number += 1;
        if told.elapsed() >= MINUTE {
            told += MINUTE;
            println!("{}", line(&mut stage, begun, number - first));
        }
    }
    stage.check().await;
    stage.kill_daemon().await;
    stage.ledger.settle(&stage.server);
    println!("{}", line(&mut stage, begun, number - first));
    println!("{}", stage.ledger.table());
    println!("lives of the daemon: {}; those longer than a minute, and the last:", stage.lives.len());
    for (place, life) in stage.lives.iter().enumerate() {
        let lasted = life.died.unwrap_or_default().saturating_sub(life.born);
        if lasted > MINUTE || place + 1 == stage.lives.len() {
            println!("  {}", tell(life, lasted));
        }
    }
    let seldom = stage.ledger.seldom(20);
    if !seldom.is_empty() {
        println!("faults that struck less than 20 times: {}", seldom.join(", "));
    }
    let violations = stage.checker.violations.len();
    println!("\nseed {seed}, {} rounds, {violations} violations", number - first);
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn line(stage: &mut Stage, begun: Instant, rounds: u64) -> String {
    stage.ledger.settle(&stage.server);
    let l = &stage.ledger;
    let usage = stage.lives.last().map(|life| life.last).unwrap_or_default();
    format!(
        "{:>6} s: {rounds} rounds, {} switches, {} starts, {} power cycles, {} commands, {} faults struck, {} daemon kills, \
         {} KiB, {} fds, {} violations",
        begun.elapsed().as_secs(),
        l.of("completed", "switches"),
        l.of("completed", "starts"),
        l.of("deeds", "power cycles"),
        l.total("commands"),
        l.total("faults"),
        l.of("faults", "daemon killed"),
        usage.rss_kib,
        usage.fds,
        stage.checker.violations.len(),
    )
}

fn tell(life: &Life, lasted: Duration) -> String {
    let first = life.first.unwrap_or_default();
    format!(
        "{:>5} s: resident {} KiB after its first round, {} KiB at its end (at most {}); open files {}, {} (at most {})",
        lasted.as_secs(),
        first.rss_kib,
        life.last.rss_kib,
        life.most.rss_kib,
        first.fds,
        life.last.fds,
        life.most.fds,
    )
}
