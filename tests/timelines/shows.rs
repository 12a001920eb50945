//! What the machine shows of itself: how fast to look, when it wakes up, what it waits for, why nothing happened.

use wechsler::machine::{Ignored, Pace};

use super::*;

type Happens = fn(&mut Line) -> Vec<Effect>;

/// Two silent looks, half a minute apart: the server is off.
fn dies(line: &mut Line) {
    silence(line.after(1));
    silence(line.after(30));
}

#[test]
fn a_server_at_rest_is_looked_at_slowly_and_one_that_is_pursued_quickly() {
    let pace = |line: &Line| line.machine.view().pace;
    assert_eq!(pace(&Line::new(sample::quiet())), Pace::Waiting, "nothing is known yet");
    for (llama, at_rest, pursued) in [
        (Seen::Stopped, Kind::Idle, Kind::Idle), // A last look is waited for.
        (Seen::Running, Kind::Running, Kind::Draining),
    ] {
        let mut line = Line::on(sample::quiet(), llama, Seen::Stopped);
        assert_eq!((line.kind(), pace(&line)), (at_rest, Pace::Rest));
        line.after(60).told(Command::Switch(VLLM, PLAIN));
        assert_eq!((line.kind(), pace(&line)), (pursued, Pace::Busy));
        dies(&mut line);
        assert_eq!((line.kind(), pace(&line)), (Kind::Waking, Pace::Waiting));
    }
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    dies(&mut line);
    assert_eq!((line.kind(), pace(&line)), (Kind::Offline, Pace::Rest));
}

#[test]
fn what_became_of_a_cancelled_order_is_looked_for_even_where_nothing_answers() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, what) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    assert_eq!(what, Verb::StopUnit(VLLM));
    line.told(Command::Cancel);
    dies(&mut line);
    assert_eq!((line.kind(), line.machine.view().pace), (Kind::Offline, Pace::Waiting));
    line.ends(stop, lost());
    assert_eq!((line.kind(), line.machine.view().pace), (Kind::Offline, Pace::Rest));
}

#[test]
fn whatever_makes_a_running_backend_doubtful_is_looked_at_more_often() {
    let doubts: [(&str, Happens); 3] = [
        ("silence", silence),
        ("a second one", |line| line.sees(Seen::Running, Seen::Loading)),
        ("no answer", |line| line.sees(Seen::Loading, Seen::Stopped)),
    ];
    for (name, doubt) in doubts {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        doubt(line.after(1));
        assert_eq!((line.kind(), line.machine.view().pace), (Kind::Running, Pace::Waiting), "{name}");
        line.after(1).sees(Seen::Running, Seen::Stopped);
        assert_eq!((line.kind(), line.machine.view().pace), (Kind::Running, Pace::Rest), "{name}");
    }
}

#[test]
fn a_second_backend_is_waited_for_until_it_is_a_conflict_and_no_longer() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees(Seen::Running, Seen::Loading);
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(3)));
    line.after(3).tick();
    assert_eq!((line.kind(), line.machine.deadline()), (Kind::Conflict, None));
}

#[test]
fn a_moment_that_has_come_is_not_waited_for_any_more() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    silence(line.after(1));
    silence(line.after(29));
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(1)));
    line.after(1).tick();
    assert_eq!((line.kind(), line.machine.deadline()), (Kind::Offline, None));
}

#[test]
fn a_leaf_has_lasted_since_it_was_entered() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let entered = line.now;
    line.after(5).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(line.machine.view().since, entered);
    line.after(5).sees(Seen::Stopped, Seen::Running);
    assert_eq!(line.machine.view().since, line.now);
}

#[test]
fn the_run_that_was_healthy_or_restored_or_spoilt_is_shown_by_its_name() {
    let runs = |line: &Line| {
        let backend = line.machine.view().backends[0];
        (backend.ready, backend.restored, backend.spoilt)
    };
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    assert_eq!(runs(&line), (None, None, None));
    let effects = fresh(line.after(5));
    let run = line.machine.look().backends[0].invocation;
    assert!(run.is_some());
    assert_eq!(runs(&line), (run, run, None));
    line.after(1).ends(order(&effects).0, failed("restore_killed_process"));
    assert_eq!(runs(&line), (run, run, run));
}

#[test]
fn no_two_orders_have_the_same_name() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Switch(VLLM, PLAIN));
    let (save, _) = order(&line.drains());
    let (stop, _) = order(&line.after(1).ends(save, fine()));
    line.after(1).ends(stop, fine());
    let (start, _) = order(&line.after(1).sees(Seen::Stopped, Seen::Stopped));
    assert!(save < stop && stop < start, "{save}, {stop}, {start}");
}

#[test]
fn an_older_answer_in_the_middle_of_a_power_off_is_not_its_own() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
    assert_eq!(line.after(1).ends(VerbId(0), failed("verb_failed")), []);
    assert_eq!(line.kind(), Kind::PoweringOff);
}

#[test]
fn when_a_backend_was_used_last_is_shown_also_when_it_is_gone() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(5).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].mark = Some(1));
    let used = line.now;
    line.after(5).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(line.machine.view().backends.iter().map(|b| b.last_use).collect::<Vec<_>>(), [Some(used), None]);
}

#[test]
fn an_event_that_led_to_nothing_says_why_and_one_that_led_to_a_move_or_an_answer_does_not() {
    let mut line = Line::new(sample::quiet());
    let effects = line.after(1).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!((effects, line.kind(), line.machine.ignored()), (vec![], Kind::Idle, None));
    line.after(1).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(line.machine.ignored(), Some(Ignored::NothingNew));
    line.told(Command::Cancel);
    assert_eq!((line.kind(), line.machine.ignored()), (Kind::Idle, None));
    line.tick();
    assert_eq!(line.machine.ignored(), Some(Ignored::NothingDue));
}

#[test]
fn an_order_whose_answer_was_lost_is_shown_as_in_doubt() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    assert_eq!(line.machine.doubt(), None);
    line.after(1).ends(start, lost());
    assert_eq!(line.machine.doubt().map(|doubt| doubt.verb), Some(start));
}

#[test]
fn a_look_that_is_the_second_calm_one_ends_the_drain_that_it_begins() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(2).sees(Seen::Running, Seen::Stopped);
    assert_eq!(order(&line.told(Command::Stop(PLAIN))).1, Verb::SaveSlots(LLAMA), "nobody need be asked again");
}

#[test]
fn a_machine_that_is_printed_tells_its_leaf_and_what_it_remembers() {
    let line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let printed = format!("{:?}", line.machine);
    assert!(printed.starts_with("Machine { leaf: Running") && printed.contains("look: Look"), "{printed}");
}
