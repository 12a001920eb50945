//! A journal of steps, whoever wrote it: replayed, or refused with its line.

use wechsler::driver::replay::replay;

use super::{Kinds, kind};

pub fn run(data: &[u8]) -> Kinds {
    match replay(data, |_| {}) {
        Ok(summary) => {
            assert!(summary.torn <= data.len() as u64);
            kind("lives", summary.lives > 0).into_iter().chain(kind("steps", summary.steps > 0)).collect()
        }
        Err(error) => {
            assert!(error.line > 0 && !error.to_string().is_empty());
            Kinds::new()
        }
    }
}
