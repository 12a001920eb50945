//! ... of what it shows: what needs a person, and since when.

use super::*;

/// What needs a person: codes, each with its backend and since when.
fn attention(line: &Line) -> Vec<(String, Option<wechsler::machine::BackendId>, Instant)> {
    line.machine.view().attention.into_iter().map(|a| (a.what.code, a.backend, a.since)).collect()
}

fn codes(line: &Line) -> Vec<String> {
    attention(line).into_iter().map(|(code, ..)| code).collect()
}

#[test]
fn whatever_needs_a_person_is_shown_while_it_lasts() {
    let units = [
        (Seen::Stopped, None),
        (Seen::Loading, None),
        (Seen::Lingering, None),
        (Seen::Unknown, None),
        (Seen::Missing, Some("unit_missing")),
        (Seen::CrashLoop, Some("crashed")),
        (Seen::Sick, Some("backend_sick")),
        (Seen::Stranger, Some("backend_sick")),
    ];
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    for (seen, code) in units {
        line.after(1).sees(Seen::Stopped, seen);
        let now = code.map(|code| (code.to_owned(), Some(VLLM), line.now));
        assert_eq!(attention(&line), Vec::from_iter(now), "{seen:?}");
        line.after(1).sees(Seen::Stopped, Seen::Stopped);
        assert_eq!(attention(&line), []);
    }
    let doors = [
        (Server::Booting(BootPhase::Booting), None),
        (Server::Booting(BootPhase::WrongHostKey), Some("wrong_host_key")),
        (Server::Booting(BootPhase::Preboot), Some("preboot")),
        (Server::Booting(BootPhase::AuthRefused), Some("auth_refused")),
        (Server::Uncontrolled, Some("control_unreachable")),
    ];
    for (server, code) in doors {
        let look = sample::off(line.after(1).now, server);
        line.looked(look);
        assert_eq!(codes(&line), Vec::from_iter(code), "{server:?}");
    }
}

#[test]
fn what_needs_a_person_still_does_while_nothing_answers_until_that_proves_that_the_server_is_off() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Running);
    line.after(10).sees(Seen::Running, Seen::Running);
    let before = attention(&line);
    assert_eq!((codes(&line), line.kind()), (vec!["conflict".to_owned()], Kind::Conflict));
    let silent = |line: &mut Line| {
        let look = sample::off(line.after(1).now, Server::Silent);
        line.looked(look);
    };
    silent(&mut line);
    assert_eq!(attention(&line), before);
    line.after(1).sees(Seen::Running, Seen::Running);
    assert_eq!(attention(&line), before, "it began when it did");
    for second in 1..line.machine.policy().silence.as_secs() {
        silent(&mut line);
        assert_eq!(attention(&line), before, "{second}");
    }
    silent(&mut line);
    line.now = line.machine.deadline().expect("silence proves something then");
    line.tick();
    assert_eq!((attention(&line), line.kind()), (vec![], Kind::Offline), "also when nobody has looked since");
    line.after(60).sees(Seen::Running, Seen::Running);
    assert_eq!((attention(&line), line.kind()), (vec![], Kind::Running), "these are not the ones of before");
}

#[test]
fn what_cannot_be_told_of_a_backend_or_the_card_just_now_is_as_it_was() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees_with(Seen::Running, Seen::CrashLoop, |look| look.wake_armed = Some(false));
    let before = attention(&line);
    assert_eq!(codes(&line), ["crashed", "wake_unarmed"]);
    line.after(1).sees_with(Seen::Running, Seen::Unknown, |look| look.wake_armed = None);
    assert_eq!(attention(&line), before);
    let mut locked = sample::off(line.after(1).now, Server::Booting(BootPhase::WrongHostKey));
    locked.wake_armed = None;
    line.looked(locked);
    assert_eq!(codes(&line), ["wrong_host_key", "crashed", "wake_unarmed"]);
    let look = sample::off(line.after(1).now, Server::Silent);
    line.looked(look);
    assert_eq!(codes(&line), ["crashed", "wake_unarmed"], "nobody shows that key any more");
    line.after(1).sees_with(Seen::Running, Seen::Stopped, |look| look.wake_armed = Some(true));
    assert_eq!(attention(&line), []);
}

#[test]
fn a_card_that_is_not_armed_needs_a_person_where_that_is_checked() {
    for (wake_check, codes_then) in [(WakeCheck::Warn, &["wake_unarmed"][..]), (WakeCheck::Off, &[])] {
        let mut line = Line::on(Policy { wake_check, ..sample::quiet() }, Seen::Stopped, Seen::Stopped);
        for (armed, told) in [(Some(true), &[][..]), (None, &[]), (Some(false), codes_then)] {
            line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.wake_armed = armed);
            assert_eq!(codes(&line), told, "{armed:?}");
        }
    }
}

#[test]
fn what_goes_on_needs_a_person_since_it_began_and_what_came_back_since_it_did() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.after(1).sees(Seen::Sick, Seen::Stopped);
    let began = line.now;
    line.after(5).sees(Seen::Sick, Seen::Sick);
    assert_eq!(
        attention(&line).iter().map(|(_, backend, since)| (*backend, *since)).collect::<Vec<_>>(),
        [(Some(LLAMA), began), (Some(VLLM), line.now)]
    );
    line.after(1).sees(Seen::Stopped, Seen::Stopped);
    line.after(1).sees(Seen::Sick, Seen::Missing);
    let vllm = ("unit_missing".to_owned(), Some(VLLM), line.now);
    assert_eq!(attention(&line), [("backend_sick".to_owned(), Some(LLAMA), line.now), vllm]);
}

#[test]
fn two_that_run_beside_each_other_need_a_person_when_that_has_lasted() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.after(1).sees(Seen::Running, Seen::Running);
    let (began, lasts) = (line.now, line.machine.policy().conflict_after);
    assert_eq!(line.machine.deadline(), Some(began + lasts));
    line.now = began + lasts.saturating_sub(Duration::from_millis(1));
    line.tick();
    assert_eq!(codes(&line), [""; 0], "a moment before");
    line.now = began + lasts;
    line.tick();
    assert_eq!((codes(&line), line.kind()), (vec!["conflict".to_owned()], Kind::Conflict));
    line.after(1).sees(Seen::Running, Seen::Stopped);
    assert_eq!(codes(&line), [""; 0]);
}

#[test]
fn a_hold_ends_when_its_time_is_over_and_everybody_is_told() {
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    let hold = |what, lasts| Command::Hold(HoldSpec { what, lasts, reason: "why".into(), by: "ada".into() });
    line.told(hold(Held::Awake, Some(Duration::from_mins(1))));
    line.told(hold(Held::Gpu, Some(Duration::from_mins(2))));
    line.told(hold(Held::Off, None));
    let all = |line: &Line| line.machine.holds().iter().map(|hold| (hold.id.0, hold.what)).collect::<Vec<_>>();
    assert_eq!(all(&line), [(1, Held::Awake), (2, Held::Gpu), (3, Held::Off)]);
    assert_eq!(line.after(59).tick(), [], "a second before");
    assert_eq!(line.after(1).tick(), [Effect::HoldsChanged]);
    assert_eq!(all(&line), [(2, Held::Gpu), (3, Held::Off)]);
    assert_eq!(line.after(1).tick(), []);
    assert_eq!(line.after(59).tick(), [Effect::HoldsChanged]);
    assert_eq!(all(&line), [(3, Held::Off)]);
    line.told(hold(Held::Awake, None));
    assert_eq!(all(&line), [(3, Held::Off), (4, Held::Awake)], "no name is given twice");
}
