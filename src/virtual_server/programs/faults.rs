//! What can be wrong with a program, set from outside while it runs. Each fault counts how often it fired, so that a
//! test can tell a supervisor that coped from one that was never put to it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::Exit;

/// One thing that is wrong, or (the last few) an option the real program has on its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Health questions are taken and never answered.
    HealthHangs,
    /// Health questions are answered so much later.
    HealthSlow(Duration),
    /// Health questions are answered with this status.
    HealthStatus(u16),
    /// Health and identity questions are answered 200, with a page of HTML.
    HealthGarbage,
    /// Health and identity questions are answered 200, with a body that never ends.
    HealthEndless,
    /// It says that it is this other model.
    OtherIdentity(String),
    /// The load never ends (until the fault is cleared).
    LoadHangs,
    /// It finds no GPU, says nothing of it, and loads into ordinary memory.
    CpuFallback,
    /// The load ends so instead of being ready.
    LoadFails(Exit),
    /// Another program holds its port when it wants to bind it.
    PortInUse,
    /// A save is answered with 500, and nothing was written.
    SaveFails,
    /// A save is answered with 500; a truncated file lies there, and what was there before is gone.
    DiskFull,
    /// A save takes until the fault is cleared, and nothing is decoded meanwhile.
    SaveHangs,
    /// Slots are saved into a folder beside the one that was meant.
    SavesElsewhere,
    /// A save says another size than the file has.
    SaveSaysOtherSize,
    /// A restore begins only when the fault is cleared.
    RestoreHangs,
    /// A restore is answered with the vague 400, whatever the file is.
    RestoreRejected,
    /// A restore aborts the process, whatever the file is.
    RestoreKills,
    /// A restore says it worked, and then nothing of it is used: a model with a sliding window.
    RestoreUnused,
    /// SIGTERM does nothing.
    TermIgnored,
    /// SIGKILL does nothing until the fault is cleared: a process in uninterruptible sleep.
    KillIgnored,
    /// vLLM: the engine has died; the rest exits with **0** so much later.
    EngineDead(Duration),
    /// vLLM: a SIGTERM in the second half of the load is lost.
    TermLostInLoad,
    /// When the process ends, a worker of it stays and holds the GPU memory.
    OrphanStays,
    /// What kills it with SIGKILL is the kernel, for lack of memory.
    OomKill,
    /// It generates other text than its model would.
    WrongText,
    /// Inference is answered with 500 while health says 200.
    CompletionsFail,
    /// Inference gets nowhere (until the fault is cleared) while health says 200.
    CompletionsHang,
    /// The connection is closed in the middle of an answer to an inference.
    AnswersCutOff,
    /// There are no metrics: llama.cpp without `--metrics`, vLLM with `--disable-log-stats`.
    NoMetrics,
    /// llama.cpp with `--no-slots`.
    NoSlots,
    /// llama.cpp without `--slot-save-path`.
    NoSlotSaves,
    /// llama.cpp was upgraded to this build, which still reads the same files.
    OtherBuild(String),
    /// vLLM: somebody has put it to sleep. Its metrics tell; health says 200.
    Asleep,
    /// llama.cpp with `--sleep-idle-seconds`.
    SleepIdle(Duration),
    /// With `--api-key`.
    ApiKey(String),
}

impl Fault {
    /// Its name, as [`ProgramFaults::fired`] and [`ProgramFaults::clear`] take it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::HealthHangs => "health-hangs",
            Self::HealthSlow(_) => "health-slow",
            Self::HealthStatus(_) => "health-status",
            Self::HealthGarbage => "health-garbage",
            Self::HealthEndless => "health-endless",
            Self::OtherIdentity(_) => "other-identity",
            Self::LoadHangs => "load-hangs",
            Self::CpuFallback => "cpu-fallback",
            Self::LoadFails(_) => "load-fails",
            Self::PortInUse => "port-in-use",
            Self::SaveFails => "save-fails",
            Self::DiskFull => "disk-full",
            Self::SaveHangs => "save-hangs",
            Self::SavesElsewhere => "saves-elsewhere",
            Self::SaveSaysOtherSize => "save-says-other-size",
            Self::RestoreHangs => "restore-hangs",
            Self::RestoreRejected => "restore-rejected",
            Self::RestoreKills => "restore-kills",
            Self::RestoreUnused => "restore-unused",
            Self::TermIgnored => "term-ignored",
            Self::KillIgnored => "kill-ignored",
            Self::EngineDead(_) => "engine-dead",
            Self::TermLostInLoad => "term-lost-in-load",
            Self::OrphanStays => "orphan-stays",
            Self::OomKill => "oom-kill",
            Self::WrongText => "wrong-text",
            Self::CompletionsFail => "completions-fail",
            Self::CompletionsHang => "completions-hang",
            Self::AnswersCutOff => "answers-cut-off",
            Self::NoMetrics => "no-metrics",
            Self::NoSlots => "no-slots",
            Self::NoSlotSaves => "no-slot-saves",
            Self::OtherBuild(_) => "other-build",
            Self::Asleep => "asleep",
            Self::SleepIdle(_) => "sleep-idle",
            Self::ApiKey(_) => "api-key",
        }
    }
}

/// The faults of one program. They outlive its processes, as the fault of a machine does. By default there are none.
#[derive(Debug, Default)]
pub struct ProgramFaults {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    crash: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct Inner {
    set: BTreeMap<&'static str, Set>,
    fired: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Set {
    fault: Fault,
    /// So many more times; `None`: until cleared.
    left: Option<u32>,
}

impl ProgramFaults {
    /// Sets a fault until it is cleared. One of a name at a time.
    pub fn set(&self, fault: Fault) {
        self.put(fault, None);
    }

    /// Sets a fault that fires so many times.
    pub fn set_times(&self, fault: Fault, times: u32) {
        self.put(fault, Some(times));
    }

    /// Takes a fault back.
    pub fn clear(&self, name: &str) {
        self.inner().set.remove(name);
        self.tell();
    }

    /// Takes all faults back. What has fired stays counted.
    pub fn clear_all(&self) {
        self.inner().set.clear();
        self.tell();
    }

    /// How often the fault of this name has fired. A crash counts as `crash`.
    pub fn fired(&self, name: &str) -> u64 {
        self.inner().fired.get(name).copied().unwrap_or(0)
    }

    /// The process that runs now ends by itself, like this.
    pub fn crash(&self, exit: Exit) {
        self.crash.send_replace(Some(exit));
    }

    /// The fault, if it is set; this counts as having fired.
    pub(in crate::virtual_server) fn fires(&self, name: &'static str) -> Option<Fault> {
        let mut inner = self.inner();
        let set = inner.set.get_mut(name)?;
        let fault = set.fault.clone();
        if let Some(left) = &mut set.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                inner.set.remove(name);
            }
        }
        inner.count(name);
        Some(fault)
    }

    /// The fault, if it is set, without counting.
    pub(super) fn look(&self, name: &str) -> Option<Fault> {
        self.inner().set.get(name).map(|set| set.fault.clone())
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.inner().set.contains_key(name)
    }

    /// Waits while a fault is set; fires once if it is.
    pub(super) async fn wait_out(&self, name: &'static str) {
        if !self.is_set(name) {
            return;
        }
        self.inner().count(name);
        self.until(|| !self.is_set(name)).await;
    }

    /// Waits until a fault is set.
    pub(super) async fn wait_for(&self, name: &str) {
        self.until(|| self.is_set(name)).await;
    }

    async fn until(&self, so: impl Fn() -> bool) {
        let mut changed = self.changed.subscribe();
        while !so() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for the next [`ProgramFaults::crash`] after the receiver was made.
    pub(super) async fn crashed(&self, mut crash: watch::Receiver<Option<Exit>>) -> Exit {
        loop {
            // The sender lives as long as `self`.
            let _ = crash.changed().await;
            if let Some(exit) = *crash.borrow_and_update() {
                self.inner().count("crash");
                return exit;
            }
        }
    }

    /// For [`ProgramFaults::crashed`]: only crashes from now on count.
    pub(super) fn crashes(&self) -> watch::Receiver<Option<Exit>> {
        self.crash.subscribe()
    }

    fn put(&self, fault: Fault, left: Option<u32>) {
        if left != Some(0) {
            self.inner().set.insert(fault.name(), Set { fault, left });
        }
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&mut self, name: &'static str) {
        *self.fired.entry(name).or_default() += 1;
    }
}
