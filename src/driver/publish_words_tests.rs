//! How single things are told in the status document.

use super::*;
use crate::{
    driver::tests_unit,
    machine::{
        Instant,
        reading::{ActiveState, Reuse, UnitState},
    },
};

#[test]
fn each_thing_that_a_backend_can_be_seen_as_has_its_word() {
    use Seen::{CrashLoop, Lingering, Loading, Missing, Running, Sick, Stopped, Stranger, Unknown};
    let all = [Unknown, Missing, Stopped, Lingering, Loading, Running, CrashLoop, Sick, Stranger];
    let words = ["unknown", "missing", "stopped", "lingering", "loading", "running", "crash-loop", "sick", "stranger"];
    assert_eq!(all.map(seen_name), words);
}

#[test]
fn a_unit_is_told_as_systemd_has_it_while_the_server_answers() {
    let state = UnitState {
        sub: "failed".into(),
        restarts: 3,
        result: "signal".into(),
        exec_status: 9,
        ..tests_unit(ActiveState::Failed)
    };
    let read = |state: &UnitState| BackendReading {
        unit: Some(Dated { at: Instant::START, value: Unit::Loaded(state.clone()) }),
        ..BackendReading::default()
    };
    let told = UnitStatus {
        name: "llama.service".into(),
        active: Some("failed".into()),
        sub: Some("failed".into()),
        result: Some("signal".into()),
        exec_status: Some(9),
        restarts: Some(3),
        ..UnitStatus::default()
    };
    assert_eq!(unit_status("llama.service", &read(&state), true), told);
    let nothing = UnitStatus { name: "llama.service".into(), ..UnitStatus::default() };
    assert_eq!(unit_status("llama.service", &read(&state), false), nothing);
    assert_eq!(unit_status("llama.service", &BackendReading::default(), true), nothing);
    let named = UnitState { fragment: "/etc/systemd/system/llama.service".into(), ..state };
    let told = unit_status("llama.service", &read(&named), true).fragment;
    assert_eq!(told.as_deref(), Some("/etc/systemd/system/llama.service"));
}

#[test]
fn times_since_1970_are_told_as_documents_tell_time() {
    assert_eq!(epoch(1_700_000_000), "2023-11-14T22:13:20.000Z");
    assert_eq!(epoch(u64::MAX), "1970-01-01T00:00:00.000Z", "no calendar has it");
}

#[test]
fn a_restore_is_told_with_what_it_was_worth() {
    let told = |reuse: Option<Reuse>| {
        let status = restore_status(&LastRestore { at: 1_700_000_000, tokens: 1308, reuse });
        assert_eq!((status.at.as_str(), status.tokens), ("2023-11-14T22:13:20.000Z", 1308));
        assert_eq!((status.reused, status.computed), (reuse.map(|r| r.reused), reuse.map(|r| r.computed)));
        (status.verdict, status.text)
    };
    assert_eq!(told(None), ("unknown".into(), "its effect is not known yet".into()));
    let effective = Reuse { reused: 900, computed: 300 };
    assert_eq!(told(Some(effective)), ("effective".into(), "effective, 75% of the prompt reused".into()));
    let ineffective = Reuse { reused: 1, computed: 999 };
    assert_eq!(told(Some(ineffective)), ("ineffective".into(), "ineffective, 0% of the prompt reused".into()));
}
