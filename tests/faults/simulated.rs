//! A daemon on the simulated server, on paused time: where minutes and hours matter.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use wechsler::{
    config::Probe,
    driver::{self, BackendFacts, Handle, OperationRecord, Request, Setup, status::Status},
    machine::{Answer, Command, Policy},
};

use crate::sim::{self, Sim, World};

/// Longer than anything here may take.
const LONG: Duration = Duration::from_hours(48);

/// A driver and its server. On a paused clock only.
pub struct Simulated {
    pub world: World,
    handle: Handle,
    _end: watch::Sender<bool>,
}

impl Simulated {
    /// The usual policy, changed; a server that is on.
    pub fn on(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = sim::policy();
        change(&mut policy);
        let facts = |b: &wechsler::machine::BackendPolicy| BackendFacts {
            unit: format!("{}.service", b.name),
            public_url: format!("http://{}:8080/v1", b.name),
            expected_start: Duration::from_secs(99),
        };
        let setup = Setup {
            server: "gpu".into(),
            backends: policy.backends.iter().map(facts).collect(),
            policy: Arc::new(policy),
            probe: Probe {
                rest: Duration::from_secs(10),
                busy: Duration::from_millis(30),
                waiting: Duration::from_secs(1),
                http_timeout: Duration::from_secs(2),
            },
            state_dir: None,
            pulse: None,
        };
        let world = World::new(Sim::on(&setup.policy));
        let (end, told) = watch::channel(false);
        let (handle, _) = driver::spawn(setup, world.clone(), told);
        Self { world, handle, _end: end }
    }

    /// A command from its beginning to its end.
    pub async fn record(&self, command: Command) -> OperationRecord {
        let (answer, receiver) = oneshot::channel();
        let request = Request { command: command.clone(), uid: Some(1000), answer };
        self.handle.commands.try_send(request).expect("room in the queue");
        let answer = timeout(Duration::from_secs(5), receiver).await.expect("answered in time").expect("answered");
        let Answer::Accepted { op, .. } = answer else { panic!("{command:?}: {answer:?}") };
        let mut operations = self.handle.operations.clone();
        let find = |all: &Arc<Vec<OperationRecord>>| all.iter().find(|r| r.id == op.0 && r.end.is_some()).cloned();
        let all = timeout(LONG, operations.wait_for(|all| find(all).is_some())).await.expect("an end");
        find(&all.expect("the driver lives")).expect("it was there")
    }

    /// ... that must be done.
    pub async fn done(&self, command: Command) {
        let record = self.record(command).await;
        assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    }

    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.handle.status.borrow())
    }

    /// Waits for a state.
    pub async fn state(&self, state: &str) -> Arc<Status> {
        let mut status = self.handle.status.clone();
        match timeout(LONG, status.wait_for(|status| status.state == state)).await {
            Ok(status) => Arc::clone(&status.expect("the driver lives")),
            Err(late) => panic!("{late}: never {state}: {:#?}", self.status()),
        }
    }
}
