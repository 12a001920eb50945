//! Everything that can happen to a machine, by topics: looks, ends of orders, commands, time.
//!
//! Time: whatever happens takes no time (a millisecond, so that looks have an order), but a wait does: until the next
//! deadline, or until long after the last one (a machine that was asleep). What is seen follows from what was seen: the
//! same boot and run, or ones that were never seen before.

use std::time::Duration;

use wechsler::machine::{
    BackendId, BackendLook, BootId, BootPhase, Command, Doubt, Event, Held, HoldId, HoldSpec, Instant, Invocation,
    Look, Machine, Options, Outcome, PowerChoice, RequestId, Seen, Selection, Server, Use, Verb, VerbId, View, Warning,
};

use super::sample::{self, LLAMA, VLLM, WHISPER};

/// What can be varied together or left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Nothing answers; packets are sent.
    Silence,
    /// A server that is not up, not ours, or out of control: boot phases, other keys, logins refused, SSH that is gone.
    Doors,
    /// Other boots and what came up with them.
    Boots,
    /// How a backend comes and goes: it loads, and lingers when it is stopped.
    Passage,
    /// ... crashes, restarts, other runs, runs without a name.
    Runs,
    /// Two that run beside each other.
    Both,
    /// Several beside each other in every way, and what ends a conflict.
    Crowds,
    /// A third one, alone and beside the others.
    Third,
    /// Requests in flight, and what cannot be told of them.
    Use,
    /// Saving and restoring, and all that goes wrong with it.
    Slots,
    /// What is saved of a backend that goes on running, by tokens or under a name of its own.
    Copies,
    /// Runs whose use nobody has told yet.
    Word,
    /// Orders that fail, answers that are lost, late or doubled, sessions that change.
    Losses,
    /// Holds.
    Holds,
    /// Who and what is in the way: people, other processes, cards not armed, GPUs that come late, old words.
    Obstacles,
    /// Units that are missing, sick, not ours or cannot be read.
    Oddities,
    /// One command of every kind.
    Commands,
    /// What happens when something is overdue: it was there before the tick.
    Late,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Silence,
        Self::Doors,
        Self::Boots,
        Self::Passage,
        Self::Runs,
        Self::Both,
        Self::Crowds,
        Self::Third,
        Self::Use,
        Self::Slots,
        Self::Copies,
        Self::Word,
        Self::Losses,
        Self::Holds,
        Self::Obstacles,
        Self::Oddities,
        Self::Commands,
        Self::Late,
    ];

    /// It speaks of a server with so many backends.
    fn is_of(self, backends: usize) -> bool {
        match self {
            Self::Both | Self::Crowds => backends > 1,
            Self::Third => backends > 2,
            _ => true,
        }
    }
}

/// One thing that can happen: its name, when, and what the machine is told.
pub type Letter = (&'static str, Instant, Event);

const REQUEST: RequestId = RequestId(7);

/// Everything that can happen to `machine` now, in these topics.
pub fn alphabet(machine: &Machine, view: &View, topics: &[Topic]) -> Vec<Letter> {
    let now = view.now;
    let mut soon = now + Duration::from_millis(1);
    if let Some(deadline) = machine.deadline().filter(|deadline| *deadline <= soon) {
        soon = now + deadline.since(now) / 2;
    }
    let backends = view.look.backends.len();
    let topics: Vec<Topic> = topics.iter().copied().filter(|topic| topic.is_of(backends)).collect();
    let has = |topic| topics.contains(&topic);
    let mut letters: Vec<Letter> = Vec::with_capacity(160);
    letters.push(("tick early", soon, Event::Tick));
    if let Some(deadline) = machine.deadline() {
        letters.push(("deadline", deadline, Event::Tick));
        // Nobody was awake when the first was due.
        let mut later: Vec<Instant> = machine.deadlines().filter(|at| *at > deadline).collect();
        later.sort_unstable();
        later.dedup();
        letters.extend(later.into_iter().map(|at| ("later deadline", at, Event::Tick)));
        letters.push(("long after", now + Duration::from_hours(24), Event::Tick));
    }
    let overdue = machine.deadline().filter(|_| has(Topic::Late));
    for at in [Some(soon), overdue].into_iter().flatten() {
        let mut add = |name, event| letters.push((name, at, event));
        for (name, look) in looks(view, at, &topics) {
            add(name, Event::Looked(look));
        }
        answers(view, &topics, &mut add);
        for (name, command) in commands(view, has) {
            add(name, Event::Commanded { request: REQUEST, command });
        }
    }
    letters
}

fn answers(view: &View, topics: &[Topic], add: &mut impl FnMut(&'static str, Event)) {
    let has = |topic| topics.contains(&topic);
    let fails = |code: &str| Outcome::Failed(Warning::new(code, ""));
    let lost = || Outcome::Unknown(Warning::new("no_answer", ""));
    if let Some((verb, what)) = view.order {
        let mut ends = |name, outcome| add(name, Event::Finished { verb, outcome });
        ends("order succeeds", Outcome::Succeeded(vec![]));
        ends("order fails", fails("verb_failed"));
        if has(Topic::Losses) {
            ends("order is lost", lost());
            ends("order is not permitted", fails("not_permitted"));
            ends("order finds no unit", fails("unit_missing"));
            ends("order is not sent", fails("control_unreachable"));
        }
        if has(Topic::Slots) {
            match what {
                Verb::SaveSlots(_) => {
                    ends("save finds a slot busy", Outcome::Succeeded(vec![Warning::new("slot_busy", "")]));
                    ends("save leaves a slot out", Outcome::Succeeded(vec![Warning::new("disk_full", "")]));
                }
                Verb::RestoreSlots(_) => {
                    ends("restore is rejected", fails("restore_rejected"));
                    ends("restore kills the process", fails("restore_killed_process"));
                }
                _ => {}
            }
        }
    }
    if has(Topic::Losses) {
        for (name, outcome) in [
            ("older order ends", Outcome::Succeeded(vec![])),
            ("older order fails", fails("verb_failed")),
            ("older order is lost", lost()),
        ] {
            add(name, Event::Finished { verb: VerbId(0), outcome });
        }
        if let Some(Doubt { verb, .. }) = view.doubt {
            add("lost answer comes late", Event::Finished { verb, outcome: Outcome::Succeeded(vec![]) });
            add("lost answer comes late, a failure", Event::Finished { verb, outcome: fails("verb_failed") });
            add("lost answer is lost again", Event::Finished { verb, outcome: lost() });
        }
    }
}

fn commands(view: &View, has: impl Fn(Topic) -> bool) -> Vec<(&'static str, Command)> {
    let plain = Options::default();
    let replace = Options { replace: true, ..plain };
    let several = view.look.backends.len() > 1;
    let mut commands = vec![
        ("start llama-cpp", Command::Start(Some(LLAMA), plain)),
        ("stop", Command::Stop(plain)),
        ("shutdown --power-off", Command::Shutdown(PowerChoice::PowerOff, plain)),
        ("cancel", Command::Cancel),
    ];
    if several {
        commands.push(("switch vllm", Command::Switch(VLLM, plain)));
        commands.push(("switch vllm --replace", Command::Switch(VLLM, replace)));
    }
    if has(Topic::Runs) {
        commands.push(("start", Command::Start(None, plain)));
        commands.push(("restart", Command::Restart(None, plain)));
        commands.push(("restart llama-cpp --replace", Command::Restart(Some(LLAMA), replace)));
    }
    if has(Topic::Crowds) {
        commands.push(("start vllm", Command::Start(Some(VLLM), plain)));
        commands.push(("switch llama-cpp", Command::Switch(LLAMA, plain)));
        commands.push(("resolve --keep llama-cpp", Command::Resolve(LLAMA, plain)));
        commands.push(("resolve --keep vllm", Command::Resolve(VLLM, plain)));
    }
    if has(Topic::Third) {
        commands.push(("switch whisper", Command::Switch(WHISPER, plain)));
        commands.push(("resolve --keep whisper", Command::Resolve(WHISPER, plain)));
    }
    if has(Topic::Silence) {
        commands.push(("wake", Command::Wake(plain)));
    }
    if has(Topic::Boots) {
        commands.push(("shutdown --power-off --replace", Command::Shutdown(PowerChoice::PowerOff, replace)));
        commands.push(("shutdown --keep-on", Command::Shutdown(PowerChoice::KeepOn, plain)));
    }
    let at_once = Options { replace: true, no_drain: true };
    if has(Topic::Commands) {
        commands.push(("restart", Command::Restart(None, plain)));
        commands.push(("restart --replace --no-drain", Command::Restart(None, at_once)));
        commands.push(("start --replace --no-drain", Command::Start(None, at_once)));
        commands.push(("wake", Command::Wake(plain)));
        commands.push(("wake --replace", Command::Wake(replace)));
        commands.push(("shutdown --keep-on", Command::Shutdown(PowerChoice::KeepOn, plain)));
        commands.push(("shutdown --keep-on --replace --no-drain", Command::Shutdown(PowerChoice::KeepOn, at_once)));
        commands.push(("shutdown --power-off --replace --no-drain", Command::Shutdown(PowerChoice::PowerOff, at_once)));
        commands.push(("switch llama-cpp", Command::Switch(LLAMA, plain)));
        commands.push(("resolve --keep llama-cpp", Command::Resolve(LLAMA, plain)));
        if several {
            commands.push(("switch vllm --replace --no-drain", Command::Switch(VLLM, at_once)));
            commands.push(("resolve --keep vllm --no-drain", Command::Resolve(VLLM, at_once)));
        }
        commands.push(("release what is not held", Command::Release(HoldId(99))));
        let spec = HoldSpec { what: Held::Gpu, lasts: None, reason: String::new(), by: String::new() };
        commands.push(match view.holds.first() {
            Some(held) => ("release", Command::Release(held.id)),
            None => ("hold gpu", Command::Hold(spec)),
        });
    }
    if has(Topic::Use) {
        commands.push(("stop --no-drain", Command::Stop(at_once)));
    }
    if has(Topic::Slots) {
        commands.push(("slots save", Command::SaveSlots(Selection::All, plain)));
        commands.push(("slots restore", Command::RestoreSlots(Selection::All, plain)));
        commands.push(("slots restore --replace", Command::RestoreSlots(Selection::All, replace)));
    }
    if has(Topic::Copies) {
        commands.push(("slots save --name", Command::SaveSlots(Selection::Named(1), plain)));
        commands.push(("slots restore --name", Command::RestoreSlots(Selection::Named(1), plain)));
    }
    if has(Topic::Holds) {
        let hold = |what, lasts| Command::Hold(HoldSpec { what, lasts, reason: String::new(), by: String::new() });
        if let Some(held) = view.holds.first() {
            commands.push(("release", Command::Release(held.id)));
        } else {
            commands.push(("hold awake", hold(Held::Awake, None)));
            commands.push(("hold llama-cpp for a minute", hold(Held::Backend(LLAMA), Some(Duration::from_mins(1)))));
            commands.push(("hold gpu", hold(Held::Gpu, None)));
            commands.push(("hold off", hold(Held::Off, None)));
        }
    }
    commands
}

/// A look in the making: what a server shows next, going by what it showed before.
struct Eye<'a> {
    view: &'a View,
    now: Instant,
}

impl Eye<'_> {
    /// A name that was never met.
    fn fresh(&self, salt: u128) -> u128 {
        (self.now.since_start().as_nanos() << 8) + 1000 + salt
    }

    /// On as before, its backends as given, the others stopped.
    fn on(&self, seen: &[Seen]) -> Look {
        let count = self.view.look.backends.len();
        let mut all = vec![Seen::Stopped; count];
        for (place, seen) in all.iter_mut().zip(seen) {
            *place = *seen;
        }
        let mut look = sample::shows(self.now, &all);
        let before = &self.view.look;
        look.server = Server::On { boot: self.view.boot.unwrap_or(BootId(1)), session: self.session() };
        for (i, backend) in look.backends.iter_mut().enumerate() {
            let known = self.view.backends[i];
            backend.invocation =
                backend.invocation.map(|_| known.run.unwrap_or_else(|| Invocation(self.fresh(i as u128))));
            backend.mark = backend.mark.map(|mark| known.mark.unwrap_or(mark));
            backend.restarts = if backend.invocation.is_some() { before.backends[i].restarts } else { 0 };
        }
        look
    }

    fn session(&self) -> u64 {
        match self.view.look.server {
            Server::On { session, .. } => session,
            // Silence ends one.
            _ => self.fresh_session(),
        }
    }

    fn fresh_session(&self) -> u64 {
        2 + u64::try_from(self.now.since_start().as_nanos()).unwrap_or(u64::MAX)
    }

    /// As [`Self::on`], with the first backend changed.
    fn with(&self, seen: &[Seen], change: impl FnOnce(&mut Look)) -> Look {
        let mut look = self.on(seen);
        change(&mut look);
        look
    }

    /// ... in a run that was never seen.
    fn another_run(&self, seen: &[Seen]) -> Look {
        self.with(seen, |l| l.backends[0].invocation = Some(Invocation(self.fresh(100))))
    }

    /// The second backend runs, with that changed.
    fn second(&self, change: impl FnOnce(&mut BackendLook)) -> Look {
        self.with(&[Seen::Stopped, Seen::Running], |l| change(&mut l.backends[1]))
    }

    /// ... told by an SSH session that was never seen.
    fn another_session(&self, seen: &[Seen]) -> Look {
        let mut look = self.on(seen);
        if let Server::On { session, .. } = &mut look.server {
            *session = self.fresh_session();
        }
        look
    }

    /// ... by a server that was booted.
    fn another_boot(&self, seen: &[Seen]) -> Look {
        let mut look = self.another_session(seen);
        if let Server::On { boot, .. } = &mut look.server {
            *boot = BootId(self.fresh(200));
        }
        for (i, backend) in look.backends.iter_mut().enumerate() {
            let fresh = Invocation(self.fresh(i as u128));
            backend.invocation = backend.invocation.map(|_| fresh);
            (backend.restarts, backend.mark) = (0, backend.mark.map(|_| 0));
        }
        look
    }

    fn off(&self, server: Server) -> Look {
        let mut look = Look::nothing(self.view.look.backends.len());
        (look.at, look.server) = (self.now, server);
        look
    }
}

/// Looks at everything a server can show.
fn looks(view: &View, now: Instant, topics: &[Topic]) -> Vec<(&'static str, Look)> {
    use Seen::{CrashLoop, Lingering, Loading, Missing, Running, Sick, Stopped, Stranger, Unknown};
    let eye = Eye { view, now };
    let has = |topic| topics.contains(&topic);
    let several = view.look.backends.len() > 1;
    let mut looks = vec![
        ("sees all stopped", eye.on(&[])),
        ("sees llama-cpp run", eye.on(&[Running])),
        ("hears the same again", view.look.clone()),
    ];
    if several {
        looks.push(("sees vllm run", eye.on(&[Stopped, Running])));
    }
    if has(Topic::Silence) {
        looks.push(("sees silence", eye.off(Server::Silent)));
    }
    if has(Topic::Passage) {
        looks.push(("sees llama-cpp load", eye.on(&[Loading])));
        looks.push(("sees llama-cpp linger", eye.on(&[Lingering])));
        if several {
            looks.push(("sees vllm load", eye.on(&[Stopped, Loading])));
        }
    }
    if has(Topic::Doors) {
        for (name, phase) in [
            ("sees it booting", BootPhase::Booting),
            ("sees it wait for a passphrase", BootPhase::Preboot),
            ("sees a wrong host key", BootPhase::WrongHostKey),
            ("sees our login refused", BootPhase::AuthRefused),
        ] {
            looks.push((name, eye.off(Server::Booting(phase))));
        }
    }
    if has(Topic::Boots) {
        looks.push(("sees another boot", eye.another_boot(&[])));
        looks.push(("sees another boot, llama-cpp loading", eye.another_boot(&[Loading])));
        looks.push(("sees another boot, llama-cpp running", eye.another_boot(&[Running])));
        if several {
            looks.push(("sees another boot, vllm loading", eye.another_boot(&[Stopped, Loading])));
            looks.push(("sees another boot, vllm running", eye.another_boot(&[Stopped, Running])));
        }
    }
    if has(Topic::Doors) {
        let mut uncontrolled = eye.on(&[Running]);
        uncontrolled.server = Server::Uncontrolled;
        uncontrolled.backends.iter_mut().skip(1).for_each(|b| b.seen = Unknown);
        uncontrolled.backends[0].invocation = None;
        if has(Topic::Both) {
            let mut both = uncontrolled.clone();
            both.backends[1].seen = Running;
            looks.push(("sees both without SSH", both));
        }
        looks.push(("sees llama-cpp without SSH", uncontrolled));
    }
    if has(Topic::Runs) {
        looks.push(("sees llama-cpp crash", eye.on(&[CrashLoop])));
        looks.push(("sees llama-cpp in another run", eye.another_run(&[Running])));
        looks.push(("sees llama-cpp load in another run", eye.another_run(&[Loading])));
        looks.push(("sees llama-cpp restarted", eye.with(&[Loading], |l| l.backends[0].restarts += 1)));
        looks.push(("sees llama-cpp load without a name", eye.with(&[Loading], |l| l.backends[0].invocation = None)));
        if several {
            looks.push(("sees vllm crash", eye.on(&[Stopped, CrashLoop])));
            looks.push((
                "sees vllm in another run",
                eye.second(|vllm| vllm.invocation = Some(Invocation(eye.fresh(101)))),
            ));
        }
    }
    if has(Topic::Runs) || has(Topic::Oddities) {
        looks.push(("sees llama-cpp run without a name", eye.with(&[Running], |l| l.backends[0].invocation = None)));
    }
    if has(Topic::Both) || has(Topic::Crowds) {
        looks.push(("sees both run", eye.on(&[Running, Running])));
    }
    if has(Topic::Crowds) {
        looks.push(("sees vllm linger", eye.on(&[Stopped, Lingering])));
        looks.push(("sees both load", eye.on(&[Loading, Loading])));
        looks.push(("sees llama-cpp run, vllm linger", eye.on(&[Running, Lingering])));
    }
    if has(Topic::Third) {
        looks.push(("sees whisper load", eye.on(&[Stopped, Stopped, Loading])));
        looks.push(("sees whisper run", eye.on(&[Stopped, Stopped, Running])));
        looks.push(("sees all three run", eye.on(&[Running, Running, Running])));
        looks.push(("sees vllm load, whisper run", eye.on(&[Stopped, Loading, Running])));
    }
    if has(Topic::Use) {
        looks.push(("sees llama-cpp busy", eye.with(&[Running], |l| l.backends[0].use_ = Use::Busy)));
        looks.push((
            "sees llama-cpp was used",
            eye.with(&[Running], |l| l.backends[0].mark = l.backends[0].mark.map(|mark| mark + 1)),
        ));
        looks.push((
            "cannot read llama-cpp's use",
            eye.with(&[Running], |l| (l.backends[0].use_, l.backends[0].mark) = (Use::Unknown, None)),
        ));
        looks.push(("sees llama-cpp gone mute", eye.with(&[Loading], |l| l.backends[0].use_ = Use::Unknown)));
        if several {
            looks.push(("sees vllm busy", eye.second(|vllm| vllm.use_ = Use::Busy)));
            looks.push(("sees vllm was used", eye.second(|vllm| vllm.mark = vllm.mark.map(|mark| mark + 1))));
            looks.push(("cannot read vllm's use", eye.second(|vllm| (vllm.use_, vllm.mark) = (Use::Unknown, None))));
        }
    }
    if has(Topic::Slots) {
        looks.push((
            "sees llama-cpp fresh, slots saved",
            eye.with(&[Running], |l| {
                let b = &mut l.backends[0];
                (b.unused, b.restorable, b.holds_tokens) = (true, true, false);
            }),
        ));
        looks.push(("sees llama-cpp used, slots saved", eye.with(&[Running], |l| l.backends[0].restorable = true)));
        looks.push(("sees llama-cpp asleep", eye.with(&[Running], |l| l.backends[0].sleeping = true)));
    }
    if has(Topic::Copies) {
        looks.push(("sees llama-cpp hold many tokens", eye.with(&[Running], |l| l.backends[0].tokens = 1000)));
    }
    if has(Topic::Word) {
        looks.push((
            "sees llama-cpp run, its use not told yet",
            eye.with(&[Running], |l| {
                let b = &mut l.backends[0];
                (b.use_, b.use_at, b.mark, b.holds_tokens, b.restorable) =
                    (Use::Unknown, Instant::START, None, false, true);
            }),
        ));
        looks.push((
            "sees llama-cpp fresh, slots saved",
            eye.with(&[Running], |l| {
                let b = &mut l.backends[0];
                (b.unused, b.restorable, b.holds_tokens) = (true, true, false);
            }),
        ));
    }
    if has(Topic::Losses) {
        looks.push(("another session sees all stopped", eye.another_session(&[])));
        looks.push(("another session sees llama-cpp run", eye.another_session(&[Running])));
        looks.push(("another session sees llama-cpp linger", eye.another_session(&[Lingering])));
    }
    if has(Topic::Obstacles) {
        looks.push(("sees a foreign process", eye.with(&[], |l| l.foreign_gpu = Some(true))));
        looks.push(("cannot read the GPU", eye.with(&[], |l| l.foreign_gpu = None)));
        looks.push(("sees a GPU missing yet", eye.with(&[], |l| l.gpu_late = true)));
        looks.push(("sees a login", eye.with(&[], |l| l.people = Some(true))));
        looks.push(("cannot tell who is there", eye.with(&[], |l| (l.people, l.wake_armed) = (None, None))));
        looks.push(("sees the card unarmed", eye.with(&[], |l| l.wake_armed = Some(false))));
        looks.push(("sees all stopped, the card long ago", eye.with(&[], |l| l.wake_armed_at = Instant::START)));
        looks.push((
            "sees all stopped, the rest long ago",
            eye.with(&[], |l| {
                (l.gpu_at, l.people_at, l.wake_armed_at) = (Instant::START, Instant::START, Instant::START);
            }),
        ));
    }
    if has(Topic::Oddities) {
        looks.push(("sees no unit of llama-cpp", eye.on(&[Missing])));
        looks.push(("cannot read llama-cpp", eye.on(&[Unknown])));
        looks.push(("sees llama-cpp sick", eye.on(&[Sick])));
        looks.push(("sees a stranger at llama-cpp", eye.on(&[Stranger])));
        if several {
            looks.push(("sees no unit of vllm", eye.on(&[Stopped, Missing])));
            looks.push(("sees vllm sick", eye.on(&[Stopped, Sick])));
            looks.push(("cannot read vllm", eye.on(&[Stopped, Unknown])));
            looks.push(("sees llama-cpp run, cannot read vllm", eye.on(&[Running, Unknown])));
            looks.push(("sees vllm run, cannot read llama-cpp", eye.on(&[Unknown, Running])));
            looks.push(("sees a stranger at vllm", eye.on(&[Stopped, Stranger])));
        }
    }
    looks
}

/// The name of a backend id, for messages.
pub fn name(id: BackendId) -> &'static str {
    ["llama-cpp", "vllm", "whisper"][usize::from(id.0)]
}
