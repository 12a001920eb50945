//! Digests: what tells bits that were flipped on the disk, which llama.cpp takes for conversation.
//!
//! Reading a whole file takes its time, so nobody waits for it where it can be helped: the digest is taken when nothing else is
//! to be done, and held against the file while the backend loads. Where a file turned out to be too large for that, later
//! starts do not wait for it again: it is restored by size and head alone, which is said each time.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::{FileName, FileStat, Note, Reason, Said, SlotFiles, SlotFilesError, SlotStore};

/// A file that takes longer to read has no digest.
const READ_WITHIN: Duration = Duration::from_mins(10);
/// What was read while the backend loaded is read again after so long.
const KNOWN_FOR: Duration = Duration::from_mins(10);
/// So many files are read beside each other.
const AT_A_TIME: usize = 4;

/// What was read while the backend loaded.
#[derive(Debug)]
pub(super) struct Digested {
    at: Instant,
    /// The file as it was then.
    stat: FileStat,
    /// How long that took.
    took: Duration,
    digest: Result<Option<String>, SlotFilesError>,
}

/// Why a whole file was not held against its digest.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) why: String,
    /// So many seconds were not enough.
    pub(super) within: Option<u64>,
}

impl SlotStore {
    /// Takes the digest of the newest file that has none yet. Saves and restores go on meanwhile. True: that is done,
    /// and another may be missing.
    pub async fn take_digest(&self, files: &impl SlotFiles) -> bool {
        if !self.slots.digest {
            return false;
        }
        let notes = self.notes().await;
        let surplus = self.surplus(&notes.notes);
        let unread = {
            let mut seen = self.seen();
            // Forget those that are gone, so that the set stays small.
            seen.undigested.retain(|file| notes.notes.iter().any(|note| note.file == *file));
            let is_wanted = |note: &&Note| {
                let stays = surplus.iter().all(|gone| gone.file != note.file);
                note.is_good() && note.digest.is_none() && stays && !seen.undigested.contains(&note.file)
            };
            notes.notes.iter().find(is_wanted).and_then(|note| FileName::new(&note.file))
        };
        let Some(file) = unread else { return false };
        let began = Instant::now();
        let read = tokio::select! {
            read = files.digest(&file, READ_WITHIN) => read,
            // It would have a restore wait for it, or go without its check.
            () = self.files_wanted.notified() => return false,
        };
        match read {
            Ok(Some(digest)) => {
                let _turn = self.turn.lock().await;
                let written = self.amend(file.as_str(), |note| note.digest = Some(digest)).await;
                if let Err(error) = &written {
                    tracing::warn!(%file, %error, "a digest could not be noted");
                }
                written.is_ok()
            }
            // It is asked again when there is somebody to ask.
            Err(SlotFilesError::Unreachable(_)) if began.elapsed() < READ_WITHIN => false,
            failed => {
                let why = failed.err().map_or_else(|| "it is gone".into(), |error| error.to_string());
                tracing::warn!(%file, why, "a saved slot has no digest");
                self.seen().undigested.insert(file.as_str().to_owned());
                true
            }
        }
    }

    /// Reads whole files that a restore will most likely want. Until that is done, who wants to know waits.
    pub(super) async fn digest_ahead(
        &self,
        files: &impl SlotFiles,
        wanted: impl Future<Output = Vec<(FileName, FileStat)>>,
    ) {
        self.files_wanted.notify_waiters();
        let mut known = self.digests.lock().await;
        known.clear();
        let within = self.slots.restore_timeout;
        let read = async |(file, stat)| {
            let begun = Instant::now();
            let digest = files.digest(&file, within).await;
            (file, Digested { at: Instant::now(), stat, took: begun.elapsed(), digest })
        };
        let mut read = stream::iter(wanted.await).map(read).buffer_unordered(AT_A_TIME);
        while let Some((file, digested)) = read.next().await {
            known.insert(file, digested);
        }
    }

    /// Whether it may help to begin to read a file while the backend loads.
    pub(super) fn is_worth_reading(&self, notes: &[Note], note: &Note) -> bool {
        let is_hopeless =
            not_enough(notes, note).is_some_and(|seconds| seconds >= self.slots.restore_timeout.as_secs());
        self.slots.digest && note.digest.is_some() && !is_hopeless
    }

    /// Refuses a file whose digest is another one than was noted. What cannot be told in time is no reason to lose it, nor to
    /// wait as long at the next start.
    pub(super) async fn agrees(
        &self,
        note: &Note,
        file: &FileName,
        stat: FileStat,
        files: &impl SlotFiles,
        deadline: Instant,
    ) -> Result<Option<Unread>, Said> {
        let Some(noted) = note.digest.as_ref().filter(|_| self.slots.digest) else {
            return Ok(None);
        };
        let all = self.slots.restore_timeout.as_secs();
        // The restore itself needs its time, too.
        let half = all / 2;
        let before = not_enough(&self.notes().await.notes, note);
        let waits = before.is_none_or(|seconds| seconds < half);
        let now = Instant::now();
        let until = if waits { now + deadline.saturating_duration_since(now) / 2 } else { now };
        let known = timeout_at(until, self.digests.lock())
            .await
            .map(|mut known| known.remove(file).filter(|known| known.stat == stat && known.at.elapsed() < KNOWN_FOR));
        let (digest, within) = match known {
            Ok(Some(known)) => (known.digest, (known.took >= self.slots.restore_timeout).then_some(all)),
            // Here is less time than while a backend loads: what is not read in it may be read another time.
            Ok(None) if waits => (files.digest(file, until.saturating_duration_since(Instant::now())).await, None),
            Ok(None) => (Err(SlotFilesError::Refused("it takes too long".into())), None),
            Err(_) => (Err(SlotFilesError::Refused("it is being read still".into())), Some(half)),
        };
        match digest {
            Ok(Some(digest)) if digest == *noted => Ok(None),
            Ok(Some(digest)) => {
                let why = format!("{}: {file}: sha256 {digest:.12}… instead of {noted:.12}…", note.name);
                Err(Reason::RestoreDamaged.say(why))
            }
            Ok(None) => Err(Reason::RestoreMissing.say(format!("{}: {file} is not in the slot folder", note.name))),
            Err(error) => Ok(Some(Unread { why: error.to_string(), within: within.max(before) })),
        }
    }
}

/// So many seconds are not enough to read all of a file, as was seen of it or of one that is no larger.
fn not_enough(notes: &[Note], note: &Note) -> Option<u64> {
    notes.iter().filter(|other| other.bytes <= note.bytes).filter_map(|other| other.unread_within).max()
}
