//! What can go wrong with the server, on demand.
//!
//! Each fault lasts until it is cleared, or for a number of times, or for a while; and each counts how often it really
//! struck, so that a test can be sure that what it wanted to see has happened. What goes wrong with llama.cpp and vLLM, also
//! when they shall end, is in [`super::programs::ProgramFaults`].

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// One kind of fault; `T` says which.
pub struct Fault<T> {
    set: Mutex<Option<Set<T>>>,
    struck: AtomicU64,
}

#[derive(Clone)]
struct Set<T> {
    fault: T,
    left: Option<u32>,
    until: Option<Instant>,
}

impl<T> Default for Fault<T> {
    fn default() -> Self {
        Self { set: Mutex::new(None), struck: AtomicU64::new(0) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Fault<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.set();
        f.debug_struct("Fault").field("set", &set.as_ref().map(|s| &s.fault)).field("struck", &self.struck).finish()
    }
}

impl<T> Fault<T> {
    fn set(&self) -> MutexGuard<'_, Option<Set<T>>> {
        // Only plain values are put in and taken out while it is held.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it.
    pub fn clear(&self) {
        *self.set() = None;
    }

    /// How often it struck so far.
    pub fn struck(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }

    /// It struck without being asked for.
    pub(super) fn count(&self) {
        self.struck.fetch_add(1, Ordering::Relaxed);
    }
}

impl<T: Clone> Fault<T> {
    /// Strikes until it is cleared.
    pub fn always(&self, fault: T) {
        *self.set() = Some(Set { fault, left: None, until: None });
    }

    /// Strikes so many times.
    pub fn times(&self, fault: T, times: u32) {
        *self.set() = Some(Set { fault, left: Some(times), until: None });
    }

    /// Strikes for so long.
    pub fn lasting(&self, fault: T, lasts: Duration) {
        *self.set() = Some(Set { fault, left: None, until: Some(Instant::now() + lasts) });
    }

    /// The fault, if it is there now; does not count.
    pub fn now(&self) -> Option<T> {
        let mut set = self.set();
        let over =
            set.as_ref().is_some_and(|s| s.left == Some(0) || s.until.is_some_and(|until| Instant::now() >= until));
        if over {
            *set = None;
        }
        set.as_ref().map(|s| s.fault.clone())
    }

    /// The fault, if it strikes now.
    pub(super) fn strike(&self) -> Option<T> {
        self.strike_if(|_| true)
    }

    /// ... and is of the wanted kind.
    pub(super) fn strike_if(&self, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let fault = self.now().filter(wanted)?;
        if let Some(Set { left: Some(left), .. }) = &mut *self.set() {
            *left = left.saturating_sub(1);
        }
        self.count();
        Some(fault)
    }
}

/// What happens to somebody who connects to the SSH port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SshFault {
    /// The port is closed. Strikes once for as long as it lasts.
    Refuses,
    /// Nobody answers, as if a cable were cut. Strikes once for as long as it lasts.
    Silent,
    /// The port is open and says nothing.
    NoBanner,
    /// It says something only after so long.
    SlowBanner(Duration),
    /// Another machine answers.
    OtherHostKey,
    /// The initramfs answers.
    InitramfsKey,
    /// Our key is not let in.
    RefusesUs,
    /// The session stands, and with the first command nothing is heard of it any more.
    FallsSilent,
}

/// Which command lines a [`CommandFault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// All.
    Any,
    /// Those that change something.
    Verbs,
    /// Those that only look.
    Questions,
    /// Those that start a unit.
    Start,
    /// Those that stop one.
    Stop,
    /// Those that kill one.
    Kill,
    /// Those that power the server off.
    PowerOff,
}

/// What happens to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// It is carried out, and the session is cut before its answer.
    AnswerLost,
    /// The session is cut before anything is done.
    Cut,
    /// It is never answered, nor carried out.
    Hangs,
    /// Only so many bytes of its output come.
    Truncated(usize),
    /// This comes in place of its output.
    Garbage(String),
    /// It is answered so much later.
    Late(Duration),
    /// It is carried out twice, as if somebody had sent it again; the second answer comes.
    Doubled,
    /// It is carried out and ends, and something it has left behind holds its output open.
    StaysOpen,
}

/// How polkit says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `Access denied`, 4.
    Denied,
    /// It would have to ask: 1.
    WouldAsk,
}

/// What is wrong with a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitFault {
    /// There is no such unit.
    Missing(String),
    /// It is masked.
    Masked(String),
    /// This unit is read from this other file, which systemd has not read again since it changed.
    OtherFile(String, String),
}

/// How a boot goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootFault {
    /// It takes so many times as long.
    Slow(u32),
    /// It never comes further than a silent screen.
    Never,
}

/// What is wrong with the GPU or its tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuFault {
    /// There is no `nvidia-smi`.
    ToolAbsent,
    /// It fails with this code and text.
    Broken(u32, String),
    /// It hangs until its limit.
    Hangs,
    /// It hangs, and cannot be killed.
    HangsForEver,
    /// So many GPUs are gone.
    Missing(usize),
    /// On each GPU so many MiB more are in use, by nobody.
    Leaks(u64),
}

/// What is wrong with the slot folder, for those who look by SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderFault {
    /// The disk is full.
    Full,
    /// Nothing in it can be changed.
    ReadOnly,
}

/// All faults of a server.
#[derive(Debug, Default)]
pub struct Faults {
    /// SSH connections.
    pub ssh: Fault<SshFault>,
    /// Commands.
    pub command: Fault<(On, CommandFault)>,
    /// Verbs that polkit refuses.
    pub refusal: Fault<Refusal>,
    /// A unit that is not there.
    pub unit: Fault<UnitFault>,
    /// Boots.
    pub boot: Fault<BootFault>,
    /// Magic packets that are not heard.
    pub packets: Fault<()>,
    /// The network card is not armed after a power-off, and says so.
    pub disarmed: Fault<()>,
    /// The server's clock is so many seconds off.
    pub clock: Fault<i64>,
    /// The GPU.
    pub gpu: Fault<GpuFault>,
    /// The slot folder.
    pub folder: Fault<FolderFault>,
}

impl Faults {
    /// Clears all.
    pub fn clear(&self) {
        self.ssh.clear();
        self.command.clear();
        self.refusal.clear();
        self.unit.clear();
        self.boot.clear();
        self.packets.clear();
        self.disarmed.clear();
        self.clock.clear();
        self.gpu.clear();
        self.folder.clear();
    }

    /// How often any of them struck.
    pub fn struck(&self) -> u64 {
        self.ssh.struck()
            + self.command.struck()
            + self.refusal.struck()
            + self.unit.struck()
            + self.boot.struck()
            + self.packets.struck()
            + self.disarmed.struck()
            + self.clock.struck()
            + self.gpu.struck()
            + self.folder.struck()
    }

    /// Lets one fault, chosen by the dice, strike for `lasts` or once; says which in words. The same dice choose the same.
    pub fn any(&self, dice: &mut Dice, lasts: Duration) -> String {
        let ssh = [
            SshFault::Refuses,
            SshFault::Silent,
            SshFault::NoBanner,
            SshFault::SlowBanner(lasts / 4),
            SshFault::OtherHostKey,
            SshFault::InitramfsKey,
            SshFault::RefusesUs,
            SshFault::FallsSilent,
        ];
        let command = [
            CommandFault::AnswerLost,
            CommandFault::Cut,
            CommandFault::Hangs,
            CommandFault::Truncated(100),
            CommandFault::Garbage("\u{1b}[2Jbash: fork: Cannot allocate memory\n".into()),
        ];
        let gpu = [
            GpuFault::ToolAbsent,
            GpuFault::Broken(18, "Failed to initialize NVML: Driver/library version mismatch\n".into()),
            GpuFault::Broken(15, "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.\n".into()),
            GpuFault::Hangs,
            GpuFault::Missing(1),
        ];
        match dice.below(7) {
            0 | 1 => {
                let fault = ssh[dice.below(ssh.len())];
                self.ssh.lasting(fault, lasts);
                format!("ssh {fault:?}")
            }
            2 | 3 => {
                let fault =
                    ([On::Any, On::Verbs, On::Questions][dice.below(3)], command[dice.below(command.len())].clone());
                let said = format!("command {fault:?}");
                self.command.times(fault, 1);
                said
            }
            4 => {
                let fault = gpu[dice.below(gpu.len())].clone();
                let said = format!("gpu {fault:?}");
                self.gpu.lasting(fault, lasts);
                said
            }
            5 => {
                let fault = [Refusal::Denied, Refusal::WouldAsk][dice.below(2)];
                self.refusal.times(fault, 1);
                format!("refusal {fault:?}")
            }
            _ => {
                self.packets.times((), 2);
                self.boot.times(BootFault::Slow(2), 1);
                "two packets lost, then a slow boot".into()
            }
        }
    }
}

/// Dice that fall the same way for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice of that seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..most`; 0 if there is nothing to choose from.
    pub fn below(&mut self, most: usize) -> usize {
        let most = u64::try_from(most).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.roll() % most).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fault_strikes_until_cleared_or_so_often_or_so_long_and_is_counted() {
        let fault = Fault::default();
        assert_eq!(fault.strike(), None);
        fault.times("x", 2);
        assert_eq!((fault.strike(), fault.strike(), fault.strike()), (Some("x"), Some("x"), None));
        fault.lasting("y", Duration::from_secs(5));
        assert_eq!((fault.now(), fault.strike_if(|f| *f == "z")), (Some("y"), None));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(fault.strike(), None);
        fault.always("z");
        assert_eq!((fault.strike(), fault.struck()), (Some("z"), 3));
        fault.clear();
        assert_eq!((fault.strike(), fault.struck()), (None, 3));
    }

    #[tokio::test]
    async fn the_same_dice_choose_the_same_faults() {
        let plan = |seed| {
            let (faults, mut dice) = (Faults::default(), Dice::new(seed));
            (0..20).map(|_| faults.any(&mut dice, Duration::from_secs(1))).collect::<Vec<_>>()
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }
}
