//! A journal of steps, whoever wrote it: replayed, or refused with its line.

use wechsler::driver::replay::replay;

pub fn run(data: &[u8]) {
    match replay(data, |_| {}) {
        Ok(summary) => assert!(summary.torn <= data.len() as u64),
        Err(error) => assert!(error.line > 0 && !error.to_string().is_empty()),
    }
}
