//! What is done about saved slots beside saving and restoring them: forgetting, verifying, noting what a restore was worth.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{
    FileName, Found, MOST_SURVEYED, Note, Reason, Said, SlotFiles, SlotFilesError, SlotStore, Survey, as_noted, name,
    named,
};
use crate::{
    driver::world::{SlotTask, SlotTold, TENDED_WITHIN},
    machine::{Warning, reading::Reuse},
};

/// A save or restore under way is waited for so long.
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// All files of one question together are read for so long: whoever asked still waits then.
const VERIFIED_WITHIN: Duration = TENDED_WITHIN.saturating_sub(Duration::from_secs(15));

impl SlotStore {
    /// Does `task`. Ends by itself: within half a minute and a few exchanges, a verification within [`TENDED_WITHIN`].
    ///
    /// # Errors
    /// Why nothing was done, with its stable code.
    pub async fn tend(&self, files: &impl SlotFiles, task: SlotTask) -> Result<Vec<SlotTold>, Warning> {
        let told = match task {
            SlotTask::Forget { name, generation } => self.forget(files, &name, generation).await,
            SlotTask::Verify { name, generation } => self.verify(files, name.as_deref(), generation).await,
            SlotTask::Proved { slots, reuse } => self.proved(&slots, reuse).await,
        };
        let told = told.map_err(Warning::from)?;
        for SlotTold { name, generation, code, message } in &told {
            tracing::info!(name, generation, code, message, "slots");
        }
        Ok(told)
    }

    /// The files go first: what then has a note still can be forgotten again. One that is not there is gone already. With all of
    /// a name goes what saves of it have left that never ended, for it tells as much.
    async fn forget(&self, files: &impl SlotFiles, name: &str, generation: Option<u64>) -> Result<Vec<SlotTold>, Said> {
        let _turn = self.turn_of_ours().await?;
        let notes = self.shelf.read_again().await;
        let meant = named(&notes.notes, name, generation)?;
        let mut gone: Vec<FileName> = meant.iter().filter_map(|note| FileName::new(&note.file)).collect();
        let failed = |error: SlotFilesError| Reason::ForgetFailed.say(error.to_string());
        if generation.is_none() {
            let tag = self.tag().await.map_err(|error| Reason::ForgetFailed.say(error.to_string()))?;
            let unfinished = files.list(name::UNFINISHED).await.map_err(failed)?.names;
            gone.extend(unfinished.into_iter().filter(|file| name::is_unfinished(file.as_str(), name, &tag)));
        }
        files.remove(&gone).await.map_err(failed)?;
        let mut told = Vec::with_capacity(meant.len());
        for note in meant {
            told.push(told_of(
                note,
                match self.shelf.remove(note).await {
                    Ok(()) => Reason::Forgotten.say(format!("{} tokens, {} bytes", note.tokens, note.bytes)),
                    Err(error) => Reason::NoteFailed.say(format!("its file is gone, its note is not: {error}")),
                },
            ));
        }
        Ok(told)
    }

    /// Saves and restores go on meanwhile. What is found damaged is put aside; what is whole comes back from there, unless it
    /// killed the server or was rejected.
    async fn verify(
        &self,
        files: &impl SlotFiles,
        name: Option<&str>,
        generation: Option<u64>,
    ) -> Result<Vec<SlotTold>, Said> {
        let deadline = Instant::now() + VERIFIED_WITHIN;
        let notes = self.shelf.read_again().await;
        // What is about to be pruned is shown to nobody.
        let notes: Vec<Note> = self.staying(&notes.notes).into_iter().cloned().collect();
        let meant: Vec<&Note> = match name {
            Some(name) => named(&notes, name, generation)?,
            None => notes.iter().filter(|note| generation.is_none_or(|number| number == note.round)).collect(),
        };
        let mut told = Vec::with_capacity(meant.len());
        for some in meant.chunks(MOST_SURVEYED) {
            let asked: Vec<FileName> = some.iter().filter_map(|note| FileName::new(&note.file)).collect();
            let surveyed = files.survey(Survey { files: &asked, ..Survey::default() }).await;
            let mut found = match surveyed {
                Ok(surveyed) => surveyed.files,
                Err(error) => vec![Err(error); asked.len()],
            }
            .into_iter();
            for (note, file) in some.iter().zip(&asked) {
                let found = found.next().unwrap_or(Ok(None));
                let said = verdict(files, note, file, found, deadline).await;
                if !matches!(said.reason, Reason::Missing | Reason::Unreadable) {
                    self.looked_for(note, true);
                }
                let said = match said.reason {
                    // Forgotten or pruned while it was looked for.
                    Reason::Missing if !self.is_noted(note).await => continue,
                    Reason::Missing => {
                        self.looked_for(note, false);
                        said
                    }
                    Reason::Damaged => {
                        self.damaged_file(note, &said.message).await;
                        said
                    }
                    Reason::Whole => self.whole_file(note, said).await,
                    _ => said,
                };
                told.push(told_of(note, said));
            }
        }
        Ok(told)
    }

    async fn is_noted(&self, note: &Note) -> bool {
        self.notes().await.notes.iter().any(|known| known.file == note.file)
    }

    async fn damaged_file(&self, note: &Note, why: &str) {
        let noted = match self.turn_of_ours().await {
            Ok(_turn) => self.amend(&note.file, |note| _ = note.put_aside.get_or_insert_with(|| why.to_owned())).await,
            Err(busy) => Err(std::io::Error::other(busy.message)),
        };
        if let Err(error) = noted {
            tracing::warn!(file = note.file, why, %error, "a damaged file could not be put aside");
        }
    }

    /// As it was saved, whatever was thought of it.
    async fn whole_file(&self, note: &Note, said: Said) -> Said {
        if note.is_proven_bad() {
            return said.reason.say(format!("{}, and yet put aside", said.message));
        }
        if note.put_aside.is_none() && !note.doubted {
            return said;
        }
        let noted = match self.turn_of_ours().await {
            Ok(_turn) => {
                let clear = |note: &mut Note| {
                    if !note.is_proven_bad() {
                        (note.put_aside, note.doubted) = (None, false);
                    }
                };
                self.amend(&note.file, clear).await
            }
            Err(busy) => Err(std::io::Error::other(busy.message)),
        };
        match noted {
            Ok(()) if note.put_aside.is_none() => said,
            Ok(()) => said.reason.say(format!("{}; it is not put aside any more", said.message)),
            Err(error) => {
                tracing::warn!(file = note.file, %error, "a whole file stays put aside");
                said
            }
        }
    }

    async fn proved(&self, slots: &[u32], reuse: Reuse) -> Result<Vec<SlotTold>, Said> {
        let _turn = self.turn_of_ours().await?;
        let proven = self.prove(slots, reuse).await;
        let notes = self.notes().await;
        let note_of = |file: &str| notes.notes.iter().find(|note| note.file == file);
        // One that was forgotten meanwhile has no name any more.
        Ok(proven.into_iter().filter_map(|(restore, said)| Some(told_of(note_of(&restore.file)?, said))).collect())
    }

    /// One save or restore at a time, and nobody else's hand in the notes meanwhile.
    async fn turn_of_ours(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Said> {
        let turn = timeout(TURN_WITHIN, self.turn.lock()).await;
        turn.map_err(|_| Reason::SlotsInUse.say("a save or restore is under way"))
    }

    /// Changes a note as it is now; one that is gone stays so. To be called by whoever has the turn.
    pub(super) async fn amend(&self, file: &str, change: impl FnOnce(&mut Note)) -> std::io::Result<()> {
        let note = self.notes().await.notes.iter().find(|note| note.file == file).cloned();
        let Some(mut note) = note else { return Ok(()) };
        change(&mut note);
        self.shelf.write(&note).await
    }
}

/// What there is to say of the file of a note.
async fn verdict(
    files: &impl SlotFiles,
    note: &Note,
    file: &FileName,
    found: Result<Option<Found>, SlotFilesError>,
    deadline: Instant,
) -> Said {
    let missing = || Reason::Missing.say(format!("{file} is not in the slot folder"));
    match found {
        Err(error) => return Reason::Unreadable.say(error.to_string()),
        Ok(None) => return missing(),
        Ok(Some(found)) => {
            if let Err(why) = as_noted(&found, note) {
                return Reason::Damaged.say(why);
            }
        }
    }
    let Some(noted) = &note.digest else {
        return Reason::DigestUnknown.say("size and head are as noted; no digest of the whole was taken yet");
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Reason::Unreadable.say("the time for verifying was up");
    }
    match files.digest(file, left).await {
        Ok(Some(digest)) if digest == *noted => Reason::Whole.say(format!("sha256 {digest}")),
        Ok(Some(digest)) => Reason::Damaged.say(format!("sha256 {digest:.12}… instead of {noted:.12}…")),
        Ok(None) => missing(),
        Err(error) => Reason::Unreadable.say(error.to_string()),
    }
}

fn told_of(note: &Note, said: Said) -> SlotTold {
    let Said { reason, message } = said;
    SlotTold { name: note.name.clone(), generation: note.round, code: reason.code().into(), message }
}
