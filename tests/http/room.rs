//! Whether a restore finds room beside what other slots hold. "No room" is the same answer as "no slot file".

use wechsler::machine::Invocation;

use crate::llama::{Rig, Slot, codes, named};

impl Rig {
    /// A server that holds so many tokens in each slot; 0: never used.
    async fn holding(tokens: &[u32]) -> Self {
        let rig = Self::new().await;
        rig.world.state().slots = vec![Slot::default(); tokens.len()];
        rig.hold(tokens);
        rig
    }

    fn hold(&self, tokens: &[u32]) {
        for (id, tokens) in tokens.iter().enumerate().filter(|(_, tokens)| **tokens > 0) {
            self.world.use_slot(id, *tokens);
        }
    }

    async fn nothing_is_put_aside(&self) -> bool {
        self.store.saved().await.iter().all(|saved| saved.put_aside.is_none())
    }

    fn restored(&self) -> Vec<u32> {
        self.world.state().slots.iter().map(|slot| slot.restored).collect()
    }
}

#[tokio::test]
async fn a_slot_is_not_sent_where_an_older_and_longer_generation_of_another_took_its_room() {
    let rig = Rig::holding(&[3000, 0]).await;
    rig.save().await;
    rig.world.restart();
    rig.hold(&[1500, 1200]);
    rig.save().await;
    let newest = rig.store.saved().await.into_iter().find(|saved| saved.generation == 2 && saved.slot == 0);
    rig.world.state().disk.get_mut(&newest.expect("saved").file).expect("it is there").pop();
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restore_damaged", "restored", "restore_older", "restore_no_room"]);
    assert_eq!(rig.restored(), [3000, 0]);
    assert_eq!(rig.store.saved().await.iter().filter(|saved| saved.put_aside.is_some()).count(), 1);
}

#[tokio::test]
async fn what_an_earlier_life_of_the_daemon_restored_takes_room() {
    let mut rig = Rig::holding(&[3000, 0]).await;
    rig.store.meets(Some(Invocation(1)));
    rig.save().await;
    rig.world.restart();
    rig.store.meets(Some(Invocation(2)));
    rig.hold(&[0, 3000]);
    rig.save().await;
    rig.world.restart();
    rig.store.meets(Some(Invocation(3)));
    assert_eq!(codes(&rig.restore_by(&named("localbot-1")).await), ["restored"]);
    rig.next_life();
    rig.store.meets(Some(Invocation(3)));
    assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["!restore_no_room"]);
    assert_eq!(rig.restored(), [0, 3000]);
    assert!(rig.nothing_is_put_aside().await);
}

#[tokio::test]
async fn what_a_request_holds_in_another_slot_takes_room() {
    let rig = Rig::holding(&[0, 3000]).await;
    rig.save().await;
    for (held, is_busy) in [(1500, false), (10, true)] {
        rig.world.restart();
        rig.hold(&[held, 0]);
        rig.world.state().slots[0].busy = is_busy;
        rig.sent();
        assert_eq!(codes(&rig.restore().await), ["!restore_no_room"]);
        assert_eq!(rig.sent(), [""; 0]);
        assert!(rig.nothing_is_put_aside().await);
    }
}

#[tokio::test]
async fn slots_with_a_cache_each_come_back_whatever_the_others_hold() {
    let rig = Rig::holding(&[0, 3000]).await;
    rig.world.state().split = true;
    rig.world.state().command_line = "llama-server -np 2";
    rig.save().await;
    rig.world.restart();
    rig.hold(&[3000, 0]);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn slots_of_one_save_come_back_together_also_after_another_model_has_saved() {
    let rig = Rig::holding(&[3000, 3000]).await;
    rig.world.state().split = true;
    rig.world.state().command_line = "";
    rig.save().await;
    rig.world.restart();
    rig.world.state().model_path = "/models/other.gguf";
    rig.hold(&[10, 10]);
    rig.save().await;
    rig.world.restart();
    rig.world.state().model_path = "/models/m.gguf";
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["restore_mismatch", "restored", "restore_mismatch", "restored"]);
    assert_eq!(rig.restored(), [3000, 3000]);
}

#[tokio::test]
async fn a_rejection_beside_others_may_be_for_want_of_room_and_only_the_second_one_counts() {
    let rig = Rig::holding(&[0, 1000]).await;
    rig.save().await;
    for is_good in [true, false] {
        rig.world.restart();
        rig.hold(&[100, 0]);
        rig.world.state().rejects = true;
        assert_eq!(codes(&rig.restore().await), ["!restore_rejected"]);
        assert_eq!(rig.nothing_is_put_aside().await, is_good);
    }
}
