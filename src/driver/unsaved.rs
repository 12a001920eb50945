//! What a backend held when it was stopped although its save had gone wrong. A save that fails blocks nobody, so a person must
//! read of it: until the backend's next good save, or for a day.

use std::time::Duration;

use super::handle::NotSaved;
use crate::machine::{
    BackendId, Goal, Instant, Invocation, OpId, Outcome, Policy, Seen, Selection, View, Warning, reading::Dated,
};

/// After so long nobody looks for it any more.
const TOLD_FOR: Duration = Duration::from_hours(24);

/// What was not saved, by backend.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    backends: Vec<Memory>,
}

/// Of one backend.
#[derive(Debug, Default)]
struct Memory {
    /// The save before the stop of this run went wrong; the run still holds what it held.
    missed: Option<Missed>,
    /// That run is gone.
    lost: Option<Dated<Missed>>,
}

#[derive(Clone, Debug)]
struct Missed {
    /// The operation that wanted the stop.
    op: OpId,
    run: Option<Invocation>,
    why: Warning,
}

impl Unsaved {
    /// A save has ended. `view` is as it was until then.
    pub(super) fn save_ended(&mut self, id: BackendId, outcome: &Outcome, view: &View) {
        let (Some(op), Some(look)) = (&view.operation, view.look.backends.get(usize::from(id.0))) else { return };
        let (run, holds) = (look.invocation.or(view.backend(id).run), look.holds_tokens);
        // What was read before the operation says nothing of a request that came since.
        let unused = look.unused && look.use_at > op.started;
        let memory = self.memory(id);
        let Some(why) = why_not(outcome) else {
            memory.missed = None;
            // A save that found nothing to save makes nothing good.
            if holds || matches!(op.goal, Goal::Save(_, Selection::Named(_))) {
                memory.lost = None;
            }
            return;
        };
        // One that was only asked for leaves everything where it is. Who was never used holds nothing.
        if !matches!(op.goal, Goal::Save(..)) && (!unused || why.code == "slot_busy") {
            memory.missed = Some(Missed { op: op.id, run, why });
        }
    }

    /// Takes in which runs are gone.
    pub(super) fn note(&mut self, view: &View, now: Instant) {
        for (memory, look) in self.backends.iter_mut().zip(&view.look.backends) {
            let is_gone = |missed: &mut Missed| {
                let is_down = !look.seen.is_up() && look.seen != Seen::Unknown;
                is_down || (look.invocation.is_some() && look.invocation != missed.run)
            };
            if let Some(missed) = memory.missed.take_if(is_gone) {
                memory.lost = Some(Dated { at: now, value: missed });
            }
            memory.lost.take_if(|lost| now.since(lost.at) >= TOLD_FOR);
        }
    }

    /// What is lost: whose, why, and since when.
    pub(super) fn lost(&self) -> impl Iterator<Item = (BackendId, &Warning, Instant)> {
        let all = (0..).map(BackendId).zip(&self.backends);
        all.filter_map(|(id, memory)| memory.lost.as_ref().map(|lost| (id, &lost.value.why, lost.at)))
    }

    /// What was lost by that operation.
    pub(super) fn by(&self, op: OpId, policy: &Policy) -> Vec<NotSaved> {
        let of_op = |lost: &&Dated<Missed>| lost.value.op == op;
        let lost = policy.ids().zip(&self.backends).filter_map(|(id, m)| Some((id, m.lost.as_ref().filter(of_op)?)));
        lost.map(|(id, lost)| NotSaved {
            backend: policy.backend(id).name.clone(),
            code: lost.value.why.code.clone(),
            message: lost.value.why.message.clone(),
        })
        .collect()
    }

    fn memory(&mut self, id: BackendId) -> &mut Memory {
        let index = usize::from(id.0);
        if self.backends.len() <= index {
            self.backends.resize_with(index + 1, Memory::default);
        }
        &mut self.backends[index]
    }
}

/// Why not everything was saved that there was.
fn why_not(outcome: &Outcome) -> Option<Warning> {
    let all = match outcome {
        Outcome::Succeeded(warnings) => warnings.as_slice(),
        Outcome::Failed(warning) | Outcome::Unknown(warning) => std::slice::from_ref(warning),
    };
    let messages: Vec<&str> = all.iter().map(|warning| warning.message.as_str()).collect();
    // Where all slots sleep nothing is held any more, and what is saved already is saved.
    let first = all.iter().find(|warning| !matches!(&*warning.code, "slots_asleep" | "saved_already"))?;
    Some(Warning::new(first.code.clone(), messages.join("; ")))
}

/// What a person can do about a save or restore that went wrong, by the code of the reason.
pub(super) fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "slot_busy" => "a longer `drain_timeout` lets requests end before a stop",
        "disk_full" => "make room on the disk of its slot folder",
        "save_timeout" | "no_answer" => "set a longer `save_timeout`, or find out why its slot folder is slow",
        "save_failed" => "can it write into its slot folder, and is there room? its journal says more",
        "save_not_supported" => {
            "start it with --slot-save-path and without --no-slots, or leave its section `slots` out of the configuration"
        }
        "save_misplaced" => "`slots.dir` and its --slot-save-path must be the same folder",
        "save_unchecked" => "check SSH to the server, and our user's rights in the slot folder",
        "save_damaged" => "check the disk of its slot folder",
        "restore_slot_used" | "restore_slot_busy" => "restart the backend, which restores before any use",
        "note_failed" | "note_late" => "check room and rights of the daemon's state directory",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        driver::tests_policy,
        machine::{Cause, Machine, Operation, RequestId},
    };

    const LLAMA: BackendId = BackendId(0);
    const RUN: Invocation = Invocation(7);

    fn at(hours: u64) -> Instant {
        Instant::after_start(Duration::from_hours(hours))
    }

    fn failed() -> Outcome {
        Outcome::Failed(Warning::new("disk_full", "localbot: no room"))
    }

    fn saved() -> Outcome {
        Outcome::Succeeded(vec![])
    }

    /// llama.cpp holds a conversation, and an operation wants something.
    fn view(goal: Goal) -> View {
        let mut view = Machine::new(tests_policy(), vec![]).view();
        let until = at(1);
        view.operation =
            Some(Operation { id: OpId(3), goal, cause: Cause::Command(RequestId(1)), started: Instant::START, until });
        let look = &mut view.look.backends[0];
        (look.seen, look.invocation, look.holds_tokens) = (Seen::Running, Some(RUN), true);
        view
    }

    fn codes(unsaved: &mut Unsaved, view: &View, hours: u64) -> Vec<String> {
        unsaved.note(view, at(hours));
        unsaved.lost().map(|(_, why, _)| why.code.clone()).collect()
    }

    #[test]
    fn what_a_stopped_run_held_is_told_for_a_day_or_until_the_next_good_save() {
        let mut unsaved = Unsaved::default();
        let mut view = view(Goal::Stop);
        unsaved.save_ended(LLAMA, &failed(), &view);
        assert_eq!(codes(&mut unsaved, &view, 0), [""; 0], "it still holds it");
        view.look.backends[0].seen = Seen::Unknown;
        assert_eq!(codes(&mut unsaved, &view, 0), [""; 0], "nobody can tell");
        view.look.backends[0].seen = Seen::Stopped;
        assert_eq!(codes(&mut unsaved, &view, 1), ["disk_full"]);
        assert_eq!(unsaved.by(OpId(3), &tests_policy())[0].backend, "llama-cpp");
        assert_eq!(unsaved.by(OpId(4), &tests_policy()), []);
        view.look.backends[0].holds_tokens = false;
        unsaved.save_ended(LLAMA, &saved(), &view);
        assert_eq!(codes(&mut unsaved, &view, 24), ["disk_full"], "there was nothing to save");
        assert_eq!(codes(&mut unsaved, &view, 25), [""; 0], "a day");
        for by_name in [true, false] {
            unsaved.save_ended(LLAMA, &failed(), &view);
            assert_eq!(codes(&mut unsaved, &view, 26), ["disk_full"]);
            let selection = if by_name { Selection::Named(1) } else { Selection::All };
            let mut next = super::tests::view(Goal::Save(LLAMA, selection));
            next.look.backends[0].holds_tokens = !by_name;
            unsaved.save_ended(LLAMA, &saved(), &next);
            assert_eq!(codes(&mut unsaved, &view, 27), [""; 0], "saved again");
        }
    }

    #[test]
    fn a_run_that_holds_nothing_or_goes_on_running_loses_nothing() {
        let mut unsaved = Unsaved::default();
        let mut asked = view(Goal::Save(LLAMA, Selection::All));
        unsaved.save_ended(LLAMA, &failed(), &asked);
        asked.look.backends[0].seen = Seen::Stopped;
        assert_eq!(codes(&mut unsaved, &asked, 0), [""; 0], "the save was only asked for");
        let mut fresh = view(Goal::Stop);
        (fresh.look.backends[0].unused, fresh.look.backends[0].use_at) = (true, at(1));
        unsaved.save_ended(LLAMA, &failed(), &fresh);
        fresh.look.backends[0].seen = Seen::Stopped;
        assert_eq!(codes(&mut unsaved, &fresh, 0), [""; 0], "it was never used");
        let mut again = view(Goal::Restart(LLAMA));
        unsaved.save_ended(LLAMA, &failed(), &again);
        unsaved.save_ended(LLAMA, &saved(), &again);
        again.look.backends[0].seen = Seen::Stopped;
        assert_eq!(codes(&mut unsaved, &again, 0), [""; 0], "the second try was good");
    }

    #[test]
    fn a_run_that_was_unused_when_it_was_last_read_may_hold_something_by_now() {
        let mut unsaved = Unsaved::default();
        let mut view = view(Goal::Stop);
        (view.look.backends[0].unused, view.look.backends[0].use_at) = (true, Instant::START);
        unsaved.save_ended(LLAMA, &failed(), &view);
        view.look.backends[0].seen = Seen::Stopped;
        assert_eq!(codes(&mut unsaved, &view, 0), ["disk_full"]);
    }

    #[test]
    fn what_was_saved_already_is_not_lost_whatever_else_was() {
        let already = Warning::new("saved_already", "localbot: saved");
        for (more, lost) in [(None, &[][..]), (Some(Warning::new("slot_busy", "localbot-1: busy")), &["slot_busy"])] {
            let mut unsaved = Unsaved::default();
            let mut view = view(Goal::Stop);
            let outcome = Outcome::Succeeded(std::iter::once(already.clone()).chain(more).collect());
            unsaved.save_ended(LLAMA, &outcome, &view);
            view.look.backends[0].seen = Seen::Stopped;
            assert_eq!(codes(&mut unsaved, &view, 0), lost);
        }
    }

    #[test]
    fn a_run_that_another_one_has_followed_is_gone() {
        let mut unsaved = Unsaved::default();
        let mut view = view(Goal::Restart(LLAMA));
        unsaved.save_ended(LLAMA, &failed(), &view);
        view.look.backends[0].invocation = Some(Invocation(8));
        assert_eq!(codes(&mut unsaved, &view, 0), ["disk_full"]);
    }

    #[test]
    fn each_reason_that_somebody_can_do_something_about_has_its_hint() {
        let words = [
            ("slot_busy", "drain_timeout"),
            ("disk_full", "make room"),
            ("save_timeout", "save_timeout"),
            ("no_answer", "save_timeout"),
            ("save_failed", "can it write"),
            ("save_not_supported", "--slot-save-path"),
            ("save_misplaced", "same folder"),
            ("save_unchecked", "check SSH"),
            ("save_damaged", "check the disk"),
            ("restore_slot_used", "restart the backend"),
            ("restore_slot_busy", "restart the backend"),
            ("note_failed", "state directory"),
            ("note_late", "state directory"),
        ];
        for (code, word) in words {
            assert!(hint(code).is_some_and(|hint| hint.contains(word)), "{code}: {:?}", hint(code));
        }
        assert_eq!(hint("slot_empty"), None);
    }
}
