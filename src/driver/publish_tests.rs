use std::time::Duration;

use super::*;
use crate::{
    driver::{tests_setup, tests_unit},
    machine::{
        BootId, HoldId, Invocation, Machine, OpId, Operation, Place, RequestId, Selection,
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
        let setup = tests_setup();
        Self {
            view: Machine::new((*setup.policy).clone(), vec![]).view(),
            reading: Reading { backends: vec![BackendReading::default(); 2], ..Reading::default() },
            setup,
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
            sub: "running".into(),
            main_pid: Some(7),
            invocation: Some(Invocation(1)),
            result: "success".into(),
            fragment: "/etc/systemd/system/llama-cpp.service".into(),
            enabled: "enabled".into(),
            ..tests_unit(ActiveState::Active)
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

fn operation(goal: Goal, cause: Cause) -> Operation {
    let (started, until) = (Instant::START, Instant::after_start(Duration::from_mins(10)));
    Operation { id: OpId(2), goal, cause, started, until }
}

#[tokio::test(start_paused = true)]
async fn where_the_server_is_follows_the_state_and_before_there_is_one_the_look() {
    let on = Server::On { boot: BootId(1), session: 1 };
    let door = Server::Booting;
    for (kind, look, powered_off, gpu_server, reason, control) in [
        (Kind::Unknown, Server::NotLooked, false, "unknown", None, None),
        (Kind::Unknown, Server::Silent, false, "unknown", None, None),
        (Kind::Unknown, door(BootPhase::Booting), false, "off", Some("booting"), None),
        (Kind::Unknown, on, false, "on", None, Some("ok")),
        (Kind::Unknown, Server::Uncontrolled, false, "on", None, Some("unreachable")),
        (Kind::Idle, on, true, "on", None, Some("ok")),
        (Kind::Idle, Server::Silent, false, "on", None, Some("unreachable")),
        (Kind::Offline, Server::Silent, false, "off", Some("unreachable"), None),
        (Kind::Offline, Server::Silent, true, "off", Some("powered-off"), None),
        (Kind::Offline, door(BootPhase::Preboot), true, "off", Some("preboot"), None),
        (Kind::Offline, door(BootPhase::WrongHostKey), false, "off", Some("wrong-host-key"), None),
        (Kind::Waking, door(BootPhase::AuthRefused), false, "off", Some("auth-refused"), None),
    ] {
        let mut scene = Scene::new();
        scene.place(kind, None);
        (scene.view.look.server, scene.powered_off) = (look, powered_off);
        let status = scene.status();
        assert_eq!(
            (status.gpu_server.as_str(), status.reason.as_deref(), status.control.as_deref()),
            (gpu_server, reason, control),
            "{kind:?} {look:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_active_while_it_may_be_in_use() {
    for (kind, seen, is_active) in [
        (Kind::Starting, Seen::Loading, false),
        (Kind::Restoring, Seen::Running, true),
        (Kind::Running, Seen::Running, true),
        (Kind::Running, Seen::Loading, true),
        (Kind::Draining, Seen::Running, true),
        (Kind::Saving, Seen::Running, true),
        (Kind::Stopping, Seen::Running, true),
        (Kind::Stopping, Seen::Lingering, false),
    ] {
        let mut scene = Scene::running();
        scene.place(kind, Some(0));
        scene.view.look.backends[0].seen = seen;
        assert_eq!(scene.status().active_backend.is_some(), is_active, "{kind:?} {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_finer_than_the_state_is_its_phase() {
    let phase = |kind, backend, change: fn(&mut View)| {
        let mut scene = Scene::running();
        scene.place(kind, backend);
        change(&mut scene.view);
        scene.status().phase
    };
    let some = |word: &str| Some(word.to_owned());
    assert_eq!(phase(Kind::Starting, Some(0), |v| v.look.backends[0].seen = Seen::Loading), some("starting"));
    assert_eq!(phase(Kind::Starting, Some(0), |v| v.look.backends[0].seen = Seen::CrashLoop), some("auto-restart"));
    assert_eq!(phase(Kind::Running, Some(0), |_| {}), None);
    assert_eq!(phase(Kind::Running, Some(0), |v| v.look.backends[0].sleeping = true), some("sleeping"));
    assert_eq!(phase(Kind::Draining, Some(0), |_| {}), some("draining"));
    assert_eq!(phase(Kind::Offline, None, |v| v.look.server = Server::Silent), None);
    for kind in [Kind::Offline, Kind::Waking] {
        assert_eq!(phase(kind, None, |v| v.look.server = Server::Booting(BootPhase::Booting)), some("booting"));
        assert_eq!(phase(kind, None, |v| v.look.server = Server::Booting(BootPhase::Preboot)), some("preboot"));
    }
}

#[tokio::test(start_paused = true)]
async fn health_is_about_what_is_wanted_and_what_is_seen() {
    let health = |kind, seen, goal: Option<Goal>| {
        let mut scene = Scene::running();
        scene.place(kind, Some(0));
        scene.view.look.backends[0].seen = seen;
        scene.view.operation = goal.map(|goal| operation(goal, Cause::IdleStop));
        scene.status().health
    };
    let llama = BackendId(0);
    for (kind, seen, goal, told) in [
        (Kind::Running, Seen::Running, None, "ok"),
        (Kind::Running, Seen::Loading, None, "failing"),
        (Kind::Running, Seen::Sick, None, "failing"),
        (Kind::Running, Seen::Stranger, None, "failing"),
        (Kind::Starting, Seen::CrashLoop, Some(Goal::Run(llama)), "failing"),
        (Kind::Starting, Seen::Loading, None, "starting"),
        (Kind::Restoring, Seen::Running, None, "starting"),
        (Kind::Waking, Seen::Unknown, None, "starting"),
        (Kind::Draining, Seen::Running, None, "stopping"),
        (Kind::Stopping, Seen::Lingering, None, "stopping"),
        (Kind::PoweringOff, Seen::Stopped, None, "stopping"),
        (Kind::Saving, Seen::Running, Some(Goal::Save(llama, Selection::All)), "ok"),
        (Kind::Stopping, Seen::Running, Some(Goal::Run(BackendId(1))), "starting"),
        (Kind::Stopping, Seen::Running, Some(Goal::Restart(llama)), "starting"),
        (Kind::Idle, Seen::Stopped, Some(Goal::Awake), "starting"),
        (Kind::Running, Seen::Running, Some(Goal::Stop), "stopping"),
        (Kind::Idle, Seen::Stopped, Some(Goal::Off), "stopping"),
        (Kind::Conflict, Seen::Running, Some(Goal::Stop), "conflict"),
        (Kind::Unknown, Seen::Sick, None, "unknown"),
    ] {
        assert_eq!(health(kind, seen, goal), told, "{kind:?} {seen:?} {goal:?}");
    }
    let mut shut_out = Scene::new();
    shut_out.place(Kind::Offline, None);
    for (phase, told) in
        [(BootPhase::AuthRefused, "failing"), (BootPhase::WrongHostKey, "failing"), (BootPhase::Booting, "ok")]
    {
        shut_out.view.look.server = Server::Booting(phase);
        assert_eq!(shut_out.status().health, told, "{phase:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_phase_of_an_operation_has_a_word_also_where_the_state_has_none() {
    for (kind, word) in [
        (Kind::Waking, "waking"),
        (Kind::PoweringOff, "powering-off"),
        (Kind::Idle, "looking"),
        (Kind::Draining, "draining"),
        (Kind::Saving, "saving"),
    ] {
        let mut scene = Scene::running();
        scene.place(kind, Some(0));
        scene.view.operation = Some(operation(Goal::Off, Cause::IdlePowerOff));
        assert_eq!(scene.status().operation.map(|op| op.phase).as_deref(), Some(word));
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_offered_where_it_would_bring_something_back() {
    let offered = |change: fn(&mut Scene)| {
        let mut scene = Scene::running();
        let look = &mut scene.view.look.backends[0];
        (look.restorable, look.unused, look.invocation) = (true, true, Some(Invocation(7)));
        change(&mut scene);
        scene.status().restore_available
    };
    assert!(offered(|_| {}));
    assert!(!offered(|scene| scene.place(Kind::Draining, Some(0))));
    assert!(!offered(|scene| scene.view.operation = Some(operation(Goal::Stop, Cause::IdleStop))));
    assert!(!offered(|scene| scene.view.look.backends[0].restorable = false));
    assert!(!offered(|scene| scene.view.look.backends[0].unused = false));
    assert!(!offered(|scene| scene.view.look.backends[0].sleeping = true));
    let restored = |scene: &mut Scene| scene.view.backends[0].restored = Some(Invocation(7));
    assert!(!offered(restored), "it was done already");
    assert!(offered(|scene| scene.view.backends[0].restored = Some(Invocation(6))), "that was another run");
    assert!(offered(|scene| {
        scene.view.backends[0].restored = Some(Invocation(7));
        let mut policy = (*scene.setup.policy).clone();
        policy.backends[0].restore = RestorePolicy::Never;
        scene.setup.policy = policy.into();
    }));
}

#[tokio::test(start_paused = true)]
async fn what_comes_next_names_the_setting_it_comes_from() {
    let llama = BackendId(0);
    for (goal, cause, what, because) in [
        (Goal::Off, Cause::IdlePowerOff, "power-off", "idle.power_off_after"),
        (Goal::Stop, Cause::IdleStop, "stop", "idle.stop_after"),
        (Goal::Restore(llama, Selection::All), Cause::AutoRestore, "restore", "backends.llama-cpp.restore"),
        (Goal::Save(llama, Selection::Checkpoint), Cause::Checkpoint, "save", "checkpoint"),
    ] {
        let mut scene = Scene::running();
        let at = Instant::after_start(Duration::from_secs(90));
        scene.view.next_action = Some(NextAction { goal, cause, at });
        let told = scene.status().next_action.expect("it is to come");
        assert_eq!((told.what.as_str(), told.because.as_str()), (what, because));
        assert_eq!(told.at, scene.clock.rfc3339(at));
    }
}

#[tokio::test(start_paused = true)]
async fn each_blocker_says_what_it_blocks() {
    let mut scene = Scene::running();
    for (id, what) in [(1, Held::Awake), (2, Held::Backend(BackendId(1))), (3, Held::Gpu), (4, Held::Off)] {
        scene.view.holds.push(Hold { id: HoldId(id), what, until: None, reason: "tests".into(), by: "ada".into() });
    }
    scene.view.look.backends[0].use_ = Use::Unknown;
    scene.reading.people = dated(People::Unread("who hangs".into()));
    scene.reading.gpu = dated(Gpu::Read {
        devices: vec![],
        processes: vec![GpuProcess {
            pid: 9,
            name: "blender".into(),
            user: None,
            used_mib: None,
            backend: None,
            ignored: false,
        }],
    });
    let told = |scene: &Scene| {
        let blockers = scene.status().blockers.into_iter();
        blockers.map(|b| format!("{}: {} [{}]", b.kind, b.what, b.blocks.join(" "))).collect::<Vec<_>>()
    };
    let holds = [
        "hold: hold 1: awake, by ada: tests [power-off]",
        "hold: hold 2: vllm, by ada: tests [stop power-off]",
        "hold: hold 3: gpu, by ada: tests [start]",
        "hold: hold 4: off, by ada: tests [start]",
    ];
    let others = [
        "unknown: llama-cpp: nobody can tell whether it is in use [stop power-off]",
        "unknown: nobody can tell who is logged in: who hangs [power-off]",
        "gpu_process: blender (pid 9, unknown user): memory unknown [start power-off]",
    ];
    assert_eq!(told(&scene), [&holds[..], &others[..]].concat());
    scene.view.look.backends[0].seen = Seen::Stopped;
    assert_eq!(told(&scene), [&holds[..], &others[1..]].concat(), "what does not run is not in use");
    (scene.reading.gpu, scene.view.foreign_untold) = (dated(Gpu::Hangs), true);
    let untold = ["unknown: nobody can tell whether who used the GPU besides the backends still does [power-off]"];
    assert_eq!(told(&scene), [&holds[..], &others[1..2], &untold[..]].concat());
    scene.place(Kind::Offline, None);
    assert_eq!(told(&scene), holds, "the rest is of a server that is on");
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_person_names_the_backend_or_the_key() {
    let mut scene = Scene::running();
    let attention = |code: &str, backend| crate::machine::Attention {
        what: crate::machine::Warning::new(code, "It is so."),
        hint: "do it",
        backend,
        since: Instant::START,
    };
    scene.view.attention =
        vec![attention("wrong_host_key", None), attention("conflict", None), attention("crashed", Some(BackendId(1)))];
    let told = |scene: &Scene| scene.status().attention.into_iter().map(|a| a.message).collect::<Vec<_>>();
    assert_eq!(told(&scene), ["It is so.", "It is so.", "vllm: It is so."]);
    scene.reading.ssh = dated(Ssh::WrongKey("SHA256:abc".into()));
    assert_eq!(told(&scene), ["It is so. (SHA256:abc)", "It is so.", "vllm: It is so."]);
    scene.view.attention = vec![attention("auth_refused", None)];
    scene.reading.ssh = dated(Ssh::AuthRefused("gpu".into()));
    assert_eq!(told(&scene), ["It is so. (gpu)"]);
    scene.view.attention.clear();
    scene.reading.gpu = dated(Gpu::Hangs);
    assert_eq!(scene.status().attention.len(), 1);
    scene.view.look.server = Server::Silent;
    assert!(scene.status().attention.is_empty(), "nobody knows how the GPUs of a silent server are");
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_was_asked_is_not_told_of_this_one() {
    let mut scene = Scene::running();
    let run = |second| Some(Dated { at: Instant::after_start(Duration::from_secs(second)), value: Invocation(7) });
    for (began, told) in [(49, Some(0)), (50, Some(0)), (51, None)] {
        scene.reading.backends[0].run = run(began);
        assert_eq!(scene.status().backends["llama-cpp"].in_flight, told, "{began}");
    }
    scene.reading.backends[0].run = run(49);
    scene.view.look.backends[0].seen = Seen::Lingering;
    assert_eq!(scene.status().backends["llama-cpp"].in_flight, None);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_used_or_that_chosen_names_may_have_gone_into_claims_no_restore() {
    let mut scene = Scene::running();
    let now = Instant::after_start(Duration::from_mins(1));
    let wall = scene.clock.wall(now).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let came_back = |tokens, ago, slot, named| SavedSlot {
        last_restore: Some(LastRestore { at: wall - ago, tokens, reuse: None }),
        slot,
        named,
        ..saved("localbot", None)
    };
    let free = |id| SlotReading { id, n_ctx: 4096, is_processing: false, tokens: None };
    let told = |scene: &mut Scene, slots: Vec<SlotReading>, saved: Vec<SavedSlot>| {
        scene.reading.backends[0].activity = dated(Activity { slots, ..Activity::default() });
        scene.reading.backends[0].saved = dated(saved);
        scene.status_at(now).slots.iter().map(|slot| slot.restored_tokens).collect::<Vec<_>>()
    };
    let both = vec![came_back(100, 20, 0, false), came_back(200, 10, 0, false)];
    assert_eq!(told(&mut scene, vec![free(0), free(1)], both), [Some(200), None], "the newest, into its own slot");
    let named = vec![came_back(300, 10, 0, true)];
    assert_eq!(told(&mut scene, vec![free(0), free(1)], named.clone()), [None, None]);
    assert_eq!(told(&mut scene, vec![free(0)], named), [Some(300)], "there is no other slot");
    let one = vec![came_back(100, 20, 0, false)];
    let used = SlotReading { tokens: Some(5), ..free(0) };
    let busy = SlotReading { is_processing: true, ..free(0) };
    assert_eq!(told(&mut scene, vec![used], one.clone()), [None]);
    assert_eq!(told(&mut scene, vec![busy], one), [None]);
}
