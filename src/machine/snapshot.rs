//! A machine as a whole, written down and read again: where a journal of steps goes on in the middle of a life.

use serde::{Deserialize, Deserializer, Serialize};
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
        let Read { chart, since } = Read::deserialize(deserializer)?;
        // Entry actions change nothing, they only send; what is sent here was sent long ago.
        let chart = chart.init_with_context(&mut Step::at(since));
        Ok(Self { chart, since, ignored: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{BackendId, Command, Event, Look, Options, RequestId, Server};

    #[test]
    fn a_machine_in_the_middle_of_something_goes_on_as_if_it_had_not_been_written_down() {
        let mut machine = Machine::new(crate::driver::tests_policy(), vec![]);
        let at = |seconds| Instant::after_start(std::time::Duration::from_secs(seconds));
        let look = |seconds| Event::Looked(Look { at: at(seconds), server: Server::Silent, ..Look::nothing(2) });
        for second in 1..5 {
            let _ = machine.step(at(second), look(second));
        }
        let command = Command::Switch(BackendId(1), Options::default());
        let sent = machine.step(at(6), Event::Commanded { request: RequestId(1), command });
        assert!(!sent.is_empty(), "{machine:?}");

        let text = serde_json::to_string(&machine).expect("written");
        let mut again: Machine = serde_json::from_str(&text).expect("read");
        assert_eq!(again.view(), machine.view());
        for second in 7..400 {
            let event = if second % 3 == 0 { look(second) } else { Event::Tick };
            assert_eq!(again.step(at(second), event.clone()), machine.step(at(second), event));
        }
        assert_eq!(again.view(), machine.view());
    }
}
