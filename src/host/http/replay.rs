//! A prompt sent back to a llama-server, to see how much of it a slot still has. That is a request as people make them: it
//! moves the counters and fills the slot. So what it did is remembered, and taken out of what the server shows of its use.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Probe,
    llama::{Slot, SlotError, failure},
    prometheus,
};
use crate::machine::reading::Reuse;

/// The counters that a request moves.
pub(super) const DECODED: &str = "llamacpp:n_decode_total";
pub(super) const COMPUTED: &str = "llamacpp:prompt_tokens_total";
pub(super) const REUSED: &str = "llamacpp:prompt_tokens_cached_total";
pub(super) const PREDICTED: &str = "llamacpp:tokens_predicted_total";

/// What our own requests did in one process of the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// By slot, the task that was ours, and the tokens that the slot held after it.
    slots: BTreeMap<u32, (i64, u64)>,
    /// By counter.
    counted: BTreeMap<&'static str, f64>,
}

impl Own {
    /// A slot whose last request was ours shows as it would without it.
    pub(super) fn hide(&self, slot: &mut Slot) {
        let last = slot.id_task.zip(slot.n_prompt_tokens);
        if last.is_some() && self.slots.get(&slot.id).copied() == last {
            (slot.id_task, slot.n_prompt_tokens) = (None, None);
        }
    }

    /// A counter of `page` without what was ours. `None` if it is not there.
    pub(super) fn sum(&self, page: &str, name: &str) -> Option<f64> {
        let ours = self.counted.get(name).copied().unwrap_or(0.0);
        Some((prometheus::sum(page, name)? - ours).max(0.0))
    }

    fn count(&mut self, name: &'static str, more: f64) {
        *self.counted.entry(name).or_default() += more;
    }
}

#[derive(Debug, Deserialize)]
struct Replayed {
    timings: Timings,
}

#[derive(Debug, Deserialize)]
struct Timings {
    #[serde(rename = "cache_n")]
    reused: u64,
    #[serde(rename = "prompt_n")]
    computed: u64,
    #[serde(rename = "predicted_n", default)]
    predicted: u64,
}

impl Probe {
    /// Sends `tokens` to a slot with nothing to predict, and tells how many of them it had already. Only for a slot that is
    /// idle and has just been restored: whatever else it held would give way.
    ///
    /// Ends within `within`. Given up, the request ends on the server as soon as that notices; how much it did is not known,
    /// so that it shows as use.
    pub(crate) async fn replay(&self, slot: u32, tokens: &[u32], within: Duration) -> Result<Reuse, SlotError> {
        let deadline = Instant::now() + within;
        let decoded_before = self.decoded(deadline).await;
        // Without the last field the answer holds the whole prompt once more, as text.
        let body = serde_json::json!({
            "prompt": tokens, "n_predict": 0, "id_slot": slot, "cache_prompt": true, "response_fields": ["timings"],
        });
        let answer = self.wire.post("/completion", &body, deadline.saturating_duration_since(Instant::now())).await?;
        if answer.status.as_u16() != 200 {
            return Err(failure(&answer));
        }
        let Replayed { timings } = answer.json()?;
        let decoded = self.decoded(deadline).await;
        let slots = self.slots_by(deadline).await?;
        let after = slots.iter().find(|now| now.id == slot).and_then(|now| now.id_task.zip(now.n_prompt_tokens));
        let own = &mut self.known().own;
        if let Some(after) = after {
            own.slots.insert(slot, after);
        }
        #[expect(clippy::cast_precision_loss, reason = "tokens of a prompt are far below 2^52")]
        for (name, more) in [(REUSED, timings.reused), (COMPUTED, timings.computed), (PREDICTED, timings.predicted)] {
            own.count(name, more as f64);
        }
        if let (Some(before), Some(after)) = (decoded_before, decoded) {
            own.count(DECODED, after - before);
        }
        Ok(Reuse { reused: timings.reused, computed: timings.computed })
    }

    async fn decoded(&self, deadline: Instant) -> Option<f64> {
        prometheus::sum(&self.metrics_page(deadline).await.ok()??, DECODED)
    }
}
