//! Why a slot was, or was not, saved or restored: a closed list with stable codes.

use crate::machine::Warning;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal;)*) => {
        /// What became of a slot. `code()` is stable; it is the code of the warning people and programs see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }
        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The stable code.
            #[must_use]
            pub const fn code(self) -> &'static str { match self { $(Self::$variant => $code,)* } }
        }
    };
}

reasons! {
    /// News: saved, checked and noted.
    Saved = "saved";
    /// News: what it holds is in the newest generation already.
    SavedAlready = "saved_already";
    /// A request is being processed in it; a save would wait for it without limit.
    SlotBusy = "slot_busy";
    /// It holds no tokens; saving it would make an empty file.
    SlotEmpty = "slot_empty";
    /// The server sleeps: its slots are gone already, and asking would load the model again.
    SlotsAsleep = "slots_asleep";
    /// The save did not end in time.
    SaveTimeout = "save_timeout";
    /// The server could not save, or could not be asked.
    SaveFailed = "save_failed";
    /// What lies on disk is not what the server says it wrote.
    SaveDamaged = "save_damaged";
    /// The file is not in the configured folder: `--slot-save-path` is another one.
    SaveMisplaced = "save_misplaced";
    /// The server does not save slots, or does not show them.
    SaveNotSupported = "save_not_supported";
    /// It is larger than what is saved while the backend goes on running.
    CheckpointTooLarge = "checkpoint_too_large";
    /// How large it will be is not known before a save of such a length, and there is a limit while the backend goes on running.
    CheckpointUnknownSize = "checkpoint_unknown_size";
    /// Several slots hold something, and the name does not tell which is meant.
    SlotAmbiguous = "slot_ambiguous";
    /// It cannot be a name, or it is the own name of another slot.
    NameInvalid = "name_invalid";
    /// So much is on record that a new name finds no room.
    TooManySaved = "too_many_saved";
    /// Nothing is saved under that name, or the server has no slot of that number.
    NoSuchSlot = "no_such_slot";
    /// Of that name there is no such generation.
    NoSuchGeneration = "no_such_generation";
    /// A save or restore is under way.
    SlotsInUse = "slots_in_use";
    /// News: file and note are gone.
    Forgotten = "forgotten";
    /// The file could not be removed; its note stays.
    ForgetFailed = "forget_failed";
    /// News: the whole file is as it was.
    Whole = "whole";
    /// What is known of the file is right, and of its whole nothing is known.
    DigestUnknown = "digest_unknown";
    /// The file is not as it was saved. It is put aside.
    Damaged = "damaged";
    /// The file is gone.
    Missing = "missing";
    /// The file could not be looked at.
    Unreadable = "unreadable";
    /// No room for the file.
    DiskFull = "disk_full";
    /// The file could not be checked: the server did not answer over SSH.
    SaveUnchecked = "save_unchecked";
    /// The note could not be written on this machine, so the save does not count.
    NoteFailed = "note_failed";
    /// The note is not written yet: the disk of the state directory does not answer. If it ever is, the save counts.
    NoteLate = "note_late";
    /// News: restored in full.
    Restored = "restored";
    /// Beside news: an older generation was restored, since the newest that fits was put aside or its file is gone.
    RestoreOlder = "restore_older";
    /// Nothing is saved that may be restored.
    RestoreNothing = "restore_nothing";
    /// What is saved belongs to another model, context size, build or number of slots.
    RestoreMismatch = "restore_mismatch";
    /// News: what was restored was used.
    RestoreEffective = "restore_effective";
    /// What was restored was not used: the prompt was computed anew.
    RestoreIneffective = "restore_ineffective";
    /// Restores have had no effect with this model and build. By its name it can be restored all the same.
    RestoreUseless = "restore_useless";
    /// It was put aside before, for the reason told.
    RestorePutAside = "restore_put_aside";
    /// The file is gone.
    RestoreMissing = "restore_missing";
    /// The file is not as it was saved. It is put aside: a truncated one kills the server.
    RestoreDamaged = "restore_damaged";
    /// The file could not be checked, or the server not be asked; nothing was sent.
    RestoreUnchecked = "restore_unchecked";
    /// The slot was used since the start; a restore would overwrite what it holds.
    RestoreSlotUsed = "restore_slot_used";
    /// A request is being processed in the slot.
    RestoreSlotBusy = "restore_slot_busy";
    /// The server has no slot of that number. It would take another one.
    RestoreNoSlot = "restore_no_slot";
    /// It may not fit beside what is restored already.
    RestoreNoRoom = "restore_no_room";
    /// The server sleeps.
    RestoreAsleep = "restore_asleep";
    /// The server does not restore slots, or does not show them.
    RestoreNotSupported = "restore_not_supported";
    /// The server rejected the file, and has emptied the slot. The file is put aside; where other slots held something, it may
    /// have been for want of room: then only the second time.
    RestoreRejected = "restore_rejected";
    /// The server died of it. The file is put aside.
    RestoreKilledProcess = "restore_killed_process";
    /// The restore did not end in time; it may yet.
    RestoreTimeout = "restore_timeout";
    /// Fewer or more tokens came back than were saved.
    RestorePartial = "restore_partial";
    /// The server failed at it, or said what cannot be understood.
    RestoreFailed = "restore_failed";
}

impl Reason {
    /// Good news, said for people to read; nothing went wrong.
    #[must_use]
    pub const fn is_news(self) -> bool {
        matches!(self, Self::Saved | Self::SavedAlready | Self::Restored | Self::RestoreEffective)
    }

    /// Not done, but nothing failed: there was nothing to do, it may not be, or it can be done without.
    pub(super) const fn is_skip(self) -> bool {
        matches!(
            self,
            Self::SlotBusy
                | Self::SlotEmpty
                | Self::SlotsAsleep
                | Self::CheckpointTooLarge
                | Self::CheckpointUnknownSize
                | Self::RestoreUseless
                | Self::DigestUnknown
        )
    }

    /// Tokens came back into the slot.
    pub(super) const fn has_come_back(self) -> bool {
        matches!(self, Self::Restored | Self::RestorePartial)
    }

    /// A restore that was sent and went wrong: nothing more is sent with it, and it is what the whole has come to.
    pub(super) const fn is_spoilt(self) -> bool {
        matches!(self, Self::RestoreRejected | Self::RestoreKilledProcess | Self::RestoreTimeout | Self::RestoreFailed)
    }

    pub(super) fn say(self, message: impl Into<String>) -> Said {
        Said { reason: self, message: message.into() }
    }
}

/// What is reported of one slot.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl From<Said> for Warning {
    fn from(said: Said) -> Self {
        Self::new(said.reason.code(), said.message)
    }
}
