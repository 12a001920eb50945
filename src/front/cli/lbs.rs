//! `status`: what is so now, in the `/lbs` form, and below it whatever else a person should know.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{
    slots,
    text::{Paint, ago, plain, seconds, size, span, tokens, until},
};
use crate::driver::status::{HoldStatus, OperationStatus, RestoreStatus, SavedSlotStatus, Status};

/// All lines.
pub(super) fn render(status: &Status, now: SystemTime, paint: Paint) -> String {
    let mut page = Page { lines: String::new() };
    if status.gpu_server == "on" {
        page.line("Backend", &backend(status, paint));
    } else {
        page.line("GPU server", &server(status, paint));
    }
    if let Some(model) = &status.model {
        let context = model.n_ctx.map_or(String::new(), |n| format!(" ({} ctx)", tokens(n)));
        page.line("Model", &format!("{}{context}", plain(&model.id)));
    }
    if let Some(gpu) = gpu(status) {
        page.line("GPU", &gpu);
    }
    if let Some(slot) = slot(status, now, paint) {
        page.line("Slot", &slot);
    }
    if let Some(uptime) = status.uptime_seconds {
        page.line("Uptime", &span(Duration::from_secs(uptime)));
    }
    if status.control.as_deref() == Some("unreachable") {
        let what = "unreachable: the backend answers, SSH does not";
        page.line("Control", &paint.bad(what));
    }
    if let Some(operation) = &status.operation {
        page.line("Operation", &operation_line(operation, now));
    }
    for hold in &status.holds {
        page.line("Hold", &hold_line(hold, now));
    }
    // Holds have their own lines.
    for blocker in status.blockers.iter().filter(|b| b.kind != "hold") {
        let blocks = match blocker.blocks.as_slice() {
            [] => String::new(),
            blocks => format!(" (blocks {})", plain(&blocks.join(", "))),
        };
        page.line("In use", &format!("{}{blocks}", plain(&blocker.what)));
    }
    if let Some(next) = &status.next_action {
        let when =
            until(&next.at, now).map_or_else(|| format!("at {}", plain(&next.at)), |left| format!("in {}", span(left)));
        page.line("Next", &format!("{} {when} ({})", plain(&next.what), plain(&next.because)));
    }
    for attention in &status.attention {
        let since = since(&attention.since, now);
        let code = paint.faint(&format!("[{}{since}]", plain(&attention.code)));
        page.line("Attention", &format!("{} {code}", paint.fair(&plain(&attention.message))));
        page.hint(&attention.hint);
    }
    if let Some(error) = &status.last_error {
        let since = since(&error.at, now);
        let code = paint.faint(&format!("[{}{since}]", plain(&error.code)));
        page.line("Last error", &format!("{} {code}", paint.bad(&plain(&error.message))));
        page.hint(&error.hint);
    }
    page.lines
}

struct Page {
    lines: String,
}

impl Page {
    fn line(&mut self, name: &str, text: &str) {
        self.lines.push_str(&format!("{name}: {text}\n"));
    }

    fn hint(&mut self, hint: &str) {
        if !hint.is_empty() {
            self.lines.push_str(&format!("  hint: {}\n", plain(hint)));
        }
    }
}

fn since(time: &str, now: SystemTime) -> String {
    ago(time, now).map_or(String::new(), |past| format!(", {} ago", span(past)))
}

/// The server, when it is not on: `off (powered-off)`.
fn server(status: &Status, paint: Paint) -> String {
    let shown = plain(&status.gpu_server);
    let shown = match status.gpu_server.as_str() {
        "off" => paint.faint(&shown),
        _ => paint.fair(&shown),
    };
    // `waking` and `powering-off` say more than why it does not answer.
    let on_its_way = matches!(status.state.as_str(), "waking" | "powering-off");
    let why = if on_its_way { Some(&status.state) } else { status.phase.as_ref().or(status.reason.as_ref()) };
    match why {
        Some(why) => format!("{shown} ({})", plain(why)),
        None if status.gpu_server == "unknown" => format!("{shown} (not looked yet)"),
        None => shown,
    }
}

/// The backend: `llama-cpp ✓`, `llama-cpp ● (starting)`, `none (gpu-idle)`.
fn backend(status: &Status, paint: Paint) -> String {
    let state = plain(&status.state);
    let phase = || status.phase.as_deref().map(plain);
    if let Some(starting) = state.strip_suffix("-starting") {
        let phase = phase().unwrap_or_else(|| "starting".into());
        return format!("{starting} {} ({phase})", paint.fair("●"));
    }
    let active = status.active_backend.as_deref().map(plain);
    match (state.as_str(), active) {
        ("conflict", _) => {
            let up: Vec<_> = status
                .backends
                .iter()
                .filter(|(_, backend)| matches!(backend.state.as_str(), "running" | "loading" | "sick" | "crash-loop"))
                .map(|(name, _)| plain(name))
                .collect();
            format!("{} {} (conflict)", up.join(" + "), paint.bad("✗"))
        }
        ("gpu-idle", _) => "none (gpu-idle)".into(),
        ("stopping", active) => {
            let phase = phase().unwrap_or_else(|| "stopping".into());
            format!("{} {} ({phase})", active.unwrap_or_else(|| "none".into()), paint.fair("●"))
        }
        (_, Some(active)) => match status.health.as_str() {
            "ok" => format!("{active} {}", paint.good("✓")),
            health => format!("{active} {} ({})", paint.bad("✗"), plain(health)),
        },
        (state, None) => format!("none ({state})"),
    }
}

/// `94% + 90% VRAM used`; nothing when nothing is known.
fn gpu(status: &Status) -> Option<String> {
    let memory = status.gpu_memory.as_ref().filter(|gpus| !gpus.is_empty())?;
    let mut gpus: Vec<_> = memory.iter().collect();
    // gpu10 comes after gpu2.
    gpus.sort_by_key(|(name, _)| (name.len(), name.as_str()));
    let used: Vec<_> = gpus
        .into_iter()
        .map(|(_, gpu)| match (gpu.used_mib, gpu.total_mib) {
            (Some(used), Some(total)) if total > 0 => format!("{}%", used * 100 / total),
            _ => "?".into(),
        })
        .collect();
    Some(format!("{} VRAM used", used.join(" + ")))
}

/// `cached (localbot, 48MB)`: what is saved for the active backend, or for any while none is up.
fn slot(status: &Status, now: SystemTime, paint: Paint) -> Option<String> {
    let active = status.active_backend.as_ref();
    let of_active = |saved: &&SavedSlotStatus| active.is_none_or(|name| saved.backend == *name);
    let saved: Vec<_> = status.saved_slot_details.iter().filter(of_active).collect();
    let good: Vec<_> = saved.iter().filter(|saved| saved.put_aside.is_none()).collect();
    let aside = saved.len() - good.len();
    // Of each name the newest.
    let mut names = BTreeSet::new();
    let good: Vec<_> = good
        .into_iter()
        .filter(|saved| names.insert((&saved.backend, &saved.name)))
        .map(|saved| format!("{}, {}", plain(&saved.name), size(saved.bytes)))
        .collect();
    let mut beside = match aside {
        0 => String::new(),
        count => format!(", {count} put aside"),
    };
    for restored in restored(status, &saved, now, paint) {
        beside.push_str(&restored);
    }
    if !good.is_empty() {
        let offer = if status.restore_available {
            format!(" {} wechsler slots restore", paint.fair("→"))
        } else {
            String::new()
        };
        return Some(format!("cached ({}){beside}{offer}", good.join("; ")));
    }
    let has_slots = !status.slots.is_empty() || !saved.is_empty();
    has_slots.then(|| format!("empty{beside}"))
}

/// `, restored 2m ago (saved 3h ago), its effect is not known yet`: what became of the newest restore of each name in this run.
fn restored(status: &Status, saved: &[&SavedSlotStatus], now: SystemTime, paint: Paint) -> Vec<String> {
    let Some(uptime) = status.uptime_seconds else { return vec![] };
    // The server's clock and ours may differ a little.
    let run = Duration::from_secs(uptime) + Duration::from_secs(5);
    let mut newest = BTreeMap::new();
    for saved in saved {
        if let Some(last) = &saved.last_restore
            && ago(&last.at, now).is_some_and(|past| past <= run)
        {
            let entry = newest.entry(&saved.name).or_insert((last, saved));
            // RFC 3339 of one zone: the order of the texts is that of the times.
            if entry.0.at < last.at {
                *entry = (last, saved);
            }
        }
    }
    let several = newest.len() > 1;
    let told = |(name, (last, saved)): (&String, (&RestoreStatus, &&SavedSlotStatus))| {
        let name = if several { format!("{} ", plain(name)) } else { String::new() };
        let (restored, saved) = (slots::ago_text(&last.at, now), slots::ago_text(&saved.saved_at, now));
        format!(", {name}restored {restored} (saved {saved}){}", slots::worth(last, paint))
    };
    newest.into_iter().map(told).collect()
}

/// `start llama-cpp · restoring · 12s of ~20s (number 7)`.
fn operation_line(operation: &OperationStatus, now: SystemTime) -> String {
    format!("{} (number {})", progress(operation, now), operation.id)
}

/// What, phase and time of an operation under way, for one line.
pub(super) fn progress(operation: &OperationStatus, now: SystemTime) -> String {
    let elapsed = ago(&operation.started, now).or_else(|| seconds(operation.elapsed_seconds)).unwrap_or_default();
    let elapsed_text = span(elapsed);
    let time = match operation.expected_seconds.and_then(seconds) {
        Some(expected) if expected >= elapsed => {
            format!("{elapsed_text} of ~{}", span(expected.max(Duration::from_secs(1))))
        }
        Some(expected) => format!("{elapsed_text}, usually {}", span(expected)),
        None => elapsed_text,
    };
    let policy = match operation.cause.as_str() {
        "" | "command" => String::new(),
        cause => format!(" by {}", plain(cause)),
    };
    format!("{}{policy} · {} · {time}", what(&operation.kind, operation.goal.as_deref()), plain(&operation.phase))
}

/// `start llama-cpp`, `stop`.
pub(super) fn what(kind: &str, goal: Option<&str>) -> String {
    match goal {
        Some(goal) => format!("{} {}", plain(kind), plain(goal)),
        None => plain(kind),
    }
}

/// `3: awake for 1h 59m, by alice (long run)`.
pub(super) fn hold_line(hold: &HoldStatus, now: SystemTime) -> String {
    let lasts = match &hold.until {
        None => "until released".into(),
        Some(end) => {
            until(end, now).map_or_else(|| format!("until {}", plain(end)), |left| format!("for {}", span(left)))
        }
    };
    let reason = match hold.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({})", plain(reason)),
    };
    format!("{}: {} {lasts}, by {}{reason}", hold.id, plain(&hold.what), plain(&hold.by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::status::{AttentionStatus, BackendStatus, ErrorStatus, NextActionStatus};

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn lines(status: &Status) -> String {
        let now = humantime::parse_rfc3339(NOW).unwrap();
        render(status, now, Paint::PLAIN)
    }

    fn on(state: &str) -> Status {
        Status { gpu_server: "on".into(), state: state.into(), health: "ok".into(), ..Status::default() }
    }

    #[test]
    fn a_server_that_is_off_says_why() {
        let mut status = Status {
            gpu_server: "off".into(),
            state: "gpu-offline".into(),
            reason: Some("powered-off".into()),
            ..Status::default()
        };
        assert_eq!(lines(&status), "GPU server: off (powered-off)\n");
        status.state = "waking".into();
        assert_eq!(lines(&status), "GPU server: off (waking)\n");
        status.gpu_server = "unknown".into();
        status.state = "unknown".into();
        status.reason = None;
        assert_eq!(lines(&status), "GPU server: unknown (not looked yet)\n");
    }

    #[test]
    fn a_backend_on_its_way_shows_its_phase() {
        let mut status = on("llama-cpp-starting");
        assert_eq!(lines(&status), "Backend: llama-cpp ● (starting)\n");
        status.phase = Some("restoring".into());
        assert_eq!(lines(&status), "Backend: llama-cpp ● (restoring)\n");
        status.state = "stopping".into();
        status.active_backend = Some("vllm".into());
        status.phase = Some("draining".into());
        assert_eq!(lines(&status), "Backend: vllm ● (draining)\n");
        assert_eq!(lines(&on("gpu-idle")), "Backend: none (gpu-idle)\n");
    }

    #[test]
    fn a_conflict_names_those_that_are_up() {
        let mut status = on("conflict");
        for name in ["llama-cpp", "vllm"] {
            let backend = BackendStatus { state: "running".into(), ..BackendStatus::default() };
            status.backends.insert(name.into(), backend);
        }
        assert_eq!(lines(&status), "Backend: llama-cpp + vllm ✗ (conflict)\n");
    }

    #[test]
    fn what_else_there_is_to_say_comes_below() {
        let status = Status {
            operation: Some(OperationStatus {
                id: 7,
                kind: "start".into(),
                goal: Some("vllm".into()),
                cause: "command".into(),
                phase: "starting".into(),
                started: "2026-01-02T03:03:53Z".into(),
                elapsed_seconds: 0.0,
                expected_seconds: Some(80.0),
            }),
            holds: vec![HoldStatus {
                id: 3,
                what: "awake".into(),
                until: Some("2026-01-02T05:04:05Z".into()),
                reason: "long\nrun".into(),
                by: "alice".into(),
            }],
            next_action: Some(NextActionStatus {
                what: "power-off".into(),
                at: "2026-01-02T03:16:05Z".into(),
                because: "idle.power_off_after".into(),
            }),
            attention: vec![AttentionStatus {
                code: "wake_unarmed".into(),
                message: "The network card is not armed.".into(),
                hint: "arm it".into(),
                since: "2026-01-02T01:04:05Z".into(),
                backend: None,
            }],
            last_error: Some(ErrorStatus {
                code: "health_timeout".into(),
                message: "It did not become healthy in time.".into(),
                hint: "read the journal".into(),
                at: "2026-01-02T02:59:05Z".into(),
            }),
            ..on("vllm-starting")
        };
        assert_eq!(
            lines(&status),
            "Backend: vllm ● (starting)\n\
             Operation: start vllm · starting · 12s of ~1m 20s (number 7)\n\
             Hold: 3: awake for 2h, by alice (long\\nrun)\n\
             Next: power-off in 12m (idle.power_off_after)\n\
             Attention: The network card is not armed. [wake_unarmed, 2h ago]\n  hint: arm it\n\
             Last error: It did not become healthy in time. [health_timeout, 5m ago]\n  hint: read the journal\n"
        );
    }

    #[test]
    fn what_became_of_a_restore_stands_beside_the_slot_for_as_long_as_the_run_lasts() {
        let last = |at: &str, verdict: &str, text: &str| RestoreStatus {
            at: at.into(),
            verdict: verdict.into(),
            text: text.into(),
            ..RestoreStatus::default()
        };
        let saved = |name: &str, last| SavedSlotStatus {
            name: name.into(),
            backend: "llama-cpp".into(),
            bytes: 48_000_000,
            saved_at: "2026-01-02T00:04:05Z".into(),
            last_restore: Some(last),
            ..SavedSlotStatus::default()
        };
        let fresh = last("2026-01-02T03:02:05Z", "unknown", "its effect is not known yet");
        let mut status = on("llama-cpp");
        status.active_backend = Some("llama-cpp".into());
        status.uptime_seconds = Some(180);
        status.saved_slot_details = vec![saved("localbot", fresh.clone())];
        let shown = |status: &Status| lines(status).lines().nth(1).unwrap_or_default().to_owned();
        assert_eq!(
            shown(&status),
            "Slot: cached (localbot, 48MB), restored 2m ago (saved 3h ago), its effect is not known yet"
        );
        let used = last("2026-01-02T03:02:05Z", "effective", "effective, 98% of the prompt reused");
        status.saved_slot_details.push(saved("talk", used));
        assert_eq!(
            shown(&status),
            "Slot: cached (localbot, 48MB; talk, 48MB), localbot restored 2m ago (saved 3h ago), its effect is not known yet, \
             talk restored 2m ago (saved 3h ago): effective, 98% of the prompt reused"
        );
        status.uptime_seconds = Some(60);
        assert_eq!(shown(&status), "Slot: cached (localbot, 48MB; talk, 48MB)", "that was another run");
    }

    #[test]
    fn a_saved_slot_that_could_be_restored_is_offered() {
        let saved = |backend: &str, put_aside: Option<&str>| SavedSlotStatus {
            name: "localbot".into(),
            backend: backend.into(),
            bytes: 48_000_000,
            put_aside: put_aside.map(Into::into),
            ..SavedSlotStatus::default()
        };
        let mut status = on("llama-cpp");
        status.active_backend = Some("llama-cpp".into());
        status.saved_slot_details = vec![saved("llama-cpp", None), saved("llama-cpp", None), saved("other", None)];
        status.restore_available = true;
        assert_eq!(lines(&status), "Backend: llama-cpp ✓\nSlot: cached (localbot, 48MB) → wechsler slots restore\n");
        status.saved_slot_details = vec![saved("llama-cpp", Some("truncated"))];
        status.restore_available = false;
        assert_eq!(lines(&status), "Backend: llama-cpp ✓\nSlot: empty, 1 put aside\n");
    }
}
