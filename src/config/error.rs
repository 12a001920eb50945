//! Why a configuration is refused: every fault at once, each with its place.

use std::{fmt, path::PathBuf};

/// How many faults are told in text: a file that is no configuration at all has as many as it has bytes.
const LISTED: usize = 100;

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file, counted from 1.
    Line(usize),
    /// An environment variable.
    Variable(String),
    /// The file as a whole.
    File,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where.
    pub at: Origin,
    /// The key concerned, in full, as `gpu_server.ssh.port`; empty for the file as a whole.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// Everything that is wrong with a configuration, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Variable(name) => f.write_str(name),
            Self::File => f.write_str("file"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.at, self.message)
        } else {
            write!(f, "{}: {}: {}", self.at, self.key, self.message)
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, s) = (self.faults.len(), if self.faults.len() == 1 { "" } else { "s" });
        write!(f, "{}: {n} fault{s}", self.path.display())?;
        self.faults.iter().take(LISTED).try_for_each(|fault| write!(f, "\n  {fault}"))?;
        if n > LISTED { write!(f, "\n  and {} more", n - LISTED) } else { Ok(()) }
    }
}

/// `; did you mean ...?` with the nearest of `known`, if one is near enough to be a slip of the fingers.
pub(super) fn suggestion<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let most = |name: &str| 1 + name.len() / 4;
    let length = wrong.chars().count();
    let near = known
        // A difference in length is as many slips at least: what is long is not compared.
        .filter(|name| length.abs_diff(name.chars().count()) <= most(name))
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(slips, name)| *slips <= most(name))
        .min();
    near.map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_suggested_and_a_stranger_is_not() {
        let known = ["start_timeout", "stop_timeout", "url"];
        let of = |wrong| suggestion(wrong, known.into_iter());
        assert_eq!(of("start_timout"), "; did you mean `start_timeout`?");
        assert_eq!(of("ulr"), "; did you mean `url`?");
        assert_eq!(of("urls"), "; did you mean `url`?");
        assert_eq!(of("colour"), "");
    }
}
