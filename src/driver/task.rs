//! The task itself: one loop, one owner.

mod orders;
mod tending;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::{JoinError, JoinHandle, JoinSet},
};
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    PostMortem, World, changes,
    clock::Clock,
    handle::{CHANGES_KEPT, COMMANDS_WAITING, Change, Handle, OperationRecord, Request},
    history::{History, Stopwatch},
    journal::Journal,
    keep::{self, Keeper},
    oddities::Oddities,
    operations::{Operations, end_name, named_better, who_can_tell},
    probe::{self, Schedule, Source},
    proof::{self, Proofs},
    publish,
    setup::Setup,
    slots::{MOST_TENDED, Selections, Tend},
    status::Status,
    world::{TENDED_WITHIN, Tended},
};
use crate::machine::{
    Answer, Command, Effect, End, Event, Goal, Instant, Kind, Machine, OpId, Outcome, Refusal, RequestId, Server, Verb,
    VerbId, View,
    evidence::judge,
    reading::{Http, Reading},
};

/// A hold is answered when it is on disk, or after this long.
const KEPT_WITHIN: Duration = Duration::from_secs(1);
/// A look that has not ended after so long is given up. The adapters' own deadlines are shorter.
pub const LOOK_AT_MOST: Duration = Duration::from_secs(30);
/// An order is given up so long before its time is over, and the world is told to end as long before that: its own word
/// about an order is better than ours, and ours has reached the machine before the machine gives the order up itself. A look
/// at what a late save has saved takes half of that at most.
pub const VERB_SLACK: Duration = Duration::from_millis(100);
/// The end of a failed start is published after so long even if nobody could tell why it failed.
pub const POST_MORTEM_AT_MOST: Duration = Duration::from_secs(3);
/// A daemon that is told to end has written its files after so long, or goes without.
pub const SHUTDOWN_AT_MOST: Duration = Duration::from_secs(2);
/// A command that an old look would answer wrongly waits so long for a new one.
const LOOKS_FIRST: Duration = Duration::from_secs(3);
/// A machine whose deadline does not move on is ticked no more often than this.
const TICK_AGAIN: Duration = Duration::from_millis(50);

/// Starts the driver of one server. It ends when `shutdown` turns true or its sender is gone, and leaves the world as it
/// is. Must be called within a tokio runtime. Reads the state directory before it returns.
pub fn spawn<W: World>(setup: Setup, world: W, shutdown: watch::Receiver<bool>) -> (Handle, JoinHandle<()>) {
    let clock = Arc::new(Clock::start());
    let policy = Arc::clone(&setup.policy);
    let (holds, history) = match &setup.state_dir {
        Some(dir) => (keep::load_holds(dir, &clock, &policy), keep::load_history(dir, &policy)),
        None => (vec![], History::default()),
    };
    let journal = Journal::start(setup.state_dir.clone(), &clock.rfc3339(Instant::START), &policy, &holds);
    let machine = Machine::new((*policy).clone(), holds);
    let view = machine.view();
    let (command_in, commands) = mpsc::channel(COMMANDS_WAITING);
    let (tend_in, tending) = mpsc::channel(MOST_TENDED);
    let selections = Selections::default();
    let (status_out, status) = watch::channel(Arc::new(Status::default()));
    let (changes, _) = broadcast::channel(CHANGES_KEPT);
    let (operations, operations_out) = Operations::new();
    let handle = Handle {
        commands: command_in,
        tending: tend_in,
        selections: selections.clone(),
        status,
        changes: changes.clone(),
        operations: operations_out,
        policy,
    };
    let span = info_span!("server", name = %setup.server);
    let mut driver = Driver {
        schedule: Schedule::new(setup.probe),
        keeper: Keeper::start(setup.state_dir.clone()),
        reading: Reading::default(),
        world: Arc::new(world),
        setup,
        clock,
        machine,
        view,
        history,
        stopwatch: Stopwatch::default(),
        oddities: Oddities::default(),
        proofs: Proofs::default(),
        journal,
        tasks: JoinSet::new(),
        commands,
        commands_closed: false,
        tending,
        tended: 0,
        tidying: false,
        selections,
        deferred: None,
        answers: HashMap::new(),
        requests: 0,
        order: None,
        operations,
        open: BTreeMap::new(),
        ending: BTreeMap::new(),
        expected: None,
        powered_off: false,
        status: status_out,
        changes,
        tick_not_before: Instant::START,
    };
    driver.publish(vec![], vec![]);
    let task = tokio::spawn(driver.run(shutdown).instrument(span));
    (handle, task)
}

/// What a spawned task brings back.
enum Done {
    Look {
        source: Source,
        began: Instant,
        /// `None`: given up.
        reading: Option<Box<Reading>>,
    },
    Order {
        verb: VerbId,
        what: Verb,
        outcome: Outcome,
        /// What is saved now, if nothing but a save or a restore was wanted.
        saved: Option<Box<Reading>>,
    },
    PostMortem {
        op: OpId,
        told: PostMortem,
    },
    /// Saved slots were tended.
    Tended {
        told: Tended,
        answer: oneshot::Sender<Tended>,
        saved: Option<Box<Reading>>,
    },
    /// A round of tidying has ended.
    Tidied {
        more: bool,
    },
    /// What a restore was worth was written down.
    Proved,
}

struct Driver<W> {
    setup: Setup,
    world: Arc<W>,
    clock: Arc<Clock>,
    machine: Machine,
    /// The machine as it was after the last step.
    view: View,
    reading: Reading,
    schedule: Schedule,
    history: History,
    stopwatch: Stopwatch,
    oddities: Oddities,
    proofs: Proofs,
    keeper: Keeper,
    journal: Journal,
    tasks: JoinSet<Done>,
    commands: mpsc::Receiver<Request>,
    commands_closed: bool,
    tending: mpsc::Receiver<Tend>,
    /// So many are under way.
    tended: usize,
    /// Tidying is under way.
    tidying: bool,
    selections: Selections,
    /// A command that waits for a fresh look, and until when. Nothing overtakes it.
    deferred: Option<Deferred>,
    /// Who waits for an answer.
    answers: HashMap<RequestId, oneshot::Sender<Answer>>,
    requests: u64,
    /// The one mutating order under way.
    order: Option<VerbId>,
    operations: Operations,
    /// Operations under way.
    open: BTreeMap<OpId, Goal>,
    /// Operations that have failed and wait for the unit's last words.
    ending: BTreeMap<OpId, (End, Instant)>,
    /// How long the newest operation was expected to take, seconds.
    expected: Option<f64>,
    powered_off: bool,
    status: watch::Sender<Arc<Status>>,
    changes: broadcast::Sender<Arc<Change>>,
    tick_not_before: Instant,
}

/// A command that waits for a look.
struct Deferred {
    request: Request,
    since: Instant,
    until: Instant,
}

impl<W: World> Driver<W> {
    async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut next_beat = self.setup.pulse.as_ref().map(|_| Instant::START);
        loop {
            let now = self.clock.now();
            if let (Some(pulse), Some(at)) = (&self.setup.pulse, next_beat)
                && at <= now
            {
                (pulse.beat)();
                next_beat = Some(now + pulse.every);
            }
            self.take_deferred(now);
            self.start_looks(now);
            let deadline = self.machine.deadline().map(|at| at.max(self.tick_not_before));
            let wake = [
                deadline,
                self.schedule.next(&self.view, &self.reading),
                self.deferred.as_ref().map(|waiting| waiting.until),
                next_beat,
            ];
            let wake = wake.into_iter().flatten().min();
            let sleep = wake.map(|at| tokio::time::sleep_until(self.clock.timer(at)));
            let listening = self.deferred.is_none() && !self.commands_closed;
            tokio::select! {
                biased;
                () = told_to_end(&mut shutdown) => break,
                Some(done) = self.tasks.join_next() => self.done(resume(done)),
                request = self.commands.recv(), if listening => match request {
                    Some(request) => self.request(request),
                    None => self.commands_closed = true,
                },
                Some(tend) = self.tending.recv(), if self.tended < MOST_TENDED => self.tend(tend),
                () = async { match sleep { Some(sleep) => sleep.await, None => std::future::pending().await } } => {
                    if deadline.is_some_and(|at| at <= self.clock.now()) {
                        self.tick();
                    }
                }
            }
        }
        self.end().await;
    }

    /// Takes no more commands, writes what is to last, and leaves the world as it is.
    async fn end(mut self) {
        info!("the driver ends; the world stays as it is");
        self.commands.close();
        self.tasks.abort_all();
        let mut ended = vec![];
        for (op, (end, at)) in std::mem::take(&mut self.ending) {
            ended.extend(self.on_record(op, &end, at, vec![]));
        }
        self.publish(vec![], ended);
        tokio::join!(self.keeper.close(SHUTDOWN_AT_MOST), self.journal.close(SHUTDOWN_AT_MOST));
    }

    fn start_looks(&mut self, now: Instant) {
        for source in Source::ALL {
            let due = self.schedule.due(source, &self.view, &self.reading);
            if due.is_none_or(|at| at > now) {
                continue;
            }
            self.schedule.began(source, now);
            let world = Arc::clone(&self.world);
            self.tasks.spawn(async move {
                let look = world.look(source.ask(), now);
                let reading = tokio::time::timeout(LOOK_AT_MOST, look).await;
                Done::Look { source, began: now, reading: reading.ok().map(Box::new) }
            });
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Look { source, began, reading } => {
                self.looked(source, began, reading);
                if source == Source::Saved {
                    self.tidy();
                }
            }
            Done::Order { verb, what, outcome, saved } => {
                if let Some(saved) = saved {
                    self.take_in(Source::Saved, *saved);
                }
                self.order_ended(verb, what, outcome);
            }
            Done::Tended { told, answer, saved } => self.was_tended(told, answer, saved),
            Done::Tidied { more } => {
                self.tidying = false;
                if more {
                    self.tidy();
                }
            }
            Done::Proved => self.schedule.want(Source::Saved),
            Done::PostMortem { op, told } => {
                if let Some((end, at)) = self.ending.remove(&op) {
                    let end = named_better(end, &told);
                    let record = self.on_record(op, &end, at, told.lines);
                    self.publish(vec![], record.into_iter().collect());
                }
            }
        }
    }

    fn looked(&mut self, source: Source, began: Instant, reading: Option<Box<Reading>>) {
        let now = self.clock.now();
        self.schedule.ended(source, began, reading.is_none(), now);
        let reading = reading.unwrap_or_else(|| {
            warn!(?source, "a look did not end in time and was given up");
            Box::new(probe::given_up(source, began, self.setup.policy.backends.len()))
        });
        self.take_in(source, *reading);
    }

    /// Tells the machine what was read, and shows it.
    fn take_in(&mut self, source: Source, reading: Reading) {
        let now = self.clock.now();
        self.reading.absorb(reading);
        self.schedule.note(&self.reading);
        if source == Source::Activity {
            self.prove(now);
        }
        let look = judge(&self.reading, &self.setup.policy, now);
        if probe::is_new(&self.view.look.server, &look.server) {
            self.schedule.want_everything();
        } else if probe::newly_running(&self.view.look, &look) {
            self.schedule.want(Source::Activity);
            self.schedule.want(Source::Gpu);
        }
        // The machine counts looks that find nothing. What says the same of the same moment is not another one.
        if look == self.view.look {
            self.publish(vec![], vec![]);
            return;
        }
        self.step(&Event::Looked(look));
    }

    /// Whether a command is refused is judged by what is so now: where the answer hangs on what is asked rarely, it waits
    /// for a look that was asked after it.
    fn request(&mut self, request: Request) {
        let now = self.clock.now();
        let missing: Vec<Source> = self.looks_first(&request.command, now);
        if missing.is_empty() {
            self.command(request);
        } else {
            for source in missing {
                self.schedule.want(source);
            }
            self.deferred = Some(Deferred { request, since: now, until: now + LOOKS_FIRST });
        }
    }

    fn take_deferred(&mut self, now: Instant) {
        let Some(waiting) = &self.deferred else { return };
        let told = self.looks_first(&waiting.request.command, waiting.since).is_empty();
        if (told || waiting.until <= now)
            && let Some(Deferred { request, .. }) = self.deferred.take()
        {
            self.command(request);
        }
    }

    fn looks_first(&self, command: &Command, since: Instant) -> Vec<Source> {
        probe::looks_first(command, since, &self.view, &self.reading, &self.setup.policy).collect()
    }

    fn command(&mut self, request: Request) {
        self.requests += 1;
        let id = RequestId(self.requests);
        let Request { command, uid, answer } = request;
        info!(request = %id, uid, ?command, "command");
        self.answers.insert(id, answer);
        self.step(&Event::Commanded { request: id, command });
        if let Some(waiting) = self.answers.remove(&id) {
            error!(request = %id, "the machine did not answer a command");
            let _ = waiting.send(Answer::Refused(Refusal::Unknown));
        }
    }

    fn tick(&mut self) {
        self.step(&Event::Tick);
        let now = self.clock.now();
        if self.machine.deadline().is_some_and(|at| at <= now) {
            if self.tick_not_before <= now {
                error!(place = ?self.view.place, "the machine's deadline does not lie ahead after a tick");
            }
            self.tick_not_before = now + TICK_AGAIN;
        }
    }

    /// One step of the machine, and everything it asks for. Nothing is awaited here.
    fn step(&mut self, event: &Event) {
        let now = self.clock.now();
        let effects = self.machine.step(now, event);
        let before = std::mem::replace(&mut self.view, self.machine.view());
        let moved = self.view.place != before.place;
        let place = self.view.place;
        self.oddities.unsaved.note(&self.view, now);
        self.journal.step(now, event, &effects, &self.machine, moved);
        if moved {
            let policy = &self.setup.policy;
            info!(from = before.public_name(policy), to = self.view.public_name(policy),
                leaf = %place.kind, "place");
        }
        match self.view.look.server {
            Server::On { .. } | Server::Uncontrolled => self.powered_off = false,
            _ if before.place.kind == Kind::PoweringOff && place.kind == Kind::Offline => {
                self.powered_off = true;
            }
            _ => {}
        }
        let (view, policy) = (&self.view, &self.setup.policy);
        if self.stopwatch.looked(view, now, &mut self.history, policy) {
            self.keeper.durations(&self.history);
        }
        let (mut began, mut ended, mut answers) = (vec![], vec![], vec![]);
        let mut to_keep = false;
        for effect in effects {
            match effect {
                // Answers leave last: who is told of an operation finds it on record.
                Effect::Answer { request, answer } => answers.push((request, answer)),
                Effect::Do { verb, what, within, op } => self.order(verb, what, within, op, now),
                Effect::Began(op) => {
                    info!(op = %op.id, goal = ?op.goal, cause = ?op.cause, "operation began");
                    let start_of = |index: usize| self.setup.start_of(index, &self.history);
                    let policy = &self.setup.policy;
                    self.expected = self.history.expected(op.goal, &before, policy, start_of);
                    self.open.insert(op.id, op.goal);
                    began.push(self.operations.began(&op, &self.clock, &self.setup.policy));
                }
                Effect::Ended { op, end } => ended.extend(self.operation_ended(op, end, now)),
                Effect::HoldsChanged => {
                    to_keep = true;
                    let holds = &self.view.holds;
                    self.keeper.holds(holds, &self.clock, &self.setup.policy);
                }
            }
        }
        self.publish(began, ended);
        for (request, answer) in answers {
            let Some(waiting) = self.answers.remove(&request) else {
                error!(%request, ?answer, "an answer nobody waits for");
                continue;
            };
            info!(%request, ?answer, "answer");
            // Who does not listen any more does not mind.
            if to_keep {
                let kept = self.keeper.kept(KEPT_WITHIN);
                tokio::spawn(async move {
                    kept.await;
                    let _ = waiting.send(answer);
                });
            } else {
                let _ = waiting.send(answer);
            }
        }
    }

    /// Records the end; of a failed start together with what its unit says, which is asked first.
    fn operation_ended(&mut self, op: OpId, end: End, now: Instant) -> Option<OperationRecord> {
        info!(%op, end = end_name(&end), detail = ?end, "operation ended");
        self.stopwatch.drop_running();
        // What was saved on the way is tidied up now.
        self.schedule.want(Source::Saved);
        let goal = self.open.remove(&op);
        let Some(backend) = goal.and_then(|goal| who_can_tell(goal, &end)) else {
            return self.on_record(op, &end, now, vec![]);
        };
        self.ending.insert(op, (end, now));
        let http = self.reading.backends.get(usize::from(backend.0)).and_then(|b| b.http.as_ref()).map(|h| &h.value);
        let unanswered = matches!(http, Some(Http::Refused | Http::TimedOut | Http::Unreachable(_)));
        let world = Arc::clone(&self.world);
        self.tasks.spawn(async move {
            let told = tokio::time::timeout(POST_MORTEM_AT_MOST, world.post_mortem(backend)).await;
            let mut told = told.unwrap_or_default();
            // One that answers from here, if only that it is loading, can be reached.
            told.port_listens &= unanswered;
            Done::PostMortem { op, told }
        });
        None
    }

    fn on_record(&mut self, op: OpId, end: &End, at: Instant, post_mortem: Vec<String>) -> Option<OperationRecord> {
        let not_saved = self.oddities.unsaved.by(op, &self.setup.policy);
        self.operations.ended(op, end, at, post_mortem, not_saved, &self.clock)
    }

    fn publish(&mut self, began: Vec<OperationRecord>, ended: Vec<OperationRecord>) {
        let now = self.clock.now();
        self.oddities.note(&self.reading, &self.view, &self.setup.policy, now);
        let status = publish::Source {
            setup: &self.setup,
            clock: &self.clock,
            view: &self.view,
            reading: &self.reading,
            history: &self.history,
            oddities: self.oddities.found(),
            expected: self.expected,
            powered_off: self.powered_off,
            last_error: self.operations.last_error(),
        }
        .status(now);
        let status = Arc::new(status);
        let before = self.status.send_replace(Arc::clone(&status));
        let mut all: Vec<Change> = vec![];
        all.extend(began.into_iter().map(|r| changes::began(r, &status)));
        // The first document of all is no change.
        if before.made.is_some() {
            let at = self.clock.rfc3339(now);
            all.extend(changes::between(&before, &status, &at));
        }
        all.extend(ended.into_iter().map(|r| changes::ended(r, &status)));
        for change in all {
            // Nobody may be listening.
            let _ = self.changes.send(Arc::new(change));
        }
    }
}

/// A panic in a task is a bug, and must not be taken for a hung world.
fn resume(done: Result<Done, JoinError>) -> Done {
    match done {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("no task is aborted while the loop runs: {error}"),
        },
    }
}

async fn told_to_end(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it whoever could want us to go on.
    let _ = shutdown.wait_for(|end| *end).await;
}
