//! Changes, as people follow them: what differs between two statuses, and what began or ended, a line each.

use std::sync::Arc;

use super::{
    handle::{Change, OperationRecord},
    status::{AttentionStatus, Status},
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
    let is_in = |all: &[AttentionStatus], one: &AttentionStatus| {
        all.iter().any(|other| (&other.code, &other.backend) == (&one.code, &one.backend))
    };
    for new in after.attention.iter().filter(|one| !is_in(&before.attention, one)) {
        add("attention", format!("attention: {}: {} ({})", new.code, new.message, new.hint));
    }
    for gone in before.attention.iter().filter(|one| !is_in(&after.attention, one)) {
        let whose = gone.backend.as_ref().map_or(String::new(), |backend| format!(" ({backend})"));
        add("attention", format!("attention no longer needed: {}{whose}", gone.code));
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

    fn lines(before: &Status, after: Status) -> Vec<String> {
        between(before, &Arc::new(after), "now").into_iter().map(|c| format!("{}: {}", c.what, c.line)).collect()
    }

    fn needs(code: &str, backend: Option<&str>) -> AttentionStatus {
        AttentionStatus {
            code: code.into(),
            message: "It hangs.".into(),
            hint: "look".into(),
            backend: backend.map(Into::into),
            ..AttentionStatus::default()
        }
    }

    #[test]
    fn a_state_and_an_attention_are_two_lines() {
        let mut after = status("llama-cpp-starting");
        after.phase = Some("restoring".into());
        after.attention.push(needs("stop_stuck", None));
        assert_eq!(
            lines(&status("gpu-idle"), after),
            [
                "state: llama-cpp-starting (was gpu-idle): restoring",
                "attention: attention: stop_stuck: It hangs. (look)"
            ]
        );
    }

    #[test]
    fn what_needs_a_person_is_told_once_for_each_backend_when_it_begins_and_when_it_is_over() {
        let with = |all: &[AttentionStatus]| Status { attention: all.to_vec(), ..status("gpu-idle") };
        let (llama, vllm) = (needs("crashed", Some("llama-cpp")), needs("crashed", Some("vllm")));
        let (one, both) = (with(std::slice::from_ref(&llama)), with(&[llama.clone(), vllm.clone()]));
        assert_eq!(lines(&one, one.clone()), [""; 0]);
        assert_eq!(lines(&one, both.clone()), ["attention: attention: crashed: It hangs. (look)"]);
        assert_eq!(lines(&both, one.clone()), ["attention: attention no longer needed: crashed (vllm)"]);
        let other = needs("wake_unarmed", None);
        assert_eq!(
            lines(&one, with(&[other])),
            [
                "attention: attention: wake_unarmed: It hangs. (look)",
                "attention: attention no longer needed: crashed (llama-cpp)"
            ]
        );
    }

    #[test]
    fn what_is_finer_than_the_state_is_told_with_it_if_it_says_more() {
        let plain = status("llama-cpp");
        let line = |change: fn(&mut Status)| {
            let mut after = plain.clone();
            change(&mut after);
            lines(&plain, after)
        };
        assert_eq!(line(|s| s.reason = Some("powered-off".into())), ["state: llama-cpp: powered-off"]);
        assert_eq!(line(|s| s.phase = Some("saving".into())), ["state: llama-cpp: saving"]);
        assert_eq!(line(|s| s.phase = Some("starting".into())), ["state: llama-cpp"], "the state says that");
        assert_eq!(line(|s| s.phase = Some("llama-cpp".into())), ["state: llama-cpp"], "it is the state");
        assert_eq!(line(|s| s.control = Some("unreachable".into())), ["state: llama-cpp: no control over SSH"]);
        assert_eq!(line(|s| s.control = Some("ok".into())), ["state: llama-cpp"]);
        assert_eq!(line(|s| s.health = "failing".into()), ["state: llama-cpp: failing"]);
        assert_eq!(line(|s| s.health = "unknown".into()), ["state: llama-cpp"]);
        let failing = Status { health: "failing".into(), ..plain.clone() };
        assert_eq!(
            lines(&failing, Status { state: "vllm".into(), ..failing.clone() }),
            ["state: vllm (was llama-cpp)"]
        );
    }
}
