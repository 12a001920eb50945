//! What restores were worth, told by the first request after them in each slot. llama.cpp answers a restore with success also
//! where nothing of it can be used: only a request shows.
//!
//! Its counters are of all slots and all requests since its start, and between two looks there may have been several. A slot is
//! judged only where one request in each slot accounts for every token counted meanwhile; else nobody can say whose they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    World,
    world::{SlotTask, TENDED_WITHIN},
};
use crate::machine::{
    BackendId, Instant, Invocation, Policy, View,
    reading::{Activity, BackendReading, Dated, Progress, Prompts, Reading, Reuse, SavedSlot, SlotRequest},
};

/// A prompt of fewer tokens, none of them found, tells nothing: somebody may only have said hello.
const LEAST_PROMPT: u64 = 32;
/// For so long after a restore its first request is waited for eagerly.
const EAGER: Duration = Duration::from_mins(10);
/// A verdict that cannot be written down is tried again after so long, ...
const WRITE_AGAIN: Duration = Duration::from_secs(10);
/// ... and so often. A save may be under way for minutes.
const WRITES: u32 = 20;

/// Restores whose worth is not known yet.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// By backend.
    waiting: Vec<Option<Waiting>>,
}

/// Slots of one run that may have been restored, and have not been used since.
#[derive(Debug)]
struct Waiting {
    run: Invocation,
    /// When the restore ended.
    ended: Option<Instant>,
    slots: Unjudged,
}

impl Proofs {
    /// A restore begins: what is counted from now on may be of what it brings back.
    pub(super) fn ordered(&mut self, id: BackendId, reading: &Reading, view: &View) {
        let index = usize::from(id.0);
        if self.waiting.len() <= index {
            self.waiting.resize_with(index + 1, || None);
        }
        let run = view.look.backends.get(index).and_then(|look| look.invocation);
        let waiting = &mut self.waiting[index];
        if let Some(waiting) = waiting.as_mut().filter(|waiting| Some(waiting.run) == run) {
            waiting.ended = None;
            return;
        }
        let before = reading.backends.get(index).and_then(|backend| of_run(backend, run)).cloned().unwrap_or_default();
        let slots = Unjudged { before, ..Unjudged::default() };
        *waiting = run.map(|run| Waiting { run, ended: None, slots });
    }

    /// It has ended, however that was: what came back, the saved slots on record tell.
    pub(super) fn ended(&mut self, id: BackendId, now: Instant) {
        if let Some(Some(waiting)) = self.waiting.get_mut(usize::from(id.0)) {
            waiting.ended = Some(now);
        }
    }

    /// Somebody's next request will tell, and is likely soon.
    pub(super) fn are_awaited(&self, now: Instant) -> bool {
        let is_eager = |ended: Instant| now.since(ended) < EAGER;
        self.waiting.iter().flatten().any(|waiting| waiting.ended.is_some_and(is_eager) || waiting.slots.are_in_use)
    }

    /// What has become known.
    pub(super) fn told(&mut self, reading: &Reading, view: &View, policy: &Policy) -> Vec<(BackendId, SlotTask)> {
        let mut told = vec![];
        for (id, place) in policy.ids().zip(&mut self.waiting) {
            let index = usize::from(id.0);
            let run = view.look.backends.get(index).and_then(|look| look.invocation);
            // Another run knows nothing of it; one that cannot be read just now is still the same.
            place.take_if(|waiting| run.is_some_and(|run| run != waiting.run));
            let (Some(waiting), Some(backend)) = (place.as_mut(), reading.backends.get(index)) else { continue };
            let Some(ended) = waiting.ended else { continue };
            let activity = backend.activity.as_ref().filter(|activity| activity.at > ended).map(|dated| &dated.value);
            if let Some(activity) = activity {
                // One that sleeps has lost what was restored, and one that does not count tells nothing.
                let Some(now) = &activity.prompts else {
                    *place = None;
                    continue;
                };
                for (slot, reuse) in waiting.slots.judge(now) {
                    if let Some(reuse) = reuse {
                        told.push((id, SlotTask::Proved { slots: vec![slot], reuse }));
                    } else {
                        tracing::info!(?id, slot, "what its restore was worth cannot be known");
                    }
                }
            }
            if waiting.is_over(ended, activity, backend.saved.as_ref()) {
                *place = None;
            }
        }
        told
    }
}

impl Waiting {
    /// No request can tell anything any more: each slot was used, or nothing came back that is not judged.
    fn is_over(&self, ended: Instant, activity: Option<&Activity>, saved: Option<&Dated<Vec<SavedSlot>>>) -> bool {
        let all_used = activity.is_some_and(|now| now.slots.iter().all(|slot| slot.tokens.is_some()));
        // Also what an earlier life of the daemon has restored into this run.
        let is_unjudged = |slot: &SavedSlot| {
            let last = slot.last_restore.as_ref().filter(|_| slot.restored_into == Some(self.run));
            last.is_some_and(|last| last.reuse.is_none())
        };
        let none_came_back = |saved: &Dated<Vec<SavedSlot>>| saved.at > ended && !saved.value.iter().any(is_unjudged);
        !self.slots.are_in_use && (all_used || saved.is_some_and(none_came_back))
    }
}

/// Slots whose first request is still to be judged.
#[derive(Debug, Default)]
struct Unjudged {
    /// What was counted when last every request was accounted for. Slots that it does not name had not been used.
    before: Prompts,
    /// Judged since.
    judged: BTreeSet<u32>,
    /// By slot, so many tokens of the first prompt were worked on when last seen, and none of them found.
    not_found: BTreeMap<u32, u64>,
    /// A first request is under way.
    are_in_use: bool,
}

impl Unjudged {
    /// Slots whose first request can be judged by now, and how much of its prompt it found; `None` where that cannot be known.
    fn judge(&mut self, now: &Prompts) -> Vec<(u32, Option<Reuse>)> {
        let is_first = |request: &&SlotRequest| {
            !self.before.requests.iter().any(|before| before.slot == request.slot)
                && !self.judged.contains(&request.slot)
        };
        let first: Vec<&SlotRequest> = now.requests.iter().filter(is_first).collect();
        let in_prompt = |request: &SlotRequest| request.under_way.is_some_and(|so_far| so_far.generated == 0);
        let mut verdicts = vec![];
        match requests_between(&self.before, now) {
            Some(found) => {
                for request in &first {
                    let Some(reuse) = found.get(&request.slot).copied() else { continue };
                    if !in_prompt(request) {
                        let says_nothing = reuse.reused == 0 && reuse.computed < LEAST_PROMPT;
                        verdicts.push((request.slot, (!says_nothing).then_some(reuse)));
                    } else if reuse.reused == 0 {
                        self.not_found.insert(request.slot, reuse.computed);
                    }
                }
            }
            // A prompt that was just done may be counted, and not be shown yet.
            None if first.iter().any(|request| in_prompt(request)) => {}
            None => {
                for request in &first {
                    // Whatever came after it: of the first prompt nothing was found.
                    let computed = self.not_found.get(&request.slot).copied().filter(|tokens| *tokens >= LEAST_PROMPT);
                    verdicts.push((request.slot, computed.map(|computed| Reuse { reused: 0, computed })));
                }
            }
        }
        self.are_in_use = first.iter().any(|request| in_prompt(request));
        if self.are_in_use {
            self.judged.extend(verdicts.iter().map(|(slot, _)| *slot));
        } else if now.requests != self.before.requests {
            *self = Self { before: now.clone(), ..Self::default() };
        }
        verdicts
    }
}

/// Has a verdict written down.
pub(super) async fn write_down<W: World>(world: Arc<W>, backend: BackendId, task: SlotTask) {
    for _ in 0..WRITES {
        let told = tokio::time::timeout(TENDED_WITHIN, world.tend_slots(backend, task.clone())).await;
        match told {
            Ok(Ok(told)) if told.iter().all(|told| told.code != "note_failed") => return,
            Ok(why) => tracing::debug!(?backend, ?why, "a verdict on a restore is not written down yet"),
            Err(_) => tracing::debug!(?backend, "a verdict on a restore was not written down in time"),
        }
        tokio::time::sleep(WRITE_AGAIN).await;
    }
    tracing::warn!(?backend, ?task, "what a restore was worth could not be written down");
}

/// What the newest request of each slot that had one since `before` found of its prompt, as far as that is done; `None` where
/// these requests are not all that was counted.
fn requests_between(before: &Prompts, now: &Prompts) -> Option<BTreeMap<u32, Reuse>> {
    let mut rest =
        Reuse { reused: now.reused.checked_sub(before.reused)?, computed: now.computed.checked_sub(before.computed)? };
    let mut ended = None;
    let mut found = BTreeMap::new();
    for request in &now.requests {
        let earlier = before.requests.iter().find(|earlier| is_same(earlier, request));
        let counted_before = earlier.and_then(|earlier| earlier.under_way).map(counted).unwrap_or_default();
        match request.under_way {
            Some(progress) => {
                let counted = counted(progress);
                rest.reused = rest.reused.checked_sub(counted.reused.checked_sub(counted_before.reused)?)?;
                rest.computed = rest.computed.checked_sub(counted.computed.checked_sub(counted_before.computed)?)?;
                found.insert(request.slot, Reuse { reused: progress.reused, computed: progress.computed });
            }
            None if earlier.is_some_and(|earlier| earlier.under_way.is_none()) => {}
            // What is left is of the one that has ended; of two nobody can tell whose.
            None if ended.is_some() => return None,
            None => ended = Some((request, counted_before)),
        }
    }
    let Some((request, counted_before)) = ended else { return (rest == Reuse::default()).then_some(found) };
    let reused = rest.reused.saturating_add(counted_before.reused);
    let computed = rest.computed.saturating_add(counted_before.computed);
    let generated = now.generated.checked_sub(before.generated)?;
    // The token that was generated last never goes into the slot. One whose prompt was broken off has generated none.
    let held = reused.saturating_add(computed).saturating_add(generated).saturating_sub(1);
    found.insert(request.slot, Reuse { reused, computed });
    (generated > 0 && held == request.held).then_some(found)
}

fn is_same(a: &SlotRequest, b: &SlotRequest) -> bool {
    (a.slot, a.task) == (b.slot, b.task)
}

/// What of a request under way is in the counters.
const fn counted(progress: Progress) -> Reuse {
    let computed = if progress.generated > 0 { progress.computed } else { 0 };
    Reuse { reused: progress.reused, computed }
}

/// What that run counted, where it was read.
fn of_run(backend: &BackendReading, run: Option<Invocation>) -> Option<&Prompts> {
    let first_seen = backend.run.as_ref().filter(|seen| Some(seen.value) == run)?.at;
    backend.activity.as_ref().filter(|activity| activity.at >= first_seen)?.value.prompts.as_ref()
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
