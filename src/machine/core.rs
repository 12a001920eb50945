//! What the machine remembers beside its leaf: the newest look, the operation, the order under way, the holds.

use super::{
    BackendId, BootId, BootPhase, Cause, Effect, End, Failure, Goal, Hold, HoldId, Instant, Invocation, Look, OpId,
    Operation, Outcome, Policy, Seen, Server, Use, Verb, VerbId, Warning, ignored::Ignored,
};

/// Holds in force at most: more are a program gone wild.
pub(super) const MOST_HOLDS: usize = 64;
/// Evidence older than this starts nothing.
pub(super) const FRESH: std::time::Duration = std::time::Duration::from_secs(5);
/// Warnings kept for one operation.
const MOST_WARNINGS: usize = 16;
/// A policy that keeps failing is tried at least this often.
const LONGEST_BACKOFF: std::time::Duration = std::time::Duration::from_hours(1);

/// One step: the time, what is asked for, and why nothing was.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) now: Instant,
    pub(super) effects: Vec<Effect>,
    pub(super) ignored: Option<Ignored>,
}

impl Step {
    pub(super) const fn at(now: Instant) -> Self {
        Self { now, effects: Vec::new(), ignored: None }
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// The shared storage of the statechart: what outlives a leaf.
#[derive(Clone, Debug)]
pub(super) struct Core {
    pub(super) policy: Policy,
    pub(super) now: Instant,
    pub(super) look: Look,
    /// The boot last seen, kept through silence.
    pub(super) boot: Option<BootId>,
    /// Looks in a row that found no server that is up; `None`: the last one did.
    pub(super) silence: Option<Silence>,
    pub(super) backends: Vec<Memory>,
    /// Since when more than one backend has been up.
    pub(super) crowded_since: Option<Instant>,
    /// Since when the server has been on with no backend: what `idle.power_off_after` counts from.
    pub(super) vacant_since: Option<Instant>,
    pub(super) work: Option<Work>,
    /// The one order that changes anything and has not ended.
    pub(super) order: Option<Order>,
    /// When the last such order ended: looks asked before prove nothing about it.
    pub(super) order_ended: Instant,
    /// An order's answer was lost in this SSH session: nothing is sent until a later one shows the unit settled.
    pub(super) doubt: Option<Doubt>,
    pub(super) holds: Vec<Hold>,
    pub(super) next_hold: u64,
    pub(super) next_op: u64,
    pub(super) next_verb: u64,
    /// Policies wait until then after they failed.
    pub(super) backoff: Option<Backoff>,
    pub(super) attention: Vec<Worry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) since: Instant,
    pub(super) misses: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) until: Instant,
    pub(super) wait: std::time::Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) verb: VerbId,
    pub(super) what: Verb,
    pub(super) until: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) session: Option<u64>,
    pub(super) boot: Option<BootId>,
    pub(super) backend: BackendId,
}

/// Something that needs a person, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worry {
    pub(super) what: WorryKind,
    pub(super) backend: Option<BackendId>,
    pub(super) since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorryKind {
    Failure(Failure),
    WakeUnarmed,
}

/// What is remembered of one backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// The end of its last use; starts when it became ready, or at the first look.
    pub(super) last_use: Option<Instant>,
    /// Different answers in a row that said idle, with nothing used in between.
    pub(super) calm: u32,
    /// The run a restore was ordered for.
    pub(super) restored: Option<Invocation>,
    /// Looks in a row in which the running backend did not answer.
    pub(super) unwell: u32,
    /// The run seen healthy.
    pub(super) ready: Option<Invocation>,
}

/// An operation and how far it has come.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) op: Operation,
    pub(super) no_drain: bool,
    /// The run it wants to be rid of (restart).
    pub(super) rid_of: Option<Invocation>,
    /// We ordered the start of the wanted backend, at this count of automatic restarts.
    pub(super) launched: bool,
    /// The run that came of it.
    pub(super) launch: Option<(Invocation, u32)>,
    /// Do not restore (again).
    pub(super) no_restore: bool,
    /// How far leaving has come.
    pub(super) leaving: Option<Leaving>,
    /// It has failed, and stops the backend first.
    pub(super) failing: Option<Failure>,
    /// Waits for a last look at people and network card before a power-off, until then.
    pub(super) power_check_until: Option<Instant>,
    /// The order to power off was given.
    pub(super) powered_off: Option<BootId>,
    /// Goals `Save` and `Restore`: the order was given and has ended.
    pub(super) slots_done: bool,
    pub(super) warnings: Vec<Warning>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) backend: BackendId,
    pub(super) invocation: Option<Invocation>,
    pub(super) drained: bool,
    pub(super) saved: bool,
}

impl Work {
    pub(super) fn warn(&mut self, warning: Warning) {
        if self.warnings.len() < MOST_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The progress of leaving `backend`, begun anew for another run.
    pub(super) fn leaving(&mut self, backend: BackendId, invocation: Option<Invocation>) -> &mut Leaving {
        let fits = self.leaving.is_some_and(|l| l.backend == backend && l.invocation == invocation);
        if !fits {
            self.leaving = None;
        }
        let no_drain = self.no_drain;
        self.leaving.get_or_insert(Leaving { backend, invocation, drained: no_drain, saved: false })
    }
}

impl Core {
    pub(super) fn new(policy: Policy, holds: Vec<Hold>) -> Self {
        let backends = policy.backends.len();
        let next_hold = holds.iter().map(|h| h.id.0).max().unwrap_or(0) + 1;
        Self {
            look: Look::nothing(backends),
            backends: vec![Memory::default(); backends],
            policy,
            now: Instant::START,
            boot: None,
            silence: None,
            crowded_since: None,
            vacant_since: None,
            work: None,
            order: None,
            order_ended: Instant::START,
            doubt: None,
            holds,
            next_hold,
            next_op: 1,
            next_verb: 1,
            backoff: None,
            attention: Vec::new(),
        }
    }

    // ---- what is seen -------------------------------------------------------------------------------------------

    /// The pinned key answers.
    pub(super) const fn is_on(&self) -> bool {
        matches!(self.look.server, Server::On { .. })
    }

    /// Nothing that is up has answered for long enough.
    pub(super) fn is_off(&self) -> bool {
        self.silence.is_some_and(|s| {
            // A server never seen up needs no patience: there is nothing that could have flapped.
            s.misses >= self.policy.misses && (self.boot.is_none() || self.now.since(s.since) >= self.policy.silence)
        })
    }

    pub(super) fn seen(&self, id: BackendId) -> Seen {
        self.look.backend(id).seen
    }

    pub(super) fn memory(&self, id: BackendId) -> &Memory {
        &self.backends[usize::from(id.0)]
    }

    pub(super) fn memory_mut(&mut self, id: BackendId) -> &mut Memory {
        &mut self.backends[usize::from(id.0)]
    }

    /// Backends that hold the GPU, or may at any moment.
    pub(super) fn up(&self) -> impl Iterator<Item = BackendId> + '_ {
        self.policy.ids().filter(|id| self.seen(*id).is_up())
    }

    pub(super) fn first(&self, wanted: impl Fn(Seen) -> bool) -> Option<BackendId> {
        self.policy.ids().find(|id| wanted(self.seen(*id)))
    }

    /// No order is under way or in doubt, and the look was asked after the last one ended.
    pub(super) fn is_settled(&self) -> bool {
        self.order.is_none() && self.doubt.is_none() && self.look.at >= self.order_ended
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.now.since(self.look.at) <= FRESH
    }

    // ---- what is told -------------------------------------------------------------------------------------------

    /// Takes in a look. True if it says anything new.
    pub(super) fn observe(&mut self, look: &Look) -> bool {
        let now = self.now;
        let new = !self.look.says_same_as(look);
        let silence_before = self.is_off();
        let misses = self.policy.misses;
        // The same questions' answers told again (with another source's news) are not another look.
        let newer = look.at > self.look.at;
        match look.server {
            Server::NotLooked => {}
            Server::Silent | Server::Booting(_) => {
                let s = self.silence.get_or_insert(Silence { since: now, misses: 0 });
                if newer {
                    s.misses = s.misses.saturating_add(1).min(self.policy.misses);
                }
            }
            Server::On { boot, .. } => {
                self.silence = None;
                self.boot = Some(boot);
            }
            Server::Uncontrolled => self.silence = None,
        }
        for id in self.policy.ids() {
            let (before, after) = (self.look.backend(id).clone(), look.backend(id));
            let memory = self.memory_mut(id);
            let other_run = before.invocation != after.invocation;
            let used = after.use_ == Use::Busy || (!other_run && before.mark.is_some() && after.mark != before.mark);
            if other_run || used {
                memory.calm = 0;
            }
            match after.seen {
                Seen::Running => {
                    memory.unwell = 0;
                    let first = memory.ready != after.invocation || memory.last_use.is_none();
                    memory.ready = after.invocation;
                    if first || used {
                        memory.last_use = Some(now);
                    }
                }
                Seen::Loading | Seen::Sick => {
                    memory.unwell = memory.unwell.saturating_add(u32::from(newer)).min(misses);
                }
                Seen::Stopped | Seen::Missing | Seen::CrashLoop => {
                    memory.ready = None;
                    memory.unwell = 0;
                }
                Seen::Unknown | Seen::Lingering | Seen::Stranger => {}
            }
            if after.use_ == Use::Idle && (other_run || used || memory.calm == 0 || after.use_at > before.use_at) {
                memory.calm = memory.calm.saturating_add(1).min(2);
            }
        }
        self.look = look.clone();
        let crowd = self.up().count() > 1;
        self.crowded_since = if crowd { self.crowded_since.or(Some(now)) } else { None };
        let vacant = self.is_on() && self.policy.ids().all(|id| self.seen(id).is_stopped());
        self.vacant_since = if vacant { self.vacant_since.or(Some(now)) } else { None };
        if let Some(doubt) = self.doubt {
            let settled = match look.server {
                Server::On { boot, session } => {
                    doubt.boot != Some(boot)
                        || (doubt.session.is_none_or(|s| session > s) && self.seen(doubt.backend) != Seen::Lingering)
                }
                _ => self.is_off(),
            };
            if settled {
                self.doubt = None;
            }
        }
        self.worry();
        new || silence_before != self.is_off()
    }

    /// Keeps the list of what needs a person: new worries begin now, old ones keep their beginning, gone ones go.
    pub(super) fn worry(&mut self) {
        let mut found: Vec<(WorryKind, Option<BackendId>)> = Vec::new();
        match self.look.server {
            Server::Booting(BootPhase::WrongHostKey) => {
                found.push((WorryKind::Failure(Failure::WrongHostKey), None));
            }
            Server::Booting(BootPhase::Preboot) => {
                found.push((WorryKind::Failure(Failure::Preboot), None));
            }
            Server::Booting(BootPhase::AuthRefused) => {
                found.push((WorryKind::Failure(Failure::AuthRefused), None));
            }
            Server::Uncontrolled => {
                found.push((WorryKind::Failure(Failure::ControlUnreachable), None));
            }
            Server::NotLooked | Server::Silent | Server::On { .. } | Server::Booting(BootPhase::Booting) => {}
        }
        for id in self.policy.ids() {
            let failure = match self.seen(id) {
                Seen::Missing => Failure::UnitMissing,
                Seen::CrashLoop => Failure::CrashLoop,
                Seen::Sick | Seen::Stranger => Failure::Unavailable,
                _ => continue,
            };
            found.push((WorryKind::Failure(failure), Some(id)));
        }
        if self.crowded_since.is_some_and(|s| self.now.since(s) >= self.policy.conflict_after) {
            found.push((WorryKind::Failure(Failure::Conflict), None));
        }
        if self.look.wake_armed == Some(false) && self.policy.wake_check != super::WakeCheck::Off {
            found.push((WorryKind::WakeUnarmed, None));
        }
        let old = std::mem::take(&mut self.attention);
        self.attention = found
            .into_iter()
            .map(|(what, backend)| {
                let since = old.iter().find(|w| w.what == what && w.backend == backend).map_or(self.now, |w| w.since);
                Worry { what, backend, since }
            })
            .collect();
    }

    /// Takes in the end of an order. False if it is not the one under way.
    pub(super) fn order_ended(&mut self, verb: VerbId, outcome: &Outcome, step: &mut Step) -> bool {
        let Some(order) = self.order.take_if(|o| o.verb == verb) else {
            return false;
        };
        // Saves and restores leave the units as they were: what was seen of those still holds.
        if !matches!(order.what, Verb::SaveSlots(_) | Verb::RestoreSlots(_)) {
            self.order_ended = self.now;
        }
        let (warnings, failed) = match outcome {
            Outcome::Succeeded(warnings) => (warnings.clone(), None),
            Outcome::Failed(warning) => (vec![warning.clone()], Some(warning.code.as_str())),
            Outcome::Unknown(warning) => (vec![warning.clone()], None),
        };
        let unknown = matches!(outcome, Outcome::Unknown(_));
        if let (true, Verb::StartUnit(backend) | Verb::StopUnit(backend) | Verb::KillUnit(backend)) =
            (unknown, order.what)
        {
            let session = match self.look.server {
                Server::On { session, .. } => Some(session),
                _ => None,
            };
            self.doubt = Some(Doubt { session, boot: self.boot, backend });
        }
        if let (Outcome::Succeeded(_), Verb::SaveSlots(backend)) = (outcome, order.what) {
            // What it holds now is on record: nothing older belongs into this run.
            self.memory_mut(backend).restored = self.look.backend(backend).invocation;
        }
        let Some(work) = &mut self.work else {
            return true;
        };
        // A power-off cuts off its own answer: that is no warning.
        let warnings = if unknown && order.what == Verb::PowerOff { Vec::new() } else { warnings };
        for warning in warnings {
            work.warn(warning);
        }
        match order.what {
            Verb::SaveSlots(_) => {
                work.slots_done = true;
                if let Some(leaving) = &mut work.leaving {
                    leaving.saved = true;
                }
                if matches!(work.op.goal, Goal::Save(_)) && (failed.is_some() || unknown) {
                    self.fail(Failure::SaveFailed, step);
                }
            }
            Verb::RestoreSlots(backend) => {
                work.slots_done = true;
                work.no_restore = true;
                // A restore that was sent and rejected may have spoilt the process; one that killed it surely has.
                if matches!(failed, Some("restore_rejected" | "restore_killed_process")) {
                    let invocation = self.look.backend(backend).invocation;
                    let work = self.work.as_mut().expect("there is work, looked at just above");
                    work.rid_of = invocation;
                    work.launched = false;
                    work.launch = None;
                    *work.leaving(backend, invocation) = Leaving { backend, invocation, drained: true, saved: true };
                    if let Goal::Restore(b) = work.op.goal {
                        work.op.goal = Goal::Restart(b);
                    }
                } else if matches!(work.op.goal, Goal::Restore(_)) && (failed.is_some() || unknown) {
                    self.fail(Failure::RestoreFailed, step);
                }
            }
            Verb::StartUnit(_) | Verb::StopUnit(_) | Verb::KillUnit(_) | Verb::PowerOff => {
                let failure = match (failed, order.what) {
                    (None, _) => return true,
                    (Some("not_permitted"), _) => Failure::NotPermitted,
                    (Some("unit_missing"), _) => Failure::UnitMissing,
                    // Nothing was sent: SSH was down, and says why.
                    (Some("wrong_host_key"), _) => Failure::WrongHostKey,
                    (Some("preboot"), _) => Failure::Preboot,
                    (Some("auth_refused"), _) => Failure::AuthRefused,
                    (Some("control_unreachable"), _) => Failure::ControlUnreachable,
                    (Some(_), Verb::StartUnit(_)) => Failure::StartFailed,
                    (Some(_), Verb::PowerOff) => Failure::Blocked,
                    // A stop that says it failed has often worked (backends.md 5.3): the look decides.
                    (Some(_), _) => return true,
                };
                self.fail(failure, step);
            }
            Verb::Wake => {}
        }
        true
    }

    // ---- orders and ends ----------------------------------------------------------------------------------------

    /// Gives a new order its name and makes it the one under way. The entry action of the new leaf sends it.
    pub(super) fn order(&mut self, what: Verb, within: std::time::Duration) -> VerbId {
        let verb = VerbId(self.next_verb);
        self.next_verb += 1;
        if what != Verb::Wake {
            self.order = Some(Order { verb, what, until: self.now + within });
        }
        verb
    }

    pub(super) fn begin(&mut self, goal: Goal, cause: Cause, no_drain: bool, step: &mut Step) -> OpId {
        let id = OpId(self.next_op);
        self.next_op += 1;
        if self.work.is_some() {
            self.end(End::Replaced { by: id }, step);
        }
        let op = Operation { id, goal, cause, started: self.now, until: self.now + self.bound(goal) };
        let rid_of = match goal {
            Goal::Restart(b) => self.look.backend(b).invocation,
            _ => None,
        };
        step.emit(Effect::Began(op.clone()));
        self.work = Some(Work {
            op,
            no_drain,
            rid_of,
            launched: false,
            launch: None,
            no_restore: false,
            leaving: None,
            failing: None,
            power_check_until: None,
            powered_off: None,
            slots_done: false,
            warnings: Vec::new(),
        });
        id
    }

    /// The longest an operation can take: the sum of the longest its parts can.
    fn bound(&self, goal: Goal) -> std::time::Duration {
        let p = &self.policy;
        let slack = p.command_timeout * 4 + p.silence * 2;
        let leave: std::time::Duration = p
            .backends
            .iter()
            .map(|b| b.drain_timeout + b.save_timeout + b.stop_timeout + b.kill_timeout + p.command_timeout * 2)
            .sum();
        let run = |b: BackendId| {
            let b = p.backend(b);
            // Twice: once more without the slots if restoring them fails.
            (b.start_timeout + b.restore_timeout + b.stop_timeout + b.kill_timeout + p.command_timeout * 2) * 2
        };
        let on = p.boot_timeout + p.power_off_timeout;
        slack
            + match goal {
                Goal::Run(b) | Goal::Restart(b) => on + leave + run(b),
                Goal::Stop => leave,
                Goal::Awake => on,
                Goal::Off => leave + p.power_off_timeout,
                Goal::Save(b) => p.backend(b).save_timeout,
                Goal::Restore(b) => p.backend(b).restore_timeout + leave + run(b),
            }
    }

    pub(super) fn end(&mut self, end: End, step: &mut Step) {
        let Some(work) = self.work.take() else { return };
        // A restore by itself is tried once in a run, whatever comes of it: it needs no pause, and causes none.
        if work.op.cause.is_policy() && work.op.cause != Cause::AutoRestore {
            self.backoff = match end {
                End::Failed { .. } => {
                    let wait = self.backoff.map_or(self.policy.policy_backoff, |b| (b.wait * 2).min(LONGEST_BACKOFF));
                    Some(Backoff { until: self.now + wait, wait })
                }
                End::Done { .. } => None,
                End::Cancelled | End::Replaced { .. } => self.backoff,
            };
        }
        step.emit(Effect::Ended { op: work.op.id, end });
    }

    pub(super) fn done(&mut self, step: &mut Step) {
        let warnings = self.work.as_mut().map_or_else(Vec::new, |w| std::mem::take(&mut w.warnings));
        self.end(End::Done { warnings }, step);
    }

    pub(super) fn fail(&mut self, failure: Failure, step: &mut Step) {
        let warnings = self.work.as_mut().map_or_else(Vec::new, |w| std::mem::take(&mut w.warnings));
        self.end(End::Failed { failure, warnings }, step);
    }

    pub(super) fn warn(&mut self, code: &str, message: &str) {
        if let Some(work) = &mut self.work {
            work.warn(Warning::new(code, message));
        }
    }

    /// Ends an order whose answer is overdue: nobody knows.
    pub(super) fn expire_order(&mut self, step: &mut Step) {
        if let Some(order) = self.order.filter(|o| o.until <= self.now) {
            let lost = Warning::new("no_answer", "the order's answer did not come in time");
            self.order_ended(order.verb, &Outcome::Unknown(lost), step);
        }
    }

    // ---- holds --------------------------------------------------------------------------------------------------

    pub(super) fn expire_holds(&mut self, step: &mut Step) {
        let (now, before) = (self.now, self.holds.len());
        self.holds.retain(|h| h.until.is_none_or(|until| until > now));
        if self.holds.len() != before {
            step.emit(Effect::HoldsChanged);
        }
    }

    pub(super) fn is_held(&self, what: super::Held) -> bool {
        self.holds.iter().any(|h| h.what == what)
    }

    pub(super) const fn mint_hold(&mut self) -> HoldId {
        let id = HoldId(self.next_hold);
        self.next_hold += 1;
        id
    }
}

impl Look {
    /// Says the same about the world, whenever it was asked.
    pub(super) fn says_same_as(&self, other: &Self) -> bool {
        self.server == other.server
            && self.foreign_gpu == other.foreign_gpu
            && self.people == other.people
            && self.wake_armed == other.wake_armed
            && self
                .backends
                .iter()
                .zip(&other.backends)
                .all(|(a, b)| super::BackendLook { use_at: b.use_at, ..a.clone() } == *b)
    }
}
