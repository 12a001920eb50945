//! Restoring slots.

use crate::llama::{Rig, Slot, State, codes, generation, message, named};

type Change = fn(&mut State);

fn truncate(rig: &Rig, file: &str) {
    let mut state = rig.world.state();
    let bytes = state.disk.get_mut(file).expect("it is there");
    bytes.pop();
}

#[tokio::test]
async fn what_was_saved_comes_back_into_its_slot() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(0, 909);
    rig.world.use_slot(1, 33);
    rig.save().await;
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored", "restored"]);
    let restored: Vec<_> = rig.world.state().slots.iter().map(|s| s.restored).collect();
    assert_eq!(restored, [909, 33]);
}

#[tokio::test]
async fn a_restored_slot_that_is_never_used_is_not_lost_by_the_next_stop() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    for _ in 0..3 {
        assert_eq!(codes(&rig.restore().await), ["restored"]);
        assert_eq!(codes(&rig.save().await), ["slot_empty"]);
        rig.world.restart();
    }
}

#[tokio::test]
async fn without_anything_saved_nothing_is_asked() {
    let rig = Rig::new().await;
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert_eq!(rig.world.asked(""), [""; 0]);
}

#[tokio::test]
async fn trap_1_a_truncated_file_is_put_aside_and_never_sent() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    truncate(&rig, &rig.file());
    assert_eq!(codes(&rig.restore().await), ["!restore_damaged"]);
    let why = rig.store.saved().await[0].put_aside.clone().expect("put aside");
    assert!(why.contains("bytes instead of"), "{why}");
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert_eq!(rig.sent(), [""; 0]);
    assert!(!rig.world.state().dead);
}

#[tokio::test]
async fn trap_1_a_file_with_another_head_is_put_aside_and_never_sent() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let file = rig.file();
    rig.world.state().disk.get_mut(&file).expect("it is there")[4] = 3;
    assert_eq!(codes(&rig.restore().await), ["!restore_damaged"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn a_damaged_generation_gives_way_to_the_one_before_and_it_is_said_each_time() {
    let rig = Rig::new().await;
    rig.save_and_restart(800).await;
    rig.save_and_restart(909).await;
    let newest = rig.store.saved().await[0].file.clone();
    truncate(&rig, &newest);
    for expected in [&["restore_damaged", "restored", "restore_older"][..], &["restored", "restore_older"]] {
        let outcome = rig.restore().await;
        assert_eq!(codes(&outcome), expected);
        assert_eq!(rig.world.state().slots[0].restored, 800);
        let told = message(outcome);
        assert!(told.contains("generation 1 (800 tokens) is restored, not 2 (909 tokens, saved "), "{told}");
        assert!(told.contains("bytes instead of"), "and why: {told}");
        rig.world.restart();
    }
    assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["restored", "restore_older"]);
    rig.world.restart();
    assert_eq!(codes(&rig.restore_by(&generation("localbot", 1)).await), ["restored"], "it was asked for");
}

#[tokio::test]
async fn an_older_generation_instead_of_one_whose_file_is_missing_is_said() {
    let rig = Rig::new().await;
    rig.save_and_restart(800).await;
    rig.save_and_restart(909).await;
    let newest = rig.store.saved().await[0].file.clone();
    rig.world.state().disk.remove(&newest);
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["restore_missing", "restored", "restore_older"]);
    let told = message(outcome);
    assert!(told.contains("later): its file is missing"), "{told}");
}

#[tokio::test]
async fn that_nothing_comes_back_is_said_with_what_is_saved() {
    let rig = Rig::new().await;
    rig.save_and_restart(800).await;
    rig.save_and_restart(909).await;
    rig.world.state().n_ctx = 8192;
    let told = message(rig.restore().await);
    let expected = "localbot: context 8192 instead of 4096; it is kept until that is back; slot 0 stays empty, though 2 \
                    generations are saved";
    assert_eq!(told, expected);
    rig.world.state().n_ctx = 4096;
    for file in rig.world.files() {
        truncate(&rig, &file);
    }
    let told = message(rig.restore().await);
    assert!(told.ends_with("slot 0 stays empty, though 2 generations are saved"), "{told}");
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["!restore_nothing"]);
    let told = message(outcome);
    assert!(told.starts_with("localbot, generation 2: ") && told.contains("bytes instead of"), "{told}");
    assert!(told.ends_with("nothing comes back, though 2 generations are saved"), "{told}");
}

#[tokio::test]
async fn a_missing_file_is_not_put_aside_for_the_folder_may_not_be_mounted_now() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let disk = std::mem::take(&mut rig.world.state().disk);
    assert_eq!(codes(&rig.restore().await), ["!restore_missing"]);
    assert_eq!(rig.sent(), [""; 0]);
    rig.world.state().disk = disk;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn a_file_that_nobody_can_check_is_not_sent() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().ssh_down = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_unchecked"]);
    assert_eq!(rig.sent(), [""; 0]);
    rig.world.state().ssh_down = false;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
}

#[tokio::test]
async fn trap_5_a_file_of_another_model_build_context_or_layout_is_not_sent() {
    let changes: [(Change, &str); 7] = [
        (|s| s.model_path = "/models/other.gguf", "model /models/other.gguf instead of"),
        (|s| s.model_mtime = 2, "the file of model m has changed"),
        (|s| s.build = "b12000-fedcba", "build b12000-fedcba instead of b11434-abcdef"),
        (|s| s.n_ctx = 8192, "context 8192 instead of 4096"),
        (|s| s.slots.push(Slot::default()), "2 slots instead of 1"),
        (|s| s.command_line = "llama-server", "without --swa-full"),
        (|s| s.command_line = "llama-server -ctv q8_0 --swa-full", "--cache-type-v q8_0, which was not given"),
    ];
    for (change, told) in changes {
        let rig = Rig::new().await;
        rig.save_and_restart(909).await;
        change(&mut rig.world.state());
        let outcome = rig.restore().await;
        assert_eq!(codes(&outcome), ["!restore_mismatch"]);
        let message = message(outcome);
        assert!(message.contains(told), "{message}");
        assert_eq!(rig.sent(), [""; 0]);
        assert_eq!(rig.store.saved().await[0].put_aside, None, "it may fit again");
    }
}

#[tokio::test]
async fn an_older_generation_that_fits_is_better_than_none() {
    let rig = Rig::new().await;
    rig.save_and_restart(800).await;
    rig.world.state().model_path = "/models/other.gguf";
    rig.save_and_restart(909).await;
    rig.world.state().model_path = "/models/m.gguf";
    assert_eq!(codes(&rig.restore().await), ["restore_mismatch", "restored"]);
    assert_eq!(rig.world.state().slots[0].restored, 800);
}

#[tokio::test]
async fn a_model_that_comes_back_finds_what_it_has_saved_whatever_another_saved_meanwhile() {
    let rig = Rig::new().await;
    rig.save_and_restart(4).await;
    rig.world.state().model_path = "/models/other.gguf";
    // Newer ones, and longer ones.
    for tokens in 5..15 {
        rig.save_and_restart(tokens).await;
        rig.store.prune(&rig.world).await;
    }
    assert_eq!(rig.world.files().len(), 4, "three of the other one");
    rig.world.state().model_path = "/models/m.gguf";
    assert_eq!(codes(&rig.restore().await), ["restore_mismatch", "restored"]);
    assert_eq!(rig.world.state().slots[0].restored, 4);
}

#[tokio::test]
async fn only_a_slot_never_used_since_the_start_is_restored() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().slots[0].busy = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_slot_busy"]);
    rig.world.use_slot(0, 5);
    assert_eq!(codes(&rig.restore().await), ["!restore_slot_used"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn a_request_that_comes_while_the_files_are_checked_keeps_its_slot() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().used_meanwhile = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_slot_used"]);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.store.saved().await[0].put_aside, None, "the file has done nothing");
    rig.world.state().used_meanwhile = false;
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    let asked = rig.world.asked("");
    let last = asked.iter().position(|what| what.starts_with("POST")).expect("a restore") - 1;
    assert_eq!(asked[last], "GET /slots", "{asked:?}");
}

#[tokio::test]
async fn files_looked_at_while_the_backend_loads_are_not_looked_at_again() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.store.look_ahead(&rig.world).await;
    rig.world.state().surveys = 0;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.world.state().surveys, 0);
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.world.state().surveys, 1, "once, that counts for one start");

    rig.world.restart();
    rig.store.look_ahead(&rig.world).await;
    rig.world.state().model_path = "/models/other.gguf";
    assert_eq!(codes(&rig.restore().await), ["!restore_mismatch"], "of another model nothing is known yet");
    assert_eq!(rig.world.state().surveys, 3);
}

#[tokio::test]
async fn what_was_looked_at_too_early_is_looked_at_again() {
    let changes: [(Change, Change); 4] = [
        (|s| s.command_line = "/bin/sh /opt/llama/llama-run.sh", |s| s.command_line = "llama-server --swa-full"),
        (|s| s.command_line = "", |s| s.command_line = "llama-server -ctk q8_0"),
        (|s| s.model_hidden = true, |s| (s.model_hidden, s.model_mtime) = (false, 2)),
        (
            |s| s.disk.values_mut().for_each(|bytes| bytes.insert(0, 0)),
            |s| {
                s.disk.values_mut().for_each(|bytes| _ = bytes.remove(0));
            },
        ),
    ];
    let codes_of = ["restored", "!restore_mismatch", "!restore_mismatch", "restored"];
    for ((early, later), code) in changes.into_iter().zip(codes_of) {
        let rig = Rig::new().await;
        rig.save_and_restart(909).await;
        early(&mut rig.world.state());
        rig.store.look_ahead(&rig.world).await;
        later(&mut rig.world.state());
        assert_eq!(codes(&rig.restore().await), [code]);
        assert_eq!(rig.store.saved().await[0].put_aside, None);
    }
}

#[tokio::test]
async fn where_nobody_can_tell_the_model_nothing_comes_back_by_itself_and_nothing_is_put_aside() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().model_hidden = true;
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["!restore_unchecked"]);
    assert!(message(outcome).contains("the same model"));
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(codes(&rig.restore_by(&named("localbot")).await), ["restored"], "people may know better");
}

#[tokio::test]
async fn trap_15_a_slot_that_the_server_has_no_more_is_not_restored_into_another() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(1, 909);
    rig.save().await;
    rig.world.restart();
    rig.world.state().slots.pop();
    rig.sent();
    assert_eq!(codes(&rig.restore().await), ["!restore_no_slot"]);
    assert_eq!(rig.sent(), [""; 0]);
}

#[tokio::test]
async fn an_older_save_of_another_slot_is_restored_only_where_it_surely_fits_in_beside() {
    for (tokens, expected) in [(1000, "restored"), (4000, "restore_no_room")] {
        let rig = Rig::new().await;
        rig.world.state().slots = vec![Slot::default(); 2];
        rig.world.use_slot(1, tokens);
        rig.save().await;
        rig.world.restart();
        rig.world.use_slot(0, 3000);
        rig.save().await;
        rig.world.restart();
        assert_eq!(codes(&rig.restore().await), ["restored", expected]);
        assert_eq!(rig.world.state().slots[0].restored, 3000);
    }
}

#[tokio::test]
async fn trap_15_a_rejected_file_is_put_aside_and_never_sent_again() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().rejects = true;
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["!restore_rejected"]);
    assert!(message(outcome).contains("invalid slot save file"));
    assert_eq!(rig.sent().len(), 1);
    rig.world.state().rejects = false;
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert_eq!(rig.sent(), [""; 0]);
    assert!(rig.store.saved().await[0].put_aside.is_some());
}

#[tokio::test]
async fn after_a_rejected_file_nothing_more_is_sent_to_that_process() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(0, 909);
    rig.world.use_slot(1, 33);
    rig.save().await;
    rig.world.restart();
    rig.sent();
    rig.world.state().rejects = true;
    assert_eq!(codes(&rig.restore().await), ["!restore_rejected"]);
    assert_eq!(rig.sent(), ["POST /slots/0?action=restore"]);
}

#[tokio::test]
async fn a_file_that_kills_the_server_is_put_aside() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let (file, note) = (rig.file(), rig.note_path(&rig.file()));
    // Truncated in a way that no look can tell: the note is wrong as well.
    truncate(&rig, &file);
    let text = std::fs::read_to_string(&note).expect("a note");
    let bytes = rig.store.saved().await[0].bytes;
    let text = text.replace(&bytes.to_string(), &(bytes - 1).to_string());
    std::fs::write(&note, text).expect("a note");
    rig.next_life();
    assert_eq!(codes(&rig.restore().await), ["!restore_killed_process"]);
    assert!(rig.world.state().dead);
    rig.world.restart();
    assert_eq!(codes(&rig.restore().await), ["!restore_nothing"]);
    assert!(!rig.world.state().dead);
}

#[tokio::test]
async fn trap_4_tokens_that_did_not_come_back_are_told() {
    // More cannot be told here: whether they are used shows only in the answer to a real request.
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    rig.world.state().loses = 9;
    let outcome = rig.restore().await;
    assert_eq!(codes(&outcome), ["restore_partial"]);
    assert!(message(outcome).contains("900 tokens restored into slot 0, 909 were saved"));
}

#[tokio::test]
async fn a_server_that_cannot_or_sleeps_keeps_the_file_good() {
    let changes: [(Change, &str); 4] = [
        (|s| s.router = true, "!restore_not_supported"),
        (|s| s.sleeping = true, "!restore_asleep"),
        (|s| s.without_slot_folder = true, "!restore_not_supported"),
        (|s| s.dead = true, "!restore_unchecked"),
    ];
    for (change, code) in changes {
        let rig = Rig::new().await;
        rig.save_and_restart(909).await;
        change(&mut rig.world.state());
        assert_eq!(codes(&rig.restore().await), [code]);
        assert_eq!(rig.store.saved().await[0].put_aside, None);
    }
}

#[tokio::test]
async fn trap_14_which_save_is_newest_does_not_hang_on_any_clock() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(800).await;
    let (file, old) = (rig.file(), rig.store.saved().await[0].saved_at);
    // The clock of that day was an hour ahead.
    let note = rig.note_path(&file);
    let text = std::fs::read_to_string(&note).expect("a note");
    let ahead = text.replace(&old.to_string(), &(old + 3600).to_string());
    std::fs::write(&note, ahead).expect("a note");
    rig.next_life();
    rig.save_and_restart(909).await;
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.world.state().slots[0].restored, 909);
}
