//! The virtual server, asked and moved by the daemon's own adapters over real sockets.
#![cfg(feature = "virtual-server")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant as Clock, sleep};
use wechsler::{
    config::{self, Config, Prove},
    driver::{World, world::SlotTask},
    host::{
        Host,
        remote::{self, RemoteVerb, UnitName},
        ssh,
    },
    machine::{
        BackendId, BootId, Instant, Outcome, Verb,
        reading::{ActiveState, Ask, Gpu, Http, People, Prompts, Reading, Reuse, Ssh, Unit, UnitState, WakeArmed},
    },
    virtual_server::{
        By, CommandFault, Foreign, GpuFault, Inhibitor, Login, On, Places, Power, Refusal, Restart, Setup, SshFault,
        UnitFault, VirtualServer, What,
        programs::{Exit, Fault, ProgramFaults, Signal},
    },
};

const LLAMA: BackendId = BackendId(0);
const VLLM: BackendId = BackendId(1);
const LLAMA_UNIT: &str = "llama-cpp.service";
const VLLM_UNIT: &str = "vllm.service";
/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(20);
const UNITS: Ask =
    Ask { units: true, http: false, activity: false, gpu: false, people: false, wake_armed: false, saved: false };

/// A server of milliseconds, and the daemon's world of it.
struct Lab {
    folder: PathBuf,
    server: VirtualServer,
    config: Config,
    host: Host,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn places(folder: &Path) -> Places {
    Places {
        state_dir: folder.join("state"),
        socket: folder.join("socket"),
        key: folder.join("id_ed25519"),
        stop_after: None,
        power_off_after: None,
    }
}

async fn lab(change: impl FnOnce(&mut Setup)) -> Lab {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("wechsler-virtual-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("a folder");
    let mut setup = Setup::usual(folder.join("server")).scaled(0.01);
    setup.on = true;
    change(&mut setup);
    let server = VirtualServer::start(setup).await.expect("a server");
    let places = places(&folder);
    fs::write(&places.key, server.client_key()).expect("a key");
    let text = server.config_toml(&places);
    let config = config::parse(&text, []).unwrap_or_else(|faults| panic!("{faults:?}\n{text}"));
    let host = Host::new(&config).expect("a host");
    Lab { folder, server, config, host }
}

async fn on() -> Lab {
    lab(|_| {}).await
}

async fn off() -> Lab {
    lab(|setup| setup.on = false).await
}

fn now() -> Instant {
    Instant::after_start(Duration::from_secs(1))
}

impl Lab {
    async fn look(&self, ask: Ask) -> Reading {
        self.host.look(ask, now()).await
    }

    async fn ssh(&self) -> Ssh {
        self.look(UNITS).await.ssh.expect("asked").value
    }

    async fn boot(&self) -> Option<BootId> {
        match self.ssh().await {
            Ssh::Answered { boot, .. } => Some(boot),
            _ => None,
        }
    }

    async fn unit(&self, backend: BackendId) -> UnitState {
        let mut reading = self.look(UNITS).await;
        match reading.backends.swap_remove(usize::from(backend.0)).unit.expect("asked").value {
            Unit::Loaded(state) => state,
            other => panic!("{other:?}"),
        }
    }

    async fn order(&self, verb: Verb) -> Outcome {
        self.host.carry_out(verb, LONG).await
    }

    async fn done(&self, verb: Verb) {
        let outcome = self.order(verb).await;
        assert!(matches!(outcome, Outcome::Succeeded(_)), "{verb:?}: {outcome:?}");
    }

    /// Waits until the truth is so.
    async fn until(&self, what: &str, so: impl Fn(&VirtualServer) -> bool) {
        let begun = Clock::now();
        while !so(&self.server) {
            assert!(begun.elapsed() < LONG, "never {what}: {:#?}", self.server);
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_ready(server: &VirtualServer, backend: BackendId) -> bool {
        let unit = server.truth().units.swap_remove(usize::from(backend.0));
        unit.inside.is_some_and(|inside| inside.ready)
    }

    /// Somebody says something to llama.cpp.
    async fn converse(&self) {
        let address = self.server.unit_address(LLAMA_UNIT).expect("its address");
        let body = serde_json::json!({"prompt": "The cellar key hangs behind the third book.", "n_predict": 4});
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        client.post(format!("http://{address}/completion")).json(&body).send().await.expect("an answer");
    }

    async fn up(&self, backend: BackendId) {
        self.done(Verb::StartUnit(backend)).await;
        self.until("ready", |server| Self::is_ready(server, backend)).await;
    }

    /// What goes wrong inside a unit.
    fn inside(&self, unit: &str) -> Arc<ProgramFaults> {
        self.server.program_faults(unit).expect("a unit of the server")
    }

    async fn gpu(&self) -> Gpu {
        self.look(Ask { gpu: true, ..Ask::default() }).await.gpu.expect("asked").value
    }

    /// The deeds that matter, as words.
    fn deeds(&self) -> Vec<String> {
        let word = |what: &What| match what {
            What::Packet { heard } => Some(format!("packet {heard}")),
            What::Started { unit, by, .. } => Some(format!("{by:?} starts {unit}")),
            What::StopBegan { unit, by } => Some(format!("{by:?} stops {unit}")),
            What::Killed { unit, .. } => Some(format!("kill {unit}")),
            What::Off => Some("off".into()),
            What::PowerCut => Some("cut".into()),
            What::Booted(_) => Some("booted".into()),
            What::Slot { act, .. } => Some(format!("{act:?}")),
            _ => None,
        };
        self.server.deeds().iter().filter_map(|deed| word(&deed.what)).collect()
    }
}

fn memory(gpu: &Gpu) -> u64 {
    let Gpu::Read { devices, .. } = gpu else { panic!("{gpu:?}") };
    devices.iter().filter_map(|d| d.used_mib).sum()
}

#[tokio::test]
async fn every_source_is_read_from_a_server_that_is_on() {
    let lab = on().await;
    lab.server.log_in(Login { user: "ann".into(), tty: "pts/0".into(), from: "10.0.0.7".into() });
    lab.server.inhibit(Inhibitor { who: "apt".into(), why: "Installing".into() });
    lab.server.occupy(Foreign { pid: 77, user: "bob".into(), name: "/opt/train.py".into(), mib: 3000 });
    let reading = lab.look(Ask::ALL).await;
    assert!(matches!(reading.ssh.expect("asked").value, Ssh::Answered { .. }));
    for backend in &reading.backends {
        let Some(Unit::Loaded(unit)) = backend.unit.as_ref().map(|u| &u.value) else { panic!("{backend:?}") };
        assert_eq!((unit.active, unit.main_pid, unit.job), (ActiveState::Inactive, None, false));
        assert_eq!(backend.http.as_ref().map(|h| &h.value), Some(&Http::Refused));
    }
    let people =
        People::Read { logins: vec!["ann on pts/0 from 10.0.0.7".into()], inhibitors: vec!["apt: Installing".into()] };
    assert_eq!(reading.people.expect("asked").value, people);
    assert_eq!(reading.wake_armed.expect("asked").value, WakeArmed::Armed);
    let Gpu::Read { devices, processes } = reading.gpu.expect("asked").value else { panic!("no GPU") };
    assert_eq!(devices.iter().map(|d| d.used_mib).collect::<Vec<_>>(), [Some(3117), Some(117)]);
    let [foreign] = &processes[..] else { panic!("{processes:?}") };
    assert_eq!((foreign.pid, foreign.user.as_deref(), foreign.backend), (77, Some("bob"), None));
    assert_eq!(lab.server.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_is_seen_and_a_stop_is_proven_once_the_gpu_has_its_memory_back() {
    let lab = lab(|setup| setup.times.gpu_lag = Duration::from_millis(400)).await;
    let idle = memory(&lab.gpu().await);
    lab.up(LLAMA).await;
    let unit = lab.unit(LLAMA).await;
    assert_eq!((unit.active, unit.sub.as_str(), unit.restarts), (ActiveState::Active, "running", 0));
    assert!(unit.invocation.is_some() && unit.active_since.is_some());
    let gpu = lab.gpu().await;
    assert!(memory(&gpu) > idle + 20_000, "{gpu:?}");
    let Gpu::Read { processes, .. } = gpu else { panic!("no GPU") };
    assert_eq!(
        (processes[0].backend, processes[0].user.as_deref(), Some(processes[0].pid)),
        (Some(0), Some("llama"), unit.main_pid)
    );

    lab.done(Verb::StopUnit(LLAMA)).await;
    let unit = lab.unit(LLAMA).await;
    assert_eq!((unit.active, unit.main_pid, unit.processes_left), (ActiveState::Inactive, None, false));
    assert!(memory(&lab.gpu().await) > idle, "the memory comes back later");
    lab.until("given back", |server| server.truth().gpu_used_mib == 0).await;
    assert_eq!(memory(&lab.gpu().await), idle);
    assert_eq!(lab.deeds(), ["booted", "Ssh starts llama-cpp.service", "Ssh stops llama-cpp.service"]);
}

#[tokio::test]
async fn a_server_without_power_is_silent_and_a_packet_brings_it_back_with_another_boot_id() {
    let lab = lab(|setup| setup.units[0].enabled = true).await;
    let first = lab.boot().await.expect("on");
    lab.done(Verb::PowerOff).await;
    assert!(lab.server.until(Power::Off, LONG).await);
    let reading = lab.look(Ask { units: true, http: true, ..Ask::default() }).await;
    assert_eq!(reading.ssh.expect("asked").value, Ssh::Silent);
    assert!(reading.backends.iter().all(|b| b.http.as_ref().is_some_and(|h| h.value == Http::TimedOut)));

    lab.server.faults().packets.times((), 1);
    lab.done(Verb::Wake).await;
    lab.done(Verb::Wake).await;
    assert!(lab.server.until(Power::Booting, LONG).await);
    assert_eq!(lab.ssh().await, Ssh::PortClosed);
    assert!(lab.server.until(Power::On, LONG).await);
    let second = lab.boot().await.expect("on again");
    assert_ne!(first, second);
    assert_eq!(lab.unit(LLAMA).await.active, ActiveState::Active, "it is enabled");
    assert_eq!(lab.server.faults().packets.struck(), 1);
    let told = ["booted", "Systemd starts llama-cpp.service", "Systemd stops llama-cpp.service", "off", "packet false"];
    assert_eq!(lab.deeds()[..5], told);
    assert_eq!(lab.deeds()[5..], ["packet true", "booted", "Systemd starts llama-cpp.service"]);
}

#[tokio::test]
async fn a_power_cut_leaves_a_session_that_never_answers() {
    let lab = on().await;
    lab.up(VLLM).await;
    let first = lab.boot().await.expect("on");
    lab.server.power_cut();
    let Ssh::Broken(why) = lab.ssh().await else { panic!("the old session cannot know yet") };
    assert!(why.contains("no answer within"), "{why}");
    assert_eq!(lab.ssh().await, Ssh::Silent);
    lab.server.press();
    assert!(lab.server.until(Power::On, LONG).await);
    assert_ne!(lab.boot().await.expect("on again"), first);
    assert_eq!(lab.unit(VLLM).await.active, ActiveState::Inactive);
    assert_eq!(lab.server.truth().gpu_used_mib, 0);
}

#[tokio::test]
async fn a_wrong_packet_wakes_nobody() {
    let lab = off().await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let other = wechsler::host::wake::magic_packet([2; 6], None);
    for packet in [&other[..], b"hello"] {
        socket.send_to(packet, lab.server.wake_address()).expect("sent");
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!((lab.server.power(), lab.deeds()), (Power::Off, vec![]));
}

#[tokio::test]
async fn another_host_key_and_another_client_key_are_refused() {
    let lab = on().await;
    lab.server.faults().ssh.always(SshFault::OtherHostKey);
    assert!(matches!(lab.ssh().await, Ssh::WrongKey(_)));
    lab.server.faults().ssh.always(SshFault::InitramfsKey);
    assert_eq!(lab.ssh().await, Ssh::PreBoot);
    lab.server.faults().ssh.always(SshFault::RefusesUs);
    assert!(matches!(lab.ssh().await, Ssh::AuthRefused(_)));
    lab.server.faults().ssh.clear();
    assert!(lab.boot().await.is_some());
    // The same server with the key of another one's client.
    let other = on().await;
    fs::write(&lab.config.server.ssh.key, other.server.client_key()).expect("a key");
    let host = Host::new(&lab.config).expect("a host");
    assert!(matches!(host.look(UNITS, now()).await.ssh.expect("asked").value, Ssh::AuthRefused(_)));
}

#[tokio::test]
async fn ssh_goes_wrong_in_all_its_ways_and_comes_back() {
    let lab = on().await;
    let faults = lab.server.faults();
    for (fault, expected) in [(SshFault::Refuses, Ssh::PortClosed), (SshFault::Silent, Ssh::Silent)] {
        faults.ssh.always(fault);
        let before = faults.ssh.struck();
        lab.until("out", |_| faults.ssh.struck() > before).await;
        let host = Host::new(&lab.config).expect("a host");
        assert_eq!(host.look(UNITS, now()).await.ssh.expect("asked").value, expected);
    }
    faults.ssh.clear();
    // Until the port is open again, so that the next client does not meet the last fault.
    while !matches!(
        Host::new(&lab.config).expect("a host").look(UNITS, now()).await.ssh.expect("asked").value,
        Ssh::Answered { .. }
    ) {}
    for fault in [SshFault::NoBanner, SshFault::SlowBanner(LONG), SshFault::FallsSilent] {
        faults.ssh.always(fault);
        let before = faults.ssh.struck();
        let host = Host::new(&lab.config).expect("a host");
        let ssh = host.look(UNITS, now()).await.ssh.expect("asked").value;
        let mute = !matches!(fault, SshFault::FallsSilent);
        assert!(if mute { matches!(ssh, Ssh::Mute(_)) } else { matches!(ssh, Ssh::Broken(_)) }, "{fault:?}: {ssh:?}");
        lab.until("struck", |_| faults.ssh.struck() > before).await;
    }
    faults.ssh.clear();
    assert!(lab.boot().await.is_some());
}

#[tokio::test]
async fn an_answer_that_is_lost_came_after_the_deed_and_one_that_hangs_before_it() {
    let lab = on().await;
    let faults = lab.server.faults();
    let verbs = |fault| faults.command.times((On::Verbs, fault), 1);
    verbs(CommandFault::AnswerLost);
    assert!(matches!(lab.order(Verb::StartUnit(LLAMA)).await, Outcome::Unknown(_)));
    assert_eq!(lab.unit(LLAMA).await.active, ActiveState::Active);
    for fault in [CommandFault::Cut, CommandFault::Hangs] {
        verbs(fault);
        let outcome = lab.host.carry_out(Verb::StopUnit(LLAMA), Duration::from_secs(2)).await;
        assert!(matches!(outcome, Outcome::Unknown(_)));
    }
    assert_eq!(lab.unit(LLAMA).await.active, ActiveState::Active);
    faults.command.times((On::Questions, CommandFault::Truncated(60)), 1);
    assert!(matches!(lab.ssh().await, Ssh::Broken(_)));
    faults.command.times((On::Questions, CommandFault::Garbage("what?".into())), 1);
    assert!(matches!(lab.ssh().await, Ssh::Broken(_)));
    assert_eq!(faults.command.struck(), 5);
}

#[tokio::test]
async fn polkit_and_missing_units_refuse() {
    let lab = on().await;
    let code = |outcome| match outcome {
        Outcome::Failed(why) => why.code,
        other => panic!("{other:?}"),
    };
    for refusal in [Refusal::Denied, Refusal::WouldAsk] {
        lab.server.faults().refusal.times(refusal, 1);
        assert_eq!(code(lab.order(Verb::StartUnit(LLAMA)).await), "not_permitted");
    }
    lab.server.faults().unit.always(UnitFault::Missing(LLAMA_UNIT.into()));
    assert_eq!(code(lab.order(Verb::StartUnit(LLAMA)).await), "unit_missing");
    let reading = lab.look(UNITS).await;
    assert_eq!(reading.backends[0].unit.as_ref().map(|u| &u.value), Some(&Unit::Missing("not-found".into())));
    lab.server.faults().unit.always(UnitFault::Masked(LLAMA_UNIT.into()));
    assert_eq!(code(lab.order(Verb::StartUnit(LLAMA)).await), "unit_missing");
    lab.server.faults().clear();
    lab.server.inhibit(Inhibitor { who: "apt".into(), why: "Installing".into() });
    assert_eq!(code(lab.order(Verb::PowerOff).await), "blocked");
    assert_eq!(lab.server.power(), Power::On);
}

#[tokio::test]
async fn a_crash_is_restarted_and_a_crash_loop_given_up() {
    let lab = lab(|setup| setup.times.start_limit = LONG).await;
    lab.up(LLAMA).await;
    let first = lab.unit(LLAMA).await;
    let count = |server: &VirtualServer| {
        let by_systemd = |what: &What| matches!(what, What::Started { by: By::Systemd, .. });
        server.deeds().iter().filter(|deed| by_systemd(&deed.what)).count()
    };
    for n in 1..=4 {
        assert!(lab.server.signal(LLAMA_UNIT, Signal::Abort));
        lab.until("restarted", |server| count(server) == n).await;
        let unit = lab.unit(LLAMA).await;
        assert_eq!((unit.active, unit.restarts as usize), (ActiveState::Active, n));
        assert_ne!(unit.invocation, first.invocation);
    }
    lab.server.signal(LLAMA_UNIT, Signal::Abort);
    lab.until("given up", |server| server.truth().units[0].active == "failed").await;
    let unit = lab.unit(LLAMA).await;
    assert_eq!((unit.active, unit.result.as_str(), unit.exec_status), (ActiveState::Failed, "core-dump", 6));
    let lines = lab.host.post_mortem(LLAMA).await.lines;
    assert!(lines.iter().any(|line| line.contains("Start request repeated too quickly")), "{lines:?}");
    // The counter is cleared by the daemon's world itself.
    lab.done(Verb::StartUnit(LLAMA)).await;
    assert!(lab.server.deeds().iter().any(|deed| matches!(deed.what, What::ResetFailed { .. })));
}

#[tokio::test]
async fn a_process_that_ignores_its_end_is_killed_and_its_unit_has_failed() {
    let lab = lab(|setup| setup.times.timeout_stop = Duration::from_millis(200)).await;
    lab.up(LLAMA).await;
    lab.inside(LLAMA_UNIT).set_times(Fault::TermIgnored, 1);
    lab.done(Verb::StopUnit(LLAMA)).await;
    let unit = lab.unit(LLAMA).await;
    assert_eq!((unit.active, unit.result.as_str(), unit.exec_status), (ActiveState::Failed, "timeout", 9));
    assert_eq!(unit.timeout_stop, Some(Duration::from_millis(200)));

    // One that waits for its driver outlives even that.
    lab.up(LLAMA).await;
    lab.inside(LLAMA_UNIT).set(Fault::TermIgnored);
    lab.inside(LLAMA_UNIT).set(Fault::KillIgnored);
    lab.done(Verb::StopUnit(LLAMA)).await;
    let unit = lab.unit(LLAMA).await;
    assert_eq!((unit.active, unit.processes_left), (ActiveState::Failed, true));
    assert!(lab.server.truth().gpu_used_mib > 0);
    lab.inside(LLAMA_UNIT).clear_all();
    lab.until("gone", |server| server.truth().units[0].pid.is_none()).await;
    assert!(!lab.unit(LLAMA).await.processes_left);
}

#[tokio::test]
async fn a_start_during_a_stop_takes_its_place() {
    let lab = lab(|setup| setup.times.timeout_stop = Duration::from_millis(300)).await;
    lab.up(LLAMA).await;
    lab.inside(LLAMA_UNIT).set_times(Fault::TermIgnored, 1);
    let stop = lab.host.carry_out(Verb::StopUnit(LLAMA), LONG);
    let start = async {
        lab.until("stopping", |server| server.truth().units[0].active == "deactivating").await;
        let unit = lab.unit(LLAMA).await;
        assert!(unit.job && unit.active == ActiveState::Deactivating);
        lab.host.carry_out(Verb::StartUnit(LLAMA), LONG).await
    };
    let (stopped, started) = tokio::join!(stop, start);
    assert!(matches!(stopped, Outcome::Failed(why) if why.message.contains("canceled")));
    assert_eq!(started, Outcome::Succeeded(vec![]));
    assert_eq!(lab.unit(LLAMA).await.active, ActiveState::Active);
}

#[tokio::test]
async fn workers_that_are_left_behind_hold_their_memory_until_they_are_killed() {
    let lab = on().await;
    lab.up(VLLM).await;
    lab.inside(VLLM_UNIT).set_times(Fault::OrphanStays, 1);
    lab.done(Verb::StopUnit(VLLM)).await;
    assert!(lab.unit(VLLM).await.processes_left);
    let Gpu::Read { processes, .. } = lab.gpu().await else { panic!("no GPU") };
    assert_eq!(processes.iter().map(|p| p.backend).collect::<Vec<_>>(), [Some(1)]);
    lab.done(Verb::KillUnit(VLLM)).await;
    lab.until("free", |server| server.truth().gpu_used_mib == 0).await;
    assert_eq!(lab.inside(VLLM_UNIT).fired("orphan-stays"), 1);
}

#[tokio::test]
async fn gpu_tools_fail_as_they_do() {
    let lab = on().await;
    let gpu = &lab.server.faults().gpu;
    gpu.times(GpuFault::ToolAbsent, 1);
    assert_eq!(lab.gpu().await, Gpu::Absent);
    gpu.times(GpuFault::Broken(18, "Failed to initialize NVML: Driver/library version mismatch".into()), 1);
    assert!(matches!(lab.gpu().await, Gpu::Broken { code, .. } if code == "driver_mismatch"));
    gpu.times(GpuFault::Missing(1), 1);
    assert!(matches!(lab.gpu().await, Gpu::Read { devices, .. } if devices.len() == 1));
    gpu.times(GpuFault::Missing(2), 1);
    assert!(matches!(lab.gpu().await, Gpu::Broken { code, .. } if code == "gpu_not_found"));
    gpu.times(GpuFault::Hangs, 1);
    assert_eq!(lab.gpu().await, Gpu::Hangs);
    assert_eq!(gpu.struck(), 5);
}

#[tokio::test]
async fn a_command_the_daemon_never_gives_is_not_found_and_counted() {
    let lab = on().await;
    let ssh = ssh::Ssh::new(&lab.config.server.ssh).expect("a target");
    let known = remote::units(&[UnitName::new("a.service").expect("a unit")]);
    assert_eq!(ssh.run(&known, LONG).await.expect("a reply").status, 0);
    assert_eq!(lab.server.violations(), Vec::<String>::new());
    let unknown = remote::verb(&["doas".into()], RemoteVerb::PowerOff);
    assert_eq!(ssh.run(&unknown, LONG).await.expect("a reply").status, 127);
    assert_eq!(lab.server.violations().len(), 1);
    assert_eq!(lab.server.power(), Power::On);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the answer comes from our own server")]
async fn slots_are_saved_into_the_folder_and_restored_from_it() {
    let lab = on().await;
    lab.up(LLAMA).await;
    let all = Ask { http: true, activity: true, ..UNITS };
    let reading = lab.look(all).await;
    assert!(matches!(reading.backends[0].http.as_ref().map(|h| &h.value), Some(Http::Ready(_))), "{reading:?}");
    let address = lab.server.unit_address(LLAMA_UNIT).expect("its address");
    let ask = || async {
        let body = serde_json::json!({"prompt": "The cellar key hangs behind the third book.", "n_predict": 4});
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.post(format!("http://{address}/completion")).json(&body).send().await.expect("an answer");
        let answer: serde_json::Value = answer.json().await.expect("JSON");
        answer["timings"]["cache_n"].as_u64()
    };
    assert_eq!(ask().await, Some(0));
    lab.done(Verb::SaveSlots(LLAMA)).await;
    assert_eq!(lab.server.truth().slot_files.len(), 1);
    lab.done(Verb::StopUnit(LLAMA)).await;
    lab.up(LLAMA).await;
    lab.look(all).await;
    lab.done(Verb::RestoreSlots(LLAMA)).await;
    assert!(ask().await.is_some_and(|reused| reused > 30));
    let deeds = lab.deeds();
    let slots: Vec<&String> = deeds.iter().filter(|deed| !deed.contains(' ')).collect();
    assert_eq!(slots, ["booted", "Saved", "Restored"]);

    // A folder nothing can be written into, and one that is gone.
    lab.inside(LLAMA_UNIT).set_times(Fault::DiskFull, 1);
    let full = lab.order(Verb::SaveSlots(LLAMA)).await;
    assert!(!matches!(&full, Outcome::Succeeded(warnings) if warnings.is_empty()), "{full:?}");
    assert_eq!(lab.server.truth().slot_files.len(), 1, "the good one stays, the remains are swept");
    lab.server.hide_slots(true);
    lab.done(Verb::StopUnit(LLAMA)).await;
    lab.order(Verb::StartUnit(LLAMA)).await;
    lab.until("failed", |server| {
        let exits =
            server.deeds().into_iter().filter(|deed| matches!(deed.what, What::Exited { exit: Exit::Code(1), .. }));
        exits.count() > 0
    })
    .await;
    lab.server.hide_slots(false);
    assert_eq!(lab.server.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_bit_flipped_on_the_disk_is_found_before_llama_cpp_sees_it() {
    let lab = on().await;
    lab.up(LLAMA).await;
    lab.converse().await;
    lab.done(Verb::SaveSlots(LLAMA)).await;
    let verified = || async {
        let told = lab.host.tend_slots(LLAMA, SlotTask::Verify { name: None, generation: None }).await;
        told.expect("an answer").into_iter().map(|told| told.code).collect::<Vec<_>>()
    };
    assert_eq!(verified().await, ["digest_unknown"]);
    assert!(lab.host.tidy().await, "a digest is taken");
    assert_eq!(verified().await, ["whole"]);
    assert!(!lab.host.tidy().await, "nothing is left");
    lab.done(Verb::StopUnit(LLAMA)).await;
    let truth = lab.server.truth();
    let (name, bytes) = truth.slot_files.first().expect("one file");
    let file = lab.folder.join("server/slots").join(name);
    let mut content = fs::read(&file).expect("its content");
    *content.last_mut().expect("a byte") ^= 1;
    fs::write(&file, &content).expect("damage");
    assert_eq!(*bytes, content.len() as u64, "its size tells nothing");
    lab.up(LLAMA).await;
    let outcome = lab.order(Verb::RestoreSlots(LLAMA)).await;
    assert!(matches!(&outcome, Outcome::Failed(why) if why.code == "restore_damaged"), "{outcome:?}");
    assert_eq!(verified().await, ["damaged"]);
    let slots: Vec<String> = lab.deeds().into_iter().filter(|deed| deed == "Saved" || deed == "Restored").collect();
    assert_eq!(slots, ["Saved"]);
    let forget = SlotTask::Forget { name: "localbot".into(), generation: None };
    assert_eq!(lab.host.tend_slots(LLAMA, forget).await.expect("an answer").len(), 1);
    assert!(lab.server.truth().slot_files.is_empty());
    assert_eq!(lab.server.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn that_a_run_has_outlived_its_restore_is_written_down_by_the_look_that_sees_it() {
    let lab = on().await;
    lab.up(LLAMA).await;
    lab.converse().await;
    lab.done(Verb::SaveSlots(LLAMA)).await;
    let notes = lab.config.daemon.state_dir.join("slots").join(&lab.config.server.name).join("llama-cpp");
    let note = fs::read_dir(notes).expect("notes").next().expect("a note").expect("a note").path();
    let read = || serde_json::from_slice::<serde_json::Value>(&fs::read(&note).expect("a note")).expect("JSON");
    // As a daemon leaves it that is killed while it restores.
    let mut marked = read();
    marked["restoring"] = true.into();
    marked["sent_to"] = serde_json::to_value(lab.unit(LLAMA).await.invocation).expect("JSON");
    fs::write(&note, marked.to_string()).expect("a note");
    let next = Host::new(&lab.config).expect("a host");
    next.look(UNITS, now()).await;
    assert_eq!(read()["restoring"], true);
    next.look(Ask { http: true, activity: true, ..UNITS }, now()).await;
    assert_eq!(read()["restoring"], false);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the answer comes from our own server")]
async fn a_restore_is_proved_at_once_wherever_the_folder_is_looked_at() {
    let all = Ask { http: true, activity: true, saved: true, ..UNITS };
    for mounted in [false, true] {
        let mut lab = on().await;
        let slots = lab.config.backends[0].slots.as_mut().expect("it saves slots");
        slots.prove = Prove::AtOnce;
        slots.mounted = mounted.then(|| lab.folder.join("server/slots"));
        lab.host = Host::new(&lab.config).expect("a host");
        lab.up(LLAMA).await;
        let address = lab.server.unit_address(LLAMA_UNIT).expect("its address");
        let ask = || async {
            let body = serde_json::json!({"prompt": "The cellar key hangs behind the third book.", "n_predict": 4});
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let answer = client.post(format!("http://{address}/completion")).json(&body).send().await;
            let answer: serde_json::Value = answer.expect("an answer").json().await.expect("JSON");
            answer["timings"]["cache_n"].as_u64()
        };
        ask().await;
        lab.done(Verb::SaveSlots(LLAMA)).await;
        lab.done(Verb::StopUnit(LLAMA)).await;
        lab.up(LLAMA).await;
        lab.look(all).await;
        let outcome = lab.order(Verb::RestoreSlots(LLAMA)).await;
        assert_eq!(outcome, Outcome::Succeeded(vec![]), "mounted: {mounted}");
        let mut reading = lab.host.look(all, Instant::after_start(LONG)).await;
        let llama = reading.backends.swap_remove(0);
        let saved = llama.saved.expect("asked").value;
        let restore = saved[0].last_restore.as_ref().expect("it was restored");
        assert_eq!(restore.reuse, Some(Reuse { reused: restore.tokens - 1, computed: 1 }));
        let activity = llama.activity.expect("asked").value;
        assert_eq!(
            (activity.slots[0].tokens, activity.prompts),
            (None, Some(Prompts::default())),
            "nobody has used it"
        );
        let note = lab.folder.join("state/slots/virtual/llama-cpp").join(format!("{}.json", saved[0].file));
        let note: serde_json::Value = serde_json::from_slice(&fs::read(note).expect("a note")).expect("JSON");
        assert_eq!(note["flags"], serde_json::json!({"parallel": "1"}));
        lab.done(Verb::SaveSlots(LLAMA)).await;
        assert_eq!(lab.server.truth().slot_files.len(), 1, "nothing new was there to be saved");
        assert!(ask().await.is_some_and(|reused| reused > 30));
        assert_eq!(lab.server.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_first_look_that_finds_a_backend_ready_tells_of_its_use() {
    let lab = on().await;
    for _ in 0..2 {
        lab.up(LLAMA).await;
        let health = || async { lab.look(Ask { http: true, ..Ask::default() }).await.backends.swap_remove(0) };
        let first = health().await;
        assert!(matches!(first.http.map(|http| http.value), Some(Http::Ready(_))));
        assert!(first.activity.is_some_and(|activity| activity.value.slots.iter().all(|slot| slot.tokens.is_none())));
        assert!(health().await.activity.is_none(), "afterwards only if that is asked for");
        lab.done(Verb::StopUnit(LLAMA)).await;
        health().await;
    }
}

#[tokio::test]
async fn a_model_that_finds_no_memory_does_not_load() {
    let lab = lab(|setup| setup.units[0].restart = Restart::Never).await;
    lab.server.occupy(Foreign { pid: 77, user: "bob".into(), name: "/opt/train.py".into(), mib: 9000 });
    lab.done(Verb::StartUnit(LLAMA)).await;
    lab.until("failed", |server| server.truth().units[0].active == "failed").await;
    let lines = lab.host.post_mortem(LLAMA).await.lines;
    assert!(lines.iter().any(|line| line.contains("out of memory")), "{lines:?}");
    lab.server.vacate(77);
    lab.until("free", |server| server.truth().gpu_used_mib == 0).await;
    lab.up(LLAMA).await;
}
