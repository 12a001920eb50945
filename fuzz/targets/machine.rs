//! Long stories: each byte is one thing that happens to the machine, of all that can happen to it then. Every law holds on
//! every step. The exploration in tests/laws.rs goes everywhere, but remembers no more than counts.

#[path = "../../tests/spec/mod.rs"]
mod spec;

use super::{Kinds, understood};
use spec::{
    alphabet::{Topic, alphabet},
    explore::Edge,
    laws::LAWS,
    sample,
};
use wechsler::machine::Machine;

pub fn run(data: &[u8]) -> Kinds {
    let [first, story @ ..] = data else {
        return Kinds::new();
    };
    let policy = if first & 1 == 0 { sample::quiet() } else { sample::eager() };
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
