//! The journal of steps: what happened to the machine and what it asked for, a JSON object a line, for [`replay`].
//!
//! Each life of the daemon begins with a `start` line: policy and holds, what [`Machine::new`] got. Every step the machine
//! then took is there: as a `step` line, or, a look that equals the one before it and moved and asked for nothing, by its
//! moments alone, in `same` of the next line. Steps are numbered, so that a reader knows when some are missing. After those,
//! and at the beginning of each further file, a `resume` line tells the whole machine, so that each file can be replayed.

pub mod replay;
mod write;

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};

use crate::machine::{Effect, Event, Hold, Instant, Look, Machine, Place, Policy};

pub(super) use write::Journal;

/// The journal.
pub(super) const STEPS: &str = "steps.jsonl";
/// The journal before it, replaced when the newer one is full.
pub(super) const OLDER_STEPS: &str = "steps.1.jsonl";
/// What is written, and the newest that can be read. Goes up when an old reader would misunderstand a new journal.
const FORMAT: u32 = 1;

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on its way to a file or from it")]
enum Line<'a> {
    /// A daemon has started.
    Start {
        format: u32,
        version: Cow<'a, str>,
        /// Wall time of [`Instant::START`].
        started: Cow<'a, str>,
        policy: Cow<'a, Policy>,
        holds: Cow<'a, [Hold]>,
    },
    /// The machine of a daemon that goes on, after step number `step` of its life.
    Resume { format: u32, version: Cow<'a, str>, started: Cow<'a, str>, step: u64, machine: Cow<'a, Machine> },
    /// Step number `step` of this life, after looks that said the `same` as the one before.
    Step {
        step: u64,
        at: Instant,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        same: Vec<Moments>,
        event: Cow<'a, Event>,
        effects: Cow<'a, [Effect]>,
        /// Where the machine is now.
        place: Place,
    },
    /// Looks that said the `same` as the one before, the last of them step number `step`.
    Looks { step: u64, same: Vec<Moments> },
}

/// When a look came and when its questions were asked, in nanoseconds since the daemon's start: all that tells it from the
/// look before. First the step, then [`Look::at`], GPU, people, network card, and each backend's use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Moments(Vec<u64>);

impl Moments {
    fn of(step: Instant, look: &Look) -> Self {
        let server = [step, look.at, look.gpu_at, look.people_at, look.wake_armed_at];
        let all = server.into_iter().chain(look.backends.iter().map(|b| b.use_at));
        Self(all.map(|at| u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX)).collect())
    }

    /// The step's time, and `look` at these moments; `None` if they are those of another server.
    fn of_look(&self, look: &Look) -> Option<(Instant, Look)> {
        let moments: Vec<Instant> =
            self.0.iter().map(|nanos| Instant::after_start(Duration::from_nanos(*nanos))).collect();
        let [step, at, gpu_at, people_at, wake_armed_at, uses @ ..] = &moments[..] else { return None };
        if uses.len() != look.backends.len() {
            return None;
        }
        let mut look =
            Look { at: *at, gpu_at: *gpu_at, people_at: *people_at, wake_armed_at: *wake_armed_at, ..look.clone() };
        for (backend, at) in look.backends.iter_mut().zip(uses) {
            backend.use_at = *at;
        }
        Some((*step, look))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_says_the_same_is_told_by_its_moments_alone() {
        let at = |seconds| Instant::after_start(Duration::from_secs(seconds));
        let before = Look::nothing(2);
        let mut look = before.clone();
        (look.at, look.gpu_at, look.people_at, look.wake_armed_at) = (at(1), at(2), at(3), at(4));
        (look.backends[0].use_at, look.backends[1].use_at) = (at(5), at(6));
        let moments = Moments::of(at(7), &look);
        assert_eq!(moments.of_look(&before), Some((at(7), look)));
        assert_eq!(moments.of_look(&Look::nothing(1)), None, "another server");
        assert_eq!(Moments(vec![1, 2, 3, 4]).of_look(&Look::nothing(0)), None, "too few");
    }
}
