//! The record of operations: what began, how it ended, and what the unit said when it failed.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use super::{
    PostMortem,
    clock::Clock,
    handle::{NotSaved, OPERATIONS_KEPT, OperationRecord},
    status::ErrorStatus,
    unsaved,
};
use crate::machine::{BackendId, Cause, End, Failure, Goal, Instant, OpId, Operation, Policy, Warning};

/// The record, newest last.
#[derive(Debug)]
pub(super) struct Operations {
    kept: VecDeque<OperationRecord>,
    published: watch::Sender<Arc<Vec<OperationRecord>>>,
    last_error: Option<(String, ErrorStatus)>,
}

impl Operations {
    /// An empty record, and where it is published.
    #[must_use]
    pub(super) fn new() -> (Self, watch::Receiver<Arc<Vec<OperationRecord>>>) {
        let (published, listener) = watch::channel(Arc::new(vec![]));
        let record = Self { kept: VecDeque::new(), published, last_error: None };
        (record, listener)
    }

    /// An operation has begun.
    pub(super) fn began(&mut self, op: &Operation, clock: &Clock, policy: &Policy) -> OperationRecord {
        let record = OperationRecord {
            id: op.id.0,
            kind: op.goal.kind().into(),
            goal: backend_of(op.goal).map(|id| policy.backend(id).name.clone()),
            cause: cause_name(op.cause).into(),
            started: clock.rfc3339(op.started),
            ..OperationRecord::default()
        };
        self.kept.push_back(record.clone());
        while self.kept.len() > OPERATIONS_KEPT {
            self.kept.pop_front();
        }
        self.publish();
        record
    }

    /// An operation has ended. The end and what the unit said come out together, so that whoever waits for the end
    /// reads both.
    pub(super) fn ended(
        &mut self,
        op: OpId,
        end: &End,
        at: Instant,
        post_mortem: Vec<String>,
        not_saved: Vec<NotSaved>,
        clock: &Clock,
    ) -> Option<OperationRecord> {
        let record = self.kept.iter_mut().rev().find(|r| r.id == op.0)?;
        let when = clock.rfc3339(at);
        record.ended = Some(when.clone());
        record.end = Some(end_name(end).into());
        (record.post_mortem, record.not_saved) = (post_mortem, not_saved);
        match end {
            End::Done { warnings } => {
                record.warnings.clone_from(warnings);
                if self.last_error.as_ref().is_some_and(|(kind, _)| *kind == record.kind) {
                    self.last_error = None;
                }
            }
            End::Failed { failure, warnings } => {
                record.warnings.clone_from(warnings);
                record.code = Some(failure.code().into());
                record.message = Some(message(*failure, warnings));
                let hint = hint(*failure, warnings);
                record.hint = Some(hint.into());
                let error = ErrorStatus {
                    code: failure.code().into(),
                    message: message(*failure, warnings),
                    hint: hint.into(),
                    at: when,
                };
                self.last_error = Some((record.kind.clone(), error));
            }
            End::Cancelled => record.message = Some("Somebody cancelled it.".into()),
            End::Replaced { by } => {
                record.message = Some(format!("Operation {by} took its place."));
            }
        }
        let record = record.clone();
        self.publish();
        Some(record)
    }

    /// The last operation that failed, until one of the same kind was done.
    #[must_use]
    pub(super) fn last_error(&self) -> Option<ErrorStatus> {
        self.last_error.as_ref().map(|(_, error)| error.clone())
    }

    fn publish(&self) {
        let all = self.kept.iter().cloned().collect();
        self.published.send_replace(Arc::new(all));
    }
}

/// The warning that says why. Of slots the failure itself says nothing: what became of them, and why, was told first.
fn reason(failure: Failure, warnings: &[Warning]) -> Option<&Warning> {
    match failure {
        Failure::SaveFailed | Failure::RestoreFailed => warnings.first(),
        _ => warnings.iter().find(|w| w.code == failure.code()),
    }
}

fn hint(failure: Failure, warnings: &[Warning]) -> &'static str {
    let of_reason = || reason(failure, warnings).and_then(|why| unsaved::hint(&why.code));
    match failure {
        Failure::SaveFailed | Failure::RestoreFailed => of_reason().unwrap_or(failure.hint()),
        _ => failure.hint(),
    }
}

/// What happened, and why.
fn message(failure: Failure, warnings: &[Warning]) -> String {
    match reason(failure, warnings) {
        Some(detail) if detail.message != failure.message() => {
            format!("{} ({})", failure.message(), detail.message)
        }
        _ => failure.message().into(),
    }
}

/// The backend a goal is about.
#[must_use]
pub(super) const fn backend_of(goal: Goal) -> Option<BackendId> {
    match goal {
        Goal::Run(id) | Goal::Restart(id) | Goal::Save(id, _) | Goal::Restore(id, _) => Some(id),
        Goal::Stop | Goal::Awake | Goal::Off => None,
    }
}

/// The backend whose unit can tell why this end came, where one can.
#[must_use]
pub(super) const fn who_can_tell(goal: Goal, end: &End) -> Option<BackendId> {
    let (Goal::Run(id) | Goal::Restart(id), End::Failed { failure, .. }) = (goal, end) else {
        return None;
    };
    match failure {
        Failure::HealthTimeout
        | Failure::HttpUnreachable
        | Failure::StartFailed
        | Failure::CrashLoop
        | Failure::UnitMissing
        | Failure::Unavailable => Some(id),
        _ => None,
    }
}

/// The word for a cause, as in `operation.cause`.
#[must_use]
pub(super) const fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Command(_) => "command",
        Cause::IdleStop => "idle_stop",
        Cause::IdlePowerOff => "idle_power_off",
        Cause::AutoRestore => "auto_restore",
        Cause::Checkpoint => "checkpoint",
    }
}

/// The word for an end, as in [`OperationRecord::end`].
#[must_use]
pub(super) const fn end_name(end: &End) -> &'static str {
    match end {
        End::Done { .. } => "done",
        End::Failed { .. } => "failed",
        End::Cancelled => "cancelled",
        End::Replaced { .. } => "replaced",
    }
}

/// A backend that never answered although it listens on its own server has not been slow: its URL is wrong, or a firewall
/// is in the way.
pub(super) fn named_better(end: End, told: &PostMortem) -> End {
    match end {
        End::Failed { failure: Failure::HealthTimeout, warnings } if told.port_listens => {
            End::Failed { failure: Failure::HttpUnreachable, warnings }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{RequestId, Selection};

    fn policy() -> Policy {
        crate::driver::tests_policy()
    }

    fn operation(id: u64, goal: Goal) -> Operation {
        Operation {
            id: OpId(id),
            goal,
            cause: Cause::Command(RequestId(1)),
            started: Instant::START,
            until: Instant::START,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_record_is_bounded_and_an_old_operation_is_forgotten() {
        let (mut record, listener) = Operations::new();
        let clock = Clock::start();
        for id in 1..=OPERATIONS_KEPT as u64 + 1 {
            record.began(&operation(id, Goal::Stop), &clock, &policy());
        }
        assert_eq!(listener.borrow().len(), OPERATIONS_KEPT);
        assert_eq!(listener.borrow().first().map(|r| r.id), Some(2));
        let done = End::Done { warnings: vec![] };
        let now = clock.now();
        assert!(record.ended(OpId(1), &done, now, vec![], vec![], &clock).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_what_was_wanted_by_whom_and_how_it_ended() {
        let (mut record, listener) = Operations::new();
        let clock = Clock::start();
        let at = |seconds| Instant::after_start(std::time::Duration::from_secs(seconds));
        let llama = Some("llama-cpp".to_owned());
        let warnings = vec![Warning::new("slot_busy", "slot 1")];
        for (id, goal, cause, end, told) in [
            (
                1,
                Goal::Run(BackendId(0)),
                Cause::AutoRestore,
                End::Done { warnings: warnings.clone() },
                ("start", &llama),
            ),
            (2, Goal::Restart(BackendId(0)), Cause::Command(RequestId(1)), End::Cancelled, ("restart", &llama)),
            (3, Goal::Off, Cause::IdlePowerOff, End::Replaced { by: OpId(9) }, ("power-off", &None)),
        ] {
            let operation = Operation { cause, started: at(id), ..operation(id, goal) };
            let began = record.began(&operation, &clock, &policy());
            assert_eq!((began.id, began.kind.as_str(), &began.goal), (id, told.0, told.1));
            assert_eq!((began.cause.as_str(), began.started), (cause_name(cause), clock.rfc3339(at(id))));
            let ended =
                record.ended(OpId(id), &end, at(id + 5), vec!["said".into()], vec![], &clock).expect("it began");
            assert_eq!(ended.ended, Some(clock.rfc3339(at(id + 5))));
            assert_eq!((ended.end.as_deref(), &ended.post_mortem), (Some(end_name(&end)), &vec!["said".to_owned()]));
            assert_eq!(listener.borrow().last(), Some(&ended));
        }
        let all = listener.borrow();
        let told: Vec<_> = all.iter().map(|r| (r.warnings.clone(), r.code.as_deref(), r.message.as_deref())).collect();
        let nothing = vec![];
        assert_eq!(
            told,
            [
                (warnings, None, None),
                (nothing.clone(), None, Some("Somebody cancelled it.")),
                (nothing, None, Some("Operation 9 took its place.")),
            ]
        );
    }

    #[test]
    fn why_it_failed_is_told_if_that_says_more() {
        let own = Failure::CrashLoop.message();
        let told = |warnings: &[Warning]| message(Failure::CrashLoop, warnings);
        assert_eq!(told(&[]), own);
        assert_eq!(told(&[Warning::new("crash_loop", own)]), own);
        let warnings = [Warning::new("slot_busy", "slot 1"), Warning::new("crash_loop", "signal 9")];
        assert_eq!(told(&warnings), format!("{own} (signal 9)"));
    }

    #[test]
    fn each_cause_and_each_end_has_its_word() {
        let causes = [
            (Cause::Command(RequestId(1)), "command"),
            (Cause::IdleStop, "idle_stop"),
            (Cause::IdlePowerOff, "idle_power_off"),
            (Cause::AutoRestore, "auto_restore"),
            (Cause::Checkpoint, "checkpoint"),
        ];
        for (cause, word) in causes {
            assert_eq!(cause_name(cause), word);
        }
        let failed = End::Failed { failure: Failure::CrashLoop, warnings: vec![] };
        let ends = [
            (End::Done { warnings: vec![] }, "done"),
            (failed, "failed"),
            (End::Cancelled, "cancelled"),
            (End::Replaced { by: OpId(1) }, "replaced"),
        ];
        for (end, word) in ends {
            assert_eq!(end_name(&end), word);
        }
    }

    #[test]
    fn a_unit_is_asked_about_a_start_that_it_can_have_broken() {
        let of = |goal, failure| who_can_tell(goal, &End::Failed { failure, warnings: vec![] });
        let llama = BackendId(0);
        let known = [
            Failure::HealthTimeout,
            Failure::HttpUnreachable,
            Failure::StartFailed,
            Failure::CrashLoop,
            Failure::UnitMissing,
            Failure::Unavailable,
        ];
        for failure in known {
            assert_eq!(of(Goal::Run(llama), failure), Some(llama), "{failure:?}");
            assert_eq!(of(Goal::Restart(llama), failure), Some(llama), "{failure:?}");
            assert_eq!(of(Goal::Save(llama, Selection::All), failure), None, "{failure:?}");
        }
        assert_eq!(of(Goal::Run(llama), Failure::ControlUnreachable), None);
        assert_eq!(who_can_tell(Goal::Run(llama), &End::Cancelled), None);
    }

    #[test]
    fn one_that_listens_on_its_own_server_and_never_answers_is_not_reached() {
        let named = |failure, port_listens| {
            let told = PostMortem { port_listens, ..PostMortem::default() };
            named_better(End::Failed { failure, warnings: vec![] }, &told)
        };
        let is = |failure| End::Failed { failure, warnings: vec![] };
        assert_eq!(named(Failure::HealthTimeout, true), is(Failure::HttpUnreachable));
        assert_eq!(named(Failure::HealthTimeout, false), is(Failure::HealthTimeout));
        assert_eq!(named(Failure::CrashLoop, true), is(Failure::CrashLoop));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_restore_says_why_and_claims_nothing_of_the_context() {
        let (mut record, _listener) = Operations::new();
        let clock = Clock::start();
        record.began(&operation(1, Goal::Restore(BackendId(0), Selection::All)), &clock, &policy());
        let used = Warning::new("restore_slot_used", "localbot: slot 0 was used since the start");
        let failed = End::Failed { failure: Failure::RestoreFailed, warnings: vec![used] };
        let told = record.ended(OpId(1), &failed, clock.now(), vec![], vec![], &clock);
        let error = record.last_error().expect("it failed");
        let why = "The slots could not be restored. (localbot: slot 0 was used since the start)";
        assert_eq!((error.code.as_str(), error.message.as_str()), ("restore_failed", why));
        assert_eq!(error.hint, "restart the backend, which restores before any use");
        assert_eq!(told.and_then(|record| record.hint), Some(error.hint));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_stays_the_last_error_until_the_same_was_done() {
        let (mut record, _listener) = Operations::new();
        let clock = Clock::start();
        let now = clock.now();
        let failed = End::Failed { failure: Failure::HealthTimeout, warnings: vec![] };
        let done = End::Done { warnings: vec![] };
        let run = Goal::Run(BackendId(0));
        record.began(&operation(1, run), &clock, &policy());
        record.ended(OpId(1), &failed, now, vec!["it said so".into()], vec![], &clock);
        record.began(&operation(2, Goal::Stop), &clock, &policy());
        record.ended(OpId(2), &done, now, vec![], vec![], &clock);
        let code = record.last_error().map(|e| e.code);
        assert_eq!(code.as_deref(), Some("health_timeout"));
        record.began(&operation(3, run), &clock, &policy());
        record.ended(OpId(3), &done, now, vec![], vec![], &clock);
        assert_eq!(record.last_error(), None);
    }
}
