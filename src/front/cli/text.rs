//! Text for people: escaped, coloured or not, and short forms of spans, sizes and times.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    time::{Duration, SystemTime},
};

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint {
    colour: bool,
}

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { colour: false };

    /// Colours on a terminal, unless `NO_COLOR` is set (and not empty) or the terminal is dumb.
    pub(super) fn for_terminal(terminal: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        Self { colour: terminal.is_terminal() && set("NO_COLOR").is_none() && !dumb }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Green: as wanted.
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Yellow: on its way, or worth a look.
    pub(super) fn fair(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Red: wrong.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// Faint: beside the point.
    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// Outside text without the power to move a cursor, ring a bell or turn a line around: control characters and
/// bidirectional marks are written out. Colours, which logs are full of, are left out.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = past_colour(rest) {
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '\t' => out.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "{}", c.escape_unicode());
            }
            c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => {
                let _ = write!(out, "{}", c.escape_default());
            }
            c => out.push(c),
        }
    }
    out
}

/// What follows a colour sequence (`ESC [ digits m`) at the beginning of `text`.
fn past_colour(text: &str) -> Option<&str> {
    let sequence = text.strip_prefix("\x1b[")?;
    sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').strip_prefix('m')
}

/// Cut to `columns` of a terminal, with an ellipsis where something is missing.
pub(super) fn fit(text: &str, columns: usize) -> String {
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let mut out = String::new();
    for c in text.chars() {
        let Some(rest) = left.checked_sub(width(c)) else {
            break;
        };
        left = rest;
        out.push(c);
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

/// Columns of a character; rough, but never too few.
const fn width(c: char) -> usize {
    if (c as u32) < 0x1100 || matches!(c, '\u{2000}'..='\u{2bff}') { 1 } else { 2 }
}

/// "1h", "1d 2h", "2m 5s", "12s": the two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let Some(first) = units.iter().position(|(count, _)| *count > 0) else {
        return "0s".into();
    };
    units[first..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Seconds from a document as a span; nothing for what is no time.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// An estimate: "80s", "150s", from five minutes on "5m".
pub(super) fn estimate(of: Duration) -> String {
    let seconds = of.as_secs_f64().ceil();
    if seconds < 300.0 { format!("{seconds:.0}s") } else { format!("{:.0}m", (seconds / 60.0).ceil()) }
}

/// "48MB", "1.2GB": decimal, as disks are sold.
pub(super) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let bytes = bytes as f64;
    match bytes {
        b if b < 1e3 => format!("{b:.0}B"),
        b if b < 999.5e3 => format!("{:.0}kB", b / 1e3),
        b if b < 999.5e6 => format!("{:.0}MB", b / 1e6),
        b => format!("{:.1}GB", b / 1e9),
    }
}

/// "196k" tokens; small counts as they are.
pub(super) fn tokens(count: u64) -> String {
    if count < 1000 { count.to_string() } else { format!("{}k", count / 1000) }
}

/// How long ago an RFC 3339 time was; `None` for what is no such time or lies ahead.
pub(super) fn ago(time: &str, now: SystemTime) -> Option<Duration> {
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    now.duration_since(time).ok()
}

/// How long until an RFC 3339 time, to the nearest second; zero once it has passed.
pub(super) fn until(time: &str, now: SystemTime) -> Option<Duration> {
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    let left = time.duration_since(now).unwrap_or_default();
    Some(left + Duration::from_millis(500))
}

/// Time of day of an RFC 3339 time, UTC; else the text as it is.
pub(super) fn clock(time: &str) -> String {
    time.get(11..19).map_or_else(|| plain(time), |clock| format!("{}Z", plain(clock)))
}

/// Prints to standard output. When nobody reads it any more the process ends, as others do by SIGPIPE.
pub(super) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { 141 } else { 1 };
        std::process::exit(code);
    }
}

/// Prints a line to standard output.
pub(super) fn say_line(line: &str) {
    say(&format!("{line}\n"));
}

/// Prints a line to standard error, where that is possible.
pub(super) fn warn_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_two_largest_units() {
        let shown = [0, 59, 60, 125, 3600, 3660, 3601, 90_061].map(|s| span(Duration::from_secs(s)));
        assert_eq!(shown, ["0s", "59s", "1m", "2m 5s", "1h", "1h 1m", "1h", "1d 1h"]);
    }

    #[test]
    fn sizes_are_decimal_and_short() {
        let shown = [0, 999, 48_000_000, 999_600_000, 1_234_000_000].map(size);
        assert_eq!(shown, ["0B", "999B", "48MB", "1.0GB", "1.2GB"]);
    }

    #[test]
    fn outside_text_cannot_control_the_terminal() {
        assert_eq!(
            plain("a\x1b[2Jb\u{9b}1m\u{202e}c\nd\te\x1b[1;31mf\x1b[0m"),
            "a\\u{1b}[2Jb\\u{9b}1m\\u{202e}c\\nd ef"
        );
        assert_eq!(plain("Größe 模型 ✓"), "Größe 模型 ✓");
    }

    #[test]
    fn a_line_is_cut_to_the_terminal() {
        assert_eq!(fit("start llama-cpp", 80), "start llama-cpp");
        assert_eq!(fit("start llama-cpp", 8), "start l…");
        assert_eq!(fit("模型模型", 6), "模型…");
        assert_eq!(fit("abc", 0), "");
    }
}
