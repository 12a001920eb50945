//! kill -9 of the daemon's process on the virtual server. Nothing in the daemon knows of it: what arrives at the server is
//! held up there, before it is done or after, and then the process is killed.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use wechsler::{
    driver::{
        replay::{Told, replay},
        status::Status,
    },
    front::{
        client::{Client, ClientError},
        protocol::{CommandRequest, CommandWord, HoldRequest},
    },
    virtual_server::{
        By, CommandFault, On, Power, VirtualServer, What,
        programs::{Fault, ProgramFaults, SlotAct},
    },
};

use super::{
    plan::{LLAMA, VLLM, unit},
    points::{Point, Side},
    stage::{LONG, Stage},
};

/// How often it is looked whether the moment has come.
const LOOK: Duration = Duration::from_millis(1);
/// An answer that is held up comes after the daemon is dead.
const HELD_UP: Duration = Duration::from_mins(1);
/// Between a command's being sent and the kill, where that shall come before the answer.
const SENT: Duration = Duration::from_millis(1);
/// A daemon that does nothing by itself has not done it after this.
const QUIET: Duration = Duration::from_millis(400);

/// Something that is wanted, from llama.cpp up with a conversation.
#[derive(Clone, Copy, Debug)]
enum Workflow {
    ColdStart,
    Wake,
    Switch,
    SwitchBack,
    Stop,
    StopThatHangs,
    Shutdown,
    ShutdownKeptOn,
    Restart,
    Resolve,
    SaveSlots,
    Hold,
    Release,
}

impl Workflow {
    /// The effects it has.
    const fn points(self) -> &'static [Point] {
        use Point::{
            Answer, Began, Ended, HoldsChanged, KillUnit, PowerOff, RestoreSlots, SaveSlots, StartUnit, StopUnit, Wake,
        };
        match self {
            Self::ColdStart => &[Began, Answer, Wake, StartUnit, RestoreSlots, Ended],
            Self::Wake => &[Began, Answer, Wake, Ended],
            Self::Switch => &[Began, Answer, SaveSlots, StopUnit, StartUnit, Ended],
            Self::SwitchBack => &[Began, Answer, StopUnit, StartUnit, RestoreSlots, Ended],
            Self::Stop | Self::ShutdownKeptOn => &[Began, Answer, SaveSlots, StopUnit, Ended],
            Self::StopThatHangs => &[Began, Answer, SaveSlots, StopUnit, KillUnit, Ended],
            Self::Shutdown => &[Began, Answer, SaveSlots, StopUnit, PowerOff, Ended],
            Self::Restart => &[Began, Answer, SaveSlots, StopUnit, StartUnit, RestoreSlots, Ended],
            Self::Resolve => &[Began, Answer, StopUnit, Ended],
            Self::SaveSlots => &[Began, Answer, SaveSlots, Ended],
            Self::Hold | Self::Release => &[Answer, HoldsChanged],
        }
    }

    /// `None`: it is about a hold.
    fn request(self) -> Option<CommandRequest> {
        let (command, backend) = match self {
            Self::ColdStart => (CommandWord::Start, Some(LLAMA)),
            Self::Wake => (CommandWord::Wake, None),
            Self::Switch => (CommandWord::Switch, Some(VLLM)),
            Self::SwitchBack => (CommandWord::Switch, Some(LLAMA)),
            Self::Stop | Self::StopThatHangs => (CommandWord::Stop, None),
            Self::Shutdown | Self::ShutdownKeptOn => (CommandWord::Shutdown, None),
            Self::Restart => (CommandWord::Restart, Some(LLAMA)),
            Self::Resolve => (CommandWord::Resolve, Some(LLAMA)),
            Self::SaveSlots => (CommandWord::Save, None),
            Self::Hold | Self::Release => return None,
        };
        let power_off = matches!(self, Self::ShutdownKeptOn).then_some(false);
        let request = CommandRequest { no_drain: true, power_off, ..CommandRequest::new(command) };
        Some(CommandRequest { backend: backend.map(Into::into), ..request })
    }

    /// What the last step of it leads to on the server itself.
    fn is_reached(self, server: &VirtualServer, since: u64) -> bool {
        let ready = |backend| {
            let units = server.truth().units;
            units.iter().any(|u| u.name == unit(backend) && u.inside.as_ref().is_some_and(|inside| inside.ready))
        };
        let gone = |backend| server.truth().units.iter().any(|u| u.name == unit(backend) && u.pid.is_none());
        match self {
            Self::ColdStart | Self::SwitchBack => ready(LLAMA),
            Self::Restart => {
                ready(LLAMA) && did(server, since, |what| matches!(what, What::Started { by: By::Ssh, .. }))
            }
            Self::Switch => ready(VLLM),
            Self::Wake => server.power() == Power::On,
            Self::Stop | Self::ShutdownKeptOn => gone(LLAMA),
            Self::StopThatHangs => did(server, since, |what| matches!(what, What::Killed { .. })),
            Self::Resolve => gone(VLLM),
            Self::Shutdown => server.power() == Power::Off,
            Self::SaveSlots => did(server, since, |what| matches!(what, What::Slot { act: SlotAct::Saved, .. })),
            Self::Hold | Self::Release => true,
        }
    }
}

fn did(server: &VirtualServer, since: u64, what: impl Fn(&What) -> bool) -> bool {
    server.deeds_from(since).iter().any(|deed| what(&deed.what))
}

fn awake() -> HoldRequest {
    HoldRequest { what: "awake".into(), lasts: None, reason: None }
}

/// Done by a daemon, to a unit or the server.
fn is_the_daemons(what: &What) -> bool {
    matches!(
        what,
        What::Started { by: By::Ssh, .. }
            | What::StopBegan { by: By::Ssh, .. }
            | What::Killed { by: By::Ssh, .. }
            | What::PowerOffOrdered(By::Ssh)
            | What::Packet { .. }
    )
}

/// What the daemon's event stream has told.
#[derive(Default)]
struct Heard {
    began: AtomicBool,
    ended: AtomicBool,
}

/// One world: a server, its daemon, and the conversation that goes on through everything.
struct World {
    stage: Stage,
    prompt: String,
    /// Tokens that must be there.
    known: u64,
    /// How often slots have been held up before.
    fired: u64,
}

impl World {
    async fn build(number: u64, patient: bool) -> Self {
        let mut stage = Stage::build(number, false).await;
        // Laws that only hold while nobody meddles are left to the soak.
        stage.calm = false;
        stage.patient = patient;
        stage.start_daemon(false).await;
        Self { stage, prompt: "Once upon a time there was a server.".into(), known: 0, fired: 0 }
    }

    fn inside(&self) -> Arc<ProgramFaults> {
        self.stage.server.program_faults(&unit(LLAMA)).expect("a unit of the server")
    }

    /// llama.cpp is up, alone, and goes on with the conversation.
    async fn talk(&mut self) {
        let until = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < until, "llama.cpp does not come up: {:#?}", self.stage.status().await);
            let state = self.stage.status().await.map(|status| status.state);
            let command = if state.as_deref() == Some("conflict") { CommandWord::Resolve } else { CommandWord::Switch };
            let wish = CommandRequest {
                backend: Some(LLAMA.into()),
                replace: true,
                no_drain: true,
                ..CommandRequest::new(command)
            };
            match self.stage.command(&wish).await {
                Ok(None) => break,
                Ok(Some(id)) => {
                    let record = self.stage.end_of(id, LONG).await.expect("it ends");
                    if record.end.as_deref() == Some("done") {
                        break;
                    }
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.is_restored().await;
        let answer = self.stage.asks(LLAMA, &self.prompt, 20).await.expect("llama.cpp answers");
        let reused = answer["timings"]["cache_n"].as_u64().unwrap_or(0);
        assert!(reused >= self.known, "the conversation is lost: {reused} of {} tokens are there", self.known);
        self.prompt += answer["choices"][0]["text"].as_str().unwrap_or_default();
        // The last token that was generated was never worked on.
        self.known = self.prompt.len() as u64 - 1;
        self.prompt += " And then";
        if self.prompt.len() > 2000 {
            (self.prompt, self.known) = ("And they lived happily.".into(), 0);
        }
    }

    /// A daemon that finds llama.cpp up and unused gives it its conversation back by itself; whoever asks before loses it.
    async fn is_restored(&mut self) {
        let until = Instant::now() + LONG;
        while self.known > 0 {
            let truth = self.stage.server.truth();
            let slots = truth.units.into_iter().filter(|u| u.name == unit(LLAMA)).filter_map(|u| u.inside);
            if slots.flat_map(|inside| inside.slots).flatten().any(|tokens| tokens > 0) {
                return;
            }
            assert!(Instant::now() < until, "the conversation does not come back: {:#?}", self.stage.status().await);
            self.stage.wait(Duration::from_millis(20)).await;
        }
    }

    async fn done(&mut self, command: CommandWord, backend: Option<&str>) {
        let wish = CommandRequest { backend: backend.map(Into::into), no_drain: true, ..CommandRequest::new(command) };
        let id = self.stage.command(&wish).await.expect("accepted").expect("an operation");
        let record = self.stage.end_of(id, LONG).await.expect("it ends");
        assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    }

    /// Waits for what the daemon says.
    async fn says(&mut self, state: &str) {
        let until = Instant::now() + LONG;
        loop {
            let status = self.stage.status().await.expect("a status");
            let under_control = state == "gpu-offline" || status.control.as_deref() == Some("ok");
            if status.state == state && status.operation.is_none() && under_control {
                return;
            }
            let truth = self.stage.server.truth();
            assert!(Instant::now() < until, "it should say {state}, and says {}: {truth:#?}", status.state);
            self.stage.wait(Duration::from_millis(20)).await;
        }
    }

    /// Waits for what the status shows, or what else can be seen by now.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Status) -> bool) {
        let until = Instant::now() + LONG;
        loop {
            let status = self.stage.status().await.expect("a status");
            if is_so(&status) {
                return;
            }
            assert!(Instant::now() < until, "not in time: {what}: {status:#?}");
            self.stage.wait(LOOK).await;
        }
    }

    /// From llama.cpp with its conversation to where the workflow begins; a fresh daemon knows of it.
    async fn prepare(&mut self, workflow: Workflow) {
        self.talk().await;
        let server = &self.stage.server;
        match workflow {
            Workflow::ColdStart | Workflow::Wake => {
                self.done(CommandWord::Save, None).await;
                self.stage.server.power_cut();
            }
            Workflow::SwitchBack => self.done(CommandWord::Switch, Some(VLLM)).await,
            Workflow::Resolve => server.start_unit(&unit(VLLM)),
            Workflow::Release => drop(self.stage.client.hold(&awake()).await.expect("held")),
            Workflow::StopThatHangs => {
                self.inside().set(Fault::TermIgnored);
                self.inside().set(Fault::KillIgnored);
            }
            _ => {}
        }
        self.stage.kill_daemon().await;
        self.stage.start_daemon(false).await;
        let begins = match workflow {
            Workflow::ColdStart | Workflow::Wake => "gpu-offline",
            Workflow::SwitchBack => VLLM,
            Workflow::Resolve => "conflict",
            _ => LLAMA,
        };
        self.says(begins).await;
    }

    /// Plays a workflow, killing the daemon there; without a kill, says which effects it had.
    async fn play(&mut self, workflow: Workflow, kill: Option<(Point, Side)>) -> BTreeSet<Point> {
        self.prepare(workflow).await;
        let since = self.deeds();
        if let Some((point, side)) = kill {
            self.arm(point, side);
        }
        let (told, listener) = listen(&self.stage.client).await;
        let client = self.stage.client.clone();
        let held = client.holds().await.expect("holds").holds.first().map(|hold| hold.id);
        let sent = tokio::spawn(async move {
            let request = match (workflow.request(), held) {
                (Some(request), _) => request,
                (None, Some(held)) => return format!("{:?}", client.release(held).await),
                (None, None) => return format!("{:?}", client.hold(&awake()).await),
            };
            loop {
                match client.command(&request).await {
                    // A machine under test may be slow to answer over SSH.
                    Err(ClientError::Problem(problem)) if &*problem.code == "control_unreachable" => {
                        sleep(Duration::from_millis(200)).await;
                    }
                    answer => return format!("{answer:?}"),
                }
            }
        });
        let over = async {
            match kill {
                Some((Point::Began | Point::Answer | Point::HoldsChanged, Side::Before)) => sleep(SENT).await,
                kill => {
                    while !self.has_come(workflow, kill, since, &told, &sent) {
                        sleep(LOOK).await;
                    }
                }
            }
        };
        let came = timeout(LONG, over).await;
        if came.is_err() {
            let (answer, status) = (timeout(LOOK, sent).await, self.stage.status().await);
            panic!("{workflow:?} never came to {kill:?}; the answer: {answer:?}, {status:#?}");
        }
        if kill.is_none() {
            // Whatever is only written later is written.
            self.stage.wait(Duration::from_millis(300)).await;
        }
        self.stage.kill_daemon().await;
        listener.abort();
        sent.abort();
        let effects = self.last_life();
        if kill.is_some() {
            self.goes_on().await;
            // Once, for each waits a moment whether it comes after all.
            if kill == Some((Point::Began, Side::After)) {
                self.has_forgotten().await;
            }
        } else {
            self.inside().clear_all();
            self.stage.start_daemon(false).await;
        }
        let holds = self.stage.client.holds().await.expect("holds").holds;
        if let (None, Some((Point::Answer, Side::After))) = (workflow.request(), kill) {
            // Who was told that it is held, or is not any more, can count on it.
            assert_eq!(holds.is_empty(), matches!(workflow, Workflow::Release), "{holds:?}");
        }
        for hold in holds {
            assert_eq!(hold.what, "awake");
            self.stage.client.release(hold.id).await.expect("released");
        }
        effects
    }

    fn deeds(&self) -> u64 {
        self.stage.server.deeds().len() as u64
    }

    /// Holds up what is to be killed at.
    fn arm(&mut self, point: Point, side: Side) {
        let faults = self.stage.server.faults();
        let on = match point {
            Point::Wake => {
                if side == Side::Before {
                    faults.packets.times((), 1);
                }
                return;
            }
            Point::SaveSlots | Point::RestoreSlots => {
                let fault = if point == Point::SaveSlots { Fault::SaveHangs } else { Fault::RestoreHangs };
                self.fired = self.inside().fired(fault.name());
                return self.inside().set(fault);
            }
            Point::StartUnit => On::Start,
            Point::StopUnit => On::Stop,
            Point::KillUnit => On::Kill,
            Point::PowerOff => On::PowerOff,
            Point::Began | Point::Answer | Point::Ended | Point::HoldsChanged => return,
        };
        let fault = match side {
            Side::Before => CommandFault::Hangs,
            Side::After => CommandFault::Late(HELD_UP),
        };
        faults.command.times((on, fault), 1);
    }

    /// The moment to kill at has come.
    fn has_come(
        &self,
        workflow: Workflow,
        kill: Option<(Point, Side)>,
        since: u64,
        told: &Heard,
        sent: &JoinHandle<String>,
    ) -> bool {
        let server = &self.stage.server;
        let ended = || told.ended.load(Ordering::Relaxed) || (workflow.request().is_none() && sent.is_finished());
        let Some((point, side)) = kill else { return ended() };
        let ours = |what: fn(&What) -> bool| did(server, since, what);
        match (point, side) {
            (Point::Wake, Side::Before) => server.faults().packets.now().is_none(),
            (Point::Wake, Side::After) => ours(|what| matches!(what, What::Packet { heard: true })),
            (Point::StartUnit | Point::StopUnit | Point::KillUnit | Point::PowerOff, Side::Before) => {
                server.faults().command.now().is_none()
            }
            (Point::StartUnit, Side::After) => ours(|what| matches!(what, What::Started { by: By::Ssh, .. })),
            (Point::StopUnit, Side::After) => ours(|what| matches!(what, What::StopBegan { by: By::Ssh, .. })),
            (Point::KillUnit, Side::After) => ours(|what| matches!(what, What::Killed { by: By::Ssh, .. })),
            (Point::PowerOff, Side::After) => ours(|what| matches!(what, What::PowerOffOrdered(By::Ssh))),
            (Point::SaveSlots, side) => self.has_come_to_slots("save-hangs", side, since, SlotAct::Saved),
            (Point::RestoreSlots, side) => self.has_come_to_slots("restore-hangs", side, since, SlotAct::Restored),
            (Point::Began, _) => told.began.load(Ordering::Relaxed),
            (Point::Answer | Point::HoldsChanged, _) => sent.is_finished(),
            (Point::Ended, Side::Before) => workflow.is_reached(server, since),
            (Point::Ended, Side::After) => ended(),
        }
    }

    /// Slots are held up by the program itself. After them the daemon is held up with its next question.
    fn has_come_to_slots(&self, fault: &str, side: Side, since: u64, done: SlotAct) -> bool {
        let (server, inside) = (&self.stage.server, self.inside());
        if side == Side::After && (inside.fired(fault) > self.fired) {
            server.faults().command.always((On::Any, CommandFault::Hangs));
            inside.clear(fault);
        }
        match side {
            Side::Before => inside.fired(fault) > self.fired,
            Side::After => did(server, since, |what| matches!(what, What::Slot { act, .. } if *act == done)),
        }
    }

    /// What it comes to when nobody acts any more but systemd and the hardware: where the next daemon must be.
    fn comes_to(&self) -> String {
        let truth = self.stage.server.truth();
        match truth.power {
            Power::Off | Power::GoingDown | Power::Halting => return "gpu-offline".into(),
            Power::PoweringUp | Power::Booting => return "gpu-idle".into(),
            Power::On => {}
        }
        let up = truth.units.iter().filter(|u| u.active == "active");
        let up: Vec<&str> = up.map(|u| u.name.trim_end_matches(".service")).collect();
        match up[..] {
            [] => "gpu-idle".into(),
            [one] => one.into(),
            _ => "conflict".into(),
        }
    }

    /// The next daemon looks, and is right; it does nothing but restore what is saved.
    async fn goes_on(&mut self) {
        let expected = self.comes_to();
        self.stage.server.faults().clear();
        self.inside().clear_all();
        let since = self.deeds();
        self.stage.start_daemon(false).await;
        self.says(&expected).await;
        self.stage.wait(QUIET).await;
        let deeds = self.stage.server.deeds_from(since);
        assert!(!deeds.iter().any(|deed| is_the_daemons(&deed.what)), "it went on by itself: {deeds:#?}");
        let violations = &self.stage.checker.violations;
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    /// Nothing is told of the last daemon's operations; their numbers may be those of what this one began by itself.
    async fn has_forgotten(&self) {
        let mut forgotten = 0;
        for id in 1..=3 {
            match self.stage.client.operation(id, false).await {
                Ok(record) => assert_eq!(record.cause, "auto_restore", "{record:?}"),
                Err(ClientError::Problem(problem)) if &*problem.code == "operation_forgotten" => forgotten += 1,
                Err(error) => panic!("operation {id}: {error:?}"),
            }
        }
        assert!(forgotten > 0, "a daemon that does nothing by itself knows three operations");
    }

    /// The effects of the daemon's last life.
    fn last_life(&self) -> BTreeSet<Point> {
        let mut effects = BTreeSet::new();
        for journal in self.stage.journals() {
            let replayed = replay(&journal[..], |told| match told {
                Told::Began { resumed: false, .. } => effects.clear(),
                Told::Step(step) => effects.extend(step.effects.iter().map(Point::of)),
                _ => {}
            });
            replayed.unwrap_or_else(|why| panic!("{why}"));
        }
        effects
    }
}

/// Listens from here on: what is sent after this is heard.
async fn listen(client: &Client) -> (Arc<Heard>, JoinHandle<()>) {
    let mut events = client.events().await.expect("somebody may listen");
    let told = Arc::<Heard>::default();
    let heard = Arc::clone(&told);
    let listener = tokio::spawn(async move {
        while let Ok(Some(change)) = events.next().await {
            match change.what.as_str() {
                "operation_began" => heard.began.store(true, Ordering::Relaxed),
                "operation_ended" => heard.ended.store(true, Ordering::Relaxed),
                _ => {}
            }
        }
    });
    (told, listener)
}

/// Every effect of a workflow, before and after, in a world of its own.
async fn kill_everywhere(workflow: Workflow) {
    let mut world = World::build(100 + workflow as u64, !matches!(workflow, Workflow::StopThatHangs)).await;
    let points = world.play(workflow, None).await;
    assert_eq!(points, workflow.points().iter().copied().collect(), "{workflow:?} has other effects");
    for kill in points.iter().flat_map(|point| Side::BOTH.map(|side| (*point, side))) {
        println!("{workflow:?}: {kill:?}");
        world.play(workflow, Some(kill)).await;
    }
    world.talk().await;
    world.stage.kill_daemon().await;
    for journal in world.stage.journals() {
        crate::journals::check(&journal[..], false).unwrap_or_else(|why| panic!("{workflow:?}: {why}"));
    }
}

/// Whatever it was to be stopped for: nobody's request is cut off.
#[tokio::test]
async fn killed_while_a_request_may_end_the_backend_goes_on_and_the_request_is_answered() {
    let mut world = World::build(99, true).await;
    let wishes = [
        (CommandWord::Stop, None),
        (CommandWord::Switch, Some(VLLM)),
        (CommandWord::Restart, Some(LLAMA)),
        (CommandWord::Shutdown, None),
    ];
    for (command, backend) in wishes {
        world.talk().await;
        let (inside, hangs) = (world.inside(), Fault::CompletionsHang);
        let (name, answered) = (hangs.name(), Arc::clone(&world.stage.answered));
        let (fired, before) = (inside.fired(name), answered.load(Ordering::Relaxed));
        inside.set(hangs);
        world.stage.asks_beside(LLAMA, world.prompt.clone(), 5);
        world.until("the request is in flight", |_| inside.fired(name) > fired).await;
        let since = world.deeds();
        let wish = CommandRequest { backend: backend.map(Into::into), ..CommandRequest::new(command) };
        world.stage.command(&wish).await.expect("accepted").expect("an operation");
        world.until("it drains", |status| status.phase.as_deref() == Some("draining")).await;
        world.stage.kill_daemon().await;
        world.stage.start_daemon(false).await;
        world.says(LLAMA).await;
        inside.clear_all();
        world.until("the request is answered", |_| answered.load(Ordering::Relaxed) > before).await;
        world.stage.wait(QUIET).await;
        let deeds = world.stage.server.deeds_from(since);
        assert!(!deeds.iter().any(|deed| is_the_daemons(&deed.what)), "{command:?}: {deeds:#?}");
    }
    world.talk().await;
}

macro_rules! each_killed {
    ($($name:ident = $workflow:ident;)*) => {
        $(#[tokio::test]
        async fn $name() {
            kill_everywhere(Workflow::$workflow).await;
        })*

        #[test]
        fn every_effect_is_in_some_workflow() {
            let all = [$(Workflow::$workflow),*];
            let points: BTreeSet<Point> = all.iter().flat_map(|workflow| workflow.points()).copied().collect();
            assert_eq!(points, Point::ALL.iter().copied().collect());
        }
    };
}

each_killed! {
    killed_in_a_cold_start_it_is_off_or_comes_up = ColdStart;
    killed_in_a_wake_it_is_off_or_comes_up = Wake;
    killed_in_a_switch_one_of_them_runs_or_none = Switch;
    killed_in_a_switch_back_the_conversation_comes_back = SwitchBack;
    killed_in_a_stop_it_runs_or_is_down = Stop;
    killed_in_a_stop_that_hangs_it_runs_or_is_down = StopThatHangs;
    killed_in_a_shutdown_it_is_on_or_off = Shutdown;
    killed_in_a_shutdown_that_keeps_the_server_on_it_runs_or_is_down = ShutdownKeptOn;
    killed_in_a_restart_the_conversation_comes_back = Restart;
    killed_in_a_resolve_there_is_a_conflict_or_none = Resolve;
    killed_in_a_save_the_backend_goes_on = SaveSlots;
    killed_in_a_hold_it_is_held_or_not = Hold;
    killed_in_a_release_it_is_held_or_not = Release;
}
