//! `host::Host` as the driver uses it: a real SSH server in this process, with stand-ins for the server's own programs.

mod sshd;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use sshd::{Act, Folder, Sshd, target};
use tokio::net::UdpSocket;
use wechsler::{
    config::{Backend, Config, Daemon, GpuTool, Probe, Server, Slots, SshTarget, Wake},
    driver::World,
    host::Host,
    machine::{
        BackendId, BackendKind, BackendPolicy, Instant, OnStartTimeout, Outcome, Policy, RestorePolicy, Verb,
        WakeCheck,
        reading::{ActiveState, Ask, BackendReading, Gpu, Http, People, Reading, Ssh, Unit, WakeArmed},
    },
};

const LONG: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
const UNITS: [&str; 3] = ["llama-cpp.service", "vllm.service", "hang.service"];

/// The programs of a server on which llama.cpp runs, vLLM has failed and left a process behind, and ann is logged in.
fn programs() -> Folder {
    let folder = Folder::new();
    folder.program(
        "systemctl",
        r#"here=$(dirname "$0")
case "$*" in
  *ExecMainCode*) cat "$here/post-mortem" ;;
  *" show "*) cat "$here/show" ;;
  *"start vllm"*) echo "Failed to start vllm.service: Access denied" >&2; exit 4 ;;
  *"start hang"*) echo "Failed to start hang.service: Unit hang.service not found." >&2; exit 5 ;;
  *"start llama"*) echo "$*" >>"$here/orders"; [ -e "$here/too-often" ] && { rm "$here/too-often"; echo "Job for llama-cpp.service failed because start of the service was attempted too often." >&2; exit 1; }; exit 0 ;;
  *"reset-failed"*) echo "$*" >>"$here/orders"; [ ! -e "$here/slow" ] || exec sleep 5 ;;
  *poweroff*) [ -e "$here/inhibited" ] && { echo "Call to PowerOff failed: Interactive authentication required." >&2; exit 1; }
     echo "$*" >>"$here/orders" ;;
  *) echo "$*" >>"$here/orders" ;;
esac"#,
    );
    let unit = |name: &str, load: &str, active: &str, sub: &str, pid: u32| {
        format!(
            "MainPID={pid}\nNames={name}\nLoadState={load}\nActiveState={active}\nSubState={sub}\nJob=\nInvocationID=0b7a1c9e55d14a07bb2df2f43f1d9e6a\nNRestarts=0\nResult=success\nExecMainStatus=0\nTimeoutStopUSec=1min 30s\n"
        )
    };
    let show = [
        unit(UNITS[0], "loaded", "active", "running", 4711),
        unit(UNITS[1], "loaded", "failed", "failed", 0),
        unit(UNITS[2], "not-found", "inactive", "dead", 0),
    ];
    folder.write("show", show.join("\n"));
    folder.write(
        "post-mortem",
        "ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=1\nNRestarts=0\n",
    );
    folder.program("journalctl", "echo 'CUDA error: out of memory'");
    folder.program("ss", "echo 'LISTEN 0 128 127.0.0.1:1 0.0.0.0:*'");
    folder.program(
        "nvidia-smi",
        r#"echo x >>"$(dirname "$0")/asked"
[ -e "$(dirname "$0")/hang" ] && exec sleep 60
case "$*" in
  *query-gpu*) echo "0, 21000, 24576" ;;
  *) echo "1, 20000, /opt/other/trainer" ;;
esac"#,
    );
    folder.program(
        "loginctl",
        r#"case "$1" in
  list-sessions) echo "      9 1001 wechsler"; echo "      3 1000 ann  pts/0" ;;
  *) printf 'Id=9\nName=wechsler\nRemote=yes\nTTY=\nClass=user\nState=active\n\nId=3\nName=ann\nRemote=yes\nRemoteHost=10.0.0.7\nTTY=pts/0\nClass=user\nState=active\n' ;;
esac"#,
    );
    folder.program("busctl", r#"echo '{"type":"a(ssssuu)","data":[[["shutdown","apt","Installing","block",0,811]]]}'"#);
    folder.program("ethtool", "printf 'Settings for eth0:\\n\\tSupports Wake-on: pumbg\\n\\tWake-on: d\\n'");
    folder
}

fn config(ssh: SshTarget, wake: Wake, state_dir: PathBuf) -> Config {
    let backend = |unit: &&str| Backend {
        name: unit.trim_end_matches(".service").into(),
        unit: (*unit).into(),
        url: "http://127.0.0.1:1".into(),
        public_url: "http://127.0.0.1:1".into(),
        health_path: "/health".into(),
        api_key_file: None,
        model: None,
        ssh: None,
        slots: None,
        expected_start: SECOND,
    };
    let policy = |unit: &&str| BackendPolicy {
        name: unit.trim_end_matches(".service").into(),
        kind: BackendKind::Generic,
        start_timeout: LONG,
        on_start_timeout: OnStartTimeout::Leave,
        drain_timeout: LONG,
        stop_timeout: LONG,
        kill_timeout: LONG,
        slots: false,
        restore: RestorePolicy::Never,
        save_timeout: LONG,
        restore_timeout: LONG,
        checkpoint_tokens: None,
        checkpoint_quiet: None,
    };
    Config {
        daemon: Daemon { socket: state_dir.join("socket"), group: None, state_dir },
        server: Server {
            name: "gpu".into(),
            ssh,
            wake,
            wake_interface: Some("eth0".into()),
            gpu: GpuTool {
                enabled: true,
                baseline_mib: None,
                ignore: vec![],
                foreign_threshold_mib: 100,
                timeout: SECOND,
            },
            privilege: vec![],
        },
        backends: UNITS.iter().map(backend).collect(),
        policy: Policy {
            backends: UNITS.iter().map(policy).collect(),
            default_backend: BackendId(0),
            can_wake: true,
            wake_check: WakeCheck::Warn,
            wake_resend: SECOND,
            boot_timeout: LONG,
            power_off_timeout: LONG,
            command_timeout: LONG,
            silence: LONG,
            misses: 3,
            conflict_after: SECOND,
            idle_stop_after: None,
            idle_power_off_after: None,
            policy_backoff: LONG,
            gpu_baseline_mib: None,
        },
        probe: Probe { rest: LONG, busy: SECOND, waiting: SECOND, http_timeout: SECOND },
    }
}

/// What the test holds: everything goes with it.
struct Lab {
    folder: Folder,
    programs: Folder,
    sshd: Sshd,
    host: Host,
}

async fn lab(wake: Wake) -> Lab {
    fn act(line: &str) -> Act {
        if line.contains("stop hang.service") { Act::Hang } else { Act::Run }
    }
    let (folder, programs) = (Folder::new(), programs());
    let sshd = Sshd::start(1, act, Some(programs.path())).await;
    let ssh = target(sshd.address, folder.client_key(true), &[1], &[]);
    let host = Host::new(&config(ssh, wake, folder.path().into())).expect("a host");
    Lab { folder, programs, sshd, host }
}

fn magic_packet(to: std::net::SocketAddr) -> Wake {
    Wake::MagicPacket {
        mac: [0x52, 0x54, 0, 0, 0, 1],
        secure_on: None,
        targets: vec![to],
        source: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

fn nowhere() -> Wake {
    magic_packet(([127, 0, 0, 1], 9).into())
}

fn now() -> Instant {
    Instant::after_start(SECOND)
}

#[tokio::test]
async fn a_look_at_everything_reads_every_source_over_one_session() {
    let lab = lab(nowhere()).await;
    let reading = lab.host.look(Ask::ALL, now()).await;
    let ssh = reading.ssh.expect("read");
    assert_eq!(ssh.at, now());
    assert!(matches!(ssh.value, Ssh::Answered { session: 1, .. }), "{:?}", ssh.value);
    let units: Vec<Unit> = reading.backends.iter().map(|b| b.unit.clone().expect("read").value).collect();
    let [Unit::Loaded(llama), Unit::Loaded(vllm), Unit::Missing(_)] = &units[..] else { panic!("{units:?}") };
    assert_eq!((llama.active, llama.main_pid), (ActiveState::Active, Some(4711)));
    assert_eq!((vllm.active, vllm.processes_left), (ActiveState::Failed, false));
    assert!(reading.backends.iter().all(|b| b.http.as_ref().is_some_and(|h| h.value == Http::Refused)));
    let Some(Gpu::Read { devices, processes }) = reading.gpu.map(|g| g.value) else { panic!("no GPU") };
    assert_eq!((devices[0].used_mib, processes[0].pid, processes[0].backend), (Some(21000), 1, None));
    assert_eq!(processes[0].user.as_deref(), Some("root"));
    assert_eq!(
        reading.people.map(|p| p.value),
        Some(People::Read {
            logins: vec!["ann on pts/0 from 10.0.0.7".into()],
            inhibitors: vec!["apt: Installing".into()]
        })
    );
    assert_eq!(
        reading.wake_armed.map(|w| w.value),
        Some(WakeArmed::NotArmed("eth0: Wake-on: d (supports pumbg)".into()))
    );
    assert_eq!(lab.sshd.logins(), 1);
}

#[tokio::test]
async fn what_is_not_asked_is_not_read() {
    let lab = lab(nowhere()).await;
    let reading = lab.host.look(Ask::default(), now()).await;
    assert_eq!(reading, Reading { backends: vec![BackendReading::default(); 3], ..Reading::default() });
    assert_eq!(lab.sshd.logins(), 0);
}

#[tokio::test]
async fn orders_end_as_systemd_says() {
    let lab = lab(nowhere()).await;
    let code = |outcome: Outcome| match outcome {
        Outcome::Succeeded(_) => "succeeded".to_owned(),
        Outcome::Failed(w) | Outcome::Unknown(w) => w.code,
    };
    for (verb, expected) in [
        (Verb::StartUnit(BackendId(0)), "succeeded"),
        (Verb::StartUnit(BackendId(1)), "not_permitted"),
        (Verb::StartUnit(BackendId(2)), "unit_missing"),
        (Verb::StopUnit(BackendId(1)), "succeeded"),
        (Verb::KillUnit(BackendId(1)), "succeeded"),
        (Verb::SaveSlots(BackendId(0)), "no_slots"),
        (Verb::PowerOff, "succeeded"),
        (Verb::StartUnit(BackendId(77)), "verb_failed"),
    ] {
        assert_eq!(code(lab.host.carry_out(verb, LONG).await), expected, "{verb:?}");
    }
    let orders = std::fs::read_to_string(lab.programs.path().join("orders")).expect("orders");
    let said = |words: &str| format!("--no-ask-password {words}\n");
    let all = ["start llama-cpp.service", "stop vllm.service", "kill --signal=KILL vllm.service", "poweroff"];
    assert_eq!(orders, all.map(said).concat());
    assert_eq!(lab.sshd.logins(), 1);
}

#[tokio::test]
async fn an_order_without_an_answer_is_unknown_and_the_next_look_comes_from_a_later_session() {
    let lab = lab(nowhere()).await;
    lab.host.look(Ask::ALL, now()).await;
    let outcome = lab.host.carry_out(Verb::StopUnit(BackendId(2)), SECOND / 4).await;
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    let units = Ask { units: true, ..Ask::default() };
    let reading = lab.host.look(units, now()).await;
    assert!(matches!(reading.ssh.expect("read").value, Ssh::Answered { session: 2, .. }));

    let dropped = tokio::time::timeout(SECOND / 4, lab.host.carry_out(Verb::StopUnit(BackendId(2)), LONG));
    assert!(dropped.await.is_err());
    let reading = lab.host.look(units, now()).await;
    assert!(matches!(reading.ssh.expect("read").value, Ssh::Answered { session: 3, .. }));
}

#[tokio::test]
async fn a_used_up_start_counter_is_cleared_and_the_start_tried_once_more() {
    let lab = lab(nowhere()).await;
    lab.programs.write("too-often", "");
    let outcome = lab.host.carry_out(Verb::StartUnit(BackendId(0)), LONG).await;
    assert_eq!(outcome, Outcome::Succeeded(vec![]));
    let start = "--no-ask-password start llama-cpp.service\n";
    let reset = "--no-ask-password reset-failed llama-cpp.service\n";
    let orders = std::fs::read_to_string(lab.programs.path().join("orders")).expect("orders");
    assert_eq!(orders, [start, reset, start].concat());
}

#[tokio::test]
async fn a_start_tried_once_more_takes_no_longer_than_one_may() {
    let lab = lab(nowhere()).await;
    lab.programs.write("too-often", "");
    lab.programs.write("slow", "");
    let began = tokio::time::Instant::now();
    let outcome = lab.host.carry_out(Verb::StartUnit(BackendId(0)), SECOND).await;
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    let orders = std::fs::read_to_string(lab.programs.path().join("orders")).expect("orders");
    assert_eq!(orders.matches("start llama").count(), 1, "after doubt nothing more is sent: {orders}");
}

#[tokio::test]
async fn what_one_target_left_in_doubt_no_other_target_clears_up() {
    fn mute(_: &str) -> Act {
        Act::Hang
    }
    fn act(line: &str) -> Act {
        if line.contains("stop llama") { Act::Hang } else { Act::Run }
    }
    let (folder, programs) = (Folder::new(), programs());
    let sshd = Sshd::start(1, act, Some(programs.path())).await;
    let other = Sshd::start(1, mute, None).await;
    let to = |address| {
        let mut to = target(address, folder.client_key(true), &[1], &[]);
        to.command_timeout = SECOND / 2;
        to
    };
    let mut config = config(to(sshd.address), nowhere(), folder.path().into());
    config.backends[1].ssh = Some(to(other.address));
    let host = Host::new(&config).expect("a host");
    let units = Ask { units: true, ..Ask::default() };
    let session = async || match host.look(units, now()).await.ssh.expect("read").value {
        Ssh::Answered { session, .. } => session,
        other => panic!("{other:?}"),
    };
    assert_eq!(session().await, 1);
    for backend in [BackendId(1), BackendId(0)] {
        let outcome = host.carry_out(Verb::StopUnit(backend), SECOND / 4).await;
        assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    }
    assert_eq!(session().await, 1);
    assert_eq!(sshd.logins(), 2, "the server itself has answered over a new session, but not the other target");
}

#[tokio::test]
async fn leftovers_are_looked_for_until_that_has_succeeded_once() {
    let (folder, programs) = (Folder::new(), programs());
    let sshd = Sshd::start(1, |_| Act::Run, Some(programs.path())).await;
    let ssh = target(sshd.address, folder.client_key(true), &[1], &[]);
    let mut config = config(ssh, nowhere(), folder.path().into());
    let slots = folder.path().join("slots-of-the-server");
    config.backends[0].slots =
        Some(Slots { keep: 1, save_timeout: LONG, restore_timeout: LONG, ..Slots::new(slots.clone(), "localbot") });
    let host = Host::new(&config).expect("a host");
    let sweeps = || sshd.shared.commands.lock().expect("no panic").iter().filter(|c| c.contains(".part")).count();
    host.tidy().await;
    assert_eq!(sweeps(), 0, "a server that is not up is not called for this");
    host.look(Ask { units: true, ..Ask::default() }, now()).await;
    let until = async |wanted: usize| {
        let reached = async {
            while sweeps() < wanted {
                host.tidy().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, reached).await.expect("it is tried again");
    };
    until(2).await;
    std::fs::create_dir(&slots).expect("the slot folder is mounted at last");
    until(3).await;
    let tried = sweeps();
    for _ in 0..5 {
        host.tidy().await;
    }
    assert_eq!((sweeps(), tried), (3, 3), "once it has succeeded that is enough");
    std::fs::remove_dir(&slots).expect("it is empty");
}

#[tokio::test]
async fn an_inhibited_power_off_names_the_inhibitor() {
    let lab = lab(nowhere()).await;
    lab.programs.write("inhibited", "");
    let Outcome::Failed(why) = lab.host.carry_out(Verb::PowerOff, LONG).await else {
        panic!("it is inhibited");
    };
    assert_eq!((why.code.as_str(), why.message.contains("apt: Installing")), ("blocked", true));
}

#[tokio::test]
async fn a_failed_unit_says_why() {
    let lab = lab(nowhere()).await;
    let lines = lab.host.post_mortem(BackendId(1)).await.lines;
    assert_eq!(
        lines,
        [
            "vllm.service is failed (failed), result exit-code, exit status 1, 0 automatic restarts",
            "port 1 listens on the host",
            "CUDA error: out of memory",
        ]
    );
}

#[tokio::test]
async fn a_gpu_tool_that_hangs_is_cut_short_and_harms_nothing_else() {
    let lab = lab(nowhere()).await;
    lab.programs.write("hang", "");
    let ask = Ask { gpu: true, units: true, ..Ask::default() };
    let reading = lab.host.look(ask, now()).await;
    assert_eq!(reading.gpu.map(|g| g.value), Some(Gpu::Hangs));
    assert!(matches!(reading.ssh.expect("read").value, Ssh::Answered { .. }));
}

#[tokio::test]
async fn a_server_that_is_off_says_so_in_every_source_and_orders_fail_at_once() {
    let folder = Folder::new();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let ssh = target(closed.local_addr().expect("it"), folder.client_key(true), &[1], &[]);
    drop(closed);
    let host = Host::new(&config(ssh, nowhere(), folder.path().into())).expect("a host");
    let reading = host.look(Ask::ALL, now()).await;
    assert_eq!(reading.ssh.map(|s| s.value), Some(Ssh::PortClosed));
    assert!(reading.backends.iter().all(|b| matches!(b.unit.as_ref().map(|u| &u.value), Some(Unit::Unread(_)))));
    assert!(matches!(reading.people.map(|p| p.value), Some(People::Unread(_))));
    assert!(matches!(reading.wake_armed.map(|w| w.value), Some(WakeArmed::Unknown(_))));
    assert_eq!(reading.gpu, None, "that says nothing of the GPU");
    let Outcome::Failed(why) = host.carry_out(Verb::StartUnit(BackendId(0)), LONG).await else {
        panic!("nothing was sent, so it surely failed");
    };
    assert_eq!(why.code, "control_unreachable");
    assert!(!host.post_mortem(BackendId(0)).await.lines.is_empty());
}

#[tokio::test]
async fn waking_sends_the_packet_or_runs_the_command() {
    let hear = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let lab_ = lab(magic_packet(hear.local_addr().expect("it"))).await;
    assert_eq!(lab_.host.carry_out(Verb::Wake, LONG).await, Outcome::Succeeded(vec![]));
    let mut buffer = [0; 200];
    let n = hear.recv(&mut buffer).await.expect("a packet");
    assert_eq!((n, &buffer[6..12]), (102, &[0x52, 0x54, 0, 0, 0, 1][..]));

    let folder = lab_.folder.path().join("woken");
    let by_command = lab(Wake::Command(vec!["touch".into(), folder.display().to_string()])).await;
    assert_eq!(by_command.host.carry_out(Verb::Wake, LONG).await, Outcome::Succeeded(vec![]));
    assert!(folder.exists());
    let by_hand = lab(Wake::None).await;
    assert!(matches!(by_hand.host.carry_out(Verb::Wake, LONG).await, Outcome::Failed(w) if w.code == "cannot_wake"));
}
