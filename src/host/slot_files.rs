//! The slot folder, as the slot store needs it: a seam, so that the store is tested without SSH.
//!
//! llama-server writes and reads these files itself; the daemon only looks at them and clears away: by short commands over
//! the kept SSH session, or where the share they lie on is mounted on this machine. Everything has its deadline and its bound.

use std::{fmt, future::Future, time::Duration};

use super::launch_flags::LaunchFlags;

/// The name of a file in the slot folder: letters, digits and `._-`, not beginning with a dot or a dash, at most
/// [`FileName::MOST`] bytes. So it can be neither a path, nor an option, nor anything a shell would notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

impl FileName {
    /// Longest name, bytes: leaves room for a suffix below the 255 of common file systems.
    pub const MOST: usize = 200;

    /// Takes a name that keeps to the rule; `None` for any other.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        (!name.is_empty() && name.len() <= Self::MOST && !name.starts_with(['.', '-']) && name.bytes().all(plain))
            .then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a file on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Size in bytes.
    pub bytes: u64,
    /// Last change, seconds since the Unix epoch by the server's clock.
    pub mtime: u64,
}

/// A file of the slot folder, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its size and age.
    pub stat: FileStat,
    /// Its first bytes, [`HEAD_BYTES`] unless it is shorter.
    pub head: Vec<u8>,
}

/// What is to be found out in one exchange.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survey<'a> {
    /// Free space.
    pub free: bool,
    /// Any file on the server by its absolute path: the model a slot belongs to.
    pub model: Option<&'a str>,
    /// What the backend's unit was started with.
    pub flags: bool,
    /// Files of the folder, at most [`MOST_SURVEYED`].
    pub files: &'a [FileName],
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Free bytes on the folder's file system, for an ordinary user; `None` if not asked, or nobody could tell.
    pub free: Option<u64>,
    /// The model's file; `None` if there is none, nobody could tell, or its path is none that is safe to ask for.
    pub model: Option<FileStat>,
    /// What the backend's unit was started with; `None` if not asked, or nobody could tell.
    pub flags: Option<LaunchFlags>,
    /// One for each file asked for, in that order. `None`: there is none of that name.
    pub files: Vec<Result<Option<Found>, SlotFilesError>>,
}

/// Why the folder could not be looked at or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotFilesError {
    /// No answer: SSH is down, the share hangs, or the deadline passed. For [`SlotFiles::keep`] and [`SlotFiles::remove`]: it may have happened.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// The answer is no: permission, missing folder, full disk. In the server's own words.
    #[error("refused: {0}")]
    Refused(String),
    /// An answer that cannot be read.
    #[error("cannot read the server's answer: {0}")]
    Garbled(String),
}

/// What [`SlotFiles::list`] tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The names of the files, in no order.
    pub names: Vec<FileName>,
    /// Others than the folder's owner and group may look into it, or more.
    pub open: bool,
}

/// What the slot store may do in the slot folder of one backend. Every call is one exchange and ends by itself within the
/// command timeout, or within the time it is given.
pub trait SlotFiles: Send + Sync {
    /// Looks at everything that a save or restore must know beforehand.
    fn survey(&self, what: Survey<'_>) -> impl Future<Output = Result<Surveyed, SlotFilesError>> + Send;

    /// Looks at a file that was just written; if it has `bytes` bytes and begins as a slot file does, it is flushed to the disk
    /// and gets its final name, so that it outlasts a power cut from then on. Flushing some GB takes seconds, at most `within`.
    /// Tells what was found either way; `None` if there is no such file. `name` must never have been used before.
    fn keep(
        &self,
        unfinished: &FileName,
        name: &FileName,
        bytes: u64,
        within: Duration,
    ) -> impl Future<Output = Result<Option<Found>, SlotFilesError>> + Send;

    /// The SHA-256 of a file in lower-case hexadecimal digits, which takes reading it whole; `None` if there is no such file.
    fn digest(
        &self,
        name: &FileName,
        within: Duration,
    ) -> impl Future<Output = Result<Option<String>, SlotFilesError>> + Send;

    /// The first words of a file (little-endian, four bytes each), as many as asked for and at most [`MOST_WORDS`], or as there
    /// are. Over SSH several exchanges.
    fn words(&self, name: &FileName, count: usize) -> impl Future<Output = Result<Vec<u32>, SlotFilesError>> + Send;

    /// The names of the files that end in `suffix`, at most [`MOST_LISTED`]. Files whose name breaks the rule of [`FileName`]
    /// are none of ours and are not listed.
    fn list(&self, suffix: &str) -> impl Future<Output = Result<Listed, SlotFilesError>> + Send;

    /// Removes files; one that is not there is removed already.
    fn remove(&self, names: &[FileName]) -> impl Future<Output = Result<(), SlotFilesError>> + Send;
}

/// Most files [`SlotFiles::list`] tells of.
pub const MOST_LISTED: usize = 512;
/// Most files that are looked at or removed in one exchange.
pub const MOST_SURVEYED: usize = 64;
/// Most words of a file that are read: 1 MiB.
pub const MOST_WORDS: usize = 256 * 1024;
/// So many bytes of a file are looked at.
pub const HEAD_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use super::FileName;

    #[test]
    fn a_file_name_is_neither_a_path_nor_an_option_nor_hidden() {
        for good in ["localbot", "localbot-1.bin", "a_b.2026-11-23T22.10.bin"] {
            assert!(FileName::new(good).is_some(), "{good}");
        }
        let long = "x".repeat(FileName::MOST + 1);
        for bad in ["", ".", "..", "a/b", "/a", "-rf", ".hidden", "a b", "a\n", "$(x)", "ä", &long] {
            assert!(FileName::new(bad).is_none(), "{bad:?}");
        }
    }
}
