//! What is done about saved slots beside all operations.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use tracing::info;

use super::{Clock, Done, Driver, Source, TENDED_WITHIN, Tend, Tended, World, proof};
use crate::machine::{Instant, Warning, reading::Reading};

/// A round of tidying that has not ended after so long is given up. The adapters' own deadlines are shorter.
const TIDIED_WITHIN: Duration = Duration::from_mins(15);

/// Whoever did something about saved slots waits so long for a look at them: the answer finds them shown as they are.
const SHOWN_WITHIN: Duration = Duration::from_millis(500);

/// What is saved now, if that can be told in a moment and within `left`.
pub(super) async fn saved_now<W: World>(world: &W, clock: &Clock, left: Duration) -> Option<Box<Reading>> {
    let look = world.look(Source::Saved.ask(), clock.now());
    tokio::time::timeout(left.min(SHOWN_WITHIN), look).await.ok().map(Box::new)
}

impl<W: World> Driver<W> {
    /// Writes down what has become known of restores.
    pub(super) fn prove(&mut self, now: Instant) {
        for (backend, task) in self.proofs.told(&self.reading, &self.view, &self.setup.policy) {
            info!(?backend, ?task, "what was restored has been used, or not");
            let written = proof::write_down(Arc::clone(&self.world), backend, task);
            self.tasks.spawn(written.map(|()| Done::Proved));
        }
        self.schedule.use_tells(self.proofs.are_awaited(now));
    }

    /// Tends saved slots, beside all else: nothing waits for it but who has asked.
    pub(super) fn tend(&mut self, Tend { backend, task, answer }: Tend) {
        self.tended += 1;
        let (world, clock) = (Arc::clone(&self.world), Arc::clone(&self.clock));
        self.tasks.spawn(async move {
            let told = tokio::time::timeout(TENDED_WITHIN, world.tend_slots(backend, task)).await;
            let told = told.unwrap_or_else(|_| Err(Warning::new("no_answer", "it was not done in time")));
            Done::Tended { told, answer, saved: saved_now(&*world, &clock, SHOWN_WITHIN).await }
        });
    }

    /// Shows what is saved now before it answers.
    pub(super) fn was_tended(&mut self, told: Tended, answer: oneshot::Sender<Tended>, saved: Option<Box<Reading>>) {
        self.tended -= 1;
        match saved {
            Some(saved) => self.take_in(Source::Saved, *saved),
            None => self.schedule.want(Source::Saved),
        }
        // Who does not listen any more does not mind.
        let _ = answer.send(told);
    }

    /// Has done what can wait, if nothing is under way: whoever switches does not wait for a file that is read for its digest.
    pub(super) fn tidy(&mut self) {
        if self.tidying || self.view.operation.is_some() || self.order.is_some() {
            return;
        }
        self.tidying = true;
        let world = Arc::clone(&self.world);
        self.tasks.spawn(async move {
            let more = tokio::time::timeout(TIDIED_WITHIN, world.tidy()).await;
            Done::Tidied { more: more.unwrap_or(false) }
        });
    }
}
