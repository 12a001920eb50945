//! The soak: the daemon as a process of its own, on the virtual server, for as long as asked. Rounds of random commands,
//! strangers and faults, and after each of them a calm in which everything must work. What was really done to the server
//! is held against the laws, and so is what the daemons' journals of steps tell; the end says what happened, and fails if one
//! was broken.
//!
//! Several worlds, each a server with its daemon, run beside each other: they mostly wait.
//!
//! `cargo test --release --test soak -- --for 1h --seed 7`. Without a wish it runs for half a minute. The seed decides what
//! happens in each round; `--round N` begins with another than the first. `SOAK_LOG=1` tells every step.

mod calm;
mod checker;
#[path = "../journals/mod.rs"]
mod journals;
mod ledger;
mod ops;
mod plan;
#[path = "../spec/mod.rs"]
mod spec;
mod stage;
mod storm;

use std::{cell::RefCell, process::ExitCode, time::Duration};

use futures_util::future::join_all;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval_at},
};

use ledger::Ledger;
use plan::Round;
use stage::{Life, Stage};

/// A run among other tests.
const BRIEF: Duration = Duration::from_secs(25);
const MINUTE: Duration = Duration::from_mins(1);
/// Each kind of fault shall strike as often, in an hour.
const LEAST: u64 = 20;
/// After so many nothing new is learnt.
const MOST_VIOLATIONS: usize = 20;
const USAGE: &str = "soak [--for 1h] [--seed 7] [--worlds 4] [--wires 1] [--round 0]";

/// What is asked for.
struct Wish {
    lasts: Duration,
    seed: u64,
    worlds: u64,
    /// In so many of them, the last, there are faulty wires between daemon and server.
    wires: u64,
    round: u64,
}

impl Wish {
    /// `None`: another test is meant.
    fn read(words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut wish = Self { lasts: BRIEF, seed: 1, worlds: 4, wires: 1, round: 0 };
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
                "--worlds" => wish.worlds = number(value()?)?.clamp(1, 16),
                "--wires" => wish.wires = number(value()?)?,
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

/// How far a world is.
#[derive(Clone, Default)]
struct Sofar {
    rounds: u64,
    violations: usize,
    ledger: Ledger,
    lives: Vec<Life>,
    /// Of its daemons, at the end.
    journals: Vec<Vec<u8>>,
}

async fn soak(wish: Wish) -> ExitCode {
    println!("soak: seed {}, {} worlds, for {}", wish.seed, wish.worlds, humantime::format_duration(wish.lasts));
    let begun = Instant::now();
    let sofar = RefCell::new(vec![Sofar::default(); usize::try_from(wish.worlds).unwrap_or(1)]);
    let worlds = join_all((0..wish.worlds).map(|world| run(&wish, world, begun, &sofar)));
    let tell = async {
        let mut minute = interval_at(begun + MINUTE, MINUTE);
        loop {
            minute.tick().await;
            println!("{}", line(&sofar.borrow(), begun));
        }
    };
    tokio::select! {
        _ = worlds => {}
        () = tell => {}
        // What was started ends with the worlds.
        () = told_to_end() => println!("broken off"),
    }
    let sofar = sofar.borrow();
    println!("{}", line(&sofar, begun));
    let ledger = merged(&sofar);
    println!("{}", ledger.table());
    for (world, one) in sofar.iter().enumerate() {
        let Some(longest) = one.lives.iter().max_by_key(|life| lasted(life)) else { continue };
        println!("world {world}: {} lives of the daemon; the longest: {}", one.lives.len(), tell_life(longest));
    }
    let seldom = ledger.seldom(LEAST);
    if !seldom.is_empty() {
        println!("faults that struck less than {LEAST} times: {}", seldom.join(", "));
    }
    let violations = sofar.iter().map(|one| one.violations).sum::<usize>() + replay(&sofar);
    println!("\nseed {}: {violations} violations", wish.seed);
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C or SIGTERM.
async fn told_to_end() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// One server with one daemon, round after round.
async fn run(wish: &Wish, world: u64, begun: Instant, sofar: &RefCell<Vec<Sofar>>) {
    let at = usize::try_from(world).unwrap_or(0);
    let seed = wish.seed.wrapping_mul(1000).wrapping_add(world);
    let mut stage = Stage::build(world, world + wish.wires >= wish.worlds).await;
    stage.start_daemon(false).await;
    let (mut number, mut said) = (wish.round, 0);
    while begun.elapsed() < wish.lasts && said < MOST_VIOLATIONS {
        // In the first world one daemon lives from the beginning to the end, so that what it takes can be seen.
        let round = Round::new(seed, number, world > 0);
        stage.log.clear();
        stage.note(format!("round {number}"));
        stage.storm(&round).await;
        stage.calm(&round).await;
        stage.measure();
        for violation in stage.checker.violations.iter().skip(said) {
            println!("world {world}, round {number}: {violation}");
        }
        if stage.checker.violations.len() > said {
            let log: Vec<_> = stage.log.iter().cloned().collect();
            println!("  what was done:\n    {}\n  the daemon's words:\n{}", log.join("\n    "), stage.daemon_log());
        }
        said = stage.checker.violations.len();
        number += 1;
        stage.ledger.settle(&stage.server);
        let (mut ledger, lives) = (stage.ledger.clone(), stage.lives.clone());
        for (name, times) in stage.wires.iter().flat_map(|(_, wire)| wire.struck()) {
            ledger.add("faults", format!("wire {name}"), times);
        }
        sofar.borrow_mut()[at] =
            Sofar { rounds: number - wish.round, violations: said, ledger, lives, journals: vec![] };
    }
    stage.kill_daemon().await;
    let one = &mut sofar.borrow_mut()[at];
    one.lives.clone_from(&stage.lives);
    one.journals = stage.journals();
}

/// What the daemons have written down of themselves is done again. The number of journals that differ or break a law.
fn replay(sofar: &[Sofar]) -> usize {
    let (mut wrong, mut steps) = (0, 0);
    for (world, one) in sofar.iter().enumerate() {
        for journal in &one.journals {
            match journals::check(&journal[..], false) {
                Ok(summary) => steps += summary.steps,
                Err(why) => {
                    println!("world {world}: VIOLATION: a journal: {why}");
                    wrong += 1;
                }
            }
        }
    }
    println!("{steps} steps of the daemons' journals were replayed");
    if steps == 0 && sofar.iter().any(|one| one.rounds > 0) {
        println!("VIOLATION: the daemons have written down nothing");
        wrong += 1;
    }
    wrong
}

fn merged(sofar: &[Sofar]) -> Ledger {
    sofar.iter().fold(Ledger::default(), |mut all, one| {
        all.merge(&one.ledger);
        all
    })
}

fn line(sofar: &[Sofar], begun: Instant) -> String {
    let l = merged(sofar);
    let usage = sofar.first().and_then(|one| one.lives.last()).map(|life| life.last).unwrap_or_default();
    format!(
        "{:>6} s: {} rounds, {} switches, {} starts, {} power cycles, {} commands, {} faults struck, {} daemons killed, \
         {} KiB, {} files, {} violations",
        begun.elapsed().as_secs(),
        sofar.iter().map(|one| one.rounds).sum::<u64>(),
        l.of("completed", "switches"),
        l.of("completed", "starts"),
        l.of("deeds", "power cycles"),
        l.total("commands"),
        l.total("faults"),
        l.of("faults", "daemon killed"),
        usage.rss_kib,
        usage.fds,
        sofar.iter().map(|one| one.violations).sum::<usize>(),
    )
}

fn lasted(life: &Life) -> Duration {
    life.died.unwrap_or_default().saturating_sub(life.born)
}

fn tell_life(life: &Life) -> String {
    let (first, seconds) = (life.first.unwrap_or_default(), lasted(life).as_secs());
    format!(
        "{seconds} s, resident {} KiB after its first round, {} KiB at its end (at most {}); open files {}, {} (at most {})",
        first.rss_kib, life.last.rss_kib, life.most.rss_kib, first.fds, life.last.fds, life.most.fds,
    )
}
