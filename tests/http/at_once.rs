//! Proving at once that a restore had effect.

use std::time::Duration;

use wechsler::{
    config::Prove,
    machine::{
        Instant,
        reading::{Activity, Reuse},
    },
};

use crate::llama::{Rig, Slot, codes, store_with};

impl Rig {
    /// A conversation of that length is saved, the server restarted, and restores are to be proved at once.
    async fn to_be_proved(tokens: u32) -> Self {
        let mut rig = Self::new().await;
        rig.save_and_restart(tokens).await;
        rig.store = store_with(&rig.state_dir, |slots| {
            slots.prove = Prove::AtOnce;
            slots.prove_timeout = Duration::from_millis(300);
        });
        rig
    }

    async fn verdict(&self) -> Option<Reuse> {
        let saved = self.store.saved().await;
        saved[0].last_restore.as_ref().expect("it was restored").reuse
    }
}

/// Tokens of prompts, computed and reused.
fn counted(activity: &Activity) -> Option<(u64, u64)> {
    activity.prompts.as_ref().map(|prompts| (prompts.computed, prompts.reused))
}

fn at(seconds: u64) -> Instant {
    Instant::after_start(Duration::from_secs(seconds))
}

#[tokio::test]
async fn the_saved_tokens_are_sent_back_and_what_was_found_of_them_is_noted() {
    let rig = Rig::to_be_proved(909).await;
    assert_eq!(codes(&rig.restore().await), ["restored", "restore_effective"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=restore", "POST /completion"]);
    let asked = rig.world.state().completion.clone();
    assert_eq!(asked["prompt"].as_array().map(Vec::len), Some(909));
    assert_eq!((&asked["n_predict"], &asked["id_slot"], &asked["cache_prompt"]), (&0.into(), &0.into(), &true.into()));
    assert_eq!(rig.verdict().await, Some(Reuse { reused: 908, computed: 1 }));
}

#[tokio::test]
async fn unless_it_is_wanted_nothing_is_sent_back() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=restore"]);
    assert_eq!(rig.verdict().await, None);
}

#[tokio::test]
async fn a_restore_without_effect_is_found_out_and_after_two_not_paid_for_any_more() {
    let rig = Rig::to_be_proved(909).await;
    rig.world.state().forgets = true;
    for _ in 0..2 {
        assert_eq!(codes(&rig.restore().await), ["restored", "restore_ineffective"]);
        assert_eq!(rig.verdict().await, Some(Reuse { reused: 0, computed: 909 }));
        rig.world.restart();
    }
    assert_eq!(codes(&rig.restore().await), ["restore_useless"]);
}

#[tokio::test]
async fn a_proof_that_takes_too_long_is_given_up_and_the_restore_is_as_good() {
    let rig = Rig::to_be_proved(909).await;
    rig.world.state().completion_hangs = true;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.verdict().await, None);
}

#[tokio::test]
async fn a_server_that_does_not_tell_leaves_the_verdict_open() {
    let rig = Rig::to_be_proved(909).await;
    rig.world.state().without_timings = true;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.verdict().await, None);
}

#[tokio::test]
async fn tokens_that_cannot_be_read_are_not_sent_back() {
    let rig = Rig::to_be_proved(909).await;
    let file = rig.file();
    // Part of an image.
    rig.world.state().disk.get_mut(&file).expect("it is there")[24..28].fill(0xff);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=restore"]);
}

#[tokio::test]
async fn several_slots_are_left_to_the_requests_that_come_for_one_would_empty_the_others() {
    let mut rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(0, 909);
    rig.world.use_slot(1, 33);
    rig.save().await;
    rig.world.restart();
    rig.sent();
    rig.store = store_with(&rig.state_dir, |slots| slots.prove = Prove::AtOnce);
    assert_eq!(codes(&rig.restore().await), ["restored", "restored"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=restore", "POST /slots/1?action=restore"]);
}

#[tokio::test]
async fn a_proof_is_no_use_and_nothing_that_would_have_to_be_saved() {
    let rig = Rig::to_be_proved(909).await;
    let before = rig.probe.activity(at(0)).await.expect("asked for the first time");
    rig.restore().await;
    assert_eq!(rig.world.state().slots[0].tokens, Some(909), "to the server it is use");
    let after = rig.probe.activity(at(2)).await.expect("two seconds later");
    assert_eq!(after, before);
    assert_eq!(codes(&rig.save().await), ["slot_empty"]);

    rig.world.ask(0, 950);
    let used = rig.probe.activity(at(4)).await.expect("two seconds later");
    assert_ne!(used.mark, before.mark);
    assert_eq!(used.slots[0].tokens, Some(950));
    assert_eq!(counted(&used), Some((41, 909)));
    assert_eq!(codes(&rig.save().await), ["saved"]);
}

#[tokio::test]
async fn what_was_taken_out_of_one_process_is_not_taken_out_of_the_next() {
    let rig = Rig::to_be_proved(909).await;
    rig.restore().await;
    rig.world.state().dead = true;
    rig.probe.health().await;
    rig.world.restart();
    rig.world.ask(0, 909);
    let used = rig.probe.activity(at(0)).await.expect("asked for the first time");
    assert_eq!((used.slots[0].tokens, counted(&used)), (Some(909), Some((909, 0))));
}
