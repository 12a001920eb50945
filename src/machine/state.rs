//! The states: leaves with what they wait for, the regions around them, and their public names.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BackendId, Policy};

/// A leaf's name without its data. The list is closed; what is finer is a phase, a health or a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Not looked yet, or what is seen cannot be told.
    Unknown,
    /// Nothing of the server answers.
    Offline,
    /// It is being woken.
    Waking,
    /// It is on, every backend is proven stopped.
    Idle,
    /// A backend is loading.
    Starting,
    /// Its saved slots are being restored, before it counts as ready.
    Restoring,
    /// A backend is up and healthy.
    Running,
    /// A backend is to stop: requests in flight may end first.
    Draining,
    /// Its slots are being saved.
    Saving,
    /// Its unit is being stopped.
    Stopping,
    /// The server is going down.
    PoweringOff,
    /// More than one backend is up.
    Conflict,
}

/// The regions: what the leaves have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Region {
    /// Everything.
    Top,
    /// The server is off or being woken.
    Off,
    /// The server is on.
    On,
    /// A backend is on its way up.
    Starting,
    /// A backend is on its way down.
    Leaving,
}

impl Kind {
    /// All leaves, in the order of documents.
    pub const ALL: [Self; 12] = [
        Self::Unknown,
        Self::Offline,
        Self::Waking,
        Self::Idle,
        Self::Starting,
        Self::Restoring,
        Self::Running,
        Self::Draining,
        Self::Saving,
        Self::Stopping,
        Self::PoweringOff,
        Self::Conflict,
    ];

    /// The region around it.
    #[must_use]
    pub const fn region(self) -> Region {
        match self {
            Self::Unknown | Self::PoweringOff => Region::Top,
            Self::Offline | Self::Waking => Region::Off,
            Self::Idle | Self::Running | Self::Conflict => Region::On,
            Self::Starting | Self::Restoring => Region::Starting,
            Self::Draining | Self::Saving | Self::Stopping => Region::Leaving,
        }
    }

    /// The name people and programs see in `state`; `backend` is the name of the one concerned.
    #[must_use]
    pub fn public_name(self, backend: &str) -> String {
        match self {
            Self::Unknown => "unknown".into(),
            Self::Offline => "gpu-offline".into(),
            Self::Waking => "waking".into(),
            Self::Idle => "gpu-idle".into(),
            Self::Starting | Self::Restoring => format!("{backend}-starting"),
            Self::Running => backend.into(),
            Self::Draining | Self::Saving | Self::Stopping => "stopping".into(),
            Self::PoweringOff => "powering-off".into(),
            Self::Conflict => "conflict".into(),
        }
    }

    /// The phase within the public name.
    #[must_use]
    pub const fn phase(self) -> Option<&'static str> {
        match self {
            Self::Starting => Some("starting"),
            Self::Restoring => Some("restoring"),
            Self::Draining => Some("draining"),
            Self::Saving => Some("saving"),
            Self::Stopping => Some("stopping"),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Region {
    /// All regions, outermost first.
    pub const ALL: [Self; 5] = [Self::Top, Self::Off, Self::On, Self::Starting, Self::Leaving];

    /// The region around it.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::Top => None,
            Self::Off | Self::On => Some(Self::Top),
            Self::Starting | Self::Leaving => Some(Self::On),
        }
    }
}

/// Which leaf the machine is in, and which backend it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The leaf.
    pub kind: Kind,
    /// The backend concerned, in the leaves that are about one.
    pub backend: Option<BackendId>,
}

impl Place {
    /// The public name, as in `state` of the status document.
    #[must_use]
    pub fn public_name(self, policy: &Policy) -> String {
        self.kind.public_name(self.backend.map_or("", |id| &policy.backend(id).name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{BackendKind, evidence::tests::policy};

    #[test]
    fn each_leaf_has_a_name_in_documents_one_for_people_and_where_that_is_not_all_a_phase() {
        let names = [
            (Kind::Unknown, "Unknown", "unknown", None),
            (Kind::Offline, "Offline", "gpu-offline", None),
            (Kind::Waking, "Waking", "waking", None),
            (Kind::Idle, "Idle", "gpu-idle", None),
            (Kind::Starting, "Starting", "qwen-starting", Some("starting")),
            (Kind::Restoring, "Restoring", "qwen-starting", Some("restoring")),
            (Kind::Running, "Running", "qwen", None),
            (Kind::Draining, "Draining", "stopping", Some("draining")),
            (Kind::Saving, "Saving", "stopping", Some("saving")),
            (Kind::Stopping, "Stopping", "stopping", Some("stopping")),
            (Kind::PoweringOff, "PoweringOff", "powering-off", None),
            (Kind::Conflict, "Conflict", "conflict", None),
        ];
        assert_eq!(names.map(|(kind, ..)| kind), Kind::ALL);
        for (kind, document, public, phase) in names {
            assert_eq!((&*kind.to_string(), &*kind.public_name("qwen"), kind.phase()), (document, public, phase));
        }
    }

    #[test]
    fn a_place_is_called_after_its_own_backend() {
        let policy = policy(&[BackendKind::LlamaCpp, BackendKind::Vllm]);
        for (kind, backend, name) in [
            (Kind::Running, Some(BackendId(1)), "Vllm"),
            (Kind::Starting, Some(BackendId(0)), "LlamaCpp-starting"),
            (Kind::Idle, None, "gpu-idle"),
        ] {
            assert_eq!(Place { kind, backend }.public_name(&policy), name);
        }
    }
}
