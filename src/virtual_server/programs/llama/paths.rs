//! What is answered where.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Method, Response},
};
use serde_json::{Value, json};

use super::{
    super::{
        Fault,
        door::{Answers, Ask, answer, json as json_answer, key_is_right, troubled, unix_now},
        life::Phase,
    },
    Llama,
    core::State,
    generate::Form,
    metrics,
};

const LOADING: &str = r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
const WRONG_KEY: &str = r#"{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}"#;
const NOT_FOUND: &str = r#"{"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#;

impl Answers for Llama {
    async fn answer(self: Arc<Self>, ask: Ask) -> Response<Body> {
        let mut answer = self.route(ask).await;
        answer.headers_mut().insert("server", HeaderValue::from_static("llama.cpp"));
        answer
    }
}

impl Llama {
    async fn route(self: Arc<Self>, ask: Ask) -> Response<Body> {
        let life = &self.life;
        let path = ask.path.as_str();
        let is_health = matches!(path, "/health" | "/v1/health");
        if (is_health || matches!(path, "/v1/models" | "/models" | "/props"))
            && let Some(trouble) = troubled(life, is_health).await
        {
            return trouble;
        }
        // Before the key is looked at.
        if life.phase() < Phase::Ready {
            return json_answer(503, LOADING);
        }
        let is_get = ask.method == Method::GET;
        if is_health && is_get {
            return json_answer(200, r#"{"status":"ok"}"#);
        }
        if path != "/" && !key_is_right(life, &ask.headers) {
            return json_answer(401, WRONG_KEY);
        }
        match (ask.method.as_str(), path) {
            ("GET", "/v1/models" | "/models") => json_answer(200, self.models()),
            ("GET", "/props") => json_answer(200, self.props()),
            ("POST", "/props") => {
                not_supported("This server does not support changing global properties. Start it with `--props`")
            }
            ("GET", "/slots") => {
                if life.faults.fires("no-slots").is_some() {
                    return not_supported("This server does not support slots endpoint. Start it with `--slots`");
                }
                self.slots(ask.query.contains_key("fail_on_no_slot")).await
            }
            ("GET", "/metrics") => {
                if life.faults.fires("no-metrics").is_some() {
                    return not_supported("This server does not support metrics endpoint. Start it with `--metrics`");
                }
                self.metrics().await
            }
            ("POST", "/completion" | "/completions") => self.inference(Form::Native, &ask).await,
            ("POST", "/v1/completions") => self.inference(Form::Text, &ask).await,
            ("POST", "/v1/chat/completions" | "/chat/completions") => self.inference(Form::Chat, &ask).await,
            ("POST", "/tokenize") => self.tokenize(&ask).await,
            ("POST", path) => match path.strip_prefix("/slots/") {
                Some(id) => {
                    let id = id.to_owned();
                    self.slot_action(&id, &ask).await
                }
                None => json_answer(404, NOT_FOUND),
            },
            _ => json_answer(404, NOT_FOUND),
        }
    }

    /// The name it goes by, and the path it says it was loaded from.
    pub(super) fn identity(&self) -> (String, String) {
        if let Some(Fault::OtherIdentity(other)) = self.life.faults.fires("other-identity") {
            return (other.clone(), format!("/models/{other}"));
        }
        let path = self.setup.model_path.clone();
        let alias = if self.setup.alias.is_empty() { path.clone() } else { self.setup.alias.clone() };
        (alias, path)
    }

    fn models(&self) -> Value {
        let (id, _) = self.identity();
        json!({
            "models": [{ "name": id, "model": id, "type": "model", "capabilities": ["completion"] }],
            "object": "list",
            "data": [{
                "id": id, "aliases": [id], "tags": [], "object": "model",
                "architecture": { "input_modalities": ["text"], "output_modalities": ["text"] },
                // The time of the question.
                "created": unix_now(), "owned_by": "llamacpp",
                "meta": {
                    "vocab_type": 1, "n_vocab": 256, "n_ctx": self.slot_n_ctx(), "n_ctx_train": 32768, "n_embd": 64,
                    "n_params": 124_480, "size": 497_920, "ftype": "all F32",
                },
            }],
        })
    }

    fn props(&self) -> Value {
        let (alias, path) = self.identity();
        let faults = &self.life.faults;
        let build = match faults.fires("other-build") {
            Some(Fault::OtherBuild(other)) => other,
            _ => self.setup.build.clone(),
        };
        json!({
            "default_generation_settings": {
                "params": { "temperature": 0.8, "n_predict": -1, "stream": false },
                "n_ctx": self.slot_n_ctx(),
            },
            "total_slots": self.setup.parallel.max(1),
            "model_alias": alias, "model_path": path, "model_ftype": "all F32",
            "modalities": { "vision": false, "video": false, "audio": false },
            "endpoint_slots": !faults.is_set("no-slots"),
            "endpoint_props": false,
            "endpoint_metrics": !faults.is_set("no-metrics"),
            "chat_template": "", "bos_token": "", "eos_token": "",
            "build_info": build,
            "is_sleeping": self.core.with(|state| state.asleep),
        })
    }

    async fn slots(&self, fail_on_no_slot: bool) -> Response<Body> {
        self.one_of_the_queue().await;
        self.awake().await;
        self.core.post();
        let _turn = self.core.turn.lock().await;
        self.core.posted();
        let n_ctx = self.slot_n_ctx();
        let (slots, all_busy) = self.core.with(|state| {
            let shown: Vec<Value> = state.slots.iter().enumerate().map(|(id, slot)| slot.shown(id, n_ctx)).collect();
            (shown, state.slots.iter().all(|slot| slot.work.is_some()))
        });
        if fail_on_no_slot && all_busy {
            return error(503, "no slot available", "unavailable_error");
        }
        json_answer(200, Value::Array(slots))
    }

    /// Does not wake it: while it sleeps, the page is the last one.
    async fn metrics(&self) -> Response<Body> {
        self.one_of_the_queue().await;
        if !self.core.with(|state| state.asleep) {
            self.core.with(State::take_number);
        }
        let _turn = self.core.turn.lock().await;
        self.core.posted();
        let page = self.core.with(metrics::page);
        let mut page = answer(200, "text/plain; version=0.0.4", page);
        // Not Unix time, whatever its name says.
        page.headers_mut().insert("process-start-time-unix", HeaderValue::from(u64::from(self.life.pid()) * 1_000_003));
        page
    }

    async fn tokenize(&self, ask: &Ask) -> Response<Body> {
        self.awake().await;
        match asked(ask) {
            Ok(asked) => {
                let text = asked.get("content").and_then(Value::as_str).unwrap_or_default();
                json_answer(200, json!({ "tokens": text.as_bytes() }))
            }
            Err(why) => invalid(why),
        }
    }

    /// Once told to end, it answers nothing more that needs its main thread.
    pub(super) async fn one_of_the_queue(&self) {
        if self.life.phase() == Phase::Ending {
            std::future::pending::<()>().await;
        }
    }
}

/// An error as a task answers it.
pub(super) fn error(status: u16, message: impl ToString, kind: &str) -> Response<Body> {
    json_answer(status, json!({ "error": { "code": status, "message": message.to_string(), "type": kind } }))
}

/// The body of a request, or what llama.cpp's JSON library says of it.
pub(super) fn asked(ask: &Ask) -> Result<Value, String> {
    ask.json().map_err(|why| {
        let why = if ask.body.is_empty() { "attempting to parse an empty input".to_owned() } else { why.to_string() };
        format!("[json.exception.parse_error.101] parse error: {why}")
    })
}

/// A request that is none.
pub(super) fn invalid(why: impl ToString) -> Response<Body> {
    error(400, why, "invalid_request_error")
}

pub(super) fn not_supported(what: &str) -> Response<Body> {
    error(501, what, "not_supported_error")
}
