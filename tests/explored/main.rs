//! What every reachable state and every edge is looked at for, beside the laws. Each world is walked through once for all.

mod abstraction;
mod goals;
#[path = "../spec/mod.rs"]
mod spec;
mod states_md;
mod written_down;

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::ControlFlow,
    sync::LazyLock,
};

use spec::{
    explore::{Edge, Set, World, explore, of_each_world},
    matrix::Cell,
};
use wechsler::machine::Machine;

/// What the walk through a world has shown.
struct Explored {
    world: &'static str,
    goals: goals::Tried,
    twins: abstraction::Compared,
    chart: states_md::Seen,
    written: written_down::Done,
}

static EXPLORED: LazyLock<Vec<Explored>> = LazyLock::new(|| of_each_world(walk));

fn walk(world: &World) -> Explored {
    let start = Machine::new((world.policy)(), vec![]);
    let mut known = HashMap::from([(start.key(), 0)]);
    let mut states = vec![start];
    let mut kinds = Set::default();
    let (mut twins, mut chart) = (abstraction::Twins::default(), states_md::Seen::default());
    let mut written = written_down::Done::default();
    explore(world, |e: &Edge| {
        match known.entry(e.keys()[1]) {
            Entry::Occupied(place) => twins.add(&states[*place.get()], e),
            Entry::Vacant(place) => {
                place.insert(states.len());
                states.push(e.after.clone());
            }
        }
        // What is like another edge shows nothing new.
        if kinds.insert((e.act, Cell::of(e))) {
            chart.add(e);
            written.add(world.name, e);
        }
        ControlFlow::Continue(())
    });
    let twins = twins.compare(world, |key| known.contains_key(&key));
    Explored { world: world.name, goals: goals::try_all(world, &states), twins, chart, written }
}
