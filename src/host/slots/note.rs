//! Notes: what this machine knows of each saved slot. A file in the slot folder counts only if its note says so, and the note
//! is the commit point of a save: it is written, in one step, after the file was checked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{host::slot_files::FileName, machine::reading::SavedSlot};

/// More notes than this are not read; pruning keeps a handful.
const MOST_NOTES: usize = 512;
/// A longer note is damaged.
const MOST_NOTE_BYTES: u64 = 64 * 1024;
const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".note.tmp";

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
    /// A restore was begun. Found without one under way, it killed somebody.
    #[serde(default)]
    pub(super) restoring: bool,
    /// Never restored again, and why.
    #[serde(default)]
    pub(super) put_aside: Option<String>,
}

impl Fit {
    /// What keeps a file saved with `self` from a server that is `now`; empty if nothing does. Of the model,
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
        }
    }
}

/// The folder of notes of one backend.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
}

/// What lies on the shelf.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Newest first.
    pub(super) notes: Vec<Note>,
    /// Files that are no notes (any more), with what is wrong.
    pub(super) damaged: Vec<(String, String)>,
}

impl Shelf {
    /// `state_dir/slots/SERVER/BACKEND`.
    pub(super) fn new(state_dir: &Path, server: &str, backend: &str) -> Self {
        let dir = state_dir.join("slots").join(component(server)).join(component(backend));
        Self { dir }
    }

    /// All notes. A folder that cannot be read is empty, and says so in `damaged`.
    pub(super) fn load(&self) -> Notes {
        let mut found = Notes::default();
        let names = match names(&self.dir) {
            Ok(names) => names,
            Err(error) => {
                let dir = self.dir.display().to_string();
                found.damaged.push((dir, error.to_string()));
                return found;
            }
        };
        for name in names.into_iter().take(MOST_NOTES) {
            match read(&self.dir.join(&name), &name) {
                Ok(note) => found.notes.push(note),
                Err(why) => found.damaged.push((name, why)),
            }
        }
        found.notes.sort_by(|a, b| (b.round, &b.file).cmp(&(a.round, &a.file)));
        found
    }

    /// Writes a note in one step, surviving a crash or power cut at any moment. Mode 0600: it tells of conversations.
    pub(super) async fn write(&self, note: &Note) -> io::Result<()> {
        let dir = self.dir.clone();
        let name = format!("{}{SUFFIX}", note.file);
        let text = serde_json::to_vec_pretty(note)?;
        blocking(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let unfinished = dir.join(UNFINISHED);
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(unfinished, dir.join(name))?;
            File::open(dir)?.sync_all()
        })
        .await
    }

    /// Forgets a note.
    pub(super) async fn remove(&self, note: &Note) -> io::Result<()> {
        let dir = self.dir.clone();
        let name = format!("{}{SUFFIX}", note.file);
        blocking(move || {
            fs::remove_file(dir.join(name))?;
            File::open(dir)?.sync_all()
        })
        .await
    }

    /// The slot files that any backend of any server has a note of, readable or not. An error means that nobody knows.
    pub(super) fn noted_anywhere(&self) -> io::Result<Vec<String>> {
        let mut noted = Vec::new();
        let Some(all) = self.dir.parent().and_then(Path::parent) else {
            return Ok(noted);
        };
        for server in folders(all)? {
            for backend in folders(&server)? {
                noted.extend(names(&backend)?.into_iter().filter_map(|n| n.strip_suffix(SUFFIX).map(str::to_owned)));
            }
        }
        Ok(noted)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A name as one component of a path.
fn component(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let safe: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if safe.trim_matches('.').is_empty() { "_".into() } else { safe }
}

fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in none_if_missing(fs::read_dir(dir))?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The names of notes in a folder.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in none_if_missing(fs::read_dir(dir))?.into_iter().flatten() {
        if let Ok(name) = entry?.file_name().into_string()
            && name.ends_with(SUFFIX)
        {
            found.push(name);
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, name: &str) -> Result<Note, String> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_NOTE_BYTES + 1).read_to_end(&mut text))
        .map_err(|e| e.to_string())?;
    if text.len() as u64 > MOST_NOTE_BYTES {
        return Err(format!("longer than {MOST_NOTE_BYTES} bytes"));
    }
    let note: Note = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if name.strip_suffix(SUFFIX) != Some(note.file.as_str()) || FileName::new(&note.file).is_none() {
        return Err(format!("it is about another file: {:?}", note.file));
    }
    Ok(note)
}
