//! The one seam to reality: everything the driver asks of the world.

use std::{future::Future, time::Duration};

use serde::{Deserialize, Serialize};

use crate::machine::{
    BackendId, Instant, Outcome, Verb, Warning,
    reading::{Ask, Reading, Reuse},
};

/// The server, as the driver can see and move it. The real one is [`crate::host::Host`]; tests bring their own.
///
/// Every future ends by itself within its own deadlines; the driver bounds it once more.
pub trait World: Send + Sync + 'static {
    /// Looks at what is asked for. `now` is the daemon's time when the question is sent: it dates the readings.
    /// Never fails: a source that cannot be read says so in its reading.
    fn look(&self, ask: Ask, now: Instant) -> impl Future<Output = Reading> + Send;

    /// Carries out one order. Dropping the future must leave nothing behind but doubt.
    fn carry_out(&self, verb: Verb, within: Duration) -> impl Future<Output = Outcome> + Send;

    /// The same for a save or a restore of some slots only.
    fn carry_out_chosen(
        &self,
        verb: Verb,
        _slots: SlotChoice,
        within: Duration,
    ) -> impl Future<Output = Outcome> + Send {
        self.carry_out(verb, within)
    }

    /// Does something about saved slots of which the machine need not know. Bounded.
    ///
    /// # Errors
    /// Why not, with a stable code.
    fn tend_slots(&self, _backend: BackendId, _task: SlotTask) -> impl Future<Output = Tended> + Send {
        async { Err(Warning::new("no_slots", "that backend has no slots to save or restore")) }
    }

    /// Nothing is under way: does some of what can wait, as clearing up among saved slots. Bounded. True: more is left.
    fn tidy(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }

    /// Why a backend's unit did not come up: its result, exit status and last journal lines, for people. Bounded.
    fn post_mortem(&self, backend: BackendId) -> impl Future<Output = PostMortem> + Send;
}

/// What there is to say of each saved slot, or why nothing was done.
pub type Tended = Result<Vec<SlotTold>, Warning>;

/// Whatever is done about saved slots has ended after so long, or nobody waits for it any more. Files are read whole.
pub const TENDED_WITHIN: Duration = Duration::from_mins(5);

/// Which slots are saved or restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SlotChoice {
    /// Each that holds something worth it, under its own name.
    #[default]
    All,
    /// The same, and nothing else is asked for: that there was nothing to save is worth a word.
    Asked,
    /// The same while the backend goes on running, as far as the limits for that allow.
    Checkpoint,
    /// One.
    Named(NamedSlot),
}

/// One slot, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedSlot {
    /// The name it is saved under.
    pub name: String,
    /// The slot of the server, where the name alone does not tell.
    pub slot: Option<u32>,
    /// The generation to restore; `None`: the newest that fits.
    pub generation: Option<u64>,
}

/// What can be done about saved slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotTask {
    /// Removes what is saved under a name, or one generation of it.
    Forget {
        /// The name.
        name: String,
        /// `None`: all of them.
        generation: Option<u64>,
    },
    /// Reads files whole and holds them against their notes.
    Verify {
        /// `None`: all names.
        name: Option<String>,
        /// `None`: all of them.
        generation: Option<u64>,
    },
    /// Writes down what the last restore into these slots was worth.
    Proved {
        /// The slots of the server that were used since.
        slots: Vec<u32>,
        /// What it was worth.
        reuse: Reuse,
    },
}

/// What became of one saved generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotTold {
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// `forgotten`, `whole`, or the stable code of what is wrong with it.
    pub code: String,
    /// In words.
    pub message: String,
}

/// Why a backend did not come up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostMortem {
    /// Lines for people: the unit's result, the last words of its journal.
    pub lines: Vec<String>,
    /// Something listens on its port on the server itself, whether or not it can be reached from here.
    pub port_listens: bool,
}
