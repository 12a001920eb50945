//! What is inside a llama.cpp: slots, counters, the queue.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use super::super::{
    life::{Held, lock},
    text,
};

/// A slot whose contents are at least this similar to a prompt is preferred to the least recently used one.
const SIMILAR_ENOUGH: f64 = 0.1;

/// One slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// The tokens it holds.
    pub(super) tokens: Vec<u8>,
    /// What the model has in mind after each of them; the KV cache, in other words.
    pub(super) minds: Vec<u64>,
    /// The contents count for nothing when the next prompt comes (restored into a model with a sliding window).
    pub(super) unusable: bool,
    /// It was restored and not used since.
    pub(super) restored: bool,
    /// When it was last used, if nobody has asked to save it since.
    pub(super) unsaved: Option<Instant>,
    /// The last request it worked on; `None`: never used.
    pub(super) task: Option<u64>,
    /// Busy with a request, a save, a restore or an erase.
    pub(super) busy: bool,
    /// The request it works on.
    pub(super) work: Option<Work>,
    /// When it was last used, in requests.
    last_used: u64,
    /// What the last request wanted.
    pub(super) wanted: Wanted,
}

/// What a request wants, as far as `/slots` shows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) n_predict: i64,
    pub(super) stream: bool,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) processed: u64,
    pub(super) cached: u64,
    pub(super) decoded: u64,
}

/// Everything that `/metrics` counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) prompt: u64,
    pub(super) cached: u64,
    pub(super) predicted: u64,
    pub(super) prompt_time: Duration,
    pub(super) predicted_time: Duration,
    pub(super) decodes: u64,
    pub(super) busy_in_decodes: u64,
    pub(super) most_tokens: u64,
    /// Since the last look at the metrics, by anybody.
    pub(super) bucket: Bucket,
}

/// What the averages are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    pub(super) prompt: u64,
    pub(super) prompt_time: Duration,
    pub(super) predicted: u64,
    pub(super) predicted_time: Duration,
}

/// The state, shared by all tasks of the process.
#[derive(Debug)]
pub(super) struct Core {
    inner: Mutex<State>,
    /// A slot has become free, or a task has ended.
    freed: Notify,
    /// The one thread that decodes, saves and answers `/slots` and `/metrics`.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// The state itself.
#[derive(Debug)]
pub(super) struct State {
    pub(super) slots: Vec<Slot>,
    pub(super) counters: Counters,
    pub(super) deferred: u32,
    pub(super) asleep: bool,
    /// The last task of any kind: what the idle timer counts from.
    pub(super) last_task: Instant,
    /// The last result of any kind: it restarts the wait after which a client that has gone is noticed.
    pub(super) last_result: Instant,
    next_task: u64,
    uses: u64,
}

/// Which slot somebody wants.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    /// This one: ids wrap.
    Id(u64),
    /// The best for this prompt.
    For(&'a [u8]),
}

impl Core {
    pub(super) fn new(slots: u32) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            inner: Mutex::new(State {
                slots: vec![Slot::default(); usize::try_from(slots.max(1)).unwrap_or(1)],
                counters: Counters::default(),
                deferred: 0,
                asleep: false,
                last_task: now,
                last_result: now,
                next_task: 0,
                uses: 0,
            }),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// Does something with the state. Never held over an await.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut lock(&self.inner))
    }

    /// A task was posted: it has a number, and the idle timer begins anew.
    pub(super) fn post(&self) -> u64 {
        self.with(|state| {
            state.last_task = Instant::now();
            state.take_number()
        })
    }

    /// Somebody asks to save that slot.
    pub(super) fn save_is_wanted(&self, id: u64) {
        self.with(|state| {
            let at = wrapped(id, state.slots.len());
            state.slots[at].unsaved = None;
        });
    }

    /// A result was posted.
    pub(super) fn posted(&self) {
        self.with(|state| state.last_result = Instant::now());
    }

    /// Waits for a slot and makes it busy. Dropped: nobody waits any more.
    pub(super) async fn claim(self: &Arc<Self>, which: Which<'_>) -> Claim {
        let mut waiting = None;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(slot) = self.with(|state| state.claim(which)) {
                return Claim { core: Arc::clone(self), slot };
            }
            waiting.get_or_insert_with(|| Deferred::new(self));
            freed.await;
        }
    }

    pub(super) fn all_empty(&self) {
        self.with(|state| state.slots.fill(Slot::default()));
    }
}

impl Held for Core {
    fn held(&self) -> Vec<Option<u64>> {
        self.with(|state| {
            let usable = |slot: &Slot| if slot.unusable { 0 } else { count(slot.tokens.len()) };
            let ever = |slot: &Slot| slot.task.is_some() || slot.restored;
            state.slots.iter().map(|slot| ever(slot).then(|| usable(slot))).collect()
        })
    }

    fn unsaved(&self) -> Option<(u64, Duration)> {
        self.with(|state| {
            let slots = || state.slots.iter().filter(|slot| slot.unsaved.is_some() && !slot.tokens.is_empty());
            let used = slots().filter_map(|slot| slot.unsaved).max()?;
            Some((slots().map(|slot| count(slot.tokens.len())).sum(), used.elapsed()))
        })
    }
}

impl State {
    /// The number of a new task.
    pub(super) const fn take_number(&mut self) -> u64 {
        let number = self.next_task;
        self.next_task += 1;
        number
    }

    fn claim(&mut self, which: Which<'_>) -> Option<usize> {
        let at = match which {
            Which::Id(id) => wrapped(id, self.slots.len()),
            Which::For(prompt) => self.best_for(prompt)?,
        };
        let slot = &mut self.slots[at];
        if slot.busy {
            return None;
        }
        slot.busy = true;
        Some(at)
    }

    /// The free slot that shares most with the prompt, if that is enough; else the one not used for longest, of several
    /// the last.
    fn best_for(&self, prompt: &[u8]) -> Option<usize> {
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| !slot.busy);
        let alike = |slot: &Slot| ratio(common(&slot.tokens, prompt), prompt.len());
        let most = free().map(|(at, slot)| (at, alike(slot))).max_by(|a, b| a.1.total_cmp(&b.1));
        match most {
            Some((at, similarity)) if similarity > SIMILAR_ENOUGH => Some(at),
            _ => free().rev().min_by_key(|(_, slot)| slot.last_used).map(|(at, _)| at),
        }
    }

    pub(super) fn busy_with_requests(&self) -> usize {
        self.slots.iter().filter(|slot| slot.work.is_some()).count()
    }

    /// A request begins in a slot: how many of its prompt's tokens are there already.
    pub(super) fn begin(&mut self, at: usize, task: u64, prompt: &[u8], cache: bool, wanted: Wanted) -> usize {
        self.uses += 1;
        let uses = self.uses;
        let slot = &mut self.slots[at];
        // At least one token is always worked on, or there would be nothing to go on from.
        let mut cached = common(&slot.tokens, prompt).min(prompt.len().saturating_sub(1));
        if !cache || slot.unusable {
            cached = 0;
        }
        slot.unusable = false;
        slot.restored = false;
        slot.unsaved = Some(Instant::now());
        slot.tokens.truncate(cached);
        slot.minds.truncate(cached);
        slot.task = Some(task);
        slot.last_used = uses;
        slot.wanted = wanted;
        slot.work = Some(Work { cached: count(cached), ..Work::default() });
        cached
    }

    /// One decode: of a batch of prompts, or of a token for each.
    pub(super) fn decoded(&mut self) {
        self.counters.decodes += 1;
        self.counters.busy_in_decodes += count(self.busy_with_requests());
    }
}

impl Slot {
    /// Takes a token in.
    pub(super) fn take(&mut self, token: u8, model: &str) {
        let mind = self.minds.last().copied().unwrap_or_else(|| text::seed(model));
        self.tokens.push(token);
        self.minds.push(text::step(mind, token));
    }

    pub(super) fn empty(&mut self) {
        self.tokens.clear();
        self.minds.clear();
        self.unusable = false;
        self.restored = false;
        self.unsaved = None;
    }

    /// As `/slots` shows it: shortly until it is used.
    pub(super) fn shown(&self, id: usize, n_ctx: u64) -> Value {
        let mut shown = json!({ "id": id, "n_ctx": n_ctx, "speculative": false, "is_processing": self.work.is_some() });
        let Some(task) = self.task else {
            return shown;
        };
        let work = self.work.unwrap_or_default();
        let n_predict = self.wanted.n_predict;
        let remain = if self.work.is_some() && n_predict >= 0 {
            n_predict - i64::try_from(work.decoded).unwrap_or(0)
        } else {
            -1
        };
        let more = json!({
            "id_task": task,
            "n_prompt_tokens": self.tokens.len(),
            "n_prompt_tokens_processed": work.processed,
            "n_prompt_tokens_cache": work.cached,
            "params": {
                "seed": u32::MAX, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
                "max_tokens": n_predict, "n_predict": n_predict, "n_keep": 0, "n_discard": 0,
                "ignore_eos": false, "stream": self.wanted.stream, "n_probs": 0, "samplers": ["top_k", "temperature"],
                "speculative.types": "none", "lora": [],
            },
            "next_token": [{
                "has_next_token": self.work.is_some(), "has_new_line": false,
                "n_remain": remain, "n_decoded": work.decoded,
            }],
        });
        if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
            shown.extend(more);
        }
        shown
    }
}

/// A slot that is busy for somebody; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    core: Arc<Core>,
    /// Its place.
    pub(super) slot: usize,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.core.with(|state| {
            let slot = &mut state.slots[self.slot];
            slot.busy = false;
            if slot.work.take().is_some() {
                slot.unsaved = Some(Instant::now());
            }
            state.last_task = Instant::now();
        });
        self.core.freed.notify_waiters();
    }
}

/// Somebody who waits for a slot.
struct Deferred(Arc<Core>);

impl Deferred {
    fn new(core: &Arc<Core>) -> Self {
        core.with(|state| state.deferred += 1);
        Self(Arc::clone(core))
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.0.with(|state| state.deferred = state.deferred.saturating_sub(1));
    }
}

/// Ids wrap: slot 5 of a server with one slot is slot 0.
pub(super) fn wrapped(id: u64, slots: usize) -> usize {
    usize::try_from(id % count(slots).max(1)).unwrap_or(0)
}

pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a similarity")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
