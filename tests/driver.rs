//! The driver, the real machine and a simulated server, on paused time: ordering, cancellation, shutdown, back-pressure,
//! and what is kept.

mod sim;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sim::{Deed, Phase, Sim, World, setup};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc::error::TrySendError, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use wechsler::{
    driver::{
        self, Handle, OperationRecord, Pulse, Request, SHUTDOWN_AT_MOST, Setup,
        handle::{CHANGES_KEPT, COMMANDS_WAITING},
        slots::Tend,
        status::Status,
        world::SlotTask,
    },
    machine::{
        Answer, BackendId, Command, Held, HoldSpec, OpId, Options, Outcome, PowerChoice, Selection, Verb,
        reading::{Ask, Reading},
    },
};

const LLAMA: BackendId = BackendId(0);
const VLLM: BackendId = BackendId(1);
const START: Command = Command::Start(Some(LLAMA), Options { replace: false, no_drain: false });
/// Longer than anything here may take.
const LONG: Duration = Duration::from_mins(15);

/// A driver at work on a simulated server.
struct Bench {
    world: World,
    handle: Handle,
    task: JoinHandle<()>,
    end: watch::Sender<bool>,
}

impl Bench {
    fn new(sim: Sim) -> Self {
        Self::with(sim, setup(sim::policy(), None))
    }

    /// On a server that is on, llama.cpp started.
    async fn running() -> Self {
        let bench = Self::new(on());
        bench.state("gpu-idle").await;
        let op = bench.accepted(START).await;
        bench.ended(op).await;
        bench
    }

    fn with(sim: Sim, setup: Setup) -> Self {
        let world = World::new(sim);
        let (end, told) = watch::channel(false);
        let (handle, task) = driver::spawn(setup, world.clone(), told);
        Self { world, handle, task, end }
    }

    fn send(&self, command: Command) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let request = Request { command, uid: Some(1000), answer };
        self.handle.commands.try_send(request).expect("room in the queue");
        receiver
    }

    /// Asks, and must be answered within a second.
    async fn ask(&self, command: Command) -> Answer {
        self.ask_within(command, Duration::from_secs(1)).await
    }

    async fn ask_within(&self, command: Command, within: Duration) -> Answer {
        let answer = self.send(command);
        timeout(within, answer).await.expect("answered in time").expect("answered")
    }

    async fn accepted(&self, command: Command) -> OpId {
        match self.ask(command).await {
            Answer::Accepted { op, .. } => op,
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// Waits for a status.
    async fn until(&self, so: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut status = self.handle.status.clone();
        match timeout(LONG, status.wait_for(so)).await {
            Ok(status) => Arc::clone(&status.expect("the driver lives")),
            Err(late) => panic!("{late}; last: {:#?}", self.handle.status.borrow()),
        }
    }

    async fn state(&self, state: &str) -> Arc<Status> {
        self.until(|status| status.state == state).await
    }

    /// Waits for the end of an operation.
    async fn ended(&self, op: OpId) -> OperationRecord {
        let mut operations = self.handle.operations.clone();
        let find = |all: &Arc<Vec<OperationRecord>>| all.iter().find(|r| r.id == op.0 && r.end.is_some()).cloned();
        let all = timeout(LONG, operations.wait_for(|all| find(all).is_some())).await;
        let all = all.unwrap_or_else(|_| panic!("no end; status {:#?}", self.handle.status.borrow()));
        find(&all.expect("the driver lives")).expect("it was there")
    }

    async fn shut_down(self) -> World {
        self.end.send(true).expect("the driver lives");
        timeout(LONG, self.task).await.expect("ends").expect("without a panic");
        self.world
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("wechsler-driver-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a scratch directory");
    dir
}

fn on() -> Sim {
    Sim::on(&sim::policy())
}

fn off() -> Sim {
    Sim::new(&sim::policy())
}

fn hold(what: Held, lasts: Option<Duration>) -> Command {
    Command::Hold(HoldSpec { what, lasts, reason: "a test".into(), by: "ada".into() })
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_sees_what_is_so() {
    let bench = Bench::new(on());
    let status = bench.state("gpu-idle").await;
    assert_eq!(status.gpu_server, "on");
    assert_eq!(status.operation, None);
    assert!(bench.world.sim().deeds.is_empty(), "it only looked");
}

#[tokio::test(start_paused = true)]
async fn a_start_is_answered_at_once_and_ends_when_the_backend_is_healthy() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    let began = Instant::now();
    let op = bench.accepted(START).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    let on_record = bench.handle.operations.borrow().iter().any(|r| r.id == op.0);
    assert!(on_record, "who is told of an operation finds it on record");
    bench.state("llama-cpp-starting").await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(8) && took < Duration::from_millis(8500), "{took:?}");
    let status = bench.state("llama-cpp").await;
    assert_eq!(status.active_backend.as_deref(), Some("llama-cpp"));
    assert_eq!(status.health, "ok");
    assert_eq!(bench.world.sim().holders(), [LLAMA]);
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_wakes_boots_and_starts() {
    let bench = Bench::new(off());
    bench.state("gpu-offline").await;
    let op = bench.accepted(START).await;
    bench.state("waking").await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    assert_eq!(bench.world.sim().holders(), [LLAMA]);
}

#[tokio::test(start_paused = true)]
async fn a_switch_saves_stops_starts_and_switching_back_restores() {
    let bench = Bench::running().await;
    bench.world.sim().converse(LLAMA, 500);
    let op = bench.accepted(Command::Switch(VLLM, Options::default())).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    assert!(record.warnings.is_empty(), "{record:?}");
    let op = bench.accepted(Command::Switch(LLAMA, Options::default())).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let sim = bench.world.sim();
    assert_eq!(sim.backend(LLAMA).slots[0], Some(500));
    let deeds: Vec<_> = sim.deeds.iter().map(|(_, deed)| *deed).collect();
    assert_eq!(
        deeds,
        [
            Deed::Started(LLAMA),
            Deed::Saved(LLAMA),
            Deed::Stopped(LLAMA),
            Deed::Started(VLLM),
            Deed::Stopped(VLLM),
            Deed::Started(LLAMA),
            Deed::Restored(LLAMA),
        ]
    );
}

/// llama.cpp holds a conversation, and cannot be saved when that is wanted.
async fn about_to_lose_a_conversation() -> Bench {
    let bench = Bench::running().await;
    bench.world.sim().converse(LLAMA, 500);
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.world.sim().faults.save_fails = true;
    bench
}

fn tells_not_saved(status: &Status) -> bool {
    status.attention.iter().any(|a| a.code == "not_saved")
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_could_not_save_is_done_and_says_what_it_cost_until_the_next_good_save() {
    let bench = about_to_lose_a_conversation().await;
    let op = bench.accepted(Command::Switch(VLLM, Options::default())).await;
    let record = bench.ended(op).await;
    bench.world.sim().heal();
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let lost: Vec<_> = record.not_saved.iter().map(|lost| (&*lost.backend, &*lost.code, &*lost.message)).collect();
    assert_eq!(lost, [("llama-cpp", "save_failed", "the server said 500")]);
    let status = bench.until(|status| tells_not_saved(status)).await;
    let told = status.attention.iter().find(|a| a.code == "not_saved").expect("just seen");
    assert!(told.message.starts_with("llama-cpp: ") && told.message.contains("the server said 500"), "{told:?}");
    let op = bench.accepted(Command::Switch(LLAMA, Options::default())).await;
    let record = bench.ended(op).await;
    assert_eq!(record.not_saved, [], "that was another one's doing");
    bench.world.sim().converse(LLAMA, 500);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(tells_not_saved(&bench.handle.status_now()), "nothing was saved since");
    let op = bench.accepted(Command::Stop(Options::default())).await;
    assert_eq!(bench.ended(op).await.not_saved, []);
    bench.until(|status| !tells_not_saved(status)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_could_not_save_says_so_at_its_end_and_for_a_day() {
    let bench = about_to_lose_a_conversation().await;
    let op = bench.accepted(Command::Stop(Options::default())).await;
    assert_eq!(bench.ended(op).await.not_saved.len(), 1);
    tokio::time::sleep(Duration::from_hours(23)).await;
    assert!(tells_not_saved(&bench.handle.status_now()));
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert!(!tells_not_saved(&bench.handle.status_now()));
}

#[tokio::test(start_paused = true)]
async fn an_order_whose_answer_is_lost_ends_as_unknown_within_its_time_and_the_look_decides() {
    let dir = scratch("lost");
    let bench = Bench::with(on(), setup(sim::policy(), Some(&dir)));
    bench.state("gpu-idle").await;
    bench.world.sim().faults.answers_lost = true;
    bench.world.sim().times.load[0] = Duration::from_secs(30);
    let began = Instant::now();
    let op = bench.accepted(START).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    assert!(began.elapsed() < Duration::from_secs(35));
    bench.shut_down().await;
    let steps = std::fs::read_to_string(dir.join("steps.jsonl")).expect("the journal");
    let unknown = steps.lines().find(|line| line.contains("\"Unknown\":{\"code\":\"no_answer\""));
    assert!(unknown.is_some(), "{steps}");
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test(start_paused = true)]
async fn looks_that_hang_do_not_stop_commands() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    bench.world.sim().faults.looks_hang = true;
    tokio::time::sleep(Duration::from_secs(15)).await;
    for _ in 0..20 {
        let answer = bench.ask(hold(Held::Awake, None)).await;
        assert!(matches!(answer, Answer::Done { hold: Some(_) }), "{answer:?}");
    }
    assert_eq!(bench.handle.status.borrow().holds.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_waits_for_a_look_keeps_its_place_in_the_line() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    bench.world.sim().faults.looks_hang = true;
    let began = Instant::now();
    let off = || bench.send(Command::Shutdown(PowerChoice::PowerOff, Options::default()));
    for (answer, second) in [(off(), 3), (off(), 6), (bench.send(hold(Held::Awake, None)), 6)] {
        timeout(LONG, answer).await.expect("in time").expect("answered");
        assert_eq!(began.elapsed().as_secs(), second, "no look came in time");
    }
}

#[tokio::test(start_paused = true)]
async fn slots_are_tended_one_wish_after_the_other() {
    let bench = Bench::new(on());
    for _ in 0..10 {
        let (answer, told) = oneshot::channel();
        let task = SlotTask::Verify { name: None, generation: None };
        bench.handle.tending.try_send(Tend { backend: LLAMA, task, answer }).expect("room");
        let told = timeout(LONG, told).await.expect("in time").expect("answered");
        assert_eq!(told.map_err(|why| why.code), Err("no_slots".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_told_to_is_off_on_purpose_and_one_that_vanishes_is_not() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    let op = bench.accepted(Command::Shutdown(PowerChoice::PowerOff, Options::default())).await;
    bench.ended(op).await;
    let status = bench.until(|status| status.gpu_server == "off").await;
    assert_eq!(status.reason.as_deref(), Some("powered-off"));
    bench.world.sim().press();
    bench.until(|status| status.gpu_server == "on").await;
    bench.world.sim().cut();
    let status = bench.until(|status| status.gpu_server == "off").await;
    assert_eq!(status.reason.as_deref(), Some("unreachable"));
}

#[tokio::test(start_paused = true)]
async fn looks_that_hang_are_given_up_and_what_comes_after_counts() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    bench.world.sim().faults.looks_hang = true;
    tokio::time::sleep(Duration::from_mins(2)).await;
    bench.world.sim().heal();
    bench.world.sim().start_by_hand(LLAMA);
    bench.state("llama-cpp").await;
}

#[tokio::test(start_paused = true)]
async fn every_command_is_answered_whatever_state_it_meets() {
    for sim in [on(), off()] {
        let bench = Bench::new(sim);
        let options = Options { replace: true, no_drain: true };
        let commands = [
            Command::Start(None, options),
            Command::Switch(VLLM, options),
            Command::Stop(options),
            Command::Restart(None, options),
            Command::Wake(options),
            Command::Shutdown(PowerChoice::KeepOn, options),
            Command::Shutdown(PowerChoice::PowerOff, options),
            Command::Resolve(VLLM, options),
            Command::Cancel,
            hold(Held::Gpu, Some(Duration::from_secs(5))),
            Command::SaveSlots(Selection::All, options),
            Command::RestoreSlots(Selection::All, options),
        ];
        for round in 0..4 {
            for command in &commands {
                bench.ask_within(command.clone(), Duration::from_secs(5)).await;
            }
            tokio::time::sleep(Duration::from_secs(20 * round)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn told_to_end_in_the_middle_of_an_order_it_leaves_the_world_as_it_is() {
    let bench = Bench::running().await;
    bench.world.sim().faults.stop_hangs = true;
    bench.accepted(Command::Stop(Options::default())).await;
    bench.until(|s| s.phase.as_deref() == Some("stopping")).await;
    let deeds = bench.world.sim().deeds.len();
    let began = Instant::now();
    let world = bench.shut_down().await;
    assert!(began.elapsed() <= SHUTDOWN_AT_MOST);
    tokio::time::sleep(LONG).await;
    assert_eq!(world.sim().deeds.len(), deeds, "nothing is done any more");
}

#[tokio::test(start_paused = true)]
async fn the_next_daemon_is_right_again_after_its_next_look() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    bench.accepted(START).await;
    bench.state("llama-cpp-starting").await;
    let world = bench.shut_down().await;
    let sim = world.sim().clone();
    let bench = Bench::with(sim, setup(sim::policy(), None));
    let status = bench.state("llama-cpp").await;
    assert_eq!(status.operation, None, "what was under way is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_keeps_nobody_waiting() {
    let bench = Bench::new(on());
    // The driver has not been given the processor yet.
    let waiting: Vec<_> = (0..COMMANDS_WAITING).map(|_| bench.send(Command::Cancel)).collect();
    let (answer, _) = oneshot::channel();
    let request = Request { command: Command::Cancel, uid: None, answer };
    let refused = bench.handle.commands.try_send(request);
    assert!(matches!(refused, Err(TrySendError::Full(_))));
    for answer in waiting {
        timeout(Duration::from_secs(1), answer).await.expect("in time").expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_is_told_that_it_missed_something() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    let mut slow = bench.handle.changes.subscribe();
    bench.world.sim().faults.orders_lost = true;
    for _ in 0..CHANGES_KEPT {
        bench.accepted(START).await;
        bench.ask(Command::Cancel).await;
    }
    assert!(matches!(slow.recv().await, Err(RecvError::Lagged(_))));
    assert!(slow.recv().await.is_ok(), "and goes on with what is kept");
}

#[tokio::test(start_paused = true)]
async fn changes_tell_the_story_in_order() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    let mut changes = bench.handle.changes.subscribe();
    let op = bench.accepted(START).await;
    bench.ended(op).await;
    bench.state("llama-cpp").await;
    let mut told = vec![];
    while let Ok(change) = changes.try_recv() {
        told.push(change.what.clone());
    }
    assert_eq!(told.first().map(String::as_str), Some("operation_began"));
    assert_eq!(told.last().map(String::as_str), Some("operation_ended"));
    assert!(told.iter().filter(|what| *what == "state").count() >= 2, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn holds_survive_a_restart_and_expire_by_the_wall_clock() {
    let dir = scratch("holds");
    let bench = Bench::with(on(), setup(sim::policy(), Some(&dir)));
    bench.ask(hold(Held::Awake, None)).await;
    bench.ask(hold(Held::Backend(VLLM), Some(Duration::from_hours(1)))).await;
    let sim = bench.shut_down().await.sim().clone();
    let bench = Bench::with(sim, setup(sim::policy(), Some(&dir)));
    let holds = bench.state("gpu-idle").await.holds.clone();
    let what: Vec<_> = holds.iter().map(|h| (h.what.as_str(), h.until.is_some())).collect();
    assert_eq!(what, [("awake", false), ("vllm", true)]);
    let answer = bench.ask(hold(Held::Gpu, None)).await;
    let Answer::Done { hold: Some(new) } = answer else { panic!("not held: {answer:?}") };
    assert!(holds.iter().all(|h| h.id != new.0), "a new hold has a new name");
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test(start_paused = true)]
async fn damaged_files_are_lived_without() {
    let dir = scratch("damaged");
    for name in ["holds.json", "durations.json", "steps.jsonl"] {
        std::fs::write(dir.join(name), b"{\0\xff").expect("written");
    }
    let bench = Bench::with(on(), setup(sim::policy(), Some(&dir)));
    assert!(bench.state("gpu-idle").await.holds.is_empty());
    let op = bench.accepted(START).await;
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test(start_paused = true)]
async fn how_long_things_take_is_learnt_and_kept() {
    let dir = scratch("learnt");
    let bench = Bench::with(on(), setup(sim::policy(), Some(&dir)));
    let before = bench.state("gpu-idle").await;
    assert_eq!(before.backends["llama-cpp"].start_seconds_expected, Some(99.0), "as configured");
    let op = bench.accepted(START).await;
    bench.ended(op).await;
    let sim = bench.shut_down().await.sim().clone();
    let bench = Bench::with(sim, setup(sim::policy(), Some(&dir)));
    let after = bench.state("llama-cpp").await;
    let learnt = after.backends["llama-cpp"].start_seconds_expected.expect("known");
    assert!((8.0..8.5).contains(&learnt), "{learnt}");
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test(start_paused = true)]
async fn how_long_a_save_takes_is_learnt_from_its_answer() {
    let bench = Bench::running().await;
    for expected in [None, Some(0.4)] {
        bench.world.sim().converse(LLAMA, 300);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let op = bench.accepted(Command::SaveSlots(Selection::All, Options::default())).await;
        let told = bench.handle.status.borrow().operation.as_ref().and_then(|op| op.expected_seconds);
        assert_eq!(told.map(|seconds| (seconds * 10.0).round() / 10.0), expected);
        bench.ended(op).await;
    }
}

/// llama.cpp holds a conversation, and that was seen.
async fn with_a_conversation() -> Bench {
    let bench = Bench::running().await;
    bench.world.sim().converse(LLAMA, 300);
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench
}

#[tokio::test(start_paused = true)]
async fn who_is_told_that_a_save_has_ended_finds_what_it_saved() {
    let bench = with_a_conversation().await;
    let op = bench.accepted(Command::SaveSlots(Selection::All, Options::default())).await;
    assert!(bench.handle.status_now().saved_slots.is_empty());
    bench.ended(op).await;
    assert_eq!(bench.handle.status_now().saved_slots.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_delays_the_end_of_a_save_by_half_a_second_and_no_more() {
    let bench = with_a_conversation().await;
    let saves = bench.world.sim().times.save;
    bench.world.sim().faults.looks_hang = true;
    let began = Instant::now();
    let op = bench.accepted(Command::SaveSlots(Selection::All, Options::default())).await;
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"));
    let late = began.elapsed().saturating_sub(saves);
    assert!((Duration::from_millis(500)..Duration::from_secs(1)).contains(&late), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_save_that_ends_late_has_ended_even_if_looks_hang() {
    let bench = with_a_conversation().await;
    let within = sim::policy().backend(LLAMA).save_timeout;
    bench.world.sim().times.save = within.saturating_sub(Duration::from_millis(150));
    let op = bench.accepted(Command::SaveSlots(Selection::All, Options::default())).await;
    tokio::time::sleep(within.saturating_sub(Duration::from_millis(200))).await;
    bench.world.sim().faults.looks_hang = true;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    assert!(record.warnings.is_empty(), "{record:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_gone_from_the_status_when_that_is_answered() {
    let bench = with_a_conversation().await;
    let op = bench.accepted(Command::SaveSlots(Selection::All, Options::default())).await;
    bench.ended(op).await;
    let (answer, told) = oneshot::channel();
    let task = SlotTask::Forget { name: "localbot".into(), generation: None };
    bench.handle.tending.try_send(Tend { backend: LLAMA, task, answer }).expect("room");
    timeout(LONG, told).await.expect("in time").expect("answered").expect("forgotten");
    let status = bench.handle.status_now();
    assert!(status.saved_slots.is_empty() && !status.restore_available, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_ends_together_with_what_its_unit_says() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    bench.world.sim().backend_mut(LLAMA).crashes_to_come = 5;
    let op = bench.accepted(START).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("failed"), "{record:?}");
    assert_eq!(record.code.as_deref(), Some("crash_loop"), "{record:?}");
    assert_eq!(record.post_mortem, ["journal of backend 0"]);
    let status = bench.until(|s| s.last_error.is_some()).await;
    let error = status.last_error.as_ref().expect("it is there");
    assert_eq!(error.code, "crash_loop");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_goes_on_loading_is_not_said_to_be_out_of_reach() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    bench.world.sim().faults.load_hangs = true;
    let op = bench.accepted(START).await;
    assert_eq!(bench.ended(op).await.code.as_deref(), Some("health_timeout"));
    assert!(bench.world.sim().listens(LLAMA), "and says that it loads");
}

#[tokio::test(start_paused = true)]
async fn the_journal_numbers_requests_and_tells_a_quiet_server_in_few_lines() {
    let dir = scratch("quiet");
    let bench = Bench::with(on(), setup(sim::policy(), Some(&dir)));
    bench.state("gpu-idle").await;
    for _ in 0..2 {
        bench.ask(hold(Held::Awake, None)).await;
    }
    tokio::time::sleep(Duration::from_mins(30)).await;
    bench.shut_down().await;
    let steps = std::fs::read_to_string(dir.join("steps.jsonl")).expect("the journal");
    assert!(steps.contains("\"request\":1") && steps.contains("\"request\":2"), "{steps}");
    let told = steps.lines().count();
    assert!((3..30).contains(&told), "{told} lines\n{steps}");
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test(start_paused = true)]
async fn what_a_switch_leaves_to_tidy_up_is_done_soon_after_it_and_not_on_the_way() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let op = bench.accepted(START).await;
    bench.ended(op).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.world.litter(3);
    let op = bench.accepted(Command::Switch(VLLM, Options::default())).await;
    bench.ended(op).await;
    assert_eq!(*bench.world.tidied(), (vec![], 3), "nothing on the way");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.world.tidied().1, 0, "and all of it soon after");
    bench.world.litter(0);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert!((9..=11).contains(&bench.world.tidied().0.len()), "once a minute at rest: {:?}", bench.world.tidied().0);
}

#[tokio::test(start_paused = true)]
async fn a_power_off_is_judged_by_who_is_logged_in_now() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    bench.world.sim().logins.push("ada on pts/0".into());
    let command = Command::Shutdown(PowerChoice::PowerOff, Options::default());
    let answer = bench.ask_within(command, Duration::from_secs(5)).await;
    if let Answer::Accepted { op, .. } = answer {
        assert_eq!(bench.ended(op).await.code.as_deref(), Some("blocked"));
    }
    assert!(bench.world.sim().deeds.is_empty(), "she works on undisturbed");
    let login = bench.until(|s| s.blockers.iter().any(|b| b.kind == "login")).await;
    assert_eq!(login.gpu_server, "on");
}

#[tokio::test(start_paused = true)]
async fn a_server_powered_off_is_said_to_be_so() {
    let bench = Bench::new(on());
    bench.state("gpu-idle").await;
    let command = Command::Shutdown(PowerChoice::PowerOff, Options::default());
    let op = bench.accepted(command).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let status = bench.state("gpu-offline").await;
    assert_eq!(status.reason.as_deref(), Some("powered-off"));
    assert_eq!(status.health, "ok");
}

#[tokio::test(start_paused = true)]
async fn the_sign_of_life_comes_from_the_loop_and_ends_with_it() {
    let beats = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&beats);
    let pulse = Pulse {
        every: Duration::from_secs(10),
        beat: Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    };
    let mut setup = setup(sim::policy(), None);
    setup.pulse = Some(pulse);
    let bench = Bench::with(on(), setup);
    tokio::time::sleep(Duration::from_secs(95)).await;
    let alive = beats.load(Ordering::Relaxed);
    assert!((9..=11).contains(&alive), "{alive}");
    bench.shut_down().await;
    tokio::time::sleep(LONG).await;
    assert_eq!(beats.load(Ordering::Relaxed), alive);
}

/// A world with a bug.
struct Broken;

impl driver::World for Broken {
    async fn look(&self, _: Ask, _: wechsler::machine::Instant) -> Reading {
        panic!("a bug in an adapter")
    }
    async fn carry_out(&self, _: Verb, _: Duration) -> Outcome {
        std::future::pending().await
    }
    async fn post_mortem(&self, _: BackendId) -> wechsler::driver::PostMortem {
        wechsler::driver::PostMortem::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_look_ends_the_driver_and_is_not_taken_for_silence() {
    let (_end, told) = watch::channel(false);
    let (_handle, task) = driver::spawn(setup(sim::policy(), None), Broken, told);
    let ended = timeout(LONG, task).await.expect("ends");
    assert!(ended.expect_err("not in peace").is_panic());
}

#[tokio::test(start_paused = true)]
async fn at_rest_the_world_is_left_alone() {
    let mut sim = on();
    sim.start_by_hand(LLAMA);
    let bench = Bench::new(sim);
    bench.state("llama-cpp").await;
    assert_eq!(bench.world.sim().backend(LLAMA).phase, Phase::Ready);
    bench.world.sim().looks = 0;
    tokio::time::sleep(Duration::from_mins(10)).await;
    let looks = bench.world.sim().looks;
    assert!((60..=220).contains(&looks), "{looks} looks in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_hangs_is_killed_once_and_the_switch_goes_on() {
    let bench = Bench::running().await;
    bench.world.sim().faults.stop_hangs = true;
    let op = bench.accepted(Command::Switch(VLLM, Options::default())).await;
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:?}");
    let sim = bench.world.sim();
    let kills = sim.deeds.iter().filter(|(_, d)| *d == Deed::Killed(LLAMA));
    assert_eq!(kills.count(), 1, "{:?}", sim.deeds);
    assert_eq!(sim.holders(), [VLLM]);
}

#[tokio::test(start_paused = true)]
async fn a_switch_costs_little_beyond_what_stopping_and_loading_take() {
    let bench = Bench::running().await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let bare = {
        let mut sim = bench.world.sim();
        sim.times.gpu_release = Duration::ZERO;
        sim.times.stop + sim.times.load[1]
    };
    let began = Instant::now();
    let options = Options { replace: false, no_drain: true };
    let op = bench.accepted(Command::Switch(VLLM, options)).await;
    bench.ended(op).await;
    let more = began.elapsed().saturating_sub(bare);
    assert!(more < Duration::from_millis(100), "{more:?}: {:#?}", bench.world.sim().deeds);
}
