//! What the machine is told of the world: readings judged down to the few values that decide.

use serde::{Deserialize, Serialize};

use super::{BackendId, BootId, Instant, Invocation};

/// One judged look at everything, made by [`super::evidence::judge`]. Complete: what was not asked anew is carried over
/// from the reading before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Look {
    /// When the units were asked, the question's sending: nothing older proves how an order ended.
    pub at: Instant,
    /// The server itself.
    pub server: Server,
    /// Each configured backend, in order.
    pub backends: Vec<BackendLook>,
    /// Somebody else's process holds GPU memory (not counting known residents); `None` when nobody could tell.
    pub foreign_gpu: Option<bool>,
    /// When the GPU was asked; [`Instant::START`] if not in this boot. A tool that is absent or broken has been asked too.
    pub gpu_at: Instant,
    /// The server has just come up, and shows fewer GPUs than it had.
    pub gpu_late: bool,
    /// Logins other than our own, or a blocking inhibitor; `None` when nobody could tell.
    pub people: Option<bool>,
    /// When that was asked; [`Instant::START`] if not in this boot.
    pub people_at: Instant,
    /// The NIC is armed for the next wake; `None` when nobody could tell.
    pub wake_armed: Option<bool>,
    /// When that was asked; [`Instant::START`] if not in this boot.
    pub wake_armed_at: Instant,
}

/// The server, by evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Server {
    /// Not looked yet.
    NotLooked,
    /// Nothing of it answers. One such look proves nothing; the machine counts them.
    Silent,
    /// It is there but not up: open port without sshd, initramfs, another key. No control, and no backend answers.
    Booting(BootPhase),
    /// The pinned key answers.
    On {
        /// This boot.
        boot: BootId,
        /// The SSH session that told, see [`super::reading::Ssh::Answered`].
        session: u64,
    },
    /// A backend answers as itself over HTTP while SSH does not: it is on, but out of our control.
    Uncontrolled,
}

/// What a server that is not up shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootPhase {
    /// Its SSH port is closed, or open while nobody lets us in.
    Booting,
    /// The initramfs waits for a passphrase.
    Preboot,
    /// Another SSH key answers.
    WrongHostKey,
    /// The pinned key answers, but our login is refused.
    AuthRefused,
}

/// One backend, by evidence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackendLook {
    /// The value.
    pub seen: Seen,
    /// The run of its unit, while it has one.
    pub invocation: Option<Invocation>,
    /// systemd's count of automatic restarts.
    pub restarts: u32,
    /// Requests in flight.
    pub use_: Use,
    /// When it was asked for its requests.
    pub use_at: Instant,
    /// Changes whenever it was used; `None` where nobody can tell.
    pub mark: Option<u64>,
    /// Some slot holds tokens worth saving.
    pub holds_tokens: bool,
    /// Tokens that all its slots hold together.
    pub tokens: u64,
    /// No slot was used since the start (so a restore is safe); false where nobody can tell.
    pub unused: bool,
    /// A saved slot is on record that may be restored.
    pub restorable: bool,
    /// It frees its model when idle and has done so: it must not be asked to save.
    pub sleeping: bool,
}

/// What the evidence says of a backend. Every combined reading maps to exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// Nobody could tell.
    Unknown,
    /// There is no such unit (or it is masked or broken).
    Missing,
    /// Proven: unit down, no job, no process left, none of its memory on the GPU.
    Stopped,
    /// Down by its unit, but not proven: a job pending, a process left, memory not yet back.
    Lingering,
    /// Its unit is up, its HTTP not yet (or not now).
    Loading,
    /// Health 200, identity right.
    Running,
    /// systemd waits to restart it after a crash.
    CrashLoop,
    /// Its unit is up, but what answers says that it is broken or is not what was meant (vLLM's dead engine, garbage, a
    /// refused key, another model).
    Sick,
    /// Its unit is down and somebody else answers at its URL.
    Stranger,
}

impl Seen {
    /// All values, in reading order.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Missing,
        Self::Stopped,
        Self::Lingering,
        Self::Loading,
        Self::Running,
        Self::CrashLoop,
        Self::Sick,
        Self::Stranger,
    ];

    /// It holds the GPU, or may at any moment.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Loading | Self::Running | Self::CrashLoop | Self::Sick)
    }

    /// It serves, or may be on its way to.
    #[must_use]
    pub const fn is_well(self) -> bool {
        matches!(self, Self::Loading | Self::Running)
    }

    /// It is proven that it holds nothing. A unit that does not exist holds nothing either.
    #[must_use]
    pub const fn is_stopped(self) -> bool {
        matches!(self, Self::Stopped | Self::Missing)
    }
}

/// Requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// None.
    Idle,
    /// Some.
    Busy,
    /// Nobody can tell; counts as in use for policies.
    Unknown,
}

impl Look {
    /// A look before any: nothing is known of `backends` backends.
    #[must_use]
    pub fn nothing(backends: usize) -> Self {
        let unknown = BackendLook {
            seen: Seen::Unknown,
            invocation: None,
            restarts: 0,
            use_: Use::Unknown,
            use_at: Instant::START,
            mark: None,
            holds_tokens: false,
            tokens: 0,
            unused: false,
            restorable: false,
            sleeping: false,
        };
        Self {
            at: Instant::START,
            server: Server::NotLooked,
            backends: vec![unknown; backends],
            foreign_gpu: None,
            gpu_at: Instant::START,
            gpu_late: false,
            people: None,
            people_at: Instant::START,
            wake_armed: None,
            wake_armed_at: Instant::START,
        }
    }

    /// The backend `id`.
    ///
    /// # Panics
    /// If `id` is not of this configuration: ids are only minted from it.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> &BackendLook {
        &self.backends[usize::from(id.0)]
    }

    /// Says the same about the world, whenever it was asked.
    pub(super) fn says_same_as(&self, other: &Self) -> bool {
        self.server == other.server
            && self.foreign_gpu == other.foreign_gpu
            && self.gpu_late == other.gpu_late
            && self.people == other.people
            && self.wake_armed == other.wake_armed
            && self
                .backends
                .iter()
                .zip(&other.backends)
                .all(|(a, b)| BackendLook { use_at: b.use_at, ..a.clone() } == *b)
    }

    /// The boot that answers, where the pinned key does.
    #[must_use]
    pub const fn boot(&self) -> Option<BootId> {
        match self.server {
            Server::On { boot, .. } => Some(boot),
            _ => None,
        }
    }
}
