//! ... of moments in which nobody can tell.

use super::*;

/// When the next thing happens by itself.
fn next(line: &Line) -> Option<Instant> {
    line.machine.view().next_action.map(|next| next.at)
}

#[test]
fn a_flap_resets_no_clock_and_ends_no_drain() {
    let nameless =
        |line: &mut Line| line.sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].invocation = None);
    let flaps: [fn(&mut Line) -> Vec<Effect>; 3] = [silence, nameless, |line| line.sees(Seen::Unknown, Seen::Stopped)];
    for flap in flaps {
        let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
        let due = next(&line);
        flap(line.after(600));
        line.after(1).sees(Seen::Running, Seen::Stopped);
        assert_eq!(next(&line), due);
        line.now = due.expect("the idle stop");
        line.tick();
        assert_eq!(line.kind(), Kind::Draining);
        flap(line.after(1));
        assert_eq!(failure(&line.after(1).sees(Seen::Running, Seen::Stopped)), None);
    }
}

#[test]
fn a_use_during_a_flap_is_one() {
    let flaps: [fn(&mut Line) -> Vec<Effect>; 2] = [silence, |line| line.sees(Seen::Unknown, Seen::Stopped)];
    for (flap, named) in flaps.into_iter().zip([true, false]) {
        let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
        flap(line.after(600));
        line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| {
            let llama = &mut look.backends[0];
            (llama.mark, llama.invocation) = (Some(9), llama.invocation.filter(|_| named));
        });
        assert_eq!(next(&line), Some(line.now + Duration::from_mins(20)));
    }
}

#[test]
fn a_run_that_was_never_named_is_used_first_when_it_comes_up() {
    for gone in [Seen::Stopped, Seen::CrashLoop] {
        let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
        line.after(1100).sees(gone, Seen::Stopped);
        line.after(3).sees(Seen::Unknown, Seen::Stopped);
        for since in [0, 30] {
            line.after(30).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].invocation = None);
            assert_eq!(next(&line), Some(line.now + Duration::from_secs(1200 - since)), "{gone:?}");
        }
    }
}

#[test]
fn a_flap_puts_off_no_power_off_and_is_nobodys_coming() {
    let unread = |line: &mut Line| line.sees(Seen::Unknown, Seen::Stopped);
    let uncontrolled = |line: &mut Line| {
        line.sees_with(Seen::Stopped, Seen::Stopped, |look| {
            (look.server, look.people, look.foreign_gpu) = (Server::Uncontrolled, None, None);
        })
    };
    let flaps: [fn(&mut Line) -> Vec<Effect>; 3] = [silence, unread, uncontrolled];
    for flap in flaps {
        let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
        let due = next(&line).expect("the idle power-off");
        line.after(490).sees(Seen::Stopped, Seen::Stopped);
        flap(line.after(10));
        line.after(1).sees(Seen::Stopped, Seen::Stopped);
        assert_eq!(next(&line), Some(due));
        // ... nor while it is asked once more who is there.
        line.now = due;
        line.sees_with(Seen::Stopped, Seen::Stopped, |look| look.people_at = Instant::START);
        assert!(line.machine.operation().is_some());
        flap(line.after(1));
        assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Stopped)).1, Verb::PowerOff);
    }
}

#[test]
fn a_conflict_is_not_over_because_one_of_both_cannot_be_read() {
    let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Running);
    // For so long that both are idle.
    line.after(1300).sees(Seen::Running, Seen::Running);
    assert_eq!(line.kind(), Kind::Conflict);
    for (llama, vllm) in
        [(Seen::Running, Seen::Unknown), (Seen::Unknown, Seen::Unknown), (Seen::Running, Seen::Running)]
    {
        let effects = line.after(10).sees(llama, vllm);
        assert_eq!((line.kind(), line.machine.operation()), (Kind::Conflict, None), "{effects:?}");
    }
    line.after(10).sees(Seen::Running, Seen::Stopped);
    assert_ne!(line.kind(), Kind::Conflict);
}

#[test]
fn a_conflict_is_over_when_one_is_gone_though_a_third_cannot_be_read() {
    let mut line = Line::new(sample::three(sample::quiet()));
    let sees = |line: &mut Line, vllm| {
        let look = sample::shows(line.after(10).now, &[Seen::Running, vllm, Seen::Unknown]);
        line.looked(look)
    };
    sees(&mut line, Seen::Running);
    sees(&mut line, Seen::Running);
    assert_eq!(line.kind(), Kind::Conflict);
    sees(&mut line, Seen::Stopped);
    assert_eq!(line.kind(), Kind::Running);
}

#[test]
fn what_cannot_be_read_for_long_has_not_been_vacant_meanwhile() {
    for (unread, is_vacant) in [(30, true), (31, false)] {
        let mut line = Line::on(without_checkpoints(), Seen::Stopped, Seen::Stopped);
        // However long ago it was looked at last.
        line.after(500).sees(Seen::Unknown, Seen::Stopped);
        line.after(unread).sees(Seen::Stopped, Seen::Stopped);
        let idle = if is_vacant { 600 - 500 - unread } else { 600 };
        assert_eq!(next(&line), Some(line.now + Duration::from_secs(idle)), "{unread}");
    }
}

#[test]
fn a_conflict_with_what_is_gone_with_its_host_is_over_as_soon_as_silence_proves_something() {
    for (unread, kind) in [(30, Kind::Conflict), (31, Kind::Running)] {
        let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Running);
        line.after(30).sees(Seen::Running, Seen::Running);
        line.after(10).sees(Seen::Running, Seen::Unknown);
        line.after(unread).sees(Seen::Running, Seen::Unknown);
        assert_eq!(line.kind(), kind);
    }
}

#[test]
fn what_cannot_be_read_is_what_it_was_for_as_long_as_silence_and_then_unknown() {
    for (was, kind) in [(Seen::Running, Kind::Running), (Seen::Loading, Kind::Starting), (Seen::Stopped, Kind::Idle)] {
        let mut line = Line::on(sample::quiet(), was, Seen::Stopped);
        line.after(10).sees(Seen::Unknown, Seen::Stopped);
        line.after(30).sees(Seen::Unknown, Seen::Stopped);
        assert_eq!(line.kind(), kind);
        line.after(1).sees(Seen::Unknown, Seen::Stopped);
        assert_eq!(line.kind(), Kind::Unknown);
        line.after(1).sees(was, Seen::Stopped);
        assert_eq!(line.kind(), kind);
    }
}

#[test]
fn what_has_stopped_does_not_run_because_another_cannot_be_read() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(10).sees(Seen::Stopped, Seen::Unknown);
    assert_eq!(line.kind(), Kind::Unknown);
}

#[test]
fn after_a_boot_that_nobody_saw_coming_what_was_before_it_says_nothing() {
    for was in [Seen::Running, Seen::Stopped] {
        let mut line = Line::on(sample::quiet(), was, Seen::Stopped);
        line.after(10).sees_with(Seen::Unknown, Seen::Unknown, |look| {
            look.server = Server::On { boot: BootId(9), session: 2 };
        });
        assert_eq!(line.kind(), Kind::Unknown);
    }
}

#[test]
fn a_conflict_lasts_where_only_one_of_both_can_be_asked_because_ssh_is_gone() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Loading);
    line.after(30).sees(Seen::Running, Seen::Loading);
    for _ in 0..3 {
        line.after(40).sees_with(Seen::Running, Seen::Unknown, |look| look.server = Server::Uncontrolled);
        assert_eq!(line.kind(), Kind::Conflict);
    }
}

#[test]
fn requests_from_before_anybody_was_let_in_are_waited_for() {
    for (first, use_then) in [(Seen::Sick, Use::Unknown), (Seen::Loading, Use::Idle)] {
        let mut line = Line::new(sample::quiet());
        line.after(10).sees_with(Seen::Unknown, Seen::Running, |look| {
            (look.server, look.backends[1].invocation, look.backends[1].use_) = (Server::Uncontrolled, None, Use::Busy);
        });
        for _ in 0..3 {
            silence(line.after(9));
        }
        let nobody_tells = |look: &mut Look| look.backends[1].use_ = Use::Unknown;
        line.after(1).sees_with(Seen::Stopped, first, |look| look.backends[1].use_ = use_then);
        line.after(1).sees_with(Seen::Stopped, Seen::Running, nobody_tells);
        line.told(Command::Stop(PLAIN));
        assert_eq!(orders(&line.after(59).sees_with(Seen::Stopped, Seen::Running, nobody_tells)), []);
        assert_eq!(order(&line.after(1).sees_with(Seen::Stopped, Seen::Running, nobody_tells)).1, Verb::StopUnit(VLLM));
    }
}

#[test]
fn what_is_silent_now_and_then_is_not_longer_what_it_was() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees(Seen::Unknown, Seen::Stopped);
    silence(line.after(15));
    line.after(16).sees(Seen::Unknown, Seen::Stopped);
    assert_eq!(line.kind(), Kind::Unknown);
}
