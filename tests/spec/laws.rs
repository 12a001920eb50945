//! The laws: what holds on every edge. Each is a function with a sentence for a name.

use std::time::Duration;

use wechsler::machine::{
    Answer, Cause, Command, Effect, End, Event, Failure, Goal, Held, Instant, Kind, Outcome, Refusal, Seen, Server,
    Use, Verb, WakeCheck,
};

use super::explore::Edge;

/// A law's verdict.
pub type Verdict = Result<(), String>;
/// What checks a law.
pub type Law = fn(&Edge) -> Verdict;

/// All laws, in the order of `states.md`: name, and what checks it.
pub const LAWS: &[(&str, Law)] = &[
    ("every command is answered exactly once, at once", answered_once),
    ("every operation has one beginning and one end", ops_accounted),
    ("an operation under way will have ended in time", op_bounded),
    ("one order at a time", one_order),
    ("every order names the operation that wants it", orders_have_causes),
    ("with no operation wanted, the daemon only looks", only_looks),
    ("nothing is started unless every other backend is proven stopped, by fresh evidence of this boot", start_is_safe),
    ("nothing is started into memory that somebody else holds", start_has_room),
    ("before a stop, the slots are saved or it is recorded why not", saved_before_stop),
    ("a failed save never blocks the way", failed_save_goes_on),
    ("a failed restore never blocks the way", failed_restore_goes_on),
    ("no slots are restored twice into one run", restored_once),
    ("power goes off only when every backend is proven stopped and nothing blocks", power_off_is_safe),
    ("wake packets are sent only inside an operation that wants the server on", wake_is_wanted),
    ("an answer to an older order changes nothing", stale_is_inert),
    ("an early tick changes nothing", early_tick_is_inert),
    ("every deadline lies in the future", deadline_ahead),
    ("nothing falls through by accident", nothing_falls_through),
    ("a stop is taken in every state but while powering off", stop_is_taken),
    ("a cancel ends the operation and orders nothing", cancel_orders_nothing),
    ("silence proves nothing until there is enough of it", silence_needs_patience),
    ("a conflict moves only by resolve or a stop", conflict_waits),
    ("a policy never stops a backend in use", policy_spares_users),
    ("a lost answer is never believed", unknown_not_believed),
    ("no failure is terminal: a failed operation leaves none behind", failure_is_not_terminal),
    ("nothing is started and no power goes off by an old word of who else is there", last_look_is_taken),
    ("an order of an operation that was replaced decides nothing for the one in its place", replaced_decides_nothing),
    (
        "a held server is not powered off, a held GPU not started on, a held-off server not woken, a held backend not stopped",
        holds_are_kept,
    ),
];

fn orders<'a>(e: &'a Edge) -> impl Iterator<Item = Verb> + 'a {
    e.effects.iter().filter_map(|f| match f {
        Effect::Do { what, .. } => Some(*what),
        _ => None,
    })
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn answers(e: &Edge) -> Vec<Answer> {
    e.effects
        .iter()
        .filter_map(|f| if let Effect::Answer { answer, .. } = f { Some(answer.clone()) } else { None })
        .collect()
}

fn ended<'a>(e: &'a Edge) -> impl Iterator<Item = &'a End> + 'a {
    e.effects.iter().filter_map(|f| if let Effect::Ended { end, .. } = f { Some(end) } else { None })
}

fn answered_once(e: &Edge) -> Verdict {
    let expected = usize::from(matches!(e.event, Event::Commanded { .. }));
    let n = answers(e).len();
    ensure(n == expected, || format!("{n} answers"))
}

fn ops_accounted(e: &Edge) -> Verdict {
    let mut open: Vec<u64> = e.before.view().operation.iter().map(|o| o.id.0).collect();
    for effect in e.effects {
        match effect {
            Effect::Began(op) => {
                ensure(!open.contains(&op.id.0), || format!("operation {} begins twice", op.id))?;
                open.push(op.id.0);
            }
            Effect::Ended { op, .. } => {
                ensure(open.contains(&op.0), || format!("operation {op} ends, but is not under way"))?;
                open.retain(|o| o != &op.0);
            }
            _ => {}
        }
    }
    let after: Vec<u64> = e.after.view().operation.iter().map(|o| o.id.0).collect();
    ensure(open == after, || format!("open by its words {open:?}, by its state {after:?}"))
}

fn op_bounded(e: &Edge) -> Verdict {
    match e.after.view().operation {
        Some(op) => ensure(op.until > e.now, || format!("operation {} outlives its bound", op.id)),
        None => Ok(()),
    }
}

fn one_order(e: &Edge) -> Verdict {
    let mutating = orders(e).filter(|v| *v != Verb::Wake).count();
    ensure(mutating <= 1, || format!("{mutating} orders in one step"))?;
    let still = match (e.before.view().order, e.event) {
        (Some((verb, _)), Event::Finished { verb: done, .. }) => verb != *done,
        // An overdue order counts as lost at its deadline.
        (Some(_), _) => e.before.deadline().is_none_or(|d| d > e.now),
        (None, _) => false,
    };
    ensure(!(still && mutating > 0), || "ordered while another order was under way".into())
}

fn orders_have_causes(e: &Edge) -> Verdict {
    for effect in e.effects {
        if let Effect::Do { op, .. } = effect {
            let known = e.after.view().operation.is_some_and(|o| o.id == *op);
            ensure(known, || format!("an order names operation {op}, which is not under way"))?;
        }
    }
    Ok(())
}

fn only_looks(e: &Edge) -> Verdict {
    let p = e.after.policy();
    let policies_off = p.idle_stop_after.is_none()
        && p.idle_power_off_after.is_none()
        && p.backends.iter().all(|b| b.restore != wechsler::machine::RestorePolicy::Auto);
    let wanted = e.before.view().operation.is_some() || matches!(e.event, Event::Commanded { .. });
    ensure(wanted || !policies_off || orders(e).next().is_none(), || "an order out of nothing".into())
}

fn start_is_safe(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::StartUnit(b) = verb else { continue };
        let look = e.after.view().look;
        ensure(matches!(look.server, Server::On { .. }), || "started on a server that does not answer".into())?;
        // A look that took long is older than five seconds when it comes, but none is younger.
        let young = Duration::from_secs(5) + e.after.policy().command_timeout;
        ensure(e.now.since(look.at) <= young, || "started on old evidence".into())?;
        for other in e.after.policy().ids() {
            let seen = look.backend(other).seen;
            ensure(other == b || seen.is_stopped(), || format!("started while the other is {seen:?}"))?;
        }
    }
    Ok(())
}

fn start_has_room(e: &Edge) -> Verdict {
    let starts = orders(e).any(|v| matches!(v, Verb::StartUnit(_)));
    ensure(!(starts && e.after.view().look.foreign_gpu), || "started beside a foreign process".into())
}

fn saved_before_stop(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::StopUnit(b) = verb else { continue };
        let view = e.after.view();
        let (look, run) = (view.look.backend(b), view.look.backend(b).invocation);
        // One that has been healthy in this run may hold something, whatever it says now.
        let served = run.is_some() && view.ready[usize::from(b.0)] == run && look.seen.is_up();
        let spoilt = run.is_some() && view.spoilt[usize::from(b.0)] == run;
        let saves = e.after.policy().backend(b).slots && (served || look.seen == Seen::Running) && !spoilt;
        ensure(!saves || view.save_ended, || "stopped without an ended save or a reason".into())?;
    }
    Ok(())
}

fn failed(e: &Edge, of: fn(&Verb) -> bool) -> bool {
    let Event::Finished { verb, outcome: Outcome::Failed(_) | Outcome::Unknown(_) } = e.event else {
        return false;
    };
    let view = e.before.view();
    let own = view.operation.is_some_and(|o| view.order_op == Some(o.id));
    own && view.order.is_some_and(|(v, what)| v == *verb && of(&what))
}

/// The operation was ended by the slots, not by what else has become of the backend meanwhile.
fn ended_by_slots(end: &End) -> bool {
    matches!(end, End::Failed { failure: Failure::SaveFailed | Failure::RestoreFailed, .. })
}

fn failed_save_goes_on(e: &Edge) -> Verdict {
    let wanted = e.before.view().operation.is_some_and(|o| matches!(o.goal, Goal::Save(..)));
    let blocked = ended(e).any(ended_by_slots);
    ensure(!failed(e, |v| matches!(v, Verb::SaveSlots(_))) || wanted || !blocked, || "a failed save ended it".into())
}

fn failed_restore_goes_on(e: &Edge) -> Verdict {
    let wanted = e.before.view().operation.is_some_and(|o| matches!(o.goal, Goal::Restore(..)));
    let blocked = ended(e).any(ended_by_slots);
    ensure(!failed(e, |v| matches!(v, Verb::RestoreSlots(_))) || wanted || !blocked, || {
        "a failed restore ended it".into()
    })
}

fn restored_once(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::RestoreSlots(b) = verb else {
            continue;
        };
        let run = e.after.view().look.backend(b).invocation;
        let before = e.before.view().restored[usize::from(b.0)];
        let by_hand =
            e.after.view().operation.is_some_and(|o| matches!(o.goal, Goal::Restore(..)) && !o.cause.is_policy());
        ensure(by_hand || run.is_none() || before != run, || "restored twice into one run".into())?;
    }
    Ok(())
}

fn power_off_is_safe(e: &Edge) -> Verdict {
    if !orders(e).any(|v| v == Verb::PowerOff) {
        return Ok(());
    }
    let (view, policy) = (e.after.view(), e.after.policy());
    let stopped = policy.ids().all(|b| view.look.backend(b).seen.is_stopped());
    ensure(stopped, || "powered off under a backend".into())?;
    ensure(!view.look.foreign_gpu && view.look.people != Some(true), || "powered off under somebody".into())?;
    let by_policy = view.operation.is_some_and(|o| o.cause.is_policy());
    ensure(!by_policy || view.look.people.is_some(), || "a policy powered off without knowing who is there".into())?;
    let armed = match policy.wake_check {
        WakeCheck::Require => view.look.wake_armed == Some(true),
        WakeCheck::Warn => view.look.wake_armed != Some(false),
        WakeCheck::Off => true,
    };
    ensure(armed, || "powered off unarmed".into())
}

fn wake_is_wanted(e: &Edge) -> Verdict {
    if !orders(e).any(|v| v == Verb::Wake) {
        return Ok(());
    }
    let goal = e.after.view().operation.map(|o| o.goal);
    let wanted = matches!(goal, Some(Goal::Run(_) | Goal::Restart(_) | Goal::Awake));
    ensure(wanted && e.after.place().kind == Kind::Waking, || format!("packets for {goal:?}"))
}

fn stale_is_inert(e: &Edge) -> Verdict {
    let Event::Finished { verb, .. } = e.event else {
        return Ok(());
    };
    let nothing_due = e.before.deadline().is_none_or(|d| d > e.now);
    let stale = nothing_due && e.before.view().order.is_none_or(|(v, _)| v != *verb);
    ensure(!stale || (e.effects.is_empty() && e.before.place() == e.after.place()), || "it moved".into())
}

fn early_tick_is_inert(e: &Edge) -> Verdict {
    let early = *e.event == Event::Tick && e.before.deadline().is_none_or(|d| d > e.now);
    ensure(!early || (e.effects.is_empty() && e.before.place() == e.after.place()), || "it moved".into())
}

fn deadline_ahead(e: &Edge) -> Verdict {
    ensure(e.after.deadline().is_none_or(|d| d > e.now), || "a deadline in the past".into())
}

fn nothing_falls_through(e: &Edge) -> Verdict {
    let moved = e.before.place() != e.after.place() || !e.effects.is_empty();
    ensure(moved != e.after.ignored().is_some(), || format!("moved: {moved}, ignored: {:?}", e.after.ignored()))
}

fn stop_is_taken(e: &Edge) -> Verdict {
    let Event::Commanded { command: Command::Stop(_), .. } = e.event else {
        return Ok(());
    };
    let kind = e.before.place().kind;
    for answer in answers(e) {
        if let Answer::Refused(why) = answer {
            let may = kind == Kind::PoweringOff || why == Refusal::ControlUnreachable;
            ensure(may, || format!("refused: {why}"))?;
        }
    }
    Ok(())
}

fn cancel_orders_nothing(e: &Edge) -> Verdict {
    let Event::Commanded { command: Command::Cancel, .. } = e.event else {
        return Ok(());
    };
    let cancelled = ended(e).any(|end| *end == End::Cancelled);
    let had = e.before.view().operation.is_some() && e.before.place().kind != Kind::PoweringOff;
    ensure(cancelled == had, || "a cancel must end what is under way".into())?;
    let by_policy = e.after.view().operation.is_some_and(|o| o.cause.is_policy());
    ensure(by_policy || orders(e).next().is_none(), || "a cancel ordered something".into())
}

fn silence_needs_patience(e: &Edge) -> Verdict {
    let newly = e.after.place().kind == Kind::Offline && e.before.place().kind != Kind::Offline;
    ensure(!newly || e.after.view().is_off, || "offline without proof".into())
}

fn conflict_waits(e: &Edge) -> Verdict {
    let waits = e.before.place().kind == Kind::Conflict && e.before.view().operation.is_none();
    let may = matches!(
        e.event,
        Event::Commanded { command: Command::Resolve(..) | Command::Stop(_) | Command::Shutdown(..), .. }
    );
    ensure(!waits || may || e.after.place().kind != Kind::Conflict || orders(e).next().is_none(), || "it moved".into())
}

fn policy_spares_users(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::StopUnit(b) = verb else { continue };
        let view = e.after.view();
        let by_policy = view.operation.is_some_and(|o| o.cause.is_policy() && o.cause != Cause::AutoRestore);
        let busy = view.look.backend(b).use_ == Use::Busy && view.look.backend(b).seen.is_up();
        // A stop that was lost is repeated.
        ensure(!by_policy || !busy || e.before.place().kind == Kind::Stopping, || "stopped in use".into())?;
    }
    Ok(())
}

fn unknown_not_believed(e: &Edge) -> Verdict {
    let Event::Finished { verb, outcome: Outcome::Unknown(_) } = e.event else {
        return Ok(());
    };
    let unit = e.before.view().order.is_some_and(|(v, what)| {
        v == *verb && matches!(what, Verb::StartUnit(_) | Verb::StopUnit(_) | Verb::KillUnit(_))
    });
    let sent = orders(e).any(|v| !matches!(v, Verb::KillUnit(_) | Verb::Wake));
    ensure(!unit || !sent, || "ordered on after a lost answer".into())
}

fn failure_is_not_terminal(e: &Edge) -> Verdict {
    let failed = ended(e).any(|end| matches!(end, End::Failed { failure, .. } if *failure != Failure::Conflict));
    let policy = e.after.view().operation.is_some_and(|o| o.cause.is_policy());
    ensure(!failed || policy || e.after.view().operation.is_none(), || "a failed operation goes on".into())
}

fn last_look_is_taken(e: &Edge) -> Verdict {
    let view = e.after.view();
    let since = e.before.view().last_look;
    let patience = |verb| match verb {
        Verb::StartUnit(_) if view.look.gpu_late => 30,
        _ => 15,
    };
    let waited = |verb| since.is_some_and(|since| e.now.since(since) >= Duration::from_secs(patience(verb)));
    let young = |at: Instant| at > Instant::START && e.now.since(at) <= Duration::from_secs(5);
    for verb in orders(e) {
        let began = view.operation.as_ref().map_or(Instant::START, |o| o.started);
        let (asked, than) = match verb {
            Verb::StartUnit(_) => (view.look.gpu_at, began),
            Verb::PowerOff => (view.look.gpu_at.min(view.look.people_at), Instant::START),
            _ => continue,
        };
        let late = view.look.gpu_late && matches!(verb, Verb::StartUnit(_));
        let on_purpose = since.is_some_and(|since| asked >= since);
        let told = ((young(asked) && asked >= than) || on_purpose) && !late;
        ensure(told || waited(verb), || format!("{verb:?} by a word of {asked}"))?;
    }
    Ok(())
}

fn replaced_decides_nothing(e: &Edge) -> Verdict {
    let (Event::Finished { .. }, Some(op)) = (e.event, e.before.view().operation) else {
        return Ok(());
    };
    let of_another = e.before.view().order_op.is_some_and(|by| by != op.id);
    let by_order = ended(e).any(|end| match end {
        End::Done { .. } => matches!(op.goal, Goal::Save(..) | Goal::Restore(..)),
        End::Failed { failure, .. } => match (failure, op.goal) {
            // What is not there any more can be neither saved nor restored, whoever gave the order.
            (Failure::SaveFailed | Failure::RestoreFailed, Goal::Save(b, _) | Goal::Restore(b, _)) => {
                e.after.view().look.backend(b).seen == Seen::Running
            }
            (failure, _) => matches!(failure, Failure::StartFailed | Failure::NotPermitted),
        },
        End::Cancelled | End::Replaced { .. } => false,
    });
    ensure(!of_another || !by_order, || format!("{:?} was ended by an order that is not its own", op.goal))
}

fn holds_are_kept(e: &Edge) -> Verdict {
    let (after, goal) = (e.after.view(), e.after.view().operation.map(|o| (o.goal, o.cause.is_policy())));
    for verb in orders(e) {
        let held = |what| after.holds.iter().any(|h| h.what == what);
        let broken = match verb {
            Verb::Wake => held(Held::Off),
            Verb::StartUnit(_) => held(Held::Gpu),
            Verb::PowerOff => held(Held::Awake),
            Verb::StopUnit(b) => {
                let by_person = goal == Some((Goal::Stop, false));
                // One that failed to start is stopped for its own good; a stop that was lost is repeated.
                let own = matches!(goal, Some((Goal::Run(g) | Goal::Restart(g), _)) if g == b);
                held(Held::Backend(b)) && !by_person && !own && e.before.place().kind != Kind::Stopping
            }
            _ => false,
        };
        ensure(!broken, || format!("{verb:?} against a hold"))?;
    }
    let Event::Commanded { command, .. } = e.event else {
        return Ok(());
    };
    let view = e.before.view();
    let held = |what| view.holds.iter().any(|h| h.what == what);
    let accepted = answers(e).iter().any(|a| matches!(a, Answer::Accepted { joined: false, .. }));
    let broken = match command {
        Command::Shutdown(wechsler::machine::PowerChoice::PowerOff, _) => held(Held::Awake),
        Command::Wake(_) => held(Held::Off) && view.is_off,
        _ => false,
    };
    ensure(!accepted || !broken, || "taken against a hold".into())
}
