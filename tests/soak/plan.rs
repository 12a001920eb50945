//! What happens in a round: drawn by dice from the seed and the number of the round, and from nothing else.

use std::time::Duration;

use wechsler::{
    front::protocol::{CommandRequest, CommandWord},
    virtual_server::{
        BootFault, CommandFault, Dice, FolderFault, GpuFault, On, Refusal, SshFault, UnitFault,
        programs::{Exit, Fault},
    },
};

pub const LLAMA: &str = "llama-cpp";
pub const VLLM: &str = "vllm";
const BOTH: [&str; 2] = [LLAMA, VLLM];

/// Faults of a round.
const SCENES: usize = 6;
/// How long a fault without an end of its own is left alone.
const LASTS: Duration = Duration::from_millis(1500);
/// What an operation in the storm is given to end.
const PATIENCE: Duration = Duration::from_secs(3);

/// The unit of a backend.
pub fn unit(backend: &str) -> String {
    format!("{backend}.service")
}

/// One thing that is done.
#[derive(Clone, Debug)]
pub enum Step {
    /// A command over the socket; its answer is waited for, its end not.
    Command(CommandRequest),
    /// This backend runs, whatever it takes; at most so long.
    Ensure(&'static str),
    /// A hold of a few seconds.
    Hold(&'static str),
    /// A request to a backend, beside all else.
    Ask(&'static str, u32),
    /// Time passes.
    Wait(Duration),
    /// Until no operation is under way; at most so long.
    Settle(Duration),
    /// Something goes wrong.
    Fault(Trouble),
    /// What is wrong with a backend's program is mended.
    Mend(&'static str),
    /// Somebody else does something.
    Stranger(Stranger),
}

/// Somebody else.
#[derive(Clone, Copy, Debug)]
pub enum Stranger {
    Starts(&'static str),
    Stops(&'static str),
    LogsIn,
    Inhibits,
    Occupies,
    Presses,
}

/// What can go wrong, by kind.
#[derive(Clone, Debug)]
pub enum Trouble {
    Ssh(SshFault),
    Command(On, CommandFault),
    Refusal(Refusal),
    Unit(UnitFault),
    Boot(BootFault),
    Packets,
    Disarmed,
    Clock(i64),
    Gpu(GpuFault),
    Folder(FolderFault),
    /// Of a backend's program; lasting, or so many times.
    Program(&'static str, Fault, Option<u32>),
    Crash(&'static str, Exit),
    PowerCut,
    Reboot,
    SlotsHidden,
    /// kill -9 of the daemon, and a new one: with policies, or none.
    DaemonKilled(bool),
}

impl Trouble {
    /// What it is counted as.
    pub fn name(&self) -> String {
        let first = |text: String| text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
        match self {
            Self::Ssh(fault) => format!("ssh {}", first(format!("{fault:?}"))),
            Self::Command(_, fault) => format!("command {}", first(format!("{fault:?}"))),
            Self::Refusal(fault) => format!("refusal {fault:?}"),
            Self::Unit(fault) => format!("unit {}", first(format!("{fault:?}"))),
            Self::Boot(fault) => format!("boot {}", first(format!("{fault:?}"))),
            Self::Packets => "packets lost".into(),
            Self::Disarmed => "network card disarmed".into(),
            Self::Clock(_) => "clock jump".into(),
            Self::Gpu(fault) => format!("gpu {}", first(format!("{fault:?}"))),
            Self::Folder(fault) => format!("folder {fault:?}"),
            Self::Program(_, fault, _) => format!("program {}", fault.name()),
            Self::Crash(..) => "program crash".into(),
            Self::PowerCut => "power cut".into(),
            Self::Reboot => "reboot".into(),
            Self::SlotsHidden => "slot folder gone".into(),
            Self::DaemonKilled(_) => "daemon killed".into(),
        }
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// All kinds, each as it is dealt.
pub fn troubles() -> Vec<Trouble> {
    let garbage = || CommandFault::Garbage("\u{1b}[2Jbash: fork: Cannot allocate memory\n".into());
    let mut all = vec![
        Trouble::Ssh(SshFault::Refuses),
        Trouble::Ssh(SshFault::Silent),
        Trouble::Ssh(SshFault::NoBanner),
        Trouble::Ssh(SshFault::SlowBanner(millis(300))),
        Trouble::Ssh(SshFault::OtherHostKey),
        Trouble::Ssh(SshFault::InitramfsKey),
        Trouble::Ssh(SshFault::RefusesUs),
        Trouble::Ssh(SshFault::FallsSilent),
    ];
    for on in [On::Verbs, On::Questions] {
        let truncated = CommandFault::Truncated(100);
        for fault in [CommandFault::AnswerLost, CommandFault::Cut, CommandFault::Hangs, truncated, garbage()] {
            all.push(Trouble::Command(on, fault));
        }
        all.push(Trouble::Command(on, CommandFault::Late(millis(700))));
        all.push(Trouble::Command(on, CommandFault::Doubled));
    }
    all.extend([
        Trouble::Refusal(Refusal::Denied),
        Trouble::Refusal(Refusal::WouldAsk),
        Trouble::Unit(UnitFault::Missing(unit(VLLM))),
        Trouble::Unit(UnitFault::Masked(unit(LLAMA))),
        Trouble::Boot(BootFault::Slow(4)),
        Trouble::Boot(BootFault::Never),
        Trouble::Packets,
        Trouble::Disarmed,
        Trouble::Clock(7200),
        Trouble::Clock(-7200),
        Trouble::Gpu(GpuFault::ToolAbsent),
        Trouble::Gpu(GpuFault::Broken(15, "Unable to determine the device handle: GPU is lost.\n".into())),
        Trouble::Gpu(GpuFault::Hangs),
        Trouble::Gpu(GpuFault::HangsForEver),
        Trouble::Gpu(GpuFault::Missing(1)),
        Trouble::Folder(FolderFault::Full),
        Trouble::Folder(FolderFault::ReadOnly),
        Trouble::SlotsHidden,
        Trouble::PowerCut,
        Trouble::Reboot,
    ]);
    for backend in BOTH {
        all.extend([
            Trouble::Program(backend, Fault::HealthHangs, None),
            Trouble::Program(backend, Fault::HealthSlow(millis(700)), None),
            Trouble::Program(backend, Fault::HealthStatus(500), None),
            Trouble::Program(backend, Fault::HealthGarbage, None),
            Trouble::Program(backend, Fault::HealthEndless, None),
            Trouble::Program(backend, Fault::OtherIdentity("somebody else".into()), None),
            Trouble::Program(backend, Fault::LoadHangs, None),
            Trouble::Program(backend, Fault::LoadFails(Exit::Code(1)), Some(1)),
            Trouble::Program(backend, Fault::PortInUse, Some(2)),
            Trouble::Program(backend, Fault::TermIgnored, None),
            Trouble::Program(backend, Fault::KillIgnored, None),
            Trouble::Program(backend, Fault::OrphanStays, Some(1)),
            Trouble::Program(backend, Fault::CompletionsFail, Some(1)),
            Trouble::Program(backend, Fault::AnswersCutOff, Some(1)),
            Trouble::Program(backend, Fault::NoMetrics, None),
            Trouble::Crash(backend, Exit::Code(1)),
            Trouble::Crash(backend, Exit::Signal(9)),
        ]);
    }
    for fault in [
        Fault::SaveFails,
        Fault::DiskFull,
        Fault::SaveHangs,
        Fault::SaveSaysOtherSize,
        Fault::RestoreRejected,
        Fault::RestoreKills,
        Fault::RestoreUnused,
    ] {
        all.push(Trouble::Program(LLAMA, fault, Some(1)));
    }
    all.push(Trouble::Program(LLAMA, Fault::NoSlots, None));
    all.push(Trouble::Program(LLAMA, Fault::SleepIdle(millis(300)), None));
    all.push(Trouble::Program(VLLM, Fault::EngineDead(millis(300)), Some(1)));
    all.push(Trouble::Program(VLLM, Fault::TermLostInLoad, Some(1)));
    all
}

/// A round.
#[derive(Clone, Debug)]
pub struct Round {
    /// What happens in it.
    pub storm: Vec<Step>,
    /// The server is powered off and woken again while nothing is wrong.
    pub power: bool,
    /// Plain switches there and back while nothing is wrong.
    pub pairs: usize,
    /// Not all switches then are `--no-drain`.
    pub drains: bool,
}

impl Round {
    /// The round of that number. In some the daemon is killed, if it may be.
    pub fn new(seed: u64, number: u64, kills: bool) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(0x1000_0001).wrapping_add(number));
        let mut storm = vec![];
        for place in 0..SCENES {
            let trouble = dealt(seed, number * SCENES as u64 + place as u64);
            storm.extend(scene(trouble, &mut dice));
        }
        if dice.below(8) == 0 {
            // Somebody is there from the beginning to the end, and the server shall go off.
            let who = [Stranger::LogsIn, Stranger::Inhibits, Stranger::Occupies][dice.below(3)];
            storm.insert(0, Step::Stranger(who));
            storm.push(Step::Wait(millis(500)));
            storm.push(Step::Command(CommandRequest::new(CommandWord::Shutdown)));
            storm.push(Step::Settle(PATIENCE));
        }
        if dice.below(3) == 0 && kills {
            let at = dice.below(storm.len());
            storm.insert(at, Step::Fault(Trouble::DaemonKilled(dice.below(3) == 0)));
        }
        for _ in 0..3 {
            let at = dice.below(storm.len());
            storm.insert(at, anything(&mut dice));
        }
        Self { storm, power: dice.below(3) < 2, pairs: 1 + dice.below(2), drains: dice.below(6) == 0 }
    }
}

/// Those that strike once where they are dealt are dealt more often than those that strike as long as they last.
fn deck() -> Vec<Trouble> {
    let all = troubles();
    let once = all.iter().filter(|trouble| match trouble {
        Trouble::Ssh(SshFault::Refuses | SshFault::Silent) => true,
        Trouble::Ssh(_) | Trouble::Unit(_) | Trouble::PowerCut | Trouble::Command(On::Questions, _) => false,
        Trouble::Program(_, _, times) => times.is_some(),
        _ => true,
    });
    let once: Vec<_> = once.cloned().collect();
    all.into_iter().chain(once).collect()
}

/// The trouble at that place: all of the deck are dealt before any is dealt again, each time in another order.
fn dealt(seed: u64, place: u64) -> Trouble {
    let mut deck = deck();
    let most = deck.len() as u64;
    let mut dice = Dice::new(seed ^ (place / most).wrapping_mul(0x9e37_79b9));
    for left in (1..deck.len()).rev() {
        deck.swap(left, dice.below(left + 1));
    }
    let at = usize::try_from(place % most).unwrap_or(0);
    deck.swap_remove(at)
}

fn command(word: CommandWord, no_drain: bool) -> Step {
    Step::Command(CommandRequest { no_drain, ..CommandRequest::new(word) })
}

fn of(word: CommandWord, backend: &str) -> CommandRequest {
    CommandRequest { backend: Some(backend.into()), ..CommandRequest::new(word) }
}

/// What somebody or something might do at any moment.
fn anything(dice: &mut Dice) -> Step {
    let backend = BOTH[dice.below(2)];
    let mut wish = match dice.below(16) {
        0 | 1 => of(CommandWord::Start, backend),
        2 => CommandRequest::new(CommandWord::Start),
        3 | 4 => of(CommandWord::Switch, backend),
        5 => CommandRequest::new(CommandWord::Stop),
        6 => CommandRequest::new(CommandWord::Restart),
        7 => CommandRequest::new(CommandWord::Wake),
        8 => {
            let power_off = Some(dice.below(2) == 0);
            CommandRequest { power_off, ..CommandRequest::new(CommandWord::Shutdown) }
        }
        9 => of(CommandWord::Resolve, backend),
        10 => CommandRequest::new(CommandWord::Cancel),
        11 => CommandRequest::new(CommandWord::Save),
        12 => CommandRequest::new(CommandWord::Restore),
        13 => return Step::Hold(["awake", "gpu", "off", LLAMA, VLLM][dice.below(5)]),
        14 => return Step::Ask(backend, 20),
        _ => {
            return Step::Stranger(match dice.below(6) {
                0 => Stranger::Starts(backend),
                1 => Stranger::Stops(backend),
                2 => Stranger::LogsIn,
                3 => Stranger::Inhibits,
                4 => Stranger::Occupies,
                _ => Stranger::Presses,
            });
        }
    };
    wish.replace = dice.below(3) == 0;
    wish.no_drain = dice.below(4) == 0;
    Step::Command(wish)
}

/// A trouble, with what makes sure that it is met.
fn scene(trouble: Trouble, dice: &mut Dice) -> Vec<Step> {
    let other = |backend| if backend == LLAMA { VLLM } else { LLAMA };
    // Drains take their time.
    let no_drain = dice.below(6) > 0;
    let command = |word| command(word, no_drain);
    let switch =
        |backend| Step::Command(CommandRequest { replace: true, no_drain, ..of(CommandWord::Switch, backend) });
    let way = [command(CommandWord::Stop), command(CommandWord::Restart), switch(VLLM)][dice.below(3)].clone();
    let (settle, wait) = (Step::Settle(PATIENCE), |ms| Step::Wait(millis(ms)));
    let fault = || Step::Fault(trouble.clone());
    match &trouble {
        Trouble::Ssh(_) => vec![fault(), way, wait(1300)],
        Trouble::Command(On::Verbs, _) | Trouble::Refusal(_) => vec![Step::Ensure(LLAMA), fault(), way, settle],
        Trouble::Command(..) => vec![fault(), way, wait(600)],
        Trouble::Unit(UnitFault::Missing(_)) => vec![fault(), switch(VLLM), settle],
        Trouble::Unit(_) => vec![fault(), switch(LLAMA), settle],
        Trouble::Boot(_) | Trouble::Packets => {
            vec![Step::Fault(Trouble::PowerCut), fault(), wait(2000), switch(LLAMA), Step::Settle(PATIENCE * 2)]
        }
        Trouble::Disarmed => vec![Step::Ensure(LLAMA), fault(), command(CommandWord::Shutdown), settle],
        Trouble::Clock(_) => vec![Step::Ensure(LLAMA), fault(), command(CommandWord::Restart), settle],
        Trouble::Gpu(_) => vec![fault(), switch(BOTH[dice.below(2)]), settle],
        Trouble::Folder(FolderFault::Full) | Trouble::SlotsHidden => {
            vec![Step::Ensure(LLAMA), Step::Ask(LLAMA, 20), wait(100), fault(), switch(VLLM), settle]
        }
        // What a failed save left cannot be removed.
        Trouble::Folder(_) => {
            let fails = Step::Fault(Trouble::Program(LLAMA, Fault::SaveFails, Some(1)));
            vec![Step::Ensure(LLAMA), Step::Ask(LLAMA, 20), wait(100), fault(), fails, switch(VLLM), settle]
        }
        Trouble::Program(backend, what, _) => {
            let backend = *backend;
            let meet = match what {
                Fault::HealthHangs
                | Fault::HealthSlow(_)
                | Fault::HealthStatus(_)
                | Fault::HealthGarbage
                | Fault::HealthEndless => {
                    return vec![Step::Ensure(backend), fault(), wait(400), way, wait(800), Step::Mend(backend)];
                }
                // Asked for every two seconds.
                Fault::NoMetrics | Fault::NoSlots => {
                    return vec![Step::Ensure(backend), fault(), wait(2200), way, settle, Step::Mend(backend)];
                }
                Fault::OtherIdentity(_) | Fault::LoadHangs | Fault::LoadFails(_) | Fault::PortInUse => {
                    let mend = Step::Mend(backend);
                    return vec![Step::Ensure(other(backend)), fault(), switch(backend), Step::Settle(LASTS), mend];
                }
                Fault::TermLostInLoad => {
                    return vec![
                        Step::Ensure(LLAMA),
                        fault(),
                        switch(VLLM),
                        wait(900),
                        command(CommandWord::Stop),
                        settle,
                    ];
                }
                Fault::RestoreRejected | Fault::RestoreKills | Fault::RestoreUnused => {
                    let ask = Step::Ask(LLAMA, 10);
                    return vec![
                        Step::Ensure(LLAMA),
                        ask,
                        wait(100),
                        fault(),
                        command(CommandWord::Restart),
                        Step::Settle(PATIENCE * 2),
                    ];
                }
                Fault::SleepIdle(_) => vec![wait(1200), switch(VLLM)],
                Fault::EngineDead(_) => vec![Step::Ask(VLLM, 5), wait(900)],
                Fault::CompletionsFail | Fault::AnswersCutOff | Fault::WrongText => {
                    vec![Step::Ask(backend, 10), wait(100), switch(other(backend))]
                }
                _ => vec![Step::Ask(backend, 20), wait(100), switch(other(backend))],
            };
            let kill = matches!(what, Fault::KillIgnored);
            let deaf = Step::Fault(Trouble::Program(backend, Fault::TermIgnored, None));
            let mut steps = vec![Step::Ensure(backend), fault()];
            steps.extend(kill.then_some(deaf));
            steps.extend(meet);
            steps.extend([settle, Step::Mend(backend)]);
            steps
        }
        Trouble::Crash(backend, _) => vec![Step::Ensure(backend), Step::Ask(backend, 20), fault(), wait(300)],
        Trouble::PowerCut | Trouble::Reboot => vec![fault(), wait(400), switch(BOTH[dice.below(2)]), wait(600)],
        Trouble::DaemonKilled(_) => vec![fault()],
    }
}
