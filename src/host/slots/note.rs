//! Notes: what this machine knows of each saved slot. A file in the slot folder counts only if its note says so, and the note
//! is the commit point of a save: it is written, in one step, after the file was checked.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{BuildHasher, Hasher},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

use super::worth::Useless;
use crate::{
    host::{launch_flags::LaunchFlags, slot_files::FileName},
    machine::{
        Invocation,
        reading::{LastRestore, SavedSlot},
    },
};

/// More notes than this are not read; pruning keeps a handful of each name.
const MOST_NOTES: usize = 512;
/// With so many no new name is taken, so that those of the slots themselves are always read.
pub(super) const MANY_NOTES: usize = MOST_NOTES / 2;
/// A longer note is damaged.
const MOST_NOTE_BYTES: u64 = 64 * 1024;
const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".note.tmp";
/// Beside the notes: what restores do nothing for.
const USELESS: &str = "useless";
/// In the state directory: whose slot files are ours.
const OWNER: &str = "slot-owner";
/// A disk that takes longer is not waited for: a save or restore then goes without it.
const DISK_AT_MOST: Duration = Duration::from_secs(3);

/// The model a slot belongs to. The slot file itself does not know: another model of the same shape would take it and
/// answer garbage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Model {
    /// Alias, else path.
    pub(super) id: String,
    /// `--model`.
    pub(super) path: Option<String>,
    /// Size of its file, where it could be asked.
    pub(super) bytes: Option<u64>,
    /// Last change of its file, seconds since the epoch by the server's clock.
    pub(super) mtime: Option<u64>,
}

/// What a slot file fits, and nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fit {
    pub(super) model: Model,
    /// llama.cpp's build: an upgrade may make every file unusable.
    pub(super) build: Option<String>,
    /// Context size of a slot, tokens.
    pub(super) n_ctx: u64,
    /// Number of slots: it decides how the cache is laid out.
    pub(super) total_slots: u32,
    /// What it was started with, where that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) flags: Option<LaunchFlags>,
}

/// One saved generation of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The name people know it by.
    pub(super) name: String,
    /// In the slot folder.
    pub(super) file: String,
    pub(super) slot: u32,
    pub(super) bytes: u64,
    pub(super) tokens: u64,
    /// Seconds since the epoch, by this machine's clock.
    pub(super) saved_at: u64,
    /// Counts the saves of this backend; the slots of one save share it. Orders them, whatever the clock did.
    pub(super) round: u64,
    #[serde(flatten)]
    pub(super) fit: Fit,
    /// Version word of the file.
    pub(super) format: u32,
    /// A restore was begun. Found without one under way, nobody knows how it ended.
    #[serde(default)]
    pub(super) restoring: bool,
    /// ... into this run of the server, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sent_to: Option<Invocation>,
    /// A restore of it went wrong, or never ended, and nothing shows that the file is to blame: not so a second time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) doubted: bool,
    /// Never restored again, and why.
    #[serde(default)]
    pub(super) put_aside: Option<String>,
    /// SHA-256 of the whole file, taken some time after it was saved.
    #[serde(default)]
    pub(super) digest: Option<String>,
    /// Before a restore, so many seconds were not enough to read all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unread_within: Option<u64>,
    /// The last restore of it that was done.
    #[serde(default)]
    pub(super) last_restore: Option<LastRestore>,
    /// ... and where it went, if the run was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restored_into: Option<Place>,
}

/// A slot of one run of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) run: Invocation,
    pub(super) slot: u32,
}

impl Fit {
    /// What keeps a file saved with `self` from a server that is `now`; empty if nothing does. Of the model and the flags,
    /// what could not be read on either side is no difference.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            matches!((a, b), (Some(a), Some(b)) if a != b)
        }
        let (then, model) = (&self.model, &now.model);
        let mut found = Vec::new();
        if differ(then.path.as_ref(), model.path.as_ref())
            || ((then.path.is_none() || model.path.is_none()) && then.id != model.id)
        {
            let name = |m: &Model| m.path.clone().unwrap_or_else(|| m.id.clone());
            found.push(format!("model {} instead of {}", name(model), name(then)));
        } else if differ(then.bytes.as_ref(), model.bytes.as_ref()) || differ(then.mtime.as_ref(), model.mtime.as_ref())
        {
            found.push(format!("the file of model {} has changed", model.id));
        }
        if self.n_ctx != now.n_ctx {
            found.push(format!("context {} instead of {}", now.n_ctx, self.n_ctx));
        }
        if self.build != now.build {
            let shown = |b: &Option<String>| b.clone().unwrap_or_else(|| "unknown".into());
            let (new, old) = (shown(&now.build), shown(&self.build));
            found.push(format!("build {new} instead of {old}"));
        }
        if self.total_slots != now.total_slots {
            found.push(format!("{} slots instead of {}", now.total_slots, self.total_slots));
        }
        if let (Some(then), Some(now)) = (&self.flags, &now.flags) {
            found.extend(then.differences(now));
        }
        found
    }
}

impl Note {
    /// May be restored.
    pub(super) const fn is_good(&self) -> bool {
        self.put_aside.is_none() && !self.restoring
    }

    /// As the rest of the program shows it.
    pub(super) fn shown(self) -> SavedSlot {
        SavedSlot {
            name: self.name,
            file: self.file,
            slot: self.slot,
            bytes: self.bytes,
            tokens: self.tokens,
            saved_at: self.saved_at,
            model: self.fit.model.id,
            n_ctx: self.fit.n_ctx,
            put_aside: self.put_aside,
            generation: self.round,
            last_restore: self.last_restore,
            restored_into: self.restored_into.map(|place| place.run),
            useless: None,
            named: false,
        }
    }
}

/// The folder of notes of one backend: read once, and then kept in memory and written through. All work on the disk is done
/// beside the daemon's one thread, one piece at a time, and waited for no longer than [`DISK_AT_MOST`].
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    owner_file: PathBuf,
    /// Goes with the work, so that a disk that hangs holds one thread and no more.
    disk: Arc<Semaphore>,
    known: Mutex<Known>,
}

/// What is known of the disk.
#[derive(Debug, Default)]
struct Known {
    notes: Option<Arc<Notes>>,
    owner: Option<String>,
}

/// What lies on the shelf.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_field_names, reason = "notes are what they are called")]
pub(super) struct Notes {
    /// Newest first.
    pub(super) notes: Vec<Note>,
    /// Files that are no notes (any more), with what is wrong.
    pub(super) damaged: Vec<(String, String)>,
    /// What restores do nothing for.
    pub(super) useless: Useless,
}

impl Shelf {
    /// `state_dir/slots/SERVER/BACKEND`.
    pub(super) fn new(state_dir: &Path, server: &str, backend: &str) -> Self {
        Self {
            dir: state_dir.join("slots").join(component(server)).join(component(backend)),
            owner_file: state_dir.join(OWNER),
            disk: Arc::new(Semaphore::new(1)),
            known: Mutex::default(),
        }
    }

    /// All notes, as they are known.
    pub(super) async fn notes(&self) -> Arc<Notes> {
        let known = self.known().notes.clone();
        match known {
            Some(notes) => notes,
            None => self.read_again().await,
        }
    }

    /// All notes, read from the disk: people may have changed them. A folder that cannot be read is as it was, or empty,
    /// and says so in `damaged`.
    pub(super) async fn read_again(&self) -> Arc<Notes> {
        let dir = self.dir.clone();
        let read = self.blocking(move || load(&dir)).await;
        let mut known = self.known();
        match read {
            Ok(notes) => known.notes.insert(Arc::new(notes)).clone(),
            Err(error) => {
                let mut notes = known.notes.as_deref().cloned().unwrap_or_default();
                notes.damaged.push((self.dir.display().to_string(), error.to_string()));
                Arc::new(notes)
            }
        }
    }

    /// The files that have a note, readable or not, as they lie on the disk; `None` if there is no folder of notes.
    pub(super) async fn files(&self) -> io::Result<Option<BTreeSet<String>>> {
        let dir = self.dir.clone();
        let file = |note: String| note.strip_suffix(SUFFIX).map(str::to_owned);
        self.blocking(move || {
            let names = names(&dir)?;
            // Asked last: a folder that goes away meanwhile is not taken for an empty one.
            let is_there = none_if_missing(fs::metadata(&dir))?.is_some();
            Ok(is_there.then(|| names.into_iter().filter_map(file).collect()))
        })
        .await
    }

    /// Writes a note.
    pub(super) async fn write(&self, note: &Note) -> io::Result<()> {
        self.store(format!("{}{SUFFIX}", note.file), serde_json::to_vec_pretty(note)?).await?;
        self.change(|Notes { notes, .. }| {
            notes.retain(|n| n.file != note.file);
            notes.push(note.clone());
        });
        Ok(())
    }

    /// Writes down what restores do nothing for.
    pub(super) async fn write_useless(&self, useless: Useless) -> io::Result<()> {
        self.store(USELESS.into(), serde_json::to_vec_pretty(&useless)?).await?;
        self.change(|notes| notes.useless = useless);
        Ok(())
    }

    /// Writes a file in one step, surviving a crash or power cut at any moment. Mode 0600: it tells of conversations.
    async fn store(&self, name: String, text: Vec<u8>) -> io::Result<()> {
        let dir = self.dir.clone();
        let write = move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let unfinished = dir.join(UNFINISHED);
            write_synced(&unfinished, &text)?;
            fs::rename(unfinished, dir.join(name))?;
            File::open(dir)?.sync_all()
        };
        // Not given up with the wait for it: a note written late is overtaken by none that was written after it.
        let disk = Arc::clone(&self.disk);
        let written = tokio::spawn(async move { on_disk(&disk, write).await });
        timeout(DISK_AT_MOST, written).await.map_err(hangs)?.map_err(io::Error::other)?
    }

    /// Forgets a note.
    pub(super) async fn remove(&self, note: &Note) -> io::Result<()> {
        let dir = self.dir.clone();
        let name = format!("{}{SUFFIX}", note.file);
        self.blocking(move || {
            none_if_missing(fs::remove_file(dir.join(name)))?;
            File::open(dir)?.sync_all()
        })
        .await?;
        self.change(|Notes { notes, .. }| notes.retain(|n| n.file != note.file));
        Ok(())
    }

    /// What tells this state directory from any other: made at the first need and kept in it.
    pub(super) async fn owner(&self) -> io::Result<String> {
        if let Some(owner) = self.known().owner.clone() {
            return Ok(owner);
        }
        let file = self.owner_file.clone();
        let owner = self.blocking(move || owner_in(&file)).await?;
        Ok(self.known().owner.insert(owner).clone())
    }

    /// Does some work on the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        timeout(DISK_AT_MOST, on_disk(&self.disk, work)).await.map_err(hangs)?
    }

    /// Changes what is known; what was never read stays so.
    fn change(&self, change: impl FnOnce(&mut Notes)) {
        if let Some(notes) = &mut self.known().notes {
            let notes = Arc::make_mut(notes);
            change(notes);
            notes.sort();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Never held over an await, and nothing under it can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    /// What was last restored into a slot of a run, by whichever life of the daemon.
    pub(super) fn restored_into(&self, place: Place) -> Option<&Note> {
        let there = self.notes.iter().filter(|note| note.restored_into == Some(place));
        there.max_by_key(|note| note.last_restore.as_ref().map(|last| last.at))
    }

    fn sort(&mut self) {
        self.notes.sort_by(|a, b| (b.round, &b.file).cmp(&(a.round, &a.file)));
    }
}

/// Does some work on the disk when it is its turn.
async fn on_disk<T: Send + 'static>(
    disk: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let turn = Arc::clone(disk).acquire_owned().await.map_err(io::Error::other)?;
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn hangs(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk of the state directory does not answer")
}

fn load(dir: &Path) -> io::Result<Notes> {
    let mut found = Notes::default();
    for name in names(dir)?.into_iter().take(MOST_NOTES) {
        match read(&dir.join(&name), &name) {
            Ok(note) => found.notes.push(note),
            Err(why) => found.damaged.push((name, why)),
        }
    }
    found.sort();
    match text_of(&dir.join(USELESS)).map(|text| text.map(|text| serde_json::from_slice(&text))) {
        Ok(None) => {}
        Ok(Some(Ok(useless))) => found.useless = useless,
        Ok(Some(Err(error))) => found.damaged.push((USELESS.into(), error.to_string())),
        Err(why) => found.damaged.push((USELESS.into(), why)),
    }
    Ok(found)
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// The owner's id in `file`, which is made if it is missing or damaged. Of several who make it at once one wins, and all
/// take that one's: it appears whole, under a name that is taken only once.
fn owner_in(file: &Path) -> io::Result<String> {
    let read = || -> io::Result<Option<String>> {
        let Some(opened) = none_if_missing(File::open(file))? else { return Ok(None) };
        let mut text = String::new();
        opened.take(100).read_to_string(&mut text)?;
        let id = text.trim();
        let whole = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Some(if whole { id.to_owned() } else { String::new() }))
    };
    match read() {
        Ok(Some(id)) if !id.is_empty() => return Ok(id),
        Ok(None) => {}
        Ok(Some(_)) => fs::remove_file(file)?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => fs::remove_file(file)?,
        Err(error) => return Err(error),
    }
    let dir = file.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    // std keys its hashers with the system's own randomness.
    let word = || RandomState::new().build_hasher().finish();
    let mine = format!("{:016x}{:016x}", word(), word());
    let unfinished = file.with_extension(format!("{mine}.tmp"));
    write_synced(&unfinished, mine.as_bytes())?;
    let linked = fs::hard_link(&unfinished, file);
    fs::remove_file(&unfinished)?;
    match linked {
        Ok(()) => File::open(dir)?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    read()?.filter(|id| !id.is_empty()).ok_or_else(|| io::Error::other("the owner's id cannot be read back"))
}

/// A name as one component of a path.
fn component(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let safe: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if safe.trim_matches('.').is_empty() { "_".into() } else { safe }
}

/// The names of notes in a folder, newest first by the stamps in them.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in none_if_missing(fs::read_dir(dir))?.into_iter().flatten() {
        if let Ok(name) = entry?.file_name().into_string()
            && name.ends_with(SUFFIX)
        {
            found.push(name);
        }
    }
    // `NAME.STAMP.slot.json`
    found.sort_unstable_by(|a, b| b.rsplit('.').nth(2).cmp(&a.rsplit('.').nth(2)));
    Ok(found)
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What stands in a file; `None` if there is none.
fn text_of(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_NOTE_BYTES + 1).read_to_end(&mut text));
    match none_if_missing(read).map_err(|e| e.to_string())? {
        None => Ok(None),
        Some(_) if text.len() as u64 > MOST_NOTE_BYTES => Err(format!("longer than {MOST_NOTE_BYTES} bytes")),
        Some(_) => Ok(Some(text)),
    }
}

fn read(path: &Path, name: &str) -> Result<Note, String> {
    let text = text_of(path)?.ok_or("it is gone")?;
    parse(&text, name)
}

/// What a note of that name says.
pub(super) fn parse(text: &[u8], name: &str) -> Result<Note, String> {
    let note: Note = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if name.strip_suffix(SUFFIX) != Some(note.file.as_str()) || FileName::new(&note.file).is_none() {
        return Err(format!("it is about another file: {:?}", note.file));
    }
    Ok(note)
}
