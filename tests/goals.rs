//! No state is a trap: from everywhere every goal is reached in a kind world, in a time that follows from the policy.
//!
//! In a kind world orders succeed, units do what they were told, nobody interferes, holds are released, and a conflict is
//! resolved by a person, who switches on what cannot be woken, too.

mod spec;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use spec::{
    explore::{of_each_world, states},
    sample,
};
use wechsler::machine::{
    Answer, BackendId, Command, Effect, Event, Goal, Instant, Invocation, Kind, Machine, Options, Outcome, Policy,
    PowerChoice, RequestId, Seen, Server, View,
};

/// An order's answer, and a look, take so long.
const TRIP: Duration = Duration::from_secs(2);

#[test]
fn from_every_state_every_goal_is_reached_in_a_kind_world_within_a_bound_of_the_policy() {
    of_each_world(|world| {
        let states = states(world);
        let policy = (world.policy)();
        let runs = policy.ids().map(Goal::Run);
        for goal in [Goal::Stop, Goal::Off, Goal::Awake].into_iter().chain(runs) {
            let mut known = HashMap::new();
            let mut longest = Duration::ZERO;
            for state in &states {
                match reach(state, goal, &mut known) {
                    Ok(takes) => longest = longest.max(takes),
                    Err(trap) => panic!("{}: {goal:?} is not reached: {trap}", world.name),
                }
            }
            println!("{}: {goal:?} from {} states within {longest:?}", world.name, states.len());
            assert!(longest <= bound(&policy), "{}: {goal:?} took {longest:?}", world.name);
        }
    });
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
        go_on(&mut machine, goal, key);
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
fn go_on(machine: &mut Machine, goal: Goal, key: u64) {
    let view = machine.view();
    let soon = view.now + TRIP;
    if let Some(hold) = view.holds.first() {
        return take(machine, soon, command(Command::Release(hold.id)));
    }
    if let Some((verb, _)) = view.order {
        return take(machine, soon, Event::Finished { verb, outcome: Outcome::Succeeded(vec![]) });
    }
    let ours = view.operation.as_ref().is_some_and(|op| {
        let same = op.goal == goal || matches!((op.goal, goal), (Goal::Restart(b), Goal::Run(g)) if b == g);
        same && !op.cause.is_policy()
    });
    if !ours {
        let mut told = machine.clone();
        let effects = told.step(soon, &command(wish(&view, goal)));
        let refused = effects.iter().any(|e| matches!(e, Effect::Answer { answer: Answer::Refused(_), .. }));
        if !refused && told.key() != key {
            *machine = told;
            return;
        }
    }
    let wants_it_on = matches!(goal, Goal::Awake | Goal::Run(_));
    let is_pressed = wants_it_on && !machine.policy().can_wake && view.place.kind == Kind::Offline;
    let look = |now| Event::Looked(if is_pressed { booted(&view, now) } else { kind_look(&view, now) });
    let mut seen = machine.clone();
    take(&mut seen, soon, look(soon));
    if seen.key() == key
        && let Some(deadline) = machine.deadline()
    {
        // Nothing new: what is waited for comes.
        return take(machine, deadline, look(deadline));
    }
    *machine = seen;
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
        _ => Command::Stop(options),
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
    let off = matches!(view.place.kind, Kind::PoweringOff | Kind::Offline);
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
