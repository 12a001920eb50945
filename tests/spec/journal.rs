//! Journals of steps of real daemons: they replay, and every law holds on every step.

use std::io::BufRead;

use wechsler::driver::replay::{Summary, Told, replay};

use super::{explore::Edge, laws::LAWS};

/// Replays a journal; the first difference, damage or broken law is the error.
pub fn check(journal: impl BufRead) -> Result<Summary, String> {
    let mut broken = None;
    let summary = replay(journal, |told| {
        let Told::Step(step) = told else { return };
        let (act, now) = (step.event.kind(), step.at);
        let edge = Edge { before: step.before, now, act, event: step.event, effects: step.effects, after: step.after };
        for (name, law) in LAWS {
            if let (Err(why), None) = (law(&edge), &broken) {
                broken = Some(format!(
                    "line {}: {name}: {why}\n  by {:?}\n  effects {:?}",
                    step.line, edge.event, edge.effects
                ));
            }
        }
    });
    match (summary, broken) {
        (Err(error), _) => Err(error.to_string()),
        (_, Some(broken)) => Err(broken),
        (Ok(summary), None) => Ok(summary),
    }
}
