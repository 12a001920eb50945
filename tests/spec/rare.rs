//! What storms rarely meet of the matrix.

use wechsler::machine::Kind;

/// Cells of the matrix that fewer than one storm in 2,500 meets, so that a run may miss them. 240,000 storms met them all.
pub const RARE: &[(Kind, &str)] = {
    use Kind::{Conflict, Draining, PoweringOff, Restoring, Saving, Unknown, Waking};
    &[
        (Unknown, "answer: lost"),
        (Unknown, "answer: failed"),
        (Unknown, "answer: succeeded"),
        (Waking, "look: on, several up"),
        (Restoring, "look: login refused"),
        (Draining, "answer: failed"),
        (Draining, "answer: lost"),
        (Draining, "look: login refused"),
        (Saving, "look: login refused"),
        (PoweringOff, "look: on, one up"),
        (PoweringOff, "look: on, several up"),
        (PoweringOff, "look: wrong host key"),
        (PoweringOff, "look: login refused"),
        (PoweringOff, "look: no SSH, but a backend answers"),
        (Conflict, "answer: failed"),
        (Conflict, "answer: lost"),
        (Conflict, "look: login refused"),
    ]
};
