//! What restores were worth, told by the counters of the first requests after them. llama.cpp answers a restore with success
//! also where nothing of it can be used: only a request shows.

use super::world::SlotTask;
use crate::machine::{
    BackendId, Invocation, Policy, View,
    reading::{Activity, BackendReading, Dated, Prompts, Reading, Reuse},
};

/// A prompt of fewer tokens, none of them found, tells nothing: somebody may only have said hello.
const LEAST_PROMPT: u64 = 32;

/// Restores whose worth is not known yet.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// By backend: the run that was restored into, and its counters before.
    waiting: Vec<Option<(Dated<Invocation>, Prompts)>>,
}

impl Proofs {
    /// A restore was done.
    pub(super) fn restored(&mut self, id: BackendId, reading: &Reading, view: &View) {
        let index = usize::from(id.0);
        if self.waiting.len() <= index {
            self.waiting.resize(index + 1, None);
        }
        let run = view.look.backends.get(index).and_then(|look| look.invocation);
        let before = reading.backends.get(index).and_then(|backend| of_run(backend, run)).unwrap_or_default();
        self.waiting[index] = run.map(|value| (Dated { at: view.now, value }, before));
    }

    /// Somebody's next request will tell.
    pub(super) fn are_awaited(&self) -> bool {
        self.waiting.iter().any(Option::is_some)
    }

    /// What has become known.
    pub(super) fn told(&mut self, reading: &Reading, view: &View, policy: &Policy) -> Vec<(BackendId, SlotTask)> {
        let mut told = vec![];
        for (id, waiting) in policy.ids().zip(&mut self.waiting) {
            let index = usize::from(id.0);
            let run = view.look.backends.get(index).and_then(|look| look.invocation);
            // Another run knows nothing of it; one that cannot be read just now is still the same.
            waiting.take_if(|(restored, _)| run.is_some_and(|run| run != restored.value));
            let Some((restored, before)) = waiting else { continue };
            let Some(backend) = reading.backends.get(index) else { continue };
            let Some(activity) = backend.activity.as_ref().filter(|activity| activity.at > restored.at) else {
                continue;
            };
            // What of a prompt is found in the cache is counted when it begins, what of it is computed when that is done.
            if is_busy(&activity.value) {
                continue;
            }
            let Some(now) = of_run(backend, Some(restored.value)) else { continue };
            let reuse = Reuse {
                reused: now.reused.saturating_sub(before.reused),
                computed: now.computed.saturating_sub(before.computed),
            };
            if reuse.reused == 0 && reuse.computed < LEAST_PROMPT {
                continue;
            }
            let used = activity.value.slots.iter().filter(|slot| slot.tokens.is_some());
            let slots: Vec<u32> = used.map(|slot| slot.id).collect();
            // The slots were asked a moment before the counters: which of them it was, the next look tells.
            if slots.is_empty() {
                continue;
            }
            told.push((id, SlotTask::Proved { slots, reuse }));
            *waiting = None;
        }
        told
    }
}

fn is_busy(activity: &Activity) -> bool {
    activity.in_flight.is_some_and(|requests| requests > 0) || activity.slots.iter().any(|slot| slot.is_processing)
}

/// The counters of that run, where they were read.
fn of_run(backend: &BackendReading, run: Option<Invocation>) -> Option<Prompts> {
    let first_seen = backend.run.as_ref().filter(|seen| Some(seen.value) == run)?.at;
    backend.activity.as_ref().filter(|activity| activity.at >= first_seen)?.value.prompts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        driver::tests_policy,
        machine::{Instant, Machine, reading::SlotReading},
    };

    const LLAMA: BackendId = BackendId(0);

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    struct Scene {
        policy: Policy,
        view: View,
        reading: Reading,
        proofs: Proofs,
        in_flight: Option<u32>,
    }

    impl Scene {
        /// A run that was seen at that second, and restored into a second later.
        fn restored(second: u64) -> Self {
            let policy = tests_policy();
            let view = Machine::new(policy.clone(), vec![]).view();
            let reading = Reading { backends: vec![BackendReading::default(); 2], ..Reading::default() };
            let mut scene = Self { policy, view, reading, proofs: Proofs::default(), in_flight: None };
            scene.runs(second);
            scene.view.now = at(second + 1);
            scene.proofs.restored(LLAMA, &scene.reading, &scene.view);
            scene
        }

        fn runs(&mut self, second: u64) {
            let value = Invocation(u128::from(second));
            self.view.look.backends[0].invocation = Some(value);
            self.reading.backends[0].run = Some(Dated { at: at(second), value });
        }

        /// The counters, and whether slots 0 and 1 were used.
        fn told(&mut self, second: u64, computed: u64, reused: u64, used: [bool; 2]) -> Vec<SlotTask> {
            let slot = |(id, used): (u32, bool)| SlotReading {
                id,
                n_ctx: 4096,
                is_processing: false,
                tokens: used.then_some(computed + reused),
            };
            let slots = (0..).zip(used).map(slot).collect();
            let value = Activity {
                prompts: Some(Prompts { computed, reused }),
                slots,
                in_flight: self.in_flight,
                ..Activity::default()
            };
            self.reading.backends[0].activity = Some(Dated { at: at(second), value });
            self.proofs.told(&self.reading, &self.view, &self.policy).into_iter().map(|(_, task)| task).collect()
        }
    }

    fn proved(slots: &[u32], reused: u64, computed: u64) -> SlotTask {
        SlotTask::Proved { slots: slots.to_vec(), reuse: Reuse { reused, computed } }
    }

    #[test]
    fn the_first_request_after_a_restore_tells_and_no_other_does() {
        let mut scene = Scene::restored(10);
        assert!(scene.proofs.are_awaited());
        assert_eq!(scene.told(12, 0, 0, [false, false]), [], "nobody has asked it anything");
        assert_eq!(scene.told(14, 1, 901, [true, false]), [proved(&[0], 901, 1)]);
        assert!(!scene.proofs.are_awaited());
        assert_eq!(scene.told(16, 900, 901, [true, false]), []);
    }

    #[test]
    fn a_greeting_tells_nothing_and_a_prompt_computed_anew_does() {
        let mut scene = Scene::restored(10);
        assert_eq!(scene.told(12, LEAST_PROMPT - 1, 0, [true, false]), []);
        assert_eq!(scene.told(14, 900, 0, [true, true]), [proved(&[0, 1], 0, 900)]);
    }

    #[test]
    fn a_request_tells_when_it_has_ended_and_the_slot_it_was_in_is_known() {
        let mut scene = Scene::restored(10);
        scene.in_flight = Some(1);
        assert_eq!(scene.told(12, 0, 901, [true, false]), [], "what of it is computed is not counted yet");
        scene.in_flight = Some(0);
        assert_eq!(scene.told(14, 1, 901, [false, false]), [], "the slots were asked before it began");
        assert_eq!(scene.told(16, 1, 901, [true, false]), [proved(&[0], 901, 1)]);
    }

    #[test]
    fn what_the_run_before_or_after_counted_says_nothing_of_a_restore() {
        let mut scene = Scene::restored(10);
        let value = Activity { prompts: Some(Prompts { computed: 5000, reused: 0 }), ..Activity::default() };
        scene.reading.backends[0].activity = Some(Dated { at: at(9), value });
        assert_eq!(scene.proofs.told(&scene.reading, &scene.view, &scene.policy), []);
        scene.runs(20);
        assert_eq!(scene.told(21, 900, 0, [true, false]), []);
        assert!(!scene.proofs.are_awaited());
    }

    #[test]
    fn a_restore_into_a_run_that_has_answered_before_is_told_from_what_came_since() {
        let mut scene = Scene::restored(10);
        assert_eq!(scene.told(12, 1000, 0, [true, false]), [proved(&[0], 0, 1000)]);
        scene.view.now = at(13);
        scene.proofs.restored(LLAMA, &scene.reading, &scene.view);
        assert_eq!(scene.told(14, 1003, 500, [true, false]), [proved(&[0], 500, 3)]);
    }
}
