//! Saved slots: what makes them worthless, or worse.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use wechsler::{
    driver::{OperationRecord, world::NamedSlot},
    machine::{Command, Selection},
    virtual_server::{
        What,
        programs::{Exit, Fault},
    },
};

use crate::bench::{Bench, LLAMA_UNIT, NO_DRAIN, PLAIN, Plan, START, TO_LLAMA, VLLM, VLLM_UNIT, reused};

const STOP_NOW: Command = Command::Stop(NO_DRAIN);
const TO_VLLM_NOW: Command = Command::Switch(VLLM, NO_DRAIN);
const SAVE: Command = Command::SaveSlots(Selection::All, PLAIN);

/// 740 tokens.
fn conversation() -> String {
    "Once more with feeling, from the very beginning: ".repeat(15)
}

async fn talk(bench: &Bench) -> u64 {
    reused(&bench.asks(LLAMA_UNIT, &conversation(), 4).await.expect("an answer"))
}

/// Stopped and started again: what comes back.
async fn comes_back(bench: &Bench) -> OperationRecord {
    done(bench, STOP_NOW).await;
    done(bench, START).await
}

async fn done(bench: &Bench, command: Command) -> OperationRecord {
    let record = bench.record(command).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    record
}

fn warned(record: &OperationRecord, code: &str) -> String {
    let warning = record.warnings.iter().find(|w| w.code == code);
    warning.unwrap_or_else(|| panic!("no {code}: {record:#?}")).message.clone()
}

/// A llama.cpp with a conversation; saved and restored without a fault, which is everybody's control.
async fn control() -> Bench {
    control_of(Plan::default()).await
}

async fn control_of(plan: Plan) -> Bench {
    let bench = plan.on().await;
    bench.done(START).await;
    assert_eq!(talk(&bench).await, 0);
    let record = comes_back(&bench).await;
    assert!(record.warnings.is_empty(), "{record:?}");
    assert!(talk(&bench).await > 700, "restored");
    bench
}

fn slot_files(bench: &Bench) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(bench.server.setup().slot_dir()).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

/// How many processes of llama.cpp ended like that.
fn ended(bench: &Bench, how: Exit) -> usize {
    bench.count(|what| matches!(what, What::Exited { unit, exit, .. } if unit == LLAMA_UNIT && *exit == how))
}

/// Files on record that are never sent again.
async fn put_aside(bench: &Bench) {
    bench.until("put aside", |s| s.saved_slot_details.iter().any(|slot| slot.put_aside.is_some())).await;
}

#[tokio::test]
async fn row_k1_a_restore_that_does_nothing_is_found_out_by_the_next_requests() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::RestoreUnused);
    for round in 1..=2 {
        let record = comes_back(&bench).await;
        assert!(record.warnings.is_empty(), "nobody can know yet: {record:?}");
        assert_eq!(inside.fired("restore-unused"), round);
        let unused = |s: &wechsler::driver::status::Status| s.slots.first().is_some_and(|slot| slot.tokens.is_none());
        let status = bench.until("its slots read", |s| unused(s)).await;
        assert!(!status.attention.iter().any(|a| a.code == "restore_ineffective"), "not after {round}");
        assert_eq!(talk(&bench).await, 0, "nothing of it was used");
        bench.until("its use read", |s| !unused(s)).await;
    }
    let status = bench.attention("restore_ineffective").await;
    let told = status.attention.iter().find(|a| a.code == "restore_ineffective").expect("just seen");
    assert!(told.hint.contains("--swa-full"), "{told:?}");

    // By itself none is tried any more; one by name that is of use ends it.
    inside.clear_all();
    comes_back(&bench).await;
    let by_name = bench.daemon.handle.selections.number(NamedSlot { name: "localbot".into(), ..NamedSlot::default() });
    done(&bench, Command::RestoreSlots(by_name, PLAIN)).await;
    assert!(talk(&bench).await > 700);
    bench.until("forgotten", |s| !s.attention.iter().any(|a| a.code == "restore_ineffective")).await;
    comes_back(&bench).await;
    assert!(talk(&bench).await > 700, "by itself again");
    bench.works().await;
}

#[tokio::test]
async fn row_k2_a_truncated_file_is_found_before_it_is_sent() {
    let bench = control().await;
    done(&bench, STOP_NOW).await;
    let files = slot_files(&bench);
    let newest = files.last().expect("a saved slot");
    let whole = fs::metadata(newest).expect("there").len();
    for file in &files {
        OpenOptions::new().write(true).open(file).and_then(|f| f.set_len(whole / 2)).expect("truncated");
    }
    let record = done(&bench, START).await;
    let why = warned(&record, "restore_damaged");
    assert!(why.contains(&format!("{} bytes instead of {whole}", whole / 2)), "{why}");
    assert_eq!((ended(&bench, Exit::Signal(6)), bench.starts(LLAMA_UNIT)), (0, 3), "it was not sent");
    put_aside(&bench).await;
    assert_eq!(talk(&bench).await, 0);

    // Such a file does kill the server.
    let address = bench.server.unit_address(LLAMA_UNIT).expect("a unit");
    let name = newest.file_name().and_then(|name| name.to_str()).expect("a name");
    let body = serde_json::json!({ "filename": name });
    let sent = reqwest::Client::new().post(format!("http://{address}/slots/0?action=restore")).json(&body).send().await;
    assert!(sent.is_err(), "{sent:?}");
    bench.truly("dead of it", |_| ended(&bench, Exit::Signal(6)) == 1).await;
    bench.works().await;
}

#[tokio::test]
async fn row_k2_a_rejected_file_is_never_sent_again_and_the_process_it_spoilt_is_replaced() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::RestoreRejected);
    let record = comes_back(&bench).await;
    warned(&record, "restore_rejected");
    assert_eq!((inside.fired("restore-rejected"), bench.starts(LLAMA_UNIT)), (1, 4), "started once more, without it");
    put_aside(&bench).await;
    assert_eq!(talk(&bench).await, 0);
    inside.clear_all();
    // The newest good one is the one from now.
    let record = comes_back(&bench).await;
    assert!(record.warnings.is_empty(), "{record:?}");
    assert!(talk(&bench).await > 700);
    bench.works().await;
}

#[tokio::test]
async fn row_k2_a_file_that_kills_the_server_kills_it_once() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::RestoreKills);
    let record = comes_back(&bench).await;
    warned(&record, "restore_killed_process");
    assert_eq!((inside.fired("restore-kills"), ended(&bench, Exit::Signal(6))), (1, 1));
    put_aside(&bench).await;
    assert_eq!(talk(&bench).await, 0, "it is up, and empty");
    bench.works().await;
}

#[tokio::test]
async fn row_k4_a_small_conversation_never_pushes_the_large_one_out() {
    let bench = Bench::with_llama().await;
    talk(&bench).await;
    done(&bench, SAVE).await;
    let large = |s: &wechsler::driver::status::Status| s.saved_slot_details.iter().any(|slot| slot.tokens > 700);
    bench.until("saved", |s| large(s)).await;
    // More small ones than generations are kept.
    for round in 0..5 {
        let small = format!("{round}: what time is it?");
        bench.asks(LLAMA_UNIT, &small, 2).await.expect("an answer");
        done(&bench, SAVE).await;
    }
    let few = |s: &wechsler::driver::status::Status| s.saved_slot_details.len() == 4;
    let status = bench.until("pruned", |s| few(s)).await;
    assert!(large(&status), "{:?}", status.saved_slot_details);
    bench.truly("pruned on disk", |_| slot_files(&bench).len() == 4).await;
    // An empty slot replaces nothing at all.
    bench.done(Command::Restart(None, NO_DRAIN)).await;
    done(&bench, STOP_NOW).await;
    assert!(large(&bench.status()));
    bench.works().await;
}

#[tokio::test]
async fn row_k5_a_request_that_comes_before_the_restore_is_not_overwritten() {
    // That it is restored before it counts as ready is the control.
    let bench = control().await;
    done(&bench, STOP_NOW).await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::HealthHangs);
    let op = bench.accepted(START).await;
    bench.truly("asked for its health", |_| inside.fired("health-hangs") > 0).await;
    let other = "Somebody was faster. ".repeat(10);
    let served = |bench: &Bench| bench.server.truth().units[0].inside.as_ref().is_some_and(|i| i.ready);
    bench.truly("ready", |_| served(&bench)).await;
    bench.asks(LLAMA_UNIT, &other, 2).await.expect("an answer");
    inside.clear_all();
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let again = bench.asks(LLAMA_UNIT, &other, 2).await.expect("an answer");
    assert!(reused(&again) > 200, "what it held is still there: {again}");
    assert!(bench.status().saved_slot_details.iter().all(|slot| slot.put_aside.is_none()), "the file is still good");
    bench.works().await;
}

#[tokio::test]
async fn row_k6_a_save_that_hangs_does_not_keep_the_switch() {
    // A fifth of it is for clearing away, and a machine under test may be slow to let anybody in.
    let plan = Plan::default().key("BACKENDS__LLAMA_CPP__SLOTS__SAVE_TIMEOUT", "3s");
    let bench = control_of(plan.key("GPU_SERVER__SSH__CONNECT_TIMEOUT", "1400ms")).await;
    let before = bench.status().saved_slots.clone();
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::SaveHangs);
    let record = done(&bench, TO_VLLM_NOW).await;
    warned(&record, "save_timeout");
    assert_eq!(inside.fired("save-hangs"), 1);
    assert_eq!(bench.status().active_backend.as_deref(), Some("vllm"));
    assert_eq!(bench.status().saved_slots, before, "the older one is as it was");
    inside.clear_all();
    let record = done(&bench, TO_LLAMA).await;
    assert!(record.warnings.is_empty(), "{record:?}");
    assert!(talk(&bench).await > 700, "and is what comes back");
    bench.works().await;
}

#[tokio::test]
async fn row_k6_a_busy_slot_is_not_waited_for_where_nobody_wants_to_wait() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::CompletionsHang);
    let request = bench.asks_beside(LLAMA_UNIT, &conversation(), 4);
    bench.truly("busy", |_| inside.fired("completions-hang") == 1).await;
    let record = done(&bench, TO_VLLM_NOW).await;
    warned(&record, "slot_busy");
    assert_eq!(record.not_saved.first().map(|lost| lost.code.as_str()), Some("slot_busy"));
    assert!(request.await.expect("no panic").is_none(), "it was cut off");
    bench.works().await;
}

#[tokio::test]
async fn row_k6_a_save_that_fails_is_told_and_the_switch_goes_on() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    for (fault, code) in [(Fault::SaveFails, "save_failed"), (Fault::DiskFull, "save_failed")] {
        let name = fault.name();
        let files = slot_files(&bench);
        inside.set(fault);
        let record = done(&bench, STOP_NOW).await;
        warned(&record, code);
        let lost: Vec<_> = record.not_saved.iter().map(|lost| (lost.backend.as_str(), lost.code.as_str())).collect();
        assert_eq!(lost, [("llama-cpp", code)], "and said to be lost");
        bench.attention("not_saved").await;
        assert_eq!(inside.fired(name), 1);
        inside.clear_all();
        bench.truly("remains are cleared away", |_| slot_files(&bench) == files).await;
        let record = done(&bench, START).await;
        assert!(record.warnings.is_empty(), "the older one is restored: {record:?}");
        assert!(talk(&bench).await > 700);
    }
    bench.works().await;
}

#[tokio::test]
async fn row_k7_slots_of_another_model_or_build_are_refused_before_they_are_sent() {
    let bench = control().await;
    let model = bench.server.setup().folder.join("models/Nemotron-3-Nano-30B.gguf");
    done(&bench, STOP_NOW).await;
    fs::write(&model, "GGUF, another quantization under the same name").expect("written");
    let why = warned(&done(&bench, START).await, "restore_mismatch");
    assert!(why.contains("the file of model Nemotron-3-Nano-30B has changed"), "{why}");
    assert_eq!(talk(&bench).await, 0, "nothing was restored");
    assert!(bench.status().saved_slot_details.iter().all(|slot| slot.put_aside.is_none()), "should it come back");

    done(&bench, STOP_NOW).await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::OtherBuild("b12000-fedcba".into()));
    let why = warned(&done(&bench, START).await, "restore_mismatch");
    assert!(inside.fired("other-build") > 0);
    assert!(why.contains("build b12000-fedcba instead of b11434-virtual"), "{why}");
    assert_eq!(talk(&bench).await, 0);
    done(&bench, STOP_NOW).await;
    // The old build again: its own slots still fit.
    inside.clear_all();
    done(&bench, START).await;
    assert!(talk(&bench).await > 700);
    bench.works().await;
}

#[tokio::test]
async fn row_k9_a_save_into_another_folder_is_missed() {
    let bench = control().await;
    let on_record = bench.status().saved_slot_details.len();
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::SavesElsewhere);
    let why = warned(&done(&bench, STOP_NOW).await, "save_misplaced");
    assert_eq!(inside.fired("saves-elsewhere"), 1);
    assert!(why.contains("--slot-save-path"), "{why}");
    let elsewhere = bench.server.setup().slot_dir().with_extension("elsewhere");
    assert_eq!(fs::read_dir(elsewhere).expect("a folder").count(), 1, "it says that all is well, and wrote there");
    assert_eq!(bench.status().saved_slot_details.len(), on_record, "a phantom is not counted");
    inside.clear_all();
    done(&bench, START).await;
    assert!(talk(&bench).await > 700, "the one before is restored");
    bench.works().await;
}

#[tokio::test]
async fn row_k10_a_server_that_cannot_save_is_found_out_and_never_in_the_way() {
    let bench = control().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::NoSlotSaves);
    let record = bench.fails(SAVE, "save_failed").await;
    assert!(warned(&record, "save_not_supported").contains("--slot-save-path"));
    assert_eq!(inside.fired("no-slot-saves"), 1);
    let status = bench.attention("save_not_supported").await;
    let told = status.attention.iter().find(|a| a.code == "save_not_supported").expect("just seen");
    assert!(told.hint.contains("--slot-save-path"), "{told:?}");
    let record = done(&bench, STOP_NOW).await;
    warned(&record, "save_not_supported");
    let record = done(&bench, START).await;
    warned(&record, "restore_not_supported");
    assert_eq!(talk(&bench).await, 0);

    // The same with slots that are not shown.
    inside.clear_all();
    inside.set(Fault::NoSlots);
    warned(&done(&bench, STOP_NOW).await, "save_not_supported");
    warned(&done(&bench, START).await, "restore_not_supported");
    assert!(inside.fired("no-slots") > 0);
    bench.works().await;
}

/// All files below, with their modes.
fn below(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // One that is being written has another name in a moment.
        let Ok(about) = entry.metadata() else { continue };
        found.push((path.clone(), about.permissions().mode() & 0o777));
        found.extend(below(&path));
    }
    found
}

#[tokio::test]
async fn row_k11_what_was_said_stays_in_the_slot_file_and_notes_are_closed_to_strangers() {
    let bench = Bench::with_llama().await;
    let secret = "The password is swordfish. ".repeat(10);
    bench.asks(LLAMA_UNIT, &secret, 2).await.expect("an answer");
    // The control: without a save there is no note.
    let notes = bench.state_dir().join("slots");
    assert!(below(&notes).iter().all(|(path, _)| path.extension().is_none_or(|e| e != "json")));
    done(&bench, STOP_NOW).await;

    // What was injected is there: the file is a transcript, a word for each token.
    let file = slot_files(&bench).pop().expect("saved");
    let words: Vec<u8> = secret.bytes().flat_map(|token| u32::from(token).to_le_bytes()).collect();
    let bytes = fs::read(&file).expect("read");
    assert!(bytes.windows(words.len()).any(|part| part == words));

    let kept = below(&notes);
    assert!(kept.iter().any(|(path, _)| path.extension().is_some_and(|e| e == "json")), "{kept:?}");
    for (path, mode) in kept {
        assert_eq!(mode & 0o077, 0, "{path:?} {mode:o}");
    }
    for (path, _) in below(&bench.state_dir()).iter().filter(|(path, _)| path.is_file()) {
        let text = fs::read(path).unwrap_or_default();
        assert!(!text.windows(9).any(|part| part == b"swordfish"), "{path:?}");
    }
    let status = serde_json::to_string(&*bench.status()).expect("a document");
    assert!(!status.contains("swordfish"));
    // The file itself is llama.cpp's: its unit closes it.
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/llama-cpp.service");
    assert!(fs::read_to_string(unit).expect("the unit").lines().any(|line| line == "UMask=0027"));
    bench.works().await;
}

#[tokio::test]
async fn row_k12_a_first_request_that_hangs_in_the_cache_layer_is_drained_within_bounds() {
    let bench = Plan::default().key("BACKENDS__VLLM__DRAIN_TIMEOUT", "1s").on().await;
    bench.done(Command::Switch(VLLM, PLAIN)).await;
    let inside = bench.inside(VLLM_UNIT);
    bench.asks(VLLM_UNIT, "The control.", 2).await.expect("an answer");
    inside.set(Fault::CompletionsHang);
    let request = bench.asks_beside(VLLM_UNIT, &conversation(), 4);
    bench.truly("hanging", |_| inside.fired("completions-hang") == 1).await;
    let status = bench.until("seen", |s| s.backends["vllm"].in_flight == Some(1)).await;
    assert_eq!((status.state.as_str(), status.health.as_str()), ("vllm", "ok"), "busy is not dead");
    let record = done(&bench, TO_LLAMA).await;
    warned(&record, "drain_timeout");
    assert!(request.await.expect("no panic").is_some_and(|answer| answer["error"].is_object()), "a 500");
    tokio::time::sleep(Duration::ZERO).await;
    bench.works().await;
}

#[tokio::test]
async fn a_slot_folder_that_was_opened_to_others_is_told_after_the_next_saves() {
    let bench = control().await;
    let folder = bench.server.setup().slot_dir();
    let is_told = |bench: &Bench| bench.status().attention.iter().any(|a| a.code == "slots_folder_open");
    assert!(!is_told(&bench), "the control");
    for (mode, told) in [(0o755, true), (0o700, false)] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("ours");
        // The folder is looked at beside a save, and shown by the look after the next one at the latest.
        for _ in 0..50 {
            if is_told(&bench) == told {
                break;
            }
            done(&bench, SAVE).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(is_told(&bench), told, "{mode:o}");
    }
}
