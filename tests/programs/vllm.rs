//! vLLM.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use wechsler::virtual_server::programs::{Exit, Fault, Signal, right_text};

use crate::rig::{Rig, SHORT};

#[tokio::test]
async fn its_port_is_refused_during_the_whole_load() {
    let rig = Rig::vllm_starting(|s| s.load = Duration::from_millis(150), &[]);
    while !rig.process.truth().ready {
        assert!(rig.is_refused().await || rig.process.truth().ready);
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(rig.get("/health").await, (200, String::new()));
}

#[tokio::test]
async fn it_says_who_it_is_and_knows_nothing_of_llamas_paths() {
    let rig = Rig::vllm().await;
    assert_eq!(rig.get("/ping").await, (200, String::new()));
    let models = rig.get_json("/v1/models").await;
    assert_eq!(models["data"][0]["owned_by"], "vllm");
    assert_eq!(models["data"][0]["max_model_len"], 4096);
    assert_eq!(rig.get_json("/version").await["version"], "0.32.0");
    assert_eq!(rig.get_json("/load").await["server_load"], 0);
    for path in ["/slots", "/props", "/models", "/v1/health", "/is_sleeping"] {
        assert_eq!(rig.get(path).await, (404, r#"{"detail":"Not Found"}"#.into()), "{path}");
    }
}

#[tokio::test]
async fn its_key_guards_only_what_begins_with_v1() {
    let rig = Rig::vllm_starting(|_| {}, &[Fault::ApiKey("k".into())]);
    rig.ready().await;
    assert_eq!(rig.get("/v1/models").await, (401, r#"{"error":"Unauthorized"}"#.into()));
    for path in ["/health", "/metrics", "/load", "/version"] {
        assert_eq!(rig.get(path).await.0, 200, "{path}");
    }
    let asked = rig.post_request("/v1/completions", &json!({ "prompt": "p" })).header("authorization", "bearer k");
    assert_eq!(asked.send().await.expect("an answer").status().as_u16(), 200);
}

#[tokio::test]
async fn its_counters_carry_labels_and_move_while_it_generates() {
    let rig = Rig::vllm().await;
    let request = rig.long_request().await;
    assert_eq!(rig.metric("vllm:num_requests_running").await, 1);
    let before = rig.metric("vllm:generation_tokens_total").await;
    sleep(Duration::from_millis(30)).await;
    assert!(rig.metric("vllm:generation_tokens_total").await > before);
    assert_eq!(rig.metric("vllm:prompt_tokens_total").await, 4);
    let (_, page) = rig.get("/metrics").await;
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"org/model\"} 0.0"), "{page}");
    request.abort();
    rig.until(|| rig.process.truth().in_flight == 0).await;
    assert_eq!(rig.metric("vllm:num_requests_running").await, 0);
}

#[tokio::test]
async fn it_generates_whole_and_in_pieces() {
    let rig = Rig::vllm().await;
    let right = right_text("org/model", "tell me something long", 9);
    let asked = json!({ "model": "org/model", "prompt": "tell me something long", "max_tokens": 9 });
    let (status, whole) = rig.post("/v1/completions", asked.clone()).await;
    assert_eq!((status, &whole["choices"][0]["text"]), (200, &json!(right)));
    let (_, again) = rig.post("/v1/completions", asked).await;
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
    let asked = json!({ "prompt": "tell me something long", "max_tokens": 9, "stream": true });
    let (_, body) = rig.try_post("/v1/completions", asked).await.expect("an answer");
    let parts =
        body.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
    let said: String = parts.map(|part| part["choices"][0]["text"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(said, right);
    assert!(body.ends_with("data: [DONE]\n\n"));
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let (status, chat) = rig.post("/v1/chat/completions", json!({ "messages": messages, "max_tokens": 3 })).await;
    assert_eq!(status, 200);
    assert_eq!(chat["choices"][0]["message"]["content"].as_str().map(str::len), Some(3));
    assert_eq!(rig.process.truth().served, 4);
}

#[tokio::test]
async fn unknown_models_and_long_prompts_are_refused() {
    let rig = Rig::vllm().await;
    let (status, answer) = rig.post("/v1/completions", json!({ "model": "other", "prompt": "p" })).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("NotFoundError")));
    let (status, answer) = rig.post("/v1/completions", json!({ "prompt": "x".repeat(5000) })).await;
    assert_eq!((status, &answer["error"]["type"]), (400, &json!("BadRequestError")));
}

#[tokio::test]
async fn at_sigterm_clients_get_an_error_and_it_ends_with_0() {
    let rig = Rig::vllm().await;
    let request = rig.long_request().await;
    let stream = rig.post_later("/v1/completions", json!({ "prompt": "p", "max_tokens": 4000, "stream": true }));
    rig.until(|| rig.process.truth().in_flight == 2).await;
    rig.process.signal(Signal::Term);
    let (status, body) = request.await.expect("no panic").expect("an answer");
    assert_eq!(status, 500);
    assert!(body.contains("EngineCore encountered an issue"), "{body}");
    let (status, body) = stream.await.expect("no panic").expect("an answer");
    assert_eq!(status, 200);
    assert!(body.contains("EngineCore encountered") && body.ends_with("data: [DONE]\n\n"), "{body}");
    assert_eq!(rig.exit().await, Exit::Code(0));
    assert_eq!(rig.process.truth().served, 0);
}

#[tokio::test]
async fn idle_it_ends_with_0_after_a_moment() {
    let rig = Rig::vllm().await;
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Code(0));
    assert!(rig.is_refused().await);
}

#[tokio::test]
async fn sigterm_during_the_load_kills_or_late_in_it_is_lost() {
    let slow = Duration::from_millis(300);
    let rig = Rig::vllm_starting(|s| s.load = slow, &[]);
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Signal(15));
    let rig = Rig::vllm_starting(|s| s.load = slow, &[Fault::TermLostInLoad]);
    rig.until(|| rig.process.vram_mib() > 12_000).await;
    rig.process.signal(Signal::Term);
    rig.ready().await;
    assert_eq!(rig.faults.fired("term-lost-in-load"), 1);
    assert_eq!(rig.get("/health").await.0, 200);
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn a_dead_engine_is_503_and_then_an_end_with_0() {
    let rig = Rig::vllm().await;
    let request = rig.long_request().await;
    rig.faults.set(Fault::EngineDead(Duration::from_secs(1)));
    rig.until(|| !rig.process.truth().ready).await;
    assert_eq!(rig.get("/health").await, (503, String::new()));
    let (status, _) = request.await.expect("no panic").expect("an answer");
    assert_eq!(status, 500);
    let (status, _) = rig.post("/v1/completions", json!({ "prompt": "p" })).await;
    assert_eq!(status, 500);
    assert_eq!(rig.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn a_load_that_fails_is_refused_until_its_end() {
    let rig = Rig::vllm_starting(|_| {}, &[Fault::LoadFails(Exit::Code(1))]);
    assert_eq!(rig.exit().await, Exit::Code(1));
    assert!(rig.is_refused().await);
}

#[tokio::test]
async fn without_statistics_its_metrics_say_nothing_of_requests() {
    let rig = Rig::vllm().await;
    rig.faults.set(Fault::NoMetrics);
    let (status, page) = rig.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(!page.contains("vllm:"), "{page}");
    sleep(SHORT / 10).await;
}
