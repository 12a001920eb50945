//! The laws: what holds on every edge. Each is a function with a sentence for a name.

use std::time::Duration;

use wechsler::machine::{
    Answer, BackendId, Cause, Command, Effect, End, Event, Failure, Goal, Held, Instant, Kind, OpId, Operation,
    Outcome, Place, PowerChoice, Refusal, Region, RestorePolicy, Seen, Server, Use, Verb, View, WakeCheck,
};

use super::{
    broken::{self, Broken},
    explore::Edge,
    words::{answers, begun, ended, ensure, orders},
};

pub use super::words::Verdict;

/// A law: what it speaks of, what it demands, and a machine that breaks it.
pub struct Law {
    /// The law, a sentence.
    pub name: &'static str,
    /// It has something to say of this edge.
    pub premise: fn(&Edge) -> bool,
    /// What must be so.
    pub holds: fn(&Edge) -> Verdict,
    /// What it says of a machine that breaks it: one for each of its demands.
    pub broken: &'static [(&'static str, Breaks)],
}

/// What a machine that breaks a law would have done instead; `None` where it does as the true one.
pub type Breaks = fn(&Edge) -> Option<Broken>;

const fn law(
    name: &'static str,
    premise: fn(&Edge) -> bool,
    holds: fn(&Edge) -> Verdict,
    broken: &'static [(&'static str, Breaks)],
) -> Law {
    Law { name, premise, holds, broken }
}

/// All laws, in the order of `states.md`: name, premise, what checks it, and the machines it catches.
pub const LAWS: &[Law] = &[
    law(
        "every command is answered exactly once, at once",
        |e| is_command(e) || answers(e).next().is_some(),
        answered_once,
        &[("answered", broken::drops_answers), ("answered", broken::answers_twice)],
    ),
    law(
        "every operation has one beginning and one end",
        touches_operation,
        ops_accounted,
        &[
            ("begins beside", broken::begins_beside),
            ("ends, but is not under way", broken::ends_twice),
            ("open by its words", broken::forgets_ends),
        ],
    ),
    law(
        "an operation under way will have ended in time, which is set when it begins",
        has_operation,
        op_bounded,
        &[("outlives its bound", broken::outsleeps_bounds), ("was put off", broken::begins_anew)],
    ),
    law(
        "one order at a time",
        has_orders,
        one_order,
        &[("orders in one step", broken::orders_twice), ("was under way", broken::cannot_sit_still)],
    ),
    law(
        "every order names the operation that wants it, and is what that wants",
        has_orders,
        orders_have_causes,
        &[
            ("which is not under way", broken::orders_for_nobody),
            ("is nothing for", broken::powers_off_anyway),
            ("is nothing for", broken::starts_anyway),
            ("is nothing for", broken::cannot_sit_still),
        ],
    ),
    law(
        "with no operation wanted, the daemon only looks",
        is_left_alone,
        only_looks,
        &[("out of nothing", broken::cannot_sit_still), ("out of nothing", broken::begins_idle_stops)],
    ),
    law(
        "nothing begins but by a command that is accepted in that moment, or by what is configured",
        |e| begun(e).next().is_some(),
        beginnings_have_causes,
        &[("which is not so", broken::drops_answers), ("which is not so", broken::begins_idle_stops)],
    ),
    law(
        "what somebody has asked for gives way only to a stop, to who says --replace, and a power-off to a wish",
        replaces,
        replaced_is_asked_for,
        &[("was replaced by", broken::gives_way)],
    ),
    law(
        "nothing is started unless every other backend is proven stopped, by one fresh look at a server that answers",
        starts,
        start_is_safe,
        &[
            ("does not answer", broken::starts_anyway),
            ("old evidence", broken::starts_anyway),
            ("while the other is", broken::starts_beside),
        ],
    ),
    law(
        "nothing is started into memory that somebody else holds",
        starts,
        start_has_room,
        &[("beside a foreign process", broken::squeezes_in)],
    ),
    law(
        "before a stop, the slots are saved or it is recorded why not",
        stops_what_may_hold,
        saved_before_stop,
        &[("without an ended save", broken::stops_unsaved)],
    ),
    law(
        "a failed save never blocks the way",
        save_failed,
        failed_save_goes_on,
        &[("a failed save ended it", broken::despairs_of_saves)],
    ),
    law(
        "a failed restore never blocks the way",
        restore_failed,
        failed_restore_goes_on,
        &[("a failed restore ended it", broken::despairs_of_restores)],
    ),
    law(
        "no slots are restored twice into one run, unless somebody asks for it",
        restores,
        restored_once,
        &[("twice into one run", broken::restores_again)],
    ),
    law(
        "power goes off only when every backend is proven stopped and nothing blocks",
        powers_off,
        power_off_is_safe,
        &[
            ("under a backend", broken::pulls_the_plug),
            ("under somebody", broken::powers_off_anyway),
            ("without knowing who is there", broken::powers_off_anyway),
            ("unarmed", broken::powers_off_anyway),
        ],
    ),
    law(
        "wake packets are sent only inside an operation that wants the server on",
        wakes,
        wake_is_wanted,
        &[("packets for", broken::wakes_what_sleeps)],
    ),
    law(
        "an answer to an older order changes nothing",
        is_stale,
        stale_is_inert,
        &[("an old answer moved it", broken::believes_old_answers)],
    ),
    law(
        "an early tick changes nothing",
        is_early_tick,
        early_tick_is_inert,
        &[("an early tick moved it", broken::acts_on_every_tick)],
    ),
    law(
        "every deadline lies in the future",
        has_deadline,
        deadline_ahead,
        &[("a deadline in the past", broken::sleeps_through)],
    ),
    law(
        "an event that changes nothing says why, one of a closed list of reasons",
        |_| true,
        nothing_falls_through,
        &[("nothing came of it", broken::swallows), ("and it moved", broken::cannot_sit_still)],
    ),
    law(
        "a stop is taken in every state but while powering off, or while only backends answer",
        is_stop,
        stop_is_taken,
        &[("refused: ", broken::is_too_busy_to_stop)],
    ),
    law(
        "a cancel ends the operation, orders nothing and lets nothing of the kind begin again",
        is_cancel,
        cancel_orders_nothing,
        &[
            ("must end what is under way", broken::forgets_ends),
            ("a cancel began something", broken::begins_again),
            ("a cancel ordered something", broken::cannot_sit_still),
        ],
    ),
    law(
        "silence proves nothing until there is enough of it",
        goes_offline,
        silence_needs_patience,
        &[("offline without proof", broken::believes_silence)],
    ),
    law(
        "a conflict moves only by resolve, a stop or a shutdown",
        is_left_in_conflict,
        conflict_waits,
        &[
            ("the conflict was settled", broken::cannot_sit_still),
            ("the conflict was settled", broken::begins_idle_stops),
        ],
    ),
    law(
        "what was done by itself does not begin again in the moment in which it ended",
        policy_ends,
        policy_pauses,
        &[("begins again by itself", broken::begins_again)],
    ),
    law(
        "a policy never stops a backend in use, and begins nothing while two are up",
        |e| policy_stops(e) || begun(e).any(|op| op.cause.is_policy()),
        policy_spares_users,
        &[
            ("while two are up", broken::begins_idle_stops),
            ("stopped in use", broken::stops_users),
            ("stopped what is new", broken::stops_by_policy),
            ("a slot was busy", broken::stops_by_policy),
        ],
    ),
    law(
        "what is said to be so already is so, and nothing that was ordered is about to change it",
        is_already_so,
        already_so_is_true,
        &[
            ("nobody asked", broken::answers_nobody),
            ("an order is under way", broken::agrees_with_everybody),
            ("an operation is under way", broken::agrees_with_everybody),
            ("said to be so in", broken::agrees_with_everybody),
        ],
    ),
    law(
        "what is said to be done is so, and of no other it has just become unknown whether it runs",
        |e| done(e).next().is_some(),
        done_is_true,
        &[("is said to be done", broken::boasts), ("is said to be done", broken::loses_sight)],
    ),
    law(
        "whoever asks for what is on, or calls something off, is taken for its user: it has not been idle before",
        is_asked_for,
        wishes_are_use,
        &[
            ("idle at once", broken::waits_at_the_door),
            ("idle too early", broken::is_deaf_to_wishes),
            ("idle too early", broken::is_deaf_to_ends),
        ],
    ),
    law(
        "what was held, logged in to or used by others has been idle since the end of that, and not before",
        is_given_back,
        given_back_is_not_idle,
        &[("idle at once", broken::waits_at_the_door), ("idle too early", broken::counts_from_before)],
    ),
    law(
        "a lost answer to a start, a stop or a kill is never believed",
        is_lost,
        unknown_not_believed,
        &[("after a lost answer", broken::sends_again), ("is not in doubt", broken::believes_what_was_lost)],
    ),
    law(
        "no failure is terminal: a failed operation leaves none behind",
        has_failed,
        failure_is_not_terminal,
        &[("a failed operation goes on", broken::clings)],
    ),
    law(
        "nothing is started and no power goes off before it was asked anew who is there and if it can be woken, or that is overdue",
        |e| starts(e) || powers_off(e),
        last_look_is_taken,
        &[("by a word of", broken::trusts_old_words), ("by a word of", broken::powers_off_anyway)],
    ),
    law(
        "an order of an operation that was replaced decides nothing for the one in its place",
        is_of_replaced,
        replaced_decides_nothing,
        &[("by an order that is not its own", broken::blames_the_next)],
    ),
    law(
        "a held server is not powered off, a held GPU not started on, a held-off server not woken, a held backend not stopped",
        is_under_hold,
        holds_are_kept,
        &[
            ("PowerOff against a hold", broken::powers_off_anyway),
            ("StartUnit(BackendId(0)) against a hold", broken::starts_anyway),
            ("Wake against a hold", broken::wakes_anyway),
            ("StopUnit(BackendId(0)) against a hold", broken::cannot_sit_still),
            ("taken against a hold", broken::takes_everything),
        ],
    ),
    law(
        "a kill comes only after a stop has outlasted its time",
        kills,
        kill_is_last,
        &[
            ("killed without a stop", broken::kills_anyway),
            ("too soon after the stop", broken::kills_anyway),
            ("not on its way down", broken::kills_anyway),
        ],
    ),
    law(
        "while nobody knows what became of a start, stop or kill, nothing is started, stopped, saved, restored or powered off",
        is_in_doubt,
        doubt_waits,
        &[("an answer is in doubt", broken::starts_anyway)],
    ),
    law(
        "doubt ends by the late answer, by another boot, by proven silence, or when a new session shows the unit settled",
        doubt_ends,
        doubt_is_cleared_up,
        &[("nothing cleared it up", broken::forgets_doubt)],
    ),
];

// ---- premises -------------------------------------------------------------------------------------------------------

fn is_command(e: &Edge) -> bool {
    matches!(e.event, Event::Commanded { .. })
}

fn has_operation(e: &Edge) -> bool {
    e.after.operation().is_some()
}

fn touches_operation(e: &Edge) -> bool {
    let says = |f: &Effect| matches!(f, Effect::Began(_) | Effect::Ended { .. });
    e.before.operation().is_some() || e.after.operation().is_some() || e.effects.iter().any(says)
}

fn has_orders(e: &Edge) -> bool {
    orders(e).next().is_some()
}

fn starts(e: &Edge) -> bool {
    orders(e).any(|v| matches!(v, Verb::StartUnit(_)))
}

fn restores(e: &Edge) -> bool {
    orders(e).any(|v| matches!(v, Verb::RestoreSlots(_)))
}

fn powers_off(e: &Edge) -> bool {
    orders(e).any(|v| v == Verb::PowerOff)
}

fn wakes(e: &Edge) -> bool {
    orders(e).any(|v| v == Verb::Wake)
}

fn kills(e: &Edge) -> bool {
    orders(e).any(|v| matches!(v, Verb::KillUnit(_)))
}

/// Nothing happens by itself, nobody wants anything.
fn is_left_alone(e: &Edge) -> bool {
    let p = e.after.policy();
    let policies_off = p.idle_stop_after.is_none()
        && p.idle_power_off_after.is_none()
        && p.backends
            .iter()
            .all(|b| b.restore != RestorePolicy::Auto && b.checkpoint_tokens.is_none() && b.checkpoint_quiet.is_none());
    policies_off && e.before.operation().is_none() && !is_command(e)
}

fn stops_what_may_hold(e: &Edge) -> bool {
    orders(e).any(|v| matches!(v, Verb::StopUnit(b) if may_hold(e, b)))
}

fn save_failed(e: &Edge) -> bool {
    let wanted = e.before.operation().is_some_and(|o| matches!(o.goal, Goal::Save(..)));
    failed(e, |v| matches!(v, Verb::SaveSlots(_))) && !wanted
}

fn restore_failed(e: &Edge) -> bool {
    let wanted = e.before.operation().is_some_and(|o| matches!(o.goal, Goal::Restore(..)));
    failed(e, |v| matches!(v, Verb::RestoreSlots(_))) && !wanted
}

fn nothing_is_due(e: &Edge) -> bool {
    e.due().is_none_or(|due| due > e.now)
}

fn is_stale(e: &Edge) -> bool {
    let Event::Finished { verb, .. } = e.event else {
        return false;
    };
    let known =
        e.before.doubt().is_some_and(|doubt| doubt.verb == *verb) || e.before.order().is_some_and(|(v, _)| v == *verb);
    nothing_is_due(e) && !known
}

fn is_early_tick(e: &Edge) -> bool {
    *e.event == Event::Tick && nothing_is_due(e)
}

fn has_deadline(e: &Edge) -> bool {
    e.next_due().is_some()
}

fn is_stop(e: &Edge) -> bool {
    matches!(e.event, Event::Commanded { command: Command::Stop(_), .. }) && e.before.place().kind != Kind::PoweringOff
}

fn is_cancel(e: &Edge) -> bool {
    matches!(e.event, Event::Commanded { command: Command::Cancel, .. })
}

/// Somebody asked for what is on and has an answer, or called off what was under way.
fn is_asked_for(e: &Edge) -> bool {
    let is_of_use = |goal| matches!(goal, Goal::Run(_) | Goal::Restart(_) | Goal::Awake | Goal::Restore(..));
    let is_wish = |op: &&Operation| !op.cause.is_policy() && is_of_use(op.goal);
    let wishes: Vec<OpId> = e.before.operation().into_iter().chain(begun(e)).filter(is_wish).map(|op| op.id).collect();
    let has_ended = e.effects.iter().any(|f| matches!(f, Effect::Ended { op, .. } if wishes.contains(op)));
    let is_taken = match e.event {
        Event::Commanded { command: Command::Start(..) | Command::Switch(..) | Command::Wake(_), .. } => {
            is_already_so(e)
        }
        Event::Commanded { command: Command::Shutdown(PowerChoice::KeepOn, _) | Command::Cancel, .. } => {
            answers(e).any(|answer| !matches!(answer, Answer::Refused(_)))
        }
        _ => false,
    };
    has_ended || is_taken
}

fn is_already_so(e: &Edge) -> bool {
    answers(e).any(|answer| *answer == Answer::AlreadySo)
}

/// Somebody was there besides the backends, and is no more.
fn is_given_back(e: &Edge) -> bool {
    let is_there = |view: &View| view.look.foreign_gpu == Some(true) || view.look.people == Some(true);
    was_held(e) || (is_there(e.was()) && !is_there(e.is()))
}

fn was_held(e: &Edge) -> bool {
    let has_left = |held: &Held| !e.is().holds.iter().any(|hold| hold.what == *held);
    e.was().holds.iter().map(|hold| &hold.what).any(has_left)
}

fn goes_offline(e: &Edge) -> bool {
    e.after.place().kind == Kind::Offline && e.before.place().kind != Kind::Offline
}

fn is_left_in_conflict(e: &Edge) -> bool {
    let may = matches!(
        e.event,
        Event::Commanded { command: Command::Resolve(..) | Command::Stop(_) | Command::Shutdown(..), .. }
    );
    e.before.place().kind == Kind::Conflict && e.before.operation().is_none() && !may
}

fn policy_stops(e: &Edge) -> bool {
    let by_policy = e.after.operation().is_some_and(|o| o.cause.is_policy());
    by_policy && orders(e).any(|v| matches!(v, Verb::StopUnit(_)))
}

/// Not because somebody wanted something else. A restore has a law of its own: another run has another.
fn policy_ends(e: &Edge) -> bool {
    let pauses = |was: &&Operation| was.cause.is_policy() && was.cause != Cause::AutoRestore;
    let Some(was) = e.before.operation().filter(pauses) else { return false };
    let is_its =
        |f: &Effect| matches!(f, Effect::Ended { op, end } if *op == was.id && !matches!(end, End::Replaced { .. }));
    e.effects.iter().any(is_its)
}

fn is_lost(e: &Edge) -> bool {
    let Event::Finished { verb, outcome: Outcome::Unknown(_) } = e.event else {
        return false;
    };
    e.before.order().is_some_and(|(v, what)| {
        v == *verb && matches!(what, Verb::StartUnit(_) | Verb::StopUnit(_) | Verb::KillUnit(_))
    })
}

fn has_failed(e: &Edge) -> bool {
    ended(e).any(|end| matches!(end, End::Failed { .. }))
}

fn is_of_replaced(e: &Edge) -> bool {
    let Event::Finished { verb, .. } = e.event else {
        return false;
    };
    let was = e.was();
    was.order.is_some_and(|(v, _)| v == *verb) && was.operation.as_ref().is_some_and(|o| was.order_op != Some(o.id))
}

fn is_under_hold(e: &Edge) -> bool {
    !e.after.holds().is_empty() && (has_orders(e) || is_command(e))
}

fn is_in_doubt(e: &Edge) -> bool {
    e.after.doubt().is_some()
}

fn doubt_ends(e: &Edge) -> bool {
    e.before.doubt().is_some_and(|doubt| e.after.doubt() != Some(doubt))
}

// ---- what they demand -----------------------------------------------------------------------------------------------

/// One that has been healthy in this run may hold something, whatever it says now.
fn may_hold(e: &Edge, b: wechsler::machine::BackendId) -> bool {
    let view = e.is();
    let (look, run) = (view.look.backend(b), view.look.backend(b).invocation);
    let served = run.is_some() && view.backend(b).ready == run && look.seen.is_up();
    let spoilt = run.is_some() && view.backend(b).spoilt == run;
    e.after.policy().backend(b).slots && (served || look.seen == Seen::Running) && !spoilt
}

fn answered_once(e: &Edge) -> Verdict {
    let expected = usize::from(matches!(e.event, Event::Commanded { .. }));
    let n = answers(e).count();
    ensure(n == expected, || format!("answered {n} times"))
}

fn ops_accounted(e: &Edge) -> Verdict {
    let mut open = e.before.operation().map(|o| o.id);
    for effect in e.effects {
        match effect {
            Effect::Began(op) => {
                ensure(open.is_none(), || format!("operation {} begins beside {open:?}", op.id))?;
                open = Some(op.id);
            }
            Effect::Ended { op, .. } => {
                ensure(open == Some(*op), || format!("operation {op} ends, but is not under way"))?;
                open = None;
            }
            _ => {}
        }
    }
    let after = e.after.operation().map(|o| o.id);
    ensure(open == after, || format!("open by its words {open:?}, by its state {after:?}"))
}

fn op_bounded(e: &Edge) -> Verdict {
    let Some(op) = e.after.operation() else { return Ok(()) };
    let was = e.before.operation().filter(|was| was.id == op.id);
    ensure(was.is_none_or(|was| was.until == op.until), || format!("operation {} was put off", op.id))?;
    ensure(op.until > e.now, || format!("operation {} outlives its bound", op.id))
}

fn one_order(e: &Edge) -> Verdict {
    let mutating = orders(e).filter(|v| *v != Verb::Wake).count();
    ensure(mutating <= 1, || format!("{mutating} orders in one step"))?;
    let still = e.before.order().is_some_and(|(verb, _)| {
        let is_done = matches!(e.event, Event::Finished { verb: done, .. } if *done == verb);
        // An overdue order counts as lost at its deadline.
        !is_done && nothing_is_due(e)
    });
    ensure(!(still && mutating > 0), || "ordered while another order was under way".into())
}

fn orders_have_causes(e: &Edge) -> Verdict {
    for effect in e.effects {
        if let Effect::Do { op, .. } = effect {
            let known = e.after.operation().is_some_and(|o| o.id == *op);
            ensure(known, || format!("an order names operation {op}, which is not under way"))?;
        }
    }
    let Some(goal) = e.after.operation().map(|o| o.goal) else { return Ok(()) };
    for verb in orders(e) {
        ensure(is_for(verb, goal), || format!("{verb:?} is nothing for {goal:?}"))?;
    }
    Ok(())
}

/// Who wants the goal may need the order on the way.
fn is_for(verb: Verb, goal: Goal) -> bool {
    let leaves = matches!(goal, Goal::Run(_) | Goal::Restart(_) | Goal::Stop | Goal::Off);
    match verb {
        Verb::Wake => matches!(goal, Goal::Run(_) | Goal::Restart(_) | Goal::Awake),
        Verb::StartUnit(b) => goal == Goal::Run(b) || goal == Goal::Restart(b),
        Verb::StopUnit(_) | Verb::KillUnit(_) => leaves,
        Verb::SaveSlots(b) => leaves || matches!(goal, Goal::Save(of, _) if of == b),
        Verb::RestoreSlots(b) => {
            matches!(goal, Goal::Run(of) | Goal::Restart(of) | Goal::Restore(of, _) if of == b)
        }
        Verb::PowerOff => goal == Goal::Off,
    }
}

fn beginnings_have_causes(e: &Edge) -> Verdict {
    let policy = e.after.policy();
    for op in begun(e) {
        let is_caused = match (op.cause, op.goal) {
            (Cause::Command(request), _) => {
                e.effects.contains(&Effect::Answer { request, answer: Answer::Accepted { op: op.id, joined: false } })
            }
            (Cause::IdleStop, Goal::Stop) => policy.idle_stop_after.is_some(),
            (Cause::IdlePowerOff, Goal::Off) => policy.idle_power_off_after.is_some(),
            (Cause::AutoRestore, Goal::Restore(b, _)) => policy.backend(b).restore == RestorePolicy::Auto,
            (Cause::Checkpoint, Goal::Save(b, _)) => {
                let b = policy.backend(b);
                b.checkpoint_tokens.is_some() || b.checkpoint_quiet.is_some()
            }
            _ => false,
        };
        ensure(is_caused, || format!("{:?} begins because of {:?}, which is not so", op.goal, op.cause))?;
    }
    Ok(())
}

fn replaces(e: &Edge) -> bool {
    ended(e).any(|end| matches!(end, End::Replaced { .. }))
}

fn replaced_is_asked_for(e: &Edge) -> Verdict {
    let Some(was) = e.before.operation().filter(|_| replaces(e)) else { return Ok(()) };
    let gives_way = was.cause.is_policy()
        || match e.event {
            Event::Commanded { command: Command::Stop(_), .. } => true,
            Event::Commanded { command, .. } => {
                let calls_back = matches!(
                    command,
                    Command::Start(..) | Command::Switch(..) | Command::Restart(..) | Command::Wake(_)
                );
                let is_going_off = e.before.place().kind == Kind::PoweringOff && was.goal == Goal::Off;
                command.options().replace || (calls_back && is_going_off)
            }
            _ => false,
        };
    ensure(gives_way, || format!("{:?} was replaced by {:?}", was.goal, e.event))
}

fn only_looks(e: &Edge) -> Verdict {
    let moves = has_orders(e) || begun(e).next().is_some();
    ensure(!is_left_alone(e) || !moves, || "an order out of nothing".into())
}

fn start_is_safe(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::StartUnit(b) = verb else { continue };
        let look = &e.after.look();
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
    ensure(!(starts && e.after.look().foreign_gpu == Some(true)), || "started beside a foreign process".into())
}

fn saved_before_stop(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::StopUnit(b) = verb else { continue };
        ensure(!may_hold(e, b) || e.is().save_ended, || "stopped without an ended save or a reason".into())?;
    }
    Ok(())
}

fn failed(e: &Edge, of: fn(&Verb) -> bool) -> bool {
    let Event::Finished { verb, outcome: Outcome::Failed(_) | Outcome::Unknown(_) } = e.event else {
        return false;
    };
    let view = e.was();
    let own = view.operation.as_ref().is_some_and(|o| view.order_op == Some(o.id));
    own && view.order.is_some_and(|(v, what)| v == *verb && of(&what))
}

/// The operation was ended by the slots, not by what else has become of the backend meanwhile.
fn ended_by_slots(end: &End) -> bool {
    matches!(end, End::Failed { failure: Failure::SaveFailed | Failure::RestoreFailed, .. })
}

fn failed_save_goes_on(e: &Edge) -> Verdict {
    ensure(!save_failed(e) || !ended(e).any(ended_by_slots), || "a failed save ended it".into())
}

fn failed_restore_goes_on(e: &Edge) -> Verdict {
    ensure(!restore_failed(e) || !ended(e).any(ended_by_slots), || "a failed restore ended it".into())
}

fn restored_once(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::RestoreSlots(b) = verb else {
            continue;
        };
        let run = e.after.look().backend(b).invocation;
        let before = e.was().backend(b).restored;
        let by_hand = e.after.operation().is_some_and(|o| matches!(o.goal, Goal::Restore(..)) && !o.cause.is_policy());
        ensure(by_hand || run.is_none() || before != run, || "restored twice into one run".into())?;
    }
    Ok(())
}

fn power_off_is_safe(e: &Edge) -> Verdict {
    if !orders(e).any(|v| v == Verb::PowerOff) {
        return Ok(());
    }
    let (view, policy) = (e.is(), e.after.policy());
    let stopped = policy.ids().all(|b| view.look.backend(b).seen.is_stopped());
    ensure(stopped, || "powered off under a backend".into())?;
    ensure(view.look.foreign_gpu != Some(true) && view.look.people != Some(true), || {
        "powered off under somebody".into()
    })?;
    let by_policy = view.operation.as_ref().is_some_and(|o| o.cause.is_policy());
    ensure(!by_policy || (view.look.people.is_some() && !view.foreign_untold), || {
        "a policy powered off without knowing who is there".into()
    })?;
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
    let goal = e.after.operation().map(|o| o.goal);
    let wanted = matches!(goal, Some(Goal::Run(_) | Goal::Restart(_) | Goal::Awake));
    ensure(wanted && e.after.place().kind == Kind::Waking, || format!("packets for {goal:?}"))
}

fn stale_is_inert(e: &Edge) -> Verdict {
    if !is_stale(e) {
        return Ok(());
    }
    let mut untold = e.before.clone();
    let _ = untold.step(e.now, &Event::Tick);
    ensure(e.effects.is_empty() && untold.key() == e.keys()[1], || "an old answer moved it".into())
}

/// All that shows of what is known and under way is the same. What follows from the time alone may differ.
fn early_tick_is_inert(e: &Edge) -> Verdict {
    if !is_early_tick(e) {
        return Ok(());
    }
    let (was, is) = (e.was(), e.is());
    let under_way = |v: &View| (v.place, v.since, v.order, v.order_op, v.doubt, v.save_ended, v.boot, v.last_look);
    let knows_the_same =
        (&was.operation, &was.look, &was.backends, &was.holds) == (&is.operation, &is.look, &is.backends, &is.holds);
    ensure(e.effects.is_empty() && under_way(was) == under_way(is) && knows_the_same, || {
        "an early tick moved it".into()
    })
}

fn deadline_ahead(e: &Edge) -> Verdict {
    ensure(e.next_due().is_none_or(|d| d > e.now), || "a deadline in the past".into())
}

fn nothing_falls_through(e: &Edge) -> Verdict {
    let moved = e.before.place() != e.after.place() || !e.effects.is_empty();
    ensure(moved || e.after.ignored().is_some(), || "nothing came of it, and nothing says why".into())?;
    ensure(!moved || e.after.ignored().is_none(), || format!("{:?}, and it moved", e.after.ignored()))
}

fn stop_is_taken(e: &Edge) -> Verdict {
    if !is_stop(e) {
        return Ok(());
    }
    for answer in answers(e) {
        if let Answer::Refused(why) = answer {
            let is_out_of_reach = e.after.look().server == Server::Uncontrolled;
            ensure(is_out_of_reach && *why == Refusal::ControlUnreachable, || format!("refused: {why}"))?;
        }
    }
    Ok(())
}

fn cancel_orders_nothing(e: &Edge) -> Verdict {
    let Event::Commanded { command: Command::Cancel, .. } = e.event else {
        return Ok(());
    };
    let cancelled = ended(e).any(|end| *end == End::Cancelled);
    let had = e.before.operation().is_some() && e.before.place().kind != Kind::PoweringOff;
    // What is overdue comes first.
    let is_due = !nothing_is_due(e);
    let has_ended = cancelled || (is_due && ended(e).next().is_some());
    ensure(if had { has_ended } else { !cancelled }, || "a cancel must end what is under way".into())?;
    // What is due by itself is no matter of the cancel, unless it was that which was cancelled.
    let is_other = |now: &Operation| {
        let of_cancelled = |was: &Operation| {
            let restores_it = matches!(was.goal, Goal::Restore(..)) && matches!(now.goal, Goal::Restore(..));
            was.cause == now.cause || restores_it
        };
        now.cause.is_policy() && e.before.operation().map_or(is_due, |was| !of_cancelled(was))
    };
    ensure(begun(e).all(is_other), || "a cancel began something".into())?;
    // One that comes too late holds up nothing that is due.
    let goes_on = (!had && is_due) || begun(e).next().is_some();
    ensure(goes_on || orders(e).next().is_none(), || "a cancel ordered something".into())
}

fn silence_needs_patience(e: &Edge) -> Verdict {
    let (was, policy) = (e.was(), e.before.policy());
    let silent = |server| matches!(server, Server::Silent | Server::Booting(_));
    // Out of a leaf that speaks of a server that was up: it was silent before this look already.
    let first = policy.misses > 1 && was.boot.is_some() && !silent(was.look.server);
    ensure(!goes_offline(e) || (e.is().is_off && !first), || "offline without proof".into())
}

fn conflict_waits(e: &Edge) -> Verdict {
    // When it is over by itself, a policy may go on.
    let is_over = e.after.place().kind != Kind::Conflict;
    let by_policy = e.after.operation().is_some_and(|o| o.cause.is_policy());
    // Who only wants it on moves nothing.
    let moves = has_orders(e) || begun(e).any(|op| op.goal != Goal::Awake);
    ensure(!is_left_in_conflict(e) || !moves || (is_over && by_policy), || "the conflict was settled".into())
}

fn policy_pauses(e: &Edge) -> Verdict {
    let Some(was) = e.before.operation().filter(|_| policy_ends(e)) else { return Ok(()) };
    let again = begun(e).any(|op| (op.goal, op.cause) == (was.goal, was.cause));
    ensure(!again, || format!("{:?} begins again by itself", was.goal))
}

fn policy_spares_users(e: &Edge) -> Verdict {
    let is_alone = e.after.look().backends.iter().filter(|backend| backend.seen.is_up()).count() <= 1;
    ensure(is_alone || !begun(e).any(|op| op.cause.is_policy()), || "it began while two are up".into())?;
    for verb in orders(e) {
        let Verb::StopUnit(b) = verb else { continue };
        let (view, was) = (e.is(), e.was());
        let place = usize::from(b.0);
        let (look, run) = (view.look.backend(b), &view.backends[place]);
        let own = matches!(view.operation.as_ref().map(|o| o.goal), Some(Goal::Run(g) | Goal::Restart(g)) if g == b);
        let by_policy = view.operation.as_ref().is_some_and(|o| o.cause.is_policy());
        // What cannot be told counts as use, and so does what somebody has just started.
        let known = was.backends[place].run.is_some() && was.backends[place].run == run.run;
        let has_served = run.ready.is_some() || (known && was.backends[place].ready.is_some());
        // A crash in its save is nobody's start.
        let is_saved = e.before.place() == (Place { kind: Kind::Saving, backend: Some(b) });
        let has_crashed = look.seen == Seen::CrashLoop && known && is_saved;
        let is_new = look.seen != Seen::Running && !has_served && !has_crashed;
        // A stop that was lost is repeated; where it had no name nothing says that it is another's now.
        let is_same = known || was.backends[place].run.is_none();
        let repeated = e.before.place() == (Place { kind: Kind::Stopping, backend: Some(b) }) && is_same;
        let cannot_answer = repeated && look.seen != Seen::Running;
        let is_used = look.use_ == Use::Busy || (!own && !cannot_answer && look.use_ != Use::Idle);
        ensure(!by_policy || !is_used, || "stopped in use".into())?;
        ensure(!by_policy || own || !is_new || repeated, || "stopped what is new".into())?;
        let busy = matches!(e.event, Event::Finished { outcome: Outcome::Succeeded(w), .. }
            if w.iter().any(|w| w.code == "slot_busy"));
        ensure(!by_policy || !busy, || "stopped although a slot was busy".into())?;
    }
    Ok(())
}

fn already_so_is_true(e: &Edge) -> Verdict {
    if !is_already_so(e) {
        return Ok(());
    }
    ensure(is_command(e), || "nobody asked".into())?;
    let Event::Commanded { command, .. } = e.event else { return Ok(()) };
    let is_off = e.after.place().kind.region() == Region::Off;
    let order = e.is().order.map(|(_, verb)| verb);
    let of_units = !matches!(order, None | Some(Verb::SaveSlots(_) | Verb::RestoreSlots(_)));
    let changes = match command {
        Command::Wake(_) => order == Some(Verb::PowerOff),
        Command::Stop(_) if order == Some(Verb::PowerOff) => begun(e).all(|op| op.goal != Goal::Off),
        _ => of_units || e.is().doubt.is_some(),
    };
    ensure(is_off || !changes, || "an order is under way".into())?;
    // A checkpoint may begin in that moment, and what is stopped may be powered off.
    let fits = |op: &Operation| match op.goal {
        Goal::Save(..) => true,
        Goal::Off => matches!(command, Command::Stop(_)) && op.cause.is_policy(),
        _ => false,
    };
    let begins = |op: &Operation| fits(op) && begun(e).any(|begun| begun.id == op.id);
    ensure(e.after.operation().is_none_or(begins), || "an operation is under way".into())?;
    let (place, look) = (e.after.place(), e.after.look());
    let runs = |b: BackendId| {
        let is_alone = e.after.policy().ids().all(|id| (id == b) == look.backend(id).seen.is_up());
        // What is only saved goes on running.
        let is_saved = e.after.operation().is_some_and(|op| matches!(op.goal, Goal::Save(..)));
        let is_there = place.kind == Kind::Running || (place.kind == Kind::Saving && is_saved);
        is_there && place.backend == Some(b) && look.backend(b).seen == Seen::Running && is_alone
    };
    let is_so = match command {
        Command::Start(Some(b), _) | Command::Switch(b, _) => runs(*b),
        Command::Start(None, _) => e.after.policy().ids().any(runs),
        Command::Wake(_) => matches!(look.server, Server::On { .. }),
        Command::Shutdown(PowerChoice::PowerOff, _) => {
            let shows_life = matches!(look.server, Server::Booting(_));
            is_off && !shows_life && e.is().coming_until.is_none_or(|until| until <= e.now)
        }
        _ => is_off || look.backends.iter().all(|backend| backend.seen.is_stopped()),
    };
    ensure(is_so, || format!("said to be so in {place:?}"))
}

/// The operations that end as done.
fn done<'a>(e: &'a Edge) -> impl Iterator<Item = &'a Operation> + 'a {
    let done = e.effects.iter().filter_map(|f| match f {
        Effect::Ended { op, end: End::Done { .. } } => Some(*op),
        _ => None,
    });
    done.filter_map(|id| begun(e).chain(e.before.operation()).find(|op| op.id == id))
}

fn done_is_true(e: &Edge) -> Verdict {
    let (was, look) = (e.before.look(), e.after.look());
    let is_down = |id: BackendId| match look.backend(id).seen {
        Seen::Stopped | Seen::Missing | Seen::Stranger => true,
        Seen::Unknown => !was.backend(id).seen.is_up() && was.backend(id).seen != Seen::Lingering,
        _ => false,
    };
    for op in done(e) {
        let is_so = match op.goal {
            Goal::Run(b) | Goal::Restart(b) => {
                look.backend(b).seen == Seen::Running && e.after.policy().ids().all(|id| id == b || is_down(id))
            }
            // Packets cannot be called back; nothing will be started.
            Goal::Stop => e.is().is_off || e.before.place().kind == Kind::Waking || e.after.policy().ids().all(is_down),
            // It went down, and came back by itself.
            Goal::Off => e.is().is_off || e.before.place().kind == Kind::PoweringOff,
            Goal::Awake => matches!(look.server, Server::On { .. }),
            // As its order ended.
            Goal::Save(..) | Goal::Restore(..) => true,
        };
        ensure(is_so, || format!("{:?} is said to be done in {:?}", op.goal, e.after.place()))?;
    }
    Ok(())
}

/// What is done by itself for want of use.
const IDLE_RULES: &[Cause] = &[Cause::IdleStop, Cause::IdlePowerOff];

fn wishes_are_use(e: &Edge) -> Verdict {
    if is_asked_for(e) { is_not_idle_yet(e, IDLE_RULES) } else { Ok(()) }
}

/// Nothing is stopped or powered off for having been idle until now.
fn is_not_idle_yet(e: &Edge, rules: &[Cause]) -> Verdict {
    let policy = e.after.policy();
    ensure(begun(e).all(|op| !rules.contains(&op.cause)), || "taken for idle at once".into())?;
    let Some(next) = e.is().next_action.filter(|next| rules.contains(&next.cause)) else { return Ok(()) };
    let after = if next.cause == Cause::IdleStop { policy.idle_stop_after } else { policy.idle_power_off_after };
    ensure(after.is_some_and(|after| next.at >= e.now + after), || format!("taken for idle too early: {next:?}"))
}

fn given_back_is_not_idle(e: &Edge) -> Verdict {
    // Who is logged in, or uses the GPU for something else, uses no backend.
    let rules: &[Cause] = if was_held(e) { IDLE_RULES } else { &[Cause::IdlePowerOff] };
    if is_given_back(e) { is_not_idle_yet(e, rules) } else { Ok(()) }
}

fn unknown_not_believed(e: &Edge) -> Verdict {
    let sent = orders(e).any(|v| !matches!(v, Verb::KillUnit(_) | Verb::Wake));
    ensure(!is_lost(e) || !sent, || "ordered on after a lost answer".into())?;
    let Event::Finished { verb, .. } = e.event else { return Ok(()) };
    ensure(!is_lost(e) || e.after.doubt().is_some_and(|doubt| doubt.verb == *verb), || {
        "what was lost is not in doubt".into()
    })
}

fn failure_is_not_terminal(e: &Edge) -> Verdict {
    let failed = ended(e).any(|end| matches!(end, End::Failed { failure, .. } if *failure != Failure::Conflict));
    let is_another = |op: &Operation| begun(e).any(|begun| begun.id == op.id);
    ensure(!failed || e.after.operation().is_none_or(is_another), || "a failed operation goes on".into())
}

fn last_look_is_taken(e: &Edge) -> Verdict {
    let look = e.after.look();
    let since = e.was().last_look;
    let patience = |verb| match verb {
        Verb::StartUnit(_) if look.gpu_late => 30,
        _ => 15,
    };
    let waited = |verb| since.is_some_and(|since| e.now.since(since) >= Duration::from_secs(patience(verb)));
    let young = |at: Instant| at > Instant::START && e.now.since(at) <= Duration::from_secs(5);
    for verb in orders(e) {
        let began = e.after.operation().map_or(Instant::START, |o| o.started);
        let (asked, than) = match verb {
            Verb::StartUnit(_) => (look.gpu_at, began),
            Verb::PowerOff => {
                let who = look.gpu_at.min(look.people_at);
                let is_checked = e.after.policy().wake_check != WakeCheck::Off;
                (if is_checked { who.min(look.wake_armed_at) } else { who }, Instant::START)
            }
            _ => continue,
        };
        let late = look.gpu_late && matches!(verb, Verb::StartUnit(_));
        let on_purpose = since.is_some_and(|since| asked >= since);
        let told = ((young(asked) && asked >= than) || on_purpose) && !late;
        ensure(told || waited(verb), || format!("{verb:?} by a word of {asked}"))?;
    }
    Ok(())
}

fn replaced_decides_nothing(e: &Edge) -> Verdict {
    let (Event::Finished { .. }, Some(op)) = (e.event, e.before.operation()) else {
        return Ok(());
    };
    let of_another = e.was().order_op.is_some_and(|by| by != op.id);
    let by_order = ended(e).any(|end| match end {
        End::Done { .. } => matches!(op.goal, Goal::Save(..) | Goal::Restore(..)),
        End::Failed { failure, .. } => match (failure, op.goal) {
            // What is not there any more can be neither saved nor restored, whoever gave the order.
            (Failure::SaveFailed | Failure::RestoreFailed, Goal::Save(b, _) | Goal::Restore(b, _)) => {
                e.after.look().backend(b).seen == Seen::Running
            }
            (failure, _) => matches!(failure, Failure::StartFailed | Failure::NotPermitted),
        },
        End::Cancelled | End::Replaced { .. } => false,
    });
    ensure(!of_another || !by_order, || format!("{:?} was ended by an order that is not its own", op.goal))
}

fn holds_are_kept(e: &Edge) -> Verdict {
    let goal = e.after.operation().map(|o| (o.goal, o.cause.is_policy()));
    for verb in orders(e) {
        let held = |what| e.after.holds().iter().any(|h| h.what == what);
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
    let view = e.was();
    let held = |what| view.holds.iter().any(|h| h.what == what);
    let accepted = answers(e).any(|a| matches!(a, Answer::Accepted { joined: false, .. }));
    let broken = match command {
        Command::Shutdown(PowerChoice::PowerOff, _) => held(Held::Awake),
        Command::Wake(_) => held(Held::Off) && view.is_off,
        _ => false,
    };
    ensure(!accepted || !broken, || "taken against a hold".into())
}

/// That it comes once is seen in storms: a step does not show how often it was done.
fn kill_is_last(e: &Edge) -> Verdict {
    for verb in orders(e) {
        let Verb::KillUnit(b) = verb else { continue };
        let was = e.before.place();
        ensure(was.kind == Kind::Stopping && was.backend == Some(b), || "killed without a stop".into())?;
        let took = e.now.since(e.was().since);
        ensure(took >= e.after.policy().backend(b).stop_timeout, || {
            format!("killed {took:?}, too soon after the stop")
        })?;
        ensure(e.after.look().backend(b).seen == Seen::Lingering, || "killed what is not on its way down".into())?;
    }
    Ok(())
}

fn doubt_waits(e: &Edge) -> Verdict {
    let sent = orders(e).any(|v| !matches!(v, Verb::KillUnit(_) | Verb::Wake));
    ensure(!is_in_doubt(e) || !sent, || "ordered while an answer is in doubt".into())
}

fn doubt_is_cleared_up(e: &Edge) -> Verdict {
    let Some(doubt) = e.before.doubt().filter(|_| doubt_ends(e)) else { return Ok(()) };
    let is_answered = matches!(e.event, Event::Finished { verb, outcome } if *verb == doubt.verb && !matches!(outcome, Outcome::Unknown(_)));
    // A kill is sent in doubt of the stop, and may be lost, too.
    let is_another = e.before.order().is_some_and(|(verb, _)| e.after.doubt().is_some_and(|now| now.verb == verb));
    let look = e.after.look();
    let is_seen = match look.server {
        Server::On { boot, .. } if doubt.boot != Some(boot) => true,
        Server::On { session, .. } => {
            let is_settled = !matches!(look.backend(doubt.backend).seen, Seen::Lingering | Seen::Unknown);
            is_settled && doubt.session.is_none_or(|given| session > given)
        }
        _ => e.is().is_off,
    };
    ensure(is_answered || is_another || is_seen, || format!("nothing cleared it up: {doubt:?}"))
}
