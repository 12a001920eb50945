//! Proving at once that a restore had effect: the saved tokens are sent back with nothing to predict, and the server tells how
//! many of them it found. Where it found none it has computed them all by then, so that the next request gains what this one
//! cost.
//!
//! A model with recurrent state has to compute all of it in any case: it is asked for its last token once more, and cannot go
//! back by one. Such a restore is found without effect, though a request that goes on exactly where it ended would have gained.

use tokio::time::{Instant, timeout_at};

use super::{FileName, Probe, Said, SlotFiles, SlotStore, head, left};
use crate::{config::Prove, host::slot_files::MOST_WORDS, machine::reading::Reuse};

impl SlotStore {
    /// Proves what was just restored, where that is configured. What cannot be found out in time is left to the next request;
    /// so are several slots: where they share a cache, a request in one has the others leave it.
    ///
    /// To be called by whoever has the turn.
    pub(super) async fn prove_at_once(&self, probe: &Probe, files: &impl SlotFiles, deadline: Instant) -> Vec<Said> {
        if self.slots.prove != Prove::AtOnce {
            return vec![];
        }
        let (slot, file) = {
            let seen = self.seen();
            let mut unproven = seen.unproven.iter();
            let (Some((slot, restored)), None) = (unproven.next(), unproven.next()) else { return vec![] };
            (*slot, restored.file.clone())
        };
        let within = self.slots.prove_timeout.min(left(deadline));
        match self.replay(probe, files, slot, &file, Instant::now() + within).await {
            Ok(reuse) => self.prove(&[slot], reuse).await.into_iter().map(|(_, said)| said).collect(),
            Err(why) => {
                tracing::info!(slot, file, why, "whether the restore had effect is left to the next request");
                vec![]
            }
        }
    }

    async fn replay(
        &self,
        probe: &Probe,
        files: &impl SlotFiles,
        slot: u32,
        file: &str,
        deadline: Instant,
    ) -> Result<Reuse, String> {
        let notes = self.notes().await;
        let note = notes.notes.iter().find(|note| note.file == file).ok_or("it has no note any more")?;
        if note.last_restore.as_ref().is_none_or(|restore| restore.tokens != note.tokens) {
            return Err("not all of it came back".into());
        }
        // One word may follow that counts what is no token.
        let tokens = usize::try_from(note.tokens).unwrap_or(usize::MAX);
        let words = tokens.saturating_add(head::BEFORE_TOKENS + 1);
        if words > MOST_WORDS {
            return Err(format!("{tokens} tokens are too many to send back"));
        }
        let name = FileName::new(file).ok_or("it cannot be a file name")?;
        let read = timeout_at(deadline, files.words(&name, words)).await;
        let words = read.map_err(|_| "its tokens were not read in time")?.map_err(|error| error.to_string())?;
        let tokens = head::tokens(&words, tokens).ok_or("its tokens cannot be read")?;
        let within = deadline.saturating_duration_since(Instant::now());
        probe.replay(slot, &tokens, within).await.map_err(|error| error.to_string())
    }
}
