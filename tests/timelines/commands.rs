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
