//! What storms do not reach of the matrix.

use wechsler::machine::Kind;

/// Cells of the matrix that these storms do not reach, and why.
pub const CALM: &[(&str, &[(Kind, &str)])] = {
    use Kind::{
        Conflict, Draining, Idle, Offline, PoweringOff, Restoring, Running, Starting, Stopping, Unknown, Waking,
    };
    &[
        (
            "the first look of a storm comes at once, of a server that is on or off",
            &[
                (Unknown, "look: booting"),
                (Unknown, "look: on, several up"),
                (Unknown, "look: no SSH, but a backend answers"),
                (Unknown, "answer: succeeded"),
                (Unknown, "answer: failed"),
                (Unknown, "answer: lost"),
                (Unknown, "tick"),
            ],
        ),
        (
            "wake packets are always sent there, and no other order is under way in that leaf, or only one that was replaced",
            &[
                (Offline, "answer: failed"),
                (Waking, "answer: failed"),
                (Waking, "answer: lost"),
                (Idle, "answer: failed"),
                (Running, "answer: failed"),
                (Draining, "answer: succeeded"),
                (Draining, "answer: failed"),
                (Draining, "answer: lost"),
                (Conflict, "answer: succeeded"),
                (Conflict, "answer: failed"),
            ],
        ),
        (
            "a boot there takes longer than that leaf lasts without its server, and one that goes down is silent at once",
            &[
                (Starting, "look: booting"),
                (Restoring, "look: booting"),
                (Restoring, "look: waits for a passphrase"),
                (Draining, "look: booting"),
                (Stopping, "look: waits for a passphrase"),
                (PoweringOff, "look: booting"),
                (PoweringOff, "look: waits for a passphrase"),
                (Conflict, "look: booting"),
            ],
        ),
        (
            "two things would have to happen between two looks",
            &[
                (Restoring, "look: on, no backend up"),
                (Draining, "look: on, no backend up"),
                (Draining, "look: login refused"),
                (PoweringOff, "look: on, several up"),
                (Conflict, "look: on, no backend up"),
                (Conflict, "look: on, one up"),
            ],
        ),
    ]
};
