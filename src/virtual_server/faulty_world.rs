//! A faulty layer over any [`World`]: a simulated, a virtual or a real one. By a seeded plan answers are lost, late, doubled
//! or wrong, and looks are lost, late, stale, truncated or wrong.
//!
//! It keeps to what every world promises: what is read is never dated younger than it is, and after an order whose end
//! nobody knows it is another SSH session that answers. It never says of a thing that is so that it is not: against that
//! no daemon could do anything.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use super::faults::Dice;
use crate::{
    driver::{
        World,
        world::{PostMortem, SlotChoice, SlotTask, Tended},
    },
    machine::{
        BackendId, Instant, Outcome, Verb, Warning,
        reading::{Ask, BackendReading, Gpu, Http, People, Reading, Ssh, Unit},
    },
};

/// What goes wrong with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrderFault {
    /// It is not carried out, and nobody knows.
    LostBefore,
    /// It is carried out, and nobody knows.
    LostAfter,
    /// It is carried out, and never answered.
    NeverAnswered,
    /// It is carried out, and answered later.
    Late,
    /// It is carried out twice.
    Doubled,
    /// It is carried out, and the answer says that it failed.
    Denied,
}

/// What goes wrong with a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LookFault {
    /// It never ends.
    Lost,
    /// It ends later.
    Late,
    /// What was read before comes again.
    Stale,
    /// Parts of it are missing.
    Truncated,
    /// Parts of it make no sense.
    Wrong,
}

const ORDERS: [OrderFault; 6] = [
    OrderFault::LostBefore,
    OrderFault::LostAfter,
    OrderFault::NeverAnswered,
    OrderFault::Late,
    OrderFault::Doubled,
    OrderFault::Denied,
];
const LOOKS: [LookFault; 5] =
    [LookFault::Lost, LookFault::Late, LookFault::Stale, LookFault::Truncated, LookFault::Wrong];

/// A world with faults. Clones of its [`FaultPlan`] steer it.
#[derive(Debug)]
pub struct FaultyWorld<W> {
    inner: W,
    plan: Arc<FaultPlan>,
}

/// What goes wrong, and how often it did.
#[derive(Debug)]
pub struct FaultPlan {
    state: Mutex<State>,
    /// Sessions that ended here, beside those of the world itself.
    sessions: AtomicU64,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    orders: usize,
    looks: usize,
    late: Duration,
    struck: BTreeMap<String, u64>,
    last: Option<Reading>,
}

impl FaultPlan {
    /// A plan in which nothing goes wrong yet.
    pub fn new(seed: u64) -> Arc<Self> {
        let (dice, late) = (Dice::new(seed), Duration::from_secs(1));
        let state = State { dice, orders: 0, looks: 0, late, struck: BTreeMap::new(), last: None };
        Arc::new(Self { state: Mutex::new(state), sessions: AtomicU64::new(0) })
    }

    /// From now on so many of a thousand orders and looks go wrong; what is late is so by up to `late`.
    pub fn storm(&self, orders: usize, looks: usize, late: Duration) {
        let mut state = self.state();
        (state.orders, state.looks, state.late) = (orders, looks, late);
    }

    /// Nothing goes wrong any more.
    pub fn calm(&self) {
        self.storm(0, 0, Duration::ZERO);
    }

    /// How often each kind struck, by name: `order Late`, `look Stale`.
    pub fn struck(&self) -> BTreeMap<String, u64> {
        self.state().struck.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Only plain values are changed while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self) -> Option<OrderFault> {
        let mut state = self.state();
        let fault = (state.dice.below(1000) < state.orders).then(|| ORDERS[state.dice.below(ORDERS.len())])?;
        *state.struck.entry(format!("order {fault:?}")).or_default() += 1;
        Some(fault)
    }

    fn look(&self) -> Option<LookFault> {
        let mut state = self.state();
        let fault = (state.dice.below(1000) < state.looks).then(|| LOOKS[state.dice.below(LOOKS.len())])?;
        *state.struck.entry(format!("look {fault:?}")).or_default() += 1;
        Some(fault)
    }

    fn delay(&self) -> Duration {
        let mut state = self.state();
        let most = usize::try_from(state.late.as_millis()).unwrap_or(usize::MAX);
        Duration::from_millis(u64::try_from(state.dice.below(most)).unwrap_or(0))
    }

    fn coin(&self) -> bool {
        self.state().dice.below(2) == 0
    }
}

/// An order that ends without a word, however it does, takes its session with it.
struct Session<'a> {
    plan: &'a FaultPlan,
    answered: bool,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.plan.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<W: World> FaultyWorld<W> {
    /// The world, with what the plan makes of it.
    pub const fn over(inner: W, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }

    fn with_sessions(&self, mut reading: Reading) -> Reading {
        if let Some(ssh) = &mut reading.ssh
            && let Ssh::Answered { session, .. } = &mut ssh.value
        {
            *session += self.plan.sessions.load(Ordering::Relaxed);
        }
        reading
    }

    fn truncated(&self, mut reading: Reading) -> Reading {
        fn cut<T>(source: &mut Option<T>, plan: &FaultPlan) {
            if plan.coin() {
                *source = None;
            }
        }
        let plan = &self.plan;
        cut(&mut reading.ssh, plan);
        cut(&mut reading.gpu, plan);
        cut(&mut reading.people, plan);
        cut(&mut reading.wake_armed, plan);
        for backend in &mut reading.backends {
            cut(&mut backend.unit, plan);
            cut(&mut backend.http, plan);
            cut(&mut backend.activity, plan);
        }
        reading
    }

    fn wrong(&self, mut reading: Reading) -> Reading {
        const WHY: &str = "\u{1b}[2Jbash: fork: Cannot allocate memory";
        let plan = &self.plan;
        if let Some(ssh) = reading.ssh.as_mut().filter(|_| plan.coin()) {
            ssh.value = Ssh::Broken(WHY.into());
        }
        if let Some(gpu) = reading.gpu.as_mut().filter(|_| plan.coin()) {
            gpu.value = Gpu::Broken { code: "garbage".into(), message: WHY.into() };
        }
        if let Some(people) = reading.people.as_mut().filter(|_| plan.coin()) {
            people.value = People::Unread(WHY.into());
        }
        for BackendReading { unit, http, .. } in &mut reading.backends {
            if let Some(unit) = unit.as_mut().filter(|_| plan.coin()) {
                unit.value = Unit::Unread(WHY.into());
            }
            if let Some(http) = http.as_mut().filter(|_| plan.coin()) {
                http.value = if plan.coin() { Http::Status(500) } else { Http::TimedOut };
            }
        }
        reading
    }
}

impl<W: World> World for FaultyWorld<W> {
    async fn look(&self, ask: Ask, now: Instant) -> Reading {
        let fault = self.plan.look();
        if fault == Some(LookFault::Lost) {
            std::future::pending::<()>().await;
        }
        let stale = || self.plan.state().last.clone();
        if let Some(last) = (fault == Some(LookFault::Stale)).then(stale).flatten() {
            return last;
        }
        let reading = self.inner.look(ask, now).await;
        let reading = self.with_sessions(reading);
        self.plan.state().last = Some(reading.clone());
        match fault {
            Some(LookFault::Late) => {
                sleep(self.plan.delay()).await;
                reading
            }
            Some(LookFault::Truncated) => self.truncated(reading),
            Some(LookFault::Wrong) => self.wrong(reading),
            _ => reading,
        }
    }

    async fn carry_out(&self, verb: Verb, within: Duration) -> Outcome {
        self.carry_out_chosen(verb, SlotChoice::All, within).await
    }

    async fn tend_slots(&self, backend: BackendId, task: SlotTask) -> Tended {
        self.inner.tend_slots(backend, task).await
    }

    async fn tidy(&self) -> bool {
        self.inner.tidy().await
    }

    async fn carry_out_chosen(&self, verb: Verb, slots: SlotChoice, within: Duration) -> Outcome {
        let unknown = || Outcome::Unknown(Warning::new("verb_lost", "the answer was lost on purpose"));
        let fault = self.plan.order();
        let mut session = Session { plan: &self.plan, answered: false };
        if fault == Some(OrderFault::LostBefore) {
            return unknown();
        }
        let mut outcome = self.inner.carry_out_chosen(verb, slots.clone(), within).await;
        match fault {
            Some(OrderFault::LostAfter) => return unknown(),
            Some(OrderFault::NeverAnswered) => std::future::pending().await,
            Some(OrderFault::Late) => sleep(self.plan.delay()).await,
            Some(OrderFault::Doubled) => outcome = self.inner.carry_out_chosen(verb, slots.clone(), within).await,
            Some(OrderFault::Denied) => {
                outcome = Outcome::Failed(Warning::new("denied", "it was done, and its failure is told on purpose"));
            }
            _ => {}
        }
        // A world that does not know itself has ended its own session.
        session.answered = true;
        outcome
    }

    async fn post_mortem(&self, backend: BackendId) -> PostMortem {
        self.inner.post_mortem(backend).await
    }
}
