//! The backends, asked over HTTP: health and identity, use, and llama.cpp's slots.
//!
//! What the two engines really do, and how they mislead, is in their own modules ([`llama`], [`vllm`]); [`wire`] is one
//! question and answer. Health is asked every few tens of milliseconds while something is under way and is therefore one
//! cheap request; who answers is asked when a backend becomes ready and then now and again.

mod llama;
mod prometheus;
mod replay;
mod vllm;
mod wire;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

pub use llama::understand as understand_llama;
pub use vllm::activity as vllm_activity;
pub use wire::HttpSetupError;
pub(crate) use {
    llama::{Props, SlotError},
    wire::WireError,
};

use crate::{
    config,
    machine::{
        self, BackendKind,
        reading::{Activity, Http, Identity},
    },
};
use wire::{Answer, MOST_HEALTH_BYTES, Wire};

/// How old a backend's word on who it is may be while it stays healthy. A process that was replaced unseen between two
/// looks is found out within it.
pub const IDENTITY_LASTS: Duration = Duration::from_secs(30);
/// Between two questions about use. llama.cpp notices a client that has gone only after a full second without any
/// answered question of this kind, from anybody: faster polling keeps dead requests alive (so a drain never ends).
pub const ACTIVITY_EVERY: Duration = Duration::from_secs(2);

/// Asks one backend. Shared freely; holds no connection between questions.
#[derive(Debug)]
pub struct Probe {
    wire: Wire,
    kind: BackendKind,
    health_path: String,
    model: Option<String>,
    timeout: Duration,
    known: Mutex<Known>,
}

/// What one process of the backend has told so far. Forgotten when it stops being healthy.
#[derive(Debug, Default)]
struct Known {
    /// Who it is, and when it said so.
    identity: Option<(Instant, Identity)>,
    /// When its use was last asked for, in the daemon's time.
    activity_asked: Option<machine::Instant>,
    /// The mark it last showed: a sleeping server keeps it without being asked.
    mark: Option<u64>,
    /// It said that it cannot save slots, in these words.
    cannot_save: Option<String>,
    /// What was not people's doing.
    own: replay::Own,
}

/// `GET /v1/models`, as both engines answer it.
#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
    owned_by: Option<String>,
    /// vLLM: set for a `LoRA` adapter.
    parent: Option<String>,
    /// vLLM: context size.
    max_model_len: Option<u64>,
}

impl Probe {
    /// A probe of that backend. `http_timeout` bounds each question.
    pub fn new(backend: &config::Backend, kind: BackendKind, http_timeout: Duration) -> Result<Self, HttpSetupError> {
        Ok(Self {
            wire: Wire::new(&backend.url, backend.api_key_file.as_deref())?,
            kind,
            health_path: backend.health_path.clone(),
            model: backend.model.clone(),
            timeout: http_timeout,
            known: Mutex::default(),
        })
    }

    /// How its health endpoint answers, and, where it answers 200, whether it is what we expect there.
    ///
    /// Ends within twice the timeout. A connection that is closed without a word counts as refused: that is what a
    /// process that has just died, or a port forwarder with nothing behind it, does.
    pub async fn health(&self) -> Http {
        let http = match self.health_status().await {
            Ok(answer) => match answer.status.as_u16() {
                200 => self.identified().await,
                status => refusal(status),
            },
            Err(error) => error.into(),
        };
        // A silent backend may only be busy; anything else ends what we know of this process.
        if !matches!(http, Http::Ready(_) | Http::TimedOut) {
            let mut known = self.known();
            known.identity = None;
            known.mark = None;
            known.cannot_save = None;
            known.own = replay::Own::default();
            // The next process has not been asked yet; behind a broken network it may still be the same.
            if matches!(http, Http::Refused | Http::Unavailable) {
                known.activity_asked = None;
            }
        }
        http
    }

    /// How it is used: requests in flight, slots, a mark that changes with every use. `now` is the daemon's time.
    ///
    /// Ends within the timeout. `None`: asked less than [`ACTIVITY_EVERY`] ago, or no useful answer came. Ask only a backend
    /// that is ready.
    pub async fn activity(&self, now: machine::Instant) -> Option<Activity> {
        if self.kind == BackendKind::Generic {
            return Some(Activity::default());
        }
        {
            let mut known = self.known();
            let too_soon = known.activity_asked.is_some_and(|asked| now.since(asked) < ACTIVITY_EVERY);
            if too_soon {
                return None;
            }
            known.activity_asked = Some(now);
        }
        let deadline = self.deadline();
        let activity = match self.kind {
            BackendKind::LlamaCpp => self.llama_activity(deadline).await,
            BackendKind::Vllm => self.vllm_activity(deadline).await,
            BackendKind::Generic => return None,
        };
        activity.inspect_err(|error| tracing::debug!(%error, "the backend's use is not known")).ok()
    }

    /// The health path, without the key: both engines answer it to anybody, and a stranger shall not get the key. Only
    /// llama-server behind `--api-prefix` wants it there.
    async fn health_status(&self) -> Result<Answer, WireError> {
        let deadline = self.deadline();
        let answer = self.wire.get_open(&self.health_path, MOST_HEALTH_BYTES, deadline).await?;
        if self.wire.has_key() && matches!(answer.status.as_u16(), 401 | 403) {
            return self.wire.get(&self.health_path, deadline).await;
        }
        Ok(answer)
    }

    /// Who answers: as known, or asked anew.
    async fn identified(&self) -> Http {
        let known = self.known().identity.clone();
        if let Some((told, identity)) = &known
            && told.elapsed() < IDENTITY_LASTS
        {
            return Http::Ready(identity.clone());
        }
        let deadline = self.deadline();
        let told = match self.kind {
            BackendKind::LlamaCpp => self.llama_identity(deadline).await,
            BackendKind::Vllm => self.vllm_identity(deadline).await,
            BackendKind::Generic => Ok(Identity::default()),
        };
        match (told, known) {
            (Ok(identity), _) => {
                self.known().identity = Some((Instant::now(), identity.clone()));
                Http::Ready(identity)
            }
            // Healthy, too busy to say who it is, and it has said so before.
            (Err(Http::TimedOut), Some((_, identity))) => Http::Ready(identity),
            (Err(other), _) => other,
        }
    }

    /// `GET /v1/models`: the model that answers, if its engine and its name are the expected ones.
    ///
    /// `paths` are other names the model goes by (llama.cpp's model path); the last component of a path counts as well.
    async fn expected_model(&self, owner: &str, paths: &[&str], deadline: Instant) -> Result<Model, Http> {
        let answer = self.wire.get("/v1/models", deadline).await?;
        if answer.status.as_u16() != 200 {
            return Err(refusal(answer.status.as_u16()));
        }
        expected(answer.json()?, owner, self.model.as_deref(), paths)
    }

    /// Remembers that this process cannot save slots.
    pub(crate) fn note_cannot_save(&self, why: String) {
        self.known().cannot_save = Some(why);
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Never held over an await, and nothing under it can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model that is wanted, among those of an `owner`. `paths` are names for it beside its own.
fn expected(models: Models, owner: &str, wanted: Option<&str>, paths: &[&str]) -> Result<Model, Http> {
    if let Some(stranger) = models.data.iter().find(|m| m.owned_by.as_deref() != Some(owner)) {
        let by = stranger.owned_by.as_deref().unwrap_or("nobody");
        return Err(Http::Stranger(wire::quoted(
            format!("`{}`, owned by `{by}` instead of `{owner}`", stranger.id).as_bytes(),
        )));
    }
    let is_wanted = |m: &Model| {
        wanted.is_none_or(|wanted| {
            std::iter::once(m.id.as_str())
                .chain(m.aliases.iter().map(String::as_str))
                .chain(paths.iter().copied())
                .any(|name| name == wanted || name.rsplit('/').next() == Some(wanted))
        })
    };
    let mut others = Vec::new();
    let mut adapter = None;
    for model in models.data {
        match (is_wanted(&model), &model.parent) {
            (true, None) => return Ok(model),
            (true, Some(_)) => adapter = Some(model),
            (false, _) => others.push(model.id),
        }
    }
    adapter.ok_or_else(|| {
        let wanted = wanted.unwrap_or("any");
        let shown = others.join("`, `");
        Http::Stranger(wire::quoted(format!("model `{shown}` instead of `{wanted}`").as_bytes()))
    })
}

/// What a body amounts to that may be an answer to `/v1/models`, where `wanted` is expected and `owner` is who owns it. For
/// those who try odd answers.
///
/// # Errors
/// What is shown of a backend that is not the one expected.
pub fn understand_models(body: &[u8], owner: &str, wanted: Option<&str>) -> Result<Identity, Http> {
    let models = serde_json::from_slice(body).map_err(|error| Http::Garbage(error.to_string()))?;
    let model = expected(models, owner, wanted, &[])?;
    Ok(Identity { model: Some(model.id), n_ctx: model.max_model_len, build: None })
}

/// A gauge as a number of requests: drifts below zero count as none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is what is meant")]
const fn count(gauge: f64) -> u32 {
    gauge as u32
}

/// A status that is not 200.
const fn refusal(status: u16) -> Http {
    match status {
        401 | 403 => Http::KeyRefused,
        503 => Http::Unavailable,
        other => Http::Status(other),
    }
}

impl From<WireError> for Http {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Refused | WireError::Closed => Self::Refused,
            WireError::Unreachable(why) => Self::Unreachable(why),
            WireError::TimedOut => Self::TimedOut,
            WireError::Garbage(why) => Self::Garbage(why),
        }
    }
}
