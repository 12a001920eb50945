//! llama.cpp's slots on disk, and how they mislead.

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use wechsler::virtual_server::programs::{Exit, LlamaSetup, right_text};

use crate::rig::{Rig, SHORT};

const PROMPT: &str = "a long story that somebody has told before, with many words in it";
const VAGUE: &str = "Unable to restore slot: No available space in KV cache or invalid slot save file";

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_default()
}

/// One that has told a story, saved it as `a.bin`, and was started again.
async fn saved() -> Rig {
    let mut rig = Rig::llama().await;
    rig.complete(PROMPT, 10).await;
    let (status, answer) = rig.slot_action("0", "save", "a.bin").await;
    assert_eq!((status, answer["n_saved"].as_u64()), (200, Some(74)));
    rig.restart().await;
    rig
}

#[tokio::test]
async fn what_is_saved_comes_back_after_a_restart_and_is_used() {
    let rig = saved().await;
    let (status, answer) = rig.slot_action("0", "restore", "a.bin").await;
    assert_eq!((status, answer["n_restored"].as_u64()), (200, Some(74)));
    assert_eq!(answer["n_read"], rig.slots.bytes("a.bin").len());
    assert_eq!(rig.process.truth().slots, [Some(74)]);
    // It shows nothing of this until it is used.
    assert_eq!(rig.get_json("/slots").await[0].get("n_prompt_tokens"), None);
    let next = rig.complete(PROMPT, 10).await;
    assert_eq!(next["timings"]["cache_n"], PROMPT.len() - 1);
    assert_eq!(next["content"], right_text("/models/m.gguf", PROMPT, 10));
}

#[tokio::test]
async fn the_file_is_laid_out_as_the_real_one() {
    let rig = Rig::llama().await;
    rig.complete(PROMPT, 10).await;
    let (_, answer) = rig.slot_action("0", "save", "a.bin").await;
    let bytes = rig.slots.bytes("a.bin");
    assert_eq!(answer["n_written"], bytes.len());
    assert_eq!(&bytes[..4], b"qsgg");
    let word = |n: usize| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().expect("four bytes"));
    assert_eq!([word(1), word(2), word(3), word(4), word(5)], [4, 78, u32::MAX, 1, 74]);
    assert_eq!(word(6), u32::from(PROMPT.as_bytes()[0]));
    assert!((500..560).contains(&(bytes.len() / 74)), "{} bytes", bytes.len());
}

#[tokio::test]
async fn the_save_of_an_empty_slot_is_a_success_that_destroys_the_file() {
    let rig = saved().await;
    let (status, answer) = rig.slot_action("0", "save", "a.bin").await;
    assert_eq!((status, answer["n_saved"].as_u64()), (200, Some(0)));
    assert_eq!(rig.slots.bytes("a.bin").len(), 36);
}

#[tokio::test]
async fn ids_wrap_and_the_answer_repeats_the_one_asked_for() {
    let rig = Rig::llama().await;
    rig.complete(PROMPT, 10).await;
    let (status, answer) = rig.slot_action("5", "save", "a.bin").await;
    assert_eq!((status, answer["n_saved"].as_u64(), answer["id_slot"].as_u64()), (200, Some(74), Some(5)));
}

#[tokio::test]
async fn wrong_questions_are_400() {
    let rig = Rig::llama().await;
    for (path, body, told) in [
        ("/slots/x?action=save", json!({ "filename": "a" }), "Invalid slot ID"),
        ("/slots/0?action=foo", json!({ "filename": "a" }), "Invalid action"),
        ("/slots/0", json!({ "filename": "a" }), "Invalid action"),
        ("/slots/0?action=save", json!({ "filename": "model:q4" }), "Invalid filename"),
        ("/slots/0?action=save", json!({ "filename": "../a" }), "Invalid filename"),
        ("/slots/0?action=save", json!({ "filename": "a." }), "Invalid filename"),
        ("/slots/0?action=save", json!({}), "out_of_range.403"),
        ("/slots/0?action=save", json!({ "filename": 5 }), "type_error.302"),
    ] {
        let (status, answer) = rig.post(path, body).await;
        assert_eq!(status, 400, "{path}");
        assert!(message(&answer).contains(told), "{path}: {answer}");
    }
}

#[tokio::test]
async fn without_a_folder_it_says_501() {
    let rig = Rig::llama_with(|s| s.slot_dir = "".into()).await;
    let (status, answer) = rig.slot_action("0", "save", "a.bin").await;
    assert_eq!((status, &answer["error"]["type"]), (501, &json!("not_supported_error")));
}

#[tokio::test]
async fn a_folder_that_is_none_ends_the_start() {
    let rig = Rig::starting(|s| s.slot_dir = "/nowhere/at/all".into(), &[]);
    assert_eq!(rig.exit().await, Exit::Code(1));
}

#[tokio::test]
async fn erase_empties() {
    let rig = Rig::llama().await;
    rig.complete(PROMPT, 10).await;
    let (status, answer) = rig.post("/slots/0?action=erase", Value::Null).await;
    assert_eq!((status, answer["n_erased"].as_u64()), (200, Some(74)));
    assert_eq!(rig.get_json("/slots").await[0]["n_prompt_tokens"], 0);
}

#[tokio::test]
async fn a_restore_that_fails_says_nothing_and_empties_the_slot() {
    let rig = saved().await;
    rig.slots.change("a.bin", |bytes| bytes[4] = 3);
    std::fs::write(rig.slots.file("empty"), "").expect("written");
    for file in ["a.bin", "empty", "missing"] {
        rig.complete(PROMPT, 10).await;
        let (status, answer) = rig.slot_action("0", "restore", file).await;
        assert_eq!((status, message(&answer)), (400, VAGUE), "{file}");
        assert_eq!(rig.process.truth().slots, [Some(0)], "{file}");
    }
}

#[tokio::test]
async fn a_file_of_another_context_or_number_of_slots_is_rejected() {
    let changes: [fn(&mut LlamaSetup); 2] = [|s| s.n_ctx = 70, |s| s.parallel = 2];
    for change in changes {
        let rig = saved().await;
        let other = Rig::llama_with(|s| {
            s.slot_dir = rig.slots.path().into();
            change(s);
        })
        .await;
        let (status, answer) = other.slot_action("0", "restore", "a.bin").await;
        assert_eq!((status, message(&answer)), (400, VAGUE));
    }
}

#[tokio::test]
async fn a_truncated_file_aborts_the_process_and_the_client_gets_nothing() {
    for missing in [1, 20_000] {
        let rig = saved().await;
        rig.slots.change("a.bin", |bytes| bytes.truncate(bytes.len() - missing));
        let answer = rig.try_post("/slots/0?action=restore", json!({ "filename": "a.bin" })).await;
        assert_eq!(answer, None);
        assert_eq!(rig.exit().await, Exit::Signal(6));
        assert!(rig.process.log().iter().any(|line| line.contains("GGML_ASSERT")));
        assert!(rig.is_refused().await);
    }
}

#[tokio::test]
async fn more_bytes_than_needed_do_not_matter() {
    let rig = saved().await;
    rig.slots.change("a.bin", |bytes| bytes.extend([7; 100]));
    assert_eq!(rig.slot_action("0", "restore", "a.bin").await.0, 200);
}

#[tokio::test]
async fn flipped_bytes_and_another_model_are_taken_and_then_it_talks_nonsense() {
    let rig = saved().await;
    rig.slots.change("a.bin", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let other = Rig::llama_with(|s| {
        s.slot_dir = rig.slots.path().into();
        s.model_path = "/models/other.gguf".into();
    })
    .await;
    for (rig, model) in [(&rig, "/models/m.gguf"), (&other, "/models/other.gguf")] {
        assert_eq!(rig.slot_action("0", "restore", "a.bin").await.0, 200);
        let next = rig.complete(PROMPT, 20).await;
        assert_eq!(next["timings"]["cache_n"], PROMPT.len() - 1);
        assert_ne!(next["content"], right_text(model, PROMPT, 20));
    }
}

#[tokio::test]
async fn the_save_of_a_busy_slot_waits_until_it_is_free() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    let save = rig.post_later("/slots/0?action=save", json!({ "filename": "a.bin" }));
    sleep(SHORT).await;
    assert!(!save.is_finished());
    assert_eq!(rig.metric("llamacpp:requests_deferred").await, 1);
    let (status, _) = save.await.expect("no panic").expect("an answer");
    assert_eq!(status, 200);
    assert!(request.is_finished());
}

#[tokio::test]
async fn a_save_that_waits_is_taken_back_with_its_client() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    let asked = rig.post_request("/slots/0?action=save", &json!({ "filename": "a.bin" }));
    assert!(timeout(SHORT, asked.send()).await.is_err());
    request.await.expect("no panic").expect("an answer");
    assert_eq!(rig.metric("llamacpp:requests_deferred").await, 0);
    assert!(!rig.slots.file("a.bin").exists());
}

#[tokio::test]
async fn each_slot_is_saved_for_itself_and_fits_into_every_other() {
    let mut rig = Rig::llama_with(|s| s.parallel = 2).await;
    rig.post("/completion", json!({ "prompt": PROMPT, "n_predict": 1, "id_slot": 0 })).await;
    let (_, first) = rig.slot_action("0", "save", "0.bin").await;
    let (_, second) = rig.slot_action("1", "save", "1.bin").await;
    assert_eq!((first["n_saved"].as_u64(), second["n_saved"].as_u64()), (Some(65), Some(0)));
    rig.restart().await;
    assert_eq!(rig.slot_action("1", "restore", "0.bin").await.0, 200);
    assert_eq!(rig.process.truth().slots, [None, Some(65)]);
}
