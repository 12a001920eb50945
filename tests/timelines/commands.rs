//! ... of commands: what is taken, joined and refused, and why.

use super::*;

/// The one answer in `effects`.
fn answer(effects: &[Effect]) -> Answer {
    let answers: Vec<Answer> = effects
        .iter()
        .filter_map(|e| if let Effect::Answer { answer, .. } = e { Some(answer.clone()) } else { None })
        .collect();
    let [answer] = &answers[..] else { panic!("{effects:?}") };
    answer.clone()
}

fn refusal(effects: &[Effect]) -> Option<Refusal> {
    if let Answer::Refused(why) = answer(effects) { Some(why) } else { None }
}

#[test]
fn a_bare_start_joins_the_start_under_way_whoever_is_started() {
    for begin in [Command::Start(Some(VLLM), PLAIN), Command::Restart(Some(VLLM), PLAIN)] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        let Answer::Accepted { op, joined: false } = answer(&line.told(begin)) else { panic!("accepted") };
        assert_eq!(answer(&line.told(Command::Start(None, PLAIN))), Answer::Accepted { op, joined: true });
    }
}

#[test]
fn a_start_of_another_backend_does_not_join_a_restart() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Restart(Some(LLAMA), PLAIN));
    assert_eq!(refusal(&line.told(Command::Start(Some(VLLM), PLAIN))), Some(Refusal::Busy));
    let joins = answer(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    assert!(matches!(joins, Answer::Accepted { joined: true, .. }), "{joins:?}");
}

#[test]
fn a_held_gpu_forbids_to_start_what_is_not_up_and_to_restart_what_is() {
    let mut line = Line::on(sample::quiet(), Seen::Loading, Seen::Stopped);
    let hold = HoldSpec { what: Held::Gpu, lasts: None, reason: String::new(), by: String::new() };
    line.told(Command::Hold(hold));
    assert_eq!(refusal(&line.told(Command::Restart(Some(LLAMA), PLAIN))), Some(Refusal::Held));
    assert_eq!(refusal(&line.told(Command::Switch(VLLM, PLAIN))), Some(Refusal::Held));
    assert_eq!(refusal(&line.told(Command::Start(Some(LLAMA), PLAIN))), None, "it holds the GPU already");
}

#[test]
fn where_nothing_can_be_woken_a_start_is_refused_unless_somebody_pressed_the_button() {
    for (server, why) in [(Server::Silent, Some(Refusal::CannotWake)), (Server::Booting(BootPhase::Booting), None)] {
        let mut line = Line::new(Policy { can_wake: false, ..sample::quiet() });
        for after in [1, 40, 1] {
            let look = sample::off(line.after(after).now, server);
            line.looked(look);
        }
        assert_eq!(line.kind(), Kind::Offline);
        assert_eq!(refusal(&line.told(Command::Start(Some(LLAMA), PLAIN))), why, "{server:?}");
    }
}

#[test]
fn what_an_order_under_way_is_about_to_change_is_not_so_already() {
    // A stop that was called off in the moment in which its order was under way.
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    line.told(Command::Cancel);
    let effects = line.told(Command::Start(Some(VLLM), PLAIN));
    assert!(matches!(answer(&effects), Answer::Accepted { joined: false, .. }), "{effects:?}");
    line.after(1).ends(stop, fine());
    let effects = line.after(1).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(order(&effects).1, Verb::StartUnit(VLLM));

    // ... and a start.
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(VLLM), PLAIN)));
    line.told(Command::Cancel);
    let effects = line.told(Command::Stop(PLAIN));
    assert!(matches!(answer(&effects), Answer::Accepted { joined: false, .. }), "{effects:?}");
    line.after(1).ends(start, fine());
    assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Loading)).1, Verb::StopUnit(VLLM));
}

#[test]
fn what_was_seen_before_an_order_ended_is_not_so_already() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    line.told(Command::Cancel);
    line.after(1).ends(stop, fine());
    let effects = line.told(Command::Start(Some(VLLM), PLAIN));
    assert!(matches!(answer(&effects), Answer::Accepted { joined: false, .. }), "{effects:?}");
    assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Stopped)).1, Verb::StartUnit(VLLM));
}

#[test]
fn a_start_takes_no_other_backends_place_also_while_a_policy_is_busy_with_that() {
    let mut line = Line::on(sample::eager(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the checkpoint");
    line.sees(Seen::Running, Seen::Stopped);
    assert_eq!(line.machine.operation().map(|op| op.cause), Some(Cause::Checkpoint));
    assert_eq!(refusal(&line.told(Command::Start(Some(VLLM), PLAIN))), Some(Refusal::SwitchNeeded));
}

#[test]
fn what_is_yet_to_be_restored_by_itself_does_not_run_already_for_whoever_asks_for_it() {
    for command in [Command::Start(Some(LLAMA), PLAIN), Command::Start(None, PLAIN), Command::Switch(LLAMA, PLAIN)] {
        let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
        let untold = |look: &mut Look| {
            let llama = &mut look.backends[0];
            (llama.use_at, llama.use_, llama.restorable) = (Instant::START, Use::Unknown, true);
        };
        line.after(1).sees_with(Seen::Running, Seen::Stopped, untold);
        assert_eq!(line.kind(), Kind::Starting);
        let effects = line.told(command.clone());
        assert!(matches!(answer(&effects), Answer::Accepted { .. }), "{command:?}: {effects:?}");
        let (restore, what) = order(&fresh(line.after(1)));
        assert_eq!(what, Verb::RestoreSlots(LLAMA), "{command:?}");
        let effects = line.after(1).ends(restore, fine());
        assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{command:?}: {effects:?}");
    }
}

#[test]
fn a_start_of_whatever_is_refused_where_two_are_up() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Running);
    assert_eq!(refusal(&line.told(Command::Start(None, PLAIN))), Some(Refusal::SwitchNeeded));
}

#[test]
fn a_start_takes_no_other_backends_place_also_with_replace_unless_that_one_is_about_to_go() {
    let copy = Command::SaveSlots(Selection::All, PLAIN);
    for (under_way, refused) in [
        (copy, Some(Refusal::SwitchNeeded)),
        (Command::Restart(None, PLAIN), None),
        (Command::Stop(PLAIN), None),
        (Command::Shutdown(PowerChoice::PowerOff, PLAIN), None),
    ] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        line.told(under_way.clone());
        let effects = line.told(Command::Start(Some(VLLM), REPLACE));
        assert_eq!(refusal(&effects), refused, "{under_way:?}");
    }
}

#[test]
fn a_stop_calls_off_a_wake_also_where_our_login_is_refused() {
    for phase in [BootPhase::AuthRefused, BootPhase::WrongHostKey] {
        let mut line = Line::off(sample::quiet());
        line.told(Command::Wake(PLAIN));
        let look = sample::off(line.after(10).now, Server::Booting(phase));
        line.looked(look);
        let effects = line.told(Command::Stop(PLAIN));
        assert_eq!(refusal(&effects), None);
        assert_eq!(line.machine.operation(), None, "nothing runs there");
    }
}
