//! What the machine shows of itself: everything the status document needs, nothing it could be changed by.

use serde::{Deserialize, Serialize};

use super::{
    BackendId, BootId, Cause, Goal, Hold, Instant, Invocation, Look, OpId, Operation, Place, Policy, Verb, VerbId,
    Warning,
};

/// The machine as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// When the last step was.
    pub now: Instant,
    /// The leaf.
    pub place: Place,
    /// Since when this leaf.
    pub since: Instant,
    /// The operation under way.
    pub operation: Option<Operation>,
    /// The order under way and its name; wake packets are not one.
    pub order: Option<(VerbId, Verb)>,
    /// The start, stop or kill whose answer was lost.
    pub doubt: Option<Doubt>,
    /// The operation that gave it; another may have taken its place since.
    pub order_op: Option<OpId>,
    /// The backend being left has had its save, or it is recorded why not.
    pub save_ended: bool,
    /// The newest look.
    pub look: Look,
    /// The boot last seen.
    pub boot: Option<BootId>,
    /// Somebody else's process was seen on the GPU in this boot, and nobody can tell whether it is still there.
    pub foreign_untold: bool,
    /// Nothing that is up has answered for long enough.
    pub is_off: bool,
    /// The server was woken, and has until then to come up.
    pub coming_until: Option<Instant>,
    /// What is remembered of each backend, in configuration order.
    pub backends: Vec<BackendView>,
    /// The holds in force.
    pub holds: Vec<Hold>,
    /// What the machine will do by itself next, if nothing changes.
    pub next_action: Option<NextAction>,
    /// A start or a power-off waits for GPU, people and network card to be asked again; what was asked before this is too
    /// old.
    pub last_look: Option<Instant>,
    /// What needs a person. Clears itself.
    pub attention: Vec<Attention>,
    /// How fast the world should be looked at now.
    pub pace: Pace,
}

impl View {
    /// The name people and programs see in `state`. One that is only saved goes on running.
    #[must_use]
    pub fn public_name(&self, policy: &Policy) -> String {
        match &self.operation {
            // Nothing else is done for it.
            Some(Operation { goal: Goal::Save(backend, _), .. }) => policy.backend(*backend).name.clone(),
            _ => self.place.public_name(policy),
        }
    }

    /// What is remembered of `id`.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> &BackendView {
        &self.backends[usize::from(id.0)]
    }
}

/// An order whose answer was lost: nobody knows yet what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Its answer may come late, and then clears it up.
    pub verb: VerbId,
    /// The SSH session in which it was given; `None` where that was not known.
    pub session: Option<u64>,
    /// The boot in which it was given.
    pub boot: Option<BootId>,
    /// Whose unit it was about.
    pub backend: BackendId,
}

/// What the machine remembers of a backend beyond the newest look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// When it was last seen in use; `None`: not since the daemon's first look.
    pub last_use: Option<Instant>,
    /// The run last seen, kept while it cannot be read.
    pub run: Option<Invocation>,
    /// What that told of its use last, see [`super::BackendLook::mark`]; kept while nobody can tell.
    pub mark: Option<u64>,
    /// The run, once it was seen healthy.
    pub ready: Option<Invocation>,
    /// The run, once a restore was ordered for it.
    pub restored: Option<Invocation>,
    /// The run, once a restore went wrong in it.
    pub spoilt: Option<Invocation>,
}

/// How fast the world should be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is under way.
    Rest,
    /// Something is under way: units and health every few tens of milliseconds.
    Busy,
    /// The server is off or coming up: SSH about once a second.
    Waiting,
}

/// What the machine will do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextAction {
    /// What.
    pub goal: Goal,
    /// By which policy.
    pub cause: Cause,
    /// When.
    pub at: Instant,
}

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// What: code and text.
    pub what: Warning,
    /// What the person can do.
    pub hint: &'static str,
    /// The backend concerned.
    pub backend: Option<BackendId>,
    /// Since when.
    pub since: Instant,
}
