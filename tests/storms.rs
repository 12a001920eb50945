//! Storms: the machine on a simulated server while everything that can go wrong does. Every law holds on every step; the
//! server's own truth agrees with what was proven, where nobody has just moved a unit by hand; and when the storm is over,
//! everything works again.

mod sim;
mod spec;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};
use sim::{Deed, Phase, Power, Sim};
use spec::{
    explore::{Edge, Set},
    laws::LAWS,
    matrix::{Committed, kind_of},
    rare::RARE,
};
use wechsler::machine::{
    Answer, BackendId, Command, Effect, End, Event, Goal, Held, HoldId, HoldSpec, Ignored, Instant, Invocation, Kind,
    Machine, OpId, Operation, Options, Outcome, Pace, Policy, PowerChoice, RequestId, Seen, Selection, Server, Use,
    Verb, VerbId, View, WakeCheck, Warning,
    evidence::judge,
    reading::{Ask, GpuProcess, Reading},
};

const LLAMA: BackendId = BackendId(0);
const VLLM: BackendId = BackendId(1);

/// Something that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    AnswersLost,
    OrdersLost,
    OrdersRefused,
    AnswersLate,
    AnswersWrong,
    LooksHang,
    SshSilent,
    HttpSilent,
    StopHangs,
    KillHangs,
    LoadHangs,
    SaveFails,
    RestoreRejected,
    RestoreCrashes,
    Deaf,
    GpuHangs,
    HttpOdd,
    WrongKey,
    LoginRefused,
    Preboot,
    UnitsUnread,
    UnitsMissing,
    Stranger,
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    Wait,
    Fault(Fault, u64),
    Command(Command),
    Crash(BackendId),
    CrashOnLoad(BackendId),
    PowerCut,
    /// No current for a moment, and the server boots again; its initramfs waits for a passphrase for so many seconds.
    Reboot(u64),
    Press,
    /// Somebody else starts a unit, or stops it.
    ByHand(BackendId, bool),
    /// The last answer comes a second time.
    Echo,
    Converse(BackendId),
    Busy(BackendId, u32),
    Login(bool),
    Foreign(bool),
    /// Somebody arms the network card for the next wake, or it is armed no more.
    Arm(bool),
}

fn backend() -> impl Strategy<Value = BackendId> {
    prop_oneof![Just(LLAMA), Just(VLLM)]
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![Just(Held::Awake), Just(Held::Gpu), Just(Held::Off), backend().prop_map(Held::Backend)]
}

fn selection() -> impl Strategy<Value = Selection> {
    prop_oneof![2 => Just(Selection::All), 1 => (0..2_u32).prop_map(Selection::Named)]
}

fn options() -> impl Strategy<Value = Options> {
    any::<(bool, bool)>().prop_map(|(replace, no_drain)| Options { replace, no_drain })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => (backend(), options()).prop_map(|(b, o)| Command::Start(Some(b), o)),
        1 => options().prop_map(|o| Command::Start(None, o)),
        4 => (backend(), options()).prop_map(|(b, o)| Command::Switch(b, o)),
        3 => options().prop_map(Command::Stop),
        2 => options().prop_map(|o| Command::Restart(None, o)),
        1 => options().prop_map(Command::Wake),
        4 => options().prop_map(|o| Command::Shutdown(PowerChoice::PowerOff, o)),
        1 => options().prop_map(|o| Command::Shutdown(PowerChoice::KeepOn, o)),
        1 => (backend(), options()).prop_map(|(b, o)| Command::Resolve(b, o)),
        1 => Just(Command::Cancel),
        1 => (selection(), options()).prop_map(|(slots, options)| Command::SaveSlots(slots, options)),
        1 => (selection(), options()).prop_map(|(slots, options)| Command::RestoreSlots(slots, options)),
        2 => held().prop_map(|what| Command::Hold(HoldSpec {
            what,
            lasts: Some(Duration::from_mins(2)),
            reason: String::new(),
            by: String::new(),
        })),
        1 => (1..4_u64).prop_map(|id| Command::Release(HoldId(id))),
    ]
}

impl Fault {
    const ALL: &[Self] = &[
        Self::AnswersLost,
        Self::OrdersLost,
        Self::OrdersRefused,
        Self::AnswersLate,
        Self::AnswersWrong,
        Self::LooksHang,
        Self::SshSilent,
        Self::HttpSilent,
        Self::StopHangs,
        Self::KillHangs,
        Self::LoadHangs,
        Self::SaveFails,
        Self::RestoreRejected,
        Self::RestoreCrashes,
        Self::Deaf,
        Self::GpuHangs,
        Self::HttpOdd,
        Self::WrongKey,
        Self::LoginRefused,
        Self::Preboot,
        Self::UnitsUnread,
        Self::UnitsMissing,
        Self::Stranger,
    ];
}

/// Of the faults only these: a few that come again and again meet more than all of them do.
fn act(faults: Vec<Fault>) -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Wait),
        6 => (prop::sample::select(faults), 1..90_u64).prop_map(|(f, s)| Act::Fault(f, s)),
        8 => command().prop_map(Act::Command),
        1 => backend().prop_map(Act::Crash),
        1 => backend().prop_map(Act::CrashOnLoad),
        1 => Just(Act::PowerCut),
        2 => (0..40_u64).prop_map(Act::Reboot),
        2 => Just(Act::Press),
        2 => (backend(), any::<bool>()).prop_map(|(b, start)| Act::ByHand(b, start)),
        1 => Just(Act::Echo),
        2 => backend().prop_map(Act::Converse),
        3 => (backend(), 0..3_u32).prop_map(|(b, n)| Act::Busy(b, n)),
        1 => any::<bool>().prop_map(Act::Login),
        1 => any::<bool>().prop_map(Act::Foreign),
        1 => any::<bool>().prop_map(Act::Arm),
    ]
}

/// What is to come.
enum Due {
    Look,
    Tick,
    Answer(Coming),
    Calm(Fault),
}

/// An answer on its way.
struct Coming {
    at: Instant,
    verb: VerbId,
    what: Verb,
    outcome: Outcome,
    /// When nobody waits for it any more.
    given_up: Instant,
    /// It is not the server's: nothing came of it for too long.
    is_lost: bool,
    /// The run that was asked, where one was.
    run: Option<Invocation>,
}

/// After a look that says the same there are only few more: one where else there were so many, until something changes.
const SELDOM: u32 = 60;

/// A driver without tasks: the same decisions, one after the other.
struct Storm {
    policy: Policy,
    machine: Machine,
    /// What it shows of itself.
    view: View,
    /// When its next tick is due.
    deadline: Option<Instant>,
    sim: Sim,
    reading: Reading,
    now: Instant,
    looked: Instant,
    /// Looks in a row that said nothing new, or found nobody, with nothing else between.
    same: u32,
    /// The last look found nobody.
    found_nobody: bool,
    answers: Vec<Coming>,
    calms: Vec<(Instant, Fault)>,
    requests: u64,
    open: BTreeMap<OpId, Instant>,
    answered: Option<Answer>,
    last_answer: Option<(VerbId, Outcome)>,
    /// Somebody else may move units or power.
    has_strangers: bool,
    /// When somebody has moved a unit by hand, and what is on its way down because of that.
    by_hand: Option<Instant>,
    stopped_by_hand: BTreeMap<BackendId, Instant>,
    deeds: usize,
    /// Who had a process before this step.
    held: Vec<BackendId>,
    /// Backends that hold a conversation which nobody has tried to save since.
    unsaved: BTreeSet<BackendId>,
    /// Since when somebody waits for an answer of a backend, is logged in, or works on the GPU.
    busy: BTreeMap<BackendId, Instant>,
    /// Of those a look has told.
    busy_told: BTreeSet<BackendId>,
    login: Option<Instant>,
    foreign: Option<Instant>,
    /// A look has told of that, in this boot.
    foreign_told: bool,
    /// Since when the network card has not been armed.
    unarmed: Option<Instant>,
    /// Since when nothing of it answers, and how many looks have found so.
    silent: Option<(Instant, u32)>,
    /// Operations that wait for no request.
    hasty: BTreeSet<OpId>,
    /// The operation whose save has failed, or was lost.
    unsaved_by: Option<OpId>,
    /// The restart that is to be rid of this run.
    rid_of: Option<(OpId, Invocation)>,
    steps: usize,
    /// What happened where.
    met: Met,
    /// What of the truth was asked, and how often: what never is says nothing.
    asked: RefCell<BTreeMap<&'static str, usize>>,
}

impl Storm {
    fn new(sim: Sim, policy: Policy) -> Self {
        let machine = Machine::new(policy.clone(), vec![]);
        Self {
            view: machine.view(),
            deadline: machine.deadline(),
            machine,
            policy,
            sim,
            reading: Reading::default(),
            now: Instant::START,
            looked: Instant::START,
            same: 0,
            found_nobody: false,
            answers: vec![],
            calms: vec![],
            requests: 0,
            open: BTreeMap::new(),
            answered: None,
            last_answer: None,
            has_strangers: false,
            by_hand: None,
            stopped_by_hand: BTreeMap::new(),
            deeds: 0,
            held: vec![],
            unsaved: BTreeSet::new(),
            busy: BTreeMap::new(),
            busy_told: BTreeSet::new(),
            login: None,
            foreign: None,
            foreign_told: false,
            unarmed: None,
            silent: None,
            hasty: BTreeSet::new(),
            unsaved_by: None,
            rid_of: None,
            steps: 0,
            met: Met::default(),
            asked: RefCell::default(),
        }
    }

    fn set(&mut self, fault: Fault, on: bool) {
        let f = &mut self.sim.faults;
        *match fault {
            Fault::AnswersLost => &mut f.answers_lost,
            Fault::OrdersLost => &mut f.orders_lost,
            Fault::OrdersRefused => &mut f.orders_refused,
            Fault::AnswersLate => &mut f.answers_late,
            Fault::AnswersWrong => &mut f.answers_wrong,
            Fault::LooksHang => &mut f.looks_hang,
            Fault::SshSilent => &mut f.ssh_silent,
            Fault::HttpSilent => &mut f.http_silent,
            Fault::StopHangs => &mut f.stop_hangs,
            Fault::KillHangs => &mut f.kill_hangs,
            Fault::LoadHangs => &mut f.load_hangs,
            Fault::SaveFails => &mut f.save_fails,
            Fault::RestoreRejected => &mut f.restore_rejected,
            Fault::RestoreCrashes => &mut f.restore_crashes,
            Fault::Deaf => &mut f.deaf,
            Fault::GpuHangs => &mut f.gpu_hangs,
            Fault::HttpOdd => &mut f.http_odd,
            Fault::WrongKey => &mut f.wrong_key,
            Fault::LoginRefused => &mut f.login_refused,
            Fault::Preboot => &mut f.preboot,
            Fault::UnitsUnread => &mut f.units_unread,
            Fault::UnitsMissing => &mut f.units_missing,
            Fault::Stranger => &mut f.stranger,
        } = on;
    }

    /// Something happens.
    fn act(&mut self, act: &Act) -> Result<(), String> {
        let is_a_strangers = matches!(act, Act::PowerCut | Act::Reboot(_) | Act::Press | Act::ByHand(..));
        if is_a_strangers && !self.has_strangers {
            return Ok(());
        }
        self.same = 0;
        if matches!(act, Act::ByHand(..)) {
            self.by_hand = Some(self.now);
        }
        match act {
            Act::Wait => {}
            Act::Fault(fault, seconds) => {
                self.set(*fault, true);
                let until = self.now + Duration::from_secs(*seconds);
                self.calms.retain(|(_, of)| of != fault);
                self.calms.push((until, *fault));
            }
            Act::Command(command) => self.command(command.clone())?,
            Act::Crash(id) => self.sim.crash(*id),
            Act::CrashOnLoad(id) => self.sim.backend_mut(*id).crashes_to_come = 1,
            Act::PowerCut => self.sim.cut(),
            Act::Reboot(seconds) => {
                self.sim.cut();
                self.sim.press();
                if *seconds > 0 {
                    self.act(&Act::Fault(Fault::Preboot, *seconds))?;
                }
            }
            Act::Press => self.sim.press(),
            Act::ByHand(id, start) => {
                if *start {
                    self.sim.start_by_hand(*id);
                } else {
                    self.sim.stop_by_hand(*id);
                    self.stopped_by_hand.entry(*id).or_insert(self.now);
                    self.unsaved.remove(id);
                }
            }
            Act::Echo => {
                if let Some((verb, outcome)) = self.last_answer.clone() {
                    self.step("an answer again", Event::Finished { verb, outcome })?;
                }
            }
            Act::Converse(id) => {
                self.sim.converse(*id, 300);
                // A save looks again when it is done, and takes in what came meanwhile.
                let saving = self.machine.order().is_some_and(|(_, what)| what == Verb::SaveSlots(*id));
                // Nobody knows of one that was never seen healthy.
                let known = self.view.backend(*id).ready.is_some();
                if known && !saving && self.sim.backend(*id).slots.iter().flatten().any(|tokens| *tokens > 0) {
                    self.unsaved.insert(*id);
                }
            }
            Act::Busy(id, requests) => {
                self.sim.busy(*id, *requests);
                let backend = self.sim.backend(*id);
                if backend.in_flight == 0 {
                    self.busy.remove(id);
                } else if backend.phase == Phase::Ready {
                    self.busy.entry(*id).or_insert(self.now);
                }
            }
            Act::Login(here) => {
                self.login = here.then_some(self.login.unwrap_or(self.now));
                self.sim.logins.clear();
                self.sim.logins.extend(here.then(|| "ada on pts/0".to_owned()));
            }
            Act::Foreign(here) => {
                self.foreign = here.then_some(self.foreign.unwrap_or(self.now));
                self.sim.foreign = here.then(|| GpuProcess {
                    pid: 77,
                    name: "blender".into(),
                    user: Some("ada".into()),
                    used_mib: Some(4000),
                    backend: None,
                    ignored: false,
                });
            }
            Act::Arm(armed) => {
                self.unarmed = (!armed).then_some(self.unarmed.unwrap_or(self.now));
                self.sim.wake_armed = *armed;
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        (self.requests, self.same) = (self.requests + 1, 0);
        let request = RequestId(self.requests);
        self.step("a command", Event::Commanded { request, command })
    }

    /// Lets `span` pass.
    fn pass(&mut self, span: Duration) -> Result<(), String> {
        let until = self.now + span;
        while let Some((at, due)) = self.next(until) {
            self.now = self.now.max(at);
            self.sim.advance(self.now);
            match due {
                Due::Look => self.look()?,
                Due::Tick => {
                    let operation = self.view.operation.as_ref().map(|op| op.id);
                    self.step("a tick", Event::Tick)?;
                    // It waits for a look, or something has begun or ended.
                    if self.machine.ignored().is_some() || operation != self.view.operation.as_ref().map(|op| op.id) {
                        self.same = 0;
                    }
                }
                Due::Answer(answer) => self.hear(answer)?,
                Due::Calm(fault) => {
                    self.same = 0;
                    self.set(fault, false);
                }
            }
        }
        self.now = until;
        self.sim.advance(until);
        Ok(())
    }

    fn hear(&mut self, answer: Coming) -> Result<(), String> {
        let Coming { at, verb, what, outcome, given_up, is_lost, run } = answer;
        let outcome = if is_lost { outcome } else { self.sim.as_it_came_out(what, run, outcome) };
        if !is_lost && what != Verb::Wake && !self.sim.is_heard() {
            // One that was waited for no longer is lost already.
            if at <= given_up {
                self.lose(verb, what, given_up);
            }
            return Ok(());
        }
        self.last_answer = Some((verb, outcome.clone()));
        self.step("an answer", Event::Finished { verb, outcome })?;
        // A packet that was sent has changed nothing yet.
        if what != Verb::Wake {
            self.same = 0;
            self.look()?;
        }
        Ok(())
    }

    /// What comes next, if it comes by `until`.
    fn next(&mut self, until: Instant) -> Option<(Instant, Due)> {
        let pace = match self.view.pace {
            Pace::Rest => Duration::from_secs(10),
            // Slower than the real one, which changes nothing but the number of steps.
            Pace::Busy => Duration::from_millis(500),
            Pace::Waiting => Duration::from_secs(1),
        };
        let mut look = self.looked + pace;
        if self.same >= if self.found_nobody { self.policy.misses } else { 1 } {
            // More of the same would change nothing but the number of steps.
            let seldom = pace * SELDOM;
            look = look.max(self.sim.next().map_or(look + seldom, |at| (at + pace).min(look + seldom)));
        }
        let tick = self.deadline.unwrap_or(look + pace);
        let answer = self.answers.iter().map(|a| a.at).min();
        let calm = self.calms.iter().map(|c| c.0).min();
        let first = [Some(look), Some(tick), answer, calm].into_iter().flatten().min();
        let first = first.filter(|at| *at <= until)?;
        Some(if let Some(i) = self.answers.iter().position(|a| a.at == first) {
            let answer = self.answers.remove(i);
            if answer.is_lost {
                self.sim.break_session();
            }
            (answer.at, Due::Answer(answer))
        } else if let Some(i) = self.calms.iter().position(|c| c.0 == first) {
            let (at, fault) = self.calms.remove(i);
            (at, Due::Calm(fault))
        } else if tick == first {
            (tick, Due::Tick)
        } else {
            (look, Due::Look)
        })
    }

    fn look(&mut self) -> Result<(), String> {
        self.looked = self.now;
        if self.sim.faults.looks_hang {
            return Ok(());
        }
        let reading = self.sim.look(self.ask(), self.now);
        self.reading.absorb(reading);
        let look = judge(&self.reading, &self.policy, self.now);
        let is_silent = matches!(look.server, Server::Silent | Server::Booting(_));
        let (since, looks) = self.silent.unwrap_or((self.now, 0));
        self.silent = is_silent.then_some((since, looks + 1));
        let is_another_boot = look.boot().is_some_and(|boot| self.view.boot != Some(boot));
        self.foreign_told = look.foreign_gpu.unwrap_or(self.foreign_told && !is_another_boot);
        for id in self.policy.ids() {
            match look.backend(id).use_ {
                Use::Busy => _ = self.busy_told.insert(id),
                Use::Idle => _ = self.busy_told.remove(&id),
                Use::Unknown => {}
            }
        }
        self.busy_told.retain(|id| self.busy.contains_key(id));
        self.step("a look", Event::Looked(look))?;
        let found_nobody = self.machine.ignored() == Some(Ignored::SilenceProvesNothing);
        let is_same = found_nobody || self.machine.ignored() == Some(Ignored::NothingNew);
        let before = if found_nobody == self.found_nobody { self.same } else { 0 };
        (self.same, self.found_nobody) = (if is_same { before + 1 } else { 0 }, found_nobody);
        Ok(())
    }

    /// What is asked: of some things only when their last word is old, when somebody is about to act on it, or when there
    /// was something new.
    fn ask(&self) -> Ask {
        let shows = |seen| self.view.look.backends.iter().any(|backend| backend.seen == seen);
        let is_due = |asked: Option<Instant>, rest| {
            asked.is_none_or(|at| self.now.since(at) >= rest || self.view.last_look.is_some_and(|last| at < last))
        };
        let (at_rest, reading) = (Duration::from_secs(10), &self.reading);
        Ask {
            units: true,
            http: true,
            activity: shows(Seen::Running),
            gpu: shows(Seen::Lingering) || is_due(reading.gpu.as_ref().map(|gpu| gpu.at), at_rest),
            people: is_due(reading.people.as_ref().map(|people| people.at), at_rest),
            wake_armed: is_due(reading.wake_armed.as_ref().map(|armed| armed.at), at_rest),
            saved: self.same == 0,
        }
    }

    /// One step, all laws.
    fn step(&mut self, act: &'static str, event: Event) -> Result<(), String> {
        // What has gone by itself, or by somebody else's hand, nobody can save any more.
        let sim = &self.sim;
        self.unsaved.retain(|id| sim.backend(*id).slots.iter().flatten().any(|tokens| *tokens > 0));
        self.busy.retain(|id, _| sim.backend(*id).in_flight > 0);
        self.stopped_by_hand.retain(|id, _| matches!(sim.backend(*id).phase, Phase::Stopping { .. }));
        self.held = sim.holders();
        let before = self.machine.clone();
        self.steps += 1;
        let effects = self.machine.step(self.now, &event);
        let was = std::mem::replace(&mut self.view, self.machine.view());
        self.met.extend(kind_of(&event).map(|kind| (was.place.kind, kind)));
        let due = std::mem::replace(&mut self.deadline, self.machine.deadline());
        let edge = Edge::new((&before, &was), (act, self.now, &event), (&effects, &self.machine))
            .showing(&self.view, [due, self.deadline]);
        for law in LAWS {
            (law.holds)(&edge).map_err(|why| {
                format!(
                    "law broken: {}: {why}\n at {} in {:?} by {event:?}\n effects {effects:?}\n to {:?}",
                    law.name,
                    self.now,
                    before.place(),
                    self.machine.place()
                )
            })?;
        }
        self.is_patient(&was)?;
        if let (Event::Finished { verb, outcome: Outcome::Failed(_) | Outcome::Unknown(_) }, Some(op)) =
            (&event, was.order_op)
            && was.order.is_some_and(|(name, what)| name == *verb && matches!(what, Verb::SaveSlots(_)))
        {
            self.unsaved_by = Some(op);
        }
        let mut begun = was.operation.as_ref().map(|op| (op.id, op.goal));
        for effect in effects {
            match effect {
                Effect::Do { verb, what, within, .. } => self.order(verb, what, within),
                Effect::Began(op) => {
                    self.open.insert(op.id, op.until);
                    begun = Some((op.id, op.goal));
                    if let Goal::Restart(b) = op.goal {
                        self.rid_of = self.sim.backend(b).invocation.map(|run| (op.id, run));
                    }
                }
                Effect::Ended { op, end } => {
                    self.open.remove(&op);
                    // Where it is no look that tells, the last one is old.
                    if let (Event::Looked(_), End::Done { .. }, Some((id, goal))) = (&event, &end, begun)
                        && id == op
                    {
                        self.is_done(op, goal, &was)?;
                    }
                    if let (true, End::Done { warnings } | End::Failed { warnings, .. }) =
                        (self.unsaved_by == Some(op), end)
                        && warnings.is_empty()
                    {
                        return Err(format!("operation {op} does not tell why nothing was saved"));
                    }
                }
                Effect::Answer { answer, .. } => {
                    if let (Answer::Accepted { op, .. }, Event::Commanded { command, .. }) = (&answer, &event)
                        && command.options().no_drain
                    {
                        self.hasty.insert(*op);
                    }
                    self.answered = Some(answer);
                }
                Effect::HoldsChanged => {}
            }
        }
        if let Some((op, until)) = self.open.iter().find(|(_, until)| **until < self.now) {
            return Err(format!("operation {op} should have ended at {until}"));
        }
        self.truth()
    }

    /// A server that was seen up is off when nothing of it has answered often and long enough.
    fn is_patient(&self, was: &View) -> Result<(), String> {
        let is_off = |view: &View| view.place.kind == Kind::Offline;
        if was.boot.is_none() || is_off(was) || !is_off(&self.view) {
            return Ok(());
        }
        self.asks("whether silence had lasted");
        match self.silent {
            Some((since, looks)) if looks >= self.policy.misses && self.now.since(since) >= self.policy.silence => {
                Ok(())
            }
            silent => Err(format!("said to be off at {}, silent for {silent:?}", self.now)),
        }
    }

    fn order(&mut self, verb: VerbId, what: Verb, within: Duration) {
        // A copy under a name of its own does not come back by itself.
        let is_copy =
            self.view.operation.as_ref().is_some_and(|op| matches!(op.goal, Goal::Save(_, Selection::Named(_))));
        if let (Verb::SaveSlots(id), false) = (what, is_copy) {
            self.unsaved.remove(&id);
        }
        let run = self.sim.run_asked(what);
        let answered = self.sim.order(what, self.now);
        let given_up = self.now + within.saturating_sub(Duration::from_millis(100));
        if answered.at.is_none_or(|at| at > given_up) {
            self.lose(verb, what, given_up);
        }
        // One that was given up may still come.
        let outcome = answered.outcome;
        self.answers.extend(answered.at.map(|at| Coming { at, verb, what, outcome, given_up, is_lost: false, run }));
    }

    fn lose(&mut self, verb: VerbId, what: Verb, given_up: Instant) {
        let outcome = Outcome::Unknown(Warning::new("no_answer", "lost"));
        self.answers.push(Coming { at: given_up, verb, what, outcome, given_up, is_lost: true, run: None });
    }

    /// In calm a switch works.
    fn switch_to(&mut self, wanted: BackendId) -> Result<(), String> {
        self.answered = None;
        self.command(Command::Switch(wanted, Options { replace: true, no_drain: false }))?;
        let answer = self.answered.clone();
        self.pass(Duration::from_mins(15))?;
        let place = self.machine.place();
        if place.kind != Kind::Running || place.backend != Some(wanted) {
            return Err(format!(
                "after the storm a switch to {wanted} ({answer:?}) led to {place:?}; power {:?}, backends {:#?}\n{:#?}",
                self.sim.power,
                self.sim.backends,
                self.machine.view()
            ));
        }
        if self.sim.holders() != [wanted] || self.sim.power != Power::On {
            return Err(format!("{wanted} is said to run, but {:?} do", self.sim.holders()));
        }
        Ok(())
    }

    /// After the first so many deeds, in forty quiet minutes with no command, not much more was tried.
    fn is_calm(&self, since: usize) -> Result<(), String> {
        let wakes =
            usize::try_from(self.policy.boot_timeout.as_secs() / self.policy.wake_resend.as_secs()).unwrap_or(0) + 1;
        let deeds = &self.sim.deeds[since..];
        let count = |of: fn(&Deed) -> bool| deeds.iter().filter(|(_, deed)| of(deed)).count();
        let done = [
            ("packets", count(|deed| *deed == Deed::Woken), wakes),
            ("starts", count(|deed| matches!(deed, Deed::Started(_))), 2),
            ("stops", count(|deed| matches!(deed, Deed::Stopped(_) | Deed::Killed(_))), 4),
            ("saves and restores", count(|deed| matches!(deed, Deed::Saved(_) | Deed::Restored(_))), 4),
            ("power-offs", count(|deed| *deed == Deed::PoweredOff), 2),
        ];
        match done.iter().find(|(_, count, most)| count > most) {
            Some((what, count, _)) => Err(format!("{count} {what} in forty quiet minutes: {deeds:?}")),
            None => Ok(()),
        }
    }

    /// Nobody needs the server any more. The next daemon is told to leave it alone.
    fn falls_asleep(&mut self) -> Result<(), String> {
        // Longer than the longest pause after what failed.
        self.pass(Duration::from_hours(3))?;
        // What nothing can wake stays as it is, with nothing running.
        let stays_on = self.policy.can_wake && self.sim.power != Power::Off;
        if stays_on || !self.sim.holders().is_empty() {
            return Err(format!("three hours later nobody has slept: {:#?}", self.machine.view()));
        }
        self.policy = Policy { can_wake: self.policy.can_wake, ..sim::policy() };
        self.machine = Machine::new(self.policy.clone(), vec![]);
        (self.view, self.deadline) = (self.machine.view(), self.machine.deadline());
        self.answers.clear();
        self.open.clear();
        self.hasty.clear();
        self.unsaved_by = None;
        self.pass(Duration::from_mins(5))
    }

    /// Whether the deed in this place, a kill, came once, and after a stop that had all the time it was given.
    fn is_killed_in_time(&self, id: BackendId, place: usize) -> Result<(), String> {
        let (at, _) = self.sim.deeds[place];
        let earlier = self.sim.deeds[..place].iter().rev();
        let of_it = earlier.filter(|(_, deed)| [Deed::Started(id), Deed::Stopped(id), Deed::Killed(id)].contains(deed));
        // One whose answer was lost is told to stop again.
        let stopped = of_it.clone().take_while(|(_, deed)| *deed == Deed::Stopped(id)).last().map(|(then, _)| *then);
        // Somebody else may have told it to, but nobody has killed it since.
        let killed = of_it.clone().find(|(_, deed)| *deed == Deed::Killed(id)).map(|(then, _)| *then);
        let by_hand = self.stopped_by_hand.get(&id).copied().filter(|then| killed.is_none_or(|killed| *then > killed));
        let stopped = stopped.or(by_hand);
        let patience = self.policy.backend(id).stop_timeout;
        match stopped {
            Some(then) if at.since(then) >= patience => Ok(()),
            _ => Err(format!("{id} was killed at {at}, stopped at {stopped:?}")),
        }
    }

    /// What the server itself knows.
    fn truth(&mut self) -> Result<(), String> {
        for (place, (at, deed)) in self.sim.deeds.iter().enumerate().skip(self.deeds) {
            let held = self.sim.holders();
            let disturbed = self.was_moved(A_LOOK);
            self.asks(match deed {
                Deed::Started(_) if !disturbed => Some("whether another held the GPU at a start"),
                Deed::Stopped(id) if self.sim.backend(*id).slots.iter().flatten().any(|tokens| *tokens > 0) => {
                    Some("whether anybody tried to save what was stopped")
                }
                Deed::Killed(id) if self.is_somebody(*id) => Some("whether a kill came in time"),
                Deed::PoweredOff if !disturbed => Some("whether anything ran when the power went off"),
                _ => None,
            });
            match deed {
                Deed::Started(id) if !disturbed && held.iter().any(|other| other != id) => {
                    return Err(format!("{id} was started at {at} although {held:?} held the GPU"));
                }
                // A run that a restore has spoilt is stopped as it is: what was said in it is worth nothing.
                Deed::Stopped(id) if self.unsaved.contains(id) && self.view.backend(*id).spoilt.is_none() => {
                    return Err(format!("{id} was stopped at {at} with a conversation that nobody tried to save"));
                }
                Deed::Stopped(id) if !self.sim.backend(*id).saving.is_empty() => {
                    return Err(format!("{id} was stopped at {at} while what it held was being written"));
                }
                Deed::Killed(id) if self.is_somebody(*id) => self.is_killed_in_time(*id, place)?,
                Deed::PoweredOff if !disturbed && !held.is_empty() => {
                    return Err(format!("the power went off at {at} under {held:?}"));
                }
                Deed::PoweredOff => self.can_be_woken()?,
                _ => {}
            }
            match &self.view.operation {
                Some(op) if op.cause.is_policy() => self.spares(*deed)?,
                Some(op) if !self.hasty.contains(&op.id) => self.drains(*deed, op)?,
                _ => {}
            }
        }
        // A stop that was lost is repeated.
        let done = &self.sim.deeds[self.deeds..];
        self.busy.retain(|id, _| !done.iter().any(|(_, deed)| *deed == Deed::Stopped(*id)));
        self.deeds = self.sim.deeds.len();
        Ok(())
    }

    /// It was not switched off though somebody could see that no packet will switch it on.
    fn can_be_woken(&self) -> Result<(), String> {
        let by_policy = self.view.operation.as_ref().is_some_and(|op| op.cause.is_policy());
        if by_policy && !self.policy.can_wake {
            return Err(format!("what nothing can wake was powered off by itself at {}", self.now));
        }
        if self.policy.wake_check == WakeCheck::Off {
            return Ok(());
        }
        let Some(since) = self.unarmed else { return Ok(()) };
        self.asks("whether it could be seen that what was powered off cannot be woken");
        if self.now.since(since) <= A_LOOK {
            return Ok(());
        }
        Err(format!("the power went off at {}, the card unarmed since {since}", self.now))
    }

    fn asks(&self, what: impl Into<Option<&'static str>>) {
        if let Some(what) = what.into() {
            *self.asked.borrow_mut().entry(what).or_default() += 1;
        }
    }

    /// A kill of it hits a process, of a run that nobody has begun or stopped by hand.
    fn is_somebody(&self, id: BackendId) -> bool {
        self.held.contains(&id) && !self.was_moved(A_STOP)
    }

    /// Somebody has moved a unit by hand in the last so long: nobody may know of it yet.
    fn was_moved(&self, lately: Duration) -> bool {
        self.by_hand.is_some_and(|at| self.now.since(at) <= lately)
    }

    /// What is said to be done is so.
    fn is_done(&self, op: OpId, goal: Goal, was: &View) -> Result<(), String> {
        let (held, came_back) = (self.sim.holders(), self.view.boot != was.boot);
        // Of one that cannot be read for long nobody can say anything.
        let is_unread = |id: &BackendId| self.view.look.backend(*id).seen == Seen::Unknown;
        let runs =
            |b: BackendId| self.sim.backend(b).phase == Phase::Ready && held.iter().all(|id| *id == b || is_unread(id));
        let off = self.view.is_off;
        let goes = was.is_off && matches!(self.sim.power, Power::GoingDown { .. });
        let (question, is_so) = match goal {
            Goal::Run(b) => ("whether what was to run does", runs(b)),
            Goal::Restart(b) => {
                let is_same =
                    self.rid_of.is_some_and(|(by, run)| by == op && self.sim.backend(b).invocation == Some(run));
                ("whether what was restarted runs, and is another run", runs(b) && !is_same)
            }
            Goal::Stop => ("whether what was stopped is", held.is_empty() || off),
            Goal::Off => ("whether what was powered off is", self.sim.power != Power::On || off || came_back),
            // What was silent for as long as if it were off may answer once more on its way down.
            Goal::Awake => ("whether what was woken is on", self.sim.power == Power::On || goes),
            Goal::Save(..) | Goal::Restore(..) => return Ok(()),
        };
        self.asks(question);
        if is_so || self.was_moved(A_LOOK) {
            return Ok(());
        }
        Err(format!("{goal:?} is said to be done at {}; power {:?}, {held:?} hold the GPU", self.now, self.sim.power))
    }

    /// Who waits for an answer has it, or had the time for it, when somebody wants the backend stopped.
    fn drains(&self, deed: Deed, op: &Operation) -> Result<(), String> {
        let Deed::Stopped(id) = deed else { return Ok(()) };
        let is_told = |since: &&Instant| self.busy_told.contains(&id) && self.now.since(**since) > A_LOOK;
        let Some(since) = self.busy.get(&id).filter(is_told) else { return Ok(()) };
        self.asks("whether who was known to wait for an answer was waited for");
        let (waited, spoilt) = (self.now.since(op.started), self.view.backend(id).spoilt.is_some());
        if waited >= self.policy.backend(id).drain_timeout || spoilt {
            return Ok(());
        }
        Err(format!("{id}, busy since {since}, was stopped {waited:?} after {:?} began", op.goal))
    }

    /// What is done by itself is done to nobody who has been there for longer than it takes to look.
    fn spares(&self, deed: Deed) -> Result<(), String> {
        let of = |since: Option<Instant>, who: &str| match since {
            Some(since) if self.now.since(since) > A_LOOK => {
                Err(format!("{deed:?} by itself under {who}, there since {since}"))
            }
            _ => Ok(()),
        };
        self.asks("whether somebody used what was stopped or powered off by itself");
        match deed {
            Deed::Stopped(id) => of(self.busy.get(&id).copied(), "whoever waits for its answer"),
            Deed::PoweredOff => {
                of(self.login, "a login")?;
                // A tool that hangs is never a block, but who was seen with it before is there.
                let is_seen = !self.sim.faults.gpu_hangs || self.foreign_told;
                of(self.foreign.filter(|_| is_seen), "a job on the GPU")
            }
            _ => Ok(()),
        }
    }
}

/// Longer than a stop and a kill may take.
const A_STOP: Duration = Duration::from_mins(5);

/// Longer than it takes until a look has told of somebody.
const A_LOOK: Duration = Duration::from_secs(15);

/// What happened, and in which leaf.
type Met = Set<(Kind, &'static str)>;

/// How a storm begins.
#[derive(Clone, Copy, Debug)]
enum Start {
    Off,
    Booting,
    On,
    /// ... with these running.
    Running([bool; 2]),
    /// ... and no SSH.
    Uncontrolled,
}

/// Where it blows, with times in seconds.
#[derive(Clone, Copy, Debug)]
struct Scene {
    start: Start,
    boot: u64,
    load: u64,
    stop: u64,
    power_off: u64,
    /// How late a late answer is.
    late: u64,
    /// Until the first look comes.
    blind: u64,
    /// Others switch the server on and off and move its units.
    strangers: bool,
    /// What is idle is stopped and powered off, and what is quiet is saved.
    policies: bool,
    /// What comes up with the server.
    enabled: [bool; 2],
    /// How its card is checked before the power goes off; `None`: nothing can wake it.
    wake: Option<WakeCheck>,
}

/// What is not used for a moment is saved, stopped and powered off.
fn eager() -> Policy {
    let mut policy = Policy {
        idle_stop_after: Some(Duration::from_secs(40)),
        idle_power_off_after: Some(Duration::from_secs(30)),
        ..sim::policy()
    };
    policy.backends[0].checkpoint_quiet = Some(Duration::from_secs(20));
    policy
}

/// Tokens of a conversation like no other.
const SAID: u64 = 4242;

/// The storm, then calm; then everything works.
fn weather(acts: &[(u64, Act)], scene: Scene) -> Result<Storm, String> {
    let mut policy = if scene.policies { eager() } else { sim::policy() };
    (policy.can_wake, policy.wake_check) = (scene.wake.is_some(), scene.wake.unwrap_or(WakeCheck::Off));
    let mut sim = if matches!(scene.start, Start::Off | Start::Booting) { Sim::new(&policy) } else { Sim::on(&policy) };
    sim.times.boot = Duration::from_secs(scene.boot);
    sim.times.load[usize::from(LLAMA.0)] = Duration::from_secs(scene.load);
    sim.times.stop = Duration::from_secs(scene.stop);
    sim.times.power_off = Duration::from_secs(scene.power_off);
    sim.times.late = Duration::from_secs(scene.late);
    let running = match scene.start {
        Start::Off | Start::On => [false; 2],
        Start::Booting => {
            sim.press();
            [false; 2]
        }
        Start::Running(running) => running,
        Start::Uncontrolled => [true, false],
    };
    for id in [LLAMA, VLLM].into_iter().filter(|id| running[usize::from(id.0)]) {
        sim.start_by_hand(id);
        sim.backend_mut(id).phase = Phase::Ready;
    }
    // Something to restore, and all of it long enough to be met by something else.
    sim.backend_mut(LLAMA).saved = vec![sim::saved_slot(300)];
    (sim.times.save, sim.times.restore) = (Duration::from_secs(5), Duration::from_secs(5));
    for (backend, enabled) in sim.backends.iter_mut().zip(scene.enabled) {
        backend.enabled = enabled;
    }
    let mut storm = Storm::new(sim, policy);
    storm.has_strangers = scene.strangers;
    if scene.blind > 0 {
        storm.act(&Act::Fault(Fault::LooksHang, scene.blind))?;
    }
    if matches!(scene.start, Start::Uncontrolled) {
        storm.act(&Act::Fault(Fault::SshSilent, 60))?;
    }
    for (seconds, act) in acts {
        storm.act(act)?;
        storm.pass(Duration::from_secs(*seconds))?;
    }
    storm.calms.clear();
    storm.sim.heal();
    storm.act(&Act::Login(false))?;
    storm.act(&Act::Foreign(false))?;
    storm.act(&Act::Arm(true))?;
    storm.act(&Act::Busy(LLAMA, 0))?;
    storm.act(&Act::Busy(VLLM, 0))?;
    // Longer than any operation may take; and however that ends, not much is tried on the way.
    let before = storm.sim.deeds.len();
    storm.pass(Duration::from_mins(40))?;
    storm.is_calm(before)?;
    if let Some(op) = storm.machine.view().operation {
        return Err(format!("forty quiet minutes later operation {op:?} is under way"));
    }
    if scene.wake.is_none() {
        storm.sim.press();
        storm.pass(Duration::from_mins(5))?;
    }
    if storm.machine.place().kind == Kind::Conflict {
        let options = Options { replace: true, no_drain: true };
        storm.command(Command::Stop(options))?;
        storm.pass(Duration::from_mins(10))?;
    }
    if scene.policies {
        storm.falls_asleep()?;
    }
    // What is said now is there again after the switches to the other and back.
    storm.switch_to(LLAMA)?;
    storm.sim.converse(LLAMA, SAID);
    storm.pass(Duration::from_mins(1))?;
    storm.switch_to(VLLM)?;
    let whole = storm.sim.backend(LLAMA).saved.first().map(|saved| saved.tokens);
    if whole != Some(SAID) {
        return Err(format!("of {SAID} tokens the newest whole file holds {whole:?}"));
    }
    storm.switch_to(LLAMA)?;
    if storm.sim.backend(LLAMA).slots[0] != Some(SAID) {
        return Err(format!("{SAID} tokens were said, and are gone: {:#?}", storm.sim.backend(LLAMA)));
    }
    Ok(storm)
}

fn scene() -> impl Strategy<Value = Scene> {
    let start = prop_oneof![
        3 => Just(Start::Off),
        1 => Just(Start::Booting),
        3 => Just(Start::On),
        2 => any::<[bool; 2]>().prop_map(Start::Running),
        1 => Just(Start::Uncontrolled),
    ];
    let blind = prop_oneof![3 => Just(0), 1 => 1..30_u64];
    let times = (2..60_u64, 1..10_u64, 1..10_u64, 1..60_u64, 1..40_u64);
    let enabled = prop_oneof![3 => Just([false; 2]), 1 => any::<[bool; 2]>()];
    let wake = prop_oneof![
        5 => Just(Some(WakeCheck::Warn)),
        2 => Just(Some(WakeCheck::Require)),
        1 => Just(Some(WakeCheck::Off)),
        1 => Just(None),
    ];
    (start, times, blind, any::<bool>(), any::<bool>(), enabled, wake).prop_map(
        |(start, (boot, load, stop, power_off, late), blind, strangers, policies, enabled, wake)| Scene {
            start,
            boot,
            load,
            stop,
            power_off,
            late,
            blind,
            strangers,
            policies,
            enabled,
            wake,
        },
    )
}

fn storm() -> impl Strategy<Value = (Vec<(u64, Act)>, Scene)> {
    let pause = prop_oneof![1 => Just(0), 2 => 1..4_u64, 3 => 0..120_u64];
    let faults = prop::sample::subsequence(Fault::ALL, 1..5);
    let acts = faults.prop_flat_map(move |faults| prop::collection::vec((pause.clone(), act(faults)), 0..40));
    (acts, scene())
}

proptest! {
    #![proptest_config(Config {
        // 128 of them, or half of what PROPTEST_CASES says.
        cases: Config::default().cases / 2,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..Config::default()
    })]

    #[test]
    fn laws_hold_in_every_storm_and_everything_works_afterwards(
        (acts, scene) in storm(),
    ) {
        if let Err(why) = weather(&acts, scene) {
            return Err(TestCaseError::fail(why));
        }
    }
}

/// The smallest storm like this one, which goes wrong because of `why`, that goes wrong, too, and how.
fn smallest(mut tree: impl ValueTree<Value = (Vec<(u64, Act)>, Scene)>, why: &str) -> String {
    let tell = |why: &str, (acts, scene): (Vec<(u64, Act)>, Scene)| {
        let acts: Vec<String> = acts.iter().map(|(pause, act)| format!("{act:?}, then {pause} s")).collect();
        format!("{why}\nin {scene:?}\n{}", acts.join("\n"))
    };
    let mut told = tell(why, tree.current());
    for _ in 0..4096 {
        let (acts, scene) = tree.current();
        let goes_on = match weather(&acts, scene) {
            Ok(_) => tree.complicate(),
            Err(why) => {
                told = tell(&why, (acts, scene));
                tree.simplify()
            }
        };
        if !goes_on {
            break;
        }
    }
    told
}

/// Whatever stays broken, what nobody has asked for is hardly tried: a pause between two tries grows to an hour.
#[test]
fn what_stays_broken_is_tried_once_an_hour_at_most() {
    for (fault, runs) in Fault::ALL.iter().flat_map(|fault| [(*fault, true), (*fault, false)]) {
        let policy = eager();
        let mut sim = Sim::on(&policy);
        if runs {
            sim.start_by_hand(LLAMA);
            sim.backend_mut(LLAMA).phase = Phase::Ready;
            sim.converse(LLAMA, 300);
        }
        let mut storm = Storm::new(sim, policy);
        storm.set(fault, true);
        let passes = |storm: &mut Storm, hours| {
            storm.pass(Duration::from_hours(hours)).unwrap_or_else(|why| panic!("{fault:?}: {why}"));
            storm.sim.deeds.len()
        };
        let before = passes(&mut storm, 2);
        let hours = 6;
        let deeds = passes(&mut storm, hours) - before;
        // Of an idle stop: a save, two stops, a kill.
        let most = usize::try_from(hours).expect("few") * 4;
        assert!(deeds <= most, "{fault:?}: {deeds} in {hours} hours: {:?}", &storm.sim.deeds[before..]);
    }
}

/// Storms that once went wrong, as small as they could be made.
#[test]
fn storms_that_once_went_wrong_go_right() {
    let plain = Options::default();
    let scene = |start| Scene {
        start,
        boot: 40,
        load: 8,
        stop: 2,
        power_off: 12,
        late: 9,
        blind: 0,
        strangers: true,
        policies: false,
        enabled: [false; 2],
        wake: Some(WakeCheck::Warn),
    };
    let talked_while_it_is_stopped = [
        (5, Act::Wait),
        (41, Act::Command(Command::Start(Some(LLAMA), plain))),
        (8, Act::Fault(Fault::AnswersLost, 9)),
        (0, Act::Command(Command::Stop(plain))),
        (0, Act::Converse(LLAMA)),
    ];
    let odd_answers_at_a_switch = [
        (5, Act::Wait),
        (6, Act::Press),
        (9, Act::Command(Command::Start(Some(LLAMA), plain))),
        (0, Act::Fault(Fault::HttpOdd, 1)),
        (0, Act::Command(Command::Switch(VLLM, plain))),
    ];
    let odd_as_soon_as_anybody_is_let_in =
        [(59, Act::Busy(LLAMA, 1)), (0, Act::Fault(Fault::HttpOdd, 2)), (1, Act::Command(Command::Stop(plain)))];
    let uncontrolled =
        Scene { boot: 2, load: 1, stop: 1, power_off: 1, late: 1, strangers: false, ..scene(Start::Uncontrolled) };
    weather(&odd_as_soon_as_anybody_is_let_in, uncontrolled).unwrap_or_else(|why| panic!("{why}"));
    for start in [Start::Off, Start::On] {
        for acts in [&talked_while_it_is_stopped, &odd_answers_at_a_switch] {
            weather(acts, scene(start)).unwrap_or_else(|why| panic!("{acts:?} from {start:?}: {why}"));
        }
    }
}

/// So many reach what can be reached. `STORMS` sets another number.
const STORMS: usize = 16_000;
/// What [`Storm`] asks of the server's own truth.
const QUESTIONS: usize = 13;
/// ... and so many what is rare, too.
const MANY_STORMS: usize = 240_000;

#[test]
fn storms_reach_every_cell_of_the_matrix_but_rare_ones() {
    let mut runner = TestRunner::deterministic();
    let (committed, mut met) = (Committed::read(), Met::default());
    let mut asked = BTreeMap::<_, usize>::new();
    let storms = std::env::var("STORMS").map_or(STORMS, |n| n.parse().expect("STORMS is a number"));
    for _ in 0..storms {
        let tree = storm().new_tree(&mut runner).expect("a storm");
        let (acts, scene) = tree.current();
        let storm = weather(&acts, scene).unwrap_or_else(|why| panic!("{}", smallest(tree, &why)));
        met.extend(storm.met);
        for (what, times) in storm.asked.into_inner() {
            *asked.entry(what).or_default() += times;
        }
    }
    println!("asked of the truth: {asked:#?}");
    assert_eq!(asked.len(), QUESTIONS, "of some of the truth nobody has asked");
    let unexplored: Vec<_> = met.iter().filter(|pair| !committed.pairs().any(|known| known == **pair)).collect();
    assert!(unexplored.is_empty(), "storms reach what the exploration does not: {unexplored:?}");
    let rare = if storms < MANY_STORMS { RARE } else { &[] };
    let missed: Vec<_> = committed.pairs().filter(|pair| !met.contains(pair) && !rare.contains(pair)).collect();
    println!("{} of {} cells reached by {storms} storms", met.len(), committed.pairs().count());
    assert!(missed.is_empty(), "no storm reaches {missed:?}");
    let unknown: Vec<_> = RARE.iter().filter(|rare| !committed.pairs().any(|pair| pair == **rare)).collect();
    assert!(unknown.is_empty(), "nothing like this is explored: {unknown:?}");
}

/// One lifecycle of the design: a cold start, two switches with save and restore, an idle power-off, and two faults on the
/// way; every law on each step.
fn lifecycle(policy: &Policy) -> Result<usize, String> {
    let mut storm = Storm::new(Sim::new(policy), policy.clone());
    let plain = Options::default();
    storm.pass(Duration::from_secs(40))?;
    storm.command(Command::Start(Some(LLAMA), plain))?;
    storm.pass(Duration::from_mins(2))?;
    storm.act(&Act::Converse(LLAMA))?;
    storm.act(&Act::Fault(Fault::AnswersLost, 8))?;
    storm.command(Command::Switch(VLLM, plain))?;
    storm.pass(Duration::from_mins(3))?;
    storm.act(&Act::CrashOnLoad(LLAMA))?;
    storm.command(Command::Switch(LLAMA, plain))?;
    storm.pass(Duration::from_mins(1))?;
    storm.command(Command::Switch(LLAMA, plain))?;
    storm.pass(Duration::from_hours(1))?;
    let done: Vec<Deed> = storm.sim.deeds.iter().map(|(_, deed)| *deed).filter(|deed| *deed != Deed::Woken).collect();
    let wanted = [
        Deed::Started(LLAMA),
        Deed::Saved(LLAMA),
        Deed::Stopped(LLAMA),
        Deed::Started(VLLM),
        Deed::Stopped(VLLM),
        Deed::Started(LLAMA),
        // It crashed while it loaded.
        Deed::Stopped(LLAMA),
        Deed::Started(LLAMA),
        Deed::Restored(LLAMA),
        Deed::Saved(LLAMA),
        Deed::Stopped(LLAMA),
        Deed::PoweredOff,
    ];
    let end = (storm.machine.place().kind, storm.sim.power);
    if done == wanted && end == (Kind::Offline, Power::Off) {
        Ok(storm.steps)
    } else {
        Err(format!("it ends in {end:?} after {done:?}"))
    }
}

fn idle_policy() -> Policy {
    Policy {
        idle_stop_after: Some(Duration::from_mins(20)),
        idle_power_off_after: Some(Duration::from_mins(10)),
        ..sim::policy()
    }
}

#[test]
fn a_lifecycle_does_all_that_it_is_said_to_do() {
    lifecycle(&idle_policy()).expect("it works");
}

/// How many of them, with so many steps each, are done in a second.
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn in_a_second(what: &str, mut one: impl FnMut() -> usize) {
    let (began, mut done, mut steps) = (std::time::Instant::now(), 0_u32, 0);
    while began.elapsed() < Duration::from_secs(5) {
        steps += one();
        done += 1;
    }
    let took = began.elapsed().as_secs_f64();
    println!("{:.0} {what} a second, {} steps each", f64::from(done) / took, steps / done as usize);
}

/// `cargo test --release --test storms -- --ignored --nocapture storms_in`
#[test]
#[ignore = "a measurement"]
fn storms_in_a_second() {
    let mut runner = TestRunner::deterministic();
    in_a_second("storms", || {
        let (acts, scene) = storm().new_tree(&mut runner).expect("a storm").current();
        weather(&acts, scene).expect("it goes right").steps
    });
}

/// `cargo test --release --test storms -- --ignored --nocapture lifecycles`
#[test]
#[ignore = "a measurement"]
fn lifecycles_simulated_in_a_second() {
    let policy = idle_policy();
    in_a_second("lifecycles", || lifecycle(&policy).expect("it works"));
}
