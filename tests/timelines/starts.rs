//! ... of starts that something comes in the way of: a reboot, a stranger, a bad restore, SSH that is gone.

use super::*;

/// The server as it answers after a reboot.
fn rebooted(look: &mut Look) {
    look.server = Server::On { boot: BootId(2), session: 2 };
    look.backends[0].invocation = look.backends[0].invocation.map(|_| Invocation(9));
}

#[test]
fn a_start_that_failed_says_so_also_when_a_stranger_answers_where_the_backend_was() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(VLLM));
    line.after(1).ends(start, fine());
    let (stop, what) = order(&line.after(1).sees(Seen::Stopped, Seen::CrashLoop));
    assert_eq!(what, Verb::StopUnit(VLLM));
    line.after(1).ends(stop, fine());
    let effects = line.after(1).sees(Seen::Stopped, Seen::Stranger);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::CrashLoop)));
}

#[test]
fn a_start_that_failed_waits_for_a_unit_that_cannot_be_read_no_longer_than_for_a_silent_server() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(VLLM));
    line.after(1).ends(start, fine());
    let (stop, _) = order(&line.after(1).sees(Seen::Stopped, Seen::CrashLoop));
    line.after(1).ends(stop, fine());
    line.after(1).sees(Seen::Stopped, Seen::Unknown);
    assert_eq!(failure(&line.after(29).sees(Seen::Stopped, Seen::Unknown)), None);
    assert_eq!(failure(&line.after(1).sees(Seen::Stopped, Seen::Unknown)), Some(Failure::UnitUnread));
}

#[test]
fn a_quick_reboot_in_the_middle_of_a_start_is_no_crash() {
    for boots_up in [Seen::Loading, Seen::Stopped] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        let (start, _) = order(&line.started(LLAMA));
        line.after(1).ends(start, fine());
        line.after(1).sees(Seen::Loading, Seen::Stopped);
        silence(line.after(2));
        let effects = line.after(2).sees_with(boots_up, Seen::Stopped, rebooted);
        assert_eq!(failure(&effects), None);
        let starts_again = boots_up == Seen::Stopped;
        assert_eq!(orders(&effects).iter().any(|(_, what)| *what == Verb::StartUnit(LLAMA)), starts_again);
        let again = line.machine.order();
        if let Some((again, _)) = again {
            line.after(1).ends(again, fine());
        }
        let effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, rebooted);
        assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{effects:?}");
    }
}

#[test]
fn a_restart_of_what_a_reboot_has_restarted_is_done() {
    // In the middle of it, or asked for while the server is off.
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Restart(Some(LLAMA), PLAIN));
    silence(line.after(1));
    line.after(2).sees_with(Seen::Loading, Seen::Stopped, rebooted);
    let effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, rebooted);
    assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{effects:?}");

    let mut line = Line::off(sample::quiet());
    line.told(Command::Restart(Some(LLAMA), PLAIN));
    line.after(30).sees(Seen::Loading, Seen::Stopped);
    let effects = line.after(1).sees(Seen::Running, Seen::Stopped);
    assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{effects:?}");
}

#[test]
fn after_a_restore_that_killed_the_backend_no_other_is_tried_in_the_next_run() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (restore, what) = order(&fresh_run(line.after(1), 1));
    assert_eq!(what, Verb::RestoreSlots(LLAMA));
    line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| look.backends[0].invocation = Some(Invocation(2)));
    line.after(1).ends(restore, failed("restore_killed_process"));
    let effects = fresh_run(line.after(1), 2);
    assert_eq!(orders(&effects), []);
    assert_eq!(line.kind(), Kind::Running);
    assert_eq!(orders(&fresh_run(line.after(10), 2)), []);
}

#[test]
fn what_was_saved_of_a_run_that_is_gone_is_restored_into_the_next() {
    let mut line = Line::on(sample::eager(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the checkpoint");
    let (save, what) = order(&line.sees(Seen::Running, Seen::Stopped));
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| look.backends[0].invocation = Some(Invocation(2)));
    line.after(1).ends(save, fine());
    assert_eq!(order(&fresh_run(line.after(1), 2)).1, Verb::RestoreSlots(LLAMA));
}

#[test]
fn what_answers_in_time_does_not_fail_for_its_time_though_ssh_is_gone() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(VLLM));
    line.after(1).ends(start, fine());
    line.after(1).sees(Seen::Stopped, Seen::Loading);
    let alone = |look: &mut Look| look.server = Server::Uncontrolled;
    line.after(1).sees_with(Seen::Stopped, Seen::Running, alone);
    line.now = line.machine.deadline().expect("the start's deadline");
    let effects = line.tick();
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::ControlUnreachable)));
    assert_eq!(orders(&line.after(1).sees(Seen::Stopped, Seen::Running)), [], "it is left alone");
}

#[test]
fn a_woken_server_that_flaps_is_neither_given_up_nor_woken_again() {
    let mut line = Line::off(sample::quiet());
    line.told(Command::Start(Some(LLAMA), PLAIN));
    let until = line.now + Duration::from_mins(5);
    let old = |look: &mut Look| look.gpu_at = Instant::START;
    line.after(299).sees_with(Seen::Stopped, Seen::Stopped, old);
    let effects = silence(line.after(2));
    assert!(line.now > until, "its time to boot is over");
    assert_eq!((orders(&effects), failure(&effects)), (vec![], None));
    assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Stopped)).1, Verb::StartUnit(LLAMA));
}

#[test]
fn units_of_hosts_that_boot_later_have_the_time_of_the_boot() {
    let mut line = Line::off(sample::quiet());
    line.told(Command::Start(Some(LLAMA), PLAIN));
    let until = line.now + Duration::from_mins(5);
    line.after(60).sees(Seen::Unknown, Seen::Unknown);
    let mut came = line.machine.clone();
    line.now = until;
    line.after(0).now = line.machine.deadline().expect("the boot's end");
    assert_eq!(line.now, until);
    assert_eq!(failure(&line.tick()), Some(Failure::UnitUnread));
    let late = sample::at(200);
    let effects = came.step(late, &Event::Looked(sample::on(late, Seen::Stopped, Seen::Stopped)));
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA));
}

#[test]
fn a_stop_that_was_lost_and_called_off_ends_with_a_kill_for_the_next_who_wants_it() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    line.after(1).ends(stop, lost());
    let next = |look: &mut Look| look.server = Server::On { boot: BootId(1), session: 2 };
    line.after(1).sees_with(Seen::Stopped, Seen::Lingering, next);
    line.told(Command::Cancel);
    line.after(1).sees_with(Seen::Stopped, Seen::Lingering, next);
    line.told(Command::Stop(PLAIN));
    line.now = line.machine.deadline().expect("the stop's time");
    let effects = line.sees_with(Seen::Stopped, Seen::Lingering, next);
    assert_eq!(order(&effects).1, Verb::KillUnit(VLLM));
}

#[test]
fn an_order_lost_in_silence_is_in_doubt_until_another_session_tells() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    silence(line.after(1));
    line.after(1).ends(stop, lost());
    assert_eq!(orders(&line.after(1).sees(Seen::Stopped, Seen::Running)), [], "it is the session of before");
    let next = |look: &mut Look| look.server = Server::On { boot: BootId(1), session: 2 };
    assert_eq!(order(&line.after(1).sees_with(Seen::Stopped, Seen::Running, next)).1, Verb::StopUnit(VLLM));
}

#[test]
fn a_wake_kills_nothing_that_lingers_since_somebody_elses_start() {
    let mut line = Line::on(sample::quiet(), Seen::Lingering, Seen::Stopped);
    line.told(Command::Start(Some(LLAMA), PLAIN));
    silence(line.after(1));
    // The start outlasts its bound.
    line.after(10_000);
    line.tick();
    line.told(Command::Wake(PLAIN));
    let effects = line.after(1).sees(Seen::Lingering, Seen::Stopped);
    assert_eq!(orders(&effects), []);
}

#[test]
fn a_reboot_gives_a_start_its_time_anew_and_what_it_brings_up_has_not_been_told_to_stop() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(VLLM));
    line.after(1).ends(start, fine());
    line.after(1).sees(Seen::Stopped, Seen::Loading);
    silence(line.after(110));
    let effects = line.after(20).sees_with(Seen::Stopped, Seen::Loading, rebooted);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], None));
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_mins(2)));

    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
    line.after(1).ends(stop, fine());
    line.after(1).sees(Seen::Stopped, Seen::Lingering);
    silence(line.after(90));
    let effects = line.after(20).sees_with(Seen::Stopped, Seen::Loading, rebooted);
    assert_eq!(order(&effects).1, Verb::StopUnit(VLLM));
}

#[test]
fn a_restart_of_a_run_that_is_never_named_fails_as_soon_as_for_any_unit_that_cannot_be_read() {
    let nameless = |look: &mut Look| look.backends[0].invocation = None;
    let mut line = Line::new(sample::quiet());
    line.after(10).sees_with(Seen::Running, Seen::Stopped, nameless);
    line.told(Command::Restart(Some(LLAMA), Options { no_drain: true, ..PLAIN }));
    for _ in 0..29 {
        assert_eq!(failure(&line.after(1).sees_with(Seen::Running, Seen::Stopped, nameless)), None);
    }
    let effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, nameless);
    assert_eq!(failure(&effects), Some(Failure::UnitUnread));
}

#[test]
fn who_only_wants_the_server_on_waits_for_no_unit() {
    for unit in [Seen::Lingering, Seen::Unknown] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
        let (stop, _) = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN })));
        line.after(1).ends(stop, lost());
        silence(line.after(1));
        line.told(Command::Wake(REPLACE));
        let effects = line.after(1).sees(Seen::Stopped, unit);
        assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{unit:?}: {effects:?}");
    }
}

#[test]
fn what_lingers_after_a_lost_start_is_killed_for_who_wants_it_stopped() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(VLLM));
    line.after(1).ends(start, lost());
    line.told(Command::Stop(PLAIN));
    let next = |look: &mut Look| look.server = Server::On { boot: BootId(1), session: 2 };
    line.after(1).sees_with(Seen::Stopped, Seen::Lingering, next);
    assert_eq!(line.kind(), Kind::Stopping);
    line.now = line.machine.deadline().expect("its time to go");
    let effects = line.sees_with(Seen::Stopped, Seen::Lingering, next);
    assert_eq!(order(&effects).1, Verb::KillUnit(VLLM));
}

#[test]
fn what_could_not_be_started_again_is_not_stopped_for_a_restart() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let foreign = |look: &mut Look| look.foreign_gpu = Some(true);
    line.after(1).sees_with(Seen::Running, Seen::Stopped, foreign);
    let effects = line.told(Command::Restart(Some(LLAMA), PLAIN));
    assert!(matches!(effects[..], [Effect::Answer { answer: Answer::Refused(Refusal::Occupied), .. }]), "{effects:?}");
    // ... nor where somebody comes while it is drained.
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Restart(Some(LLAMA), PLAIN));
    let effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, foreign);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::Occupied)));
}

#[test]
fn a_rejected_restore_stops_nothing_that_could_not_be_started_again() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    let (restore, _) = order(&fresh_run(line.after(1), 1));
    let occupied = |look: &mut Look| {
        look.foreign_gpu = Some(true);
        (look.backends[0].unused, look.backends[0].restorable, look.backends[0].holds_tokens) = (true, true, false);
    };
    line.after(1).sees_with(Seen::Running, Seen::Stopped, occupied);
    let mut effects = line.after(1).ends(restore, failed("restore_rejected"));
    effects.extend(line.after(1).sees_with(Seen::Running, Seen::Stopped, occupied));
    assert_eq!(orders(&effects), []);
    let codes: Vec<&str> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Ended { end: End::Done { warnings }, .. } => Some(warnings.iter().map(|w| w.code.as_str())),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(codes, ["restore_rejected", "not_restarted"]);
    assert_eq!(line.kind(), Kind::Running);
}

#[test]
fn nothing_is_stopped_for_a_switch_to_what_cannot_be_read_for_as_long_as_silence() {
    for came_back in [true, false] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Unknown);
        line.told(Command::Switch(VLLM, PLAIN));
        assert_eq!(line.after(29).sees(Seen::Running, Seen::Unknown), []);
        if came_back {
            let effects = line.after(1).sees(Seen::Running, Seen::Stopped);
            assert_eq!(order(&effects).1, Verb::SaveSlots(LLAMA), "it has been idle for long");
        } else {
            let effects = line.after(1).sees(Seen::Running, Seen::Unknown);
            assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::UnitUnread)));
        }
    }
}

#[test]
fn nothing_is_stopped_for_a_start_or_a_power_off_that_cannot_be() {
    type Change = fn(&mut Look);
    let switch = || Command::Switch(VLLM, PLAIN);
    let off = || Command::Shutdown(PowerChoice::PowerOff, PLAIN);
    let stranger: Change = |look| look.backends[1].seen = Seen::Stranger;
    let cases: [(Command, Change, Failure); 6] = [
        (switch(), stranger, Failure::Unavailable),
        (switch(), |look| look.backends[1].seen = Seen::Missing, Failure::UnitMissing),
        (switch(), |look| look.foreign_gpu = Some(true), Failure::Occupied),
        (off(), stranger, Failure::Unavailable),
        (off(), |look| look.people = Some(true), Failure::Blocked),
        (off(), |look| look.wake_armed = Some(false), Failure::WakeUnarmed),
    ];
    for (command, finds, why) in cases {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
        line.sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].use_ = Use::Busy);
        line.told(command);
        assert_eq!(line.kind(), Kind::Draining, "for as long as nothing is in its way");
        let effects = line.after(10).sees_with(Seen::Running, Seen::Stopped, finds);
        assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(why)));
        assert_eq!(line.kind(), Kind::Running);
    }
}

#[test]
fn a_conflict_is_resolved_though_a_third_cannot_be_read_or_is_a_stranger() {
    for third in [Seen::Unknown, Seen::Stranger] {
        let mut line = Line::new(sample::three(sample::quiet()));
        let sees = |line: &mut Line, vllm| {
            let look = sample::shows(line.after(30).now, &[Seen::Running, vllm, third]);
            line.looked(look)
        };
        sees(&mut line, Seen::Running);
        sees(&mut line, Seen::Running);
        let mut effects = line.told(Command::Resolve(LLAMA, PLAIN));
        effects.extend(sees(&mut line, Seen::Running));
        let (stop, what) = order(&effects);
        assert_eq!(what, Verb::StopUnit(VLLM));
        line.after(1).ends(stop, fine());
        let effects = sees(&mut line, Seen::Stopped);
        assert_eq!((failure(&effects), line.kind(), line.machine.operation()), (None, Kind::Running, None));
    }
}

#[test]
fn requests_of_one_that_answers_oddly_are_waited_for_as_any() {
    for odd in [Seen::Loading, Seen::Sick] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
        line.after(1).sees_with(Seen::Stopped, Seen::Running, |look| look.backends[1].use_ = Use::Busy);
        let nobody_tells = |look: &mut Look| look.backends[1].use_ = Use::Unknown;
        line.after(40).sees_with(Seen::Stopped, odd, nobody_tells);
        line.told(Command::Stop(PLAIN));
        assert_eq!(orders(&line.after(59).sees_with(Seen::Stopped, odd, nobody_tells)), []);
        assert_eq!(order(&line.after(1).sees_with(Seen::Stopped, odd, nobody_tells)).1, Verb::StopUnit(VLLM));
    }
}

#[test]
fn a_crash_loop_is_left_to_systemd_where_it_could_not_be_started_anew() {
    let mut line = Line::on(sample::quiet(), Seen::CrashLoop, Seen::Stopped);
    line.after(1).sees_with(Seen::CrashLoop, Seen::Stopped, |look| look.foreign_gpu = Some(true));
    let effects = line.told(Command::Start(Some(LLAMA), PLAIN));
    assert!(matches!(effects[..], [Effect::Answer { answer: Answer::Refused(Refusal::Occupied), .. }]), "{effects:?}");
}

#[test]
fn who_asks_for_what_is_being_started_joins_whoever_has_come_to_the_gpu_meanwhile() {
    let mut line = restarted();
    line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| {
        (look.foreign_gpu, look.backends[0].invocation) = (Some(true), Some(Invocation(77)));
    });
    let effects = line.told(Command::Restart(Some(LLAMA), PLAIN));
    assert!(
        matches!(effects[..], [Effect::Answer { answer: Answer::Accepted { joined: true, .. }, .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_start_is_no_switch_because_what_runs_cannot_be_read_just_now() {
    for is_silent in [false, true] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
        line.after(1);
        if is_silent {
            silence(&mut line);
        } else {
            line.sees(Seen::Stopped, Seen::Unknown);
        }
        let effects = line.told(Command::Start(Some(LLAMA), PLAIN));
        assert!(
            matches!(effects[..], [Effect::Answer { answer: Answer::Refused(Refusal::SwitchNeeded), .. }]),
            "{effects:?}"
        );
        line.told(Command::Start(None, PLAIN));
        assert_eq!(line.machine.operation().map(|op| op.goal), Some(Goal::Run(VLLM)));
    }
}

#[test]
fn a_conflict_is_not_resolved_because_the_other_cannot_be_read_just_now() {
    for stops in [false, true] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Running);
        line.after(30).sees(Seen::Running, Seen::Running);
        let effects = line.told(Command::Resolve(LLAMA, PLAIN));
        if stops {
            line.after(1).ends(order(&effects).0, fine());
            line.after(1).sees(Seen::Running, Seen::Lingering);
        }
        let effects = line.after(1).sees(Seen::Running, Seen::Unknown);
        assert_eq!(effects, []);
        assert!(line.machine.operation().is_some());
    }
}

#[test]
fn it_is_not_already_so_while_the_other_may_be_up() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees(Seen::Running, Seen::Loading);
    line.after(1).sees(Seen::Running, Seen::Unknown);
    line.told(Command::Switch(LLAMA, PLAIN));
    assert_eq!(line.machine.operation().map(|op| op.goal), Some(Goal::Run(LLAMA)));
}

/// llama.cpp was restarted, and its new run loads.
fn restarted() -> Line {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Restart(Some(LLAMA), PLAIN));
    let (save, _) = order(&line.drains());
    let (stop, _) = order(&line.after(1).ends(save, fine()));
    line.after(1).ends(stop, fine());
    let (start, _) = order(&line.after(1).sees(Seen::Stopped, Seen::Stopped));
    line.after(1).ends(start, fine());
    line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| look.backends[0].invocation = Some(Invocation(77)));
    line
}

#[test]
fn what_comes_up_beside_a_restart_is_stopped_though_nothing_could_be_started_now() {
    let mut line = restarted();
    let effects = line.after(1).sees_with(Seen::Loading, Seen::Loading, |look| {
        (look.foreign_gpu, look.backends[0].invocation) = (Some(true), Some(Invocation(77)));
    });
    assert_eq!(order(&effects).1, Verb::StopUnit(VLLM));
}

#[test]
fn the_second_of_two_is_not_stopped_for_a_power_off_that_cannot_be_any_more() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Loading);
    let (save, _) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, Options { no_drain: true, ..PLAIN })));
    let (stop, what) = order(&line.after(1).ends(save, fine()));
    assert_eq!(what, Verb::StopUnit(LLAMA));
    line.after(1).ends(stop, fine());
    let effects = line.after(1).sees_with(Seen::Lingering, Seen::Loading, |look| look.people = Some(true));
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::Blocked)));
}

#[test]
fn a_crash_loop_is_not_stopped_for_a_start_that_cannot_be_any_more() {
    let mut line = Line::on(sample::quiet(), Seen::CrashLoop, Seen::Running);
    let (stop, what) = order(&line.told(Command::Switch(LLAMA, Options { no_drain: true, ..PLAIN })));
    assert_eq!(what, Verb::StopUnit(VLLM));
    line.after(1).ends(stop, fine());
    let effects = line.after(1).sees_with(Seen::CrashLoop, Seen::Stopped, |look| look.foreign_gpu = Some(true));
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::Occupied)));
}

#[test]
fn what_is_resolved_to_is_done_when_the_other_has_been_out_of_sight_for_long() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Running);
    line.after(30).sees(Seen::Running, Seen::Running);
    let effects = line.told(Command::Resolve(LLAMA, PLAIN));
    line.after(1).ends(order(&effects).0, fine());
    line.after(1).sees(Seen::Running, Seen::Unknown);
    assert_eq!(line.after(30).sees(Seen::Running, Seen::Unknown), []);
    let effects = line.after(1).sees(Seen::Running, Seen::Unknown);
    assert!(matches!(effects[..], [.., Effect::Ended { end: End::Done { .. }, .. }]), "{effects:?}");
}

#[test]
fn a_start_goes_on_though_what_was_up_cannot_be_read() {
    let mut line = restarted();
    let effects = line
        .after(1)
        .sees_with(Seen::Loading, Seen::Loading, |look| look.backends[0].invocation = Some(Invocation(77)));
    line.after(1).ends(order(&effects).0, fine());
    let effects = line.after(60).sees_with(Seen::CrashLoop, Seen::Unknown, |look| {
        look.backends[0].invocation = Some(Invocation(78));
    });
    assert_eq!(order(&effects).1, Verb::StopUnit(LLAMA), "its crash is noticed");
}

#[test]
fn a_restart_is_not_done_because_the_name_of_what_runs_cannot_be_read_for_a_moment() {
    let nameless = |look: &mut Look| look.backends[0].invocation = None;
    // When it began, or in the drain.
    for unread_first in [true, false] {
        let mut line = Line::on(sample::slotless(sample::quiet()), Seen::Running, Seen::Stopped);
        line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
            let llama = &mut look.backends[0];
            (llama.use_, llama.invocation) = (Use::Busy, llama.invocation.filter(|_| !unread_first));
        });
        line.told(Command::Restart(None, PLAIN));
        assert_eq!(line.kind(), Kind::Draining);
        let mut effects = line.after(2).sees_with(Seen::Running, Seen::Stopped, nameless);
        effects.extend(line.after(2).sees_with(Seen::Running, Seen::Stopped, nameless));
        assert_eq!(order(&effects).1, Verb::StopUnit(LLAMA), "{effects:?}");
    }
}
