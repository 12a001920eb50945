//! The slot folder on the server, as the slot store needs it: a seam, so that the store is tested without SSH.
//!
//! llama-server writes and reads these files itself; the daemon only looks at them and clears away. All of it happens by
//! short commands over the kept SSH session, each with its deadline and bounded output.

use std::{fmt, future::Future};

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

/// A file of the slot folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name. Files whose name breaks the rule of [`FileName`] are none of ours and are not listed.
    pub name: FileName,
    /// Its size and age.
    pub stat: FileStat,
}

/// Why the folder could not be looked at or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotFilesError {
    /// No answer: SSH is down or the deadline passed. For [`SlotFiles::remove`] and [`SlotFiles::rename`]: it may have happened.
    #[error("no answer from the server: {0}")]
    Unreachable(String),
    /// The server's answer is no: permission, missing folder, full disk. Its own words.
    #[error("the server says: {0}")]
    Refused(String),
    /// An answer that cannot be read.
    #[error("cannot read the server's answer: {0}")]
    Garbled(String),
}

/// What the slot store may do in the slot folder of one backend. Every call ends by itself within the command timeout.
pub trait SlotFiles: Send + Sync {
    /// Size and age of a file; `None` if there is none of that name.
    fn stat(&self, name: &FileName) -> impl Future<Output = Result<Option<FileStat>, SlotFilesError>> + Send;

    /// The files of the folder, at most [`MOST_LISTED`], in no order.
    fn list(&self) -> impl Future<Output = Result<Vec<ListedFile>, SlotFilesError>> + Send;

    /// The first bytes of a file, at most [`MOST_HEAD`]; fewer if it is shorter.
    fn head(&self, name: &FileName, bytes: usize) -> impl Future<Output = Result<Vec<u8>, SlotFilesError>> + Send;

    /// Removes a file; a file that is not there is removed already.
    fn remove(&self, name: &FileName) -> impl Future<Output = Result<(), SlotFilesError>> + Send;

    /// Renames a file within the folder, replacing `to` (atomic).
    fn rename(&self, from: &FileName, to: &FileName) -> impl Future<Output = Result<(), SlotFilesError>> + Send;

    /// Free bytes on the folder's file system, for an ordinary user.
    fn free_bytes(&self) -> impl Future<Output = Result<u64, SlotFilesError>> + Send;

    /// Size and age of any file on the server by its absolute path (the model a slot belongs to); `None` if there is none,
    /// or the path is none that is safe to ask for.
    fn stat_path(&self, path: &str) -> impl Future<Output = Result<Option<FileStat>, SlotFilesError>> + Send;
}

/// Most files [`SlotFiles::list`] tells of.
pub const MOST_LISTED: usize = 512;
/// Most bytes [`SlotFiles::head`] reads.
pub const MOST_HEAD: usize = 64;

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
