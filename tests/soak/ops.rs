//! The daemon's operations, as its event stream tells them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use humantime::parse_rfc3339;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use wechsler::{driver::OperationRecord, front::client::Client};

/// Operations remembered; the laws look back for seconds.
const KEPT: usize = 500;

/// An operation, in the server's time.
#[derive(Clone, Debug)]
pub struct Op {
    /// Of this life of the daemon.
    pub life: usize,
    pub began: Duration,
    pub ended: Option<Duration>,
    /// The daemon was killed while it was under way.
    pub forgotten: bool,
    pub record: OperationRecord,
}

impl Op {
    /// It was under way then, give or take `slack`.
    pub fn covers(&self, at: Duration, slack: Duration) -> bool {
        self.began <= at + slack && self.ended.is_none_or(|ended| ended + slack >= at)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Ops {
    pub all: VecDeque<Op>,
    /// Ended since they were last taken.
    pub ended: Vec<Op>,
    /// What no daemon may tell.
    pub wrong: Vec<String>,
}

impl Ops {
    /// `since`: what began before, the listener may have missed.
    fn told(&mut self, life: usize, at: Duration, record: OperationRecord, is_end: bool, since: SystemTime) {
        let known = self.all.iter_mut().rev().find(|op| op.life == life && op.record.id == record.id);
        match (known, is_end) {
            (None, false) => {
                self.keep(Op { life, began: at, ended: None, forgotten: false, record });
            }
            (Some(op), true) if op.ended.is_none() => {
                op.ended = Some(at);
                op.record = record;
                self.ended.push(op.clone());
            }
            (None, true) if parse_rfc3339(&record.started).is_ok_and(|began| began < since) => {
                let ended =
                    Op { life, began: at.saturating_sub(took(&record)), ended: Some(at), forgotten: false, record };
                self.ended.push(ended.clone());
                self.keep(ended);
            }
            (None, true) => self.wrong.push(format!("an operation that never began has ended: {record:?}")),
            (Some(op), _) => self.wrong.push(format!("told twice: {op:?}, now {record:?}")),
        }
    }

    fn keep(&mut self, op: Op) {
        if self.all.len() == KEPT {
            self.all.pop_front();
        }
        self.all.push_back(op);
    }

    /// The daemon is gone.
    pub fn forget(&mut self, life: usize, at: Duration) {
        for op in self.all.iter_mut().filter(|op| op.life == life && op.ended.is_none()) {
            op.ended = Some(at);
            op.forgotten = true;
        }
    }
}

/// How long it was under way.
fn took(record: &OperationRecord) -> Duration {
    let moments = (parse_rfc3339(&record.started), record.ended.as_deref().map(parse_rfc3339));
    let (Ok(started), Some(Ok(ended))) = moments else { return Duration::ZERO };
    ended.duration_since(started).unwrap_or_default()
}

/// Shared with the task that listens.
pub type Shared = Arc<Mutex<Ops>>;

pub fn locked(ops: &Shared) -> MutexGuard<'_, Ops> {
    ops.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens for as long as it is not aborted. `origin` is when the server came to be.
pub fn listen(client: Client, life: usize, ops: Shared, origin: Instant) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            if let Ok(mut events) = client.events().await {
                let since = SystemTime::now();
                while let Ok(Some(change)) = events.next().await {
                    let is_end = change.what == "operation_ended";
                    if let (true, Some(record)) = (is_end || change.what == "operation_began", change.operation) {
                        locked(&ops).told(life, origin.elapsed(), record, is_end, since);
                    }
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
}
