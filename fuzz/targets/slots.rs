//! Saved slots: heads of their files, notes about them, and what the server says of the folder they lie in and of the flags of
//! the process that writes them.

use wechsler::host::{
    launch_flags::LaunchFlags,
    slot_files::FileName,
    slot_folder::{parse_digest, parse_kept, parse_list, parse_survey},
    slots::{check_head, read_note},
};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let mut kinds = Kinds::new();
    for (bytes, tokens) in [(480_052, 33), (data.len() as u64, 33), (u64::MAX, u64::MAX), (0, 0)] {
        kinds.extend(understood([("head", check_head(data, bytes, tokens).is_ok())]));
    }
    if let Ok(slot) = read_note(data, "localbot.slot.json") {
        assert_eq!(slot.file, "localbot.slot");
        kinds.push("note");
    }
    let flags = LaunchFlags::of_command_line(data);
    let text = String::from_utf8_lossy(data);
    for asked in 0..3 {
        if let Ok(surveyed) = parse_survey(&text, asked) {
            assert_eq!(surveyed.files.len(), asked, "one answer for each file");
            kinds.extend(understood([("survey", surveyed.files.iter().any(|file| matches!(file, Ok(Some(_)))))]));
        }
    }
    kinds.extend(understood([
        ("flags", flags.is_some_and(|flags| flags != LaunchFlags::default())),
        ("kept", matches!(parse_kept(&text), Ok(Some(_)))),
        ("list", parse_list(&text).is_ok_and(|list| !list.names.is_empty())),
    ]));
    if let Some(name) = FileName::new("localbot.slot")
        && let Ok(Some(digest)) = parse_digest(&text, &name)
    {
        assert_eq!(digest.len(), 64);
        kinds.push("digest");
    }
    kinds
}
