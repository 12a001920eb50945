//! What outlives the daemon: what people asked to last (holds) and how long things took. Never the present.
//!
//! Each file is written whole beside its place, synced, and renamed into it, off the driver's loop; the newest content
//! wins. A file that is missing, damaged or cannot be written is said and lived without.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};
use tracing::warn;

use super::{
    clock::{Clock, rfc3339},
    history::History,
};
use crate::machine::{Held, Hold, HoldId, Policy};

/// The holds in force.
pub(super) const HOLDS: &str = "holds.json";
/// How long things took.
pub(super) const DURATIONS: &str = "durations.json";
/// A longer file is not one of ours.
const LONGEST: u64 = 1 << 20;
/// More holds are not taken from a file.
pub(super) const MOST_KEPT_HOLDS: usize = 1000;
/// A longer text in a hold is cut when it is read.
const LONGEST_TEXT: usize = 1000;

/// `holds.json`. Backends by name and expiry by wall time, because both outlive the daemon's numbering.
#[derive(Debug, Serialize, Deserialize)]
struct HoldsFile {
    holds: Vec<KeptHold>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptHold {
    id: u64,
    what: KeptHeld,
    until: Option<String>,
    reason: String,
    by: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeptHeld {
    Awake,
    Gpu,
    Off,
    Backend(String),
}

/// The content of both files; `None` was never written in this life.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    /// Counts up with each change.
    generation: u64,
    holds: Option<Vec<u8>>,
    durations: Option<Vec<u8>>,
}

/// Where things are kept.
#[derive(Debug)]
pub(super) struct Keeper {
    content: watch::Sender<Content>,
    /// The generation last written, well or badly.
    written: watch::Receiver<u64>,
    writer: JoinHandle<()>,
}

impl Keeper {
    /// Starts the task that writes into `dir`; `None` keeps nothing.
    #[must_use]
    pub(super) fn start(dir: Option<PathBuf>) -> Self {
        let (content, changed) = watch::channel(Content::default());
        let (done, written) = watch::channel(0);
        let writer = tokio::spawn(write_changes(dir, changed, done));
        Self { content, written, writer }
    }

    /// Keeps the holds.
    pub(super) fn holds(&self, holds: &[Hold], clock: &Clock, policy: &Policy) {
        let file = HoldsFile {
            holds: holds
                .iter()
                .map(|h| KeptHold {
                    id: h.id.0,
                    what: match h.what {
                        Held::Awake => KeptHeld::Awake,
                        Held::Gpu => KeptHeld::Gpu,
                        Held::Off => KeptHeld::Off,
                        Held::Backend(id) => KeptHeld::Backend(policy.backend(id).name.clone()),
                    },
                    until: h.until.map(|at| rfc3339(clock.wall(at))),
                    reason: h.reason.clone(),
                    by: h.by.clone(),
                })
                .collect(),
        };
        let bytes = to_bytes(&file);
        self.content.send_modify(|content| {
            content.generation += 1;
            content.holds = bytes;
        });
    }

    /// Ends when what was handed over so far is on disk, or `within` is over: nobody is told that something is kept before.
    pub(super) fn kept(&self, within: Duration) -> impl Future<Output = ()> + Send + use<> {
        let wanted = self.content.borrow().generation;
        let mut written = self.written.clone();
        async move {
            let on_disk = written.wait_for(|generation| *generation >= wanted);
            if tokio::time::timeout(within, on_disk).await.is_err() {
                warn!("the state directory is slow; a hold may not outlive a crash just now");
            }
        }
    }

    /// Keeps the history of durations.
    pub(super) fn durations(&self, history: &History) {
        let bytes = to_bytes(history);
        self.content.send_modify(|content| {
            content.generation += 1;
            content.durations = bytes;
        });
    }

    /// Writes what is not written yet and ends; gives up after `within`.
    pub(super) async fn close(self, within: Duration) {
        drop(self.content);
        if tokio::time::timeout(within, self.writer).await.is_err() {
            warn!("the state directory did not take the last writes in time");
        }
    }
}

fn to_bytes(value: &impl Serialize) -> Option<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

async fn write_changes(dir: Option<PathBuf>, mut changed: watch::Receiver<Content>, done: watch::Sender<u64>) {
    let mut written = Content::default();
    // A sender that is gone ends the loop only after its last content was seen.
    while changed.changed().await.is_ok() {
        let wanted = changed.borrow_and_update().clone();
        let generation = wanted.generation;
        let Some(dir) = dir.clone() else {
            done.send_replace(generation);
            continue;
        };
        let old = std::mem::replace(&mut written, wanted.clone());
        let write = move || {
            for (name, old, new) in [(HOLDS, old.holds, wanted.holds), (DURATIONS, old.durations, wanted.durations)] {
                if let Some(bytes) = new.filter(|new| Some(new) != old.as_ref())
                    && let Err(error) = replace(&dir, name, &bytes)
                {
                    warn!(file = name, dir = %dir.display(), %error, "cannot be kept; a restart will not know it");
                }
            }
        };
        if tokio::task::spawn_blocking(write).await.is_err() {
            warn!("writing the state directory broke off");
        }
        done.send_replace(generation);
    }
}

/// Writes `bytes` beside `dir/name`, syncs, and renames: a reader sees the old file or the new one, also after a power cut.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

/// The holds on file that are still in force.
#[must_use]
pub(super) fn load_holds(dir: &Path, clock: &Clock, policy: &Policy) -> Vec<Hold> {
    let Some(file) = load::<HoldsFile>(dir, HOLDS) else {
        return vec![];
    };
    let mut holds: Vec<Hold> = vec![];
    for mut kept in file.holds.into_iter().take(MOST_KEPT_HOLDS) {
        let what = match kept.what {
            KeptHeld::Awake => Held::Awake,
            KeptHeld::Gpu => Held::Gpu,
            KeptHeld::Off => Held::Off,
            KeptHeld::Backend(name) => {
                let Some(id) = policy.named(&name) else {
                    warn!(hold = kept.id, backend = %name, "a hold on a backend that is not configured any more is dropped");
                    continue;
                };
                Held::Backend(id)
            }
        };
        let until = match kept.until.as_deref().map(humantime::parse_rfc3339) {
            None => None,
            Some(Ok(wall)) => match clock.until_wall(wall) {
                Some(at) => Some(at),
                None => continue,
            },
            Some(Err(error)) => {
                warn!(hold = kept.id, %error, "a hold whose end cannot be read is dropped");
                continue;
            }
        };
        if !HoldId(kept.id).is_sound() {
            warn!(hold = kept.id, "a hold whose number cannot be ours is dropped");
            continue;
        }
        if holds.iter().any(|h| h.id.0 == kept.id) {
            warn!(hold = kept.id, "a hold is on file twice; the first counts");
            continue;
        }
        for text in [&mut kept.reason, &mut kept.by] {
            *text = text.chars().take(LONGEST_TEXT).collect();
        }
        holds.push(Hold { id: HoldId(kept.id), what, until, reason: kept.reason, by: kept.by });
    }
    holds
}

/// The history on file.
#[must_use]
pub(super) fn load_history(dir: &Path, policy: &Policy) -> History {
    let mut history: History = load(dir, DURATIONS).unwrap_or_default();
    history.trim(policy);
    history
}

fn load<T: for<'de> Deserialize<'de>>(dir: &Path, name: &str) -> Option<T> {
    let path = dir.join(name);
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        fs::File::open(&path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            return Err(io::Error::other("too long"));
        }
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        // The first start of all: nothing to say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(file = %path.display(), %error, "cannot be read; going on without it");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(file = %path.display(), %error, "is damaged; going on without it");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{driver::tests_policy, machine::BackendId};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wechsler-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    fn hold(id: u64, what: Held, until: Option<crate::machine::Instant>) -> Hold {
        Hold { id: HoldId(id), what, until, reason: "reading".into(), by: "ada".into() }
    }

    #[tokio::test]
    async fn holds_come_back_with_what_is_left_of_them() {
        let dir = scratch("holds");
        let (clock, policy) = (Clock::start(), tests_policy());
        let hour = clock.now() + Duration::from_hours(1);
        let holds = [
            hold(1, Held::Awake, None),
            hold(2, Held::Backend(BackendId(1)), Some(hour)),
            hold(3, Held::Gpu, Some(clock.now())),
        ];
        let keeper = Keeper::start(Some(dir.clone()));
        keeper.holds(&holds, &clock, &policy);
        keeper.close(Duration::from_secs(5)).await;
        let back = load_holds(&dir, &Clock::start(), &policy);
        assert_eq!(back.len(), 2, "the third has expired: {back:?}");
        assert_eq!(back[0], holds[0]);
        assert_eq!(back[1].what, Held::Backend(BackendId(1)));
        let left = back[1].until.map(crate::machine::Instant::since_start);
        assert!(left.is_some_and(|left| left > Duration::from_secs(3590)));
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_hold_that_nobody_can_keep_any_more_is_dropped() {
        let dir = scratch("gone");
        let text = r#"{"holds":[{"id":4,"what":{"backend":"tabby"},"until":null,"reason":"","by":""},
            {"id":5,"what":"off","until":"not a time","reason":"","by":""},
            {"id":18446744073709551615,"what":"awake","until":null,"reason":"","by":""},
            {"id":6,"what":"awake","until":null,"reason":"","by":""}]}"#;
        fs::write(dir.join(HOLDS), text).expect("written");
        let back = load_holds(&dir, &Clock::start(), &tests_policy());
        assert_eq!(back.iter().map(|h| h.id.0).collect::<Vec<_>>(), [6]);
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn damaged_and_missing_files_are_lived_without() {
        let dir = scratch("damaged");
        assert_eq!(load_history(&dir, &tests_policy()), History::default());
        for damage in ["", "{", "[]", "null", "{\"holds\": 7, \"boot\": \"long\"}", "\u{0}\u{0}"] {
            fs::write(dir.join(HOLDS), damage).expect("written");
            fs::write(dir.join(DURATIONS), damage).expect("written");
            assert!(load_holds(&dir, &Clock::start(), &tests_policy()).is_empty());
            assert_eq!(load_history(&dir, &tests_policy()), History::default());
        }
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn what_is_said_to_be_kept_is_on_disk() {
        let dir = scratch("kept");
        let (keeper, clock, policy) = (Keeper::start(Some(dir.clone())), Clock::start(), tests_policy());
        let within = Duration::from_secs(5);
        keeper.holds(&[hold(1, Held::Awake, None)], &clock, &policy);
        keeper.kept(within).await;
        assert_eq!(load_holds(&dir, &clock, &policy).len(), 1);
        let mut history = History::default();
        history.boot.add(Duration::from_secs(40));
        keeper.durations(&history);
        keeper.kept(within).await;
        assert_eq!(load_history(&dir, &policy), history);
        keeper.close(within).await;
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_file_may_be_so_long_and_no_longer() {
        let dir = scratch("long");
        let mut text = br#"{"holds":[{"id":6,"what":"awake","until":null,"reason":"","by":""}]}"#.to_vec();
        for (longer, holds) in [(0, 1), (1, 0)] {
            text.resize(usize::try_from(LONGEST).unwrap() + longer, b' ');
            fs::write(dir.join(HOLDS), &text).expect("written");
            assert_eq!(load_holds(&dir, &Clock::start(), &tests_policy()).len(), holds, "{longer}");
        }
        let _ = fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn a_state_directory_that_cannot_be_written_stops_nothing() {
        let keeper = Keeper::start(Some("/proc/none".into()));
        keeper.durations(&History::default());
        keeper.close(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn durations_come_back() {
        let dir = scratch("durations");
        let mut history = History::default();
        history.boot.add(Duration::from_millis(41_500));
        let name = tests_policy().backends[0].name.clone();
        history.start.entry(name).or_default().add(Duration::from_secs(8));
        let keeper = Keeper::start(Some(dir.clone()));
        keeper.durations(&history);
        keeper.close(Duration::from_secs(5)).await;
        assert_eq!(load_history(&dir, &tests_policy()), history);
        let _ = fs::remove_dir_all(&dir);
    }
}
