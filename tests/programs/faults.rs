//! Faults: each does what it says, counts it, and goes away when it is cleared.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use wechsler::virtual_server::programs::{Exit, Fault, Signal, right_text};

use crate::rig::{Rig, SHORT};

#[tokio::test]
async fn a_fault_fires_so_many_times_and_is_counted() {
    let rig = Rig::llama().await;
    rig.faults.set_times(Fault::HealthStatus(500), 2);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(rig.get("/health").await.0);
    }
    assert_eq!(seen, [500, 500, 200, 200]);
    assert_eq!(rig.faults.fired("health-status"), 2);
}

#[tokio::test]
async fn health_can_hang_be_slow_be_garbage_and_never_end() {
    for rig in [Rig::llama().await, Rig::vllm().await] {
        rig.faults.set(Fault::HealthHangs);
        assert!(timeout(SHORT, rig.try_get("/health")).await.is_err());
        assert_eq!(rig.get("/version").await.0 / 100, if rig.get("/props").await.0 == 200 { 4 } else { 2 });
        rig.faults.clear_all();
        rig.faults.set(Fault::HealthSlow(SHORT));
        let begun = Instant::now();
        assert_eq!(rig.get("/health").await.0, 200);
        assert!(begun.elapsed() >= SHORT);
        rig.faults.clear_all();
        rig.faults.set(Fault::HealthGarbage);
        assert!(rig.get("/v1/models").await.1.contains("<html>"));
        rig.faults.clear_all();
        rig.faults.set(Fault::HealthEndless);
        assert!(timeout(SHORT, rig.try_get("/health")).await.is_err());
        rig.faults.clear_all();
        assert_eq!(rig.get("/health").await.0, 200);
        assert_eq!(rig.faults.fired("health-endless"), 1);
    }
}

#[tokio::test]
async fn it_can_be_somebody_else() {
    let llama = Rig::llama().await;
    llama.faults.set(Fault::OtherIdentity("other".into()));
    assert_eq!(llama.get_json("/v1/models").await["data"][0]["id"], "other");
    assert_eq!(llama.get_json("/props").await["model_path"], "/models/other");
    let vllm = Rig::vllm().await;
    vllm.faults.set(Fault::OtherIdentity("other".into()));
    assert_eq!(vllm.get_json("/v1/models").await["data"][0]["id"], "other");
}

#[tokio::test]
async fn a_load_can_hang_until_it_is_let_go_on() {
    let rig = Rig::starting(|_| {}, &[Fault::LoadHangs]);
    rig.until(|| rig.faults.fired("load-hangs") == 1).await;
    sleep(SHORT).await;
    assert_eq!(rig.get("/health").await.0, 503);
    rig.faults.clear("load-hangs");
    rig.ready().await;
}

#[tokio::test]
async fn a_load_can_end_by_a_signal_so_many_times() {
    let mut rig = Rig::starting(|_| {}, &[]);
    rig.process.signal(Signal::Kill);
    rig.exit().await;
    rig.faults.set_times(Fault::LoadFails(Exit::Signal(4)), 2);
    for _ in 0..2 {
        rig.process = rig.program.start(1, rig.faults.clone());
        assert_eq!(rig.exit().await, Exit::Signal(4));
    }
    rig.start_again().await;
}

#[tokio::test]
async fn it_can_end_by_itself_now_and_the_next_one_does_not() {
    for mut rig in [Rig::llama().await, Rig::vllm().await] {
        rig.faults.crash(Exit::Signal(11));
        assert_eq!(rig.exit().await, Exit::Signal(11));
        assert_eq!(rig.faults.fired("crash"), 1);
        rig.start_again().await;
        rig.runs_on().await;
    }
}

#[tokio::test]
async fn a_save_can_fail_leave_a_stump_or_lie_about_its_size() {
    let rig = Rig::llama().await;
    rig.complete("what was said before", 5).await;
    rig.faults.set_times(Fault::SaveFails, 1);
    let (status, answer) = rig.slot_action("0", "save", "a.bin").await;
    assert_eq!((status, &answer["error"]["message"]), (500, &json!("Unable to save slot")));
    assert!(!rig.slots.file("a.bin").exists());
    let (_, good) = rig.slot_action("0", "save", "a.bin").await;
    let whole = rig.slots.bytes("a.bin").len();
    assert_eq!(good["n_written"], whole);
    rig.faults.set_times(Fault::SaveSaysOtherSize, 1);
    let (_, lie) = rig.slot_action("0", "save", "a.bin").await;
    assert_ne!(lie["n_written"], whole);
    rig.faults.set_times(Fault::DiskFull, 1);
    assert_eq!(rig.slot_action("0", "save", "a.bin").await.0, 500);
    assert!(rig.slots.bytes("a.bin").len() < whole, "the good file is gone");
    assert!(rig.try_post("/slots/0?action=restore", json!({ "filename": "a.bin" })).await.is_none());
    assert_eq!(rig.exit().await, Exit::Signal(6));
}

#[tokio::test]
async fn while_a_save_hangs_nothing_is_decoded_and_health_is_fine() {
    let rig = Rig::llama_with(|s| s.parallel = 2).await;
    rig.faults.set(Fault::SaveHangs);
    let save = rig.post_later("/slots/0?action=save", json!({ "filename": "a.bin" }));
    rig.until(|| rig.faults.fired("save-hangs") == 1).await;
    let request = rig.post_later("/completion", json!({ "prompt": "p", "n_predict": 1 }));
    assert!(timeout(SHORT, rig.try_get("/metrics")).await.is_err());
    assert!(timeout(SHORT, rig.try_get("/slots")).await.is_err());
    assert_eq!(rig.get("/health").await.0, 200);
    assert!(!request.is_finished() && !save.is_finished());
    rig.faults.clear("save-hangs");
    assert_eq!(save.await.expect("no panic").expect("an answer").0, 200);
    assert_eq!(request.await.expect("no panic").expect("an answer").0, 200);
}

#[tokio::test]
async fn a_restore_can_be_rejected_kill_or_be_of_no_use() {
    let mut rig = Rig::llama().await;
    rig.complete("what was said before", 5).await;
    rig.slot_action("0", "save", "a.bin").await;
    rig.restart().await;
    rig.faults.set_times(Fault::RestoreUnused, 1);
    let (status, answer) = rig.slot_action("0", "restore", "a.bin").await;
    assert_eq!((status, answer["n_restored"].as_u64()), (200, Some(24)));
    assert_eq!(rig.process.truth().slots, [Some(0)]);
    assert_eq!(rig.complete("what was said before", 5).await["timings"]["cache_n"], 0);
    rig.faults.set_times(Fault::RestoreRejected, 1);
    assert_eq!(rig.slot_action("0", "restore", "a.bin").await.0, 400);
    assert_eq!(rig.process.truth().slots, [Some(0)]);
    rig.faults.set_times(Fault::RestoreKills, 1);
    assert!(rig.try_post("/slots/0?action=restore", json!({ "filename": "a.bin" })).await.is_none());
    assert_eq!(rig.exit().await, Exit::Signal(6));
}

#[tokio::test]
async fn signals_can_be_ignored() {
    for rig in [Rig::llama().await, Rig::vllm().await] {
        rig.faults.set(Fault::TermIgnored);
        rig.process.signal(Signal::Term);
        rig.runs_on().await;
        rig.faults.set(Fault::KillIgnored);
        rig.process.signal(Signal::Kill);
        rig.runs_on().await;
        assert_eq!(rig.get("/health").await.0, 200);
        // What it waited for has come: the signal is delivered.
        rig.faults.clear("kill-ignored");
        assert_eq!(rig.exit().await, Exit::Signal(9));
        assert_eq!(rig.faults.fired("kill-ignored"), 1);
    }
}

#[tokio::test]
async fn a_worker_can_outlive_its_process_and_hold_the_memory() {
    let rig = Rig::vllm().await;
    rig.faults.set_times(Fault::OrphanStays, 1);
    rig.process.signal(Signal::Kill);
    rig.exit().await;
    assert_eq!(rig.process.vram_mib(), 20_000);
    assert_eq!(rig.process.orphan(), Some((4712, 20_000)));
    rig.process.kill_orphan();
    assert_eq!((rig.process.vram_mib(), rig.process.orphan()), (0, None));
}

#[tokio::test]
async fn it_can_be_healthy_and_useless() {
    for rig in [Rig::llama().await, Rig::vllm().await] {
        let path = "/v1/completions";
        let asked = json!({ "prompt": "p", "max_tokens": 20 });
        rig.faults.set_times(Fault::CompletionsFail, 1);
        assert_eq!(rig.post(path, asked.clone()).await.0, 500);
        rig.faults.set_times(Fault::AnswersCutOff, 1);
        assert_eq!(rig.try_post(path, asked.clone()).await, None);
        rig.faults.set_times(Fault::WrongText, 1);
        let (_, wrong) = rig.post(path, asked.clone()).await;
        let (_, right) = rig.post(path, asked).await;
        assert_ne!(wrong["choices"], right["choices"]);
        assert_eq!(rig.get("/health").await.0, 200);
    }
    let rig = Rig::llama().await;
    assert_eq!(rig.complete("p", 20).await["content"], right_text("/models/m.gguf", "p", 20));
}

#[tokio::test]
async fn endpoints_can_be_missing() {
    let rig = Rig::llama().await;
    rig.faults.set(Fault::NoMetrics);
    rig.faults.set(Fault::NoSlots);
    let props = rig.get_json("/props").await;
    assert_eq!((&props["endpoint_metrics"], &props["endpoint_slots"]), (&json!(false), &json!(false)));
    assert_eq!(rig.get("/metrics").await.0, 501);
    assert_eq!(rig.get("/slots").await.0, 501);
    sleep(Duration::from_millis(1)).await;
}
