//! The driver is dropped in the middle of a simulated world, and a new one takes its place.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{sleep, sleep_until, timeout},
};
use wechsler::{
    driver::{
        self, Handle, Request,
        replay::{Told, replay},
    },
    machine::{
        Answer, BackendId, Cause, Command, Effect, Held, HoldSpec, Instant, Options, Outcome, Policy, PowerChoice,
        RestorePolicy, Selection, Verb,
        reading::{Ask, Reading},
    },
};

use super::{
    points::{Point, Side},
    sim::{self, Deed, Phase, Power, Sim, World},
};

const LLAMA: BackendId = BackendId(0);
const VLLM: BackendId = BackendId(1);
const PLAIN: Options = Options { replace: false, no_drain: false };
/// Tokens of the conversation that must not be lost.
const TOKENS: u64 = 500;
/// Longer than any operation here.
const LONG: Duration = Duration::from_mins(10);
/// Moments of each workflow at which the driver is dropped, beside those at its effects.
const MOMENTS: u32 = 16;

/// Something that is wanted, and where it begins.
struct Workflow {
    name: &'static str,
    /// The server is on.
    on: bool,
    /// What goes on before the driver comes.
    before: fn(&mut Sim),
    /// `None`: what a policy does by itself.
    command: Option<fn() -> Command>,
    policy: fn(&mut Policy),
}

fn nothing(_: &mut Sim) {}

fn llama(sim: &mut Sim) {
    sim.start_by_hand(LLAMA);
}

fn vllm(sim: &mut Sim) {
    sim.start_by_hand(VLLM);
}

fn as_usual(_: &mut Policy) {}

fn hold() -> Command {
    Command::Hold(HoldSpec { what: Held::Awake, lasts: None, reason: String::new(), by: String::new() })
}

/// Every workflow there is; `the_next_daemon_is_right_wherever_the_last_one_was_killed` sees that each effect is in one.
const WORKFLOWS: &[Workflow] = &[
    Workflow {
        name: "cold start",
        on: false,
        before: nothing,
        command: Some(|| Command::Start(Some(LLAMA), PLAIN)),
        policy: as_usual,
    },
    Workflow { name: "wake", on: false, before: nothing, command: Some(|| Command::Wake(PLAIN)), policy: as_usual },
    Workflow {
        name: "start of the other",
        on: true,
        before: nothing,
        command: Some(|| Command::Start(Some(VLLM), PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "switch",
        on: true,
        before: llama,
        command: Some(|| Command::Switch(VLLM, PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "switch back",
        on: true,
        before: vllm,
        command: Some(|| Command::Switch(LLAMA, PLAIN)),
        policy: as_usual,
    },
    Workflow { name: "stop", on: true, before: llama, command: Some(|| Command::Stop(PLAIN)), policy: as_usual },
    Workflow {
        name: "stop that hangs",
        on: true,
        before: |sim| {
            llama(sim);
            sim.faults.stop_hangs = true;
        },
        command: Some(|| Command::Stop(PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "shutdown",
        on: true,
        before: llama,
        command: Some(|| Command::Shutdown(PowerChoice::PowerOff, PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "restart",
        on: true,
        before: llama,
        command: Some(|| Command::Restart(None, PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "resolve",
        on: true,
        before: |sim| {
            llama(sim);
            vllm(sim);
        },
        command: Some(|| Command::Resolve(LLAMA, PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "slots save",
        on: true,
        before: llama,
        command: Some(|| Command::SaveSlots(Selection::All, PLAIN)),
        policy: as_usual,
    },
    Workflow {
        name: "slots restore",
        on: true,
        before: |sim| {
            saved(sim);
            llama(sim);
        },
        command: Some(|| Command::RestoreSlots(Selection::All, PLAIN)),
        policy: |policy| policy.backends[0].restore = RestorePolicy::Never,
    },
    Workflow {
        name: "restore by itself",
        on: true,
        before: |sim| {
            saved(sim);
            llama(sim);
        },
        command: None,
        policy: as_usual,
    },
    Workflow {
        name: "idle stop and power-off",
        on: true,
        before: llama,
        command: None,
        policy: |policy| {
            policy.idle_stop_after = Some(Duration::from_secs(20));
            policy.idle_power_off_after = Some(Duration::from_secs(20));
        },
    },
    Workflow {
        name: "checkpoint",
        on: true,
        before: llama,
        command: None,
        policy: |policy| policy.backends[0].checkpoint_quiet = Some(Duration::from_secs(20)),
    },
    Workflow { name: "hold", on: true, before: nothing, command: Some(hold), policy: as_usual },
];

/// Whatever an operation can have been begun by.
const CAUSES: &[&str] = &["command", "idle stop", "idle power-off", "restore by itself", "checkpoint"];

/// ... made from its type: a new one does not compile until it is here.
const fn called(cause: Cause) -> &'static str {
    match cause {
        Cause::Command(_) => CAUSES[0],
        Cause::IdleStop => CAUSES[1],
        Cause::IdlePowerOff => CAUSES[2],
        Cause::AutoRestore => CAUSES[3],
        Cause::Checkpoint => CAUSES[4],
    }
}

/// A conversation was saved in an earlier life.
fn saved(sim: &mut Sim) {
    sim.backend_mut(LLAMA).saved.push(sim::saved_slot(TOKENS));
}

/// When the driver is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kill {
    /// With the order of that number, which has not reached the world yet, or has and is not answered.
    Order(usize, Side),
    /// So long after its start.
    At(Duration),
}

/// The simulated world, and who watches for the order to be killed at.
#[derive(Clone)]
struct Watched {
    world: World,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    orders: AtomicUsize,
    kill: Mutex<Option<Kill>>,
    now: Notify,
    wrong: Mutex<Vec<String>>,
}

impl Seen {
    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

impl driver::World for Watched {
    async fn look(&self, ask: Ask, now: Instant) -> Reading {
        driver::World::look(&self.world, ask, now).await
    }

    async fn carry_out(&self, verb: Verb, within: Duration) -> Outcome {
        let number = self.seen.orders.fetch_add(1, Ordering::SeqCst);
        let kill = *self.seen.kill.lock().unwrap_or_else(PoisonError::into_inner);
        if kill == Some(Kill::Order(number, Side::Before)) {
            self.seen.now.notify_one();
            return std::future::pending().await;
        }
        if let Verb::StartUnit(id) = verb {
            let held = self.world.sim().holders();
            if held.iter().any(|other| *other != id) {
                self.seen.wrong(format!("{id} was started while {held:?} held the GPU"));
            }
        }
        if kill == Some(Kill::Order(number, Side::After)) {
            let now = self.world.now();
            let _ = self.world.sim().order(verb, now);
            self.seen.now.notify_one();
            return std::future::pending().await;
        }
        driver::World::carry_out(&self.world, verb, within).await
    }

    async fn post_mortem(&self, backend: BackendId) -> driver::PostMortem {
        driver::World::post_mortem(&self.world, backend).await
    }
}

struct Driver {
    handle: Handle,
    task: JoinHandle<()>,
    _end: watch::Sender<bool>,
}

impl Driver {
    fn start(world: &Watched, policy: &Policy, dir: &Path) -> Self {
        let (end, told) = watch::channel(false);
        let (handle, task) = driver::spawn(sim::setup(policy.clone(), Some(dir)), world.clone(), told);
        Self { handle, task, _end: end }
    }

    /// As a kill does: nothing more is done, nothing said.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn until(&self, what: &str, world: &World, so: impl Fn(&driver::status::Status) -> bool) {
        let mut status = self.handle.status.clone();
        let came = timeout(LONG, status.wait_for(|status| so(status))).await.is_ok();
        assert!(came, "never {what}: {:#?}\n{:#?}", self.handle.status.borrow(), *world.sim());
    }

    fn gives(&self, command: Command) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.handle.commands.try_send(Request { command, uid: None, answer }).expect("room in the queue");
        receiver
    }
}

/// What it comes to when nobody acts any more but systemd and the hardware: where the next daemon must be.
fn comes_to(sim: &Sim) -> String {
    let name = |id: BackendId| if id == LLAMA { "llama-cpp" } else { "vllm" };
    match sim.power {
        Power::Off | Power::GoingDown { .. } => return "gpu-offline".into(),
        Power::Booting { .. } | Power::On => {}
    }
    let stays = |id: &BackendId| !matches!(sim.backend(*id).phase, Phase::Stopping { until: Some(_) });
    match sim.holders().into_iter().filter(stays).collect::<Vec<_>>()[..] {
        [] => "gpu-idle".into(),
        [id] if matches!(sim.backend(id).phase, Phase::Stopping { .. }) => "stopping".into(),
        [id] => name(id).into(),
        _ => "conflict".into(),
    }
}

/// The conversation is in the slot, or saved.
fn is_kept(sim: &Sim) -> bool {
    let llama = sim.backend(LLAMA);
    let saved = llama.saved.iter().any(|saved| saved.tokens == TOKENS && saved.put_aside.is_none());
    saved || (llama.phase == Phase::Ready && llama.slots[0] == Some(TOKENS))
}

/// What an undisturbed run does.
struct Undisturbed {
    /// When each effect came, the driver's time, and whether it is an order.
    effects: Vec<(Duration, Point)>,
    /// What began its operations.
    causes: BTreeSet<&'static str>,
    lasts: Duration,
}

/// Plays a workflow, dropping the driver at `kill`, and checks how it goes on. Says what was done without a kill.
async fn play(workflow: &Workflow, kill: Option<Kill>, dir: &Path) -> Undisturbed {
    let mut policy = sim::policy();
    (workflow.policy)(&mut policy);
    policy.conflict_after = Duration::from_secs(1);
    policy.backends[0].stop_timeout = Duration::from_secs(10);
    let mut server = if workflow.on { Sim::on(&policy) } else { Sim::new(&policy) };
    server.times.boot = Duration::from_secs(3);
    server.times.load = vec![Duration::from_secs(1), Duration::from_secs(2)];
    let watched = Watched { world: World::new(server), seen: Arc::default() };
    let world = &watched.world;
    (workflow.before)(&mut world.sim());
    sleep(Duration::from_secs(4)).await;
    if !workflow.name.contains("restore") {
        world.sim().converse(LLAMA, TOKENS);
    }
    let has_talked = is_kept(&world.sim());
    *watched.seen.kill.lock().unwrap_or_else(PoisonError::into_inner) = kill;

    let driver = Driver::start(&watched, &policy, dir);
    let begun = tokio::time::Instant::now();
    let story = async {
        driver.until("settled", world, |status| status.state == comes_to(&world.sim())).await;
        if let Some(command) = workflow.command {
            let _ = driver.gives(command()).await;
            driver.until("ended", world, |status| status.operation.is_none()).await;
        } else {
            sleep(Duration::from_mins(2)).await;
        }
        // Whatever is only written later is written.
        sleep(Duration::from_secs(1)).await;
    };
    let at = match kill {
        Some(Kill::At(after)) => begun + after,
        _ => begun + LONG,
    };
    tokio::select! {
        () = story => {}
        () = watched.seen.now.notified() => {}
        () = sleep_until(at) => {}
    }
    let lasts = begun.elapsed();
    driver.kill().await;
    if kill.is_some() {
        goes_on(&watched, &policy, dir, has_talked).await;
    }
    let wrong = watched.seen.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(wrong.is_empty(), "{wrong:?}");
    // What was written last is on its way to the disk.
    sleep(Duration::from_millis(1)).await;
    let journal = fs::read(dir.join("steps.jsonl")).expect("a journal");
    crate::journals::check(&journal[..], false).unwrap_or_else(|why| panic!("{why}"));
    let (mut effects, mut causes) = (vec![], BTreeSet::new());
    let replayed = replay(&journal[..], |told| {
        let Told::Step(step) = told else { return };
        effects.extend(step.effects.iter().map(|effect| (step.at.since_start(), Point::of(effect))));
        causes.extend(step.effects.iter().filter_map(|effect| match effect {
            Effect::Began(op) => Some(called(op.cause)),
            _ => None,
        }));
    });
    replayed.expect("replayed");
    Undisturbed { effects, causes, lasts }
}

/// The next driver looks, and is right; it does nothing but what a policy wants; and everything works.
async fn goes_on(watched: &Watched, policy: &Policy, dir: &Path, has_talked: bool) {
    let world = &watched.world;
    *watched.seen.kill.lock().unwrap_or_else(PoisonError::into_inner) = None;
    assert!(!has_talked || is_kept(&world.sim()), "the conversation is lost: {:#?}", *world.sim());
    let expected = comes_to(&world.sim());
    let deeds = world.sim().deeds.len();
    let begun = tokio::time::Instant::now();
    let driver = Driver::start(watched, policy, dir);
    driver.until(&expected, world, |status| status.state == expected && status.operation.is_none()).await;
    // What it does by itself for want of use comes when nobody has used it for so long since it looks.
    let quiet = policy.backends[0].checkpoint_quiet;
    let first = [policy.idle_stop_after, policy.idle_power_off_after, quiet].into_iter().flatten().min();
    sleep_until(first.map_or(tokio::time::Instant::now() + Duration::from_secs(40), |after| begun + after)).await;
    let status = Arc::clone(&driver.handle.status.borrow());
    assert_eq!((status.state.as_str(), &status.operation), (expected.as_str(), &None));
    let done: Vec<Deed> = world.sim().deeds[deeds..].iter().map(|(_, deed)| *deed).collect();
    assert!(done.iter().all(|deed| *deed == Deed::Restored(LLAMA)) && done.len() <= 1, "{done:?}");
    world.sim().heal();
    for (id, name) in [(VLLM, "vllm"), (LLAMA, "llama-cpp")] {
        let wish = Options { replace: true, no_drain: true };
        loop {
            let command = match driver.handle.status.borrow().state.as_str() {
                "conflict" => Command::Resolve(id, wish),
                _ => Command::Switch(id, wish),
            };
            let answer =
                timeout(Duration::from_secs(5), driver.gives(command)).await.expect("in time").expect("answered");
            if !matches!(answer, Answer::Refused(_)) {
                break;
            }
            sleep(Duration::from_secs(5)).await;
        }
        driver.until(name, world, |status| status.state == name && status.operation.is_none()).await;
        assert_eq!(world.sim().holders(), [id]);
    }
    let slot = world.sim().backend(LLAMA).slots[0];
    let comes_back = policy.backends[0].restore != RestorePolicy::Never;
    assert!(!has_talked || !comes_back || slot == Some(TOKENS), "the conversation is lost: {slot:?}");
    driver.kill().await;
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("wechsler-ks-{}-{}", std::process::id(), name.replace(' ', "-")));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a folder");
    dir
}

/// In a world and a time of its own.
fn alone<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(future)
}

/// Each workflow with the points it has.
fn kills(undisturbed: &Undisturbed) -> Vec<(Point, Kill)> {
    let moment = Duration::from_nanos(1);
    let mut order = 0;
    let mut kills = vec![];
    for (at, point) in &undisturbed.effects {
        let sides = if point.is_order() {
            order += 1;
            Side::BOTH.map(|side| Kill::Order(order - 1, side))
        } else {
            [Kill::At(at.saturating_sub(moment)), Kill::At(*at + moment)]
        };
        kills.extend(sides.map(|kill| (*point, kill)));
    }
    kills
}

/// Drops the driver at every effect of a workflow and at many moments beside; the points there were, what began its
/// operations, and how often.
fn kill_everywhere(workflow: &Workflow) -> (BTreeSet<Point>, BTreeSet<&'static str>, usize) {
    let dir = folder(workflow.name);
    let undisturbed = alone(play(workflow, None, &dir));
    let mut all = kills(&undisturbed);
    let points = all.iter().map(|(point, _)| *point).collect();
    let moment = |n| (Point::Began, Kill::At(undisturbed.lasts * n / MOMENTS));
    all.extend((0..MOMENTS).map(moment));
    for (point, kill) in &all {
        let dir = folder(workflow.name);
        let played = std::panic::catch_unwind(|| alone(play(workflow, Some(*kill), &dir)));
        assert!(played.is_ok(), "{}, at {point:?}, {kill:?}; the journal is in {}", workflow.name, dir.display());
    }
    let _ = fs::remove_dir_all(&dir);
    (points, undisturbed.causes, all.len())
}

#[test]
fn the_next_daemon_is_right_wherever_the_last_one_was_killed() {
    let (mut reached, mut causes, mut times) = (BTreeSet::new(), BTreeSet::new(), 0);
    std::thread::scope(|threads| {
        let workflows: Vec<_> = WORKFLOWS.iter().map(|one| threads.spawn(|| kill_everywhere(one))).collect();
        for workflow in workflows {
            let (points, began_by, kills) = workflow.join().expect("see above");
            reached.extend(points);
            causes.extend(began_by);
            times += kills;
        }
    });
    println!("killed {times} times in {} workflows", WORKFLOWS.len());
    assert_eq!(reached, Point::ALL.iter().copied().collect(), "every effect is in some workflow");
    assert_eq!(causes, CAUSES.iter().copied().collect(), "whatever begins operations is in some workflow");
}
