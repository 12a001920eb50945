//! ... of saved slots: what is saved when, and put back when.

use super::*;

#[test]
fn a_save_asked_for_during_an_automatic_restore_is_a_save_of_its_own() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let effects = fresh(line.after(5));
    let (restore, what) = order(&effects);
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    line.told(Command::SaveSlots(Selection::All, PLAIN));
    let effects = line.after(1).ends(restore, fine());
    assert_eq!(order(&effects).1, Verb::SaveSlots(LLAMA), "the restore's end is not the save's: {effects:?}");
}

#[test]
fn one_odd_answer_of_a_backend_that_serves_skips_neither_drain_nor_save() {
    for odd in [Seen::Sick, Seen::Loading] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        line.told(Command::Switch(VLLM, PLAIN));
        assert_eq!(line.kind(), Kind::Draining);
        assert_eq!(orders(&line.after(1).sees(odd, Seen::Stopped)), [], "{odd:?}");
        assert_eq!(line.kind(), Kind::Draining);
        let (save, what) = order(&line.drains());
        assert_eq!(what, Verb::SaveSlots(LLAMA));
        line.sees(odd, Seen::Stopped);
        assert_eq!(order(&line.ends(save, fine())).1, Verb::StopUnit(LLAMA));
    }
}

#[test]
fn a_run_that_could_not_be_named_for_a_while_has_served_all_the_same() {
    let nameless = |look: &mut Look| look.backends[0].invocation = None;
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(10).sees_with(Seen::Running, Seen::Stopped, nameless);
    line.after(10).sees(Seen::Sick, Seen::Stopped);
    line.told(Command::Stop(PLAIN));
    assert_eq!(line.kind(), Kind::Draining, "its slots may hold something");
    assert_eq!(order(&line.drains()).1, Verb::SaveSlots(LLAMA));
    // Another run has not.
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(10).sees_with(Seen::Running, Seen::Stopped, nameless);
    line.after(10).sees_with(Seen::Sick, Seen::Stopped, |look| look.backends[0].invocation = Some(Invocation(77)));
    assert_eq!(order(&line.told(Command::Stop(PLAIN))).1, Verb::StopUnit(LLAMA));
}

/// An idle stop that has drained, and the save that it waits for.
fn idle_stop_that_saves(policy: Policy) -> (Line, VerbId) {
    let mut line = Line::on(policy, Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    let mut effects = line.sees(Seen::Running, Seen::Stopped);
    effects.extend(line.drains());
    let (save, what) = order(&effects);
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    (line, save)
}

#[test]
fn an_idle_stop_gives_up_when_a_request_came_during_the_save() {
    let (mut line, save) = idle_stop_that_saves(without_checkpoints());
    line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
        (look.backends[0].use_, look.backends[0].mark) = (Use::Busy, Some(7));
    });
    let effects = line.ends(save, Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)));
    assert_eq!(line.kind(), Kind::Running);
}

#[test]
fn an_idle_stop_gives_up_when_a_slot_was_busy_however_long_its_save_took() {
    // The second is over after the time that requests have.
    for took in [1, 50] {
        let mut policy = without_checkpoints();
        policy.backends[0].drain_timeout = Duration::from_secs(30);
        let (mut line, save) = idle_stop_that_saves(policy);
        let effects = line.after(took).ends(save, Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
        assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)), "after {took} s");
    }
}

#[test]
fn an_idle_stop_leaves_alone_what_somebody_has_started_again_meanwhile() {
    let (mut line, save) = idle_stop_that_saves(without_checkpoints());
    assert_eq!(orders(&line.after(1).ends(save, fine())), [], "its use is asked for once more");
    let (stop, what) = order(&line.drains());
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(1).ends(stop, fine());
    line.after(1).sees(Seen::Lingering, Seen::Stopped);
    let effects = line
        .after(1)
        .sees_with(Seen::Loading, Seen::Stopped, |look| look.backends[0].invocation = Some(Invocation(77)));
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)));
}

#[test]
fn an_idle_stop_goes_on_when_its_save_crashes_the_backend() {
    let (mut line, save) = idle_stop_that_saves(without_checkpoints());
    line.after(1).sees(Seen::CrashLoop, Seen::Stopped);
    assert_eq!(order(&line.after(1).ends(save, failed("save_failed"))).1, Verb::StopUnit(LLAMA));
}

#[test]
fn an_idle_stop_whose_stop_was_lost_asks_anew_who_uses_it_before_the_next() {
    for (use_, goes_on) in [(Use::Idle, true), (Use::Busy, false), (Use::Unknown, false)] {
        let (mut line, save) = idle_stop_that_saves(without_checkpoints());
        line.after(1).ends(save, fine());
        let (stop, _) = order(&line.drains());
        let next_session = |look: &mut Look| {
            (look.server, look.backends[0].use_) = (Server::On { boot: BootId(1), session: 2 }, use_);
        };
        line.after(90).ends(stop, lost());
        let mut effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, next_session);
        effects.extend(line.after(2).sees_with(Seen::Running, Seen::Stopped, next_session));
        effects.extend(line.after(2).sees_with(Seen::Running, Seen::Stopped, next_session));
        let then = orders(&effects).first().map(|(_, what)| *what);
        assert_eq!(then, goes_on.then_some(Verb::StopUnit(LLAMA)), "{use_:?}");
    }
}

#[test]
fn an_idle_stop_that_nobody_hears_is_ordered_twice_and_no_more() {
    let (mut line, save) = idle_stop_that_saves(without_checkpoints());
    line.after(1).ends(save, fine());
    for _ in 0..2 {
        let (stop, what) = order(&line.drains());
        assert_eq!(what, Verb::StopUnit(LLAMA));
        line.after(1).ends(stop, failed("verb_failed"));
    }
    let mut effects = vec![];
    for _ in 0..30 {
        effects.extend(line.drains());
    }
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::StopStuck)));
}

/// An idle stop that has drained and saved, and nobody can tell any more whether llama.cpp is in use.
fn saved_and_gone_mute() -> Line {
    let (mut line, save) = idle_stop_that_saves(without_checkpoints());
    line.after(40).sees_with(Seen::Running, Seen::Stopped, mute);
    assert_eq!(orders(&line.ends(save, fine())), [], "that nobody can tell is no proof that nobody uses it");
    assert_eq!(line.kind(), Kind::Draining);
    line
}

fn mute(look: &mut Look) {
    (look.backends[0].use_, look.backends[0].mark) = (Use::Unknown, None);
}

#[test]
fn an_idle_stop_goes_on_after_its_save_when_it_is_told_again_that_nobody_uses_the_backend() {
    let mut line = saved_and_gone_mute();
    assert_eq!(orders(&line.after(2).sees(Seen::Running, Seen::Stopped)), [], "once is not enough");
    assert_eq!(order(&line.after(2).sees(Seen::Running, Seen::Stopped)).1, Verb::StopUnit(LLAMA));
}

#[test]
fn an_idle_stop_gives_up_when_nobody_can_tell_after_its_save_for_as_long_as_requests_may_take() {
    let mut line = saved_and_gone_mute();
    assert_eq!(line.after(59).sees_with(Seen::Running, Seen::Stopped, mute), []);
    let effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, mute);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)));
    assert_eq!(line.kind(), Kind::Running);
}

#[test]
fn a_request_that_came_during_the_save_of_a_persons_stop_may_end_and_is_saved_too() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Stop(PLAIN));
    let (save, _) = order(&line.drains());
    let effects = line.after(1).ends(save, Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
    assert_eq!((orders(&effects), line.kind()), (vec![], Kind::Draining));
    let (again, what) = order(&line.drains());
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    assert_eq!(order(&line.ends(again, fine())).1, Verb::StopUnit(LLAMA));
}

#[test]
fn a_request_that_was_seen_during_a_save_may_end_whatever_became_of_the_save() {
    for outcome in [fine(), failed("save_failed"), lost()] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        line.told(Command::Stop(PLAIN));
        let (save, _) = order(&line.drains());
        line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].use_ = Use::Busy);
        let effects = line.after(1).ends(save, outcome);
        assert_eq!((orders(&effects), line.kind()), (vec![], Kind::Draining));
        assert_eq!(order(&line.drains()).1, Verb::SaveSlots(LLAMA));
    }
}

#[test]
fn a_request_that_came_during_a_save_that_lasted_as_long_as_requests_may_is_not_waited_for() {
    for (lasts, goes_on) in [(59, None), (60, Some(Verb::StopUnit(LLAMA)))] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        line.told(Command::Stop(PLAIN));
        let may_last_until = line.now + Duration::from_secs(lasts);
        let (save, _) = order(&line.drains());
        line.now = may_last_until;
        let effects = line.ends(save, Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
        assert_eq!(orders(&effects).first().map(|(_, what)| *what), goes_on);
    }
}

#[test]
fn a_persons_save_or_restore_ends_as_its_order_does() {
    let asked = [
        (Command::SaveSlots(Selection::All, PLAIN), Failure::SaveFailed),
        (Command::RestoreSlots(Selection::All, PLAIN), Failure::RestoreFailed),
    ];
    for (command, failure_then) in asked {
        for (outcome, fails) in [(fine(), false), (failed("odd"), true), (lost(), true)] {
            let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
            line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
                let llama = &mut look.backends[0];
                (llama.unused, llama.restorable) = (true, true);
            });
            let (verb, _) = order(&line.told(command.clone()));
            let effects = line.after(1).ends(verb, outcome);
            assert_eq!(failure(&effects), fails.then_some(failure_then), "{effects:?}");
            assert_eq!(line.machine.view().operation, None);
        }
    }
}

#[test]
fn what_came_of_a_lost_save_is_told_and_a_power_off_cuts_off_its_own_answer() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
    let (save, _) = order(&line.drains());
    let lost_save = Outcome::Unknown(Warning::new("verb_lost", "of the save"));
    let (stop, _) = order(&line.after(1).ends(save, lost_save));
    line.after(1).ends(stop, fine());
    let mut effects = line.after(1).sees(Seen::Stopped, Seen::Stopped);
    effects.extend(line.after(1).sees(Seen::Stopped, Seen::Stopped));
    line.after(1).ends(order(&effects).0, lost());
    assert_eq!(power_off::told_when_off(&mut line), ["of the save"]);
}

#[test]
fn a_persons_restore_takes_over_the_one_under_way() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (restore, _) = order(&fresh(line.after(5)));
    let joined = Answer::Accepted { op: line.machine.view().operation.expect("a restore").id, joined: true };
    let effects = line.told(Command::RestoreSlots(Selection::All, PLAIN));
    assert!(matches!(&effects[..], [Effect::Answer { answer, .. }] if *answer == joined), "{effects:?}");
    line.ends(restore, fine());
    assert_eq!(line.machine.view().operation, None);
}

#[test]
fn a_run_in_which_a_restore_was_rejected_is_worth_no_save_to_whoever_stops_it() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let effects = fresh(line.after(5));
    let (restore, _) = order(&effects);
    line.told(Command::Switch(VLLM, PLAIN));
    let effects = line.after(1).ends(restore, failed("restore_rejected"));
    assert_eq!(order(&effects).1, Verb::StopUnit(LLAMA));
}

#[test]
fn an_idle_stop_asks_also_a_run_that_was_kept_after_a_bad_restore_whether_somebody_uses_it() {
    let mut line = kept_after_a_bad_restore();
    let held = line.machine.view().holds[0].id;
    line.told(Command::Release(held));
    line.after(1200).tick();
    assert_eq!(line.machine.operation().map(|op| op.cause), Some(Cause::IdleStop));
    assert_eq!(orders(&line.after(2).sees_with(Seen::Running, Seen::Stopped, mute)), []);
    line.after(2).sees(Seen::Running, Seen::Stopped);
    let effects = line.after(2).sees(Seen::Running, Seen::Stopped);
    assert_eq!(order(&effects).1, Verb::StopUnit(LLAMA), "and saves nothing of it");
}

/// llama.cpp has been used up to now, holds so many tokens, and is idle.
fn used(line: &mut Line, mark: u64, tokens: u64) -> Vec<Effect> {
    line.sees_with(Seen::Running, Seen::Stopped, |look| {
        (look.backends[0].mark, look.backends[0].tokens) = (Some(mark), tokens);
    })
}

fn with_checkpoints(tokens: Option<u64>, quiet: Option<Duration>) -> Policy {
    let mut policy = sample::quiet();
    (policy.backends[0].checkpoint_tokens, policy.backends[0].checkpoint_quiet) = (tokens, quiet);
    policy
}

#[test]
fn what_was_used_is_saved_after_its_quiet_once_and_not_before() {
    let mut line = Line::on(with_checkpoints(None, Some(Duration::from_mins(1))), Seen::Running, Seen::Stopped);
    used(line.after(5), 1, 100);
    assert_eq!(orders(&used(line.after(59), 1, 100)), [], "a second before");
    line.after(1);
    assert_eq!(line.machine.deadline(), Some(line.now));
    let (save, what) = order(&line.tick());
    assert_eq!((what, line.kind()), (Verb::SaveSlots(LLAMA), Kind::Saving));
    let op = line.machine.view().operation.expect("a checkpoint");
    assert_eq!((op.goal, op.cause), (Goal::Save(LLAMA, Selection::Checkpoint), Cause::Checkpoint));
    line.after(1).ends(save, fine());
    assert_eq!(line.kind(), Kind::Running);
    for _ in 0..5 {
        assert_eq!(orders(&used(line.after(60), 1, 100)), [], "it is on record");
    }
    used(line.after(1), 2, 150);
    assert_eq!(orders(&used(line.after(59), 2, 150)), []);
    assert_eq!(order(&used(line.after(1), 2, 150)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn many_new_tokens_are_saved_in_the_first_quiet_moment_and_few_are_not() {
    let mut line = Line::on(with_checkpoints(Some(1000), None), Seen::Running, Seen::Stopped);
    assert_eq!(orders(&used(line.after(5), 1, 999)), []);
    let busy = line.after(5).sees_with(Seen::Running, Seen::Stopped, |look| {
        let llama = &mut look.backends[0];
        (llama.mark, llama.tokens, llama.use_) = (Some(2), 1500, Use::Busy);
    });
    assert_eq!(orders(&busy), [], "never while somebody waits");
    let (save, what) = order(&used(line.after(5), 3, 1600));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    line.ends(save, fine());
    assert_eq!(orders(&used(line.after(5), 4, 2599)), [], "since the save");
    assert_eq!(order(&used(line.after(5), 5, 2600)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_checkpoint_that_fails_is_tried_again_after_a_pause() {
    let mut line = Line::on(with_checkpoints(Some(1000), None), Seen::Running, Seen::Stopped);
    let (save, _) = order(&used(line.after(5), 1, 1000));
    line.ends(save, failed("disk_full"));
    assert_eq!(line.kind(), Kind::Running);
    assert_eq!(orders(&used(line.after(59), 1, 1000)), []);
    assert_eq!(order(&used(line.after(1), 1, 1000)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_persons_command_takes_the_place_of_a_checkpoint_and_saves_once_more() {
    let mut line = Line::on(with_checkpoints(Some(1000), None), Seen::Running, Seen::Stopped);
    let (checkpoint, _) = order(&used(line.after(5), 1, 1000));
    assert_eq!(
        orders(&line.told(Command::Switch(VLLM, Options { no_drain: true, ..PLAIN }))),
        [],
        "one order at a time"
    );
    let (save, what) = order(&line.after(1).ends(checkpoint, fine()));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    assert_eq!(order(&line.ends(save, fine())).1, Verb::StopUnit(LLAMA));
}

#[test]
fn another_run_holds_nothing_that_is_on_record() {
    let mut line = Line::on(with_checkpoints(Some(1000), None), Seen::Running, Seen::Stopped);
    let (save, _) = order(&used(line.after(5), 1, 1000));
    line.ends(save, fine());
    line.after(5).sees(Seen::Stopped, Seen::Stopped);
    let effects = line.after(5).sees_with(Seen::Running, Seen::Stopped, |look| {
        let llama = &mut look.backends[0];
        (llama.mark, llama.tokens, llama.invocation) = (Some(1), 1000, Some(Invocation(9)));
    });
    assert_eq!(order(&effects).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_save_of_one_slot_is_not_joined_by_a_save_of_another() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let named = |number| Command::SaveSlots(Selection::Named(number), PLAIN);
    line.told(named(1));
    assert!(
        line.told(named(1))
            .iter()
            .any(|e| matches!(e, Effect::Answer { answer: Answer::Accepted { joined: true, .. }, .. }))
    );
    let other = line.told(named(2));
    assert!(
        other.iter().any(|e| matches!(e, Effect::Answer { answer: Answer::Refused(Refusal::Busy), .. })),
        "{other:?}"
    );
}

/// llama.cpp runs, and nobody has told yet whether it was used; a saved slot fits it.
fn untold(line: &mut Line) -> Vec<Effect> {
    line.sees_with(Seen::Running, Seen::Stopped, |look| {
        let llama = &mut look.backends[0];
        (llama.use_, llama.use_at, llama.mark) = (Use::Unknown, Instant::START, None);
        (llama.holds_tokens, llama.restorable) = (false, true);
    })
}

#[test]
fn what_came_up_by_itself_is_restored_when_it_has_told_that_it_was_not_used_and_only_then_ready() {
    for policy in [sample::quiet(), sample::eager()] {
        let mut line = Line::on(policy, Seen::Loading, Seen::Stopped);
        line.told(Command::Start(Some(LLAMA), PLAIN));
        assert_eq!((orders(&untold(line.after(5))), line.kind()), (vec![], Kind::Starting));
        assert_eq!(order(&fresh(line.after(1))).1, Verb::RestoreSlots(LLAMA));
        assert_eq!(line.kind(), Kind::Restoring);
    }
}

#[test]
fn what_systemd_started_again_counts_as_ready_only_after_its_restore() {
    let mut line = Line::on(sample::eager(), Seen::CrashLoop, Seen::Stopped);
    untold(line.after(5));
    assert_eq!(line.kind(), Kind::Starting);
    assert_eq!(order(&fresh(line.after(1))).1, Verb::RestoreSlots(LLAMA));
}

#[test]
fn one_that_never_tells_its_use_is_not_waited_for_longer_than_three_seconds() {
    let mut line = Line::on(sample::eager(), Seen::Loading, Seen::Stopped);
    let op = line.told(Command::Start(Some(LLAMA), PLAIN));
    assert!(matches!(op[..], [Effect::Began(_), Effect::Answer { .. }]), "{op:?}");
    untold(line.after(5));
    untold(line.after(2));
    assert_eq!(line.kind(), Kind::Starting, "a second before");
    line.after(1);
    assert_eq!(line.machine.deadline(), Some(line.now));
    assert_eq!((orders(&line.tick()), line.kind()), (vec![], Kind::Running));
    assert_eq!(line.machine.operation(), None);
}

/// A switch to vLLM whose save has just begun.
fn saving(line: &mut Line) -> VerbId {
    line.told(Command::Switch(VLLM, PLAIN));
    let (save, what) = order(&line.drains());
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    save
}

#[test]
fn what_is_said_after_the_save_while_ssh_is_away_is_saved_too() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let save = saving(&mut line);
    line.after(1).sees_with(Seen::Running, Seen::Unknown, |look| look.server = Server::Uncontrolled);
    assert_eq!(orders(&line.after(1).ends(save, fine())), [], "nothing can be ordered");
    let back = used(line.after(5), 1, 100);
    assert_eq!((orders(&back), line.kind()), (vec![], Kind::Draining));
    let (save, what) = order(&used(line.after(2), 1, 100));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    assert_eq!(order(&line.after(1).ends(save, fine())).1, Verb::StopUnit(LLAMA));
}

#[test]
fn what_is_said_to_one_that_did_not_hear_its_stop_is_saved_before_the_next_and_once() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let save = saving(&mut line);
    let (stop, what) = order(&line.ends(save, fine()));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(90).ends(stop, lost());
    // Another session, a minute after requests could end.
    let (save, what) = order(&line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
        (look.backends[0].mark, look.server) = (Some(1), Server::On { boot: BootId(1), session: 2 });
    }));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    let (stop, what) = order(&line.after(1).ends(save, fine()));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(90).ends(stop, lost());
    let again = line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
        (look.backends[0].mark, look.server) = (Some(2), Server::On { boot: BootId(1), session: 3 });
    });
    assert_eq!(orders(&again), []);
}

#[test]
fn a_checkpoint_that_keeps_failing_keeps_nobody_from_stopping() {
    let mut policy = sample::eager();
    policy.backends[0].checkpoint_quiet = Some(Duration::from_mins(5));
    let mut line = Line::on(policy, Seen::Running, Seen::Stopped);
    let mut stopped_after = None;
    for second in (10..2000).step_by(10) {
        for (verb, what) in orders(&line.after(10).sees(Seen::Running, Seen::Stopped)) {
            assert_eq!(what, Verb::SaveSlots(LLAMA));
            line.ends(verb, failed("disk_full"));
        }
        if line.machine.operation().is_some_and(|op| op.cause == Cause::IdleStop) {
            stopped_after = Some(second);
            break;
        }
    }
    assert_eq!(stopped_after, Some(1200), "twenty minutes of it");
}

/// An automatic restore that was rejected, and whose restart a hold has ended.
fn kept_after_a_bad_restore() -> Line {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (restore, what) = order(&fresh(line.after(5)));
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    let spec = HoldSpec { what: Held::Backend(LLAMA), lasts: None, reason: String::new(), by: String::new() };
    line.told(Command::Hold(spec));
    let effects = line.after(1).ends(restore, failed("restore_rejected"));
    assert_eq!((failure(&effects), line.kind()), (Some(Failure::Held), Kind::Running));
    line
}

#[test]
fn what_is_said_to_a_run_that_was_kept_after_a_bad_restore_is_saved_like_any_other() {
    let mut line = kept_after_a_bad_restore();
    used(line.after(5), 1, 100);
    line.after(60).told(Command::Stop(PLAIN));
    assert_eq!(line.kind(), Kind::Draining);
    assert_eq!(order(&used(line.after(2), 1, 100)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn after_a_rejected_restore_it_is_started_once_more_and_without_one() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    line.after(1).ends(start, fine());
    let (restore, what) = order(&fresh(line.after(5)));
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    let (stop, what) = order(&line.after(1).ends(restore, failed("restore_rejected")));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(1).ends(stop, fine());
    let (start, what) = order(&line.after(1).sees(Seen::Stopped, Seen::Stopped));
    assert_eq!(what, Verb::StartUnit(LLAMA));
    line.after(1).ends(start, fine());
    let effects = line.after(5).sees_with(Seen::Running, Seen::Stopped, |look| {
        let llama = &mut look.backends[0];
        (llama.unused, llama.restorable, llama.holds_tokens) = (true, true, false);
        llama.invocation = Some(Invocation(2));
    });
    assert_eq!((orders(&effects), line.machine.operation()), (vec![], None));
}

#[test]
fn one_that_failed_to_start_and_is_used_after_all_is_saved_before_it_is_stopped() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    line.after(1).ends(start, fine());
    let (stop, what) = order(&line.after(5).sees(Seen::CrashLoop, Seen::Stopped));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(90).ends(stop, lost());
    let healthy = |line: &mut Line, mark| {
        line.after(2).sees_with(Seen::Running, Seen::Stopped, |look| {
            look.server = Server::On { boot: BootId(1), session: 2 };
            (look.backends[0].mark, look.backends[0].invocation) = (Some(mark), Some(Invocation(2)));
        })
    };
    healthy(&mut line, 0);
    assert_eq!(line.kind(), Kind::Draining);
    assert_eq!(orders(&healthy(&mut line, 1)), []);
    assert_eq!(order(&healthy(&mut line, 1)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_rejected_restore_throws_away_nothing_that_another_slot_holds() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    used(line.after(5), 1, 100);
    let (restore, what) = order(&line.told(Command::RestoreSlots(Selection::Named(1), PLAIN)));
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    let effects = line.after(1).ends(restore, failed("restore_rejected"));
    assert_eq!((failure(&effects), line.kind()), (Some(Failure::RestoreFailed), Kind::Running));
    line.told(Command::Stop(PLAIN));
    assert_eq!(order(&line.drains()).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_checkpoint_that_came_between_requests_is_not_tried_again_at_once() {
    let mut line = Line::on(with_checkpoints(Some(1000), None), Seen::Running, Seen::Stopped);
    let (save, _) = order(&used(line.after(5), 1, 1000));
    line.ends(save, Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
    assert_eq!(orders(&used(line.after(59), 2, 1100)), []);
    assert_eq!(order(&used(line.after(1), 3, 1200)).1, Verb::SaveSlots(LLAMA));
}

/// Requests are in flight.
fn busy(line: &mut Line) -> Vec<Effect> {
    line.sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].use_ = Use::Busy)
}

#[test]
fn a_save_that_a_person_asks_for_waits_for_requests_and_says_when_they_do_not_end() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    busy(line.after(5));
    let save = |options| Command::SaveSlots(Selection::All, options);
    line.told(save(PLAIN));
    assert_eq!((orders(&busy(line.after(59))), line.kind()), (vec![], Kind::Running));
    let (order_, what) = order(&line.sees(Seen::Running, Seen::Stopped));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    assert_eq!(line.machine.view().public_name(&sample::quiet()), "llama-cpp", "it goes on running");
    let found_busy = || Outcome::Succeeded(vec![Warning::new("slot_busy", "")]);
    let (order_, _) = order(&line.ends(order_, found_busy()));
    let effects = line.after(1).ends(order_, found_busy());
    assert_eq!(failure(&effects), Some(Failure::SaveFailed));

    busy(line.after(1));
    let (order_, _) = order(&line.told(save(Options { no_drain: true, ..PLAIN })));
    assert_eq!(failure(&line.ends(order_, found_busy())), Some(Failure::SaveFailed));
}

#[test]
fn a_save_of_nothing_takes_away_no_restore() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    fresh(line.after(5));
    let (save, _) = order(&line.told(Command::SaveSlots(Selection::All, PLAIN)));
    line.ends(save, Outcome::Succeeded(vec![Warning::new("slot_empty", "")]));
    assert!(line.machine.view().backends.iter().all(|backend| backend.restored.is_none()));
}

#[test]
fn a_copy_under_another_name_is_not_what_is_on_record_whoever_took_its_operations_place() {
    let mut line = Line::on(with_checkpoints(None, Some(Duration::from_mins(1))), Seen::Running, Seen::Stopped);
    used(line.after(5), 1, 100);
    let (save, _) = order(&line.told(Command::SaveSlots(Selection::Named(1), PLAIN)));
    line.told(Command::Cancel);
    line.ends(save, fine());
    assert_eq!(order(&used(line.after(60), 1, 100)).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_slot_may_be_asked_for_by_name_while_another_is_used() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(5).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].restorable = true);
    let answered = |effects: &[Effect]| match effects {
        [Effect::Answer { answer: Answer::Refused(why), .. }] => Some(*why),
        _ => None,
    };
    assert_eq!(answered(&line.told(Command::RestoreSlots(Selection::All, PLAIN))), Some(Refusal::InUse));
    assert_eq!(answered(&line.told(Command::RestoreSlots(Selection::Named(1), PLAIN))), None);
}

#[test]
fn a_save_waits_for_requests_as_long_as_they_may_last_also_while_the_unit_cannot_be_read() {
    let busy = |look: &mut Look| look.backends[0].use_ = Use::Busy;
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees_with(Seen::Running, Seen::Stopped, busy);
    assert_eq!(orders(&line.told(Command::SaveSlots(Selection::All, PLAIN))), []);
    assert_eq!(line.after(1).sees(Seen::Unknown, Seen::Stopped), []);
    assert_eq!(orders(&line.after(1).sees_with(Seen::Running, Seen::Stopped, busy)), []);
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(58)));
    assert_eq!(order(&line.after(58).tick()).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_start_that_fails_says_once_that_nothing_was_saved_of_what_has_slots() {
    for (backend, told) in [(LLAMA, &["save_skipped"][..]), (VLLM, &[])] {
        let shows = |seen| if backend == LLAMA { (seen, Seen::Stopped) } else { (Seen::Stopped, seen) };
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        let (start, _) = order(&line.told(Command::Start(Some(backend), PLAIN)));
        line.after(1).ends(start, fine());
        let (llama, vllm) = shows(Seen::CrashLoop);
        let (stop, what) = order(&line.after(1).sees(llama, vllm));
        assert_eq!(what, Verb::StopUnit(backend));
        line.after(1).sees(llama, vllm);
        line.after(1).ends(stop, fine());
        let effects = line.after(1).sees(Seen::Stopped, Seen::Stopped);
        let [Effect::Ended { end: End::Failed { failure: Failure::CrashLoop, warnings }, .. }] = &effects[..] else {
            panic!("{effects:?}")
        };
        assert_eq!(warnings.iter().map(|w| w.code.as_str()).collect::<Vec<_>>(), told);
    }
}

#[test]
fn a_person_waits_for_a_request_that_nobody_can_tell_of_any_more_as_long_as_requests_may_last() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    busy(line.after(1));
    line.told(Command::Stop(PLAIN));
    let until = line.now + Duration::from_mins(1);
    busy(line.after(2));
    let untold = |look: &mut Look| (look.backends[0].use_, look.backends[0].mark) = (Use::Unknown, None);
    line.after(2).sees_with(Seen::Running, Seen::Stopped, untold);
    line.after(10).sees_with(Seen::Running, Seen::Stopped, untold);
    assert_eq!((line.kind(), line.machine.deadline()), (Kind::Draining, Some(until)));
    // Whoever asks again with --no-drain does not wait.
    let mut told = line.machine.clone();
    let command = Command::Stop(Options { no_drain: true, ..PLAIN });
    let effects = told.step(line.now, &Event::Commanded { request: RequestId(2), command });
    assert_eq!(order(&effects).1, Verb::SaveSlots(LLAMA));
    line.now = until;
    assert_eq!(order(&line.tick()).1, Verb::SaveSlots(LLAMA));
}

#[test]
fn a_flap_is_no_reason_for_another_checkpoint() {
    let mut line = Line::on(with_checkpoints(None, Some(Duration::from_mins(1))), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the checkpoint");
    let (save, _) = order(&line.sees(Seen::Running, Seen::Stopped));
    line.after(1).ends(save, fine());
    line.after(1).sees(Seen::Running, Seen::Stopped);
    silence(line.after(60));
    assert_eq!(orders(&line.after(1).sees(Seen::Running, Seen::Stopped)), []);
}
