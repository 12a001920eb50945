//! systemd: what it does with units, as far as anybody can tell from outside.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, interval, sleep},
};

use super::{
    faults::UnitFault,
    gpu::{self, Lingering},
    programs::{Exit, Fault, Process, Signal},
    setup::Restart,
    shared::{Shared, State},
    truth::{By, What},
    unit::{Phase, Shown},
};

/// Starts within `StartLimitIntervalSec`, those by hand included.
const START_LIMIT: usize = 5;
/// Between two looks at what a process holds on the GPU: afterwards nobody can tell.
const SAMPLE: Duration = Duration::from_millis(20);

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

/// Where a unit is, or how systemd says that it is not. `doing` is `start`, `stop`.
fn find(shared: &Shared, state: &State, name: &str, doing: &str) -> Result<usize, Ran> {
    let at = state.units.iter().position(|u| u.setup.name == name);
    // What is up is known without its file, and can be stopped.
    let known = at.is_some_and(|at| !state.units[at].is_down());
    let wrong = shared.faults.unit.strike_if(|fault| match fault {
        UnitFault::Missing(unit) => unit == name && !(known && doing != "start"),
        UnitFault::Masked(unit) => unit == name && doing == "start",
        UnitFault::OtherFile(unit, _) => unit == name && doing == "start",
    });
    match (wrong, at) {
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
    let (pid, invocation, free) = (state.pid(), state.id(), gpu::free(shared, state));
    let unit = &mut state.units[at];
    let restarts = if again { unit.shown.restarts + 1 } else { 0 };
    if unit.setup.vram_mib > free {
        // Half loaded, it finds no more.
        unit.faults.set_times(Fault::LoadFails(Exit::Code(1)), 1);
        unit.say("CUDA error: out of memory".into());
    }
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
                    server.collect_slot_deeds(&state);
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
    shared.collect_slot_deeds(&state);
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
            shared.did(What::StopBegan { unit: name.into(), by });
            if let Some(process) = &unit.process {
                if let Some((tokens, used)) = process.truth().unsaved {
                    shared.did(What::Unsaved { unit: name.into(), tokens, used });
                }
                process.signal(Signal::Term);
                let (server, process) = (Arc::clone(shared), Arc::clone(process));
                shared.spawn(async move { stop_timer(&server, at, &process).await });
            }
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
