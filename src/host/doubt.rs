//! Orders under way, and what they leave in doubt.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::{locked, ssh::Ssh};

/// Orders of which nobody knows how they ended, and what clears them up: an answer of the same target over a later session.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Counts up each time when nothing is in doubt any more.
    pub(super) cleared: u64,
    /// Targets, and the last session that may be the one of the doubt.
    open: Vec<(usize, u64)>,
}

impl Doubts {
    pub(super) fn raise(&mut self, target: &Ssh) {
        self.open.retain(|(other, _)| *other != address(target));
        self.open.push((address(target), target.sessions()));
    }

    /// `target` has answered over that session.
    pub(super) fn answered(&mut self, target: &Ssh, session: u64) {
        let before = self.open.len();
        self.open.retain(|(other, last)| *other != address(target) || session <= *last);
        if before > 0 && self.open.is_empty() {
            self.cleared += 1;
        }
    }
}

/// Tells targets apart.
pub(super) fn address(ssh: &Ssh) -> usize {
    std::ptr::from_ref(ssh) as usize
}

/// Counts an order while it lives.
pub(super) struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    pub(super) fn new(orders: &'a AtomicUsize) -> Self {
        orders.fetch_add(1, Ordering::Relaxed);
        Self(orders)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Puts the target in doubt when dropped, unless it was emptied.
pub(super) struct InDoubt<'a>(pub(super) Option<(&'a Ssh, &'a Mutex<Doubts>)>);

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        if let Some((ssh, doubts)) = self.0 {
            ssh.forget();
            locked(doubts).raise(ssh);
        }
    }
}
