//! Policy: every configured duration, count and choice the machine decides by. Made and checked by `config`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BackendId;

/// What the machine goes by. Relations between fields are checked by [`crate::config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The backends, in configuration order; at least one, at most [`Policy::MOST_BACKENDS`].
    pub backends: Vec<BackendPolicy>,
    /// The backend of a bare `start`.
    pub default_backend: BackendId,
    /// Some way of waking is configured.
    pub can_wake: bool,
    /// What an unarmed network card means for a power-off.
    pub wake_check: WakeCheck,
    /// Between two rounds of wake packets; not zero.
    pub wake_resend: Duration,
    /// From the first packet until the pinned key must have answered.
    pub boot_timeout: Duration,
    /// From the order to power off until nothing may answer any more.
    pub power_off_timeout: Duration,
    /// How long one order over SSH may take; not zero. Shorter than every timeout of a state that waits for one.
    pub command_timeout: Duration,
    /// Nothing must have answered for so long before a server counts as off. In time, so that the pace of looking does not matter.
    pub silence: Duration,
    /// ... and so many looks in a row must have found nothing.
    pub misses: u32,
    /// Two backends must be up for so long before it is a conflict.
    pub conflict_after: Duration,
    /// Stop the backend after so long without use; `None` is never.
    pub idle_stop_after: Option<Duration>,
    /// Power the server off after so long without a backend; `None` is never.
    pub idle_power_off_after: Option<Duration>,
    /// A policy that failed waits so long, doubling up to an hour, before it tries again; not zero.
    pub policy_backoff: Duration,
    /// Memory in use on an idle GPU, MiB; a backend counts as stopped only once no GPU holds more. `None`: not compared.
    pub gpu_baseline_mib: Option<u64>,
}

/// What the machine goes by for one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPolicy {
    /// Its name, as in `[backends.NAME]`.
    pub name: String,
    /// What program it is.
    pub kind: BackendKind,
    /// From the start order until healthy.
    pub start_timeout: Duration,
    /// What becomes of a unit whose start timed out.
    pub on_start_timeout: OnStartTimeout,
    /// How long to wait for requests in flight before it is stopped.
    pub drain_timeout: Duration,
    /// From the stop order until the one kill. At least the unit's own `TimeoutStopSec`.
    pub stop_timeout: Duration,
    /// From the kill until it is given up as stuck.
    pub kill_timeout: Duration,
    /// It has slots to save: llama.cpp with a slot folder.
    pub slots: bool,
    /// When saved slots are restored.
    pub restore: RestorePolicy,
    /// How long all saves before a stop may take together.
    pub save_timeout: Duration,
    /// How long a restore may take.
    pub restore_timeout: Duration,
    /// Slots that have come to hold so many tokens more than were saved are saved in the next quiet moment; `None`: not
    /// before the stop.
    pub checkpoint_tokens: Option<u64>,
    /// Slots that were used are saved after so long a quiet; `None`: not before the stop.
    pub checkpoint_quiet: Option<Duration>,
}

impl BackendPolicy {
    /// It is saved while it goes on running.
    #[must_use]
    pub const fn has_checkpoints(&self) -> bool {
        self.checkpoint_tokens.is_some() || self.checkpoint_quiet.is_some()
    }
}

/// What program a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// llama.cpp's `llama-server`.
    LlamaCpp,
    /// vLLM's `OpenAI` server.
    Vllm,
    /// Anything with a unit, a URL and a health path.
    Generic,
}

/// What becomes of a unit whose start timed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStartTimeout {
    /// It is left to itself; a late 200 still counts.
    #[default]
    Leave,
    /// It is stopped.
    Stop,
}

/// When saved slots are restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestorePolicy {
    /// By every operation that starts it, and when it came up by itself and was not used yet.
    #[default]
    Auto,
    /// By every operation that starts it; offered when it came up by itself.
    Offer,
    /// Only by `slots restore`.
    Never,
}

/// What an unarmed network card means for a power-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakeCheck {
    /// No power-off unless it is known to be armed.
    Require,
    /// No power-off if it is known not to be armed; not knowing is a warning.
    #[default]
    Warn,
    /// Not asked.
    Off,
}

impl Policy {
    /// More backends than this are refused by the configuration.
    pub const MOST_BACKENDS: usize = 32;

    /// The policy of backend `id`.
    ///
    /// # Panics
    /// If `id` is not of this configuration: ids are only minted from it.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> &BackendPolicy {
        &self.backends[usize::from(id.0)]
    }

    /// The ids of all backends.
    pub fn ids(&self) -> impl Iterator<Item = BackendId> + use<> {
        (0..self.backends.len()).map(|i| BackendId(u8::try_from(i).unwrap_or(u8::MAX)))
    }

    /// The backend of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<BackendId> {
        self.ids().find(|id| self.backend(*id).name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::evidence::tests::policy;

    #[test]
    fn a_backend_is_found_by_its_own_name_only() {
        let policy = policy(&[BackendKind::LlamaCpp, BackendKind::Vllm]);
        for (name, id) in [("LlamaCpp", Some(BackendId(0))), ("Vllm", Some(BackendId(1))), ("vllm", None), ("", None)] {
            assert_eq!(policy.named(name), id, "{name}");
        }
    }

    #[test]
    fn a_backend_has_checkpoints_if_either_tokens_or_a_quiet_bring_them_about() {
        let mut backend = policy(&[BackendKind::LlamaCpp]).backends.remove(0);
        let quiet = Some(Duration::from_secs(1));
        for (tokens, quiet, expected) in
            [(None, None, false), (Some(1), None, true), (None, quiet, true), (Some(1), quiet, true)]
        {
            (backend.checkpoint_tokens, backend.checkpoint_quiet) = (tokens, quiet);
            assert_eq!(backend.has_checkpoints(), expected, "{tokens:?}, {quiet:?}");
        }
    }
}
