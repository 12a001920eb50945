//! What is saved already is not saved again.

use std::time::Duration;

use wechsler::{
    driver::world::SlotChoice,
    host::slots::without_news,
    machine::{Invocation, Outcome},
};

use crate::llama::{Rig, codes, message, named, store_with};

impl Rig {
    /// A server whose run is known; its slot holds 909 tokens, which are saved.
    async fn saved() -> Self {
        let rig = Self::new().await;
        rig.store.meets(Some(Invocation(1)));
        rig.world.ask(0, 909);
        assert_eq!(codes(&rig.save().await), ["saved"]);
        rig.sent();
        rig
    }
}

#[tokio::test]
async fn an_unchanged_slot_is_no_new_generation_and_pushes_no_older_one_out() {
    let rig = Rig::saved().await;
    for _ in 0..4 {
        let outcome = rig.save().await;
        assert_eq!(codes(&outcome), ["saved_already"]);
        assert_eq!(message(outcome), "localbot: its 909 tokens are saved already (generation 1)\n");
    }
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.store.saved().await.len(), 1);
    rig.world.ask(0, 909);
    assert_eq!(codes(&rig.save().await), ["saved"], "as long, but another request");
    assert_eq!(codes(&rig.save().await), ["saved_already"]);
}

#[tokio::test]
async fn whoever_asks_for_a_save_hears_that_it_is_saved_and_a_stop_does_not() {
    let rig = Rig::saved().await;
    for (choice, told) in [(SlotChoice::Asked, true), (named("localbot"), true), (SlotChoice::All, false)] {
        let outcome = without_news(rig.save_by(&choice).await, &choice);
        assert!(matches!(&outcome, Outcome::Succeeded(warnings) if warnings.is_empty() != told), "{outcome:?}");
    }
}

#[tokio::test]
async fn where_anything_is_in_doubt_it_is_saved() {
    type Change = fn(&mut Rig);
    let changes: [Change; 7] = [
        |rig| rig.store.meets(None),
        |rig| rig.store.meets(Some(Invocation(2))),
        Rig::next_life,
        |rig| rig.world.state().disk.clear(),
        |rig| rig.world.state().disk.values_mut().for_each(|bytes| _ = bytes.pop()),
        |rig| rig.world.state().command_line = "llama-server",
        |rig| rig.world.state().model_mtime = 2,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut rig = Rig::saved().await;
        change(&mut rig);
        assert_eq!(codes(&rig.save().await), ["saved"], "change {number}");
    }
    let rig = Rig::saved().await;
    rig.world.state().ssh_down = true;
    assert_eq!(codes(&rig.save().await), ["!save_unchecked"], "nobody can look whether the file is there");
}

#[tokio::test]
async fn what_is_kept_for_too_long_already_is_saved_anew() {
    let mut rig = Rig::new().await;
    rig.store = store_with(&rig.state_dir, |slots| slots.keep_for = Some(Duration::from_hours(1)));
    rig.store.meets(Some(Invocation(1)));
    rig.world.ask(0, 909);
    assert_eq!(codes(&rig.save().await), ["saved"]);
    assert_eq!(codes(&rig.save().await), ["saved_already"]);
    rig.age(Duration::from_hours(2)).await;
    assert_eq!(codes(&rig.save().await), ["saved"]);
}

#[tokio::test]
async fn what_was_forgotten_is_saved_again() {
    let rig = Rig::saved().await;
    let task = |name: &str| wechsler::driver::world::SlotTask::Forget { name: name.into(), generation: None };
    rig.store.tend(&rig.world, task("localbot")).await.expect("forgotten");
    assert_eq!(codes(&rig.save().await), ["saved"]);
}

#[tokio::test]
async fn a_name_of_ones_choice_gets_its_own_copy_once() {
    let rig = Rig::saved().await;
    assert_eq!(codes(&rig.save_by(&named("holidays")).await), ["saved"]);
    assert_eq!(codes(&rig.save_by(&named("holidays")).await), ["saved_already"]);
    assert_eq!(codes(&rig.save().await), ["saved_already"], "each name has its own");
}

#[tokio::test]
async fn a_copy_of_a_slot_that_was_restored_and_not_used_since_is_refused_with_where_it_is() {
    let rig = Rig::saved().await;
    rig.world.restart();
    rig.store.meets(Some(Invocation(2)));
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    for name in ["holidays", "localbot"] {
        let outcome = rig.save_by(&named(name)).await;
        assert_eq!(codes(&outcome), ["!slot_empty"]);
        let told = format!(
            "{name}: slot 0 was restored and not used since: what it holds is generation 1 of localbot; it can be saved \
             after its next request"
        );
        assert_eq!(message(outcome), told);
    }
}
