//! systemd: the units, as far as anybody can tell from outside.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, interval, sleep},
};

use super::{
    faults::UnitFault,
    gpu::Lingering,
    programs::{Exit, Process, Program, ProgramFaults, Signal},
    setup::{Restart, UnitSetup},
    shared::{Shared, State},
    truth::{By, What},
};

/// Starts within `StartLimitIntervalSec`, those by hand included.
const START_LIMIT: usize = 5;
/// Between two looks at what a process holds on the GPU: afterwards nobody can tell.
const SAMPLE: Duration = Duration::from_millis(20);
/// Journal lines kept of each unit.
const MOST_JOURNAL: usize = 200;

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) status: u32,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Something it has left behind holds its output open.
    pub(super) stays_open: bool,
}

impl Ran {
    pub(super) fn said(stdout: impl Into<String>) -> Self {
        Self { stdout: stdout.into(), ..Self::default() }
    }

    pub(super) fn failed(status: u32, stderr: impl Into<String>) -> Self {
        Self { status, stderr: stderr.into(), ..Self::default() }
    }
}

/// An order is carried out at once, or its job waits.
pub(super) enum Answer {
    Now(Ran),
    Later(oneshot::Receiver<Ran>),
}

/// A unit.
pub(super) struct Unit {
    pub(super) setup: UnitSetup,
    pub(super) address: SocketAddr,
    pub(super) faults: Arc<ProgramFaults>,
    program: Program,
    phase: Phase,
    /// The main process.
    process: Option<Arc<Process>>,
    since: Option<Instant>,
    /// What the main process was last seen to hold on the GPU.
    vram_mib: u64,
    /// Processes that systemd has given up on, and such that have left a worker behind.
    left: Vec<Arc<Process>>,
    job: Option<u32>,
    stop_jobs: Vec<oneshot::Sender<Ran>>,
    start_jobs: Vec<oneshot::Sender<Ran>>,
    starts: VecDeque<Instant>,
    shown: Shown,
    journal: VecDeque<String>,
}

/// What `systemctl show` tells beside the phase.
#[derive(Clone, Debug, Default)]
struct Shown {
    invocation: u128,
    restarts: u32,
    result: &'static str,
    exec_code: u8,
    exec_status: i32,
    entered: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Inactive,
    Failed,
    Running,
    AutoRestart,
    /// ... and whether SIGKILL has taken the place of SIGTERM.
    Stopping(bool),
}

impl Phase {
    const fn active(self) -> &'static str {
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

    fn say(&mut self, line: String) {
        if self.journal.len() == MOST_JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(line);
    }

    /// What the process said goes to the journal; while it runs, it is read from the process itself.
    fn collect_log(&mut self) {
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

    /// The block of `systemctl show` in answer to [`crate::host::remote::units`].
    pub(super) fn show(&self, fault: Option<&UnitFault>, timeout_stop: Duration) -> String {
        let name = &self.setup.name;
        let down = matches!(self.phase, Phase::Inactive | Phase::Failed);
        let load = match fault {
            Some(UnitFault::Missing(unit)) if unit == name => return absent(name),
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

/// Where a unit is, or how systemd says that it is not. `doing` is `start`, `stop`.
fn find(shared: &Shared, state: &State, name: &str, doing: &str) -> Result<usize, Ran> {
    let wrong = shared.faults.unit.strike_if(|fault| match fault {
        UnitFault::Missing(unit) => unit == name,
        UnitFault::Masked(unit) => unit == name && doing == "start",
        UnitFault::OtherFile(unit, _) => unit == name && doing == "start",
    });
    match (wrong, state.units.iter().position(|u| u.setup.name == name)) {
        (Some(UnitFault::Masked(_)), _) => {
            Err(Ran::failed(1, format!("Failed to {doing} {name}: Unit {name} is masked.\n")))
        }
        (None | Some(UnitFault::OtherFile(..)), Some(at)) => Ok(at),
        _ if matches!(doing, "start" | "stop") => {
            let loaded = if doing == "start" { "found" } else { "loaded" };
            Err(Ran::failed(5, format!("Failed to {doing} {name}: Unit {name} not {loaded}.\n")))
        }
        _ => Err(Ran::failed(1, format!("Failed to {doing} unit {name}: Unit {name} not loaded.\n"))),
    }
}

/// `systemctl start`.
pub(super) fn start(shared: &Arc<Shared>, name: &str, by: By) -> Answer {
    let mut state = shared.state();
    let at = match find(shared, &state, name, "start") {
        Ok(at) => at,
        Err(no) => return Answer::Now(no),
    };
    let unit = &mut state.units[at];
    match unit.phase {
        Phase::Running => Answer::Now(Ran::default()),
        Phase::Stopping(_) => {
            // The stop's job gives way; what dies goes on dying, and then it starts.
            cancel(&mut unit.stop_jobs, name);
            let (job, ended) = oneshot::channel();
            unit.start_jobs.push(job);
            Answer::Later(ended)
        }
        Phase::Inactive | Phase::Failed | Phase::AutoRestart => {
            let ran = launch(shared, &mut state, at, by);
            Answer::Now(ran)
        }
    }
}

fn cancel(jobs: &mut Vec<oneshot::Sender<Ran>>, name: &str) {
    for job in jobs.drain(..) {
        let _ = job.send(Ran::failed(1, format!("Job for {name} canceled.\n")));
    }
}

/// What is enabled starts with the server.
pub(super) fn start_enabled(shared: &Arc<Shared>) {
    let mut state = shared.state();
    for at in 0..state.units.len() {
        if state.units[at].setup.enabled {
            launch(shared, &mut state, at, By::Systemd);
        }
    }
}

fn launch(shared: &Arc<Shared>, state: &mut State, at: usize, by: By) -> Ran {
    let now = Instant::now();
    let unit = &mut state.units[at];
    let name = unit.setup.name.clone();
    unit.starts.retain(|then| now - *then < shared.setup.times.start_limit);
    let again = unit.phase == Phase::AutoRestart && by == By::Systemd;
    if unit.starts.len() >= START_LIMIT {
        // After a crash loop the result stays that of the crash.
        if unit.shown.result == "success" {
            unit.shown.result = "start-limit-hit";
        }
        unit.phase = Phase::Failed;
        unit.say(format!("{name}: Start request repeated too quickly."));
        let text = format!("Job for {name} failed because start of the service was attempted too often.\n");
        return Ran::failed(1, text);
    }
    unit.starts.push_back(now);
    let (pid, invocation) = (state.pid(), state.id());
    let unit = &mut state.units[at];
    let restarts = if again { unit.shown.restarts + 1 } else { 0 };
    let process = Arc::new(unit.program.start(pid, Arc::clone(&unit.faults)));
    unit.phase = Phase::Running;
    unit.job = None;
    unit.since = Some(now);
    unit.vram_mib = 0;
    unit.process = Some(Arc::clone(&process));
    unit.shown = Shown {
        invocation,
        restarts,
        result: "success",
        entered: Some(super::answers::timestamp(shared.clock())),
        ..Shown::default()
    };
    unit.say(format!("Started {name}."));
    shared.did(What::Started { unit: name, pid, by });
    let server = Arc::clone(shared);
    shared.spawn(async move {
        let mut exited = process.exited();
        let mut sample = interval(SAMPLE);
        let exit = loop {
            tokio::select! {
                exit = exited.wait_for(Option::is_some) => break exit.ok().and_then(|exit| *exit),
                _ = sample.tick() => {
                    let held = process.vram_mib();
                    let mut state = server.state();
                    let unit = &mut state.units[at];
                    if held > 0 && unit.process.as_ref().is_some_and(|p| p.pid() == process.pid()) {
                        unit.vram_mib = held;
                    }
                }
            }
        };
        ended(&server, at, &process, exit.unwrap_or(Exit::Signal(9)));
    });
    Ran::default()
}

/// A process has ended.
fn ended(shared: &Arc<Shared>, at: usize, process: &Arc<Process>, exit: Exit) {
    let mut state = shared.state();
    let until = Instant::now() + shared.setup.times.gpu_lag;
    let unit = &mut state.units[at];
    let pid = process.pid();
    let name = unit.setup.name.clone();
    if let Some(stuck) = unit.left.iter().position(|p| p.pid() == pid) {
        unit.left.remove(stuck);
        let mib = unit.setup.vram_mib;
        shared.did(What::Exited { unit: name, pid, exit });
        state.lingering.push(Lingering { until, mib });
        return;
    }
    // Of another life, before the power went.
    if unit.process.as_ref().is_none_or(|p| p.pid() != pid) {
        return;
    }
    shared.did(What::Exited { unit: name.clone(), pid, exit });
    unit.collect_log();
    unit.process = None;
    unit.since = None;
    let held = std::mem::take(&mut unit.vram_mib);
    let left_behind = process.orphan().is_some();
    if left_behind {
        unit.left.push(Arc::clone(process));
    }
    let clean = matches!(exit, Exit::Code(0) | Exit::Signal(15));
    let (result, code, status) = match exit {
        Exit::Code(0) => ("success", 1, 0),
        Exit::Code(code) => ("exit-code", 1, code),
        Exit::Signal(15) => ("success", 2, 15),
        Exit::Signal(6) => ("core-dump", 3, 6),
        Exit::Signal(signal) => ("signal", 2, signal),
    };
    let killed = unit.phase == Phase::Stopping(true);
    let for_memory = exit == Exit::Signal(9) && unit.faults.fires("oom-kill").is_some();
    unit.shown.result = match result {
        _ if killed => "timeout",
        _ if for_memory => "oom-kill",
        result => result,
    };
    (unit.shown.exec_code, unit.shown.exec_status) = (code, status);
    if !clean {
        unit.say(format!("{name}: Main process exited, {}", how(exit)));
    }
    let rest = if clean && !killed { Phase::Inactive } else { Phase::Failed };
    match unit.phase {
        Phase::Stopping(_) => {
            unit.phase = rest;
            finish_stop(shared, &mut state, at);
        }
        _ => match unit.setup.restart {
            Restart::Never => unit.phase = rest,
            Restart::OnFailure if clean => unit.phase = rest,
            Restart::OnFailure | Restart::Always => {
                unit.phase = Phase::AutoRestart;
                let invocation = unit.shown.invocation;
                let server = Arc::clone(shared);
                shared.spawn(async move {
                    sleep(server.setup.times.restart_pause).await;
                    let mut state = server.state();
                    let unit = &state.units[at];
                    if unit.phase == Phase::AutoRestart && unit.shown.invocation == invocation {
                        launch(&server, &mut state, at, By::Systemd);
                    }
                });
            }
        },
    }
    if !left_behind {
        state.lingering.push(Lingering { until, mib: held });
    }
}

fn how(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("code=exited, status={code}"),
        Exit::Signal(6) => "code=dumped, status=6/ABRT".into(),
        Exit::Signal(signal) => format!("code=killed, status={signal}"),
    }
}

/// Ends the stop's job, and begins a start that waits for it.
fn finish_stop(shared: &Arc<Shared>, state: &mut State, at: usize) {
    let unit = &mut state.units[at];
    unit.job = None;
    for job in unit.stop_jobs.drain(..) {
        let _ = job.send(Ran::default());
    }
    let waiting: Vec<_> = unit.start_jobs.drain(..).collect();
    if !waiting.is_empty() {
        let ran = launch(shared, state, at, By::Ssh);
        for job in waiting {
            let _ = job.send(ran.clone());
        }
    }
}

/// `systemctl stop`.
pub(super) fn stop(shared: &Arc<Shared>, name: &str, by: By) -> Answer {
    let mut state = shared.state();
    let at = match find(shared, &state, name, "stop") {
        Ok(at) => at,
        Err(no) => return Answer::Now(no),
    };
    let job = state.next_job;
    state.next_job += 1;
    let unit = &mut state.units[at];
    match unit.phase {
        Phase::Inactive | Phase::Failed => return Answer::Now(Ran::default()),
        Phase::AutoRestart => {
            unit.phase = if unit.shown.result == "success" { Phase::Inactive } else { Phase::Failed };
            return Answer::Now(Ran::default());
        }
        Phase::Stopping(_) => cancel(&mut unit.start_jobs, name),
        Phase::Running => {
            unit.phase = Phase::Stopping(false);
            unit.job = Some(job);
            unit.say(format!("Stopping {name}..."));
            if let Some(process) = &unit.process {
                process.signal(Signal::Term);
                let (server, process) = (Arc::clone(shared), Arc::clone(process));
                shared.spawn(async move { stop_timer(&server, at, &process).await });
            }
            shared.did(What::StopBegan { unit: name.into(), by });
        }
    }
    let (job, ended) = oneshot::channel();
    unit.stop_jobs.push(job);
    Answer::Later(ended)
}

/// SIGKILL after `TimeoutStopSec`, and after as long again the unit has failed whatever is left of it.
async fn stop_timer(shared: &Arc<Shared>, at: usize, process: &Arc<Process>) {
    let this_stop = |state: &State| {
        let unit = &state.units[at];
        matches!(unit.phase, Phase::Stopping(_)) && unit.process.as_ref().is_some_and(|p| p.pid() == process.pid())
    };
    sleep(shared.setup.times.timeout_stop).await;
    {
        let mut state = shared.state();
        if !this_stop(&state) {
            return;
        }
        let unit = &mut state.units[at];
        unit.phase = Phase::Stopping(true);
        unit.say(format!("{}: State 'stop-sigterm' timed out. Killing.", unit.setup.name));
    }
    process.signal(Signal::Kill);
    sleep(shared.setup.times.timeout_stop).await;
    let mut state = shared.state();
    if !this_stop(&state) {
        return;
    }
    let unit = &mut state.units[at];
    unit.say(format!("{}: Processes still around after SIGKILL. Ignoring.", unit.setup.name));
    unit.phase = Phase::Failed;
    unit.shown.result = "timeout";
    unit.left.extend(unit.process.take());
    finish_stop(shared, &mut state, at);
}

/// `systemctl kill --signal=KILL`.
pub(super) fn kill(shared: &Arc<Shared>, name: &str, by: By) -> Ran {
    let mut state = shared.state();
    let at = match find(shared, &state, name, "kill") {
        Ok(at) => at,
        Err(no) => return no,
    };
    let unit = &mut state.units[at];
    if !unit.is_populated() {
        return Ran::failed(1, format!("Failed to kill unit {name}: No process to kill.\n"));
    }
    for process in unit.process.iter().chain(&unit.left) {
        process.signal(Signal::Kill);
    }
    let until = Instant::now() + shared.setup.times.gpu_lag;
    let mut given_back = vec![];
    unit.left.retain(|process| {
        let orphan = process.orphan();
        process.kill_orphan();
        given_back.extend(orphan.map(|(_, mib)| Lingering { until, mib }));
        orphan.is_none()
    });
    state.lingering.extend(given_back);
    drop(state);
    shared.did(What::Killed { unit: name.into(), by });
    Ran::default()
}

/// A signal to the main process, from somewhere else than systemd.
pub(super) fn signal(shared: &Shared, name: &str, signal: Signal) -> bool {
    let state = shared.state();
    let process = state.units.iter().find(|u| u.setup.name == name).and_then(|u| u.process.as_ref());
    if let Some(process) = process {
        process.signal(signal);
    }
    process.is_some()
}

/// `systemctl reset-failed`.
pub(super) fn reset_failed(shared: &Shared, name: &str) -> Ran {
    let mut state = shared.state();
    let at = match find(shared, &state, name, "reset failed state of") {
        Ok(at) => at,
        Err(no) => return no,
    };
    let unit = &mut state.units[at];
    if unit.phase == Phase::Inactive && !unit.setup.enabled && unit.starts.is_empty() {
        return Ran::failed(1, format!("Failed to reset failed state of unit {name}: Unit {name} not loaded.\n"));
    }
    unit.starts.clear();
    unit.shown.restarts = 0;
    if unit.phase == Phase::Failed {
        unit.phase = Phase::Inactive;
        unit.shown.result = "success";
    }
    drop(state);
    shared.did(What::ResetFailed { unit: name.into() });
    Ran::default()
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
