//! llama.cpp's slots, kept on disk across stops: saved the safe way, restored only where they fit.
//!
//! The rules, each against something that llama-server really does:
//! * A save goes to a name never used before, is checked on disk, gets its final name then, and counts only with its note,
//!   which is written last: a save truncates its target first, so a full disk would destroy the older file.
//! * A sweep takes only files of this very state directory, which their names tell: what never got its final name, and what no
//!   note knows ([`sweep`]). Where the notes cannot be read or are lost altogether, nothing that was whole once is removed.
//! * Each slot has its own name (`localbot`, `localbot-1`), which it is saved under by itself and comes back from by itself.
//!   What people save under a name of their choice comes back only when they name it.
//! * What is saved already, and was not used since, is not saved again: it would push out what is worth more ([`unchanged`]).
//! * An empty slot is not saved, and a save that turns out empty does not count: the server answers it with 200.
//! * A busy slot is not saved: the call would wait for it without limit.
//! * Only slots that the server has just shown are named to it: other ids act on some other slot.
//! * Nothing is asked of a server that sleeps: that would load its model.
//! * A file is restored only by the same model, build, flags and layout (the file itself knows none of them), with exactly the
//!   noted size (a truncated file aborts the server), into a slot never used since the start.
//! * A file whose whole was read once in calm, for its digest, is read again while the backend loads: a flipped bit would be
//!   restored like any other.
//! * A run of the server that was restored into by an earlier life of the daemon is not restored into again by itself.
//! * Before a restore is sent, its note says so, and then the slot is looked at once more; a file that killed the server or was
//!   rejected is put aside and never sent again. What proves nothing against it (no end in time, a server that is gone, an
//!   error) costs it one chance of two.
//! * What a restore was worth only a request tells (`cache_n`): the next real one, or one of ours ([`at_once`]). Where it was
//!   nothing twice in a row, none is sent by itself any more.
//! * Slot files are transcripts of conversations: what is kept, for how long, and how much, is configured, and forgotten is gone.

mod at_once;
mod digest;
mod doubt;
mod head;
mod name;
mod note;
mod reason;
mod restore;
mod retention;
mod save;
mod sweep;
mod tend;
#[cfg(test)]
mod tests;
mod unchanged;
mod worth;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{
    config,
    driver::world::{NamedSlot, SlotChoice},
    host::{
        http::{Probe, Props, SlotError, WireError},
        launch_flags::LaunchFlags,
        slot_files::{FileName, FileStat, Found, MOST_SURVEYED, SlotFiles, SlotFilesError, Survey, Surveyed},
    },
    machine::{
        Invocation, Outcome, Warning,
        reading::{SavedSlot, SlotReading},
    },
};
use digest::{Digested, Unread};
use doubt::UNFINISHED;
pub use head::check as check_head;
use note::{Fit, Model, Note, Notes, Place, Shelf};
pub use reason::Reason;
use reason::Said;
use restore::Checked;
use unchanged::Content;
use worth::Unproven;

/// What is shown of a generation whose file is not in the folder.
const MISSING: &str = "its file is missing: `slots verify` looks again";

/// Of the time for a save or restore, so much is kept for what comes after: checking, noting, clearing away.
const RESERVE: Duration = Duration::from_secs(2);

/// The saved slots of one backend: files on the server, notes here.
#[derive(Debug)]
pub struct SlotStore {
    shelf: Shelf,
    slots: config::Slots,
    server: String,
    backend: String,
    serial: AtomicU16,
    /// One save or restore at a time.
    turn: tokio::sync::Mutex<()>,
    /// Whole files that were read while the backend loaded; held while they are read.
    digests: tokio::sync::Mutex<BTreeMap<FileName, Digested>>,
    /// Files are to be read for a restore: what is read for no hurry is given up.
    files_wanted: Notify,
    seen: Mutex<Seen>,
}

/// What this life of the daemon remembers beside the notes.
#[derive(Debug, Default)]
struct Seen {
    /// The run of the server, where it is known.
    run: Option<Invocation>,
    /// The file whose restore is under way.
    restoring: Option<String>,
    /// The slot folder is open to others, as it was last looked at.
    folder_is_open: Option<bool>,
    /// Files that could not be read whole.
    undigested: BTreeSet<String>,
    /// By slot: what was restored into it last, until it is known what that was worth.
    unproven: BTreeMap<u32, Unproven>,
    /// Files that were not in the folder when they were last looked for. It may only not be mounted: each start tries anew.
    missing: BTreeSet<String>,
    /// By file: what was saved into it.
    contents: BTreeMap<String, Content>,
    /// Damaged notes that were reported.
    damaged: BTreeSet<String>,
    /// What was looked at while the backend loaded.
    checked: Option<Checked>,
}

impl SlotStore {
    /// The store of backend `backend` of `server`. Its notes are in `state_dir/slots/SERVER/BACKEND/`, one for each saved
    /// generation; nothing is read or made yet.
    #[must_use]
    pub fn new(state_dir: &Path, server: &str, backend: &str, slots: config::Slots) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Where to begin does not matter, if only another life of the daemon in the same second begins elsewhere.
        let serial = (since_epoch.subsec_micros() & 0xffff) as u16;
        Self {
            shelf: Shelf::new(state_dir, server, backend),
            slots,
            server: server.to_owned(),
            backend: backend.to_owned(),
            serial: AtomicU16::new(serial),
            turn: tokio::sync::Mutex::default(),
            digests: tokio::sync::Mutex::default(),
            files_wanted: Notify::new(),
            seen: Mutex::default(),
        }
    }

    /// The saved slots on record, newest first, also those put aside; without those that are about to be pruned. Reads the
    /// notes again.
    pub async fn saved(&self) -> Vec<SavedSlot> {
        let notes = self.shelf.read_again().await;
        self.report(&notes);
        self.seen().missing.retain(|file| notes.notes.iter().any(|note| note.file == *file));
        self.staying(&notes.notes)
            .into_iter()
            .cloned()
            .map(|mut note| {
                if note.put_aside.is_none() && self.seen().is_unfinished(&note) {
                    note.put_aside = Some(UNFINISHED.into());
                } else if note.put_aside.is_none() && self.seen().missing.contains(&note.file) {
                    note.put_aside = Some(MISSING.into());
                }
                let named = name::slot_of(&self.slots.name, &note.name).is_none();
                let useless = if named { None } else { notes.useless.why(&note.fit) };
                SavedSlot { useless, named, ..note.shown() }
            })
            .collect()
    }

    /// The run of the server that is meant from now on; `None` where it cannot be told.
    pub fn meets(&self, run: Option<Invocation>) {
        let mut seen = self.seen();
        if run.is_some() && seen.run != run {
            seen.missing.clear();
        }
        seen.run = run;
    }

    /// Notes that cannot be read, with what is wrong. They are lived without: their slots count as not saved.
    pub async fn damaged(&self) -> Vec<(String, String)> {
        self.shelf.read_again().await.damaged.clone()
    }

    /// Saves each slot of `choice` that holds tokens and is not busy, within `within` all together.
    ///
    /// `Succeeded` with what there is to say of each slot (`saved`, or why not); `Failed` with the first reason if something
    /// failed and nothing was saved, for a slot that was named whatever the reason. What is not noted when time is up does not
    /// count and is swept later.
    pub async fn save(&self, probe: &Probe, files: &impl SlotFiles, choice: &SlotChoice, within: Duration) -> Outcome {
        let deadline = Instant::now() + within;
        let mut said = Vec::new();
        let whole = async {
            let _turn = self.turn.lock().await;
            self.save_each(probe, files, choice, deadline, &mut said).await;
        };
        if timeout_at(deadline, whole).await.is_err() {
            said.push(Reason::SaveTimeout.say("the time for saving was up"));
        }
        log(&said);
        let saved = said.iter().any(|s| matches!(s.reason, Reason::Saved | Reason::SavedAlready));
        let is_named = matches!(choice, SlotChoice::Named(_));
        let failed = said.iter().position(|s| !s.reason.is_news() && (is_named || !s.reason.is_skip()));
        match failed {
            Some(first) if !saved => Outcome::Failed(said.swap_remove(first).into()),
            _ => Outcome::Succeeded(said.into_iter().map(Warning::from).collect()),
        }
    }

    /// Restores the newest fitting generation of each slot of `choice`, within `within` all together.
    ///
    /// `Succeeded` if a slot was restored and none went wrong, or if restores are known to do nothing here; `Failed` if the server rejected or died of one (restart it: a
    /// rejected restore may have spoilt it), or if nothing could be sent; `Unknown` if one did not end in time.
    pub async fn restore(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        choice: &SlotChoice,
        within: Duration,
    ) -> Outcome {
        let deadline = Instant::now() + within;
        let mut said = Vec::new();
        let whole = async {
            let _turn = self.turn.lock().await;
            self.restore_each(probe, files, choice, deadline, &mut said).await;
            if said.iter().any(|said| said.reason.has_come_back()) {
                said.extend(self.prove_at_once(probe, files, deadline).await);
            }
        };
        if timeout_at(deadline, whole).await.is_err() {
            let was_sent = self.notes().await.notes.iter().any(|n| n.restoring);
            let reason = if was_sent { Reason::RestoreTimeout } else { Reason::RestoreUnchecked };
            said.push(reason.say("the time for restoring was up"));
        }
        log(&said);
        if let Some(spoilt) = said.iter().position(|s| s.reason.is_spoilt()) {
            let spoilt = said.swap_remove(spoilt);
            return if spoilt.reason == Reason::RestoreTimeout {
                Outcome::Unknown(spoilt.into())
            } else {
                Outcome::Failed(spoilt.into())
            };
        }
        let restored = said.iter().any(|s| s.reason.has_come_back());
        if restored {
            return Outcome::Succeeded(said.into_iter().map(Warning::from).collect());
        }
        match said.iter().position(|s| !s.reason.is_skip()) {
            Some(first) => Outcome::Failed(said.swap_remove(first).into()),
            None if said.is_empty() => Outcome::Failed(Reason::RestoreNothing.say("nothing is saved").into()),
            None => Outcome::Succeeded(said.into_iter().map(Warning::from).collect()),
        }
    }

    /// Whether the slot folder was open to others when it was last swept; `None`: never yet.
    pub fn folder_is_open(&self) -> Option<bool> {
        self.seen().folder_is_open
    }

    /// Removes generations beyond those to keep, file first: what then has a note still is tried again by the next call.
    pub async fn prune(&self, files: &impl SlotFiles) {
        let _turn = self.turn.lock().await;
        let notes = self.notes().await;
        let gone = self.surplus(&notes.notes);
        let named: Vec<FileName> = gone.iter().filter_map(|note| FileName::new(&note.file)).collect();
        if named.is_empty() || !remove(files, &named).await {
            return;
        }
        for note in gone {
            if let Err(error) = self.shelf.remove(note).await {
                tracing::warn!(file = note.file, %error, "an old note could not be removed");
            }
        }
    }

    /// The notes that may go.
    fn surplus<'a>(&self, notes: &'a [Note]) -> Vec<&'a Note> {
        retention::surplus(notes, &self.slots, &self.seen().missing, now())
    }

    /// The notes that may not go.
    fn staying<'a>(&self, notes: &'a [Note]) -> Vec<&'a Note> {
        let surplus = self.surplus(notes);
        notes.iter().filter(|note| surplus.iter().all(|gone| gone.file != note.file)).collect()
    }

    /// Its file was looked for.
    fn looked_for(&self, note: &Note, is_there: bool) {
        let missing = &mut self.seen().missing;
        if is_there {
            missing.remove(&note.file);
        } else {
            missing.insert(note.file.clone());
        }
    }

    /// Whose files are ours.
    async fn tag(&self) -> std::io::Result<String> {
        Ok(name::tag(&self.shelf.owner().await?, &self.server, &self.backend))
    }

    /// All notes, as they are known.
    async fn notes(&self) -> Arc<Notes> {
        let notes = self.shelf.notes().await;
        self.report(&notes);
        notes
    }

    /// Damaged notes are reported the first time they are met.
    fn report(&self, notes: &Notes) {
        let mut seen = self.seen();
        for (name, why) in &notes.damaged {
            if seen.damaged.insert(name.clone()) {
                tracing::warn!(note = name, why, "the note of a saved slot is damaged");
            }
        }
        // Forget those that are gone, so that the set stays small.
        seen.damaged.retain(|name| notes.damaged.iter().any(|(n, _)| n == name));
    }

    /// Marks a note as never to be restored again.
    async fn put_aside(&self, note: &Note, why: &str) {
        let note = Note { restoring: false, sent_to: None, put_aside: Some(why.to_owned()), ..note.clone() };
        if let Err(error) = self.shelf.write(&note).await {
            // A restore that was begun stays marked as such, which puts it aside as well.
            tracing::warn!(file = note.file, %error, "a saved slot could not be put aside");
        }
    }

    fn next_serial(&self) -> u16 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Never held over an await, and nothing under it can panic.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, a restore is under way; dropped with the future that waits for it, whatever ends that.
struct UnderWay<'a>(&'a SlotStore);

impl<'a> UnderWay<'a> {
    fn new(store: &'a SlotStore, note: &Note) -> Self {
        store.seen().restoring = Some(note.file.clone());
        Self(store)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.seen().restoring = None;
    }
}

/// The slot that a note tells of, where `text` is a note of that name. For those who try odd ones.
///
/// # Errors
/// In words, what is wrong with it.
pub fn read_note(text: &[u8], name: &str) -> Result<SavedSlot, String> {
    note::parse(text, name).map(Note::shown)
}

/// A server that may be asked about its slots, and what it shows of them.
struct Awake {
    props: Props,
    slots: Vec<SlotReading>,
    /// By slot: its last request.
    tasks: BTreeMap<u32, i64>,
    total_slots: u32,
}

/// Why a server may not be asked about its slots.
enum Closed {
    Router,
    Asleep,
    Hidden,
    /// Not in time: it may be working on a prompt.
    Late(String),
    Silent(String),
}

/// Asks `/props`, and `/slots` if that does no harm.
async fn look_in(probe: &Probe) -> Result<Awake, Closed> {
    let silent = |what: &str, error: WireError| match error {
        WireError::TimedOut => Closed::Late(format!("{what}: {error}")),
        _ => Closed::Silent(format!("{what}: {error}")),
    };
    let props = probe.props().await.map_err(|error| silent("/props", error))?;
    if props.is_router() {
        return Err(Closed::Router);
    }
    if props.is_sleeping {
        return Err(Closed::Asleep);
    }
    let (mut slots, tasks) = probe.slots_and_tasks().await.map_err(|error| silent("/slots", error))?;
    if slots.is_empty() {
        return Err(Closed::Hidden);
    }
    let shown = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    let total_slots = props.total_slots.unwrap_or(shown).min(shown);
    // An id beyond the last slot would act on another one.
    slots.retain(|slot| slot.id < total_slots);
    Ok(Awake { props, slots, tasks, total_slots })
}

impl Closed {
    fn say(self, not_supported: Reason, asleep: Reason, failed: Reason) -> Said {
        match self {
            Self::Router => not_supported.say("the server is in router mode"),
            Self::Asleep => asleep.say("the server sleeps; its slots are empty"),
            Self::Hidden => not_supported.say("the server does not show its slots (--no-slots)"),
            Self::Late(why) | Self::Silent(why) => failed.say(why),
        }
    }
}

impl Awake {
    /// The file of the model, where the server tells it.
    fn model_path(&self) -> Option<&str> {
        self.props.model_path.as_deref().filter(|path| !path.is_empty())
    }

    /// What a file saved now from a slot with that context fits, the model's file and the flags being as given.
    fn fit(&self, n_ctx: u64, model: Option<FileStat>, flags: Option<&LaunchFlags>) -> Fit {
        let told = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        let path = told(&self.props.model_path);
        Fit {
            model: Model {
                id: told(&self.props.model_alias).or_else(|| path.clone()).unwrap_or_default(),
                path,
                bytes: model.map(|s| s.bytes),
                mtime: model.map(|s| s.mtime),
            },
            build: told(&self.props.build_info),
            n_ctx,
            total_slots: self.total_slots,
            flags: flags.cloned(),
        }
    }
}

/// What is left for one request, keeping back some time for what must follow it.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.saturating_sub(RESERVE.min(left / 5))
}

/// Whether a file is as it was noted, as far as its size and head tell. Else what is wrong.
fn as_noted(found: &Found, note: &Note) -> Result<(), String> {
    match whole(found, note)? {
        format if format == note.format => Ok(()),
        format => Err(format!("it is of version {format} instead of {}", note.format)),
    }
}

/// The version of a file, if it is whole: as long as noted, with the head of a slot file of so many tokens. Else what is wrong.
fn whole(found: &Found, note: &Note) -> Result<u32, String> {
    if found.stat.bytes != note.bytes {
        return Err(format!("{} bytes instead of {}", found.stat.bytes, note.bytes));
    }
    head::check(&found.head, found.stat.bytes, note.tokens)
}

/// The notes of a name, or of one generation of it.
fn named<'a>(notes: &'a [Note], name: &str, generation: Option<u64>) -> Result<Vec<&'a Note>, Said> {
    let of_name: Vec<&Note> = notes.iter().filter(|note| note.name == name).collect();
    if of_name.is_empty() {
        return Err(Reason::NoSuchSlot.say(format!("nothing is saved as {name:?}")));
    }
    let there: BTreeSet<u64> = of_name.iter().map(|note| note.round).collect();
    let meant: Vec<&Note> =
        of_name.into_iter().filter(|note| generation.is_none_or(|number| number == note.round)).collect();
    match generation {
        Some(number) if meant.is_empty() => {
            let there: Vec<String> = there.iter().rev().map(ToString::to_string).collect();
            let why = format!("of {name} there is no generation {number}, but {}", there.join(", "));
            Err(Reason::NoSuchGeneration.say(why))
        }
        _ => Ok(meant),
    }
}

async fn remove(files: &impl SlotFiles, names: &[FileName]) -> bool {
    files
        .remove(names)
        .await
        .inspect_err(|error| tracing::warn!(?names, %error, "slot files could not be removed"))
        .is_ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The outcome without what is no warning: good news, and what had not to be saved unless somebody asked for it.
#[must_use]
pub fn without_news(outcome: Outcome, choice: &SlotChoice) -> Outcome {
    let is_asked = matches!(choice, SlotChoice::Asked | SlotChoice::Named(_));
    let is_news = |reason: &&Reason| match reason {
        Reason::SlotEmpty | Reason::SavedAlready => !is_asked,
        reason => reason.is_news(),
    };
    let news: Vec<&str> = Reason::ALL.iter().filter(is_news).map(|reason| reason.code()).collect();
    match outcome {
        Outcome::Succeeded(mut said) => {
            said.retain(|warning| !news.contains(&warning.code.as_str()));
            Outcome::Succeeded(said)
        }
        other => other,
    }
}

fn log(said: &[Said]) {
    for said in said {
        let (code, message) = (said.reason.code(), said.message.as_str());
        if said.reason.is_news() || said.reason.is_skip() {
            tracing::info!(code, message, "slots");
        } else {
            tracing::warn!(code, message, "slots");
        }
    }
}
