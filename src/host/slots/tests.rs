use std::{collections::BTreeSet, time::Duration};

use super::{
    LaunchFlags, Reason,
    note::{Fit, Model, Note},
    retention::{superseded, surplus},
};
use crate::config;

type Change = fn(&mut Fit);

pub(super) fn fit() -> Fit {
    Fit {
        model: Model { id: "m".into(), path: Some("/models/m.gguf".into()), bytes: Some(1000), mtime: Some(7) },
        build: Some("b11434-abcdef".into()),
        n_ctx: 4096,
        total_slots: 1,
        flags: None,
    }
}

fn note(round: u64, tokens: u64) -> Note {
    Note {
        name: "localbot".into(),
        file: format!("localbot.{round}.slot"),
        slot: 0,
        bytes: 100 * tokens,
        tokens,
        saved_at: round,
        round,
        fit: fit(),
        format: 4,
        restoring: false,
        sent_to: None,
        doubted: false,
        put_aside: None,
        digest: None,
        unread_within: None,
        last_restore: None,
        restored_into: None,
    }
}

fn named(name: &str, round: u64, mib: u64) -> Note {
    Note { name: name.into(), file: format!("{name}.{round}.slot"), bytes: mib << 20, ..note(round, 10) }
}

fn slots(change: impl FnOnce(&mut config::Slots)) -> config::Slots {
    let mut slots = config::Slots::new("/mnt/slots".into(), "localbot");
    change(&mut slots);
    slots
}

fn rounds(notes: &[&Note]) -> Vec<u64> {
    notes.iter().map(|n| n.round).collect()
}

#[test]
fn reasons_have_codes_of_their_own() {
    let mut codes: Vec<_> = Reason::ALL.iter().map(|r| r.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), Reason::ALL.len());
}

#[test]
fn the_newest_stay_and_the_largest_beside_them() {
    let notes = [note(6, 10), note(5, 10), note(4, 50), note(3, 900), note(2, 80), note(1, 900)];
    assert_eq!(rounds(&superseded(&notes, "localbot", 3, &BTreeSet::new())), [2, 1]);
    assert_eq!(rounds(&superseded(&notes, "localbot", 10, &BTreeSet::new())), [0; 0]);
    assert_eq!(rounds(&superseded(&notes, "other", 1, &BTreeSet::new())), [0; 0]);
}

#[test]
fn what_is_missing_from_the_folder_keeps_its_own_place_and_takes_nobody_elses() {
    let notes = [note(6, 10), note(5, 10), note(4, 10), note(3, 900), note(2, 80), note(1, 10)];
    let missing = |rounds: &[u64]| rounds.iter().map(|round| format!("localbot.{round}.slot")).collect::<BTreeSet<_>>();
    let gone = |gone: &[u64]| rounds(&superseded(&notes, "localbot", 2, &missing(gone)));
    assert_eq!(gone(&[]), [4, 2, 1]);
    assert_eq!(gone(&[6]), [2, 1], "two are there still");
    assert_eq!(gone(&[6, 3]), [1], "and the largest that is there");
    assert_eq!(gone(&[2, 1]), [4, 2, 1], "those that would go, go");
    assert_eq!(gone(&[1, 2, 3, 4, 5, 6]), [4, 2, 1], "the folder may only not be mounted");
    let quota = slots(|slots| (slots.keep, slots.most_mib) = (10, Some(200)));
    let notes = [named("localbot", 3, 100), named("localbot", 2, 100), named("localbot", 1, 100)];
    assert_eq!(rounds(&surplus(&notes, &quota, &missing(&[]), 0)), [1]);
    assert_eq!(rounds(&surplus(&notes, &quota, &missing(&[3]), 0)), [0; 0], "it takes no room");
}

/// ... saved by another model than that of [`fit`].
fn of_model(number: u32, note: Note) -> Note {
    let mut other = note;
    other.fit.model.path = Some(format!("/models/{number}.gguf"));
    other
}

#[test]
fn another_model_pushes_nothing_out_and_each_keeps_its_newest_and_its_largest() {
    let other = |round, tokens| of_model(2, note(round, tokens));
    let notes =
        [other(9, 10), other(8, 10), other(7, 10), other(6, 700), note(5, 10), note(4, 10), note(3, 10), note(2, 900)];
    assert_eq!(rounds(&superseded(&notes, "localbot", 2, &BTreeSet::new())), [7, 3]);
    assert_eq!(rounds(&superseded(&notes, "localbot", 1, &BTreeSet::new())), [8, 7, 4, 3], "the largest stay of both");
}

#[test]
fn of_many_models_the_one_not_used_for_longest_gives_way() {
    let notes: Vec<_> = (1..=6).rev().map(|round| of_model(u32::try_from(round).unwrap(), note(round, 10))).collect();
    assert_eq!(rounds(&superseded(&notes, "localbot", 3, &BTreeSet::new())), [2, 1]);
    let mut notes = notes;
    notes.insert(0, of_model(1, note(7, 5)));
    assert_eq!(rounds(&superseded(&notes, "localbot", 3, &BTreeSet::new())), [3, 2], "it is back");
}

#[test]
fn the_quota_takes_what_another_model_saved_last_of_all_but_the_newest() {
    let sized = |round, tokens| Note { bytes: 100 << 20, ..note(round, tokens) };
    let other = |round, tokens| of_model(2, sized(round, tokens));
    let notes = [sized(8, 10), sized(7, 10), sized(6, 900), other(5, 10), other(4, 10), other(3, 900)];
    let beyond = |most: u64| rounds(&surplus(&notes, &slots(|slots| slots.most_mib = Some(most)), &BTreeSet::new(), 0));
    assert_eq!(beyond(500), [4], "what is neither its newest nor its largest");
    assert_eq!(beyond(400), [4, 7]);
    assert_eq!(beyond(200), [4, 7, 3, 5], "the model in use keeps its own for longer");
    assert_eq!(beyond(1), [4, 7, 3, 5, 6], "and its newest for ever");
}

#[test]
fn the_only_good_one_stays_even_if_none_is_to_be_kept() {
    let mut aside = note(2, 900);
    aside.put_aside = Some("restore_rejected".into());
    assert_eq!(rounds(&superseded(&[aside, note(1, 10)], "localbot", 0, &BTreeSet::new())), [0; 0]);
}

#[test]
fn those_put_aside_do_not_pile_up_and_push_no_good_one_out() {
    let notes: Vec<_> = (1..=6)
        .rev()
        .map(|round| {
            let put_aside = (round > 2).then(|| "restore_rejected".into());
            Note { put_aside, ..note(round, 10) }
        })
        .collect();
    assert_eq!(rounds(&superseded(&notes, "localbot", 2, &BTreeSet::new())), [4, 3]);
}

#[test]
fn what_is_kept_for_too_long_goes_also_the_last_and_the_largest() {
    let notes = [note(300, 10), note(200, 900), note(100, 10)];
    let slots = slots(|slots| slots.keep_for = Some(Duration::from_mins(1)));
    assert_eq!(rounds(&surplus(&notes, &slots, &BTreeSet::new(), 260)), [100]);
    assert_eq!(rounds(&surplus(&notes, &slots, &BTreeSet::new(), 400)), [300, 200, 100]);
    assert_eq!(
        rounds(&surplus(&notes, &slots, &BTreeSet::new(), 0)),
        [0; 0],
        "a clock that is behind makes nothing old"
    );
}

#[test]
fn the_quota_takes_the_oldest_first_and_never_the_newest_good_one_of_a_slot() {
    let notes =
        [named("localbot", 5, 100), named("holidays", 4, 100), named("localbot-1", 3, 100), named("localbot", 2, 100)];
    let beyond = |most: u64| rounds(&surplus(&notes, &slots(|slots| slots.most_mib = Some(most)), &BTreeSet::new(), 0));
    assert_eq!(beyond(400), [0; 0]);
    assert_eq!(beyond(399), [2]);
    assert_eq!(beyond(200), [2, 4]);
    assert_eq!(beyond(1), [2, 4], "what the slots need next time stays");
}

#[test]
fn the_quota_takes_what_is_put_aside_before_anything_good() {
    let mut aside = named("localbot", 6, 100);
    aside.put_aside = Some("restore_rejected".into());
    let notes = [aside, named("localbot", 5, 100), named("localbot", 4, 100)];
    let slots = slots(|slots| slots.most_mib = Some(200));
    assert_eq!(rounds(&surplus(&notes, &slots, &BTreeSet::new(), 0)), [6]);
}

#[test]
fn a_note_of_before_reads_and_has_neither_digest_nor_verdict() {
    let text = serde_json::to_string(&note(3, 909)).expect("a note is JSON");
    let mut old: serde_json::Value = serde_json::from_str(&text).expect("it reads");
    let fields = old.as_object_mut().expect("an object");
    for new in ["digest", "last_restore"] {
        assert!(fields.remove(new).is_some(), "{new}");
    }
    assert_eq!(serde_json::from_value::<Note>(old).expect("it reads"), note(3, 909));
}

#[test]
fn trap_5_each_thing_that_makes_a_file_unfit_is_named() {
    assert!(fit().differences(&fit()).is_empty());
    let told = |change: Change| {
        let mut now = fit();
        change(&mut now);
        fit().differences(&now).join(", ")
    };
    let changes: [(Change, &str); 6] = [
        (|f| f.model.path = Some("/models/x.gguf".into()), "model /models/x.gguf instead of /models/m.gguf"),
        (|f| f.model.mtime = Some(8), "the file of model m has changed"),
        (|f| f.model.bytes = Some(1), "the file of model m has changed"),
        (|f| f.n_ctx = 8192, "context 8192 instead of 4096"),
        (|f| f.build = None, "build unknown instead of b11434-abcdef"),
        (|f| f.total_slots = 4, "4 slots instead of 1"),
    ];
    for (change, expected) in changes {
        assert_eq!(told(change), expected);
    }
}

#[test]
fn a_model_file_that_cannot_be_looked_at_is_no_difference_and_an_alias_neither() {
    let mut now = fit();
    now.model.bytes = None;
    now.model.mtime = None;
    now.model.id = "another alias".into();
    assert!(fit().differences(&now).is_empty());
}

#[test]
fn flags_that_differ_make_a_file_unfit_and_those_that_nobody_could_read_do_not() {
    let flags = |line: &str| LaunchFlags::of_command_line(line.replace(' ', "\0").as_bytes());
    let [mut then, mut now] = [fit(), fit()];
    then.flags = flags("llama-server -ctk q8_0");
    assert!(then.differences(&now).is_empty() && now.differences(&then).is_empty());
    now.flags = flags("llama-server --swa-full");
    let told = ["--swa-full, which was not given", "without --cache-type-k q8_0"];
    assert_eq!(then.differences(&now), told);
}

#[test]
fn a_note_of_before_flags_were_noted_is_read_and_tells_of_none() {
    let old = r#"{"name":"localbot","file":"localbot.1.slot","slot":0,"bytes":100,"tokens":1,"saved_at":1,"round":1,
        "model":{"id":"m","path":null,"bytes":null,"mtime":null},"build":null,"n_ctx":4096,"total_slots":1,"format":4}"#;
    assert_eq!(serde_json::from_str::<Note>(old).expect("it reads").fit.flags, None);
}

#[test]
fn a_note_reads_back_as_it_was_written() {
    let mut note = note(3, 909);
    note.fit.flags = LaunchFlags::of_command_line(b"llama-server\0--swa-full\0");
    let text = serde_json::to_string(&note).expect("a note is JSON");
    assert_eq!(serde_json::from_str::<Note>(&text).expect("it reads"), note);
}
