//! `endpoints`: where the backends are reached, a line each, in the `/lbe` form.

use super::text::{Paint, estimate, plain, seconds};
use crate::front::protocol::Endpoint;

/// All lines.
pub(super) fn render(endpoints: &[Endpoint], paint: Paint) -> String {
    let names: Vec<String> = endpoints.iter().map(|endpoint| format!("{}:", plain(&endpoint.name))).collect();
    let widest = names.iter().map(|name| name.chars().count()).max();
    endpoints
        .iter()
        .zip(names)
        .map(|(endpoint, name)| {
            let widest = widest.unwrap_or_default();
            let url = plain(&endpoint.url);
            format!("{name:widest$} {url} {}\n", state(endpoint, paint))
        })
        .collect()
}

/// Mark and words, as `● (stopped, ~80s to start)`.
fn state(endpoint: &Endpoint, paint: Paint) -> String {
    let to_start = endpoint
        .start_seconds_expected
        .and_then(seconds)
        .map_or(String::new(), |time| format!(", ~{} to start", estimate(time)));
    let fair = paint.fair("●");
    match endpoint.state.as_str() {
        "running" if endpoint.active => format!("{} (active)", paint.good("✓")),
        "running" => format!("{} (running)", paint.bad("✗")),
        "stopped" => format!("{} (stopped{to_start})", paint.faint("●")),
        "off" => format!("{} (server off{to_start})", paint.faint("●")),
        "loading" => format!("{fair} (starting)"),
        "lingering" => format!("{fair} (stopping)"),
        "unknown" => format!("{} (unknown)", paint.faint("?")),
        "missing" => format!("{} (no such unit)", paint.bad("✗")),
        "crash-loop" => format!("{} (crash loop)", paint.bad("✗")),
        other => format!("{} ({})", paint.bad("✗"), plain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, state: &str, active: bool, start: Option<f64>) -> Endpoint {
        Endpoint {
            name: name.into(),
            kind: name.into(),
            url: format!("http://{name}:80{}0/v1", if active { 8 } else { 0 }),
            active,
            state: state.into(),
            start_seconds_expected: start,
        }
    }

    #[test]
    fn endpoints_read_as_in_the_workflows() {
        let endpoints =
            [endpoint("llama-cpp", "running", true, Some(8.2)), endpoint("vllm", "stopped", false, Some(80.0))];
        assert_eq!(
            render(&endpoints, Paint::PLAIN),
            "llama-cpp: http://llama-cpp:8080/v1 ✓ (active)\n\
             vllm:      http://vllm:8000/v1 ● (stopped, ~80s to start)\n"
        );
    }

    #[test]
    fn a_start_time_nobody_knows_is_left_out() {
        let endpoints = [endpoint("vllm", "stopped", false, None)];
        assert_eq!(render(&endpoints, Paint::PLAIN), "vllm: http://vllm:8000/v1 ● (stopped)\n");
    }
}
