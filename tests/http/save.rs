//! Saving slots.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use wechsler::{driver::world::SlotChoice, host::slots::without_news, machine::Outcome};

use crate::llama::{BYTES_PER_TOKEN, Rig, Slot, codes, message, store_in, store_with};

#[tokio::test]
async fn a_save_goes_to_a_new_name_is_checked_and_noted() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    assert_eq!(codes(&rig.save().await), ["saved"]);
    let file = rig.file();
    assert!(file.starts_with("localbot.2"), "{file}");
    assert_eq!(rig.sent(), ["POST /slots/0?action=save"]);
    let saved = &rig.store.saved().await[0];
    assert_eq!((saved.name.as_str(), &saved.file, saved.slot), ("localbot", &file, 0));
    assert_eq!((saved.tokens, saved.n_ctx), (909, 4096));
    assert_eq!(saved.bytes, 24 + 909 * BYTES_PER_TOKEN as u64);
    assert_eq!((saved.model.as_str(), &saved.put_aside), ("m", &None));
}

#[tokio::test]
async fn notes_outlive_the_daemon_and_are_for_its_eyes_only() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let note = rig.note_path(&rig.file());
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&note), 0o600);
    assert_eq!(mode(note.parent().expect("a folder")), 0o700);
    assert_eq!(store_in(&rig.state_dir, 3).saved().await, rig.store.saved().await);
}

#[tokio::test]
async fn each_slot_has_its_name_and_what_holds_most_is_saved_first() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 3];
    rig.world.use_slot(0, 10);
    rig.world.use_slot(2, 500);
    assert_eq!(codes(&rig.save().await), ["saved", "saved"]);
    assert_eq!(rig.sent(), ["POST /slots/2?action=save", "POST /slots/0?action=save"]);
    let mut names: Vec<_> = rig.store.saved().await.into_iter().map(|s| s.name).collect();
    names.sort();
    assert_eq!(names, ["localbot", "localbot-2"]);
}

#[tokio::test]
async fn whoever_asks_for_a_save_hears_that_there_was_nothing_and_a_stop_does_not() {
    let rig = Rig::new().await;
    for (choice, code) in [(SlotChoice::Asked, Some("slot_empty")), (SlotChoice::All, None)] {
        let told = without_news(rig.save_by(&choice).await, &choice);
        assert_eq!(codes(&told), Vec::from_iter(code), "{choice:?}");
    }
    rig.world.use_slot(0, 909);
    let told = without_news(rig.save_by(&SlotChoice::Asked).await, &SlotChoice::Asked);
    assert_eq!(codes(&told), [""; 0]);
}

#[tokio::test]
async fn a_busy_slot_is_not_saved_and_it_is_said() {
    let rig = Rig::new().await;
    rig.world.state().slots = vec![Slot::default(); 2];
    rig.world.use_slot(0, 500);
    rig.world.use_slot(1, 10);
    rig.world.state().slots[0].busy = true;
    assert_eq!(codes(&rig.save().await), ["slot_busy", "saved"]);
    assert_eq!(rig.sent(), ["POST /slots/1?action=save"]);
}

#[tokio::test]
async fn trap_3_an_empty_slot_is_not_saved() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    assert_eq!(codes(&rig.save().await), ["slot_empty"]);
    rig.world.use_slot(0, 0);
    assert_eq!(codes(&rig.save().await), ["slot_empty"]);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.store.saved().await.len(), 1);
}

#[tokio::test]
async fn trap_3_a_save_that_turns_out_empty_does_not_count_and_leaves_nothing() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let good = rig.file();
    // Moved into the RAM cache between the look and the save, as a request elsewhere does it.
    rig.world.state().slots[0].tokens = Some(0);
    let lying = crate::server::Server::start({
        let world = rig.world.clone();
        move |q| {
            let mut state = world.state();
            match q.what.as_str() {
                "GET /props" => crate::server::Reply::Say(200, r#"{"total_slots":1}"#.into()),
                "GET /slots" => crate::server::Reply::Say(
                    200,
                    r#"[{"id":0,"n_ctx":4096,"is_processing":false,"n_prompt_tokens":33}]"#.into(),
                ),
                _ => {
                    let body: serde_json::Value = serde_json::from_str(&q.body).expect("JSON");
                    let file = body["filename"].as_str().expect("a name");
                    state.disk.insert(file.into(), vec![0; 36]);
                    let said = format!(r#"{{"id_slot":0,"filename":"{file}","n_saved":0,"n_written":36}}"#);
                    crate::server::Reply::Say(200, said)
                }
            }
        }
    })
    .await;
    let probe = lying.probe(wechsler::machine::BackendKind::LlamaCpp);
    let outcome = rig.store.save(&probe, &rig.world, &SlotChoice::All, Duration::from_secs(10)).await;
    assert_eq!(codes(&outcome), ["slot_empty"]);
    assert_eq!(rig.file(), good);
    assert_eq!(rig.store.saved().await.len(), 1);
}

#[tokio::test]
async fn trap_2_a_full_disk_costs_the_new_file_and_no_older_one() {
    let rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let good = rig.file();
    // Another model's saves say nothing about the size of this one's, so it is tried.
    rig.world.state().model_path = "/models/other.gguf";
    rig.world.use_slot(0, 909);
    rig.world.state().free = 1000;
    assert_eq!(codes(&rig.save().await), ["!disk_full"]);
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(rig.file(), good, "the truncated rest is removed");
    assert_eq!(rig.store.saved().await.len(), 1);
}

#[tokio::test]
async fn trap_2_a_save_that_cannot_fit_is_not_even_tried() {
    let rig = Rig::new().await;
    rig.save_and_restart(600).await;
    rig.world.state().free = 300 * BYTES_PER_TOKEN as u64;
    for tokens in [500, 1000] {
        rig.world.use_slot(0, tokens);
        let outcome = rig.save().await;
        assert_eq!(codes(&outcome), ["!disk_full"]);
        assert_eq!(message(outcome), "localbot: at least 1 MiB needed, 0 free");
        assert_eq!(rig.sent(), [""; 0]);
    }
}

#[tokio::test]
async fn a_short_save_with_a_large_state_of_its_own_keeps_no_long_one_from_being_tried() {
    let mut rig = Rig::new().await;
    rig.world.state().fixed_bytes = 1 << 20;
    rig.save_and_restart(3).await;
    rig.world.state().free = 8 << 20;
    rig.world.use_slot(0, 3000);
    rig.store = store_with(&rig.state_dir, |slots| slots.checkpoint_most_mib = Some(3));
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["checkpoint_unknown_size"]);
    assert_eq!(codes(&rig.save().await), ["saved"]);
    rig.world.use_slot(0, 2900);
    assert_eq!(codes(&rig.save_by(&SlotChoice::Checkpoint).await), ["saved"], "its like is known now");
}

#[tokio::test]
async fn trap_11_a_sleeping_server_is_not_woken_to_save_what_it_has_lost() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().sleeping = true;
    assert_eq!(codes(&rig.save().await), ["slots_asleep"]);
    assert!(rig.world.state().sleeping);
    assert_eq!(rig.world.asked(""), ["GET /props"]);
}

#[tokio::test]
async fn trap_15_an_answer_for_another_slot_does_not_count() {
    let rig = Rig::new().await;
    let wrapping = crate::server::Server::start(|q| match q.what.as_str() {
        "GET /props" => crate::server::Reply::Say(200, "{}".into()),
        "GET /slots" => crate::server::Reply::Say(
            200,
            r#"[{"id":0,"is_processing":false,"n_prompt_tokens":33},{"id":7,"is_processing":false,"n_prompt_tokens":33}]"#.into(),
        ),
        "POST /slots/0?action=save" => crate::server::Reply::Say(
            200,
            r#"{"id_slot":1,"filename":"x","n_saved":33,"n_written":36}"#.into(),
        ),
        other => panic!("an id beyond the last slot: {other}"),
    })
    .await;
    let probe = wrapping.probe(wechsler::machine::BackendKind::LlamaCpp);
    let outcome = rig.store.save(&probe, &rig.world, &SlotChoice::All, Duration::from_secs(10)).await;
    assert_eq!(codes(&outcome), ["!save_failed"]);
    assert!(rig.store.saved().await.is_empty());
}

#[tokio::test]
async fn a_save_into_another_folder_does_not_count() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().other_folder = true;
    let outcome = rig.save().await;
    assert_eq!(codes(&outcome), ["!save_misplaced"]);
    assert!(matches!(outcome, Outcome::Failed(w) if w.message.contains("/mnt/slots")));
}

#[tokio::test]
async fn a_save_that_is_shorter_than_the_server_says_does_not_count_and_leaves_nothing() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().short_by = 1;
    assert_eq!(codes(&rig.save().await), ["!save_damaged"]);
    assert!(rig.store.saved().await.is_empty() && rig.world.files().is_empty());
}

#[tokio::test]
async fn a_save_whose_note_cannot_be_written_does_not_count_and_leaves_nothing() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    std::fs::create_dir_all(&rig.state_dir).expect("a folder");
    std::fs::write(rig.state_dir.join("slots"), "no folder").expect("a file");
    assert_eq!(codes(&rig.save().await), ["!note_failed"]);
    assert!(rig.world.files().is_empty());
}

#[tokio::test]
async fn a_save_whose_note_is_late_keeps_its_file_for_it() {
    let rig = Rig::new().await;
    rig.save_and_restart(5).await;
    rig.world.use_slot(0, 909);
    let hangs = rig.note_path("x").with_file_name(".note.tmp");
    let made = std::process::Command::new("mkfifo").arg(&hangs).status().expect("there is a mkfifo");
    assert!(made.success());
    assert_eq!(codes(&rig.save().await), ["!note_late"]);
    assert_eq!(rig.world.files().iter().filter(|file| file.contains(".slot")).count(), 2);
    // Whoever waits in there is let go.
    std::fs::File::open(&hangs).expect("the other end");
}

#[tokio::test]
async fn notes_that_are_too_many_to_be_read_are_the_oldest_whatever_their_names() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(10).await;
    let file = rig.file();
    let note = std::fs::read_to_string(rig.note_path(&file)).expect("a note");
    for number in 0..520 {
        let other = file.replace("localbot.2", &format!("other-{number}.1"));
        let text = note.replace(&file, &other).replace("\"localbot\"", &format!("\"other-{number}\""));
        std::fs::write(rig.note_path(&other), text).expect("a note");
    }
    rig.next_life();
    assert!(rig.store.saved().await.iter().any(|saved| saved.file == file));
}

#[tokio::test]
async fn a_save_that_nobody_could_check_does_not_count() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().ssh_down = true;
    assert_eq!(codes(&rig.save().await), ["!save_unchecked"]);
    assert!(rig.store.saved().await.is_empty());
}

#[tokio::test]
async fn what_a_save_fits_is_asked_once_more_where_nobody_answered() {
    let rig = Rig::new().await;
    rig.save_and_restart(5).await;
    rig.world.use_slot(0, 909);
    rig.world.state().survey_fails = true;
    assert_eq!(codes(&rig.save().await), ["saved"]);
    rig.world.restart();
    rig.world.state().model_mtime = 2;
    assert_eq!(codes(&rig.restore().await), ["!restore_mismatch"]);
}

#[tokio::test]
async fn a_server_without_a_slot_folder_says_so_and_is_remembered() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().without_slot_folder = true;
    assert_eq!(codes(&rig.save().await), ["!save_not_supported"]);
    let activity = rig.probe.activity(wechsler::machine::Instant::START).await;
    let why = activity.and_then(|a| a.cannot_save).unwrap_or_default();
    assert!(why.contains("does not support"), "{why}");
}

#[tokio::test]
async fn a_router_saves_nothing() {
    let rig = Rig::new().await;
    rig.world.state().router = true;
    assert_eq!(codes(&rig.save().await), ["!save_not_supported"]);
    assert_eq!(rig.world.asked(""), ["GET /props"]);
}

#[tokio::test]
async fn a_save_that_hangs_ends_in_time() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().hangs = true;
    let within = Duration::from_millis(300);
    let outcome = rig.store.save(&rig.probe, &rig.world, &SlotChoice::All, within).await;
    assert_eq!(codes(&outcome), ["!save_timeout"]);
    assert!(rig.store.saved().await.is_empty());
}

#[tokio::test]
async fn a_slot_that_is_used_each_time_it_was_saved_is_said_to_be_busy() {
    let rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().used_while_saved = true;
    let outcome = rig.save().await;
    assert_eq!(codes(&outcome), ["saved", "saved", "saved", "slot_busy"]);
    assert!(message(outcome).contains("used each time it was saved: slot 0"));
}

#[tokio::test]
async fn a_server_that_works_on_a_prompt_after_the_save_is_said_to_be_busy_though_it_tells_nothing() {
    let mut rig = Rig::new().await;
    rig.hasty();
    rig.world.use_slot(0, 909);
    rig.world.state().works_after_save = true;
    assert_eq!(codes(&rig.save().await), ["saved", "slot_busy"]);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_no_reason_to_wait() {
    let rig = Rig::new().await;
    rig.world.state().dead = true;
    assert_eq!(codes(&rig.save().await), ["!save_failed"]);
}

#[tokio::test]
async fn generations_beyond_those_to_keep_go_and_the_longest_conversation_stays() {
    let rig = Rig::new().await;
    for tokens in [5, 900, 10, 11, 12] {
        rig.save_and_restart(tokens).await;
    }
    rig.store.prune(&rig.world).await;
    let tokens: Vec<_> = rig.store.saved().await.iter().map(|s| s.tokens).collect();
    assert_eq!(tokens, [12, 11, 10, 900]);
    assert_eq!(rig.world.files().len(), 4);
}

#[tokio::test]
async fn a_damaged_note_is_told_and_lived_without() {
    let rig = Rig::new().await;
    rig.save_and_restart(5).await;
    rig.save_and_restart(6).await;
    let newest = rig.store.saved().await[0].file.clone();
    std::fs::write(rig.note_path(&newest), b"{half").expect("a note");
    std::fs::write(rig.note_path("x"), vec![b' '; 1 << 20]).expect("a note");
    let tokens: Vec<_> = rig.store.saved().await.iter().map(|s| s.tokens).collect();
    assert_eq!(tokens, [5]);
    assert_eq!(rig.store.damaged().await.len(), 2);
    rig.world.use_slot(0, 7);
    assert_eq!(codes(&rig.save().await), ["saved"]);
}

/// An unfinished file as a save that broke off long ago would have left it.
fn leftover(rig: &Rig, like: &str) -> String {
    let serial = like.rsplit_once('-').expect("a stamp and what tells whose it is").1;
    let file = format!("localbot.20200101T000000-{}", serial.replace(".slot", ".part"));
    rig.world.state().disk.insert(file.clone(), vec![1]);
    file
}

#[tokio::test]
async fn a_save_has_a_name_of_its_own_kind_until_it_was_checked() {
    let mut rig = Rig::new().await;
    rig.world.use_slot(0, 909);
    rig.world.state().ssh_down = true;
    assert_eq!(codes(&rig.save().await), ["!save_unchecked"]);
    assert!(rig.file().contains(".part"), "{:?}", rig.file());
    rig.world.state().ssh_down = false;
    assert_eq!(codes(&rig.save().await), ["saved"]);
    let finished = rig.world.files().into_iter().filter(|f| f.contains(".slot")).count();
    assert_eq!((rig.world.files().len(), finished), (2, 1));
    rig.next_life();
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(0), "the other one is too young");
}

#[tokio::test]
async fn a_sweep_takes_old_files_of_ours_that_belong_to_nothing_and_no_others() {
    let rig = Rig::new().await;
    rig.save_and_restart(5).await;
    let noted = rig.file();
    let leftover = leftover(&rig, &noted);
    let others = [
        "localbot.bin".to_owned(),
        "localbot.20200101T000000-abcdef0001.slot".to_owned(),
        "localbot.20200101T000000-abcdef0001.part".to_owned(),
        "localbot.20200101T000000-abcdef1234560001.part".to_owned(),
        "localbot.20200101T000000-abcdef1234560001.slot".to_owned(),
        noted.replace(".slot", ".part"),
    ];
    let without_note = leftover.replace(".part", ".slot");
    for file in others.iter().chain([&without_note]) {
        rig.world.state().disk.insert(file.clone(), vec![1]);
    }
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(2));
    let files = rig.world.files();
    assert!(!files.contains(&leftover) && !files.contains(&without_note), "{files:?}");
    assert_eq!(files.len(), 1 + others.len());
    rig.world.state().ssh_down = true;
    assert!(rig.store.sweep(&rig.world).await.is_err(), "it is to be tried again");
}

#[tokio::test]
async fn where_notes_or_owner_are_lost_no_whole_file_is_swept_there() {
    type Loss = fn(&Rig, &str);
    let losses: [Loss; 5] = [
        |rig, _| std::fs::remove_dir_all(&rig.state_dir).expect("the state directory"),
        |rig, _| std::fs::remove_dir_all(rig.state_dir.join("slots")).expect("all notes"),
        |rig, _| std::fs::remove_file(rig.state_dir.join("slot-owner")).expect("the owner"),
        |rig, file| std::fs::write(rig.note_path(file), b"{half").expect("a damaged note"),
        |rig, file| std::fs::remove_file(rig.note_path(file)).expect("a note"),
    ];
    for (number, loss) in losses.into_iter().enumerate() {
        let mut rig = Rig::new().await;
        rig.save_and_restart(5).await;
        rig.save_and_restart(6).await;
        // They were saved long ago.
        let recent = std::mem::take(&mut rig.world.state().disk);
        let aged = |file: &str| format!("localbot.20200101T000000-{}", file.rsplit_once('-').expect("a stamp").1);
        for (file, content) in &recent {
            rig.world.state().disk.insert(aged(file), content.clone());
            std::fs::rename(rig.note_path(file), rig.note_path(&aged(file))).expect("a note");
        }
        let files = rig.world.files();
        let left = leftover(&rig, &files[0]);
        loss(&rig, &files[0]);
        rig.next_life();
        let swept = rig.store.sweep(&rig.world).await.expect("a sweep");
        // Without the owner's id nothing is known to be ours; with it, the unfinished one is, and what lost its note alone.
        assert_eq!(swept, [0, 1, 0, 1, 2][number], "{number}");
        assert_eq!(rig.world.files().contains(&left), swept == 0);
        let stay = if number == 4 { &files[1..] } else { &files };
        assert!(stay.iter().all(|file| rig.world.files().contains(file)), "{number}");
        assert_eq!(rig.world.files().len(), stay.len() + usize::from(swept == 0), "{number}");
    }
}

/// The folder as it would be, had everything been saved years ago.
fn age(rig: &Rig) {
    let recent = std::mem::take(&mut rig.world.state().disk);
    for (file, content) in recent {
        let aged = format!("localbot.20200101T000000-{}", file.rsplit_once('-').expect("a stamp").1);
        let note = std::fs::read_to_string(rig.note_path(&file)).expect("a note").replace(&file, &aged);
        std::fs::write(rig.note_path(&aged), note).expect("a note");
        std::fs::remove_file(rig.note_path(&file)).expect("a note");
        rig.world.state().disk.insert(aged, content);
    }
}

#[tokio::test]
async fn what_was_removed_and_came_back_with_a_power_cut_is_swept() {
    let mut rig = Rig::new().await;
    for tokens in [5, 6, 7, 8] {
        rig.save_and_restart(tokens).await;
    }
    age(&rig);
    rig.next_life();
    let before = rig.world.state().disk.clone();
    rig.store.prune(&rig.world).await;
    let kept = rig.world.files();
    // The server's disk did not know of it yet.
    rig.world.state().disk = before;
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(1));
    assert_eq!((rig.world.files(), kept.len()), (kept, 3));
}

#[tokio::test]
async fn a_file_whose_note_may_be_written_yet_is_not_swept() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let note = rig.note_path(&rig.file());
    let aside = note.with_extension("aside");
    std::fs::rename(&note, &aside).expect("a note");
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(0), "it is too young");
    std::fs::rename(&aside, &note).expect("a note");
    age(&rig);
    // The disk with the notes does not answer.
    let fifo = rig.note_path("x");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("there is a mkfifo").success());
    std::fs::remove_file(rig.note_path(&rig.file())).expect("a note");
    rig.next_life();
    let (_, swept) = tokio::join!(rig.store.saved(), rig.store.sweep(&rig.world));
    assert!(swept.is_err_and(|why| why.contains("does not answer")), "which notes there are is not known");
    assert_eq!(rig.world.files().len(), 1);
    // Whoever waits in there is let go.
    std::fs::File::options().write(true).open(&fifo).expect("the other end");
}

#[tokio::test]
async fn a_second_daemon_with_the_same_names_touches_nothing() {
    let rig = Rig::new().await;
    rig.save_and_restart(5).await;
    let left = leftover(&rig, &rig.file());
    let other_dir = rig.state_dir.join("another");
    let other = store_in(&other_dir, 1);
    rig.world.use_slot(0, 7);
    let outcome = other.save(&rig.probe, &rig.world, &SlotChoice::All, Duration::from_secs(10)).await;
    assert_eq!(codes(&outcome), ["saved"]);
    other.prune(&rig.world).await;
    assert_eq!(other.sweep(&rig.world).await, Ok(0));
    assert_eq!(rig.world.files().len(), 3);
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(1));
    assert!(!rig.world.files().contains(&left));
    assert_eq!(rig.store.saved().await.len(), 1);
}

/// Collects what is written to the log as long as the guard lives.
fn log_of(lines: &Arc<Mutex<Vec<u8>>>) -> tracing::subscriber::DefaultGuard {
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic under it").write(text)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::clone(lines);
    let writer = move || Lines(Arc::clone(&lines));
    tracing::subscriber::set_default(tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish())
}

#[tokio::test]
async fn a_folder_that_is_open_to_others_is_told_once() {
    let rig = Rig::new().await;
    let lines = Arc::default();
    let _log = log_of(&lines);
    let told = || {
        let log = String::from_utf8(lines.lock().expect("no panic under it").clone()).expect("text");
        log.lines().filter(|line| line.contains("WARN") && line.contains("code=\"slots_folder_open\"")).count()
    };
    rig.store.sweep(&rig.world).await.expect("a sweep");
    assert_eq!(told(), 0, "it is closed");
    rig.world.state().open_folder = true;
    for _ in 0..2 {
        rig.store.sweep(&rig.world).await.expect("a sweep");
        assert_eq!(told(), 1);
    }
}

#[tokio::test]
async fn who_owns_the_files_is_decided_once_and_by_one() {
    let rig = Rig::new().await;
    let owner = rig.state_dir.join("slot-owner");
    let stores: Vec<_> = (0..8).map(|_| store_in(&rig.state_dir, 3)).collect();
    futures_util::future::join_all(stores.iter().map(|store| store.sweep(&rig.world))).await;
    let id = std::fs::read_to_string(&owner).expect("an id");
    assert_eq!(id.len(), 32);
    assert_eq!(std::fs::metadata(&owner).expect("it").permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&rig.state_dir).expect("it").count(), 1, "nothing half made is left");
    assert_eq!(store_in(&rig.state_dir, 3).sweep(&rig.world).await, Ok(0));
    assert_eq!(std::fs::read_to_string(&owner).expect("an id"), id);
    std::fs::write(&owner, "half").expect("damage");
    assert_eq!(store_in(&rig.state_dir, 3).sweep(&rig.world).await, Ok(0));
    assert_ne!(std::fs::read_to_string(&owner).expect("an id"), id);
}

#[tokio::test]
async fn files_and_notes_of_the_older_naming_are_restored_and_left_alone() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(909).await;
    let (file, old) = (rig.file(), "localbot.20200101T000000-abcdef0001.slot");
    let note = std::fs::read_to_string(rig.note_path(&file)).expect("a note").replace(&file, old);
    std::fs::write(rig.note_path(old), note).expect("a note");
    std::fs::remove_file(rig.note_path(&file)).expect("a note");
    let content = rig.world.state().disk.remove(&file).expect("it is there");
    rig.world.state().disk.insert(old.into(), content);
    rig.next_life();
    assert_eq!(rig.store.sweep(&rig.world).await, Ok(0));
    assert_eq!(codes(&rig.restore().await), ["restored"]);
    assert_eq!(rig.world.files(), [old]);
}

#[tokio::test]
async fn an_old_generation_that_cannot_be_removed_now_keeps_its_note_and_goes_later() {
    let rig = Rig::new().await;
    for tokens in [5, 6, 7, 8] {
        rig.save_and_restart(tokens).await;
    }
    rig.world.state().ssh_down = true;
    rig.store.prune(&rig.world).await;
    let notes = || std::fs::read_dir(rig.note_path("x").parent().expect("a folder")).expect("notes").count();
    assert_eq!((notes(), rig.store.saved().await.len()), (4, 3), "it is not shown any more");
    rig.world.state().ssh_down = false;
    rig.store.prune(&rig.world).await;
    assert_eq!((notes(), rig.world.files().len()), (3, 3));
}

#[tokio::test]
async fn a_disk_that_hangs_holds_nobody_up() {
    let mut rig = Rig::new().await;
    rig.save_and_restart(5).await;
    let note = rig.note_path("x");
    let made = std::process::Command::new("mkfifo").arg(&note).status().expect("there is a mkfifo");
    assert!(made.success());
    rig.next_life();
    let began = tokio::time::Instant::now();
    // The loop goes on meanwhile.
    let ticks = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    };
    let (saved, ()) = tokio::join!(rig.store.saved(), ticks);
    assert!(saved.is_empty());
    assert!(rig.store.damaged().await[0].1.contains("does not answer"));
    // Whoever waits in there is let go.
    std::fs::File::options().write(true).open(&note).expect("the other end");
}
