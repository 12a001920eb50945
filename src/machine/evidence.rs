//! What is evidence: from readings to values, by one total function.

use super::{Instant, Look, Policy, reading::Reading};

/// Judges the newest readings.
#[must_use]
pub fn judge(reading: &Reading, policy: &Policy, now: Instant) -> Look {
    let _ = (reading, now);
    Look::nothing(policy.backends.len())
}
