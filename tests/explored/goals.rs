//! No state is a trap: from everywhere every goal is reached in a kind world, in a time that follows from the policy.
//!
//! In a kind world orders succeed, units do what they were told, nobody interferes, holds are released, and a conflict is
//! resolved by a person, who switches on what cannot be woken, too.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use wechsler::machine::{
    Answer, BackendId, Command, Effect, End, Event, Goal, Instant, Invocation, Kind, Machine, Options, Outcome, Place,
    Policy, PowerChoice, Refusal, RequestId, Seen, Selection, Server, Verb, View,
};

use crate::{
    EXPLORED,
    spec::{explore::World, sample},
};

/// An order's answer, and a look, take so long.
const TRIP: Duration = Duration::from_secs(2);

/// What was tried in a world, or what is wrong with it.
pub struct Tried {
    reached: Result<(), String>,
    /// How many operations were asked for.
    asked: Result<usize, String>,
}

/// Goes for every goal from each of `states`, and asks for what leaves a backend running.
pub fn try_all(world: &World, states: &[Machine]) -> Tried {
    let policy = (world.policy)();
    let named = |why| format!("{}: {why}", world.name);
    Tried { reached: reach_all(&policy, states).map_err(named), asked: ask_for_all(&policy, states).map_err(named) }
}

fn tried() -> impl Iterator<Item = &'static Tried> {
    EXPLORED.iter().map(|world| &world.goals)
}

#[test]
fn from_every_state_every_goal_is_reached_in_a_kind_world_within_a_bound_of_the_policy() {
    let traps: Vec<&String> = tried().filter_map(|world| world.reached.as_ref().err()).collect();
    assert!(traps.is_empty(), "{traps:#?}");
}

#[test]
fn whatever_runs_is_restarted_saved_and_restored_when_that_is_asked_for_in_a_kind_world() {
    let wrong: Vec<&String> = tried().filter_map(|world| world.asked.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let asked: usize = tried().filter_map(|world| world.asked.as_ref().ok()).sum();
    println!("{asked} operations");
    assert!(asked > 500, "{asked}");
}

fn reach_all(policy: &Policy, states: &[Machine]) -> Result<(), String> {
    for goal in [Goal::Stop, Goal::Off, Goal::Awake].into_iter().chain(policy.ids().map(Goal::Run)) {
        let mut known = HashMap::new();
        for state in states {
            let takes = reach(state, goal, &mut known).map_err(|trap| format!("{goal:?} is not reached: {trap}"))?;
            if takes > bound(policy) {
                return Err(format!("{goal:?} takes {takes:?} from {state:?}"));
            }
        }
    }
    Ok(())
}

/// Asks for what leaves a backend running, wherever one runs at rest; tells how often.
fn ask_for_all(policy: &Policy, states: &[Machine]) -> Result<usize, String> {
    let (mut asked, mut met) = (0, HashSet::new());
    for state in states {
        let state = seen_with_slots_saved(state);
        let Place { kind: Kind::Running, backend: Some(b) } = state.place() else { continue };
        let is_at_rest = state.operation().is_none() && state.order().is_none();
        let runs_alone = policy.ids().all(|id| (id == b) == state.look().backend(id).seen.is_up());
        if !is_at_rest || !runs_alone || !met.insert(state.key()) {
            continue;
        }
        let of_slots = [Goal::Save(b, Selection::All), Goal::Restore(b, Selection::All)];
        let of_slots = of_slots.into_iter().filter(|_| policy.backend(b).slots);
        for goal in of_slots.chain([Goal::Restart(b)]) {
            let took = ends_well(&state, b, goal).map_err(|why| format!("{goal:?} does not end well: {why}"))?;
            if took > bound(policy) {
                return Err(format!("{goal:?} takes {took:?} from {state:?}"));
            }
            asked += 1;
        }
    }
    Ok(asked)
}

/// As it is when somebody looks, nothing was said to what runs, and something can be restored into it.
fn seen_with_slots_saved(state: &Machine) -> Machine {
    let (mut machine, view) = (state.clone(), state.view());
    let now = view.now + TRIP;
    let mut look = kind_look(&view, now);
    for (backend, policy) in look.backends.iter_mut().zip(&machine.policy().backends) {
        (backend.restorable, backend.unused) = (policy.slots, backend.seen.is_up());
        backend.holds_tokens = false;
    }
    take(&mut machine, now, Event::Looked(look));
    machine
}

/// How long it takes from `state` until what is asked for is done.
fn ends_well(state: &Machine, backend: BackendId, goal: Goal) -> Result<Duration, String> {
    let mut machine = state.clone();
    let began = machine.view().now;
    let (mut wanted, mut ordered) = (None, vec![]);
    for _ in 0..40 {
        for effect in go_on(&mut machine, goal) {
            match effect {
                Effect::Answer { answer: Answer::Accepted { op, .. }, .. } => wanted = Some(op),
                // A hold that has ended meanwhile.
                Effect::Answer { answer: Answer::Refused(Refusal::NoSuchHold), .. } => {}
                Effect::Answer { answer: Answer::Refused(why), .. } => return Err(format!("{why:?} by {machine:?}")),
                Effect::Do { what, .. } => ordered.push(what),
                Effect::Ended { op, end } if wanted == Some(op) => {
                    // A policy may have begun something at once.
                    let is_kept = machine.look().backend(backend).seen == Seen::Running;
                    let needed: &[Verb] = match goal {
                        Goal::Save(b, _) => &[Verb::SaveSlots(b)],
                        Goal::Restore(b, _) => &[Verb::RestoreSlots(b)],
                        _ => &[Verb::StopUnit(backend), Verb::StartUnit(backend)],
                    };
                    let is_so = needed.iter().all(|verb| ordered.contains(verb));
                    let done = matches!(end, End::Done { .. }) && is_kept && is_so;
                    let took = machine.view().now.since(began);
                    return if done { Ok(took) } else { Err(format!("{end:?} from {state:?} in {machine:?}")) };
                }
                _ => {}
            }
        }
    }
    Err(format!("from {state:?} it is still in {machine:?}"))
}

/// In a kind world only silence is waited for; all else is a few answers and looks.
fn bound(policy: &Policy) -> Duration {
    policy.silence + TRIP * 12
}

/// How long it takes from `state`, by what is known of the states on the way.
fn reach(state: &Machine, goal: Goal, known: &mut HashMap<u64, Duration>) -> Result<Duration, String> {
    let mut machine = state.clone();
    let (mut way, mut met) = (vec![], HashSet::new());
    let mut rest = loop {
        if is_reached(&machine, goal) {
            break Duration::ZERO;
        }
        let key = machine.key();
        if let Some(rest) = known.get(&key) {
            break *rest;
        }
        if !met.insert(key) {
            return Err(format!("from {:?} it comes back to {machine:?}", state.place()));
        }
        let began = machine.view().now;
        go_on(&mut machine, goal);
        way.push((key, machine.view().now.since(began)));
    };
    for (key, took) in way.into_iter().rev() {
        rest += took;
        known.insert(key, rest);
    }
    Ok(rest)
}

fn is_reached(machine: &Machine, goal: Goal) -> bool {
    let place = machine.place();
    let wanted = machine.operation().is_some_and(|op| !op.cause.is_policy());
    !wanted
        && match goal {
            Goal::Run(b) => place.kind == Kind::Running && place.backend == Some(b),
            Goal::Awake => matches!(place.kind, Kind::Idle | Kind::Running | Kind::Starting | Kind::Conflict),
            Goal::Off => place.kind == Kind::Offline,
            _ => matches!(place.kind, Kind::Idle | Kind::Offline),
        }
}

/// The next thing that happens.
fn go_on(machine: &mut Machine, goal: Goal) -> Vec<Effect> {
    let view = machine.view();
    let soon = view.now + TRIP;
    if let Some(hold) = view.holds.first() {
        return machine.step(soon, &command(Command::Release(hold.id)));
    }
    if let Some((verb, _)) = view.order {
        return machine.step(soon, &Event::Finished { verb, outcome: Outcome::Succeeded(vec![]) });
    }
    let ours = view.operation.as_ref().is_some_and(|op| {
        let same = op.goal == goal || matches!((op.goal, goal), (Goal::Restart(b), Goal::Run(g)) if b == g);
        same && !op.cause.is_policy()
    });
    let key = machine.key();
    let wants_it_on = matches!(goal, Goal::Awake | Goal::Run(_));
    if !ours {
        let mut told = machine.clone();
        let effects = told.step(soon, &command(wish(&view, goal)));
        // Where it is asked for once, a refusal is what comes of it.
        let is_asked = matches!(goal, Goal::Restart(_) | Goal::Save(..) | Goal::Restore(..));
        let refused = effects.iter().any(|e| matches!(e, Effect::Answer { answer: Answer::Refused(_), .. }));
        if is_asked || (!refused && told.key() != key) {
            *machine = told;
            return effects;
        }
    }
    let is_pressed = wants_it_on && !machine.policy().can_wake && view.place.kind == Kind::Offline;
    let look = |now| Event::Looked(if is_pressed { booted(&view, now) } else { kind_look(&view, now) });
    let mut seen = machine.clone();
    let effects = seen.step(soon, &look(soon));
    if seen.key() == key
        && let Some(deadline) = machine.deadline()
    {
        // Nothing new: what is waited for comes.
        return machine.step(deadline, &look(deadline));
    }
    *machine = seen;
    effects
}

fn take(machine: &mut Machine, now: Instant, event: Event) {
    let _ = machine.step(now, &event);
}

fn command(command: Command) -> Event {
    Event::Commanded { request: RequestId(9), command }
}

/// What a person who wants `goal` says.
fn wish(view: &View, goal: Goal) -> Command {
    let options = Options { replace: true, no_drain: false };
    match goal {
        Goal::Run(b) if view.place.kind == Kind::Conflict && view.look.backend(b).seen.is_up() => {
            Command::Resolve(b, options)
        }
        Goal::Run(_) if view.place.kind == Kind::Conflict => Command::Stop(options),
        Goal::Run(b) => Command::Switch(b, options),
        Goal::Awake => Command::Wake(options),
        Goal::Off => Command::Shutdown(PowerChoice::PowerOff, options),
        Goal::Restart(b) => Command::Restart(Some(b), options),
        Goal::Save(_, selection) => Command::SaveSlots(selection, options),
        Goal::Restore(_, selection) => Command::RestoreSlots(selection, options),
        Goal::Stop => Command::Stop(options),
    }
}

/// What is seen when it was switched on.
fn booted(view: &View, now: Instant) -> wechsler::machine::Look {
    let mut look = sample::shows(now, &vec![Seen::Stopped; view.look.backends.len()]);
    let fresh = now.since_start().as_nanos();
    let session = u64::try_from(fresh).unwrap_or(u64::MAX);
    look.server = Server::On { boot: wechsler::machine::BootId(fresh), session };
    look
}

/// What is seen where everything does what it was told.
fn kind_look(view: &View, now: Instant) -> wechsler::machine::Look {
    // What was woken comes up.
    let comes = view.coming_until.is_some_and(|until| until > now);
    let off = view.place.kind == Kind::PoweringOff || (view.place.kind == Kind::Offline && !comes);
    if off {
        let mut look = wechsler::machine::Look::nothing(view.look.backends.len());
        (look.at, look.server) = (now, Server::Silent);
        return look;
    }
    let (place, before) = (view.place, &view.look);
    let seen: Vec<Seen> = (0..)
        .zip(&before.backends)
        .map(|(i, backend)| match (place.kind, backend.seen) {
            (Kind::Stopping, _) if place.backend == Some(BackendId(i)) => Seen::Stopped,
            (Kind::Starting | Kind::Restoring, _) if place.backend == Some(BackendId(i)) => Seen::Running,
            (_, seen) if seen.is_up() => Seen::Running,
            _ => Seen::Stopped,
        })
        .collect();
    let mut look = sample::shows(now, &seen);
    let boot = view.boot.unwrap_or(wechsler::machine::BootId(1));
    // SSH is always a session that was never seen.
    look.server = Server::On { boot, session: u64::try_from(now.since_start().as_nanos()).unwrap_or(u64::MAX) };
    for (i, backend) in look.backends.iter_mut().enumerate() {
        let fresh = Invocation(now.since_start().as_nanos() << 8 | i as u128);
        backend.invocation = backend.invocation.map(|_| view.backends[i].run.unwrap_or(fresh));
        backend.mark = backend.mark.map(|mark| view.backends[i].mark.unwrap_or(mark));
    }
    look
}
