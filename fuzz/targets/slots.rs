//! Saved slots: heads of their files, notes about them, and what the server says of the folder they lie in.

use wechsler::host::{
    slot_files::FileName,
    slot_folder::{parse_digest, parse_kept, parse_list, parse_survey},
    slots::{check_head, read_note},
};

pub fn run(data: &[u8]) {
    for (bytes, tokens) in [(data.len() as u64, 33), (u64::MAX, u64::MAX), (0, 0)] {
        let _ = check_head(data, bytes, tokens);
    }
    if let Ok(slot) = read_note(data, "localbot.slot.json") {
        assert_eq!(slot.file, "localbot.slot");
    }
    let text = String::from_utf8_lossy(data);
    for asked in 0..3 {
        if let Ok(surveyed) = parse_survey(&text, asked) {
            assert_eq!(surveyed.files.len(), asked, "one answer for each file");
        }
    }
    let _ = parse_kept(&text);
    let _ = parse_list(&text);
    if let Some(name) = FileName::new("localbot.slot")
        && let Ok(Some(digest)) = parse_digest(&text, &name)
    {
        assert_eq!(digest.len(), 64);
    }
}
