//! Swaps, races, and what blocks for ever elsewhere.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use wechsler::{
    machine::{Answer, Command, Options, Refusal},
    virtual_server::{
        By, CommandFault, On, Restart, What,
        programs::{Exit, Fault, Signal},
    },
};

use crate::{
    bench::{Bench, LLAMA, LLAMA_UNIT, NO_DRAIN, PLAIN, Plan, START, STOP, TO_LLAMA, TO_VLLM, VLLM, VLLM_UNIT},
    paused::Paused,
    sim,
};

/// At once, whoever uses it.
pub const STOP_NOW: Command = Command::Stop(NO_DRAIN);
const TO_LLAMA_NOW: Command = Command::Switch(LLAMA, NO_DRAIN);
const TO_VLLM_NOW: Command = Command::Switch(VLLM, NO_DRAIN);
/// Far more tokens than any test waits for.
const ENDLESS: u32 = 150_000;

/// Deadlines that a test can wait for.
pub fn short() -> Plan {
    Plan::default()
        .key("GPU_SERVER__SSH__COMMAND_TIMEOUT", "1s")
        .key("BACKENDS__LLAMA_CPP__START_TIMEOUT", "2s")
        .key("BACKENDS__LLAMA_CPP__STOP_TIMEOUT", "1200ms")
        .key("BACKENDS__LLAMA_CPP__KILL_TIMEOUT", "1200ms")
}

/// systemd does not start again what has failed.
pub fn once() -> Plan {
    Plan::default().server(|setup| setup.units.iter_mut().for_each(|unit| unit.restart = Restart::Never))
}

/// The most processes of units that ever lived at the same moment.
fn most_at_once(bench: &Bench) -> usize {
    let (mut living, mut most) = (0_usize, 0);
    for deed in bench.server.deeds() {
        match deed.what {
            What::Started { .. } => living += 1,
            What::Exited { .. } => living -= 1,
            _ => {}
        }
        most = most.max(living);
    }
    most
}

fn cause(status: &wechsler::driver::status::Status) -> Option<&str> {
    status.operation.as_ref().map(|op| op.cause.as_str())
}

#[tokio::test]
async fn row_s1_a_request_during_an_idle_stop_makes_it_give_way() {
    let bench = Plan::default().key("IDLE__STOP_AFTER", "1s").on().await;
    bench.done(START).await;
    bench.until("an idle stop", |s| cause(s) == Some("idle_stop") && s.phase.as_deref() == Some("draining")).await;
    // Over long before anybody looks again.
    bench.asks(LLAMA_UNIT, "are you still there?", 5).await.expect("an answer");
    bench.until("the end of that", |s| s.operation.is_none()).await;
    let operations = bench.daemon.handle.operations.borrow().clone();
    let stop = operations.iter().rfind(|r| r.cause == "idle_stop").expect("on record");
    assert_eq!((stop.end.as_deref(), stop.code.as_deref()), (Some("failed"), Some("in_use")), "{stop:#?}");
    assert!(stop.hint.as_ref().is_some_and(|hint| hint.contains("tried again")));
    assert_eq!(bench.status().state, "llama-cpp");
    // The control: with nobody there it stops.
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_s1_a_request_at_any_moment_around_an_idle_stop_wedges_nothing() {
    const IDLE: Duration = Duration::from_mins(5);
    let (mut never_begun, mut gave_way, mut too_late) = (0, 0, 0);
    // A request of a second, from so much before the idle stop on.
    for tenths in (-120_i32..60).step_by(4) {
        let mut policy = sim::policy();
        policy.idle_stop_after = Some(IDLE);
        let bench = Paused::with_llama(policy).await;
        bench.world.sim().converse(LLAMA, 500);
        bench.until("seen", |s| s.slots.iter().any(|slot| slot.tokens == Some(500))).await;
        let before = 10_u64.saturating_mul(IDLE.as_secs()).saturating_add_signed(tenths.into());
        sleep(Duration::from_millis(100 * before)).await;
        let uses = bench.world.sim().backend(LLAMA).uses;
        bench.world.sim().busy(LLAMA, 1);
        let struck = bench.world.sim().backend(LLAMA).uses > uses;
        sleep(Duration::from_secs(1)).await;
        bench.world.sim().busy(LLAMA, 0);
        sleep(Duration::from_secs(11)).await;
        let status = bench.until("settled", |s| s.operation.is_none() && s.state != "stopping").await;
        let stop = bench.handle.operations.borrow().iter().rfind(|r| r.cause == "idle_stop").cloned();
        match (status.state.as_str(), stop.map(|r| (r.end, r.code))) {
            ("llama-cpp", None) if struck => never_begun += 1,
            ("llama-cpp", Some((Some(end), Some(code)))) if struck && end == "failed" && code == "in_use" => {
                gave_way += 1;
            }
            ("gpu-idle", Some((Some(end), None))) if end == "done" => too_late += 1,
            (state, stop) => panic!("{tenths}: {state}, {stop:?}, struck {struck}"),
        }
        bench.done(START).await;
    }
    let counts = [never_begun, gave_way, too_late];
    assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
}

#[tokio::test]
async fn row_s2_a_unit_that_somebody_revives_while_it_is_stopped_is_stopped_again() {
    let bench = Bench::with_llama().await;
    // A request holds the stop up; somebody starts the unit meanwhile, which takes the stop's job away.
    bench.inside(LLAMA_UNIT).set_times(Fault::TermIgnored, 1);
    let op = bench.accepted(STOP_NOW).await;
    bench.truly("stopping", |server| server.truth().units[0].active == "deactivating").await;
    bench.server.start_unit(LLAMA_UNIT);
    let record = bench.ended(op).await;
    assert_eq!(bench.inside(LLAMA_UNIT).fired("term-ignored"), 1);
    let started = bench.count(|what| matches!(what, What::Started { unit, .. } if unit == LLAMA_UNIT));
    assert_eq!(started, 2, "it was revived: {:?}", bench.server.deeds());
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    assert!(bench.server.truth().gpu_holders.is_empty());
    // The control.
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_s2_who_revives_it_for_ever_cannot_make_an_operation_last_for_ever() {
    let mut policy = sim::policy();
    for backend in &mut policy.backends {
        (backend.drain_timeout, backend.save_timeout) = (Duration::from_secs(5), Duration::from_secs(5));
        (backend.stop_timeout, backend.kill_timeout) = (Duration::from_secs(10), Duration::from_secs(5));
    }
    let bench = Paused::with_llama(policy).await;
    let reviver = bench.world.clone();
    let reviving = tokio::spawn(async move {
        loop {
            reviver.sim().start_by_hand(LLAMA);
            sleep(Duration::from_millis(100)).await;
        }
    });
    bench.fails(STOP_NOW, "bound_exceeded").await;
    reviving.abort();
    bench.works().await;
}

#[tokio::test]
async fn row_s3_a_request_that_never_ends_is_waited_for_within_bounds_and_nobody_waits_with_it() {
    let bench = Plan::default().key("BACKENDS__LLAMA_CPP__DRAIN_TIMEOUT", "1s").on().await;
    bench.done(START).await;
    let asking = bench.asks_beside(LLAMA_UNIT, "tell me everything", ENDLESS);
    bench.truly("in flight", |s| s.truth().units[0].inside.as_ref().is_some_and(|i| i.in_flight == 1)).await;
    let op = bench.accepted(TO_VLLM).await;
    bench.until("draining", |s| s.phase.as_deref() == Some("draining")).await;
    // Everybody else is answered meanwhile.
    assert_eq!(bench.refused(TO_LLAMA).await, Refusal::Busy);
    assert_eq!(bench.status().phase.as_deref(), Some("draining"), "that took no second");
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    let warned = |code: &str| record.warnings.iter().any(|w| w.code == code);
    assert!(warned("drain_timeout") && warned("slot_busy"), "{record:#?}");
    assert!(asking.await.expect("no panic").is_none(), "it was cut off in the end");
    // The control: nobody is there, and nothing is warned of.
    let record = bench.record(TO_LLAMA).await;
    assert_eq!((record.end.as_deref(), record.warnings.as_slice()), (Some("done"), &[][..]), "{record:#?}");
    bench.works().await;
}

#[tokio::test]
async fn row_s4_two_starts_at_the_same_moment_are_never_two_starts() {
    let bench = Bench::on().await;
    let llama = Command::Start(Some(LLAMA), PLAIN);
    let vllm = Command::Start(Some(VLLM), PLAIN);
    for round in 0..6 {
        let (first, second) = if round % 2 == 0 { (&llama, &vllm) } else { (&vllm, &llama) };
        let (first, second) = tokio::join!(bench.told(first.clone()), bench.told(second.clone()));
        let Answer::Accepted { op, joined: false } = first else { panic!("{first:?}") };
        assert_eq!(second, Answer::Refused(Refusal::Busy));
        let again = if round % 2 == 0 { &llama } else { &vllm };
        assert_eq!(bench.told(again.clone()).await, Answer::Accepted { op, joined: true }, "the same joins");
        assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
        bench.done(STOP_NOW).await;
    }
    assert_eq!((bench.starts(LLAMA_UNIT), bench.starts(VLLM_UNIT), most_at_once(&bench)), (3, 3, 1));
    assert_eq!((Refusal::Busy.code(), Refusal::Busy.hint().contains("--replace")), ("busy", true));
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_s4_many_at_any_moment_never_hold_the_gpu_together() {
    let bench = Paused::on(sim::policy()).await;
    let replace = Options { replace: true, no_drain: true };
    let mut accepted = 0;
    // Commands fall into all moments of one another's operations.
    for n in 0..400_u64 {
        let command = if n % 2 == 0 { Command::Switch(LLAMA, replace) } else { Command::Switch(VLLM, replace) };
        accepted += u32::from(matches!(bench.told(command).await, Answer::Accepted { joined: false, .. }));
        sleep(Duration::from_millis(n * 733 % 4000)).await;
        assert!(bench.holders().len() <= 1, "after {n}");
    }
    assert!(accepted > 100, "{accepted}");
    bench.works().await;
}

#[tokio::test]
async fn row_s4_two_that_somebody_started_are_a_conflict_until_a_person_says_which() {
    let bench = Bench::with_llama().await;
    bench.server.start_unit(VLLM_UNIT);
    let status = bench.attention("conflict").await;
    let hint = &status.attention.iter().find(|a| a.code == "conflict").expect("there").hint;
    assert!(hint.contains("resolve --keep"), "{hint}");
    let status = bench.state("conflict").await;
    assert_eq!(status.health, "conflict");
    for command in [START, TO_VLLM] {
        assert_eq!(bench.refused(command).await, Refusal::Conflict);
    }
    bench.done(Command::Resolve(LLAMA, NO_DRAIN)).await;
    let status = bench.state("llama-cpp").await;
    assert!(status.attention.is_empty(), "{:?}", status.attention);
    bench.works().await;
}

#[tokio::test]
async fn row_s5_two_who_switch_back_and_forth_take_turns_and_the_rest_is_refused() {
    let bench = Bench::on().await;
    let (mut accepted, mut busy) = (0, 0);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        for command in [TO_LLAMA_NOW, TO_VLLM_NOW] {
            match bench.told(command).await {
                Answer::Accepted { joined: false, .. } => accepted += 1,
                Answer::Refused(Refusal::Busy) => busy += 1,
                _ => {}
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    bench.until("the end of the last", |s| s.operation.is_none()).await;
    assert!(accepted >= 2 && busy > 2 * accepted, "{accepted} accepted, {busy} refused");
    let starts = bench.starts(LLAMA_UNIT) + bench.starts(VLLM_UNIT);
    assert_eq!(starts, accepted, "a swap for each that was accepted, and no more");
    assert_eq!(most_at_once(&bench), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_s7_a_unit_that_stays_deactivating_is_killed_once_and_called_stuck() {
    let bench = short().server(|setup| setup.times.timeout_stop = Duration::from_mins(10)).on().await;
    // The control.
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    bench.done(START).await;

    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::TermIgnored);
    inside.set(Fault::KillIgnored);
    let record = bench.fails(STOP_NOW, "stop_stuck").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("reboot")));
    assert_eq!((inside.fired("term-ignored"), inside.fired("kill-ignored")), (1, 1));
    assert_eq!(bench.count(|what| matches!(what, What::Killed { .. })), 1);
    let status = bench.state("stopping").await;
    assert_eq!(status.backends["llama-cpp"].unit.active.as_deref(), Some("deactivating"));
    // Nothing else is started beside it.
    bench.fails(Command::Start(Some(VLLM), PLAIN), "stop_stuck").await;
    assert_eq!(bench.starts(VLLM_UNIT), 0);

    // What held it lets go: seen without being told.
    inside.clear_all();
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test]
async fn row_s8_a_start_that_failed_once_works_the_next_time() {
    let bench = once().on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set_times(Fault::LoadFails(Exit::Code(1)), 1);
    let record = bench.fails(START, "start_failed").await;
    assert_eq!(inside.fired("load-fails"), 1);
    assert!(record.post_mortem.iter().any(|line| line.contains("exit status 1")), "{record:#?}");
    assert!(record.post_mortem.iter().any(|line| line.contains("error loading model")), "{record:#?}");
    let status = bench.state("gpu-idle").await;
    assert_eq!(status.last_error.as_ref().map(|e| e.code.as_str()), Some("start_failed"));
    bench.done(START).await;
    assert_eq!(bench.status().last_error, None);
    bench.works().await;
}

#[tokio::test]
async fn row_s9_a_request_longer_than_the_idle_time_is_never_idle() {
    let bench = Plan::default().key("IDLE__STOP_AFTER", "1s").on().await;
    bench.done(START).await;
    let began = Instant::now();
    // 3.5 s at 0.2 ms a token.
    let answer = bench.asks(LLAMA_UNIT, "a long story, please", 17_500).await;
    assert!(answer.is_some(), "nobody cut it off");
    assert!(began.elapsed() > Duration::from_secs(3), "several times the idle time: {:?}", began.elapsed());
    assert_eq!(bench.starts(LLAMA_UNIT), 1);
    let stops = || bench.count(|what| matches!(what, What::StopBegan { .. }));
    assert_eq!(stops(), 0);
    // The control: after its end the idle time begins.
    bench.state("gpu-idle").await;
    assert_eq!(stops(), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_s10_a_start_that_always_fails_is_stopped_and_not_tried_by_itself() {
    let bench = Bench::on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadFails(Exit::Code(1)));
    let all = || bench.count(|what| matches!(what, What::Started { .. }));
    for _ in 0..3 {
        let before = all();
        let record = bench.fails(START, "crash_loop").await;
        assert!(record.hint.is_some_and(|hint| hint.contains("journal")));
        // systemd's own restarts are ended with the operation.
        assert!(all() - before <= 3, "{:?}", bench.server.deeds());
    }
    assert!(inside.fired("load-fails") >= 3);
    bench.state("gpu-idle").await;
    let rest = all();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(all(), rest, "nobody wants it any more");
    assert_eq!(bench.status().last_error.as_ref().map(|e| e.code.as_str()), Some("crash_loop"));
    bench.works().await;
}

#[tokio::test]
async fn row_s10_a_policy_that_fails_backs_off_and_says_when_it_tries_again() {
    let bench = Plan::default().key("IDLE__STOP_AFTER", "1s").key("IDLE__BACKOFF", "1s").on().await;
    bench.done(START).await;
    bench.server.faults().refusal.always(wechsler::virtual_server::Refusal::Denied);
    let failed = |n: usize| {
        let operations = bench.daemon.handle.operations.clone();
        async move {
            let mut operations = operations;
            let so = |all: &std::sync::Arc<Vec<wechsler::driver::OperationRecord>>| {
                all.iter().filter(|r| r.cause == "idle_stop" && r.code.as_deref() == Some("not_permitted")).count() >= n
            };
            let all = tokio::time::timeout(crate::bench::LONG, operations.wait_for(so)).await;
            all.expect("it failed").expect("the driver lives");
        }
    };
    failed(1).await;
    let status = bench.until("the next attempt", |s| s.next_action.is_some()).await;
    let next = status.next_action.clone().expect("there");
    assert_eq!((next.what.as_str(), next.because.as_str()), ("stop", "idle.stop_after"));
    let struck = bench.server.faults().refusal.struck();
    let began = Instant::now();
    failed(2).await;
    assert!(began.elapsed() > Duration::from_millis(700), "it waited: {:?}", began.elapsed());
    assert_eq!(bench.server.faults().refusal.struck(), struck + 1, "one order for each attempt");
    // The control: what may be done is done.
    bench.server.faults().clear();
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test]
async fn row_s11_a_stop_lets_an_open_answer_end_and_no_drain_does_not() {
    let bench = Bench::with_llama().await;
    let asking = bench.asks_beside(LLAMA_UNIT, "a story", 3000);
    bench.truly("in flight", |s| s.truth().units[0].inside.as_ref().is_some_and(|i| i.in_flight == 1)).await;
    let record = bench.record(STOP).await;
    assert_eq!((record.end.as_deref(), record.warnings.as_slice()), (Some("done"), &[][..]), "{record:#?}");
    let answer = asking.await.expect("no panic").expect("whole");
    assert_eq!(answer["usage"]["completion_tokens"], 3000, "{answer}");

    bench.done(START).await;
    let asking = bench.asks_beside(LLAMA_UNIT, "a story", ENDLESS);
    bench.truly("in flight", |s| s.truth().units[0].inside.as_ref().is_some_and(|i| i.in_flight == 1)).await;
    bench.done(STOP_NOW).await;
    assert!(asking.await.expect("no panic").is_none(), "cut off, as was asked for");
    bench.works().await;
}

#[tokio::test]
async fn row_s12_a_stop_during_a_load_is_taken_at_once() {
    let bench = Bench::on().await;
    bench.inside(LLAMA_UNIT).set(Fault::LoadHangs);
    let start = bench.accepted(START).await;
    bench.truly("it hangs", |_| bench.inside(LLAMA_UNIT).fired("load-hangs") == 1).await;
    let stop = bench.accepted(STOP).await;
    assert_eq!(bench.ended(start).await.end.as_deref(), Some("replaced"));
    assert_eq!(bench.ended(stop).await.end.as_deref(), Some("done"));
    assert_eq!(bench.state("gpu-idle").await.backends["llama-cpp"].state, "stopped");
    bench.works().await;
}

#[tokio::test]
async fn row_s12_a_load_that_does_not_hear_it_is_killed() {
    let bench = short().server(|setup| setup.times.timeout_stop = Duration::from_mins(10)).on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadHangs);
    inside.set(Fault::TermIgnored);
    bench.accepted(START).await;
    bench.truly("it hangs", |_| inside.fired("load-hangs") == 1).await;
    bench.done(STOP).await;
    assert_eq!(inside.fired("term-ignored"), 1);
    assert_eq!(bench.count(|what| matches!(what, What::Killed { by: By::Ssh, .. })), 1);
    let killed = |what: &What| matches!(what, What::Exited { exit: Exit::Signal(9), .. });
    assert_eq!(bench.count(killed), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_s13_questions_are_no_use() {
    let bench = Plan::default().key("IDLE__STOP_AFTER", "1s").on().await;
    bench.done(START).await;
    let url = format!("http://{}", bench.server.unit_address(LLAMA_UNIT).expect("a unit"));
    let asking = tokio::spawn(async move {
        let client = reqwest::Client::new();
        let mut answered = 0_u32;
        loop {
            for path in ["/health", "/v1/models", "/props", "/slots"] {
                match client.get(format!("{url}{path}")).timeout(Duration::from_secs(1)).send().await {
                    Ok(answer) if answer.status().is_success() => answered += 1,
                    // It is stopped, in the end.
                    _ if answered > 0 => return answered,
                    _ => {}
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    });
    // The daemon asks as well, and is no use either.
    bench.state("gpu-idle").await;
    let answered = asking.await.expect("no panic");
    assert!(answered > 8, "somebody asked all the time: {answered}");
    let operations = bench.daemon.handle.operations.borrow().clone();
    let stops: Vec<_> = operations.iter().filter(|r| r.cause == "idle_stop").map(|r| r.end.as_deref()).collect();
    assert_eq!(stops, [Some("done")], "at the first attempt");
    bench.works().await;
}

#[tokio::test]
async fn row_s14_what_died_behind_its_back_is_not_up_any_more() {
    let bench = once().on().await;
    bench.done(START).await;
    assert!(bench.server.signal(LLAMA_UNIT, Signal::Kill));
    let status = bench.state("gpu-idle").await;
    let unit = &status.backends["llama-cpp"].unit;
    assert_eq!((unit.result.as_deref(), unit.exec_status), (Some("signal"), Some(9)), "{unit:?}");
    assert_eq!(status.active_backend, None);
    // What is decided is decided by a look made just before: it dies in the moment of the command.
    bench.done(START).await;
    assert!(bench.server.signal(LLAMA_UNIT, Signal::Kill));
    bench.done(TO_VLLM_NOW).await;
    assert_eq!(bench.starts(VLLM_UNIT), 1);
    // Somebody stops it by hand, and starts the other one.
    bench.server.stop_unit(VLLM_UNIT);
    bench.state("gpu-idle").await;
    bench.server.start_unit(LLAMA_UNIT);
    bench.state("llama-cpp").await;
    bench.works().await;
}

#[tokio::test]
async fn row_s14_what_systemd_has_started_again_is_another_run() {
    let bench = Bench::with_llama().await;
    let before = bench.server.truth().units[0].pid;
    assert!(bench.server.signal(LLAMA_UNIT, Signal::Kill));
    bench.truly("again", |s| s.truth().units[0].pid.is_some_and(|pid| Some(pid) != before)).await;
    let restarted = |s: &std::sync::Arc<wechsler::driver::status::Status>| {
        s.state == "llama-cpp" && s.backends["llama-cpp"].unit.restarts == Some(1)
    };
    let status = bench.until("seen", restarted).await;
    assert!(status.uptime_seconds.is_some());
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_s16_the_age_of_what_is_shown_is_part_of_it() {
    let bench = Paused::with_llama(sim::policy()).await;
    let age = |source: &str| bench.status().at(tokio::time::Instant::now()).ages[source];
    // The control: at rest nothing is older than the pause between two looks.
    for _ in 0..30 {
        sleep(Duration::from_secs(1)).await;
        assert!(age("ssh") <= 10.1 && age("llama-cpp.unit") <= 10.1, "{}", age("ssh"));
    }
    let looks = bench.world.sim().looks;
    bench.world.sim().faults.looks_hang = true;
    bench.world.sim().crash(LLAMA);
    sleep(Duration::from_secs(25)).await;
    assert!(bench.world.sim().looks > looks, "somebody has looked since");
    assert!(age("ssh") >= 15.0 && age("llama-cpp.unit") >= 15.0, "{}", age("ssh"));
    assert_eq!(bench.status().state, "llama-cpp", "nothing newer is known, and its age says so");
    // A look that never ends is given up, and says so in the end.
    bench.until("found out", |s| s.control.as_deref() != Some("ok")).await;
    bench.world.sim().heal();
    bench
        .until("seen", |s| s.control.as_deref() == Some("ok") && s.backends["llama-cpp"].unit.restarts == Some(1))
        .await;
    assert!(age("ssh") <= 10.1);
    bench.works().await;
}

#[tokio::test]
async fn row_s16_one_slow_answer_keeps_nothing_else_waiting() {
    let bench = Bench::with_llama().await;
    let faults = bench.server.faults();
    let struck = faults.command.struck();
    faults.command.times((On::Questions, CommandFault::Hangs), 1);
    bench.truly("it hangs", |s| s.faults().command.struck() > struck).await;
    let asked = Instant::now();
    assert!(matches!(bench.told(Command::Cancel).await, Answer::Refused(Refusal::NothingToCancel)));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(bench.status().state, "llama-cpp", "one lost look proves nothing");
    bench.works().await;
}

#[tokio::test]
async fn row_s17_a_start_that_hangs_shows_its_phase_and_ends() {
    let bench = short().on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadHangs);
    let op = bench.accepted(START).await;
    let status = bench.state("llama-cpp-starting").await;
    let operation = status.operation.as_ref().expect("under way");
    assert_eq!((operation.phase.as_str(), operation.goal.as_deref()), ("starting", Some("llama-cpp")));
    assert!(operation.expected_seconds.is_some());
    assert_eq!((status.phase.as_deref(), status.health.as_str()), (Some("starting"), "starting"));
    let record = bench.ended(op).await;
    assert_eq!(record.code.as_deref(), Some("health_timeout"), "{record:#?}");
    assert!(record.hint.is_some_and(|hint| hint.contains("it may still come up")));
    assert!(record.post_mortem.iter().any(|line| line.contains("loading model")), "{:#?}", record.post_mortem);
    assert_eq!(inside.fired("load-hangs"), 1);
    // It was left, and a late word counts: this is the control, too.
    inside.clear_all();
    bench.state("llama-cpp").await;
    bench.works().await;
}

#[tokio::test]
async fn row_s18_one_that_says_503_for_ever_times_out_and_is_stopped_where_that_is_wanted() {
    let bench = short().key("BACKENDS__LLAMA_CPP__ON_START_TIMEOUT", "stop").on().await;
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::HealthStatus(503));
    let record = bench.fails(START, "health_timeout").await;
    assert!(inside.fired("health-status") > 3);
    assert!(record.hint.is_some());
    assert!(record.post_mortem.iter().any(|line| line.contains("model loaded")), "{:#?}", record.post_mortem);
    bench.state("gpu-idle").await;
    assert!(bench.server.truth().gpu_holders.is_empty());
    bench.works().await;
}
