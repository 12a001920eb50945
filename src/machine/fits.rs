//! Whether what was read from outside fits together: backends that are configured, one look at each, numbers that can be
//! counted on. What [`crate::config`] and the driver make always does; a journal of steps may be anybody's.

use std::time::Duration;

use super::{
    BackendId, Command, Doubt, Event, Goal, Held, Hold, HoldId, Instant, Look, Place, Policy, Verb,
    attention::Worry,
    core::{Core, Order},
    work::{Leaving, Work},
};

/// Larger numbers are no names: the next one could not be counted up to. JSON keeps them exactly.
const LARGEST: u64 = 1 << 53;
/// Longer is never; sums of a few of them can be told.
const LONGEST: Duration = Duration::from_hours(1000 * 365 * 24);

impl Policy {
    /// It can be gone by, whatever [`crate::config`] would say of it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let Self {
            backends,
            default_backend,
            can_wake: _,
            wake_check: _,
            wake_resend,
            boot_timeout,
            power_off_timeout,
            command_timeout,
            silence,
            misses: _,
            conflict_after,
            idle_stop_after,
            idle_power_off_after,
            policy_backoff,
            gpu_baseline_mib: _,
        } = self;
        let own =
            [wake_resend, boot_timeout, power_off_timeout, command_timeout, silence, conflict_after, policy_backoff];
        let of_backends = backends.iter().flat_map(|b| {
            [&b.start_timeout, &b.drain_timeout, &b.stop_timeout, &b.kill_timeout, &b.save_timeout, &b.restore_timeout]
        });
        let idle = [idle_stop_after, idle_power_off_after].into_iter().flatten();
        let quiet = backends.iter().filter_map(|b| b.checkpoint_quiet.as_ref());
        let mut times = own.into_iter().chain(idle).chain(of_backends).chain(quiet);
        // What comes again at once, or is over as soon as it begins, comes again without end.
        let paced = [wake_resend, policy_backoff, command_timeout].into_iter().all(|time| !time.is_zero());
        self.knows(*default_backend)
            && backends.len() <= Self::MOST_BACKENDS
            && paced
            && times.all(|time| *time <= LONGEST)
    }

    pub(super) fn knows(&self, id: BackendId) -> bool {
        usize::from(id.0) < self.backends.len()
    }

    fn knows_held(&self, what: Held) -> bool {
        match what {
            Held::Backend(id) => self.knows(id),
            Held::Awake | Held::Gpu | Held::Off => true,
        }
    }

    fn knows_goal(&self, goal: Goal) -> bool {
        match goal {
            Goal::Run(id) | Goal::Restart(id) | Goal::Save(id, _) | Goal::Restore(id, _) => self.knows(id),
            Goal::Stop | Goal::Awake | Goal::Off => true,
        }
    }

    fn knows_verb(&self, verb: Verb) -> bool {
        match verb {
            Verb::StartUnit(id)
            | Verb::StopUnit(id)
            | Verb::KillUnit(id)
            | Verb::SaveSlots(id)
            | Verb::RestoreSlots(id) => self.knows(id),
            Verb::Wake | Verb::PowerOff => true,
        }
    }
}

impl Instant {
    /// There is time after it.
    #[must_use]
    pub fn is_sound(self) -> bool {
        self.since_start() <= LONGEST
    }
}

impl HoldId {
    /// It can be counted on from.
    #[must_use]
    pub const fn is_sound(self) -> bool {
        self.0 < LARGEST
    }
}

impl Hold {
    /// It holds something of that policy.
    #[must_use]
    pub fn fits(&self, policy: &Policy) -> bool {
        self.id.is_sound() && policy.knows_held(self.what)
    }
}

impl Look {
    fn fits(&self, policy: &Policy) -> bool {
        self.backends.len() == policy.backends.len()
    }
}

impl Event {
    /// It can happen under that policy.
    #[must_use]
    pub fn fits(&self, policy: &Policy) -> bool {
        match self {
            Self::Looked(look) => look.fits(policy),
            Self::Finished { .. } | Self::Tick => true,
            Self::Commanded { command, .. } => match command {
                Command::Start(id, _) | Command::Restart(id, _) => id.is_none_or(|id| policy.knows(id)),
                Command::Switch(id, _) | Command::Resolve(id, _) => policy.knows(*id),
                Command::Hold(spec) => policy.knows_held(spec.what),
                Command::Stop(_)
                | Command::Wake(_)
                | Command::Shutdown(..)
                | Command::Cancel
                | Command::Release(_)
                | Command::SaveSlots(..)
                | Command::RestoreSlots(..) => true,
            },
        }
    }
}

impl Core {
    /// All of a machine that is in this leaf speaks of its own policy.
    pub(super) fn is_sound(&self, place: Place) -> bool {
        let Self {
            policy,
            look,
            backends,
            work,
            order,
            doubt,
            holds,
            next_hold,
            next_op,
            next_verb,
            backoff,
            checkpoint_backoff,
            attention,
            now,
            ..
        } = self;
        let knows = |id: BackendId| policy.knows(id);
        let fits_work = |work: &Work| {
            let leaving = work.leaving.is_none_or(|Leaving { backend, .. }| knows(backend));
            leaving && policy.knows_goal(work.op.goal)
        };
        policy.is_sound()
            && now.is_sound()
            && look.fits(policy)
            && backends.len() == policy.backends.len()
            && work.as_ref().is_none_or(fits_work)
            && order.is_none_or(|Order { what, .. }| policy.knows_verb(what))
            && doubt.is_none_or(|Doubt { backend, .. }| knows(backend))
            && holds.iter().all(|hold| hold.fits(policy))
            && [next_hold, next_op, next_verb].into_iter().all(|next| *next <= LARGEST)
            && [backoff, checkpoint_backoff].into_iter().flatten().all(|b| !b.wait.is_zero() && b.wait <= LONGEST)
            && attention.iter().all(|Worry { backend, .. }| backend.is_none_or(knows))
            && place.backend.is_none_or(knows)
    }
}

#[cfg(test)]
mod tests;
