//! A process from its start to its end: phases, signals, output, memory, and the tasks that end with it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{Exit, Fault, ProgramFaults, SlotAct, SlotDeed, Truth};

/// So many lines of output are kept.
const MOST_LINES: usize = 2000;
/// Memory is taken in so many steps while the model loads.
const LOAD_STEPS: u32 = 20;
/// An orphan's pid lies so far beyond that of the process it belonged to.
const ORPHAN_PID: u32 = 1;

/// Where in its life a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// SIGTERM kills at once.
    Loading,
    /// SIGTERM is lost ([`Fault::TermLostInLoad`]).
    Deaf,
    /// Up.
    Ready,
    /// Told to end.
    Ending,
}

/// Tokens held in slots, for [`Truth`].
pub(super) trait Held: Send + Sync + std::fmt::Debug {
    /// Of each slot.
    fn held(&self) -> Vec<Option<u64>>;

    /// For [`Truth::unsaved`].
    fn unsaved(&self) -> Option<(u64, Duration)>;
}

/// What all programs share.
#[derive(Debug)]
pub(super) struct Life {
    pid: u32,
    /// What a second SIGTERM does.
    second_term: Exit,
    pub(super) faults: Arc<ProgramFaults>,
    phase: watch::Sender<Phase>,
    /// Decided; sockets may still be open.
    dying: watch::Sender<Option<Exit>>,
    /// Published.
    exited: watch::Sender<Option<Exit>>,
    tasks: Mutex<Option<JoinSet<()>>>,
    lines: Mutex<VecDeque<String>>,
    slot_deeds: Mutex<VecDeque<SlotDeed>>,
    vram: AtomicU64,
    orphan: AtomicU64,
    /// Connections that are in the middle of a request or an answer.
    pub(super) busy: watch::Sender<u32>,
    pub(super) in_flight: AtomicU32,
    pub(super) served: AtomicU64,
    pub(super) held: OnceLock<Weak<dyn Held>>,
}

impl Life {
    /// A process that begins now.
    pub(super) fn begin(pid: u32, second_term: Exit, faults: Arc<ProgramFaults>) -> Arc<Self> {
        Arc::new(Self {
            pid,
            second_term,
            faults,
            phase: watch::Sender::new(Phase::Loading),
            dying: watch::Sender::default(),
            exited: watch::Sender::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
            lines: Mutex::default(),
            slot_deeds: Mutex::default(),
            vram: AtomicU64::new(0),
            orphan: AtomicU64::new(0),
            busy: watch::Sender::default(),
            in_flight: AtomicU32::new(0),
            served: AtomicU64::new(0),
            held: OnceLock::new(),
        })
    }

    /// Runs `main` until it says how the process ends, or something else ends it; then closes all and publishes the
    /// end.
    pub(super) fn run(self: &Arc<Self>, main: impl Future<Output = Exit> + Send + 'static) {
        let life = Arc::clone(self);
        let mut dying = self.dying.subscribe();
        let crashes = self.faults.crashes();
        tokio::spawn(async move {
            let exit = {
                let ended = async {
                    match dying.wait_for(Option::is_some).await {
                        Ok(exit) => exit.unwrap_or(Exit::Signal(9)),
                        Err(_) => Exit::Signal(9),
                    }
                };
                tokio::select! {
                    biased;
                    exit = ended => exit,
                    exit = life.faults.crashed(crashes) => exit,
                    exit = main => exit,
                }
            };
            life.end(exit);
            let tasks = lock(&life.tasks).take();
            if let Some(mut tasks) = tasks {
                tasks.shutdown().await;
            }
            let vram = life.vram.swap(0, Relaxed);
            if vram > 0 && life.faults.fires("orphan-stays").is_some() {
                life.orphan.store(vram, Relaxed);
            }
            life.exited.send_replace(*life.dying.borrow());
        });
    }

    /// A task that ends with the process at the latest.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.tasks).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// The process ends like this. The first word counts.
    pub(super) fn end(&self, exit: Exit) {
        self.dying.send_if_modified(|dying| {
            let first = dying.is_none();
            dying.get_or_insert(exit);
            first
        });
    }

    pub(super) fn term(&self) {
        if self.faults.fires("term-ignored").is_some() {
            return;
        }
        match self.phase() {
            Phase::Loading => self.end(Exit::Signal(15)),
            Phase::Deaf => {
                self.faults.fires("term-lost-in-load");
            }
            Phase::Ready => self.set_phase(Phase::Ending),
            Phase::Ending => {
                self.say("Received second interrupt, terminating immediately.");
                self.end(self.second_term);
            }
        }
    }

    pub(super) fn kill(self: &Arc<Self>) {
        if !self.faults.is_set("kill-ignored") {
            self.end(Exit::Signal(9));
            return;
        }
        let life = Arc::clone(self);
        self.spawn(async move {
            life.faults.wait_out("kill-ignored").await;
            life.end(Exit::Signal(9));
        });
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until it has been told to end.
    pub(super) async fn told_to_end(&self) {
        self.reached(Phase::Ending).await;
    }

    pub(super) async fn reached(&self, wanted: Phase) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }

    /// Waits until no connection is in the middle of anything.
    pub(super) async fn quiet(&self) {
        let _ = self.busy.subscribe().wait_for(|busy| *busy == 0).await;
    }

    /// The load: memory grows step by step. Ends ready, or with how it failed.
    pub(super) async fn load(&self, takes: Duration, vram_mib: u64) -> Result<(), Exit> {
        let begun = Instant::now();
        let vram_mib = if self.faults.fires("cpu-fallback").is_some() { 0 } else { vram_mib };
        for n in 1..=LOAD_STEPS {
            sleep_until(begun + takes * n / LOAD_STEPS).await;
            self.vram.store(vram_mib * u64::from(n) / u64::from(LOAD_STEPS), Relaxed);
            if n == LOAD_STEPS / 2 {
                self.faults.wait_out("load-hangs").await;
                if let Some(Fault::LoadFails(exit)) = self.faults.fires("load-fails") {
                    return Err(exit);
                }
                // A load on waking is not one: by then signals are handled.
                if self.phase() == Phase::Loading && self.faults.is_set("term-lost-in-load") {
                    self.set_phase(Phase::Deaf);
                }
            }
        }
        Ok(())
    }

    /// Holds so much memory from now on.
    pub(super) fn set_vram(&self, mib: u64) {
        self.vram.store(mib, Relaxed);
    }

    pub(super) fn say(&self, line: impl Into<String>) {
        let mut lines = lock(&self.lines);
        if lines.len() == MOST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.into());
    }

    /// Something was done with a slot file.
    pub(super) fn slot_did(&self, act: SlotAct, file: &str, tokens: usize) {
        let mut deeds = lock(&self.slot_deeds);
        if deeds.len() == MOST_LINES {
            deeds.pop_front();
        }
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        deeds.push_back(SlotDeed { at: Instant::now(), act, file: file.to_owned(), tokens });
    }

    pub(super) fn take_slot_deeds(&self) -> Vec<SlotDeed> {
        lock(&self.slot_deeds).drain(..).collect()
    }

    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.subscribe()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        lock(&self.lines).iter().cloned().collect()
    }

    pub(super) fn vram_mib(&self) -> u64 {
        self.vram.load(Relaxed) + self.orphan.load(Relaxed)
    }

    pub(super) fn orphan(&self) -> Option<(u32, u64)> {
        let held = self.orphan.load(Relaxed);
        (held > 0).then_some((self.pid + ORPHAN_PID, held))
    }

    pub(super) fn kill_orphan(&self) {
        self.orphan.store(0, Relaxed);
    }

    pub(super) fn truth(&self) -> Truth {
        let dead = self.dying.borrow().is_some();
        let held = self.held.get().and_then(Weak::upgrade);
        Truth {
            ready: !dead && self.phase() == Phase::Ready,
            in_flight: self.in_flight.load(Relaxed),
            served: self.served.load(Relaxed),
            unsaved: held.as_ref().and_then(|held| held.unsaved()),
            slots: held.map(|held| held.held()).unwrap_or_default(),
        }
    }

    /// Counts an inference request as long as the guard lives.
    pub(super) fn inference(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Counts a connection as busy as long as the guard lives.
    pub(super) fn connection_busy(self: &Arc<Self>) -> Busy {
        self.busy.send_modify(|n| *n += 1);
        Busy(Arc::clone(self))
    }
}

/// An inference request that runs or waits.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Life>);

impl InFlight {
    /// It was answered to its end.
    pub(super) fn served(self) {
        self.0.served.fetch_add(1, Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A connection in the middle of something.
#[derive(Debug)]
pub(super) struct Busy(Arc<Life>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|n| *n = n.saturating_sub(1));
    }
}

/// Steps at even distances, as many at a time as are due: timers are coarser than a token.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    each: Duration,
    done: u64,
}

impl Pace {
    /// Steps of `each` from now on.
    pub(super) fn new(each: Duration) -> Self {
        Self { begun: Instant::now(), each, done: 0 }
    }

    /// Waits for at least one step; at most `most` are told.
    pub(super) async fn steps(&mut self, most: u64) -> u64 {
        if self.each.is_zero() {
            tokio::task::yield_now().await;
            self.done += most;
            return most;
        }
        let next = u32::try_from(self.done + 1).unwrap_or(u32::MAX);
        sleep_until(self.begun + self.each * next).await;
        let due = self.begun.elapsed().as_nanos() / self.each.as_nanos();
        let due = u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(self.done).clamp(1, most.max(1));
        self.done += due;
        due
    }
}

/// A wait.
pub(super) async fn pause(time: Duration) {
    sleep(time).await;
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
