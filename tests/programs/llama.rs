//! llama.cpp: what it says of itself, and what it generates.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use wechsler::virtual_server::programs::{Fault, chat_prompt, right_text};

use crate::rig::{Rig, SHORT};

const LONG_LOAD: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_path_is_503_while_it_loads_whatever_the_key() {
    let rig = Rig::starting(|s| s.load = LONG_LOAD, &[Fault::ApiKey("k".into())]);
    rig.waits_for_port().await;
    for path in ["/health", "/v1/health", "/v1/models", "/props", "/slots", "/metrics", "/nothing"] {
        let (status, body) = rig.get(path).await;
        assert_eq!(status, 503, "{path}");
        assert!(body.contains("Loading model"), "{body}");
    }
    let (status, _) = rig.post("/completion", json!({ "prompt": "p" })).await;
    assert_eq!(status, 503);
    assert!(!rig.process.truth().ready);
}

#[tokio::test]
async fn memory_on_the_gpu_grows_with_the_load_and_is_gone_with_the_process() {
    let rig = Rig::starting(|s| s.load = Duration::from_millis(200), &[]);
    assert_eq!(rig.process.vram_mib(), 0);
    rig.until(|| (1..8000).contains(&rig.process.vram_mib())).await;
    rig.ready().await;
    assert_eq!(rig.process.vram_mib(), 8000);
    rig.process.signal(wechsler::virtual_server::programs::Signal::Kill);
    rig.exit().await;
    assert_eq!(rig.process.vram_mib(), 0);
}

#[tokio::test]
async fn it_says_who_it_is() {
    let rig = Rig::llama_with(|s| s.parallel = 2).await;
    assert_eq!(rig.get("/health").await, (200, r#"{"status":"ok"}"#.into()));
    assert_eq!(rig.get("/v1/health").await.0, 200);
    let models = rig.get_json("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "m");
    assert_eq!(models["data"][0]["owned_by"], "llamacpp");
    let props = rig.get_json("/props").await;
    assert_eq!(props["total_slots"], 2);
    assert_eq!(props["default_generation_settings"]["n_ctx"], 2048);
    assert_eq!(props["model_path"], "/models/m.gguf");
    assert_eq!(props["build_info"], "b11434-abcdef");
    assert_eq!(props["is_sleeping"], false);
    assert_eq!(rig.get("/nothing").await.0, 404);
    assert_eq!(rig.get("/slots/0").await.0, 404);
}

#[tokio::test]
async fn a_wrong_key_is_refused_everywhere_but_at_health() {
    let rig = Rig::starting(|_| {}, &[Fault::ApiKey("k".into())]);
    rig.ready().await;
    assert_eq!(rig.get("/health").await.0, 200);
    for path in ["/v1/models", "/props", "/slots", "/nothing"] {
        assert_eq!(rig.get(path).await.0, 401, "{path}");
    }
    let asked = |key: &'static str| {
        let request = rig.post_request("/tokenize", &json!({ "content": "ab" })).header("authorization", key);
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(asked("Bearer k").await, 200);
    assert_eq!(asked("bearer k").await, 401);
}

#[tokio::test]
async fn a_slot_is_shown_shortly_until_it_is_used_and_only_requests_change_its_task() {
    let rig = Rig::llama().await;
    let slots = rig.get_json("/slots").await;
    assert_eq!(slots, json!([{ "id": 0, "n_ctx": 4096, "speculative": false, "is_processing": false }]));
    rig.complete("0123456789", 5).await;
    let first = rig.get_json("/slots").await[0].clone();
    // The last token sampled is never decoded.
    assert_eq!(first["n_prompt_tokens"], 14);
    assert_eq!(first["n_prompt_tokens_processed"], 0);
    for _ in 0..3 {
        rig.get("/metrics").await;
        assert_eq!(rig.get_json("/slots").await[0], first);
    }
    rig.complete("0123456789", 5).await;
    assert!(rig.get_json("/slots").await[0]["id_task"].as_u64() > first["id_task"].as_u64());
}

#[tokio::test]
async fn what_a_request_does_shows_in_the_slots_while_it_runs() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    let slot = rig.get_json("/slots").await[0].clone();
    assert_eq!(slot["is_processing"], true);
    assert!(slot["next_token"][0]["n_decoded"].as_u64() > Some(0));
    assert_eq!(rig.get("/slots?fail_on_no_slot=1").await.0, 503);
    request.abort();
}

#[tokio::test]
async fn counters_of_text_move_when_a_request_ends_but_those_of_its_prompt_and_decodes_while_it_runs() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    assert_eq!(rig.metric("llamacpp:tokens_predicted_total").await, 0);
    assert_eq!(rig.metric("llamacpp:prompt_tokens_total").await, 4);
    assert_eq!(rig.metric("llamacpp:requests_processing").await, 1);
    let before = rig.metric("llamacpp:n_decode_total").await;
    sleep(Duration::from_millis(30)).await;
    assert!(rig.metric("llamacpp:n_decode_total").await > before);
    let waiting = rig.post_later("/completion", json!({ "prompt": "w", "n_predict": 1 }));
    rig.until(|| rig.process.truth().in_flight == 2).await;
    sleep(Duration::from_millis(20)).await;
    assert_eq!(rig.metric("llamacpp:requests_deferred").await, 1);
    request.await.expect("no panic").expect("an answer");
    waiting.await.expect("no panic").expect("an answer");
    assert_eq!(rig.metric("llamacpp:tokens_predicted_total").await, 4001);
    assert_eq!(rig.metric("llamacpp:prompt_tokens_total").await, 5);
    assert_eq!(rig.process.truth().served, 2);
    assert_eq!(rig.metric("llamacpp:requests_processing").await, 0);
}

#[tokio::test]
async fn what_the_slot_holds_is_not_computed_again() {
    let rig = Rig::llama().await;
    let first = rig.complete("what was said before", 4).await;
    assert_eq!(first["timings"]["cache_n"], 0);
    assert_eq!(first["timings"]["prompt_n"], 20);
    let same = rig.complete("what was said before", 4).await;
    assert_eq!((&same["timings"]["cache_n"], &same["timings"]["prompt_n"]), (&json!(19), &json!(1)));
    let (_, more) = rig.post("/v1/completions", json!({ "prompt": "what was said before, and more" })).await;
    assert_eq!(more["usage"]["prompt_tokens_details"]["cached_tokens"], 20);
    let (_, none) = rig.post("/completion", json!({ "prompt": "what was said before", "cache_prompt": false })).await;
    assert_eq!(none["timings"]["cache_n"], 0);
}

#[tokio::test]
async fn a_prompt_goes_where_its_beginning_is_and_otherwise_where_nothing_was_for_longest() {
    let rig = Rig::llama_with(|s| s.parallel = 3).await;
    let slot = async |prompt: &str| rig.complete(prompt, 1).await["id_slot"].clone();
    assert_eq!(slot("aaaaaaaaaa").await, 2);
    assert_eq!(slot("bbbbbbbbbb").await, 1);
    assert_eq!(slot("cccccccccc").await, 0);
    assert_eq!(slot("aaaaaaaaaa and so on").await, 2);
    assert_eq!(slot("dddddddddd").await, 1);
    let (_, pinned) = rig.post("/completion", json!({ "prompt": "x", "n_predict": 1, "id_slot": 7 })).await;
    assert_eq!(pinned["id_slot"], 1, "ids wrap");
}

#[tokio::test]
async fn the_text_is_what_its_model_says_in_every_form() {
    let rig = Rig::llama().await;
    let text = rig.complete("once upon a time", 12).await["content"].clone();
    assert_eq!(text, right_text("/models/m.gguf", "once upon a time", 12));
    let (_, said) = rig.post("/v1/completions", json!({ "prompt": "once upon a time", "max_tokens": 12 })).await;
    assert_eq!(said["choices"][0]["text"], text);
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let (_, chat) = rig.post("/v1/chat/completions", json!({ "messages": messages, "max_tokens": 9 })).await;
    let right = right_text("/models/m.gguf", &chat_prompt(&messages), 9);
    assert_eq!(chat["choices"][0]["message"]["content"], right);
    let (_, ids) = rig.post("/tokenize", json!({ "content": "once upon a time" })).await;
    let (_, by_ids) = rig.post("/completion", json!({ "prompt": ids["tokens"], "n_predict": 12 })).await;
    assert_eq!(by_ids["content"], text);
}

#[tokio::test]
async fn a_stream_says_the_same_piece_by_piece() {
    let rig = Rig::llama().await;
    let right = right_text("/models/m.gguf", "tell me", 8);
    for (path, pointer, done) in [
        ("/completion", "/content", false),
        ("/v1/completions", "/choices/0/text", true),
        ("/v1/chat/completions", "/choices/0/delta/content", true),
    ] {
        let messages = json!([{ "role": "user", "content": "hello" }]);
        let asked = json!({ "prompt": "tell me", "messages": messages, "n_predict": 8, "stream": true });
        let (status, body) = rig.try_post(path, asked).await.expect("an answer");
        assert_eq!(status, 200);
        let events: Vec<_> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.last() == Some(&"[DONE]"), done, "{path}");
        let parts: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
        let said: String = parts.iter().filter_map(|part| part.pointer(pointer)?.as_str()).collect();
        if path != "/v1/chat/completions" {
            assert_eq!(said, right, "{path}");
        }
        assert_eq!(said.len(), 8, "{path}");
        assert_eq!(parts.last().expect("a last part")["timings"]["predicted_n"], 8);
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_and_a_full_slot_ends_the_answer() {
    let rig = Rig::llama_with(|s| s.n_ctx = 64).await;
    let (status, body) = rig.post("/completion", json!({ "prompt": "x".repeat(64) })).await;
    assert_eq!((status, &body["error"]["type"]), (400, &json!("exceed_context_size_error")));
    let full = rig.complete("0123456789", 1000).await;
    assert_eq!(full["tokens_predicted"], 54);
    assert_eq!(full["truncated"], true);
    assert_eq!(rig.get_json("/slots").await[0]["n_prompt_tokens"], 63);
    assert_eq!(rig.post("/completion", json!({})).await.0, 400);
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_slot_at_once_in_a_stream() {
    let rig = Rig::llama().await;
    let asked = json!({ "prompt": "p", "n_predict": 4000, "stream": true });
    let answer = rig.post_request("/completion", &asked).send().await.expect("an answer");
    rig.until(|| rig.process.truth().in_flight == 1).await;
    drop(answer);
    rig.until(|| rig.process.truth().in_flight == 0).await;
    assert_eq!(rig.process.truth().served, 0);
}

#[tokio::test]
async fn frequent_questions_hide_that_a_client_without_a_stream_has_gone() {
    let rig = Rig::llama_with(|s| s.per_token = Duration::from_millis(5)).await;
    let request = rig.long_request().await;
    request.abort();
    for _ in 0..12 {
        rig.get("/metrics").await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(rig.process.truth().in_flight, 1);
    }
    rig.until(|| rig.process.truth().in_flight == 0).await;
}

#[tokio::test]
async fn asleep_it_has_lost_its_slots_and_the_slots_question_wakes_it() {
    let rig = Rig::starting(|_| {}, &[Fault::SleepIdle(Duration::from_millis(80))]);
    rig.ready().await;
    rig.complete("what was said", 3).await;
    rig.until(|| rig.faults.fired("sleep-idle") == 1).await;
    for _ in 0..3 {
        assert_eq!(rig.get("/health").await.0, 200);
        assert_eq!(rig.metric("llamacpp:prompt_tokens_total").await, 13);
        assert_eq!(rig.get_json("/props").await["is_sleeping"], true);
    }
    assert!(rig.process.vram_mib() < 1000);
    assert_eq!(rig.get_json("/slots").await[0].get("n_prompt_tokens"), None);
    assert_eq!(rig.get_json("/props").await["is_sleeping"], false);
    assert_eq!(rig.process.vram_mib(), 8000);
}

#[tokio::test]
async fn a_stream_begins_with_its_first_token_and_not_while_it_waits() {
    let rig = Rig::llama().await;
    let running = rig.long_request().await;
    let asked = json!({ "prompt": "p", "n_predict": 3, "stream": true });
    let waiting = rig.post_request("/completion", &asked).send();
    assert!(tokio::time::timeout(SHORT, waiting).await.is_err());
    running.abort();
}
