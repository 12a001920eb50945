//! Wake and boot.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    net::UdpSocket,
    time::{Instant, sleep},
};
use wechsler::{
    driver::OperationRecord,
    machine::{Command, Policy, Refusal},
    virtual_server::{
        By, Power, SshFault, What,
        programs::{Exit, Fault},
    },
};

use crate::{
    bench::{Bench, LLAMA, LLAMA_UNIT, NO_DRAIN, POWER_OFF, Plan, START, STOP, VLLM, reused},
    paused::Paused,
    sim,
    sim::Deed,
};

/// How often packets are sent there.
const RESEND: Duration = Duration::from_millis(500);

/// Nothing has been sent for so long that it would have been sent again.
async fn sends_no_more(bench: &Bench) {
    let before = bench.packets();
    sleep(RESEND * 3).await;
    assert_eq!(bench.packets(), before, "{:#?}", bench.server.deeds());
}

fn heard(bench: &Bench) -> usize {
    bench.count(|what| matches!(what, What::Packet { heard: true }))
}

/// What went less well, by its code.
fn warned(record: &OperationRecord, code: &str) -> String {
    let found = record.warnings.iter().find(|w| w.code == code);
    found.unwrap_or_else(|| panic!("no {code}: {record:#?}")).message.clone()
}

#[tokio::test]
async fn row_w1_lost_packets_are_sent_again_until_the_first_sign_of_life() {
    // The control: the first one is heard.
    let bench = Bench::off().await;
    bench.done(START).await;
    assert_eq!((heard(&bench), bench.server.faults().packets.struck()), (1, 0));

    let bench = Bench::off().await;
    bench.server.faults().packets.times((), 3);
    bench.done(START).await;
    assert_eq!((heard(&bench), bench.server.faults().packets.struck()), (1, 3));
    assert!(bench.packets() >= 4, "those that were lost, and the one that was heard");
    sends_no_more(&bench).await;
    bench.works().await;
}

#[tokio::test]
async fn row_w2_all_targets_are_sent_to_and_what_could_not_be_sent_is_told() {
    let mut bench = Plan::default().key("GPU_SERVER__TIMEOUTS__BOOT", "3s").off().await;
    // A switch that has forgotten the server, and a network to which no way leads from the configured source.
    let switch = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let switch_at = switch.local_addr().expect("its address").to_string();
    let nowhere = "203.0.113.7:9";
    let mut buffer = [0; 200];
    let mut swallowed = async || {
        let mut count = 0;
        while switch.try_recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    };

    bench.new_daemon_with("GPU_SERVER__WAKE__TARGETS", switch_at.clone()).await;
    bench.state("gpu-offline").await;
    bench.fails(START, "wake_timeout").await;
    assert!(swallowed().await >= 2, "sent again and again");
    assert_eq!(bench.packets(), 0, "and nothing of it reached the server");

    // None works at all: it is said why, not only that it did not wake.
    bench.new_daemon_with("GPU_SERVER__WAKE__TARGETS", nowhere).await;
    bench.state("gpu-offline").await;
    let record = bench.fails(START, "wake_timeout").await;
    assert!(warned(&record, "wake_send").contains(nowhere), "{record:#?}");

    // One of three is enough.
    let all = format!("{nowhere},{switch_at},{}", bench.server.wake_address());
    bench.new_daemon_with("GPU_SERVER__TIMEOUTS__BOOT", "10s").await;
    bench.new_daemon_with("GPU_SERVER__WAKE__TARGETS", all).await;
    bench.state("gpu-offline").await;
    let record = bench.record(START).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    assert!(warned(&record, "wake_send").contains(nowhere), "{record:#?}");
    assert!(swallowed().await >= 1 && bench.packets() >= 1);
    bench.works().await;
}

#[tokio::test]
async fn row_w3_a_server_whose_card_is_not_armed_is_not_powered_off() {
    let bench = Plan::default().key("IDLE__POWER_OFF_AFTER", "1s").on().await;
    // Armed when it was last looked at, so that only a look at the very moment can tell.
    bench.until("looked at", |s| s.ages.contains_key("wake_armed")).await;
    bench.server.faults().disarmed.always(());
    assert_eq!(bench.refused(POWER_OFF).await, Refusal::WakeUnarmed);
    assert!(Refusal::WakeUnarmed.hint().contains("ethtool"));
    assert!(bench.server.faults().disarmed.struck() >= 1);
    let status = bench.attention("wake_unarmed").await;
    assert!(status.next_action.is_none(), "no policy does what a command may not: {status:#?}");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(bench.server.power(), Power::On);

    // Armed again, a command finds out at once.
    bench.server.faults().disarmed.clear();
    bench.done(POWER_OFF).await;
    bench.works().await;

    // The control: armed from the beginning, it goes off by the same policy.
    let bench = Plan::default().key("IDLE__POWER_OFF_AFTER", "1s").on().await;
    bench.power(Power::Off).await;
    assert_eq!(bench.count(|what| matches!(what, What::PowerOffOrdered(By::Ssh))), 1);
}

#[tokio::test]
async fn row_w4_a_server_that_does_not_wake_after_a_hard_off_is_told_of_once_and_left_alone() {
    let bench = Plan::default().key("GPU_SERVER__TIMEOUTS__BOOT", "3s").on().await;
    // Armed only by a clean shutdown, and there was none.
    bench.server.faults().packets.always(());
    bench.server.power_cut();
    bench.state("gpu-offline").await;
    let record = bench.fails(START, "wake_timeout").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("Wake-on-LAN")));
    assert!(bench.server.faults().packets.struck() >= 3);
    let error = bench.status().last_error.clone().expect("it is shown");
    assert_eq!(error.code, "wake_timeout");
    sends_no_more(&bench).await;

    // Somebody goes there.
    bench.server.press();
    bench.state("gpu-idle").await;
    bench.works().await;
    // The control: a clean shutdown, and it wakes.
    bench.done(POWER_OFF).await;
    bench.done(START).await;
}

#[tokio::test]
async fn row_w5_a_session_to_a_server_that_vanished_without_a_word_is_not_believed() {
    let bench = Plan::default().key("GPU_SERVER__SSH__COMMAND_TIMEOUT", "1s").on().await;
    bench.done(START).await;
    let before = bench.server.truth().boot;
    // Nobody says goodbye: the kept session is half open for as long as nobody answers.
    bench.server.power_cut();
    let status = bench.state("gpu-offline").await;
    assert_eq!((status.gpu_server.as_str(), status.reason.as_deref()), ("off", Some("unreachable")));
    assert_eq!(bench.count(|what| *what == What::PowerCut), 1);
    assert_eq!(bench.packets(), 0, "nobody wanted it on");

    bench.server.press();
    bench.state("gpu-idle").await;
    assert_ne!(bench.server.truth().boot, before, "another boot, so another session");
    bench.works().await;
}

#[tokio::test]
async fn row_w7_a_server_that_came_up_by_itself_is_seen_and_keeps_its_whole_grace() {
    const GRACE: Duration = Duration::from_secs(2);
    let bench = Plan::default().key("IDLE__POWER_OFF_AFTER", "2s").off().await;
    // The control: left alone, it stays off.
    sends_no_more(&bench).await;
    assert_eq!((bench.packets(), bench.server.truth().boots), (0, 0));

    bench.server.press();
    let status = bench.state("gpu-idle").await;
    assert!(status.operation.is_none());
    let status = bench.until("announced", |s| s.next_action.is_some()).await;
    assert_eq!(status.next_action.as_ref().map(|n| n.because.as_str()), Some("idle.power_off_after"), "{status:#?}");
    bench.power(Power::Off).await;
    let deeds = bench.server.deeds();
    let at = |wanted: &dyn Fn(&What) -> bool| deeds.iter().find(|deed| wanted(&deed.what)).map(|deed| deed.at);
    let (up, ordered) =
        (at(&|what| matches!(what, What::Booted(_))), at(&|what| *what == What::PowerOffOrdered(By::Ssh)));
    let lasted = ordered.expect("by us").saturating_sub(up.expect("it came up"));
    assert!(lasted >= GRACE, "{lasted:?}");
    assert_eq!(bench.packets(), 0);
    bench.state("gpu-offline").await;
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_w8_a_slow_shutdown_is_waited_for_by_the_configured_time_and_off_is_proven() {
    // The control: the usual ten seconds.
    let server = Paused::on(sim::policy()).await;
    server.does(POWER_OFF).await;

    let server = Paused::on(Policy { power_off_timeout: Duration::from_mins(3), ..sim::policy() }).await;
    server.world.sim().times.power_off = Duration::from_secs(90);
    let began = Instant::now();
    server.does(POWER_OFF).await;
    assert!(began.elapsed() >= Duration::from_secs(90), "off is what does not answer, not what was told to");
    assert_eq!(server.status().reason.as_deref(), Some("powered-off"));

    // One that takes longer than anybody can mean has failed; and what comes after is seen all the same.
    server.does(START).await;
    server.world.sim().times.power_off = Duration::from_mins(10);
    let began = Instant::now();
    let record = server.record(POWER_OFF).await;
    assert_eq!((record.end.as_deref(), record.code.as_deref()), (Some("failed"), Some("power_off_timeout")));
    assert!(record.hint.is_some_and(|hint| hint.contains("console")));
    assert!((Duration::from_mins(3)..Duration::from_mins(4)).contains(&began.elapsed()), "{:?}", began.elapsed());
    let status = server.state("gpu-offline").await;
    assert_eq!(status.gpu_server, "off");
    server.does(START).await;
    let orders = server.world.sim().deeds.iter().filter(|(_, deed)| *deed == Deed::PoweredOff).count();
    assert_eq!(orders, 2, "it is not told again and again");
}

#[tokio::test]
async fn row_w8_a_start_during_a_slow_shutdown_waits_until_it_is_off_and_wakes_it_then() {
    let bench = Plan::default().server(|setup| setup.times.power_off = Duration::from_secs(2)).on().await;
    let off = bench.accepted(POWER_OFF).await;
    bench.power(Power::GoingDown).await;
    let op = bench.accepted(START).await;
    assert_eq!(bench.ended(off).await.end.as_deref(), Some("replaced"));
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
    let deeds = bench.server.deeds();
    let off = deeds.iter().position(|deed| deed.what == What::Off).expect("it went off");
    let early = deeds[..off].iter().filter(|deed| matches!(deed.what, What::Packet { .. })).count();
    assert_eq!((early, heard(&bench)), (0, 1));
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_w9_idle_time_is_counted_on_a_clock_that_nobody_sets() {
    const IDLE: Duration = Duration::from_mins(20);
    let server = Paused::on(Policy { idle_stop_after: Some(IDLE), ..sim::policy() }).await;
    let wall = std::time::SystemTime::now();
    server.does(START).await;
    let ready = Instant::now();
    // Paused time runs while the wall clock stands: as if that were set back all the while.
    server.state("gpu-idle").await;
    let idle = ready.elapsed();
    assert!((IDLE..IDLE + Duration::from_mins(1)).contains(&idle), "{idle:?}");
    assert!(wall.elapsed().is_ok_and(|wall| wall < IDLE), "the fault: hardly any wall time has passed");
    server.does(START).await;
}

#[tokio::test(start_paused = true)]
async fn row_w9_idle_time_begins_anew_when_a_suspended_server_resumes() {
    const IDLE: Duration = Duration::from_mins(20);
    let server = Paused::on(Policy { idle_stop_after: Some(IDLE), ..sim::policy() }).await;
    server.does(START).await;
    let run = server.world.sim().backend(LLAMA).invocation;
    sleep(IDLE / 2).await;
    // Suspended: silence, and then the same boot and the same process as if nothing had been.
    let silent = |silent| {
        let mut sim = server.world.sim();
        (sim.faults.ssh_silent, sim.faults.http_silent) = (silent, silent);
    };
    silent(true);
    server.state("gpu-offline").await;
    sleep(Duration::from_hours(8)).await;
    silent(false);
    server.state("llama-cpp").await;
    assert_eq!(server.world.sim().backend(LLAMA).invocation, run, "the fault: it is the same run");
    let resumed = Instant::now();
    server.state("gpu-idle").await;
    let idle = resumed.elapsed();
    assert!((IDLE.saturating_sub(Duration::from_secs(1))..IDLE + Duration::from_mins(1)).contains(&idle), "{idle:?}");
    server.does(START).await;
}

#[tokio::test]
async fn row_w10_an_initramfs_that_waits_for_a_passphrase_is_a_phase_and_no_alarm() {
    // The control, with the usual key, is the end of each: it boots and starts.
    let bench = Plan::default().key("GPU_SERVER__TIMEOUTS__BOOT", "20s").off().await;
    let ssh = &bench.server.faults().ssh;
    ssh.always(SshFault::InitramfsKey);
    let op = bench.accepted(START).await;
    let status = bench.until("preboot", |s| s.phase.as_deref() == Some("preboot")).await;
    assert_eq!((status.state.as_str(), status.reason.as_deref()), ("waking", Some("preboot")));
    assert_eq!(status.health, "starting", "no alarm");
    let status = bench.attention("preboot").await;
    let attention = status.attention.iter().find(|a| a.code == "preboot").expect("it is there");
    assert!(attention.hint.contains("unlock"), "{attention:?}");
    assert!(status.attention.iter().all(|a| a.code != "wrong_host_key"));
    sends_no_more(&bench).await;
    assert!(ssh.struck() >= 1);
    // Somebody unlocks it.
    ssh.clear();
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
    assert!(bench.status().attention.is_empty(), "{:#?}", bench.status());
    bench.works().await;
}

#[tokio::test]
async fn row_w10_an_initramfs_that_nobody_unlocks_is_the_reason_of_the_failure() {
    let bench = Plan::default().key("GPU_SERVER__TIMEOUTS__BOOT", "3s").off().await;
    let ssh = &bench.server.faults().ssh;
    ssh.always(SshFault::InitramfsKey);
    let record = bench.fails(START, "preboot").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("unlock")));
    assert!(ssh.struck() >= 1);
    ssh.clear();
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test]
async fn row_w12_a_model_that_is_not_there_fails_the_start_with_the_units_own_words() {
    let bench = Bench::off().await;
    // The control: the store is mounted.
    bench.done(START).await;
    bench.done(STOP).await;

    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadFails(Exit::Code(1)));
    let record = bench.fails(START, "crash_loop").await;
    assert!(inside.fired("load-fails") >= 1);
    let said = record.post_mortem.join("\n");
    assert!(said.contains("error loading model") && said.contains("exit status 1"), "{said}");
    bench.state("gpu-idle").await;
    let starts = bench.starts(LLAMA_UNIT);
    assert_eq!(starts, 2, "the control's and one more: no start by ourselves after it");
    // Mounted again.
    inside.clear_all();
    bench.works().await;
}

#[tokio::test]
async fn row_w13_a_server_with_a_wrong_clock_is_served_as_any_other() {
    const DAY: i64 = 86_400;
    let times = async |off: Option<i64>| {
        let bench = Bench::on().await;
        let clock = &bench.server.faults().clock;
        if let Some(off) = off {
            clock.always(off);
        }
        bench.done(START).await;
        let up = bench.state("llama-cpp").await.uptime_seconds.expect("it is up");
        assert!(up < 30, "{off:?}: {up}");
        let story = "Once upon a time there was a clock that nobody had set. ".repeat(20);
        bench.asks(LLAMA_UNIT, &story, 4).await.expect("an answer");
        bench.done(Command::Switch(VLLM, NO_DRAIN)).await;
        let up = bench.state("vllm").await.uptime_seconds.expect("it is up");
        assert!(up < 30, "{off:?}: {up}");
        assert_eq!(bench.server.truth().units.iter().filter(|u| u.pid.is_some()).count(), 1);
        bench.done(Command::Switch(LLAMA, NO_DRAIN)).await;
        let answer = bench.asks(LLAMA_UNIT, &story, 4).await.expect("an answer");
        assert!(reused(&answer) > 500, "{off:?}: saved and restored all the same: {answer}");
        assert_eq!(clock.struck() > 0, off.is_some(), "{off:?}");
        bench.works().await;
    };
    // The control: a clock that is right.
    tokio::join!(times(None), times(Some(600)), times(Some(-600)), times(Some(-7 * DAY)));
}
