//! The rules: from goal and observation to the next leaf.

use std::time::Duration;

use super::{
    BackendId, BootPhase, Cause, Failure, Goal, Held, OnStartTimeout, RestorePolicy, Seen, Server, Use, Verb,
    WakeCheck,
    core::{Core, Step},
    observed::{observed, policies},
    rules::State,
};

/// A backend that never tells its use is not waited for longer than this when a person wants it stopped.
pub(super) const UNKNOWN_USE_GRACE: Duration = Duration::from_secs(3);

/// How long a power-off waits for the last word on people and network card; the driver has asked for it by then.
const POWER_CHECK: Duration = Duration::from_secs(2);

/// The leaf to be in now; `None` to stay.
pub(super) fn next(core: &mut Core, leaf: State, step: &mut Step) -> Option<State> {
    if core.work.as_ref().is_some_and(|w| w.op.until <= core.now) {
        core.fail(Failure::BoundExceeded, step);
    }
    if core.work.is_some()
        && let Pursued::Leaf(next) = pursue(core, leaf, step)
    {
        return next;
    }
    // The operation has just ended, or there is none: follow what is seen.
    let observed = observed(core, leaf);
    let here = observed.unwrap_or(leaf);
    policies(core, here, step);
    observed
}

/// What pursuing the operation came to.
enum Pursued {
    /// Go there, or stay.
    Leaf(Option<State>),
    /// The operation has ended.
    Ended,
}
use Pursued::{Ended, Leaf};

const STAY: Pursued = Leaf(None);

// ---- with an operation ----------------------------------------------------------------------------------------------

fn pursue(core: &mut Core, leaf: State, step: &mut Step) -> Pursued {
    let Some(work) = &core.work else { return Ended };
    let goal = work.op.goal;
    let cause = work.op.cause;

    // Deadlines of leaves that wait for something other than their order.
    match leaf {
        State::Stopping { backend, until: Some(until), killed, .. } if until <= core.now && core.order.is_none() => {
            if core.seen(backend).is_stopped() {
                // Goes on below.
            } else if killed {
                let lingers = core.seen(backend) == Seen::Lingering;
                core.fail(if lingers { Failure::GpuNotFreed } else { Failure::StopStuck }, step);
                return Ended;
            } else {
                let p = core.policy.backend(backend);
                let until = core.now + core.policy.command_timeout + p.kill_timeout;
                let order = Some(core.order(Verb::KillUnit(backend), core.within(Verb::KillUnit(backend))));
                return Leaf(Some(State::Stopping { backend, order, until: Some(until), killed: true }));
            }
        }
        State::PoweringOff { until, .. } if until <= core.now && core.is_on() && core.look.boot() == powered(core) => {
            core.fail(Failure::PowerOffTimeout, step);
            return Ended;
        }
        _ => {}
    }
    // One order at a time; and what it changed must be looked at before anything else is concluded.
    if core.order.is_some() {
        return STAY;
    }
    match core.look.server {
        Server::On { .. } => {}
        Server::NotLooked => return STAY,
        Server::Silent | Server::Booting(_) => return without_server(core, leaf, goal, step),
        Server::Uncontrolled => {
            // Nothing can be ordered. It may be a moment's loss of SSH: the leaf's and the operation's deadlines decide.
            return match leaf {
                State::Waking { until, .. } if until <= core.now => {
                    core.fail(Failure::ControlUnreachable, step);
                    Ended
                }
                State::Starting { .. } => starting_deadline(core, leaf, step),
                _ => STAY,
            };
        }
    }
    if let (State::PoweringOff { .. }, true) = (leaf, core.look.boot() == powered(core)) {
        // Still going down, whatever is wanted by now.
        return STAY;
    }
    if !core.is_settled() {
        return starting_deadline(core, leaf, step);
    }
    if let Some(failure) = core.work.as_ref().and_then(|w| w.failing) {
        return stop_and_fail(core, leaf, goal, failure, step);
    }
    match goal {
        Goal::Awake => {
            core.done(step);
            Ended
        }
        Goal::Run(backend) | Goal::Restart(backend) => run(core, leaf, backend, step),
        Goal::Stop => {
            if let Some(pursued) = leave_all(core, leaf, None, step) {
                pursued
            } else {
                core.done(step);
                Ended
            }
        }
        Goal::Off => match leave_all(core, leaf, None, step) {
            Some(pursued) => pursued,
            None => power_off(core, leaf, cause, step),
        },
        Goal::Save(backend) => slots(core, backend, true, step),
        Goal::Restore(backend) => slots(core, backend, false, step),
    }
}

/// The boot that was told to power off by the operation under way.
fn powered(core: &Core) -> Option<super::BootId> {
    core.work.as_ref().and_then(|w| w.powered_off).or(core.boot)
}

/// The server does not answer, or not as one that is up.
fn without_server(core: &mut Core, leaf: State, goal: Goal, step: &mut Step) -> Pursued {
    if let State::Waking { until, resend, .. } = leaf {
        match goal {
            // Nothing runs there, and nothing will be started.
            Goal::Stop | Goal::Save(_) => {
                core.done(step);
                return Ended;
            }
            // It may be coming up: it is off for certain only when its time to do so is over.
            Goal::Off if until > core.now => return STAY,
            Goal::Off => {
                core.done(step);
                return Ended;
            }
            Goal::Run(_) | Goal::Restart(_) | Goal::Awake | Goal::Restore(_) => {}
        }
        if until <= core.now {
            core.fail(boot_failure(core.look.server, Failure::WakeTimeout), step);
            return Ended;
        }
        let life = matches!(core.look.server, Server::Booting(_));
        if resend <= core.now {
            let next = (core.now + core.policy.wake_resend).min(until);
            let order = (!life && core.policy.can_wake).then(|| core.order(Verb::Wake, core.policy.command_timeout));
            return Leaf(Some(State::Waking { order, until, resend: next }));
        }
        return STAY;
    }
    if !core.is_off() {
        return STAY;
    }
    match goal {
        Goal::Off | Goal::Stop => {
            core.done(step);
            Ended
        }
        Goal::Save(_) => {
            core.fail(Failure::ControlUnreachable, step);
            Ended
        }
        Goal::Run(_) | Goal::Restart(_) | Goal::Awake | Goal::Restore(_) => {
            let life = matches!(core.look.server, Server::Booting(_));
            // One that shows life only needs patience; one that does not, and cannot be woken, a person.
            if matches!(goal, Goal::Restore(_)) || !(core.policy.can_wake || life) {
                core.fail(boot_failure(core.look.server, Failure::ControlUnreachable), step);
                return Ended;
            }
            if let Some(work) = &mut core.work {
                // Whatever was started before is gone with the boot.
                work.launched = false;
                work.launch = None;
                work.rid_of = None;
                work.failing = None;
            }
            let until = core.now + core.policy.boot_timeout;
            // The first round always goes out: what refuses a connection may be somebody else at its address.
            let order = core.policy.can_wake.then(|| core.order(Verb::Wake, core.policy.command_timeout));
            let resend = (core.now + core.policy.wake_resend).min(until);
            Leaf(Some(State::Waking { order, until, resend }))
        }
    }
}

fn boot_failure(server: Server, otherwise: Failure) -> Failure {
    match server {
        Server::Booting(BootPhase::Preboot) => Failure::Preboot,
        Server::Booting(BootPhase::WrongHostKey) => Failure::WrongHostKey,
        Server::Booting(BootPhase::AuthRefused) => Failure::AuthRefused,
        _ => otherwise,
    }
}

/// This backend and no other.
fn run(core: &mut Core, leaf: State, backend: BackendId, step: &mut Step) -> Pursued {
    if let Some(pursued) = leave_all(core, leaf, Some(backend), step) {
        return pursued;
    }
    let look = core.look.backend(backend).clone();
    let Some(work) = &mut core.work else {
        return Ended;
    };
    let unwanted = work.rid_of.is_some() && work.rid_of == look.invocation;
    if work.launched && look.seen.is_up() {
        let (first, restarts) =
            *work.launch.get_or_insert((look.invocation.unwrap_or(super::Invocation(0)), look.restarts));
        let other_run = look.invocation.is_some_and(|i| i != first);
        if look.seen == Seen::CrashLoop || other_run || look.restarts > restarts {
            work.failing = Some(Failure::CrashLoop);
            return stop_and_fail(core, leaf, Goal::Run(backend), Failure::CrashLoop, step);
        }
    }
    let (launched, no_restore) = (work.launched, work.no_restore);
    match look.seen {
        Seen::Missing => fail(core, Failure::UnitMissing, step),
        Seen::Stranger => fail(core, Failure::Unavailable, step),
        Seen::Running if unwanted => leave(core, leaf, backend, step),
        Seen::Running => {
            let policy = core.policy.backend(backend);
            let due = policy.slots
                && policy.restore != RestorePolicy::Never
                && !no_restore
                && look.restorable
                && !look.sleeping
                && (launched || look.unused)
                && core.memory(backend).restored != look.invocation;
            if due {
                return Leaf(Some(restoring(core, backend)));
            }
            // Whatever came of it: this run has had its chance.
            core.memory_mut(backend).restored = look.invocation;
            core.done(step);
            Ended
        }
        // It was not we who started this run, and it is broken: a new one.
        Seen::Loading if unwanted => leave(core, leaf, backend, step),
        Seen::CrashLoop | Seen::Sick if !launched => leave(core, leaf, backend, step),
        Seen::Loading | Seen::Sick | Seen::CrashLoop => starting(core, leaf, backend, step),
        Seen::Lingering if launched => starting(core, leaf, backend, step),
        Seen::Lingering => linger(core, leaf, backend),
        Seen::Unknown => starting_deadline(core, leaf, step),
        Seen::Stopped if launched => fail(core, Failure::StartFailed, step),
        Seen::Stopped => {
            if core.look.foreign_gpu {
                return fail(core, Failure::Occupied, step);
            }
            if !core.is_fresh() {
                return STAY;
            }
            let until = Some(core.now + core.policy.backend(backend).start_timeout);
            let order = Some(core.order(Verb::StartUnit(backend), core.within(Verb::StartUnit(backend))));
            if let Some(work) = &mut core.work {
                work.launched = true;
                work.launch = None;
            }
            Leaf(Some(State::Starting { backend, order, until }))
        }
    }
}

fn fail(core: &mut Core, failure: Failure, step: &mut Step) -> Pursued {
    core.fail(failure, step);
    Ended
}

/// Waits for `backend` to come up, from now or from when its start was ordered.
fn starting(core: &mut Core, leaf: State, backend: BackendId, step: &mut Step) -> Pursued {
    match leaf {
        State::Starting { backend: b, until: Some(_), .. } if b == backend => starting_deadline(core, leaf, step),
        _ => {
            let until = Some(core.now + core.policy.backend(backend).start_timeout);
            Leaf(Some(State::Starting { backend, order: None, until }))
        }
    }
}

/// In `Starting`: fails when its time is over. Elsewhere: stays.
fn starting_deadline(core: &mut Core, leaf: State, step: &mut Step) -> Pursued {
    let State::Starting { backend, until: Some(until), .. } = leaf else {
        return STAY;
    };
    if until > core.now {
        return STAY;
    }
    let failure = match core.seen(backend) {
        Seen::Sick => Failure::Unavailable,
        Seen::Stopped => Failure::StartFailed,
        _ => Failure::HealthTimeout,
    };
    if core.policy.backend(backend).on_start_timeout == OnStartTimeout::Stop && core.seen(backend).is_up() {
        if let Some(work) = &mut core.work {
            work.failing = Some(failure);
        }
        return stop_and_fail(core, leaf, Goal::Run(backend), failure, step);
    }
    fail(core, failure, step)
}

/// Stops the backend that failed to start, without ceremony, and then says so.
fn stop_and_fail(core: &mut Core, leaf: State, goal: Goal, failure: Failure, step: &mut Step) -> Pursued {
    let (Goal::Run(backend) | Goal::Restart(backend)) = goal else {
        return fail(core, failure, step);
    };
    if core.seen(backend).is_stopped() {
        return fail(core, failure, step);
    }
    if !core.is_settled() {
        return STAY;
    }
    let invocation = core.look.backend(backend).invocation;
    if let Some(work) = &mut core.work
        && !std::mem::replace(&mut work.leaving(backend, invocation).saved, true)
        && core.policy.backend(backend).slots
    {
        core.warn("save_skipped", "the backend failed to start; there was nothing to save");
    }
    stop(core, leaf, backend)
}

/// Brings every backend but `keep` down; `None` when all are proven stopped.
fn leave_all(core: &mut Core, leaf: State, keep: Option<BackendId>, step: &mut Step) -> Option<Pursued> {
    let others = |id: &BackendId| Some(*id) != keep;
    let left = core.work.as_ref().and_then(|w| w.leaving).is_some_and(|l| core.seen(l.backend).is_stopped());
    if let (true, Some(work)) = (left, &mut core.work) {
        work.leaving = None;
    }
    // One that is being left already goes first, so that leaving never alternates.
    let current = core.work.as_ref().and_then(|w| w.leaving).map(|l| l.backend);
    let up = core.up().filter(others).min_by_key(|id| (Some(*id) != current, *id));
    if let Some(backend) = up {
        return Some(leave(core, leaf, backend, step));
    }
    if let Some(backend) = core.policy.ids().filter(others).find(|id| core.seen(*id) == Seen::Lingering) {
        return Some(linger(core, leaf, backend));
    }
    // A stop does not touch what is not ours; a start or a power-off needs proof that nothing is there.
    let proof_needed = core.work.as_ref().is_some_and(|w| w.op.goal != Goal::Stop);
    let stranger = core.policy.ids().filter(others).any(|id| core.seen(id) == Seen::Stranger);
    if stranger && proof_needed {
        core.fail(Failure::Unavailable, step);
        return Some(Ended);
    }
    if core.policy.ids().filter(others).any(|id| core.seen(id) == Seen::Unknown) {
        return Some(starting_deadline(core, leaf, step));
    }
    None
}

/// The next step of bringing `backend` down: drain, save, stop.
fn leave(core: &mut Core, leaf: State, backend: BackendId, step: &mut Step) -> Pursued {
    let look = core.look.backend(backend).clone();
    let policy = core.policy.backend(backend).clone();
    let calm = core.memory(backend).calm;
    let now = core.now;
    let Some(work) = &mut core.work else {
        return Ended;
    };
    let by_policy = work.op.cause.is_policy();
    let running = look.seen == Seen::Running;
    if running && !work.leaving(backend, look.invocation).drained {
        let State::Draining { backend: b, since, until } = leaf else {
            return Leaf(Some(State::Draining { backend, since: now, until: now + policy.drain_timeout }));
        };
        if b != backend {
            return Leaf(Some(State::Draining { backend, since: now, until: now + policy.drain_timeout }));
        }
        let idle = look.use_ == Use::Idle && calm >= 2 && look.use_at >= since;
        let untold = look.use_ == Use::Unknown && now.since(since) >= UNKNOWN_USE_GRACE && !by_policy;
        if idle {
        } else if untold {
            core.warn("use_unknown", "the backend does not tell whether it is in use; it was not waited for");
        } else if until <= now && by_policy {
            return fail(core, Failure::InUse, step);
        } else if until <= now {
            core.warn("drain_timeout", "requests were still in flight when the backend was stopped");
        } else {
            return STAY;
        }
        if let Some(work) = &mut core.work {
            work.leaving(backend, look.invocation).drained = true;
        }
    }
    let Some(work) = &mut core.work else {
        return Ended;
    };
    if running && policy.slots && !work.leaving(backend, look.invocation).saved {
        if look.sleeping {
            work.leaving(backend, look.invocation).saved = true;
            core.warn("slot_asleep", "the backend sleeps and has dropped its slots; nothing was saved");
        } else {
            let order = core.order(Verb::SaveSlots(backend), core.within(Verb::SaveSlots(backend)));
            return Leaf(Some(State::Saving { backend, order }));
        }
    }
    stop(core, leaf, backend)
}

/// Orders the stop, or waits for the one that was ordered.
fn stop(core: &mut Core, leaf: State, backend: BackendId) -> Pursued {
    match leaf {
        // Ordered already: its deadline decides.
        State::Stopping { backend: b, until: Some(_), .. } if b == backend => STAY,
        _ => {
            let policy = core.policy.backend(backend);
            let until = Some(core.now + core.policy.command_timeout + policy.stop_timeout);
            let order = Some(core.order(Verb::StopUnit(backend), core.within(Verb::StopUnit(backend))));
            Leaf(Some(State::Stopping { backend, order, until, killed: false }))
        }
    }
}

/// Waits for what is left of a backend that is down by its unit.
fn linger(core: &Core, leaf: State, backend: BackendId) -> Pursued {
    match leaf {
        State::Stopping { backend: b, until: Some(_), .. } if b == backend => STAY,
        _ => {
            let policy = core.policy.backend(backend);
            let until = Some(core.now + core.policy.command_timeout + policy.stop_timeout);
            Leaf(Some(State::Stopping { backend, order: None, until, killed: false }))
        }
    }
}

/// All backends are proven stopped: power off, if nothing blocks.
fn power_off(core: &mut Core, leaf: State, cause: Cause, step: &mut Step) -> Pursued {
    let now = core.now;
    if let State::PoweringOff { .. } = leaf {
        // Another boot answers: it went down and came back.
        core.warn("came_back", "the server went down and was up again at once");
        core.done(step);
        return Ended;
    }
    if core.look.foreign_gpu || core.look.people == Some(true) || core.is_held(Held::Awake) {
        return fail(core, Failure::Blocked, step);
    }
    let (people, armed, check) = (core.look.people, core.look.wake_armed, core.policy.wake_check);
    if check != WakeCheck::Off && armed == Some(false) {
        return fail(core, Failure::WakeUnarmed, step);
    }
    let unknown = people.is_none() || (check != WakeCheck::Off && armed.is_none());
    let Some(work) = &mut core.work else {
        return Ended;
    };
    let check_until = *work.power_check_until.get_or_insert(now + POWER_CHECK);
    if unknown && check_until > now {
        return STAY;
    }
    if people.is_none() {
        if cause.is_policy() {
            return fail(core, Failure::Blocked, step);
        }
        core.warn("use_unknown", "nobody could tell whether somebody else uses the server");
    }
    if check == WakeCheck::Require && armed.is_none() {
        return fail(core, Failure::WakeUnarmed, step);
    }
    if check == WakeCheck::Warn && armed.is_none() {
        core.warn("wake_unknown", "nobody could tell whether the network card is armed for the next wake");
    }
    if !core.is_fresh() {
        return STAY;
    }
    let boot = core.look.boot();
    if let Some(work) = &mut core.work {
        work.powered_off = boot;
    }
    let order = core.order(Verb::PowerOff, core.within(Verb::PowerOff));
    Leaf(Some(State::PoweringOff { order, until: now + core.policy.power_off_timeout }))
}

/// Saves or restores while the backend goes on running.
fn slots(core: &mut Core, backend: BackendId, save: bool, step: &mut Step) -> Pursued {
    let Some(work) = &core.work else { return Ended };
    if work.slots_done {
        core.done(step);
        return Ended;
    }
    match core.seen(backend) {
        Seen::Running => {}
        Seen::Unknown => return STAY,
        _ if save => return fail(core, Failure::SaveFailed, step),
        _ => return fail(core, Failure::RestoreFailed, step),
    }
    if save {
        let order = core.order(Verb::SaveSlots(backend), core.within(Verb::SaveSlots(backend)));
        Leaf(Some(State::Saving { backend, order }))
    } else {
        Leaf(Some(restoring(core, backend)))
    }
}

/// The restore is noted before it is sent: never twice for one run.
fn restoring(core: &mut Core, backend: BackendId) -> State {
    core.memory_mut(backend).restored = core.look.backend(backend).invocation;
    let order = core.order(Verb::RestoreSlots(backend), core.within(Verb::RestoreSlots(backend)));
    State::Restoring { backend, order }
}

impl Core {
    /// How long an order may take.
    pub(super) fn within(&self, what: Verb) -> Duration {
        let p = &self.policy;
        match what {
            Verb::Wake | Verb::StartUnit(_) | Verb::KillUnit(_) | Verb::PowerOff => p.command_timeout,
            Verb::StopUnit(b) => p.backend(b).stop_timeout,
            Verb::SaveSlots(b) => p.backend(b).save_timeout,
            Verb::RestoreSlots(b) => p.backend(b).restore_timeout,
        }
    }
}
