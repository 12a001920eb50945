//! Requests that generate text. Any number runs at once.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::Response,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    super::{
        door::{Ask, answer, cut_off, event, json as json_answer, unix_now},
        life::{InFlight, Pace, Phase, lock},
        text,
    },
    Vllm,
    paths::{error, error_body},
};

/// A request that names no limit gets so many tokens.
const DEFAULT_TOKENS: u64 = 16;
/// A token of the prompt takes this part of the time of a generated one.
const PROMPT_IS_FASTER: u32 = 10;
/// Prompts are found again by blocks of so many tokens, ...
const BLOCK: usize = 16;
/// ... and so many prompts are kept.
const MOST_PREFIXES: usize = 16;
/// Chunks that a slow reader of a stream may be behind.
const MOST_CHUNKS: usize = 4096;
const ENGINE_TROUBLE: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";

struct Job {
    is_chat: bool,
    prompt: Vec<u8>,
    most: u64,
    cached: u64,
}

/// Where tokens go.
enum Out {
    Whole(String),
    Stream(mpsc::Sender<Bytes>),
}

/// Counts a request as running as long as it lives.
struct Running(Arc<Vllm>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut counters = lock(&self.0.counters);
        counters.running = counters.running.saturating_sub(1);
    }
}

impl Vllm {
    pub(super) async fn inference(self: Arc<Self>, is_chat: bool, ask: &Ask) -> Response<Body> {
        let faults = &self.life.faults;
        if faults.fires("completions-fail").is_some() || self.life.phase() == Phase::Ending {
            return error(500, ENGINE_TROUBLE, "InternalServerError");
        }
        if faults.fires("answers-cut-off").is_some() {
            return cut_off();
        }
        let asked = match ask.json() {
            Ok(asked) => asked,
            Err(why) => return error(400, why, "BadRequestError"),
        };
        if let Some(model) = asked.get("model").and_then(Value::as_str)
            && model != self.setup.model
        {
            return error(404, format!("The model `{model}` does not exist."), "NotFoundError");
        }
        let prompt = if is_chat {
            asked.get("messages").map(|messages| text::chat_prompt(messages).into_bytes())
        } else {
            asked.get("prompt").and_then(Value::as_str).map(|prompt| prompt.as_bytes().to_vec())
        };
        let Some(prompt) = prompt else {
            return error(400, "Field required", "BadRequestError");
        };
        let whole = |name: &str| asked.get(name).and_then(Value::as_u64);
        let most = whole("max_completion_tokens").or_else(|| whole("max_tokens")).unwrap_or(DEFAULT_TOKENS);
        let length = count(prompt.len());
        if length + most > self.setup.max_model_len {
            let max = self.setup.max_model_len;
            let message = format!("This model's maximum context length is {max} tokens, {length} + {most} requested.");
            return error(400, message, "BadRequestError");
        }
        let guard = self.life.inference();
        let cached = self.admit(&prompt);
        let running = Running(Arc::clone(&self));
        let job = Job { is_chat, prompt, most, cached };
        if asked.get("stream").and_then(Value::as_bool).unwrap_or(false) {
            let (tell, told) = mpsc::channel(MOST_CHUNKS);
            let vllm = Arc::clone(&self);
            self.life.spawn(async move {
                tokio::select! {
                    () = vllm.tell(&job, tell.clone(), guard) => {}
                    () = tell.closed() => {}
                }
                drop(running);
            });
            let chunks = stream::unfold(told, |mut told| async {
                let chunk = told.recv().await?;
                Some((Ok::<_, std::convert::Infallible>(chunk), told))
            });
            return answer(200, "text/event-stream; charset=utf-8", Body::from_stream(chunks));
        }
        let mut out = Out::Whole(String::new());
        let whole = self.generate(&job, &mut out).await;
        drop(running);
        let Out::Whole(said) = out else {
            return error(500, ENGINE_TROUBLE, "InternalServerError");
        };
        if !whole {
            return error(500, ENGINE_TROUBLE, "InternalServerError");
        }
        self.finished();
        guard.served();
        let choice = if is_chat {
            json!({ "index": 0, "message": { "role": "assistant", "content": said }, "finish_reason": "length" })
        } else {
            json!({ "index": 0, "text": said, "logprobs": null, "finish_reason": "length" })
        };
        json_answer(
            200,
            json!({
                "id": self.request_id(), "object": if is_chat { "chat.completion" } else { "text_completion" },
                "created": unix_now(), "model": self.setup.model, "choices": [choice],
                "usage": {
                    "prompt_tokens": length, "completion_tokens": most, "total_tokens": length + most,
                    "prompt_tokens_details": { "cached_tokens": cached },
                },
            }),
        )
    }

    /// Counts a request in, and finds how much of its prompt is known.
    fn admit(&self, prompt: &[u8]) -> u64 {
        let mut counters = lock(&self.counters);
        let alike = |known: &Vec<u8>| known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let most = counters.prefixes.iter().map(alike).max().unwrap_or(0);
        let cached = count(most.min(prompt.len().saturating_sub(1)) / BLOCK * BLOCK);
        if counters.prefixes.len() == MOST_PREFIXES {
            counters.prefixes.pop_front();
        }
        counters.prefixes.push_back(prompt.to_vec());
        counters.running += 1;
        counters.prompt += count(prompt.len());
        counters.cached += cached;
        cached
    }

    /// Generates; false if the engine broke off.
    async fn generate(&self, job: &Job, out: &mut Out) -> bool {
        tokio::select! {
            () = self.run(job, out) => true,
            () = self.life.told_to_end() => false,
        }
    }

    async fn run(&self, job: &Job, out: &mut Out) {
        self.life.faults.wait_out("completions-hang").await;
        let mut left = count(job.prompt.len()) - job.cached;
        let mut pace = Pace::new(self.setup.per_token / PROMPT_IS_FASTER);
        while left > 0 {
            left -= pace.steps(left).await.min(left);
        }
        let seed = text::seed(&self.setup.model);
        let mut mind = job.prompt.iter().fold(seed, |mind, token| text::step(mind, *token));
        let odd = if self.life.faults.fires("wrong-text").is_some() { u64::MAX } else { 0 };
        let mut left = job.most;
        let mut pace = Pace::new(self.setup.per_token);
        while left > 0 {
            for _ in 0..pace.steps(left.min(64)).await {
                let token = text::next(mind ^ odd);
                mind = text::step(mind, token);
                lock(&self.counters).generated += 1;
                match out {
                    Out::Whole(said) => said.push(char::from(token)),
                    Out::Stream(tell) => {
                        let _ = tell.send(self.chunk(job, Some(token))).await;
                    }
                }
                left -= 1;
            }
        }
    }

    async fn tell(&self, job: &Job, tell: mpsc::Sender<Bytes>, guard: InFlight) {
        let whole = self.generate(job, &mut Out::Stream(tell.clone())).await;
        let last =
            if whole { self.chunk(job, None) } else { event(error_body(500, ENGINE_TROUBLE, "InternalServerError")) };
        let _ = tell.send(last).await;
        let _ = tell.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
        if whole {
            self.finished();
            guard.served();
        }
    }

    fn chunk(&self, job: &Job, token: Option<u8>) -> Bytes {
        let said = token.map(|token| char::from(token).to_string()).unwrap_or_default();
        let reason = if token.is_none() { Some("length") } else { None };
        let (choice, object) = if job.is_chat {
            let delta = json!({ "content": said });
            (json!({ "index": 0, "delta": delta, "finish_reason": reason }), "chat.completion.chunk")
        } else {
            (json!({ "index": 0, "text": said, "finish_reason": reason }), "text_completion")
        };
        event(json!({
            "id": self.request_id(), "object": object, "created": unix_now(), "model": self.setup.model,
            "choices": [choice],
        }))
    }

    fn finished(&self) {
        lock(&self.counters).finished[1] += 1;
    }

    fn request_id(&self) -> String {
        format!("cmpl-{:08}", self.life.pid())
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
