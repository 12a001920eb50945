//! What is seen of an operation while it runs: on a terminal one line that is rewritten, in a pipe a line for each phase.

use std::{
    io::{self, IsTerminal},
    time::{Duration, SystemTime},
};

use super::{
    lbs,
    text::{Paint, ago, fit, plain, say, say_line, seconds, span},
};
use crate::{
    driver::{
        NotSaved, OperationRecord,
        status::{OperationStatus, Status},
    },
    machine::Warning,
};

/// Back to the first column, and everything on the line away.
const CLEAR: &str = "\r\x1b[2K";
/// Width where the terminal does not tell.
const COLUMNS: u16 = 80;

/// The display.
#[derive(Debug)]
pub(super) struct Live {
    kind: Show,
    /// What the person called it, where that is another word than the operation's.
    word: Option<String>,
    operation: Option<OperationStatus>,
    note: Option<&'static str>,
    on_screen: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Nothing,
    Lines,
    Rewritten,
}

impl Live {
    /// A display on standard output; `quiet` shows nothing.
    pub(super) fn new(quiet: bool, word: Option<String>) -> Self {
        let out = io::stdout();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let kind = if quiet {
            Show::Nothing
        } else if out.is_terminal() && !dumb {
            Show::Rewritten
        } else {
            Show::Lines
        };
        Self { kind, word, operation: None, note: None, on_screen: false }
    }

    /// It wants to be redrawn as time passes.
    pub(super) fn is_rewritten(&self) -> bool {
        self.kind == Show::Rewritten
    }

    /// Takes over what a status says of operation `id`.
    pub(super) fn take(&mut self, status: &Status, id: u64) {
        let Some(new) = status.operation.as_ref().filter(|new| new.id == id) else {
            return;
        };
        let phase = |operation: &OperationStatus| operation.phase.clone();
        let moved = self.operation.as_ref().map(phase) != Some(phase(new));
        let mut new = new.clone();
        if let Some(word) = &self.word {
            new.kind.clone_from(word);
        }
        if moved && self.kind == Show::Lines {
            say_line(&lbs::progress(&new, SystemTime::now()));
        }
        self.operation = Some(new);
        self.redraw();
    }

    /// Shows a remark in place of the operation, until it is withdrawn.
    pub(super) fn note(&mut self, note: Option<&'static str>) {
        if self.note == note {
            return;
        }
        self.note = note;
        if let (Show::Lines, Some(note)) = (self.kind, note) {
            say_line(note);
        }
        self.redraw();
    }

    /// Draws the line anew.
    pub(super) fn redraw(&mut self) {
        if self.kind != Show::Rewritten {
            return;
        }
        let text = match (self.note, &self.operation) {
            (Some(note), _) => note.to_owned(),
            (None, Some(operation)) => lbs::progress(operation, SystemTime::now()),
            (None, None) => return,
        };
        let columns = terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| width.0);
        // The last column stays free: some terminals wrap there.
        let columns = usize::from(columns).saturating_sub(1);
        say(&format!("{CLEAR}{}", fit(&text, columns)));
        self.on_screen = true;
    }

    /// Takes the line away, so that others can be printed.
    fn clear(&mut self) {
        if self.on_screen {
            say(CLEAR);
            self.on_screen = false;
        }
    }
}

/// However it ends, also by Ctrl-C: what is printed next begins on an empty line.
impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What a stop on the way has cost, in the same breath: nobody reads on after a tick.
fn not_saved(record: &OperationRecord, paint: Paint) -> String {
    let one = |lost: &NotSaved| {
        let code = paint.faint(&format!("[{}]", plain(&lost.code)));
        format!("what {} held was not saved: {} {code}", plain(&lost.backend), plain(&lost.message))
    };
    record.not_saved.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// What came of an operation: a line, and under it what else there is to say.
pub(super) fn conclusion(record: &OperationRecord, paint: Paint) -> String {
    let what = lbs::what(&record.kind, record.goal.as_deref());
    let lasted = lasted(record).map(short);
    let took = |word: &str| lasted.as_ref().map_or(String::new(), |time| format!(" {word} {time}"));
    let mut text = match record.end.as_deref() {
        Some("done") if !record.not_saved.is_empty() => {
            format!("{} {what}: done{}, but {}\n", paint.fair("✓"), took("in"), not_saved(record, paint))
        }
        Some("done") => format!("{} {what}: done{}\n", paint.good("✓"), took("in")),
        end => {
            let end = plain(end.unwrap_or("ended"));
            let message = record.message.as_deref().map_or(String::new(), |message| format!(": {}", plain(message)));
            let code = record.code.as_deref().map_or(String::new(), |code| paint.faint(&format!(" [{}]", plain(code))));
            let after = took("after");
            format!("{} {what}: {end}{after}{message}{code}\n", paint.bad("✗"))
        }
    };
    if let Some(hint) = record.hint.as_deref().filter(|hint| !hint.is_empty()) {
        text.push_str(&format!("  hint: {}\n", plain(hint)));
    }
    // What the first line says is not said again.
    let first = text.lines().next().unwrap_or_default().to_owned();
    let is_told = |warning: &&Warning| !warning.message.is_empty() && first.contains(&plain(&warning.message));
    for warning in record.warnings.iter().filter(|warning| !is_told(warning)) {
        text.push_str(&format!(
            "  {} {} {}\n",
            paint.fair("warning:"),
            plain(&warning.message),
            paint.faint(&format!("[{}]", plain(&warning.code)))
        ));
    }
    for line in &record.post_mortem {
        text.push_str(&format!("  {} {}\n", paint.faint("│"), plain(line)));
    }
    text
}

/// How long an ended operation took.
fn lasted(record: &OperationRecord) -> Option<Duration> {
    let end = humantime::parse_rfc3339_weak(record.ended.as_deref()?).ok()?;
    ago(&record.started, end)
}

/// "8.2s" below a minute, as a span above.
fn short(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 59.95 => format!("{short:.1}s"),
        long => seconds(long.round()).map_or_else(String::new, span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(end: &str) -> OperationRecord {
        OperationRecord {
            id: 7,
            kind: "start".into(),
            goal: Some("llama-cpp".into()),
            cause: "command".into(),
            started: "2026-01-02T03:04:05Z".into(),
            end: Some(end.into()),
            ended: Some("2026-01-02T03:04:13.200Z".into()),
            ..OperationRecord::default()
        }
    }

    #[test]
    fn a_good_end_is_one_line_and_its_warnings() {
        let mut record = record("done");
        record.warnings = vec![Warning::new("save_timeout", "The save took too long.")];
        assert_eq!(
            conclusion(&record, Paint::PLAIN),
            "✓ start llama-cpp: done in 8.2s\n  warning: The save took too long. [save_timeout]\n"
        );
    }

    #[test]
    fn an_end_that_has_cost_a_conversation_says_so_in_its_first_line() {
        let mut record = record("done");
        let lost =
            |code: &str, message: &str| NotSaved { backend: "vllm".into(), code: code.into(), message: message.into() };
        record.not_saved = vec![lost("save_failed", "localbot: failed with 500")];
        record.warnings =
            vec![Warning::new("save_failed", "localbot: failed with 500"), Warning::new("other", "More.")];
        assert_eq!(
            conclusion(&record, Paint::PLAIN),
            "✓ start llama-cpp: done in 8.2s, but what vllm held was not saved: localbot: failed with 500 \
             [save_failed]\n  warning: More. [other]\n"
        );
    }

    #[test]
    fn a_reason_that_the_first_line_tells_is_not_told_again() {
        let mut record = record("failed");
        record.message = Some("The slots could not be restored. (nothing is saved as \"nope\")".into());
        record.warnings = vec![Warning::new("no_such_slot", "nothing is saved as \"nope\"")];
        let told = conclusion(&record, Paint::PLAIN);
        assert!(told.contains("failed after 8.2s: The slots could not be restored. (nothing is saved"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }

    #[test]
    fn a_failed_start_shows_why_with_escaped_journal_lines() {
        let mut record = record("failed");
        record.code = Some("start_failed".into());
        record.message = Some("The unit ended at once.".into());
        record.hint = Some("read the journal".into());
        record.post_mortem = vec!["result: exit-code".into(), "bad\x1b[31m model\x07".into()];
        assert_eq!(
            conclusion(&record, Paint::PLAIN),
            "✗ start llama-cpp: failed after 8.2s: The unit ended at once. [start_failed]\n  \
             hint: read the journal\n  │ result: exit-code\n  │ bad model\\u{7}\n"
        );
    }
}
