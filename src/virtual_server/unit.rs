//! A unit, as systemd knows it and shows it.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    faults::UnitFault,
    programs::{Process, Program, ProgramFaults, Signal},
    setup::UnitSetup,
    units::Ran,
};

/// Journal lines kept of each unit.
const MOST_JOURNAL: usize = 200;

/// A unit.
pub(super) struct Unit {
    pub(super) setup: UnitSetup,
    pub(super) address: SocketAddr,
    pub(super) faults: Arc<ProgramFaults>,
    pub(super) program: Program,
    pub(super) phase: Phase,
    /// The main process.
    pub(super) process: Option<Arc<Process>>,
    pub(super) since: Option<Instant>,
    /// What the main process was last seen to hold on the GPU.
    pub(super) vram_mib: u64,
    /// Processes that systemd has given up on, and such that have left a worker behind.
    pub(super) left: Vec<Arc<Process>>,
    pub(super) job: Option<u32>,
    pub(super) stop_jobs: Vec<oneshot::Sender<Ran>>,
    pub(super) start_jobs: Vec<oneshot::Sender<Ran>>,
    pub(super) starts: VecDeque<Instant>,
    pub(super) shown: Shown,
    pub(super) journal: VecDeque<String>,
}

/// What `systemctl show` tells beside the phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) invocation: u128,
    pub(super) restarts: u32,
    pub(super) result: &'static str,
    pub(super) exec_code: u8,
    pub(super) exec_status: i32,
    pub(super) entered: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Inactive,
    Failed,
    Running,
    AutoRestart,
    /// ... and whether SIGKILL has taken the place of SIGTERM.
    Stopping(bool),
}

impl Phase {
    pub(super) const fn active(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Failed => "failed",
            Self::Running => "active",
            Self::AutoRestart => "activating",
            Self::Stopping(_) => "deactivating",
        }
    }

    const fn sub(self) -> &'static str {
        match self {
            Self::Inactive => "dead",
            Self::Failed => "failed",
            Self::Running => "running",
            Self::AutoRestart => "auto-restart",
            Self::Stopping(false) => "stop-sigterm",
            Self::Stopping(true) => "stop-sigkill",
        }
    }
}

impl Unit {
    pub(super) fn new(setup: UnitSetup, address: SocketAddr, program: Program) -> Self {
        Self {
            setup,
            address,
            faults: Arc::default(),
            program,
            phase: Phase::Inactive,
            process: None,
            since: None,
            vram_mib: 0,
            left: vec![],
            job: None,
            stop_jobs: vec![],
            start_jobs: vec![],
            starts: VecDeque::new(),
            shown: Shown { result: "success", ..Shown::default() },
            journal: VecDeque::new(),
        }
    }

    /// Everything of it is gone at once, and forgotten. Its journal is on disk.
    pub(super) fn lose_power(&mut self) {
        self.collect_log();
        for process in self.process.iter().chain(&self.left) {
            // Without power nothing hangs on.
            process.signal(Signal::Abort);
            process.kill_orphan();
        }
        let journal = std::mem::take(&mut self.journal);
        let faults = Arc::clone(&self.faults);
        *self = Self::new(self.setup.clone(), self.address, self.program.clone());
        self.journal = journal;
        self.faults = faults;
    }

    pub(super) const fn active(&self) -> &'static str {
        self.phase.active()
    }

    /// Its process, or one that is stuck.
    pub(super) fn process(&self) -> Option<&Arc<Process>> {
        self.process.as_ref().or_else(|| self.left.iter().find(|p| p.exited().borrow().is_none()))
    }

    pub(super) const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Its processes on the GPU with what they hold.
    pub(super) fn on_gpu(&self) -> Vec<(u32, u64)> {
        let held = |p: &Arc<Process>| p.orphan().unwrap_or_else(|| (p.pid(), p.vram_mib()));
        self.process.iter().chain(&self.left).map(held).filter(|(_, mib)| *mib > 0).collect()
    }

    /// The user it runs as, and the program as `nvidia-smi` names it.
    pub(super) const fn program_name(&self) -> (&'static str, &'static str) {
        match self.program {
            Program::LlamaCpp(_) => ("llama", "/usr/local/bin/llama-server"),
            Program::Vllm(_) => ("vllm", "VLLM::EngineCore"),
        }
    }

    /// Something of it is left in its control group.
    pub(super) fn is_populated(&self) -> bool {
        self.process.is_some() || !self.left.is_empty()
    }

    pub(super) fn say(&mut self, line: String) {
        if self.journal.len() == MOST_JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(line);
    }

    /// What the process said goes to the journal; while it runs, it is read from the process itself.
    pub(super) fn collect_log(&mut self) {
        let said = self.process.as_ref().map_or_else(Vec::new, |p| p.log());
        for line in said {
            self.say(line);
        }
    }

    /// The last lines of its journal.
    pub(super) fn journal(&self, lines: usize) -> Vec<String> {
        let running = self.process.as_ref().map_or_else(Vec::new, |p| p.log());
        let mut all: Vec<String> = self.journal.iter().cloned().chain(running).collect();
        all.split_off(all.len().saturating_sub(lines))
    }

    pub(super) const fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Inactive | Phase::Failed)
    }

    /// The block of `systemctl show` in answer to [`crate::host::remote::units`].
    pub(super) fn show(&self, fault: Option<&UnitFault>, timeout_stop: Duration) -> String {
        let name = &self.setup.name;
        let down = self.is_down();
        let load = match fault {
            // One that is up stays known without its file.
            Some(UnitFault::Missing(unit)) if unit == name && down => return absent(name),
            Some(UnitFault::Missing(unit)) if unit == name => "not-found",
            Some(UnitFault::Masked(unit)) if unit == name => "masked",
            _ => "loaded",
        };
        let (fragment, _) = self.file(fault);
        // A stopped unit that nothing refers to is unloaded, and its counters with it.
        let fresh = Shown { result: "success", ..Shown::default() };
        let shown = if self.phase == Phase::Inactive && !self.setup.enabled { &fresh } else { &self.shown };
        let pid = if down { 0 } else { self.process.as_ref().map_or(0, |p| p.pid()) };
        let invocation = match shown.invocation {
            0 => String::new(),
            id => format!("{id:032x}"),
        };
        format!(
            "TimeoutStopUSec={}\nMainPID={pid}\nNRestarts={}\nResult={}\nExecMainStatus={}\nNames={name}\nLoadState={load}\n\
             ActiveState={}\nSubState={}\nFragmentPath={fragment}\nUnitFileState={}\n\
             ActiveEnterTimestamp={}\nJob={}\nInvocationID={invocation}\n",
            timespan(timeout_stop),
            shown.restarts,
            shown.result,
            shown.exec_status,
            self.phase.active(),
            self.phase.sub(),
            if self.setup.enabled { "enabled" } else { "disabled" },
            shown.entered.as_deref().unwrap_or_default(),
            self.job.map_or_else(String::new, |job| job.to_string()),
        )
    }

    /// ... and of [`crate::host::remote::units_down`], without its brackets.
    pub(super) fn listed(&self, fault: Option<&UnitFault>) -> String {
        let name = &self.setup.name;
        let load = match fault {
            Some(UnitFault::Missing(unit)) if unit == name && self.is_down() => return listed_absent(name),
            Some(UnitFault::Missing(unit)) if unit == name => "not-found",
            Some(UnitFault::Masked(unit)) if unit == name => "masked",
            _ => "loaded",
        };
        let (active, sub) = (self.phase.active(), self.phase.sub());
        let (job, kind) = self.job.map_or((0, ""), |job| (job, "stop"));
        format!(
            "[\"{name}\",\"{name}\",\"{load}\",\"{active}\",\"{sub}\",\"\",\"/org/freedesktop/systemd1/unit/it\",{job},\"{kind}\",\"/\"]"
        )
    }

    /// ... and of [`crate::host::remote::post_mortem`].
    pub(super) fn show_end(&self, fault: Option<&UnitFault>) -> String {
        let Shown { result, exec_code, exec_status, restarts, .. } = &self.shown;
        let (fragment, stale) = self.file(fault);
        format!(
            "ExecMainCode={exec_code}\nExecMainStatus={exec_status}\nActiveState={}\nSubState={}\nResult={result}\nNRestarts={restarts}\n\
             FragmentPath={fragment}\nDropInPaths=\nNeedDaemonReload={}\n",
            self.phase.active(),
            self.phase.sub(),
            if stale { "yes" } else { "no" },
        )
    }

    /// The file it is read from, and whether that has changed since.
    fn file(&self, fault: Option<&UnitFault>) -> (String, bool) {
        match fault {
            Some(UnitFault::OtherFile(unit, path)) if *unit == self.setup.name => (path.clone(), true),
            _ => (format!("/etc/systemd/system/{}", self.setup.name), false),
        }
    }
}

/// A unit that is not there, as [`Unit::listed`] tells it.
pub(super) fn listed_absent(name: &str) -> String {
    format!("[\"{name}\",\"{name}\",\"not-found\",\"inactive\",\"dead\",\"\",\"/\",0,\"\",\"/\"]")
}

/// The block of a unit that is not there.
pub(super) fn absent(name: &str) -> String {
    format!(
        "TimeoutStopUSec=1min 30s\nMainPID=0\nNRestarts=0\nResult=success\nExecMainStatus=0\nNames={name}\n\
         LoadState=not-found\nActiveState=inactive\nSubState=dead\nFragmentPath=\nUnitFileState=\nActiveEnterTimestamp=\n\
         Job=\nInvocationID=\n"
    )
}

/// As systemd writes it: `1min 30s`, `1s 500ms`.
fn timespan(time: Duration) -> String {
    let (minutes, seconds, millis) = (time.as_secs() / 60, time.as_secs() % 60, time.subsec_millis());
    let parts = [(minutes, "min"), (seconds, "s"), (u64::from(millis), "ms")];
    let said: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if said.is_empty() { "0".into() } else { said.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_systemd_writes_them() {
        for (millis, text) in [(90_000, "1min 30s"), (1500, "1s 500ms"), (60_000, "1min"), (0, "0")] {
            assert_eq!(timespan(Duration::from_millis(millis)), text);
        }
    }
}
