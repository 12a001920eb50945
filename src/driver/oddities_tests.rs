use super::*;
use crate::{
    driver::{tests_policy, tests_saved_slot},
    machine::{
        Machine,
        reading::{Activity, GpuDevice, GpuProcess, Identity, SavedSlot},
    },
};

const RUN: Invocation = Invocation(7);

fn at(seconds: u64) -> Instant {
    Instant::after_start(Duration::from_secs(seconds))
}

/// llama.cpp runs, healthy since second 10.
struct Scene {
    policy: Policy,
    view: View,
    reading: Reading,
    oddities: Oddities,
}

impl Scene {
    fn new() -> Self {
        let policy = tests_policy();
        let mut scene = Self {
            view: Machine::new(policy.clone(), vec![]).view(),
            policy,
            reading: Reading { backends: vec![BackendReading::default(); 2], ..Reading::default() },
            oddities: Oddities::default(),
        };
        scene.runs(RUN, 10);
        scene
    }

    fn runs(&mut self, run: Invocation, second: u64) {
        self.view.look.backends[0].seen = Seen::Running;
        self.view.look.backends[0].invocation = Some(run);
        self.view.backends[0].ready = Some(run);
        self.reading.backends[0].run = Some(Dated { at: at(second), value: run });
        self.note(second);
    }

    fn note(&mut self, second: u64) -> Vec<&'static str> {
        self.oddities.note(&self.reading, &self.view, &self.policy, at(second));
        self.oddities.found().iter().map(|odd| odd.code).collect()
    }

    fn gpu(&mut self, second: u64, used: Option<u64>, processes: Vec<GpuProcess>) -> Vec<&'static str> {
        let devices = vec![GpuDevice { index: 0, used_mib: used, total_mib: Some(24_000) }];
        self.reading.gpu = Some(Dated { at: at(second), value: Gpu::Read { devices, processes } });
        self.note(second)
    }

    fn used(&mut self, second: u64, activity: Activity) -> Vec<&'static str> {
        self.reading.backends[0].activity = Some(Dated { at: at(second), value: activity });
        self.note(second)
    }

    fn busy(&mut self, second: u64, in_flight: u32, mark: Option<u64>) -> Vec<&'static str> {
        self.used(second, Activity { in_flight: Some(in_flight), mark, ..Activity::default() })
    }
}

fn process(backend: Option<usize>) -> GpuProcess {
    GpuProcess { pid: 7, name: "server".into(), user: None, used_mib: Some(9000), backend, ignored: false }
}

#[test]
fn a_backend_off_the_gpu_is_told_where_that_can_be_told() {
    let mut scene = Scene::new();
    assert_eq!(scene.gpu(5, Some(10), vec![]), [""; 0], "read before it was up");
    assert_eq!(scene.gpu(11, Some(10), vec![]), ["gpu_unused"], "all memory is at its baseline");
    assert_eq!(scene.gpu(12, Some(9010), vec![process(Some(0))]), [""; 0]);
    assert_eq!(scene.gpu(13, Some(9010), vec![]), ["gpu_unused"], "an earlier look saw it there");
    assert_eq!(scene.oddities.found()[0].since, at(13));
    assert_eq!(scene.gpu(14, Some(9010), vec![]).len(), 1);
    assert_eq!(scene.oddities.found()[0].since, at(13), "still the same");
    scene.view.look.backends[0].sleeping = true;
    assert_eq!(scene.note(15), [""; 0], "asleep it need not be there");
}

#[test]
fn a_gpu_that_cannot_tell_accuses_nobody() {
    // A container without the host's process ids: an empty list, and memory in use.
    assert_eq!(Scene::new().gpu(11, Some(9010), vec![]), [""; 0]);
    // Unified memory: no numbers at all.
    assert_eq!(Scene::new().gpu(11, None, vec![]), [""; 0]);
    // A process whose unit cannot be told may be it.
    assert_eq!(Scene::new().gpu(11, Some(10), vec![process(None)]), [""; 0]);
    let mut without = Scene::new();
    without.policy.gpu_baseline_mib = None;
    assert_eq!(without.gpu(11, Some(10), vec![]), [""; 0]);
    let mut generic = Scene::new();
    generic.policy.backends[0].kind = BackendKind::Generic;
    assert_eq!(generic.gpu(11, Some(10), vec![]), [""; 0], "it may be meant to run on the processor");
    let mut broken = Scene::new();
    broken.reading.gpu = Some(Dated { at: at(11), value: Gpu::Hangs });
    assert_eq!(broken.note(11), [""; 0]);
}

#[test]
fn requests_that_get_nowhere_are_told_after_ten_minutes() {
    let mut scene = Scene::new();
    for second in (20..=600).step_by(20) {
        assert_eq!(scene.busy(second, 1, Some(second)), [""; 0], "it works on");
    }
    for second in (620..1200).step_by(20) {
        assert_eq!(scene.busy(second, 1, Some(600)), [""; 0], "{second}");
    }
    assert_eq!(scene.busy(1200, 1, Some(600)), ["no_progress"]);
    assert_eq!(scene.busy(1220, 0, Some(600)), [""; 0], "nobody waits any more");
    for second in (1240..2000).step_by(20) {
        assert_eq!(scene.busy(second, 0, Some(600)), [""; 0]);
        assert_eq!(scene.busy(second + 10, 1, None), [""; 0], "no counters, no word");
    }
}

#[test]
fn another_run_begins_anew() {
    let mut scene = Scene::new();
    scene.busy(20, 1, Some(0));
    scene.runs(Invocation(8), 500);
    assert_eq!(scene.busy(620, 1, Some(0)), [""; 0]);
    assert_eq!(scene.busy(1220, 1, Some(0)), ["no_progress"]);
}

#[test]
fn slots_that_are_not_restored_any_more_are_told_while_it_runs() {
    let mut scene = Scene::new();
    let useless = SavedSlot { useless: Some("nothing of two restores was used".into()), ..tests_saved_slot() };
    scene.reading.backends[0].saved = Some(Dated { at: at(20), value: vec![tests_saved_slot(), useless] });
    assert_eq!(scene.note(20), ["restore_ineffective"]);
    assert!(scene.oddities.found()[0].message.contains("two restores"));
    scene.view.look.backends[0].seen = Seen::Stopped;
    assert_eq!(scene.note(21), [""; 0]);
}

#[test]
fn saved_slots_of_another_model_or_put_aside_are_told_until_the_first_use() {
    let mut scene = Scene::new();
    let answers = Identity { model: Some("new".into()), n_ctx: None, build: None };
    scene.reading.backends[0].http = Some(Dated { at: at(20), value: Http::Ready(answers) });
    scene.view.look.backends[0].unused = true;
    let aside = SavedSlot { put_aside: Some("sha256 differs".into()), ..tests_saved_slot() };
    for (saved, told) in [
        (vec![aside.clone(), tests_saved_slot()], "it was saved by model m, and new answers"),
        (vec![aside.clone(), aside], "none of 2 saved generations is good, the newest: sha256 differs"),
    ] {
        scene.reading.backends[0].saved = Some(Dated { at: at(20), value: saved });
        assert_eq!(scene.note(20), ["slots_unfit"]);
        let message = &scene.oddities.found()[0].message;
        assert!(message.ends_with(told), "{message}");
    }
    scene.view.look.backends[0].restorable = true;
    assert_eq!(scene.note(21), [""; 0], "something may come back");
    scene.view.look.backends[0].restorable = false;
    scene.view.look.backends[0].unused = false;
    assert_eq!(scene.note(22), [""; 0], "it was used");
    scene.view.look.backends[0].unused = true;
    let chosen = SavedSlot { named: true, ..tests_saved_slot() };
    scene.reading.backends[0].saved = Some(Dated { at: at(23), value: vec![chosen] });
    assert_eq!(scene.note(23), [""; 0], "it never comes back by itself");
    let empty = SavedSlot { tokens: 0, ..tests_saved_slot() };
    scene.reading.backends[0].saved = Some(Dated { at: at(24), value: vec![empty] });
    assert_eq!(scene.note(24), [""; 0], "there is nothing to come back");
}

#[test]
fn slots_that_nobody_wants_back_or_that_may_still_come_are_not_missed() {
    let unfit = |change: fn(&mut Scene)| {
        let mut scene = Scene::new();
        let answers = Identity { model: Some("new".into()), n_ctx: None, build: None };
        scene.reading.backends[0].http = Some(Dated { at: at(20), value: Http::Ready(answers) });
        scene.reading.backends[0].saved = Some(Dated { at: at(20), value: vec![tests_saved_slot()] });
        scene.view.look.backends[0].unused = true;
        change(&mut scene);
        scene.note(20)
    };
    assert_eq!(unfit(|_| {}), ["slots_unfit"]);
    assert_eq!(unfit(|scene| scene.policy.backends[0].slots = false), [""; 0]);
    assert_eq!(unfit(|scene| scene.policy.backends[0].restore = RestorePolicy::Never), [""; 0]);
    assert_eq!(unfit(|scene| scene.view.look.backends[0].seen = Seen::Loading), [""; 0]);
}

#[test]
fn what_is_odd_of_one_backend_began_when_it_did_of_that_one() {
    let mut scene = Scene::new();
    let closed = BackendReading::default();
    let open = BackendReading { folder_is_open: Some(true), ..BackendReading::default() };
    for (second, backends) in [(20, [&open, &closed]), (30, [&open, &open])] {
        scene.reading.backends = backends.map(Clone::clone).to_vec();
        scene.note(second);
    }
    let since: Vec<_> = scene.oddities.found().iter().map(|odd| (odd.backend.0, odd.since)).collect();
    assert_eq!(since, [(0, at(20)), (1, at(30))]);
}

#[test]
fn a_slot_folder_that_is_open_to_others_is_told_until_it_is_closed() {
    let mut scene = Scene::new();
    let told = |is_open: Option<bool>| Reading {
        backends: vec![BackendReading { folder_is_open: is_open, ..BackendReading::default() }],
        ..Reading::default()
    };
    scene.reading.absorb(told(Some(true)));
    assert_eq!(scene.note(20), ["slots_folder_open"]);
    scene.reading.absorb(told(None));
    scene.view.look.backends[0].seen = Seen::Stopped;
    assert_eq!(scene.note(21), ["slots_folder_open"], "nobody has looked again, and the files lie there all the same");
    scene.reading.absorb(told(Some(false)));
    assert_eq!(scene.note(22), [""; 0]);
}

#[test]
fn a_backend_that_cannot_save_is_told() {
    let mut scene = Scene::new();
    let cannot = |why: &str| Activity { cannot_save: Some(why.into()), ..Activity::default() };
    assert_eq!(scene.used(20, cannot("router mode")), ["save_not_supported"]);
    assert!(scene.oddities.found()[0].message.contains("router mode"));
    scene.policy.backends[0].slots = false;
    assert_eq!(scene.note(21), [""; 0], "nobody wants it to");
}
