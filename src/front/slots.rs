//! `/v1/slots`: what is saved, and what can be done about it without the machine.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::Deserialize;
use tokio::{
    sync::{mpsc::error::TrySendError, oneshot},
    time::timeout,
};
use tracing::info;

use super::{
    api::{Bounded, Front, backend_named, clipped, stopping},
    problem::Problem,
    protocol::{Slots, SlotsTended, VerifyRequest},
    socket::Peer,
};
use crate::{
    driver::{
        slots::{TENDED_WITHIN, Tend},
        status::Status,
        world::SlotTask,
    },
    machine::{BackendId, Policy, Warning},
};

/// The daemon's own limit comes first.
const ANSWER_WITHIN: Duration = TENDED_WITHIN.saturating_add(Duration::from_secs(5));

pub(super) async fn list(State(front): State<Front>) -> Json<Slots> {
    let status = front.status();
    Json(Slots {
        slots: status.slots.clone(),
        saved: status.saved_slot_details.clone(),
        restore_available: status.restore_available,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    generation: Option<u64>,
    backend: Option<String>,
}

pub(super) async fn forget(
    State(front): State<Front>,
    Extension(peer): Extension<Peer>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<Which>, QueryRejection>,
) -> Result<Json<SlotsTended>, Problem> {
    let Path(name) = name.map_err(|error| Problem::bad_request(error.body_text()))?;
    let Query(Which { generation, backend }) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    info!(uid = peer.uid, name, generation, backend, "forget a saved slot");
    let backend = owner(Some(&name), backend.as_deref(), &front.status(), &front.handle.policy)?;
    tend(&front, backend, SlotTask::Forget { name, generation }).await
}

pub(super) async fn verify(
    State(front): State<Front>,
    Extension(peer): Extension<Peer>,
    Bounded(request): Bounded<VerifyRequest>,
) -> Result<Json<SlotsTended>, Problem> {
    let VerifyRequest { name, generation, backend } = request;
    info!(uid = peer.uid, name, generation, backend, "verify saved slots");
    if generation.is_some() && name.is_none() {
        return Err(Problem::bad_request("`generation` needs a `name`"));
    }
    let backend = owner(name.as_deref(), backend.as_deref(), &front.status(), &front.handle.policy)?;
    tend(&front, backend, SlotTask::Verify { name, generation }).await
}

/// The backend whose slot it is.
fn owner(name: Option<&str>, backend: Option<&str>, status: &Status, policy: &Policy) -> Result<BackendId, Problem> {
    if let Some(backend) = backend {
        return backend_named(backend, policy);
    }
    let saved = status.saved_slot_details.iter().filter(|saved| name.is_none_or(|name| saved.name == name));
    let mut owners: Vec<&str> = saved.map(|saved| saved.backend.as_str()).collect();
    owners.sort_unstable();
    owners.dedup();
    match (owners.as_slice(), name) {
        ([owner], _) => backend_named(owner, policy),
        ([], Some(name)) => {
            let problem = Problem::new(StatusCode::NOT_FOUND, "no_such_slot", "No slot is saved under that name.");
            Err(problem.detail(format!("`{}`", clipped(name))).hint("see `wechsler slots list`"))
        }
        ([], None) => {
            Err(Problem::new(StatusCode::NOT_FOUND, "nothing_saved", "No slot is saved.")
                .hint("see `wechsler slots list`"))
        }
        (several, _) => Err(Problem::bad_request(format!("several backends have it: {}", several.join(", ")))
            .hint("say which with `--backend`")),
    }
}

async fn tend(front: &Front, backend: BackendId, task: SlotTask) -> Result<Json<SlotsTended>, Problem> {
    let (answer, answered) = oneshot::channel();
    match front.handle.tending.try_send(Tend { backend, task, answer }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            return Err(Problem::overloaded("too_many_commands", "Too much is being done about slots already."));
        }
        Err(TrySendError::Closed(_)) => return Err(stopping()),
    }
    let told = timeout(ANSWER_WITHIN, answered).await.map_err(|_| no_answer())?.map_err(|_| stopping())?;
    Ok(Json(SlotsTended { slots: told.map_err(failed)? }))
}

fn no_answer() -> Problem {
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", "It was not done in time.").hint("see `wechsler slots list`")
}

/// Why nothing could be done.
fn failed(why: Warning) -> Problem {
    let Warning { code, message } = why;
    let (status, title) = match code.as_str() {
        "no_such_slot" => (StatusCode::NOT_FOUND, "No slot is saved under that name."),
        "no_such_generation" => (StatusCode::NOT_FOUND, "No such generation of it is saved."),
        "no_slots" => (StatusCode::CONFLICT, "That backend has no slots to save or restore."),
        "no_answer" => return no_answer(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "It could not be done."),
    };
    let problem = Problem::new(status, &code, title).detail(message).hint("see `wechsler slots list`");
    if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(5) } else { problem }
}
