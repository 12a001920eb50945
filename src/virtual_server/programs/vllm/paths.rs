//! What is answered where.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response},
};
use serde_json::json;

use super::{
    super::{
        Fault,
        door::{Answers, Ask, answer, json as json_answer, troubled, unix_now},
        life::lock,
    },
    Vllm,
};

const NOT_FOUND: &str = r#"{"detail":"Not Found"}"#;

impl Answers for Vllm {
    async fn answer(self: Arc<Self>, ask: Ask) -> Response<Body> {
        let mut answer = self.route(ask).await;
        answer.headers_mut().insert("server", HeaderValue::from_static("uvicorn"));
        answer
    }
}

impl Vllm {
    async fn route(self: Arc<Self>, ask: Ask) -> Response<Body> {
        let life = &self.life;
        let path = ask.path.as_str();
        let is_health = matches!(path, "/health" | "/ping");
        if (is_health || path == "/v1/models")
            && let Some(trouble) = troubled(life, is_health).await
        {
            return trouble;
        }
        if path.starts_with("/v1") && !self.may(&ask.headers) {
            return json_answer(401, r#"{"error":"Unauthorized"}"#);
        }
        match (ask.method.as_str(), path) {
            ("GET", "/health") | ("GET" | "POST", "/ping") => {
                answer(if self.engine_dead.load(Relaxed) { 503 } else { 200 }, "", "")
            }
            ("GET", "/v1/models") => {
                let id = self.model();
                json_answer(
                    200,
                    json!({ "object": "list", "data": [{
                        "id": id, "object": "model", "created": unix_now(), "owned_by": "vllm", "root": id, "parent": null,
                        "max_model_len": self.setup.max_model_len, "permission": [],
                    }]}),
                )
            }
            ("GET", "/version") => json_answer(200, json!({ "version": "0.32.0" })),
            // Says 0 because nobody counts.
            ("GET", "/load") => json_answer(200, json!({ "server_load": 0 })),
            ("GET", "/metrics") => answer(200, "text/plain; version=1.0.0; charset=utf-8", self.metrics()),
            ("POST", "/v1/completions") => self.inference(false, &ask).await,
            ("POST", "/v1/chat/completions") => self.inference(true, &ask).await,
            ("POST", "/tokenize") => match ask.json() {
                Ok(asked) => {
                    let text = asked.get("prompt").and_then(|v| v.as_str()).unwrap_or_default();
                    let tokens = text.as_bytes();
                    json_answer(200, json!({ "count": tokens.len(), "tokens": tokens }))
                }
                Err(why) => error(400, why, "BadRequestError"),
            },
            (_, "/health" | "/v1/models" | "/version" | "/load" | "/metrics" | "/v1/completions") => {
                json_answer(405, json!({ "detail": "Method Not Allowed" }))
            }
            _ => json_answer(404, NOT_FOUND),
        }
    }

    /// Only this header, and the scheme in any case.
    fn may(&self, headers: &HeaderMap) -> bool {
        let Some(Fault::ApiKey(key)) = self.life.faults.look("api-key") else {
            return true;
        };
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        given
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && given == key)
    }

    /// The name it goes by.
    pub(super) fn model(&self) -> String {
        match self.life.faults.fires("other-identity") {
            Some(Fault::OtherIdentity(other)) => other,
            _ => self.setup.model.clone(),
        }
    }

    fn metrics(&self) -> String {
        let process = "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1.7e+09\n";
        if self.life.faults.fires("no-metrics").is_some() {
            return process.into();
        }
        let asleep = u64::from(self.life.faults.fires("asleep").is_some());
        let counters = lock(&self.counters);
        let model = &self.setup.model;
        let gauge = |kind: &str, name: &str, more: &str, value: u64| {
            format!("# TYPE vllm:{name} {kind}\nvllm:{name}{{engine=\"0\",{more}model_name=\"{model}\"}} {value}.0\n")
        };
        let (stop, length) = ("finished_reason=\"stop\",", "finished_reason=\"length\",");
        [
            gauge("gauge", "num_requests_running", "", counters.running),
            gauge("gauge", "num_requests_waiting", "", 0),
            gauge("gauge", "engine_sleep_state", "sleep_state=\"awake\",", 1 - asleep),
            gauge("gauge", "engine_sleep_state", "sleep_state=\"weights_offloaded\",", asleep),
            gauge("gauge", "engine_sleep_state", "sleep_state=\"discard_all\",", 0),
            gauge("gauge", "kv_cache_usage_perc", "", 0),
            gauge("counter", "prompt_tokens_total", "", counters.prompt),
            gauge("counter", "prompt_tokens_cached_total", "", counters.cached),
            gauge("counter", "prefix_cache_queries_total", "", counters.prompt),
            gauge("counter", "prefix_cache_hits_total", "", counters.cached),
            gauge("counter", "generation_tokens_total", "", counters.generated),
            gauge("counter", "request_success_total", stop, counters.finished[0]),
            gauge("counter", "request_success_total", length, counters.finished[1]),
            gauge("counter", "num_preemptions_total", "", 0),
            process.into(),
        ]
        .concat()
    }
}

/// An error in vLLM's words.
pub(super) fn error(status: u16, message: impl ToString, kind: &str) -> Response<Body> {
    json_answer(status, error_body(status, message, kind))
}

pub(super) fn error_body(status: u16, message: impl ToString, kind: &str) -> serde_json::Value {
    json!({ "error": { "message": message.to_string(), "type": kind, "param": null, "code": status } })
}
