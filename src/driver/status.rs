//! The status document: what the daemon says of the present, to people and programs. A contract: see
//! `status.schema.json`. What cannot be known is null, never a guess. Times are RFC 3339.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// The version of the document's form.
pub const SCHEMA: u32 = 1;

/// `status --json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the server.
    pub server: String,
    /// "on", "off" or "unknown".
    pub gpu_server: String,
    /// The public name of the leaf, as `gpu-idle`, `llama-cpp-starting`.
    pub state: String,
    /// Why `gpu_server` is off: `powered-off`, `unreachable`, `booting`, `preboot`, `wrong-host-key`, `auth-refused`.
    pub reason: Option<String>,
    /// What is finer than `state`: `starting`, `restoring`, `draining`, `saving`, `stopping`, `auto-restart`, `booting` …
    pub phase: Option<String>,
    /// Since when this state.
    pub since: Option<String>,
    /// "ok" or "unreachable" (a backend answers, SSH does not); null when the server is off.
    pub control: Option<String>,
    /// Name of the backend that is up.
    pub active_backend: Option<String>,
    /// "ok", "starting", "stopping", "failing", "conflict", "unknown": about what is wanted; a server asleep on purpose is "ok".
    pub health: String,
    /// How long the active backend has been up, seconds.
    pub uptime_seconds: Option<u64>,
    /// The operation under way.
    pub operation: Option<OperationStatus>,
    /// The model of the active backend.
    pub model: Option<ModelStatus>,
    /// The slots of the active llama.cpp.
    pub slots: Vec<SlotStatus>,
    /// Names of saved slots.
    pub saved_slots: Vec<String>,
    /// More about them.
    pub saved_slot_details: Vec<SavedSlotStatus>,
    /// A saved slot could be restored now (offered, not done by itself).
    pub restore_available: bool,
    /// `gpu0`, `gpu1`, …; null when it cannot be read.
    pub gpu_memory: Option<BTreeMap<String, GpuMemory>>,
    /// Every configured backend by name.
    pub backends: BTreeMap<String, BackendStatus>,
    /// What the daemon will do by itself next.
    pub next_action: Option<NextActionStatus>,
    /// Who or what keeps the server in use.
    pub blockers: Vec<Blocker>,
    /// What needs a person.
    pub attention: Vec<AttentionStatus>,
    /// The last operation that failed.
    pub last_error: Option<ErrorStatus>,
    /// The holds in force.
    pub holds: Vec<HoldStatus>,
    /// How old each reading is, seconds; absent: never read.
    pub ages: BTreeMap<String, f64>,
    /// When the document was made, for [`Status::at`]; no part of the document.
    #[serde(skip)]
    pub made: Option<tokio::time::Instant>,
}

impl Status {
    /// The same document with everything that counts seconds brought up to `now`: between two looks at rest a minute may
    /// pass, and nothing but time has.
    #[must_use]
    pub fn at(&self, now: tokio::time::Instant) -> Self {
        let mut status = self.clone();
        let passed = self.made.map_or(Duration::ZERO, |made| now.saturating_duration_since(made));
        let seconds = (passed.as_secs_f64() * 1000.0).round() / 1000.0;
        status.made = Some(now);
        status.uptime_seconds = self.uptime_seconds.map(|s| s + passed.as_secs());
        for age in status.ages.values_mut() {
            *age += seconds;
        }
        if let Some(operation) = &mut status.operation {
            operation.elapsed_seconds += seconds;
        }
        for used in status.backends.values_mut().filter_map(|b| b.last_used_seconds.as_mut()) {
            *used += seconds;
        }
        status
    }
}

/// `operation`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// As in `GET /v1/operations/{id}`.
    pub id: u64,
    /// `start`, `restart`, `stop`, `wake`, `power-off`, `save`, `restore`.
    pub kind: String,
    /// The backend wanted, where there is one.
    pub goal: Option<String>,
    /// `command`, `idle_stop`, `idle_power_off`, `auto_restore`, `checkpoint`.
    pub cause: String,
    /// Public phase: `waking`, `starting`, `restoring`, `draining`, `saving`, `stopping`, `powering-off`, `looking`.
    pub phase: String,
    /// When it began.
    pub started: String,
    /// Seconds since then.
    pub elapsed_seconds: f64,
    /// How long such an operation usually takes, from history; else from the configuration.
    pub expected_seconds: Option<f64>,
}

/// `model`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// As the backend calls it.
    pub id: String,
    /// Context size, tokens.
    pub n_ctx: Option<u64>,
}

/// One of `slots`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Slot number.
    pub id: u32,
    /// Context size, tokens.
    pub n_ctx: u64,
    /// A request is being processed.
    pub is_processing: bool,
    /// Tokens held.
    pub tokens: Option<u64>,
    /// Tokens that were restored into it since the start and not used yet: until then the server shows it as unused.
    #[serde(default)]
    pub restored_tokens: Option<u64>,
}

/// One of `saved_slot_details`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedSlotStatus {
    /// The name people know it by.
    pub name: String,
    /// Backend it belongs to.
    pub backend: String,
    /// File size.
    pub bytes: u64,
    /// When.
    pub saved_at: String,
    /// Model it belongs to.
    pub model: String,
    /// Tokens saved.
    pub tokens: u64,
    /// Put aside after a failed restore, and why.
    pub put_aside: Option<String>,
    /// The slot of the server it was saved from.
    #[serde(default)]
    pub slot: u32,
    /// Counts the saves of its backend: tells it from others of its name.
    #[serde(default)]
    pub generation: u64,
    /// The last restore of it; null if there was none.
    #[serde(default)]
    pub last_restore: Option<RestoreStatus>,
    /// Not restored by itself, and why.
    #[serde(default)]
    pub useless: Option<String>,
}

/// A restore that was done, and what it was worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreStatus {
    /// When.
    pub at: String,
    /// Tokens that came back.
    pub tokens: u64,
    /// `effective`, `ineffective`, or `unknown` until the first request in its slot has told; and after it, where it could
    /// not be told from others.
    pub verdict: String,
    /// The same for people: "not used yet", "effective, 98% of the prompt reused".
    #[serde(default)]
    pub text: String,
    /// Tokens of that request's prompt that were found in the cache.
    pub reused: Option<u64>,
    /// ... and computed anew.
    pub computed: Option<u64>,
}

/// Memory of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// In use, MiB.
    pub used_mib: Option<u64>,
    /// In all, MiB.
    pub total_mib: Option<u64>,
}

/// One of `backends`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// `llama-cpp`, `vllm`, `generic`.
    pub kind: String,
    /// For people and programs that want to use it.
    pub url: String,
    /// `unknown`, `missing`, `stopped`, `lingering`, `loading`, `running`, `crash-loop`, `sick`, `stranger`.
    pub state: String,
    /// Its systemd unit, as systemd shows it: name, active state, sub state, result, fragment path.
    pub unit: UnitStatus,
    /// Requests in flight.
    pub in_flight: Option<u32>,
    /// Seconds since its last use, where known.
    pub last_used_seconds: Option<f64>,
    /// How long a start takes, from history; else what the configuration expects.
    pub start_seconds_expected: Option<f64>,
}

/// `backends.NAME.unit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Unit name.
    pub name: String,
    /// `ActiveState`.
    pub active: Option<String>,
    /// `SubState`.
    pub sub: Option<String>,
    /// `Result`.
    pub result: Option<String>,
    /// `ExecMainStatus`.
    pub exec_status: Option<i32>,
    /// `NRestarts`.
    pub restarts: Option<u32>,
    /// `FragmentPath`.
    pub fragment: Option<String>,
}

/// `next_action`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NextActionStatus {
    /// `stop`, `power-off`, `restore`.
    pub what: String,
    /// When.
    pub at: String,
    /// By which policy, as `idle.stop_after`.
    pub because: String,
}

/// One of `blockers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Blocker {
    /// `request`, `hold`, `login`, `inhibitor`, `gpu_process`, `unknown`.
    pub kind: String,
    /// Who or what, for people.
    pub what: String,
    /// What it blocks: `stop`, `start`, `power-off`.
    pub blocks: Vec<String>,
}

/// One of `attention`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttentionStatus {
    /// Stable code.
    pub code: String,
    /// What is so.
    pub message: String,
    /// What a person can do.
    pub hint: String,
    /// Since when.
    pub since: String,
    /// Whose it is, for the daemon, which compares two of its own; no part of the document.
    #[serde(skip)]
    pub backend: Option<String>,
}

/// `last_error`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// Stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What a person can do.
    pub hint: String,
    /// When.
    pub at: String,
}

/// One of `holds`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// For `release`.
    pub id: u64,
    /// `awake`, `gpu`, `off`, or a backend's name.
    pub what: String,
    /// Until when; null until released.
    pub until: Option<String>,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whatever_counts_seconds_goes_on_between_two_looks() {
        let made = tokio::time::Instant::now();
        let used = |last_used_seconds| BackendStatus { last_used_seconds, ..BackendStatus::default() };
        let status = Status {
            uptime_seconds: Some(60),
            ages: BTreeMap::from([("gpu".into(), 1.5)]),
            operation: Some(OperationStatus { elapsed_seconds: 2.0, ..OperationStatus::default() }),
            backends: BTreeMap::from([("a".into(), used(Some(7.25))), ("b".into(), used(None))]),
            made: Some(made),
            ..Status::default()
        };
        let later = status.at(made + Duration::from_millis(2500));
        assert_eq!(later.uptime_seconds, Some(62));
        assert_eq!(later.ages["gpu"].to_string(), "4");
        assert_eq!(later.operation.map(|op| op.elapsed_seconds.to_string()).as_deref(), Some("4.5"));
        assert_eq!(later.backends["a"].last_used_seconds, Some(9.75));
        assert_eq!(later.backends["b"].last_used_seconds, None);
        assert_eq!(later.made, Some(made + Duration::from_millis(2500)));
        let never_made = Status { made: None, ..status };
        assert_eq!(never_made.at(made).uptime_seconds, Some(60));
    }
}
