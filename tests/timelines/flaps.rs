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
