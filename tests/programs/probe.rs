//! The daemon's own eyes, on the virtual programs.

use std::time::Duration;

use tokio::time::sleep;
use wechsler::{
    config,
    host::http::{ACTIVITY_EVERY, Probe},
    machine::{
        self, BackendKind,
        reading::{Http, Identity},
    },
    virtual_server::programs::{Fault, Signal},
};

use crate::rig::{Rig, SHORT};

fn probe(rig: &Rig, kind: BackendKind, model: &str, timeout: Duration) -> Probe {
    let backend = config::Backend {
        name: "llama-cpp".into(),
        unit: "llama-cpp.service".into(),
        url: rig.url(""),
        public_url: rig.url(""),
        health_path: "/health".into(),
        api_key_file: None,
        model: Some(model.into()),
        ssh: None,
        slots: None,
        expected_start: Duration::from_secs(8),
    };
    Probe::new(&backend, kind, timeout).expect("a good configuration")
}

fn later(times: u32) -> machine::Instant {
    machine::Instant::after_start(ACTIVITY_EVERY * times)
}

#[tokio::test]
async fn a_llama_is_seen_to_load_to_be_ready_and_to_be_gone() {
    let rig = Rig::starting(|s| s.load = Duration::from_millis(300), &[]);
    let probe = probe(&rig, BackendKind::LlamaCpp, "m", Duration::from_secs(5));
    rig.waits_for_port().await;
    assert_eq!(probe.health().await, Http::Unavailable);
    rig.ready().await;
    let identity = Identity { model: Some("m".into()), n_ctx: Some(4096), build: Some("b11434-abcdef".into()) };
    assert_eq!(probe.health().await, Http::Ready(identity));
    rig.process.signal(Signal::Term);
    rig.exit().await;
    assert_eq!(probe.health().await, Http::Refused);
}

#[tokio::test]
async fn the_use_of_a_llama_is_seen() {
    let rig = Rig::llama().await;
    let probe = probe(&rig, BackendKind::LlamaCpp, "m", Duration::from_secs(5));
    let idle = probe.activity(later(1)).await.expect("an answer");
    assert_eq!((idle.in_flight, idle.slots[0].tokens), (Some(0), None));
    let request = rig.long_request().await;
    let busy = probe.activity(later(2)).await.expect("an answer");
    assert_eq!((busy.in_flight, busy.slots[0].is_processing), (Some(1), true));
    assert_ne!(idle.mark, busy.mark);
    request.abort();
    rig.until(|| rig.process.truth().in_flight == 0).await;
    let after = probe.activity(later(3)).await.expect("an answer");
    let again = probe.activity(later(4)).await.expect("an answer");
    assert_eq!(after.in_flight, Some(0));
    assert_eq!(after, again, "our own questions change nothing");
}

#[tokio::test]
async fn a_sleeping_llama_is_not_woken() {
    let rig = Rig::starting(|_| {}, &[Fault::SleepIdle(Duration::from_millis(50))]);
    let probe = probe(&rig, BackendKind::LlamaCpp, "m", Duration::from_secs(5));
    rig.until(|| rig.faults.fired("sleep-idle") == 1).await;
    for n in 1..4 {
        assert!(probe.activity(later(n)).await.expect("an answer").sleeping);
    }
    sleep(SHORT).await;
    assert_eq!(rig.faults.fired("sleep-idle"), 1);
}

#[tokio::test]
async fn a_vllm_is_seen_in_all_its_phases() {
    let rig = Rig::vllm_starting(|s| s.load = Duration::from_millis(200), &[]);
    let probe = probe(&rig, BackendKind::Vllm, "model", Duration::from_secs(5));
    assert_eq!(probe.health().await, Http::Refused);
    rig.ready().await;
    let identity = Identity { model: Some("org/model".into()), n_ctx: Some(4096), build: Some("0.32.0".into()) };
    assert_eq!(probe.health().await, Http::Ready(identity));
    let request = rig.long_request().await;
    assert_eq!(probe.activity(later(1)).await.expect("an answer").in_flight, Some(1));
    rig.faults.set(Fault::EngineDead(Duration::from_secs(2)));
    rig.until(|| !rig.process.truth().ready).await;
    assert_eq!(probe.health().await, Http::Unavailable);
    request.abort();
}

#[tokio::test]
async fn faults_are_seen_as_what_they_are() {
    let rig = Rig::llama().await;
    let probe = || probe(&rig, BackendKind::LlamaCpp, "m", SHORT * 4);
    rig.faults.set(Fault::HealthHangs);
    assert_eq!(probe().health().await, Http::TimedOut);
    rig.faults.clear_all();
    rig.faults.set(Fault::HealthStatus(500));
    assert_eq!(probe().health().await, Http::Status(500));
    rig.faults.clear_all();
    for fault in [Fault::HealthGarbage, Fault::HealthEndless] {
        rig.faults.set(fault);
        assert!(matches!(probe().health().await, Http::Garbage(_)));
        rig.faults.clear_all();
    }
    rig.faults.set(Fault::OtherIdentity("x".into()));
    assert!(matches!(probe().health().await, Http::Stranger(_)));
    rig.faults.clear_all();
    assert!(matches!(probe().health().await, Http::Ready(_)));
}
