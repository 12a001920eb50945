//! llama.cpp's `llama-server` (facts observed on build 11434).
//!
//! * `/health` is 503 while the model loads and 200 afterwards, also while it sleeps and also for a router without a
//!   model: so `/props` is asked for who it is.
//! * `/slots` wakes a sleeping server and keeps it awake, and with a router any question with a model's name loads that
//!   model: so `/props`, which does neither, is asked first, and both are left alone then.
//! * `/slots` and `/metrics` are tasks of the one thread that decodes; see [`super::ACTIVITY_EVERY`].
//! * Slot ids wrap: id 5 of a server with one slot is slot 0. An id is sent only if `/slots` has just shown it.
//! * No time it shows is one: `created` is the time of the question, `Process-Start-Time-Unix` is not Unix time. None is
//!   read here.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;

use super::{
    Probe, prometheus, refusal,
    replay::{COMPUTED, DECODED, Own, PREDICTED, REUSED},
    wire::{Answer, WireError},
};
use crate::{
    host::slot_files::FileName,
    machine::reading::{Activity, Http, Identity, Progress, Prompts, SlotReading, SlotRequest},
};

/// More slots than this are not looked at. `--parallel` beyond a few dozen is unheard of.
const MOST_SLOTS: usize = 1024;
/// Why a router cannot save.
const ROUTER_MODE: &str = "router mode";

/// `GET /props`: what the process is. Asking neither wakes a sleeping server nor counts as use.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Props {
    /// Number of slots.
    pub(crate) total_slots: Option<u32>,
    /// `--alias`.
    pub(crate) model_alias: Option<String>,
    /// `--model`.
    pub(crate) model_path: Option<String>,
    /// As `b11434-abcdef`.
    pub(crate) build_info: Option<String>,
    /// The model is freed; `/slots` would load it again.
    #[serde(default)]
    pub(crate) is_sleeping: bool,
    role: Option<String>,
    endpoint_slots: Option<bool>,
    endpoint_metrics: Option<bool>,
    default_generation_settings: Option<GenerationSettings>,
}

#[derive(Clone, Debug, Deserialize)]
struct GenerationSettings {
    n_ctx: Option<u64>,
}

impl Props {
    /// A server of servers, without a model of its own.
    pub(crate) fn is_router(&self) -> bool {
        self.role.as_deref() == Some("router")
    }

    /// Context size of one slot.
    pub(crate) fn n_ctx(&self) -> Option<u64> {
        self.default_generation_settings.as_ref()?.n_ctx
    }

    fn identity(&self) -> Identity {
        let told = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        Identity {
            model: told(&self.model_alias).or_else(|| told(&self.model_path)),
            n_ctx: self.n_ctx(),
            build: told(&self.build_info),
        }
    }
}

/// One of `GET /slots`.
#[derive(Debug, Deserialize)]
pub(super) struct Slot {
    pub(super) id: u32,
    #[serde(default)]
    n_ctx: u64,
    #[serde(default)]
    is_processing: bool,
    /// Absent until the slot is first used; changes with each real request and never with our questions.
    pub(super) id_task: Option<i64>,
    /// Tokens held now; absent until the slot is first used.
    pub(super) n_prompt_tokens: Option<u64>,
    /// Of the prompt under way.
    #[serde(default)]
    n_prompt_tokens_processed: u64,
    #[serde(default)]
    n_prompt_tokens_cache: u64,
    /// Another shape is lived without.
    #[serde(default)]
    next_token: serde_json::Value,
}

impl Slot {
    const fn reading(&self) -> SlotReading {
        SlotReading { id: self.id, n_ctx: self.n_ctx, is_processing: self.is_processing, tokens: self.n_prompt_tokens }
    }

    fn request(&self) -> Option<SlotRequest> {
        let progress = || Progress {
            reused: self.n_prompt_tokens_cache,
            computed: self.n_prompt_tokens_processed,
            generated: self.next_token.pointer("/0/n_decoded").and_then(serde_json::Value::as_u64).unwrap_or(0),
        };
        Some(SlotRequest {
            slot: self.id,
            task: self.id_task?,
            held: self.n_prompt_tokens?,
            under_way: self.is_processing.then(progress),
        })
    }
}

/// What a save or a restore says it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotDone {
    /// Tokens saved or restored.
    pub(crate) tokens: u64,
    /// Bytes written or read.
    pub(crate) bytes: u64,
}

#[derive(Debug, Deserialize)]
struct SlotAnswer {
    id_slot: u32,
    filename: String,
    #[serde(alias = "n_restored")]
    n_saved: u64,
    #[serde(alias = "n_read")]
    n_written: u64,
}

/// Why a save or a restore is not known to be done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SlotError {
    /// It was surely not begun: nobody there, still loading, or the key is wrong.
    #[error("not begun: {0}")]
    NotBegun(String),
    /// This server does not save slots at all.
    #[error("not supported: {0}")]
    NotSupported(String),
    /// 400. A rejected restore has emptied the slot.
    #[error("rejected: {0}")]
    Rejected(String),
    /// 500, or another status.
    #[error("failed with {status}: {message}")]
    Failed {
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// No answer in time. A save is given up by the server then; a restore may go on.
    #[error("no answer in time")]
    TimedOut,
    /// The process closed the connection without an answer: it died.
    #[error("the connection was closed before an answer came")]
    Closed,
    /// An answer that cannot be understood, or one for another slot or file.
    #[error("{0}")]
    Garbage(String),
}

impl From<WireError> for SlotError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Refused | WireError::Unreachable(_) => Self::NotBegun(error.to_string()),
            WireError::TimedOut => Self::TimedOut,
            WireError::Closed => Self::Closed,
            WireError::Garbage(why) => Self::Garbage(why),
        }
    }
}

impl Probe {
    /// Who the server says it is.
    pub(super) async fn llama_identity(&self, deadline: Instant) -> Result<Identity, Http> {
        let answer = self.wire.get("/props", deadline).await?;
        let props = match answer.status.as_u16() {
            200 => answer.json()?,
            status @ (401 | 403 | 503) => return Err(refusal(status)),
            // Another program, most likely; its models tell which.
            _ => Props::default(),
        };
        if props.is_router() {
            return Ok(props.identity());
        }
        let path = props.model_path.as_deref().unwrap_or_default();
        let model = self.expected_model("llamacpp", &[path], deadline).await?;
        Ok(Identity { model: Some(model.id), ..props.identity() })
    }

    /// `GET /props`.
    pub(crate) async fn props(&self) -> Result<Props, WireError> {
        self.props_by(self.deadline()).await
    }

    async fn props_by(&self, deadline: Instant) -> Result<Props, WireError> {
        let answer = self.wire.get("/props", deadline).await?;
        match answer.status.as_u16() {
            200 => answer.json(),
            status => Err(unexpected("/props", status)),
        }
    }

    /// `GET /slots`. Only after [`Probe::props`] has shown that the server is awake and no router; seldom.
    pub(crate) async fn slots(&self) -> Result<Vec<SlotReading>, WireError> {
        let slots = self.used_slots(self.deadline()).await?;
        Ok(slots.iter().map(Slot::reading).collect())
    }

    /// ... each with the number of its last request, where it had one.
    pub(crate) async fn slots_and_tasks(&self) -> Result<(Vec<SlotReading>, BTreeMap<u32, i64>), WireError> {
        let slots = self.used_slots(self.deadline()).await?;
        let tasks = slots.iter().filter_map(|slot| Some((slot.id, slot.id_task?))).collect();
        Ok((slots.iter().map(Slot::reading).collect(), tasks))
    }

    /// The same, without what was our own doing.
    async fn used_slots(&self, deadline: Instant) -> Result<Vec<Slot>, WireError> {
        let mut slots = self.slots_by(deadline).await?;
        let known = self.known();
        for slot in &mut slots {
            known.own.hide(slot);
        }
        Ok(slots)
    }

    pub(super) async fn slots_by(&self, deadline: Instant) -> Result<Vec<Slot>, WireError> {
        let answer = self.wire.get("/slots", deadline).await?;
        match answer.status.as_u16() {
            200 => {
                let mut slots: Vec<Slot> = answer.json()?;
                slots.truncate(MOST_SLOTS);
                Ok(slots)
            }
            // Not enabled.
            404 | 501 => Ok(Vec::new()),
            status => Err(unexpected("/slots", status)),
        }
    }

    /// `GET /metrics`; `None` where it is not enabled.
    pub(super) async fn metrics_page(&self, deadline: Instant) -> Result<Option<String>, WireError> {
        let answer = self.wire.get("/metrics", deadline).await?;
        match answer.status.as_u16() {
            200 => Ok(Some(String::from_utf8_lossy(&answer.body).into_owned())),
            404 | 501 => Ok(None),
            status => Err(unexpected("/metrics", status)),
        }
    }

    pub(super) async fn llama_activity(&self, deadline: Instant) -> Result<Activity, WireError> {
        let props = self.props_by(deadline).await?;
        if props.is_router() {
            return Ok(Activity { cannot_save: Some(ROUTER_MODE.into()), ..Activity::default() });
        }
        let (mark, cannot_save) = {
            let known = self.known();
            (known.mark, known.cannot_save.clone())
        };
        if props.is_sleeping {
            return Ok(Activity {
                in_flight: Some(0),
                mark,
                slots: vec![],
                sleeping: true,
                cannot_save,
                prompts: None,
            });
        }
        let slots = match props.endpoint_slots {
            Some(false) => vec![],
            _ => self.used_slots(deadline).await?,
        };
        let page = match props.endpoint_metrics {
            Some(false) => None,
            _ => self.metrics_page(deadline).await?,
        };
        let own = self.known().own.clone();
        let activity = Activity { cannot_save, ..activity_of(&slots, page.as_deref(), &own) };
        self.known().mark = activity.mark;
        Ok(activity)
    }

    /// Saves a slot into `file`. The slot must be one that [`Probe::slots`] has just shown idle and holding tokens: a busy
    /// one would make this wait without limit, an empty one overwrites the file and says 200.
    pub(crate) async fn save_slot(&self, slot: u32, file: &FileName, within: Duration) -> Result<SlotDone, SlotError> {
        self.slot_action("save", slot, file, within).await
    }

    /// Restores a slot from `file`, which must have been checked: a truncated one kills the server.
    pub(crate) async fn restore_slot(
        &self,
        slot: u32,
        file: &FileName,
        within: Duration,
    ) -> Result<SlotDone, SlotError> {
        self.slot_action("restore", slot, file, within).await
    }

    async fn slot_action(
        &self,
        action: &str,
        slot: u32,
        file: &FileName,
        within: Duration,
    ) -> Result<SlotDone, SlotError> {
        let path = format!("/slots/{slot}?action={action}");
        let body = serde_json::json!({ "filename": file.as_str() });
        let answer = self.wire.post(&path, &body, within).await?;
        match answer.status.as_u16() {
            200 => done(&answer.json()?, slot, file),
            404 | 501 => {
                self.note_cannot_save(answer.complaint());
                Err(failure(&answer))
            }
            _ => Err(failure(&answer)),
        }
    }
}

/// A status that is not 200, of something that was asked of a slot.
pub(super) fn failure(answer: &Answer) -> SlotError {
    let message = answer.complaint();
    match answer.status.as_u16() {
        400 => SlotError::Rejected(message),
        401 | 403 | 503 => SlotError::NotBegun(message),
        404 | 501 => SlotError::NotSupported(message),
        status => SlotError::Failed { status, message },
    }
}

fn done(told: &SlotAnswer, slot: u32, file: &FileName) -> Result<SlotDone, SlotError> {
    if told.id_slot != slot || told.filename != file.as_str() {
        let why = format!("asked for slot {slot}, it answered for slot {}", told.id_slot);
        return Err(SlotError::Garbage(why));
    }
    Ok(SlotDone { tokens: told.n_saved, bytes: told.n_written })
}

fn activity_of(slots: &[Slot], page: Option<&str>, own: &Own) -> Activity {
    Activity {
        in_flight: in_flight(slots, page),
        mark: mark_of(slots, page, own),
        slots: slots.iter().map(Slot::reading).collect(),
        sleeping: false,
        cannot_save: None,
        prompts: page.and_then(|page| prompts(slots, page, own)),
    }
}

/// What a body amounts to that llama.cpp may have answered with: to `/props`, to `/slots` (with that page of metrics), to a
/// save or restore of slot 0. For those who try odd answers; [`Probe`] asks for one of them at a time.
#[must_use]
pub fn understand(body: &[u8], metrics: &str) -> (Option<Identity>, Option<Activity>, Option<u64>) {
    let identity = serde_json::from_slice::<Props>(body).ok().map(|props| props.identity());
    let slots = serde_json::from_slice::<Vec<Slot>>(body).ok();
    let activity = slots.map(|slots| activity_of(&slots, Some(metrics), &Own::default()));
    let told = serde_json::from_slice::<SlotAnswer>(body).ok();
    let file = told.as_ref().and_then(|told| FileName::new(&told.filename));
    let done = told.zip(file).and_then(|(told, file)| done(&told, 0, &file).ok());
    (identity, activity, done.map(|done| done.tokens))
}

fn unexpected(path: &str, status: u16) -> WireError {
    WireError::Garbage(format!("{path} answered {status}"))
}

/// Requests running and waiting. Waiting ones are only in the metrics.
fn in_flight(slots: &[Slot], page: Option<&str>) -> Option<u32> {
    let busy = slots.iter().filter(|s| s.is_processing).count();
    let told = page.and_then(|page| {
        let running = prometheus::sum(page, "llamacpp:requests_processing")?;
        let waiting = prometheus::sum(page, "llamacpp:requests_deferred").unwrap_or(0.0);
        Some(super::count(running + waiting))
    });
    match (told, slots.is_empty()) {
        (Some(told), _) => Some(told),
        (None, false) => Some(u32::try_from(busy).unwrap_or(u32::MAX)),
        (None, true) => None,
    }
}

/// What became of the prompts.
fn prompts(slots: &[Slot], page: &str, own: &Own) -> Option<Prompts> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is what is meant"
    )]
    let total = |name| own.sum(page, name).map(|value| value as u64);
    Some(Prompts {
        computed: total(COMPUTED)?,
        reused: total(REUSED)?,
        generated: total(PREDICTED)?,
        requests: slots.iter().filter_map(Slot::request).collect(),
    })
}

/// A number that changes whenever a request is worked on: `n_decode_total` and the tokens of a slot move meanwhile, the
/// others when a request ends or begins. Our own questions move none of them, and what we had computed is taken out.
fn mark_of(slots: &[Slot], page: Option<&str>, own: &Own) -> Option<u64> {
    const COUNTERS: [&str; 4] = [DECODED, COMPUTED, REUSED, PREDICTED];
    let counters = page.map(|page| COUNTERS.map(|name| own.sum(page, name).map(f64::to_bits)));
    let told = counters.is_some_and(|c| c.iter().any(Option::is_some)) || !slots.is_empty();
    told.then(|| {
        let mut hasher = DefaultHasher::new();
        counters.hash(&mut hasher);
        for slot in slots {
            (slot.id, slot.id_task, slot.n_prompt_tokens).hash(&mut hasher);
        }
        hasher.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(id: u32, is_processing: bool, id_task: Option<i64>) -> Slot {
        let shown = serde_json::json!({
            "id": id, "n_ctx": 4096, "is_processing": is_processing, "id_task": id_task,
            "n_prompt_tokens": id_task.map(|_| 33),
        });
        serde_json::from_value(shown).expect("a slot")
    }

    #[test]
    fn of_each_slot_that_was_used_the_newest_request_is_told() {
        let shown = r#"[{"id":0,"n_ctx":4096,"is_processing":false},
            {"id":1,"is_processing":false,"id_task":5,"n_prompt_tokens":202,"n_prompt_tokens_processed":0,"next_token":[{"n_decoded":0}]},
            {"id":2,"is_processing":true,"id_task":9,"n_prompt_tokens":913,"n_prompt_tokens_processed":3,
             "n_prompt_tokens_cache":900,"next_token":[{"n_decoded":11}]},
            {"id":3,"is_processing":true,"id_task":10,"n_prompt_tokens":2,"next_token":"?"}]"#;
        let page = "llamacpp:prompt_tokens_total 1\nllamacpp:prompt_tokens_cached_total 2\nllamacpp:tokens_predicted_total 3\n";
        let (.., activity, _) = understand(shown.as_bytes(), page);
        let prompts = activity.and_then(|activity| activity.prompts).expect("both are told");
        assert_eq!((prompts.computed, prompts.reused, prompts.generated), (1, 2, 3));
        let request = |slot, task, held, under_way| SlotRequest { slot, task, held, under_way };
        let under_way = Progress { reused: 900, computed: 3, generated: 11 };
        assert_eq!(
            prompts.requests,
            [
                request(1, 5, 202, None),
                request(2, 9, 913, Some(under_way)),
                request(3, 10, 2, Some(Progress::default()))
            ]
        );
    }

    #[test]
    fn requests_that_wait_for_a_slot_are_in_flight_too() {
        let page = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n";
        assert_eq!(in_flight(&[slot(0, true, Some(1))], Some(page)), Some(3));
    }

    #[test]
    fn without_metrics_busy_slots_are_counted_and_without_either_nothing_is_known() {
        let slots = [slot(0, true, Some(1)), slot(1, false, None)];
        assert_eq!(in_flight(&slots, None), Some(1));
        assert_eq!(in_flight(&[], None), None);
        assert_eq!(mark_of(&[], None, &Own::default()), None);
        assert_eq!(mark_of(&[], Some("something_else 1\n"), &Own::default()), None);
    }

    #[test]
    fn the_mark_moves_with_decoding_and_with_a_new_task_and_with_nothing_else() {
        let page = "llamacpp:n_decode_total 5\nllamacpp:predicted_tokens_seconds 7.5\n";
        let other_rate = "llamacpp:n_decode_total 5\nllamacpp:predicted_tokens_seconds 1.5\n";
        let decoded = "llamacpp:n_decode_total 6\nllamacpp:predicted_tokens_seconds 7.5\n";
        let mark = |page, task| mark_of(&[slot(0, false, task)], Some(page), &Own::default());
        assert_eq!(mark(page, Some(3)), mark(other_rate, Some(3)));
        assert_ne!(mark(page, Some(3)), mark(decoded, Some(3)));
        assert_ne!(mark(page, Some(3)), mark(page, Some(4)));
        assert_ne!(mark(page, None), mark(page, Some(0)));
    }
}
