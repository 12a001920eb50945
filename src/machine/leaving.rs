//! The way down: drain, save, stop and prove, power off; and the last looks before what cannot be taken back.

use std::time::Duration;

use super::{
    BackendId, Cause, Failure, Goal, Held, Instant, Seen, Use, Verb, WakeCheck,
    core::{Core, FRESH, Step},
    pursuit::{Ended, Leaf, Pursued, STAY, fail, starting_deadline},
    rules::State,
    work::LastLook,
};

/// A backend that never tells its use is not waited for longer than this when a person wants it stopped.
pub(super) const UNKNOWN_USE_GRACE: Duration = Duration::from_secs(3);

/// How long a start or a power-off waits for a last look at what is asked rarely: GPU, people, network card. Without
/// persistence mode the GPU's driver takes 1 to 3 s for each of two questions, and one that hangs is given up after 14 s.
pub(super) const LAST_LOOK: Duration = Duration::from_secs(15);

/// How long a start waits for a GPU that comes up later than the server: what is started without it falls back to the
/// processor, or dies.
pub(super) const GPU_LATE: Duration = Duration::from_secs(30);

/// Stops ordered of one run at most: the second, where the first was lost without a trace.
pub(super) const MOST_STOPS: u8 = 2;

/// Brings every backend but `keep` down; `None` when all are proven stopped.
pub(super) fn leave_all(core: &mut Core, leaf: State, keep: Option<BackendId>, step: &mut Step) -> Option<Pursued> {
    let others = |id: &BackendId| Some(*id) != keep;
    // One that is being left already goes first, so that leaving never alternates.
    let current = core.work.as_ref().and_then(|w| w.leaving).map(|l| l.backend);
    let up = core.up().filter(others).min_by_key(|id| (Some(*id) != current, *id));
    let goal = core.work.as_ref()?.op.goal;
    // A stop does not touch what is not ours; a start or a power-off needs proof that nothing is there.
    let stranger = goal != Goal::Stop && core.policy.ids().filter(others).any(|id| core.seen(id) == Seen::Stranger);
    // What is to run is up already: nothing is to be proven for that.
    let launched = core.work.as_ref().is_some_and(|w| w.launched);
    let is_it = |id| match goal {
        _ if launched => core.seen(id).is_up(),
        Goal::Run(_) => core.seen(id).is_well(),
        _ => false,
    };
    let goes_on = keep.is_some_and(|id| is_it(id) && !core.is_spoilt(id));
    if let Some(backend) = up {
        let leaving = core.work.as_ref().and_then(|w| w.leaving);
        let is_begun = leaving.is_some_and(|leaving| leaving.backend == backend && leaving.stops > 0);
        // Nothing is stopped for what cannot come about.
        if goal != Goal::Stop && !goes_on && !is_begun {
            let why = match keep {
                _ if stranger => Some(Failure::Unavailable),
                Some(backend) => core.cannot_be_started(backend),
                None => cannot_be_powered_off(core),
            };
            if let Some(why) = why {
                return Some(fail(core, why, step));
            }
            if core.first(|seen| seen == Seen::Unknown).is_some() {
                return Some(unread(core, leaf, step));
            }
        }
        return Some(leave(core, leaf, backend, step));
    }
    if let Some(backend) = core.policy.ids().filter(others).find(|id| core.seen(*id) == Seen::Lingering) {
        return Some(linger(core, leaf, backend));
    }
    if goes_on {
        return None;
    }
    if stranger {
        return Some(fail(core, Failure::Unavailable, step));
    }
    if core.policy.ids().filter(others).any(|id| core.seen(id) == Seen::Unknown) {
        return Some(unread(core, leaf, step));
    }
    None
}

/// A unit that matters cannot be read: waits for it as long as for a server that is silent, and no longer than the leaf.
/// What has just been woken has the time of its boot: a unit may be on a host of its own, which comes up later.
pub(super) fn unread(core: &mut Core, leaf: State, step: &mut Step) -> Pursued {
    let patience = core.now + core.policy.silence;
    let patience = if let State::Waking { until, .. } = leaf { patience.max(until) } else { patience };
    let Some(work) = &mut core.work else { return Ended };
    if *work.unread_until.get_or_insert(patience) <= core.now {
        return fail(core, Failure::UnitUnread, step);
    }
    starting_deadline(core, leaf, step)
}

/// What a last look before a start or a power-off has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LastWord {
    /// What was asked is young enough to act on.
    Told,
    /// It is being asked.
    Awaited,
    /// Nobody could tell in time.
    Untold,
}

/// Sees to it that what was last asked at `asked` is young enough to act on, and not older than `than`:
/// [`super::View::last_look`] makes the driver ask again, and is waited for, but no longer than `patience`.
pub(super) fn last_look(core: &mut Core, asked: Instant, than: Instant, patience: Duration) -> LastWord {
    let now = core.now;
    let Some(work) = &mut core.work else { return LastWord::Untold };
    let young = now.since(asked) <= FRESH && asked > Instant::START && asked >= than;
    // Asked for this very purpose: however long the answer took, none can be younger.
    let on_purpose = work.last_look.is_some_and(|look| asked >= look.since);
    if young || on_purpose {
        work.last_look = None;
        return LastWord::Told;
    }
    let since = work.last_look.map_or(now, |l| l.since);
    let until = since + patience;
    if until > now {
        work.last_look = Some(LastLook { since, until });
        return LastWord::Awaited;
    }
    work.last_look = None;
    LastWord::Untold
}

/// The next step of bringing `backend` down: drain, save, stop.
pub(super) fn leave(core: &mut Core, leaf: State, backend: BackendId, step: &mut Step) -> Pursued {
    let look = core.look.backend(backend).clone();
    let policy = core.policy.backend(backend).clone();
    let (calm, last_use, busy) = (core.memory(backend).calm, core.memory(backend).last_use, core.memory(backend).busy);
    let held = core.is_held(Held::Backend(backend));
    let (in_service, is_spoilt) = (core.is_in_service(backend), core.is_spoilt(backend));
    let (has_served, run) = (core.has_served(backend), core.memory(backend).run);
    let now = core.now;
    let Some(work) = &mut core.work else {
        return Ended;
    };
    let by_policy = work.op.cause.is_policy();
    let is_wanted = matches!(work.op.goal, Goal::Run(b) | Goal::Restart(b) if b == backend);
    // A leaf alone does not tell: it may be that of an earlier run, or of what lingered by itself.
    let stopping = matches!(leaf, State::Stopping { backend: b, until: Some(_), .. } if b == backend)
        && work.leaving.is_some_and(|l| l.backend == backend && l.stops > 0);
    if held && !stopping && (by_policy || work.op.goal != Goal::Stop) {
        return fail(core, Failure::Held, step);
    }
    // A policy gives way to whoever uses it again, also if that was over between two looks, or has started it.
    let used = look.use_ == Use::Busy || last_use.is_some_and(|at| at > work.op.started);
    // A crash while it is left is nobody's start, if it shows by its name that it is the same run.
    let left = work.leaving.filter(|l| l.backend == backend).and_then(|l| l.invocation);
    let is_left = left.is_some() && left == look.invocation;
    let is_new = look.seen != Seen::Running && !has_served && !is_wanted && !is_left;
    if by_policy && (used || (is_new && !stopping)) {
        return fail(core, Failure::InUse, step);
    }
    // Nobody waits for a run that a restore has spoilt, but a policy asks whether somebody uses it all the same.
    let may_serve = in_service && (!is_spoilt || (by_policy && !is_wanted));
    if may_serve && !work.leaving(backend, run).drained {
        let leaving = work.leaving(backend, run);
        let until = *leaving.drain_until.get_or_insert(now + policy.drain_timeout);
        let since = match leaf {
            State::Draining { backend: b, since, until: u } if b == backend && u == until => since,
            // Taken over from another operation: what was seen since then still counts.
            State::Draining { backend: b, since, .. } if b == backend => {
                return Leaf(Some(State::Draining { backend, since, until }));
            }
            _ => return Leaf(Some(State::Draining { backend, since: now, until })),
        };
        let idle = look.use_ == Use::Idle && calm >= 2 && look.use_at >= since;
        // Requests that were in flight are, until it is told that they are not.
        let untold = look.use_ == Use::Unknown && !busy && now.since(since) >= UNKNOWN_USE_GRACE && !by_policy;
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
            work.leaving(backend, run).drained = true;
        }
    }
    let Some(work) = &mut core.work else {
        return Ended;
    };
    if in_service && !is_spoilt && policy.slots && !work.leaving(backend, run).saved {
        if look.sleeping {
            work.leaving(backend, run).saved = true;
            core.warn("slot_asleep", "the backend sleeps and has dropped its slots; nothing was saved");
        } else {
            let order = core.order(Verb::SaveSlots(backend));
            return Leaf(Some(State::Saving { backend, order }));
        }
    }
    stop(core, leaf, backend)
}

/// Orders the stop, or waits for the one that was ordered.
pub(super) fn stop(core: &mut Core, leaf: State, backend: BackendId) -> Pursued {
    let under_way = matches!(leaf, State::Stopping { backend: b, until: Some(_), .. } if b == backend);
    let (run, is_up) = (core.memory(backend).run, core.seen(backend).is_up());
    let Some(work) = &mut core.work else { return Ended };
    let stops = &mut work.leaving(backend, run).stops;
    // Ordered already: the deadline decides, unless it is up as if nothing had been ordered.
    if under_way && (!is_up || *stops >= MOST_STOPS) {
        return STAY;
    }
    *stops = stops.saturating_add(1).min(MOST_STOPS);
    let policy = core.policy.backend(backend);
    let until = Some(core.now + core.policy.command_timeout + policy.stop_timeout);
    let order = Some(core.order(Verb::StopUnit(backend)));
    Leaf(Some(State::Stopping { backend, order, until, killed: false }))
}

/// Waits for what is left of a backend that is down by its unit.
pub(super) fn linger(core: &Core, leaf: State, backend: BackendId) -> Pursued {
    match leaf {
        State::Stopping { backend: b, until: Some(_), .. } if b == backend => STAY,
        _ => {
            let policy = core.policy.backend(backend);
            let until = Some(core.now + core.policy.command_timeout + policy.stop_timeout);
            Leaf(Some(State::Stopping { backend, order: None, until, killed: false }))
        }
    }
}

/// What blocks a power-off, as far as can be seen.
fn cannot_be_powered_off(core: &Core) -> Option<Failure> {
    let by_policy = core.work.as_ref().is_some_and(|w| w.op.cause.is_policy());
    let is_used = core.look.foreign_gpu == Some(true) || core.look.people == Some(true);
    if is_used || core.is_held(Held::Awake) || (by_policy && core.foreign) {
        return Some(Failure::Blocked);
    }
    let is_unarmed = core.policy.wake_check != WakeCheck::Off && core.look.wake_armed == Some(false);
    is_unarmed.then_some(Failure::WakeUnarmed)
}

/// All backends are proven stopped: power off, if nothing blocks.
pub(super) fn power_off(core: &mut Core, cause: Cause, step: &mut Step) -> Pursued {
    if let Some(why) = cannot_be_powered_off(core) {
        return fail(core, why, step);
    }
    let now = core.now;
    let (people, armed, check) = (core.look.people, core.look.wake_armed, core.policy.wake_check);
    let asked = core.look.gpu_at.min(core.look.people_at);
    let asked = if check == WakeCheck::Off { asked } else { asked.min(core.look.wake_armed_at) };
    if !core.is_fresh() {
        return STAY;
    }
    let mut people_told = true;
    match last_look(core, asked, Instant::START, LAST_LOOK) {
        LastWord::Told => {}
        LastWord::Awaited => return STAY,
        LastWord::Untold if cause.is_policy() => return fail(core, Failure::Blocked, step),
        LastWord::Untold => {
            people_told = now.since(core.look.people_at) <= FRESH;
            core.warn("use_unknown", "nobody could tell in time whether somebody else uses the server");
        }
    }
    let people = people.filter(|_| people_told);
    if people.is_none() {
        if cause.is_policy() {
            return fail(core, Failure::Blocked, step);
        }
        core.warn("use_unknown", "nobody could tell whether somebody else uses the server");
    }
    if core.foreign {
        core.warn("use_unknown", "nobody could tell whether somebody else still uses the GPU");
    }
    if check == WakeCheck::Require && armed.is_none() {
        return fail(core, Failure::WakeUnarmed, step);
    }
    if check == WakeCheck::Warn && armed.is_none() {
        core.warn("wake_unknown", "nobody could tell whether the network card is armed for the next wake");
    }
    let Some(boot) = core.look.boot() else { return STAY };
    let order = core.order(Verb::PowerOff);
    Leaf(Some(State::PoweringOff { order, boot, until: now + core.policy.power_off_timeout }))
}
