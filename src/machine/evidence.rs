//! What is evidence: from readings to values, by one total function.
//!
//! # Which readings count
//! A reading is of one boot, and of one run of a unit; the next boot or run is another thing with the same name.
//! * A unit's state counts if it was asked in the same look as the newest word of SSH, or later.
//! * An answer over HTTP counts if it is not older than that word. For a unit that is up it must be of this run: not older
//!   than the first sight of its `InvocationID`.
//! * GPU, logins and Wake-on-LAN count if they were read in this boot. They are asked rarely, and tell when: whoever acts
//!   on them asks anew first. An old word on who is there is none ([`OLDEST_PEOPLE`]).
//! * Nothing that is older than [`OLDEST`] counts as a word of the server, its units or HTTP.
//!
//! # The server
//! | SSH | a backend answers as itself | value |
//! |---|---|---|
//! | pinned key | | [`Server::On`] |
//! | another key | | wrong host key: who answers there is not the server we know, whatever it says over HTTP |
//! | anything else | yes | [`Server::Uncontrolled`] |
//! | initramfs key, login refused, port closed, port open but nobody lets us in | no | [`Server::Booting`] |
//! | silence, no route, broken off | no | [`Server::Silent`]: proves nothing alone, the machine counts |
//! | never asked | no | [`Server::NotLooked`] |
//!
//! # A backend, while the server is on
//! | unit | HTTP | value |
//! |---|---|---|
//! | not read | as itself | [`Seen::Running`] |
//! | not read | anything else | [`Seen::Unknown`] |
//! | missing | somebody answers | [`Seen::Stranger`] |
//! | missing | nobody answers | [`Seen::Missing`] |
//! | auto-restart | | [`Seen::CrashLoop`] |
//! | deactivating | | [`Seen::Lingering`]: a refused port proves nothing, llama.cpp closes it first |
//! | down, but a job, a process or its GPU process is left | | [`Seen::Lingering`] |
//! | down, first seen so in this look | somebody answers | [`Seen::Lingering`]: that may have been its own last word |
//! | down | somebody answers (a proxy's 502 to 504 is nobody) | [`Seen::Stranger`] |
//! | down | somebody answers a later question | [`Seen::Unknown`]: it may have come up since, the next word of the unit tells |
//! | down, GPU memory above its baseline with no backend up and nobody else's process to explain it | nobody | [`Seen::Lingering`] |
//! | down | nobody | [`Seen::Stopped`] |
//! | activating without a main process | | [`Seen::Loading`]: whoever answers is not it |
//! | up | as itself | [`Seen::Running`] |
//! | up | refused, not asked in this run | [`Seen::Loading`] |
//! | up | 503 | llama.cpp and generic: [`Seen::Loading`]; vLLM: [`Seen::Sick`], its engine is dead |
//! | up | 502, 504 | [`Seen::Loading`]: a proxy says that nobody is behind it yet |
//! | up | silence, no route | [`Seen::Running`] if this run has answered before: a long prompt silences it for minutes, and busy is not dead. Else [`Seen::Loading`] |
//! | up | another model or program, refused key, other status, garbage | [`Seen::Sick`]: it holds the GPU, so it is no stranger; people decide what becomes of it |
//!
//! While the server is uncontrolled, a backend is running if it answers as itself, and unknown otherwise (unless its own SSH
//! told). While the server is anything else, all are unknown.

use std::time::Duration;

use super::{
    BackendKind, BackendLook, BackendPolicy, BootPhase, Instant, Look, Policy, Seen, Server, Use,
    reading::{
        ActiveState, Activity, BackendReading, Dated, Gpu, Http, People, Reading, Ssh, Unit, UnitState, WakeArmed,
    },
};

/// Older words of the server, its units and its HTTP are no evidence. Every look asks for them, so that only a source that
/// hangs grows old; the longest look allowed by usual timeouts takes a quarter of this.
pub const OLDEST: Duration = Duration::from_mins(2);

/// Requests in flight come and go: an older word of them says nothing. Fifteen times the 2 s between two questions.
pub const OLDEST_USE: Duration = Duration::from_secs(30);

/// People come and go: an older word of who is logged in says nothing. Three times the 10 s between two questions at rest.
pub const OLDEST_PEOPLE: Duration = Duration::from_secs(30);

/// A server counts as just come up for so long after its first word: drivers are loaded beside everything else.
pub const JUST_UP: Duration = Duration::from_mins(1);

/// Judges the newest readings.
#[must_use]
pub fn judge(reading: &Reading, policy: &Policy, now: Instant) -> Look {
    let nothing = BackendReading::default();
    let views: Vec<View<'_>> = policy
        .backends
        .iter()
        .enumerate()
        .map(|(i, policy)| {
            let backend = reading.backends.get(i).unwrap_or(&nothing);
            View::new(i, policy, backend, reading, now)
        })
        .collect();
    let server = server(reading, &views, now);
    let gpu = of_boot(reading, reading.gpu.as_ref());
    // When its memory was last read; a tool that is absent or broken is waited for by nobody.
    let gpu_at = reading.gpu.as_ref().filter(|_| matches!(gpu, Some(Gpu::Read { .. }))).map(|gpu| gpu.at);
    let memory_left = !views.iter().any(View::is_up) && memory_is_left(gpu, policy);
    let on = matches!(server, Server::On { .. });
    let asked = |at: Option<Instant>| at.filter(|at| on && reading.is_of_boot(*at)).unwrap_or(Instant::START);
    let told = on || server == Server::Uncontrolled;
    Look {
        at: reading.ssh.as_ref().map_or(Instant::START, |ssh| ssh.at),
        server,
        backends: views.iter().map(|view| view.look(told, gpu, gpu_at, memory_left)).collect(),
        foreign_gpu: gpu.filter(|_| on).and_then(|gpu| match gpu {
            Gpu::Read { processes, .. } => Some(processes.iter().any(|p| p.backend.is_none() && !p.ignored)),
            Gpu::Absent => Some(false),
            Gpu::Hangs | Gpu::Broken { .. } => None,
        }),
        gpu_at: asked(reading.gpu.as_ref().map(|gpu| gpu.at)),
        gpu_late: on && gpu_is_late(reading, gpu, now),
        people: reading
            .people
            .as_ref()
            .filter(|people| on && reading.is_of_boot(people.at) && now.since(people.at) <= OLDEST_PEOPLE)
            .and_then(|people| match &people.value {
                People::Unread(_) => None,
                People::Read { logins, inhibitors } => Some(!logins.is_empty() || !inhibitors.is_empty()),
            }),
        people_at: asked(reading.people.as_ref().map(|people| people.at)),
        wake_armed: of_boot(reading, reading.wake_armed.as_ref()).filter(|_| on).and_then(|armed| match armed {
            WakeArmed::Armed => Some(true),
            WakeArmed::NotArmed(_) => Some(false),
            WakeArmed::Unknown(_) => None,
        }),
        wake_armed_at: asked(reading.wake_armed.as_ref().map(|armed| armed.at)),
    }
}

fn server(reading: &Reading, views: &[View<'_>], now: Instant) -> Server {
    let ssh = reading.ssh.as_ref().and_then(|ssh| young(ssh, now));
    let answers = views.iter().any(|view| matches!(view.http, Some(Http::Ready(_))));
    match ssh {
        Some(&Ssh::Answered { boot, session }) => Server::On { boot, session },
        Some(Ssh::WrongKey(_)) => Server::Booting(BootPhase::WrongHostKey),
        _ if answers => Server::Uncontrolled,
        Some(Ssh::PreBoot) => Server::Booting(BootPhase::Preboot),
        Some(Ssh::AuthRefused(_)) => Server::Booting(BootPhase::AuthRefused),
        Some(Ssh::PortClosed | Ssh::Mute(_)) => Server::Booting(BootPhase::Booting),
        Some(Ssh::Silent | Ssh::Unreachable(_) | Ssh::Broken(_)) => Server::Silent,
        None => Server::NotLooked,
    }
}

/// What was read of one backend, as far as it counts.
struct View<'a> {
    place: usize,
    policy: &'a BackendPolicy,
    reading: &'a BackendReading,
    unit: Option<&'a Unit>,
    http: Option<&'a Http>,
    /// That was asked after the unit was: what the unit said may be over.
    http_is_later: bool,
    /// Of this run, however old.
    activity: Option<&'a Activity>,
    /// When it was asked for that; [`Instant::START`] if never.
    asked_for_use: Instant,
    /// The activity is young enough to say something of requests in flight.
    use_is_known: bool,
}

impl<'a> View<'a> {
    fn new(
        place: usize,
        policy: &'a BackendPolicy,
        backend: &'a BackendReading,
        reading: &'a Reading,
        now: Instant,
    ) -> Self {
        let asked = reading.ssh.as_ref().map(|ssh| ssh.at);
        let unit = backend.unit.as_ref().filter(|unit| asked.is_some_and(|asked| unit.at >= asked));
        // Since when an answer is of this run; without a run since the last word of SSH.
        let since = match unit.map(|unit| (&unit.value, unit.at)) {
            Some((Unit::Loaded(state), at)) if is_up(state) => backend
                .run
                .as_ref()
                .filter(|run| Some(run.value) == state.invocation)
                .map_or(Some(at), |run| Some(run.at)),
            _ => asked,
        };
        let of_run = |at: Instant| since.is_none_or(|since| at >= since);
        let activity = backend.activity.as_ref().filter(|a| of_run(a.at));
        Self {
            place,
            policy,
            reading: backend,
            unit: unit.and_then(|unit| young(unit, now)),
            http_is_later: backend.http.as_ref().zip(unit).is_some_and(|(http, unit)| http.at > unit.at),
            http: backend.http.as_ref().filter(|http| of_run(http.at)).and_then(|http| young(http, now)),
            activity: activity.map(|a| &a.value),
            asked_for_use: activity.map_or(Instant::START, |a| a.at),
            use_is_known: activity.is_some_and(|a| now.since(a.at) <= OLDEST_USE),
        }
    }

    /// Its loaded unit.
    const fn state(&self) -> Option<&'a UnitState> {
        match self.unit {
            Some(Unit::Loaded(state)) => Some(state),
            _ => None,
        }
    }

    fn is_up(&self) -> bool {
        self.state().is_some_and(is_up)
    }

    fn http_at(&self) -> Option<Instant> {
        self.reading.http.as_ref().map(|http| http.at)
    }

    /// Its engine is, and every request with it.
    fn is_dead(&self) -> bool {
        self.policy.kind == BackendKind::Vllm && matches!(self.http, Some(Http::Unavailable))
    }

    /// This run of the unit has answered as itself before.
    fn has_served(&self) -> bool {
        let run = self.state().and_then(|state| state.invocation);
        run.is_some() && run == self.reading.served
    }

    fn look(&self, server_told: bool, gpu: Option<&Gpu>, gpu_at: Option<Instant>, memory_left: bool) -> BackendLook {
        let untold = matches!((gpu_at, self.reading.down_since), (Some(gpu), Some(down)) if gpu < down);
        let seen = if server_told { self.seen(gpu, memory_left || untold) } else { Seen::Unknown };
        // A process that is no more has no activity.
        let activity = self.activity.filter(|_| seen.is_up());
        let young = activity.filter(|_| self.use_is_known);
        let slots = activity.map_or(&[][..], |a| &a.slots);
        let sleeping = young.is_some_and(|a| a.sleeping);
        let untouched =
            |a: &Activity| !a.slots.is_empty() && a.slots.iter().all(|s| s.tokens.is_none() && !s.is_processing);
        let state = self.state().filter(|_| server_told);
        BackendLook {
            seen,
            invocation: state.filter(|s| has_run(s)).and_then(|s| s.invocation),
            restarts: state.map_or(0, |s| s.restarts),
            use_: match seen {
                Seen::Stopped | Seen::Missing | Seen::CrashLoop => Use::Idle,
                Seen::Loading if !self.has_served() => Use::Idle,
                // Its counters may still tell of what died with it.
                Seen::Sick if self.is_dead() => Use::Idle,
                _ => young.map_or(Use::Unknown, in_use),
            },
            use_at: if self.is_dead() { self.http_at().unwrap_or(self.asked_for_use) } else { self.asked_for_use },
            mark: activity.and_then(|a| a.mark),
            // Also by an old word: trying to save once too often costs little. Whether it can save, the saver finds out
            // and records. A sleeping one has thrown its context away.
            holds_tokens: self.policy.slots && !sleeping && slots.iter().any(|slot| slot.tokens.is_some_and(|n| n > 0)),
            tokens: slots.iter().filter_map(|slot| slot.tokens).fold(0, u64::saturating_add),
            unused: young.is_some_and(untouched),
            restorable: self.policy.slots && self.is_restorable(),
            sleeping,
        }
    }

    fn seen(&self, gpu: Option<&Gpu>, memory_left: bool) -> Seen {
        let somebody_answers = match self.http {
            Some(Http::Ready(_) | Http::Stranger(_) | Http::KeyRefused | Http::Garbage(_)) => true,
            Some(Http::Status(code)) => !is_proxys_word(*code),
            Some(Http::Refused | Http::TimedOut | Http::Unreachable(_) | Http::Unavailable) | None => false,
        };
        let state = match self.unit {
            None | Some(Unit::Unread(_)) if matches!(self.http, Some(Http::Ready(_))) => {
                return Seen::Running;
            }
            None | Some(Unit::Unread(_)) => return Seen::Unknown,
            Some(Unit::Missing(_)) if somebody_answers => return Seen::Stranger,
            Some(Unit::Missing(_)) => return Seen::Missing,
            Some(Unit::Loaded(state)) => state,
        };
        match state.active {
            ActiveState::Deactivating => Seen::Lingering,
            ActiveState::Inactive | ActiveState::Failed => {
                let on_gpu = processes(gpu).any(|p| p.backend == Some(self.place));
                let left = state.main_pid.is_some() || state.processes_left;
                let may_be_its_own =
                    self.http_at().zip(self.reading.down_since).is_some_and(|(http, down)| http <= down);
                if state.job || left || on_gpu || (somebody_answers && may_be_its_own) {
                    Seen::Lingering
                } else if somebody_answers && self.http_is_later {
                    Seen::Unknown
                } else if somebody_answers {
                    Seen::Stranger
                } else if memory_left {
                    Seen::Lingering
                } else {
                    Seen::Stopped
                }
            }
            // `auto-restart-queued` too, of newer systemd.
            ActiveState::Activating if state.sub.starts_with("auto-restart") => Seen::CrashLoop,
            ActiveState::Activating if state.main_pid.is_none() => Seen::Loading,
            ActiveState::Active | ActiveState::Reloading | ActiveState::Activating => self.up_and_answering(),
        }
    }

    /// The value of a unit that is up, by what it says over HTTP.
    fn up_and_answering(&self) -> Seen {
        match self.http {
            Some(Http::Ready(_)) => Seen::Running,
            Some(Http::TimedOut | Http::Unreachable(_)) if self.has_served() => Seen::Running,
            Some(Http::Unavailable) if self.is_dead() => Seen::Sick,
            Some(Http::Status(code)) if is_proxys_word(*code) => Seen::Loading,
            Some(Http::Stranger(_) | Http::Status(_) | Http::KeyRefused | Http::Garbage(_)) => Seen::Sick,
            Some(Http::Refused | Http::Unavailable | Http::TimedOut | Http::Unreachable(_)) | None => Seen::Loading,
        }
    }

    /// A saved slot is on record that comes back by itself, was not put aside, and is not of another model than the one that answers.
    fn is_restorable(&self) -> bool {
        let model = match self.http {
            Some(Http::Ready(identity)) => identity.model.as_deref(),
            _ => None,
        };
        let saved = self.reading.saved.iter().flat_map(|saved| &saved.value);
        saved
            .filter(|slot| slot.put_aside.is_none() && slot.useless.is_none() && !slot.named && slot.tokens > 0)
            .any(|slot| model.is_none_or(|model| model == slot.model))
    }
}

fn in_use(activity: &Activity) -> Use {
    let processing = activity.slots.iter().any(|slot| slot.is_processing);
    match activity.in_flight {
        Some(n) if n > 0 => Use::Busy,
        _ if processing => Use::Busy,
        Some(_) => Use::Idle,
        // Without counters the slots alone tell: a request only waits where all of them are busy.
        None if activity.sleeping || !activity.slots.is_empty() => Use::Idle,
        None => Use::Unknown,
    }
}

/// What a proxy says of its own when nobody is behind it: bad gateway, gateway timeout (503 has its own value).
const fn is_proxys_word(code: u16) -> bool {
    matches!(code, 502 | 504)
}

/// The unit is up or on its way.
const fn is_up(state: &UnitState) -> bool {
    matches!(state.active, ActiveState::Active | ActiveState::Reloading | ActiveState::Activating)
}

/// The unit is in a run: systemd shows the last one's id also after its end.
const fn has_run(state: &UnitState) -> bool {
    !matches!(state.active, ActiveState::Inactive | ActiveState::Failed)
}

/// Some GPU holds more than its baseline, and no process of anybody is there to explain it.
fn memory_is_left(gpu: Option<&Gpu>, policy: &Policy) -> bool {
    let (Some(baseline), Some(Gpu::Read { devices, .. })) = (policy.gpu_baseline_mib, gpu) else {
        return false;
    };
    let over = |used: u64| used.saturating_sub(baseline);
    let excess: u64 = devices.iter().map(|device| device.used_mib.map_or(0, over)).fold(0, u64::saturating_add);
    // A process of unknown size explains everything.
    let explained = processes(gpu).map(|process| process.used_mib.unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
    excess > explained
}

/// Shortly after a boot the tool shows fewer GPUs than in boots before. One that hangs, or says that the GPU is broken, will
/// not tell anything else later.
fn gpu_is_late(reading: &Reading, gpu: Option<&Gpu>, now: Instant) -> bool {
    let just_up = reading.boot.as_ref().is_some_and(|boot| now.since(boot.at) <= JUST_UP);
    let shown = match gpu {
        Some(Gpu::Broken { code, .. }) if !matches!(code.as_str(), "gpu_not_found" | "driver_not_loaded") => None,
        gpu => gpu.and_then(Gpu::shown),
    };
    just_up && shown.is_some_and(|shown| shown < reading.gpus_before)
}

fn processes(gpu: Option<&Gpu>) -> impl Iterator<Item = &super::reading::GpuProcess> {
    match gpu {
        Some(Gpu::Read { processes, .. }) => processes.iter(),
        _ => [].iter(),
    }
}

/// The value, unless it is of an earlier boot.
fn of_boot<'a, T>(reading: &Reading, dated: Option<&'a Dated<T>>) -> Option<&'a T> {
    dated.filter(|dated| reading.is_of_boot(dated.at)).map(|dated| &dated.value)
}

/// The value, unless it is too old to be evidence.
fn young<T>(dated: &Dated<T>, now: Instant) -> Option<&T> {
    (now.since(dated.at) <= OLDEST).then_some(&dated.value)
}

#[cfg(test)]
pub(super) mod tests;
