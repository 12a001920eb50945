//! Without an operation observation decides: the leaf that what is seen amounts to, and what is configured to happen by
//! itself.

use super::{
    BackendId, Cause, Goal, Held, Instant, RestorePolicy, Seen, Selection, Server, Use, WakeCheck,
    core::{Backoff, Core, Step},
    rules::State,
};

/// The leaf that what is seen amounts to; `None` while it does not say.
pub(super) fn observed(core: &Core, leaf: State) -> Option<State> {
    match core.look.server {
        Server::NotLooked => return None,
        Server::Silent | Server::Booting(_) => return core.is_off().then_some(State::Offline),
        Server::On { .. } | Server::Uncontrolled => {}
    }
    let going_down = matches!(leaf, State::PoweringOff { until, boot, .. }
        if until > core.now && core.look.boot().is_none_or(|now| now == boot));
    if going_down && core.work.is_none() {
        // Cancelled or failed operations do not call a shutdown back.
        return None;
    }
    let mut up = core.up();
    let (first, second) = (up.next(), up.next());
    match (first, second) {
        (Some(_), Some(_)) => {
            let lasted = core.conflict_at().is_some_and(|at| at <= core.now);
            match leaf {
                State::Conflict => Some(State::Conflict),
                _ if lasted => Some(State::Conflict),
                // Not long enough to be called one; but a leaf that speaks of something else is left.
                State::Running { .. } | State::Starting { .. } | State::Unknown => None,
                _ => first.map(|backend| by_itself(core, backend, leaf)),
            }
        }
        // The other is not gone because it cannot be read.
        (_, None) if leaf == State::Conflict && core.crowded_since.is_some() => None,
        (Some(backend), None) => Some(by_itself(core, backend, leaf)),
        (None, _) => {
            if let Some(backend) = core.first(|s| s == Seen::Lingering) {
                Some(match leaf {
                    // The deadline of an operation that has ended decides nothing for the next; but one that was killed
                    // and is still there is stuck, whoever asks.
                    State::Stopping { backend: b, until: None, .. }
                    | State::Stopping { backend: b, killed: true, .. }
                        if b == backend =>
                    {
                        leaf
                    }
                    _ => State::Stopping { backend, order: None, until: None, killed: false },
                })
            } else if core.policy.ids().all(|id| core.seen(id).is_stopped() || core.seen(id) == Seen::Stranger) {
                Some(State::Idle)
            } else {
                // Some unit cannot be read. What was seen of it before counts for a while.
                let may_be_idle = |id| {
                    let seen = core.seen(id);
                    seen.is_stopped() || seen == Seen::Stranger || core.may_be_as_it_was(id)
                };
                let stays = match leaf {
                    State::Running { backend } | State::Starting { backend, .. } => core.may_be_as_it_was(backend),
                    State::Idle => core.policy.ids().all(may_be_idle),
                    State::Unknown => true,
                    _ => false,
                };
                (!stays).then_some(State::Unknown)
            }
        }
    }
}

/// Something of a server that was told to power off still answers, if only by refusing: sshd goes early, the rest may take
/// minutes. Its time to do so is not over.
pub(super) fn refuses_while_going_down(core: &Core, leaf: State) -> bool {
    matches!(core.look.server, Server::Booting(_))
        && matches!(leaf, State::PoweringOff { until, .. } if until > core.now)
}

/// The leaf for the one backend that is up, whoever started it.
fn by_itself(core: &Core, backend: BackendId, leaf: State) -> State {
    let running = State::Running { backend };
    let memory = core.memory(backend);
    let same_run = core.has_served(backend);
    match core.seen(backend) {
        // Before it counts as ready, what was saved is restored, or it is known that requests came first.
        Seen::Running if core.policy.backend(backend).restore == RestorePolicy::Auto && core.awaits_word(backend) => {
            match leaf {
                State::Unknown | State::Starting { .. } => leaf,
                _ => State::Starting { backend, order: None, until: None },
            }
        }
        Seen::Running => running,
        // A healthy run that does not answer now: a flap until it has lasted.
        Seen::Loading if leaf == running && same_run && memory.unwell < core.policy.misses => running,
        // A broken engine stays where it is, with health "failing": it is up and holds the GPU.
        Seen::Sick if leaf == running => running,
        _ => State::Starting { backend, order: None, until: None },
    }
}

/// Begins what is configured to happen by itself.
pub(super) fn policies(core: &mut Core, leaf: State, step: &mut Step) {
    if core.order.is_some() || core.doubt.is_some() {
        return;
    }
    if let Some((goal, cause, at)) = next_policy(core, leaf)
        && at <= core.now
    {
        core.begin(goal, cause, false, step);
    }
}

/// What would happen by itself from `leaf`, and when, if nothing changes; `None` where something stands in its way.
pub(super) fn next_policy(core: &Core, leaf: State) -> Option<(Goal, Cause, Instant)> {
    if core.work.is_some() || !core.is_on() {
        return None;
    }
    // What is overdue is due now, however long it has been so.
    let after = |backoff: Option<Backoff>, at: Instant| backoff.map_or(at, |b| at.max(b.until)).max(core.now);
    match leaf {
        // Two are a conflict, or about to be one.
        State::Running { backend } if core.up().any(|up| up != backend) => None,
        State::Running { backend } => {
            let look = core.look.backend(backend);
            if restores_by_itself(core, backend) {
                return Some((Goal::Restore(backend, Selection::All), Cause::AutoRestore, core.now));
            }
            if look.use_ != Use::Idle || look.seen != Seen::Running {
                return None;
            }
            let since = core.memory(backend).last_use?;
            let stop = core.idle_stop_at(backend).filter(|_| !core.is_held(Held::Backend(backend)));
            let stop = stop.map(|at| (Goal::Stop, Cause::IdleStop, after(core.backoff, at)));
            let save = checkpoint_due(core, backend, since);
            let goal = Goal::Save(backend, Selection::Checkpoint);
            let save = save.map(|at| (goal, Cause::Checkpoint, after(core.checkpoint_backoff, at)));
            // A stop saves anyway.
            [stop, save].into_iter().flatten().min_by_key(|(.., at)| *at)
        }
        State::Idle => {
            // Whose login or GPU process keeps it from being vacant has no such time.
            let at = core.idle_power_off_at()?;
            let blocked = core.is_held(Held::Awake)
                || !core.nothing_runs()
                || (core.policy.wake_check != WakeCheck::Off && core.look.wake_armed == Some(false))
                || !core.policy.can_wake;
            (!blocked).then_some((Goal::Off, Cause::IdlePowerOff, after(core.backoff, at)))
        }
        _ => None,
    }
}

/// What was saved of `backend` belongs into the run that is seen.
pub(super) fn restores_by_itself(core: &Core, backend: BackendId) -> bool {
    let (look, policy) = (core.look.backend(backend), core.policy.backend(backend));
    policy.slots
        && policy.restore == RestorePolicy::Auto
        && look.restorable
        && look.unused
        && !look.sleeping
        && look.seen == Seen::Running
        && core.may_be_restored(backend)
}

/// When what `backend` holds is to be saved while it goes on running; `since` is the end of its last use.
fn checkpoint_due(core: &Core, backend: BackendId, since: Instant) -> Option<Instant> {
    let (look, policy) = (core.look.backend(backend), core.policy.backend(backend));
    let memory = core.memory(backend);
    let unsaved = policy.slots && look.holds_tokens && !look.sleeping && look.mark.is_some();
    if !unsaved || memory.on_record || core.is_spoilt(backend) {
        return None;
    }
    let new = look.tokens.saturating_sub(memory.saved_tokens);
    if policy.checkpoint_tokens.is_some_and(|most| new >= most) {
        // One moment of quiet is enough.
        return Some(core.now);
    }
    policy.checkpoint_quiet.map(|quiet| since + quiet)
}
