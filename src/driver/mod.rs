//! The driver: the one task that owns the machine.
//!
//! [`spawn`] starts it. It looks at the world through [`World`] when [`probe`] says so, has each reading judged, steps the
//! machine, carries out what the machine asks for, and publishes what came of it. Nothing else changes anything:
//!
//! - between receiving an event and having started all its effects nothing is awaited, so no event sees half of another;
//! - every look and every order has its own bound; one that hangs costs its own answer and nothing else;
//! - a panic in a look or an order ends the driver: systemd starts the daemon anew, and a fresh look is always right.

mod changes;
mod clock;
mod gpu_trouble;
pub mod handle;
mod history;
mod journal;
mod keep;
mod oddities;
mod operations;
mod probe;
mod proof;
mod publish;
mod setup;
pub mod slots;
pub mod status;
mod task;
mod unsaved;
pub mod world;

pub use handle::{Change, Handle, NotSaved, OperationRecord, Request};
pub use journal::replay;
pub use setup::{BackendFacts, Pulse, Setup};
pub use task::{LOOK_AT_MOST, POST_MORTEM_AT_MOST, SHUTDOWN_AT_MOST, VERB_SLACK, spawn};
pub use world::{PostMortem, World};

#[cfg(test)]
pub(crate) fn tests_policy() -> crate::machine::Policy {
    use std::time::Duration;

    use crate::machine::{BackendId, BackendKind, BackendPolicy, OnStartTimeout, Policy, RestorePolicy, WakeCheck};
    let backend = |name: &str, kind, slots| BackendPolicy {
        name: name.into(),
        kind,
        start_timeout: Duration::from_mins(2),
        on_start_timeout: OnStartTimeout::Leave,
        drain_timeout: Duration::from_mins(1),
        stop_timeout: Duration::from_secs(90),
        kill_timeout: Duration::from_secs(15),
        slots,
        restore: RestorePolicy::Auto,
        save_timeout: Duration::from_mins(1),
        restore_timeout: Duration::from_mins(1),
        checkpoint_tokens: None,
        checkpoint_quiet: None,
    };
    Policy {
        backends: vec![backend("llama-cpp", BackendKind::LlamaCpp, true), backend("vllm", BackendKind::Vllm, false)],
        default_backend: BackendId(0),
        can_wake: true,
        wake_check: WakeCheck::Warn,
        wake_resend: Duration::from_secs(3),
        boot_timeout: Duration::from_mins(5),
        power_off_timeout: Duration::from_mins(3),
        command_timeout: Duration::from_secs(10),
        silence: Duration::from_secs(30),
        misses: 3,
        conflict_after: Duration::from_secs(5),
        idle_stop_after: None,
        idle_power_off_after: None,
        policy_backoff: Duration::from_mins(1),
        gpu_baseline_mib: Some(500),
    }
}

#[cfg(test)]
pub(crate) fn tests_setup() -> Setup {
    use std::time::Duration;

    let facts = |name: &str, seconds| BackendFacts {
        unit: format!("{name}.service"),
        public_url: format!("http://{name}:8080/v1"),
        expected_start: Duration::from_secs(seconds),
    };
    Setup {
        server: "gpu".into(),
        policy: tests_policy().into(),
        backends: vec![facts("llama-cpp", 8), facts("vllm", 80)],
        probe: crate::config::Probe {
            rest: Duration::from_secs(10),
            busy: Duration::from_millis(30),
            waiting: Duration::from_secs(1),
            http_timeout: Duration::from_secs(2),
        },
        state_dir: None,
        pulse: None,
    }
}

/// A unit of which nothing else is known.
#[cfg(test)]
pub(crate) fn tests_unit(active: crate::machine::reading::ActiveState) -> crate::machine::reading::UnitState {
    crate::machine::reading::UnitState {
        active,
        sub: String::new(),
        job: false,
        main_pid: None,
        invocation: None,
        restarts: 0,
        result: String::new(),
        exec_status: 0,
        active_since: None,
        timeout_stop: None,
        fragment: String::new(),
        enabled: String::new(),
        processes_left: false,
    }
}

#[cfg(test)]
pub(crate) fn tests_saved_slot() -> crate::machine::reading::SavedSlot {
    crate::machine::reading::SavedSlot {
        name: "localbot".into(),
        file: "f".into(),
        slot: 0,
        bytes: 1,
        tokens: 1,
        saved_at: 0,
        model: "m".into(),
        n_ctx: 4096,
        put_aside: None,
        generation: 1,
        last_restore: None,
        restored_into: None,
        useless: None,
        named: false,
    }
}
