//! What goes over the socket, for both sides. Plain JSON: `curl --unix-socket` is a client too.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::driver::{
    status::{HoldStatus, SavedSlotStatus, SlotStatus},
    world::SlotTold,
};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/wechsler/wechsler.sock";

/// `POST /v1/commands`. Unknown fields are refused, so that a misspelt wish is not silently dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// What is wanted.
    pub command: CommandWord,
    /// The backend it is about. Needed by `switch` and `resolve`; `start` and `restart` can do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Replace another operation instead of being refused as busy.
    #[serde(default)]
    pub replace: bool,
    /// Do not wait for requests in flight.
    #[serde(default)]
    pub no_drain: bool,
    /// Only of `shutdown`: power the server off (the default) or leave it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off: Option<bool>,
    /// Only of `save` and `restore`: the name the slot is saved under; without it all slots are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only with a name: the slot of the server, where the name alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Only of `restore`, with a name: the generation; without it the newest that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

impl CommandRequest {
    /// A command without anything beside.
    #[must_use]
    pub const fn new(command: CommandWord) -> Self {
        Self {
            command,
            backend: None,
            replace: false,
            no_drain: false,
            power_off: None,
            name: None,
            slot: None,
            generation: None,
        }
    }
}

/// The commands, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandWord {
    /// Bring a backend up; without a name the configured default.
    Start,
    /// Bring this one up and whatever else runs down.
    Switch,
    /// Bring whatever runs down.
    Stop,
    /// Stop, prove, start.
    Restart,
    /// Bring the server up.
    Wake,
    /// Bring everything down, and the server too.
    Shutdown,
    /// End a conflict.
    Resolve,
    /// Forget the operation under way.
    Cancel,
    /// Save the slots now.
    Save,
    /// Restore the saved slots.
    Restore,
}

impl fmt::Display for CommandWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Switch => "switch",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Wake => "wake",
            Self::Shutdown => "shutdown",
            Self::Resolve => "resolve",
            Self::Cancel => "cancel",
            Self::Save => "save",
            Self::Restore => "restore",
        })
    }
}

/// The good answers to a command; the others are a [`super::problem::Problem`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum CommandAnswer {
    /// 202: an operation does it, see `GET /v1/operations/{id}`.
    Accepted {
        /// Which.
        operation: u64,
        /// The same was under way already.
        joined: bool,
    },
    /// 200: it is already so; nothing is done.
    AlreadySo,
    /// 200: done at once.
    Done,
}

/// `POST /v1/holds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// `awake`, `gpu`, `off`, or the name of a backend.
    pub what: String,
    /// How long, as "2h 30m"; without it until released.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// 201: the answer to `POST /v1/holds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldMade {
    /// Its number, for `DELETE /v1/holds/{id}`.
    pub hold: u64,
}

/// `GET /v1/holds`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holds {
    /// Those in force.
    pub holds: Vec<HoldStatus>,
}

/// `GET /v1/slots`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slots {
    /// The slots of the active llama.cpp.
    pub slots: Vec<SlotStatus>,
    /// The saved ones.
    pub saved: Vec<SavedSlotStatus>,
    /// A saved slot could be restored now.
    pub restore_available: bool,
}

/// `POST /v1/slots/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Only what is saved under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only this generation of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Whose, where several backends have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// The answer to `POST /v1/slots/verify` and `DELETE /v1/slots/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsTended {
    /// One for each generation concerned.
    pub slots: Vec<SlotTold>,
}

/// `GET /v1/endpoints`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoints {
    /// One for each configured backend, by name.
    pub endpoints: Vec<Endpoint>,
}

/// Where a backend is used, and whether it can be now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the backend.
    pub name: String,
    /// `llama-cpp`, `vllm`, `generic`.
    pub kind: String,
    /// The base URL for clients.
    pub url: String,
    /// It is the one that is up.
    pub active: bool,
    /// As in `backends.NAME.state` of the status document; `off` while the server is.
    pub state: String,
    /// How long a start takes.
    pub start_seconds_expected: Option<f64>,
}
