//! A daemon on a virtual server, all in this process: the driver with the real adapters over loopback.
#![allow(dead_code, reason = "each file of cases uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use wechsler::{
    config,
    driver::{self, Handle, OperationRecord, Request, Setup, status::Status},
    host::Host,
    machine::{Answer, BackendId, Command, OpId, Options, PowerChoice, Refusal},
    virtual_server::{self, Places, Power, VirtualServer, What, programs::ProgramFaults},
};

pub const LLAMA: BackendId = BackendId(0);
pub const VLLM: BackendId = BackendId(1);
pub const LLAMA_UNIT: &str = "llama-cpp.service";
pub const VLLM_UNIT: &str = "vllm.service";
pub const PLAIN: Options = Options { replace: false, no_drain: false };
pub const NO_DRAIN: Options = Options { replace: false, no_drain: true };
/// Longer than anything here may take.
pub const LONG: Duration = Duration::from_secs(40);

/// Bring llama.cpp up.
pub const START: Command = Command::Start(Some(LLAMA), PLAIN);
/// Go over to vLLM.
pub const TO_VLLM: Command = Command::Switch(VLLM, PLAIN);
/// Go over to llama.cpp.
pub const TO_LLAMA: Command = Command::Switch(LLAMA, PLAIN);
/// Bring everything down.
pub const STOP: Command = Command::Stop(PLAIN);
/// Power off.
pub const POWER_OFF: Command = Command::Shutdown(PowerChoice::PowerOff, PLAIN);

type Change = Box<dyn FnOnce(&mut virtual_server::Setup)>;

/// What a bench is made of: a usual server in a hundredth of the usual times, changed.
#[derive(Default)]
pub struct Plan {
    setup: Vec<Change>,
    config: Vec<(&'static str, String)>,
}

impl Plan {
    /// Another server.
    pub fn server(mut self, change: impl FnOnce(&mut virtual_server::Setup) + 'static) -> Self {
        self.setup.push(Box::new(change));
        self
    }

    /// Another configuration: the key as in the environment, as `IDLE__STOP_AFTER`.
    pub fn key(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.config.push((key, value.into()));
        self
    }

    /// A server that is on.
    pub async fn on(self) -> Bench {
        let bench = self.server(|setup| setup.on = true).start().await;
        bench.state("gpu-idle").await;
        bench
    }

    /// A server that is off.
    pub async fn off(self) -> Bench {
        let bench = self.start().await;
        bench.state("gpu-offline").await;
        bench
    }

    async fn start(self) -> Bench {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("wechsler-faults-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir_all(folder.path()).expect("a folder");
        let mut setup = virtual_server::Setup::usual(folder.path().join("server")).scaled(0.01);
        for change in self.setup {
            change(&mut setup);
        }
        let server = VirtualServer::start(setup).await.expect("a server");
        let env = self.config.into_iter().map(|(key, value)| (format!("WECHSLER_{key}"), value)).collect();
        let daemon = Daemon::start(&server, folder.path(), env);
        Bench { server, daemon, folder }
    }
}

/// A folder that goes with its bench.
struct Folder(PathBuf);

impl Folder {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The daemon's driver.
pub struct Daemon {
    pub handle: Handle,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
    env: Vec<(String, String)>,
}

impl Daemon {
    fn start(server: &VirtualServer, folder: &Path, env: Vec<(String, String)>) -> Self {
        let places = Places {
            state_dir: folder.join("state"),
            socket: folder.join("socket"),
            key: folder.join("id_ed25519"),
            stop_after: None,
            power_off_after: None,
        };
        fs::create_dir_all(&places.state_dir).expect("a folder");
        fs::write(&places.key, server.client_key()).expect("a key");
        let text = server.config_toml(&places);
        let config = config::parse(&text, env.clone()).unwrap_or_else(|faults| panic!("{faults:?}\n{text}"));
        let host = Host::new(&config).expect("a host");
        let (end, told) = watch::channel(false);
        let (handle, task) = driver::spawn(Setup::from(&config), host, told);
        Self { handle, end, task, env }
    }
}

/// A daemon and its server.
pub struct Bench {
    pub server: VirtualServer,
    pub daemon: Daemon,
    folder: Folder,
}

impl Bench {
    /// A usual server that is on, nothing running.
    pub async fn on() -> Self {
        Plan::default().on().await
    }

    /// A usual server that is off.
    pub async fn off() -> Self {
        Plan::default().off().await
    }

    /// ... with llama.cpp up.
    pub async fn with_llama() -> Self {
        let bench = Self::on().await;
        bench.done(START).await;
        bench
    }

    /// Kills the daemon and starts another one.
    pub async fn new_daemon(&mut self) {
        self.daemon.task.abort();
        let _ = (&mut self.daemon.task).await;
        let env = self.daemon.env.clone();
        self.daemon = Daemon::start(&self.server, self.folder.path(), env);
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What goes wrong inside a unit's program.
    pub fn inside(&self, unit: &str) -> Arc<ProgramFaults> {
        self.server.program_faults(unit).expect("a unit of the server")
    }

    /// Says something; it must be answered soon, whatever goes on.
    pub async fn told(&self, command: Command) -> Answer {
        let (answer, receiver) = oneshot::channel();
        let request = Request { command, uid: Some(1000), answer };
        self.daemon.handle.commands.try_send(request).expect("room in the queue");
        timeout(Duration::from_secs(5), receiver).await.expect("answered in time").expect("answered")
    }

    /// ... and it must be accepted.
    pub async fn accepted(&self, command: Command) -> OpId {
        match self.told(command.clone()).await {
            Answer::Accepted { op, .. } => op,
            other => panic!("{command:?}: {other:?}; {:#?}", self.status()),
        }
    }

    /// ... and it must be refused.
    pub async fn refused(&self, command: Command) -> Refusal {
        match self.told(command.clone()).await {
            Answer::Refused(why) => why,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// The end of an operation.
    pub async fn ended(&self, op: OpId) -> OperationRecord {
        let mut operations = self.daemon.handle.operations.clone();
        let find = |all: &Arc<Vec<OperationRecord>>| all.iter().find(|r| r.id == op.0 && r.end.is_some()).cloned();
        let all = timeout(LONG, operations.wait_for(|all| find(all).is_some())).await;
        let all = all.unwrap_or_else(|_| panic!("no end; {:#?}\n{:#?}", self.status(), self.server.truth()));
        find(&all.expect("the driver lives")).expect("it was there")
    }

    /// A command from its beginning to its end.
    pub async fn record(&self, command: Command) -> OperationRecord {
        let op = self.accepted(command).await;
        self.ended(op).await
    }

    /// A command that must be done, also if there was nothing to do.
    pub async fn done(&self, command: Command) {
        match self.told(command.clone()).await {
            Answer::AlreadySo => {}
            Answer::Accepted { op, .. } => {
                let record = self.ended(op).await;
                assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}\n{:#?}", self.server.truth());
            }
            other => panic!("{command:?}: {other:?}; {:#?}", self.status()),
        }
    }

    /// A command that must fail with this code, and tell what to do.
    pub async fn fails(&self, command: Command, code: &str) -> OperationRecord {
        let record = self.record(command).await;
        assert_eq!((record.end.as_deref(), record.code.as_deref()), (Some("failed"), Some(code)), "{record:#?}");
        assert!(record.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "{record:#?}");
        record
    }

    /// After the fault: everything works, and the server's own truth agrees.
    pub async fn works(&self) {
        self.server.faults().clear();
        for unit in [LLAMA_UNIT, VLLM_UNIT] {
            self.inside(unit).clear_all();
        }
        let replace = Options { replace: true, no_drain: true };
        for (backend, unit) in [(VLLM, VLLM_UNIT), (LLAMA, LLAMA_UNIT)] {
            self.done(Command::Switch(backend, replace)).await;
            let truth = self.server.truth();
            let ready = |u: &virtual_server::UnitTruth| u.inside.as_ref().is_some_and(|i| i.ready);
            let up: Vec<&str> = truth.units.iter().filter(|u| ready(u)).map(|u| u.name.as_str()).collect();
            assert_eq!(up, [unit], "{truth:#?}");
        }
        assert_eq!(self.server.violations(), Vec::<String>::new());
    }

    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.daemon.handle.status.borrow())
    }

    /// Waits for a status.
    pub async fn until(&self, what: &str, so: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut status = self.daemon.handle.status.clone();
        match timeout(LONG, status.wait_for(so)).await {
            Ok(status) => Arc::clone(&status.expect("the driver lives")),
            Err(late) => panic!("{late}: never {what}: {:#?}\n{:#?}", self.status(), self.server.truth()),
        }
    }

    pub async fn state(&self, state: &str) -> Arc<Status> {
        self.until(state, |status| status.state == state).await
    }

    /// Waits until something needs a person, by its code.
    pub async fn attention(&self, code: &str) -> Arc<Status> {
        self.until(code, |status| status.attention.iter().any(|a| a.code == code)).await
    }

    /// Waits until the server itself is so.
    pub async fn truly(&self, what: &str, so: impl Fn(&VirtualServer) -> bool) {
        let waiting = async {
            while !so(&self.server) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let came = timeout(LONG, waiting).await;
        assert!(came.is_ok(), "never {what}: {:#?}\n{:#?}", self.server.truth(), self.status());
    }

    pub async fn power(&self, power: Power) {
        assert!(self.server.until(power, LONG).await, "never {power:?}: {:#?}", self.server.truth());
    }

    /// How many deeds are of that kind.
    pub fn count(&self, of: impl Fn(&What) -> bool) -> usize {
        self.server.deeds().iter().filter(|deed| of(&deed.what)).count()
    }

    /// How often a unit was started over SSH.
    pub fn starts(&self, unit: &str) -> usize {
        self.count(|what| matches!(what, What::Started { unit: u, by: virtual_server::By::Ssh, .. } if u == unit))
    }

    /// A completion of `tokens` tokens, to its end; `None` where it broke off.
    pub async fn asks(&self, unit: &str, prompt: &str, tokens: u32) -> Option<serde_json::Value> {
        ask(self.url(unit), prompt.to_owned(), tokens).await
    }

    /// The same, going on beside the test.
    pub fn asks_beside(&self, unit: &str, prompt: &str, tokens: u32) -> JoinHandle<Option<serde_json::Value>> {
        tokio::spawn(ask(self.url(unit), prompt.to_owned(), tokens))
    }

    /// Kills the daemon and starts another one, with one more key of its configuration changed.
    pub async fn new_daemon_with(&mut self, key: &str, value: impl Into<String>) {
        self.daemon.env.push((format!("WECHSLER_{key}"), value.into()));
        self.new_daemon().await;
    }

    /// How many magic packets reached the server's card, heard or not.
    pub fn packets(&self) -> usize {
        self.count(|what| matches!(what, What::Packet { .. }))
    }

    fn url(&self, unit: &str) -> String {
        format!("http://{}/v1/completions", self.server.unit_address(unit).expect("a unit of the server"))
    }
}

/// Far more than any answer here.
const MOST_TOLD: usize = 1 << 20;

async fn ask(url: String, prompt: String, tokens: u32) -> Option<serde_json::Value> {
    let body = serde_json::json!({"prompt": prompt, "max_tokens": tokens});
    let mut answer = reqwest::Client::new().post(url).json(&body).timeout(LONG).send().await.ok()?;
    let mut told = vec![];
    while let Some(chunk) = answer.chunk().await.ok()?.filter(|_| told.len() < MOST_TOLD) {
        told.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&told).ok()
}

/// Tokens of a prompt that were in the cache already, by llama.cpp's own answer.
pub fn reused(answer: &serde_json::Value) -> u64 {
    answer["timings"]["cache_n"].as_u64().unwrap_or(0)
}
