//! Use, slots and what may be restored.

use super::*;

fn slot(tokens: Option<u64>, is_processing: bool) -> SlotReading {
    SlotReading { id: 0, n_ctx: 4096, is_processing, tokens }
}

fn active(in_flight: Option<u32>, slots: Vec<SlotReading>, sleeping: bool) -> Activity {
    Activity { in_flight, mark: Some(42), slots, sleeping, cannot_save: None, prompts: None }
}

fn look_with(activity: Activity, age: Duration) -> BackendLook {
    let mut reading = reading(answered(), Some(unit(ActiveState::Active)), Some(ready()));
    reading.backends[0].activity = at(T0, activity);
    judge(&reading, &policy(&[BackendKind::LlamaCpp]), T0 + age).backends.remove(0)
}

#[test]
fn use_is_what_is_in_flight_or_processing() {
    let now = Duration::ZERO;
    for (activity, expected) in [
        (active(Some(0), vec![], false), Use::Idle),
        (active(Some(1), vec![], false), Use::Busy),
        (active(Some(0), vec![slot(None, true)], false), Use::Busy),
        (active(None, vec![slot(Some(3), false)], false), Use::Idle),
        (active(None, vec![slot(Some(3), true)], false), Use::Busy),
        (active(None, vec![], true), Use::Idle),
        (active(None, vec![], false), Use::Unknown),
    ] {
        assert_eq!(look_with(activity.clone(), now).use_, expected, "{activity:?}");
    }
}

#[test]
fn an_old_word_of_use_says_nothing_but_its_tokens_are_still_worth_saving() {
    let activity = || active(Some(0), vec![slot(Some(900), false)], false);
    let young = look_with(activity(), OLDEST_USE);
    assert_eq!((young.use_, young.holds_tokens), (Use::Idle, true));
    let old = look_with(activity(), OLDEST_USE + Duration::from_millis(1));
    assert_eq!((old.use_, old.holds_tokens), (Use::Unknown, true));
    assert_eq!(old.mark, Some(42));
    let fresh = active(Some(0), vec![slot(None, false)], false);
    assert!(look_with(fresh.clone(), OLDEST_USE).unused);
    assert!(!look_with(fresh, OLDEST_USE + Duration::from_millis(1)).unused);
}

#[test]
fn slots_hold_tokens_or_are_unused_or_sleep() {
    let now = Duration::ZERO;
    let look = look_with(active(Some(0), vec![slot(Some(0), false), slot(None, false)], false), now);
    assert!(!look.holds_tokens && !look.unused);
    let look = look_with(active(Some(0), vec![], false), now);
    assert!(!look.holds_tokens && !look.unused, "nobody can tell");
    let look = look_with(active(None, vec![slot(Some(9), false)], true), now);
    assert!(look.sleeping && !look.holds_tokens);
}

#[test]
fn a_backend_that_is_down_is_not_in_use_and_in_no_run() {
    let mut reading = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
    reading.backends[0].activity = at(T0, active(Some(3), vec![slot(Some(9), true)], false));
    let look = judge(&reading, &policy(&[BackendKind::LlamaCpp]), T0).backends.remove(0);
    assert_eq!(look.use_, Use::Idle);
    assert_eq!(look.invocation, None);
    assert!(!look.holds_tokens);
    assert_eq!(look.mark, None);
}

#[test]
fn a_backend_that_loads_for_the_first_time_has_no_requests() {
    let loading = reading(answered(), Some(unit(ActiveState::Active)), Some(Http::Unavailable));
    let look = judge(&loading, &policy(&[BackendKind::LlamaCpp]), T0);
    assert_eq!(look.backends[0].use_, Use::Idle);
    assert_eq!(look.backends[0].invocation, Some(RUN));
    let later = T0 + Duration::from_secs(1);
    let again = absorbed([look_at(T0, RUN, ready()), look_at(later, RUN, Http::Refused)]);
    let look = judge(&again, &policy(&[BackendKind::LlamaCpp]), later);
    assert_eq!(look.backends[0].use_, Use::Unknown);
}

#[test]
fn what_was_saved_may_be_restored_unless_put_aside_empty_useless_under_a_free_name_or_of_another_model() {
    let saved = |model: &str, tokens, put_aside: Option<&str>| SavedSlot {
        name: "localbot".into(),
        file: "f".into(),
        slot: 0,
        bytes: 1,
        tokens,
        saved_at: 0,
        model: model.into(),
        n_ctx: 4096,
        put_aside: put_aside.map(str::to_owned),
        generation: 1,
        last_restore: None,
        restored_into: None,
        useless: None,
        named: false,
    };
    let named = Http::Ready(Identity { model: Some("a".into()), ..Identity::default() });
    for (kind, http, slots, expected) in [
        (BackendKind::LlamaCpp, &named, vec![saved("a", 9, None)], true),
        (BackendKind::LlamaCpp, &named, vec![saved("b", 9, None)], false),
        (BackendKind::LlamaCpp, &named, vec![saved("b", 9, None), saved("a", 9, None)], true),
        (BackendKind::LlamaCpp, &named, vec![saved("a", 0, None)], false),
        (BackendKind::LlamaCpp, &named, vec![saved("a", 9, Some("rejected"))], false),
        (BackendKind::LlamaCpp, &Http::Refused, vec![saved("b", 9, None)], true),
        (BackendKind::LlamaCpp, &named, vec![SavedSlot { named: true, ..saved("a", 9, None) }], false),
        (BackendKind::LlamaCpp, &named, vec![SavedSlot { useless: Some("why".into()), ..saved("a", 9, None) }], false),
        (BackendKind::LlamaCpp, &named, vec![], false),
        (BackendKind::Vllm, &named, vec![saved("a", 9, None)], false),
    ] {
        let mut reading = reading(answered(), Some(unit(ActiveState::Active)), Some(http.clone()));
        reading.backends[0].saved = at(T0, slots);
        let look = judge(&reading, &policy(&[kind]), T0);
        assert_eq!(look.backends[0].restorable, expected);
    }
}

#[test]
fn what_a_dead_engine_worked_on_is_over_whatever_its_counters_say() {
    for (kind, expected) in [(BackendKind::Vllm, Use::Idle), (BackendKind::LlamaCpp, Use::Busy)] {
        let mut reading = reading(answered(), Some(unit(ActiveState::Active)), Some(Http::Unavailable));
        reading.backends[0].activity = at(T0, active(Some(3), vec![], false));
        (reading.backends[0].served, reading.backends[0].run) = (Some(RUN), at(T0, RUN));
        let later = T0 + Duration::from_secs(2);
        reading.backends[0].http = at(later, Http::Unavailable);
        let look = judge(&reading, &policy(&[kind]), later).backends.remove(0);
        assert_eq!((look.use_, look.use_at), (expected, if kind == BackendKind::Vllm { later } else { T0 }));
    }
}
