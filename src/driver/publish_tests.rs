use std::time::Duration;

use super::*;
use crate::{
    driver::{BackendFacts, tests_policy},
    machine::{
        BootId, HoldId, Invocation, Machine, OpId, Operation, Place, RequestId,
        reading::{ActiveState, GpuDevice, GpuProcess, Reuse, UnitState},
    },
};

struct Scene {
    setup: Setup,
    clock: Clock,
    view: View,
    reading: Reading,
    history: History,
    powered_off: bool,
}

impl Scene {
    fn new() -> Self {
        let policy = tests_policy();
        let facts = |name: &str, seconds| BackendFacts {
            unit: format!("{name}.service"),
            public_url: format!("http://{name}:8080/v1"),
            expected_start: Duration::from_secs(seconds),
        };
        let probe = crate::config::Probe {
            rest: Duration::from_secs(10),
            busy: Duration::from_millis(30),
            waiting: Duration::from_secs(1),
            http_timeout: Duration::from_secs(2),
        };
        Self {
            view: Machine::new(policy.clone(), vec![]).view(),
            reading: Reading { backends: vec![BackendReading::default(); 2], ..Reading::default() },
            setup: Setup {
                server: "gpu".into(),
                policy: policy.into(),
                backends: vec![facts("llama-cpp", 8), facts("vllm", 80)],
                probe,
                state_dir: None,
                pulse: None,
            },
            clock: Clock::start(),
            history: History::default(),
            powered_off: false,
        }
    }

    /// llama.cpp runs, healthy.
    fn running() -> Self {
        let mut scene = Self::new();
        scene.place(Kind::Running, Some(0));
        scene.view.look.server = Server::On { boot: BootId(1), session: 1 };
        scene.view.look.backends[0].seen = Seen::Running;
        scene.view.look.backends[0].use_ = Use::Idle;
        scene.view.look.backends[1].seen = Seen::Stopped;
        let backend = &mut scene.reading.backends[0];
        backend.unit = dated(Unit::Loaded(UnitState {
            active: ActiveState::Active,
            sub: "running".into(),
            job: false,
            main_pid: Some(7),
            invocation: Some(Invocation(1)),
            restarts: 0,
            result: "success".into(),
            exec_status: 0,
            active_since: None,
            timeout_stop: None,
            fragment: "/etc/systemd/system/llama-cpp.service".into(),
            enabled: "enabled".into(),
            processes_left: false,
        }));
        backend.http =
            dated(Http::Ready(Identity { model: Some("Nemotron".into()), n_ctx: Some(196_608), build: None }));
        backend.activity = dated(Activity {
            in_flight: Some(0),
            slots: vec![SlotReading { id: 0, n_ctx: 196_608, is_processing: false, tokens: None }],
            ..Activity::default()
        });
        backend.saved = dated(vec![saved("localbot", None), saved("localbot", None)]);
        scene.reading.gpu = dated(Gpu::Read {
            devices: vec![GpuDevice { index: 0, used_mib: Some(11_573), total_mib: Some(12_288) }],
            processes: vec![],
        });
        scene
    }

    fn place(&mut self, kind: Kind, backend: Option<u8>) {
        self.view.place = Place { kind, backend: backend.map(BackendId) };
    }

    fn status(&self) -> Status {
        self.status_at(Instant::after_start(Duration::from_mins(1)))
    }

    fn status_at(&self, now: Instant) -> Status {
        Source {
            setup: &self.setup,
            clock: &self.clock,
            view: &self.view,
            reading: &self.reading,
            history: &self.history,
            oddities: &[],
            expected: None,
            powered_off: self.powered_off,
            last_error: None,
        }
        .status(now)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "readings are optional")]
fn dated<T>(value: T) -> Option<Dated<T>> {
    let at = Instant::after_start(Duration::from_secs(50));
    Some(Dated { at, value })
}

fn saved(name: &str, put_aside: Option<&str>) -> SavedSlot {
    SavedSlot {
        name: name.into(),
        file: format!("{name}.bin"),
        slot: 0,
        bytes: 48_000_000,
        tokens: 1000,
        saved_at: 1_700_000_000,
        model: "Nemotron".into(),
        n_ctx: 196_608,
        put_aside: put_aside.map(Into::into),
        generation: 7,
        last_restore: None,
        restored_into: None,
        useless: None,
        named: false,
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_first_look_nothing_is_claimed() {
    let status = Scene::new().status();
    assert_eq!(status.gpu_server, "unknown");
    assert_eq!(status.state, "unknown");
    assert_eq!(status.health, "unknown");
    assert_eq!(status.active_backend, None);
    assert_eq!(status.gpu_memory, None);
    assert_eq!(status.control, None);
    assert!(status.ages.is_empty());
    assert_eq!(status.backends["vllm"].state, "unknown");
    assert_eq!(status.backends["vllm"].unit.active, None);
}

#[tokio::test(start_paused = true)]
async fn a_running_backend_is_shown_as_the_workflows_have_it() {
    let status = Scene::running().status();
    assert_eq!(status.gpu_server, "on");
    assert_eq!(status.state, "llama-cpp");
    assert_eq!(status.active_backend.as_deref(), Some("llama-cpp"));
    assert_eq!(status.health, "ok");
    assert_eq!(status.uptime_seconds, Some(60));
    assert_eq!(status.model.as_ref().map(|m| m.id.as_str()), Some("Nemotron"));
    assert_eq!(status.slots.len(), 1);
    assert_eq!(status.saved_slots, ["localbot"]);
    assert_eq!(status.saved_slot_details.len(), 2);
    let memory = status.gpu_memory.expect("it was read");
    assert_eq!(memory["gpu0"].used_mib, Some(11_573));
    assert_eq!(status.backends["llama-cpp"].in_flight, Some(0));
    let vllm = status.backends["vllm"].start_seconds_expected;
    assert_eq!(vllm, Some(80.0));
    assert_eq!(status.ages.get("gpu"), Some(&10.0));
    assert_eq!(status.ages.get("llama-cpp.http"), Some(&10.0));
}

#[tokio::test(start_paused = true)]
async fn a_run_is_never_older_than_when_its_unit_was_last_seen_down_whatever_the_servers_clock_says() {
    let mut scene = Scene::running();
    let backend = &mut scene.reading.backends[0];
    backend.last_down = Some(Instant::after_start(Duration::from_secs(55)));
    if let Some(Dated { value: Unit::Loaded(unit), .. }) = &mut backend.unit {
        unit.active_since = Some(1);
    }
    assert_eq!(scene.status().uptime_seconds, Some(5));
}

#[tokio::test(start_paused = true)]
async fn a_server_asleep_on_purpose_is_not_down_and_shows_nothing_stale() {
    let mut scene = Scene::running();
    scene.place(Kind::Offline, None);
    scene.view.look.server = Server::Silent;
    scene.powered_off = true;
    let status = scene.status();
    assert_eq!(status.gpu_server, "off");
    assert_eq!(status.reason.as_deref(), Some("powered-off"));
    assert_eq!(status.health, "ok");
    assert_eq!(status.gpu_memory, None);
    assert_eq!(status.active_backend, None);
    assert_eq!(status.backends["llama-cpp"].unit.active, None);
    assert_eq!(status.saved_slots, ["localbot"], "they are on the disk still");
    scene.powered_off = false;
    assert_eq!(scene.status().reason.as_deref(), Some("unreachable"));
    scene.view.look.server = Server::Booting(BootPhase::WrongHostKey);
    let status = scene.status();
    assert_eq!(status.reason.as_deref(), Some("wrong-host-key"));
    assert_eq!(status.health, "failing");
}

#[tokio::test(start_paused = true)]
async fn one_look_into_silence_changes_no_state_but_says_that_control_is_gone() {
    let mut scene = Scene::running();
    scene.view.look.server = Server::Silent;
    let status = scene.status();
    assert_eq!(status.gpu_server, "on");
    assert_eq!(status.state, "llama-cpp");
    assert_eq!(status.control.as_deref(), Some("unreachable"));
}

#[tokio::test(start_paused = true)]
async fn a_slot_put_aside_is_shown_but_not_offered() {
    let mut scene = Scene::running();
    scene.reading.backends[0].saved = dated(vec![saved("localbot", Some("rejected"))]);
    let status = scene.status();
    assert!(status.saved_slots.is_empty());
    let aside = status.saved_slot_details[0].put_aside.as_deref();
    assert_eq!(aside, Some("rejected"));
}

#[tokio::test(start_paused = true)]
async fn whatever_keeps_the_server_in_use_is_a_blocker() {
    let mut scene = Scene::running();
    scene.view.look.backends[0].use_ = Use::Busy;
    scene.reading.people =
        dated(People::Read { logins: vec!["ada on pts/0".into()], inhibitors: vec!["apt: upgrading".into()] });
    scene.reading.gpu = dated(Gpu::Read {
        devices: vec![],
        processes: vec![
            GpuProcess {
                pid: 9,
                name: "blender".into(),
                user: Some("ada".into()),
                used_mib: Some(3000),
                backend: None,
                ignored: false,
            },
            GpuProcess { pid: 10, name: "Xorg".into(), user: None, used_mib: None, backend: None, ignored: true },
        ],
    });
    scene.view.holds.push(Hold {
        id: HoldId(3),
        what: Held::Backend(BackendId(0)),
        until: None,
        reason: "demo".into(),
        by: "ada".into(),
    });
    let status = scene.status();
    let kinds: Vec<_> = status.blockers.iter().map(|b| b.kind.as_str()).collect();
    assert_eq!(kinds, ["hold", "request", "login", "inhibitor", "gpu_process"]);
    let process = &status.blockers[4];
    assert_eq!(process.what, "blender (pid 9, ada): 3000 MiB");
    assert_eq!(process.blocks, ["start", "power-off"]);
    assert_eq!(status.holds[0].what, "llama-cpp");
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_shown_with_its_phase_and_time_goes_on_between_looks() {
    let mut scene = Scene::running();
    scene.place(Kind::Stopping, Some(0));
    scene.view.operation = Some(Operation {
        id: OpId(2),
        goal: Goal::Run(BackendId(1)),
        cause: Cause::Command(RequestId(1)),
        started: Instant::after_start(Duration::from_secs(58)),
        until: Instant::after_start(Duration::from_mins(10)),
    });
    let status = scene.status();
    assert_eq!(status.state, "stopping");
    assert_eq!(status.health, "starting", "about what is wanted");
    let op = status.operation.clone().expect("under way");
    assert_eq!((op.kind.as_str(), op.goal.as_deref()), ("start", Some("vllm")));
    assert_eq!(op.phase, "stopping");
    assert!((op.elapsed_seconds - 2.0).abs() < 1e-9);
    let made = status.made.expect("always dated");
    let later = status.at(made + Duration::from_secs(5));
    let op = later.operation.expect("under way");
    assert!((op.elapsed_seconds - 7.0).abs() < 1e-9);
    assert_eq!(later.ages.get("gpu"), Some(&15.0));
}

#[tokio::test(start_paused = true)]
async fn a_restored_slot_is_told_from_an_unused_one_until_a_request_tells_more() {
    let mut scene = Scene::running();
    let now = Instant::after_start(Duration::from_mins(1));
    let wall = scene.clock.wall(now).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let restored = |at: u64, reuse| {
        let last = LastRestore { at, tokens: 1308, reuse };
        dated(vec![SavedSlot { last_restore: Some(last), ..saved("localbot", None) }])
    };
    let told = |scene: &Scene| {
        let status = scene.status_at(now);
        let text = status.saved_slot_details[0].last_restore.as_ref().map(|last| last.text.clone());
        (status.slots[0].restored_tokens, text.expect("a restore"))
    };
    scene.reading.backends[0].saved = restored(wall - 30, None);
    assert_eq!(told(&scene), (Some(1308), "its effect is not known yet".into()));
    scene.reading.backends[0].saved = restored(wall - 3600, None);
    assert_eq!(told(&scene).0, None, "into an earlier run");
    let reuse = Reuse { reused: 98, computed: 2 };
    scene.reading.backends[0].saved = restored(wall - 30, Some(reuse));
    assert_eq!(told(&scene), (None, "effective, 98% of the prompt reused".into()));
}
