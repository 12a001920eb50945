//! From what the machine shows and what was read to the status document. Pure, but for the clock that dates it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{
    clock::{Clock, rfc3339},
    gpu_trouble,
    history::History,
    oddities::Oddity,
    operations::{backend_of, cause_name},
    setup::{Setup, kind_name},
    status::{
        AttentionStatus, BackendStatus, Blocker, ErrorStatus, GpuMemory, HoldStatus, ModelStatus, NextActionStatus,
        OperationStatus, RestoreStatus, SCHEMA, SavedSlotStatus, SlotStatus, Status, UnitStatus,
    },
};
use crate::machine::{
    BackendId, BackendLook, BootPhase, Cause, Failure, Goal, Held, Hold, Instant, Kind, NextAction, RestorePolicy,
    Seen, Server, Use, View,
    reading::{
        Activity, BackendReading, Dated, Gpu, Http, Identity, LastRestore, People, Reading, SavedSlot, SlotReading,
        Ssh, Unit, WakeArmed,
    },
};

/// The server's clock and ours may differ by so many seconds.
const CLOCKS_DIFFER: u64 = 5;

/// Everything the document is made of.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// Names, URLs, units.
    pub setup: &'a Setup,
    /// Dates.
    pub clock: &'a Clock,
    /// What the machine shows.
    pub view: &'a View,
    /// What was read.
    pub reading: &'a Reading,
    /// How long things take here.
    pub history: &'a History,
    /// What looks odd.
    pub oddities: &'a [Oddity],
    /// How long the operation under way was expected to take when it began, seconds.
    pub expected: Option<f64>,
    /// We powered the server off, and it has not answered since.
    pub powered_off: bool,
    /// The last operation that failed.
    pub last_error: Option<ErrorStatus>,
}

impl Source<'_> {
    /// The document at `now`.
    #[must_use]
    pub(super) fn status(&self, now: Instant) -> Status {
        let Self { setup, view, .. } = *self;
        let gpu_server = self.gpu_server();
        let active = self.active();
        let policy = &setup.policy;
        let name = |id: BackendId| policy.backend(id).name.clone();
        let pick = |id: BackendId| self.reading.backends.get(usize::from(id.0));
        let identity = active.and_then(pick).and_then(identity).and_then(model_status);
        let activity = active.and_then(pick).and_then(activity);
        Status {
            schema: SCHEMA,
            server: setup.server.clone(),
            gpu_server: gpu_server.into(),
            state: view.public_name(policy),
            reason: self.reason(gpu_server).map(Into::into),
            phase: self.phase().map(Into::into),
            since: Some(self.clock.rfc3339(view.since)),
            control: self.control(gpu_server).map(Into::into),
            active_backend: active.map(name),
            health: self.health().into(),
            uptime_seconds: active.map(|id| self.uptime(id, now)),
            operation: self.operation(now),
            model: identity,
            slots: active.zip(activity).map(|(id, activity)| self.slots(id, &activity.value, now)).unwrap_or_default(),
            saved_slots: self.saved_names(),
            saved_slot_details: self.saved(),
            restore_available: self.restore_available(),
            gpu_memory: (gpu_server == "on").then(|| gpu_memory(self.reading.gpu.as_ref())).flatten(),
            backends: self.backends(gpu_server, now),
            next_action: view.next_action.map(|next| self.next_action(next)),
            blockers: self.blockers(gpu_server),
            attention: self.attention(),
            last_error: self.last_error.clone(),
            holds: view.holds.iter().map(|hold| self.hold(hold)).collect(),
            ages: self.ages(now),
            made: Some(tokio::time::Instant::now()),
        }
    }

    fn gpu_server(&self) -> &'static str {
        let by_look = match self.view.look.server {
            Server::On { .. } | Server::Uncontrolled => "on",
            Server::Booting(_) => "off",
            Server::NotLooked | Server::Silent => "unknown",
        };
        match self.view.place.kind {
            Kind::Unknown => by_look,
            Kind::Offline | Kind::Waking => "off",
            _ => "on",
        }
    }

    fn reason(&self, gpu_server: &str) -> Option<&'static str> {
        if gpu_server != "off" {
            return None;
        }
        Some(match self.view.look.server {
            Server::Booting(BootPhase::Booting) => "booting",
            Server::Booting(BootPhase::Preboot) => "preboot",
            Server::Booting(BootPhase::WrongHostKey) => "wrong-host-key",
            Server::Booting(BootPhase::AuthRefused) => "auth-refused",
            _ if self.powered_off => "powered-off",
            _ => "unreachable",
        })
    }

    fn control(&self, gpu_server: &str) -> Option<&'static str> {
        (gpu_server == "on").then_some(match self.view.look.server {
            Server::On { .. } => "ok",
            _ => "unreachable",
        })
    }

    /// The backend the place is about, with what is seen of it.
    fn concerned(&self) -> Option<(BackendId, &BackendLook)> {
        let id = self.view.place.backend?;
        Some((id, self.view.look.backends.get(usize::from(id.0))?))
    }

    /// The backend that is up: what a program may be sent to, or what is still being used while it is on its way down.
    fn active(&self) -> Option<BackendId> {
        let (id, look) = self.concerned()?;
        match self.view.place.kind {
            Kind::Running | Kind::Restoring | Kind::Draining | Kind::Saving => Some(id),
            Kind::Stopping if look.seen == Seen::Running => Some(id),
            _ => None,
        }
    }

    fn phase(&self) -> Option<&'static str> {
        let seen = self.concerned().map(|(_, look)| look);
        match self.view.place.kind {
            Kind::Offline | Kind::Waking => match self.view.look.server {
                Server::Booting(BootPhase::Booting) => Some("booting"),
                Server::Booting(BootPhase::Preboot) => Some("preboot"),
                _ => None,
            },
            Kind::Starting if seen.is_some_and(|l| l.seen == Seen::CrashLoop) => Some("auto-restart"),
            Kind::Running if seen.is_some_and(|l| l.sleeping) => Some("sleeping"),
            kind => kind.phase(),
        }
    }

    /// About what is wanted: a server asleep on purpose is not down, and one that is being stopped is not failing.
    fn health(&self) -> &'static str {
        let sick = self.concerned().is_some_and(|(_, look)| {
            matches!(look.seen, Seen::Sick | Seen::Stranger | Seen::CrashLoop)
                || (self.view.place.kind == Kind::Running && look.seen == Seen::Loading)
        });
        let shut_out =
            matches!(self.view.look.server, Server::Booting(BootPhase::WrongHostKey | BootPhase::AuthRefused));
        match self.view.place.kind {
            Kind::Conflict => return "conflict",
            Kind::Unknown => return "unknown",
            _ if sick || shut_out => return "failing",
            _ => {}
        }
        let goal = self.view.operation.as_ref().map(|op| op.goal);
        match goal {
            Some(Goal::Run(_) | Goal::Restart(_) | Goal::Awake) => return "starting",
            Some(Goal::Stop | Goal::Off) => return "stopping",
            _ => {}
        }
        match self.view.place.kind {
            Kind::Waking | Kind::Starting | Kind::Restoring => "starting",
            Kind::Draining | Kind::Stopping | Kind::PoweringOff => "stopping",
            _ => "ok",
        }
    }

    /// By systemd's word where it has one; else since we saw it. The server's clock may differ from ours: never negative,
    /// and no longer than since we saw it down.
    fn uptime(&self, id: BackendId, now: Instant) -> u64 {
        let ours = now.since(self.view.since).as_secs();
        let backend = self.reading.backends.get(usize::from(id.0));
        let Some(Unit::Loaded(unit)) = backend.and_then(|b| b.unit.as_ref()).map(|u| &u.value) else {
            return ours;
        };
        let most = backend.and_then(|b| b.last_down).map_or(u64::MAX, |down| now.since(down).as_secs());
        let wall = self.clock.wall(now).duration_since(SystemTime::UNIX_EPOCH);
        let theirs = unit.active_since.zip(wall.ok()).and_then(|(since, wall)| wall.as_secs().checked_sub(since));
        theirs.unwrap_or(ours).min(most)
    }

    fn operation(&self, now: Instant) -> Option<OperationStatus> {
        let op = self.view.operation.as_ref()?;
        let phase = match self.view.place.kind {
            Kind::Waking => "waking",
            Kind::PoweringOff => "powering-off",
            kind => kind.phase().unwrap_or("looking"),
        };
        Some(OperationStatus {
            id: op.id.0,
            kind: op.goal.kind().into(),
            goal: backend_of(op.goal).map(|id| self.setup.policy.backend(id).name.clone()),
            cause: cause_name(op.cause).into(),
            phase: phase.into(),
            started: self.clock.rfc3339(op.started),
            elapsed_seconds: seconds(now.since(op.started)),
            expected_seconds: self.expected,
        })
    }

    fn saved(&self) -> Vec<SavedSlotStatus> {
        let mut all = vec![];
        for (backend, policy) in self.reading.backends.iter().zip(&self.setup.policy.backends) {
            let saved = backend.saved.as_ref().map_or(&[][..], |saved| &saved.value);
            all.extend(saved.iter().map(|slot| SavedSlotStatus {
                name: slot.name.clone(),
                backend: policy.name.clone(),
                bytes: slot.bytes,
                saved_at: epoch(slot.saved_at),
                model: slot.model.clone(),
                tokens: slot.tokens,
                put_aside: slot.put_aside.clone(),
                slot: slot.slot,
                generation: slot.generation,
                last_restore: slot.last_restore.as_ref().map(restore_status),
                useless: slot.useless.clone(),
            }));
        }
        all
    }

    fn slots(&self, id: BackendId, activity: &Activity, now: Instant) -> Vec<SlotStatus> {
        let wall = self.clock.wall(now).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started = (wall.as_secs() - self.uptime(id, now).min(wall.as_secs())).saturating_sub(CLOCKS_DIFFER);
        let backend = self.reading.backends.get(usize::from(id.0));
        let saved = backend.and_then(|backend| backend.saved.as_ref()).map_or(&[][..], |saved| &saved.value);
        // What was saved under a chosen name can have come back into any slot.
        let is_of =
            |slot: u32| move |saved: &&SavedSlot| saved.slot == slot && (!saved.named || activity.slots.len() == 1);
        let restored = |slot: u32| {
            let of_slot = saved.iter().filter(is_of(slot)).filter_map(|saved| saved.last_restore.as_ref());
            let last = of_slot.max_by_key(|restore| restore.at)?;
            (last.reuse.is_none() && last.at >= started).then_some(last.tokens)
        };
        let slot = |s: &SlotReading| SlotStatus {
            id: s.id,
            n_ctx: s.n_ctx,
            is_processing: s.is_processing,
            tokens: s.tokens,
            restored_tokens: if s.tokens.is_none() && !s.is_processing { restored(s.id) } else { None },
        };
        activity.slots.iter().map(slot).collect()
    }

    /// Each name once, and only what may still be restored.
    fn saved_names(&self) -> Vec<String> {
        let mut known = BTreeSet::new();
        let names = self.saved().into_iter().filter(|slot| slot.put_aside.is_none()).map(|slot| slot.name);
        names.filter(|name| known.insert(name.clone())).collect()
    }

    fn restore_available(&self) -> bool {
        self.view.place.kind == Kind::Running
            && self.view.operation.is_none()
            && self.concerned().is_some_and(|(id, look)| {
                // llama.cpp shows a restored slot as unused until its first request.
                let never = self.setup.policy.backend(id).restore == RestorePolicy::Never;
                let restored = self.view.backend(id).restored;
                let done = !never && restored.is_some() && restored == look.invocation;
                look.restorable && look.unused && !look.sleeping && !done
            })
    }

    fn backends(&self, gpu_server: &str, now: Instant) -> BTreeMap<String, BackendStatus> {
        let unread = BackendReading::default();
        let mut all = BTreeMap::new();
        for (index, policy) in self.setup.policy.backends.iter().enumerate() {
            let (Some(facts), Some(look)) = (self.setup.backends.get(index), self.view.look.backends.get(index)) else {
                continue;
            };
            let reading = self.reading.backends.get(index).unwrap_or(&unread);
            let activity = activity(reading).map(|a| &a.value);
            let used = self.view.backends.get(index).and_then(|backend| backend.last_use);
            let status = BackendStatus {
                kind: kind_name(policy.kind).into(),
                url: facts.public_url.clone(),
                state: seen_name(look.seen).into(),
                unit: unit_status(&facts.unit, reading, gpu_server == "on"),
                in_flight: activity.filter(|_| look.seen == Seen::Running).and_then(|a| a.in_flight),
                last_used_seconds: used.map(|at| seconds(now.since(at))),
                start_seconds_expected: Some(self.history.start_of(&policy.name, facts.expected_start)),
            };
            all.insert(policy.name.clone(), status);
        }
        all
    }

    fn next_action(&self, next: NextAction) -> NextActionStatus {
        let name = |id: BackendId| &self.setup.policy.backend(id).name;
        let what = match next.goal {
            Goal::Off => "power-off",
            goal => goal.kind(),
        };
        let because = match (next.cause, backend_of(next.goal)) {
            (Cause::IdleStop, _) => "idle.stop_after".into(),
            (Cause::IdlePowerOff, _) => "idle.power_off_after".into(),
            (Cause::AutoRestore, Some(id)) => format!("backends.{}.restore", name(id)),
            (cause, _) => cause_name(cause).into(),
        };
        NextActionStatus { what: what.into(), at: self.clock.rfc3339(next.at), because }
    }

    fn blockers(&self, gpu_server: &str) -> Vec<Blocker> {
        let mut all: Vec<Blocker> = vec![];
        let mut add = |kind: &str, what: String, blocks: &[&str]| {
            all.push(Blocker { kind: kind.into(), what, blocks: blocks.iter().map(|&b| b.into()).collect() });
        };
        for hold in &self.view.holds {
            let held = self.held_name(hold.what);
            let blocks: &[&str] = match hold.what {
                Held::Awake => &["power-off"],
                Held::Backend(_) => &["stop", "power-off"],
                Held::Gpu | Held::Off => &["start"],
            };
            let what = format!("hold {}: {held}, by {}: {}", hold.id, hold.by, hold.reason);
            add("hold", what, blocks);
        }
        if gpu_server != "on" {
            return all;
        }
        for (policy, (look, reading)) in
            self.setup.policy.backends.iter().zip(self.view.look.backends.iter().zip(self.reading.backends.iter()))
        {
            if look.seen != Seen::Running {
                continue;
            }
            let in_flight = activity(reading).and_then(|a| a.value.in_flight);
            match look.use_ {
                Use::Idle => {}
                Use::Busy => {
                    let many = in_flight.map_or("requests".into(), |n| format!("{n} request(s)"));
                    let what = format!("{}: {many} in flight", policy.name);
                    add("request", what, &["stop", "power-off"]);
                }
                Use::Unknown => {
                    let what = format!("{}: nobody can tell whether it is in use", policy.name);
                    add("unknown", what, &["stop", "power-off"]);
                }
            }
        }
        match self.reading.people.as_ref().map(|p| &p.value) {
            Some(People::Read { logins, inhibitors }) => {
                for login in logins {
                    add("login", login.clone(), &["power-off"]);
                }
                for inhibitor in inhibitors {
                    add("inhibitor", inhibitor.clone(), &["power-off"]);
                }
            }
            Some(People::Unread(why)) => {
                let what = format!("nobody can tell who is logged in: {why}");
                add("unknown", what, &["power-off"]);
            }
            None => {}
        }
        if let Some(Gpu::Read { processes, .. }) = self.reading.gpu.as_ref().map(|g| &g.value) {
            for p in processes.iter().filter(|p| p.backend.is_none() && !p.ignored) {
                let user = p.user.as_deref().unwrap_or("unknown user");
                let memory = p.used_mib.map_or("memory unknown".into(), |m| format!("{m} MiB"));
                let what = format!("{} (pid {}, {user}): {memory}", p.name, p.pid);
                add("gpu_process", what, &["start", "power-off"]);
            }
        }
        if self.view.foreign_untold {
            let what = "nobody can tell whether who used the GPU besides the backends still does".to_owned();
            // A person's command goes on.
            add("unknown", what, &["power-off"]);
        }
        all
    }

    fn attention(&self) -> Vec<AttentionStatus> {
        // Which key it is, or which user is refused, is what a person must know to judge it.
        let detail = match self.reading.ssh.as_ref().map(|ssh| &ssh.value) {
            Some(Ssh::WrongKey(key)) => Some((Failure::WrongHostKey.code(), key)),
            Some(Ssh::AuthRefused(why)) => Some((Failure::AuthRefused.code(), why)),
            _ => None,
        };
        let one = |a: &crate::machine::Attention| AttentionStatus {
            code: a.what.code.clone(),
            message: match (a.backend, detail) {
                (Some(id), _) => format!("{}: {}", self.setup.policy.backend(id).name, a.what.message),
                (None, Some((code, detail))) if a.what.code == code => format!("{} ({detail})", a.what.message),
                (None, _) => a.what.message.clone(),
            },
            hint: a.hint.into(),
            since: self.clock.rfc3339(a.since),
            backend: a.backend.map(|id| self.setup.policy.backend(id).name.clone()),
        };
        let odd = |o: &Oddity| AttentionStatus {
            code: o.code.into(),
            message: format!("{}: {}", self.setup.policy.backend(o.backend).name, o.message),
            hint: o.hint.into(),
            since: self.clock.rfc3339(o.since),
            backend: Some(self.setup.policy.backend(o.backend).name.clone()),
        };
        let mut all: Vec<AttentionStatus> = self.view.attention.iter().map(one).collect();
        if matches!(self.view.look.server, Server::On { .. }) {
            all.extend(gpu_trouble::attention(self.reading, self.clock));
        }
        all.extend(self.oddities.iter().map(odd));
        all
    }

    fn held_name(&self, held: Held) -> String {
        match held {
            Held::Awake => "awake".into(),
            Held::Gpu => "gpu".into(),
            Held::Off => "off".into(),
            Held::Backend(id) => self.setup.policy.backend(id).name.clone(),
        }
    }

    fn hold(&self, hold: &Hold) -> HoldStatus {
        HoldStatus {
            id: hold.id.0,
            what: self.held_name(hold.what),
            until: hold.until.map(|at| self.clock.rfc3339(at)),
            reason: hold.reason.clone(),
            by: hold.by.clone(),
        }
    }

    fn ages(&self, now: Instant) -> BTreeMap<String, f64> {
        let mut ages = BTreeMap::new();
        let mut add = |name: String, at: Option<Instant>| {
            if let Some(at) = at {
                ages.insert(name, seconds(now.since(at)));
            }
        };
        let reading = self.reading;
        add("ssh".into(), reading.ssh.as_ref().map(|r| r.at));
        add("gpu".into(), reading.gpu.as_ref().map(|r| r.at));
        add("people".into(), reading.people.as_ref().map(|r| r.at));
        let wake = reading.wake_armed.as_ref().map(|r: &Dated<WakeArmed>| r.at);
        add("wake_armed".into(), wake);
        for (backend, policy) in reading.backends.iter().zip(&self.setup.policy.backends) {
            let name = &policy.name;
            add(format!("{name}.unit"), backend.unit.as_ref().map(|r| r.at));
            add(format!("{name}.http"), backend.http.as_ref().map(|r| r.at));
            let activity = backend.activity.as_ref().map(|r| r.at);
            add(format!("{name}.activity"), activity);
            let saved = backend.saved.as_ref().map(|r| r.at);
            add(format!("{name}.saved"), saved);
        }
        ages
    }
}

/// Seconds for people and programs: to the millisecond.
fn seconds(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn identity(backend: &BackendReading) -> Option<&Identity> {
    match backend.http.as_ref().map(|h| &h.value) {
        Some(Http::Ready(identity)) => Some(identity),
        _ => None,
    }
}

/// Its use, as far as it was read of the process that runs now: what another one said is no longer so.
fn activity(backend: &BackendReading) -> Option<&Dated<Activity>> {
    let since = backend.run.as_ref().map(|run| run.at);
    let activity = backend.activity.as_ref()?;
    since.is_none_or(|since| activity.at >= since).then_some(activity)
}

fn model_status(identity: &Identity) -> Option<ModelStatus> {
    Some(ModelStatus { id: identity.model.clone()?, n_ctx: identity.n_ctx })
}

fn gpu_memory(gpu: Option<&Dated<Gpu>>) -> Option<BTreeMap<String, GpuMemory>> {
    let Some(Gpu::Read { devices, .. }) = gpu.map(|g| &g.value) else {
        return None;
    };
    let one = |d: &crate::machine::reading::GpuDevice| {
        let memory = GpuMemory { used_mib: d.used_mib, total_mib: d.total_mib };
        (format!("gpu{}", d.index), memory)
    };
    Some(devices.iter().map(one).collect())
}

/// `on`: the server answers; what systemd said of a unit before it went off is no longer so.
fn unit_status(name: &str, reading: &BackendReading, on: bool) -> UnitStatus {
    let named = UnitStatus { name: name.into(), ..UnitStatus::default() };
    let Some(Unit::Loaded(unit)) = reading.unit.as_ref().map(|u| &u.value) else {
        return named;
    };
    if !on {
        return named;
    }
    UnitStatus {
        active: serde_json::to_value(unit.active).ok().and_then(|v| v.as_str().map(Into::into)),
        sub: Some(unit.sub.clone()),
        result: Some(unit.result.clone()),
        exec_status: Some(unit.exec_status),
        restarts: Some(unit.restarts),
        fragment: (!unit.fragment.is_empty()).then(|| unit.fragment.clone()),
        ..named
    }
}

const fn seen_name(seen: Seen) -> &'static str {
    match seen {
        Seen::Unknown => "unknown",
        Seen::Missing => "missing",
        Seen::Stopped => "stopped",
        Seen::Lingering => "lingering",
        Seen::Loading => "loading",
        Seen::Running => "running",
        Seen::CrashLoop => "crash-loop",
        Seen::Sick => "sick",
        Seen::Stranger => "stranger",
    }
}

/// Seconds since the Unix epoch, as documents tell time.
fn epoch(seconds: u64) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    rfc3339(at.unwrap_or(SystemTime::UNIX_EPOCH))
}

fn restore_status(restore: &LastRestore) -> RestoreStatus {
    let verdict = match restore.reuse {
        None => "unknown",
        Some(reuse) if reuse.is_effective() => "effective",
        Some(_) => "ineffective",
    };
    let text = restore.reuse.map_or("its effect is not known yet".into(), |reuse| {
        let share = reuse.reused.saturating_mul(100) / reuse.reused.saturating_add(reuse.computed).max(1);
        format!("{verdict}, {share}% of the prompt reused")
    });
    RestoreStatus {
        at: epoch(restore.at),
        tokens: restore.tokens,
        verdict: verdict.into(),
        text,
        reused: restore.reuse.map(|reuse| reuse.reused),
        computed: restore.reuse.map(|reuse| reuse.computed),
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "publish_words_tests.rs"]
mod words_tests;
