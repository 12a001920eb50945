//! Requests that generate text.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::Response,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    super::{
        door::{Ask, answer, cut_off, event, json as json_answer, unix_now},
        life::{InFlight, Pace, Phase, pause},
        text,
    },
    Llama,
    core::{Claim, Core, Wanted, Which, count},
    paths::{asked, error, invalid},
};

/// A model that is given no limit ends by itself after so many tokens.
const SAYS_AT_MOST: u64 = 64;
/// Tokens of a prompt that are decoded together.
const BATCH: u64 = 512;
/// A token of the prompt takes this part of the time of a generated one.
const PROMPT_IS_FASTER: u32 = 10;
/// A client that has gone is noticed after so long without any result for anybody.
const GONE_AFTER: Duration = Duration::from_secs(1);
/// Chunks that a slow reader of a stream may be behind.
const MOST_CHUNKS: usize = 4096;

/// In which form the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `/completion`.
    Native,
    /// `/v1/completions`.
    Text,
    /// `/v1/chat/completions`.
    Chat,
}

#[derive(Debug)]
struct Job {
    form: Form,
    prompt: Vec<u8>,
    wanted: Wanted,
    cache: bool,
    slot: Option<u64>,
    usage: bool,
    /// Fields of the answer; empty: all of them.
    fields: Vec<String>,
}

/// What came out.
#[derive(Debug, Default)]
struct Done {
    slot: usize,
    prompt: u64,
    cached: u64,
    held: u64,
    text: Vec<u8>,
    truncated: bool,
    by_itself: bool,
    prompt_time: Duration,
    time: Duration,
}

/// Where it goes.
enum Sink {
    Whole(oneshot::Sender<Done>),
    Stream(mpsc::Sender<Bytes>),
}

impl Llama {
    pub(super) async fn inference(self: Arc<Self>, form: Form, ask: &Ask) -> Response<Body> {
        let faults = &self.life.faults;
        if faults.fires("completions-fail").is_some() {
            return error(500, "Compute error.", "server_error");
        }
        if faults.fires("answers-cut-off").is_some() {
            return cut_off();
        }
        let job = match asked(ask).and_then(|asked| Job::read(form, &asked)) {
            Ok(job) => job,
            Err(why) => return invalid(why),
        };
        self.one_of_the_queue().await;
        let n_ctx = self.slot_n_ctx();
        let prompt = count(job.prompt.len());
        if prompt >= n_ctx {
            let message = format!(
                "request ({prompt} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it"
            );
            let told = json!({ "error": {
                "code": 400, "message": message, "type": "exceed_context_size_error",
                "n_prompt_tokens": prompt, "n_ctx": n_ctx,
            }});
            return json_answer(400, told);
        }
        let guard = self.life.inference();
        let (form, wanted, fields) = (job.form, job.wanted, job.fields.clone());
        if wanted.stream {
            let (tell, mut told) = mpsc::channel(MOST_CHUNKS);
            self.life.spawn(Arc::clone(&self).work(job, Sink::Stream(tell), guard));
            // Not even the head is sent before there is something to say.
            let Some(first) = told.recv().await else {
                return std::future::pending().await;
            };
            let chunks = stream::unfold((Some(first), told), |(first, mut told)| async {
                let chunk = match first {
                    Some(first) => first,
                    None => told.recv().await?,
                };
                Some((Ok::<_, Infallible>(chunk), (None, told)))
            });
            return answer(200, "text/event-stream", Body::from_stream(chunks));
        }
        let (tell, told) = oneshot::channel();
        self.life.spawn(Arc::clone(&self).work(job, Sink::Whole(tell), guard));
        match told.await {
            Ok(done) => json_answer(200, only(&fields, self.whole(form, wanted, &done))),
            Err(_) => std::future::pending().await,
        }
    }

    /// One request from the queue to its end.
    async fn work(self: Arc<Self>, job: Job, sink: Sink, guard: InFlight) {
        let core = &self.core;
        self.awake().await;
        let task = core.post();
        let which = job.slot.map_or(Which::For(&job.prompt), Which::Id);
        let claim = tokio::select! {
            claim = core.claim(which) => claim,
            () = sink.gone(core) => return,
        };
        let mut done = Done { slot: claim.slot, prompt: count(job.prompt.len()), ..Done::default() };
        let cached = core.with(|state| state.begin(claim.slot, task, &job.prompt, job.cache, job.wanted));
        done.cached = count(cached);
        let ended = tokio::select! {
            ended = self.decode(&job, &claim, &sink, &mut done) => ended,
            () = self.life.told_to_end() => false,
        };
        if self.life.phase() == Phase::Ending && !ended {
            // Nothing is generated any more and nothing said; the client has to hang up.
            sink.hung_up().await;
            return;
        }
        self.account_text(&claim, &done);
        drop(claim);
        if !ended {
            return;
        }
        core.posted();
        match sink {
            Sink::Whole(tell) => drop(tell.send(done)),
            Sink::Stream(tell) => {
                for chunk in self.last_chunks(&job, &done) {
                    let _ = tell.send(chunk).await;
                }
            }
        }
        guard.served();
    }

    /// The work itself; false if the client has gone.
    async fn decode(&self, job: &Job, claim: &Claim, sink: &Sink, done: &mut Done) -> bool {
        let core = &self.core;
        let model = &self.setup.model_path;
        self.life.faults.wait_out("completions-hang").await;
        let begun = Instant::now();
        let mut pace = Pace::new(self.setup.per_token / PROMPT_IS_FASTER);
        let mut at = usize::try_from(done.cached).unwrap_or(usize::MAX);
        while at < job.prompt.len() {
            let steps = pace.steps(BATCH.min(count(job.prompt.len() - at))).await;
            let until = at + usize::try_from(steps).unwrap_or(usize::MAX);
            let _turn = core.turn.lock().await;
            core.with(|state| {
                for n in at..until {
                    state.slots[claim.slot].take(job.prompt[n], model);
                    if (count(n) + 1 - done.cached).is_multiple_of(BATCH) || n + 1 == job.prompt.len() {
                        state.decoded();
                    }
                }
                if let Some(work) = &mut state.slots[claim.slot].work {
                    work.processed += count(until - at);
                }
            });
            at = until;
            if sink.is_gone(core) {
                return false;
            }
        }
        done.prompt_time = begun.elapsed();
        self.account_prompt(claim, done);
        let begun = Instant::now();
        let room = self.slot_n_ctx().saturating_sub(done.prompt);
        let wanted = u64::try_from(job.wanted.n_predict).ok();
        // The prompt's last decode gives a token, wanted or not.
        let limit = wanted.unwrap_or(SAYS_AT_MOST).max(1).min(room);
        done.by_itself = wanted.is_none() && limit == SAYS_AT_MOST;
        done.truncated = wanted.is_some_and(|wanted| wanted > room);
        let odd = if self.life.faults.fires("wrong-text").is_some() { u64::MAX } else { 0 };
        let mut pace = Pace::new(self.setup.per_token);
        let mut n = 0;
        while n < limit {
            let steps = pace.steps(BATCH.min(limit - n)).await;
            for _ in 0..steps {
                let turn = core.turn.lock().await;
                let token = core.with(|state| {
                    let slot = &mut state.slots[claim.slot];
                    // The one sampled before goes in with the next decode; the last one never does.
                    if let Some(before) = done.text.last() {
                        slot.take(*before, model);
                    }
                    let mind = slot.minds.last().copied().unwrap_or_else(|| text::seed(model));
                    if let Some(work) = &mut slot.work {
                        work.decoded += 1;
                    }
                    if n > 0 {
                        state.decoded();
                    }
                    text::next(mind ^ odd)
                });
                drop(turn);
                done.text.push(token);
                n += 1;
                done.time = begun.elapsed();
                if let Sink::Stream(tell) = sink {
                    core.posted();
                    if tell.send(self.chunk(job, done, token)).await.is_err() {
                        return false;
                    }
                }
            }
            if sink.is_gone(core) {
                return false;
            }
        }
        done.held = core.with(|state| count(state.slots[claim.slot].tokens.len()));
        true
    }

    /// The counters of the prompt move when all of it is worked on, ...
    fn account_prompt(&self, claim: &Claim, done: &Done) {
        self.core.with(|state| {
            let processed = state.slots[claim.slot].work.unwrap_or_default().processed;
            let counters = &mut state.counters;
            counters.prompt += processed;
            counters.cached += done.cached;
            counters.prompt_time += done.prompt_time;
            counters.bucket.prompt += processed;
            counters.bucket.prompt_time += done.prompt_time;
        });
    }

    /// ... those of the text when the request ends.
    fn account_text(&self, claim: &Claim, done: &Done) {
        self.core.with(|state| {
            let held = count(state.slots[claim.slot].tokens.len());
            let counters = &mut state.counters;
            let predicted = count(done.text.len());
            counters.predicted += predicted;
            counters.predicted_time += done.time;
            counters.most_tokens = counters.most_tokens.max(held);
            counters.bucket.predicted += predicted;
            counters.bucket.predicted_time += done.time;
        });
    }

    fn whole(&self, form: Form, wanted: Wanted, done: &Done) -> Value {
        let (model, _) = self.identity();
        let text = done.said();
        let choice = match form {
            Form::Native => return native(&model, wanted, done, &text),
            Form::Text => json!({ "text": text, "index": 0, "logprobs": null, "finish_reason": done.reason() }),
            Form::Chat => json!({
                "finish_reason": done.reason(), "index": 0,
                "message": { "role": "assistant", "content": text },
            }),
        };
        let object = if form == Form::Text { "text_completion" } else { "chat.completion" };
        json!({
            "choices": [choice], "created": unix_now(), "model": model, "system_fingerprint": self.setup.build,
            "object": object, "usage": done.usage(), "id": self.request_id(), "timings": done.timings(),
        })
    }

    fn chunk(&self, job: &Job, done: &Done, token: u8) -> Bytes {
        let text = char::from(token).to_string();
        match job.form {
            Form::Native => event(json!({
                "index": 0, "content": text, "tokens": [token], "stop": false, "id_slot": done.slot,
                "tokens_predicted": done.text.len(), "tokens_evaluated": done.prompt,
            })),
            Form::Text => self.part(
                job.form,
                json!({
                    "text": text, "index": 0, "logprobs": null, "finish_reason": null,
                }),
                None,
            ),
            Form::Chat => self.part(
                job.form,
                json!({
                    "finish_reason": null, "index": 0, "delta": { "content": text },
                }),
                None,
            ),
        }
    }

    fn last_chunks(&self, job: &Job, done: &Done) -> Vec<Bytes> {
        let (model, _) = self.identity();
        let last = match job.form {
            // It has no [DONE].
            Form::Native => return vec![event(native(&model, job.wanted, done, ""))],
            Form::Text => json!({ "text": "", "index": 0, "logprobs": null, "finish_reason": done.reason() }),
            Form::Chat => json!({ "finish_reason": done.reason(), "index": 0, "delta": {} }),
        };
        let with_usage = job.form == Form::Text || job.usage;
        vec![self.part(job.form, last, Some((done, with_usage))), Bytes::from_static(b"data: [DONE]\n\n")]
    }

    fn part(&self, form: Form, choice: Value, end: Option<(&Done, bool)>) -> Bytes {
        let (model, _) = self.identity();
        let object = if form == Form::Text { "text_completion" } else { "chat.completion.chunk" };
        let mut part = json!({
            "choices": [choice], "created": unix_now(), "id": self.request_id(), "model": model,
            "system_fingerprint": self.setup.build, "object": object,
        });
        if let Some((done, with_usage)) = end {
            part["timings"] = done.timings();
            if with_usage {
                part["usage"] = done.usage();
            }
        }
        event(part)
    }

    fn request_id(&self) -> String {
        format!("chatcmpl-{:08}", self.life.pid())
    }
}

impl Job {
    fn read(form: Form, asked: &Value) -> Result<Self, String> {
        let missing = |key: &str| format!("[json.exception.out_of_range.403] key '{key}' not found");
        let prompt = if form == Form::Chat {
            let messages = asked.get("messages").ok_or("'messages' is required")?;
            text::chat_prompt(messages).into_bytes()
        } else {
            tokens(asked.get("prompt").ok_or_else(|| missing("prompt"))?)?
        };
        let whole = |name: &str| asked.get(name).and_then(Value::as_i64);
        let flag = |name: &str| asked.get(name).and_then(Value::as_bool);
        Ok(Self {
            form,
            prompt,
            wanted: Wanted {
                n_predict: whole("n_predict").or_else(|| whole("max_tokens")).unwrap_or(-1),
                stream: flag("stream").unwrap_or(false),
            },
            cache: flag("cache_prompt").unwrap_or(true),
            slot: whole("id_slot").and_then(|id| u64::try_from(id).ok()),
            fields: asked
                .get("response_fields")
                .and_then(Value::as_array)
                .map_or_else(Vec::new, |fields| fields.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            usage: asked.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// A prompt is text, or the numbers of its tokens.
fn tokens(prompt: &Value) -> Result<Vec<u8>, String> {
    match prompt {
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Array(ids) => ids
            .iter()
            .map(|id| id.as_u64().and_then(|id| u8::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| "Prompt contains invalid tokens".into()),
        _ => Err("\"prompt\" must be a string or an array of tokens".into()),
    }
}

impl Sink {
    /// The client has gone, and that has been noticed: at once in a stream, else only when nothing came for anybody for
    /// a while. Frequent polls of `/slots` and `/metrics` keep it from being noticed.
    fn is_gone(&self, core: &Core) -> bool {
        match self {
            Self::Stream(tell) => tell.is_closed(),
            Self::Whole(tell) => tell.is_closed() && core.with(|state| state.last_result.elapsed() >= GONE_AFTER),
        }
    }

    async fn gone(&self, core: &Core) {
        while !self.is_gone(core) {
            pause(Duration::from_millis(20)).await;
        }
    }

    async fn hung_up(self) {
        match self {
            Self::Stream(tell) => tell.closed().await,
            Self::Whole(mut tell) => tell.closed().await,
        }
    }
}

impl Done {
    fn said(&self) -> String {
        self.text.iter().map(|token| char::from(*token)).collect()
    }

    const fn reason(&self) -> &'static str {
        if self.by_itself { "stop" } else { "length" }
    }

    fn usage(&self) -> Value {
        let predicted = count(self.text.len());
        json!({
            "completion_tokens": predicted, "prompt_tokens": self.prompt, "total_tokens": self.prompt + predicted,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }

    fn timings(&self) -> Value {
        json!({
            "cache_n": self.cached, "prompt_n": self.prompt - self.cached,
            "prompt_ms": self.prompt_time.as_secs_f64() * 1e3,
            "predicted_n": self.text.len(), "predicted_ms": self.time.as_secs_f64() * 1e3,
        })
    }
}

/// Of an answer the fields that are wanted, each under the name it was wanted by: `timings/cache_n` is one inside another.
fn only(fields: &[String], answer: Value) -> Value {
    if fields.is_empty() {
        return answer;
    }
    let inside = |field: &String| Some((field.clone(), answer.pointer(&format!("/{field}"))?.clone()));
    Value::Object(fields.iter().filter_map(inside).collect())
}

fn native(model: &str, wanted: Wanted, done: &Done, text: &str) -> Value {
    json!({
        "index": 0, "content": text, "tokens": [], "id_slot": done.slot, "stop": true, "model": model,
        "tokens_predicted": done.text.len(), "tokens_evaluated": done.prompt,
        "generation_settings": { "n_predict": wanted.n_predict, "stream": wanted.stream },
        "prompt": "", "has_new_line": false, "truncated": done.truncated,
        "stop_type": if done.by_itself { "eos" } else { "limit" }, "stopping_word": "",
        "tokens_cached": done.held, "timings": done.timings(),
    })
}
