//! Exploration: every state of the machine that some [`DEPTH`] events lead to, and every edge out of it, by an alphabet of
//! everything that can happen. States are told apart by [`Machine::key`].

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use wechsler::machine::{
    BackendId, BootId, BootPhase, Command, Effect, Event, Held, HoldSpec, Instant, Invocation, Look, Machine, Options,
    Outcome, Policy, PowerChoice, RequestId, Seen, Selection, Server, Use, Verb, VerbId, Warning,
};

use super::sample::{self, LLAMA, VLLM};

/// One step of the machine.
pub struct Edge<'a> {
    /// Before.
    pub before: &'a Machine,
    /// When.
    pub now: Instant,
    /// The letter of the alphabet.
    pub act: &'a str,
    /// What happened.
    pub event: &'a Event,
    /// What was asked for.
    pub effects: &'a [Effect],
    /// After.
    pub after: &'a Machine,
}

/// What was explored.
pub struct Graph {
    /// Leaf of each state.
    pub states: Vec<wechsler::machine::Kind>,
    /// How many edges lead out of them.
    pub edges: usize,
}

/// Events in a row. Every leaf, every order and every way of failing lies well within.
pub const DEPTH: usize = 6;

const REQUEST: RequestId = RequestId(7);

/// What is explored together. The product of everything would be far larger and tell no more: the life of the backends
/// does not depend on who is logged in, and the obstacles do not depend on how a run came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Boots, runs, crashes, switches, saves and restores, lost answers.
    Life,
    /// Holds, blockers, strangers, what cannot be read, what is not allowed.
    Obstacles,
}

impl Alphabet {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Life, Self::Obstacles];

    fn has(self, act: &str) -> bool {
        const LIFE: &[&str] = &[
            "sees it booting",
            "sees llama-cpp linger",
            "sees llama-cpp crash",
            "sees llama-cpp load",
            "sees vllm load",
            "sees both run",
            "sees llama-cpp fresh, slots saved",
            "sees llama-cpp in another run",
            "sees another boot, llama-cpp up",
            "sees all stopped in another session",
            "order is lost",
            "restore is rejected",
            "start",
            "start vllm",
            "switch llama-cpp",
            "switch vllm --replace",
            "switch vllm --no-drain",
            "restart",
            "wake",
            "resolve --keep vllm",
            "slots save",
        ];
        const BOTH: &[&str] = &[
            "tick early",
            "deadline",
            "older order ends",
            "order succeeds",
            "order fails",
            "sees silence",
            "sees all stopped",
            "sees llama-cpp run",
            "sees vllm run",
            "start llama-cpp",
            "switch vllm",
            "stop",
            "shutdown --power-off",
            "cancel",
        ];
        BOTH.contains(&act) || (LIFE.contains(&act) == (self == Self::Life))
    }
}

/// Explores the machine of `policy`, handing every edge to `visit`.
pub fn explore(policy: &Policy, acts: Alphabet, mut visit: impl FnMut(&Edge)) -> Graph {
    let start = Machine::new(policy.clone(), vec![]);
    let mut known = HashSet::from([start.key()]);
    let mut graph = Graph { states: vec![start.place().kind], edges: 0 };
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((depth, machine)) = queue.pop_front() {
        for (act, now, event) in alphabet(&machine).into_iter().filter(|(act, ..)| acts.has(act)) {
            let mut after = machine.clone();
            let effects = after.step(now, event.clone());
            visit(&Edge { before: &machine, now, act: &act, event: &event, effects: &effects, after: &after });
            graph.edges += 1;
            if known.insert(after.key()) {
                graph.states.push(after.place().kind);
                if depth + 1 < DEPTH {
                    queue.push_back((depth + 1, after));
                }
            }
        }
    }
    graph
}

/// Everything that can happen to `machine` now.
pub fn alphabet(machine: &Machine) -> Vec<(String, Instant, Event)> {
    let view = machine.view();
    let now = view.now;
    let soon = now + Duration::from_millis(1);
    let mut acts: Vec<(String, Instant, Event)> = Vec::new();
    let mut add = |name: &str, event: Event| acts.push((name.to_owned(), soon, event));

    add("tick early", Event::Tick);
    for (name, look) in looks(&view.look, soon) {
        add(name, Event::Looked(look));
    }
    for (name, outcome) in [
        ("order succeeds", Outcome::Succeeded(vec![])),
        ("order fails", Outcome::Failed(Warning::new("verb_failed", ""))),
        ("order is not permitted", Outcome::Failed(Warning::new("not_permitted", ""))),
        ("order is lost", Outcome::Unknown(Warning::new("no_answer", ""))),
    ] {
        if let Some((verb, _)) = view.order {
            add(name, Event::Finished { verb, outcome });
        }
    }
    if let Some((verb, Verb::RestoreSlots(_))) = view.order {
        let outcome = Outcome::Failed(Warning::new("restore_rejected", ""));
        add("restore is rejected", Event::Finished { verb, outcome });
    }
    add("older order ends", Event::Finished { verb: VerbId(0), outcome: Outcome::Succeeded(vec![]) });
    let plain = Options::default();
    let replace = Options { replace: true, ..plain };
    let hold = |what| {
        Command::Hold(HoldSpec { what, lasts: Some(Duration::from_mins(10)), reason: String::new(), by: String::new() })
    };
    let mut commands = vec![
        ("start", Command::Start(None, plain)),
        ("start llama-cpp", Command::Start(Some(LLAMA), plain)),
        ("start vllm", Command::Start(Some(VLLM), plain)),
        ("switch llama-cpp", Command::Switch(LLAMA, plain)),
        ("switch vllm", Command::Switch(VLLM, plain)),
        ("switch vllm --replace", Command::Switch(VLLM, replace)),
        ("switch vllm --no-drain", Command::Switch(VLLM, Options { no_drain: true, ..plain })),
        ("stop", Command::Stop(plain)),
        ("restart", Command::Restart(None, plain)),
        ("wake", Command::Wake(plain)),
        ("shutdown --power-off", Command::Shutdown(PowerChoice::PowerOff, plain)),
        ("shutdown --keep-on", Command::Shutdown(PowerChoice::KeepOn, plain)),
        ("resolve --keep vllm", Command::Resolve(VLLM, plain)),
        ("cancel", Command::Cancel),
        ("slots save", Command::SaveSlots(Selection::All, plain)),
        ("slots restore", Command::RestoreSlots(Selection::All, plain)),
    ];
    if let Some(held) = view.holds.first() {
        commands.push(("release", Command::Release(held.id)));
    } else {
        commands.push(("hold awake", hold(Held::Awake)));
        commands.push(("hold llama-cpp", hold(Held::Backend(LLAMA))));
        commands.push(("hold gpu", hold(Held::Gpu)));
        commands.push(("hold off", hold(Held::Off)));
    }
    for (name, command) in commands {
        add(name, Event::Commanded { request: REQUEST, command });
    }
    if let Some(deadline) = machine.deadline() {
        acts.push(("deadline".to_owned(), deadline, Event::Tick));
    }
    acts
}

/// Looks at everything a server can show. Boots, runs and sessions are those of the look before, or the next.
fn looks(before: &Look, now: Instant) -> Vec<(&'static str, Look)> {
    use Seen::{CrashLoop, Lingering, Loading, Missing, Running, Sick, Stopped, Stranger, Unknown};
    let (boot, session) = match before.server {
        Server::On { boot, session } => (boot, session),
        _ => (BootId(1), 1),
    };
    let on = |llama, vllm| {
        let mut look = sample::on(now, llama, vllm);
        look.server = Server::On { boot, session };
        look
    };
    let with = |mut look: Look, change: fn(&mut Look)| {
        change(&mut look);
        look
    };
    let next_boot = BootId(if boot == BootId(1) { 2 } else { 1 });
    vec![
        ("sees silence", sample::off(now, Server::Silent)),
        ("sees it booting", sample::off(now, Server::Booting(BootPhase::Booting))),
        ("sees a wrong host key", sample::off(now, Server::Booting(BootPhase::WrongHostKey))),
        ("sees llama-cpp without SSH", {
            let mut look = on(Running, Unknown);
            look.server = Server::Uncontrolled;
            look
        }),
        ("sees all stopped", on(Stopped, Stopped)),
        ("sees llama-cpp load", on(Loading, Stopped)),
        ("sees llama-cpp run", on(Running, Stopped)),
        ("sees llama-cpp linger", on(Lingering, Stopped)),
        ("sees llama-cpp crash", on(CrashLoop, Stopped)),
        ("sees llama-cpp sick", on(Sick, Stopped)),
        ("sees llama-cpp gone mute", with(on(Loading, Stopped), |l| l.backends[0].use_ = Use::Unknown)),
        ("sees vllm load", on(Stopped, Loading)),
        ("sees vllm run", on(Stopped, Running)),
        ("sees vllm linger", on(Stopped, Lingering)),
        ("sees both run", on(Running, Running)),
        ("sees both load", on(Loading, Loading)),
        ("sees no unit of llama-cpp", on(Missing, Stopped)),
        ("sees a stranger at vllm", on(Stopped, Stranger)),
        ("cannot read llama-cpp", on(Unknown, Stopped)),
        ("sees llama-cpp busy", with(on(Running, Stopped), |l| l.backends[0].use_ = Use::Busy)),
        (
            "cannot read llama-cpp's use",
            with(on(Running, Stopped), |l| {
                l.backends[0].use_ = Use::Unknown;
                l.backends[0].mark = None;
            }),
        ),
        (
            "sees llama-cpp fresh, slots saved",
            with(on(Running, Stopped), |l| {
                l.backends[0].unused = true;
                l.backends[0].restorable = true;
                l.backends[0].holds_tokens = false;
            }),
        ),
        (
            "sees llama-cpp in another run",
            with(on(Running, Stopped), |l| {
                l.backends[0].invocation = Some(Invocation(11));
            }),
        ),
        (
            "sees llama-cpp load in another run",
            with(on(Loading, Stopped), |l| {
                l.backends[0].invocation = Some(Invocation(11));
            }),
        ),
        ("sees llama-cpp asleep", with(on(Running, Stopped), |l| l.backends[0].sleeping = true)),
        ("sees a foreign process", with(on(Stopped, Stopped), |l| l.foreign_gpu = true)),
        ("sees a GPU missing yet", with(on(Stopped, Stopped), |l| l.gpu_late = true)),
        ("sees a login", with(on(Stopped, Stopped), |l| l.people = Some(true))),
        (
            "cannot tell who is there",
            with(on(Stopped, Stopped), |l| {
                l.people = None;
                l.wake_armed = None;
            }),
        ),
        (
            "sees all stopped, the rest long ago",
            with(on(Stopped, Stopped), |l| {
                (l.gpu_at, l.people_at, l.wake_armed_at) = (Instant::START, Instant::START, Instant::START);
            }),
        ),
        ("sees the card unarmed", with(on(Stopped, Stopped), |l| l.wake_armed = Some(false))),
        ("sees another boot", {
            let mut look = on(Stopped, Stopped);
            look.server = Server::On { boot: next_boot, session: session + 1 };
            look
        }),
        ("sees another boot, llama-cpp up", {
            let mut look = on(Loading, Stopped);
            look.server = Server::On { boot: next_boot, session: session + 1 };
            look
        }),
        ("sees all stopped in another session", {
            let mut look = on(Stopped, Stopped);
            look.server = Server::On { boot, session: session + 1 };
            look
        }),
    ]
}

/// The name of a backend id, for messages.
pub fn name(id: BackendId) -> &'static str {
    if id == LLAMA { "llama-cpp" } else { "vllm" }
}
