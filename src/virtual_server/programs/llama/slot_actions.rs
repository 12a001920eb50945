//! `POST /slots/{id}?action=save|restore|erase`, with everything that goes wrong there.

use std::{io, path::Path, sync::Arc};

use axum::{body::Body, http::Response};
use serde_json::{Value, json};
use tokio::{fs::File, io::AsyncWriteExt, sync::oneshot, time::Instant};

use super::{
    super::{
        Exit, SlotAct,
        door::{Ask, json as json_answer},
    },
    Llama,
    core::{Claim, Which, count},
    paths::{asked, error, invalid, not_supported},
    slot_file::{self, Contents, Unfit},
};

const VAGUE: &str = "Unable to restore slot: No available space in KV cache or invalid slot save file";
/// So much is written at once.
const PIECE: usize = 64 * 1024;

#[derive(Clone, Debug)]
enum Action {
    Save(String),
    Restore(String),
    Erase,
}

impl Llama {
    pub(super) async fn slot_action(self: Arc<Self>, id: &str, ask: &Ask) -> Response<Body> {
        if self.setup.slot_dir.as_os_str().is_empty() || self.life.faults.fires("no-slot-saves").is_some() {
            return not_supported("This server does not support slots action. Start it with `--slot-save-path`");
        }
        let Ok(id) = id.parse::<u64>() else {
            return invalid("Invalid slot ID");
        };
        let file = || file_name(ask);
        let action = match ask.query.get("action").map(String::as_str) {
            Some("save") => file().map(Action::Save),
            Some("restore") => file().map(Action::Restore),
            Some("erase") => Ok(Action::Erase),
            _ => return invalid("Invalid action"),
        };
        let action = match action {
            Ok(action) => action,
            Err(why) => return invalid(why),
        };
        self.one_of_the_queue().await;
        self.awake().await;
        self.core.post();
        if matches!(action, Action::Save(_)) {
            self.core.save_is_wanted(id);
        }
        // A client that gives up here takes its task back.
        let claim = self.core.claim(Which::Id(id)).await;
        // ... and from here on it does not.
        let (tell, told) = oneshot::channel();
        let llama = Arc::clone(&self);
        self.life.spawn(async move {
            let answer = llama.act(id, &claim, action).await;
            llama.core.posted();
            drop(claim);
            let _ = tell.send(answer);
        });
        match told.await {
            Ok(answer) => answer,
            // The process has died.
            Err(_) => std::future::pending().await,
        }
    }

    async fn act(&self, id: u64, claim: &Claim, action: Action) -> Response<Body> {
        let _turn = self.core.turn.lock().await;
        match action {
            Action::Save(file) => self.save(id, claim.slot, &file).await,
            Action::Restore(file) => self.restore(id, claim.slot, &file).await,
            Action::Erase => {
                let erased = self.core.with(|state| {
                    let slot = &mut state.slots[claim.slot];
                    let held = slot.tokens.len();
                    slot.empty();
                    held
                });
                json_answer(200, json!({ "id_slot": id, "n_erased": erased }))
            }
        }
    }

    async fn save(&self, id: u64, slot: usize, file: &str) -> Response<Body> {
        let faults = &self.life.faults;
        let begun = Instant::now();
        faults.wait_out("save-hangs").await;
        let failed = || {
            self.life.slot_did(SlotAct::SaveFailed, file, 0);
            error(500, "Unable to save slot", "server_error")
        };
        if faults.fires("save-fails").is_some() {
            return failed();
        }
        let contents = self.core.with(|state| {
            let slot = &state.slots[slot];
            Contents { tokens: slot.tokens.clone(), minds: slot.minds.clone() }
        });
        let mut bytes = slot_file::write(&contents, slot, self.streams());
        let whole = bytes.len();
        let full = faults.fires("disk-full").is_some();
        if full {
            bytes.truncate(whole / 2);
        }
        let dir = if faults.fires("saves-elsewhere").is_some() {
            let beside = self.setup.slot_dir.with_extension("elsewhere");
            let _ = tokio::fs::create_dir_all(&beside).await;
            beside
        } else {
            self.setup.slot_dir.clone()
        };
        if let Err(why) = write(&dir.join(file), &bytes).await {
            self.life.say(format!("state_seq_save_file: {file}: {why}"));
            return failed();
        }
        if full {
            self.life.say(format!("state_seq_save_file: {file}: No space left on device"));
            return failed();
        }
        let mut written = count(whole);
        if faults.fires("save-says-other-size").is_some() {
            written += 4096;
        }
        self.life.slot_did(SlotAct::Saved, file, contents.tokens.len());
        json_answer(
            200,
            json!({
                "id_slot": id, "filename": file, "n_saved": contents.tokens.len(), "n_written": written,
                "timings": { "save_ms": begun.elapsed().as_secs_f64() * 1e3 },
            }),
        )
    }

    async fn restore(&self, id: u64, slot: usize, file: &str) -> Response<Body> {
        let faults = &self.life.faults;
        let begun = Instant::now();
        faults.wait_out("restore-hangs").await;
        let failed = || self.life.slot_did(SlotAct::RestoreFailed, file, 0);
        if faults.fires("restore-kills").is_some() {
            failed();
            return self.abort().await;
        }
        let rejected = if faults.fires("restore-rejected").is_some() { Some("as told") } else { None };
        let bytes = tokio::fs::read(self.setup.slot_dir.join(file)).await;
        let read = match (rejected, &bytes) {
            (Some(why), _) => Err(Unfit::Rejected(why)),
            (None, Err(_)) => Err(Unfit::Rejected("the file cannot be read")),
            (None, Ok(bytes)) => slot_file::read(bytes, &self.setup.model_path, self.slot_n_ctx(), self.streams()),
        };
        let contents = match read {
            Ok(contents) => contents,
            Err(Unfit::Truncated) => {
                failed();
                return self.abort().await;
            }
            Err(unfit) => {
                failed();
                // Whatever the slot held is gone.
                self.core.with(|state| state.slots[slot].empty());
                let Unfit::Rejected(why) = unfit else {
                    return invalid("Unable to restore slot: Invalid tokens in slot save file");
                };
                self.life.say(format!("state_seq_load_file: {file}: {why}"));
                return invalid(VAGUE);
            }
        };
        let restored = contents.tokens.len();
        let unusable = faults.fires("restore-unused").is_some();
        self.core.with(|state| {
            let slot = &mut state.slots[slot];
            slot.tokens = contents.tokens;
            slot.minds = contents.minds;
            slot.restored = true;
            slot.unsaved = None;
            slot.unusable = unusable;
        });
        self.life.slot_did(SlotAct::Restored, file, restored);
        json_answer(
            200,
            json!({
                "id_slot": id, "filename": file, "n_restored": restored,
                "n_read": bytes.map_or(0, |bytes| bytes.len()),
                "timings": { "restore_ms": begun.elapsed().as_secs_f64() * 1e3 },
            }),
        )
    }

    async fn abort(&self) -> Response<Body> {
        self.life.say("src/llama-context.cpp:3373: GGML_ASSERT(nread <= state_size) failed");
        self.life.end(Exit::Signal(6));
        std::future::pending().await
    }

    /// Several slots have a stream each.
    fn streams(&self) -> u32 {
        self.setup.parallel.max(1)
    }
}

/// In place, as llama.cpp writes: what was there before is gone with the first byte.
async fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path).await?;
    for piece in bytes.chunks(PIECE) {
        file.write_all(piece).await?;
    }
    file.flush().await
}

fn file_name(ask: &Ask) -> Result<String, String> {
    let asked = asked(ask)?;
    match asked.get("filename") {
        None => Err("[json.exception.out_of_range.403] key 'filename' not found".into()),
        Some(Value::String(name)) if is_file_name(name) => Ok(name.clone()),
        Some(Value::String(_)) => Err("Invalid filename".into()),
        Some(_) => Err("[json.exception.type_error.302] type must be string".into()),
    }
}

fn is_file_name(name: &str) -> bool {
    let bad = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    (1..=255).contains(&name.len())
        && !name.chars().any(bad)
        && !name.contains("..")
        && !name.starts_with(' ')
        && !name.ends_with([' ', '.'])
}
