//! Health lies.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use wechsler::{
    machine::Command,
    virtual_server::{
        What,
        programs::{Exit, Fault, Signal, right_text},
    },
};

use crate::{
    bench::{Bench, LLAMA, LLAMA_UNIT, NO_DRAIN, PLAIN, Plan, START, TO_LLAMA, TO_VLLM, VLLM, VLLM_UNIT},
    paused::Paused,
    sim,
};

const STOP_NOW: Command = Command::Stop(NO_DRAIN);
const TO_VLLM_NOW: Command = Command::Switch(VLLM, NO_DRAIN);

/// Orders to stop or kill, by anybody.
fn stops(bench: &Bench) -> usize {
    bench.count(|what| matches!(what, What::StopBegan { .. } | What::Killed { .. }))
}

fn has(status: &wechsler::driver::status::Status, code: &str) -> bool {
    status.attention.iter().any(|a| a.code == code)
}

#[tokio::test]
async fn row_h1_a_healthy_backend_without_gpu_memory_is_told() {
    // The control: what it holds is seen, and nothing said.
    let bench = Bench::with_llama().await;
    let holds = |s: &wechsler::driver::status::Status| {
        s.gpu_memory.as_ref().is_some_and(|m| m.values().all(|gpu| gpu.used_mib.is_some_and(|mib| mib > 9000)))
    };
    let status = bench.until("its memory read", |s| holds(s)).await;
    assert!(!has(&status, "gpu_unused"));
    bench.done(STOP_NOW).await;

    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::CpuFallback);
    bench.done(START).await;
    let status = bench.attention("gpu_unused").await;
    assert_eq!((inside.fired("cpu-fallback"), bench.server.truth().gpu_used_mib), (1, 0));
    let told = status.attention.iter().find(|a| a.code == "gpu_unused").expect("just seen");
    assert!(told.message.starts_with("llama-cpp: ") && told.hint.contains("restart"), "{told:?}");
    // A person's matter: it serves, and is left alone.
    assert_eq!((status.state.as_str(), status.health.as_str(), stops(&bench)), ("llama-cpp", "ok", 1));

    inside.clear_all();
    bench.done(Command::Restart(None, NO_DRAIN)).await;
    bench.until("forgotten", |s| holds(s) && !has(s, "gpu_unused")).await;
    bench.works().await;
}

#[tokio::test]
async fn row_h2_a_dead_engine_is_told_as_soon_as_it_says_so() {
    let bench = Bench::on().await;
    bench.done(TO_VLLM).await;
    let status = bench.status();
    assert_eq!((status.health.as_str(), status.attention.len()), ("ok", 0), "the control");

    let inside = bench.inside(VLLM_UNIT);
    inside.set(Fault::EngineDead(Duration::from_secs(3)));
    let status = bench.attention("backend_sick").await;
    assert_eq!(inside.fired("engine-dead"), 1);
    assert_eq!((status.state.as_str(), status.health.as_str()), ("vllm", "failing"));
    let told = status.attention.iter().find(|a| a.code == "backend_sick").expect("just seen");
    assert!(told.hint.contains("restart"), "{told:?}");

    // What the hint says helps.
    inside.clear_all();
    bench.done(Command::Restart(None, NO_DRAIN)).await;
    let status = bench.until("well", |s| s.health == "ok").await;
    assert!(!has(&status, "backend_sick"));
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_h2_requests_that_get_nowhere_behind_good_health_are_told_after_ten_minutes() {
    let server = Paused::on(sim::policy()).await;
    server.does(START).await;
    // The control: one that gets on, however long it lasts.
    for _ in 0..15 {
        server.world.sim().busy(LLAMA, 1);
        sleep(Duration::from_mins(1)).await;
        assert!(!has(&server.status(), "no_progress"));
    }
    // And now nothing moves.
    sleep(Duration::from_mins(11)).await;
    let status = server.status();
    assert_eq!((status.health.as_str(), status.backends["llama-cpp"].in_flight), ("ok", Some(1)));
    let told = status.attention.iter().find(|a| a.code == "no_progress");
    assert!(told.is_some_and(|a| a.hint.contains("restart")), "{:?}", status.attention);
    assert_eq!(server.world.sim().deeds.len(), 1, "it is a person's to judge");
    server.does(Command::Restart(None, NO_DRAIN)).await;
    let status = server.state("llama-cpp").await;
    assert!(!has(&status, "no_progress"));
}

#[tokio::test]
async fn row_h3_another_model_is_not_taken_for_the_one_that_was_meant() {
    let bench = Plan::default().key("BACKENDS__LLAMA_CPP__START_TIMEOUT", "2100ms").on().await;
    bench.done(START).await;
    assert_eq!(bench.status().model.as_ref().map(|m| m.id.clone()).as_deref(), Some("Nemotron-3-Nano-30B"));
    bench.done(STOP_NOW).await;

    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::OtherIdentity("Some-Other-7B".into()));
    bench.fails(START, "backend_sick").await;
    assert!(inside.fired("other-identity") > 0);
    let status = bench.attention("backend_sick").await;
    assert_eq!((status.state.as_str(), status.health.as_str()), ("llama-cpp-starting", "failing"));
    assert_eq!(status.active_backend, None, "nobody is sent there");
    inside.clear_all();
    bench.state("llama-cpp").await;
    bench.works().await;
}

#[tokio::test]
async fn row_h3_wrong_text_is_nobodys_to_judge_and_moves_nothing() {
    let bench = Bench::with_llama().await;
    let model = bench.server.setup().folder.join("models/Nemotron-3-Nano-30B.gguf");
    let right = right_text(&model.to_string_lossy(), "Say something.", 20);
    let said = |answer: Option<serde_json::Value>| {
        answer.and_then(|a| a["choices"][0]["text"].as_str().map(str::to_owned)).expect("an answer")
    };
    assert_eq!(said(bench.asks(LLAMA_UNIT, "Say something.", 20).await), right, "the control");

    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::WrongText);
    assert_ne!(said(bench.asks(LLAMA_UNIT, "Say something else.", 20).await), right);
    assert_eq!(inside.fired("wrong-text"), 1);
    let before = bench.status().ages["llama-cpp.http"];
    let status = bench.until("looked again", |s| s.ages["llama-cpp.http"] < before).await;
    assert_eq!((status.state.as_str(), status.health.as_str(), stops(&bench)), ("llama-cpp", "ok", 0));
    bench.works().await;
}

#[tokio::test]
async fn row_h4_health_that_is_silent_during_a_long_prompt_stops_nothing() {
    let bench = Plan::default().server(|setup| setup.times.per_token = Duration::from_millis(4)).on().await;
    bench.done(START).await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::HealthHangs);
    // 6000 tokens: for more than two seconds nothing comes out.
    let request = bench.asks_beside(LLAMA_UNIT, &"A long story. ".repeat(450), 1);
    bench.truly("silent", |_| inside.fired("health-hangs") >= 2).await;
    assert!(!request.is_finished(), "it is still at it");
    let status = bench.status();
    assert_eq!((status.state.as_str(), status.health.as_str()), ("llama-cpp", "ok"));
    assert!(request.await.expect("no panic").is_some(), "it came to its end");
    assert_eq!((bench.status().state.as_str(), stops(&bench), bench.starts(LLAMA_UNIT)), ("llama-cpp", 0, 1));
    inside.clear_all();

    // The control: one that has died is told from one that is busy. (Its successor loads.)
    inside.set(Fault::LoadHangs);
    assert!(bench.server.signal(LLAMA_UNIT, Signal::Kill));
    bench.state("llama-cpp-starting").await;
    inside.clear_all();
    bench.state("llama-cpp").await;
    bench.works().await;
}

#[tokio::test]
async fn row_h5_health_slower_than_its_limit_fails_the_start_and_counts_when_it_comes() {
    let slow = Fault::HealthSlow(Duration::from_millis(900));
    let bench = Plan::default().key("BACKENDS__LLAMA_CPP__START_TIMEOUT", "2100ms").on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(slow.clone());
    let record = bench.fails(START, "http_unreachable").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("probe.http_timeout")));
    assert!(inside.fired("health-slow") > 0);
    assert_eq!(stops(&bench), 0, "it is left, as configured");
    inside.clear_all();
    bench.state("llama-cpp").await;

    // One miss means nothing.
    let (before, looks) = (inside.fired("health-slow"), bench.status().ages["llama-cpp.http"]);
    inside.set_times(slow, 1);
    bench.truly("missed", |_| inside.fired("health-slow") > before).await;
    let status = bench.until("looked again", |s| s.ages["llama-cpp.http"] <= looks).await;
    assert_eq!((status.state.as_str(), status.health.as_str(), stops(&bench)), ("llama-cpp", "ok", 0));
    bench.works().await;
}

#[tokio::test]
async fn row_h5_the_limit_is_configurable() {
    // The other test's control: the same health, a limit that allows for it.
    let bench = Plan::default().key("PROBE__HTTP_TIMEOUT", "1400ms").on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::HealthSlow(Duration::from_millis(900)));
    bench.done(START).await;
    assert!(inside.fired("health-slow") > 0);
    bench.works().await;
}

#[tokio::test]
async fn row_h6_a_process_that_is_up_is_not_ready_before_it_says_so() {
    let bench = Bench::on().await;
    // llama.cpp says 503 while it loads, vLLM does not answer at all.
    for (command, unit, name) in [(START, LLAMA_UNIT, "llama-cpp"), (TO_VLLM_NOW, VLLM_UNIT, "vllm")] {
        let inside = bench.inside(unit);
        inside.set(Fault::LoadHangs);
        let op = bench.accepted(command).await;
        bench.truly("loading", |_| inside.fired("load-hangs") == 1).await;
        let loading = format!("{name}-starting");
        let status = bench.until("loading", |s| s.backends[name].unit.active.as_deref() == Some("active")).await;
        assert_eq!((status.state.as_str(), status.phase.as_deref()), (loading.as_str(), Some("starting")));
        assert_eq!((status.health.as_str(), status.backends[name].state.as_str()), ("starting", "loading"));
        assert_eq!((status.active_backend.as_deref(), status.gpu_server.as_str()), (None, "on"));
        let under_way = status.operation.as_ref().map(|op| op.phase.clone());
        assert_eq!(under_way.as_deref(), Some("starting"));
        // The control: without the fault it is ready, and said so.
        inside.clear_all();
        assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
        let status = bench.state(name).await;
        assert_eq!((status.active_backend.as_deref(), status.health.as_str()), (Some(name), "ok"));
    }
    bench.works().await;
}

#[tokio::test]
async fn row_h6_a_load_that_fails_behind_an_open_port_is_no_slow_start() {
    let bench = Bench::on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadFails(Exit::Code(1)));
    let record = bench.fails(START, "crash_loop").await;
    assert!(inside.fired("load-fails") > 0);
    let words = record.post_mortem.join("\n");
    assert!(words.contains("exiting due to model loading error"), "{words}");
    bench.works().await;
}

#[tokio::test]
async fn row_h7_a_sleeping_llama_cpp_is_told_and_never_woken_by_us() {
    let bench = Bench::with_llama().await;
    let prompt = "What was said before it fell asleep. ".repeat(10);
    // The control: awake, it is saved.
    bench.asks(LLAMA_UNIT, &prompt, 2).await.expect("an answer");
    bench.done(STOP_NOW).await;
    assert_eq!(bench.server.truth().slot_files.len(), 1);
    bench.done(START).await;

    let inside = bench.inside(LLAMA_UNIT);
    bench.asks(LLAMA_UNIT, &prompt, 2).await.expect("an answer");
    inside.set(Fault::SleepIdle(Duration::from_millis(100)));
    let status = bench.until("asleep", |s| s.phase.as_deref() == Some("sleeping")).await;
    assert_eq!((status.state.as_str(), status.health.as_str()), ("llama-cpp", "ok"));
    assert!(inside.fired("sleep-idle") > 0);
    // Its use is asked at least twice more.
    let fallen = inside.fired("sleep-idle");
    let until = Instant::now() + Duration::from_millis(4500);
    while Instant::now() < until {
        assert!(bench.server.truth().gpu_used_mib < 2000, "awake");
        sleep(Duration::from_millis(20)).await;
    }
    let record = bench.record(Command::Switch(VLLM, PLAIN)).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    assert!(record.warnings.iter().any(|w| w.code == "slot_asleep"), "{record:?}");
    assert_eq!((inside.fired("sleep-idle"), bench.server.truth().slot_files.len()), (fallen, 1));
    assert!(!bench.server.journal(LLAMA_UNIT, 500).iter().any(|line| line.contains("exiting sleeping state")));
    bench.works().await;
}

#[tokio::test]
async fn row_h7_a_sleeping_vllm_is_told() {
    let bench = Bench::on().await;
    bench.done(TO_VLLM).await;
    let read = |s: &wechsler::driver::status::Status| s.backends["vllm"].in_flight.is_some();
    let status = bench.until("its use read", |s| read(s)).await;
    assert_eq!(status.phase, None, "the control");
    let inside = bench.inside(VLLM_UNIT);
    inside.set(Fault::Asleep);
    let status = bench.until("asleep", |s| s.phase.as_deref() == Some("sleeping")).await;
    assert!(inside.fired("asleep") > 0);
    assert_eq!((status.state.as_str(), status.health.as_str(), stops(&bench)), ("vllm", "ok", 0));
    bench.done(TO_LLAMA).await;
    assert_eq!(bench.status().active_backend.as_deref(), Some("llama-cpp"));
    bench.works().await;
}
