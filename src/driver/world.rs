//! The one seam to reality: everything the driver asks of the world.

use std::future::Future;

use crate::machine::{
    BackendId, Instant, Outcome, Verb,
    reading::{Ask, Reading},
};

/// The server, as the driver can see and move it. The real one is [`crate::host::Host`]; tests bring their own.
///
/// Every future ends by itself within its own deadlines; the driver bounds it once more.
pub trait World: Send + Sync + 'static {
    /// Looks at what is asked for. `now` is the daemon's time when the question is sent: it dates the readings.
    /// Never fails: a source that cannot be read says so in its reading.
    fn look(&self, ask: Ask, now: Instant) -> impl Future<Output = Reading> + Send;

    /// Carries out one order. Dropping the future must leave nothing behind but doubt.
    fn carry_out(&self, verb: Verb, within: std::time::Duration) -> impl Future<Output = Outcome> + Send;

    /// Why a backend's unit did not come up: its result, exit status and last journal lines, for people. Bounded.
    fn post_mortem(&self, backend: BackendId) -> impl Future<Output = PostMortem> + Send;
}

/// Why a backend did not come up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostMortem {
    /// Lines for people: the unit's result, the last words of its journal.
    pub lines: Vec<String>,
    /// Something listens on its port on the server itself, whether or not it can be reached from here.
    pub port_listens: bool,
}
