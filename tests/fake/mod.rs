//! A daemon without a machine: the real socket and API, and behind the handle a script that plays a driver.
//!
//! What the commands do: `start` runs through its phases and is done with a warning; `switch` fails with last words; `restart`
//! never ends; `stop` is already so; `cancel` is refused; `shutdown` is refused as busy; `wake` is never answered; `save`
//! and `resolve` are taken at once. Saved slots are forgotten, and found damaged when verified.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use wechsler::{
    driver::{
        Change, Handle, OperationRecord, Request,
        handle::{CHANGES_KEPT, COMMANDS_WAITING},
        slots::{Selections, Tend},
        status::{
            AttentionStatus, BackendStatus, Blocker, ErrorStatus, GpuMemory, HoldStatus, ModelStatus, NextActionStatus,
            OperationStatus, RestoreStatus, SavedSlotStatus, SlotStatus, Status, UnitStatus,
        },
        world::{SlotTask, SlotTold},
    },
    front::socket::{Listener, serve},
    machine::{Answer, Command, HoldId, OpId, Policy, Refusal, Warning},
};

/// A fake daemon on a socket of its own.
pub struct Fake {
    pub socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A folder that goes with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wechsler-front-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("wechsler.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Fake {
    /// Begins to serve on `socket`; each phase of a scripted operation takes `step`.
    pub fn serve(socket: &Path, step: Duration) -> Self {
        let (ending, told_to) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let path = socket.to_path_buf();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = Listener::bind(&path, None).await.unwrap();
                let (handle, script) = Script::new(step);
                tokio::spawn(script.play());
                ready.send(()).unwrap();
                serve(listener, handle, async {
                    let _ = told_to.await;
                })
                .await;
            });
        });
        is_ready.recv().unwrap();
        Self { socket: socket.to_path_buf(), stop: Some(ending), thread: Some(thread) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What plays the driver.
pub struct Script {
    step: Duration,
    commands: mpsc::Receiver<Request>,
    stage: Stage,
    /// Commands that are never answered, kept so that they are not answered by being dropped.
    unanswered: Vec<Request>,
}

#[derive(Clone)]
struct Stage {
    status: Arc<watch::Sender<Arc<Status>>>,
    changes: broadcast::Sender<Arc<Change>>,
    operations: Arc<watch::Sender<Arc<Vec<OperationRecord>>>>,
}

impl Script {
    pub fn new(step: Duration) -> (Handle, Self) {
        let (commands, taken) = mpsc::channel(COMMANDS_WAITING);
        let (status_in, status) = watch::channel(Arc::new(serving()));
        let (operations_in, operations) = watch::channel(Arc::default());
        let (changes, _) = broadcast::channel(CHANGES_KEPT);
        let (tending, mut tended) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Tend { task, answer, .. }) = tended.recv().await {
                let _ = answer.send(tend(task));
            }
        });
        let handle = Handle {
            commands,
            tending,
            selections: Selections::default(),
            status,
            changes: changes.clone(),
            operations,
            policy: Arc::new(policy()),
        };
        let script = Self {
            step,
            commands: taken,
            stage: Stage { status: Arc::new(status_in), changes, operations: Arc::new(operations_in) },
            unanswered: Vec::new(),
        };
        (handle, script)
    }

    pub async fn play(mut self) {
        let mut next = 1;
        while let Some(request) = self.commands.recv().await {
            let mut begin = |kind, goal| {
                let id = next;
                next += 1;
                let stage = self.stage.clone();
                stage.began(id, kind, goal);
                (id, stage, self.step)
            };
            let accepted = |id| Answer::Accepted { op: OpId(id), joined: false };
            let answer = match &request.command {
                Command::Start(..) => {
                    let (id, stage, step) = begin("start", Some("llama-cpp"));
                    tokio::spawn(stage.start(id, step));
                    accepted(id)
                }
                Command::Switch(..) => {
                    let (id, stage, step) = begin("start", Some("vllm"));
                    tokio::spawn(stage.fail(id, step));
                    accepted(id)
                }
                Command::Restart(..) => {
                    let (id, stage, _) = begin("restart", Some("llama-cpp"));
                    stage.phase(id, "restart", "llama-cpp", "stopping");
                    accepted(id)
                }
                Command::Stop(..) => Answer::AlreadySo,
                Command::Cancel => Answer::Refused(Refusal::NothingToCancel),
                Command::Shutdown(..) => Answer::Refused(Refusal::Busy),
                Command::Wake(..) => {
                    self.unanswered.push(request);
                    continue;
                }
                Command::Hold(_) => Answer::Done { hold: Some(HoldId(3)) },
                Command::Release(HoldId(3)) => Answer::Done { hold: None },
                Command::Release(_) => Answer::Refused(Refusal::NoSuchHold),
                Command::Resolve(..) | Command::SaveSlots(..) | Command::RestoreSlots(..) => {
                    Answer::Done { hold: None }
                }
            };
            let _ = request.answer.send(answer);
        }
    }
}

fn tend(task: SlotTask) -> Result<Vec<SlotTold>, Warning> {
    let told = |name: Option<String>, generation: Option<u64>, code: &str| SlotTold {
        name: name.unwrap_or_else(|| "localbot".into()),
        generation: generation.unwrap_or(7),
        code: code.into(),
        message: String::new(),
    };
    match task {
        SlotTask::Forget { generation: Some(1000..), .. } => Err(Warning::new("no_such_generation", "there is none")),
        SlotTask::Forget { name, generation } => Ok(vec![told(Some(name), generation, "forgotten")]),
        SlotTask::Verify { name, generation } => Ok(vec![told(name, generation, "damaged")]),
        SlotTask::Proved { .. } => Ok(vec![]),
    }
}

impl Stage {
    async fn start(self, id: u64, step: Duration) {
        for phase in ["waking", "starting", "restoring"] {
            self.phase(id, "start", "llama-cpp", phase);
            tokio::time::sleep(step).await;
        }
        self.ended(id, |record| {
            record.end = Some("done".into());
            record.warnings = vec![Warning::new("restore_rejected", "The slot did not fit; the context is empty.")];
        });
    }

    async fn fail(self, id: u64, step: Duration) {
        self.phase(id, "start", "vllm", "starting");
        tokio::time::sleep(step).await;
        self.ended(id, |record| {
            record.end = Some("failed".into());
            record.code = Some("start_failed".into());
            record.message = Some("The backend's unit did not start, or ended at once.".into());
            record.hint = Some("read the unit's result and journal lines".into());
            record.post_mortem = vec![
                "vllm.service: failed (exit-code), status 1".into(),
                "ValueError: no such model \x1b[31m/mnt/models/x\x1b[0m".into(),
            ];
        });
    }

    fn began(&self, id: u64, kind: &str, goal: Option<&str>) {
        let record = OperationRecord {
            id,
            kind: kind.into(),
            goal: goal.map(Into::into),
            cause: "command".into(),
            started: now(),
            ..OperationRecord::default()
        };
        self.operations.send_modify(|records| {
            Arc::make_mut(records).push(record.clone());
        });
        self.tell("operation_began", format!("{kind} began"), Some(record));
    }

    fn phase(&self, id: u64, kind: &str, goal: &str, phase: &str) {
        let started = self.operations.borrow().last().unwrap().started.clone();
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.state = format!("{goal}-starting");
            status.phase = Some(phase.into());
            status.health = "starting".into();
            status.operation = Some(OperationStatus {
                id,
                kind: kind.into(),
                goal: Some(goal.into()),
                cause: "command".into(),
                phase: phase.into(),
                started,
                elapsed_seconds: 0.5,
                expected_seconds: Some(8.0),
            });
        });
        self.tell("state", format!("{goal}-starting ({phase})"), None);
    }

    fn ended(&self, id: u64, end: impl FnOnce(&mut OperationRecord)) {
        let mut ended = None;
        self.status.send_replace(Arc::new(serving()));
        self.operations.send_modify(|records| {
            let record = Arc::make_mut(records).iter_mut().find(|record| record.id == id).unwrap();
            end(record);
            record.ended = Some(now());
            ended = Some(record.clone());
        });
        self.tell("operation_ended", format!("operation {id} ended"), ended);
    }

    fn tell(&self, what: &str, line: String, operation: Option<OperationRecord>) {
        let _ = self.changes.send(Arc::new(Change {
            at: now(),
            what: what.into(),
            line,
            status: self.status.borrow().clone(),
            operation,
        }));
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// An hour into the past or the future.
pub fn hours(from_now: i64) -> String {
    let hours = Duration::from_hours(from_now.unsigned_abs());
    let time =
        if from_now < 0 { SystemTime::now() - hours } else { SystemTime::now() + hours + Duration::from_secs(1) };
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The status of the workflows' example: llama-cpp is up and well.
pub fn serving() -> Status {
    let backend = |kind: &str, state: &str, start| BackendStatus {
        kind: kind.into(),
        url: format!("http://{kind}:8{}0", if kind == "vllm" { "00" } else { "08" }),
        state: state.into(),
        unit: UnitStatus { name: format!("{kind}.service"), active: Some("active".into()), ..UnitStatus::default() },
        start_seconds_expected: Some(start),
        ..BackendStatus::default()
    };
    let gpu = |used| GpuMemory { used_mib: Some(used), total_mib: Some(12288) };
    Status {
        schema: 1,
        server: "gpu".into(),
        gpu_server: "on".into(),
        state: "llama-cpp".into(),
        since: Some(hours(-1)),
        control: Some("ok".into()),
        active_backend: Some("llama-cpp".into()),
        health: "ok".into(),
        uptime_seconds: Some(3600),
        model: Some(ModelStatus { id: "Nemotron-3-Nano-30B".into(), n_ctx: Some(196_608) }),
        slots: vec![SlotStatus {
            id: 0,
            n_ctx: 196_608,
            is_processing: false,
            tokens: Some(4096),
            restored_tokens: None,
        }],
        saved_slots: vec!["localbot".into()],
        saved_slot_details: vec![SavedSlotStatus {
            name: "localbot".into(),
            backend: "llama-cpp".into(),
            bytes: 48_000_000,
            saved_at: hours(-1),
            model: "Nemotron-3-Nano-30B".into(),
            tokens: 4096,
            put_aside: None,
            slot: 0,
            generation: 7,
            last_restore: Some(RestoreStatus {
                at: "2026-01-02T03:00:00Z".into(),
                tokens: 4096,
                verdict: "effective".into(),
                text: "effective, 99% of the prompt reused".into(),
                reused: Some(4095),
                computed: Some(5),
            }),
            useless: None,
        }],
        gpu_memory: Some(BTreeMap::from([("gpu0".into(), gpu(11573)), ("gpu1".into(), gpu(11099))])),
        backends: BTreeMap::from([
            ("llama-cpp".into(), backend("llama-cpp", "running", 8.0)),
            ("vllm".into(), backend("vllm", "stopped", 80.0)),
        ]),
        ages: BTreeMap::from([("ssh".into(), 0.5), ("llama-cpp.saved".into(), 0.5)]),
        ..Status::default()
    }
}

/// A status with something in every field.
pub fn everything() -> Status {
    Status {
        reason: Some("unreachable".into()),
        phase: Some("restoring".into()),
        operation: Some(OperationStatus {
            id: 7,
            kind: "start".into(),
            goal: Some("llama-cpp".into()),
            cause: "command".into(),
            phase: "restoring".into(),
            started: hours(-1),
            elapsed_seconds: 3600.0,
            expected_seconds: Some(20.0),
        }),
        next_action: Some(NextActionStatus {
            what: "power-off".into(),
            at: hours(1),
            because: "idle.power_off_after".into(),
        }),
        blockers: vec![Blocker {
            kind: "login".into(),
            what: "alice on pts/0 from 10.0.0.7".into(),
            blocks: vec!["power-off".into()],
        }],
        attention: vec![AttentionStatus {
            code: "wake_unarmed".into(),
            message: "The network card is not armed.".into(),
            hint: "ethtool -s NIC wol g".into(),
            since: hours(-2),
            backend: None,
        }],
        last_error: Some(ErrorStatus {
            code: "health_timeout".into(),
            message: "The backend did not become healthy in time.".into(),
            hint: "read the unit's journal".into(),
            at: hours(-3),
        }),
        holds: vec![HoldStatus {
            id: 3,
            what: "awake".into(),
            until: Some(hours(2)),
            reason: "long run".into(),
            by: "alice".into(),
        }],
        ..serving()
    }
}

/// Of the example: its backends are llama-cpp and vllm.
fn policy() -> Policy {
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example"));
    wechsler::config::load(example, []).unwrap().policy
}
