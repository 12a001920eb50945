//! The statechart: leaves, their regions, and what an event does in each.
//!
//! An event is first *taken in* (leaf, then its regions outwards), which changes what the machine remembers: the newest
//! look, the end of an order, the operation somebody asked for. Then the leaf *proceeds*: from goal and observation it
//! finds the next leaf, whose entry action sends the order that the transition made. So cold start, switch and restart
//! are the same few rules, wherever they begin.

use serde::{Deserialize, Serialize};
use statig::blocking::{self, IntoStateMachine};
use statig::prelude::*;

use super::{
    BackendId, BootId, Effect, Event, Instant, Kind, Place, Region, Verb, VerbId, admission,
    core::{Core, Step},
    ignored::Ignored,
    leaving, pursuit,
};

/// The leaves, with what each waits for. `order` is what its entry action sends; `until` its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    Unknown,
    Offline,
    /// `resend` is at most `until`.
    Waking {
        order: Option<VerbId>,
        until: Instant,
        resend: Instant,
    },
    Idle,
    /// Without a deadline when nobody but systemd starts it.
    Starting {
        backend: BackendId,
        order: Option<VerbId>,
        until: Option<Instant>,
    },
    Restoring {
        backend: BackendId,
        order: VerbId,
    },
    Running {
        backend: BackendId,
    },
    Draining {
        backend: BackendId,
        since: Instant,
        until: Instant,
    },
    Saving {
        backend: BackendId,
        order: VerbId,
    },
    /// Without a deadline when nobody but a stranger stops it.
    Stopping {
        backend: BackendId,
        order: Option<VerbId>,
        until: Option<Instant>,
        killed: bool,
    },
    PoweringOff {
        order: VerbId,
        /// The boot that was told to.
        boot: BootId,
        until: Instant,
    },
    Conflict,
}

impl State {
    pub(super) const fn place(self) -> Place {
        let (kind, backend) = match self {
            Self::Unknown => (Kind::Unknown, None),
            Self::Offline => (Kind::Offline, None),
            Self::Waking { .. } => (Kind::Waking, None),
            Self::Idle => (Kind::Idle, None),
            Self::Starting { backend, .. } => (Kind::Starting, Some(backend)),
            Self::Restoring { backend, .. } => (Kind::Restoring, Some(backend)),
            Self::Running { backend } => (Kind::Running, Some(backend)),
            Self::Draining { backend, .. } => (Kind::Draining, Some(backend)),
            Self::Saving { backend, .. } => (Kind::Saving, Some(backend)),
            Self::Stopping { backend, .. } => (Kind::Stopping, Some(backend)),
            Self::PoweringOff { .. } => (Kind::PoweringOff, None),
            Self::Conflict => (Kind::Conflict, None),
        };
        Place { kind, backend }
    }

    /// When this leaf must be left or do something, computed from what it holds.
    pub(super) fn deadlines(self) -> [Option<Instant>; 2] {
        match self {
            Self::Waking { until, resend, .. } => [Some(resend), Some(until)],
            Self::Starting { until, .. } | Self::Stopping { until, .. } => [until, None],
            Self::Draining { since, until, .. } => [Some(since + leaving::UNKNOWN_USE_GRACE), Some(until)],
            Self::PoweringOff { until, .. } => [Some(until), None],
            // Their order has a deadline of its own.
            Self::Restoring { .. } | Self::Saving { .. } => [None, None],
            Self::Unknown | Self::Offline | Self::Idle | Self::Running { .. } | Self::Conflict => [None, None],
        }
    }
}

/// What reaches the statechart: an event from outside, then as often as it moves, the word to go on.
#[derive(Debug)]
pub(super) enum Signal<'a> {
    /// A step begins at this time.
    Begin(Instant),
    Take(&'a Event),
    Proceed,
}

impl IntoStateMachine for Core {
    type Event<'evt> = Signal<'evt>;
    type Context<'ctx> = Step;
    type State = State;
    type Superstate<'sub> = Region;

    fn initial() -> State {
        State::Unknown
    }
}

impl blocking::State<Core> for State {
    fn call_handler(&mut self, core: &mut Core, signal: &Signal<'_>, step: &mut Step) -> Outcome<Self> {
        match signal {
            Signal::Begin(now) => {
                core.now = *now;
                step.ignored = Some(Ignored::NothingDue);
                core.worry();
                core.expire_holds(step);
                core.expire_order(step);
                Handled
            }
            Signal::Take(Event::Commanded { request, command }) => {
                // The one leaf in which a command means something else: a conflict moves by `resolve` or `stop` alone,
                // and a server going down cannot be held back. Everything else is the regions' business.
                match self {
                    Self::Conflict => admission::in_conflict(core, *request, command, step),
                    Self::PoweringOff { .. } => admission::going_down(core, *request, command, step),
                    _ => Super,
                }
            }
            // A power-off that was surely refused has not begun: the server stays on, and nothing waits for it to go down.
            Signal::Take(Event::Finished { verb, outcome: outcome @ super::Outcome::Failed(_) })
                if matches!(self, Self::PoweringOff { .. }) && core.is_power_off(*verb) =>
            {
                core.order_ended(*verb, outcome, step);
                Transition(Self::Idle)
            }
            Signal::Take(_) => Super,
            Signal::Proceed => match pursuit::next(core, *self, step) {
                Some(next) => Transition(next),
                None => Handled,
            },
        }
    }

    fn call_entry_action(&mut self, core: &mut Core, step: &mut Step) {
        let sent = match *self {
            Self::Waking { order, .. } => order.map(|verb| (verb, Verb::Wake)),
            Self::Starting { backend, order, .. } => order.map(|verb| (verb, Verb::StartUnit(backend))),
            Self::Restoring { backend, order } => Some((order, Verb::RestoreSlots(backend))),
            Self::Saving { backend, order } => Some((order, Verb::SaveSlots(backend))),
            Self::Stopping { backend, order, killed, .. } => {
                order.map(|verb| (verb, if killed { Verb::KillUnit(backend) } else { Verb::StopUnit(backend) }))
            }
            Self::PoweringOff { order, .. } => Some((order, Verb::PowerOff)),
            Self::Unknown
            | Self::Offline
            | Self::Idle
            | Self::Running { .. }
            | Self::Draining { .. }
            | Self::Conflict => None,
        };
        if let (Some((verb, what)), Some(work)) = (sent, &core.work) {
            let within = core.within(what);
            step.emit(Effect::Do { verb, what, within, op: work.op.id });
        }
    }

    fn superstate(&mut self) -> Option<Region> {
        Some(self.place().kind.region())
    }
}

impl blocking::Superstate<Core> for Region {
    fn call_handler(&mut self, core: &mut Core, signal: &Signal<'_>, step: &mut Step) -> Outcome<State> {
        let Signal::Take(event) = signal else {
            return Handled;
        };
        match (*self, event) {
            // Off: nothing runs, so there is nothing to stop; everything else is as everywhere.
            (Self::Off, Event::Commanded { request, command }) => admission::while_off(core, *request, command, step),
            (Self::On | Self::Starting | Self::Leaving | Self::Off, _) => Super,

            // Top takes every event: no wildcard, so that a new one must be decided here.
            (Self::Top, Event::Commanded { request, command }) => admission::anywhere(core, *request, command, step),
            (Self::Top, Event::Looked(look)) => {
                let silent = matches!(look.server, super::Server::Silent | super::Server::Booting(_));
                let boot = core.boot;
                let new = core.observe(look);
                step.has_rebooted = boot.is_some() && boot != core.boot;
                step.ignored = Some(match (new, silent, core.work.is_some()) {
                    (_, true, _) if !core.is_off() => Ignored::SilenceProvesNothing,
                    (false, ..) => Ignored::NothingNew,
                    (true, _, true) => Ignored::Awaited,
                    (true, _, false) => Ignored::Noted,
                });
                Handled
            }
            (Self::Top, Event::Finished { verb, outcome }) => {
                let ours = core.order_ended(*verb, outcome, step);
                step.ignored = Some(if ours { Ignored::Noted } else { Ignored::OlderOrder });
                Handled
            }
            (Self::Top, Event::Tick) => {
                step.ignored = Some(Ignored::NothingDue);
                Handled
            }
        }
    }

    fn superstate(&mut self) -> Option<Self> {
        self.parent()
    }
}
