//! Restoring: checked before it is sent, noted before it is sent, and never twice after it went wrong.

use tokio::time::Instant;

use super::{
    Awake, FileName, Note, Probe, Reason, Said, SlotError, SlotFiles, SlotReading, SlotStore, UNFINISHED, UnderWay,
    head, left, look_in, name,
};

impl SlotStore {
    pub(super) async fn restore_each(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        deadline: Instant,
        said: &mut Vec<Said>,
    ) {
        let notes = self.notes().notes;
        for note in notes.iter().filter(|n| n.restoring) {
            self.put_aside(note, UNFINISHED).await;
        }
        let good: Vec<Note> = notes.into_iter().filter(Note::is_good).collect();
        let Some(newest) = good.first() else {
            return;
        };
        let newest_round = newest.round;
        let awake = match look_in(probe).await {
            Ok(awake) => awake,
            Err(closed) => {
                said.push(closed.say(Reason::RestoreNotSupported, Reason::RestoreAsleep, Reason::RestoreUnchecked));
                return;
            }
        };
        for slot in gone(&good, &awake) {
            said.push(Reason::RestoreNoSlot.say(format!("the server has no slot {slot}")));
        }
        // Newest first. Slots of one save fitted in beside each other then and do now; older ones must fit in beside them even
        // if all slots share one cache.
        let mut order: Vec<(&SlotReading, Vec<&Note>)> = awake
            .slots
            .iter()
            .map(|slot| {
                let name = name::of_slot(&self.slots.name, slot.id);
                (slot, good.iter().filter(|n| n.name == name).collect())
            })
            .filter(|(_, notes): &(_, Vec<&Note>)| !notes.is_empty())
            .collect();
        order.sort_by_key(|(slot, notes)| (std::cmp::Reverse(notes[0].round), slot.id));
        let mut restored = 0;
        for (slot, notes) in order {
            if let Err(why) = is_unused(slot, &notes[0].name) {
                said.push(why);
                continue;
            }
            let Some((note, file)) = self.choose(&awake, slot, &notes, files, said).await else {
                continue;
            };
            if note.round != newest_round && restored + note.tokens > slot.n_ctx {
                let why = format!("{}: {} tokens may not fit in", note.name, note.tokens);
                said.push(Reason::RestoreNoRoom.say(why));
                continue;
            }
            restored += note.tokens;
            let outcome = self.send(probe, slot, note, &file, deadline).await;
            let goes_on = !outcome.reason.is_spoilt();
            said.push(outcome);
            if !goes_on {
                return;
            }
        }
    }

    /// The newest generation that fits this server and whose file is whole. Damaged files are put aside on the way; nothing
    /// is sent.
    async fn choose<'a>(
        &self,
        awake: &Awake,
        slot: &SlotReading,
        notes: &[&'a Note],
        files: &impl SlotFiles,
        said: &mut Vec<Said>,
    ) -> Option<(&'a Note, FileName)> {
        let now = awake.fit(slot.n_ctx, files).await;
        let mut mismatch = None;
        for &note in notes {
            let differences = note.fit.differences(&now);
            if !differences.is_empty() {
                // The newest one's is the one to tell; older ones are tried silently.
                mismatch.get_or_insert_with(|| {
                    Reason::RestoreMismatch.say(format!("{}: {}", note.name, differences.join(", ")))
                });
                continue;
            }
            match whole_file(note, files).await {
                Ok(file) => {
                    said.extend(mismatch);
                    return Some((note, file));
                }
                Err(why) => {
                    if why.reason == Reason::RestoreDamaged {
                        self.put_aside(note, &why.message).await;
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

    /// Sends one restore. From here on the file is either restored or never sent again.
    async fn send(&self, probe: &Probe, slot: &SlotReading, note: &Note, file: &FileName, deadline: Instant) -> Said {
        let name = &note.name;
        let marked = Note { restoring: true, ..note.clone() };
        let _under_way = UnderWay::new(self, note);
        if let Err(error) = self.shelf.write(&marked).await {
            return Reason::RestoreUnchecked.say(format!("{name}: not sent, its note cannot be written: {error}"));
        }
        let done = probe.restore_slot(slot.id, file, left(deadline)).await;
        let said = match done {
            Ok(done) if done.tokens == note.tokens => {
                Reason::Restored.say(format!("{name}: {} tokens restored into slot {}", done.tokens, slot.id))
            }
            Ok(done) => Reason::RestorePartial.say(format!(
                "{name}: {} tokens restored into slot {}, {} were saved",
                done.tokens, slot.id, note.tokens
            )),
            Err(error) => failure(&error).say(format!("{name}: {error}")),
        };
        let aside = match said.reason {
            Reason::Restored
            | Reason::RestorePartial
            // Surely not begun: the file has done nothing.
            | Reason::RestoreNotSupported
            | Reason::RestoreUnchecked => None,
            _ => Some(format!("{}: {}", said.reason.code(), said.message)),
        };
        match aside {
            Some(why) => self.put_aside(note, &why).await,
            None => {
                if let Err(error) = self.shelf.write(note).await {
                    tracing::warn!(file = note.file, %error, "a note stays marked as being restored");
                }
            }
        }
        said
    }
}

/// Slots that were saved once and that the server has no more.
fn gone(good: &[Note], awake: &Awake) -> Vec<u32> {
    let mut gone: Vec<u32> =
        good.iter().map(|n| n.slot).filter(|slot| awake.slots.iter().all(|s| s.id != *slot)).collect();
    gone.sort_unstable();
    gone.dedup();
    gone
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

/// The file of a note, if it lies there exactly as it was saved.
async fn whole_file(note: &Note, files: &impl SlotFiles) -> Result<FileName, Said> {
    let name = &note.name;
    let damaged = |why: String| Reason::RestoreDamaged.say(format!("{name}: {why}"));
    let unchecked = |e| Reason::RestoreUnchecked.say(format!("{name}: {e}"));
    let Some(file) = FileName::new(&note.file) else {
        return Err(damaged(format!("{:?} cannot be a file name", note.file)));
    };
    let (stat, first) = tokio::join!(files.stat(&file), files.head(&file, head::BYTES));
    let Some(found) = stat.map_err(unchecked)? else {
        // Not damaged: the folder may only not be mounted now.
        return Err(Reason::RestoreMissing.say(format!("{name}: {file} is not in the slot folder")));
    };
    if found.bytes != note.bytes {
        let (now, then) = (found.bytes, note.bytes);
        return Err(damaged(format!("{file} has {now} bytes instead of {then}")));
    }
    let first = first.map_err(unchecked)?;
    match head::check(&first, found.bytes, note.tokens) {
        Ok(format) if format == note.format => Ok(file),
        Ok(format) => Err(damaged(format!("{file} is of version {format} instead of {}", note.format))),
        Err(why) => Err(damaged(format!("{file}: {why}"))),
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
