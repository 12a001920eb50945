//! Restores of which nobody knows how they ended. They are noted before they are sent, so that no file kills the server time
//! and again; but a slow disk, a power cut or a stop leave the same mark, and none of them is the file's fault.

use super::{Closed, Note, Probe, Reason, Seen, SlotStore, look_in};

/// Why a note is put aside whose restore was begun twice and ended neither time.
pub(super) const UNFINISHED: &str = "its restore never ended, twice: it may have killed the server";

impl Seen {
    /// Its restore was begun into the run of the server that is there now.
    fn is_sent_to_this_run(&self, note: &Note) -> bool {
        note.sent_to.is_some() && note.sent_to == self.run
    }

    /// It will be put aside: what it was sent to is gone, for the second time.
    pub(super) fn is_unfinished(&self, note: &Note) -> bool {
        let under_way = self.restoring.as_ref() == Some(&note.file);
        note.restoring && note.doubted && !under_way && !self.is_sent_to_this_run(note)
    }
}

impl SlotStore {
    /// The run that was met last has told of its slots: what was sent to it has ended and not killed it. While it restores it
    /// answers nothing of that kind.
    pub async fn answers(&self) {
        // Whoever has the turn looks after the marks.
        let Ok(_turn) = self.turn.try_lock() else { return };
        let notes = self.notes().await;
        for note in notes.notes.iter().filter(|note| note.restoring) {
            if self.seen().is_sent_to_this_run(note) {
                self.clear(note).await;
            }
        }
    }

    /// Marks were found, and no restore is under way. Nothing more is sent to a server that may be restoring still.
    ///
    /// To be called by whoever has the turn.
    pub(super) async fn settle(&self, marked: &[&Note], probe: &Probe) -> Result<(), Closed> {
        for note in marked {
            let this_run = self.seen().is_sent_to_this_run(note);
            if this_run {
                look_in(probe).await?;
                self.clear(note).await;
            } else {
                self.doubt(note, UNFINISHED).await;
            }
        }
        Ok(())
    }

    /// Something went wrong that is no proof against the file: it has one more chance.
    pub(super) async fn doubt(&self, note: &Note, why: &str) {
        if note.doubted {
            self.put_aside(note, why).await;
        } else {
            self.unmark(&Note { doubted: true, ..note.clone() }).await;
        }
    }

    /// The file has done no harm.
    pub(super) async fn clear(&self, note: &Note) {
        self.unmark(&Note { doubted: false, ..note.clone() }).await;
    }

    /// Its restore is not under way any more.
    pub(super) async fn unmark(&self, note: &Note) {
        let note = Note { restoring: false, sent_to: None, ..note.clone() };
        if let Err(error) = self.shelf.write(&note).await {
            tracing::warn!(file = note.file, %error, "a note stays marked as being restored");
        }
    }
}

impl Note {
    /// It was put aside for what a file does that is just as it was saved. Anything else is refuted by finding it so.
    pub(super) fn is_proven_bad(&self) -> bool {
        let proofs = [Reason::RestoreRejected, Reason::RestoreKilledProcess];
        self.put_aside.as_ref().is_some_and(|why| proofs.iter().any(|proof| why.starts_with(proof.code())))
    }
}
