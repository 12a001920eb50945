//! Digests: what tells bits that were flipped on the disk, which llama.cpp takes for conversation.
//!
//! Reading a whole file takes its time, so nobody waits for it where it can be helped: the digest is taken when nothing else is
//! to be done, and held against the file while the backend loads.

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
    digest: Result<Option<String>, SlotFilesError>,
}

impl SlotStore {
    /// Takes the digest of the newest file that has none yet. Saves and restores go on meanwhile.
    pub async fn take_digest(&self, files: &impl SlotFiles) {
        if !self.slots.digest {
            return;
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
        let Some(file) = unread else { return };
        match files.digest(&file, READ_WITHIN).await {
            Ok(Some(digest)) => {
                let _turn = self.turn.lock().await;
                let written = self.amend(file.as_str(), |note| note.digest = Some(digest)).await;
                if let Err(error) = written {
                    tracing::warn!(%file, %error, "a digest could not be noted");
                }
            }
            // It is asked again when there is somebody to ask.
            Err(SlotFilesError::Unreachable(_)) => {}
            failed => {
                let why = failed.err().map_or_else(|| "it is gone".into(), |error| error.to_string());
                tracing::warn!(%file, why, "a saved slot has no digest");
                self.seen().undigested.insert(file.as_str().to_owned());
            }
        }
    }

    /// Reads whole files that a restore will most likely want. Until that is done, who wants to know waits.
    pub(super) async fn digest_ahead(
        &self,
        files: &impl SlotFiles,
        wanted: impl Future<Output = Vec<(FileName, FileStat)>>,
    ) {
        let mut known = self.digests.lock().await;
        known.clear();
        let within = self.slots.restore_timeout;
        let read = async |(file, stat)| {
            let digest = files.digest(&file, within).await;
            (file, Digested { at: Instant::now(), stat, digest })
        };
        let mut read = stream::iter(wanted.await).map(read).buffer_unordered(AT_A_TIME);
        while let Some((file, digested)) = read.next().await {
            known.insert(file, digested);
        }
    }

    /// Refuses a file whose digest is another one than was noted. What cannot be told in time is no reason to lose it.
    pub(super) async fn agrees(
        &self,
        note: &Note,
        file: &FileName,
        stat: FileStat,
        files: &impl SlotFiles,
        deadline: Instant,
    ) -> Result<(), Said> {
        let Some(noted) = note.digest.as_ref().filter(|_| self.slots.digest) else {
            return Ok(());
        };
        // The restore itself needs its time, too.
        let until = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let known = timeout_at(until, self.digests.lock())
            .await
            .map(|mut known| known.remove(file).filter(|known| known.stat == stat && known.at.elapsed() < KNOWN_FOR));
        let digest = match known {
            Ok(Some(known)) => known.digest,
            Ok(None) => files.digest(file, until.saturating_duration_since(Instant::now())).await,
            Err(_) => Err(SlotFilesError::Refused("it is being read still".into())),
        };
        match digest {
            Ok(Some(digest)) if digest == *noted => Ok(()),
            Ok(Some(digest)) => {
                let why = format!("{}: {file}: sha256 {digest:.12}… instead of {noted:.12}…", note.name);
                Err(Reason::RestoreDamaged.say(why))
            }
            Ok(None) => Err(Reason::RestoreMissing.say(format!("{}: {file} is not in the slot folder", note.name))),
            Err(error) => {
                let code = Reason::DigestUnknown.code();
                tracing::warn!(code, %file, %error, "restored by size and head alone: the whole file could not be read in time");
                Ok(())
            }
        }
    }
}
