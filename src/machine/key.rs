//! What a machine's behaviour depends on, with absolute time and names taken out: two machines with the same key are one
//! state of the exploration.
//!
//! The abstraction: moments in the future count by their order, moments in the past only as past (what their age has come
//! to is kept beside: whether the silence has lasted, whether a crowd is a conflict); runs, boots and sessions count by
//! which of them are the same; counters that name things do not count.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{
    Instant, Machine, Server,
    core::{Core, Memory},
    rules::State,
    work::{Leaving, Work},
};

/// Renames things by the order in which they are met.
#[derive(Default)]
struct Names(Vec<u128>);

impl Names {
    fn of(&mut self, raw: Option<u128>) -> usize {
        let Some(raw) = raw else { return 0 };
        let at = self.0.iter().position(|known| *known == raw).unwrap_or_else(|| {
            self.0.push(raw);
            self.0.len() - 1
        });
        at + 1
    }
}

impl Machine {
    /// The key of this machine, see the module.
    #[must_use]
    pub fn key(&self) -> u64 {
        // Every field by name: a new one must be decided here.
        let Core {
            policy: _,
            now,
            looked: _,
            look,
            boot,
            silence,
            backends,
            crowded_since,
            vacant_since,
            work,
            order,
            waking: _,
            order_ended: _,
            doubt,
            holds,
            next_hold: _,
            next_op: _,
            next_verb: _,
            backoff,
            attention: _,
        } = &*self.chart;
        let leaf = *self.chart.state();
        let mut future: Vec<Instant> = [leaf.deadline(), work.as_ref().map(|w| w.op.until), order.map(|o| o.until)]
            .into_iter()
            .flatten()
            .chain(backoff.map(|b| b.until))
            .chain(holds.iter().filter_map(|h| h.until))
            .filter(|at| at > now)
            .collect();
        future.sort_unstable();
        future.dedup();
        let rank = |at: Instant| future.iter().position(|f| *f == at);
        let mut runs = Names::default();
        let mut boots = Names::default();
        let h = &mut DefaultHasher::new();

        leaf.place().hash(h);
        leaf.deadline().map(rank).hash(h);
        matches!(leaf, State::Stopping { killed: true, .. }).hash(h);
        let going_down = if let State::PoweringOff { boot, .. } = leaf { Some(boot.0) } else { None };
        boots.of(going_down).hash(h);
        matches!(leaf, State::Stopping { until: Some(_), .. }).hash(h);

        match look.server {
            Server::On { boot, session: _ } => (1, boots.of(Some(boot.0))).hash(h),
            other => (0, other).hash(h),
        }
        boots.of(boot.map(|b| b.0)).hash(h);
        for (b, Memory { last_use: _, calm, restored, unwell, ready, spoilt, saved }) in
            look.backends.iter().zip(backends)
        {
            (b.seen, b.use_, b.mark, b.holds_tokens, b.tokens, b.unused, b.restorable, b.sleeping, b.restarts).hash(h);
            runs.of(b.invocation.map(|i| i.0)).hash(h);
            (calm, unwell).hash(h);
            runs.of(restored.map(|i| i.0)).hash(h);
            runs.of(ready.map(|i| i.0)).hash(h);
            runs.of(spoilt.map(|i| i.0)).hash(h);
            // Which of two amounts is larger, by how much, counts as the tokens of the look do.
            saved
                .map(|s| (Some(s.mark) == b.mark, Some(s.run) == b.invocation, b.tokens.saturating_sub(s.tokens)))
                .hash(h);
        }
        (look.foreign_gpu, look.gpu_late, look.people, look.wake_armed).hash(h);
        (self.chart.is_off(), silence.map(|s| s.misses)).hash(h);
        (crowded_since.is_some(), vacant_since.is_some()).hash(h);
        (
            self.chart.is_settled(),
            order.map(|o| (o.what, rank(o.until), work.as_ref().is_some_and(|w| w.op.id == o.op))),
        )
            .hash(h);
        doubt.map(|d| (d.session.is_some(), d.backend)).hash(h);
        for hold in holds {
            (hold.what, hold.until.map(rank)).hash(h);
        }
        backoff.map(|b| rank(b.until)).hash(h);
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
                warnings: _,
            } = w;
            (op.goal, op.cause.is_policy(), rank(op.until)).hash(h);
            (no_drain, launched, no_restore, failing, slots_done).hash(h);
            runs.of(rid_of.map(|i| i.0)).hash(h);
            (runs.of(launch.map(|l| l.0.0)), launch.map(|l| l.1)).hash(h);
            if let Some(Leaving { backend, invocation, drained, saved, drain_until, stops }) = leaving {
                (backend, drained, saved, drain_until.map(|at| at > *now), stops, runs.of(invocation.map(|i| i.0)))
                    .hash(h);
            }
            last_look.map(|l| l.until > *now).hash(h);
            unread_until.map(|at| at > *now).hash(h);
        }
        h.finish()
    }
}
