//! Journals of steps of real daemons: they replay, every law holds on every step, and each is a step that was explored.

use std::io::BufRead;

use wechsler::driver::replay::{Summary, Told, replay, replay_mended};

use crate::spec::{explore::Edge, laws::LAWS, matrix::Committed};

/// Replays a journal; the first difference, damage or broken law is the error. Where the machine has been mended since, what
/// differs is none.
pub fn check(journal: impl BufRead, is_mended: bool) -> Result<Summary, String> {
    let (mut broken, committed) = (None, Committed::read());
    let check = |told: Told<'_>| {
        let Told::Step(step) = told else { return };
        let was = step.before.view();
        let happened = (step.event.kind(), step.at, step.event);
        let edge = Edge::new((step.before, &was), happened, (step.effects, step.after));
        let leaf = step.before.place().kind;
        // What a mended machine is told after that was meant for another life.
        if !is_mended && !committed.is_explored(leaf, step.event) && broken.is_none() {
            broken = Some(format!("line {}: never explored: {:?} in {leaf}", step.line, step.event));
        }
        for law in LAWS {
            if let (Err(why), None) = ((law.holds)(&edge), &broken) {
                broken = Some(format!(
                    "line {}: {}: {why}\n  by {:?}\n  effects {:?}",
                    step.line, law.name, edge.event, edge.effects
                ));
            }
        }
    };
    let summary = if is_mended { replay_mended(journal, check) } else { replay(journal, check) };
    match (summary, broken) {
        (Err(error), _) => Err(error.to_string()),
        (_, Some(broken)) => Err(broken),
        (Ok(summary), None) => Ok(summary),
    }
}
