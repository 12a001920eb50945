//! What all parts of the server share.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use russh::keys::PrivateKey;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    faults::{Dice, Faults},
    gpu::Lingering,
    people::People,
    ports::{Port, Silent},
    programs::SlotDeed,
    setup::Setup,
    truth::{Deed, Power, What},
    unit::Unit,
};
use crate::machine::BootId;

/// Deeds and violations remembered; a soak has more, and is checked as it goes.
const MOST_DEEDS: usize = 100_000;
const MOST_VIOLATIONS: usize = 1000;

/// The server.
pub(super) struct Shared {
    pub(super) setup: Setup,
    pub(super) faults: Faults,
    pub(super) keys: Keys,
    pub(super) ssh_port: Port,
    /// One for each unit.
    pub(super) ports: Vec<Port>,
    /// Held while there is no power.
    pub(super) silent: AsyncMutex<Vec<Silent>>,
    pub(super) power: watch::Sender<Power>,
    pub(super) began: Instant,
    state: Mutex<State>,
    deeds: Mutex<Deeds>,
    violations: Mutex<Vec<String>>,
    tasks: Mutex<JoinSet<()>>,
}

/// What was done.
#[derive(Default)]
struct Deeds {
    kept: VecDeque<Deed>,
    /// So many came before those that are kept.
    forgotten: u64,
}

/// What changes.
pub(super) struct State {
    /// Counts up with each turn of the power: what an earlier turn began is over then.
    pub(super) turn: u64,
    pub(super) boot: BootId,
    pub(super) boots: u64,
    pub(super) units: Vec<Unit>,
    pub(super) lingering: Vec<Lingering>,
    pub(super) people: People,
    /// The network card hears packets while the power is off.
    pub(super) armed: bool,
    pub(super) next_pid: u32,
    pub(super) next_job: u32,
    pub(super) dice: Dice,
}

/// All keys there are.
pub(super) struct Keys {
    pub(super) host: PrivateKey,
    pub(super) stranger: PrivateKey,
    pub(super) initramfs: PrivateKey,
    pub(super) client: PrivateKey,
}

impl State {
    pub(super) fn pid(&mut self) -> u32 {
        self.next_pid += 7;
        self.next_pid
    }

    /// 128 bits that were not there before.
    pub(super) fn id(&mut self) -> u128 {
        (u128::from(self.dice.roll()) << 64) | u128::from(self.dice.roll())
    }
}

impl Shared {
    pub(super) fn new(
        setup: Setup,
        keys: Keys,
        ssh_port: Port,
        ports: Vec<Port>,
        units: Vec<Unit>,
        seed: u64,
    ) -> Arc<Self> {
        let mut dice = Dice::new(seed);
        let next_pid = 1000 + u32::try_from(dice.below(20_000)).unwrap_or(0);
        let state = State {
            turn: 0,
            boot: BootId(0),
            boots: 0,
            units,
            lingering: vec![],
            people: People::default(),
            armed: true,
            next_pid,
            next_job: 100,
            dice,
        };
        Arc::new(Self {
            setup,
            faults: Faults::default(),
            keys,
            ssh_port,
            ports,
            silent: AsyncMutex::default(),
            power: watch::Sender::new(Power::Off),
            began: Instant::now(),
            state: Mutex::new(state),
            deeds: Mutex::default(),
            violations: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(super) fn power(&self) -> Power {
        *self.power.borrow()
    }

    /// Whether commands are carried out.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.power(), Power::On | Power::GoingDown)
    }

    /// A task that ends with the server.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = locked(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends all tasks and processes.
    pub(super) fn end(&self) {
        locked(&self.tasks).abort_all();
        for unit in &mut self.state().units {
            unit.lose_power();
        }
    }

    pub(super) fn did(&self, what: What) {
        self.did_at(Instant::now(), what);
    }

    fn did_at(&self, at: Instant, what: What) {
        let at = at.saturating_duration_since(self.began);
        let mut deeds = locked(&self.deeds);
        if deeds.kept.len() == MOST_DEEDS {
            deeds.kept.pop_front();
            deeds.forgotten += 1;
        }
        deeds.kept.push_back(Deed { at, what });
    }

    /// Takes down what the processes did with slot files.
    pub(super) fn collect_slot_deeds(&self, state: &State) {
        for unit in &state.units {
            for deed in unit.process().into_iter().flat_map(|process| process.take_slot_deeds()) {
                let (unit, SlotDeed { at, act, file, tokens }) = (unit.setup.name.clone(), deed);
                self.did_at(at, What::Slot { unit, act, file, tokens });
            }
        }
    }

    pub(super) fn deeds(&self) -> Vec<Deed> {
        let mut deeds = self.deeds_from(0);
        deeds.sort_by_key(|deed| deed.at);
        deeds
    }

    /// In the order in which they became known.
    pub(super) fn deeds_from(&self, first: u64) -> Vec<Deed> {
        self.collect_slot_deeds(&self.state());
        let deeds = locked(&self.deeds);
        let skipped = usize::try_from(first.saturating_sub(deeds.forgotten)).unwrap_or(usize::MAX);
        deeds.kept.iter().skip(skipped).cloned().collect()
    }

    /// Something was asked that no daemon of ours ever asks.
    pub(super) fn violated(&self, how: String) {
        let mut violations = locked(&self.violations);
        if violations.len() < MOST_VIOLATIONS {
            violations.push(how);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        locked(&self.violations).clone()
    }

    /// The time by the server's clock.
    pub(super) fn clock(&self) -> SystemTime {
        let now = SystemTime::now();
        match self.faults.clock.now() {
            None => now,
            Some(off) => {
                self.faults.clock.count();
                let by = Duration::from_secs(off.unsigned_abs());
                let moved = if off < 0 { now.checked_sub(by) } else { now.checked_add(by) };
                moved.unwrap_or(now)
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that fails while it holds one shall be told of its own failure, not of this.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
