//! The server of `vLLM` (facts observed on 0.32 and 0.33).
//!
//! * Its port is refused during the whole load and 503 means that its engine is dead: the opposite of llama.cpp.
//! * `/health` is 200 while it sleeps or drains; only its metrics tell. `/load` says 0 when nobody counts and is not asked.
//! * `/health` and `/metrics` need no key, `/v1/models` does.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Probe, prometheus,
    wire::{MOST_ANSWER_BYTES, WireError},
};
use crate::machine::reading::{Activity, Http, Identity};

#[derive(Debug, Deserialize)]
struct Version {
    version: String,
}

impl Probe {
    /// Who the server says it is.
    pub(super) async fn vllm_identity(&self, deadline: Instant) -> Result<Identity, Http> {
        let model = self.expected_model("vllm", &[], deadline).await?;
        let build = match self.wire.get("/version", deadline).await {
            Ok(answer) => answer.json::<Version>().ok().map(|v| v.version),
            Err(_) => None,
        };
        Ok(Identity { model: Some(model.id), n_ctx: model.max_model_len, build })
    }

    pub(super) async fn vllm_activity(&self, deadline: Instant) -> Result<Activity, WireError> {
        let answer = self.wire.get_open("/metrics", MOST_ANSWER_BYTES, deadline).await?;
        if answer.status.as_u16() != 200 {
            return Ok(Activity::default());
        }
        Ok(activity(&String::from_utf8_lossy(&answer.body)))
    }
}

/// What a page of vLLM's metrics says of its use. Tolerant: what cannot be read is not known.
#[must_use]
pub fn activity(page: &str) -> Activity {
    let in_flight = (|| {
        let running = prometheus::sum(page, "vllm:num_requests_running")?;
        let waiting = prometheus::sum(page, "vllm:num_requests_waiting")?;
        Some(super::count(running + waiting))
    })();
    let mark = (|| {
        let generated = prometheus::sum(page, "vllm:generation_tokens_total")?;
        let prompted = prometheus::sum(page, "vllm:prompt_tokens_total")?;
        let mut hasher = DefaultHasher::new();
        (generated.to_bits(), prompted.to_bits()).hash(&mut hasher);
        Some(hasher.finish())
    })();
    let sleeping = prometheus::samples(page).any(|s| {
        s.name == "vllm:engine_sleep_state"
            && s.value > 0.0
            && (s.is_labelled("sleep_state", "weights_offloaded") || s.is_labelled("sleep_state", "discard_all"))
    });
    Activity { in_flight, mark, sleeping, ..Activity::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_running_and_waiting_are_summed_over_engines() {
        let page = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 4.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 4.0\n";
        assert_eq!(activity(page).in_flight, Some(7));
    }

    #[test]
    fn with_statistics_switched_off_nothing_is_known() {
        let activity = activity("process_start_time_seconds 1.7e9\n");
        assert_eq!((activity.in_flight, activity.mark), (None, None));
        assert!(!activity.sleeping);
    }

    #[test]
    fn trap_12_a_sleeping_engine_is_told_by_its_metrics() {
        let page = "vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0.0\n\
            vllm:engine_sleep_state{engine=\"0\",sleep_state=\"weights_offloaded\"} 1.0\n\
            vllm:engine_sleep_state{engine=\"0\",sleep_state=\"discard_all\"} 0.0\n";
        assert!(activity(page).sleeping);
        let awake = page.replace("\"} 1.0", "\"} 0.0").replacen("0.0", "1.0", 1);
        assert!(!activity(&awake).sleeping);
    }

    #[test]
    fn the_mark_moves_with_generation_only() {
        let page = |generated: u32, probes: u32| {
            activity(&format!(
                "vllm:generation_tokens_total{{engine=\"0\"}} {generated}\n\
                 vllm:prompt_tokens_total{{engine=\"0\"}} 10\n\
                 http_requests_total{{handler=\"/v1/models\"}} {probes}\n"
            ))
            .mark
        };
        assert_eq!(page(1, 1), page(1, 2));
        assert_ne!(page(1, 1), page(2, 1));
    }
}
