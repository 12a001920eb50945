//! `GET /metrics`.

use std::{fmt::Write as _, time::Duration};

use super::core::{Bucket, State, count};

/// The page. The two averages are over the time since anybody last looked.
pub(super) fn page(state: &mut State) -> String {
    let counters = state.counters.clone();
    let bucket = std::mem::take(&mut state.counters.bucket);
    let Bucket { prompt, prompt_time, predicted, predicted_time } = bucket;
    let all: [(&str, &str, &str, f64); 15] = [
        ("prompt_tokens_total", "Number of prompt tokens processed, excluding cached tokens", C, n(counters.prompt)),
        ("prompt_tokens_cached_total", "Number of prompt tokens reused from the cache", C, n(counters.cached)),
        ("prompt_seconds_total", "Total time spent processing prompts", C, counters.prompt_time.as_secs_f64()),
        ("tokens_predicted_total", "Number of generation tokens processed", C, n(counters.predicted)),
        (
            "tokens_predicted_seconds_total",
            "Total time spent generating tokens",
            C,
            counters.predicted_time.as_secs_f64(),
        ),
        ("n_decode_total", "Total number of llama_decode() calls", C, n(counters.decodes)),
        ("n_tokens_max", "Largest observed sequence length (prompt + generation)", C, n(counters.most_tokens)),
        ("spec_decode_num_draft_tokens_total", "Speculative: Total draft tokens generated", C, 0.0),
        ("spec_decode_num_accepted_tokens_total", "Speculative: Total draft tokens accepted", C, 0.0),
        ("spec_decode_num_drafts_total", "Speculative: Total verification steps", C, 0.0),
        ("prompt_tokens_seconds", "Average prompt throughput in tokens/s", G, rate(prompt, prompt_time)),
        ("predicted_tokens_seconds", "Average generation throughput in tokens/s", G, rate(predicted, predicted_time)),
        ("requests_processing", "Number of requests processing", G, n(count(state.busy_with_requests()))),
        ("requests_deferred", "Number of requests deferred", G, f64::from(state.deferred)),
        (
            "n_busy_slots_per_decode",
            "Average number of busy slots per llama_decode() call",
            G,
            n(counters.busy_in_decodes) / n(counters.decodes.max(1)),
        ),
    ];
    let mut page = String::new();
    for (name, help, kind, value) in all {
        let _ = writeln!(page, "# HELP llamacpp:{name} {help}");
        let _ = writeln!(page, "# TYPE llamacpp:{name} {kind}");
        let _ = writeln!(page, "llamacpp:{name} {value}");
    }
    page
}

const C: &str = "counter";
const G: &str = "gauge";

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
const fn n(count: u64) -> f64 {
    count as f64
}

fn rate(tokens: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n(tokens) / time.as_secs_f64() }
}
