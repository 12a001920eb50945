//! What is really so, and what was really done: for those who check the daemon from outside.

use std::time::Duration;

use super::programs::{self, Exit, SlotAct};
use crate::machine::BootId;

/// Whether it has power, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Nothing of it answers; its network card listens for magic packets.
    Off,
    /// It has power, and still nothing answers.
    PoweringUp,
    /// Its network is up; its ports are closed.
    Booting,
    /// SSH answers.
    On,
    /// It was told to go down: SSH is closed, services are stopped.
    GoingDown,
    /// ... and its network is down already.
    Halting,
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Somebody over SSH: the daemon.
    Ssh,
    /// Somebody else on the server.
    Hand,
    /// systemd itself.
    Systemd,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// When, since the virtual server exists.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What was done. Units by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A magic packet with our address arrived; whether it was heard. One that comes while there is power is not.
    Packet {
        /// It was.
        heard: bool,
    },
    /// Power came.
    PowerOn,
    /// It has booted.
    Booted(BootId),
    /// Somebody ordered a power-off, and it was granted.
    PowerOffOrdered(By),
    /// The power is off, in good order.
    Off,
    /// The power was cut.
    PowerCut,
    /// A process was started.
    Started {
        /// Its unit.
        unit: String,
        /// Its process id.
        pid: u32,
        /// By whom.
        by: By,
    },
    /// A stop began.
    StopBegan {
        /// Its unit.
        unit: String,
        /// By whom.
        by: By,
    },
    /// ... of a llama.cpp whose slots were used since anybody asked to save them.
    Unsaved {
        /// Its unit.
        unit: String,
        /// Tokens in those slots.
        tokens: u64,
        /// How long ago they were last used.
        used: Duration,
    },
    /// SIGKILL was ordered for a unit.
    Killed {
        /// The unit.
        unit: String,
        /// By whom.
        by: By,
    },
    /// A start counter was cleared.
    ResetFailed {
        /// Of this unit.
        unit: String,
    },
    /// A process ended.
    Exited {
        /// Its unit.
        unit: String,
        /// Its process id.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// Something was done with a slot file.
    Slot {
        /// By this unit.
        unit: String,
        /// What.
        act: SlotAct,
        /// The file.
        file: String,
        /// Tokens in it.
        tokens: u64,
    },
    /// A file of the slot folder was removed over SSH.
    FileRemoved(String),
    /// A file of the slot folder was renamed over SSH.
    FileRenamed(String, String),
}

/// What is really so.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Its power.
    pub power: Power,
    /// How often it has booted.
    pub boots: u64,
    /// This boot, or the last.
    pub boot: BootId,
    /// Its units, in the order of the setup.
    pub units: Vec<UnitTruth>,
    /// Memory in use on all GPUs together, without the baseline.
    pub gpu_used_mib: u64,
    /// Who holds it: names of units and of foreign programs.
    pub gpu_holders: Vec<String>,
    /// The files of the slot folder with their sizes.
    pub slot_files: Vec<(String, u64)>,
}

/// What is really so with a unit.
#[derive(Clone, Debug)]
pub struct UnitTruth {
    /// Its name.
    pub name: String,
    /// As systemd shows it.
    pub active: &'static str,
    /// Its process, also one that systemd has given up.
    pub pid: Option<u32>,
    /// Since when, since the virtual server exists.
    pub since: Option<Duration>,
    /// What is inside.
    pub inside: Option<programs::Truth>,
}
