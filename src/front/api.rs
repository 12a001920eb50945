//! What is answered on the socket. Reads are served from what the driver publishes and never touch it; a command is put
//! into its queue and answered within [`ANSWER_WITHIN`].

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Json, Router,
    body::{Body, to_bytes},
    extract::{FromRequest, Path, Query, Request as HttpRequest, State},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{delete, get, post},
};
use futures_util::{Stream, stream};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError, mpsc::error::TrySendError, oneshot},
    time::timeout,
};
use tracing::{debug, info};

use super::{
    nearest,
    problem::Problem,
    protocol::{CommandAnswer, CommandRequest, CommandWord, Endpoint, Endpoints, HoldMade, HoldRequest, Holds},
    slots,
    socket::{MOST_CLIENTS, Peer},
};
use crate::{
    driver::{Change, Handle, OperationRecord, Request, slots::Selections, status::Status, world::NamedSlot},
    machine::{Answer, BackendId, Command, Held, HoldId, HoldSpec, Options, Policy, PowerChoice, Refusal, Selection},
};

/// The largest body of a request.
pub const BODY_BYTES: usize = 64 * 1024;
/// The longest `?wait=`.
pub const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Until a body is there.
const BODY_WITHIN: Duration = Duration::from_secs(5);
/// Until the driver has answered a command.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long an operation just accepted may take to show up among the published ones.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(500);
/// Clients that may listen to events at once: some places stay free for commands.
const MOST_LISTENERS: usize = MOST_CLIENTS / 2;
/// Between two signs of life on a quiet event stream.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// The longest name of a slot: a file name has more in it.
const NAME_BYTES: usize = 100;
/// The longest reason of a hold, in characters.
const REASON_CHARS: usize = 200;
/// The longest hold: more is meant to be until released.
pub const LONGEST_HOLD: Duration = Duration::from_hours(366 * 24);

#[derive(Clone)]
pub(super) struct Front {
    pub(super) handle: Handle,
    listeners: Arc<Semaphore>,
}

/// All routes.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/commands", post(command))
        .route("/v1/operations/{id}", get(operation))
        .route("/v1/events", get(events))
        .route("/v1/holds", get(holds).post(hold))
        .route("/v1/holds/{id}", delete(release))
        .route("/v1/slots", get(slots::list))
        .route("/v1/slots/verify", post(slots::verify))
        .route("/v1/slots/{name}", delete(slots::forget))
        .fallback(async || {
            Problem::new(StatusCode::NOT_FOUND, "not_found", "There is no such path.")
                .hint("/v1/status, /v1/endpoints, /v1/commands, /v1/operations/{id}, /v1/events, /v1/holds, /v1/slots, /v1/slots/verify, /v1/slots/{name}")
        })
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "That path does not take this method.")
        })
        .with_state(Front { handle, listeners: Arc::new(Semaphore::new(MOST_LISTENERS)) })
}

impl Front {
    pub(super) fn status(&self) -> Arc<Status> {
        Arc::new(self.handle.status_now())
    }

    /// Hands a command to the driver and waits for its one answer; a refusal becomes a problem.
    async fn ask(&self, command: Command, peer: Peer) -> Result<Answer, Problem> {
        let (answer, answered) = oneshot::channel();
        let request = Request { command, uid: peer.uid, answer };
        match self.handle.commands.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(Problem::overloaded("too_many_commands", "Too many commands are waiting."));
            }
            Err(TrySendError::Closed(_)) => return Err(stopping()),
        }
        match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(Answer::Refused(refusal))) => {
                debug!(uid = peer.uid, code = refusal.code(), "refused");
                Err(explain(refusal, &self.status()))
            }
            Ok(Ok(answer)) => {
                debug!(uid = peer.uid, answer = ?answer, "answered");
                Ok(answer)
            }
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                "no_answer",
                "The daemon took the command but has not answered.",
            )
            .hint("see `wechsler status` for whether it was begun")),
        }
    }
}

pub(super) fn stopping() -> Problem {
    Problem::overloaded("stopping", "The daemon is stopping.").hint("try again when it is back")
}

/// A refusal with what it is about, from the newest status.
fn explain(refusal: Refusal, status: &Status) -> Problem {
    let problem = Problem::refused(refusal);
    let left = status.operation.as_ref().and_then(|operation| {
        let left = operation.expected_seconds? - operation.elapsed_seconds;
        Duration::try_from_secs_f64(left.max(1.0).ceil()).ok().map(|left| left.as_secs())
    });
    match refusal {
        Refusal::Busy | Refusal::TooLate => {
            let problem = match &status.operation {
                Some(operation) => problem.detail(format!(
                    "{}{} is under way ({}), since {:.0} s",
                    operation.kind,
                    operation.goal.as_ref().map_or(String::new(), |goal| format!(" {goal}")),
                    operation.phase,
                    operation.elapsed_seconds,
                )),
                None => problem,
            };
            match left {
                Some(seconds) => problem.retry_after(seconds),
                None => problem,
            }
        }
        Refusal::Blocked | Refusal::Occupied if !status.blockers.is_empty() => {
            problem.detail(listed(status.blockers.iter().map(|blocker| blocker.what.clone())))
        }
        Refusal::Held if !status.holds.is_empty() => problem.detail(listed(
            status.holds.iter().map(|hold| format!("{}: {} by {} ({})", hold.id, hold.what, hold.by, hold.reason)),
        )),
        Refusal::SwitchNeeded => match &status.active_backend {
            Some(active) => problem.detail(format!("{active} is up")),
            None => problem,
        },
        Refusal::Unknown => problem.retry_after(5),
        _ => problem,
    }
}

fn listed(things: impl Iterator<Item = String>) -> String {
    things.collect::<Vec<_>>().join("; ")
}

async fn status(State(front): State<Front>) -> Json<Arc<Status>> {
    Json(front.status())
}

async fn endpoints(State(front): State<Front>) -> Json<Endpoints> {
    Json(endpoints_of(&front.status()))
}

/// The endpoints a status document tells of.
fn endpoints_of(status: &Status) -> Endpoints {
    let off = status.gpu_server == "off";
    let endpoint = |(name, backend): (&String, &crate::driver::status::BackendStatus)| Endpoint {
        name: name.clone(),
        kind: backend.kind.clone(),
        url: api_base(&backend.kind, &backend.url),
        active: status.active_backend.as_ref() == Some(name) && backend.state == "running",
        state: if off { "off".into() } else { backend.state.clone() },
        start_seconds_expected: backend.start_seconds_expected,
    };
    Endpoints { endpoints: status.backends.iter().map(endpoint).collect() }
}

/// What clients of a backend put into their settings: both engines serve the same API under `/v1`.
fn api_base(kind: &str, url: &str) -> String {
    let url = url.trim_end_matches('/');
    if matches!(kind, "llama-cpp" | "vllm") && !url.ends_with("/v1") { format!("{url}/v1") } else { url.to_owned() }
}

async fn holds(State(front): State<Front>) -> Json<Holds> {
    Json(Holds { holds: front.status().holds.clone() })
}

async fn command(
    State(front): State<Front>,
    Extension(peer): Extension<Peer>,
    Bounded(request): Bounded<CommandRequest>,
) -> Result<Response, Problem> {
    info!(
        uid = peer.uid,
        command = %request.command,
        backend = request.backend,
        replace = request.replace,
        no_drain = request.no_drain,
        power_off = request.power_off,
        "command"
    );
    let command = understand(&request, &front.handle.policy, &front.handle.selections)?;
    if let (CommandWord::Restore, Some(name)) = (request.command, &request.name) {
        slots::may_be_restored(&front, name, request.generation)?;
    }
    let (status, answer) = match front.ask(command, peer).await? {
        Answer::Accepted { op, joined } => (StatusCode::ACCEPTED, CommandAnswer::Accepted { operation: op.0, joined }),
        Answer::AlreadySo => (StatusCode::OK, CommandAnswer::AlreadySo),
        Answer::Done { .. } => (StatusCode::OK, CommandAnswer::Done),
        Answer::Refused(refusal) => return Err(Problem::refused(refusal)),
    };
    Ok((status, Json(answer)).into_response())
}

/// From words to a command; names of slots get a number of `selections`. Fields that mean nothing to a command are refused, not
/// ignored.
pub fn understand(request: &CommandRequest, policy: &Policy, selections: &Selections) -> Result<Command, Problem> {
    let word = request.command;
    let options = Options { replace: request.replace, no_drain: request.no_drain };
    let backend = request.backend.as_deref().map(|name| backend_named(name, policy)).transpose()?;
    let needed = || backend.ok_or_else(|| Problem::bad_request(format!("`{word}` needs a `backend`")));
    if backend.is_some()
        && !matches!(word, CommandWord::Start | CommandWord::Switch | CommandWord::Restart | CommandWord::Resolve)
    {
        return Err(Problem::bad_request(format!("`{word}` takes no `backend`")));
    }
    if request.power_off.is_some() && word != CommandWord::Shutdown {
        return Err(Problem::bad_request(format!("`{word}` takes no `power_off`")));
    }
    let slots = selection(request, selections)?;
    Ok(match word {
        CommandWord::Start => Command::Start(backend, options),
        CommandWord::Switch => Command::Switch(needed()?, options),
        CommandWord::Stop => Command::Stop(options),
        CommandWord::Restart => Command::Restart(backend, options),
        CommandWord::Wake => Command::Wake(options),
        CommandWord::Shutdown => {
            let choice = if request.power_off.unwrap_or(true) { PowerChoice::PowerOff } else { PowerChoice::KeepOn };
            Command::Shutdown(choice, options)
        }
        CommandWord::Resolve => Command::Resolve(needed()?, options),
        CommandWord::Cancel => Command::Cancel,
        CommandWord::Save => Command::SaveSlots(slots, options),
        CommandWord::Restore => Command::RestoreSlots(slots, options),
    })
}

/// Which slots are meant.
fn selection(request: &CommandRequest, selections: &Selections) -> Result<Selection, Problem> {
    let CommandRequest { command: word, name, slot, generation, .. } = request;
    if (name.is_some() || slot.is_some() || generation.is_some())
        && !matches!(word, CommandWord::Save | CommandWord::Restore)
    {
        return Err(Problem::bad_request(format!("`{word}` takes no `name`, `slot` or `generation`")));
    }
    if generation.is_some() && *word == CommandWord::Save {
        return Err(Problem::bad_request("`save` takes no `generation`: each save is a new one"));
    }
    let Some(name) = name else {
        if slot.is_some() || generation.is_some() {
            return Err(Problem::bad_request("`slot` and `generation` need a `name`"));
        }
        return Ok(Selection::All);
    };
    if name.is_empty() || name.len() > NAME_BYTES {
        return Err(Problem::bad_request(format!("`name` must have 1 to {NAME_BYTES} bytes")));
    }
    if *word == CommandWord::Save && !slots::can_be_a_name(name) {
        let rule = "a name is made of letters, digits, single dots, `_` and `-`, and begins with a letter or digit";
        return Err(Problem::bad_request(format!("`{}` cannot be a `name`: {rule}", clipped(name))));
    }
    let named = NamedSlot { name: name.clone(), slot: *slot, generation: *generation };
    Ok(selections.number(named))
}

pub(super) fn backend_named(name: &str, policy: &Policy) -> Result<BackendId, Problem> {
    policy.named(name).ok_or_else(|| {
        let known = || policy.backends.iter().map(|backend| backend.name.as_str());
        let problem = Problem::new(StatusCode::NOT_FOUND, "unknown_backend", "There is no such backend.").detail(
            format!("`{}` is not configured; there are: {}", clipped(name), known().collect::<Vec<_>>().join(", ")),
        );
        match nearest(name, known()) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem,
        }
    })
}

/// Outside text in an error: the beginning is enough.
pub(super) fn clipped(text: &str) -> String {
    text.chars().take(64).collect()
}

async fn hold(
    State(front): State<Front>,
    Extension(peer): Extension<Peer>,
    Bounded(request): Bounded<HoldRequest>,
) -> Result<Response, Problem> {
    info!(uid = peer.uid, what = request.what, lasts = request.lasts, "hold");
    let mut spec = hold_of(request, &front.handle.policy)?;
    spec.by = user_name(peer.uid).await;
    match front.ask(Command::Hold(spec), peer).await? {
        Answer::Done { hold: Some(id) } => Ok((StatusCode::CREATED, Json(HoldMade { hold: id.0 })).into_response()),
        _ => Ok(Json(CommandAnswer::AlreadySo).into_response()),
    }
}

/// What is to be held, by nobody yet.
pub fn hold_of(request: HoldRequest, policy: &Policy) -> Result<HoldSpec, Problem> {
    let what = match request.what.as_str() {
        "awake" => Held::Awake,
        "gpu" => Held::Gpu,
        "off" => Held::Off,
        name => Held::Backend(backend_named(name, policy).map_err(|problem| {
            if problem.hint.is_some() {
                return problem;
            }
            problem.hint("beside backends, `awake`, `gpu` and `off` can be held")
        })?),
    };
    let lasts = request
        .lasts
        .as_deref()
        .map(|text| {
            humantime::parse_duration(text)
                .map_err(|error| Problem::bad_request(format!("`for`: `{}`: {error}", clipped(text))))
        })
        .transpose()?;
    if lasts.is_some_and(|lasts| lasts.is_zero() || lasts > LONGEST_HOLD) {
        return Err(Problem::bad_request(
            "`for` must be more than nothing and at most a year; leave it out to hold until released",
        ));
    }
    let reason = request.reason.unwrap_or_default();
    if reason.chars().count() > REASON_CHARS {
        return Err(Problem::bad_request(format!("`reason` is longer than {REASON_CHARS} characters")));
    }
    Ok(HoldSpec { what, lasts, reason, by: String::new() })
}

/// How long the name of a user may be looked for.
const NAME_WITHIN: Duration = Duration::from_secs(1);

/// The name behind a uid, else the number: for people who look at holds. Whoever keeps the names (a directory on the
/// network, perhaps) is asked beside the daemon's one thread, and not waited for long.
async fn user_name(uid: Option<u32>) -> String {
    let Some(uid) = uid else {
        return "somebody".into();
    };
    let asked = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into()));
    match timeout(NAME_WITHIN, asked).await {
        Ok(Ok(Ok(Some(user)))) => user.name,
        _ => format!("uid {uid}"),
    }
}

async fn release(
    State(front): State<Front>,
    Extension(peer): Extension<Peer>,
    id: Result<Path<u64>, axum::extract::rejection::PathRejection>,
) -> Result<Json<CommandAnswer>, Problem> {
    let Path(id) = id.map_err(|error| Problem::bad_request(error.body_text()))?;
    info!(uid = peer.uid, hold = id, "release");
    front.ask(Command::Release(HoldId(id)), peer).await?;
    Ok(Json(CommandAnswer::Done))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// Seconds to wait for the end.
    wait: Option<u64>,
}

async fn operation(
    State(front): State<Front>,
    id: Result<Path<u64>, axum::extract::rejection::PathRejection>,
    query: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<OperationRecord>, Problem> {
    let Path(id) = id.map_err(|error| Problem::bad_request(error.body_text()))?;
    let Query(Wait { wait }) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let wait = Duration::from_secs(wait.unwrap_or(0)).min(LONGEST_WAIT);
    let mut published = front.handle.operations.clone();
    let find = |records: &Arc<Vec<OperationRecord>>| records.iter().rev().find(|record| record.id == id).cloned();
    // The driver may answer a command a moment before it publishes the operation.
    let newer = published.borrow().last().is_none_or(|last| last.id < id);
    if newer {
        let _ =
            timeout(PUBLISHED_WITHIN, published.wait_for(|records| records.iter().any(|record| record.id == id))).await;
    }
    let _ = timeout(wait, published.wait_for(|records| find(records).is_none_or(|record| record.end.is_some()))).await;
    let found = find(&published.borrow());
    found.map(Json).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "operation_forgotten",
            "The daemon does not know this operation (any more).",
        )
        .detail(format!("operation {id} is unknown: the daemon was restarted since, or it ended long ago"))
        .hint("see `wechsler status` for what is so now")
    })
}

async fn events(State(front): State<Front>) -> Result<Response, Problem> {
    let place = Arc::clone(&front.listeners)
        .try_acquire_owned()
        .map_err(|_| Problem::overloaded("too_many_listeners", "Too many clients listen to events."))?;
    Ok(Sse::new(changes(front, place)).keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE)).into_response())
}

/// What is so now, then each change. A listener that was too slow is told how many it missed and what is so now.
fn changes(front: Front, place: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    // Listen first, then read: nothing falls between.
    let receiver = front.handle.changes.subscribe();
    let present = snapshot("now", "now", front.status());
    stream::unfold((receiver, Some(present), front, place), |(mut receiver, present, front, place)| async move {
        let change = match present {
            Some(change) => change,
            None => match receiver.recv().await {
                Ok(change) => change,
                Err(RecvError::Lagged(missed)) => {
                    snapshot("missed", &format!("{missed} changes were missed"), front.status())
                }
                Err(RecvError::Closed) => return None,
            },
        };
        let event = Event::default().event(&change.what).json_data(&*change);
        let event = event.unwrap_or_else(|_| Event::default().comment("unreadable"));
        Some((Ok(event), (receiver, None, front, place)))
    })
}

fn snapshot(what: &str, line: &str, status: Arc<Status>) -> Arc<Change> {
    Arc::new(Change {
        at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        what: what.into(),
        line: line.into(),
        status,
        operation: None,
    })
}

/// A JSON body within [`BODY_BYTES`] and [`BODY_WITHIN`].
pub(super) struct Bounded<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Bounded<T> {
    type Rejection = Problem;

    async fn from_request(request: HttpRequest<Body>, _: &S) -> Result<Self, Problem> {
        let bytes = timeout(BODY_WITHIN, to_bytes(request.into_body(), BODY_BYTES))
            .await
            .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "The request did not arrive in time."))?
            .map_err(|error| {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large, or was broken off.")
                    .detail(format!("at most {BODY_BYTES} bytes: {error}"))
            })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::bad_request(format!("the body: {error}")))
    }
}
