//! Holds: wishes for things to stay as they are.

use serde::{Deserialize, Serialize};

use super::{Held, HoldId, Instant};

/// A hold in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hold {
    /// Its name.
    pub id: HoldId,
    /// What is held.
    pub what: Held,
    /// Until when; `None` until released.
    pub until: Option<Instant>,
    /// Why, for people.
    pub reason: String,
    /// Who, for people.
    pub by: String,
}
