//! The machine: pure. Events in, effects out, the time as an argument; it knows no clock, no task and no IO.
//!
//! [`Machine::step`] takes an [`Event`] and returns the [`Effect`]s the driver must carry out, in order.
//! [`Machine::deadline`] is computed from the state: the driver sleeps until then and sends [`Event::Tick`].

pub mod effect;
pub mod event;
pub mod evidence;
pub mod hold;
pub mod ids;
pub mod look;
pub mod policy;
pub mod reading;
pub mod state;
pub mod time;
pub mod view;

pub use effect::{Answer, Cause, Effect, End, Failure, Goal, Operation, Refusal, Verb, Warning};
pub use event::{Command, Event, Held, HoldSpec, Options, Outcome, PowerChoice};
pub use hold::Hold;
pub use ids::{BackendId, BootId, HoldId, Invocation, OpId, RequestId, VerbId};
pub use look::{BackendLook, BootPhase, Look, Seen, Server, Use};
pub use policy::{BackendKind, BackendPolicy, OnStartTimeout, Policy, RestorePolicy, WakeCheck};
pub use state::{Kind, Place, Region};
pub use time::Instant;
pub use view::{Attention, NextAction, Pace, View};

/// The machine of one GPU server.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
}

impl Machine {
    /// A machine that knows nothing yet but what people asked to last: the holds in force.
    #[must_use]
    pub fn new(policy: Policy, holds: Vec<Hold>) -> Self {
        let _ = holds;
        Self { policy }
    }

    /// Takes one event at the time `now` and says what must be done.
    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let _ = (now, event);
        vec![]
    }

    /// When [`Event::Tick`] is due; always later than the last step. `None`: nothing is waited for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// What the machine shows of itself at `now`.
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let _ = now;
        todo!("written by the lead")
    }

    /// What it goes by.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }
}
