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
        self.0.retain(|s| *s >= 0.0);
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
            Goal::Off => Some(boot? + down(None) + self.power_off.median()?),
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
    use crate::{
        driver::tests_policy,
        machine::{BackendId, BootId, Machine, Selection},
    };

    const LLAMA: BackendId = BackendId(0);
    const VLLM: BackendId = BackendId(1);

    fn times(seconds: f64) -> Times {
        Times(VecDeque::from([seconds]))
    }

    fn named(all: &[(&str, f64)]) -> BTreeMap<String, Times> {
        all.iter().map(|(name, seconds)| ((*name).into(), times(*seconds))).collect()
    }

    /// A server that is on, with these up.
    fn shows(up: &[BackendId]) -> View {
        let mut view = Machine::new(tests_policy(), vec![]).view();
        view.look.server = Server::On { boot: BootId(1), session: 1 };
        for (index, backend) in view.look.backends.iter_mut().enumerate() {
            let is_up = up.iter().any(|id| usize::from(id.0) == index);
            backend.seen = if is_up { Seen::Running } else { Seen::Stopped };
        }
        view
    }

    fn off() -> View {
        let mut view = shows(&[]);
        (view.look.server, view.place.kind) = (Server::Silent, Kind::Offline);
        view
    }

    #[test]
    fn an_operation_takes_as_long_as_all_that_it_has_to_do() {
        let history = History {
            boot: times(40.0),
            power_off: times(12.0),
            start: BTreeMap::new(),
            stop: named(&[("llama-cpp", 2.0), ("vllm", 3.0)]),
            save: named(&[("llama-cpp", 1.0)]),
            restore: named(&[("llama-cpp", 0.5)]),
        };
        let policy = tests_policy();
        let takes = |goal, view: &View| history.expected(goal, view, &policy, |index| [8.0, 80.0][index]);
        let (idle, llama, both) = (shows(&[]), shows(&[LLAMA]), shows(&[LLAMA, VLLM]));
        for (goal, view, seconds) in [
            (Goal::Run(LLAMA), &idle, 8.5),
            (Goal::Run(LLAMA), &off(), 48.5),
            (Goal::Run(VLLM), &llama, 83.0),
            (Goal::Run(LLAMA), &both, 11.5),
            (Goal::Restart(LLAMA), &llama, 11.5),
            (Goal::Restart(VLLM), &both, 86.0),
            (Goal::Awake, &idle, 0.0),
            (Goal::Awake, &off(), 40.0),
            (Goal::Off, &idle, 12.0),
            (Goal::Off, &llama, 15.0),
            (Goal::Stop, &idle, 0.0),
            (Goal::Stop, &both, 6.0),
            (Goal::Save(LLAMA, Selection::All), &llama, 1.0),
            (Goal::Restore(LLAMA, Selection::All), &llama, 0.5),
        ] {
            assert_eq!(takes(goal, view), Some(seconds), "{goal:?} with {:?}", view.look);
        }
    }

    #[test]
    fn what_was_never_timed_is_not_guessed_unless_it_is_short() {
        let policy = tests_policy();
        let history = History { power_off: times(12.0), ..History::default() };
        let takes = |goal, view: &View| history.expected(goal, view, &policy, |_| 8.0);
        assert_eq!(takes(Goal::Run(LLAMA), &off()), None, "a boot");
        assert_eq!(takes(Goal::Awake, &off()), None);
        assert_eq!(takes(Goal::Stop, &shows(&[LLAMA])), None);
        assert_eq!(takes(Goal::Save(LLAMA, Selection::All), &shows(&[LLAMA])), None);
        assert_eq!(takes(Goal::Run(LLAMA), &shows(&[VLLM])), Some(8.0), "stops are short");
        assert_eq!(takes(Goal::Off, &shows(&[LLAMA])), Some(12.0));
        assert_eq!(History::default().expected(Goal::Off, &shows(&[]), &policy, |_| 8.0), None);
    }

    #[test]
    fn each_order_is_timed_until_the_world_is_as_ordered() {
        let policy = tests_policy();
        let at = |seconds| Instant::after_start(Duration::from_secs(seconds));
        for (verb, before, after) in [
            (Verb::Wake, off(), shows(&[])),
            (Verb::StartUnit(VLLM), shows(&[]), shows(&[VLLM])),
            (Verb::StopUnit(VLLM), shows(&[VLLM]), shows(&[])),
            (Verb::PowerOff, shows(&[]), off()),
        ] {
            let (mut watch, mut history) = (Stopwatch::default(), History::default());
            watch.ordered(verb, at(10));
            assert!(!watch.looked(&before, at(11), &mut history, &policy), "{verb:?}");
            assert!(!watch.succeeded(verb, at(12), &mut history, &policy), "the answer of {verb:?} is not the fact");
            assert!(watch.looked(&after, at(15), &mut history, &policy), "{verb:?}");
            assert!(!watch.looked(&after, at(16), &mut history, &policy), "{verb:?} is timed once");
            assert_eq!(history.of(verb, &policy), Some(&mut times(5.0)), "{verb:?}");
        }
        for verb in [Verb::SaveSlots(LLAMA), Verb::RestoreSlots(LLAMA)] {
            let (mut watch, mut history) = (Stopwatch::default(), History::default());
            watch.ordered(verb, at(10));
            assert!(!watch.looked(&shows(&[LLAMA]), at(11), &mut history, &policy), "{verb:?}");
            assert!(!watch.succeeded(Verb::SaveSlots(VLLM), at(12), &mut history, &policy), "another order");
            assert!(watch.succeeded(verb, at(13), &mut history, &policy), "{verb:?}");
            assert_eq!(history.of(verb, &policy), Some(&mut times(3.0)), "{verb:?}");
        }
    }

    #[test]
    fn the_first_packet_counts_a_kill_is_part_of_the_stop_and_what_failed_is_not_timed() {
        let policy = tests_policy();
        let at = |seconds| Instant::after_start(Duration::from_secs(seconds));
        let (mut watch, mut history) = (Stopwatch::default(), History::default());
        watch.ordered(Verb::Wake, at(1));
        watch.ordered(Verb::Wake, at(4));
        assert!(watch.looked(&shows(&[VLLM]), at(41), &mut history, &policy));
        watch.ordered(Verb::StopUnit(VLLM), at(50));
        watch.ordered(Verb::KillUnit(VLLM), at(140));
        assert!(watch.looked(&shows(&[]), at(141), &mut history, &policy));
        watch.ordered(Verb::StartUnit(VLLM), at(150));
        watch.drop_running();
        assert!(!watch.looked(&shows(&[VLLM]), at(160), &mut history, &policy));
        let told = History { boot: times(40.0), stop: named(&[("vllm", 91.0)]), ..History::default() };
        assert_eq!(history, told);
    }

    #[test]
    fn only_what_is_configured_is_remembered() {
        let all = || named(&[("llama-cpp", 1.0), ("gone", 2.0), ("vllm", -3.0)]);
        let mut history = History {
            boot: times(-1.0),
            power_off: times(-1.0),
            start: all(),
            stop: all(),
            save: all(),
            restore: all(),
        };
        history.trim(&tests_policy());
        let left = BTreeMap::from([("llama-cpp".to_owned(), times(1.0)), ("vllm".to_owned(), Times::default())]);
        for map in [&history.start, &history.stop, &history.save, &history.restore] {
            assert_eq!(*map, left);
        }
        assert_eq!((history.boot, history.power_off), (Times::default(), Times::default()));
    }

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
        let mut times: Times = serde_json::from_str("[-1.0, 3.0]").expect("numbers");
        times.trim();
        assert_eq!(times, Times(VecDeque::from([3.0])));
        assert!(serde_json::from_str::<Times>("[1e400]").is_err());
    }
}
