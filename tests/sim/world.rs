//! The simulated server behind the driver's seam.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use wechsler::{
    config::Probe,
    driver::{
        self, BackendFacts, Setup,
        world::{SlotTask, Tended},
    },
    machine::{
        BackendId, BackendPolicy, Instant, Outcome, Policy, Verb, Warning,
        reading::{Ask, Reading},
    },
};

use super::Sim;

/// What a driver on a simulated server is told at its start.
pub fn setup(policy: Policy, state_dir: Option<&Path>) -> Setup {
    let facts = |b: &BackendPolicy| BackendFacts {
        unit: format!("{}.service", b.name),
        public_url: format!("http://{}:8080/v1", b.name),
        expected_start: Duration::from_secs(99),
    };
    Setup {
        server: "gpu".into(),
        backends: policy.backends.iter().map(facts).collect(),
        policy: Arc::new(policy),
        probe: Probe {
            rest: Duration::from_secs(10),
            busy: Duration::from_millis(30),
            waiting: Duration::from_secs(1),
            http_timeout: Duration::from_secs(2),
        },
        state_dir: state_dir.map(Into::into),
        pulse: None,
    }
}

/// A handle on a simulated server. Clones share it, so that a test can meddle while the driver watches.
#[derive(Clone)]
pub struct World {
    sim: Arc<Mutex<Sim>>,
    epoch: tokio::time::Instant,
    silent_after: Duration,
    /// When a round of tidying has ended, and how many there are to come.
    tidied: Arc<Mutex<(Vec<Instant>, usize)>>,
}

impl World {
    /// Its time starts now. Make it right before the driver, on a paused clock.
    pub fn new(sim: Sim) -> Self {
        Self {
            sim: Arc::new(Mutex::new(sim)),
            epoch: tokio::time::Instant::now(),
            silent_after: Duration::from_secs(2),
            tidied: Arc::default(),
        }
    }

    /// There is so much to tidy up.
    pub fn litter(&self, pieces: usize) {
        *self.tidied() = (vec![], pieces);
    }

    /// When rounds of tidying have ended since then, and how much is left.
    pub fn tidied(&self) -> MutexGuard<'_, (Vec<Instant>, usize)> {
        self.tidied.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn now(&self) -> Instant {
        Instant::after_start(self.epoch.elapsed())
    }

    /// The server as it is now.
    pub fn sim(&self) -> MutexGuard<'_, Sim> {
        let mut sim = self.sim.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sim.advance(self.now());
        sim
    }
}

impl driver::World for World {
    async fn look(&self, ask: Ask, now: Instant) -> Reading {
        let (reading, takes) = {
            let mut sim = self.sim();
            let reading = sim.look(ask, now);
            let silent = !sim.is_up() || sim.faults.ssh_silent || sim.faults.http_silent;
            let takes = match (sim.faults.looks_hang, silent) {
                (true, _) => None,
                (_, true) => Some(self.silent_after),
                _ => Some(sim.times.trip),
            };
            (reading, takes)
        };
        match takes {
            Some(takes) => tokio::time::sleep(takes).await,
            None => std::future::pending().await,
        }
        reading
    }

    async fn carry_out(&self, verb: Verb, _within: Duration) -> Outcome {
        let run = self.sim().run_asked(verb);
        let answered = self.sim().order(verb, self.now());
        // Whoever gives an order up gives its session up, too: only another one can tell what became of it.
        let mut session = Session { world: self, answered: false };
        match answered.at {
            Some(at) => tokio::time::sleep_until(self.epoch + at.since_start()).await,
            None => std::future::pending().await,
        }
        session.answered = true;
        self.sim().as_it_came_out(verb, run, answered.outcome)
    }

    async fn tend_slots(&self, backend: BackendId, task: SlotTask) -> Tended {
        let SlotTask::Forget { name, .. } = task else { return Err(Warning::new("no_slots", "only to be forgotten")) };
        self.sim().backend_mut(backend).saved.retain(|saved| saved.name != name);
        Ok(vec![])
    }

    async fn tidy(&self) -> bool {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = self.now();
        let (at, left) = &mut *self.tidied();
        at.push(now);
        *left = left.saturating_sub(1);
        *left > 0
    }

    async fn post_mortem(&self, backend: BackendId) -> driver::PostMortem {
        let trip = self.sim().times.trip;
        tokio::time::sleep(trip).await;
        let port_listens = self.sim().listens(backend);
        driver::PostMortem { lines: vec![format!("journal of backend {backend}")], port_listens }
    }
}

struct Session<'a> {
    world: &'a World,
    answered: bool,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.world.sim().break_session();
        }
    }
}
