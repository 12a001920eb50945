//! The front: the daemon's unix socket, and the command line that speaks to it.
//!
//! [`socket`] binds and guards the socket, [`api`] answers on it, [`client`] asks there, [`cli`] is what people type.
//! [`protocol`] and [`problem`] are what both sides share. The front changes nothing itself: it hands commands to the
//! driver through [`crate::driver::Handle`] and reads what the driver publishes.

pub mod api;
pub mod cli;
pub mod client;
pub mod problem;
pub mod protocol;
mod slots;
pub mod socket;

/// The nearest of `known` to what somebody typed, if it is near enough to be meant.
pub(crate) fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Whoever types more, in bytes, does not mistype a name.
    const LONGEST: usize = 200;
    if typed.len() > LONGEST {
        return None;
    }
    let typed = typed.to_lowercase();
    known
        .map(|name| (strsim::jaro_winkler(&typed, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
