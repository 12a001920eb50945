//! Exploration: every state that a machine can reach, and every edge out of it. States are told apart by [`Machine::key`].

use std::{
    cell::OnceCell,
    collections::{HashSet, VecDeque},
    hash::BuildHasherDefault,
    num::NonZero,
    ops::ControlFlow,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use wechsler::machine::{
    Effect, Event, Instant, Kind, Machine, OnStartTimeout, Policy, RestorePolicy, View, WakeCheck, key::Mix,
};

use super::{
    alphabet::{Topic, alphabet},
    sample,
};

/// One step of the machine.
pub struct Edge<'a> {
    /// Before.
    pub before: &'a Machine,
    /// When.
    pub now: Instant,
    /// The letter of the alphabet.
    pub act: &'static str,
    /// What happened.
    pub event: &'a Event,
    /// What was asked for.
    pub effects: &'a [Effect],
    /// After.
    pub after: &'a Machine,
    was: &'a View,
    shown: Option<&'a View>,
    is: OnceCell<View>,
    due: OnceCell<Option<Instant>>,
    next_due: OnceCell<Option<Instant>>,
    keys: OnceCell<[u64; 2]>,
}

/// A set that is quick to look up.
pub type Set<T> = HashSet<T, BuildHasherDefault<Mix>>;

impl<'a> Edge<'a> {
    /// The step of `before`, which shows itself as `was`.
    pub fn new(
        (before, was): (&'a Machine, &'a View),
        (act, now, event): (&'static str, Instant, &'a Event),
        (effects, after): (&'a [Effect], &'a Machine),
    ) -> Self {
        let (is, due, next_due, keys) = (OnceCell::new(), OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { before, now, act, event, effects, after, was, shown: None, is, due, next_due, keys }
    }

    /// ... when somebody has looked already at what the machine shows after, and at the deadlines before and after.
    pub fn showing(self, is: &'a View, [due, next_due]: [Option<Instant>; 2]) -> Self {
        Self { shown: Some(is), due: OnceCell::from(due), next_due: OnceCell::from(next_due), ..self }
    }

    /// The states before and after, by their keys.
    pub fn keys(&self) -> [u64; 2] {
        *self.keys.get_or_init(|| [self.before.key(), self.after.key()])
    }

    /// The deadline before.
    pub fn due(&self) -> Option<Instant> {
        *self.due.get_or_init(|| self.before.deadline())
    }

    /// ... and after.
    pub fn next_due(&self) -> Option<Instant> {
        *self.next_due.get_or_init(|| self.after.deadline())
    }

    /// What it showed of itself before.
    pub fn was(&self) -> &View {
        self.was
    }

    /// ... for as long as the machine before lives.
    pub fn was_ref(&self) -> &'a View {
        self.was
    }

    /// ... and shows after.
    pub fn is(&self) -> &View {
        self.shown.unwrap_or_else(|| self.is.get_or_init(|| self.after.view()))
    }
}

/// What is explored together: a server, and the topics that are varied on it.
pub struct World {
    /// Its name.
    pub name: &'static str,
    /// The server.
    pub policy: fn() -> Policy,
    /// What happens there.
    pub topics: &'static [Topic],
}

/// The worlds. What is varied together is what has to do with each other: the product of everything would be far larger.
/// Beyond that, storms and fuzzing mix most of what two backends meet.
pub const WORLDS: &[World] = {
    use Topic::{
        Boots, Both, Commands, Copies, Crowds, Doors, Holds, Late, Losses, Obstacles, Oddities, Passage, Runs, Silence,
        Slots, Third, Use, Word,
    };
    &[
        World { name: "doors", policy: bare, topics: &[Silence, Doors] },
        World { name: "boots", policy: bare, topics: &[Silence, Boots] },
        World { name: "runs", policy: bare, topics: &[Passage, Runs] },
        World { name: "losses", policy: bare, topics: &[Passage, Losses] },
        World { name: "losses in silence", policy: bare, topics: &[Silence, Losses] },
        World { name: "holds", policy: bare, topics: &[Silence, Holds] },
        World { name: "obstacles", policy: bare, topics: &[Obstacles, Silence, Late] },
        World { name: "obstacles for two", policy: pair, topics: &[Obstacles] },
        World { name: "oddities", policy: bare, topics: &[Oddities, Silence] },
        World { name: "use", policy: || sample::alone(quiet()), topics: &[Use, Commands] },
        World { name: "policies", policy: bare_eager, topics: &[Obstacles, Late] },
        World { name: "policies and slots", policy: || sample::alone(eager()), topics: &[Slots, Use] },
        World { name: "policies and commands", policy: bare_eager, topics: &[Commands, Silence, Late] },
        World { name: "policies and use", policy: bare_eager, topics: &[Use, Late] },
        World { name: "policies and runs", policy: bare_eager, topics: &[Passage, Runs] },
        World { name: "policies and holds", policy: bare_eager, topics: &[Holds] },
        World { name: "policies and losses", policy: bare_eager, topics: &[Passage, Losses] },
        World { name: "policies and lost runs", policy: bare_eager, topics: &[Runs, Losses] },
        World { name: "policies and boots", policy: bare_eager, topics: &[Boots, Silence] },
        World { name: "policies and doors", policy: bare_eager, topics: &[Doors, Silence] },
        World { name: "policies and oddities", policy: bare_eager, topics: &[Oddities] },
        World { name: "policies and crowds", policy: eager_pair, topics: &[Crowds] },
        World { name: "policies by tokens", policy: by_tokens, topics: &[Slots, Copies] },
        World { name: "two backends", policy: pair, topics: &[Passage] },
        World { name: "two and boots", policy: pair, topics: &[Boots] },
        World { name: "two and runs", policy: pair, topics: &[Runs] },
        World { name: "two in use", policy: pair, topics: &[Use] },
        World { name: "two and holds", policy: pair, topics: &[Both, Holds] },
        World { name: "slots of fresh runs", policy: || sample::alone(quiet()), topics: &[Word, Passage] },
        World { name: "policies and fresh runs", policy: || sample::alone(eager()), topics: &[Word] },
        World { name: "slots and boots", policy: || sample::alone(eager()), topics: &[Word, Boots] },
        World { name: "slots and doors", policy: || sample::alone(quiet()), topics: &[Slots, Silence, Doors] },
        World { name: "slots and losses", policy: || sample::alone(quiet()), topics: &[Slots, Losses, Silence] },
        World { name: "slots and commands", policy: || sample::alone(quiet()), topics: &[Slots, Commands] },
        World { name: "both and doors", policy: pair, topics: &[Both, Silence, Doors] },
        World { name: "both and losses", policy: pair, topics: &[Both, Losses] },
        World { name: "both and slots", policy: quiet, topics: &[Both, Slots] },
        World { name: "two in silence", policy: pair, topics: &[Both, Silence, Commands] },
        World { name: "two and oddities", policy: pair, topics: &[Oddities] },
        World { name: "crowds", policy: pair, topics: &[Crowds] },
        World { name: "three backends", policy: || sample::slotless(sample::three(quiet())), topics: &[Third] },
        World { name: "policies and two", policy: eager_pair, topics: &[Both, Late] },
        World { name: "a slow start is stopped", policy: impatient, topics: &[Passage] },
        World { name: "no power-off unarmed", policy: || checking(WakeCheck::Require), topics: &[Obstacles] },
        World { name: "power-off unchecked", policy: || checking(WakeCheck::Off), topics: &[Obstacles] },
        World { name: "cannot be woken", policy: || Policy { can_wake: false, ..bare() }, topics: &[Silence, Boots] },
    ]
};

/// No two waits are multiples of each other, so that none ends with another by chance.
fn apart(policy: Policy) -> Policy {
    Policy {
        silence: Duration::from_secs(31),
        policy_backoff: Duration::from_secs(67),
        idle_stop_after: policy.idle_stop_after.map(|after| after + Duration::from_secs(1)),
        idle_power_off_after: policy.idle_power_off_after.map(|after| after + Duration::from_secs(2)),
        ..policy
    }
}

/// Nothing happens by itself.
fn quiet() -> Policy {
    apart(sample::quiet())
}

/// Everything does.
fn eager() -> Policy {
    apart(sample::eager())
}

/// One backend without slots.
fn bare() -> Policy {
    sample::slotless(sample::alone(quiet()))
}

/// ... when everything happens by itself.
fn bare_eager() -> Policy {
    sample::slotless(sample::alone(eager()))
}

/// Two backends without slots.
fn pair() -> Policy {
    sample::slotless(quiet())
}

/// ... when everything happens by itself.
fn eager_pair() -> Policy {
    sample::slotless(eager())
}

/// One backend that is saved when it holds much, and into which nothing is restored by itself.
fn by_tokens() -> Policy {
    let mut policy = sample::alone(eager());
    let llama = &mut policy.backends[0];
    (llama.checkpoint_quiet, llama.checkpoint_tokens, llama.restore) = (None, Some(500), RestorePolicy::Never);
    policy
}

/// One backend without slots, which is stopped when it has not come up in time.
fn impatient() -> Policy {
    let mut policy = bare();
    policy.backends[0].on_start_timeout = OnStartTimeout::Stop;
    policy
}

/// One backend without slots on a server whose card is checked so before the power goes off.
fn checking(wake_check: WakeCheck) -> Policy {
    Policy { wake_check, ..bare() }
}

/// What was explored.
pub struct Graph {
    /// Leaf of each state.
    pub states: Vec<Kind>,
    /// How many edges lead out of them.
    pub edges: usize,
}

/// What `of` makes of each world, in their order: one after the other on each processor.
pub fn of_each_world<T: Send + Sync>(of: impl Fn(&World) -> T + Sync) -> Vec<T> {
    let (all, next) = (WORLDS.iter().map(|_| OnceLock::new()).collect::<Vec<_>>(), AtomicUsize::new(0));
    let go_on = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(world) = WORLDS.get(place) else { break };
            all[place].get_or_init(|| of(world));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(go_on);
        }
    });
    all.into_iter().map(|made| made.into_inner().expect("each has its turn")).collect()
}

/// Explores `world`, handing every edge to `visit`, until that has seen enough.
pub fn explore(world: &World, mut visit: impl FnMut(&Edge) -> ControlFlow<()>) -> Graph {
    let start = Machine::new((world.policy)(), vec![]);
    let mut known = Set::from_iter([start.key()]);
    let mut graph = Graph { states: vec![start.place().kind], edges: 0 };
    let mut queue = VecDeque::from([(start.key(), start)]);
    while let Some((from, machine)) = queue.pop_front() {
        let was = machine.view();
        for (act, now, event) in alphabet(&machine, &was, world.topics) {
            let mut after = machine.clone();
            let effects = after.step(now, &event);
            graph.edges += 1;
            let to = after.key();
            let edge = Edge::new((&machine, &was), (act, now, &event), (&effects, &after));
            if visit(&Edge { keys: OnceCell::from([from, to]), ..edge }).is_break() {
                return graph;
            }
            if known.insert(to) {
                graph.states.push(after.place().kind);
                queue.push_back((to, after));
            }
        }
    }
    graph
}

/// The shortest way of `world` to the state that `wanted` is in: what happened, and when. It is sought only when something
/// is wrong, and explored for once more.
pub fn way_to(world: &World, wanted: &Machine) -> Vec<(&'static str, Instant)> {
    let mut known = Set::from_iter([Machine::new((world.policy)(), vec![]).key()]);
    let mut steps: Vec<(u64, u64, (&'static str, Instant))> = vec![];
    let wanted = wanted.key();
    explore(world, |e| {
        if known.contains(&wanted) {
            return ControlFlow::Break(());
        }
        let [from, to] = e.keys();
        if known.insert(to) {
            steps.push((from, to, (e.act, e.now)));
        }
        ControlFlow::Continue(())
    });
    let (mut way, mut at) = (vec![], wanted);
    for (from, to, step) in steps.into_iter().rev() {
        if to == at {
            way.push(step);
            at = from;
        }
    }
    way.reverse();
    way
}
