//! The rules: from goal and observation to the next leaf.

use super::{
    BackendId, BackendLook, BootPhase, Failure, Goal, Held, Instant, OnStartTimeout, RestorePolicy, Seen, Server, Use,
    Verb,
    core::{Core, Step},
    leaving::{GPU_LATE, LAST_LOOK, LastWord, last_look, leave, leave_all, linger, power_off, stop, unread},
    observed::{observed, policies, refuses_while_going_down},
    rules::State,
};

/// The leaf to be in now; `None` to stay.
pub(super) fn next(core: &mut Core, leaf: State, step: &mut Step) -> Option<State> {
    if core.work.as_ref().is_some_and(|w| w.op.until <= core.now) {
        core.fail(Failure::BoundExceeded, step);
    }
    // What a leaf waits for is of its boot, and so is its deadline.
    let has_rebooted = std::mem::take(&mut step.has_rebooted);
    if has_rebooted && core.work.is_some() && matches!(leaf, State::Starting { .. } | State::Stopping { .. }) {
        return Some(State::Unknown);
    }
    if core.work.is_some()
        && let Pursued::Leaf(next) = pursue(core, leaf, step)
    {
        return next;
    }
    // The operation has just ended, or there is none: follow what is seen. What was before a boot says nothing.
    let leaf = if has_rebooted { State::Unknown } else { leaf };
    let observed = observed(core, leaf).or(has_rebooted.then_some(State::Unknown));
    let here = observed.unwrap_or(leaf);
    policies(core, here, step);
    observed
}

/// What pursuing the operation came to.
pub(super) enum Pursued {
    /// Go there, or stay.
    Leaf(Option<State>),
    /// The operation has ended.
    Ended,
}
pub(super) use Pursued::{Ended, Leaf};

pub(super) const STAY: Pursued = Leaf(None);

// ---- with an operation ----------------------------------------------------------------------------------------------

fn pursue(core: &mut Core, leaf: State, step: &mut Step) -> Pursued {
    let Some(work) = &core.work else { return Ended };
    let goal = work.op.goal;
    let (cause, started) = (work.op.cause, work.op.started);

    // Deadlines of leaves that wait for something other than their order.
    match leaf {
        State::Stopping { backend, until: Some(until), killed, .. }
            if until <= core.now && goal.may_stop() && core.is_on() && core.shows_end_of_stop(backend) =>
        {
            match core.seen(backend) {
                // One that lingers outside of any run is down by its unit, and only what it held is still there.
                Seen::Lingering if killed && core.look.backend(backend).invocation.is_none() => {
                    return fail(core, Failure::GpuNotFreed, step);
                }
                Seen::Lingering if killed => return fail(core, Failure::StopStuck, step),
                Seen::Lingering => {
                    let p = core.policy.backend(backend);
                    let until = core.now + core.policy.command_timeout + p.kill_timeout;
                    let order = Some(core.order(Verb::KillUnit(backend)));
                    return Leaf(Some(State::Stopping { backend, order, until: Some(until), killed: true }));
                }
                // One that is up as if nothing were has not heard the stop, and would not hear SIGKILL either.
                seen if seen.is_up() => return fail(core, Failure::StopStuck, step),
                // Stopped, or nobody can tell: goes on below.
                _ => {}
            }
        }
        State::PoweringOff { until, boot, .. } if until <= core.now && core.look.boot() == Some(boot) => {
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
        Server::Silent | Server::Booting(_) => {
            if let Some(work) = &mut core.work {
                // Whoever was asked may be somebody else when it answers again.
                (work.unread_until, work.last_look) = (None, None);
            }
            return without_server(core, leaf, goal, step);
        }
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
    if let State::PoweringOff { boot, .. } = leaf
        && core.look.boot() == Some(boot)
    {
        // Still going down, whatever is wanted by now.
        return STAY;
    }
    if goal == Goal::Awake {
        core.done(step);
        return Ended;
    }
    if let (State::PoweringOff { .. }, Goal::Off) = (leaf, goal) {
        core.warn("came_back", "the server went down and was up again at once");
        core.done(step);
        return Ended;
    }
    let is_read = |look: &BackendLook| look.seen != Seen::Unknown && (look.invocation.is_some() || !look.seen.is_up());
    if let (Some(work), true) = (&mut core.work, core.look.backends.iter().all(is_read)) {
        work.unread_until = None;
    }
    if !core.is_settled() {
        // A lost answer is cleared up by the unit: as long as that cannot be read, or lingers, it is what is waited for.
        return match core.doubt.map(|doubt| (core.seen(doubt.backend), doubt.backend)) {
            Some((Seen::Unknown, _)) => unread(core, leaf, step),
            Some((Seen::Lingering, backend))
                if core.shows_end_of_stop(backend) && goal != Goal::Run(backend) && goal != Goal::Restart(backend) =>
            {
                linger(core, leaf, backend)
            }
            _ => starting_deadline(core, leaf, step),
        };
    }
    if let (Some(failure), Goal::Run(backend) | Goal::Restart(backend)) =
        (core.work.as_ref().and_then(|w| w.failing), goal)
    {
        return stop_and_fail(core, leaf, backend, failure, step);
    }
    match goal {
        Goal::Awake => Ended,
        Goal::Run(backend) | Goal::Restart(backend) => run(core, leaf, backend, step),
        Goal::Stop => {
            if let Some(pursued) = leave_all(core, leaf, None, step) {
                pursued
            } else {
                core.done(step);
                Ended
            }
        }
        // Somebody was there since, or has booted it.
        Goal::Off if cause.is_policy() && core.vacant_since.is_some_and(|since| since > started) => {
            fail(core, Failure::InUse, step)
        }
        Goal::Off => match leave_all(core, leaf, None, step) {
            Some(pursued) => pursued,
            None => power_off(core, cause, step),
        },
        Goal::Save(backend, _) => slots(core, leaf, backend, true, step),
        Goal::Restore(backend, _) => slots(core, leaf, backend, false, step),
    }
}

/// The server does not answer, or not as one that is up.
fn without_server(core: &mut Core, leaf: State, goal: Goal, step: &mut Step) -> Pursued {
    if let State::Waking { until, resend, .. } = leaf {
        match goal {
            // Nothing runs there, and nothing will be started.
            Goal::Stop => {
                core.done(step);
                return Ended;
            }
            // No packet is sent any more.
            Goal::Off => return Leaf(core.is_off().then_some(State::Offline)),
            Goal::Run(_) | Goal::Restart(_) | Goal::Awake | Goal::Save(..) | Goal::Restore(..) => {}
        }
        if core.is_held(Held::Off) {
            return fail(core, Failure::Held, step);
        }
        if !core.is_off() {
            // It was up a moment ago.
            return STAY;
        }
        if until <= core.now {
            core.fail(boot_failure(core.look.server, Failure::WakeTimeout), step);
            return Ended;
        }
        let life = matches!(core.look.server, Server::Booting(_));
        if resend <= core.now {
            let next = (core.now + core.policy.wake_resend).min(until);
            let order = (!life && core.policy.can_wake).then(|| core.order(Verb::Wake));
            return Leaf(Some(State::Waking { order, until, resend: next }));
        }
        return STAY;
    }
    if !core.is_off() {
        return STAY;
    }
    // What refuses a connection is still there, however long it has been told to go.
    if refuses_while_going_down(core, leaf) {
        return STAY;
    }
    if let (State::PoweringOff { .. }, Server::Booting(_), Goal::Off) = (leaf, core.look.server, goal) {
        return fail(core, Failure::PowerOffTimeout, step);
    }
    match goal {
        Goal::Off if core.work.as_ref().is_some_and(|work| !work.op.cause.is_policy()) => off_for_certain(core, step),
        Goal::Off | Goal::Stop => {
            core.done(step);
            Ended
        }
        Goal::Save(..) => {
            core.fail(Failure::ControlUnreachable, step);
            Ended
        }
        Goal::Run(_) | Goal::Restart(_) | Goal::Awake | Goal::Restore(..) => {
            let life = matches!(core.look.server, Server::Booting(_));
            // One that shows life only needs patience; one that does not, and cannot be woken, a person.
            if matches!(goal, Goal::Restore(..)) || !(core.policy.can_wake || life) {
                core.fail(boot_failure(core.look.server, Failure::ControlUnreachable), step);
                return Ended;
            }
            if core.is_held(Held::Off) {
                return fail(core, Failure::Held, step);
            }
            if let Some(work) = &mut core.work {
                work.begin_anew();
            }
            let until = core.now + core.policy.boot_timeout;
            // The first round always goes out: what refuses a connection may be somebody else at its address.
            let order = core.policy.can_wake.then(|| core.order(Verb::Wake));
            let resend = (core.now + core.policy.wake_resend).min(until);
            Leaf(Some(State::Waking { order, until, resend }))
        }
    }
}

/// It is off for certain only when its time to come up is over.
fn off_for_certain(core: &mut Core, step: &mut Step) -> Pursued {
    let shows_life = matches!(core.look.server, Server::Booting(_));
    let started = core.work.as_ref().map_or(core.now, |work| work.op.started);
    let waits = Leaf(Some(State::Offline));
    match core.coming_until {
        Some(until) if until > core.now => return waits,
        // It still answers after all that time.
        Some(until) if until > started && shows_life => {
            core.fail(boot_failure(core.look.server, Failure::PowerOffTimeout), step);
        }
        _ if shows_life => {
            core.coming_until = Some(core.now + core.policy.boot_timeout);
            return waits;
        }
        _ => core.done(step),
    }
    Ended
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
    // One whose name cannot be read just now is still the run that is known.
    let (spoilt, known) = (core.is_spoilt(backend), core.memory(backend).run);
    let Some(work) = &mut core.work else {
        return Ended;
    };
    if let (Goal::Restart(_), None, false, true) = (work.op.goal, work.rid_of, work.launched, look.seen.is_up()) {
        // Which run it is to be rid of could not be read when it began.
        work.rid_of = known;
        if work.rid_of.is_none() {
            return unread(core, leaf, step);
        }
    }
    let unwanted = known.is_some() && (work.rid_of == known || spoilt);
    if work.launched && look.seen.is_up() {
        // A run just begun may not have its name yet.
        let first = work.launch.or(look.invocation.map(|i| (i, look.restarts)));
        work.launch = first;
        let other_run = first.zip(look.invocation).is_some_and(|((first, _), now)| first != now);
        let restarted = first.is_some_and(|(_, restarts)| look.restarts > restarts);
        if look.seen == Seen::CrashLoop || other_run || restarted {
            work.failing = Some(Failure::CrashLoop);
            return stop_and_fail(core, leaf, backend, Failure::CrashLoop, step);
        }
    }
    let (launched, no_restore, is_restart) = (work.launched, work.no_restore, work.op.goal == Goal::Restart(backend));
    let is_left = work.leaving.is_some_and(|leaving| leaving.backend == backend && leaving.stops > 0);
    let gives_way = match look.seen {
        Seen::Running | Seen::Loading => unwanted,
        // It was not we who started this run, and it is broken: a new one.
        Seen::CrashLoop | Seen::Sick => !launched,
        _ => false,
    };
    match look.seen {
        Seen::Missing => fail(core, Failure::UnitMissing, step),
        Seen::Stranger => fail(core, Failure::Unavailable, step),
        seen if gives_way => match core.may_not_start().filter(|_| !is_left) {
            None => leave(core, leaf, backend, step),
            // What could not be started again is not stopped.
            Some(_) if seen == Seen::Running && (no_restore || !is_restart) => {
                core.memory_mut(backend).restored = true;
                core.warn(
                    "not_restarted",
                    "the backend goes on without what was saved: it could not be started again now",
                );
                core.done(step);
                Ended
            }
            Some(why) => fail(core, why, step),
        },
        Seen::Running => {
            let policy = core.policy.backend(backend);
            let due = policy.slots
                && policy.restore != RestorePolicy::Never
                && !no_restore
                && look.restorable
                && !look.sleeping
                && (launched || look.unused)
                && core.may_be_restored(backend);
            if due {
                return Leaf(Some(restoring(core, backend)));
            }
            if !launched && !no_restore && policy.restore != RestorePolicy::Never && core.awaits_word(backend) {
                return starting(core, leaf, backend, step);
            }
            if core.policy.ids().any(|id| id != backend && core.may_be_as_it_was(id)) {
                // Nobody knows yet whether it runs alone, but not for long.
                return STAY;
            }
            if launched || no_restore {
                // Whatever came of it: this run has had its chance.
                core.memory_mut(backend).restored = true;
            }
            core.done(step);
            Ended
        }
        Seen::Loading | Seen::Sick | Seen::CrashLoop => starting(core, leaf, backend, step),
        Seen::Lingering if launched => starting(core, leaf, backend, step),
        Seen::Lingering => linger(core, leaf, backend),
        Seen::Unknown => unread(core, leaf, step),
        Seen::Stopped if launched => fail(core, Failure::StartFailed, step),
        Seen::Stopped => {
            if let Some(why) = core.may_not_start() {
                return fail(core, why, step);
            }
            if !core.is_fresh() {
                return STAY;
            }
            // Somebody may have come since the operation began, and nobody asks at rest more than once a minute.
            let began = core.work.as_ref().map_or(core.now, |w| w.op.started);
            let late = core.look.gpu_late;
            let (asked, patience) = if late { (Instant::START, GPU_LATE) } else { (core.look.gpu_at, LAST_LOOK) };
            match last_look(core, asked, began, patience) {
                LastWord::Told if core.foreign => {
                    core.warn("gpu_unread", "nobody could tell who still holds GPU memory");
                }
                LastWord::Told => {}
                LastWord::Awaited => return STAY,
                LastWord::Untold if late => core.warn("gpu_late", "a GPU that was there before has not come up"),
                LastWord::Untold => core.warn("gpu_unread", "nobody could tell in time what else holds GPU memory"),
            }
            let until = Some(core.now + core.policy.backend(backend).start_timeout);
            let order = Some(core.order(Verb::StartUnit(backend)));
            if let Some(work) = &mut core.work {
                work.launched = true;
                work.launch = None;
            }
            Leaf(Some(State::Starting { backend, order, until }))
        }
    }
}

pub(super) fn fail(core: &mut Core, failure: Failure, step: &mut Step) -> Pursued {
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
pub(super) fn starting_deadline(core: &mut Core, leaf: State, step: &mut Step) -> Pursued {
    let State::Starting { backend, until: Some(until), .. } = leaf else {
        return STAY;
    };
    let wanted = matches!(core.work.as_ref().map(|w| w.op.goal), Some(Goal::Run(b) | Goal::Restart(b)) if b == backend);
    if until > core.now || !wanted {
        return STAY;
    }
    if core.look.server == Server::Uncontrolled {
        return fail(core, Failure::ControlUnreachable, step);
    }
    if core.seen(backend) == Seen::Running {
        // It is there. What else is waited for has an end of its own.
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
        return stop_and_fail(core, leaf, backend, failure, step);
    }
    fail(core, failure, step)
}

/// Stops the backend that failed to start, and then says so. One that is healthy after all may have been used already.
fn stop_and_fail(core: &mut Core, leaf: State, backend: BackendId, failure: Failure, step: &mut Step) -> Pursued {
    let seen = core.seen(backend);
    // Where a stranger answers our unit is down.
    if seen.is_stopped() || seen == Seen::Stranger {
        return fail(core, failure, step);
    }
    if !core.is_settled() {
        return STAY;
    }
    if seen == Seen::Unknown {
        return unread(core, leaf, step);
    }
    if core.is_in_service(backend) {
        return leave(core, leaf, backend, step);
    }
    let run = core.memory(backend).run;
    if let Some(work) = &mut core.work
        && !std::mem::replace(&mut work.leaving(backend, run).saved, true)
        && core.policy.backend(backend).slots
    {
        core.warn("save_skipped", "the backend failed to start; there was nothing to save");
    }
    stop(core, leaf, backend)
}

/// Saves or restores while the backend goes on running.
fn slots(core: &mut Core, leaf: State, backend: BackendId, save: bool, step: &mut Step) -> Pursued {
    let Some(work) = &core.work else { return Ended };
    if work.slots_done {
        core.done(step);
        return Ended;
    }
    match core.seen(backend) {
        Seen::Running => {}
        Seen::Unknown => return unread(core, leaf, step),
        _ if save => return fail(core, Failure::SaveFailed, step),
        _ => return fail(core, Failure::RestoreFailed, step),
    }
    let busy = core.look.backend(backend).use_ == Use::Busy;
    if save && busy && work.quiet_until.is_some_and(|until| until > core.now) {
        return STAY;
    }
    if save {
        let order = core.order(Verb::SaveSlots(backend));
        Leaf(Some(State::Saving { backend, order }))
    } else {
        Leaf(Some(restoring(core, backend)))
    }
}

/// The restore is noted before it is sent: never twice for one run.
fn restoring(core: &mut Core, backend: BackendId) -> State {
    core.memory_mut(backend).restored = true;
    let order = core.order(Verb::RestoreSlots(backend));
    State::Restoring { backend, order }
}
