//! What needs a person: found in each look, and kept while it cannot be seen.

use serde::{Deserialize, Serialize};

use super::{BackendId, BootPhase, Failure, Instant, Seen, Server, WakeCheck, core::Core};

/// Something that needs a person, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Worry {
    pub(super) what: WorryKind,
    pub(super) backend: Option<BackendId>,
    pub(super) since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WorryKind {
    Failure(Failure),
    /// Gone by itself, and about to be started again.
    Crashed,
    WakeUnarmed,
}

impl Core {
    /// Keeps the list of what needs a person: new worries begin now, old ones keep their beginning, gone ones go. Those that
    /// cannot be seen just now stay.
    pub(super) fn worry(&mut self) {
        let mut found: Vec<(WorryKind, Option<BackendId>)> = Vec::new();
        match self.look.server {
            Server::Booting(BootPhase::WrongHostKey) => {
                found.push((WorryKind::Failure(Failure::WrongHostKey), None));
            }
            Server::Booting(BootPhase::Preboot) => {
                found.push((WorryKind::Failure(Failure::Preboot), None));
            }
            Server::Booting(BootPhase::AuthRefused) => {
                found.push((WorryKind::Failure(Failure::AuthRefused), None));
            }
            Server::Uncontrolled => {
                found.push((WorryKind::Failure(Failure::ControlUnreachable), None));
            }
            Server::NotLooked | Server::Silent | Server::On { .. } | Server::Booting(BootPhase::Booting) => {}
        }
        for id in self.policy.ids() {
            let failure = match self.seen(id) {
                Seen::Missing => Failure::UnitMissing,
                Seen::CrashLoop => {
                    found.push((WorryKind::Crashed, Some(id)));
                    continue;
                }
                Seen::Sick | Seen::Stranger => Failure::Unavailable,
                _ => continue,
            };
            found.push((WorryKind::Failure(failure), Some(id)));
        }
        if self.conflict_at().is_some_and(|at| at <= self.now) {
            found.push((WorryKind::Failure(Failure::Conflict), None));
        }
        if self.look.wake_armed == Some(false) && self.policy.wake_check != WakeCheck::Off {
            found.push((WorryKind::WakeUnarmed, None));
        }
        let old = std::mem::take(&mut self.attention);
        let is_unseen = |w: &&Worry| {
            let unseen = match w.what {
                WorryKind::WakeUnarmed => self.look.wake_armed.is_none(),
                _ => w.backend.is_some_and(|id| self.seen(id) == Seen::Unknown),
            };
            unseen && !self.is_off()
        };
        found.extend(old.iter().filter(is_unseen).map(|w| (w.what, w.backend)));
        self.attention = found
            .into_iter()
            .map(|(what, backend)| {
                let since = old.iter().find(|w| w.what == what && w.backend == backend).map_or(self.now, |w| w.since);
                Worry { what, backend, since }
            })
            .collect();
    }
}
