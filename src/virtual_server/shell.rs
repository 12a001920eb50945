//! What the server's shell understands: exactly the command lines of [`crate::host::remote`], and nothing else.
//!
//! A line is taken apart into words, and every command that might have been meant is written anew by `remote` itself: it
//! is understood only if that gives the same line again, byte for byte.

use std::time::Duration;

use crate::host::{
    remote::{self, CommandLine, FileQuestion, Interface, RemotePath, RemoteVerb, UnitName},
    slot_files::FileName,
};

/// A command line that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Start(String),
    Stop(String),
    Kill(String),
    ResetFailed(String),
    PowerOff,
    Units(Vec<String>),
    UnitsDown(Vec<String>),
    PostMortem(String, u16),
    People,
    /// With the limit of one call.
    Gpu(Duration),
    /// With the interface, if one was named.
    WakeOn(Option<String>),
    /// What is asked of, or done with, the files of that folder.
    Files(String, Files),
}

/// What is asked of, or done with, the files of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Files {
    Survey {
        free: bool,
        model: Option<String>,
        unit: Option<String>,
        names: Vec<String>,
    },
    Keep {
        from: String,
        to: String,
        bytes: u64,
    },
    /// With the limit for reading it.
    Digest {
        name: String,
        within: Duration,
    },
    /// In bytes.
    Words {
        name: String,
        from: usize,
        count: usize,
    },
    List {
        suffix: String,
    },
    Remove(Vec<String>),
}

impl Command {
    /// It changes something.
    pub(super) const fn is_verb(&self) -> bool {
        matches!(
            self,
            Self::Start(_)
                | Self::Stop(_)
                | Self::Kill(_)
                | Self::ResetFailed(_)
                | Self::PowerOff
                | Self::Files(_, Files::Keep { .. } | Files::Remove(_))
        )
    }
}

/// Understands a line, if it is one of ours.
pub(super) fn understand(line: &str) -> Option<Command> {
    let words = words(line)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["env", "LC_ALL=C", ref rest @ ..] => verb(line, rest),
        ["exec", "sh", "-c", _, "wechsler", ref parameters @ ..] => {
            question(parameters, |asked| asked.as_str() == line)
        }
        _ => None,
    }
}

/// Understands what a shell was fed with, if it is one of our questions.
pub(super) fn understand_fed(text: &str) -> Option<Command> {
    let words = words(text.lines().nth(1)?.strip_prefix("set --")?)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    question(&words, |asked| asked.fed() == Some(text))
}

fn verb(line: &str, words: &[&str]) -> Option<Command> {
    let privilege: Vec<String> = match words {
        ["systemctl", ..] => vec![],
        ["sudo", "-n", ..] => vec!["sudo".into(), "-n".into()],
        _ => return None,
    };
    let unit = words.last().and_then(|word| UnitName::new(word))?;
    let name = unit.to_string();
    let meant = [
        (RemoteVerb::Start(&unit), Command::Start(name.clone())),
        (RemoteVerb::Stop(&unit), Command::Stop(name.clone())),
        (RemoteVerb::Kill(&unit), Command::Kill(name.clone())),
        (RemoteVerb::ResetFailed(&unit), Command::ResetFailed(name)),
        (RemoteVerb::PowerOff, Command::PowerOff),
    ];
    let mut meant = meant.into_iter();
    meant.find_map(|(verb, command)| (remote::verb(&privilege, verb).as_str() == line).then_some(command))
}

fn question(parameters: &[&str], is_it: impl Fn(&CommandLine) -> bool) -> Option<Command> {
    let mut meant: Vec<(CommandLine, Command)> = vec![];
    if let Some(units) = parameters.iter().map(|word| UnitName::new(word)).collect::<Option<Vec<_>>>() {
        let names: Vec<String> = units.iter().map(ToString::to_string).collect();
        meant.push((remote::units_down(&units), Command::UnitsDown(names.clone())));
        meant.push((remote::units(&units), Command::Units(names)));
    }
    match *parameters {
        [] => meant.push((remote::people(), Command::People)),
        [one] => {
            if let Ok(seconds) = one.parse() {
                let limit = Duration::from_secs(seconds);
                meant.push((remote::gpu(limit), Command::Gpu(limit)));
            }
            let interface = Interface::new(one);
            if one.is_empty() || interface.is_some() {
                meant.push((remote::wake_on(interface.as_ref()), Command::WakeOn(interface.map(|i| i.to_string()))));
            }
        }
        [one, two] => {
            if let (Some(unit), Ok(port)) = (UnitName::new(one), two.parse()) {
                meant.push((remote::post_mortem(&unit, port), Command::PostMortem(one.into(), port)));
            }
        }
        _ => {}
    }
    if let [folder, rest @ ..] = parameters {
        meant.extend(files(folder, rest));
    }
    meant.into_iter().find_map(|(written, command)| is_it(&written).then_some(command))
}

/// What might have been meant about the files of a folder.
fn files(folder: &str, parameters: &[&str]) -> Vec<(CommandLine, Command)> {
    let Some(path) = RemotePath::new(folder) else { return vec![] };
    let mut meant = vec![];
    let mut add = |question: FileQuestion<'_>, files: Files| {
        meant.push((remote::files(&path, question), Command::Files(folder.into(), files)));
    };
    let names = |words: &[&str]| words.iter().map(|word| FileName::new(word)).collect::<Option<Vec<_>>>();
    let texts = |names: &[FileName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    if let [free, model, unit, rest @ ..] = parameters
        && let Some(files) = names(rest)
    {
        let (free, model, unit) = (!free.is_empty(), RemotePath::new(model), UnitName::new(unit));
        let told = Files::Survey {
            free,
            model: model.as_ref().map(ToString::to_string),
            unit: unit.as_ref().map(ToString::to_string),
            names: texts(&files),
        };
        add(FileQuestion::Survey { free, model: model.as_ref(), unit: unit.as_ref(), files: &files }, told);
    }
    if let [from, to, bytes] = parameters
        && let (Some(from), Some(to), Ok(bytes)) = (FileName::new(from), FileName::new(to), bytes.parse())
    {
        let told = Files::Keep { from: from.to_string(), to: to.to_string(), bytes };
        add(FileQuestion::Keep(&from, &to, bytes), told);
    }
    if let [name, seconds] = parameters
        && let (Some(name), Ok(seconds)) = (FileName::new(name), seconds.parse())
    {
        let within = Duration::from_secs(seconds);
        add(FileQuestion::Digest(&name, within), Files::Digest { name: name.to_string(), within });
    }
    if let [name, from, count] = parameters
        && let (Some(name), Ok(from), Ok(count)) = (FileName::new(name), from.parse::<usize>(), count.parse::<usize>())
    {
        let told = Files::Words { name: name.to_string(), from, count };
        add(FileQuestion::Words { name: &name, from: from / 4, count: count / 4 }, told);
    }
    if let [suffix] = parameters {
        add(FileQuestion::List(suffix), Files::List { suffix: (*suffix).into() });
    }
    if let Some(files) = names(parameters) {
        add(FileQuestion::Remove(&files), Files::Remove(texts(&files)));
    }
    meant
}

/// The words of a line for a POSIX shell, of which only single quotes and `\'` mean something. `None` for half a word.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if !quoted => word.get_or_insert_default().push(letters.next()?),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_daemon_says_is_understood() {
        let unit = UnitName::new("llama-cpp.service").expect("a unit");
        let name = || unit.to_string();
        let path = RemotePath::new("/mnt/my models/it").expect("a path");
        let [one, two] = ["a.slot", "b.slot"].map(|name| FileName::new(name).expect("a name"));
        let about = |files| Command::Files("/mnt/my models/it".into(), files);
        let sudo = ["sudo".to_owned(), "-n".to_owned()];
        let interface = Interface::new("enp5s0").expect("an interface");
        for (line, command) in [
            (remote::verb(&[], RemoteVerb::Start(&unit)), Command::Start(name())),
            (remote::verb(&sudo, RemoteVerb::Stop(&unit)), Command::Stop(name())),
            (remote::verb(&[], RemoteVerb::Kill(&unit)), Command::Kill(name())),
            (remote::verb(&[], RemoteVerb::ResetFailed(&unit)), Command::ResetFailed(name())),
            (remote::verb(&sudo, RemoteVerb::PowerOff), Command::PowerOff),
            (remote::units(&[]), Command::Units(vec![])),
            (remote::units(&[unit.clone(), unit.clone()]), Command::Units(vec![name(), name()])),
            (remote::post_mortem(&unit, 8080), Command::PostMortem(name(), 8080)),
            (remote::people(), Command::People),
            (remote::gpu(Duration::from_secs(5)), Command::Gpu(Duration::from_secs(5))),
            (remote::wake_on(None), Command::WakeOn(None)),
            (remote::wake_on(Some(&interface)), Command::WakeOn(Some("enp5s0".into()))),
            (remote::units_down(std::slice::from_ref(&unit)), Command::UnitsDown(vec![name()])),
            (
                remote::files(
                    &path,
                    FileQuestion::Survey {
                        free: true,
                        model: Some(&path),
                        unit: Some(&unit),
                        files: std::slice::from_ref(&one),
                    },
                ),
                about(Files::Survey {
                    free: true,
                    model: Some(path.to_string()),
                    unit: Some(name()),
                    names: vec![one.to_string()],
                }),
            ),
            (
                remote::files(&path, FileQuestion::Survey { free: false, model: None, unit: None, files: &[] }),
                about(Files::Survey { free: false, model: None, unit: None, names: vec![] }),
            ),
            (
                remote::files(&path, FileQuestion::Keep(&one, &two, 36)),
                about(Files::Keep { from: one.to_string(), to: two.to_string(), bytes: 36 }),
            ),
            (
                remote::files(&path, FileQuestion::Digest(&one, Duration::from_mins(1))),
                about(Files::Digest { name: one.to_string(), within: Duration::from_mins(1) }),
            ),
            (
                remote::files(&path, FileQuestion::Words { name: &one, from: 6, count: 9 }),
                about(Files::Words { name: one.to_string(), from: 24, count: 36 }),
            ),
            (remote::files(&path, FileQuestion::List(".part")), about(Files::List { suffix: ".part".into() })),
            (
                remote::files(&path, FileQuestion::Remove(&[one.clone(), two.clone()])),
                about(Files::Remove(vec![one.to_string(), two.to_string()])),
            ),
        ] {
            assert_eq!(understand(line.as_str()).as_ref(), Some(&command), "{}", line.as_str());
            if let Some(fed) = line.fed() {
                assert_eq!(understand_fed(fed), Some(command), "{fed}");
            }
        }
    }

    #[test]
    fn nothing_else_is_understood() {
        let unit = UnitName::new("vllm.service").expect("a unit");
        let start = remote::verb(&[], RemoteVerb::Start(&unit));
        let units = remote::units(&[unit]);
        for line in [
            "",
            "'",
            "true",
            "env LC_ALL=C systemctl --no-ask-password restart vllm.service",
            "env LC_ALL=C systemctl start vllm.service",
            "env LC_ALL=C doas systemctl --no-ask-password start vllm.service",
            &format!("{} ", start.as_str()),
            &start.as_str().replace(".service", ".service;reboot"),
            &units.as_str().replace("@@end", "@@END"),
        ] {
            assert_eq!(understand(line), None, "{line}");
        }
    }
}
