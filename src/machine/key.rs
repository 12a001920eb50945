//! What a machine's behaviour depends on, with absolute time and names taken out: two machines with the same key are one
//! state of the exploration.
//!
//! **Time.** A moment that is waited for counts by its place among the deadlines, one that is over only as over. An age
//! that matters (of the newest look, of what was asked of GPU and people) counts by how many deadlines will pass before it
//! is too old. How far two moments lie apart does not count.
//!
//! **Names.** Operations, orders, requests, holds and SSH sessions count by what they still stand for, runs and boots by
//! which of them are the same. A run that another has followed never comes back.
//!
//! **What cannot matter any more** does not count: how a backend that is proven stopped was used, an order's progress that
//! belongs to another goal, whatever of the look its server or unit decides alone. Nor does what only people read.

use std::hash::{Hash, Hasher};

use super::{
    BackendId, BackendLook, Goal, Instant, Machine, Seen, Server, Verb,
    core::{Core, FRESH, Memory, Order},
    leaving::GPU_LATE,
    rules::State,
    work::{Leaving, Work},
};

/// A quick hasher, always the same: keys are made a million times in an exploration.
#[derive(Clone, Debug, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n ^ 0x9e37_79b9_7f4a_7c15) * 0xd129_0d3e_5f6b_9ac3;
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let (low, high) = (wide as u64, (wide >> 64) as u64);
        self.0 = low ^ high;
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        #[expect(clippy::cast_sign_loss, reason = "only its bits count")]
        self.write_u64(n as u64);
    }
}

/// The name under which [`Machine::distinctions`] tells where a moment stands among the deadlines.
pub const ORDER_OF_MOMENTS: &str = "order of moments";

impl Machine {
    /// The key of this machine, see the module.
    #[must_use]
    pub fn key(&self) -> u64 {
        let mut key = Mix::default();
        self.distinctions(|_, value| key.write_u64(value));
        key.finish()
    }

    /// What the key is made of, by name: shows what tells two machines apart.
    pub fn distinctions(&self, mut tell: impl FnMut(&'static str, u64)) {
        // Every field by name: a new one must be decided here.
        let Core {
            policy,
            now,
            looked,
            look,
            boot,
            silence,
            backends,
            crowded_since: _,
            vacant_since: _,
            people,
            foreign,
            coming_until,
            wanted_at: _,
            work,
            order,
            waking: _,
            order_ended,
            doubt,
            holds,
            next_hold: _,
            next_op: _,
            next_verb: _,
            backoff,
            checkpoint_backoff,
            attention: _,
        } = &*self.chart;
        let core: &Core = &self.chart;
        let leaf = *self.chart.state();
        let mut due: Vec<Instant> = self.deadlines().collect();
        due.sort_unstable();
        due.dedup();
        let mut tell = |name, value: &dyn Fn(&mut Mix)| {
            let mut mix = Mix::default();
            value(&mut mix);
            tell(name, mix.finish());
        };
        macro_rules! tell {
            ($name:expr, $value:expr) => {
                tell($name, &|mix: &mut Mix| $value.hash(mix))
            };
        }
        // A moment: not set, over, or to come, and then after how many deadlines.
        macro_rules! when {
            ($name:literal, $at:expr) => {
                let at: Option<Instant> = $at;
                tell!($name, at.map(|at| at > *now));
                if let Some(at) = at.filter(|at| at > now) {
                    tell!(ORDER_OF_MOMENTS, due.iter().take_while(|due| **due < at).count());
                }
            };
        }

        // Where it is.
        tell!("leaf", leaf.place());
        for at in leaf.deadlines() {
            when!("deadline of the leaf", at);
        }
        tell!("killed", matches!(leaf, State::Stopping { killed: true, .. }));
        if let State::Draining { backend, since, .. } = leaf {
            tell!("its use was told since it drains", look.backend(backend).use_at >= since);
        }
        let going_down = if let State::PoweringOff { boot, .. } = leaf { Some(boot) } else { None };
        tell!("boot told to go down", going_down.map(|b| (look.boot().map(|now| now == b), *boot == Some(b))));

        // What is seen.
        tell!(
            "server",
            match look.server {
                Server::On { .. } => Server::On { boot: super::BootId(0), session: 0 },
                other => other,
            }
        );
        tell!("a boot was seen", boot.is_some());
        tell!("silence", (core.is_off(), silence.map(|s| s.misses)));
        when!("silence has lasted", silence.map(|s| s.since + policy.silence));
        when!("crowd has lasted", core.conflict_at());
        tell!("people", (people, foreign));
        when!("has time to come up", *coming_until);
        if core.is_on() {
            tell!("others", (look.foreign_gpu, look.gpu_late, look.people, look.wake_armed));
        }
        if core.is_on() && policy.ids().all(|id| core.seen(id).is_stopped()) {
            // Too old a moment after that: one that is just young enough is young.
            let too_old = |age| age + std::time::Duration::from_nanos(1);
            when!("the look is too old", Some(too_old(*looked + FRESH)));
            when!("what it says is too old", Some(too_old(look.at + FRESH + policy.command_timeout)));
            let started = work.as_ref().map_or(*now, |w| w.op.started);
            let asked_for = work.as_ref().and_then(|w| w.last_look).map(|l| l.since);
            for at in [look.gpu_at, look.people_at, look.wake_armed_at] {
                let on_purpose = asked_for.is_some_and(|since| at >= since);
                tell!("asked", (at >= started, on_purpose));
                when!("what was asked is too old", (at > Instant::START).then(|| too_old(at + FRESH)));
            }
        }
        when!("vacant for long enough", core.idle_power_off_at());
        for ((id, look), memory) in policy.ids().zip(&look.backends).zip(backends) {
            let in_use = work
                .as_ref()
                .is_some_and(|w| w.op.cause.is_policy() && memory.last_use.is_some_and(|at| at > w.op.started));
            tell!("backend", (look.seen, in_use));
            // One that has not served yet is used first when it does.
            let has_served = memory.ready;
            tell!("its use is remembered", memory.last_use.is_some() && has_served);
            when!("idle for long enough", core.idle_stop_at(id).filter(|_| has_served));
            let quiet_at = policy.backend(id).checkpoint_quiet.and_then(|quiet| memory.last_use.map(|at| at + quiet));
            when!("quiet for long enough", quiet_at.filter(|_| has_served));
            when!("its use is told", memory.untold_until.filter(|_| core.awaits_word(id)));
            let is_over = |since: Instant| since + policy.silence + std::time::Duration::from_nanos(1);
            tell!("what was seen of it counts", core.may_be_as_it_was(id));
            when!("what was seen of it may not count", memory.unread.map(is_over));
            backend_distinctions(core, id, leaf, &mut |name, value| tell(name, value));
        }

        // What is under way.
        tell!("the look is newer than the order", look.at >= *order_ended);
        // Whose it is; whether its run and its session are the ones known.
        let is_own = |o: Order| work.as_ref().is_some_and(|w| w.op.id == o.op);
        let is_of_run = |o: Order| match o.what {
            Verb::SaveSlots(b) => Some((o.run.is_some(), o.run == core.memory(b).run)),
            _ => None,
        };
        let session = if let Server::On { session, .. } = look.server { Some(session) } else { None };
        let is_older = |given: u64| session.is_some_and(|now| now > given);
        tell!("order", order.map(|o| (o.what, o.named, is_own(o), is_of_run(o), o.session.map(is_older))));
        when!("order is overdue", order.map(|o| o.until));
        tell!("doubt", doubt.map(|d| (d.session.map(is_older), d.backend)));
        for hold in holds {
            tell!("hold", hold.what);
            when!("hold ends", hold.until);
        }
        when!("policies wait", backoff.map(|b| b.until).filter(|until| until > now));
        when!("checkpoints wait", checkpoint_backoff.map(|b| b.until).filter(|until| until > now));
        if let Some(w) = work {
            let Work {
                op,
                no_drain,
                rid_of,
                launched,
                launch,
                no_restore,
                leaving,
                failing,
                last_look,
                unread_until,
                slots_done,
                quiet_until,
                warnings: _,
            } = w;
            tell!("goal", (op.goal, op.cause.is_policy()));
            if matches!(op.goal, Goal::Run(_) | Goal::Restart(_)) {
                tell!("no restore", no_restore);
            }
            when!("bound of the operation", Some(op.until));
            when!("last look", last_look.map(|l| l.until));
            when!("last look at a late GPU", last_look.map(|l| l.since + GPU_LATE));
            when!("unread", *unread_until);
            when!("quiet", *quiet_until);
            match op.goal {
                Goal::Run(_) | Goal::Restart(_) if failing.is_some() => tell!("failing", failing),
                Goal::Run(b) | Goal::Restart(b) => {
                    let shown = look.backend(b);
                    let again = launch.is_some_and(|(_, restarts)| shown.restarts > restarts);
                    // Whether it is the run last seen: another never comes back.
                    let is_known = |run| Some(run) == core.memory(b).run;
                    tell!("launch", (launched, launch.map(|(run, _)| is_known(run)), again));
                    let restart = matches!(op.goal, Goal::Restart(_));
                    tell!("rid of", rid_of.map(is_known).filter(|known| *known || restart));
                }
                Goal::Save(..) | Goal::Restore(..) => tell!("slots done", slots_done),
                Goal::Stop | Goal::Off | Goal::Awake => {}
            }
            tell!("no drain", no_drain);
            if let Some(Leaving { backend, invocation, drained, saved, drain_until, late, stops }) = *leaving {
                tell!("leaving", backend);
                tell!("stops", (invocation.is_some(), stops));
                let slots = policy.backend(backend).slots;
                let saved = saved && slots;
                tell!("how far", (drained, saved, slots && late));
                // After the drain only what is said later asks for it.
                let asks = !drained || (slots && !no_drain);
                when!("requests may end", drain_until.filter(|_| asks));
            }
        }
    }
}

/// Tells a distinction: its name, and what it is made of.
type Tell<'a> = dyn FnMut(&'static str, &dyn Fn(&mut Mix)) + 'a;

fn backend_distinctions(core: &Core, id: BackendId, leaf: State, tell: &mut Tell<'_>) {
    let BackendLook {
        seen,
        invocation,
        restarts: _,
        use_,
        use_at: _,
        mark,
        holds_tokens,
        tokens,
        unused,
        restorable,
        sleeping,
    } = core.look.backend(id);
    let Memory {
        last_use: _,
        run: known,
        calm,
        unwell,
        ready,
        restored,
        declined,
        untold_until: _,
        unread: _,
        spoilt,
        on_record,
        saved_tokens,
        mark: told,
        busy,
    } = core.memory(id);
    let policy = core.policy.backend(id);
    let slots = policy.slots;
    let checkpoints = slots && policy.has_checkpoints();
    // What was restored once is not, whether or not that was declined as well.
    let (restored, declined) = (slots && *restored, slots && !*restored && *declined);
    let spoilt = slots && *spoilt;
    tell("a run is shown", &|mix| invocation.is_some().hash(mix));
    // What was told of a run without a name is of the first that has one.
    tell("a mark was told", &|mix| told.is_some().hash(mix));
    tell("requests were in flight", &|mix| busy.hash(mix));
    tell("what is known of the run", &|mix| (*ready, restored, declined, spoilt, known.is_some()).hash(mix));
    if checkpoints {
        tell("on record", &|mix| on_record.hash(mix));
    }
    if policy.checkpoint_tokens.is_some() {
        tell("saved tokens", &|mix| (tokens, saved_tokens).hash(mix));
    }
    if core.is_in_service(id) {
        tell("use", &|mix| (use_, mark.is_some(), calm, sleeping).hash(mix));
    }
    if *seen == Seen::Running && slots {
        tell("slots", &|mix| (holds_tokens, unused, restorable).hash(mix));
    }
    if *ready && leaf == (State::Running { backend: id }) {
        tell("unwell", &|mix| unwell.hash(mix));
    }
}
