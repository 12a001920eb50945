//! `/v1/slots`: what is saved, and what can be done about it without the machine.

use std::{sync::Arc, time::Duration};

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
    nearest,
    problem::Problem,
    protocol::{Slots, SlotsTended, VerifyRequest},
    socket::Peer,
};
use crate::{
    driver::{
        slots::Tend,
        status::Status,
        world::{SlotTask, SlotTold, TENDED_WITHIN, Tended},
    },
    machine::{BackendId, Policy, Warning},
};

/// The daemon's own limit comes first.
const ANSWER_WITHIN: Duration = TENDED_WITHIN.saturating_add(Duration::from_secs(5));

/// So long at most is waited for what is saved, right after the start.
const READ_WITHIN: Duration = Duration::from_millis(500);

/// Whether something can be saved under that name: a file is called after it, on the server.
pub(super) fn can_be_a_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
        && !name.contains("..")
        && !name.ends_with('.')
}

/// The newest status. Right after the start, the first that knows what is saved.
async fn status_with_saved(front: &Front) -> Arc<Status> {
    let knows = |status: &Arc<Status>| {
        status.ages.keys().any(|source| source.rsplit_once('.').is_some_and(|(_, of)| of == "saved"))
    };
    let _ = timeout(READ_WITHIN, front.handle.status.clone().wait_for(knows)).await;
    front.status()
}

/// What surely cannot be restored is refused at once: no operation need fail for it.
pub(super) fn may_be_restored(front: &Front, name: &str, generation: Option<u64>) -> Result<(), Problem> {
    why_not_restored(&front.status(), name, generation).map_or(Ok(()), Err)
}

fn why_not_restored(status: &Status, name: &str, generation: Option<u64>) -> Option<Problem> {
    // Without one that runs the machine refuses, and before they were read nobody knows.
    let active = status.active_backend.as_ref().filter(|name| status.ages.contains_key(&format!("{name}.saved")))?;
    let of_name = || status.saved_slot_details.iter().filter(|saved| saved.backend == *active && saved.name == name);
    if of_name().next().is_none() {
        return Some(no_such_slot(name, status));
    }
    let mut meant = of_name().filter(|saved| generation.is_none_or(|number| saved.generation == number)).peekable();
    if meant.peek().is_none() {
        let there: Vec<String> = of_name().map(|saved| saved.generation.to_string()).collect();
        let problem = Problem::new(StatusCode::NOT_FOUND, "no_such_generation", NO_SUCH_GENERATION);
        let detail = format!("of `{}` there are: {}", clipped(name), there.join(", "));
        return Some(problem.detail(detail).hint(SEE_LIST));
    }
    let why: Option<Vec<&str>> = meant.map(|saved| saved.put_aside.as_deref()).collect();
    let why = why?.first().copied().unwrap_or_default();
    let problem =
        Problem::new(StatusCode::CONFLICT, "restore_put_aside", "It was put aside and is not restored again.");
    Some(problem.detail(why).hint(SEE_LIST))
}

const NO_SUCH_SLOT: &str = "No slot is saved under that name.";
const NO_SUCH_GENERATION: &str = "No such generation of it is saved.";
const SEE_LIST: &str = "see `wechsler slots list`";

fn no_such_slot(name: &str, status: &Status) -> Problem {
    let known = || status.saved_slots.iter().map(String::as_str);
    let there = known().collect::<Vec<_>>().join(", ");
    let there = if there.is_empty() { "nothing is saved at all".into() } else { format!("there are: {there}") };
    let problem = Problem::new(StatusCode::NOT_FOUND, "no_such_slot", NO_SUCH_SLOT);
    let problem = problem.detail(format!("`{}` is none; {there}", clipped(name)));
    match nearest(name, known()) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None => problem.hint(SEE_LIST),
    }
}

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
    let status = status_with_saved(&front).await;
    let backend = owner(Some(&name), backend.as_deref(), &status, &front.handle.policy)?;
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
    let status = status_with_saved(&front).await;
    let backend = owner(name.as_deref(), backend.as_deref(), &status, &front.handle.policy)?;
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
        ([], Some(name)) => Err(no_such_slot(name, status)),
        ([], None) => Err(Problem::new(StatusCode::NOT_FOUND, "nothing_saved", "No slot is saved.").hint(SEE_LIST)),
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
    let is_off = front.status().gpu_server == "off";
    Ok(Json(SlotsTended { slots: judged(told, is_off)? }))
}

/// Files on a server that is off cannot be read, and nothing is wrong with them. (Where their share is mounted here they can
/// be read all the same, so it is tried first.)
fn judged(told: Tended, is_off: bool) -> Result<Vec<SlotTold>, Problem> {
    let unread = match &told {
        Ok(slots) => !slots.is_empty() && slots.iter().all(|slot| slot.code == "unreadable"),
        Err(why) => why.code == "forget_failed",
    };
    if unread && is_off {
        let title = "The server is off; nothing was done.";
        return Err(Problem::new(StatusCode::CONFLICT, "server_off", title).hint("`wechsler wake` brings it up"));
    }
    told.map_err(failed)
}

fn no_answer() -> Problem {
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", "It was not done in time.").hint(SEE_LIST)
}

/// Why nothing could be done.
fn failed(why: Warning) -> Problem {
    let Warning { code, message } = why;
    let (status, title) = match code.as_str() {
        "no_such_slot" => (StatusCode::NOT_FOUND, NO_SUCH_SLOT),
        "no_such_generation" => (StatusCode::NOT_FOUND, NO_SUCH_GENERATION),
        "no_slots" => (StatusCode::CONFLICT, "That backend has no slots to save or restore."),
        "no_answer" => return no_answer(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "It could not be done."),
    };
    let problem = Problem::new(status, &code, title).detail(message).hint(SEE_LIST);
    if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(5) } else { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_server_that_is_off_are_not_called_unreadable() {
        let told = |code: &str| SlotTold { name: "a".into(), generation: 1, code: code.into(), message: String::new() };
        let code = |told, is_off| judged(told, is_off).map_err(|problem| problem.code.to_string());
        let unread = || vec![told("unreadable")];
        let failed = || Err(Warning::new("forget_failed", "no answer over SSH"));
        assert_eq!(code(Ok(unread()), true), Err("server_off".into()));
        assert_eq!(code(failed(), true), Err("server_off".into()));
        assert_eq!(code(Ok(unread()), false), Ok(unread()));
        assert_eq!(code(failed(), false), Err("forget_failed".into()));
        let mounted_here = vec![told("whole"), told("unreadable")];
        assert_eq!(code(Ok(mounted_here.clone()), true), Ok(mounted_here));
    }

    #[test]
    fn what_can_be_a_name_is_what_can_be_a_file_on_the_server() {
        for good in ["a", "talk-1", "7.of_9"] {
            assert!(can_be_a_name(good), "{good}");
        }
        for bad in ["", "a b", "../x", "a..b", "a.", ".a", "-a", "a/b", "ä"] {
            assert!(!can_be_a_name(bad), "{bad}");
        }
    }
}
