//! ... of power-offs: what is asked once more before, and what is told of what nobody knew.

use super::*;

/// What a look shows otherwise.
type Change = fn(&mut Look);

/// The messages that come with the end of the power-off just ordered.
pub fn told_when_off(line: &mut Line) -> Vec<String> {
    for after in [1, 40, 1] {
        let effects = silence(line.after(after));
        if let Some(Effect::Ended { end: End::Done { warnings }, .. }) = effects.last() {
            return warnings.iter().map(|warning| warning.message.clone()).collect();
        }
    }
    panic!("it does not end: {:#?}", line.machine.view());
}

/// Looks as `change` has it, a second apart, until something is ordered or fails.
fn goes_on(line: &mut Line, change: fn(&mut Look)) -> Vec<Effect> {
    for _ in 0..30 {
        let effects = line.after(1).sees_with(Seen::Stopped, Seen::Stopped, change);
        if !effects.is_empty() {
            return effects;
        }
    }
    panic!("it waits for ever");
}

const NOT_IN_TIME: &str = "nobody could tell in time whether somebody else uses the server";
const NOT_AT_ALL: &str = "nobody could tell whether somebody else uses the server";
const NO_CARD: &str = "nobody could tell whether the network card is armed for the next wake";

#[test]
fn a_person_powers_off_whatever_nobody_can_tell_and_is_told_what_that_was() {
    let cases: [(Change, &[&str]); 4] = [
        (|_| {}, &[]),
        (|look| look.people = None, &[NOT_AT_ALL]),
        (|look| look.wake_armed = None, &[NO_CARD]),
        (|look| (look.people, look.wake_armed) = (None, None), &[NOT_AT_ALL, NO_CARD]),
    ];
    for (change, told) in cases {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        line.after(1).sees_with(Seen::Stopped, Seen::Stopped, change);
        assert_eq!(order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN))).1, Verb::PowerOff);
        assert_eq!(told_when_off(&mut line), told);
    }
}

#[test]
fn what_cannot_be_asked_in_time_stops_a_policy_and_no_person() {
    let cases: [(Change, &[&str]); 2] = [
        (|look| look.gpu_at = Instant::START, &[NOT_IN_TIME]),
        (|look| look.people_at = Instant::START, &[NOT_IN_TIME, NOT_AT_ALL]),
    ];
    for (change, told) in cases {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        line.after(1).sees_with(Seen::Stopped, Seen::Stopped, change);
        let asked = line.now;
        assert_eq!(orders(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN))), []);
        assert_eq!(order(&goes_on(&mut line, change)).1, Verb::PowerOff);
        assert_eq!(line.now, asked + Duration::from_secs(15), "no longer than the last look takes");
        assert_eq!(told_when_off(&mut line), told);

        let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
        line.now = line.machine.deadline().expect("the idle power-off");
        line.sees_with(Seen::Stopped, Seen::Stopped, change);
        assert_eq!(failure(&goes_on(&mut line, change)), Some(Failure::Blocked));
    }
}

#[test]
fn a_power_off_by_policy_gives_way_to_a_backend_that_somebody_starts_and_a_persons_does_not() {
    let old_words: Change = |look| look.people_at = Instant::START;
    for (before, begun) in [
        (Seen::Stopped, Seen::Loading),
        (Seen::Stopped, Seen::Sick),
        (Seen::Stopped, Seen::CrashLoop),
        // A job of systemd's is pending.
        (Seen::Lingering, Seen::Loading),
    ] {
        let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
        line.now = line.machine.deadline().expect("the idle power-off");
        line.sees_with(Seen::Stopped, Seen::Stopped, old_words);
        assert_eq!(line.machine.operation().map(|op| op.cause), Some(Cause::IdlePowerOff));
        assert_eq!(orders(&line.after(1).sees_with(Seen::Stopped, before, old_words)), []);
        let effects = line.after(1).sees(Seen::Stopped, begun);
        assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)), "{begun:?}");
        assert_eq!(line.kind(), Kind::Starting);

        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
        line.after(1).sees_with(Seen::Stopped, Seen::Stopped, old_words);
        line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
        assert_eq!(order(&line.after(1).sees(Seen::Stopped, begun)).1, Verb::StopUnit(VLLM), "{begun:?}");
    }
}

#[test]
fn the_card_is_asked_and_told_of_as_far_as_it_is_checked() {
    let unknown = |look: &mut Look| (look.wake_armed, look.wake_armed_at) = (None, Instant::START);
    for (wake_check, waits, fails) in
        [(WakeCheck::Off, false, None), (WakeCheck::Require, true, Some(Failure::WakeUnarmed))]
    {
        let mut line = Line::on(Policy { wake_check, ..sample::quiet() }, Seen::Stopped, Seen::Stopped);
        line.after(1).sees_with(Seen::Stopped, Seen::Stopped, unknown);
        let mut effects = line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
        assert_eq!(orders(&effects).is_empty(), waits, "{wake_check:?}");
        if waits {
            effects = goes_on(&mut line, unknown);
        }
        assert_eq!(failure(&effects), fails);
        if fails.is_none() {
            assert_eq!(told_when_off(&mut line), [""; 0]);
        }
    }
}

#[test]
fn what_lingers_by_itself_is_waited_for_as_long_as_a_stop_and_then_killed() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Lingering);
    assert_eq!(orders(&line.told(Command::Start(Some(LLAMA), PLAIN))), []);
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(10 + 90)));
    line.after(99).sees(Seen::Stopped, Seen::Lingering);
    assert_eq!(orders(&line.tick()), [], "a second before");
    assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Lingering)).1, Verb::KillUnit(VLLM));
}

#[test]
fn a_server_that_still_refuses_while_it_goes_down_is_not_off_yet_whoever_still_waits_for_that() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (off, _) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN)));
    line.ends(off, fine());
    line.told(Command::Cancel);
    for _ in 0..10 {
        let look = sample::off(line.after(6).now, Server::Booting(BootPhase::Booting));
        line.looked(look);
        assert_eq!(line.kind(), Kind::PoweringOff);
    }
    silence(line.after(1));
    assert_eq!(line.kind(), Kind::Offline);
}

fn wakes(line: &mut Line) -> bool {
    matches!(orders(&line.told(Command::Wake(PLAIN)))[..], [(_, Verb::Wake)])
}

#[test]
fn what_was_woken_and_called_off_may_still_come_up_and_is_powered_off_when_it_does() {
    let off = || {
        let mut line = Line::new(sample::quiet());
        (0..5).for_each(|_| drop(silence(line.after(10))));
        assert_eq!(line.kind(), Kind::Offline);
        line
    };
    let shutdown = || Command::Shutdown(PowerChoice::PowerOff, PLAIN);
    let is_so = |effects: &[Effect]| matches!(effects, [Effect::Answer { answer: Answer::AlreadySo, .. }]);
    assert!(is_so(&off().told(shutdown())), "nobody has woken it");
    let wait = sample::quiet().boot_timeout;

    let mut line = off();
    assert!(wakes(&mut line));
    line.told(Command::Cancel);
    assert_eq!(line.kind(), Kind::Offline);
    let effects = line.after(1).told(shutdown());
    assert!(matches!(effects[..], [Effect::Began(_), Effect::Answer { .. }]), "{effects:?}");
    line.after(20).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!(line.machine.order().map(|(_, what)| what), Some(Verb::PowerOff));

    // ... or it does not come up, and that is the end of it.
    let mut line = off();
    assert!(wakes(&mut line));
    line.told(Command::Cancel);
    line.after(1).told(shutdown());
    assert_eq!(silence(line.after(wait.as_secs() - 2)), []);
    let effects = silence(line.after(1));
    assert!(matches!(effects[..], [Effect::Ended { end: End::Done { .. }, .. }]), "{effects:?}");
    assert!(is_so(&line.told(shutdown())));
}

#[test]
fn what_shows_life_is_not_off_and_one_that_never_comes_up_is_said_to_be_where_it_is() {
    for (phase, fails) in [(BootPhase::Booting, Failure::PowerOffTimeout), (BootPhase::Preboot, Failure::Preboot)] {
        let mut line = Line::new(sample::quiet());
        let shows = |line: &mut Line| {
            let look = sample::off(line.now, Server::Booting(phase));
            line.looked(look)
        };
        (0..5).for_each(|_| drop(shows(line.after(10))));
        let effects = line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN));
        assert!(matches!(effects[..], [Effect::Began(_), Effect::Answer { .. }]), "{effects:?}");
        let wait = line.machine.policy().boot_timeout.as_secs();
        assert_eq!(shows(line.after(wait - 1)), []);
        assert_eq!(failure(&shows(line.after(1))), Some(fails));
    }
}

#[test]
fn what_goes_off_before_it_was_told_to_is_off_while_it_is_waited_for() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.people_at = Instant::START);
    assert_eq!(orders(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN))), []);
    for _ in 0..4 {
        let look = sample::off(line.after(10).now, Server::Booting(BootPhase::Booting));
        line.looked(look);
    }
    assert!(line.machine.operation().is_some());
    assert_eq!(line.kind(), Kind::Offline);
}
