//! Names of slot files: `NAME.YYYYmmddTHHMMSS-XXXXXXXXXX.slot`, UTC. The ten hexadecimal digits are six that tell whose file
//! it is (server and backend) and four that count up, so that no name is ever used twice and a sweep touches only its own.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, SystemTime},
};

use crate::host::slot_files::FileName;

const SUFFIX: &str = ".slot";

/// Six hexadecimal digits for a backend of a server.
pub(super) fn tag(server: &str, backend: &str) -> String {
    // SipHash with fixed keys; stable enough: after a change of it leftovers of before are merely not swept.
    let mut hasher = DefaultHasher::new();
    (server, backend).hash(&mut hasher);
    format!("{:06x}", hasher.finish() & 0xff_ffff)
}

/// The name that slot `id` is saved under.
pub(super) fn of_slot(name: &str, id: u32) -> String {
    if id == 0 { name.to_owned() } else { format!("{name}-{id}") }
}

/// A new file name; `None` if `name` breaks llama.cpp's rules (or ours).
pub(super) fn new_file(name: &str, at: u64, tag: &str, serial: u16) -> Option<FileName> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at))?;
    let stamp: String =
        humantime::format_rfc3339_seconds(at).to_string().chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    let file = format!("{name}.{stamp}-{tag}{serial:04x}{SUFFIX}");
    // llama.cpp refuses two dots in a row anywhere.
    (!file.contains("..")).then(|| FileName::new(&file))?
}

/// When a file of ours was made, seconds since the epoch by this machine's clock; `None`: the file is not ours.
pub(super) fn made_at(file: &str, name: &str, tag: &str) -> Option<u64> {
    let (stem, stamp) = file.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    let of_a_slot = stem == name
        || stem.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).is_some_and(|id| id.parse::<u32>().is_ok());
    let (date, rest) = stamp.split_once('T')?;
    let (time, serial) = rest.split_once('-')?;
    let serial = serial.strip_prefix(tag)?;
    let digits = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    let ours = of_a_slot
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_tells_its_time_and_whose_it_is() {
        let tag = tag("gpu", "llama-cpp");
        let name = of_slot("localbot", 2);
        let file = new_file(&name, 1_795_471_200, &tag, 0x2a).expect("a good name");
        assert_eq!(file.as_str(), format!("localbot-2.20261123T220000-{tag}002a.slot"));
        assert_eq!(made_at(file.as_str(), "localbot", &tag), Some(1_795_471_200));
    }

    #[test]
    fn files_of_others_are_not_ours() {
        for file in [
            "localbot.20261123T220000-abcdef002a.slot.bak",
            "localbot.20261123T220000-000000002a.slot",
            "localbot-x.20261123T220000-abcdef002a.slot",
            "localbots.20261123T220000-abcdef002a.slot",
            "localbot.20261399T990000-abcdef002a.slot",
            "localbot.bin",
            "x.slot",
            ".slot",
        ] {
            assert_eq!(made_at(file, "localbot", "abcdef"), None, "{file}");
        }
    }

    #[test]
    fn names_that_llama_cpp_would_reject_are_not_made() {
        for name in ["a..b", "model:q4", "a/b", "", "a b", "dot."] {
            assert!(new_file(name, 0, "abcdef", 0).is_none(), "{name}");
        }
    }
}
