//! What the driver is told at its start.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use super::history::History;
use crate::{
    config::{Config, Probe},
    machine::{BackendKind, Policy},
};

/// What the driver is told at its start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the server, as `status` shows it.
    pub server: String,
    /// What the machine goes by.
    pub policy: Arc<Policy>,
    /// What `status` shows of each backend, in the order of [`Policy::backends`].
    pub backends: Vec<BackendFacts>,
    /// How the world is looked at.
    pub probe: Probe,
    /// Where holds, durations and the journal of steps are kept; `None` keeps nothing.
    pub state_dir: Option<PathBuf>,
    /// Called by the loop itself, so that it stops when the loop does.
    pub pulse: Option<Pulse>,
}

/// What `status` shows of a backend beside what is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Its unit on the server.
    pub unit: String,
    /// Where people and programs use it.
    pub public_url: String,
    /// How long a start usually takes, until history knows better.
    pub expected_start: Duration,
}

/// A sign of life, given from within the driver's loop.
#[derive(Clone)]
pub struct Pulse {
    /// How often.
    pub every: Duration,
    /// The sign. Must return at once.
    pub beat: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pulse({:?})", self.every)
    }
}

impl Setup {
    /// How long a start of a backend takes, seconds.
    pub(super) fn start_of(&self, index: usize, history: &History) -> f64 {
        match (self.policy.backends.get(index), self.backends.get(index)) {
            (Some(policy), Some(facts)) => history.start_of(&policy.name, facts.expected_start),
            _ => 0.0,
        }
    }
}

impl From<&Config> for Setup {
    fn from(config: &Config) -> Self {
        let facts = |b: &crate::config::Backend| BackendFacts {
            unit: b.unit.clone(),
            public_url: b.public_url.clone(),
            expected_start: b.expected_start,
        };
        Self {
            server: config.server.name.clone(),
            policy: Arc::new(config.policy.clone()),
            backends: config.backends.iter().map(facts).collect(),
            probe: config.probe,
            state_dir: Some(config.daemon.state_dir.clone()),
            pulse: None,
        }
    }
}

/// The word for a kind of backend, as in `backends.NAME.kind`.
#[must_use]
pub(super) const fn kind_name(kind: BackendKind) -> &'static str {
    match kind {
        BackendKind::LlamaCpp => "llama-cpp",
        BackendKind::Vllm => "vllm",
        BackendKind::Generic => "generic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_takes_as_long_as_it_used_to_or_as_it_is_configured() {
        let setup = crate::driver::tests_setup();
        let mut history = History::default();
        history.start.entry("llama-cpp".into()).or_default().add(Duration::from_secs(5));
        let all: Vec<f64> = (0..3).map(|index| setup.start_of(index, &history)).collect();
        assert_eq!(all, [5.0, 80.0, 0.0]);
    }

    #[test]
    fn a_kind_is_called_as_in_the_configuration() {
        let kinds = [BackendKind::LlamaCpp, BackendKind::Vllm, BackendKind::Generic];
        assert_eq!(kinds.map(kind_name), ["llama-cpp", "vllm", "generic"]);
    }
}
