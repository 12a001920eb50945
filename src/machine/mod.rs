//! The machine: pure. Events in, effects out, the time as an argument; it knows no clock, no task and no IO.
//!
//! [`Machine::step`] takes an [`Event`] and returns the [`Effect`]s the driver must carry out, in order.
//! [`Machine::deadline`] is computed from the state: the driver sleeps until then and sends [`Event::Tick`].
//! [`Machine::view`] is what others may know of it.
//!
//! Reading order: [`event`] and [`look`] (what it is told), [`effect`] (what it asks for), [`state`] (where it can be),
//! then `rules` (the statechart), `pursuit` and `leaving` (from goal and observation to the next leaf), `work` (the
//! operation) and `admission` (which commands are taken).

mod admission;
mod attention;
mod core;
pub mod effect;
pub mod event;
pub mod evidence;
mod fits;
pub mod hold;
pub mod ids;
pub mod ignored;
pub mod key;
mod leaving;
pub mod look;
mod observed;
pub mod policy;
mod pursuit;
pub mod reading;
mod rules;
mod snapshot;
pub mod state;
pub mod time;
pub mod view;
mod work;

use std::sync::Arc;

use statig::blocking::{InitializedStateMachine, IntoStateMachineExt};

pub use effect::{Answer, Cause, Effect, End, Failure, Goal, Operation, Refusal, Verb, Warning};
pub use event::{Command, Event, Held, HoldSpec, Options, Outcome, PowerChoice, Selection};
pub use hold::Hold;
pub use ids::{BackendId, BootId, HoldId, Invocation, OpId, RequestId, VerbId};
pub use ignored::Ignored;
pub use look::{BackendLook, BootPhase, Look, Seen, Server, Use};
pub use policy::{BackendKind, BackendPolicy, OnStartTimeout, Policy, RestorePolicy, WakeCheck};
pub use state::{Kind, Place, Region};
pub use time::Instant;
pub use view::{Attention, BackendView, Doubt, NextAction, Pace, View};

use self::{
    attention::WorryKind,
    core::{Core, Step},
    rules::{Signal, State},
};

/// Leaves that one event may lead through at most; the rules settle in far fewer.
const MOST_MOVES: usize = 8;

/// The machine of one GPU server.
#[derive(Clone)]
pub struct Machine {
    chart: InitializedStateMachine<Core>,
    since: Instant,
    ignored: Option<Ignored>,
}

impl Machine {
    /// A machine that knows nothing yet but what people asked to last: the holds in force.
    #[must_use]
    pub fn new(policy: impl Into<Arc<Policy>>, holds: Vec<Hold>) -> Self {
        let chart = Core::new(policy.into(), holds)
            .uninitialized_state_machine()
            .init_with_context(&mut Step::at(Instant::START));
        Self { chart, since: Instant::START, ignored: None }
    }

    /// Takes one event at the time `now` and says what must be done, in this order.
    #[must_use]
    pub fn step(&mut self, now: Instant, event: &Event) -> Vec<Effect> {
        let mut step = Step::at(now.max(self.chart.now));
        let before = self.place();
        self.chart.handle_with_context(&Signal::Begin(step.now), &mut step);
        self.chart.handle_with_context(&Signal::Take(event), &mut step);
        let settles = (0..MOST_MOVES).any(|_| {
            let leaf = *self.chart.state();
            let work = self.chart.work.as_ref().map(|w| w.op.id);
            self.chart.handle_with_context(&Signal::Proceed, &mut step);
            *self.chart.state() == leaf && self.chart.work.as_ref().map(|w| w.op.id) == work
        });
        debug_assert!(settles, "the rules go round and round in {:?}", self.place());
        if before != self.place() {
            self.since = step.now;
        }
        self.ignored = if before == self.place() && step.effects.is_empty() { step.ignored } else { None };
        step.effects
    }

    /// Why the last event led to nothing; `None` if it led to something.
    #[must_use]
    pub const fn ignored(&self) -> Option<Ignored> {
        self.ignored
    }

    /// Which leaf it is in.
    #[must_use]
    pub fn place(&self) -> Place {
        self.chart.state().place()
    }

    /// The operation under way.
    #[must_use]
    pub fn operation(&self) -> Option<&Operation> {
        self.chart.work.as_ref().map(|w| &w.op)
    }

    /// The order under way and its name; wake packets are not one.
    #[must_use]
    pub fn order(&self) -> Option<(VerbId, Verb)> {
        self.chart.order.map(|o| (o.verb, o.what))
    }

    /// The start, stop or kill whose answer was lost.
    #[must_use]
    pub fn doubt(&self) -> Option<Doubt> {
        self.chart.doubt
    }

    /// The newest look.
    #[must_use]
    pub fn look(&self) -> &Look {
        &self.chart.look
    }

    /// The holds in force.
    #[must_use]
    pub fn holds(&self) -> &[Hold] {
        &self.chart.holds
    }

    /// When [`Event::Tick`] is due; always later than the last step. `None`: nothing is waited for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines().min()
    }

    /// All that is waited for.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let core: &Core = &self.chart;
        let leaf = *self.chart.state();
        let work = core.work.as_ref();
        let [one, other] = leaf.deadlines();
        let crowd = (leaf != State::Conflict).then(|| core.conflict_at()).flatten();
        let coming = core.coming_until.filter(|_| leaf == State::Offline);
        [
            one,
            other,
            work.map(|w| w.op.until),
            work.and_then(|w| w.last_look).map(|l| l.until),
            work.and_then(|w| w.unread_until),
            work.and_then(|w| w.quiet_until),
            core.order.map(|o| o.until),
            crowd,
            coming,
            core.silence_proves_at(),
            observed::next_policy(core, leaf).map(|(_, _, at)| at),
        ]
        .into_iter()
        .flatten()
        .chain(core.holds.iter().filter_map(|h| h.until))
        .chain(core.up().filter(|b| core.awaits_word(*b)).filter_map(|b| core.memory(b).untold_until))
        // What is overdue waits for something else, which has a deadline of its own or is a look.
        .filter(|at| *at > core.now)
    }

    /// What the machine shows of itself.
    #[must_use]
    pub fn view(&self) -> View {
        let core: &Core = &self.chart;
        let leaf = *self.chart.state();
        let place = leaf.place();
        let busy = core.work.is_some() || core.order.is_some();
        let how_fast = match place.kind {
            Kind::Waking | Kind::PoweringOff => Pace::Waiting,
            Kind::Offline if busy => Pace::Waiting,
            // Before the first certainty, and while silence is being counted, a look a second.
            Kind::Unknown => Pace::Waiting,
            Kind::Starting | Kind::Restoring | Kind::Draining | Kind::Saving | Kind::Stopping => Pace::Busy,
            Kind::Idle | Kind::Running | Kind::Conflict if busy => Pace::Busy,
            Kind::Offline => Pace::Rest,
            Kind::Idle | Kind::Running | Kind::Conflict => {
                let doubtful = core.silence.is_some()
                    || core.crowded_since.is_some()
                    || place.backend.is_some_and(|b| core.memory(b).unwell > 0);
                if doubtful { Pace::Waiting } else { Pace::Rest }
            }
        };
        View {
            now: core.now,
            place,
            since: self.since,
            operation: self.operation().cloned(),
            order: self.order(),
            doubt: self.doubt(),
            order_op: core.order.map(|o| o.op),
            save_ended: core.work.as_ref().and_then(|w| w.leaving).is_some_and(|l| l.saved),
            look: core.look.clone(),
            boot: core.boot,
            foreign_untold: core.foreign && core.is_on() && core.look.foreign_gpu.is_none(),
            is_off: core.is_off(),
            coming_until: core.coming_until,
            backends: core.backends.iter().map(core::Memory::view).collect(),
            holds: core.holds.clone(),
            last_look: core.work.as_ref().and_then(|w| w.last_look).map(|l| l.since),
            next_action: observed::next_policy(core, leaf).map(|(goal, cause, at)| NextAction { goal, cause, at }),
            attention: core
                .attention
                .iter()
                .map(|w| Attention {
                    what: match w.what {
                        WorryKind::Failure(f) => Warning::new(f.code(), f.message()),
                        WorryKind::Crashed => {
                            Warning::new("crashed", "The backend crashed; systemd waits to start it again.")
                        }
                        WorryKind::WakeUnarmed => Warning::new(
                            Failure::WakeUnarmed.code(),
                            "The server could not be woken again after a power-off.",
                        ),
                    },
                    hint: match w.what {
                        WorryKind::Failure(f) => f.hint(),
                        WorryKind::Crashed => "read the unit's journal; stop it if it goes on like that",
                        WorryKind::WakeUnarmed => Failure::WakeUnarmed.hint(),
                    },
                    backend: w.backend,
                    since: w.since,
                })
                .collect(),
            pace: how_fast,
        }
    }

    /// What it goes by.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.chart.policy
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let core: &Core = &self.chart;
        f.debug_struct("Machine").field("leaf", self.chart.state()).field("core", core).finish_non_exhaustive()
    }
}
