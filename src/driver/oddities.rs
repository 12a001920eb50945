//! What looks odd about a backend that runs, for people to judge: no state hangs on it, and nothing is done about it.
//! Each is a fact that was read, worded no stronger than it is, and clears itself.

use std::time::Duration;

use super::unsaved::{self, Unsaved};
use crate::machine::{
    BackendId, BackendKind, Instant, Invocation, Policy, RestorePolicy, Seen, View,
    reading::{BackendReading, Dated, Gpu, Http, Reading},
};

/// Counters that have stood still for so long while a request was in flight. One batch of a long prompt takes seconds.
const STILL: Duration = Duration::from_mins(10);

/// Something odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Oddity {
    /// Stable code.
    pub(super) code: &'static str,
    /// What is so.
    pub(super) message: String,
    /// What a person can do.
    pub(super) hint: &'static str,
    /// The backend concerned.
    pub(super) backend: BackendId,
    /// Since when.
    pub(super) since: Instant,
}

/// What is odd now, and what must be remembered to tell.
#[derive(Debug, Default)]
pub(super) struct Oddities {
    backends: Vec<Memory>,
    found: Vec<Oddity>,
    /// What was stopped without being saved.
    pub(super) unsaved: Unsaved,
}

/// Of one backend.
#[derive(Debug, Default)]
struct Memory {
    /// The run that is up and has been healthy, and since when.
    ready: Option<Dated<Invocation>>,
    /// Some run of it was seen on the GPU: so the tool can tell which processes are its own.
    was_on_gpu: bool,
    /// Its counters while requests are in flight, and since when they have shown this.
    still: Option<Dated<u64>>,
}

impl Oddities {
    /// What is odd now.
    pub(super) fn found(&self) -> &[Oddity] {
        &self.found
    }

    /// Takes in what was read and what was made of it.
    pub(super) fn note(&mut self, reading: &Reading, view: &View, policy: &Policy, now: Instant) {
        self.backends.resize_with(policy.backends.len(), Memory::default);
        let mut found = vec![];
        for (id, memory) in policy.ids().zip(&mut self.backends) {
            let Some(backend) = reading.backends.get(usize::from(id.0)) else { continue };
            let mut odd = |code, message: &str, hint| {
                found.push(Oddity { code, message: message.into(), hint, backend: id, since: now });
            };
            memory.note_run(id, view, now);
            if memory.is_off_the_gpu(id, reading, view, policy) {
                odd(
                    "gpu_unused",
                    "it is healthy, but holds no GPU memory: it may have fallen back to the processor",
                    "read its journal for the GPU driver, then `wechsler restart` it",
                );
            }
            if memory.stands_still(id, backend, view) {
                odd(
                    "no_progress",
                    "a request is in flight, but nothing has moved for ten minutes; its health says that all is well",
                    "if it does not recover, `wechsler restart --no-drain` it",
                );
            }
            if backend.folder_is_open == Some(true) {
                odd(
                    "slots_folder_open",
                    "its saved conversations lie in a folder that is open to others than its owner and group",
                    "close it: `chmod 2770` on the folder of `slots.dir`, see contrib/README.md",
                );
            }
            let mut saved = backend.saved.iter().flat_map(|saved| &saved.value);
            if let (Some(why), Some(_)) = (saved.find_map(|slot| slot.useless.as_deref()), &memory.ready) {
                odd(
                    "restore_ineffective",
                    &format!("its saved slots are not restored any more: {why}"),
                    "models with a sliding window need --swa-full, those with recurrent state the same conversation; \
                     else set `restore` to \"never\"",
                );
            }
            if let (Some(why), Some(_)) = (why_empty(id, backend, view, policy), &memory.ready) {
                odd(
                    "slots_unfit",
                    &format!("its slots are empty, and nothing that is saved comes back: {why}"),
                    "see `wechsler slots list`; what another model saved is kept and comes back with it",
                );
            }
            let cannot_save = backend.activity.as_ref().and_then(|a| a.value.cannot_save.as_deref());
            if let (Some(why), true, Some(_)) = (cannot_save, policy.backend(id).slots, &memory.ready) {
                odd(
                    "save_not_supported",
                    &format!("it cannot save its slots: {why}"),
                    "start it with --slot-save-path, or leave its section `slots` out of the configuration",
                );
            }
        }
        // What was odd already has been so since then.
        for odd in &mut found {
            let before = self.found.iter().find(|o| o.code == odd.code && o.backend == odd.backend);
            odd.since = before.map_or(odd.since, |before| before.since);
        }
        self.unsaved.note(view, now);
        found.extend(self.unsaved.lost().map(|(backend, why, since)| Oddity {
            code: "not_saved",
            message: format!("what it held when it was stopped was not saved: {} [{}]", why.message, why.code),
            hint: unsaved::hint(&why.code).unwrap_or("see the daemon's journal"),
            backend,
            since,
        }));
        self.found = found;
    }
}

/// Why a backend that nobody has used yet has nothing of what it saved; `None`: it may have, or nothing is saved.
fn why_empty(id: BackendId, backend: &BackendReading, view: &View, policy: &Policy) -> Option<String> {
    let look = view.look.backends.get(usize::from(id.0))?;
    let is_meant = policy.backend(id).slots && policy.backend(id).restore != RestorePolicy::Never;
    if !is_meant || look.seen != Seen::Running || !look.unused || look.restorable {
        return None;
    }
    let own = || backend.saved.iter().flat_map(|saved| &saved.value).filter(|slot| !slot.named && slot.tokens > 0);
    // What restores do nothing for is told already.
    if own().any(|slot| slot.useless.is_some()) {
        return None;
    }
    if let Some(good) = own().find(|slot| slot.put_aside.is_none()) {
        let now = match backend.http.as_ref().map(|http| &http.value) {
            Some(Http::Ready(identity)) => identity.model.as_deref()?,
            _ => return None,
        };
        return Some(format!("it was saved by model {}, and {now} answers", good.model));
    }
    let newest = own().next()?;
    let why = newest.put_aside.as_deref()?;
    Some(format!("none of {} saved generations is good, the newest: {why}", own().count()))
}

impl Memory {
    fn note_run(&mut self, id: BackendId, view: &View, now: Instant) {
        let up = view.look.backends.get(usize::from(id.0)).is_some_and(|look| look.seen.is_up());
        let run = view.backends.get(usize::from(id.0)).and_then(|backend| backend.ready).filter(|_| up);
        if self.ready.as_ref().map(|ready| ready.value) != run {
            self.ready = run.map(|value| Dated { at: now, value });
            self.still = None;
        }
    }

    /// It is up, and the GPU, read since, has nothing of it. Said only where that can be told: nobody else's process is
    /// there, and either all memory is at its baseline or an earlier run was seen there.
    fn is_off_the_gpu(&mut self, id: BackendId, reading: &Reading, view: &View, policy: &Policy) -> bool {
        let index = usize::from(id.0);
        let Some(Dated { at, value: Gpu::Read { devices, processes } }) = &reading.gpu else { return false };
        if processes.iter().any(|p| p.backend == Some(index)) {
            self.was_on_gpu = true;
            return false;
        }
        let Some(look) = view.look.backends.get(index) else { return false };
        let has_settled = self.ready.as_ref().is_some_and(|ready| *at >= ready.at);
        if !has_settled || look.seen != Seen::Running || look.sleeping {
            return false;
        }
        let others = processes.iter().any(|p| !p.ignored);
        let rests = |baseline| !devices.is_empty() && devices.iter().all(|d| d.used_mib.is_some_and(|m| m <= baseline));
        let all_rests = policy.gpu_baseline_mib.is_some_and(rests) && policy.backend(id).kind != BackendKind::Generic;
        !others && (all_rests || self.was_on_gpu)
    }

    /// Requests are in flight, and its counters have not moved for long.
    fn stands_still(&mut self, id: BackendId, backend: &BackendReading, view: &View) -> bool {
        let runs = view.look.backends.get(usize::from(id.0)).is_some_and(|look| look.seen == Seen::Running);
        let (Some(ready), Some(activity), true) = (&self.ready, &backend.activity, runs) else {
            self.still = None;
            return false;
        };
        let busy = activity.value.in_flight.is_some_and(|n| n > 0) && activity.at >= ready.at;
        let Some(mark) = activity.value.mark.filter(|_| busy) else {
            self.still = None;
            return false;
        };
        let since = self.still.as_ref().filter(|still| still.value == mark).map_or(activity.at, |still| still.at);
        self.still = Some(Dated { at: since, value: mark });
        activity.at.since(since) >= STILL
    }
}

#[cfg(test)]
#[path = "oddities_tests.rs"]
mod tests;
