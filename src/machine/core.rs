//! What the machine remembers beside its leaf: the newest look, the operation, the order under way, the holds.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    BackendId, BackendView, BootId, Doubt, Effect, Failure, Hold, HoldId, Instant, Invocation, Look, OpId, Policy,
    Seen, Server, Use, Verb, VerbId, attention::Worry, ignored::Ignored, leaving::UNKNOWN_USE_GRACE, work::Work,
};

/// Holds in force at most: more are a program gone wild.
pub(super) const MOST_HOLDS: usize = 64;
/// Evidence older than this starts nothing.
pub(super) const FRESH: std::time::Duration = std::time::Duration::from_secs(5);

/// One step: the time, what is asked for, and why nothing was.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) now: Instant,
    pub(super) effects: Vec<Effect>,
    pub(super) ignored: Option<Ignored>,
    /// Another boot has answered than before.
    pub(super) has_rebooted: bool,
}

impl Step {
    pub(super) const fn at(now: Instant) -> Self {
        Self { now, effects: Vec::new(), ignored: None, has_rebooted: false }
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// The shared storage of the statechart: what outlives a leaf.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Core {
    pub(super) policy: Arc<Policy>,
    pub(super) now: Instant,
    pub(super) look: Look,
    /// When that look came.
    pub(super) looked: Instant,
    /// The boot last seen, kept through silence.
    pub(super) boot: Option<BootId>,
    /// Looks in a row that found no server that is up; `None`: the last one did.
    pub(super) silence: Option<Silence>,
    pub(super) backends: Vec<Memory>,
    /// Since when more than one backend has been up.
    pub(super) crowded_since: Option<Instant>,
    /// Since when the server has been on with no backend, and with nobody else on it: what `idle.power_off_after` counts from.
    pub(super) vacant_since: Option<Instant>,
    /// Somebody was logged in when that could last be told, in this boot.
    #[serde(default)]
    pub(super) people: bool,
    /// Somebody else's process held GPU memory when that could last be told, in this boot.
    #[serde(default)]
    pub(super) foreign: bool,
    /// The server was sent packets, or somebody waits for what shows life: it has until then to come up.
    #[serde(default)]
    pub(super) coming_until: Option<Instant>,
    /// When somebody last asked for what is on, was told what became of that, cancelled something or held it: they may be
    /// about to use it.
    #[serde(default)]
    pub(super) wanted_at: Instant,
    pub(super) work: Option<Work>,
    /// The one order that changes anything and has not ended.
    pub(super) order: Option<Order>,
    /// The newest round of wake packets, and for whom: what it says beside is told with that operation's end.
    pub(super) waking: Option<(VerbId, OpId)>,
    /// When the last such order ended: looks asked before prove nothing about it.
    pub(super) order_ended: Instant,
    /// An order's answer was lost in this SSH session: nothing is sent until a later one shows the unit settled.
    pub(super) doubt: Option<Doubt>,
    pub(super) holds: Vec<Hold>,
    pub(super) next_hold: u64,
    pub(super) next_op: u64,
    pub(super) next_verb: u64,
    /// Idle stop and power-off wait until then after one failed.
    pub(super) backoff: Option<Backoff>,
    /// ... and checkpoints after one of theirs: they keep nobody from stopping.
    pub(super) checkpoint_backoff: Option<Backoff>,
    pub(super) attention: Vec<Worry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Silence {
    pub(super) since: Instant,
    pub(super) misses: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Backoff {
    pub(super) until: Instant,
    pub(super) wait: std::time::Duration,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) verb: VerbId,
    pub(super) what: Verb,
    /// Who gave it: its end decides nothing for an operation that has taken that one's place.
    pub(super) op: OpId,
    pub(super) until: Instant,
    /// A save under a name of its own: a copy, which is not what is restored.
    pub(super) named: bool,
    /// The SSH session in which it was given; `None` where that was not known.
    #[serde(default)]
    pub(super) session: Option<u64>,
    /// The run that is saved; `None` where that has no name, or none is.
    #[serde(default)]
    pub(super) run: Option<Invocation>,
}

/// What is remembered of one backend: of its newest run, until another is seen, and when it was used last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The end of its last use; starts when it became ready, or at the first look.
    pub(super) last_use: Option<Instant>,
    /// The run that all below is about; kept while it cannot be read.
    pub(super) run: Option<Invocation>,
    /// Its mark when that was last told; kept while nobody can tell.
    pub(super) mark: Option<u64>,
    /// Since when it cannot be read though the server answers.
    #[serde(default)]
    pub(super) unread: Option<Instant>,
    /// Requests were in flight when that was last told; kept while nobody can tell.
    #[serde(default)]
    pub(super) busy: bool,
    /// Different answers in a row that said idle, with nothing used in between.
    pub(super) calm: u32,
    /// Looks in a row in which it did not answer although it was healthy before.
    pub(super) unwell: u32,
    /// It was seen healthy.
    pub(super) ready: bool,
    /// A restore was ordered for it, or is not wanted any more.
    pub(super) restored: bool,
    /// Somebody has called off its restore.
    #[serde(default)]
    pub(super) declined: bool,
    /// It is healthy, but how it has been used nobody has told yet; until then that is waited for before anything is
    /// concluded from it.
    pub(super) untold_until: Option<Instant>,
    /// A restore went wrong in it: what it holds is worth nothing, and it may answer nonsense.
    pub(super) spoilt: bool,
    /// What it holds is saved: nothing was used since.
    pub(super) on_record: bool,
    /// Tokens it held when it was saved last.
    pub(super) saved_tokens: u64,
}

impl Memory {
    /// Nothing is known of any run.
    fn forget_run(&mut self) {
        *self = Self { last_use: self.last_use, ..Self::default() };
    }

    pub(super) fn view(&self) -> BackendView {
        BackendView {
            last_use: self.last_use,
            run: self.run,
            mark: self.mark,
            ready: self.run_if(self.ready),
            restored: self.run_if(self.restored),
            spoilt: self.run_if(self.spoilt),
        }
    }

    /// It was not down when it was read last.
    const fn was_up(&self) -> bool {
        self.run.is_some() || self.ready
    }

    /// The run, if that is so of it.
    pub(super) fn run_if(&self, so: bool) -> Option<Invocation> {
        self.run.filter(|_| so)
    }
}

impl Core {
    pub(super) fn new(policy: Arc<Policy>, holds: Vec<Hold>) -> Self {
        let backends = policy.backends.len();
        let next_hold = holds.iter().map(|h| h.id.0).max().unwrap_or(0) + 1;
        Self {
            look: Look::nothing(backends),
            backends: vec![Memory::default(); backends],
            policy,
            now: Instant::START,
            looked: Instant::START,
            boot: None,
            silence: None,
            crowded_since: None,
            vacant_since: None,
            people: false,
            foreign: false,
            coming_until: None,
            wanted_at: Instant::START,
            work: None,
            order: None,
            waking: None,
            order_ended: Instant::START,
            doubt: None,
            holds,
            next_hold,
            next_op: 1,
            next_verb: 1,
            backoff: None,
            checkpoint_backoff: None,
            attention: Vec::new(),
        }
    }

    // ---- what is seen -------------------------------------------------------------------------------------------

    /// The pinned key answers.
    pub(super) const fn is_on(&self) -> bool {
        matches!(self.look.server, Server::On { .. })
    }

    /// Nothing that is up has answered for long enough.
    pub(super) fn is_off(&self) -> bool {
        self.silence.is_some_and(|s| {
            // A server never seen up needs no patience: there is nothing that could have flapped.
            let was_up = self.boot.is_some() || self.backends.iter().any(|memory| memory.ready);
            s.misses >= self.policy.misses && (!was_up || self.now.since(s.since) >= self.policy.silence)
        })
    }

    /// It cannot be read, but not for so long that it counts as anything else than what was seen last.
    pub(super) fn may_be_as_it_was(&self, id: BackendId) -> bool {
        self.seen(id) == Seen::Unknown && !self.is_off() && !self.is_lost_from_sight(id)
    }

    /// It had not been read for so long, at the newest look, that what was seen before says nothing.
    fn is_lost_from_sight(&self, id: BackendId) -> bool {
        self.memory(id).unread.is_some_and(|since| self.looked.since(since) > self.policy.silence)
    }

    /// It is on and every backend is proven stopped.
    pub(super) fn nothing_runs(&self) -> bool {
        self.is_on() && self.policy.ids().all(|id| self.seen(id).is_stopped())
    }

    /// It is off, but shows life, or was woken a moment ago.
    pub(super) fn may_be_coming_up(&self) -> bool {
        matches!(self.look.server, Server::Booting(_)) || self.coming_until.is_some_and(|until| until > self.now)
    }

    /// When a silence that was met often enough will have lasted long enough.
    pub(super) fn silence_proves_at(&self) -> Option<Instant> {
        self.silence.filter(|s| s.misses >= self.policy.misses).map(|s| s.since + self.policy.silence)
    }

    /// When what is up beside each other will have been so for long enough to be a conflict.
    pub(super) fn conflict_at(&self) -> Option<Instant> {
        self.crowded_since.filter(|_| !self.is_off()).map(|since| since + self.policy.conflict_after)
    }

    pub(super) fn seen(&self, id: BackendId) -> Seen {
        self.look.backend(id).seen
    }

    pub(super) fn memory(&self, id: BackendId) -> &Memory {
        &self.backends[usize::from(id.0)]
    }

    pub(super) fn memory_mut(&mut self, id: BackendId) -> &mut Memory {
        &mut self.backends[usize::from(id.0)]
    }

    /// Backends that hold the GPU, or may at any moment.
    pub(super) fn up(&self) -> impl Iterator<Item = BackendId> + '_ {
        self.policy.ids().filter(|id| self.seen(*id).is_up())
    }

    /// Backends that are up, as far as anybody can tell.
    pub(super) fn perhaps_up(&self) -> impl Iterator<Item = BackendId> + '_ {
        let may_be_up =
            |id: &BackendId| self.seen(*id).is_up() || (self.may_be_as_it_was(*id) && self.memory(*id).was_up());
        self.policy.ids().filter(may_be_up)
    }

    pub(super) fn first(&self, wanted: impl Fn(Seen) -> bool) -> Option<BackendId> {
        self.policy.ids().find(|id| wanted(self.seen(*id)))
    }

    /// No order is under way or in doubt, and the look was asked after the last one ended.
    pub(super) fn is_settled(&self) -> bool {
        self.order.is_none() && self.units_are_settled()
    }

    /// What is seen of the units is not about to change by an order that was given already.
    pub(super) fn units_are_settled(&self) -> bool {
        let leaves_units = |order: Order| matches!(order.what, Verb::SaveSlots(_) | Verb::RestoreSlots(_));
        self.order.is_none_or(leaves_units) && self.doubt.is_none() && self.look.at >= self.order_ended
    }

    /// This order is under way, and is to power off.
    pub(super) fn is_power_off(&self, verb: VerbId) -> bool {
        self.order.is_some_and(|order| order.verb == verb && order.what == Verb::PowerOff)
    }

    /// The newest look tells what became of a stop whose time is over: also one still under way in systemd, which would
    /// keep a lost answer in doubt for ever.
    pub(super) fn shows_end_of_stop(&self, id: BackendId) -> bool {
        let under_way = self.seen(id) == Seen::Lingering && self.order.is_none() && self.look.at >= self.order_ended;
        under_way || self.is_settled()
    }

    /// The newest look may be acted on: it has just come. One that took long to come is older, but none can be younger.
    pub(super) fn is_fresh(&self) -> bool {
        self.now.since(self.looked) <= FRESH && self.now.since(self.look.at) <= FRESH + self.policy.command_timeout
    }

    /// This run has been healthy: requests may be in flight and slots may hold something, whatever it says just now.
    pub(super) fn has_served(&self, id: BackendId) -> bool {
        self.memory(id).ready && self.run_is_named(id)
    }

    /// Requests may be in flight and slots may hold something. An odd answer of one that has served proves nothing.
    pub(super) fn is_in_service(&self, id: BackendId) -> bool {
        let seen = self.seen(id);
        seen == Seen::Running || (self.has_served(id) && seen.is_up() && seen != Seen::CrashLoop)
    }

    /// A restore has gone wrong in this run.
    pub(super) fn is_spoilt(&self, id: BackendId) -> bool {
        self.memory(id).spoilt && self.run_is_named(id)
    }

    /// It could be restored into, had anybody told already whether it was used.
    pub(super) fn awaits_word(&self, id: BackendId) -> bool {
        self.memory(id).untold_until.is_some_and(|until| until > self.now)
            && self.policy.backend(id).slots
            && self.seen(id) == Seen::Running
            && self.look.backend(id).restorable
            && self.may_be_restored(id)
    }

    /// A restore was neither ordered for this run nor called off. One without a name is never sure of that.
    pub(super) fn may_be_restored(&self, id: BackendId) -> bool {
        let memory = self.memory(id);
        !memory.restored && !memory.declined && self.run_is_named(id)
    }

    /// The newest look names its run. What is remembered is of that one: [`Self::observe`] forgets what is of another.
    fn run_is_named(&self, id: BackendId) -> bool {
        self.look.backend(id).invocation.is_some()
    }

    /// When `id` has been idle for too long, if it is neither used nor asked for until then.
    pub(super) fn idle_stop_at(&self, id: BackendId) -> Option<Instant> {
        let since = self.memory(id).last_use?.max(self.wanted_at);
        self.policy.idle_stop_after.map(|after| since + after)
    }

    /// When the server has been on for nothing for too long, if nobody asks for it until then.
    pub(super) fn idle_power_off_at(&self) -> Option<Instant> {
        let since = self.vacant_since?.max(self.wanted_at);
        self.policy.idle_power_off_after.map(|after| since + after)
    }

    // ---- what is told -------------------------------------------------------------------------------------------

    /// Takes in a look. True if it says anything new.
    pub(super) fn observe(&mut self, look: &Look) -> bool {
        let now = self.now;
        let new = !self.look.says_same_as(look);
        let silence_before = self.is_off();
        // Nobody saw what was said meanwhile.
        let out_of_sight = !self.is_on();
        self.looked = now;
        let was_out_of_sight = self.policy.ids().any(|id| self.is_lost_from_sight(id));
        let is_left_alone = self.work.is_none();
        let misses = self.policy.misses;
        // The same questions' answers told again (with another source's news) are not another look.
        let newer = look.at > self.look.at;
        match look.server {
            Server::NotLooked => {}
            Server::Silent | Server::Booting(_) => {
                let s = self.silence.get_or_insert(Silence { since: now, misses: 0 });
                if newer {
                    s.misses = s.misses.saturating_add(1).min(self.policy.misses);
                }
            }
            Server::On { boot, .. } => {
                self.silence = None;
                self.coming_until = None;
                if self.boot.replace(boot).is_some_and(|before| before != boot) {
                    (self.people, self.foreign) = (false, false);
                    // Whoever booted it may be about to use it.
                    self.vacant_since = None;
                    self.backends.iter_mut().for_each(Memory::forget_run);
                    self.crowded_since = None;
                    if let Some(work) = &mut self.work {
                        work.begin_anew();
                    }
                }
            }
            Server::Uncontrolled => (self.silence, self.coming_until) = (None, None),
        }
        for id in self.policy.ids() {
            let (before, after) = (self.look.backend(id).clone(), look.backend(id));
            let memory = self.memory_mut(id);
            // One that was met without a name, as nobody let us in, is the same when it has one.
            let is_another = after.invocation.is_some_and(|run| memory.run.is_some_and(|known| known != run));
            let marked = memory.mark.zip(after.mark).is_some_and(|(known, mark)| known != mark);
            let used = after.use_ == Use::Busy || (marked && !is_another);
            if used {
                (memory.calm, memory.on_record) = (0, false);
            }
            if is_another {
                memory.forget_run();
            }
            memory.run = after.invocation.or(memory.run);
            memory.mark = after.mark.or(memory.mark);
            // One that has served is not idle because it does not answer just now.
            let is_mute = after.use_ == Use::Unknown || (memory.ready && after.seen == Seen::Loading);
            memory.busy = after.use_ == Use::Busy || (memory.busy && is_mute);
            memory.untold_until.take_if(|_| after.seen != Seen::Running);
            memory.unread = match look.server {
                _ if after.seen != Seen::Unknown => None,
                Server::On { .. } => memory.unread.or(Some(now)),
                Server::Silent | Server::Booting(_) => memory.unread,
                // Where SSH is gone nothing is told of it, however long.
                Server::Uncontrolled | Server::NotLooked => None,
            };
            match after.seen {
                Seen::Running => {
                    memory.unwell = 0;
                    let first = !memory.ready || memory.last_use.is_none();
                    let untold = after.use_at == Instant::START;
                    let until = if first { Some(now + UNKNOWN_USE_GRACE) } else { memory.untold_until };
                    memory.untold_until = until.filter(|_| untold);
                    memory.ready = true;
                    if first || used {
                        memory.last_use = Some(now);
                    }
                }
                Seen::Loading | Seen::Sick => {
                    memory.unwell = memory.unwell.saturating_add(u32::from(newer)).min(misses);
                }
                Seen::Stopped | Seen::Missing | Seen::Stranger => memory.forget_run(),
                Seen::CrashLoop => {
                    memory.ready = false;
                    memory.unwell = 0;
                }
                Seen::Unknown | Seen::Lingering => {}
            }
            if !after.seen.is_up() || after.use_ != Use::Idle {
                memory.calm = 0;
            } else if memory.calm == 0 || after.use_at > before.use_at {
                memory.calm = memory.calm.saturating_add(1).min(2);
            }
            if used && is_left_alone {
                // It was kept although a restore went wrong in it, and what was said since is somebody's.
                memory.spoilt = false;
            }
            if let Some(work) = self.work.as_mut().filter(|_| is_another) {
                work.leaving.take_if(|leaving| leaving.backend == id);
            }
            if let Some(work) = self.work.as_mut().filter(|_| used || (out_of_sight && look.boot().is_some())) {
                work.used_again(id, now);
            }
        }
        self.look = look.clone();
        if let Some(work) = &mut self.work {
            work.leaving.take_if(|leaving| {
                let look = look.backend(leaving.backend);
                // A run whose name cannot be read just now is still the same.
                let other = look.invocation.is_some_and(|run| leaving.invocation.is_some_and(|left| left != run));
                look.seen.is_stopped() || other
            });
            // Something came up meanwhile: when it is gone, the last look begins anew.
            work.last_look.take_if(|_| look.backends.iter().any(|backend| backend.seen.is_up()));
        }
        if self.is_off() {
            // Nobody saw how long it was used meanwhile: should the same run come back (a suspended server resumes), its
            // idle time begins anew.
            self.people = false;
            for memory in &mut self.backends {
                memory.last_use = None;
                if memory.run.is_none() {
                    // The next one cannot be told from it.
                    memory.forget_run();
                }
            }
        }
        // One that has lasted is not over because nobody answers just now, or one cannot be read.
        let lasting = self.crowded_since.filter(|_| !silence_before);
        self.crowded_since = if self.up().count() > 1 {
            lasting.or(Some(now))
        } else {
            lasting.filter(|since| self.perhaps_up().count() > 1 && *since + self.policy.conflict_after <= now)
        };
        // Who cannot be seen for a moment is still there.
        self.people = look.people.unwrap_or(self.people);
        self.foreign = look.foreign_gpu.unwrap_or(self.foreign);
        // Nor has anybody come because nothing answers for a moment, or something cannot be read.
        let is_used = self.foreign || self.people || self.is_off();
        let is_down = |id| self.seen(id).is_stopped() || self.may_be_as_it_was(id);
        let may_be_vacant = !is_used && self.policy.ids().all(is_down);
        self.vacant_since = self.vacant_since.filter(|_| may_be_vacant && !was_out_of_sight);
        self.vacant_since = self.vacant_since.or_else(|| (may_be_vacant && self.nothing_runs()).then_some(now));
        if let Some(doubt) = self.doubt {
            let settled = match look.server {
                Server::On { boot, session } => {
                    doubt.boot != Some(boot)
                        || (doubt.session.is_none_or(|s| session > s)
                            && !matches!(self.seen(doubt.backend), Seen::Lingering | Seen::Unknown))
                }
                _ => self.is_off(),
            };
            if settled {
                self.doubt = None;
            }
        }
        self.worry();
        new || silence_before != self.is_off()
    }

    // ---- holds --------------------------------------------------------------------------------------------------

    pub(super) fn expire_holds(&mut self, step: &mut Step) {
        let now = self.now;
        self.end_holds(|hold| hold.until.is_some_and(|until| until <= now), step);
    }

    /// Ends the holds that are `over`; false where there are none. Who held something used it until now.
    pub(super) fn end_holds(&mut self, over: impl Fn(&Hold) -> bool, step: &mut Step) -> bool {
        let before = self.holds.len();
        self.holds.retain(|hold| !over(hold));
        if self.holds.len() == before {
            return false;
        }
        self.wanted_at = self.now;
        step.emit(Effect::HoldsChanged);
        true
    }

    pub(super) fn is_held(&self, what: super::Held) -> bool {
        self.holds.iter().any(|h| h.what == what)
    }

    /// Why a new run of it could not be started, as far as can be seen.
    pub(super) fn cannot_be_started(&self, id: BackendId) -> Option<Failure> {
        match self.seen(id) {
            Seen::Missing => Some(Failure::UnitMissing),
            Seen::Stranger => Some(Failure::Unavailable),
            Seen::Unknown => None,
            _ => self.may_not_start(),
        }
    }

    /// Why nothing may be started on the GPU.
    pub(super) fn may_not_start(&self) -> Option<Failure> {
        if self.is_held(super::Held::Gpu) {
            return Some(Failure::Held);
        }
        (self.look.foreign_gpu == Some(true)).then_some(Failure::Occupied)
    }

    pub(super) const fn mint_hold(&mut self) -> HoldId {
        let id = HoldId(self.next_hold);
        self.next_hold += 1;
        id
    }
}
