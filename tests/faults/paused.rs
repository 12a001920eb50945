//! A daemon's driver on the simulated server, on paused time: where minutes and hours matter, or every moment.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use wechsler::{
    driver::{self, Handle, OperationRecord, Request, status::Status},
    machine::{Answer, BackendId, Command, OpId, Policy},
};

use crate::{
    bench::{LLAMA, START, TO_LLAMA, TO_VLLM, VLLM},
    sim::{self, Sim, World},
};

/// Longer than anything here may take, on the paused clock.
const LONG: Duration = Duration::from_hours(48);

pub struct Paused {
    pub world: World,
    pub handle: Handle,
    _end: watch::Sender<bool>,
    _task: JoinHandle<()>,
}

impl Paused {
    /// On a server that is on, nothing running.
    pub async fn on(policy: Policy) -> Self {
        let world = World::new(Sim::on(&policy));
        let setup = sim::setup(policy, None);
        let (end, told) = watch::channel(false);
        let (handle, task) = driver::spawn(setup, world.clone(), told);
        let paused = Self { world, handle, _end: end, _task: task };
        paused.state("gpu-idle").await;
        paused
    }

    /// ... with llama.cpp up.
    pub async fn with_llama(policy: Policy) -> Self {
        let paused = Self::on(policy).await;
        paused.done(START).await;
        paused
    }

    pub async fn told(&self, command: Command) -> Answer {
        let (answer, receiver) = oneshot::channel();
        let request = Request { command, uid: Some(1000), answer };
        self.handle.commands.try_send(request).expect("room in the queue");
        timeout(Duration::from_secs(5), receiver).await.expect("answered in time").expect("answered")
    }

    pub async fn accepted(&self, command: Command) -> OpId {
        match self.told(command.clone()).await {
            Answer::Accepted { op, .. } => op,
            other => panic!("{command:?}: {other:?}; {:#?}", self.status()),
        }
    }

    pub async fn ended(&self, op: OpId) -> OperationRecord {
        let mut operations = self.handle.operations.clone();
        let find = |all: &Arc<Vec<OperationRecord>>| all.iter().find(|r| r.id == op.0 && r.end.is_some()).cloned();
        let all = timeout(LONG, operations.wait_for(|all| find(all).is_some())).await;
        let all = all.unwrap_or_else(|_| panic!("no end; {:#?}", self.status()));
        find(&all.expect("the driver lives")).expect("it was there")
    }

    /// A command from its beginning to its end.
    pub async fn record(&self, command: Command) -> OperationRecord {
        let op = self.accepted(command).await;
        self.ended(op).await
    }

    /// A command that has something to do, and must be done.
    pub async fn does(&self, command: Command) {
        let record = self.record(command).await;
        assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    }

    /// A command that must be done, also if there was nothing to do.
    pub async fn done(&self, command: Command) {
        match self.told(command.clone()).await {
            Answer::AlreadySo => {}
            Answer::Accepted { op, .. } => {
                let record = self.ended(op).await;
                assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
            }
            other => panic!("{command:?}: {other:?}; {:#?}", self.status()),
        }
    }

    /// A command that must fail with this code, and tell what to do.
    pub async fn fails(&self, command: Command, code: &str) -> OperationRecord {
        let record = self.record(command).await;
        assert_eq!((record.end.as_deref(), record.code.as_deref()), (Some("failed"), Some(code)), "{record:#?}");
        assert!(record.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "{record:#?}");
        record
    }

    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.handle.status.borrow())
    }

    pub async fn until(&self, what: &str, so: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut status = self.handle.status.clone();
        match timeout(LONG, status.wait_for(so)).await {
            Ok(status) => Arc::clone(&status.expect("the driver lives")),
            Err(late) => panic!("{late}: never {what}: {:#?}", self.status()),
        }
    }

    pub async fn state(&self, state: &str) -> Arc<Status> {
        self.until(state, |status| status.state == state).await
    }

    /// After the fault: everything works, and the server's own truth agrees.
    pub async fn works(&self) {
        self.world.sim().heal();
        for (command, backend) in [(TO_VLLM, VLLM), (TO_LLAMA, LLAMA)] {
            self.done(command).await;
            assert_eq!(self.holders(), [backend]);
        }
    }

    pub fn holders(&self) -> Vec<BackendId> {
        self.world.sim().holders()
    }
}
