//! The laws, from outside: by what was really done to the server, and what really is so there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use wechsler::{
    driver::OperationRecord,
    host::slots::Reason,
    virtual_server::{By, Deed, VirtualServer, What, programs::tokens_of_file},
};

use super::{
    ledger::Ledger,
    ops::{Op, Ops},
    plan::unit,
};

/// The daemon may act on what it was told so long ago: fresh evidence is five seconds old at most, and an order takes two
/// to be carried out, or two more to be lost.
const EVIDENCE: Duration = Duration::from_secs(9);
/// Between what the event stream tells and what is done, on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);
/// Between the last look at a slot and the stop a request may come and end unseen.
const UNSEEN: Duration = Duration::from_millis(500);
/// ... and while SSH is slow.
const UNSEEN_IF_SLOW: Duration = Duration::from_secs(4);
/// Generations of a saved slot that are kept: the configuration's default.
const KEEP: usize = 3;
/// Deeds told with a violation.
const AROUND: usize = 40;

/// Somebody who is there, or a process of his.
#[derive(Clone, Debug)]
pub struct Guest {
    pub what: &'static str,
    pub since: Duration,
}

/// Something that is judged once more is known.
struct Doubt {
    at: Duration,
    what: String,
    /// An operation that makes it lawful.
    excuse: fn(&Op) -> Excuse,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Excuse {
    None,
    /// Not known yet.
    Later,
    Good(&'static str),
}

#[derive(Default)]
pub struct Checker {
    next_deed: u64,
    /// Processes by id, with their unit.
    alive: BTreeMap<u32, String>,
    by_hand: BTreeMap<String, Duration>,
    doubts: Vec<Doubt>,
    deaths: Vec<Duration>,
    recent: VecDeque<Deed>,
    /// Whole files with a good note.
    good: BTreeSet<String>,
    was_on: bool,
    unsaid: usize,
    pub violations: Vec<String>,
}

impl Checker {
    /// The daemon was killed.
    pub fn died(&mut self, at: Duration) {
        self.deaths.push(at);
    }

    /// A law is broken.
    pub fn violated(&mut self, how: impl Into<String>) {
        let mut text = format!("VIOLATION: {}\n", how.into());
        for deed in self.recent.iter().rev().take(AROUND).rev() {
            let _ = writeln!(text, "    {:9.3}  {:?}", deed.at.as_secs_f64(), deed.what);
        }
        self.violations.push(text);
    }

    /// Looks at everything that was done since.
    pub fn check(&mut self, server: &VirtualServer, places: &Places, ops: &mut Ops, scene: Scene<'_>, l: &mut Ledger) {
        // What is there now, before deeds that took it away are judged.
        let deeds = server.deeds_from(self.next_deed);
        self.next_deed += deeds.len() as u64;
        for deed in deeds {
            self.recent.push_back(deed.clone());
            if self.recent.len() > 4000 {
                self.recent.pop_front();
            }
            self.judge(&deed, places, scene, l);
        }
        self.look_at_files(places);
        let unsaid = server.violations();
        for what in unsaid.iter().skip(self.unsaid) {
            self.violated(what.clone());
        }
        self.unsaid = unsaid.len();
        for what in std::mem::take(&mut ops.wrong) {
            self.violated(what);
        }
        for op in std::mem::take(&mut ops.ended) {
            self.ended(&op, l);
        }
        self.settle(server.age(), ops, l);
    }

    fn judge(&mut self, deed: &Deed, places: &Places, scene: Scene<'_>, l: &mut Ledger) {
        let at = deed.at;
        match &deed.what {
            What::Started { unit, pid, by } => {
                l.count("deeds", format!("started by {by:?}"));
                if *by == By::Hand {
                    self.by_hand.insert(unit.clone(), at);
                }
                if *by == By::Ssh {
                    let young = |unit: &String| self.by_hand.get(unit).is_some_and(|then| *then + EVIDENCE >= at);
                    let others: Vec<_> = self.alive.values().filter(|other| !young(other)).cloned().collect();
                    if !others.is_empty() {
                        self.violated(format!("{unit} was started while {others:?} lived"));
                    }
                }
                self.alive.insert(*pid, unit.clone());
            }
            What::Exited { pid, .. } => {
                self.alive.remove(pid);
            }
            What::StopBegan { by, .. } => l.count("deeds", format!("stopped by {by:?}")),
            What::Unsaved { tokens, used, .. } => {
                let last = self.recent.iter().rev().nth(1).map(|deed| &deed.what);
                let ours = matches!(last, Some(What::StopBegan { by: By::Ssh, .. }));
                let unseen = if scene.slow { UNSEEN_IF_SLOW } else { UNSEEN };
                if ours && scene.calm {
                    self.violated(format!("stopped with {tokens} tokens that nobody asked to save; nothing was wrong"));
                } else if ours && *used > unseen {
                    let what = format!("stopped with {tokens} tokens that nobody asked to save");
                    self.doubts.push(Doubt { at, what, excuse: says_why_not_saved });
                }
            }
            What::Killed { by, .. } => l.count("deeds", format!("killed by {by:?}")),
            What::PowerOffOrdered(by) => {
                l.count("deeds", format!("power-off ordered by {by:?}"));
                if !self.alive.is_empty() {
                    self.violated(format!("power-off ordered while {:?} lived", self.alive));
                }
                for guest in scene.guests.iter().filter(|guest| guest.since + EVIDENCE < at) {
                    let what = format!("power-off ordered while there was {} for long", guest.what);
                    self.doubts.push(Doubt { at, what, excuse: could_not_tell });
                }
            }
            What::Packet { .. } => {
                l.count("deeds", "packets");
                let what = "a packet that no operation wanted".into();
                self.doubts.push(Doubt { at, what, excuse: wants_it_on });
            }
            What::Off | What::PowerCut => {
                self.alive.clear();
                self.was_on = true;
            }
            What::Booted(_) => {
                if std::mem::take(&mut self.was_on) {
                    l.count("deeds", "power cycles");
                }
            }
            What::FileRemoved(path) => self.removed(path, places, l),
            What::FileRenamed(..) | What::ResetFailed { .. } | What::PowerOn | What::Slot { .. } => {}
        }
    }

    /// A good file goes only when there are enough newer ones.
    fn removed(&mut self, path: &str, places: &Places, l: &mut Ledger) {
        l.count("deeds", "slot files removed");
        let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if self.good.remove(&name) {
            let left = kept_files(places);
            if left.len() < KEEP {
                self.violated(format!("a good slot file was removed: {name}; left are {left:?}"));
            }
        }
    }

    fn look_at_files(&mut self, places: &Places) {
        if places.slots.is_dir() {
            let noted = noted_files(places);
            self.good.retain(|file| noted.get(file) != Some(&false));
            let new = noted.into_iter().filter(|(file, good)| *good && !self.good.contains(file)).map(|(file, _)| file);
            let new: Vec<_> = new.filter(|file| tokens_of_file(&places.slots.join(file)).is_some()).collect();
            self.good.extend(new);
        }
    }

    fn ended(&mut self, op: &Op, l: &mut Ledger) {
        let record = &op.record;
        let end = record.end.as_deref().unwrap_or("?");
        let code = record.code.as_deref().unwrap_or_default();
        let cause = if record.cause == "command" { "" } else { record.cause.as_str() };
        l.count("operations", format!("{} {cause} {end} {code}", record.kind).replace("  ", " "));
        for warning in &record.warnings {
            l.count("warnings", warning.code.clone());
        }
        if end == "failed" && record.hint.as_ref().is_none_or(String::is_empty) {
            self.violated(format!("failed without a hint: {record:?}"));
        }
        let Some(goal) = record.goal.as_ref().filter(|_| end == "done").map(|goal| unit(goal)) else { return };
        let during = |deed: &&Deed| deed.at + Duration::from_millis(300) >= op.began;
        let mut deeds = self.recent.iter().filter(during).map(|deed| &deed.what);
        let started = deeds.any(|what| matches!(what, What::Started { unit, by: By::Ssh, .. } if *unit == goal));
        let mut deeds = self.recent.iter().filter(during).map(|deed| &deed.what);
        let left = deeds.any(|what| matches!(what, What::StopBegan { unit, by: By::Ssh } if *unit != goal));
        if started {
            l.count("completed", if left { "switches" } else { "starts" });
        }
    }

    /// Judges what had to wait.
    fn settle(&mut self, now: Duration, ops: &Ops, l: &mut Ledger) {
        let doubts = std::mem::take(&mut self.doubts);
        for doubt in doubts {
            if now < doubt.at + SLACK * 2 {
                self.doubts.push(doubt);
                continue;
            }
            let under_way: Vec<&Op> = ops.all.iter().filter(|op| op.covers(doubt.at, SLACK)).collect();
            let excuses: Vec<Excuse> = under_way.iter().map(|op| (doubt.excuse)(op)).collect();
            // A daemon that is killed takes with it what it would have told.
            let died = self.deaths.iter().any(|death| *death + SLACK >= doubt.at && *death <= doubt.at + SLACK * 2);
            let forgotten = died || under_way.iter().any(|op| op.forgotten);
            let good = excuses.iter().find_map(|excuse| if let Excuse::Good(why) = excuse { Some(*why) } else { None });
            if let Some(why) = good {
                l.count("lawful because", why);
            } else if forgotten {
                l.count("lawful because", "the daemon was killed, and could not tell why");
            } else if excuses.contains(&Excuse::Later) {
                self.doubts.push(doubt);
            } else {
                let ops: Vec<&OperationRecord> = under_way.iter().map(|op| &op.record).collect();
                let at = doubt.at.as_secs_f64();
                self.violated(format!("{} (at {at:.3}); operations: {ops:#?}", doubt.what));
            }
        }
    }
}

/// What the checker must know of the soak itself.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub guests: &'a [Guest],
    /// Nothing is wrong.
    pub calm: bool,
    /// SSH may be slow.
    pub slow: bool,
}

/// Where slot files and their notes lie.
pub struct Places {
    pub slots: PathBuf,
    pub notes: PathBuf,
}

fn says_why_not_saved(op: &Op) -> Excuse {
    let record = &op.record;
    let own = ["slot_asleep", "save_skipped", "drain_timeout", "use_unknown", "no_answer"];
    let said = |code: &str| Reason::ALL.iter().any(|r| r.code() == code && !r.is_news()) || own.contains(&code);
    match record.end.as_deref() {
        None => Excuse::Later,
        Some("replaced" | "cancelled") => {
            Excuse::Good("the operation was replaced or cancelled, and its reasons with it")
        }
        Some(_) if record.warnings.iter().any(|w| said(&w.code)) => Excuse::Good("it was said why not saved"),
        Some(_) if record.code.as_deref() == Some("crash_loop") => Excuse::Good("it crashed while it was started"),
        Some(_) => Excuse::None,
    }
}

fn could_not_tell(op: &Op) -> Excuse {
    match op.record.end.as_deref() {
        None => Excuse::Later,
        Some("replaced" | "cancelled") => {
            Excuse::Good("the operation was replaced or cancelled, and its reasons with it")
        }
        Some(_) if op.record.cause == "command" && op.record.warnings.iter().any(|w| w.code == "use_unknown") => {
            Excuse::Good("nobody could tell who uses the server, and a person wanted it off")
        }
        Some(_) => Excuse::None,
    }
}

fn wants_it_on(op: &Op) -> Excuse {
    if matches!(op.record.kind.as_str(), "start" | "restart" | "wake" | "restore") {
        Excuse::Good("a packet within an operation that wants the server on")
    } else {
        Excuse::None
    }
}

/// Whole files with a note that is good, or is being tried just now.
fn kept_files(places: &Places) -> BTreeSet<String> {
    let noted = notes(places).filter(|note| note["put_aside"].is_null());
    let noted = noted.filter_map(|note| Some(note["file"].as_str()?.to_owned()));
    noted.filter(|file| tokens_of_file(&places.slots.join(file)).is_some()).collect()
}

/// Files with a note, and whether it is good.
fn noted_files(places: &Places) -> BTreeMap<String, bool> {
    let noted = notes(places).filter_map(|note| {
        let good = note["put_aside"].is_null() && note["restoring"] != true;
        Some((note["file"].as_str()?.to_owned(), good))
    });
    noted.collect()
}

fn notes(places: &Places) -> impl Iterator<Item = serde_json::Value> {
    let files = fs::read_dir(&places.notes).into_iter().flatten().flatten();
    files.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
}
