//! Orders: given to the world one at a time, and what became of them.

use std::{sync::Arc, time::Duration};

use tracing::{debug, error, info, warn};

use super::{Done, Driver, VERB_SLACK, World, tending::saved_now};
use crate::machine::{Event, Goal, Instant, OpId, Outcome, Verb, VerbId, Warning};

impl<W: World> Driver<W> {
    /// Gives an order to the world.
    pub(super) fn order(&mut self, verb: VerbId, what: Verb, within: Duration, op: OpId, now: Instant) {
        if what != Verb::Wake
            && let Some(other) = self.order
        {
            error!(%verb, ?what, %other, "refused an order: another is under way");
            let why = Warning::new("order_refused", "another order was under way");
            self.tasks.spawn(async move { Done::Order { verb, what, outcome: Outcome::Failed(why), saved: None } });
            return;
        }
        if what == Verb::Wake {
            debug!(%verb, ?what, %op, ?within, "order");
        } else {
            self.order = Some(verb);
            info!(%verb, ?what, %op, ?within, "order");
        }
        self.stopwatch.ordered(what, now);
        if let Verb::RestoreSlots(backend) = what {
            self.proofs.ordered(backend, &self.reading, &self.view);
        }
        let (world, clock) = (Arc::clone(&self.world), Arc::clone(&self.clock));
        let slots = self.selections.choice(what, self.open.get(&op).copied());
        // Who wants nothing else finds it shown at its end; on the way to a stop or from a start nobody waits for that.
        let is_shown = matches!(
            (what, self.open.get(&op)),
            (Verb::SaveSlots(_), Some(Goal::Save(..))) | (Verb::RestoreSlots(_), Some(Goal::Restore(..)))
        );
        let given = tokio::time::Instant::now();
        self.tasks.spawn(async move {
            let Some(slots) = slots else {
                let outcome = Outcome::Failed(Warning::new("no_such_slot", "its name was forgotten"));
                return Done::Order { verb, what, outcome, saved: None };
            };
            let carried_out = world.carry_out_chosen(what, slots, within.saturating_sub(2 * VERB_SLACK));
            let outcome = tokio::time::timeout(within.saturating_sub(VERB_SLACK), carried_out).await;
            let late = || Warning::new("no_answer", format!("no answer within {}", humantime::format_duration(within)));
            let outcome = outcome.unwrap_or_else(|_| Outcome::Unknown(late()));
            let saved = if is_shown {
                let left = within.saturating_sub(given.elapsed() + VERB_SLACK / 2);
                saved_now(&*world, &clock, left).await
            } else {
                None
            };
            Done::Order { verb, what, outcome, saved }
        });
    }

    /// Takes in how an order ended, and shows the machine.
    pub(super) fn order_ended(&mut self, verb: VerbId, what: Verb, outcome: Outcome) {
        if self.order == Some(verb) {
            self.order = None;
        }
        let now = self.clock.now();
        self.schedule.order_ended(what);
        match &outcome {
            Outcome::Succeeded(warnings) if what == Verb::Wake && warnings.is_empty() => {
                debug!(%verb, ?what, "order succeeded");
            }
            Outcome::Succeeded(warnings) => {
                info!(%verb, ?what, warnings = warnings.len(), "order succeeded");
                let (history, policy) = (&mut self.history, &self.setup.policy);
                if self.stopwatch.succeeded(what, now, history, policy) {
                    self.keeper.durations(&self.history);
                }
            }
            Outcome::Failed(why) => {
                warn!(%verb, ?what, code = why.code, message = why.message, "order failed");
                self.stopwatch.drop_running();
            }
            Outcome::Unknown(why) => {
                warn!(%verb, ?what, code = why.code, message = why.message, "nobody knows how the order ended");
            }
        }
        match what {
            Verb::RestoreSlots(backend) => {
                self.proofs.ended(backend, now);
                self.schedule.use_tells(self.proofs.are_awaited(now));
            }
            Verb::SaveSlots(backend) => self.oddities.unsaved.save_ended(backend, &outcome, &self.view),
            _ => {}
        }
        self.step(&Event::Finished { verb, outcome });
    }
}
