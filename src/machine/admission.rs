//! Which commands are taken, which are so already, and which are refused, and why.

use statig::prelude::*;

use super::{
    Answer, BackendId, Cause, Command, Effect, End, Goal, Held, Hold, HoldSpec, Options, PowerChoice, Refusal,
    RequestId, RestorePolicy, Seen, Selection, Server, WakeCheck,
    core::{Core, MOST_HOLDS, Step},
    observed::restores_by_itself,
    rules::State,
    work::Work,
};

/// What a command comes to.
#[derive(Clone, Copy)]
enum Verdict {
    /// An operation with this goal does it.
    Pursue(Goal, Options),
    /// It is so already.
    AlreadySo,
    /// Not now, or not so.
    Refuse(Refusal),
}
use Verdict::{AlreadySo, Pursue, Refuse};

/// In `conflict`: nothing moves but by `resolve` or a stop.
pub(super) fn in_conflict(core: &mut Core, request: RequestId, command: &Command, step: &mut Step) -> Outcome<State> {
    match command {
        Command::Start(..)
        | Command::Switch(..)
        | Command::Restart(..)
        | Command::SaveSlots(..)
        | Command::RestoreSlots(..) => answer(step, request, Answer::Refused(Refusal::Conflict)),
        Command::Resolve(keep, options) => {
            let verdict = if core.seen(*keep).is_up() {
                guarded(core, Goal::Run(*keep), *options)
            } else {
                Refuse(Refusal::NotUp)
            };
            settle(core, request, verdict, step)
        }
        _ => Super,
    }
}

/// In `powering-off`: what would call it back comes too late; what wants it on waits for proven off, and wakes it then.
pub(super) fn going_down(core: &mut Core, request: RequestId, command: &Command, step: &mut Step) -> Outcome<State> {
    match command {
        Command::Stop(_)
        | Command::Cancel
        | Command::Shutdown(PowerChoice::KeepOn, _)
        | Command::SaveSlots(..)
        | Command::RestoreSlots(..)
        | Command::Resolve(..) => answer(step, request, Answer::Refused(Refusal::TooLate)),
        Command::Wake(options) => wake_again(core, request, Goal::Awake, *options, step),
        Command::Start(backend, options) | Command::Restart(backend, options) => {
            let wanted = backend.unwrap_or(core.policy.default_backend);
            wake_again(core, request, Goal::Run(wanted), *options, step)
        }
        Command::Switch(backend, options) => wake_again(core, request, Goal::Run(*backend), *options, step),
        Command::Shutdown(PowerChoice::PowerOff, _) | Command::Hold(_) | Command::Release(_) => Super,
    }
}

/// A wish for the server on takes the place of the power-off itself, without being asked to replace it.
fn wake_again(core: &mut Core, request: RequestId, goal: Goal, options: Options, step: &mut Step) -> Outcome<State> {
    let going_off = core.work.as_ref().is_none_or(|w| w.op.goal == Goal::Off);
    let options = Options { replace: going_off || options.replace, ..options };
    let verdict = guarded(core, goal, options);
    settle(core, request, verdict, step)
}

/// In the region *off*: there is nothing to stop or to save.
pub(super) fn while_off(core: &mut Core, request: RequestId, command: &Command, step: &mut Step) -> Outcome<State> {
    let idle = core.work.is_none();
    match command {
        // Packets cannot be called back: it is waited for, and shut down.
        Command::Shutdown(PowerChoice::PowerOff, _) if core.may_be_coming_up() => Super,
        Command::Stop(_) | Command::Shutdown(..) if idle => answer(step, request, Answer::AlreadySo),
        Command::SaveSlots(..) | Command::RestoreSlots(..) => {
            answer(step, request, Answer::Refused(Refusal::NotRunning))
        }
        _ => Super,
    }
}

/// Everywhere else.
pub(super) fn anywhere(core: &mut Core, request: RequestId, command: &Command, step: &mut Step) -> Outcome<State> {
    let verdict = match command {
        Command::Cancel => return cancel(core, request, step),
        Command::Hold(spec) => return hold(core, request, spec, step),
        Command::Release(id) => {
            if !core.end_holds(|hold| hold.id == *id, step) {
                return answer(step, request, Answer::Refused(Refusal::NoSuchHold));
            }
            return answer(step, request, Answer::Done { hold: None });
        }
        Command::Start(backend, options) => start(core, *backend, *options),
        Command::Switch(backend, options) => {
            if runs_alone(core, *backend) {
                AlreadySo
            } else {
                guarded(core, Goal::Run(*backend), *options)
            }
        }
        Command::Restart(backend, options) => match backend.or_else(|| core.perhaps_up().next()) {
            _ if backend.is_none() && core.look.server == Server::NotLooked => Refuse(Refusal::Unknown),
            None => Refuse(Refusal::NotRunning),
            Some(b) if core.perhaps_up().any(|o| o != b) => Refuse(Refusal::SwitchNeeded),
            // What boots with the server is no run to be rid of.
            Some(b) if core.is_off() => guarded(core, Goal::Run(b), *options),
            Some(b) => guarded(core, Goal::Restart(b), *options),
        },
        // A stop is taken in every state, and takes the place of whatever is under way.
        Command::Stop(options) => {
            if core.work.is_none() && is_vacant(core) {
                AlreadySo
            } else {
                guarded(core, Goal::Stop, Options { replace: true, ..*options })
            }
        }
        Command::Shutdown(PowerChoice::KeepOn, options) => {
            if core.work.is_none() && is_vacant(core) {
                AlreadySo
            } else {
                guarded(core, Goal::Stop, *options)
            }
        }
        Command::Shutdown(PowerChoice::PowerOff, options) => guarded(core, Goal::Off, *options),
        Command::Wake(options) => {
            if core.is_on() && core.work.is_none() {
                AlreadySo
            } else {
                guarded(core, Goal::Awake, *options)
            }
        }
        Command::Resolve(..) => Refuse(Refusal::NoConflict),
        Command::SaveSlots(which, options) | Command::RestoreSlots(which, options) => {
            let save = matches!(command, Command::SaveSlots(..));
            slots(core, save, *which, *options)
        }
    };
    let wants_it_on = match command {
        Command::Start(..) | Command::Switch(..) | Command::Wake(_) => matches!(verdict, AlreadySo),
        // It is pursued as a stop, which by itself says nothing of the server.
        Command::Shutdown(PowerChoice::KeepOn, _) => !matches!(verdict, Refuse(_)),
        _ => false,
    };
    if wants_it_on {
        core.wanted_at = core.now;
    }
    settle(core, request, verdict, step)
}

fn start(core: &Core, backend: Option<BackendId>, options: Options) -> Verdict {
    let under_way = core.work.as_ref().map(|w| w.op.goal);
    let wanted = if let Some(b) = backend {
        b
    } else {
        // A bare start joins whatever start is under way, or the one that came up by itself.
        match under_way {
            Some(Goal::Run(b) | Goal::Restart(b)) => b,
            _ => core.perhaps_up().next().unwrap_or(core.policy.default_backend),
        }
    };
    if runs_alone(core, wanted) {
        return AlreadySo;
    }
    // Only who gives up on leaving or running another may also take its place.
    let is_to_go = |w: &Work| {
        !w.op.cause.is_policy() && matches!(w.op.goal, Goal::Stop | Goal::Off | Goal::Run(_) | Goal::Restart(_))
    };
    if !core.work.as_ref().is_some_and(is_to_go) && core.perhaps_up().any(|b| b != wanted) {
        return Refuse(Refusal::SwitchNeeded);
    }
    let goal = match under_way {
        Some(goal @ Goal::Restart(b)) if b == wanted => goal,
        _ => Goal::Run(wanted),
    };
    guarded(core, goal, options)
}

fn slots(core: &Core, save: bool, which: Selection, options: Options) -> Verdict {
    let Some(backend) = core.up().find(|b| core.seen(*b) == Seen::Running) else {
        return Refuse(Refusal::NotRunning);
    };
    let look = core.look.backend(backend);
    if !core.policy.backend(backend).slots {
        return Refuse(Refusal::NoSlots);
    }
    if save {
        return guarded(core, Goal::Save(backend, which), options);
    }
    // What is named is looked for by the restore itself.
    if which == Selection::All && !look.restorable {
        return Refuse(Refusal::NothingSaved);
    }
    // Only what is known to be used is refused; the restore itself looks again before it sends anything.
    if which == Selection::All && look.holds_tokens && !look.unused {
        return Refuse(Refusal::InUse);
    }
    guarded(core, Goal::Restore(backend, which), options)
}

fn runs_alone(core: &Core, backend: BackendId) -> bool {
    core.work.is_none() && serves(core, backend) && core.perhaps_up().all(|b| b == backend)
}

/// It is healthy, goes on being so as far as we know, and nothing is about to be put back into it by itself.
fn serves(core: &Core, backend: BackendId) -> bool {
    let is_auto = core.policy.backend(backend).restore == RestorePolicy::Auto;
    let awaits_restore = is_auto && core.awaits_word(backend) || restores_by_itself(core, backend);
    core.seen(backend) == Seen::Running && core.units_are_settled() && !awaits_restore
}

/// The server is on and every backend is proven stopped, or it is off.
fn is_vacant(core: &Core) -> bool {
    core.is_off() || (core.nothing_runs() && core.units_are_settled())
}

/// What stands in the way of a goal in every state.
fn guarded(core: &Core, goal: Goal, options: Options) -> Verdict {
    let off = core.is_off();
    let starts = match goal {
        Goal::Run(b) | Goal::Restart(b) => Some(b),
        _ => None,
    };
    let wakes = starts.is_some() || goal == Goal::Awake;
    if core.look.server == Server::Uncontrolled {
        return Refuse(Refusal::ControlUnreachable);
    }
    if off
        && goal != Goal::Stop
        && matches!(core.look.server, Server::Booting(super::BootPhase::AuthRefused | super::BootPhase::WrongHostKey))
    {
        return Refuse(Refusal::ControlUnreachable);
    }
    if wakes && off {
        if core.is_held(Held::Off) {
            return Refuse(Refusal::Held);
        }
        if !core.policy.can_wake && core.look.server == Server::Silent {
            return Refuse(Refusal::CannotWake);
        }
    }
    if let Some(wanted) = starts {
        let stops_held = core.policy.ids().any(|b| {
            let stopped = b != wanted || goal == Goal::Restart(wanted);
            stopped && core.seen(b).is_up() && core.is_held(Held::Backend(b))
        });
        let joins = core.work.as_ref().is_some_and(|w| w.op.goal == goal);
        let goes_on = goal == Goal::Run(wanted) && core.seen(wanted).is_well();
        let begins_anew = !joins && !goes_on;
        if stops_held || (core.is_held(Held::Gpu) && begins_anew) {
            return Refuse(Refusal::Held);
        }
        if core.is_on() && core.seen(wanted) == Seen::Missing {
            return Refuse(Refusal::UnitMissing);
        }
        if core.is_on() && core.look.foreign_gpu == Some(true) && begins_anew {
            return Refuse(Refusal::Occupied);
        }
    }
    if goal == Goal::Off {
        let held = core.is_held(Held::Awake)
            || core.policy.ids().any(|b| core.seen(b).is_up() && core.is_held(Held::Backend(b)));
        if held {
            return Refuse(Refusal::Held);
        }
        if core.look.foreign_gpu == Some(true) || core.look.people == Some(true) {
            return Refuse(Refusal::Blocked);
        }
        if core.policy.wake_check != WakeCheck::Off && core.look.wake_armed == Some(false) {
            return Refuse(Refusal::WakeUnarmed);
        }
    }
    Pursue(goal, options)
}

fn settle(core: &mut Core, request: RequestId, verdict: Verdict, step: &mut Step) -> Outcome<State> {
    let (goal, options) = match verdict {
        AlreadySo => return answer(step, request, Answer::AlreadySo),
        Refuse(refusal) => return answer(step, request, Answer::Refused(refusal)),
        Pursue(goal, options) => (goal, options),
    };
    if let Some(work) = &mut core.work {
        let op = &mut work.op;
        if op.goal == goal && op.cause.is_policy() && matches!(goal, Goal::Restore(..)) {
            // It may have been sent already, and never is twice: the person's wish takes it over.
            op.cause = Cause::Command(request);
        }
        if op.goal == goal && !op.cause.is_policy() {
            let op = op.id;
            if options.no_drain {
                work.hurry();
            }
            return answer(step, request, Answer::Accepted { op, joined: true });
        }
        // A user's command replaces a policy's operation without asking.
        if !options.replace && !op.cause.is_policy() {
            return answer(step, request, Answer::Refused(Refusal::Busy));
        }
    }
    let op = core.begin(goal, Cause::Command(request), options.no_drain, step);
    answer(step, request, Answer::Accepted { op, joined: false })
}

fn cancel(core: &mut Core, request: RequestId, step: &mut Step) -> Outcome<State> {
    let Some(work) = &core.work else {
        return answer(step, request, Answer::Refused(Refusal::NothingToCancel));
    };
    // A policy would begin it again at once.
    match work.op.goal {
        Goal::Restore(backend, _) => core.memory_mut(backend).declined = true,
        Goal::Run(backend) | Goal::Restart(backend) if work.no_restore => core.memory_mut(backend).declined = true,
        _ => {}
    }
    core.end(End::Cancelled, step);
    answer(step, request, Answer::Done { hold: None })
}

fn hold(core: &mut Core, request: RequestId, spec: &HoldSpec, step: &mut Step) -> Outcome<State> {
    if core.holds.len() >= MOST_HOLDS {
        return answer(step, request, Answer::Refused(Refusal::TooManyHolds));
    }
    let id = core.mint_hold();
    core.holds.push(Hold {
        id,
        what: spec.what,
        until: spec.lasts.map(|lasts| core.now + lasts),
        reason: spec.reason.clone(),
        by: spec.by.clone(),
    });
    step.emit(Effect::HoldsChanged);
    answer(step, request, Answer::Done { hold: Some(id) })
}

fn answer(step: &mut Step, request: RequestId, answer: Answer) -> Outcome<State> {
    step.emit(Effect::Answer { request, answer });
    Handled
}
