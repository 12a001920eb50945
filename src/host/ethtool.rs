//! Whether the server's network card hears a magic packet after power-off, read from `ethtool`.

use super::remote::{self, plain_text};
use crate::machine::reading::WakeArmed;

/// Reads the answer to [`remote::wake_on`]. `Wake-on: g` (alone or among others, as `pumbg`) is magic packet; `d` is off.
#[must_use]
pub fn parse(stdout: &str) -> WakeArmed {
    let parts = remote::parts(stdout);
    let Some((nic, text)) =
        parts.iter().find_map(|(mark, text)| mark.strip_prefix("nic").map(|nic| (nic.trim(), *text)))
    else {
        return WakeArmed::Unknown("the answer cannot be read".into());
    };
    if parts.iter().any(|(mark, _)| *mark == "none") {
        return WakeArmed::Unknown("there is no ethtool on the server".into());
    }
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
    };
    match value("Wake-on") {
        Some(modes) if modes.contains('g') => WakeArmed::Armed,
        Some(modes) => {
            let can = value("Supports Wake-on").unwrap_or("?");
            WakeArmed::NotArmed(plain_text(&format!("{nic}: Wake-on: {modes} (supports {can})"), 120))
        }
        None if text.contains("not permitted") => {
            WakeArmed::Unknown(format!("{nic}: reading Wake-on needs root; see contrib/wechsler.sudoers"))
        }
        None => {
            let why = match plain_text(text, 120) {
                text if text.is_empty() => "ethtool says nothing".into(),
                text => text,
            };
            WakeArmed::Unknown(plain_text(&format!("{nic}: {why}"), 160))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_armed_only_if_its_wake_on_contains_g() {
        let card = |modes: &str| {
            parse(&format!(
                "@@nic eth0\nSettings for eth0:\n\tSpeed: 1000Mb/s\n\tSupports Wake-on: pumbg\n\tWake-on: {modes}\n\tLink detected: yes\n@@end\n"
            ))
        };
        assert_eq!(card("g"), WakeArmed::Armed);
        assert_eq!(card("pumbg"), WakeArmed::Armed);
        assert_eq!(card("d"), WakeArmed::NotArmed("eth0: Wake-on: d (supports pumbg)".into()));
    }

    #[test]
    fn what_cannot_be_read_is_unknown_with_the_reason() {
        for (answer, word) in [
            ("@@nic eth0\n@@none\n", "no ethtool"),
            (
                "@@nic eth0\nSettings for eth0:\n\tLink detected: yes\nnetlink error: Operation not permitted\n@@end\n",
                "sudoers",
            ),
            ("@@nic wlan9\nnetlink error: no device matches name (offset 24)\n@@end\n", "no device"),
            ("", "cannot be read"),
        ] {
            let WakeArmed::Unknown(why) = parse(answer) else { panic!("{answer}") };
            assert!(why.contains(word), "{why}");
        }
    }
}
