//! The driver's clock: monotonic for the machine, wall time for people. The machine's own time never bends; a clock that
//! is set only shifts what people are shown.

use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

use crate::machine::Instant;

/// A smaller difference between the two clocks is drift and jitter, and shown times must not flicker with it.
const CLOCK_WAS_SET: Duration = Duration::from_secs(1);

/// Both clocks, tied together at the daemon's start.
#[derive(Debug)]
pub(super) struct Clock {
    epoch: tokio::time::Instant,
    /// The wall time of [`Instant::START`], as the wall clock has it now.
    started: Mutex<SystemTime>,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub(super) fn start() -> Self {
        Self { epoch: tokio::time::Instant::now(), started: Mutex::new(SystemTime::now()) }
    }

    /// The machine's time.
    #[must_use]
    pub(super) fn now(&self) -> Instant {
        Instant::after_start(self.epoch.elapsed())
    }

    /// The moment to sleep until.
    #[must_use]
    pub(super) fn timer(&self, at: Instant) -> tokio::time::Instant {
        // A deadline too far away to be told is as good as a year.
        let year = Duration::from_hours(365 * 24);
        self.epoch.checked_add(at.since_start()).unwrap_or_else(|| tokio::time::Instant::now() + year)
    }

    /// The wall time of `at`, by the wall clock as it is set now.
    #[must_use]
    pub(super) fn wall(&self, at: Instant) -> SystemTime {
        let measured = SystemTime::now().checked_sub(self.epoch.elapsed());
        let mut started = self.started.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(measured) = measured
            && differ(measured, *started) >= CLOCK_WAS_SET
        {
            *started = measured;
        }
        started.checked_add(at.since_start()).unwrap_or(*started)
    }

    /// The wall time of `at` as RFC 3339 in UTC, to the millisecond.
    #[must_use]
    pub(super) fn rfc3339(&self, at: Instant) -> String {
        rfc3339(self.wall(at))
    }

    /// The machine's time of a wall time to come; `None` when it has passed.
    #[must_use]
    pub(super) fn until_wall(&self, wall: SystemTime) -> Option<Instant> {
        let ahead = wall.duration_since(SystemTime::now()).ok()?;
        (!ahead.is_zero()).then(|| self.now() + ahead)
    }
}

/// RFC 3339 in UTC, to the millisecond; times no calendar can show come out as the epoch.
#[must_use]
pub(super) fn rfc3339(at: SystemTime) -> String {
    // Past the year 9999 humantime's Display fails; only a broken clock is there.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let at = at.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_millis(at).to_string()
}

fn differ(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|e| e.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wall_time_follows_the_machines_time_and_does_not_flicker() {
        let clock = Clock::start();
        let at = Instant::after_start(Duration::from_secs(90));
        assert_eq!(clock.rfc3339(at), rfc3339(clock.wall(at)));
        let start = clock.wall(Instant::START);
        assert_eq!(clock.wall(at).duration_since(start).ok(), Some(Duration::from_secs(90)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_in_the_past_has_no_machine_time() {
        let clock = Clock::start();
        assert_eq!(clock.until_wall(SystemTime::UNIX_EPOCH), None);
        let hour = Duration::from_hours(1);
        let ahead = clock.until_wall(SystemTime::now() + hour).expect("lies ahead");
        assert!(ahead.since(clock.now()) > hour.checked_sub(Duration::from_secs(1)).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_set_shifts_what_people_are_shown_and_one_that_drifts_does_not() {
        let wall = |behind| {
            let started = SystemTime::now().checked_sub(behind).unwrap();
            let clock = Clock { epoch: tokio::time::Instant::now(), started: Mutex::new(started) };
            clock.wall(Instant::START).duration_since(started).unwrap()
        };
        assert_eq!(wall(Duration::ZERO), Duration::ZERO);
        assert!(wall(Duration::from_hours(1)) >= Duration::from_hours(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_slept_until_and_one_that_no_clock_can_tell_for_a_year() {
        let clock = Clock::start();
        let day = Duration::from_hours(24);
        assert_eq!(clock.timer(Instant::after_start(day)), clock.epoch + day);
        tokio::time::advance(day).await;
        assert_eq!(clock.timer(Instant::after_start(Duration::MAX)), clock.epoch + day * 366);
    }

    #[test]
    fn impossible_wall_times_are_shown_as_the_nearest_possible_one() {
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000Z");
    }
}
