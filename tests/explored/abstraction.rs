//! What [`wechsler::machine::Machine::key`] takes for one state behaves as one: whatever happens, two machines with the
//! same key do the same and have the same key again.

use wechsler::machine::{Event, Instant, Machine, key::ORDER_OF_MOMENTS};

use crate::{
    EXPLORED,
    spec::{
        alphabet::{Letter, alphabet},
        explore::{Edge, World},
        matrix::Cell,
    },
};

/// Of the edges that lead to a state that is known, one in so many is looked at.
const ONE_IN: usize = 211;

/// Of what happens to such a machine in a world, no more than one in so many may lead to where the exploration, which goes on with the
/// first, never was: how far two waits lie apart is not in the key, so that they may end in another order.
const BEYOND_ONE_IN: usize = 100;

/// Machines that came there in different ways and have the same key.
#[derive(Default)]
pub struct Twins {
    edges: usize,
    pairs: Vec<(Machine, Machine)>,
}

/// What became of them.
pub struct Compared {
    pairs: usize,
    letters: usize,
    /// Of the letters, those that lead the twin to where the exploration never was.
    beyond: usize,
    different: Vec<String>,
}

impl Twins {
    /// Another way to a state that was met as `first`.
    pub fn add(&mut self, first: &Machine, e: &Edge) {
        self.edges += 1;
        let [from, to] = e.keys();
        if self.edges.is_multiple_of(ONE_IN) && from != to {
            self.pairs.push((first.clone(), e.after.clone()));
        }
    }

    /// Lets everything happen to them.
    pub fn compare(self, world: &World, is_explored: impl Fn(u64) -> bool) -> Compared {
        let mut compared = Compared { pairs: self.pairs.len(), letters: 0, beyond: 0, different: vec![] };
        for (first, twin) in &self.pairs {
            compare(world, first, twin, &mut compared, &is_explored);
        }
        compared
    }
}

#[test]
fn machines_with_the_same_key_do_the_same_whatever_happens() {
    let (mut pairs, mut letters, mut beyond, mut different) = (0, 0, 0, vec![]);
    for (world, twins) in EXPLORED.iter().map(|world| (world.world, &world.twins)) {
        println!("{world}: {} pairs, {} letters, {} beyond", twins.pairs, twins.letters, twins.beyond);
        (pairs, letters, beyond) = (pairs + twins.pairs, letters + twins.letters, beyond + twins.beyond);
        different.extend(&twins.different);
        assert!(twins.beyond * BEYOND_ONE_IN <= twins.letters, "{world}: {} of {}", twins.beyond, twins.letters);
    }
    println!("{pairs} pairs, {letters} letters, {beyond} of them lead beyond what is explored");
    assert!(pairs > 1000 && letters > pairs, "{pairs} pairs, {letters} letters");
    assert!(different.is_empty(), "{} differ: {:#?}", different.len(), &different[..different.len().min(9)]);
}

/// Lets the same happen to both. How far two waits lie apart does not count, so that a new one may end sooner or later
/// than another under way; nothing else may differ.
fn compare(world: &World, first: &Machine, twin: &Machine, compared: &mut Compared, is_explored: impl Fn(u64) -> bool) {
    let (one, other) = (first.view(), twin.view());
    let (letters, likewise) = (alphabet(first, &one, world.topics), alphabet(twin, &other, world.topics));
    // A pause that nothing waits for may run out in that very moment, of one of them.
    if runs_out(first, letters[0].1) != runs_out(twin, likewise[0].1) {
        return;
    }
    let names = |letters: &[Letter]| letters.iter().map(|letter| letter.0).collect::<Vec<_>>();
    if names(&letters) != names(&likewise) {
        compared.different.push(format!("{}: not the same can happen\n  {first:?}\n  {twin:?}", world.name));
        return;
    }
    compared.letters += letters.len();
    for ((act, now, event), (_, then, same)) in letters.into_iter().zip(likewise) {
        let (mut a, mut b) = (first.clone(), twin.clone());
        let (does, too) = (a.step(now, &event), b.step(then, &same));
        let cell = Cell::of(&Edge::new((first, &one), (act, now, &event), (&does, &a)));
        let twins_cell = Cell::of(&Edge::new((twin, &other), (act, then, &same), (&too, &b)));
        compared.beyond += usize::from(!is_explored(b.key()));
        let (now, then) = (distinctions(&a), distinctions(&b));
        if cell != twins_cell || now != then {
            let apart: Vec<&str> = now.iter().zip(&then).filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
            let (world, place) = (world.name, first.place());
            compared.different.push(format!(
                "{world}: {act} in {place:?}: {does:?} or {too:?}, apart in {apart:?}\n  {first:?}\n  {twin:?}"
            ));
        }
    }
}

/// What is over by then.
fn runs_out(machine: &Machine, soon: Instant) -> Vec<&'static str> {
    let mut later = machine.clone();
    let _ = later.step(soon, &Event::Tick);
    let (before, after) = (distinctions(machine), distinctions(&later));
    before.iter().zip(&after).filter(|(before, after)| before != after).map(|(before, _)| before.0).collect()
}

fn distinctions(machine: &Machine) -> Vec<(&'static str, u64)> {
    let mut all = vec![];
    machine.distinctions(|name, value| all.push((name, value)));
    all.retain(|(name, _)| *name != ORDER_OF_MOMENTS);
    all
}
