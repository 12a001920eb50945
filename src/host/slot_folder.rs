//! The slot folder of one backend, over SSH.

use std::sync::Arc;

use super::{
    remote::{self, FileQuestion, RemotePath, plain_text},
    slot_files::{FileName, FileStat, ListedFile, MOST_HEAD, MOST_LISTED, SlotFiles, SlotFilesError},
    ssh::{Reply, Ssh},
};

/// [`SlotFiles`] on the server.
#[derive(Clone, Debug)]
pub struct SlotFolder {
    ssh: Arc<Ssh>,
    folder: RemotePath,
}

impl SlotFolder {
    /// The folder at the target of `ssh`.
    #[must_use]
    pub const fn new(ssh: Arc<Ssh>, folder: RemotePath) -> Self {
        Self { ssh, folder }
    }

    /// Asks; an exit status other than 0 is the server's no.
    async fn ask(&self, question: FileQuestion<'_>) -> Result<String, SlotFilesError> {
        let line = remote::files(question);
        let within = self.ssh.command_timeout();
        let changes = matches!(question, FileQuestion::Remove(_) | FileQuestion::Rename(..));
        let answer = if changes { self.ssh.run(&line, within).await } else { self.ssh.ask(&line, within).await };
        let Reply { status, stdout, stderr } =
            answer.map_err(|trouble| SlotFilesError::Unreachable(trouble.to_string()))?;
        // A pipe hides the exit status of its first command, but not its complaint.
        if status == 0 && (stderr.trim().is_empty() || !stdout.trim().is_empty()) {
            return Ok(stdout);
        }
        let text = plain_text(&stderr, 200);
        Err(SlotFilesError::Refused(if text.is_empty() { format!("exit status {status}") } else { text }))
    }

    async fn stat_at(&self, path: &RemotePath) -> Result<Option<FileStat>, SlotFilesError> {
        match self.ask(FileQuestion::Stat(path)).await {
            Ok(line) => parse_stat(line.trim()).map(|(stat, _)| Some(stat)).ok_or_else(|| garbled(&line)),
            Err(SlotFilesError::Refused(why)) if why.contains("No such file") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn garbled(text: &str) -> SlotFilesError {
    SlotFilesError::Garbled(plain_text(text, 100))
}

/// `BYTES MTIME`, and what follows.
fn parse_stat(line: &str) -> Option<(FileStat, &str)> {
    let mut words = line.splitn(3, ' ');
    let stat = FileStat { bytes: words.next()?.parse().ok()?, mtime: words.next()?.parse().ok()? };
    Some((stat, words.next().unwrap_or_default()))
}

/// The list ends with a mark: half a list would look like missing files.
fn parse_list(text: &str) -> Result<Vec<ListedFile>, SlotFilesError> {
    let Some((lines, _)) = text.rsplit_once("@@end") else {
        return Err(garbled("the list is cut off"));
    };
    let file = |line: &str| {
        let (stat, name) = parse_stat(line)?;
        Some(ListedFile { name: FileName::new(name)?, stat })
    };
    Ok(lines.lines().filter_map(file).take(MOST_LISTED).collect())
}

/// `od -An -v -tx1`.
fn parse_hex(text: &str) -> Option<Vec<u8>> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

/// `df -Pk`: the fourth column of the second line, KiB.
fn parse_free(text: &str) -> Option<u64> {
    let free = text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()?;
    free.checked_mul(1024)
}

impl SlotFiles for SlotFolder {
    async fn stat(&self, name: &FileName) -> Result<Option<FileStat>, SlotFilesError> {
        self.stat_at(&self.folder.join(name)).await
    }

    async fn list(&self) -> Result<Vec<ListedFile>, SlotFilesError> {
        parse_list(&self.ask(FileQuestion::List(&self.folder)).await?)
    }

    async fn head(&self, name: &FileName, bytes: usize) -> Result<Vec<u8>, SlotFilesError> {
        let path = self.folder.join(name);
        let text = self.ask(FileQuestion::Head(&path, bytes.min(MOST_HEAD))).await?;
        parse_hex(&text).ok_or_else(|| garbled(&text))
    }

    async fn remove(&self, name: &FileName) -> Result<(), SlotFilesError> {
        self.ask(FileQuestion::Remove(&self.folder.join(name))).await.map(drop)
    }

    async fn rename(&self, from: &FileName, to: &FileName) -> Result<(), SlotFilesError> {
        let (from, to) = (self.folder.join(from), self.folder.join(to));
        self.ask(FileQuestion::Rename(&from, &to)).await.map(drop)
    }

    async fn free_bytes(&self) -> Result<u64, SlotFilesError> {
        let text = self.ask(FileQuestion::Free(&self.folder)).await?;
        parse_free(&text).ok_or_else(|| garbled(&text))
    }

    async fn stat_path(&self, path: &str) -> Result<Option<FileStat>, SlotFilesError> {
        match RemotePath::new(path) {
            Some(path) => self.stat_at(&path).await,
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_about_files_are_read_and_half_answers_refused() {
        let stat = FileStat { bytes: 25_004, mtime: 1_795_471_474 };
        assert_eq!(parse_stat("25004 1795471474"), Some((stat, "")));
        assert_eq!(parse_stat("stat: odd"), None);
        let list = "25004 1795471474 localbot-1.bin\n1 2 .hidden\n3 4 with space\n@@end\n";
        let listed = parse_list(list).expect("a whole list");
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].name.as_str(), listed[0].stat), ("localbot-1.bin", stat));
        assert!(parse_list("25004 1795471474 localbot\n").is_err());
        assert_eq!(parse_hex(" 67 67 73 71\n 02 00\n"), Some(vec![0x67, 0x67, 0x73, 0x71, 2, 0]));
        assert_eq!(parse_hex("od: what"), None);
        let df = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/sda1        102400000 81920000  20480000      80% /mnt\n";
        assert_eq!(parse_free(df), Some(20_480_000 * 1024));
        assert_eq!(parse_free(""), None);
    }
}
