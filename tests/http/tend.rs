//! Forgetting and verifying saved slots, and what their restores were worth.

use wechsler::{
    driver::world::{SlotTask, SlotTold},
    machine::{
        Invocation, Warning,
        reading::{LastRestore, Reuse, SavedSlot},
    },
};

use crate::llama::{Rig, Slot, codes, message, named, store_with};

const NONE: Reuse = Reuse { reused: 3, computed: 900 };
const MOST_OF_IT: Reuse = Reuse { reused: 800, computed: 100 };

fn forget(name: &str, generation: Option<u64>) -> SlotTask {
    SlotTask::Forget { name: name.into(), generation }
}

fn verify(name: &str, generation: Option<u64>) -> SlotTask {
    SlotTask::Verify { name: Some(name.into()), generation }
}

/// Names, generations and codes, in order; a failure's code has a mark before it.
fn told(result: &Result<Vec<SlotTold>, Warning>) -> Vec<String> {
    match result {
        Ok(told) => told.iter().map(|t| format!("{} {} {}", t.name, t.generation, t.code)).collect(),
        Err(why) => vec![format!("!{}", why.code)],
    }
}

impl Rig {
    async fn tend(&self, task: SlotTask) -> Vec<String> {
        told(&self.store.tend(&self.world, task).await)
    }

    async fn proved(&self, slots: &[u32], reuse: Reuse) -> Vec<String> {
        self.tend(SlotTask::Proved { slots: slots.to_vec(), reuse }).await
    }

    async fn newest(&self) -> SavedSlot {
        self.store.saved().await.swap_remove(0)
    }

    /// The digest of the newest file is taken.
    async fn digested(&mut self) {
        self.store = store_with(&self.state_dir, |slots| slots.digest = true);
        self.store.take_digest(&self.world).await;
    }

    /// One bit of a file is another one.
    pub(crate) fn flip(&self, file: &str) {
        let mut state = self.world.state();
        let last = state.disk.get_mut(file).and_then(|bytes| bytes.last_mut()).expect("it is there");
        *last ^= 1;
    }

    /// The backend is started, its slot restored, and a request has told what that was worth.
    async fn restore_and_prove(&self, reuse: Reuse) {
        self.world.restart();
        assert_eq!(codes(&self.restore().await), ["restored"]);
        assert_eq!(self.proved(&[0], reuse).await.len(), 1);
    }
}

#[tokio::test]
async fn what_is_forgotten_is_gone_file_and_note() {
    let rig = Rig::new().await;
    for tokens in [700, 800, 909] {
        rig.save_and_restart(tokens).await;
    }
    assert_eq!(rig.tend(forget("localbot", Some(2))).await, ["localbot 2 forgotten"]);
    assert_eq!(rig.world.files().len(), 2);
    assert_eq!(rig.tend(forget("localbot", None)).await, ["localbot 3 forgotten", "localbot 1 forgotten"]);
    assert!(rig.world.files().is_empty());
    assert!(rig.store.saved().await.is_empty());
    assert_eq!(std::fs::read_dir(rig.note_path("x").parent().expect("a folder")).expect("notes").count(), 0);
}

#[tokio::test]
async fn with_all_of_a_name_goes_what_its_saves_have_left_unfinished() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.save_and_restart(910).await;
    let part = |file: &str| file.replace(".slot", ".part");
    let own = part(&rig.world.files()[0]);
    let others = [own.replacen("localbot.", "localbot-1.", 1), own.replacen("localbot.", "local.bot.", 1)];
    for file in others.iter().chain([&own]) {
        rig.world.state().disk.insert(file.clone(), vec![7]);
    }
    rig.tend(forget("localbot", Some(1))).await;
    assert!(rig.world.files().contains(&own), "of one generation it is none");
    rig.tend(forget("localbot", None)).await;
    let mut others = others.to_vec();
    others.sort();
    assert_eq!(rig.world.files(), others);
}

#[tokio::test]
async fn only_what_is_there_can_be_forgotten() {
    let rig = Rig::new().await;
    assert_eq!(rig.tend(forget("localbot", None)).await, ["!no_such_slot"]);
    rig.save_and_restart(909).await;
    assert_eq!(rig.tend(forget("other", None)).await, ["!no_such_slot"]);
    assert_eq!(rig.tend(forget("localbot", Some(7))).await, ["!no_such_generation"]);
    rig.world.state().disk.clear();
    assert_eq!(rig.tend(forget("localbot", None)).await, ["localbot 1 forgotten"], "a missing file is gone already");
}

#[tokio::test]
async fn what_cannot_be_removed_now_is_not_forgotten() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().ssh_down = true;
    assert_eq!(rig.tend(forget("localbot", None)).await, ["!forget_failed"]);
    rig.world.state().ssh_down = false;
    assert_eq!(rig.store.saved().await.len(), 1);
    assert_eq!(rig.tend(forget("localbot", None)).await, ["localbot 1 forgotten"]);
}

#[tokio::test(start_paused = true)]
async fn while_something_else_is_done_about_the_slots_nothing_is_forgotten() {
    let rig = Rig::new().await;
    rig.world.state().listing_hangs = true;
    tokio::select! {
        biased;
        swept = rig.store.sweep(&rig.world) => panic!("it hangs: {swept:?}"),
        told = rig.tend(forget("localbot", None)) => assert_eq!(told, ["!slots_in_use"]),
    }
    assert_eq!(rig.tend(forget("localbot", None)).await, ["!no_such_slot"], "it was its turn");
}

#[tokio::test]
async fn a_verification_reads_the_whole_file_where_a_digest_is_on_record() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 digest_unknown"]);
    rig.digested().await;
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 whole"]);
    rig.world.state().digest_fails = true;
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 unreadable"]);
    rig.world.state().digest_fails = false;
    rig.world.state().ssh_down = true;
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 unreadable"]);
    rig.world.state().ssh_down = false;
    assert_eq!(rig.newest().await.put_aside, None, "it may be good");
    let disk = std::mem::take(&mut rig.world.state().disk);
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 missing"]);
    rig.world.state().disk = disk;
    assert_eq!(codes(&rig.restore().await), ["restored"], "the folder was only not mounted then");
}

#[tokio::test]
async fn a_generation_whose_file_is_missing_is_shown_so_until_it_is_found_or_the_backend_starts() {
    type Find = fn(&Rig) -> futures_util::future::BoxFuture<'_, ()>;
    let finds: [Find; 5] = [
        |rig| Box::pin(async { _ = rig.tend(verify("localbot", None)).await }),
        |rig| Box::pin(async { _ = rig.restore().await }),
        |rig| Box::pin(async { _ = rig.store.sweep(&rig.world).await }),
        |rig| Box::pin(async { rig.store.look_ahead(&rig.world).await }),
        |rig| Box::pin(async { rig.store.meets(Some(Invocation(1))) }),
    ];
    for (number, find) in finds.into_iter().enumerate() {
        let rig = Rig::new().await;
        rig.save_and_restart(909).await;
        let disk = std::mem::take(&mut rig.world.state().disk);
        assert_eq!(codes(&rig.restore().await), ["!restore_missing"]);
        let why = rig.newest().await.put_aside.expect("shown as missing");
        assert!(why.contains("its file is missing"), "{why}");
        rig.world.state().disk = disk;
        assert!(rig.newest().await.put_aside.is_some(), "nobody has looked again");
        find(&rig).await;
        assert_eq!(rig.newest().await.put_aside, None, "find {number}");
    }
}

#[tokio::test]
async fn what_is_about_to_be_pruned_is_neither_shown_nor_verified() {
    let rig = Rig::new().await;
    for tokens in [900, 1, 2, 3, 4] {
        rig.save_and_restart(tokens).await;
    }
    let all = SlotTask::Verify { name: None, generation: None };
    let there = ["localbot 5 digest_unknown", "localbot 4 digest_unknown", "localbot 3 digest_unknown"];
    let expected: Vec<&str> = there.into_iter().chain(["localbot 1 digest_unknown"]).collect();
    assert_eq!(rig.tend(all).await, expected);
    assert_eq!(rig.tend(verify("localbot", None)).await, expected);
    assert_eq!(rig.tend(verify("localbot", Some(2))).await, ["!no_such_generation"]);
}

#[tokio::test]
async fn a_verification_tells_what_it_could_not_read_while_somebody_still_waits() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.digested().await;
    rig.world.state().digest_takes = std::time::Duration::from_hours(1);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(rig.tend(verify("localbot", None)).await, ["localbot 1 unreadable"]);
    assert!(began.elapsed() < wechsler::driver::world::TENDED_WITHIN);
}

#[tokio::test]
async fn what_is_found_damaged_is_put_aside_and_never_sent() {
    type Damage = fn(&Rig, &str);
    let damages: [(Damage, &str); 3] = [
        (|rig, file| rig.flip(file), "sha256"),
        (|rig, file| _ = rig.world.state().disk.get_mut(file).expect("it is there").pop(), "bytes instead of"),
        (|rig, file| rig.world.state().disk.get_mut(file).expect("it is there")[4] = 3, "version 3 instead of 4"),
    ];
    for (damage, words) in damages {
        let mut rig = Rig::new().await;
        rig.save_and_restart(909).await;
        rig.digested().await;
        damage(&rig, &rig.file());
        rig.sent();
        assert_eq!(rig.tend(verify("localbot", Some(1))).await, ["localbot 1 damaged"]);
        let why = rig.newest().await.put_aside.expect("put aside");
        assert!(why.contains(words) && why.len() < 80, "for people: {why}");
        assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
        assert_eq!(rig.sent(), [""; 0]);
    }
}

#[tokio::test]
async fn without_a_name_everything_is_verified() {
    let rig = Rig::new().await;
    let all = || SlotTask::Verify { name: None, generation: None };
    assert_eq!(rig.tend(all()).await, [""; 0]);
    rig.save_and_restart(909).await;
    rig.world.use_slot(0, 10);
    rig.save_by(&named("other")).await;
    assert_eq!(rig.tend(all()).await, ["other 2 digest_unknown", "localbot 1 digest_unknown"]);
    assert_eq!(rig.tend(verify("nobody", None)).await, ["!no_such_slot"]);
}

#[tokio::test]
async fn the_last_restore_is_noted_and_what_it_was_worth_once_that_is_known() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    assert_eq!(rig.newest().await.last_restore, None);
    rig.restore().await;
    let LastRestore { at, tokens, reuse } = rig.newest().await.last_restore.expect("it was restored");
    assert_eq!((tokens, reuse), (909, None));
    assert!(at >= rig.newest().await.saved_at);
    assert_eq!(rig.proved(&[0, 1], MOST_OF_IT).await, ["localbot 1 restore_effective"]);
    let after = LastRestore { at, tokens, reuse: Some(MOST_OF_IT) };
    assert_eq!(rig.newest().await.last_restore, Some(after.clone()));
    assert_eq!(rig.proved(&[0], NONE).await, [""; 0], "a restore is judged once");
    rig.next_life();
    assert_eq!(rig.newest().await.last_restore, Some(after));
}

#[tokio::test]
async fn a_restore_that_was_not_done_is_none() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().rejects = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_rejected"]);
    assert_eq!(rig.newest().await.last_restore, None);
    assert_eq!(rig.proved(&[0], NONE).await, [""; 0]);
}

#[tokio::test]
async fn what_was_restored_into_an_earlier_process_is_not_judged() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.store.meets(Some(Invocation(1)));
    rig.restore().await;
    rig.store.meets(None);
    rig.world.restart();
    rig.store.meets(Some(Invocation(2)));
    assert_eq!(rig.proved(&[0], NONE).await, [""; 0]);
    rig.restore().await;
    rig.store.meets(None);
    assert_eq!(rig.proved(&[0], NONE).await, ["localbot 1 restore_ineffective"], "which run it is cannot be told now");
}

#[tokio::test]
async fn a_model_for_which_restores_do_nothing_is_no_longer_paid_for() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.restore_and_prove(NONE).await;
    assert_eq!(rig.newest().await.useless, None, "once may have been another conversation");
    rig.restore_and_prove(NONE).await;
    let why = rig.newest().await.useless.expect("twice in a row");
    assert!(why.contains("3 of 903 tokens"), "{why}");
    rig.world.restart();
    rig.sent();
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["restore_useless"], "no failure");
    assert!(message(outcome).contains(&why));
    assert_eq!(rig.sent(), [""; 0]);
    rig.next_life();
    assert_eq!(rig.newest().await.useless, Some(why), "it is remembered");
    assert_eq!(codes(&rig.restore().await), ["restore_useless"]);
    rig.world.state().surveys = 0;
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(rig.world.state().surveys, 0, "nothing is looked at for it");
}

#[tokio::test]
async fn short_prompts_that_went_on_with_nothing_say_nothing_about_the_model() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    for _ in 0..3 {
        rig.restore_and_prove(Reuse { reused: 3, computed: 97 }).await;
        assert_eq!(rig.newest().await.useless, None);
    }
}

#[tokio::test]
async fn by_its_name_it_can_be_tried_again_and_one_effect_is_enough() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.restore_and_prove(NONE).await;
    rig.restore_and_prove(NONE).await;
    rig.world.restart();
    assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["restored"]);
    assert_eq!(rig.proved(&[0], MOST_OF_IT).await, ["localbot 1 restore_effective"]);
    assert_eq!(rig.newest().await.useless, None);
    rig.restore_and_prove(MOST_OF_IT).await;
}

#[tokio::test]
async fn a_verdict_is_about_the_model_and_build_alone() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.restore_and_prove(NONE).await;
    rig.restore_and_prove(NONE).await;
    rig.world.state().build = "b12000-fedcba";
    rig.save_and_restart(800).await;
    assert_eq!(rig.newest().await.useless, None);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    rig.world.state().build = "b11434-abcdef";
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restore_useless"]);
}

#[tokio::test]
async fn a_verdict_that_could_not_be_noted_can_be_told_again_and_counts_once() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.restore().await;
    let in_the_way = rig.note_path("x").with_file_name(".note.tmp");
    std::fs::create_dir(&in_the_way).expect("a folder");
    assert_eq!(rig.proved(&[0], NONE).await, ["localbot 1 note_failed"]);
    std::fs::remove_dir(&in_the_way).expect("it is empty");
    assert_eq!(rig.proved(&[0], NONE).await, ["localbot 1 restore_ineffective"]);
    assert_eq!(rig.newest().await.useless, None, "it was one restore");
}

#[tokio::test]
async fn slots_judged_together_are_one_verdict() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(0, 909);
    rig.world.use_slot(1, 33);
    rig.save().await;
    rig.world.restart();
    rig.restore().await;
    assert_eq!(rig.proved(&[0, 1], NONE).await.len(), 2);
    assert_eq!(rig.newest().await.useless, None);
}

#[tokio::test]
async fn a_damaged_list_of_what_is_useless_is_told_and_lived_without() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let list = rig.note_path("x").with_file_name("useless");
    std::fs::write(&list, "{half").expect("damage");
    rig.next_life();
    assert_eq!(rig.store.damaged().await[0].0, "useless");
    rig.restore_and_prove(NONE).await;
    assert_eq!(rig.store.damaged().await, []);
}

#[tokio::test]
async fn what_is_kept_too_long_is_neither_shown_nor_restored_and_goes_in_the_next_calm() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.age(std::time::Duration::from_hours(2)).await;
    rig.store = store_with(&rig.state_dir, |slots| slots.keep_for = Some(std::time::Duration::from_hours(1)));
    assert!(rig.store.saved().await.is_empty());
    for choice in [wechsler::driver::world::SlotChoice::All, named("localbot")] {
        assert_eq!(codes(&rig.restore_by(&choice).await), ["!restore_nothing"]);
    }
    rig.store.prune(&rig.world).await;
    assert!(rig.world.files().is_empty());
}

#[tokio::test]
async fn a_run_that_the_daemon_before_has_restored_into_is_not_restored_into_again() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.store.meets(Some(Invocation(7)));
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.sent().len(), 1);
    rig.next_life();
    rig.store.meets(Some(Invocation(7)));
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["restored"]);
    assert!(message(outcome).contains("909 tokens are in slot 0 of this run already"));
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.proved(&[0], MOST_OF_IT).await, ["localbot 1 restore_effective"], "what it was worth is told now");
    assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["restored"]);
    assert_eq!(rig.sent().len(), 1, "who names it means it");
    rig.world.restart();
    rig.store.meets(Some(Invocation(8)));
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.sent().len(), 1, "another run has nothing");
    rig.next_life();
    rig.store.meets(Some(Invocation(8)));
    rig.world.use_slot(0, 5);
    assert_eq!(codes(&rig.restore().await), ["!restore_slot_used"]);
}
