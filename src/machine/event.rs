//! Events in: what the machine is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BackendId, HoldId, Look, RequestId, VerbId, Warning};

/// Everything that can happen to the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Somebody looked at the world.
    Looked(Look),
    /// An order ended, or nobody knows how it ended.
    Finished {
        /// The order, as in [`super::Effect::Do`].
        verb: VerbId,
        /// How.
        outcome: Outcome,
    },
    /// Somebody wants something. Answered exactly once, by [`super::Effect::Answer`].
    Commanded {
        /// Whom to answer.
        request: RequestId,
        /// What is wanted.
        command: Command,
    },
    /// Time has passed; sent at [`super::Machine::deadline`], harmless at any other time.
    Tick,
}

impl Event {
    /// What kind of event it is, a word or two: the look, how an order ended, which command.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Looked(_) => "look",
            Self::Finished { outcome: Outcome::Succeeded(_), .. } => "order succeeded",
            Self::Finished { outcome: Outcome::Failed(_), .. } => "order failed",
            Self::Finished { outcome: Outcome::Unknown(_), .. } => "order lost",
            Self::Commanded { command, .. } => command.word(),
            Self::Tick => "tick",
        }
    }
}

/// What a person, a program or the machine's own policy can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Bring a backend up; `None` is the configured default.
    Start(Option<BackendId>, Options),
    /// Bring this one up and whatever else runs down.
    Switch(BackendId, Options),
    /// Bring whatever runs down.
    Stop(Options),
    /// Stop, prove, start; `None` is the one that runs.
    Restart(Option<BackendId>, Options),
    /// Bring the server up, nothing else.
    Wake(Options),
    /// Bring everything down, and the server too unless told to keep it on.
    Shutdown(PowerChoice, Options),
    /// End a conflict: keep this one, stop the others.
    Resolve(BackendId, Options),
    /// Forget the operation under way; whatever has happened stays.
    Cancel,
    /// Keep something as it is for a while.
    Hold(HoldSpec),
    /// End a hold.
    Release(HoldId),
    /// Save the slots of the running llama.cpp now.
    SaveSlots(Selection, Options),
    /// Restore the saved slots into the running llama.cpp.
    RestoreSlots(Selection, Options),
}

/// Which slots a save or restore is about. What each stands for is no business of the machine, which only tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Each that holds something; the newest that fits.
    #[default]
    All,
    /// Those worth a save while the backend goes on running.
    Checkpoint,
    /// What somebody named, as the driver has numbered it.
    Named(u32),
}

impl Command {
    /// The word a person types for it.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Start(..) => "start",
            Self::Switch(..) => "switch",
            Self::Stop(_) => "stop",
            Self::Restart(..) => "restart",
            Self::Wake(_) => "wake",
            Self::Shutdown(..) => "shutdown",
            Self::Resolve(..) => "resolve",
            Self::Cancel => "cancel",
            Self::Hold(_) => "hold",
            Self::Release(_) => "release",
            Self::SaveSlots(..) => "slots save",
            Self::RestoreSlots(..) => "slots restore",
        }
    }

    /// How it is meant; one that is done at once has no options.
    #[must_use]
    pub fn options(&self) -> Options {
        match self {
            Self::Start(_, options)
            | Self::Switch(_, options)
            | Self::Stop(options)
            | Self::Restart(_, options)
            | Self::Wake(options)
            | Self::Shutdown(_, options)
            | Self::Resolve(_, options)
            | Self::SaveSlots(_, options)
            | Self::RestoreSlots(_, options) => *options,
            Self::Cancel | Self::Hold(_) | Self::Release(_) => Options::default(),
        }
    }
}

/// How a command is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Replace another operation instead of being refused as busy.
    pub replace: bool,
    /// Do not wait for requests in flight.
    pub no_drain: bool,
}

/// What `shutdown` does with the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerChoice {
    /// Power it off.
    PowerOff,
    /// Leave it on.
    KeepOn,
}

/// A wish for things to stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HoldSpec {
    /// What is held.
    pub what: Held,
    /// How long from now; `None` until released.
    pub lasts: Option<Duration>,
    /// Why, for people.
    pub reason: String,
    /// Who, for people: the peer's user.
    pub by: String,
}

/// What a hold keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// The server stays on: no power-off.
    Awake,
    /// This backend stays up: nothing stops it but a person's `stop`, and idle rules leave it alone.
    Backend(BackendId),
    /// The GPU stays free of our backends: nothing is started.
    Gpu,
    /// The server stays off: nothing wakes it.
    Off,
}

/// How an order ended. Three values, because SSH and HTTP can lose the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// It did what was ordered, with what there is to say beside.
    Succeeded(Vec<Warning>),
    /// It was refused or failed, surely.
    Failed(Warning),
    /// The answer is lost: it may have happened, or may happen yet.
    Unknown(Warning),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_called_a_look_a_tick_the_command_it_is_or_by_how_the_order_ended() {
        let finished = |outcome| Event::Finished { verb: VerbId(1), outcome };
        let warning = || Warning::new("code", "text");
        let commanded = |command| Event::Commanded { request: RequestId(1), command };
        for (event, kind) in [
            (Event::Looked(Look::nothing(1)), "look"),
            (Event::Tick, "tick"),
            (finished(Outcome::Succeeded(vec![warning()])), "order succeeded"),
            (finished(Outcome::Failed(warning())), "order failed"),
            (finished(Outcome::Unknown(warning())), "order lost"),
            (commanded(Command::Switch(BackendId(0), Options::default())), "switch"),
            (commanded(Command::Cancel), "cancel"),
            (commanded(Command::SaveSlots(Selection::All, Options::default())), "slots save"),
        ] {
            assert_eq!(event.kind(), kind);
        }
    }
}
