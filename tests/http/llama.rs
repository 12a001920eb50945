//! A llama-server made by hand, with the habits of the real one that matter to saved slots: ids wrap, an empty slot is saved
//! with 200, a truncated file kills it, a failed restore empties the slot. And the slot folder it writes to.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use wechsler::{
    config,
    driver::world::{NamedSlot, SlotChoice},
    host::{
        http::Probe,
        launch_flags::LaunchFlags,
        slot_files::{FileName, FileStat, Found, HEAD_BYTES, Listed, SlotFiles, SlotFilesError, Survey, Surveyed},
        slots::SlotStore,
    },
    machine::{BackendKind, Outcome, Warning},
};

use crate::server::{Question, Reply, Server};

type FixedHash = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

pub(crate) const BYTES_PER_TOKEN: usize = 512;

#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// `None` until first used.
    pub(crate) tokens: Option<u32>,
    pub(crate) busy: bool,
    /// Restored and not used yet: holds these, and shows none.
    pub(crate) restored: u32,
    /// The last request in it.
    pub(crate) task: Option<u64>,
}

/// The whole world of a test: the server's memory and its disk.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) slots: Vec<Slot>,
    pub(crate) n_ctx: u64,
    pub(crate) build: &'static str,
    pub(crate) model_path: &'static str,
    pub(crate) model_mtime: u64,
    /// Nobody may look at the model's file.
    pub(crate) model_hidden: bool,
    /// The next look at the folder gets no answer.
    pub(crate) survey_fails: bool,
    /// The words of its command line; empty: nobody may read it.
    pub(crate) command_line: &'static str,
    pub(crate) sleeping: bool,
    pub(crate) router: bool,
    pub(crate) without_slot_folder: bool,
    pub(crate) without_metrics: bool,
    pub(crate) dead: bool,
    /// A request goes on with whatever is saved while it is saved.
    pub(crate) used_while_saved: bool,
    /// A request comes once something is saved: the server works on its prompt and tells nothing.
    pub(crate) works_after_save: bool,
    pub(crate) works: bool,
    /// So many bytes of a file do not depend on its tokens.
    pub(crate) fixed_bytes: usize,
    /// Of a save so many bytes never reach the disk.
    pub(crate) short_by: usize,
    /// Saves are written elsewhere.
    pub(crate) other_folder: bool,
    /// Saves and restores hang.
    pub(crate) hangs: bool,
    /// Each slot has a cache of its own, as large as the one that they share otherwise.
    pub(crate) split: bool,
    /// Every restore is rejected.
    pub(crate) rejects: bool,
    /// Every restore ends with an error of the server's.
    pub(crate) restore_fails: bool,
    /// A restore brings back so many tokens fewer.
    pub(crate) loses: u32,
    pub(crate) decoded: u64,
    /// Tokens of prompts.
    pub(crate) computed: u64,
    pub(crate) reused: u64,
    /// Number of the last request.
    pub(crate) task: u64,
    /// What was restored is of no use.
    pub(crate) forgets: bool,
    /// The body of the last request that generates.
    pub(crate) completion: serde_json::Value,
    pub(crate) completion_hangs: bool,
    /// An older build.
    pub(crate) without_timings: bool,
    pub(crate) disk: BTreeMap<String, Vec<u8>>,
    pub(crate) free: u64,
    /// SSH is down.
    pub(crate) ssh_down: bool,
    /// A request comes into slot 0 while files are looked at.
    pub(crate) used_meanwhile: bool,
    /// How often the folder was looked at.
    pub(crate) surveys: u32,
    /// How often a whole file was read.
    pub(crate) digests: u32,
    /// Reading a whole file takes so long.
    pub(crate) digest_takes: Duration,
    /// Whole files cannot be read.
    pub(crate) digest_fails: bool,
    /// Everybody may look into the folder.
    pub(crate) open_folder: bool,
    /// The folder cannot be listed: the call never ends.
    pub(crate) listing_hangs: bool,
    /// Method and path of every question, in order.
    pub(crate) asked: Vec<String>,
}

/// Handle to a [`State`]; also the slot folder as SSH shows it.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

impl World {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            slots: vec![Slot::default()],
            n_ctx: 4096,
            build: "b11434-abcdef",
            model_path: "/models/m.gguf",
            model_mtime: 1,
            model_hidden: false,
            survey_fails: false,
            command_line: "llama-server --swa-full",
            sleeping: false,
            router: false,
            without_slot_folder: false,
            without_metrics: false,
            dead: false,
            used_while_saved: false,
            works_after_save: false,
            works: false,
            fixed_bytes: 0,
            short_by: 0,
            other_folder: false,
            hangs: false,
            split: false,
            rejects: false,
            restore_fails: false,
            loses: 0,
            decoded: 0,
            computed: 0,
            reused: 0,
            task: 0,
            forgets: false,
            completion: serde_json::Value::Null,
            completion_hangs: false,
            without_timings: false,
            disk: BTreeMap::new(),
            free: 1 << 40,
            ssh_down: false,
            used_meanwhile: false,
            surveys: 0,
            digests: 0,
            digest_takes: Duration::from_millis(50),
            digest_fails: false,
            open_folder: false,
            listing_hangs: false,
            asked: vec![],
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic under it")
    }

    pub(crate) async fn serve(&self) -> Server {
        let world = self.clone();
        Server::start(move |question| answer(&mut world.state(), question)).await
    }

    /// The questions asked since the last time that begin with `start`.
    pub(crate) fn asked(&self, start: &str) -> Vec<String> {
        let mut state = self.state();
        let asked = std::mem::take(&mut state.asked);
        asked.into_iter().filter(|a| a.starts_with(start)).collect()
    }

    /// The process is stopped and started: its memory is gone.
    pub(crate) fn restart(&self) {
        let mut state = self.state();
        state.dead = false;
        (state.decoded, state.computed, state.reused, state.task) = (0, 0, 0, 0);
        for slot in &mut state.slots {
            *slot = Slot::default();
        }
    }

    pub(crate) fn use_slot(&self, id: usize, tokens: u32) {
        let mut state = self.state();
        state.slots[id] = Slot { tokens: Some(tokens), ..Slot::default() };
        state.decoded += 1;
    }

    /// A request goes on with what a slot holds, up to so many tokens.
    pub(crate) fn ask(&self, id: usize, tokens: u32) {
        generate(&mut self.state(), id, tokens);
    }

    pub(crate) fn files(&self) -> Vec<String> {
        self.state().disk.keys().cloned().collect()
    }
}

fn answer(state: &mut State, question: &Question) -> Reply {
    state.asked.push(question.what.clone());
    if state.dead {
        return Reply::Raw(vec![]);
    }
    let say = |body: String| Reply::Say(200, body);
    match question.what.as_str() {
        "GET /props" if state.router => say(r#"{"role":"router"}"#.into()),
        "GET /props" => say(format!(
            r#"{{"total_slots":{},"model_alias":"m","model_path":"{}","build_info":"{}","is_sleeping":{},
                "endpoint_slots":true,"endpoint_metrics":{},"default_generation_settings":{{"n_ctx":{}}}}}"#,
            state.slots.len(),
            state.model_path,
            state.build,
            state.sleeping,
            !state.without_metrics,
            state.n_ctx
        )),
        "GET /slots" if state.works => Reply::Stall(vec![]),
        "GET /slots" => {
            state.sleeping = false;
            let slots: Vec<String> = state
                .slots
                .iter()
                .enumerate()
                .map(|(id, slot)| {
                    let used = slot.tokens.map_or(String::new(), |t| {
                        format!(r#","id_task":{},"n_prompt_tokens":{t}"#, slot.task.unwrap_or(t.into()))
                    });
                    format!(
                        r#"{{"id":{id},"n_ctx":{},"speculative":false,"is_processing":{}{used}}}"#,
                        state.n_ctx, slot.busy
                    )
                })
                .collect();
            say(format!("[{}]", slots.join(",")))
        }
        "GET /metrics" if state.without_metrics => Reply::Say(501, String::new()),
        "GET /metrics" => say(format!(
            "llamacpp:requests_processing {}\nllamacpp:requests_deferred 0\nllamacpp:n_decode_total {}\n\
             llamacpp:prompt_tokens_total {}\nllamacpp:prompt_tokens_cached_total {}\nllamacpp:tokens_predicted_total {}\n",
            state.slots.iter().filter(|s| s.busy).count(),
            state.decoded,
            state.computed,
            state.reused,
            state.task
        )),
        "POST /completion" => completion(state, &question.body),
        post => match post.strip_prefix("POST /slots/").and_then(|p| p.split_once("?action=")) {
            Some((id, action)) => slot_action(state, id, action, &question.body),
            None => Reply::Say(404, String::new()),
        },
    }
}

/// A request for a prompt of so many tokens, of which the slot holds the first ones. Tells what it found and what it computed.
fn generate(state: &mut State, id: usize, prompt: u32) -> (u32, u32) {
    let slot = &mut state.slots[id];
    let held = slot.tokens.unwrap_or(slot.restored);
    let reused = if state.forgets { 0 } else { held.min(prompt - 1) };
    state.task += 1;
    *slot = Slot { tokens: Some(prompt), task: Some(state.task), ..Slot::default() };
    state.decoded += 1;
    state.reused += u64::from(reused);
    state.computed += u64::from(prompt - reused);
    (reused, prompt - reused)
}

fn completion(state: &mut State, body: &str) -> Reply {
    state.completion = serde_json::from_str(body).expect("JSON");
    if state.completion_hangs {
        return Reply::Stall(vec![]);
    }
    let prompt = state.completion["prompt"].as_array().expect("tokens").len();
    let slot = state.completion["id_slot"].as_u64().expect("a slot");
    let prompt = u32::try_from(prompt).expect("a short one");
    let (cache_n, prompt_n) = generate(state, usize::try_from(slot).expect("a small number"), prompt);
    if state.without_timings {
        return Reply::Say(200, r#"{"content":"x"}"#.into());
    }
    let timings = format!(r#"{{"cache_n":{cache_n},"prompt_n":{prompt_n},"predicted_n":1}}"#);
    Reply::Say(200, format!(r#"{{"timings":{timings}}}"#))
}

fn slot_action(state: &mut State, id: &str, action: &str, body: &str) -> Reply {
    let error = |code: u16, message: &str| {
        Reply::Say(code, format!(r#"{{"error":{{"code":{code},"message":"{message}","type":"x"}}}}"#))
    };
    if state.without_slot_folder {
        return error(501, "This server does not support slots action.");
    }
    let asked: usize = id.parse().expect("a number");
    // As the real one does it.
    let id = asked % state.slots.len();
    if state.hangs || state.slots[id].busy {
        return Reply::Stall(vec![]);
    }
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let file = body["filename"].as_str().expect("a file name").to_owned();
    if action == "save" {
        let tokens = state.slots[id].tokens.unwrap_or(state.slots[id].restored);
        let mut bytes = slot_file(tokens);
        bytes.resize(bytes.len() + state.fixed_bytes, 7);
        let written = bytes.len();
        if state.free < written as u64 {
            let room = usize::try_from(state.free).expect("less than the file");
            state.disk.insert(file, bytes[..room].to_vec());
            state.free = 0;
            return error(500, "Unable to save slot");
        }
        if state.used_while_saved {
            generate(state, id, tokens + 1);
        }
        state.works = state.works_after_save;
        if !state.other_folder {
            bytes.truncate(written - state.short_by);
            state.disk.insert(file.clone(), bytes);
        }
        return Reply::Say(
            200,
            format!(
                r#"{{"id_slot":{id},"filename":"{file}","n_saved":{tokens},"n_written":{written},"timings":{{}}}}"#
            ),
        );
    }
    if state.restore_fails {
        return error(500, "out of memory");
    }
    let rejected = "Unable to restore slot: No available space in KV cache or invalid slot save file";
    let Some(bytes) = state.disk.get(&file).filter(|_| !state.rejects) else {
        state.slots[id] = Slot::default();
        return error(400, rejected);
    };
    let tokens = u32::from_le_bytes(bytes[20..24].try_into().expect("four bytes"));
    if bytes.len() < slot_file(tokens).len() {
        state.dead = true;
        return Reply::Raw(vec![]);
    }
    let holds = |slot: &Slot| u64::from(slot.tokens.unwrap_or(slot.restored));
    let beside: u64 =
        state.slots.iter().enumerate().filter(|(other, _)| *other != id).map(|(_, slot)| holds(slot)).sum();
    if !state.split && beside + u64::from(tokens) > state.n_ctx {
        state.slots[id] = Slot::default();
        return error(400, rejected);
    }
    let tokens = tokens - state.loses;
    let read = bytes.len();
    state.slots[id] = Slot { restored: tokens, ..Slot::default() };
    Reply::Say(
        200,
        format!(r#"{{"id_slot":{id},"filename":"{file}","n_restored":{tokens},"n_read":{read},"timings":{{}}}}"#),
    )
}

/// A slot file as build 11434 writes it.
fn slot_file(tokens: u32) -> Vec<u8> {
    if tokens == 0 {
        return vec![0; 36];
    }
    let mut bytes: Vec<u8> =
        [0x6767_7371, 4, tokens + 3, u32::MAX, 1, tokens].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    bytes.resize(24 + BYTES_PER_TOKEN * tokens as usize, 7);
    bytes
}

impl World {
    fn ssh(&self) -> Result<MutexGuard<'_, State>, SlotFilesError> {
        let state = self.state();
        if state.ssh_down {
            return Err(SlotFilesError::Unreachable("no session".into()));
        }
        Ok(state)
    }
}

fn found(bytes: &[u8]) -> Found {
    Found {
        stat: FileStat { bytes: bytes.len() as u64, mtime: 0 },
        head: bytes.iter().copied().take(HEAD_BYTES).collect(),
    }
}

impl SlotFiles for World {
    async fn survey(&self, what: Survey<'_>) -> Result<Surveyed, SlotFilesError> {
        let mut state = self.ssh()?;
        state.surveys += 1;
        if state.used_meanwhile && !what.files.is_empty() {
            state.slots[0] = Slot { tokens: Some(5), ..Slot::default() };
        }
        if std::mem::take(&mut state.survey_fails) {
            return Err(SlotFilesError::Unreachable("the session broke".into()));
        }
        let is_model = !state.model_hidden && what.model.is_some_and(|path| path == state.model_path);
        Ok(Surveyed {
            free: what.free.then_some(state.free),
            model: is_model.then_some(FileStat { bytes: 1000, mtime: state.model_mtime }),
            flags: LaunchFlags::of_command_line(state.command_line.replace(' ', "\0").as_bytes())
                .filter(|_| what.flags),
            files: what.files.iter().map(|file| Ok(state.disk.get(file.as_str()).map(|bytes| found(bytes)))).collect(),
        })
    }

    async fn keep(
        &self,
        unfinished: &FileName,
        name: &FileName,
        bytes: u64,
        _within: Duration,
    ) -> Result<Option<Found>, SlotFilesError> {
        let mut state = self.ssh()?;
        let Some(content) = state.disk.get(unfinished.as_str()).cloned() else { return Ok(None) };
        if content.len() as u64 == bytes && content.starts_with(b"qsgg") {
            state.disk.remove(unfinished.as_str());
            assert!(state.disk.insert(name.as_str().into(), content.clone()).is_none(), "the name is new");
        }
        Ok(Some(found(&content)))
    }

    async fn digest(&self, name: &FileName, within: Duration) -> Result<Option<String>, SlotFilesError> {
        let takes = self.state().digest_takes;
        tokio::time::sleep(takes.min(within)).await;
        let mut state = self.ssh()?;
        state.digests += 1;
        if takes > within {
            return Err(SlotFilesError::Unreachable("the share has not answered in time".into()));
        }
        if state.digest_fails {
            return Err(SlotFilesError::Refused("not read in time".into()));
        }
        // Any digest will do where nobody knows another one.
        let digest =
            |bytes: &Vec<u8>| format!("{:064x}", std::hash::BuildHasher::hash_one(&FixedHash::default(), bytes));
        Ok(state.disk.get(name.as_str()).map(digest))
    }

    async fn words(&self, name: &FileName, count: usize) -> Result<Vec<u32>, SlotFilesError> {
        let state = self.ssh()?;
        let bytes = state.disk.get(name.as_str()).expect("it is there");
        let words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().expect("four bytes")));
        Ok(words.take(count).collect())
    }

    async fn list(&self, suffix: &str) -> Result<Listed, SlotFilesError> {
        if self.state().listing_hangs {
            std::future::pending::<()>().await;
        }
        let state = self.ssh()?;
        let names = state.disk.keys().filter(|name| name.ends_with(suffix)).filter_map(|name| FileName::new(name));
        Ok(Listed { names: names.collect(), open: state.open_folder })
    }

    async fn remove(&self, names: &[FileName]) -> Result<(), SlotFilesError> {
        let mut state = self.ssh()?;
        for name in names {
            let freed = state.disk.remove(name.as_str()).map_or(0, |b| b.len());
            state.free += freed as u64;
        }
        Ok(())
    }
}

/// A slot store in a folder of its own, a server and a probe of it.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) probe: Probe,
    pub(crate) store: SlotStore,
    pub(crate) state_dir: PathBuf,
    server: Server,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state_dir);
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        static RIGS: AtomicU32 = AtomicU32::new(0);
        let number = RIGS.fetch_add(1, Ordering::Relaxed);
        let state_dir = std::env::temp_dir().join(format!("wechsler-slots-{}-{number}", std::process::id()));
        let world = World::new();
        let server = world.serve().await;
        Self { probe: server.probe(BackendKind::LlamaCpp), store: store_in(&state_dir, 3), world, state_dir, server }
    }

    /// What gets no answer is given up soon.
    pub(crate) fn hasty(&mut self) {
        self.probe = self.server.hasty_probe(BackendKind::LlamaCpp);
    }

    pub(crate) async fn save(&self) -> Outcome {
        self.save_by(&SlotChoice::All).await
    }

    pub(crate) async fn restore(&self) -> Outcome {
        self.restore_by(&SlotChoice::All).await
    }

    pub(crate) async fn save_by(&self, choice: &SlotChoice) -> Outcome {
        self.store.save(&self.probe, &self.world, choice, Duration::from_secs(10)).await
    }

    pub(crate) async fn restore_by(&self, choice: &SlotChoice) -> Outcome {
        self.store.restore(&self.probe, &self.world, choice, Duration::from_secs(10)).await
    }

    /// A conversation of that length is saved, and the server restarted.
    pub(crate) async fn save_and_restart(&self, tokens: u32) {
        self.world.use_slot(0, tokens);
        assert_eq!(codes(&self.save().await), ["saved"]);
        self.world.restart();
        self.world.asked("");
    }

    /// The daemon is killed and started again: what it knows is what lies on its disk.
    pub(crate) fn next_life(&mut self) {
        self.store = store_in(&self.state_dir, 3);
    }

    /// The only file in the slot folder.
    pub(crate) fn file(&self) -> String {
        let files = self.world.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    /// Saves and restores asked for since the last time.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.world.asked("POST")
    }

    /// The only file was saved so much earlier, as its note tells.
    pub(crate) async fn age(&self, by: Duration) {
        let note = self.note_path(&self.file());
        let text = std::fs::read_to_string(&note).expect("a note");
        let saved_at = self.store.saved().await[0].saved_at;
        let old = text.replace(&saved_at.to_string(), &(saved_at - by.as_secs()).to_string());
        std::fs::write(&note, old).expect("a note");
        assert_eq!(self.store.damaged().await, [], "it is read again");
    }

    pub(crate) fn note_path(&self, file: &str) -> PathBuf {
        self.state_dir.join("slots/gpu/llama-cpp").join(format!("{file}.json"))
    }
}

pub(crate) fn store_in(state_dir: &std::path::Path, keep: u32) -> SlotStore {
    store_with(state_dir, |slots| slots.keep = keep)
}

/// A store whose configuration was changed.
pub(crate) fn store_with(state_dir: &std::path::Path, change: impl FnOnce(&mut config::Slots)) -> SlotStore {
    let mut slots = config::Slots { digest: false, ..config::Slots::new("/mnt/slots".into(), "localbot") };
    change(&mut slots);
    SlotStore::new(state_dir, "gpu", "llama-cpp", slots)
}

/// One slot by name.
pub(crate) fn named(name: &str) -> SlotChoice {
    SlotChoice::Named(NamedSlot { name: name.into(), ..NamedSlot::default() })
}

/// ... into or out of that slot of the server.
pub(crate) fn named_in(name: &str, slot: u32) -> SlotChoice {
    SlotChoice::Named(NamedSlot { name: name.into(), slot: Some(slot), generation: None })
}

/// ... of that generation.
pub(crate) fn generation(name: &str, generation: u64) -> SlotChoice {
    SlotChoice::Named(NamedSlot { name: name.into(), slot: None, generation: Some(generation) })
}

/// What is said, a line for each.
pub(crate) fn message(outcome: Outcome) -> String {
    match outcome {
        Outcome::Succeeded(w) => w.into_iter().map(|w| w.message + "\n").collect(),
        Outcome::Failed(w) | Outcome::Unknown(w) => w.message,
    }
}

/// The codes of an outcome, in order; a failure's has a mark before it.
pub(crate) fn codes(outcome: &Outcome) -> Vec<String> {
    let code = |w: &Warning| w.code.clone();
    match outcome {
        Outcome::Succeeded(warnings) => warnings.iter().map(code).collect(),
        Outcome::Failed(why) => vec![format!("!{}", why.code)],
        Outcome::Unknown(why) => vec![format!("?{}", why.code)],
    }
}
