//! Restores of which nobody knows how they ended.

use std::time::Duration;

use wechsler::{
    driver::world::{SlotChoice, SlotTask},
    machine::Invocation,
};

use crate::llama::{Rig, codes, message, store_with};

const ONE: Option<Invocation> = Some(Invocation(7));
const ANOTHER: Option<Invocation> = Some(Invocation(8));

impl Rig {
    /// The daemon is killed when it has sent a restore that hangs, and started again.
    async fn killed_while_it_restores(&mut self, run: Option<Invocation>) {
        self.world.state().hangs = true;
        self.store.meets(run);
        self.sent();
        tokio::select! {
            outcome = self.restore() => panic!("ended: {outcome:?}"),
            () = async { while self.sent().is_empty() { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
        }
        self.world.state().hangs = false;
        self.next_life();
    }

    /// A restore that hangs for longer than it may.
    async fn restore_in_vain(&self, run: Option<Invocation>) {
        self.world.state().hangs = true;
        self.store.meets(run);
        let within = Duration::from_millis(400);
        let outcome = self.store.restore(&self.probe, &self.world, &SlotChoice::All, within).await;
        assert_eq!(codes(&outcome), ["?restore_timeout"]);
        self.world.state().hangs = false;
    }

    fn is_marked(&self) -> bool {
        let note = std::fs::read_to_string(self.note_path(&self.file())).expect("a note");
        note.contains(r#""restoring": true"#)
    }

    async fn why_put_aside(&self) -> Option<String> {
        self.store.saved().await.swap_remove(0).put_aside
    }

    async fn verify(&self) -> String {
        let task = SlotTask::Verify { name: None, generation: None };
        let told = self.store.tend(&self.world, task).await.expect("it is verified").swap_remove(0);
        format!("{}: {}", told.code, told.message)
    }
}

#[tokio::test]
async fn a_restore_is_noted_before_it_is_sent() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().hangs = true;
    let restore = rig.restore();
    tokio::pin!(restore);
    while rig.sent().is_empty() {
        tokio::select! {
            outcome = &mut restore => panic!("ended: {outcome:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    assert!(rig.is_marked());
    assert_eq!(rig.why_put_aside().await, None, "it is under way");
}

#[tokio::test]
async fn a_restore_that_takes_too_long_is_no_fault_of_the_file_once_the_same_run_answers_again() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    for run in [ONE, ANOTHER, ONE] {
        rig.restore_in_vain(run).await;
        assert_eq!((rig.is_marked(), rig.why_put_aside().await), (true, None));
        rig.store.answers().await;
        assert!(!rig.is_marked());
        rig.world.restart();
    }
    rig.store.meets(ANOTHER);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn while_the_server_may_be_restoring_still_nothing_more_is_sent_to_it() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.restore_in_vain(ONE).await;
    rig.sent();
    rig.world.state().dead = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_unchecked"]);
    assert_eq!(rig.sent(), [""; 0]);
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn a_file_whose_server_was_gone_before_its_restore_ended_is_sent_once_more_and_never_a_third_time() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.killed_while_it_restores(ONE).await;
    rig.world.restart();
    rig.store.meets(ANOTHER);
    assert_eq!(rig.why_put_aside().await, None);
    rig.killed_while_it_restores(ANOTHER).await;
    rig.world.restart();
    rig.store.meets(ONE);
    assert!(rig.why_put_aside().await.is_some_and(|why| why.contains("never ended, twice")));
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn one_that_came_back_after_all_has_both_its_chances_again() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    for _ in 0..3 {
        rig.killed_while_it_restores(None).await;
        rig.world.restart();
        assert_eq!(codes(&rig.restore().await), ["restored"]);
        rig.world.restart();
    }
}

#[tokio::test]
async fn that_the_server_has_outlived_it_is_written_down_when_it_is_seen() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    for run in [ONE, ANOTHER] {
        rig.killed_while_it_restores(run).await;
        rig.store.meets(run);
        rig.store.answers().await;
        assert!(!rig.is_marked());
        rig.world.restart();
    }
    rig.next_life();
    assert_eq!(rig.why_put_aside().await, None);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn an_error_of_the_server_counts_against_the_file_only_the_second_time() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().restore_fails = true;
    for is_aside in [false, true] {
        let outcome = rig.restore().await;
        assert_eq!(codes(&outcome), ["!restore_failed"]);
        assert!(message(outcome).contains("out of memory"));
        assert_eq!(rig.why_put_aside().await.is_some(), is_aside);
    }
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
}

#[tokio::test]
async fn what_is_found_whole_is_not_put_aside_any_more_unless_it_was_rejected() {
    let mut rig = Rig::new().await;
    rig.store = store_with(&rig.state_dir, |slots| slots.digest = true);
    rig.save_and_restart(909).await;
    rig.store.take_digest(&rig.world).await;
    rig.world.state().restore_fails = true;
    for _ in 0..2 {
        rig.restore().await;
    }
    rig.world.state().restore_fails = false;
    assert!(rig.why_put_aside().await.is_some());
    let told = rig.verify().await;
    assert!(told.starts_with("whole: ") && told.ends_with("not put aside any more"), "{told}");
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    rig.world.restart();
    rig.world.state().rejects = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_rejected"]);
    let told = rig.verify().await;
    assert!(told.starts_with("whole: ") && told.ends_with("and yet put aside"), "{told}");
    assert!(rig.why_put_aside().await.is_some());
}
