//! Saving: to a new name, checked on disk, noted last.

use std::cmp::Reverse;

use tokio::time::Instant;

use super::{
    Awake, FileName, Fit, Note, Notes, Probe, Reason, Said, SlotError, SlotFiles, SlotReading, SlotStore, head, left,
    look_in, name, now, remove,
};

/// With less free than this after a failed save, the disk counts as full.
const FULL_BELOW_BYTES: u64 = 16 * 1024 * 1024;

/// What all saves of one round share.
struct Round<'a, F> {
    probe: &'a Probe,
    files: &'a F,
    deadline: Instant,
    awake: &'a Awake,
    notes: &'a Notes,
    number: u64,
    at: u64,
}

/// Slots that are used while they are saved are saved again so many times at most.
const MOST_AGAIN: u64 = 2;

impl SlotStore {
    pub(super) async fn save_each(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        deadline: Instant,
        said: &mut Vec<Said>,
    ) {
        let awake = match look_in(probe).await {
            Ok(awake) => awake,
            Err(closed) => {
                said.push(closed.say(Reason::SaveNotSupported, Reason::SlotsAsleep, Reason::SaveFailed));
                return;
            }
        };
        let notes = self.notes();
        let newest = notes.notes.first();
        let first = newest.map_or(1, |n| n.round.saturating_add(1));
        let mut known = awake.slots.clone();
        let mut slots = known.clone();
        let mut holds = false;
        for again in 0..=MOST_AGAIN {
            let round = Round {
                probe,
                files,
                deadline,
                awake: &awake,
                notes: &notes,
                number: first.saturating_add(again),
                at: now(),
            };
            // What holds most comes first: if time runs out, the least is lost.
            slots.sort_by_key(|slot| Reverse(slot.tokens));
            for slot in &slots {
                holds |= self.save_if_worth(&round, slot, said).await;
            }
            // What was used meanwhile is not what was saved.
            let Ok(after) = look_in(probe).await else { break };
            slots = after.slots.iter().filter(|slot| !known.contains(slot)).cloned().collect();
            if slots.is_empty() {
                break;
            }
            known = after.slots;
        }
        if !holds {
            said.push(Reason::SlotEmpty.say("no slot holds tokens that are not saved already"));
        }
    }

    /// Saves a slot that holds tokens, or says why not. False if there is nothing in it.
    async fn save_if_worth<F: SlotFiles>(
        &self,
        round: &Round<'_, F>,
        slot: &SlotReading,
        said: &mut Vec<Said>,
    ) -> bool {
        let name = name::of_slot(&self.slots.name, slot.id);
        if slot.is_processing {
            let why = format!("{name}: slot {} is processing a request", slot.id);
            said.push(Reason::SlotBusy.say(why));
        } else if slot.tokens.unwrap_or(0) > 0 {
            match self.save_one(round, slot, &name).await {
                Ok(note) => {
                    let (tokens, bytes) = (note.tokens, note.bytes);
                    said.push(Reason::Saved.say(format!("{name}: {tokens} tokens, {bytes} bytes")));
                    self.prune(round.files, &name).await;
                }
                Err(why) => said.push(why),
            }
        } else {
            return false;
        }
        true
    }

    /// Saves one slot. Whatever goes wrong, its file is removed again (or swept later) and older generations stay as they are.
    async fn save_one<F: SlotFiles>(&self, round: &Round<'_, F>, slot: &SlotReading, name: &str) -> Result<Note, Said> {
        let file = name::new_file(name, round.at, &self.tag, self.next_serial())
            .ok_or_else(|| Reason::SaveFailed.say(format!("{name:?} cannot be a file name")))?;
        let (fit, free) = tokio::join!(round.awake.fit(slot.n_ctx, round.files), round.files.free_bytes());
        if let (Ok(free), Some(needed)) = (free, needed(round.notes, &fit, slot))
            && free < needed
        {
            return Err(Reason::DiskFull.say(format!("{name}: about {needed} bytes needed, {free} free")));
        }
        let saved = self.save_checked(round, slot, name, &file, fit).await;
        if saved.is_err() {
            remove(round.files, &file).await;
        }
        saved
    }

    async fn save_checked<F: SlotFiles>(
        &self,
        round: &Round<'_, F>,
        slot: &SlotReading,
        name: &str,
        file: &FileName,
        fit: Fit,
    ) -> Result<Note, Said> {
        let files = round.files;
        let done = round.probe.save_slot(slot.id, file, left(round.deadline)).await;
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // Asked before the remains are removed: they may be what fills the disk.
                let free = files.free_bytes().await.ok();
                return Err(failure(&error, free).say(format!("{name}: {error}")));
            }
        };
        if done.tokens == 0 {
            let why = format!("{name}: slot {} turned out to be empty", slot.id);
            return Err(Reason::SlotEmpty.say(why));
        }
        let (stat, first) = tokio::join!(files.stat(file), files.head(file, head::BYTES));
        let unchecked = |e| Reason::SaveUnchecked.say(format!("{name}: {e}"));
        let Some(found) = stat.map_err(unchecked)? else {
            let dir = self.slots.dir.display();
            return Err(Reason::SaveMisplaced
                .say(format!("{name}: saved, but not in {dir}; is --slot-save-path another folder?")));
        };
        let first = first.map_err(unchecked)?;
        if found.bytes != done.bytes {
            return Err(
                Reason::SaveDamaged.say(format!("{name}: {} bytes written, {} on disk", done.bytes, found.bytes))
            );
        }
        let format = head::check(&first, found.bytes, done.tokens)
            .map_err(|why| Reason::SaveDamaged.say(format!("{name}: {why}")))?;
        let note = Note {
            name: name.to_owned(),
            file: file.as_str().to_owned(),
            slot: slot.id,
            bytes: found.bytes,
            tokens: done.tokens,
            saved_at: round.at,
            round: round.number,
            fit,
            format,
            restoring: false,
            put_aside: None,
        };
        self.shelf.write(&note).await.map_err(|e| Reason::NoteFailed.say(format!("{name}: {e}")))?;
        Ok(note)
    }

    /// Removes generations of `name` beyond those to keep: note first, so that a file without one is only a leftover.
    async fn prune(&self, files: &impl SlotFiles, name: &str) {
        let notes = self.notes().notes;
        for note in superseded(&notes, name, self.slots.keep) {
            if let Err(error) = self.shelf.remove(note).await {
                tracing::warn!(file = note.file, %error, "an old note could not be removed");
            } else if let Some(file) = FileName::new(&note.file) {
                remove(files, &file).await;
            }
        }
    }
}

/// The notes of `name` that may go, given all notes newest first. The newest `keep` good ones stay (at least one), and the one
/// with the most tokens beside them, so that a few small saves never push out the long conversation. Of those put aside the
/// newest `keep` stay, for people to look at.
pub(super) fn superseded<'a>(notes: &'a [Note], name: &str, keep: u32) -> Vec<&'a Note> {
    let keep = usize::try_from(keep.max(1)).unwrap_or(usize::MAX);
    let of_name = notes.iter().filter(|n| n.name == name);
    let (good, aside): (Vec<_>, Vec<_>) = of_name.partition(|n| n.is_good());
    // The first of the largest: the newest.
    let largest = good.iter().copied().reduce(|a, b| if b.tokens > a.tokens { b } else { a });
    let surplus = good.into_iter().skip(keep).filter(|n| largest.is_none_or(|l| l.file != n.file));
    surplus.chain(aside.into_iter().skip(keep)).collect()
}

/// About how many bytes a save of this slot will take, judging by earlier ones that fit the same server.
fn needed(notes: &Notes, fit: &Fit, slot: &SlotReading) -> Option<u64> {
    let like = notes.notes.iter().find(|n| n.tokens > 0 && n.fit.differences(fit).is_empty())?;
    let bytes = u128::from(like.bytes) * u128::from(slot.tokens?) / u128::from(like.tokens);
    u64::try_from(bytes).ok()
}

fn failure(error: &SlotError, free: Option<u64>) -> Reason {
    match error {
        SlotError::NotSupported(_) => Reason::SaveNotSupported,
        SlotError::TimedOut => Reason::SaveTimeout,
        SlotError::Failed { .. } if free.is_some_and(|free| free < FULL_BELOW_BYTES) => Reason::DiskFull,
        _ => Reason::SaveFailed,
    }
}
