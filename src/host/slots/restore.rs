//! Restoring: checked and noted before it is sent, and never twice after it went wrong.
//!
//! A switch waits for this, so the files are looked at while the backend still loads ([`SlotStore::look_ahead`]). The slot
//! itself is looked at last: whoever has used it by then keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Awake, FileName, FileStat, Fit, Found, LaunchFlags, MOST_SURVEYED, NamedSlot, Note, Notes, Place, Probe, Reason,
    Said, SlotChoice, SlotError, SlotFiles, SlotFilesError, SlotReading, SlotStore, Survey, Surveyed, UNFINISHED,
    UnderWay, Unproven, Unread, as_noted, left, look_in, name, named, now, retention::is_too_old,
};
use crate::machine::reading::LastRestore;

/// What was looked at while the backend loaded is looked at again after so long.
const CHECKED_FOR: Duration = Duration::from_secs(30);

/// What is known of the files.
#[derive(Debug)]
pub(super) struct Checked {
    at: Instant,
    /// The path that was asked for.
    model_path: Option<String>,
    model: Option<FileStat>,
    flags: Option<LaunchFlags>,
    files: BTreeMap<FileName, Result<Option<Found>, SlotFilesError>>,
}

impl Checked {
    fn new(model_path: Option<String>, asked: Vec<FileName>, surveyed: Surveyed) -> Self {
        let files = asked.into_iter().zip(surveyed.files).collect();
        Self { at: Instant::now(), model_path, model: surveyed.model, flags: surveyed.flags, files }
    }

    /// All is as `note` hopes for. Else it may have been looked at too early: before the server's own process was there, or
    /// its share.
    fn confirms(&self, note: &Note) -> bool {
        let (model, flags) = (&note.fit.model, &note.fit.flags);
        let found = FileName::new(&note.file).and_then(|file| self.files.get(&file));
        matches!(found, Some(Ok(Some(found))) if as_noted(found, note).is_ok())
            && (model.bytes.is_none() || model.bytes == self.model.map(|stat| stat.bytes))
            && (model.mtime.is_none() || model.mtime == self.model.map(|stat| stat.mtime))
            && (flags.is_none() || *flags == self.flags)
    }

    /// Takes over what a newer look has found.
    fn add(&mut self, newer: Self) {
        (self.model_path, self.model, self.flags) = (newer.model_path, newer.model, newer.flags);
        self.files.extend(newer.files);
    }
}

/// What lies in the cache beside a slot, where all slots share one.
struct Beside {
    tokens: u64,
    /// Nothing but what one save has found there, too.
    same_round: bool,
}

impl Beside {
    /// Slots of one save fitted in beside each other then and do now, unless that went wrong once; whatever else comes must
    /// surely fit in.
    const fn leaves_room(&self, note: &Note, slot: &SlotReading) -> bool {
        (self.same_round && !note.doubted) || self.tokens.saturating_add(note.tokens) <= slot.n_ctx
    }
}

impl SlotStore {
    /// What may be restored, newest first.
    fn restorable<'a>(&self, notes: &'a [Note]) -> impl Iterator<Item = &'a Note> {
        let now = now();
        notes.iter().filter(move |note| note.is_good() && !is_too_old(note, &self.slots, now))
    }

    /// What comes back by itself: good generations under a slot's own name, newest first.
    fn own<'a>(&self, notes: &'a [Note]) -> impl Iterator<Item = &'a Note> {
        let is_own = |note: &&Note| name::slot_of(&self.slots.name, &note.name) == Some(note.slot);
        self.restorable(notes).filter(is_own)
    }

    /// Why nothing comes back by itself, where something is on record under a slot's own name.
    fn none_is_good(&self, notes: &[Note]) -> Option<Said> {
        let now = now();
        let is_own = |note: &&Note| {
            name::slot_of(&self.slots.name, &note.name) == Some(note.slot) && !is_too_old(note, &self.slots, now)
        };
        let newest = notes.iter().find(is_own)?;
        let (name, round, why) = (&newest.name, newest.round, why_not_good(newest));
        let saved = generations_are(notes.iter().filter(is_own).count());
        let message = format!("{name}, generation {round}: {why}; nothing comes back, though {saved} saved");
        Some(Reason::RestoreNothing.say(message))
    }

    /// What was restored instead of the newest generation that fits, and why.
    fn instead_of_newest(&self, notes: &[Note], taken: &Note, fit: &Fit) -> Option<Said> {
        let now = now();
        let newest = notes.iter().find(|note| {
            note.name == taken.name && note.fit.differences(fit).is_empty() && !is_too_old(note, &self.slots, now)
        })?;
        let later = humantime::format_duration(Duration::from_secs(newest.saved_at.saturating_sub(taken.saved_at)));
        (newest.round > taken.round).then(|| {
            Reason::RestoreOlder.say(format!(
                "{}: generation {} ({} tokens) is restored, not {} ({} tokens, saved {later} later): {}",
                taken.name,
                taken.round,
                taken.tokens,
                newest.round,
                newest.tokens,
                why_not_good(newest)
            ))
        })
    }

    /// The generations that were named and may be restored, newest first; or why there are none.
    fn generations<'a>(&self, notes: &'a [Note], wanted: &NamedSlot) -> Result<Vec<&'a Note>, Said> {
        let NamedSlot { name, generation, .. } = wanted;
        let now = now();
        let mut meant = named(notes, name, *generation)?;
        meant.retain(|note| !is_too_old(note, &self.slots, now));
        let (good, aside): (Vec<&Note>, Vec<&Note>) = meant.into_iter().partition(|note| note.is_good());
        if let (true, Some(aside)) = (good.is_empty(), aside.first()) {
            let why = why_not_good(aside);
            return Err(Reason::RestorePutAside.say(format!("{name}, generation {}: {why}", aside.round)));
        }
        Ok(good)
    }

    /// Looks at the files that a restore will most likely want, and reads them whole where a digest is on record: for use
    /// while the backend loads.
    pub async fn look_ahead(&self, files: &impl SlotFiles) {
        self.seen().missing.clear();
        self.digest_ahead(files, async {
            let notes = self.notes().await;
            let mut newest: BTreeMap<&str, &Note> = BTreeMap::new();
            for note in self.own(&notes.notes).filter(|note| notes.useless.why(&note.fit).is_none()) {
                newest.entry(note.name.as_str()).or_insert(note);
            }
            let Some(model_path) = newest.values().next().map(|note| note.fit.model.path.clone()) else {
                return vec![];
            };
            let wanted: Vec<FileName> =
                newest.values().filter_map(|note| FileName::new(&note.file)).take(MOST_SURVEYED).collect();
            // What went wrong is met again, and said, by the restore.
            let Ok(checked) = survey(files, model_path, wanted).await else {
                return vec![];
            };
            let read = |note: &&Note| self.is_worth_reading(&notes.notes, note);
            let read: BTreeSet<&str> = newest.values().copied().filter(read).map(|note| note.file.as_str()).collect();
            let there = |(file, found): (&FileName, &Result<Option<Found>, _>)| {
                Some((file.clone(), found.as_ref().ok()?.as_ref()?.stat))
            };
            let is_wanted = |(file, _): &(FileName, _)| read.contains(file.as_str());
            let wanted = checked.files.iter().filter_map(there).filter(is_wanted).collect();
            self.seen().checked = Some(checked);
            wanted
        })
        .await;
    }

    pub(super) async fn restore_each(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        choice: &SlotChoice,
        deadline: Instant,
        said: &mut Vec<Said>,
    ) {
        let ahead = self.seen().checked.take().filter(|checked| checked.at.elapsed() < CHECKED_FOR);
        let notes = self.notes().await;
        let marked: Vec<&Note> = notes.notes.iter().filter(|n| n.restoring).collect();
        if let Err(closed) = self.settle(&marked, probe).await {
            said.push(closed.say(Reason::RestoreNotSupported, Reason::RestoreAsleep, Reason::RestoreUnchecked));
            return;
        }
        let notes = self.notes().await;
        let good = match choice {
            SlotChoice::Named(named) => self.generations(&notes.notes, named),
            _ => Ok(self.own(&notes.notes).collect()),
        };
        let good: Vec<&Note> = match good {
            Ok(good) => good,
            Err(why) => {
                said.push(why);
                return;
            }
        };
        let Some(&newest) = good.first() else {
            said.extend(self.none_is_good(&notes.notes));
            return;
        };
        let awake = match look_in(probe).await {
            Ok(awake) => awake,
            Err(closed) => {
                said.push(closed.say(Reason::RestoreNotSupported, Reason::RestoreAsleep, Reason::RestoreUnchecked));
                return;
            }
        };
        let only = match choice {
            SlotChoice::Named(named) => Some(named.slot.unwrap_or(newest.slot)),
            _ => None,
        };
        let is_exact = matches!(choice, SlotChoice::Named(named) if named.generation.is_some());
        // By the slot it goes into.
        let mut goals: BTreeMap<u32, Vec<&Note>> = BTreeMap::new();
        for note in good {
            goals.entry(only.unwrap_or(note.slot)).or_default().push(note);
        }
        // Newest first.
        let mut order: Vec<(&SlotReading, Vec<&Note>)> = Vec::new();
        for (id, notes) in goals {
            match awake.slots.iter().find(|slot| slot.id == id) {
                Some(slot) => order.push((slot, notes)),
                None => said.push(Reason::RestoreNoSlot.say(format!("the server has no slot {id}"))),
            }
        }
        order.sort_by_key(|(slot, notes)| (std::cmp::Reverse(notes[0].round), slot.id));
        order.retain(|(slot, notes)| match is_unused(slot, &notes[0].name) {
            Ok(()) => true,
            Err(why) => {
                said.push(why);
                false
            }
        });
        if only.is_none() {
            order.retain(|(slot, _)| match self.is_there(&notes, slot) {
                Some(there) => {
                    said.push(there);
                    false
                }
                None => true,
            });
        }
        if order.is_empty() {
            return;
        }
        let wanted: Vec<&Note> = order.iter().map(|(_, notes)| notes[0]).take(MOST_SURVEYED).collect();
        let mut checked = match looked_at(ahead, &awake, &wanted, files).await {
            Ok(checked) => checked,
            Err(error) => {
                said.push(Reason::RestoreUnchecked.say(error.to_string()));
                return;
            }
        };
        let (useless, all) = (&notes.useless, &notes);
        for (slot, notes) in order {
            let now = awake.fit(slot.n_ctx, checked.model, checked.flags.as_ref());
            if only.is_none()
                && let Some(why) = useless.why(&now)
            {
                said.push(Reason::RestoreUseless.say(format!("{}: {why}", notes[0].name)));
                continue;
            }
            let before = said.len();
            let chosen = self.choose(&now, &notes, &mut checked, files, deadline, said).await;
            let Some((note, file)) = chosen else {
                if let Some(why) = said.get_mut(before) {
                    let saved = generations_are(notes.len());
                    why.message = format!("{}; slot {} stays empty, though {saved} saved", why.message, slot.id);
                }
                continue;
            };
            if only.is_none() && note.fit.model.bytes.is_some() && checked.model.is_none() {
                let why = "whether it is the same model nobody can tell: its file could not be looked at";
                said.push(Reason::RestoreUnchecked.say(format!("{}: {why}", note.name)));
                continue;
            }
            let beside = self.beside(&awake, all, slot.id, note.round, checked.flags.as_ref());
            if !beside.leaves_room(&note, slot) {
                let why = format!("{}: {} tokens may not fit in beside {}", note.name, note.tokens, beside.tokens);
                said.push(Reason::RestoreNoRoom.say(why));
                continue;
            }
            let outcome = self.send(probe, slot, &note, &file, &beside, deadline).await;
            let (goes_on, has_come_back) = (!outcome.reason.is_spoilt(), outcome.reason.has_come_back());
            said.push(outcome);
            if has_come_back && !is_exact {
                said.extend(self.instead_of_newest(&self.notes().await.notes, &note, &now));
            }
            if !goes_on {
                return;
            }
        }
    }

    /// The newest generation that fits this server and whose file is whole. Damaged files are put aside on the way; nothing
    /// is sent.
    async fn choose(
        &self,
        now: &Fit,
        notes: &[&Note],
        checked: &mut Checked,
        files: &impl SlotFiles,
        deadline: Instant,
        said: &mut Vec<Said>,
    ) -> Option<(Note, FileName)> {
        let mut mismatch = None;
        for &note in notes {
            let differences = note.fit.differences(now);
            if !differences.is_empty() {
                // The newest one's is the one to tell; older ones are tried silently.
                mismatch.get_or_insert_with(|| {
                    let differences = differences.join(", ");
                    Reason::RestoreMismatch.say(format!("{}: {differences}; it is kept until that is back", note.name))
                });
                continue;
            }
            let whole = match whole_file(note, checked, files).await {
                Ok((file, stat)) => self.agrees(note, &file, stat, files, deadline).await.map(|unread| (file, unread)),
                Err(why) => Err(why),
            };
            match whole {
                Ok((file, unread)) => {
                    self.looked_for(note, true);
                    said.extend(mismatch);
                    let within = unread.as_ref().and_then(|unread| unread.within);
                    said.extend(unread.map(|unread| by_size_and_head(&note.name, &unread)));
                    return Some((Note { unread_within: within, ..note.clone() }, file));
                }
                Err(why) => {
                    match why.reason {
                        Reason::RestoreDamaged => self.put_aside(note, &why.message).await,
                        Reason::RestoreMissing => self.looked_for(note, false),
                        _ => {}
                    }
                    let unknown = why.reason == Reason::RestoreUnchecked;
                    said.push(why);
                    if unknown {
                        return None;
                    }
                }
            }
        }
        said.extend(mismatch);
        None
    }

    /// So many tokens are in this slot, which was not used since, from a restore into this very run; perhaps by an earlier life
    /// of the daemon, that has not told yet what it was worth.
    fn is_there(&self, notes: &Notes, slot: &SlotReading) -> Option<Said> {
        let mut seen = self.seen();
        let place = Place { run: seen.run?, slot: slot.id };
        let note = notes.restored_into(place)?;
        let last = note.last_restore.as_ref()?;
        if last.reuse.is_none() {
            seen.unproven.entry(slot.id).or_insert_with(|| Unproven::new(note, last.tokens, Some(place.run)));
        }
        let why = format!("{}: {} tokens are in slot {} of this run already", note.name, last.tokens, slot.id);
        Some(Reason::Restored.say(why))
    }

    /// What lies beside slot `goal`. What was restored and not used since is not shown by the server.
    fn beside(&self, awake: &Awake, notes: &Notes, goal: u32, round: u64, flags: Option<&LaunchFlags>) -> Beside {
        let mut beside = Beside { tokens: 0, same_round: true };
        if flags.is_some_and(LaunchFlags::splits_cache) {
            return beside;
        }
        let mut seen = self.seen();
        seen.forget_earlier_runs();
        for slot in awake.slots.iter().filter(|slot| slot.id != goal) {
            let (tokens, same_round) = match (slot.tokens, seen.unproven.get(&slot.id)) {
                // How far it goes nobody knows.
                _ if slot.is_processing => (slot.n_ctx, false),
                (Some(tokens), _) => (tokens, false),
                (None, Some(restored)) => (restored.tokens, restored.round == round),
                // Judged already, or restored in an earlier life of the daemon.
                (None, None) => seen
                    .run
                    .and_then(|run| notes.restored_into(Place { run, slot: slot.id }))
                    .map_or((0, true), |restored| (restored.tokens, restored.round == round)),
            };
            beside.tokens = beside.tokens.saturating_add(tokens);
            beside.same_round &= same_round || tokens == 0;
        }
        beside
    }

    /// Sends one restore. What becomes of it is on its note, also where nobody is left to write it.
    async fn send(
        &self,
        probe: &Probe,
        slot: &SlotReading,
        note: &Note,
        file: &FileName,
        beside: &Beside,
        deadline: Instant,
    ) -> Said {
        let name = &note.name;
        let marked = Note { restoring: true, sent_to: self.seen().run, ..note.clone() };
        let _under_way = UnderWay::new(self, note);
        if let Err(error) = self.shelf.write(&marked).await {
            // Should the mark be written late, this comes after it: the file was not sent.
            let _ = self.shelf.write(note).await;
            return Reason::RestoreUnchecked.say(format!("{name}: not sent, its note cannot be written: {error}"));
        }
        let said = match still_unused(probe, slot, name).await {
            Ok(()) => sent(probe, slot, note, file, deadline).await,
            Err(why) => Err(why),
        };
        let mut note = note.clone();
        let said = match said {
            Ok((tokens, said)) => {
                note.last_restore = Some(LastRestore { at: now(), tokens, reuse: None });
                let mut seen = self.seen();
                note.restored_into = seen.run.map(|run| Place { run, slot: slot.id });
                let unproven = Unproven::new(&note, tokens, seen.run);
                seen.unproven.insert(slot.id, unproven);
                said
            }
            Err(said) => said,
        };
        let why = || format!("{}: {}", said.reason.code(), said.message);
        match said.reason {
            Reason::Restored | Reason::RestorePartial => self.clear(&note).await,
            // The same answer as to a damaged file.
            Reason::RestoreRejected if beside.tokens > 0 => self.doubt(&note, &format!("no room, or {}", why())).await,
            Reason::RestoreRejected | Reason::RestoreKilledProcess => self.put_aside(&note, &why()).await,
            Reason::RestoreFailed => self.doubt(&note, &why()).await,
            // It may be under way still. The mark stays until the server answers again, or is gone.
            Reason::RestoreTimeout => {}
            // Surely not begun: the file has done nothing.
            _ => self.unmark(&note).await,
        }
        said
    }
}

/// Why a generation is not what comes back.
fn why_not_good(note: &Note) -> &str {
    match &note.put_aside {
        Some(why) => why,
        None if note.restoring => UNFINISHED,
        None => "its file is missing",
    }
}

fn generations_are(count: usize) -> String {
    if count == 1 { "1 generation is".into() } else { format!("{count} generations are") }
}

/// Sends a restore: so many tokens came back, or why none did.
async fn sent(
    probe: &Probe,
    slot: &SlotReading,
    note: &Note,
    file: &FileName,
    deadline: Instant,
) -> Result<(u64, Said), Said> {
    let name = &note.name;
    let done = probe.restore_slot(slot.id, file, left(deadline)).await;
    let tokens = done.map_err(|error| failure(&error).say(format!("{name}: {error}")))?.tokens;
    let back = format!("{name}: {tokens} tokens restored into slot {}", slot.id);
    Ok(if tokens == note.tokens {
        (tokens, Reason::Restored.say(back))
    } else {
        (tokens, Reason::RestorePartial.say(format!("{back}, {} were saved", note.tokens)))
    })
}

fn by_size_and_head(name: &str, unread: &Unread) -> Said {
    let hint = if unread.within.is_some() { "; with a longer `restore_timeout` there is more time for it" } else { "" };
    let why = &unread.why;
    Reason::DigestUnknown
        .say(format!("{name}: restored by size and head alone, the whole file was not read: {why}{hint}"))
}

/// The last look before a restore is sent: between the first one and this, files were checked and a note was written.
async fn still_unused(probe: &Probe, slot: &SlotReading, name: &str) -> Result<(), Said> {
    let slots = probe.slots().await.map_err(|e| Reason::RestoreUnchecked.say(format!("{name}: /slots: {e}")))?;
    match slots.iter().find(|now| now.id == slot.id) {
        Some(now) => is_unused(now, name),
        None => Err(Reason::RestoreNoSlot.say(format!("the server has no slot {}", slot.id))),
    }
}

/// One look at files and model.
async fn survey(
    files: &impl SlotFiles,
    model_path: Option<String>,
    wanted: Vec<FileName>,
) -> Result<Checked, SlotFilesError> {
    let surveyed =
        files.survey(Survey { free: false, model: model_path.as_deref(), flags: true, files: &wanted }).await?;
    Ok(Checked::new(model_path, wanted, surveyed))
}

/// What is known of the wanted files and of the model that the server has loaded; looks where it is not known for sure.
async fn looked_at(
    ahead: Option<Checked>,
    awake: &Awake,
    wanted: &[&Note],
    files: &impl SlotFiles,
) -> Result<Checked, SlotFilesError> {
    let model_path = awake.model_path().map(str::to_owned);
    match ahead {
        Some(ahead) if ahead.model_path == model_path && wanted.iter().all(|note| ahead.confirms(note)) => Ok(ahead),
        _ => {
            let wanted = wanted.iter().filter_map(|note| FileName::new(&note.file));
            survey(files, model_path, wanted.collect()).await
        }
    }
}

fn is_unused(slot: &SlotReading, name: &str) -> Result<(), Said> {
    if slot.is_processing {
        return Err(Reason::RestoreSlotBusy.say(format!("{name}: slot {} is busy", slot.id)));
    }
    if slot.tokens.is_some() {
        let why = format!("{name}: slot {} was used since the start", slot.id);
        return Err(Reason::RestoreSlotUsed.say(why));
    }
    Ok(())
}

/// The file of a note, if it lies there as it was saved, as far as its size and head tell.
async fn whole_file(note: &Note, checked: &mut Checked, files: &impl SlotFiles) -> Result<(FileName, FileStat), Said> {
    let name = &note.name;
    let damaged = |why: String| Reason::RestoreDamaged.say(format!("{name}: {why}"));
    let unchecked = |e: SlotFilesError| Reason::RestoreUnchecked.say(format!("{name}: {e}"));
    let Some(file) = FileName::new(&note.file) else {
        return Err(damaged(format!("{:?} cannot be a file name", note.file)));
    };
    if !checked.files.contains_key(&file) {
        let newer = survey(files, checked.model_path.clone(), vec![file.clone()]).await.map_err(unchecked)?;
        checked.add(newer);
    }
    match checked.files.get(&file) {
        // Not damaged: the folder may only not be mounted now.
        None | Some(Ok(None)) => Err(Reason::RestoreMissing.say(format!("{name}: {file} is not in the slot folder"))),
        Some(Err(error)) => Err(unchecked(error.clone())),
        Some(Ok(Some(found))) => match as_noted(found, note) {
            Ok(()) => Ok((file, found.stat)),
            Err(why) => Err(damaged(format!("{file}: {why}"))),
        },
    }
}

const fn failure(error: &SlotError) -> Reason {
    match error {
        SlotError::NotBegun(_) => Reason::RestoreUnchecked,
        SlotError::NotSupported(_) => Reason::RestoreNotSupported,
        SlotError::Rejected(_) => Reason::RestoreRejected,
        SlotError::TimedOut => Reason::RestoreTimeout,
        SlotError::Closed => Reason::RestoreKilledProcess,
        SlotError::Failed { .. } | SlotError::Garbage(_) => Reason::RestoreFailed,
    }
}
