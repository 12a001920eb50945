//! Sweeping: files of ours that nothing will ever want.
//!
//! Beside what broken-off saves have left there are whole files without a note: a save whose note could not be written any more,
//! or a generation that was forgotten and came back, because the server lost its power before its disk knew that it was gone.
//! Nobody can restore them, nothing counts them, and they hold a conversation that was to be forgotten. A note that is damaged
//! keeps its file; where there is no folder of notes at all, all of them may have been lost, and whole files stay.

use std::time::Duration;

use super::{FileName, SlotFiles, SlotStore, name, now};

/// A file is swept after so long; until then it may be a save under way, in this life of the daemon or the one before.
const LEFTOVER_AFTER: Duration = Duration::from_mins(10);

impl SlotStore {
    /// Removes leftovers from the folder: files of this very backend, server and state directory, older than
    /// [`LEFTOVER_AFTER`], that are unfinished or of which there is no note. Returns how many.
    ///
    /// # Errors
    /// In words, when it could not be done: it is to be tried again.
    pub async fn sweep(&self, files: &impl SlotFiles) -> Result<usize, String> {
        // While it has the turn nothing is saved.
        let _turn = self.turn.lock().await;
        let tag = self.tag().await.map_err(|error| format!("whose files are ours is not known: {error}"))?;
        let listed = files.list(name::UNFINISHED).await.map_err(|error| error.to_string())?;
        let before = self.seen().folder_is_open.replace(listed.open);
        if listed.open && before != Some(true) {
            let (code, folder) = ("slots_folder_open", self.slots.dir.display());
            tracing::warn!(code, %folder, "saved conversations lie in a folder that is open to others: mode 2770 closes it");
        }
        let finished = files.list(name::SUFFIX).await.map_err(|error| error.to_string())?;
        self.seen().missing.retain(|file| finished.names.iter().all(|name| name.as_str() != file));
        // Asked after the files, so that none is newer; a note that is still being written is waited for.
        let noted =
            self.shelf.files().await.map_err(|error| format!("which files have a note is not known: {error}"))?;
        let old = now().saturating_sub(LEFTOVER_AFTER.max(self.slots.save_timeout.saturating_mul(2)).as_secs());
        let is_old = |file: &FileName| name::begun_at(file.as_str(), &tag).is_some_and(|at| at < old);
        let is_lost = |file: &FileName| noted.as_ref().is_some_and(|noted| !noted.contains(file.as_str()));
        let lost = finished.names.into_iter().filter(is_lost);
        let leftovers: Vec<FileName> = listed.names.into_iter().chain(lost).filter(is_old).collect();
        if !leftovers.is_empty() {
            files.remove(&leftovers).await.map_err(|error| error.to_string())?;
            tracing::info!(?leftovers, "files that no saved slot belongs to are removed");
        }
        Ok(leftovers.len())
    }
}
