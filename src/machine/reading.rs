//! What the adapters read off the world, unjudged: one type per source.
//!
//! A source that cannot be read says so in its own words; nothing is guessed here. [`super::evidence`] turns readings
//! into the few values the machine decides on. Every reading carries its age and is kept until a newer one replaces it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BootId, Instant, Invocation};

/// A value and when it was read (the moment the question was sent, so that it is never younger than the truth).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dated<T> {
    /// When the question was sent.
    pub at: Instant,
    /// What came back.
    pub value: T,
}

/// What is asked for in one look. Sources that are not asked stay as they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// SSH: boot id and the state of all units, in one exchange.
    pub units: bool,
    /// Each backend's health and identity over HTTP.
    pub http: bool,
    /// Requests in flight, slots, counters. The host adapter itself never asks more often than every 2 s.
    pub activity: bool,
    /// GPU memory and processes.
    pub gpu: bool,
    /// Logins and inhibitors.
    pub people: bool,
    /// Whether the server's NIC is armed for Wake-on-LAN.
    pub wake_armed: bool,
    /// The saved slots on record.
    pub saved: bool,
}

impl Ask {
    /// Everything there is.
    pub const ALL: Self =
        Self { units: true, http: true, activity: true, gpu: true, people: true, wake_armed: true, saved: true };
}

/// The newest reading of each source; `None` was never read (or not asked in this look).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The server's SSH.
    pub ssh: Option<Dated<Ssh>>,
    /// One per configured backend, in configuration order.
    pub backends: Vec<BackendReading>,
    /// GPU memory and processes.
    pub gpu: Option<Dated<Gpu>>,
    /// Logins and inhibitors.
    pub people: Option<Dated<People>>,
    /// Wake-on-LAN on the server's NIC.
    pub wake_armed: Option<Dated<WakeArmed>>,
    /// The boot that answered last and when it first did; kept by [`Reading::absorb`]. Older readings are of another boot.
    #[serde(default)]
    pub boot: Option<Dated<BootId>>,
    /// The most GPUs that were ever shown; kept by [`Reading::absorb`].
    #[serde(default)]
    pub gpus: usize,
    /// ... and in boots before this one.
    #[serde(default)]
    pub gpus_before: usize,
    /// What is wrong with the GPUs, as its code, and since when; kept by [`Reading::absorb`].
    #[serde(default)]
    pub gpu_trouble: Option<Dated<String>>,
}

/// The sources of one backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendReading {
    /// systemd's word.
    pub unit: Option<Dated<Unit>>,
    /// The health endpoint's word.
    pub http: Option<Dated<Http>>,
    /// Use, slots and model, where the backend tells.
    pub activity: Option<Dated<Activity>>,
    /// Saved slots on record for this backend, newest first.
    pub saved: Option<Dated<Vec<SavedSlot>>>,
    /// Its slot folder is open to who is neither owner nor of its group; `None`: nobody has looked yet. For people only.
    #[serde(default)]
    pub folder_is_open: Option<bool>,
    /// The run of the unit that was seen last and when it first was; kept by [`Reading::absorb`]. Older answers are of
    /// another process.
    #[serde(default)]
    pub run: Option<Dated<Invocation>>,
    /// The last run that answered as itself; kept by [`Reading::absorb`].
    #[serde(default)]
    pub served: Option<Invocation>,
    /// When its unit was first seen down again after it had been up; kept by [`Reading::absorb`]. What was read of the GPU
    /// before says nothing of the memory it has given back.
    #[serde(default)]
    pub down_since: Option<Instant>,
    /// When its unit was last seen down; kept by [`Reading::absorb`]. The run that is up now is younger.
    #[serde(default)]
    pub last_down: Option<Instant>,
    /// Its unit was up when it was last seen; kept by [`Reading::absorb`].
    #[serde(default)]
    pub was_up: bool,
}

impl Reading {
    /// What was read at `at` was not read in an earlier boot.
    #[must_use]
    pub fn is_of_boot(&self, at: Instant) -> bool {
        self.boot.as_ref().is_none_or(|boot| at >= boot.at)
    }

    /// Takes over every source that `newer` has read.
    pub fn absorb(&mut self, newer: Self) {
        fn take<T>(old: &mut Option<Dated<T>>, new: Option<Dated<T>>) {
            if let Some(new) = new
                && old.as_ref().is_none_or(|old| old.at <= new.at)
            {
                *old = Some(new);
            }
        }
        take(&mut self.ssh, newer.ssh);
        take(&mut self.gpu, newer.gpu);
        take(&mut self.people, newer.people);
        take(&mut self.wake_armed, newer.wake_armed);
        self.backends.resize_with(self.backends.len().max(newer.backends.len()), Default::default);
        for (old, new) in self.backends.iter_mut().zip(newer.backends) {
            take(&mut old.unit, new.unit);
            take(&mut old.http, new.http);
            take(&mut old.activity, new.activity);
            take(&mut old.saved, new.saved);
            old.folder_is_open = new.folder_is_open.or(old.folder_is_open);
            old.remember();
        }
        if let Some(ssh) = &self.ssh
            && let Ssh::Answered { boot, .. } = ssh.value
        {
            if self.boot.as_ref().is_some_and(|before| before.value != boot) {
                self.gpus_before = self.gpus;
            }
            first(&mut self.boot, boot, ssh.at);
        }
        if let Some(gpu) = &self.gpu {
            self.gpus = self.gpus.max(gpu.value.shown().unwrap_or(0));
            match gpu.value.trouble(self.gpus) {
                Some((code, _)) => first(&mut self.gpu_trouble, code, gpu.at),
                None => self.gpu_trouble = None,
            }
        }
    }
}

/// Notes when `value` was first seen.
fn first<T: PartialEq>(seen: &mut Option<Dated<T>>, value: T, at: Instant) {
    if seen.as_ref().is_none_or(|seen| seen.value != value) {
        *seen = Some(Dated { at, value });
    }
}

impl BackendReading {
    /// Keeps which run this is, and that it answered as itself.
    fn remember(&mut self) {
        let Some(Dated { at, value: Unit::Loaded(unit) }) = &self.unit else {
            return;
        };
        let up = !matches!(unit.active, ActiveState::Inactive | ActiveState::Failed);
        if up {
            self.down_since = None;
        } else {
            self.last_down = Some(*at);
            if self.was_up {
                self.down_since = Some(*at);
            }
        }
        self.was_up = up;
        let Some(invocation) = unit.invocation else {
            return;
        };
        first(&mut self.run, invocation, *at);
        let since = self.run.as_ref().map_or(*at, |run| run.at);
        let answers = |http: &Dated<Http>| http.at >= since && matches!(http.value, Http::Ready(_));
        if self.http.as_ref().is_some_and(answers) {
            self.served = Some(invocation);
        }
    }
}

/// How the server's SSH answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ssh {
    /// With the pinned key, and our command ran.
    Answered {
        /// This boot.
        boot: BootId,
        /// Counts up with each new SSH session; an answer of a later session proves what an earlier one left in doubt.
        session: u64,
    },
    /// With a key that is not pinned (its fingerprint or base64 text).
    WrongKey(String),
    /// With one of the pinned initramfs keys: the disk waits to be unlocked.
    PreBoot,
    /// With the pinned key, but our user or key is refused.
    AuthRefused(String),
    /// The machine is there, the port is closed: booting, or no sshd.
    PortClosed,
    /// The port is open, and nobody lets us in within the deadline: booting, or too busy.
    Mute(String),
    /// Nothing answers within the deadline.
    Silent,
    /// The name of the host cannot be resolved, no route, or another local failure.
    Unreachable(String),
    /// The session broke off or the command failed.
    Broken(String),
}

/// What systemd says of a unit (`systemctl show`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Unit {
    /// Could not be asked, with the reason.
    Unread(String),
    /// `LoadState=not-found` (or masked, bad-setting, error: the text).
    Missing(String),
    /// A loaded unit.
    Loaded(UnitState),
}

/// `ActiveState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActiveState {
    /// Up, as far as systemd knows.
    Active,
    /// Reloading counts as up.
    Reloading,
    /// Down.
    Inactive,
    /// Down, and the last run ended badly.
    Failed,
    /// On its way up, or waiting for its automatic restart.
    Activating,
    /// On its way down.
    Deactivating,
}

/// The properties of a loaded unit that matter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitState {
    /// `ActiveState`.
    pub active: ActiveState,
    /// `SubState`, as `running`, `auto-restart`, `stop-sigterm`.
    pub sub: String,
    /// A job is pending (`Job` is not empty).
    pub job: bool,
    /// `MainPID`; `None` when nothing runs.
    pub main_pid: Option<u32>,
    /// `InvocationID`.
    pub invocation: Option<Invocation>,
    /// `NRestarts`.
    pub restarts: u32,
    /// `Result`, as `success`, `exit-code`, `timeout`, `oom-kill`, `start-limit-hit`.
    pub result: String,
    /// `ExecMainStatus`: exit code or signal number of the last main process.
    pub exec_status: i32,
    /// `ActiveEnterTimestamp`, seconds since the Unix epoch by the server's clock.
    pub active_since: Option<u64>,
    /// `TimeoutStopUSec`; `None` is infinity.
    pub timeout_stop: Option<Duration>,
    /// `FragmentPath`.
    pub fragment: String,
    /// `UnitFileState`, as `enabled`.
    pub enabled: String,
    /// A process of the unit's control group is left although the main process is gone.
    pub processes_left: bool,
}

/// How a backend's health endpoint answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Http {
    /// Connection refused.
    Refused,
    /// No answer within the deadline, although something may listen.
    TimedOut,
    /// The host does not answer at all (no route, name unknown).
    Unreachable(String),
    /// 503: llama.cpp is loading; vLLM's engine is dead.
    Unavailable,
    /// 200, and it is what we expect there.
    Ready(Identity),
    /// 200, but another kind of program or another model answers: what it said.
    Stranger(String),
    /// Another status code.
    Status(u16),
    /// 401 or 403: the key is wrong or missing.
    KeyRefused,
    /// An answer that is not what such a program says (not JSON, cut off, too long): what was wrong.
    Garbage(String),
}

/// Who answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Model id, where told.
    pub model: Option<String>,
    /// Context size in tokens (of one slot), where told.
    pub n_ctx: Option<u64>,
    /// Build of the program, where told.
    pub build: Option<String>,
}

/// Use of a running backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Requests running and waiting; `None` where the backend does not tell.
    pub in_flight: Option<u32>,
    /// A number that changes whenever the backend was used (a hash of counters and task ids); our own questions never
    /// change it.
    pub mark: Option<u64>,
    /// The slots of llama.cpp.
    pub slots: Vec<SlotReading>,
    /// It sleeps (freed its model); it must not be asked about slots then, which would wake it.
    pub sleeping: bool,
    /// It cannot save slots (no `--slot-save-path`, router mode, multimodal): why. `None`: as far as known it can.
    pub cannot_save: Option<String>,
    /// What became of the prompts since its start; `None` where the backend does not tell. llama.cpp only.
    #[serde(default)]
    pub prompts: Option<Prompts>,
}

/// Tokens that a process has worked on, counted since its start, and what its slots worked on last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Of prompts, computed anew: counted when a prompt is done.
    pub computed: u64,
    /// Of prompts, found in the cache, restored ones too: counted when a prompt begins.
    pub reused: u64,
    /// Generated: counted when a request ends.
    #[serde(default)]
    pub generated: u64,
    /// The newest request of each slot that was used.
    #[serde(default)]
    pub requests: Vec<SlotRequest>,
}

/// The newest request of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRequest {
    /// Slot number.
    pub slot: u32,
    /// Another request has another number.
    pub task: i64,
    /// Tokens that the slot holds now.
    pub held: u64,
    /// What was done for it so far; `None` once it has ended.
    pub under_way: Option<Progress>,
}

/// Tokens of a request under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Of its prompt, found in the cache.
    pub reused: u64,
    /// Of its prompt, computed anew.
    pub computed: u64,
    /// Generated; none until its prompt is done.
    pub generated: u64,
}

/// One slot of llama.cpp (`GET /slots`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotReading {
    /// Slot number.
    pub id: u32,
    /// Context size, tokens.
    pub n_ctx: u64,
    /// A request is being processed.
    pub is_processing: bool,
    /// Tokens held; `None` when the slot was never used since the start.
    pub tokens: Option<u64>,
}

/// A saved slot on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSlot {
    /// The name people know it by, as `localbot`.
    pub name: String,
    /// File name in the slot folder.
    pub file: String,
    /// Slot number it was saved from.
    pub slot: u32,
    /// File size in bytes.
    pub bytes: u64,
    /// Tokens saved.
    pub tokens: u64,
    /// Seconds since the Unix epoch, by this machine's clock.
    pub saved_at: u64,
    /// Model it belongs to.
    pub model: String,
    /// Context size of the slot it came from, tokens.
    pub n_ctx: u64,
    /// Put aside after a failed restore, and why: never sent again.
    pub put_aside: Option<String>,
    /// Counts the saves of its backend: names it among those of its name, and orders them.
    #[serde(default)]
    pub generation: u64,
    /// The last restore of it that was done.
    #[serde(default)]
    pub last_restore: Option<LastRestore>,
    /// The run it was then restored into, by whichever life of the daemon.
    #[serde(default)]
    pub restored_into: Option<Invocation>,
    /// Not restored by itself, and why: restores have had no effect with this model and build.
    #[serde(default)]
    pub useless: Option<String>,
    /// Saved under a name of somebody's choice: it comes back only by that name.
    #[serde(default)]
    pub named: bool,
}

/// A restore that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRestore {
    /// Seconds since the Unix epoch, by this machine's clock.
    pub at: u64,
    /// Tokens that came back.
    pub tokens: u64,
    /// What it was worth; `None` until a request has told.
    pub reuse: Option<Reuse>,
}

/// What the first request after a restore found in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse {
    /// Tokens of its prompt found there.
    pub reused: u64,
    /// Tokens of its prompt computed anew.
    pub computed: u64,
}

impl Reuse {
    /// The share of the prompt that was found, 0 to 1; 0 of an empty one.
    #[must_use]
    pub fn share(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "tokens of a prompt are far below 2^52")]
        let (reused, all) = (self.reused as f64, self.reused.saturating_add(self.computed) as f64);
        if all > 0.0 { reused / all } else { 0.0 }
    }

    /// The restore had effect: more was found than what every conversation begins with.
    #[must_use]
    pub fn is_effective(self) -> bool {
        self.share() >= Self::LEAST_SHARE
    }

    /// Less is no effect. A common beginning of two conversations, as a short system prompt, may be found in any cache.
    pub const LEAST_SHARE: f64 = 0.1;
}

/// The GPUs, by `nvidia-smi` or AMD's tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Gpu {
    /// No tool there, or none wanted.
    Absent,
    /// The tool failed: code and text (`driver_mismatch`, `gpu_lost`, …).
    Broken {
        /// Stable code.
        code: String,
        /// What it printed.
        message: String,
    },
    /// No answer within its deadline; it is not asked again while one hangs.
    Hangs,
    /// It answered.
    Read {
        /// The devices.
        devices: Vec<GpuDevice>,
        /// The compute processes.
        processes: Vec<GpuProcess>,
    },
}

impl Gpu {
    /// How many GPUs are shown; `None` where nobody could tell.
    #[must_use]
    pub const fn shown(&self) -> Option<usize> {
        match self {
            Self::Read { devices, .. } => Some(devices.len()),
            Self::Absent | Self::Broken { .. } => Some(0),
            Self::Hangs => None,
        }
    }

    /// What is wrong with the GPUs of a server that has shown `known` of them: a stable code, and a sentence.
    #[must_use]
    pub fn trouble(&self, known: usize) -> Option<(String, String)> {
        match self {
            Self::Broken { code, message } => Some((code.clone(), message.clone())),
            Self::Hangs => Some(("gpu_hangs".into(), "The GPU's tool does not answer in time.".into())),
            Self::Absent | Self::Read { .. } => {
                let shown = self.shown().unwrap_or(0);
                let gone = format!("The server has had {known} GPU(s) and shows {shown} now.");
                (shown < known).then(|| ("gpu_lost".into(), gone))
            }
        }
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuDevice {
    /// Index, as in `gpu0`.
    pub index: u32,
    /// Memory in use, MiB; `None` where the tool does not know.
    pub used_mib: Option<u64>,
    /// All memory, MiB.
    pub total_mib: Option<u64>,
}

/// One compute process on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Process id on the server.
    pub pid: u32,
    /// Program name.
    pub name: String,
    /// User it runs as, where known.
    pub user: Option<String>,
    /// Memory it holds, MiB, where known.
    pub used_mib: Option<u64>,
    /// The backend whose unit it belongs to: place in the configuration.
    pub backend: Option<usize>,
    /// A known resident (desktop, transcoder) or below the threshold: shown, but no blocker.
    pub ignored: bool,
}

/// Who uses the server beside us.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum People {
    /// Could not be asked, with the reason.
    Unread(String),
    /// Told.
    Read {
        /// Logins other than our own, as `user on pts/0 from 10.0.0.7`.
        logins: Vec<String>,
        /// Blocking shutdown inhibitors, as `who: why`.
        inhibitors: Vec<String>,
    },
}

/// Whether the server's NIC will hear a magic packet after power-off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WakeArmed {
    /// Wake-on contains `g`.
    Armed,
    /// It does not: what it says.
    NotArmed(String),
    /// Cannot be told (no ethtool, no such interface, another way of waking).
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_had_effect_from_a_tenth_of_the_prompt_on() {
        for (reused, computed, share, effective) in [
            (0, 0, "0.00", false),
            (0, 50, "0.00", false),
            (99, 901, "0.10", false),
            (1, 9, "0.10", true),
            (3, 1, "0.75", true),
            (50, 0, "1.00", true),
        ] {
            let reuse = Reuse { reused, computed };
            assert_eq!((&*format!("{:.2}", reuse.share()), reuse.is_effective()), (share, effective), "{reuse:?}");
        }
    }

    #[test]
    fn a_gpu_is_in_trouble_if_its_tool_says_so_hangs_or_shows_fewer_than_there_were() {
        let read = |devices: u32| Gpu::Read {
            devices: (0..devices).map(|index| GpuDevice { index, used_mib: None, total_mib: None }).collect(),
            processes: vec![],
        };
        let broken = || Gpu::Broken { code: "driver_mismatch".into(), message: "versions differ".into() };
        let gone = "The server has had 2 GPU(s) and shows 1 now.";
        let hangs = "The GPU's tool does not answer in time.";
        for (gpu, known, trouble) in [
            (Gpu::Absent, 0, None),
            (read(2), 1, None),
            (read(2), 2, None),
            (read(1), 2, Some(("gpu_lost", gone))),
            (Gpu::Absent, 1, Some(("gpu_lost", "The server has had 1 GPU(s) and shows 0 now."))),
            (Gpu::Hangs, 0, Some(("gpu_hangs", hangs))),
            (broken(), 0, Some(("driver_mismatch", "versions differ"))),
        ] {
            let expected = trouble.map(|(code, message)| (code.to_owned(), message.to_owned()));
            assert_eq!(gpu.trouble(known), expected, "{gpu:?}");
        }
    }
}
