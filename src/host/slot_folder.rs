//! The slot folder of one backend, over SSH.

use std::{sync::Arc, time::Duration};

use super::{
    launch_flags::LaunchFlags,
    remote::{self, FileQuestion, RemotePath, UnitName, plain_text},
    slot_files::{
        FileName, FileStat, Found, HEAD_BYTES, Listed, MOST_LISTED, MOST_SURVEYED, MOST_WORDS, SlotFiles,
        SlotFilesError, Survey, Surveyed,
    },
    ssh::{Reply, Ssh},
};

/// A digest that takes too long is given up on the server; word of that comes within so much more.
const DIGEST_SLACK: Duration = Duration::from_secs(5);

/// So many words are read in one exchange: printed, they take nine bytes each and a little more, and the output has a bound.
const WORDS_AT_A_TIME: usize = 6 * 1024;

/// [`SlotFiles`] on the server.
#[derive(Clone, Debug)]
pub struct SlotFolder {
    ssh: Arc<Ssh>,
    folder: RemotePath,
    unit: UnitName,
}

impl SlotFolder {
    /// The folder at the target of `ssh`, into which `unit` saves its slots.
    #[must_use]
    pub const fn new(ssh: Arc<Ssh>, folder: RemotePath, unit: UnitName) -> Self {
        Self { ssh, folder, unit }
    }

    /// Asks; an exit status other than 0 is the server's no.
    async fn ask(&self, question: FileQuestion<'_>) -> Result<String, SlotFilesError> {
        self.ask_within(question, self.ssh.command_timeout()).await
    }

    async fn ask_within(&self, question: FileQuestion<'_>, within: Duration) -> Result<String, SlotFilesError> {
        let line = remote::files(&self.folder, question);
        let changes = matches!(question, FileQuestion::Remove(_) | FileQuestion::Keep(..));
        let answer = if changes { self.ssh.run(&line, within).await } else { self.ssh.ask(&line, within).await };
        let Reply { status, stdout, stderr, .. } =
            answer.map_err(|trouble| SlotFilesError::Unreachable(trouble.to_string()))?;
        if status == 0 {
            return Ok(stdout);
        }
        let text = plain_text(without_shell(&stderr), 200);
        Err(SlotFilesError::Refused(if text.is_empty() { format!("exit status {status}") } else { text }))
    }
}

/// A complaint without what the shell puts before it: `wechsler: 2: `, `wechsler: line 2: `. No line of a script of ours means
/// anything to people.
fn without_shell(stderr: &str) -> &str {
    let after = |text: &'_ str| -> Option<usize> {
        let rest = text.split_once(": ")?.1;
        let (line, rest) = rest.split_once(": ")?;
        let number = line.strip_prefix("line ").unwrap_or(line);
        (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then(|| text.len() - rest.len())
    };
    after(stderr).map_or(stderr, |from| &stderr[from..])
}

fn garbled(text: &str) -> SlotFilesError {
    SlotFilesError::Garbled(plain_text(text, 100))
}

/// The parts of an answer. It ends with a mark: half of one would look like missing files.
fn whole(answer: &str) -> Result<Vec<(&str, &str)>, SlotFilesError> {
    let parts = remote::parts(answer);
    match parts.last() {
        Some(("end", _)) => Ok(parts),
        _ => Err(garbled(&format!("the answer is cut off: {answer}"))),
    }
}

/// `BYTES MTIME`.
fn parse_stat(line: &str) -> Option<FileStat> {
    let (bytes, mtime) = line.trim().split_once(' ')?;
    Some(FileStat { bytes: bytes.parse().ok()?, mtime: mtime.parse().ok()? })
}

/// The bytes that `od -An -v -tx1` has printed.
fn bytes_of(text: &str) -> impl Iterator<Item = Option<u8>> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).ok())
}

/// What `stat` said of a file, and in the lines after it `od -An -v -tx1`.
fn parse_found(part: &str) -> Result<Option<Found>, SlotFilesError> {
    let (first, rest) = part.split_once('\n').unwrap_or((part, ""));
    let Some(stat) = parse_stat(first) else {
        return if first.contains("No such file") {
            Ok(None)
        } else {
            Err(SlotFilesError::Refused(plain_text(part, 200)))
        };
    };
    let head: Option<Vec<u8>> = bytes_of(rest).take(HEAD_BYTES).collect();
    // What is no bytes is a complaint.
    let head = head.ok_or_else(|| SlotFilesError::Refused(plain_text(rest, 200)))?;
    Ok(Some(Found { stat, head }))
}

/// What the server says of the files, `asked` of them, and beside them.
///
/// # Errors
/// Of an answer that is not whole.
pub fn parse_survey(answer: &str, asked: usize) -> Result<Surveyed, SlotFilesError> {
    let parts = whole(answer)?;
    let part = |name: &str| parts.iter().find(|(mark, _)| *mark == name).map_or("", |p| p.1);
    let files: Vec<_> = parts.iter().filter(|(mark, _)| *mark == "file").map(|(_, part)| parse_found(part)).collect();
    if files.len() != asked {
        return Err(garbled(answer));
    }
    let processes = parts.iter().filter(|(mark, _)| *mark == "process");
    let mut flags = processes.filter_map(|(_, line)| {
        let line: Option<Vec<u8>> = bytes_of(line).collect();
        LaunchFlags::of_command_line(&line?)
    });
    // Others that are called so only start it.
    let flags = flags.next_back();
    Ok(Surveyed { free: parse_free(part("free")), model: parse_stat(part("model")), flags, files })
}

/// What the server says of a file that has got its name; `None` if it was not there.
///
/// # Errors
/// Of an answer that is not whole, or a refusal.
pub fn parse_kept(answer: &str) -> Result<Option<Found>, SlotFilesError> {
    match whole(answer)?.iter().find(|(mark, _)| *mark == "file") {
        Some((_, part)) => parse_found(part),
        None => Err(garbled(answer)),
    }
}

/// The words that `od -An -v -tx4` has printed.
fn parse_words(answer: &str) -> Result<Vec<u32>, SlotFilesError> {
    let parts = whole(answer)?;
    let Some((_, words)) = parts.iter().find(|(mark, _)| *mark == "words") else {
        return Err(garbled(answer));
    };
    let words = words.split_whitespace().map(|word| u32::from_str_radix(word, 16));
    words.collect::<Result<_, _>>().map_err(|_| garbled(answer))
}

/// The line of `sha256sum`: the digits, two spaces, the name; `None` if the file is not there.
///
/// # Errors
/// Of an answer that is not whole, or a refusal.
pub fn parse_digest(answer: &str, name: &FileName) -> Result<Option<String>, SlotFilesError> {
    /// Exit status of `timeout` when the time was up.
    const TIME_IS_UP: &str = "status 124";
    let parts = whole(answer)?;
    let Some((_, text)) = parts.iter().find(|(mark, _)| *mark == "digest") else {
        return Err(garbled(answer));
    };
    if parts.iter().any(|(mark, _)| *mark == TIME_IS_UP) {
        return Err(SlotFilesError::Refused(format!("{name} was not read in time")));
    }
    let digest = text.split_whitespace().next().unwrap_or_default();
    if digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(Some(digest.to_owned()))
    } else if text.contains("No such file") {
        Ok(None)
    } else {
        Err(SlotFilesError::Refused(plain_text(text, 200)))
    }
}

/// Names of files in the folder, those that cannot be ours left out.
///
/// # Errors
/// Of a list that is cut off.
pub fn parse_list(answer: &str) -> Result<Listed, SlotFilesError> {
    let Some((lines, _)) = answer.rsplit_once("@@end") else {
        return Err(garbled("the list is cut off"));
    };
    let mode = lines.lines().find_map(|line| line.strip_prefix("@@mode "));
    // The last digit is for those who are neither owner nor of the group. A mode that cannot be read says nothing.
    let open = mode.and_then(|mode| mode.trim().chars().last()).is_some_and(|digit| matches!(digit, '1'..='7'));
    Ok(Listed { names: lines.lines().filter_map(FileName::new).take(MOST_LISTED).collect(), open })
}

/// `df -Pk`: the fourth column of the second line, KiB.
fn parse_free(text: &str) -> Option<u64> {
    let free = text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()?;
    free.checked_mul(1024)
}

impl SlotFiles for SlotFolder {
    async fn survey(&self, what: Survey<'_>) -> Result<Surveyed, SlotFilesError> {
        let model = what.model.and_then(RemotePath::new);
        let files = &what.files[..what.files.len().min(MOST_SURVEYED)];
        let unit = what.flags.then_some(&self.unit);
        let question = FileQuestion::Survey { free: what.free, model: model.as_ref(), unit, files };
        let answer = self.ask(question).await?;
        parse_survey(&answer, files.len())
    }

    async fn keep(
        &self,
        unfinished: &FileName,
        name: &FileName,
        bytes: u64,
        within: Duration,
    ) -> Result<Option<Found>, SlotFilesError> {
        parse_kept(&self.ask_within(FileQuestion::Keep(unfinished, name, bytes), within).await?)
    }

    async fn digest(&self, name: &FileName, within: Duration) -> Result<Option<String>, SlotFilesError> {
        parse_digest(&self.ask_within(FileQuestion::Digest(name, within), within + DIGEST_SLACK).await?, name)
    }

    async fn words(&self, name: &FileName, count: usize) -> Result<Vec<u32>, SlotFilesError> {
        let mut words = vec![];
        while words.len() < count.min(MOST_WORDS) {
            let more = WORDS_AT_A_TIME.min(count.min(MOST_WORDS) - words.len());
            let question = FileQuestion::Words { name, from: words.len(), count: more };
            let read = parse_words(&self.ask(question).await?)?;
            // Half of a word may end a file.
            let is_end = read.len() < more;
            words.extend(read.into_iter().take(more));
            if is_end {
                break;
            }
        }
        Ok(words)
    }

    async fn list(&self, suffix: &str) -> Result<Listed, SlotFilesError> {
        parse_list(&self.ask(FileQuestion::List(suffix)).await?)
    }

    async fn remove(&self, names: &[FileName]) -> Result<(), SlotFilesError> {
        for names in names.chunks(MOST_SURVEYED) {
            self.ask(FileQuestion::Remove(names)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_about_files_are_read_and_half_answers_refused() {
        let stat = FileStat { bytes: 25_004, mtime: 1_795_471_474 };
        let answer = "@@free\nFilesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 102400000 81920000 20480000 80% /mnt\n\
            @@model\n25004 1795471474\n@@process\n 73 68 00\n\
            @@process\n 6c 6c 61 6d 61 00 2d 2d 73 77 61 2d 66 75 6c 6c\n 00\n@@file\n25004 1795471474\n 71 73 67 67\n 02 00\n\
            @@file\nstat: cannot statx 'x': No such file or directory\n@@file\nstat: cannot statx 'x': Permission denied\n@@end\n";
        let found = parse_survey(answer, 3).expect("a whole answer");
        assert_eq!((found.free, found.model), (Some(20_480_000 * 1024), Some(stat)));
        assert_eq!(found.flags, LaunchFlags::of_command_line(b"llama\0--swa-full\0"));
        assert_eq!(found.files[0], Ok(Some(Found { stat, head: vec![0x71, 0x73, 0x67, 0x67, 2, 0] })));
        assert_eq!(found.files[1], Ok(None));
        assert!(matches!(&found.files[2], Err(SlotFilesError::Refused(why)) if why.contains("denied")));
        assert!(parse_survey(answer, 2).is_err());
        assert!(parse_survey(answer.trim_end_matches("@@end\n"), 3).is_err());
    }

    #[test]
    fn of_several_processes_that_are_called_like_the_server_the_last_one_is_it() {
        let process = |line: &str| {
            let words = line.split(' ').flat_map(|word| [word, "\0"]).collect::<String>();
            let bytes: Vec<String> = words.bytes().map(|byte| format!("{byte:02x}")).collect();
            format!("@@process\n{}\n", bytes.join(" "))
        };
        let wrapped = ["/bin/sh /opt/llama/llama-run.sh", "/opt/llama/llama-server --swa-full", "logger"].map(process);
        let found = parse_survey(&format!("{}@@end\n", wrapped.concat()), 0).expect("a whole answer");
        assert_eq!(found.flags, LaunchFlags::of_command_line(b"llama-server\0--swa-full\0"));
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let found = parse_survey("@@free\ndf: no\n@@model\nstat: no\n@@end\n", 0).expect("a whole answer");
        assert_eq!(found, Surveyed::default());
        let unreadable = "@@file\n7 1\nod: x: Permission denied\n@@end\n";
        assert!(matches!(parse_kept(unreadable), Err(SlotFilesError::Refused(why)) if why.contains("denied")));
        assert!(parse_kept("@@end\n").is_err());
        assert!(parse_kept("").is_err());
    }

    #[test]
    fn a_complaint_is_told_without_the_line_of_the_script() {
        let told = "cd: can't cd to /mnt/x";
        for shell in ["wechsler: 2: ", "wechsler: line 2: ", ""] {
            assert_eq!(without_shell(&format!("{shell}{told}")), told);
        }
    }

    #[test]
    fn only_names_that_could_be_ours_are_listed() {
        let listed = parse_list("@@mode 2770\nlocalbot-1.part\n.hidden.part\nwith space.part\n@@end\n");
        let listed = listed.expect("a whole list");
        assert_eq!(listed.names.iter().map(FileName::as_str).collect::<Vec<_>>(), ["localbot-1.part"]);
        assert!(parse_list("@@mode 2770\nlocalbot.part\n").is_err());
    }

    #[test]
    fn words_are_read_and_half_an_answer_refused() {
        assert_eq!(parse_words("@@words\n 67677371 00000004\n ffffffff\n@@end\n"), Ok(vec![0x6767_7371, 4, u32::MAX]));
        assert_eq!(parse_words("@@words\n@@end\n"), Ok(vec![]));
        assert!(parse_words("@@words\n 67677371 0000").is_err());
        assert!(parse_words("@@words\n od: no\n@@end\n").is_err());
    }

    #[test]
    fn a_folder_that_others_may_look_into_is_open() {
        for (mode, open) in [("755", true), ("2771", true), ("2770", false), ("700", false), ("", false)] {
            let listed = parse_list(&format!("@@mode {mode}\n@@end\n")).expect("a whole list");
            assert_eq!(listed.open, open, "{mode}");
        }
    }

    #[test]
    fn a_digest_is_read_and_what_is_none_is_told() {
        let name = FileName::new("a.slot").expect("a name");
        let told = |text: &str| parse_digest(&format!("@@digest\n{text}\n@@end\n"), &name);
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(told(&format!("{digest}  a.slot\n@@status 0")), Ok(Some(digest.into())));
        assert_eq!(told("sha256sum: a.slot: No such file or directory\n@@status 1"), Ok(None));
        for (text, why) in [
            ("sha256sum: a.slot: Permission denied\n@@status 1", "Permission denied"),
            ("timeout: failed to run command 'sha256sum': No such program\n@@status 127", "failed to run"),
            ("@@status 124", "a.slot was not read in time"),
        ] {
            assert!(matches!(told(text), Err(SlotFilesError::Refused(told)) if told.contains(why)), "{text}");
        }
        assert!(matches!(parse_digest(&format!("@@digest\n{digest}"), &name), Err(SlotFilesError::Garbled(_))));
    }
}
