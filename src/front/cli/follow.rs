//! Giving a command and staying with its operation until the end, through pauses and restarts of the daemon.

use std::{cell::Cell, time::Duration};

use tokio::time::{Instant, interval, sleep, timeout};

use super::{
    args::Way,
    live::Live,
    trouble::{Exit, Trouble},
};
use crate::{
    driver::{Change, OperationRecord},
    front::{
        client::{Client, ClientError, Events},
        protocol::{CommandAnswer, CommandRequest, CommandWord},
    },
};

/// How long a daemon that went away may take to come back.
pub(super) const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries to reach it.
pub(super) const BACK_REST: Duration = Duration::from_millis(300);
/// Between two redraws of the live line.
const REDRAW: Duration = Duration::from_millis(250);
/// How long the last changes may trail behind the end of an operation.
const TRAILING: Duration = Duration::from_millis(200);
/// At least so long between two questions for the same operation, whatever answers.
const ASK_REST: Duration = Duration::from_millis(50);

/// What came of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was already so.
    AlreadySo,
    /// Done at once.
    Done,
    /// An operation does it; we did not wait.
    Accepted {
        /// Which.
        operation: u64,
        /// It was under way already.
        joined: bool,
    },
    /// The operation has ended.
    Ended(Box<OperationRecord>),
}

/// Gives the command; unless told otherwise, waits for the end. `begun` tells an interrupted caller which operation goes on.
pub(super) async fn give(
    client: &Client,
    request: &CommandRequest,
    way: Way,
    quiet: bool,
    begun: &Cell<Option<u64>>,
) -> Result<Outcome, Trouble> {
    let mut live = Live::new(quiet, called(request));
    let work = stay(client, request, way.no_wait, &mut live, begun);
    match way.timeout {
        None => work.await,
        Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(limit);
            Err(match begun.get() {
                Some(id) => Trouble::new(
                    Exit::Unfinished,
                    "unfinished",
                    format!("not finished within {limit}; operation {id} goes on in the daemon"),
                )
                .hint("`wechsler watch` shows it, `wechsler cancel` ends it"),
                None => {
                    Trouble::new(Exit::Unfinished, "unfinished", format!("the daemon did not answer within {limit}"))
                        .hint("see `wechsler status` for whether the command was begun")
                }
            })
        }),
    }
}

async fn stay(
    client: &Client,
    request: &CommandRequest,
    no_wait: bool,
    live: &mut Live,
    begun: &Cell<Option<u64>>,
) -> Result<Outcome, Trouble> {
    // Listen first, so that no phase is missed. Without a place among the listeners only the phases are missing.
    let mut events = if no_wait {
        None
    } else {
        match client.events().await {
            Ok(events) => Some(events),
            Err(ClientError::Problem(_)) => None,
            Err(error) => return Err(error.into()),
        }
    };
    let (id, joined) = match client.command(request).await? {
        CommandAnswer::AlreadySo => return Ok(Outcome::AlreadySo),
        CommandAnswer::Done => return Ok(Outcome::Done),
        CommandAnswer::Accepted { operation, joined } => (operation, joined),
    };
    begun.set(Some(id));
    if no_wait {
        return Ok(Outcome::Accepted { operation: id, joined });
    }
    if joined && let Ok(status) = client.status().await {
        live.take(&status, id);
    }
    let gone = Cell::new(false);
    let end = end_of(client, id, &gone);
    tokio::pin!(end);
    let mut redraw = interval(REDRAW);
    let record = loop {
        tokio::select! {
            end = &mut end => break end?,
            change = next(&mut events) => match change {
                Some(change) => {
                    live.take(&change.status, id);
                    if let Some(record) = ended(change, id) {
                        return Ok(Outcome::Ended(Box::new(record)));
                    }
                }
                None => events = None,
            },
            _ = redraw.tick() => {
                live.note(gone.get().then_some("the daemon does not answer; waiting for it to come back"));
                if live.is_rewritten() {
                    live.redraw();
                }
            }
        }
    };
    // The end may have come sooner than the last changes.
    let _ = timeout(TRAILING, async {
        while let Some(change) = next(&mut events).await {
            live.take(&change.status, id);
            if ended(change, id).is_some() {
                break;
            }
        }
    })
    .await;
    Ok(Outcome::Ended(Box::new(record)))
}

/// What a person calls the operation, where that is another word than its own: to bring one backend up and no other is one
/// operation, whether it was called a start, a switch or the end of a conflict.
pub(super) fn called(request: &CommandRequest) -> Option<String> {
    matches!(request.command, CommandWord::Switch | CommandWord::Resolve).then(|| request.command.to_string())
}

/// The record of operation `id`, if this change is its end.
fn ended(change: Change, id: u64) -> Option<OperationRecord> {
    change.operation.filter(|record| record.id == id && record.end.is_some())
}

/// The next change; waits for ever where there is no stream, and says once when it ends.
async fn next(events: &mut Option<Events>) -> Option<Change> {
    match events {
        Some(events) => events.next().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// Waits for the end of operation `id`. `gone` says whether the daemon is away just now.
async fn end_of(client: &Client, id: u64, gone: &Cell<bool>) -> Result<OperationRecord, Trouble> {
    let mut known: Option<OperationRecord> = None;
    let mut lost: Option<Instant> = None;
    loop {
        // The first question is only for its beginning: numbers start anew with each life of the daemon.
        match client.operation(id, known.is_some()).await {
            Ok(record) => {
                lost = None;
                gone.set(false);
                if known.as_ref().is_some_and(|known| known.started != record.started) {
                    return Err(forgotten(id).about(known));
                }
                if record.end.is_some() {
                    return Ok(record);
                }
                known = Some(record);
                sleep(ASK_REST).await;
            }
            Err(error) if error.is_daemon_gone() => {
                gone.set(true);
                if lost.get_or_insert_with(Instant::now).elapsed() > BACK_WITHIN {
                    return Err(Trouble::from(error).about(known));
                }
                sleep(BACK_REST).await;
            }
            Err(ClientError::Problem(problem)) if &*problem.code == "operation_forgotten" => {
                return Err(forgotten(id).about(known));
            }
            Err(error) => return Err(Trouble::from(error).about(known)),
        }
    }
}

fn forgotten(id: u64) -> Trouble {
    Trouble::new(
        Exit::Failed,
        "operation_forgotten",
        format!("the daemon was restarted and has forgotten operation {id}; what it had done so far stays"),
    )
    .hint("see `wechsler status` for what is so now, then give the command again")
}
