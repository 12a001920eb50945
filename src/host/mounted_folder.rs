//! The slot folder of one backend where the share it lies on is mounted on this machine, too.
//!
//! A share that hangs holds whoever touches it, without limit. So all work on it is done beside the daemon's one thread, one
//! piece at a time, and waited for no longer than a command over SSH would be: a hung share costs one thread, one more where
//! a whole file is being read, and what waits for it hears of a deadline. Work that nobody waits for any more ends at its next step; a
//! step that hangs may still be done when the share comes back.
//!
//! What the server has written it must have flushed itself: on a share, flushing here commits only what was written here. A
//! share that is exported from another machine than the server, or mounted there with `sync`, has it on its disk by then (NFS
//! flushes when a file is closed); the server's own disk, exported, writes it when it likes.
//!
//! The folder may be open to others: no symbolic link is followed, and nothing but regular files is opened.

#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use nix::{errno::Errno, fcntl::OFlag, sys::statvfs::statvfs};
use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::{
    slot_files::{
        FileName, FileStat, Found, HEAD_BYTES, Listed, MOST_LISTED, MOST_SURVEYED, MOST_WORDS, SlotFiles,
        SlotFilesError, Survey, Surveyed,
    },
    slot_folder::SlotFolder,
};

/// What another machine wrote shows here a little later: NFS may have looked before, and remembers for a while that there
/// was nothing.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The first bytes of a slot file.
const MAGIC: &[u8] = b"qsgg";
/// So much of a whole file is read before it is asked whether anybody still waits.
const PIECE: usize = 1024 * 1024;
/// Others than owner and group.
const OTHERS: u32 = 0o007;

/// [`SlotFiles`] on this machine.
#[derive(Clone, Debug)]
pub struct MountedFolder {
    dir: PathBuf,
    /// Knows what lies on no share.
    server: SlotFolder,
    within: Duration,
    /// Goes with the work, so that a share that hangs holds one thread and no more.
    turn: Arc<Semaphore>,
    /// The same for reading whole files: it takes minutes, in which saves and restores go on.
    whole: Arc<Semaphore>,
}

/// Whether somebody still waits for a piece of work.
#[derive(Clone, Debug, Default)]
struct Wanted(Arc<AtomicBool>);

/// Dropped with the future that waits.
struct Waiting(Wanted);

impl Wanted {
    /// # Errors
    /// When nobody waits any more.
    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl MountedFolder {
    /// The folder of `server`, mounted at `dir`. Each call ends within `within`.
    #[must_use]
    pub fn new(dir: PathBuf, server: SlotFolder, within: Duration) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { dir, server, within, turn: one(), whole: one() }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.within
    }

    /// Does a piece of work on the share when it is its turn.
    async fn work<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&Path, &Wanted) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SlotFilesError> {
        self.work_in_turn(&self.turn, deadline, work).await
    }

    async fn work_in_turn<T: Send + 'static>(
        &self,
        turn: &Arc<Semaphore>,
        deadline: Instant,
        work: impl FnOnce(&Path, &Wanted) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SlotFilesError> {
        let waiting = Waiting(Wanted::default());
        let (dir, wanted, turn) = (self.dir.clone(), waiting.0.clone(), Arc::clone(turn));
        let done = async move {
            let turn = turn.acquire_owned().await.map_err(io::Error::other)?;
            let work = move || {
                let _turn = turn;
                wanted.check()?;
                work(&dir, &wanted)
            };
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        };
        let done = timeout_at(deadline, done).await.map_err(|_| {
            let dir = self.dir.display();
            SlotFilesError::Unreachable(format!("the share at {dir} has not answered in time"))
        })?;
        done.map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &io::Error) -> SlotFilesError {
        SlotFilesError::Refused(format!("{}: {}", self.dir.display(), words(error)))
    }
}

/// What went wrong, for people.
fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "there is no such folder here; is the share mounted?".into(),
        Some(Errno::ESTALE) => "the share is gone from its server, or another lies there now; mount it anew".into(),
        Some(Errno::ELOOP) => "a symbolic link lies there, which is not followed".into(),
        _ => error.to_string(),
    }
}

/// Opens a regular file; `None` if there is none of that name in a folder that is there.
fn open(dir: &Path, name: &FileName) -> io::Result<Option<File>> {
    // Without O_NONBLOCK the opening of a FIFO would wait for its other end.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(dir.join(name.as_str())) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::metadata(dir)?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if file.metadata()?.is_file() { Ok(Some(file)) } else { Err(io::Error::other("it is no regular file")) }
}

/// Size, age and first bytes of a file.
fn look(file: &File) -> io::Result<Found> {
    let about = file.metadata()?;
    let mtime = about.modified()?.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(Found { stat: FileStat { bytes: about.len(), mtime }, head })
}

/// Looks at a file, and gives it its final name if it is what it should be.
fn keep(dir: &Path, wanted: &Wanted, unfinished: &FileName, name: &FileName, bytes: u64) -> io::Result<Option<Found>> {
    let Some(file) = open(dir, unfinished)? else { return Ok(None) };
    let found = look(&file)?;
    if found.stat.bytes != bytes || !found.head.starts_with(MAGIC) {
        return Ok(Some(found));
    }
    file.sync_all()?;
    let target = dir.join(name.as_str());
    // A hard link would make sure of it in one step, but the kernel refuses those to files of other users, and the server
    // writes as another one. The name was never used before.
    if fs::symlink_metadata(&target).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // Whoever gave this up takes the file for unfinished, and has it swept.
    wanted.check()?;
    fs::rename(dir.join(unfinished.as_str()), target)?;
    match File::open(dir)?.sync_all() {
        // Not every kind of share can.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
        synced => synced?,
    }
    Ok(Some(found))
}

/// SHA-256 of a whole file, in hexadecimal digits.
fn digest(dir: &Path, wanted: &Wanted, name: &FileName) -> io::Result<Option<String>> {
    let Some(mut file) = open(dir, name)? else { return Ok(None) };
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        wanted.check()?;
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => hasher.update(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let hex = hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok(Some(hex))
}

fn list(dir: &Path, wanted: &Wanted, suffix: &str) -> io::Result<Listed> {
    let open = fs::metadata(dir)?.permissions().mode() & OTHERS != 0;
    let mut names = vec![];
    for entry in fs::read_dir(dir)? {
        wanted.check()?;
        let entry = entry?;
        let name = entry.file_name().into_string().ok().filter(|name| name.ends_with(suffix));
        let Some(name) = name.as_deref().and_then(FileName::new) else { continue };
        if entry.file_type()?.is_file() {
            names.push(name);
        }
        if names.len() == MOST_LISTED {
            break;
        }
    }
    Ok(Listed { names, open })
}

fn remove(dir: &Path, wanted: &Wanted, names: &[FileName]) -> io::Result<()> {
    fs::metadata(dir)?;
    for name in names {
        wanted.check()?;
        match fs::remove_file(dir.join(name.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl SlotFiles for MountedFolder {
    async fn survey(&self, what: Survey<'_>) -> Result<Surveyed, SlotFilesError> {
        let names = what.files[..what.files.len().min(MOST_SURVEYED)].to_vec();
        let ask_free = what.free;
        let here = self.work(self.deadline(), move |dir, wanted| {
            let free = if ask_free { statvfs(dir).ok() } else { None };
            let free = free.map(|about| about.blocks_available().saturating_mul(about.fragment_size()));
            let mut files = vec![];
            for name in names {
                wanted.check()?;
                files.push(open(dir, &name).and_then(|file| file.as_ref().map(look).transpose()));
            }
            Ok((free, files))
        });
        let elsewhere = async {
            if what.model.is_none() && !what.flags {
                return Ok(Surveyed::default());
            }
            self.server.survey(Survey { free: false, files: &[], ..what }).await
        };
        let (here, elsewhere) = tokio::join!(here, elsewhere);
        let (free, files) = here?;
        let files = files.into_iter().map(|file| file.map_err(|error| self.refused(&error))).collect();
        Ok(Surveyed { free, files, ..elsewhere? })
    }

    async fn keep(
        &self,
        unfinished: &FileName,
        name: &FileName,
        bytes: u64,
        within: Duration,
    ) -> Result<Option<Found>, SlotFilesError> {
        let deadline = Instant::now() + within;
        let until = deadline.min(Instant::now() + VISIBLE_WITHIN);
        loop {
            let (old, new) = (unfinished.clone(), name.clone());
            let kept = self.work(deadline, move |dir, wanted| keep(dir, wanted, &old, &new, bytes)).await?;
            let is_all_here = kept.as_ref().is_some_and(|found| found.stat.bytes == bytes);
            if is_all_here || Instant::now() >= until {
                return Ok(kept);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn digest(&self, name: &FileName, within: Duration) -> Result<Option<String>, SlotFilesError> {
        let name = name.clone();
        let read = move |dir: &Path, wanted: &Wanted| digest(dir, wanted, &name);
        self.work_in_turn(&self.whole, Instant::now() + within, read).await
    }

    async fn words(&self, name: &FileName, count: usize) -> Result<Vec<u32>, SlotFilesError> {
        let (name, most) = (name.clone(), 4 * count.min(MOST_WORDS) as u64);
        let read = move |dir: &Path, _: &Wanted| {
            let file = open(dir, &name)?.ok_or_else(|| io::Error::other(format!("{name} is gone")))?;
            let mut bytes = vec![];
            file.take(most).read_to_end(&mut bytes)?;
            Ok(bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
        };
        self.work(self.deadline(), read).await
    }

    async fn list(&self, suffix: &str) -> Result<Listed, SlotFilesError> {
        let suffix = suffix.to_owned();
        self.work(self.deadline(), move |dir, wanted| list(dir, wanted, &suffix)).await
    }

    async fn remove(&self, names: &[FileName]) -> Result<(), SlotFilesError> {
        let names = names.to_vec();
        self.work(self.deadline(), move |dir, wanted| remove(dir, wanted, &names)).await
    }
}
