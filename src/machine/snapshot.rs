//! A machine as a whole, written down and read again: where a journal of steps goes on in the middle of a life.

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use statig::blocking::{InitializedStateMachine, UninitializedStateMachine};

use super::{
    Instant, Machine,
    core::{Core, Step},
};

#[derive(Serialize)]
struct Written<'a> {
    chart: &'a InitializedStateMachine<Core>,
    since: Instant,
}

#[derive(Deserialize)]
struct Read {
    chart: UninitializedStateMachine<Core>,
    since: Instant,
}

impl Serialize for Machine {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Why the last event led to nothing is of no consequence.
        let Self { chart, since, ignored: _ } = self;
        Written { chart, since: *since }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Machine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { mut chart, since } = Read::deserialize(deserializer)?;
        // Entry actions already ask the policy about the leaf's backend.
        let place = chart.state_mut().place();
        if !since.is_sound() || !chart.is_sound(place) {
            return Err(D::Error::custom("a part of the machine does not fit the policy"));
        }
        // They change nothing, they only send; what is sent here was sent long ago.
        let chart = chart.init_with_context(&mut Step::at(since));
        Ok(Self { chart, since, ignored: None })
    }
}
