//! Which slots: by name, by generation, and while the backend goes on running.

use crate::llama::{BYTES_PER_TOKEN, Rig, Slot, codes, generation, message, named, named_in, store_with};
use wechsler::{driver::world::SlotChoice, machine::Invocation};

impl Rig {
    /// Two slots that hold so many tokens.
    async fn with_two(first: u32, second: u32) -> Self {
        let rig = Self::new().await;
        rig.world.state().slots = vec![Slot::default(); 2];
        for (id, tokens) in [first, second].into_iter().enumerate() {
            if tokens > 0 {
                rig.world.use_slot(id, tokens);
            }
        }
        rig
    }

    /// Names and generations on record, newest first.
    async fn names(&self) -> Vec<(String, u64)> {
        self.store.saved().await.into_iter().map(|saved| (saved.name, saved.generation)).collect()
    }
}

#[tokio::test]
async fn a_slot_is_saved_by_its_own_name_alone() {
    let rig = Rig::with_two(500, 10).await;
    assert_eq!(codes(&rig.save_by(&named("localbot-1")).await), ["saved"]);
    assert_eq!(rig.sent(), ["POST /slots/1?action=save"]);
    assert_eq!(codes(&rig.save_by(&named("localbot")).await), ["saved"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=save"]);
    assert_eq!(rig.names().await, [("localbot".into(), 2), ("localbot-1".into(), 1)]);
}

#[tokio::test]
async fn a_name_of_ones_choice_takes_the_slot_that_is_given_or_the_only_one_that_holds_something() {
    let rig = Rig::with_two(0, 10).await;
    assert_eq!(codes(&rig.save_by(&named("before-the-holidays")).await), ["saved"]);
    assert_eq!(rig.sent(), ["POST /slots/1?action=save"]);
    rig.world.use_slot(0, 500);
    assert_eq!(codes(&rig.save_by(&named_in("other", 0)).await), ["saved"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=save"]);
    let slots: Vec<_> = rig.store.saved().await.into_iter().map(|saved| (saved.name, saved.slot)).collect();
    assert_eq!(slots, [("other".into(), 0), ("before-the-holidays".into(), 1)]);
}

#[tokio::test]
async fn which_of_several_slots_is_meant_is_asked_and_not_guessed() {
    let rig = Rig::with_two(500, 10).await;
    let outcome = rig.save_by(&named("both")).await;
    assert_eq!(codes(&outcome), ["!slot_ambiguous"]);
    assert!(message(outcome).contains("slot 0 holds 500 tokens, slot 1 holds 10 tokens"));
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn a_name_that_cannot_be_one_or_is_the_own_name_of_another_slot_is_refused() {
    let rig = Rig::with_two(500, 10).await;
    for choice in [named("a b"), named(""), named("../x"), named(&"x".repeat(190)), named_in("localbot-1", 0)] {
        assert_eq!(codes(&rig.save_by(&choice).await), ["!name_invalid"], "{choice:?}");
    }
    for choice in [named("localbot-7"), named_in("other", 7)] {
        assert_eq!(codes(&rig.save_by(&choice).await), ["!no_such_slot"], "{choice:?}");
    }
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn names_do_not_pile_up_until_those_of_the_slots_are_read_no_more() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(10).await;
    let (file, slot) = (rig.file(), rig.store.saved().await.swap_remove(0));
    let note = std::fs::read_to_string(rig.note_path(&file)).expect("a note");
    for number in 0..255 {
        let other = format!("other-{number}.slot");
        let text = note.replace(&file, &other).replace(&format!("{:?}", slot.name), &format!("\"other-{number}\""));
        std::fs::write(rig.note_path(&other), text).expect("a note");
    }
    rig.next_life();
    rig.world.use_slot(0, 20);
    assert_eq!(codes(&rig.save_by(&named("one-more")).await), ["!too_many_saved"]);
    assert_eq!(codes(&rig.save_by(&named("other-7")).await), ["saved"], "it is one of them already");
    assert_eq!(codes(&rig.save().await), ["saved"]);
    assert_eq!(rig.store.saved().await.len(), 258);
}

#[tokio::test]
async fn a_named_slot_that_is_not_saved_is_a_failure_whatever_the_reason() {
    let rig = Rig::with_two(0, 10).await;
    assert_eq!(codes(&rig.save_by(&named("localbot")).await), ["!slot_empty"]);
    rig.world.state().slots[1].busy = true;
    assert_eq!(codes(&rig.save_by(&named("localbot-1")).await), ["!slot_busy"]);
    rig.world.state().sleeping = true;
    assert_eq!(codes(&rig.save_by(&named("localbot-1")).await), ["!slots_asleep"]);
}

#[tokio::test]
async fn what_was_saved_under_a_name_of_ones_choice_comes_back_only_by_it() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.save_by(&named("holidays")).await;
    rig.world.restart();
    rig.world.state().surveys = 0;
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(rig.world.state().surveys, 0, "nothing will come back by itself");
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert!(rig.store.saved().await[0].named);
    assert_eq!(codes(&rig.restore_by(&named("holidays")).await), ["restored"]);
    assert_eq!(rig.world.state().slots[0].restored, 909);
}

#[tokio::test]
async fn a_name_comes_back_into_the_slot_it_came_from_or_the_one_that_is_given() {
    let rig = Rig::with_two(0, 33).await;
    rig.save_by(&named("holidays")).await;
    for (choice, slot) in [(named("holidays"), 1), (named_in("holidays", 0), 0)] {
        rig.world.restart();
        assert_eq!(codes(&rig.restore_by(&choice).await), ["restored"]);
        assert_eq!(rig.world.state().slots[slot].restored, 33);
    }
    rig.world.restart();
    assert_eq!(codes(&rig.restore_by(&named_in("holidays", 7)).await), ["!restore_no_slot"]);
    rig.world.use_slot(1, 5);
    assert_eq!(codes(&rig.restore_by(&named("holidays")).await), ["!restore_slot_used"]);
}

#[tokio::test]
async fn a_name_comes_back_only_where_it_surely_fits_in_beside_what_others_hold() {
    let rig = Rig::with_two(0, 1000).await;
    rig.save_by(&named("holidays")).await;
    for (held, code) in [(3000, "restored"), (4000, "!restore_no_room")] {
        rig.world.restart();
        rig.world.use_slot(0, held);
        rig.save_by(&named("localbot")).await;
        assert_eq!(codes(&rig.restore_by(&named("holidays")).await), [code]);
        // One that was restored holds as much, and shows nothing of it until it is used.
        let run = Invocation(u128::from(held));
        rig.store.meets(Some(run));
        rig.world.restart();
        assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["restored"]);
        assert_eq!(codes(&rig.restore_by(&named("holidays")).await), [code]);
    }
}

#[tokio::test]
async fn any_generation_can_be_restored() {
    let rig = Rig::new().await;
    for tokens in [700, 800, 909] {
        rig.save_and_restart(tokens).await;
    }
    assert_eq!(codes(&rig.restore_by(&generation("localbot", 2)).await), ["restored"]);
    assert_eq!(rig.world.state().slots[0].restored, 800);
    let outcome = rig.restore_by(&generation("localbot", 7)).await;
    assert_eq!(codes(&outcome), ["!no_such_generation"]);
    assert!(message(outcome).contains("no generation 7, but 3, 2, 1"));
    assert_eq!(codes(&rig.restore_by(&named("nobody")).await), ["!no_such_slot"]);
}

#[tokio::test]
async fn the_generation_that_was_asked_for_comes_back_or_none() {
    let rig = Rig::new().await;
    rig.save_and_restart(800).await;
    rig.save_and_restart(909).await;
    rig.sent();
    let newest = rig.store.saved().await[0].file.clone();
    rig.world.state().disk.get_mut(&newest).expect("it is there").pop();
    let second = generation("localbot", 2);
    assert_eq!(codes(&rig.restore_by(&second).await), ["!restore_damaged"]);
    let outcome = rig.restore_by(&second).await;
    assert_eq!(codes(&outcome), ["!restore_put_aside"]);
    assert!(message(outcome).contains("bytes instead of"), "the reason is told again");
    rig.world.state().model_path = "/models/other.gguf";
    assert_eq!(codes(&rig.restore_by(&generation("localbot", 1)).await), ["!restore_mismatch"]);
    assert_eq!(rig.sent(), [""; 0]);
    rig.world.state().model_path = "/models/m.gguf";
    assert_eq!(
        codes(&rig.restore_by(&named("localbot")).await),
        ["restored", "restore_older"],
        "the newest that is good"
    );
    assert_eq!(rig.world.state().slots[0].restored, 800);
}

#[tokio::test]
async fn a_checkpoint_saves_what_is_idle_and_small_enough() {
    let mut rig = Rig::with_two(1000, 3000).await;
    rig.store = store_with(&rig.state_dir, |slots| slots.checkpoint_most_mib = Some(1));
    let limit = 1024 * 1024 / BYTES_PER_TOKEN;
    assert!((1000..3000).contains(&limit), "one of them is small enough");
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["checkpoint_unknown_size"; 2]);
    assert_eq!(rig.sent(), [""; 0], "how long requests would wait is not known");
    rig.save().await;
    rig.sent();
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["checkpoint_too_large", "saved"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=save"]);
    rig.world.state().slots[0].busy = true;
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["slot_busy"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn no_slot_is_saved_by_a_checkpoint_while_another_one_is_busy() {
    let rig = Rig::with_two(500, 10).await;
    rig.world.state().slots[1].busy = true;
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["slot_busy"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn without_a_limit_a_checkpoint_is_a_save_like_any_other() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["saved"]);
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}
