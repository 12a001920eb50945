//! `slots …`: what is held and saved, and what is done about it.

use std::{collections::BTreeMap, time::SystemTime};

use super::{
    Caller,
    args::{SlotsVerb, Way},
    json,
    text::{Paint, ago, plain, say, size, span, tokens},
    trouble::{Exit, Trouble},
};
use crate::{
    driver::{
        status::{RestoreStatus, SavedSlotStatus, SlotStatus},
        world::SlotTold,
    },
    front::protocol::{CommandRequest, CommandWord, Slots, VerifyRequest},
};

/// The command of a verb that is one.
pub(super) fn command(verb: &SlotsVerb) -> Option<(CommandRequest, Way)> {
    match verb {
        SlotsVerb::Save { name, slot, way } => {
            let request = CommandRequest::new(CommandWord::Save);
            Some((CommandRequest { name: name.clone(), slot: *slot, ..request }, *way))
        }
        SlotsVerb::Restore { name, slot, generation, way } => {
            let request = CommandRequest::new(CommandWord::Restore);
            let request = CommandRequest { name: name.clone(), slot: *slot, generation: *generation, ..request };
            Some((request, *way))
        }
        SlotsVerb::List | SlotsVerb::Forget { .. } | SlotsVerb::Verify { .. } => None,
    }
}

impl Caller {
    /// Does what is no command, at once.
    pub(super) async fn slots(&self, verb: &SlotsVerb) -> Result<Exit, Trouble> {
        let tended = match verb {
            SlotsVerb::Forget { name, generation, backend } => {
                self.client.forget(name, *generation, backend.as_deref()).await?
            }
            SlotsVerb::Verify { name, generation, backend } => {
                let (name, backend) = (name.clone(), backend.clone());
                self.client.verify(&VerifyRequest { name, generation: *generation, backend }).await?
            }
            _ => {
                let slots = self.client.slots().await?;
                let text = if self.json { json(&slots) + "\n" } else { list(&slots, SystemTime::now(), self.paint) };
                say(&text);
                return Ok(Exit::Done);
            }
        };
        let exit = if tended.slots.iter().all(is_well) { Exit::Done } else { Exit::Failed };
        let text = if self.json {
            json(&serde_json::json!({"outcome": exit.word(), "exit_code": exit as u8, "slots": tended.slots})) + "\n"
        } else {
            tended.slots.iter().map(|end| end_line(end, self.paint)).collect()
        };
        say(&text);
        Ok(exit)
    }
}

/// Nothing is wrong with it, as far as can be told.
fn is_well(end: &SlotTold) -> bool {
    matches!(end.code.as_str(), "forgotten" | "whole" | "digest_unknown")
}

fn end_line(end: &SlotTold, paint: Paint) -> String {
    let code = if is_well(end) { paint.good(&plain(&end.code)) } else { paint.bad(&plain(&end.code)) };
    let message = if end.message.is_empty() { String::new() } else { format!(": {}", plain(&end.message)) };
    format!("{} {}: {code}{message}\n", plain(&end.name), end.generation)
}

/// Live slots, then saved ones, by backend and name, newest first.
fn list(slots: &Slots, now: SystemTime, paint: Paint) -> String {
    let mut lines: String = slots.slots.iter().map(live).collect();
    let mut names: BTreeMap<(&str, &str), Vec<&SavedSlotStatus>> = BTreeMap::new();
    for saved in &slots.saved {
        names.entry((&saved.backend, &saved.name)).or_default().push(saved);
    }
    for ((backend, name), generations) in names {
        lines.push_str(&format!("saved {} of {}\n", plain(name), plain(backend)));
        lines.extend(generations.into_iter().map(|saved| generation(saved, now, paint)));
    }
    if lines.is_empty() {
        lines.push_str("no slots, none saved\n");
    }
    lines
}

fn live(slot: &SlotStatus) -> String {
    let held = match (slot.tokens, slot.restored_tokens) {
        (Some(count), _) => format!("{count} tokens"),
        (None, Some(count)) => format!("{count} tokens restored, not used yet,"),
        (None, None) => "unused".into(),
    };
    let busy = if slot.is_processing { ", busy" } else { "" };
    format!("slot {}: {held} of {}{busy}\n", slot.id, tokens(slot.n_ctx))
}

/// `  12: 4096 tokens, 50MB, 2h ago, model; restored 1h ago: effective, 98% of the prompt reused`.
fn generation(saved: &SavedSlotStatus, now: SystemTime, paint: Paint) -> String {
    let age = ago_text(&saved.saved_at, now);
    let told = |last: &RestoreStatus| format!("; restored {}{}", ago_text(&last.at, now), worth(last, paint));
    let restore = saved.last_restore.as_ref().map_or(String::new(), told);
    // A reason is a sentence, and has a line of its own. That it is of this name stands above.
    let line = |what: &str, why: &str| {
        let why = why.replacen(&format!("{}: ", saved.name), "", 1);
        format!("     {}\n", paint.fair(&format!("{what}: {}", plain(&why))))
    };
    let wrong = match (&saved.put_aside, &saved.useless) {
        (Some(why), _) => line("put aside", why),
        (None, Some(why)) => line("not restored by itself", why),
        (None, None) => String::new(),
    };
    format!(
        "  {}: {} tokens, {}, {age}, {}{restore}\n{wrong}",
        saved.generation,
        saved.tokens,
        size(saved.bytes),
        plain(&saved.model),
    )
}

/// What a restore was worth: `, its effect is not known yet`, `: effective, 98% of the prompt reused`.
pub(super) fn worth(last: &RestoreStatus, paint: Paint) -> String {
    let text = plain(&last.text);
    match last.verdict.as_str() {
        "unknown" => format!(", {text}"),
        "effective" => format!(": {}", paint.good(&text)),
        _ => format!(": {}", paint.fair(&text)),
    }
}

pub(super) fn ago_text(at: &str, now: SystemTime) -> String {
    ago(at, now).map_or_else(|| plain(at), |age| format!("{} ago", span(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(name: &str, generation: u64) -> SavedSlotStatus {
        SavedSlotStatus {
            name: name.into(),
            backend: "llama-cpp".into(),
            bytes: 50_000_000,
            saved_at: "2026-01-02T02:04:05Z".into(),
            model: "Nemotron".into(),
            tokens: 4096,
            generation,
            ..SavedSlotStatus::default()
        }
    }

    fn shown(slots: Vec<SlotStatus>, saved: Vec<SavedSlotStatus>) -> String {
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05Z").expect("a time");
        list(&Slots { slots, saved, restore_available: false }, now, Paint::PLAIN)
    }

    #[test]
    fn generations_stand_under_their_name_with_what_their_restore_was_worth() {
        let last = |verdict: &str, reused: Option<u64>| RestoreStatus {
            at: "2026-01-02T03:03:05Z".into(),
            tokens: 4096,
            verdict: verdict.into(),
            text: if reused.is_some() {
                format!("{verdict}, 90% of the prompt reused")
            } else {
                "its effect is not known yet".into()
            },
            reused,
            computed: reused.map(|_| 100),
        };
        let slot = SlotStatus { id: 0, n_ctx: 8192, is_processing: true, tokens: Some(12), restored_tokens: None };
        let text = shown(
            vec![slot],
            vec![
                SavedSlotStatus { last_restore: Some(last("effective", Some(900))), ..saved("localbot", 9) },
                SavedSlotStatus { last_restore: Some(last("unknown", None)), ..saved("localbot-1", 9) },
                SavedSlotStatus { put_aside: Some("restore_rejected: localbot: 400".into()), ..saved("localbot", 8) },
                SavedSlotStatus { useless: Some("no effect".into()), ..saved("localbot", 7) },
            ],
        );
        assert_eq!(
            text,
            "slot 0: 12 tokens of 8k, busy\n\
             saved localbot of llama-cpp\n  \
             9: 4096 tokens, 50MB, 1h ago, Nemotron; restored 1m ago: effective, 90% of the prompt reused\n  \
             8: 4096 tokens, 50MB, 1h ago, Nemotron\n     put aside: restore_rejected: 400\n  \
             7: 4096 tokens, 50MB, 1h ago, Nemotron\n     not restored by itself: no effect\n\
             saved localbot-1 of llama-cpp\n  \
             9: 4096 tokens, 50MB, 1h ago, Nemotron; restored 1m ago, its effect is not known yet\n"
        );
        let restored = SlotStatus { id: 0, n_ctx: 4096, restored_tokens: Some(1308), ..SlotStatus::default() };
        assert_eq!(shown(vec![restored], vec![]), "slot 0: 1308 tokens restored, not used yet, of 4k\n");
        assert_eq!(shown(vec![], vec![]), "no slots, none saved\n");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_and_fails() {
        let end = |code: &str, message: &str| SlotTold {
            name: "localbot".into(),
            generation: 9,
            code: code.into(),
            message: message.into(),
        };
        assert_eq!(end_line(&end("whole", ""), Paint::PLAIN), "localbot 9: whole\n");
        assert_eq!(end_line(&end("damaged", "too short"), Paint::PLAIN), "localbot 9: damaged: too short\n");
        assert!(is_well(&end("forgotten", "")) && !is_well(&end("missing", "")));
    }
}
