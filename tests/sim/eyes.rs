//! What can be read of the simulated server.

use std::time::Duration;
use wechsler::machine::{
    BackendId, BackendKind, BootId, Instant,
    reading::{
        ActiveState, Activity, Ask, BackendReading, Dated, Gpu, GpuDevice, GpuProcess, Http, Identity, People, Reading,
        SlotReading, Ssh, Unit, UnitState, WakeArmed,
    },
};

use super::{Backend, Phase, Power, Sim};

impl Sim {
    /// Somebody looks. The reading tells of this moment and is dated `now`.
    pub fn look(&mut self, ask: Ask, now: Instant) -> Reading {
        self.advance(now);
        self.looks += 1;
        let up = self.is_up();
        let turned_away = self.faults.wrong_key || self.faults.login_refused;
        let ssh = up && !self.faults.ssh_silent && !turned_away;
        if ssh && !self.answered_before {
            self.sessions += 1;
        }
        if ask.units {
            self.answered_before = ssh;
        }
        let mut reading = Reading {
            ssh: dated(ask.units, now, || match self.power {
                _ if ssh => Ssh::Answered { boot: BootId(self.boots), session: self.sessions },
                Power::On if self.faults.wrong_key => Ssh::WrongKey("another".into()),
                Power::On if self.faults.login_refused => Ssh::AuthRefused("gpu".into()),
                Power::Booting { .. } if self.faults.preboot => Ssh::PreBoot,
                // The last seconds of a boot: the port is there, nobody behind it yet.
                Power::Booting { until } if until.since(now) < Duration::from_secs(10) => Ssh::PortClosed,
                _ => Ssh::Silent,
            }),
            gpu: dated(ask.gpu && ssh, now, || self.gpu()),
            people: dated(ask.people && ssh, now, || People::Read { logins: self.logins.clone(), inhibitors: vec![] }),
            wake_armed: dated(ask.wake_armed && ssh, now, || {
                if self.wake_armed { WakeArmed::Armed } else { WakeArmed::NotArmed("d".into()) }
            }),
            backends: Vec::with_capacity(self.backends.len()),
            ..Reading::default()
        };
        for (backend, kind) in self.backends.iter().zip(&self.kinds) {
            let talks = up && !self.faults.http_silent;
            let odd = self.faults.http_odd;
            let ready = talks && !odd && backend.phase == Phase::Ready;
            reading.backends.push(BackendReading {
                unit: dated(ask.units && ssh, now, || self.unit(backend)),
                http: dated(ask.http, now, || match http(backend, *kind, up, talks) {
                    Http::Ready(_) if odd => Http::Status(500),
                    Http::Refused if self.faults.stranger => Http::Garbage("hello".into()),
                    http => http,
                }),
                activity: dated(ask.activity && ready, now, || activity(backend)),
                saved: dated(ask.saved, now, || backend.saved.clone()),
                ..BackendReading::default()
            });
        }
        reading
    }

    fn unit(&self, backend: &Backend) -> Unit {
        if self.faults.units_unread {
            Unit::Unread("systemctl does not answer".into())
        } else if self.faults.units_missing && !backend.phase.has_process() {
            Unit::Missing("not-found".into())
        } else {
            Unit::Loaded(unit(backend))
        }
    }

    fn gpu(&self) -> Gpu {
        if self.faults.gpu_hangs {
            return Gpu::Hangs;
        }
        let mut used = self.baseline_mib;
        let mut processes: Vec<GpuProcess> = self.foreign.iter().cloned().collect();
        used += processes.iter().filter_map(|p| p.used_mib).sum::<u64>();
        for (index, backend) in self.backends.iter().enumerate() {
            let lives = backend.phase.has_process();
            if lives {
                processes.push(GpuProcess {
                    pid: backend.pid,
                    name: "server".into(),
                    user: None,
                    used_mib: Some(9000),
                    backend: Some(index),
                    ignored: false,
                });
            }
            if lives || backend.memory_until > self.now {
                used += 9000;
            }
        }
        Gpu::Read { devices: vec![GpuDevice { index: 0, used_mib: Some(used), total_mib: Some(24_000) }], processes }
    }
}

fn unit(backend: &Backend) -> UnitState {
    let (active, sub) = match backend.phase {
        Phase::Inactive => (ActiveState::Inactive, "dead"),
        Phase::Failed => (ActiveState::Failed, "failed"),
        Phase::Loading { .. } | Phase::Ready => (ActiveState::Active, "running"),
        Phase::Stopping { .. } => (ActiveState::Deactivating, "stop-sigterm"),
        Phase::AutoRestart { .. } => (ActiveState::Activating, "auto-restart"),
    };
    let lives = backend.phase.has_process();
    let failed = matches!(backend.phase, Phase::Failed | Phase::AutoRestart { .. });
    UnitState {
        active,
        sub: sub.into(),
        job: matches!(backend.phase, Phase::Stopping { .. }),
        main_pid: lives.then_some(backend.pid),
        invocation: backend.invocation,
        restarts: backend.restarts,
        result: if failed { "signal" } else { "success" }.into(),
        exec_status: i32::from(failed) * 9,
        active_since: None,
        timeout_stop: Some(Duration::from_secs(90)),
        fragment: String::new(),
        enabled: String::new(),
        processes_left: false,
    }
}

impl Sim {
    /// Somebody of the backend listens at its port, whatever that says.
    pub fn listens(&self, id: BackendId) -> bool {
        let place = usize::from(id.0);
        matches!(http(&self.backends[place], self.kinds[place], true, true), Http::Ready(_) | Http::Unavailable)
    }
}

fn http(backend: &Backend, kind: BackendKind, up: bool, talks: bool) -> Http {
    match backend.phase {
        _ if !up || !talks => Http::TimedOut,
        Phase::Ready => Http::Ready(Identity { model: Some("model".into()), n_ctx: Some(4096), build: None }),
        Phase::Loading { .. } if kind == BackendKind::LlamaCpp => Http::Unavailable,
        _ => Http::Refused,
    }
}

fn activity(backend: &Backend) -> Activity {
    let slot = |(id, tokens): (usize, &Option<u64>)| SlotReading {
        id: u32::try_from(id).unwrap_or(u32::MAX),
        n_ctx: 4096,
        is_processing: id == 0 && backend.in_flight > 0,
        tokens: tokens.filter(|_| !backend.untouched),
    };
    Activity {
        in_flight: Some(backend.in_flight),
        mark: Some(backend.uses),
        slots: backend.slots.iter().enumerate().map(slot).collect(),
        sleeping: false,
        cannot_save: None,
        prompts: None,
    }
}

fn dated<T>(asked: bool, at: Instant, value: impl FnOnce() -> T) -> Option<Dated<T>> {
    asked.then(|| Dated { at, value: value() })
}
