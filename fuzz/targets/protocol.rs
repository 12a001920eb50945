//! What arrives at the socket: refused or read; what was read is written and read again as the same, and is refused with a
//! reason, or becomes a command that the machine can be given.

use wechsler::{
    driver::{slots::Selections, status::Status},
    front::{
        api::{LONGEST_HOLD, hold_of, understand},
        problem::Problem,
        protocol::{CommandRequest, HoldRequest},
    },
    machine::{Command, Effect, Event, HoldSpec, Instant, Machine, Policy, RequestId},
};

use super::{Kinds, spec::sample, understood};

/// It as a `T`, if it can be read as one.
fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    data: &[u8],
) -> Option<T> {
    let read = serde_json::from_slice::<T>(data).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(read, again);
    Some(read)
}

/// What it is refused for can be written; what is taken, the machine answers at once.
fn is_answered(policy: &Policy, command: Result<Command, Problem>) {
    match command {
        Err(problem) => {
            assert!((400..500).contains(&problem.status) && !problem.code.is_empty(), "{problem:?}");
            let _ = serde_json::to_vec(&problem).expect("what is refused can be said");
        }
        Ok(command) => {
            let event = Event::Commanded { request: RequestId(1), command };
            let effects = Machine::new(policy.clone(), vec![]).step(Instant::START, &event);
            assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer { .. })), "{event:?}: {effects:?}");
        }
    }
}

pub fn run(data: &[u8]) -> Kinds {
    let policy = sample::quiet();
    let command = round_trip::<CommandRequest>(data);
    if let Some(request) = &command {
        let selections = Selections::default();
        let first = understand(request, &policy, &selections);
        assert_eq!(first, understand(request, &policy, &selections), "the same again is the same");
        is_answered(&policy, first);
    }
    let hold = round_trip::<HoldRequest>(data);
    if let Some(request) = &hold {
        let spec = hold_of(request.clone(), &policy);
        if let Ok(HoldSpec { lasts: Some(lasts), .. }) = spec {
            assert!(!lasts.is_zero() && lasts <= LONGEST_HOLD, "{lasts:?}");
        }
        is_answered(&policy, spec.map(Command::Hold));
    }
    understood([
        ("command", command.is_some()),
        ("hold", hold.is_some()),
        // The client reads this one, from a daemon that may be of another version.
        ("status", serde_json::from_slice::<Status>(data).is_ok()),
    ])
}
