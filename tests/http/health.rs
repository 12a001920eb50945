//! Health and identity.

use std::{
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use tokio::net::TcpListener;
use wechsler::{
    config,
    host::http::{HttpSetupError, Probe},
    machine::{
        BackendKind::{Generic, LlamaCpp, Vllm},
        reading::{Http, Identity},
    },
};

use crate::server::{Reply, SHORT, Server, TIMEOUT, probe};

const LLAMA_MODELS: &str =
    r#"{"object":"list","data":[{"id":"my-alias","aliases":["my-alias","other"],"owned_by":"llamacpp","created":1}]}"#;
const LLAMA_PROPS: &str = r#"{"total_slots":1,"model_alias":"my-alias","model_path":"/models/m.gguf","build_info":"b11434-abcdef","is_sleeping":false,"default_generation_settings":{"n_ctx":4096}}"#;
const VLLM_MODELS: &str = r#"{"object":"list","data":[{"id":"tinytest","owned_by":"vllm","root":"./tinyhf","parent":null,"max_model_len":2048},{"id":"lora","owned_by":"vllm","parent":"tinytest","max_model_len":null}]}"#;

fn say(body: &str) -> Reply {
    Reply::Say(200, body.into())
}

fn not_found() -> Reply {
    Reply::Say(404, r#"{"detail":"Not Found"}"#.into())
}

async fn llama() -> Server {
    Server::start(|q| match q.what.as_str() {
        "GET /health" => say(r#"{"status":"ok"}"#),
        "GET /props" => say(LLAMA_PROPS),
        "GET /v1/models" => say(LLAMA_MODELS),
        _ => not_found(),
    })
    .await
}

async fn vllm() -> Server {
    Server::start(|q| match q.what.as_str() {
        "GET /health" => say(""),
        "GET /version" => say(r#"{"version":"0.32.0"}"#),
        "GET /v1/models" => say(VLLM_MODELS),
        _ => not_found(),
    })
    .await
}

#[tokio::test]
async fn a_ready_llama_server_says_who_it_is() {
    let server = llama().await;
    let identity = Identity { model: Some("my-alias".into()), n_ctx: Some(4096), build: Some("b11434-abcdef".into()) };
    assert_eq!(server.probe(LlamaCpp).health().await, Http::Ready(identity));
}

#[tokio::test]
async fn a_ready_vllm_says_who_it_is() {
    let server = vllm().await;
    let identity = Identity { model: Some("tinytest".into()), n_ctx: Some(2048), build: Some("0.32.0".into()) };
    assert_eq!(server.probe(Vllm).health().await, Http::Ready(identity));
}

#[tokio::test]
async fn trap_12_a_200_of_another_engine_is_a_stranger() {
    let (llama, vllm) = (llama().await, vllm().await);
    for (server, kind) in [(&llama, Vllm), (&vllm, LlamaCpp)] {
        let http = server.probe(kind).health().await;
        assert!(matches!(&http, Http::Stranger(why) if why.contains("owned by")), "{http:?}");
    }
}

#[tokio::test]
async fn the_expected_model_is_known_by_id_alias_path_or_file_name_and_any_other_is_a_stranger() {
    let server = llama().await;
    for (model, ready) in
        [("my-alias", true), ("other", true), ("/models/m.gguf", true), ("m.gguf", true), ("alias", false), ("", false)]
    {
        let probe = probe(&server.url, LlamaCpp, |b| b.model = Some(model.into()), TIMEOUT);
        let http = probe.health().await;
        assert_eq!(matches!(http, Http::Ready(_)), ready, "{model}: {http:?}");
    }
}

#[tokio::test]
async fn an_adapter_of_vllm_may_be_the_expected_model() {
    let server = vllm().await;
    let probe = probe(&server.url, Vllm, |b| b.model = Some("lora".into()), TIMEOUT);
    assert!(matches!(probe.health().await, Http::Ready(i) if i.model.as_deref() == Some("lora")));
}

#[tokio::test]
async fn a_router_is_ready_without_a_model() {
    let server = Server::start(|q| match q.what.as_str() {
        "GET /health" => say(r#"{"status":"ok"}"#),
        "GET /props" => say(r#"{"role":"router","build_info":"b11434"}"#),
        _ => Reply::Say(400, String::new()),
    })
    .await;
    assert!(matches!(server.probe(LlamaCpp).health().await, Http::Ready(i) if i.model.is_none()));
}

#[tokio::test]
async fn loading_is_unavailable_and_a_generic_backend_goes_by_its_status() {
    let status = Arc::new(AtomicU16::new(503));
    let shared = Arc::clone(&status);
    let server = Server::start(move |q| {
        assert_eq!(q.what, "GET /up?now");
        Reply::Say(shared.load(Ordering::Relaxed), String::new())
    })
    .await;
    let probe = probe(&server.url, Generic, |b| b.health_path = "/up?now".into(), TIMEOUT);
    for (answered, expected) in [
        (503, Http::Unavailable),
        (200, Http::Ready(Identity::default())),
        (302, Http::Status(302)),
        (500, Http::Status(500)),
        (401, Http::KeyRefused),
        (403, Http::KeyRefused),
    ] {
        status.store(answered, Ordering::Relaxed);
        assert_eq!(probe.health().await, expected);
    }
}

#[tokio::test]
async fn a_closed_port_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    drop(listener);
    assert_eq!(probe(&url, LlamaCpp, |_| {}, TIMEOUT).health().await, Http::Refused);
}

#[tokio::test]
async fn a_connection_closed_without_a_word_counts_as_refused() {
    let server = Server::start(|_| Reply::Raw(vec![])).await;
    assert_eq!(server.probe(LlamaCpp).health().await, Http::Refused);
}

#[tokio::test]
async fn an_unknown_name_is_unreachable() {
    let http = probe("http://no-such-host.invalid:1", LlamaCpp, |_| {}, TIMEOUT).health().await;
    assert!(matches!(http, Http::Unreachable(_) | Http::TimedOut), "{http:?}");
}

#[tokio::test]
async fn silence_is_timed_out() {
    let server = Server::start(|_| Reply::Stall(vec![])).await;
    assert_eq!(server.hasty_probe(LlamaCpp).health().await, Http::TimedOut);
}

#[tokio::test]
async fn an_answer_that_never_ends_is_too_long_cut_off_or_late_is_garbage() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec();
    let behaviours: [fn(Vec<u8>) -> Reply; 4] =
        [|_| Reply::Endless, Reply::Stall, Reply::Raw, |_| Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())];
    for behaviour in behaviours {
        let half = half.clone();
        let server = Server::start(move |_| behaviour(half.clone())).await;
        let http = server.hasty_probe(LlamaCpp).health().await;
        assert!(matches!(http, Http::Garbage(_)), "{http:?}");
    }
}

#[tokio::test]
async fn a_web_page_in_place_of_json_is_garbage() {
    let server = Server::start(|_| say("<html>Welcome to nginx!</html>")).await;
    for kind in [LlamaCpp, Vllm] {
        let http = server.probe(kind).health().await;
        assert!(matches!(&http, Http::Garbage(why) if why.contains("nginx")), "{http:?}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = Server::start(|_| {
        Reply::Raw(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec())
    })
    .await;
    assert_eq!(server.probe(LlamaCpp).health().await, Http::Status(307));
}

#[tokio::test]
async fn the_key_is_read_at_use_trimmed_and_not_told_to_the_health_path() {
    let server = Server::start(|q| {
        let has_key =
            q.head.contains("authorization: Bearer secret\r\n") || q.head.ends_with("authorization: Bearer secret");
        match q.what.as_str() {
            "GET /health" if q.head.contains("uthorization") => Reply::Say(500, String::new()),
            "GET /health" => say(r#"{"status":"ok"}"#),
            _ if !has_key => Reply::Say(401, r#"{"error":{"message":"Invalid API Key"}}"#.into()),
            "GET /props" => say(LLAMA_PROPS),
            _ => say(LLAMA_MODELS),
        }
    })
    .await;
    let mut file = Temporary::new("key");
    let path = file.path.clone();
    let probe = probe(&server.url, LlamaCpp, |b| b.api_key_file = Some(path), TIMEOUT);
    assert_eq!(probe.health().await, Http::KeyRefused, "no file yet");
    file.write(b"wrong");
    assert_eq!(probe.health().await, Http::KeyRefused);
    file.write(b"  secret\n");
    assert!(matches!(probe.health().await, Http::Ready(_)));
    assert!(!format!("{probe:?}").contains("secret"));
}

#[tokio::test]
async fn behind_an_api_prefix_the_health_path_gets_the_key_too() {
    let server = Server::start(|q| match q.what.as_str() {
        _ if !q.head.contains("Bearer k") => Reply::Say(401, String::new()),
        "GET /llm/health" => say(r#"{"status":"ok"}"#),
        "GET /llm/props" => say(LLAMA_PROPS),
        "GET /llm/v1/models" => say(LLAMA_MODELS),
        _ => not_found(),
    })
    .await;
    let mut file = Temporary::new("prefix");
    file.write(b"k");
    let path = file.path.clone();
    let url = format!("{}/llm/", server.url);
    let probe = probe(&url, LlamaCpp, |b| b.api_key_file = Some(path), TIMEOUT);
    assert!(matches!(probe.health().await, Http::Ready(_)));
}

#[tokio::test]
async fn who_it_is_is_asked_when_it_becomes_ready_and_not_with_every_look() {
    let asked = Arc::new(AtomicUsize::new(0));
    let health = Arc::new(AtomicU16::new(200));
    let (counter, status) = (Arc::clone(&asked), Arc::clone(&health));
    let server = Server::start(move |q| match q.what.as_str() {
        "GET /health" => Reply::Say(status.load(Ordering::Relaxed), String::new()),
        "GET /props" => say(LLAMA_PROPS),
        _ => {
            counter.fetch_add(1, Ordering::Relaxed);
            say(LLAMA_MODELS)
        }
    })
    .await;
    let probe = server.probe(LlamaCpp);
    for _ in 0..5 {
        assert!(matches!(probe.health().await, Http::Ready(_)));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    health.store(503, Ordering::Relaxed);
    assert_eq!(probe.health().await, Http::Unavailable);
    health.store(200, Ordering::Relaxed);
    assert!(matches!(probe.health().await, Http::Ready(_)));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "another run of it may be another model");
}

#[tokio::test]
async fn each_look_is_a_connection_of_its_own() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let server = Server::start(move |q| {
        seen.lock().expect("no panic").push(q.head.to_lowercase());
        // Allows to keep the connection; the next question on it would get no answer.
        Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec())
    })
    .await;
    let probe = probe(&server.url, Generic, |_| {}, TIMEOUT);
    for _ in 0..3 {
        assert_eq!(probe.health().await, Http::Ready(Identity::default()));
    }
    let heads = heads.lock().expect("no panic");
    assert_eq!(heads.len(), 3);
    assert!(heads.iter().all(|h| h.contains("connection: close")));
}

#[test]
fn a_url_that_cannot_be_asked_is_refused_when_the_probe_is_made() {
    let made = |url: &str| {
        let backend = config::Backend {
            name: String::new(),
            unit: String::new(),
            url: url.into(),
            public_url: String::new(),
            health_path: "/health".into(),
            api_key_file: None,
            model: None,
            ssh: None,
            slots: None,
            expected_start: SHORT,
        };
        Probe::new(&backend, LlamaCpp, SHORT)
    };
    assert!(matches!(made("https://gpu:8080"), Err(HttpSetupError::NotHttp(_))));
    assert!(matches!(made("gpu 8080"), Err(HttpSetupError::BadUrl { .. })));
}

/// A file that goes away again.
struct Temporary {
    path: std::path::PathBuf,
}

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wechsler-{name}-{}", std::process::id()));
        Self { path }
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut file = std::fs::File::create(&self.path).expect("a temporary file");
        file.write_all(bytes).expect("it can be written");
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
