//! Effects out: what the machine asks for, and what it says.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BackendId, HoldId, OpId, RequestId, Selection, VerbId};

/// What the driver must do after a step, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// Answer a command. Exactly one for each.
    Answer {
        /// Whom.
        request: RequestId,
        /// What.
        answer: Answer,
    },
    /// Give the world an order; its end comes back as [`super::Event::Finished`], after `within` at the latest.
    Do {
        /// Names the order in its answer.
        verb: VerbId,
        /// What to do.
        what: Verb,
        /// How long it may take.
        within: Duration,
        /// Why: the operation it belongs to.
        op: OpId,
    },
    /// An operation has begun.
    Began(Operation),
    /// An operation has ended. Exactly one for each.
    Ended {
        /// Which.
        op: OpId,
        /// How.
        end: End,
    },
    /// The list of holds has changed and must be kept.
    HoldsChanged,
}

/// Orders to the world. All but [`Verb::Wake`] are refused by the driver while another is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Send one round of wake packets (or run the wake command). Repeated by the machine until there is a sign of life.
    Wake,
    /// Start the backend's unit, its `failed` state and start counter cleared first. Every other backend is proven stopped.
    StartUnit(BackendId),
    /// Stop the backend's unit. Slots are saved, or it is recorded why not.
    StopUnit(BackendId),
    /// SIGKILL to the unit, once, after a stop outlasted its time.
    KillUnit(BackendId),
    /// Save each slot that holds tokens and is not busy, checked and noted.
    SaveSlots(BackendId),
    /// Restore the newest fitting saved slots; noted before it is sent.
    RestoreSlots(BackendId),
    /// Power the server off. All backends are proven stopped and nothing blocks.
    PowerOff,
}

/// The one answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// An operation does it. `joined` when the same was already under way.
    Accepted {
        /// Which.
        op: OpId,
        /// It was under way already.
        joined: bool,
    },
    /// It is already so; nothing is done.
    AlreadySo,
    /// Done at once (holds, cancel).
    Done {
        /// The hold that was made.
        hold: Option<HoldId>,
    },
    /// Not now, or not so.
    Refused(Refusal),
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $message:literal, $hint:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* #[doc = $message] $variant,)* }
        impl $name {
            /// All of them, in this order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The stable code.
            #[must_use]
            pub const fn code(self) -> &'static str { match self { $(Self::$variant => $code,)* } }
            /// What happened, a sentence.
            #[must_use]
            pub const fn message(self) -> &'static str { match self { $(Self::$variant => $message,)* } }
            /// What a person can do about it.
            #[must_use]
            pub const fn hint(self) -> &'static str { match self { $(Self::$variant => $hint,)* } }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.code()) }
        }
    };
}

codes! {
    /// Why a command is refused.
    Refusal {
        Busy = "busy", "Another operation is under way.", "wait for it, or repeat with --replace";
        TooLate = "too_late", "The server is already powering off.", "wait until it is off; a start issued now will wake it again";
        SwitchNeeded = "switch_needed", "Another backend is up.", "use `wechsler switch NAME`";
        Conflict = "conflict", "More than one backend is up.", "use `wechsler resolve --keep NAME`, or `wechsler stop`";
        NoConflict = "no_conflict", "There is no conflict to resolve.", "see `wechsler status`";
        NotUp = "not_up", "That backend is not up.", "choose one that `wechsler status` shows as up";
        NotRunning = "not_running", "No backend is running.", "start one first";
        NothingToCancel = "nothing_to_cancel", "No operation is under way.", "see `wechsler status`";
        ControlUnreachable = "control_unreachable", "The server is on, but does not answer over SSH.", "see `reason` in `wechsler status`; check sshd, key and host key";
        Held = "held", "A hold forbids it.", "see `wechsler holds`; `wechsler release ID` ends one";
        Occupied = "occupied", "Somebody else's process holds GPU memory.", "see `blockers` in `wechsler status`; it clears itself when the process ends";
        Blocked = "blocked", "Somebody uses the server, or nobody could tell.", "see `blockers` in `wechsler status`";
        WakeUnarmed = "wake_unarmed", "The server's network card is not armed for Wake-on-LAN: it could not be woken again.", "arm it (`ethtool -s NIC wol g`), or set `wake_check` to `warn`";
        CannotWake = "cannot_wake", "No way of waking the server is configured.", "set `gpu_server.wake`, or switch it on by hand";
        NoSlots = "no_slots", "That backend has no slots to save or restore.", "only llama.cpp with a configured slot folder has";
        NothingSaved = "nothing_saved", "No saved slot is on record that may be restored.", "see `wechsler slots list`";
        InUse = "in_use", "The slots are in use since the start; a restore would overwrite them.", "restart the backend, which restores before any use";
        TooManyHolds = "too_many_holds", "There are too many holds.", "release some first";
        NoSuchHold = "no_such_hold", "There is no such hold.", "see `wechsler holds`";
        UnitMissing = "unit_missing", "The backend's systemd unit does not exist on the server, or is masked or broken.", "check `unit` in the configuration and the unit file on the server";
        Unknown = "unknown_state", "The server has not been looked at yet.", "try again in a few seconds";
    }
}

codes! {
    /// How an operation failed.
    Failure {
        WakeTimeout = "wake_timeout", "The server showed no sign of being up in time.", "check power, cable and Wake-on-LAN settings; see `wechsler status`";
        HealthTimeout = "health_timeout", "The backend did not become healthy in time.", "read the unit's journal; it may still come up, which is then noticed";
        HttpUnreachable = "http_unreachable", "The backend's unit is up, but its URL is not reachable from here although it answers on the server.", "check `url`, firewall and the address the backend binds to; one that is only slow needs a longer `probe.http_timeout`";
        StartFailed = "start_failed", "The backend's unit did not start, or ended at once.", "read the unit's result and journal lines";
        CrashLoop = "crash_loop", "The backend crashed while it was being started; it was stopped.", "read the unit's result and journal lines, then start it again";
        UnitMissing = "unit_missing", "The backend's systemd unit does not exist on the server, or is masked or broken.", "check `unit` in the configuration and the unit file on the server";
        NotPermitted = "not_permitted", "The server does not allow our user to do this.", "install the polkit rule or the sudoers file of contrib/";
        StopStuck = "stop_stuck", "The backend does not end, not even killed.", "look at its processes on the server; a reboot may be needed";
        GpuNotFreed = "gpu_not_freed", "The backend's unit is down, but its process or memory is still there.", "look at the GPU's processes on the server";
        Occupied = "occupied", "Somebody else's process holds the GPU memory the start needs.", "see `blockers` in `wechsler status`";
        InUse = "in_use", "The backend is still in use, or was just started, or does not tell; a policy does not interrupt it.", "nothing to do: it is tried again later";
        Blocked = "blocked", "Somebody uses the server; it is not powered off.", "see `blockers` in `wechsler status`";
        WakeUnarmed = "wake_unarmed", "The server's network card is not armed for Wake-on-LAN; it is not powered off.", "arm it (`ethtool -s NIC wol g`), or set `wake_check` to `warn`";
        PowerOffTimeout = "power_off_timeout", "The server still answers long after it was to be off.", "look at its console; something may hold its shutdown";
        ControlUnreachable = "control_unreachable", "The server does not answer over SSH any more.", "check the server and its network";
        WrongHostKey = "wrong_host_key", "The server's SSH host key is not a pinned one.", "if it was reinstalled on purpose, pin the new key; otherwise find out who answers";
        Preboot = "preboot", "The server waits in its initramfs for a passphrase.", "unlock its disk";
        AuthRefused = "auth_refused", "The server refuses our SSH user or key.", "check `gpu_server.ssh.user` and its authorized_keys";
        SaveFailed = "save_failed", "The slots could not be saved.", "see the slot folder's rights and room, and the backend's journal";
        RestoreFailed = "restore_failed", "The slots could not be restored.", "see `wechsler slots list`";
        Held = "held", "A hold forbids it.", "see `wechsler holds`; `wechsler release ID` ends one";
        UnitUnread = "unit_unread", "The state of a backend's unit cannot be read.", "see `reason` and `backends` in `wechsler status`; check its SSH target";
        BoundExceeded = "bound_exceeded", "The operation outlasted the sum of its parts.", "see `wechsler status`; try again";
        Conflict = "conflict", "More than one backend came up.", "use `wechsler resolve --keep NAME`, or `wechsler stop`";
        Unavailable = "backend_sick", "The backend is up but says it is broken, or somebody else answers at its URL.", "restart it; read its journal";
    }
}

/// Something that went less well than hoped, or the details of a failure. Its code is stable; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Warning {
    /// Stable code, as `save_timeout`, `slot_busy`, `restore_rejected`, `not_permitted`.
    pub code: String,
    /// What happened.
    pub message: String,
}

impl Warning {
    /// A warning.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// The one end of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// What was wanted is so.
    Done {
        /// What went less well on the way.
        warnings: Vec<Warning>,
    },
    /// It cannot be had now.
    Failed {
        /// Why.
        failure: Failure,
        /// Details: the unit's result, the last words of its journal, what went less well.
        warnings: Vec<Warning>,
    },
    /// Somebody cancelled it.
    Cancelled,
    /// Another operation took its place.
    Replaced {
        /// Which.
        by: OpId,
    },
}

/// An operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operation {
    /// Its name.
    pub id: OpId,
    /// What is wanted.
    pub goal: Goal,
    /// Who wants it.
    pub cause: Cause,
    /// When it began.
    pub started: super::Instant,
    /// When it will have ended, one way or another.
    pub until: super::Instant,
}

/// What an operation wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// This backend runs and no other.
    Run(BackendId),
    /// This backend runs, by another invocation than now.
    Restart(BackendId),
    /// No backend runs.
    Stop,
    /// The server is on.
    Awake,
    /// The server is off.
    Off,
    /// These slots are saved.
    Save(BackendId, Selection),
    /// These slots are restored.
    Restore(BackendId, Selection),
}

impl Goal {
    /// The word for it, as in `operation.kind` of the status document.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Run(_) => "start",
            Self::Restart(_) => "restart",
            Self::Stop => "stop",
            Self::Awake => "wake",
            Self::Off => "power-off",
            Self::Save(..) => "save",
            Self::Restore(..) => "restore",
        }
    }

    /// What is up may be stopped on the way.
    pub(super) const fn may_stop(self) -> bool {
        matches!(self, Self::Run(_) | Self::Restart(_) | Self::Stop | Self::Off)
    }

    /// Who asks for it wants to use what is on then.
    pub(super) const fn is_of_use(self) -> bool {
        matches!(self, Self::Run(_) | Self::Restart(_) | Self::Awake | Self::Restore(..))
    }
}

/// Who wants an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// An accepted command.
    Command(RequestId),
    /// `idle.stop_after`.
    IdleStop,
    /// `idle.power_off_after`.
    IdlePowerOff,
    /// `restore = "auto"` after the backend came up by itself.
    AutoRestore,
    /// `slots.checkpoint_tokens` or `slots.checkpoint_quiet`.
    Checkpoint,
}

impl Cause {
    /// A policy wants it, not a person.
    #[must_use]
    pub const fn is_policy(self) -> bool {
        !matches!(self, Self::Command(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_goal_has_a_word_of_its_own_that_stays() {
        let (id, all) = (BackendId(0), Selection::All);
        for (goal, word) in [
            (Goal::Run(id), "start"),
            (Goal::Restart(id), "restart"),
            (Goal::Stop, "stop"),
            (Goal::Awake, "wake"),
            (Goal::Off, "power-off"),
            (Goal::Save(id, all), "save"),
            (Goal::Restore(id, all), "restore"),
        ] {
            assert_eq!(goal.kind(), word);
        }
    }
}
