//! ... of what is done by itself when nothing was used for long: it is not begun again under the hands of whoever asks for
//! what is on, or cancels it.

use super::*;

/// What is done by itself next, and in how long.
fn next(line: &Line) -> Option<(Cause, Duration)> {
    line.machine.view().next_action.map(|next| (next.cause, next.at.since(line.now)))
}

fn began(effects: &[Effect]) -> Vec<Cause> {
    effects.iter().filter_map(|e| if let Effect::Began(op) = e { Some(op.cause) } else { None }).collect()
}

const IDLE_STOP: (Cause, Duration) = (Cause::IdleStop, Duration::from_mins(20));
const IDLE_POWER_OFF: (Cause, Duration) = (Cause::IdlePowerOff, Duration::from_mins(10));

/// Nothing happens until just before it is due; then it does.
#[track_caller]
fn comes_in_time(mut line: Line, (cause, after): (Cause, Duration), llama: Seen) {
    let due = line.now + after;
    line.after(after.as_secs() - 1);
    assert_eq!(line.sees(llama, Seen::Stopped), []);
    line.now = due;
    assert_eq!(began(&line.sees(llama, Seen::Stopped)), [cause]);
}

#[test]
fn whoever_asks_for_a_backend_in_its_idle_stop_has_it_for_as_long_as_one_who_uses_it() {
    for command in [
        Command::Start(Some(LLAMA), PLAIN),
        Command::Start(None, PLAIN),
        Command::Switch(LLAMA, PLAIN),
        Command::Wake(PLAIN),
        Command::Cancel,
    ] {
        let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
        line.now = line.machine.deadline().expect("the idle stop");
        assert_eq!((began(&line.tick()), line.kind()), (vec![Cause::IdleStop], Kind::Draining));
        let effects = line.after(1).told(command.clone());
        assert!(!began(&effects).contains(&Cause::IdleStop), "{command:?}: {effects:?}");
        assert_eq!((line.kind(), line.machine.operation(), next(&line)), (Kind::Running, None, Some(IDLE_STOP)));
        comes_in_time(line, IDLE_STOP, Seen::Running);
    }
}

#[test]
fn whoever_asks_for_a_backend_while_it_is_saved_for_an_idle_stop_has_it_from_when_that_is_over() {
    let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    line.tick();
    let (save, _) = order(&line.drains());
    line.told(Command::Start(Some(LLAMA), PLAIN));
    line.after(50).ends(save, fine());
    line.sees(Seen::Running, Seen::Stopped);
    assert_eq!((line.kind(), line.machine.operation(), next(&line)), (Kind::Running, None, Some(IDLE_STOP)));
    comes_in_time(line, IDLE_STOP, Seen::Running);
}

#[test]
fn whoever_asks_for_what_runs_already_is_its_user_and_whoever_stops_what_is_stopped_is_none() {
    for (command, is_use) in [
        (Command::Start(Some(LLAMA), PLAIN), true),
        (Command::Start(None, PLAIN), true),
        (Command::Switch(LLAMA, PLAIN), true),
        (Command::Wake(PLAIN), true),
        (Command::Start(Some(VLLM), PLAIN), false),
    ] {
        let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
        line.after(1100).told(command.clone());
        let in_how_long = if is_use { IDLE_STOP.1 } else { Duration::from_secs(100) };
        assert_eq!(next(&line), Some((Cause::IdleStop, in_how_long)), "{command:?}");
    }
    let keep_on = Command::Shutdown(PowerChoice::KeepOn, PLAIN);
    for (command, is_use) in [(Command::Wake(PLAIN), true), (keep_on, true), (Command::Stop(PLAIN), false)] {
        let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
        line.after(500).told(command.clone());
        let in_how_long = if is_use { IDLE_POWER_OFF.1 } else { Duration::from_secs(100) };
        assert_eq!(next(&line), Some((Cause::IdlePowerOff, in_how_long)), "{command:?}");
    }
}

#[test]
fn an_idle_power_off_that_was_called_off_comes_when_it_was_idle_as_long_again() {
    for command in [Command::Cancel, Command::Wake(PLAIN), Command::Shutdown(PowerChoice::KeepOn, PLAIN)] {
        let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
        line.now = line.machine.deadline().expect("the idle power-off");
        let old_words = |look: &mut Look| look.people_at = Instant::START;
        assert_eq!(began(&line.sees_with(Seen::Stopped, Seen::Stopped, old_words)), [Cause::IdlePowerOff]);
        line.after(1).told(command);
        assert_eq!((line.kind(), line.machine.operation(), next(&line)), (Kind::Idle, None, Some(IDLE_POWER_OFF)));
        comes_in_time(line, IDLE_POWER_OFF, Seen::Stopped);
    }
}

#[test]
fn whoever_did_not_get_what_they_asked_for_in_an_idle_stop_may_try_again() {
    let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    assert_eq!(began(&line.tick()), [Cause::IdleStop]);
    let (restore, what) = order(&line.told(Command::RestoreSlots(Selection::Named(1), PLAIN)));
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    let effects = line.after(1).ends(restore, failed("restore_failed"));
    assert_eq!((failure(&effects), line.machine.operation()), (Some(Failure::RestoreFailed), None));
    comes_in_time(line, IDLE_STOP, Seen::Running);
}

#[test]
fn a_restore_by_itself_that_was_cancelled_before_it_was_sent_is_not_begun_again_in_the_same_run() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    line.told(Command::Cancel);
    assert_eq!(began(&fresh_run(line.after(1), 8)), []);
    // The end of the order wants another look before anything is sent.
    let effects = line.after(1).ends(start, fine());
    assert_eq!((began(&effects), orders(&effects)), (vec![Cause::AutoRestore], vec![]));
    assert_eq!(began(&line.told(Command::Cancel)), []);
    assert_eq!(began(&fresh_run(line.after(1), 8)), []);
    assert_eq!(line.machine.view().backend(LLAMA).restored, None, "nothing was sent");
    // Another run may be restored into.
    line.after(1).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(began(&fresh_run(line.after(1), 9)), [Cause::AutoRestore]);
}

#[test]
fn a_server_that_was_held_logged_in_to_or_used_by_others_is_idle_from_the_end_of_that() {
    let changes: [fn(&mut Look); 2] = [|look| look.people = Some(true), |look| look.foreign_gpu = Some(true)];
    for change in changes {
        let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
        line.after(1).sees_with(Seen::Stopped, Seen::Stopped, change);
        line.after(3600).sees_with(Seen::Stopped, Seen::Stopped, change);
        assert_eq!(line.after(1).sees(Seen::Stopped, Seen::Stopped), []);
        comes_in_time(line, IDLE_POWER_OFF, Seen::Stopped);
    }
    let hold = |what, lasts| Command::Hold(HoldSpec { what, lasts, reason: String::new(), by: String::new() });
    for (what, llama, idle) in
        [(Held::Awake, Seen::Stopped, IDLE_POWER_OFF), (Held::Backend(LLAMA), Seen::Running, IDLE_STOP)]
    {
        for lasts in [None, Some(Duration::from_hours(1))] {
            let mut line = Line::on(without_checkpoints(), llama, Seen::Stopped);
            line.told(hold(what, lasts));
            assert_eq!(line.after(3599).sees(llama, Seen::Stopped), []);
            line.after(1);
            let effects = match (lasts, line.machine.view().holds.first().map(|hold| hold.id)) {
                (None, Some(id)) => line.told(Command::Release(id)),
                _ => line.tick(),
            };
            assert_eq!(began(&effects), []);
            comes_in_time(line, idle, llama);
        }
    }
}

#[test]
fn a_checkpoint_that_was_cancelled_comes_again_but_not_at_once() {
    let mut line = Line::on(sample::eager(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the checkpoint");
    let effects = line.sees(Seen::Running, Seen::Stopped);
    assert_eq!(began(&effects), [Cause::Checkpoint]);
    let (save, _) = order(&effects);
    assert_eq!(began(&line.told(Command::Cancel)), []);
    assert_eq!(began(&line.ends(save, failed("save_failed"))), []);
    let backoff = line.machine.policy().policy_backoff;
    assert_eq!(next(&line), Some((Cause::Checkpoint, backoff)));
}

#[test]
fn a_checkpoint_that_left_something_out_comes_again_but_not_at_once() {
    let outcome = |code| Outcome::Succeeded(vec![Warning::new("saved_already", ""), Warning::new(code, "")]);
    let backoff = sample::eager().policy_backoff;
    let quiet = sample::eager().backends[0].checkpoint_quiet.expect("checkpoints");
    // One that found a request waits for quiet as after any other.
    for (code, pause) in [("disk_full", backoff), ("checkpoint_unknown_size", backoff), ("slot_busy", quiet)] {
        let mut line = Line::on(sample::eager(), Seen::Running, Seen::Stopped);
        line.now = line.machine.deadline().expect("the checkpoint");
        let (save, _) = order(&line.sees(Seen::Running, Seen::Stopped));
        assert_eq!(began(&line.ends(save, outcome(code))), [], "{code}");
        assert_eq!(next(&line), Some((Cause::Checkpoint, pause)), "{code}");
    }
}

#[test]
fn nothing_is_stopped_for_being_idle_while_another_is_up() {
    let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    assert_eq!(began(&line.sees(Seen::Running, Seen::Running)), []);
    assert_eq!(next(&line), None);
    assert_eq!(began(&line.after(1).sees(Seen::Running, Seen::Stopped)), [Cause::IdleStop]);
}

#[test]
fn a_server_that_was_booted_is_idle_from_then_on() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    let another = |look: &mut Look| look.server = Server::On { boot: BootId(2), session: 2 };
    line.now = line.machine.deadline().expect("the idle power-off");
    assert_eq!(line.sees_with(Seen::Stopped, Seen::Stopped, another), []);
    assert_eq!(next(&line), Some(IDLE_POWER_OFF));
}

#[test]
fn who_cannot_be_seen_for_a_moment_is_still_there() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.people = Some(true));
    line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.people = None);
    silence(line.after(1));
    line.after(3600).sees_with(Seen::Stopped, Seen::Stopped, |look| look.people = None);
    assert_eq!(line.after(1).sees(Seen::Stopped, Seen::Stopped), []);
    comes_in_time(line, IDLE_POWER_OFF, Seen::Stopped);
}

#[test]
fn who_used_the_gpu_is_there_until_it_is_told_that_they_are_not() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    let foreign = |seen: Option<bool>| move |look: &mut Look| look.foreign_gpu = seen;
    line.after(10).sees_with(Seen::Stopped, Seen::Stopped, foreign(Some(true)));
    for _ in 0..100 {
        let effects = line.after(60).sees_with(Seen::Stopped, Seen::Stopped, foreign(None));
        assert_eq!((effects, next(&line)), (vec![], None));
    }
    assert!(line.machine.view().foreign_untold);
    // A person's power-off goes on, and says so.
    let mut told = Line { machine: line.machine.clone(), now: line.now };
    let effects = told.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
    assert_eq!(order(&effects).1, Verb::PowerOff);
    let told = power_off::told_when_off(&mut told);
    assert_eq!(told, ["nobody could tell whether somebody else still uses the GPU"]);
    // It is told that they have gone; a tool that hangs after that blocks nothing.
    line.after(60).sees(Seen::Stopped, Seen::Stopped);
    comes_in_time(line, (Cause::IdlePowerOff, Duration::from_mins(10)), Seen::Stopped);
}

#[test]
fn a_gpu_that_cannot_be_read_and_where_nobody_was_seen_keeps_no_server_on() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle power-off");
    let effects = line.sees_with(Seen::Stopped, Seen::Stopped, |look| look.foreign_gpu = None);
    assert_eq!(order(&effects).1, Verb::PowerOff);
}

#[test]
fn an_idle_stop_that_fails_is_tried_again_after_twice_the_pause_and_at_least_once_an_hour() {
    let mut line = Line::on(sample::slotless(without_checkpoints()), Seen::Running, Seen::Stopped);
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
        line.now = line.machine.deadline().expect("the idle stop");
        let mut effects = line.sees(Seen::Running, Seen::Stopped);
        effects.extend(line.drains());
        let (stop, what) = order(&effects);
        assert_eq!(what, Verb::StopUnit(LLAMA));
        assert_eq!(failure(&line.ends(stop, failed("not_permitted"))), Some(Failure::NotPermitted));
        assert_eq!(next(&line), Some((Cause::IdleStop, Duration::from_mins(minutes))));
    }
}

#[test]
fn who_used_the_gpu_is_there_also_after_the_network_was_gone_for_a_while() {
    let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
    line.after(10).sees_with(Seen::Stopped, Seen::Stopped, |look| look.foreign_gpu = Some(true));
    for _ in 0..10 {
        silence(line.after(10));
    }
    assert_eq!(line.kind(), Kind::Offline);
    let untold = |look: &mut Look| look.foreign_gpu = None;
    line.after(10).sees_with(Seen::Stopped, Seen::Stopped, untold);
    assert_eq!(next(&line), None);
    // Another boot is another matter.
    line.after(10).sees_with(Seen::Stopped, Seen::Stopped, |look| {
        (look.foreign_gpu, look.server) = (None, Server::On { boot: BootId(2), session: 2 });
    });
    assert_eq!(next(&line), Some((Cause::IdlePowerOff, Duration::from_mins(10))));
}

#[test]
fn an_idle_stop_that_was_lost_is_not_repeated_for_another_run_than_the_one_known_when_it_was_ordered() {
    let mut line = Line::on(sample::slotless(sample::eager()), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    line.tick();
    let nameless = |look: &mut Look| look.backends[0].invocation = None;
    let (stop, what) = order(&line.after(2).sees_with(Seen::Running, Seen::Stopped, nameless));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(5).ends(stop, lost());
    // It may be somebody's start.
    let effects = line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| {
        look.server = Server::On { boot: BootId(1), session: 2 };
        look.backends[0].invocation = Some(Invocation(77));
    });
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)));
}
