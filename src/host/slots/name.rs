//! Names of slot files: `NAME.YYYYmmddTHHMMSS-XXXXXXXXXXXXXXXX.slot`, UTC. The hexadecimal digits are twelve that tell whose
//! file it is (this very state directory, server and backend) and four that count up, so that no name is ever used twice.
//!
//! Until a save was checked its file ends in `.part`. What ends in `.slot` had the size and the first bytes it should, was
//! flushed to the disk, and goes only with its note.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, SystemTime},
};

use crate::host::slot_files::FileName;

/// The end of the name of a file that was checked.
pub(super) const SUFFIX: &str = ".slot";
/// The end of the name of a file that nobody has checked yet.
pub(super) const UNFINISHED: &str = ".part";

/// Both names of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// While it is written.
    pub(super) unfinished: FileName,
    /// Once it was checked.
    pub(super) finished: FileName,
}

/// Twelve hexadecimal digits for a backend of a server in the state directory of `owner`.
pub(super) fn tag(owner: &str, server: &str, backend: &str) -> String {
    // SipHash with fixed keys; stable enough: after a change of it leftovers of before are merely not swept.
    let mut hasher = DefaultHasher::new();
    (owner, server, backend).hash(&mut hasher);
    format!("{:012x}", hasher.finish() & 0xffff_ffff_ffff)
}

/// The name that slot `id` is saved under.
pub(super) fn of_slot(name: &str, id: u32) -> String {
    if id == 0 { name.to_owned() } else { format!("{name}-{id}") }
}

/// The slot whose own name that is; `None`: it is a name that people have chosen.
pub(super) fn slot_of(base: &str, name: &str) -> Option<u32> {
    let id = match name.strip_prefix(base)?.strip_prefix('-') {
        Some(id) => id.parse().ok()?,
        None => 0,
    };
    (of_slot(base, id) == name).then_some(id)
}

/// Whether people may save under that name.
pub(super) fn is_usable(name: &str) -> bool {
    new_file(name, 0, &tag("", "", ""), 0).is_some()
}

/// A new name; `None` if `name` breaks llama.cpp's rules (or ours).
pub(super) fn new_file(name: &str, at: u64, tag: &str, serial: u16) -> Option<Names> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at))?;
    let stamp: String =
        humantime::format_rfc3339_seconds(at).to_string().chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    let named = |suffix: &str| {
        let file = format!("{name}.{stamp}-{tag}{serial:04x}{suffix}");
        // llama.cpp refuses two dots in a row anywhere.
        (!file.contains("..")).then(|| FileName::new(&file))?
    };
    Some(Names { unfinished: named(UNFINISHED)?, finished: named(SUFFIX)? })
}

/// When the save of a file of ours began, seconds since the epoch by this machine's clock; `None`: the file is not ours.
pub(super) fn begun_at(file: &str, tag: &str) -> Option<u64> {
    let file = file.strip_suffix(UNFINISHED).or_else(|| file.strip_suffix(SUFFIX))?;
    let (name, stamp) = file.rsplit_once('.')?;
    let (date, rest) = stamp.split_once('T')?;
    let (time, serial) = rest.split_once('-')?;
    let serial = serial.strip_prefix(tag)?;
    let digits = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    let ours = !name.is_empty()
        && digits(date, 8)
        && digits(time, 6)
        && serial.len() == 4
        && serial.bytes().all(|b| b.is_ascii_hexdigit());
    if !ours {
        return None;
    }
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    let (hour, minute, second) = (&time[..2], &time[2..4], &time[4..]);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let at = humantime::parse_rfc3339(&text).ok()?;
    Some(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// Whether that is an unfinished save of ours under that name.
pub(super) fn is_unfinished(file: &str, name: &str, tag: &str) -> bool {
    let stem = file.strip_suffix(UNFINISHED).and_then(|file| file.rsplit_once('.'));
    stem.is_some_and(|(its, _)| its == name) && begun_at(file, tag).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_tells_its_time_and_whose_it_is() {
        let tag = tag("owner", "gpu", "llama-cpp");
        let name = of_slot("localbot", 2);
        let names = new_file(&name, 1_795_471_200, &tag, 0x2a).expect("a good name");
        assert_eq!(names.finished.as_str(), format!("localbot-2.20261123T220000-{tag}002a.slot"));
        assert_eq!(names.unfinished.as_str(), format!("localbot-2.20261123T220000-{tag}002a.part"));
        for file in [names.unfinished, names.finished] {
            assert_eq!(begun_at(file.as_str(), &tag), Some(1_795_471_200));
        }
    }

    #[test]
    fn state_directories_servers_and_backends_have_tags_of_their_own() {
        let mut tags = vec![tag("a", "gpu", "x"), tag("b", "gpu", "x"), tag("a", "gpu2", "x"), tag("a", "gpu", "y")];
        assert!(tags.iter().all(|tag| tag.len() == 12));
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 4);
    }

    #[test]
    fn files_of_others_are_not_ours() {
        for file in [
            "localbot.20261123T220000-abcdef123456002a.part.bak",
            "localbot.20261123T220000-abcdef123456002a.slot.part",
            "localbot.20261123T220000-abcdef123456002a.bin",
            "localbot.20261123T220000-abcdef123456002a",
            "localbot.20261123T220000-000000000000002a.part",
            "localbot.20261123T220000-000000000000002a.slot",
            "localbot.20261123T220000-abcdef002a.part",
            "localbot.20261399T990000-abcdef123456002a.part",
            "localbot.part",
            ".20261123T220000-abcdef123456002a.part",
            "x.part",
            ".part",
        ] {
            assert_eq!(begun_at(file, "abcdef123456"), None, "{file}");
        }
        for file in ["localbot.20261123T220000-abcdef123456002a.part", "a.b.20261123T220000-abcdef123456002a.part"] {
            assert!(begun_at(file, "abcdef123456").is_some(), "{file}");
        }
    }

    #[test]
    fn a_slot_has_one_own_name_and_all_others_are_free() {
        for (name, slot) in [("bot", Some(0)), ("bot-1", Some(1)), ("bot-12", Some(12))] {
            assert_eq!(slot_of("bot", name), slot, "{name}");
        }
        for free in ["bot-0", "bot-01", "bot-+1", "bot-", "bot-x", "bots", "other", "", "bot-99999999999"] {
            assert_eq!(slot_of("bot", free), None, "{free}");
        }
    }

    #[test]
    fn names_that_llama_cpp_would_reject_are_not_made() {
        for name in ["a..b", "model:q4", "a/b", "", "a b", "dot."] {
            assert!(!is_usable(name), "{name}");
        }
        assert!(is_usable("before-the-holidays_2026.11"));
        assert!(!is_usable(&"x".repeat(FileName::MOST)), "nothing could be added to it");
    }
}
