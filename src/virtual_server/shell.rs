//! What the server's shell understands: exactly the command lines of [`crate::host::remote`], and nothing else.
//!
//! A line is taken apart into words, and every command that might have been meant is written anew by `remote` itself: it
//! is understood only if that gives the same line again, byte for byte.

use std::time::Duration;

use crate::host::remote::{self, CommandLine, FileQuestion, Interface, RemotePath, RemoteVerb, UnitName};

/// A command line that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Start(String),
    Stop(String),
    Kill(String),
    ResetFailed(String),
    PowerOff,
    Units(Vec<String>),
    PostMortem(String, u16),
    People,
    /// With the limit of one call.
    Gpu(Duration),
    /// With the interface, if one was named.
    WakeOn(Option<String>),
    Stat(String),
    List(String),
    Head(String, usize),
    Remove(String),
    Rename(String, String),
    Free(String),
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
                | Self::Remove(_)
                | Self::Rename(..)
        )
    }
}

/// Understands a line, if it is one of ours.
pub(super) fn understand(line: &str) -> Option<Command> {
    let words = words(line)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["env", "LC_ALL=C", ref rest @ ..] => verb(line, rest),
        ["exec", "sh", "-c", _, "wechsler", ref parameters @ ..] => question(line, parameters),
        _ => None,
    }
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

fn question(line: &str, parameters: &[&str]) -> Option<Command> {
    let names = || parameters.iter().map(|word| UnitName::new(word)).collect::<Option<Vec<_>>>();
    let path = |word: &str| RemotePath::new(word);
    let mut meant: Vec<(CommandLine, Command)> = vec![];
    if let Some(units) = names() {
        meant.push((remote::units(&units), Command::Units(units.iter().map(ToString::to_string).collect())));
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
            if let Some(path) = path(one) {
                meant.push((remote::files(FileQuestion::Stat(&path)), Command::Stat(one.into())));
                meant.push((remote::files(FileQuestion::List(&path)), Command::List(one.into())));
                meant.push((remote::files(FileQuestion::Remove(&path)), Command::Remove(one.into())));
                meant.push((remote::files(FileQuestion::Free(&path)), Command::Free(one.into())));
            }
        }
        [one, two] => {
            if let (Some(unit), Ok(port)) = (UnitName::new(one), two.parse()) {
                meant.push((remote::post_mortem(&unit, port), Command::PostMortem(one.into(), port)));
            }
            if let (Some(path), Ok(bytes)) = (path(one), two.parse()) {
                meant.push((remote::files(FileQuestion::Head(&path, bytes)), Command::Head(one.into(), bytes)));
            }
            if let (Some(from), Some(to)) = (path(one), path(two)) {
                let command = Command::Rename(one.into(), two.into());
                meant.push((remote::files(FileQuestion::Rename(&from, &to)), command));
            }
        }
        _ => {}
    }
    meant.into_iter().find_map(|(written, command)| (written.as_str() == line).then_some(command))
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
        let at = || "/mnt/my models/it".to_owned();
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
            (remote::files(FileQuestion::Stat(&path)), Command::Stat(at())),
            (remote::files(FileQuestion::List(&path)), Command::List(at())),
            (remote::files(FileQuestion::Head(&path, 36)), Command::Head(at(), 36)),
            (remote::files(FileQuestion::Remove(&path)), Command::Remove(at())),
            (remote::files(FileQuestion::Rename(&path, &path)), Command::Rename(at(), at())),
            (remote::files(FileQuestion::Free(&path)), Command::Free(at())),
        ] {
            assert_eq!(understand(line.as_str()), Some(command), "{}", line.as_str());
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
