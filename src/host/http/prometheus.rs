//! Prometheus' text format, as much of it as gauges and counters need. Tolerant: a line that cannot be read is skipped.

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    /// Metric name.
    pub(crate) name: &'a str,
    /// What stands between the braces.
    labels: &'a str,
    /// Its value.
    pub(crate) value: f64,
}

impl Sample<'_> {
    /// Whether it carries this label with this value (which must need no escaping).
    pub(crate) fn is_labelled(&self, label: &str, value: &str) -> bool {
        let wanted = format!("{label}=\"{value}\"");
        let mut rest = self.labels;
        while let Some(at) = rest.find(&wanted) {
            if at == 0 || rest[..at].trim_end().ends_with(',') {
                return true;
            }
            rest = &rest[at + wanted.len()..];
        }
        false
    }
}

/// The samples of a page, in its order.
pub(crate) fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines().filter_map(sample)
}

/// The sum over all label sets of a metric (engines, models); `None` if it is not there or not a number.
pub(crate) fn sum(page: &str, name: &str) -> Option<f64> {
    samples(page).filter(|s| s.name == name).map(|s| s.value).reduce(|a, b| a + b).filter(|sum| sum.is_finite())
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end_of_name = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end_of_name);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => {
            let end = closing_brace(rest)?;
            (&rest[..end], &rest[end + 1..])
        }
        None => ("", rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Sample { name, labels, value })
}

/// Where the labels end: a brace within quotes does not count.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP vllm:num_requests_running Number of requests\n\
        # TYPE vllm:num_requests_running gauge\n\
        vllm:num_requests_running{engine=\"0\",model_name=\"a}b\\\" c\"} 2.0\n\
        vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 1.0 1395066363000\n\
        llamacpp:n_decode_total 1.5e+03\n\
        half a line{\n\
        broken{x=\"y\" 1\n\
        nonsense twelve\n\
        {} 1\n\
        odd NaN\n";

    #[test]
    fn sums_run_over_all_label_sets_and_braces_within_quotes_do_not_matter() {
        assert_eq!(sum(PAGE, "vllm:num_requests_running"), Some(3.0));
        assert_eq!(sum(PAGE, "llamacpp:n_decode_total"), Some(1500.0));
    }

    #[test]
    fn what_is_missing_or_not_a_number_is_none() {
        assert_eq!(sum(PAGE, "vllm:num_requests_waiting"), None);
        assert_eq!(sum(PAGE, "odd"), None);
        assert_eq!(sum(PAGE, "broken"), None);
        assert_eq!(sum("", "x"), None);
    }

    #[test]
    fn labels_are_matched_whole() {
        let page = "s{engine=\"0\",sleep_state=\"awake\"} 1\n";
        let sample = samples(page).next().expect("one sample");
        assert!(sample.is_labelled("sleep_state", "awake"));
        assert!(sample.is_labelled("engine", "0"));
        assert!(!sample.is_labelled("state", "awake"));
        assert!(!sample.is_labelled("sleep_state", "discard_all"));
    }
}
