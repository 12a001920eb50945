//! Changes, as people follow them: what differs between two statuses, and what began or ended, a line each.

use std::sync::Arc;

use super::{
    handle::{Change, OperationRecord},
    status::Status,
};

/// The changes from `before` to `after`, in reading order. Numbers that merely grow are no change.
#[must_use]
pub(super) fn between(before: &Status, after: &Arc<Status>, at: &str) -> Vec<Change> {
    let mut all = vec![];
    let mut add = |what: &str, line: String| {
        all.push(Change { at: at.into(), what: what.into(), line, status: Arc::clone(after), operation: None });
    };
    let shown = |s: &Status| {
        (
            s.state.clone(),
            s.phase.clone(),
            s.reason.clone(),
            s.control.clone(),
            s.health.clone(),
            s.operation.as_ref().map(|op| op.phase.clone()),
        )
    };
    if shown(before) != shown(after) {
        add("state", state_line(before, after));
    }
    for a in &after.attention {
        if !before.attention.iter().any(|b| b.code == a.code) {
            add("attention", format!("attention: {}: {} ({})", a.code, a.message, a.hint));
        }
    }
    for b in &before.attention {
        if !after.attention.iter().any(|a| a.code == b.code) {
            add("attention", format!("attention no longer needed: {}", b.code));
        }
    }
    all
}

/// "llama-cpp-starting (was gpu-idle): restoring".
fn state_line(before: &Status, after: &Status) -> String {
    let mut line = after.state.clone();
    if before.state != after.state {
        line = format!("{line} (was {})", before.state);
    }
    let details: Vec<&str> = [
        after.reason.as_deref(),
        after.phase.as_deref().filter(|phase| *phase != "starting" && *phase != after.state),
        after.control.as_deref().filter(|control| *control == "unreachable").map(|_| "no control over SSH"),
        Some(after.health.as_str()).filter(|health| *health == "failing" && before.health != after.health),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !details.is_empty() {
        line = format!("{line}: {}", details.join(", "));
    }
    line
}

/// An operation has begun.
#[must_use]
pub(super) fn began(record: OperationRecord, status: &Arc<Status>) -> Change {
    let goal = record.goal.as_deref().map_or(String::new(), |g| format!(" {g}"));
    Change {
        at: record.started.clone(),
        what: "operation_began".into(),
        line: format!("operation {}: {}{goal} ({})", record.id, record.kind, record.cause),
        status: Arc::clone(status),
        operation: Some(record),
    }
}

/// An operation has ended.
#[must_use]
pub(super) fn ended(record: OperationRecord, status: &Arc<Status>) -> Change {
    let end = record.end.as_deref().unwrap_or("ended");
    let mut line = format!("operation {}: {end}", record.id);
    if let Some(code) = &record.code {
        line = format!("{line} ({code})");
    }
    if let Some(message) = &record.message {
        line = format!("{line}: {message}");
    }
    for lost in &record.not_saved {
        line = format!("{line}; what {} held was not saved", lost.backend);
    }
    for warning in &record.warnings {
        line = format!("{line}; {}: {}", warning.code, warning.message);
    }
    Change {
        at: record.ended.clone().unwrap_or_default(),
        what: "operation_ended".into(),
        line,
        status: Arc::clone(status),
        operation: Some(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str) -> Status {
        Status { state: state.into(), health: "ok".into(), ..Status::default() }
    }

    #[test]
    fn time_passing_is_no_change() {
        let before = status("llama-cpp");
        let mut after = status("llama-cpp");
        after.uptime_seconds = Some(7);
        after.ages.insert("ssh".into(), 0.3);
        assert!(between(&before, &Arc::new(after), "now").is_empty());
    }

    #[test]
    fn a_state_and_an_attention_are_two_lines() {
        let before = status("gpu-idle");
        let mut after = status("llama-cpp-starting");
        after.phase = Some("restoring".into());
        after.attention.push(super::super::status::AttentionStatus {
            code: "stop_stuck".into(),
            message: "It hangs.".into(),
            hint: "look".into(),
            since: String::new(),
        });
        let changes = between(&before, &Arc::new(after), "now");
        let lines: Vec<_> = changes.iter().map(|c| (c.what.as_str(), c.line.as_str())).collect();
        assert_eq!(
            lines,
            [
                ("state", "llama-cpp-starting (was gpu-idle): restoring"),
                ("attention", "attention: stop_stuck: It hangs. (look)"),
            ]
        );
    }
}
