//! SSH and systemd.

use std::{process::Command as Process, time::Duration};

use tokio::time::sleep;
use wechsler::{
    config,
    host::remote::{self, FileQuestion, RemotePath},
    machine::{Command, PowerChoice, Refusal},
    virtual_server::{
        By, CommandFault, Engine, Inhibitor, Login, On, Places, Power, Refusal as Polkit, SshFault, VirtualServer,
        What,
        programs::{Exit, Fault},
    },
};

use crate::bench::{
    Bench, LLAMA, LLAMA_UNIT, LONG, NO_DRAIN, PLAIN, POWER_OFF, Plan, START, STOP, TO_VLLM, VLLM, VLLM_UNIT, reused,
};

/// Down, whoever uses it.
const STOP_NOW: Command = Command::Stop(NO_DRAIN);
/// To vLLM and back, whoever uses them.
const OVER: Command = Command::Switch(VLLM, NO_DRAIN);
const BACK: Command = Command::Switch(LLAMA, NO_DRAIN);

/// Units that are up, by the server's own truth.
fn up(server: &VirtualServer) -> Vec<String> {
    server.truth().units.into_iter().filter(|u| u.pid.is_some()).map(|u| u.name).collect()
}

fn resets(bench: &Bench) -> usize {
    bench.count(|what| matches!(what, What::ResetFailed { .. }))
}

fn powered_off(bench: &Bench) -> usize {
    bench.count(|what| *what == What::PowerOffOrdered(By::Ssh))
}

#[tokio::test]
async fn row_x2_a_kept_session_that_is_dead_ends_at_our_own_deadline_and_the_next_is_a_new_one() {
    let bench = Bench::with_llama().await;
    let faults = bench.server.faults();
    // The control: the session that is kept serves, look after look.
    let at_rest = bench.until("another look", |s| s.ages.get("ssh").is_some_and(|age| *age < 0.2)).await;
    assert_eq!(at_rest.control.as_deref(), Some("ok"));

    // The next one stands, and nothing is ever heard of it again.
    faults.ssh.times(SshFault::FallsSilent, 1);
    faults.command.times((On::Questions, CommandFault::Cut), 1);
    let status = bench.until("out of control", |s| s.control.as_deref() == Some("unreachable")).await;
    assert_eq!(status.state, "llama-cpp", "it answers by itself, and keeps its state");
    let attention = status.attention.iter().find(|a| a.code == "control_unreachable").expect("it is said");
    assert!(!attention.hint.is_empty());
    assert_eq!((faults.ssh.struck(), faults.command.struck()), (1, 1));
    assert_eq!(bench.refused(TO_VLLM).await, Refusal::ControlUnreachable);
    // Our own deadline ends it: the dead session never would.
    let status = bench.until("in control", |s| s.control.as_deref() == Some("ok")).await;
    assert_eq!((status.state.as_str(), status.attention.len()), ("llama-cpp", 0));
    assert_eq!(bench.starts(LLAMA_UNIT), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_x3_an_order_that_never_ends_is_given_up_and_the_next_look_decides() {
    let bench = Bench::on().await;
    let faults = bench.server.faults();
    faults.command.times((On::Verbs, CommandFault::Hangs), 1);
    let op = bench.accepted(START).await;
    bench.truly("struck", |server| server.faults().command.struck() == 1).await;
    // Everybody else is answered meanwhile.
    assert_eq!(bench.refused(TO_VLLM).await, Refusal::Busy);
    let record = bench.ended(op).await;
    assert_eq!((record.end.as_deref(), record.code.as_deref()), (Some("failed"), Some("start_failed")), "{record:#?}");
    assert!(record.hint.is_some_and(|hint| !hint.is_empty()));
    assert!(record.warnings.iter().any(|w| matches!(w.code.as_str(), "verb_lost" | "no_answer")), "said why");
    assert_eq!(bench.starts(LLAMA_UNIT), 0);
    // The control: the same, answered.
    bench.done(START).await;
    bench.works().await;
}

#[tokio::test]
async fn row_x3_questions_that_never_end_keep_nobody_waiting() {
    let bench = Bench::with_llama().await;
    let faults = bench.server.faults();
    faults.command.always((On::Questions, CommandFault::Hangs));
    bench.until("out of control", |s| s.control.as_deref() == Some("unreachable")).await;
    assert!(faults.command.struck() >= 1);
    assert_eq!(bench.refused(STOP).await, Refusal::ControlUnreachable);
    assert!(Refusal::ControlUnreachable.hint().contains("sshd"));
    assert_eq!(bench.status().state, "llama-cpp");
    faults.command.clear();
    bench.until("in control", |s| s.control.as_deref() == Some("ok")).await;
    bench.works().await;
}

/// What no shell leaves alone.
const ODD: &str = "a 'b';$(touch struck)&`touch struck`*{\"q\":4}~|>x #";

#[tokio::test]
async fn row_x4_odd_words_of_a_server_never_become_part_of_a_command() {
    let tale = "A tale that is long enough to be worth saving. ".repeat(20);
    let story = async |bench: &Bench, model: &str| {
        bench.done(START).await;
        let told = bench.state("llama-cpp").await.model.clone().expect("its model");
        assert_eq!(told.id, model);
        bench.asks(LLAMA_UNIT, &tale, 4).await.expect("an answer");
        bench.done(OVER).await;
        bench.done(BACK).await;
        let answer = bench.asks(LLAMA_UNIT, &tale, 4).await.expect("an answer");
        assert!(reused(&answer) > 500, "{answer}");
        assert!(!bench.server.truth().slot_files.is_empty());
        // The server takes a line apart as a shell does, and knows only ours, byte for byte.
        assert_eq!(bench.server.violations(), Vec::<String>::new());
        bench.works().await;
    };
    let named = |model: &'static str| {
        Plan::default().server(move |setup| {
            if let Engine::LlamaCpp { alias, .. } = &mut setup.units[0].engine {
                *alias = model.into();
            }
        })
    };
    // The control: a plain name.
    story(&named("Nemotron").on().await, "Nemotron").await;
    story(&named(ODD).on().await, ODD).await;
}

#[tokio::test]
async fn row_x4_what_could_be_more_than_a_word_is_refused_and_what_is_one_is_one_to_a_real_shell() {
    let bench = Bench::on().await;
    let places = Places {
        state_dir: bench.state_dir(),
        socket: bench.state_dir().join("socket"),
        key: bench.state_dir().join("key"),
        stop_after: None,
        power_off_after: None,
    };
    let text = bench.server.config_toml(&places);
    let with = |key: &str, value: &str| config::parse(&text, [(format!("WECHSLER_{key}"), value.to_owned())]);
    let (unit, dir) = ("BACKENDS__VLLM__UNIT", "BACKENDS__LLAMA_CPP__SLOTS__DIR");
    assert!(with(unit, "other.service").is_ok() && with(dir, "/mnt/slots").is_ok(), "the control");
    for (key, value) in [
        (unit, "vllm.service; reboot"),
        (unit, "$(reboot).service"),
        (unit, "-H root@elsewhere"),
        (unit, "a\nb.service"),
        (dir, "/mnt/$(reboot)"),
        (dir, "/mnt/a b"),
        (dir, "/mnt/../etc"),
    ] {
        let faults = with(key, value).err().unwrap_or_else(|| panic!("{value} is taken"));
        let under = if key == unit { "backends.vllm.unit" } else { "backends.llama-cpp.slots.dir" };
        assert!(faults.iter().all(|fault| fault.key == under && !fault.message.is_empty()), "{faults:?}");
    }

    // All but quotes and backslashes may stand in a path on the server; a shell must take it for one word.
    let folder = bench.state_dir().join(ODD.replace('\'', ""));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("localbot.bin"), "slot").expect("a file");
    let path = RemotePath::new(&folder.to_string_lossy()).expect("a path that may be used");
    let line = remote::files(&path, FileQuestion::List(".bin"));
    let ran = Process::new("sh").args(["-c", line.as_str()]).current_dir(&folder).output().expect("a shell");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("localbot.bin") && said.trim_end().ends_with("@@end"), "{said}");
    assert!(!folder.join("struck").exists());
    bench.works().await;
}

#[tokio::test]
async fn row_x5_a_start_counter_used_up_by_quick_switches_is_reset_once() {
    let bench = Plan::default().server(|setup| setup.times.start_limit = LONG * 9).on().await;
    // The control: as often as systemd allows.
    for _ in 0..5 {
        bench.done(START).await;
        bench.done(STOP_NOW).await;
    }
    assert_eq!(resets(&bench), 0);
    bench.done(START).await;
    assert_eq!((resets(&bench), bench.starts(LLAMA_UNIT)), (1, 6), "refused, reset, started");
    let journal = bench.server.journal(LLAMA_UNIT, 50).join("\n");
    assert!(journal.contains("Start request repeated too quickly"), "{journal}");
    bench.works().await;
}

#[tokio::test]
async fn row_x5_a_unit_that_crashed_into_its_limit_is_told_with_its_reason_and_started_no_more_than_once() {
    let bench = Plan::default().server(|setup| setup.times.start_limit = LONG * 9).on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadFails(Exit::Code(1)));
    bench.server.start_unit(LLAMA_UNIT);
    bench.truly("failed", |server| server.truth().units[0].active == "failed").await;
    let failed = |s: &std::sync::Arc<wechsler::driver::status::Status>| {
        s.backends["llama-cpp"].unit.active.as_deref() == Some("failed") && s.state == "gpu-idle"
    };
    let status = bench.until("shown", failed).await;
    // After a crash loop systemd's result is that of the crash, not of the limit.
    assert_eq!(status.backends["llama-cpp"].unit.result.as_deref(), Some("exit-code"));
    assert!(inside.fired("load-fails") >= 5);
    let loads = inside.fired("load-fails");
    let record = bench.fails(START, "crash_loop").await;
    assert_eq!((resets(&bench), bench.starts(LLAMA_UNIT)), (1, 1), "reset once, started once");
    assert!(inside.fired("load-fails") > loads);
    assert!(record.post_mortem.iter().any(|line| line.contains("error loading model")), "{record:#?}");
    bench.state("gpu-idle").await;
    // The control: what was wrong is mended.
    inside.clear_all();
    bench.works().await;
}

#[tokio::test]
async fn row_x7_an_inhibitor_and_a_login_are_respected_and_named() {
    let bench = Bench::on().await;
    bench.server.inhibit(Inhibitor { who: "apt".into(), why: "Installing packages".into() });
    assert_eq!(bench.refused(POWER_OFF).await, Refusal::Blocked);
    assert!(Refusal::Blocked.hint().contains("blockers"));
    let status = bench.until("named", |s| s.blockers.iter().any(|b| b.kind == "inhibitor")).await;
    let what = format!("{:?}", status.blockers);
    assert!(what.contains("apt") && what.contains("Installing packages"), "{what}");
    bench.server.uninhibit();

    bench.server.log_in(Login { user: "ada".into(), tty: "pts/0".into(), from: "10.0.0.7".into() });
    assert_eq!(bench.refused(POWER_OFF).await, Refusal::Blocked);
    let status = bench.until("named", |s| s.blockers.iter().any(|b| b.kind == "login")).await;
    let what = format!("{:?}", status.blockers);
    assert!(what.contains("ada on pts/0 from 10.0.0.7"), "{what}");
    assert_eq!(powered_off(&bench), 0);
    // The control: she has gone.
    bench.server.log_out("ada");
    bench.done(POWER_OFF).await;
    assert_eq!(powered_off(&bench), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_x7_an_inhibitor_that_comes_after_the_last_look_is_found_behind_systemds_refusal() {
    let bench = Bench::with_llama().await;
    // Nobody there when it was asked; systemd itself then only says that it would have to ask for a password.
    let op = bench.accepted(Command::Shutdown(PowerChoice::PowerOff, NO_DRAIN)).await;
    bench.server.inhibit(Inhibitor { who: "apt".into(), why: "Installing packages".into() });
    let record = bench.ended(op).await;
    assert_eq!((record.end.as_deref(), record.code.as_deref()), (Some("failed"), Some("blocked")), "{record:#?}");
    let told = format!("{:?}", (&record.message, &record.warnings));
    assert!(told.contains("apt") && record.hint.is_some_and(|hint| hint.contains("blockers")), "{told}");
    assert_eq!((powered_off(&bench), bench.server.power()), (0, Power::On));
    // The control: it is over.
    bench.server.uninhibit();
    bench.done(POWER_OFF).await;
    bench.works().await;
}

#[tokio::test]
async fn row_x8_what_polkit_does_not_allow_is_said_and_not_tried_again() {
    let bench = Bench::on().await;
    let refusal = &bench.server.faults().refusal;
    for (asked, how) in [(1, Polkit::WouldAsk), (2, Polkit::Denied)] {
        refusal.always(how);
        let record = bench.fails(START, "not_permitted").await;
        assert!(record.hint.is_some_and(|hint| hint.contains("contrib")), "{how:?}");
        let told = format!("{:?}", (record.message, record.warnings));
        let words = if how == Polkit::Denied { "Access denied" } else { "Interactive authentication required" };
        assert!(told.contains(words), "{told}");
        sleep(Duration::from_millis(700)).await;
        assert_eq!((refusal.struck(), bench.starts(LLAMA_UNIT)), (asked, 0), "once is enough: {how:?}");
        refusal.clear();
    }
    // The control: the rule is there.
    bench.done(START).await;
    // What may start and not stop: it goes on serving.
    refusal.always(Polkit::Denied);
    bench.fails(STOP_NOW, "not_permitted").await;
    assert_eq!(bench.state("llama-cpp").await.health, "ok");
    refusal.clear();
    bench.done(STOP_NOW).await;
    // And no inhibitor is blamed where there is none.
    refusal.always(Polkit::WouldAsk);
    bench.fails(POWER_OFF, "not_permitted").await;
    refusal.clear();
    assert_eq!(bench.state("gpu-idle").await.gpu_server, "on", "and nothing waits for it to go down");
    bench.works().await;
}

#[tokio::test]
async fn row_x9_one_that_systemd_brings_back_during_a_switch_is_stopped_in_favour_of_the_wanted() {
    let bench = Bench::with_llama().await;
    let op = bench.accepted(OVER).await;
    bench.truly("loading", |_| bench.starts(VLLM_UNIT) == 1).await;
    bench.server.start_unit(LLAMA_UNIT);
    let by_hand = |what: &What| matches!(what, What::Started { unit, by: By::Hand, .. } if unit == LLAMA_UNIT);
    assert_eq!(bench.count(by_hand), 1, "the fault");
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    bench.state("vllm").await;
    assert_eq!(up(&bench.server), [VLLM_UNIT]);
    let stopped = |what: &What| matches!(what, What::StopBegan { unit, by: By::Ssh } if unit == LLAMA_UNIT);
    assert_eq!(bench.count(stopped), 2);
    // The control: the same, and nobody comes back.
    bench.done(BACK).await;
    bench.done(OVER).await;
    assert_eq!(bench.count(stopped), 3);
    bench.works().await;
}

#[tokio::test]
async fn row_x9_one_that_systemd_brings_back_at_rest_is_a_conflict_that_a_person_ends() {
    let bench = Bench::on().await;
    // The control: one alone is none.
    bench.done(TO_VLLM).await;
    assert_eq!(bench.state("vllm").await.health, "ok");
    bench.server.start_unit(LLAMA_UNIT);
    let status = bench.state("conflict").await;
    assert_eq!(status.health, "conflict");
    let status_said = bench.attention("conflict").await;
    let attention = status_said.attention.iter().find(|a| a.code == "conflict").expect("it is there");
    assert!(attention.hint.contains("resolve --keep"), "{attention:?}");
    assert_eq!(bench.refused(START).await, Refusal::Conflict);
    assert_eq!(up(&bench.server), [LLAMA_UNIT, VLLM_UNIT], "nothing moves by itself");
    bench.done(Command::Resolve(VLLM, PLAIN)).await;
    bench.state("vllm").await;
    assert_eq!(up(&bench.server), [VLLM_UNIT]);
    bench.works().await;
}

#[tokio::test]
async fn row_x10_another_host_key_is_refused_and_named_and_nothing_is_told_to_it() {
    let bench = Bench::with_llama().await;
    let faults = bench.server.faults();
    let deeds = bench.server.deeds().len();
    faults.ssh.always(SshFault::OtherHostKey);
    // The kept session is of the right one; with the next the other shows itself.
    faults.command.times((On::Questions, CommandFault::Cut), 1);
    let status = bench.until("off", |s| s.reason.as_deref() == Some("wrong-host-key")).await;
    assert_eq!(status.health, "failing");
    let status = bench.attention("wrong_host_key").await;
    let attention = status.attention.iter().find(|a| a.code == "wrong_host_key").expect("it is there");
    assert!(attention.message.contains("ssh-ed25519 SHA256:"), "named, to be compared: {attention:?}");
    assert!(attention.hint.contains("pin the new key"), "{attention:?}");
    assert!(faults.ssh.struck() >= 1);
    assert_eq!(bench.refused(START).await, Refusal::ControlUnreachable);
    assert_eq!(bench.refused(TO_VLLM).await, Refusal::ControlUnreachable);
    assert_eq!(bench.server.deeds().len(), deeds, "no command, no packet");

    // The control: the right one answers again.
    faults.ssh.clear();
    let status = bench.until("in control", |s| s.control.as_deref() == Some("ok")).await;
    assert_eq!((status.state.as_str(), status.attention.len()), ("llama-cpp", 0), "{status:#?}");
    bench.works().await;
}

#[tokio::test]
async fn row_x10_another_host_key_after_a_wake_is_the_reason_of_the_failure() {
    let bench = Plan::default().key("GPU_SERVER__TIMEOUTS__BOOT", "3s").off().await;
    let ssh = &bench.server.faults().ssh;
    ssh.always(SshFault::OtherHostKey);
    let record = bench.fails(START, "wrong_host_key").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("who answers")));
    assert!(ssh.struck() >= 1);
    assert_eq!(bench.starts(LLAMA_UNIT), 0);
    ssh.clear();
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test]
async fn row_x11_ssh_that_is_slow_while_booting_has_the_time_of_the_boot() {
    // The control: it answers at once.
    let bench = Bench::off().await;
    bench.done(START).await;

    let bench = Bench::off().await;
    let ssh = &bench.server.faults().ssh;
    // Longer than a connection may take.
    ssh.always(SshFault::SlowBanner(Duration::from_secs(2)));
    let op = bench.accepted(START).await;
    bench.truly("struck", |server| server.faults().ssh.struck() >= 1).await;
    let status = bench.until("booting", |s| s.phase.as_deref() == Some("booting")).await;
    assert_eq!((status.state.as_str(), status.health.as_str()), ("waking", "starting"));
    bench.truly("struck again", |server| server.faults().ssh.struck() >= 2).await;
    let packets = bench.packets();
    bench.truly("and again", |server| server.faults().ssh.struck() >= 5).await;
    // Two seconds and more: an open port is a sign of life. (One look may have met a moment's silence.)
    assert!(bench.packets() - packets <= 1, "{packets} {}", bench.packets());
    assert_eq!(bench.status().state, "waking", "slow is not gone");
    ssh.clear();
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
    bench.works().await;
}
