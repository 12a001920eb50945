//! Writing the journal. It never keeps the driver waiting: lines that the disk does not take in time are dropped, and said.

use std::{
    borrow::Cow,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tracing::warn;

use super::{FORMAT, Line, Moments, OLDER_STEPS, STEPS};
use crate::machine::{Effect, Event, Hold, Instant, Look, Machine, Policy};

/// A journal longer than this becomes the older one.
const FULL: u64 = 4 << 20;
/// Lines waiting for the disk: a minute of a busy loop with something to say each time.
const LINES_WAITING: usize = 2048;
/// Lines written at once.
const LINES_AT_ONCE: usize = 256;
/// Looks that say the same wait for a line that says more, but no more of them than this.
const SAME_AT_ONCE: usize = 128;

/// A line on its way to the disk.
struct Written {
    bytes: Vec<u8>,
    /// It is the first of a new file.
    first: bool,
}

/// The driver's end of the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    lines: mpsc::Sender<Written>,
    writer: JoinHandle<()>,
    started: String,
    /// Steps of this life so far.
    steps: u64,
    /// The newest look, without its moments.
    look: Option<Look>,
    same: Vec<Moments>,
    /// Bytes of the file that is written.
    length: u64,
    /// Some line did not get to the disk: the machine must be told anew.
    gap: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the task that writes into `dir`; `None` writes nothing. `started` is the wall time of [`Instant::START`].
    #[must_use]
    pub(crate) fn start(dir: Option<PathBuf>, started: &str, policy: &Policy, holds: &[Hold]) -> Self {
        let (lines, inbox) = mpsc::channel(LINES_WAITING);
        let gap = Arc::new(AtomicBool::new(false));
        let length = dir.as_ref().and_then(|dir| fs::metadata(dir.join(STEPS)).ok()).map_or(0, |file| file.len());
        let writer = tokio::spawn(write_lines(dir, inbox, Arc::clone(&gap)));
        let mut journal =
            Self { lines, writer, started: started.into(), steps: 0, look: None, same: vec![], length, gap };
        let line = Line::Start {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            started: started.into(),
            policy: Cow::Borrowed(policy),
            holds: Cow::Borrowed(holds),
        };
        journal.say(&line, false);
        journal
    }

    /// One step of `machine`, which it has just taken; `moved` says that it was elsewhere before.
    pub(crate) fn step(&mut self, at: Instant, event: &Event, effects: &[Effect], machine: &Machine, moved: bool) {
        self.steps += 1;
        if let Event::Looked(look) = event {
            let said = Some(undated(look));
            if effects.is_empty() && !moved && self.look == said {
                self.same.push(Moments::of(at, look));
                if self.same.len() == SAME_AT_ONCE {
                    self.say_same();
                }
                return;
            }
            self.look = said;
        }
        let same = std::mem::take(&mut self.same);
        let (event, effects) = (Cow::Borrowed(event), Cow::Borrowed(effects));
        self.say(&Line::Step { step: self.steps, at, same, event, effects, place: machine.place() }, false);
        let gap = self.gap.swap(false, Ordering::Relaxed);
        if gap || self.length > FULL {
            let line = Line::Resume {
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION").into(),
                started: Cow::Owned(self.started.clone()),
                step: self.steps,
                machine: Cow::Borrowed(machine),
            };
            self.say(&line, self.length > FULL);
        }
    }

    /// Writes what waits and ends; gives up after `within`.
    pub(crate) async fn close(mut self, within: Duration) {
        self.say_same();
        drop(self.lines);
        if tokio::time::timeout(within, self.writer).await.is_err() {
            warn!("the journal of steps did not take its last lines in time");
        }
    }

    fn say_same(&mut self) {
        let same = std::mem::take(&mut self.same);
        if !same.is_empty() {
            self.say(&Line::Looks { step: self.steps, same }, false);
        }
    }

    fn say(&mut self, line: &Line<'_>, first: bool) {
        let Ok(mut bytes) = serde_json::to_vec(line) else {
            self.gap.store(true, Ordering::Relaxed);
            return;
        };
        bytes.push(b'\n');
        let length = bytes.len() as u64;
        if self.lines.try_send(Written { bytes, first }).is_ok() {
            self.length = length + if first { 0 } else { self.length };
        } else if !self.gap.swap(true, Ordering::Relaxed) {
            warn!("the disk is too slow for the journal of steps; lines are dropped");
        }
    }
}

/// The look without the moments it was asked at, which differ each time.
fn undated(look: &Look) -> Look {
    let never = Instant::START;
    let mut look = Look { at: never, gpu_at: never, people_at: never, wake_armed_at: never, ..look.clone() };
    for backend in &mut look.backends {
        backend.use_at = never;
    }
    look
}

async fn write_lines(dir: Option<PathBuf>, mut inbox: mpsc::Receiver<Written>, gap: Arc<AtomicBool>) {
    let mut lines = vec![];
    let mut said = false;
    // A daemon that was killed may have left half a line.
    let mut torn = true;
    while inbox.recv_many(&mut lines, LINES_AT_ONCE).await > 0 {
        let batch = std::mem::take(&mut lines);
        let Some(dir) = dir.clone() else { continue };
        let written = tokio::task::spawn_blocking(move || append(&dir, &batch, torn)).await;
        torn = !matches!(written, Ok(Ok(())));
        if torn {
            gap.store(true, Ordering::Relaxed);
        }
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

/// Appends to the journal, which becomes the older one where a line is the first of a new file. `torn`: the last line may
/// have no end.
fn append(dir: &Path, lines: &[Written], torn: bool) -> io::Result<()> {
    let path = dir.join(STEPS);
    let mut bytes = if torn && is_torn(&path)? { b"\n".to_vec() } else { vec![] };
    let open = || fs::OpenOptions::new().create(true).append(true).open(&path);
    for line in lines {
        if line.first {
            open()?.write_all(&std::mem::take(&mut bytes))?;
            fs::rename(&path, dir.join(OLDER_STEPS))?;
        }
        bytes.extend_from_slice(&line.bytes);
    }
    open()?.write_all(&bytes)
}

/// The file ends in the middle of a line.
fn is_torn(path: &Path) -> io::Result<bool> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;
    use crate::{
        driver::{
            journal::replay::{Told, replay},
            tests_policy,
        },
        machine::Server,
    };

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wechsler-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    fn machine() -> Machine {
        Machine::new(tests_policy(), vec![])
    }

    /// Steps the machine and the journal together, as the driver does.
    fn take(journal: &mut Journal, machine: &mut Machine, now: Instant, event: &Event) {
        let before = machine.place();
        let effects = machine.step(now, event);
        journal.step(now, event, &effects, machine, machine.place() != before);
    }

    fn file(dir: &Path, name: &str) -> BufReader<fs::File> {
        BufReader::new(fs::File::open(dir.join(name)).expect("written"))
    }

    fn silent(second: u64) -> Event {
        let at = at(second);
        let nothing = Look::nothing(2);
        Event::Looked(Look { at, server: Server::Silent, gpu_at: at, people_at: at, wake_armed_at: at, ..nothing })
    }

    #[tokio::test]
    async fn looks_that_say_the_same_are_told_by_their_moments_and_replayed_each() {
        let dir = scratch("steps");
        let (mut journal, mut machine) = (Journal::start(Some(dir.clone()), "then", &tests_policy(), &[]), machine());
        for second in 1..=5 {
            take(&mut journal, &mut machine, at(second), &silent(second));
        }
        take(&mut journal, &mut machine, at(6), &Event::Tick);
        journal.close(Duration::from_secs(5)).await;
        let mut played = machine_and_seconds(&dir);
        assert_eq!(played.1, [1, 2, 3, 4, 5, 6]);
        let text = fs::read_to_string(dir.join(STEPS)).expect("written");
        assert!(text.lines().count() < 6, "{text}");
        // It was the same machine: what was only counted counts.
        let (now, event) = (at(7), silent(7));
        assert_eq!(played.0.step(now, &event), machine.step(now, &event));
        assert_eq!(format!("{:?}", played.0), format!("{machine:?}"));
        let _ = fs::remove_dir_all(&dir);
    }

    fn machine_and_seconds(dir: &Path) -> (Machine, Vec<u64>) {
        let (mut last, mut seconds) = (machine(), vec![]);
        replay(file(dir, STEPS), |told| {
            if let Told::Step(step) = told {
                last = step.after.clone();
                seconds.push(step.at.since_start().as_secs());
            }
        })
        .expect("replayed");
        (last, seconds)
    }

    #[tokio::test]
    async fn a_full_journal_becomes_the_older_one_and_both_can_be_replayed() {
        let dir = scratch("full");
        let (mut journal, mut machine) = (Journal::start(Some(dir.clone()), "then", &tests_policy(), &[]), machine());
        take(&mut journal, &mut machine, at(1), &silent(1));
        journal.length = FULL;
        take(&mut journal, &mut machine, at(2), &Event::Tick);
        take(&mut journal, &mut machine, at(3), &Event::Tick);
        journal.close(Duration::from_secs(5)).await;
        let steps = |name| replay(file(&dir, name), |_| {}).expect("replayed").steps;
        assert_eq!((steps(OLDER_STEPS), steps(STEPS)), (2, 1));
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_line_that_was_cut_short_does_not_spoil_the_next_life() {
        let dir = scratch("torn");
        fs::write(dir.join(STEPS), b"{\"line\":\"st").expect("written");
        let journal = Journal::start(Some(dir.clone()), "then", &tests_policy(), &[]);
        journal.close(Duration::from_secs(5)).await;
        let summary = replay(file(&dir, STEPS), |_| {}).expect("replayed");
        assert_eq!((summary.lives, summary.torn), (1, 1));
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_costs_lines_not_time_and_the_journal_goes_on_when_it_does() {
        let dir = scratch("slow");
        let (mut journal, mut machine) = (Journal::start(Some(dir.clone()), "then", &tests_policy(), &[]), machine());
        // Nothing is awaited, so nothing is written meanwhile.
        for second in 0..LINES_WAITING as u64 + 10 {
            take(&mut journal, &mut machine, at(second), &Event::Tick);
        }
        assert!(journal.gap.load(Ordering::Relaxed));
        while journal.lines.capacity() < LINES_WAITING {
            tokio::task::yield_now().await;
        }
        for second in 3000..3003 {
            take(&mut journal, &mut machine, at(second), &Event::Tick);
        }
        journal.close(Duration::from_secs(5)).await;
        let mut last = 0;
        let summary = replay(file(&dir, STEPS), |told| {
            if let Told::Step(step) = told {
                last = step.at.since_start().as_secs();
            }
        });
        assert_eq!((summary.expect("replayed").gaps, last), (1, 3002));
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_stops_nothing() {
        let mut journal = Journal::start(Some("/proc/none".into()), "then", &tests_policy(), &[]);
        take(&mut journal, &mut machine(), at(1), &Event::Tick);
        journal.close(Duration::from_secs(5)).await;
    }
}
