//! How long things take here: a bounded history, from which `expected_seconds` is told.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::machine::{Goal, Instant, Kind, Policy, Seen, Server, Verb, View};

/// Durations remembered of each kind.
const KEPT: usize = 20;

/// The durations of one kind of thing, newest last, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Times(VecDeque<f64>);

impl Times {
    /// One more.
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push_back((took.as_secs_f64() * 1000.0).round() / 1000.0);
        self.trim();
    }

    /// The one in the middle; `None` without any.
    #[must_use]
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().checked_sub(1)? / 2).copied()
    }

    /// Drops what no duration can be, and the oldest beyond [`KEPT`].
    fn trim(&mut self) {
        self.0.retain(|s| s.is_finite() && *s >= 0.0);
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
    }
}

/// The history, as it is kept in `durations.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct History {
    /// From the first wake packet until the pinned key answered.
    pub boot: Times,
    /// From the order until nothing answered any more.
    pub power_off: Times,
    /// By backend's name: from the start order until healthy.
    pub start: BTreeMap<String, Times>,
    /// From the stop order until proven stopped.
    pub stop: BTreeMap<String, Times>,
    /// One order to save all slots.
    pub save: BTreeMap<String, Times>,
    /// One order to restore them.
    pub restore: BTreeMap<String, Times>,
}

impl History {
    /// Bounds what came from a file: only configured backends, no more than is kept.
    pub(super) fn trim(&mut self, policy: &Policy) {
        self.boot.trim();
        self.power_off.trim();
        for map in [&mut self.start, &mut self.stop, &mut self.save, &mut self.restore] {
            map.retain(|name, _| policy.named(name).is_some());
            map.values_mut().for_each(Times::trim);
        }
    }

    fn of(&mut self, verb: Verb, policy: &Policy) -> Option<&mut Times> {
        let (map, id) = match verb {
            Verb::Wake => return Some(&mut self.boot),
            Verb::PowerOff => return Some(&mut self.power_off),
            Verb::StartUnit(id) => (&mut self.start, id),
            Verb::StopUnit(id) => (&mut self.stop, id),
            Verb::SaveSlots(id) => (&mut self.save, id),
            Verb::RestoreSlots(id) => (&mut self.restore, id),
            Verb::KillUnit(_) => return None,
        };
        Some(map.entry(policy.backend(id).name.clone()).or_default())
    }

    /// Seconds until the backend is healthy after its start order: the median, else as configured.
    #[must_use]
    pub(super) fn start_of(&self, name: &str, configured: Duration) -> f64 {
        let known = self.start.get(name).and_then(Times::median);
        known.unwrap_or(configured.as_secs_f64())
    }

    /// Seconds an operation for `goal` takes from where `view` is. `None` where a part of it that counts was never timed.
    /// `start_of` says how long each backend takes to start.
    #[must_use]
    pub(super) fn expected(
        &self,
        goal: Goal,
        view: &View,
        policy: &Policy,
        start_of: impl Fn(usize) -> f64,
    ) -> Option<f64> {
        let known = |map: &BTreeMap<String, Times>, index: usize| {
            let name = &policy.backends.get(index)?.name;
            map.get(name).and_then(Times::median)
        };
        let is_on = matches!(view.look.server, Server::On { .. } | Server::Uncontrolled | Server::NotLooked);
        let boot = if is_on { Some(0.0) } else { self.boot.median() };
        // What is up must go first; seconds nobody has timed yet are few and left out.
        let down = |but: Option<usize>| -> f64 {
            let up = |(i, b): (usize, &crate::machine::BackendLook)| (b.seen.is_up() && Some(i) != but).then_some(i);
            let up = view.look.backends.iter().enumerate().filter_map(up);
            up.map(|i| known(&self.stop, i).unwrap_or_default() + known(&self.save, i).unwrap_or_default()).sum()
        };
        let index = |id: crate::machine::BackendId| usize::from(id.0);
        let up = |id| {
            let run = start_of(index(id));
            run + known(&self.restore, index(id)).unwrap_or_default()
        };
        match goal {
            Goal::Run(id) => Some(boot? + down(Some(index(id))) + up(id)),
            Goal::Restart(id) => Some(boot? + down(None) + up(id)),
            Goal::Awake => boot,
            Goal::Off => Some(down(None) + self.power_off.median()?),
            Goal::Stop => {
                let any = view.look.backends.iter().any(|b| b.seen.is_up());
                let took = down(None);
                (took > 0.0 || !any).then_some(took)
            }
            Goal::Save(id, _) => known(&self.save, index(id)),
            Goal::Restore(id, _) => known(&self.restore, index(id)),
        }
    }
}

/// Watches orders turn into facts, and notes how long that took.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopwatch {
    running: Option<(Verb, Instant)>,
}

impl Stopwatch {
    /// An order is given. Wake packets are repeated: the first one counts.
    pub(super) fn ordered(&mut self, verb: Verb, now: Instant) {
        match (verb, self.running) {
            (Verb::Wake, Some((Verb::Wake, _))) | (Verb::KillUnit(_), _) => {}
            _ => self.running = Some((verb, now)),
        }
    }

    /// The order failed, or its operation ended: there is nothing to time any more.
    pub(super) fn drop_running(&mut self) {
        self.running = None;
    }

    /// The answer of an order that is its own fact: saves and restores.
    pub(super) fn succeeded(&mut self, verb: Verb, now: Instant, history: &mut History, policy: &Policy) -> bool {
        let own_fact = matches!(verb, Verb::SaveSlots(_) | Verb::RestoreSlots(_));
        own_fact && self.note(verb, now, history, policy)
    }

    /// The world is as ordered. True when the history has grown.
    pub(super) fn looked(&mut self, view: &View, now: Instant, history: &mut History, policy: &Policy) -> bool {
        let Some((verb, _)) = self.running else {
            return false;
        };
        let seen = |id| view.look.backend(id).seen;
        let so = match verb {
            Verb::Wake => matches!(view.look.server, Server::On { .. }),
            Verb::StartUnit(id) => seen(id) == Seen::Running,
            Verb::StopUnit(id) => seen(id) == Seen::Stopped,
            Verb::PowerOff => view.place.kind == Kind::Offline,
            _ => false,
        };
        so && self.note(verb, now, history, policy)
    }

    fn note(&mut self, verb: Verb, now: Instant, history: &mut History, policy: &Policy) -> bool {
        let Some((_, began)) = self.running.take_if(|(running, _)| *running == verb) else {
            return false;
        };
        history.of(verb, policy).map(|times| times.add(now.since(began))).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_nothing_is_not_a_guess() {
        assert_eq!(Times::default().median(), None);
    }

    #[test]
    fn only_the_newest_durations_are_kept_and_one_outlier_does_not_move_the_median() {
        let mut times = Times::default();
        for seconds in 0..100 {
            times.add(Duration::from_secs(seconds));
        }
        times.add(Duration::from_secs(10_000));
        assert_eq!(times.0.len(), KEPT);
        assert_eq!(times.median(), Some(90.0));
    }

    #[test]
    fn a_file_cannot_bring_in_what_no_duration_can_be() {
        let mut times: Times = serde_json::from_str("[-1.0, 3.0, 1e400]").unwrap_or_default();
        times.trim();
        assert!(times.median().is_none_or(|m| (m - 3.0).abs() < 1e-9));
    }
}
