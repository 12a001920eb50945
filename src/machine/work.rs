//! An operation: how far it has come, the orders it gives, and how it ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    BackendId, Cause, Doubt, Effect, End, Failure, Goal, Instant, Invocation, OpId, Operation, Outcome, Selection,
    Server, Use, Verb, VerbId, Warning,
    core::{Backoff, Core, Order, Step},
    leaving::MOST_STOPS,
};

/// Warnings kept for one operation.
const MOST_WARNINGS: usize = 16;
/// A policy that keeps failing is tried at least this often.
const LONGEST_BACKOFF: Duration = Duration::from_hours(1);

/// An operation and how far it has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// A last look before a start or a power-off is waited for.
    pub(super) last_look: Option<LastLook>,
    /// Some unit that matters cannot be read; until then it is waited for.
    pub(super) unread_until: Option<Instant>,
    /// Goals `Save` and `Restore`: the order was given and has ended.
    pub(super) slots_done: bool,
    /// Goal `Save` of a person: until then requests in flight may end first.
    pub(super) quiet_until: Option<Instant>,
    pub(super) warnings: Vec<Warning>,
}

/// What was asked before `since` is too old to act on; after `until` it is gone without.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct LastLook {
    pub(super) since: Instant,
    pub(super) until: Instant,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Leaving {
    pub(super) backend: BackendId,
    /// The run that is left, as far as it is known.
    pub(super) invocation: Option<Invocation>,
    pub(super) drained: bool,
    pub(super) saved: bool,
    /// Requests may end until then, however often it is drained; for a policy that begins anew after each save.
    pub(super) drain_until: Option<Instant>,
    /// It was used after its save, and after that time: it is saved once more, and not again.
    pub(super) late: bool,
    /// Stops ordered so far.
    pub(super) stops: u8,
}

impl Work {
    pub(super) fn warn(&mut self, warning: Warning) {
        if self.warnings.len() < MOST_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The progress of leaving `backend`, begun anew for another one. Another run of it begins it anew when it is seen.
    pub(super) fn leaving(&mut self, backend: BackendId, invocation: Option<Invocation>) -> &mut Leaving {
        self.leaving.take_if(|l| l.backend != backend);
        let drained = self.no_drain;
        let begun = Leaving { backend, invocation, drained, saved: false, drain_until: None, late: false, stops: 0 };
        let leaving = self.leaving.get_or_insert(begun);
        leaving.invocation = leaving.invocation.or(invocation);
        leaving
    }

    /// Requests in flight are not waited for any more.
    pub(super) fn hurry(&mut self) {
        (self.no_drain, self.quiet_until) = (true, None);
        if let Some(leaving) = &mut self.leaving {
            (leaving.drained, leaving.drain_until) = (true, None);
        }
    }

    /// The server has booted, or will: whatever was started before is gone.
    pub(super) fn begin_anew(&mut self) {
        (self.launched, self.launch, self.rid_of, self.failing, self.leaving) = (false, None, None, None, None);
        (self.unread_until, self.last_look) = (None, None);
        if let Goal::Restart(backend) = self.op.goal {
            self.op.goal = Goal::Run(backend);
        }
    }

    /// `backend` was used, or nobody saw whether it was. What was saved before does not hold that: it is saved again, as
    /// often as that happens while requests may end, and once after.
    pub(super) fn used_again(&mut self, backend: BackendId, now: Instant) {
        let may_be_stopped = |l: &&mut Leaving| l.backend == backend && l.saved && l.stops < MOST_STOPS;
        let Some(leaving) = self.leaving.as_mut().filter(may_be_stopped) else { return };
        let by_policy = self.op.cause.is_policy();
        let in_time = leaving.drain_until.is_some_and(|until| until > now);
        if in_time || !leaving.late {
            // A policy gives up where requests may not end any more.
            (leaving.saved, leaving.drained) = (false, self.no_drain || !(in_time || by_policy));
            leaving.late |= !in_time;
        } else if by_policy {
            leaving.drained = false;
        } else {
            self.warn(Warning::new("slot_busy", "it was used after its last save, and stopped all the same"));
        }
    }
}

impl Core {
    /// Gives a new order its name and makes it the one under way. The entry action of the new leaf sends it.
    pub(super) fn order(&mut self, what: Verb) -> VerbId {
        let verb = VerbId(self.next_verb);
        self.next_verb += 1;
        match (what, &self.work) {
            (_, None) => {}
            (Verb::Wake, Some(work)) => {
                self.waking = Some((verb, work.op.id));
                self.coming_until = Some(self.now + self.policy.boot_timeout);
            }
            (_, Some(work)) => {
                let named = matches!(work.op.goal, Goal::Save(_, Selection::Named(_)));
                let session = match self.look.server {
                    Server::On { session, .. } => Some(session),
                    _ => None,
                };
                let run = if let Verb::SaveSlots(backend) = what { self.memory(backend).run } else { None };
                let until = self.now + self.within(what);
                self.order = Some(Order { verb, what, op: work.op.id, until, named, session, run });
            }
        }
        verb
    }

    pub(super) fn begin(&mut self, goal: Goal, cause: Cause, no_drain: bool, step: &mut Step) -> OpId {
        let id = OpId(self.next_op);
        self.next_op += 1;
        if self.work.is_some() {
            self.end(End::Replaced { by: id }, step);
        }
        let op = Operation { id, goal, cause, started: self.now, until: self.now + self.bound(goal, cause) };
        let rid_of = match goal {
            Goal::Restart(b) => self.memory(b).run,
            _ => None,
        };
        let quiet_until = match goal {
            Goal::Save(b, _) if !cause.is_policy() && !no_drain => {
                Some(self.now + self.policy.backend(b).drain_timeout)
            }
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
            last_look: None,
            unread_until: None,
            slots_done: false,
            quiet_until,
            warnings: Vec::new(),
        });
        id
    }

    /// The longest an operation can take: the sum of the longest its parts can.
    fn bound(&self, goal: Goal, cause: Cause) -> Duration {
        let p = &self.policy;
        let slack = p.command_timeout * 4 + p.silence * 2;
        // A policy asks anew after each save.
        let drains = if cause.is_policy() { 3 } else { 1 };
        let leave: Duration = p
            .backends
            .iter()
            .map(|b| {
                b.drain_timeout * drains
                    + b.save_timeout * 2
                    + (b.stop_timeout + p.command_timeout) * 2
                    + b.kill_timeout
            })
            .sum();
        let run = |b: BackendId| {
            let b = p.backend(b);
            // Twice: once more without the slots if restoring them fails.
            (b.start_timeout + b.restore_timeout + (b.stop_timeout + p.command_timeout) * 2 + b.kill_timeout) * 2
        };
        let on = p.boot_timeout + p.power_off_timeout;
        slack
            + match goal {
                Goal::Run(b) | Goal::Restart(b) => on + leave + run(b),
                Goal::Stop => leave,
                Goal::Awake => on,
                // What may be coming up is waited for.
                Goal::Off => on + leave,
                Goal::Save(b, _) => p.backend(b).drain_timeout + p.backend(b).save_timeout,
                Goal::Restore(b, _) => p.backend(b).restore_timeout + leave + run(b),
            }
    }

    pub(super) fn end(&mut self, end: End, step: &mut Step) {
        let Some(work) = self.work.take() else { return };
        // A restore by itself is tried once in a run, whatever comes of it: it needs no pause, and causes none.
        if work.op.cause.is_policy() && work.op.cause != Cause::AutoRestore {
            let in_vain = matches!(&end, End::Done { warnings } if self.left_something_out(work.op.goal, warnings));
            let backoff =
                if work.op.cause == Cause::Checkpoint { &mut self.checkpoint_backoff } else { &mut self.backoff };
            *backoff = match &end {
                End::Done { .. } if !in_vain => None,
                End::Replaced { .. } => *backoff,
                // What waits until nobody uses it waits anew.
                End::Cancelled if work.op.cause != Cause::Checkpoint => *backoff,
                End::Failed { .. } | End::Done { .. } | End::Cancelled => {
                    let wait = backoff.map_or(self.policy.policy_backoff, |b| (b.wait * 2).min(LONGEST_BACKOFF));
                    Some(Backoff { until: self.now + wait, wait })
                }
            };
        }
        // Also who did not get it is there, and may try again.
        if end == End::Cancelled || (!work.op.cause.is_policy() && work.op.goal.is_of_use()) {
            self.wanted_at = self.now;
        }
        step.emit(Effect::Ended { op: work.op.id, end });
    }

    /// A checkpoint that left something out comes again, but not at once. Where it waits for quiet and came between requests,
    /// it waits anew anyway.
    fn left_something_out(&self, goal: Goal, warnings: &[Warning]) -> bool {
        let Goal::Save(backend, Selection::Checkpoint) = goal else { return false };
        let by_tokens = self.policy.backend(backend).checkpoint_tokens.is_some();
        let is_busy = warnings.iter().any(|w| w.code == "slot_busy");
        !self.memory(backend).on_record && (by_tokens || !is_busy)
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

    /// How long an order may take.
    pub(super) fn within(&self, what: Verb) -> Duration {
        let p = &self.policy;
        match what {
            Verb::Wake | Verb::StartUnit(_) | Verb::KillUnit(_) | Verb::PowerOff => p.command_timeout,
            Verb::StopUnit(b) => p.backend(b).stop_timeout,
            Verb::SaveSlots(b) => p.backend(b).save_timeout,
            Verb::RestoreSlots(b) => p.backend(b).restore_timeout,
        }
    }

    /// Takes in the end of a round of wake packets. It decides nothing, but where nothing could be sent people shall read why.
    fn wake_sent(&mut self, verb: VerbId, outcome: &Outcome) -> bool {
        let Some((_, op)) = self.waking.take_if(|(waking, _)| *waking == verb) else {
            return false;
        };
        let warnings = match outcome {
            Outcome::Succeeded(warnings) => warnings.as_slice(),
            Outcome::Failed(warning) | Outcome::Unknown(warning) => std::slice::from_ref(warning),
        };
        let work = self.work.as_mut().filter(|w| w.op.id == op);
        let Some(work) = work else { return false };
        for warning in warnings {
            work.warn(warning.clone());
        }
        true
    }

    /// Takes in the end of an order. False if it is not the one under way.
    pub(super) fn order_ended(&mut self, verb: VerbId, outcome: &Outcome, step: &mut Step) -> bool {
        let Some(order) = self.order.take_if(|o| o.verb == verb) else {
            // The answer of an order that was given up: what it says can be believed, and a new look tells the rest.
            let known = !matches!(outcome, Outcome::Unknown(_));
            if known && self.doubt.take_if(|doubt| doubt.verb == verb).is_some() {
                self.order_ended = self.now;
                return true;
            }
            return self.wake_sent(verb, outcome);
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
            self.doubt = Some(Doubt { verb, session: order.session, boot: self.boot, backend });
        }
        let used = matches!(outcome, Outcome::Succeeded(warnings) if warnings.iter().any(|w| w.code == "slot_busy"));
        if let (true, Verb::SaveSlots(backend)) = (used, order.what) {
            self.memory_mut(backend).last_use = Some(self.now);
        }
        // What was left out, whyever, is not on record.
        let all = matches!(outcome, Outcome::Succeeded(warnings) if warnings.iter().all(|w| w.code == "saved_already"));
        if let (true, Verb::SaveSlots(backend), false) = (all, order.what, order.named)
            && self.memory(backend).run == order.run
        {
            // What it holds now is on record: nothing older belongs into this run.
            let tokens = self.look.backend(backend).tokens;
            let memory = self.memory_mut(backend);
            (memory.restored, memory.on_record, memory.saved_tokens) = (true, true, tokens);
        }
        // A rejection is no reason to throw away what other slots hold meanwhile.
        let spoils = match (failed, order.what) {
            (Some("restore_killed_process"), Verb::RestoreSlots(_)) => true,
            (Some("restore_rejected"), Verb::RestoreSlots(backend)) => {
                let look = self.look.backend(backend);
                !look.holds_tokens && look.use_ != Use::Busy
            }
            _ => false,
        };
        if let (true, Verb::RestoreSlots(backend)) = (spoils, order.what) {
            // One that was sent and rejected may have spoilt the process; one that killed it surely has.
            let memory = self.memory_mut(backend);
            memory.spoilt = memory.restored;
        }
        let rid_of = match order.what {
            Verb::RestoreSlots(backend) => self.memory(backend).run_if(self.memory(backend).restored),
            _ => None,
        };
        // A request came between the drain and the save, whatever became of that.
        let is_busy = used || matches!(order.what, Verb::SaveSlots(backend) if self.memory(backend).busy);
        let Some(work) = self.work.as_mut().filter(|w| w.op.id == order.op) else {
            return true;
        };
        // A power-off cuts off its own answer: that is no warning.
        let warnings = if unknown && order.what == Verb::PowerOff { Vec::new() } else { warnings };
        // A person is told that it is saved, or that it is not; a checkpoint comes again.
        let left_out = used && !work.op.cause.is_policy();
        let once_more = left_out && work.quiet_until.is_some_and(|until| until > self.now);
        for warning in warnings.into_iter().filter(|_| !once_more) {
            work.warn(warning);
        }
        match order.what {
            Verb::SaveSlots(_) => {
                work.slots_done = !once_more;
                let (now, no_drain, by_policy) = (self.now, work.no_drain, work.op.cause.is_policy());
                let gives_way = used && by_policy && work.leaving.is_some();
                if let Some(leaving) = &mut work.leaving {
                    // It may end too, as long as requests may.
                    let again = is_busy && !no_drain && leaving.drain_until.is_some_and(|until| until > now);
                    leaving.drained &= !again;
                    leaving.saved = !again;
                    if by_policy {
                        // What was said of its use before the save is old by now: a policy asks anew.
                        (leaving.drained, leaving.drain_until) = (false, None);
                    }
                }
                let is_saved = failed.is_none() && !unknown && !left_out;
                if matches!(work.op.goal, Goal::Save(..)) && !is_saved && !once_more {
                    self.fail(Failure::SaveFailed, step);
                }
                if gives_way {
                    self.fail(Failure::InUse, step);
                }
            }
            Verb::RestoreSlots(_) => {
                work.slots_done = true;
                work.no_restore = true;
                if spoils {
                    work.rid_of = rid_of;
                    work.launched = false;
                    work.launch = None;
                    if let Goal::Restore(b, _) = work.op.goal {
                        // One that is gone already needs only to be started.
                        work.op.goal = if rid_of.is_some() { Goal::Restart(b) } else { Goal::Run(b) };
                    }
                } else if matches!(work.op.goal, Goal::Restore(..)) && (failed.is_some() || unknown) {
                    self.fail(Failure::RestoreFailed, step);
                }
            }
            Verb::StartUnit(_) | Verb::StopUnit(_) | Verb::KillUnit(_) | Verb::PowerOff => {
                let leaving = work.leaving.as_mut().filter(|leaving| leaving.stops < MOST_STOPS);
                if let (true, Some(leaving)) = (work.op.cause.is_policy(), leaving) {
                    // Should it go on all the same, somebody may use it by now.
                    (leaving.drained, leaving.drain_until) = (false, None);
                }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{BackendKind, RequestId, core::Core, evidence::tests::policy};

    const BACKEND: BackendId = BackendId(0);

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    fn stopping() -> Work {
        let mut core = Core::new(policy(&[BackendKind::LlamaCpp]).into(), vec![]);
        core.begin(Goal::Stop, Cause::Command(RequestId(1)), false, &mut Step::at(at(0)));
        core.work.expect("it has begun")
    }

    #[test]
    fn a_warning_is_told_once_and_not_too_many_are() {
        let mut work = stopping();
        let warning = |number: usize| Warning::new(format!("code {number}"), "");
        for number in (0..100).flat_map(|number| [number, number]) {
            work.warn(warning(number));
        }
        assert_eq!(work.warnings, (0..MOST_WARNINGS).map(warning).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_saved_yet_or_stopped_already_or_another_is_not_saved_again() {
        type Change = fn(&mut Leaving);
        let changes: [(Change, bool); 4] = [
            (|_| {}, false),
            (|leaving| leaving.saved = false, true),
            (|leaving| leaving.stops = MOST_STOPS, true),
            (|leaving| leaving.backend = BackendId(1), true),
        ];
        for (number, (change, stays)) in changes.into_iter().enumerate() {
            let mut work = stopping();
            let leaving = work.leaving(BACKEND, None);
            (leaving.drained, leaving.saved) = (true, true);
            change(leaving);
            let before = *leaving;
            work.used_again(BACKEND, at(1));
            let after = work.leaving.expect("it is left");
            let told = |l: Leaving| (l.backend, l.drained, l.saved, l.late);
            assert_eq!(told(after) == told(before), stays, "change {number}");
        }
    }

    #[test]
    fn what_was_used_after_its_save_is_saved_again_while_requests_may_end_and_once_after() {
        for (now, drained, late) in [(at(59), false, false), (at(60), true, true), (at(61), true, true)] {
            let mut work = stopping();
            let leaving = work.leaving(BACKEND, None);
            (leaving.drained, leaving.saved, leaving.drain_until) = (true, true, Some(at(60)));
            work.used_again(BACKEND, now);
            let leaving = work.leaving(BACKEND, None);
            assert_eq!((leaving.drained, leaving.saved, leaving.late), (drained, false, late), "{now}");
            leaving.saved = true;
            work.used_again(BACKEND, now);
            assert_eq!(work.leaving(BACKEND, None).saved, late, "{now}");
            assert_eq!(work.warnings.len(), usize::from(late));
        }
    }
}
