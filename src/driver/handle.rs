//! What the front gets of the driver: a way to say something, and ways to listen. Nothing to change it by.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{
    slots::{Selections, Tend},
    status::Status,
};
use crate::machine::{Answer, Command, Warning};

/// Commands waiting to be taken; more are refused at the socket as busy. A person or a few programs speak to one server.
pub const COMMANDS_WAITING: usize = 32;
/// Changes a slow listener may lag behind before it is told that it missed some.
pub const CHANGES_KEPT: usize = 256;
/// Ended operations that are remembered.
pub const OPERATIONS_KEPT: usize = 256;

/// Someone's command on its way to the driver.
#[derive(Debug)]
pub struct Request {
    /// What is wanted.
    pub command: Command,
    /// Who wants it, for the journal: the peer's uid.
    pub uid: Option<u32>,
    /// Where the one answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// A change, as `watch` and `/v1/events` show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// When, RFC 3339.
    pub at: String,
    /// `state` (state or phase changed), `operation_began`, `operation_ended`, `attention`.
    pub what: String,
    /// A line for people.
    pub line: String,
    /// The status right after the change.
    pub status: Arc<Status>,
    /// The operation that began or ended.
    #[serde(default)]
    pub operation: Option<OperationRecord>,
}

/// An operation as `GET /v1/operations/{id}` tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its name.
    pub id: u64,
    /// `start`, `restart`, `stop`, `wake`, `power-off`, `save`, `restore`.
    pub kind: String,
    /// The backend wanted, where there is one.
    pub goal: Option<String>,
    /// `command`, `idle_stop`, `idle_power_off`, `auto_restore`, `checkpoint`.
    pub cause: String,
    /// When it began.
    pub started: String,
    /// Null while it is under way; else `done`, `failed`, `cancelled`, `replaced`.
    pub end: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// Stable code of the failure.
    pub code: Option<String>,
    /// What happened.
    pub message: Option<String>,
    /// What the person can do.
    pub hint: Option<String>,
    /// What went less well on the way.
    pub warnings: Vec<Warning>,
    /// What was stopped on the way although it could not be saved.
    #[serde(default)]
    pub not_saved: Vec<NotSaved>,
    /// The unit's result, exit status and last journal lines, where a start failed.
    pub post_mortem: Vec<String>,
}

/// What a backend held when it was stopped, and what is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotSaved {
    /// Its name.
    pub backend: String,
    /// Why, as the code of a warning.
    pub code: String,
    /// ... and in words.
    pub message: String,
}

/// The front's view of the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Commands in. Use `try_send`: a full queue is refused, never waited for.
    pub commands: mpsc::Sender<Request>,
    /// Things to be done about saved slots, likewise.
    pub tending: mpsc::Sender<Tend>,
    /// Names of slots.
    pub selections: Selections,
    /// The newest status.
    pub status: watch::Receiver<Arc<Status>>,
    /// Changes as they happen.
    pub changes: broadcast::Sender<Arc<Change>>,
    /// Operations, newest last, bounded by [`OPERATIONS_KEPT`]. Published whole: readers never touch the driver.
    pub operations: watch::Receiver<Arc<Vec<OperationRecord>>>,
    /// The policy, for names of backends.
    pub policy: Arc<crate::machine::Policy>,
}

impl Handle {
    /// The newest status, brought up to this moment.
    #[must_use]
    pub fn status_now(&self) -> Status {
        let newest = Arc::clone(&self.status.borrow());
        newest.at(tokio::time::Instant::now())
    }
}
