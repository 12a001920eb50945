//! The saved slots of one backend, and what is done about them when nobody waits: sweeping, pruning, digests.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{locked, slot_place::SlotPlace, slots::SlotStore, ssh::Ssh};

/// Leftovers are looked for in each new SSH session, after each save, and again after so long: what was too young may be one by
/// now, and a folder may have been opened to others.
const SWEEP_AGAIN: Duration = Duration::from_mins(10);
/// A sweep that fails is tried so many times in one SSH session.
const SWEEPS: u32 = 5;

#[derive(Debug)]
pub(super) struct Slots {
    pub(super) store: Arc<SlotStore>,
    pub(super) folder: SlotPlace,
    /// Saved slots are restored by the daemon itself.
    restores: bool,
    swept: Mutex<Swept>,
}

/// The sweeping of leftovers.
#[derive(Clone, Copy, Debug, Default)]
struct Swept {
    session: u64,
    /// When it last succeeded in this session.
    done: Option<Instant>,
    tries: u32,
}

impl Slots {
    pub(super) fn new(store: SlotStore, folder: SlotPlace, restores: bool) -> Self {
        Self { store: Arc::new(store), folder, restores, swept: Mutex::default() }
    }

    /// Sweeps leftovers, until that has succeeded once in an SSH session or failed too often, removes generations beyond those
    /// to keep, and takes a digest that is missing. True: it has taken one, and another may be missing.
    pub(super) async fn tidy(&self, ssh: &Ssh, backend: &str) -> bool {
        let session = ssh.sessions();
        let mut swept = *locked(&self.swept);
        if swept.session != session || swept.done.is_some_and(|done| done.elapsed() >= SWEEP_AGAIN) {
            swept = Swept { session, ..Swept::default() };
        }
        if swept.done.is_none() && swept.tries < SWEEPS {
            let result = self.store.sweep(&self.folder).await;
            if let Err(why) = &result {
                tracing::warn!(backend, why, "leftovers among the saved slots could not be looked for");
            }
            let (done, tries) = (result.is_ok().then(Instant::now), swept.tries + 1);
            *locked(&self.swept) = Swept { session, done, tries };
        }
        self.store.prune(&self.folder).await;
        self.store.take_digest(&self.folder).await
    }

    /// Something is saved: the folder is worth a look when that is over.
    pub(super) fn sweep_again(&self) {
        *locked(&self.swept) = Swept::default();
    }

    /// Has what a restore must know looked at while the backend loads: its process is there by now. It ends by itself, and
    /// nothing waits for it.
    pub(super) fn look_ahead(&self) {
        if self.restores {
            let (store, folder) = (Arc::clone(&self.store), self.folder.clone());
            tokio::spawn(async move { store.look_ahead(&folder).await });
        }
    }
}
