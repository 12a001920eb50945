//! What a slot holds that is saved already: saving it again would push out what is worth more.
//!
//! llama.cpp numbers its requests, and shows of each slot the number of the last one and how many tokens it holds. Where both
//! are as at the last save, in the same run of the server, nothing was added. That is remembered for the life of the daemon
//! only; whatever is in doubt is saved.

use std::collections::BTreeSet;

use super::{
    FileName, Fit, MOST_SURVEYED, Note, Place, Reason, Said, SlotReading, SlotStore, Surveyed, as_noted, note::Notes,
    now, retention::is_too_old,
};
use crate::machine::Invocation;

/// What a slot held when it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    run: Invocation,
    slot: u32,
    tokens: u64,
    /// Its last request.
    task: i64,
}

impl SlotStore {
    /// What `slot` holds, its last request being `task`; `None` where that cannot be told for sure.
    pub(super) fn content(&self, slot: &SlotReading, task: Option<i64>) -> Option<Content> {
        Some(Content { run: self.seen().run?, slot: slot.id, tokens: slot.tokens?, task: task? })
    }

    /// The files of the last saves into this run, to be looked at before one of them is relied on.
    pub(super) fn saved_of_this_run(&self) -> Vec<FileName> {
        let seen = self.seen();
        let of_run = seen.contents.iter().filter(|(_, content)| Some(content.run) == seen.run);
        of_run.filter_map(|(file, _)| FileName::new(file)).take(MOST_SURVEYED).collect()
    }

    /// Remembers what the file of a note holds; of each name the last one.
    pub(super) fn remember(&self, note: &Note, content: Option<Content>, notes: &Notes) {
        let mut seen = self.seen();
        seen.contents.retain(|file, _| notes.notes.iter().any(|n| n.file == *file && n.name != note.name));
        seen.contents.extend(content.map(|content| (note.file.clone(), content)));
    }

    /// The newest good generation of `name` that fits, if it holds just this and its file is among those `whole`.
    pub(super) fn is_saved_already(
        &self,
        notes: &Notes,
        whole: &BTreeSet<String>,
        name: &str,
        fit: &Fit,
        content: Content,
    ) -> Option<Said> {
        let newest = notes.notes.iter().find(|note| note.name == name && note.is_good() && note.fit == *fit)?;
        let newest = Some(newest).filter(|note| !is_too_old(note, &self.slots, now()))?;
        let is_same = whole.contains(&newest.file) && self.seen().contents.get(&newest.file) == Some(&content);
        let Note { round, tokens, .. } = newest;
        is_same.then(|| {
            Reason::SavedAlready.say(format!("{name}: its {tokens} tokens are saved already (generation {round})"))
        })
    }

    /// A slot that was restored and not used since shows no tokens, and is in its file. For whoever wants a copy of it.
    pub(super) fn restored_and_unused(&self, notes: &Notes, slots: &[SlotReading], name: &str) -> Option<Said> {
        let run = self.seen().run?;
        let from = |slot: &SlotReading| {
            let place = Place { run, slot: slot.id };
            Some((slot.id, notes.restored_into(place).filter(|_| slot.tokens.is_none())?))
        };
        let (slot, note) = slots.iter().find_map(from)?;
        Some(Reason::SlotEmpty.say(format!(
            "{name}: slot {slot} was restored and not used since: what it holds is generation {} of {}; it can be \
             saved after its next request",
            note.round, note.name
        )))
    }
}

/// Of the files that were looked at, those that lie there as they were noted.
pub(super) fn whole_files(asked: &[FileName], surveyed: &Surveyed, notes: &Notes) -> BTreeSet<String> {
    let is_whole = |(file, found): (&FileName, &Result<Option<_>, _>)| {
        let note = notes.notes.iter().find(|note| note.file == file.as_str())?;
        let found = found.as_ref().ok()?.as_ref()?;
        as_noted(found, note).ok().map(|()| note.file.clone())
    };
    asked.iter().zip(&surveyed.files).filter_map(is_whole).collect()
}
