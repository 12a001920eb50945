//! Saving: to a new name, checked on disk, noted last.
//!
//! A switch waits for this, so what can be done at once is: the folder is looked at while the server tells of its slots, and
//! each file is checked while the next one is written.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use tokio::time::Instant;

use super::{
    Awake, Closed, FileStat, Fit, LaunchFlags, NamedSlot, Note, Notes, Probe, Reason, Said, SlotChoice, SlotError,
    SlotFiles, SlotReading, SlotStore, Survey, left, look_in,
    name::{self, Names},
    note::MANY_NOTES,
    now, remove,
    unchanged::{Content, whole_files},
    whole,
};

/// With less free than this after a failed save, the disk counts as full.
const FULL_BELOW_BYTES: u64 = 16 * 1024 * 1024;

const MIB: u64 = 1024 * 1024;

/// What all saves of one round share.
struct Round<'a, F> {
    probe: &'a Probe,
    files: &'a F,
    deadline: Instant,
    awake: &'a Awake,
    choice: &'a SlotChoice,
    notes: &'a Notes,
    /// By slot: its last request.
    tasks: &'a BTreeMap<u32, i64>,
    /// Files of this run that lie there as they were saved.
    whole: &'a BTreeSet<String>,
    /// The model's file.
    model: Option<FileStat>,
    /// What the server was started with.
    flags: Option<&'a LaunchFlags>,
    tag: &'a str,
    number: u64,
    at: u64,
}

/// A file that nobody has checked yet.
struct Written {
    names: Names,
    /// What it becomes.
    note: Note,
    content: Option<Content>,
}

/// Slots that are used while they are saved are saved again so many times at most.
const MOST_AGAIN: u64 = 2;

impl SlotStore {
    pub(super) async fn save_each(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        choice: &SlotChoice,
        deadline: Instant,
        said: &mut Vec<Said>,
    ) {
        if let SlotChoice::Named(named) = choice
            && !name::is_usable(&named.name)
        {
            let rule =
                "a name is made of letters, digits, dots, `_` and `-`, begins with a letter or digit, and is short";
            said.push(Reason::NameInvalid.say(format!("{:?}: {rule}", named.name)));
            return;
        }
        let notes = self.notes().await;
        if let SlotChoice::Named(NamedSlot { name, .. }) = choice
            && notes.notes.len() >= MANY_NOTES
            && name::slot_of(&self.slots.name, name).is_none()
            && notes.notes.iter().all(|note| note.name != *name)
        {
            let why = format!("{} generations are on record: forget what is not needed any more", notes.notes.len());
            said.push(Reason::TooManySaved.say(why));
            return;
        }
        let newest = notes.notes.first();
        // Most likely the model is the one of last time; what it is, the server tells at the same time.
        let guess = newest.and_then(|note| note.fit.model.path.as_deref());
        let asked = self.saved_of_this_run();
        let survey = |model| files.survey(Survey { free: true, model, flags: true, files: &asked });
        let (awake, tag, surveyed) = tokio::join!(look_in(probe), self.tag(), survey(guess));
        let awake = match awake {
            Ok(awake) => awake,
            Err(closed) => {
                said.push(closed.say(Reason::SaveNotSupported, Reason::SlotsAsleep, Reason::SaveFailed));
                return;
            }
        };
        let tag = match tag {
            Ok(tag) => tag,
            Err(error) => {
                said.push(Reason::NoteFailed.say(format!("the state directory: {error}")));
                return;
            }
        };
        let only = match self.named(choice, &awake, &notes) {
            Ok(only) => only,
            Err(why) => {
                said.push(why);
                return;
            }
        };
        let busy = awake.slots.iter().find(|slot| slot.is_processing);
        if let (SlotChoice::Checkpoint, Some(busy)) = (choice, busy) {
            // Whoever waits for it would wait for the save of any other slot.
            said.push(Reason::SlotBusy.say(format!("slot {} is processing a request", busy.id)));
            return;
        }
        let is_meant = |slot: &&SlotReading| only.is_none_or(|id| id == slot.id);
        let mut surveyed = if awake.model_path() == guess { surveyed } else { survey(awake.model_path()).await };
        if surveyed.is_err() {
            // What the file fits is noted now or never.
            surveyed = survey(awake.model_path()).await;
        }
        let surveyed = surveyed.unwrap_or_default();
        let whole = whole_files(&asked, &surveyed, &notes);
        let mut free = surveyed.free;
        let first = newest.map_or(1, |n| n.round.saturating_add(1));
        let (mut known, mut tasks) = (awake.slots.clone(), awake.tasks.clone());
        let mut slots: Vec<SlotReading> = known.iter().filter(is_meant).cloned().collect();
        let mut holds = false;
        for _ in 0..=MOST_AGAIN {
            let round = Round {
                probe,
                files,
                deadline,
                awake: &awake,
                choice,
                notes: &notes,
                tasks: &tasks,
                whole: &whole,
                model: surveyed.model,
                flags: surveyed.flags.as_ref(),
                tag: &tag,
                // What is saved again lay beside the rest, and goes back beside it.
                number: first,
                at: now(),
            };
            // What holds most comes first: if time runs out, the least is lost.
            slots.sort_by_key(|slot| Reverse(slot.tokens));
            let mut unchecked = None;
            for slot in &slots {
                let (checked, written) =
                    tokio::join!(self.check(&round, unchecked.take()), self.write_if_worth(&round, slot, &mut free));
                said.extend(checked);
                match written {
                    Some(Ok(written)) => unchecked = Some(written),
                    Some(Err(why)) => said.push(why),
                    None => continue,
                }
                holds = true;
            }
            let (checked, after) = tokio::join!(self.check(&round, unchecked), look_in(probe));
            said.extend(checked);
            let after = match after {
                Ok(after) => after,
                Err(closed) => {
                    // Whoever works on a prompt tells nothing. What is gone, or asleep, was not used.
                    if let Closed::Late(why) = closed {
                        said.push(
                            Reason::SlotBusy.say(format!("whether what was saved is used again is not known: {why}")),
                        );
                    }
                    slots.clear();
                    break;
                }
            };
            // What was used meanwhile is not what was saved.
            slots = after.slots.iter().filter(is_meant).filter(|slot| !known.contains(slot)).cloned().collect();
            if slots.is_empty() {
                break;
            }
            (known, tasks) = (after.slots, after.tasks);
        }
        if !slots.is_empty() && said.iter().all(|said| said.reason != Reason::SlotBusy) {
            let used: Vec<String> = slots.iter().map(|slot| format!("slot {}", slot.id)).collect();
            said.push(Reason::SlotBusy.say(format!("used each time it was saved: {}", used.join(", "))));
        }
        if !holds {
            let meant: Vec<SlotReading> = awake.slots.iter().filter(is_meant).cloned().collect();
            said.push(self.nothing_to_save(choice, &meant, &notes));
        }
    }

    /// The one slot that is meant, where one was named, among those that the server shows.
    fn named(&self, choice: &SlotChoice, awake: &Awake, notes: &Notes) -> Result<Option<u32>, Said> {
        let SlotChoice::Named(NamedSlot { name, slot, .. }) = choice else { return Ok(None) };
        let own = name::slot_of(&self.slots.name, name);
        if let (Some(own), Some(slot)) = (own, *slot)
            && own != slot
        {
            return Err(Reason::NameInvalid.say(format!("{name} is the own name of slot {own}, not of slot {slot}")));
        }
        if let Some(id) = own.or(*slot) {
            let shown = awake.slots.iter().any(|slot| slot.id == id);
            return if shown {
                Ok(Some(id))
            } else {
                Err(Reason::NoSuchSlot.say(format!("the server has no slot {id}")))
            };
        }
        let holding: Vec<&SlotReading> = awake.slots.iter().filter(|slot| slot.tokens.unwrap_or(0) > 0).collect();
        match holding[..] {
            [] => Err(self.nothing_to_save(choice, &awake.slots, notes)),
            [one] => Ok(Some(one.id)),
            _ => {
                let held = |slot: &&SlotReading| format!("slot {} holds {} tokens", slot.id, slot.tokens.unwrap_or(0));
                let held: Vec<String> = holding.iter().map(held).collect();
                Err(Reason::SlotAmbiguous.say(format!("{name}: {}: give the slot", held.join(", "))))
            }
        }
    }

    /// Whoever names a slot is told more about it.
    fn nothing_to_save(&self, choice: &SlotChoice, slots: &[SlotReading], notes: &Notes) -> Said {
        let told = match choice {
            SlotChoice::Named(named) => self.restored_and_unused(notes, slots, &named.name),
            _ => None,
        };
        told.unwrap_or_else(|| Reason::SlotEmpty.say("no slot holds tokens that are not saved already"))
    }

    /// Has a slot that holds tokens written to its file, or says why not. `None` if there is nothing in it.
    async fn write_if_worth<F: SlotFiles>(
        &self,
        round: &Round<'_, F>,
        slot: &SlotReading,
        free: &mut Option<u64>,
    ) -> Option<Result<Written, Said>> {
        let name = match round.choice {
            SlotChoice::Named(named) => named.name.clone(),
            SlotChoice::All | SlotChoice::Asked | SlotChoice::Checkpoint => name::of_slot(&self.slots.name, slot.id),
        };
        if slot.is_processing {
            let why = format!("{name}: slot {} is processing a request", slot.id);
            return Some(Err(Reason::SlotBusy.say(why)));
        }
        if slot.tokens.unwrap_or(0) == 0 {
            return None;
        }
        Some(self.write(round, slot, &name, free).await)
    }

    /// Whatever goes wrong, the file is removed again (or swept later) and older generations stay as they are.
    async fn write<F: SlotFiles>(
        &self,
        round: &Round<'_, F>,
        slot: &SlotReading,
        name: &str,
        free: &mut Option<u64>,
    ) -> Result<Written, Said> {
        let names = name::new_file(name, round.at, round.tag, self.next_serial())
            .ok_or_else(|| Reason::SaveFailed.say(format!("{name:?} cannot be a file name")))?;
        let fit = round.awake.fit(slot.n_ctx, round.model, round.flags);
        let content = self.content(slot, round.tasks.get(&slot.id).copied());
        if let Some(content) = content
            && let Some(already) = self.is_saved_already(round.notes, round.whole, name, &fit, content)
        {
            return Err(already);
        }
        let size = size(round.notes, &fit, slot);
        if *round.choice == SlotChoice::Checkpoint {
            self.is_small_enough(name, size)?;
        }
        if let (Some(free), Some((least, _))) = (*free, size)
            && free < least
        {
            return Err(Reason::DiskFull.say(format!(
                "{name}: at least {} MiB needed, {} free",
                least.div_ceil(MIB),
                free / MIB
            )));
        }
        let saved = round.probe.save_slot(slot.id, &names.unfinished, left(round.deadline)).await;
        let why = match saved {
            Ok(done) if done.tokens > 0 => {
                *free = free.map(|free| free.saturating_sub(done.bytes));
                let note = Note {
                    name: name.to_owned(),
                    file: names.finished.as_str().to_owned(),
                    slot: slot.id,
                    bytes: done.bytes,
                    tokens: done.tokens,
                    saved_at: round.at,
                    round: round.number,
                    fit,
                    format: 0,
                    restoring: false,
                    sent_to: None,
                    doubted: false,
                    put_aside: None,
                    digest: None,
                    unread_within: None,
                    last_restore: None,
                    restored_into: None,
                };
                return Ok(Written { names, note, content });
            }
            Ok(_) => Reason::SlotEmpty.say(format!("{name}: slot {} turned out to be empty", slot.id)),
            Err(error) => {
                // Asked before the remains are removed: they may be what fills the disk.
                let surveyed = round.files.survey(Survey { free: true, ..Survey::default() }).await;
                let free = surveyed.ok().and_then(|surveyed| surveyed.free);
                failure(&error, free).say(format!("{name}: {error}"))
            }
        };
        remove(round.files, &[names.unfinished]).await;
        Err(why)
    }

    /// While a slot is saved, requests wait. How large it gets without an earlier save like it nobody can tell: then it is not
    /// tried, for the limit is a promise.
    fn is_small_enough(&self, name: &str, size: Option<(u64, u64)>) -> Result<(), Said> {
        let Some(most_mib) = self.slots.checkpoint_most_mib else { return Ok(()) };
        let limit = most_mib.saturating_mul(MIB);
        match size {
            Some((_, most)) if most <= limit => Ok(()),
            Some((least, _)) if least > limit => {
                let why = format!("{name}: at least {} MiB, at most {most_mib} are saved", least / MIB);
                Err(Reason::CheckpointTooLarge.say(why))
            }
            _ => {
                let why = format!("{name}: how large it is shows with the next save before a stop");
                Err(Reason::CheckpointUnknownSize.say(why))
            }
        }
    }

    /// Checks a file and makes it count. What comes of it is said, if there was one.
    async fn check<F: SlotFiles>(&self, round: &Round<'_, F>, written: Option<Written>) -> Option<Said> {
        let Written { names, mut note, content } = written?;
        let kept = self.keep(round, &names, &mut note).await;
        Some(match kept {
            Ok(()) => {
                self.remember(&note, content, &*self.notes().await);
                Reason::Saved.say(format!("{}: {} tokens, {} bytes", note.name, note.tokens, note.bytes))
            }
            // Its note may come yet, and must find its file.
            Err(why) if why.reason == Reason::NoteLate => why,
            Err(why) => {
                remove(round.files, &[names.unfinished, names.finished]).await;
                why
            }
        })
    }

    async fn keep<F: SlotFiles>(&self, round: &Round<'_, F>, names: &Names, note: &mut Note) -> Result<(), Said> {
        let name = &note.name;
        let found = round.files.keep(&names.unfinished, &names.finished, note.bytes, left(round.deadline)).await;
        let found = found.map_err(|error| Reason::SaveUnchecked.say(format!("{name}: {error}")))?;
        let Some(found) = found else {
            let dir = self.slots.dir.display();
            let why = match &self.slots.mounted {
                None => format!("{name}: saved, but not in {dir}; is --slot-save-path another folder?"),
                Some(here) => format!(
                    "{name}: saved, but it does not show in {}; is that the folder {dir} of the server, and that its \
                     --slot-save-path?",
                    here.display()
                ),
            };
            return Err(Reason::SaveMisplaced.say(why));
        };
        note.format = whole(&found, note).map_err(|why| Reason::SaveDamaged.say(format!("{name}: {why}")))?;
        let kept = self.shelf.write(note).await;
        kept.map_err(|error| {
            let late = error.kind() == std::io::ErrorKind::TimedOut;
            let reason = if late { Reason::NoteLate } else { Reason::NoteFailed };
            reason.say(format!("{}: {error}", note.name))
        })
    }
}

/// At least and at most how many bytes a save of this slot will take, judging by earlier ones that fit the same server.
///
/// A file grows with its tokens, and less and less with each: some state has one size for all, a window is full at some time.
/// So one of twice the tokens is at least as large and at most twice as large.
fn size(notes: &Notes, fit: &Fit, slot: &SlotReading) -> Option<(u64, u64)> {
    let tokens = slot.tokens?;
    let like = notes.notes.iter().filter(|note| note.tokens > 0 && note.fit.differences(fit).is_empty());
    let bounds = like.map(|note| {
        let in_proportion = u128::from(note.bytes) * u128::from(tokens) / u128::from(note.tokens);
        let in_proportion = u64::try_from(in_proportion).unwrap_or(u64::MAX);
        (note.bytes.min(in_proportion), note.bytes.max(in_proportion))
    });
    bounds.reduce(|(least, most), (low, high)| (least.max(low), most.min(high)))
}

fn failure(error: &SlotError, free: Option<u64>) -> Reason {
    match error {
        SlotError::NotSupported(_) => Reason::SaveNotSupported,
        SlotError::TimedOut => Reason::SaveTimeout,
        SlotError::Failed { .. } if free.is_some_and(|free| free < FULL_BELOW_BYTES) => Reason::DiskFull,
        _ => Reason::SaveFailed,
    }
}
