//! A journal of steps, whoever wrote it: replayed, or refused with its line.

use wechsler::driver::replay::replay;

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    match replay(data, |_| {}) {
        Ok(summary) => {
            assert!(summary.torn <= data.len() as u64);
            understood([("lives", summary.lives > 0), ("steps", summary.steps > 0)])
        }
        Err(error) => {
            assert!(error.line > 0 && !error.to_string().is_empty());
            Kinds::new()
        }
    }
}
