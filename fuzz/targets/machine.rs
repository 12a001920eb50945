//! Long stories: each byte is one thing that happens to the machine, of all that can happen to it then. Every law holds on
//! every step. The exploration in tests/laws.rs goes everywhere, but only a few steps far.

#[path = "../../tests/spec/mod.rs"]
mod spec;

use spec::{
    explore::{Edge, alphabet},
    laws::LAWS,
    sample,
};
use wechsler::machine::Machine;

pub fn run(data: &[u8]) {
    let [first, story @ ..] = data else {
        return;
    };
    let policy = if first & 1 == 0 { sample::quiet() } else { sample::eager() };
    let mut machine = Machine::new(policy, vec![]);
    let mut told = Vec::new();
    for byte in story.iter().take(256) {
        let mut letters = alphabet(&machine);
        if letters.is_empty() {
            return;
        }
        let (act, now, event) = letters.swap_remove(usize::from(*byte) % letters.len());
        told.push(act.clone());
        let before = machine.clone();
        let effects = machine.step(now, event.clone());
        let edge = Edge { before: &before, now, act: &act, event: &event, effects: &effects, after: &machine };
        for (law, holds) in LAWS {
            if let Err(why) = holds(&edge) {
                panic!("{law}: {why}\nafter {told:#?}");
            }
        }
    }
}
