//! The journal of steps: what happened to the machine and what it asked for, a JSON object a line, for replay.
//!
//! Each life of the daemon begins with a `start` line (policy and holds: what [`crate::machine::Machine::new`] got). A look
//! that equals the one before it, and moved and asked for nothing, is only counted, in `unchanged` of the next line.
//! Writing never keeps the driver waiting: lines that the disk does not take in time are dropped, counted and said.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::warn;

use crate::machine::{Effect, Event, Hold, Instant, Look, Place, Policy};

/// The journal.
pub(super) const STEPS: &str = "steps.jsonl";
/// The journal before it, replaced when the newer one is full.
pub(super) const OLDER_STEPS: &str = "steps.1.jsonl";
/// A journal longer than this becomes the older one.
const FULL: u64 = 4 << 20;
/// Lines waiting for the disk: a minute of a busy loop with something to say each time.
const LINES_WAITING: usize = 2048;
/// Lines written at once.
const LINES_AT_ONCE: usize = 256;

#[derive(Serialize)]
struct StartLine<'a> {
    at: Instant,
    start: &'a str,
    version: &'a str,
    policy: &'a Policy,
    holds: &'a [Hold],
}

#[derive(Serialize)]
struct StepLine<'a> {
    at: Instant,
    #[serde(skip_serializing_if = "is_zero")]
    unchanged: u64,
    event: &'a Event,
    effects: &'a [Effect],
    place: Place,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The driver's end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    lines: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
    dropped: Arc<AtomicU64>,
    last_look: Option<Look>,
    unchanged: u64,
}

impl Journal {
    /// Starts the task that writes into `dir`; `None` writes nothing.
    #[must_use]
    pub(super) fn start(dir: Option<PathBuf>, wall: &str, policy: &Policy, holds: &[Hold]) -> Self {
        let (lines, inbox) = mpsc::channel(LINES_WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = tokio::spawn(write_lines(dir, inbox, Arc::clone(&dropped)));
        let mut journal = Self { lines, writer, dropped, last_look: None, unchanged: 0 };
        journal.say(&StartLine { at: Instant::START, start: wall, version: env!("CARGO_PKG_VERSION"), policy, holds });
        journal
    }

    /// One step of the machine. `place` is where it is now, `moved` that it was elsewhere before.
    pub(super) fn step(&mut self, at: Instant, event: &Event, effects: &[Effect], place: Place, moved: bool) {
        if let Event::Looked(look) = event {
            let look = undated(look);
            if effects.is_empty() && !moved && self.last_look.as_ref() == Some(&look) {
                self.unchanged += 1;
                return;
            }
            self.last_look = Some(look);
        }
        let unchanged = std::mem::take(&mut self.unchanged);
        self.say(&StepLine { at, unchanged, event, effects, place });
    }

    /// Writes what waits and ends; gives up after `within`.
    pub(super) async fn close(self, within: Duration) {
        drop(self.lines);
        if tokio::time::timeout(within, self.writer).await.is_err() {
            warn!("the journal of steps did not take its last lines in time");
        }
    }

    fn say(&mut self, line: &impl Serialize) {
        let sent = serde_json::to_vec(line).ok().map(|mut bytes| {
            bytes.push(b'\n');
            self.lines.try_send(bytes)
        });
        if !matches!(sent, Some(Ok(()))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The look without the moments it was asked at, which differ each time.
fn undated(look: &Look) -> Look {
    let mut look = look.clone();
    look.at = Instant::START;
    for backend in &mut look.backends {
        backend.use_at = Instant::START;
    }
    look
}

async fn write_lines(dir: Option<PathBuf>, mut inbox: mpsc::Receiver<Vec<u8>>, dropped: Arc<AtomicU64>) {
    let mut lines = vec![];
    let mut said = false;
    while inbox.recv_many(&mut lines, LINES_AT_ONCE).await > 0 {
        let mut bytes = lines.concat();
        lines.clear();
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            warn!(lines = lost, "the disk is too slow for the journal of steps; lines were dropped");
            bytes.extend_from_slice(format!("{{\"dropped\":{lost}}}\n").as_bytes());
        }
        let Some(dir) = dir.clone() else { continue };
        let written = tokio::task::spawn_blocking(move || append(&dir, &bytes)).await;
        match written {
            Ok(Ok(())) => said = false,
            Ok(Err(error)) if !said => {
                said = true;
                warn!(%error, "the journal of steps cannot be written; going on without it");
            }
            Ok(Err(_)) => {}
            Err(error) => warn!(%error, "writing the journal of steps broke off"),
        }
    }
}

fn append(dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(STEPS);
    let length = fs::metadata(&path).map_or(0, |m| m.len());
    if length > 0 && length + bytes.len() as u64 > FULL {
        fs::rename(&path, dir.join(OLDER_STEPS))?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        driver::tests_policy,
        machine::{Kind, Server},
    };

    const PLACE: Place = Place { kind: Kind::Offline, backend: None };

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wechsler-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    #[tokio::test]
    async fn looks_that_change_nothing_are_counted_not_written() {
        let dir = scratch("steps");
        let mut journal = Journal::start(Some(dir.clone()), "then", &tests_policy(), &[]);
        let mut look = Look::nothing(2);
        for second in 1..=5 {
            look.at = at(second);
            journal.step(at(second), &Event::Looked(look.clone()), &[], PLACE, false);
        }
        look.server = Server::Silent;
        journal.step(at(6), &Event::Looked(look), &[], PLACE, true);
        journal.step(at(7), &Event::Tick, &[], PLACE, false);
        journal.close(Duration::from_secs(5)).await;
        let text = fs::read_to_string(dir.join(STEPS)).expect("written");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 4, "start, first look, changed look, tick");
        assert_eq!(lines[2]["unchanged"], 4);
        assert_eq!(lines[3]["event"], "Tick");
        let _ = fs::remove_dir_all(&dir);
    }

    #[test]
    fn a_full_journal_becomes_the_older_one() {
        let dir = scratch("full");
        fs::write(dir.join(STEPS), vec![b'x'; usize::try_from(FULL).expect("fits")]).expect("written");
        append(&dir, b"new\n").expect("appended");
        assert_eq!(fs::read(dir.join(STEPS)).expect("there"), b"new\n");
        assert_eq!(fs::metadata(dir.join(OLDER_STEPS)).expect("there").len(), FULL);
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_costs_lines_not_time() {
        let mut journal = Journal::start(None, "then", &tests_policy(), &[]);
        for second in 0..3 * LINES_WAITING as u64 {
            journal.step(at(second), &Event::Tick, &[], PLACE, false);
        }
        assert!(journal.dropped.load(Ordering::Relaxed) > 0);
        journal.close(Duration::from_secs(5)).await;
    }
}
