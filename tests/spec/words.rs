//! What an edge says, for laws.

use wechsler::machine::{Answer, Effect, End, Operation, Verb};

use super::explore::Edge;

/// A law's verdict.
pub type Verdict = Result<(), String>;

pub fn orders<'a>(e: &'a Edge) -> impl Iterator<Item = Verb> + 'a {
    e.effects.iter().filter_map(|f| match f {
        Effect::Do { what, .. } => Some(*what),
        _ => None,
    })
}

pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub fn answers<'a>(e: &'a Edge) -> impl Iterator<Item = &'a Answer> + 'a {
    e.effects.iter().filter_map(|f| if let Effect::Answer { answer, .. } = f { Some(answer) } else { None })
}

pub fn begun<'a>(e: &'a Edge) -> impl Iterator<Item = &'a Operation> + 'a {
    e.effects.iter().filter_map(|f| if let Effect::Began(op) = f { Some(op) } else { None })
}

pub fn ended<'a>(e: &'a Edge) -> impl Iterator<Item = &'a End> + 'a {
    e.effects.iter().filter_map(|f| if let Effect::Ended { end, .. } = f { Some(end) } else { None })
}
