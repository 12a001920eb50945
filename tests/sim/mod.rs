//! A simulated GPU server. [`Sim`] is pure: it has facts, is told the time, takes orders and shows what could be read of it.
//! [`World`] puts it behind the driver's seam, on tokio's (paused) clock.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part of it")]

mod eyes;
mod world;

use std::time::Duration;

use wechsler::machine::{
    BackendId, BackendKind, BackendPolicy, Instant, Invocation, OnStartTimeout, Outcome, Policy, RestorePolicy, Verb,
    WakeCheck, Warning,
    reading::{GpuProcess, SavedSlot},
};

pub use world::{World, setup};

/// How long things take there.
#[derive(Clone, Debug)]
pub struct Times {
    /// From the wake packet until sshd answers.
    pub boot: Duration,
    /// From the order to power off until nothing answers.
    pub power_off: Duration,
    /// Loading a model, for each backend.
    pub load: Vec<Duration>,
    /// From the stop order until the process is gone.
    pub stop: Duration,
    /// After that, until its GPU memory is back.
    pub gpu_release: Duration,
    /// All saves, one restore.
    pub save: Duration,
    pub restore: Duration,
    /// An order or a look over SSH and back.
    pub trip: Duration,
    /// How late a late answer is.
    pub late: Duration,
    /// systemd's pause before an automatic restart.
    pub auto_restart: Duration,
}

impl Times {
    pub fn of(policy: &Policy) -> Self {
        let load = |kind| match kind {
            BackendKind::Vllm => Duration::from_secs(80),
            _ => Duration::from_secs(8),
        };
        Self {
            boot: Duration::from_secs(40),
            power_off: Duration::from_secs(12),
            load: policy.backends.iter().map(|b| load(b.kind)).collect(),
            stop: Duration::from_secs(2),
            gpu_release: Duration::from_millis(300),
            save: Duration::from_millis(400),
            restore: Duration::from_millis(50),
            trip: Duration::from_millis(5),
            late: Duration::from_secs(9),
            auto_restart: Duration::from_secs(3),
        }
    }
}

/// The server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Off,
    Booting { until: Instant },
    On,
    GoingDown { until: Instant },
}

/// One unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Inactive,
    Failed,
    Loading {
        until: Instant,
    },
    Ready,
    /// Its process ends at `until`; never, if it hangs.
    Stopping {
        until: Option<Instant>,
    },
    AutoRestart {
        until: Instant,
    },
}

impl Phase {
    pub const fn has_process(self) -> bool {
        matches!(self, Self::Loading { .. } | Self::Ready | Self::Stopping { .. })
    }
}

/// A backend as it truly is.
#[derive(Clone, Debug)]
pub struct Backend {
    pub phase: Phase,
    pub invocation: Option<Invocation>,
    pub restarts: u32,
    pub pid: u32,
    /// Its GPU memory is held until then although the process is gone.
    pub memory_until: Instant,
    pub in_flight: u32,
    /// Tokens in each slot; `None`: never used.
    pub slots: Vec<Option<u64>>,
    /// What they hold was restored, and no request has come since: they are shown as never used.
    pub untouched: bool,
    pub uses: u64,
    /// What has been written as a whole.
    pub saved: Vec<SavedSlot>,
    /// What is being written, until when, the first to end last. With its process it is gone: only whole files get their
    /// names.
    pub saving: Vec<(Instant, SavedSlot)>,
    /// Starts at boot.
    pub enabled: bool,
    /// Ends during its next so many loads.
    pub crashes_to_come: u32,
}

/// What can go wrong. Each lasts until [`Sim::heal`] or as said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Orders are carried out, but their answers never come.
    pub answers_lost: bool,
    /// Orders are neither carried out nor answered.
    pub orders_lost: bool,
    /// Orders are refused.
    pub orders_refused: bool,
    /// Orders are carried out, but answered late.
    pub answers_late: bool,
    /// Orders are carried out, but their answers say that they failed.
    pub answers_wrong: bool,
    /// SSH does not answer.
    pub ssh_silent: bool,
    /// HTTP does not answer.
    pub http_silent: bool,
    /// HTTP answers 500.
    pub http_odd: bool,
    /// Processes ignore SIGTERM.
    pub stop_hangs: bool,
    /// ... and SIGKILL.
    pub kill_hangs: bool,
    /// A model never finishes loading.
    pub load_hangs: bool,
    /// Saving is refused.
    pub save_fails: bool,
    /// A restore is rejected.
    pub restore_rejected: bool,
    /// A restore kills the process.
    pub restore_crashes: bool,
    /// Wake packets are not heard.
    pub deaf: bool,
    /// The GPU tool does not answer.
    pub gpu_hangs: bool,
    /// Another SSH key answers.
    pub wrong_key: bool,
    /// Our login is refused.
    pub login_refused: bool,
    /// The initramfs waits for a passphrase instead of booting on.
    pub preboot: bool,
    /// systemd does not answer.
    pub units_unread: bool,
    /// The units are gone from systemd.
    pub units_missing: bool,
    /// Where no backend listens somebody else does.
    pub stranger: bool,
    /// No look ends.
    pub looks_hang: bool,
}

/// What somebody did to the server, for laws about deeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Woken,
    Started(BackendId),
    Stopped(BackendId),
    Killed(BackendId),
    Saved(BackendId),
    Restored(BackendId),
    PoweredOff,
}

/// The answer to an order: when it comes (`None`: never) and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub at: Option<Instant>,
    pub outcome: Outcome,
}

/// The simulated server.
#[derive(Clone, Debug)]
pub struct Sim {
    pub times: Times,
    pub faults: Faults,
    pub power: Power,
    pub backends: Vec<Backend>,
    pub kinds: Vec<BackendKind>,
    pub logins: Vec<String>,
    pub foreign: Option<GpuProcess>,
    pub wake_armed: bool,
    pub deeds: Vec<(Instant, Deed)>,
    /// Looks so far.
    pub looks: u64,
    /// GPU memory when nothing runs, MiB.
    pub baseline_mib: u64,
    now: Instant,
    boots: u128,
    sessions: u64,
    invocations: u128,
    answered_before: bool,
}

impl Sim {
    /// A server that is off.
    pub fn new(policy: &Policy) -> Self {
        let backend = |slots| Backend {
            phase: Phase::Inactive,
            invocation: None,
            restarts: 0,
            pid: 1000,
            memory_until: Instant::START,
            in_flight: 0,
            slots: vec![None; if slots { 2 } else { 0 }],
            untouched: false,
            uses: 0,
            saved: vec![],
            saving: vec![],
            enabled: false,
            crashes_to_come: 0,
        };
        Self {
            times: Times::of(policy),
            faults: Faults::default(),
            power: Power::Off,
            backends: policy.backends.iter().map(|b| backend(b.slots)).collect(),
            kinds: policy.backends.iter().map(|b| b.kind).collect(),
            logins: vec![],
            foreign: None,
            wake_armed: true,
            deeds: vec![],
            looks: 0,
            baseline_mib: 10,
            now: Instant::START,
            boots: 0,
            sessions: 0,
            invocations: 0,
            answered_before: false,
        }
    }

    /// A server that is on, nothing running.
    pub fn on(policy: &Policy) -> Self {
        let mut sim = Self::new(policy);
        sim.power = Power::On;
        sim.boots = 1;
        sim
    }

    pub fn backend(&self, id: BackendId) -> &Backend {
        &self.backends[usize::from(id.0)]
    }

    pub fn backend_mut(&mut self, id: BackendId) -> &mut Backend {
        &mut self.backends[usize::from(id.0)]
    }

    /// Who truly holds the GPU.
    pub fn holders(&self) -> Vec<BackendId> {
        (0u8..).zip(&self.backends).filter(|(_, b)| b.phase.has_process()).map(|(i, _)| BackendId(i)).collect()
    }

    /// Everything is as it should be again; what is broken off stays broken off.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        let now = self.now;
        for backend in &mut self.backends {
            backend.crashes_to_come = 0;
            if let Phase::Stopping { until: until @ None } = &mut backend.phase {
                *until = Some(now + self.times.stop);
            }
        }
    }

    /// Time passes.
    pub fn advance(&mut self, now: Instant) {
        while let Some(at) = self.next().filter(|at| *at <= now) {
            self.now = self.now.max(at);
            self.happen();
        }
        self.now = self.now.max(now);
    }

    /// When something happens by itself next.
    pub fn next(&self) -> Option<Instant> {
        let power = match self.power {
            Power::Booting { .. } if self.faults.preboot => None,
            Power::Booting { until } | Power::GoingDown { until } => Some(until),
            _ => None,
        };
        let saves = self.backends.iter().filter_map(|b| b.saving.last().map(|(until, _)| *until));
        let backends = self.backends.iter().filter_map(|b| match b.phase {
            Phase::Loading { .. } if self.faults.load_hangs && b.crashes_to_come == 0 => None,
            Phase::Loading { until } | Phase::AutoRestart { until } => Some(until),
            Phase::Stopping { until } => until,
            _ => None,
        });
        backends.chain(saves).chain(power).min()
    }

    fn happen(&mut self) {
        match self.power {
            Power::Booting { until } if until <= self.now && !self.faults.preboot => {
                self.power = Power::On;
                for id in 0..self.backends.len() {
                    if self.backends[id].enabled {
                        self.load(id);
                    }
                }
            }
            Power::GoingDown { until } if until <= self.now => self.cut(),
            _ => {}
        }
        for id in 0..self.backends.len() {
            let backend = &mut self.backends[id];
            while let Some((_, whole)) = backend.saving.pop_if(|(until, _)| *until <= self.now) {
                backend.saved.insert(0, whole);
            }
            match self.backends[id].phase {
                Phase::Loading { until } if until <= self.now => {
                    if self.backends[id].crashes_to_come > 0 {
                        self.backends[id].crashes_to_come -= 1;
                        self.crash(BackendId(u8::try_from(id).unwrap_or(u8::MAX)));
                    } else if !self.faults.load_hangs {
                        self.backends[id].phase = Phase::Ready;
                    }
                }
                Phase::Stopping { until: Some(until) } if until <= self.now => {
                    self.gone(id, Phase::Inactive);
                }
                Phase::AutoRestart { until } if until <= self.now => {
                    self.backends[id].restarts += 1;
                    self.load(id);
                }
                _ => {}
            }
        }
    }

    fn load(&mut self, id: usize) {
        self.invocations += 1;
        let until = self.now + self.times.load[id];
        let backend = &mut self.backends[id];
        backend.phase = Phase::Loading { until };
        backend.invocation = Some(Invocation(self.invocations));
        backend.pid += 1;
    }

    /// The process is gone, and with it what it knew.
    fn gone(&mut self, id: usize, phase: Phase) {
        let backend = &mut self.backends[id];
        backend.phase = phase;
        backend.in_flight = 0;
        backend.slots.fill(None);
        backend.untouched = false;
        backend.saving.clear();
        backend.memory_until = self.now + self.times.gpu_release;
    }

    // ---- what strangers and fate do ---------------------------------------------------------------------------------

    /// No current any more.
    pub fn cut(&mut self) {
        self.power = Power::Off;
        self.answered_before = false;
        for id in 0..self.backends.len() {
            self.gone(id, Phase::Inactive);
            self.backends[id].invocation = None;
            self.backends[id].restarts = 0;
            self.backends[id].memory_until = Instant::START;
        }
    }

    /// Somebody presses the button.
    pub fn press(&mut self) {
        if self.power == Power::Off {
            self.boots += 1;
            self.power = Power::Booting { until: self.now + self.times.boot };
        }
    }

    /// The process of a backend dies; systemd restarts it.
    pub fn crash(&mut self, id: BackendId) {
        if self.backend(id).phase.has_process() {
            let until = self.now + self.times.auto_restart;
            self.gone(usize::from(id.0), Phase::AutoRestart { until });
        }
    }

    /// Somebody starts a unit by hand.
    pub fn start_by_hand(&mut self, id: BackendId) {
        if self.power == Power::On && !self.backend(id).phase.has_process() {
            self.load(usize::from(id.0));
        }
    }

    /// Somebody stops a unit by hand.
    pub fn stop_by_hand(&mut self, id: BackendId) {
        if self.power == Power::On {
            self.stop(id);
        }
    }

    /// Somebody uses a backend: a conversation of `tokens` in slot 0, done at once.
    pub fn converse(&mut self, id: BackendId, tokens: u64) {
        let backend = self.backend_mut(id);
        if backend.phase == Phase::Ready {
            backend.uses += 1;
            backend.untouched = false;
            if let Some(slot) = backend.slots.first_mut() {
                *slot = Some(tokens);
            }
        }
    }

    /// So many requests are in flight from now on.
    pub fn busy(&mut self, id: BackendId, requests: u32) {
        let backend = self.backend_mut(id);
        if backend.phase == Phase::Ready {
            backend.in_flight = requests;
            backend.uses += 1;
            backend.untouched = false;
        }
    }

    /// The outcome of an order that was given in that run of a backend: what a process is asked dies with it.
    pub fn as_it_came_out(&self, verb: Verb, run: Option<Invocation>, outcome: Outcome) -> Outcome {
        match verb {
            Verb::SaveSlots(id) | Verb::RestoreSlots(id)
                if !self.backend(id).phase.has_process() || self.backend(id).invocation != run =>
            {
                Outcome::Failed(Warning::new("connection_broken", "the process is gone"))
            }
            _ => outcome,
        }
    }

    /// In which run an order finds the backend it is about, if it is asked of its process.
    pub fn run_asked(&self, verb: Verb) -> Option<Invocation> {
        match verb {
            Verb::SaveSlots(id) | Verb::RestoreSlots(id) => self.backend(id).invocation,
            _ => None,
        }
    }

    /// It runs, if only on its way down.
    pub const fn is_up(&self) -> bool {
        matches!(self.power, Power::On | Power::GoingDown { .. })
    }

    /// ... and SSH carries orders and answers.
    pub const fn is_heard(&self) -> bool {
        self.is_up() && !self.faults.ssh_silent
    }

    /// The SSH session is given up; the next answer comes from another one.
    pub fn break_session(&mut self) {
        self.answered_before = false;
    }

    // ---- orders -----------------------------------------------------------------------------------------------------

    /// An order arrives.
    pub fn order(&mut self, verb: Verb, now: Instant) -> Answered {
        self.advance(now);
        let now = self.now;
        let never = Answered { at: None, outcome: Outcome::Succeeded(vec![]) };
        if self.faults.orders_lost {
            return never;
        }
        if verb == Verb::Wake {
            if self.faults.orders_refused {
                return self.failed("not_sent", "Network is unreachable");
            }
            self.deeds.push((now, Deed::Woken));
            if !self.faults.deaf && self.wake_armed {
                self.press();
            }
            return self.done(Duration::ZERO);
        }
        if !self.is_heard() {
            return never;
        }
        if self.faults.orders_refused {
            return self.failed("not_permitted", "Interactive authentication required.");
        }
        let answered = self.carry_out(verb);
        if self.faults.answers_lost {
            return never;
        }
        let late = if self.faults.answers_late { self.times.late } else { Duration::ZERO };
        let outcome = if self.faults.answers_wrong {
            Outcome::Failed(Warning::new("verb_failed", "it says so"))
        } else {
            answered.outcome
        };
        Answered { at: answered.at.map(|at| at + late), outcome }
    }

    fn done(&self, after: Duration) -> Answered {
        Answered { at: Some(self.now + self.times.trip + after), outcome: Outcome::Succeeded(vec![]) }
    }

    fn failed(&self, code: &str, message: &str) -> Answered {
        Answered { at: Some(self.now + self.times.trip), outcome: Outcome::Failed(Warning::new(code, message)) }
    }

    fn carry_out(&mut self, verb: Verb) -> Answered {
        let now = self.now;
        match verb {
            Verb::Wake => self.done(Duration::ZERO),
            Verb::StartUnit(id) => {
                self.deeds.push((now, Deed::Started(id)));
                if !self.backend(id).phase.has_process() {
                    self.backend_mut(id).restarts = 0;
                    self.load(usize::from(id.0));
                }
                self.done(Duration::ZERO)
            }
            Verb::StopUnit(id) => {
                self.deeds.push((now, Deed::Stopped(id)));
                self.stop(id);
                match self.backend(id).phase {
                    Phase::Stopping { until: Some(until) } => self.done(until.since(now)),
                    Phase::Stopping { until: None } => Answered { at: None, outcome: Outcome::Succeeded(vec![]) },
                    _ => self.done(Duration::ZERO),
                }
            }
            Verb::KillUnit(id) => {
                self.deeds.push((now, Deed::Killed(id)));
                if self.backend(id).phase.has_process() && !self.faults.kill_hangs {
                    self.gone(usize::from(id.0), Phase::Failed);
                }
                self.done(Duration::ZERO)
            }
            Verb::SaveSlots(id) => self.save(id),
            Verb::RestoreSlots(id) => self.restore(id),
            Verb::PowerOff => {
                self.deeds.push((now, Deed::PoweredOff));
                self.power = Power::GoingDown { until: now + self.times.power_off };
                for id in self.holders() {
                    self.stop(id);
                }
                self.done(Duration::ZERO)
            }
        }
    }

    fn stop(&mut self, id: BackendId) {
        let until = (!self.faults.stop_hangs).then(|| self.now + self.times.stop);
        let backend = self.backend_mut(id);
        match backend.phase {
            Phase::Loading { .. } | Phase::Ready => backend.phase = Phase::Stopping { until },
            Phase::AutoRestart { .. } => backend.phase = Phase::Inactive,
            Phase::Inactive | Phase::Failed | Phase::Stopping { .. } => {}
        }
    }

    fn save(&mut self, id: BackendId) -> Answered {
        if self.backend(id).phase != Phase::Ready {
            return self.failed("connection_refused", "nobody listens");
        }
        if self.faults.save_fails {
            return self.failed("save_failed", "the server said 500");
        }
        let now = self.now;
        self.deeds.push((now, Deed::Saved(id)));
        let untouched = self.backend(id).untouched;
        let full: Vec<(usize, u64)> = self
            .backend(id)
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, tokens)| tokens.filter(|t| *t > 0 && !untouched).map(|t| (slot, t)))
            .collect();
        // Requests take the first slots, and none is saved under them.
        let in_flight = usize::try_from(self.backend(id).in_flight).unwrap_or(usize::MAX);
        let (busy, full): (Vec<_>, Vec<_>) = full.into_iter().partition(|(slot, _)| *slot < in_flight);
        let takes = if full.is_empty() { Duration::ZERO } else { self.times.save };
        let backend = self.backend_mut(id);
        for (slot, tokens) in full {
            let saved = SavedSlot {
                name: if slot == 0 { "localbot".into() } else { format!("localbot-{slot}") },
                file: format!("localbot-{slot}-{}.bin", now.since_start().as_millis()),
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
                saved_at: 1_700_000_000 + now.since_start().as_secs(),
                generation: 0,
                ..saved_slot(tokens)
            };
            backend.saving.insert(0, (now + takes, saved));
        }
        let mut answered = self.done(takes);
        if !busy.is_empty() {
            answered.outcome = Outcome::Succeeded(vec![Warning::new("slot_busy", "a request is in flight")]);
        }
        answered
    }

    fn restore(&mut self, id: BackendId) -> Answered {
        if self.backend(id).phase != Phase::Ready {
            return self.failed("connection_refused", "nobody listens");
        }
        self.deeds.push((self.now, Deed::Restored(id)));
        let faults = self.faults;
        let backend = self.backend_mut(id);
        let Some(saved) = backend.saved.iter_mut().find(|s| s.put_aside.is_none()) else {
            return self.failed("nothing_saved", "no fitting file");
        };
        if faults.restore_rejected || faults.restore_crashes {
            saved.put_aside = Some("the server rejected it".into());
            if faults.restore_crashes {
                self.crash(id);
                return self.failed("restore_killed_process", "the connection broke off");
            }
            return self.failed("restore_rejected", "the server said 400");
        }
        let (slot, tokens) = (saved.slot as usize, saved.tokens);
        if let Some(held) = backend.slots.get_mut(slot) {
            *held = Some(tokens);
            backend.untouched = true;
        }
        self.done(self.times.restore)
    }
}

/// What slot 0 held when it was saved in an earlier life.
pub fn saved_slot(tokens: u64) -> SavedSlot {
    SavedSlot {
        name: "localbot".into(),
        file: "localbot-0.bin".into(),
        slot: 0,
        bytes: tokens * 1000,
        tokens,
        saved_at: 1_700_000_000,
        model: "model".into(),
        n_ctx: 4096,
        put_aside: None,
        generation: 1,
        last_restore: None,
        restored_into: None,
        useless: None,
        named: false,
    }
}

/// The usual two backends, and nothing the daemon does by itself.
pub fn policy() -> Policy {
    let backend = |name: &str, kind, slots, start| BackendPolicy {
        name: name.into(),
        kind,
        start_timeout: Duration::from_secs(start),
        on_start_timeout: OnStartTimeout::Leave,
        drain_timeout: Duration::from_mins(1),
        stop_timeout: Duration::from_secs(90),
        kill_timeout: Duration::from_secs(15),
        slots,
        restore: RestorePolicy::Auto,
        save_timeout: Duration::from_mins(1),
        restore_timeout: Duration::from_mins(1),
        checkpoint_tokens: None,
        checkpoint_quiet: None,
    };
    Policy {
        backends: vec![
            backend("llama-cpp", BackendKind::LlamaCpp, true, 120),
            backend("vllm", BackendKind::Vllm, false, 300),
        ],
        default_backend: BackendId(0),
        can_wake: true,
        wake_check: WakeCheck::Warn,
        wake_resend: Duration::from_secs(3),
        boot_timeout: Duration::from_mins(5),
        power_off_timeout: Duration::from_mins(3),
        command_timeout: Duration::from_secs(10),
        silence: Duration::from_secs(30),
        misses: 3,
        conflict_after: Duration::from_secs(5),
        idle_stop_after: None,
        idle_power_off_after: None,
        policy_backoff: Duration::from_mins(1),
        gpu_baseline_mib: Some(500),
    }
}
