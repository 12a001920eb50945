//! Long stories: each byte is one thing that happens to the machine, of all that can happen to it then. Every law holds on
//! every step. The exploration in tests/laws.rs goes everywhere, but remembers no more than counts.

use wechsler::machine::Machine;

use super::{
    Kinds,
    spec::{
        alphabet::{Topic, alphabet},
        explore::{Edge, WORLDS},
        laws::LAWS,
        sample,
    },
    understood,
};

pub fn run(data: &[u8]) -> Kinds {
    let [first, story @ ..] = data else {
        return Kinds::new();
    };
    // Mostly two backends with everything, else the server of a world.
    let policy = match first {
        0..128 if first % 2 == 0 => sample::quiet(),
        0..128 => sample::eager(),
        128.. => (WORLDS[usize::from(first - 128) % WORLDS.len()].policy)(),
    };
    let mut machine = Machine::new(policy, vec![]);
    let mut told = Vec::new();
    for byte in story.iter().take(256) {
        let (before, was) = (machine.clone(), machine.view());
        let mut letters = alphabet(&machine, &was, &Topic::ALL);
        if letters.is_empty() {
            break;
        }
        let (act, now, event) = letters.swap_remove(usize::from(*byte) % letters.len());
        told.push(act);
        let effects = machine.step(now, &event);
        let edge = Edge::new((&before, &was), (act, now, &event), (&effects, &machine));
        for law in LAWS {
            if let Err(why) = (law.holds)(&edge) {
                panic!("{}: {why}\nafter {told:#?}", law.name);
            }
        }
    }
    understood([("story", !told.is_empty())])
}
