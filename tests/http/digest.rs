//! Digests of whole files: taken when nobody waits, held against the file before it is restored.

use std::time::Duration;

use tokio::time::Instant;
use wechsler::driver::world::SlotChoice;

use crate::llama::{Rig, codes, message, store_with};

impl Rig {
    /// A rig with digests, and a conversation that was saved and has one.
    async fn with_digest(tokens: u32) -> Self {
        let mut rig = Self::new().await;
        rig.store = store_with(&rig.state_dir, |slots| slots.digest = true);
        rig.save_and_restart(tokens).await;
        assert_eq!(rig.digests(), 0, "nobody waits for it while a save is under way");
        rig.store.take_digest(&rig.world).await;
        assert_eq!(rig.digests(), 1);
        rig
    }

    /// How often a whole file was read since the last time.
    fn digests(&self) -> u32 {
        std::mem::take(&mut self.world.state().digests)
    }
}

#[tokio::test]
async fn each_file_is_read_once_the_newest_first() {
    let rig = Rig::with_digest(700).await;
    rig.save_and_restart(800).await;
    rig.save_and_restart(909).await;
    let noted = || async {
        let files: Vec<_> = rig.store.saved().await.into_iter().map(|saved| saved.file).collect();
        let has =
            |file: &String| std::fs::read_to_string(rig.note_path(file)).expect("a note").contains("\"digest\": \"");
        files.iter().map(has).collect::<Vec<_>>()
    };
    assert_eq!(noted().await, [false, false, true]);
    rig.store.take_digest(&rig.world).await;
    assert_eq!(noted().await, [true, false, true]);
    for _ in 0..3 {
        rig.store.take_digest(&rig.world).await;
    }
    assert_eq!((noted().await, rig.digests()), (vec![true; 3], 2));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_not_read_for_ever() {
    let mut rig = Rig::new().await;
    rig.store = store_with(&rig.state_dir, |slots| slots.digest = true);
    rig.save_and_restart(909).await;
    rig.world.state().ssh_down = true;
    rig.store.take_digest(&rig.world).await;
    rig.world.state().ssh_down = false;
    rig.world.state().digest_fails = true;
    for _ in 0..3 {
        rig.store.take_digest(&rig.world).await;
    }
    assert_eq!(rig.digests(), 1, "without an answer it was asked again, after a no it was not");
    rig.world.state().digest_fails = false;
    assert_eq!(codes(&rig.restore().await), ["restored"], "by size and head");
}

#[tokio::test]
async fn a_file_that_takes_too_long_to_read_is_not_read_for_ever() {
    let mut rig = Rig::new().await;
    rig.store = store_with(&rig.state_dir, |slots| slots.digest = true);
    rig.save_and_restart(909).await;
    rig.world.state().digest_takes = Duration::from_hours(1);
    tokio::time::pause();
    for _ in 0..3 {
        rig.store.take_digest(&rig.world).await;
    }
    assert_eq!(rig.digests(), 1);
}

#[tokio::test]
async fn a_digest_that_nobody_waits_for_gives_way_to_a_restore_and_is_taken_later() {
    let rig = Rig::with_digest(800).await;
    rig.save_and_restart(909).await;
    rig.world.state().digest_takes = Duration::from_mins(5);
    let begins = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.world.state().digest_takes = Duration::from_millis(50);
        rig.store.look_ahead(&rig.world).await;
    };
    let both = async { tokio::join!(rig.store.take_digest(&rig.world), begins) };
    tokio::time::timeout(Duration::from_secs(5), both).await.expect("it gives way");
    assert_eq!(rig.digests(), 0, "the newest has none that it could be held against");
    rig.store.take_digest(&rig.world).await;
    assert_eq!(rig.digests(), 1);
}

#[tokio::test]
async fn where_digests_are_off_no_file_is_read() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.store.take_digest(&rig.world).await;
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.digests(), 0);
}

#[tokio::test]
async fn trap_5_a_file_with_a_flipped_bit_is_put_aside_and_never_sent() {
    for ahead in [true, false] {
        let rig = Rig::with_digest(909).await;
        rig.flip(&rig.file());
        if ahead {
            rig.store.look_ahead(&rig.world).await;
        }
        let outcome = rig.restore().await;
        assert_eq!(codes(&outcome), ["!restore_damaged"]);
        assert!(message(outcome).contains("sha256"));
        assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
        assert_eq!(rig.sent(), [""; 0]);
        assert_eq!(rig.digests(), 1);
    }
}

#[tokio::test]
async fn a_flipped_bit_gives_way_to_the_generation_before() {
    let rig = Rig::with_digest(800).await;
    rig.save_and_restart(909).await;
    rig.store.take_digest(&rig.world).await;
    rig.flip(&rig.store.saved().await[0].file);
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(codes(&rig.restore().await), ["restore_damaged", "restored", "restore_older"]);
    assert_eq!(rig.world.state().slots[0].restored, 800);
}

#[tokio::test]
async fn a_file_read_while_the_backend_loads_is_not_read_again() {
    let rig = Rig::with_digest(909).await;
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(rig.digests(), 1);
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.digests(), 0);
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.digests(), 1, "once, that counts for one start");
}

#[tokio::test]
async fn a_restore_waits_for_whoever_reads_the_file_already() {
    let rig = Rig::with_digest(909).await;
    // Both begin at the same time.
    let ((), outcome) = tokio::join!(rig.store.look_ahead(&rig.world), rig.restore());
    assert_eq!(codes(&outcome), ["restored"]);
    assert_eq!(rig.digests(), 1);
}

#[tokio::test]
async fn what_cannot_be_read_in_time_is_restored_by_size_and_head() {
    let rig = Rig::with_digest(909).await;
    rig.world.state().digest_fails = true;
    rig.store.look_ahead(&rig.world).await;
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["digest_unknown", "restored"]);
    assert!(message(outcome).contains("not read in time"));
    rig.world.state().digest_fails = false;
    rig.world.restart();
    rig.store.look_ahead(&rig.world).await;
    assert_eq!(codes(&rig.restore().await), ["restored"], "it was not for want of time");
}

/// The whole file takes longer to read than any start allows.
const FOR_EVER: Duration = Duration::from_hours(1);

impl Rig {
    /// The daemon is started anew.
    fn next_life_with(&mut self, restore_timeout: Duration) {
        self.store =
            store_with(&self.state_dir, |slots| (slots.digest, slots.restore_timeout) = (true, restore_timeout));
    }

    /// A start: the file is read while the backend loads, and restored. How long the restore took, and what was said.
    async fn start(&self, loads: Duration, restore_timeout: Duration) -> (Duration, Vec<String>) {
        self.world.restart();
        let restore = async {
            tokio::time::sleep(loads).await;
            let begun = Instant::now();
            let choice = SlotChoice::All;
            let outcome = self.store.restore(&self.probe, &self.world, &choice, restore_timeout).await;
            (begun.elapsed(), codes(&outcome))
        };
        tokio::join!(self.store.look_ahead(&self.world), restore).1
    }
}

#[tokio::test]
async fn a_file_that_takes_too_long_to_read_is_waited_for_once_and_not_at_every_start() {
    const TIMEOUT: Duration = Duration::from_secs(5);
    const SOON: Duration = Duration::from_secs(1);
    let mut rig = Rig::with_digest(909).await;
    rig.next_life_with(TIMEOUT);
    rig.world.state().digest_takes = FOR_EVER;
    let (took, said) = rig.start(Duration::ZERO, TIMEOUT).await;
    assert_eq!(said, ["digest_unknown", "restored"]);
    assert!(took > SOON, "half of the time is waited for it: {took:?}");
    // Another daemon, another generation, no smaller.
    rig.next_life_with(TIMEOUT);
    rig.save_and_restart(1000).await;
    rig.world.state().digest_takes = Duration::ZERO;
    while rig.store.take_digest(&rig.world).await {}
    rig.world.state().digest_takes = FOR_EVER;
    let (took, said) = rig.start(Duration::ZERO, TIMEOUT).await;
    assert_eq!(said, ["digest_unknown", "restored"], "it is said each time");
    assert!(took < SOON, "{took:?}");
    // While a backend loads for longer it is read in time all the same.
    rig.world.state().digest_takes = Duration::from_millis(50);
    let newest = rig.store.saved().await.swap_remove(0);
    rig.flip(&newest.file);
    let (_, said) = rig.start(Duration::from_millis(500), TIMEOUT).await;
    let expected = ["restore_damaged", "digest_unknown", "restored", "restore_older"];
    assert_eq!(said, expected, "and the one before is not waited for");
    assert_eq!(rig.world.state().slots[0].restored, 909);
}

#[tokio::test]
async fn what_cannot_be_read_in_the_time_for_a_restore_is_not_read_again_until_there_is_more() {
    let mut rig = Rig::with_digest(909).await;
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(10));
    rig.next_life_with(short);
    rig.world.state().digest_takes = FOR_EVER;
    let loads = Duration::from_millis(1500);
    for reads in [1, 0, 0] {
        assert_eq!(rig.start(loads, long).await.1, ["digest_unknown", "restored"]);
        assert_eq!(rig.digests(), reads);
    }
    rig.next_life_with(long);
    rig.world.state().digest_takes = short;
    assert_eq!(rig.start(loads, long).await.1, ["restored"]);
    assert_eq!(rig.digests(), 1);
}
