//! What the soak plays on: the virtual server in this process, the daemon as a process of its own, and one folder.

use std::{
    collections::VecDeque,
    fs,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use wechsler::{
    driver::status::Status,
    front::{client::Client, protocol::CommandRequest},
    virtual_server::{FaultyWire, Places, Setup, VirtualServer},
};

use super::{
    checker::{self, Checker, Guest, Scene},
    ledger::Ledger,
    ops,
    plan::{LLAMA, VLLM, unit},
};

/// Times of the server, of those of a real one.
const SCALE: f64 = 0.01;
/// Between two looks of the checker.
const TICK: Duration = Duration::from_millis(30);
/// A command is answered, and a daemon listens.
pub const SOON: Duration = Duration::from_secs(5);
/// With nothing wrong, everything has ended within this.
pub const LONG: Duration = Duration::from_secs(45);
/// A request to a backend.
const ASKED: Duration = Duration::from_secs(10);

/// ... and its answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// What a process takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub rss_kib: u64,
    pub fds: usize,
}

/// One life of the daemon.
#[derive(Clone, Debug)]
pub struct Life {
    pub born: Duration,
    pub died: Option<Duration>,
    /// After its first round.
    pub first: Option<Usage>,
    pub last: Usage,
    pub most: Usage,
}

/// All that is there.
pub struct Stage {
    world: u64,
    folder: Folder,
    /// Between the daemon and SSH, and between it and each backend, where there are any.
    pub wires: Vec<(SocketAddr, FaultyWire)>,
    pub server: VirtualServer,
    origin: Instant,
    daemon: Option<Child>,
    pub lives: Vec<Life>,
    pub client: Client,
    ops: ops::Shared,
    listener: Option<JoinHandle<()>>,
    pub guests: Vec<Guest>,
    /// Requests beside all else.
    pub asking: JoinSet<()>,
    pub ledger: Ledger,
    pub checker: Checker,
    places: checker::Places,
    http: reqwest::Client,
    pub asked: Arc<AtomicU64>,
    pub answered: Arc<AtomicU64>,
    /// What was done in this round.
    pub log: VecDeque<String>,
    pub calm: bool,
    pub slow: bool,
    /// The daemon has policies of its own.
    pub policies: bool,
    /// Nothing hangs here, and a slow machine shall not be taken for one that does.
    pub patient: bool,
}

impl Stage {
    pub async fn build(world: u64, wires: bool) -> Self {
        let folder = Folder::new(world);
        let mut setup = Setup::usual(folder.0.join("server")).scaled(SCALE);
        setup.on = true;
        for unit in &mut setup.units {
            // Small enough for both at a time, so that there can be a conflict.
            unit.vram_mib = 10_900;
        }
        let server = VirtualServer::start(setup).await.expect("a server");
        let origin = Instant::now() - server.age();
        let client = Client::new(&folder.0.join("socket")).expect("a client");
        let places = checker::Places {
            slots: server.setup().slot_dir(),
            notes: folder.0.join("state/slots/virtual").join(LLAMA),
        };
        let mut stage = Self {
            world,
            wires: vec![],
            server,
            origin,
            daemon: None,
            lives: vec![],
            client,
            ops: ops::Shared::default(),
            listener: None,
            guests: vec![],
            asking: JoinSet::new(),
            ledger: Ledger::default(),
            checker: Checker::default(),
            places,
            http: reqwest::Client::builder().no_proxy().timeout(ASKED).build().expect("a client"),
            asked: Arc::default(),
            answered: Arc::default(),
            log: VecDeque::new(),
            calm: true,
            slow: false,
            policies: false,
            patient: false,
            folder,
        };
        if wires {
            let units = [LLAMA, VLLM].map(|name| stage.server.unit_address(&unit(name)).expect("a unit of the server"));
            for address in units.into_iter().chain([stage.server.ssh_address()]) {
                let wire = FaultyWire::of(&stage.server, address, world).expect("a wire");
                stage.wires.push((address, wire));
            }
        }
        fs::create_dir_all(stage.folder.0.join("state")).expect("a folder");
        stage.write("id_ed25519", &stage.server.client_key());
        stage
    }

    fn write(&self, name: &str, text: &str) {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(self.folder.0.join(name));
        std::io::Write::write_all(&mut file.expect("a file"), text.as_bytes()).expect("written");
    }

    /// What was done, for whoever reads of a violation.
    pub fn note(&mut self, what: impl Into<String>) {
        let line = format!("{:9.3}  {}", self.server.age().as_secs_f64(), what.into());
        if std::env::var_os("SOAK_LOG").is_some() {
            eprintln!("{} {line}", self.world);
        }
        if self.log.len() == 200 {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    /// Starts a daemon; it listens when this returns.
    pub async fn start_daemon(&mut self, policies: bool) {
        let after = policies.then_some(Duration::from_secs(1));
        let places = Places {
            state_dir: self.folder.0.join("state"),
            socket: self.folder.0.join("socket"),
            key: self.folder.0.join("id_ed25519"),
            stop_after: after,
            power_off_after: after,
        };
        // Deadlines as short as the server's times allow, so that what hangs does not take the whole round.
        let text = self.server.config_toml(&places);
        let changes: &[(&str, &str)] = if self.patient {
            &[
                ("connect_timeout = \"900ms\"", "connect_timeout = \"1400ms\""),
                ("command_timeout = \"2s\"", "command_timeout = \"4s\""),
                ("keepalive = \"2s\"", "keepalive = \"5s\""),
            ]
        } else {
            &[
                ("name = \"localbot\"\n", "name = \"localbot\"\nsave_timeout = \"2s\"\nrestore_timeout = \"2s\"\n"),
                ("command_timeout = \"2s\"", "command_timeout = \"1s\""),
                ("stop_timeout = \"10s\"", "stop_timeout = \"2s\""),
                ("kill_timeout = \"5s\"", "kill_timeout = \"2s\""),
            ]
        };
        let text = changes.iter().fold(text, |text, (usual, short)| text.replace(usual, short));
        // Instead of the server itself the daemon is given the wires.
        let text = self.wires.iter().fold(text, |text, (server, wire)| {
            let (server, wire) = (server.port(), wire.address().port());
            text.replace(&format!("port = {server}\n"), &format!("port = {wire}\n"))
                .replace(&format!("127.0.0.1:{server}\""), &format!("127.0.0.1:{wire}\""))
        });
        self.write("config.toml", &text);
        let log = fs::File::create(self.folder.0.join("daemon.log")).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_wechsler"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WECHSLER_") || ["NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"].contains(&&*text) {
                command.env_remove(name);
            }
        }
        command.arg("--config").arg(self.folder.0.join("config.toml")).arg("daemon");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        self.daemon = Some(command.spawn().expect("a daemon"));
        self.policies = policies;
        let now = self.server.age();
        self.lives.push(Life { born: now, died: None, first: None, last: Usage::default(), most: Usage::default() });
        let begun = Instant::now();
        while UnixStream::connect(self.folder.0.join("socket")).await.is_err() {
            let log = || self.daemon_log();
            assert!(begun.elapsed() < SOON * 2, "a daemon that was started does not listen:\n{}", log());
            sleep(TICK).await;
        }
        let life = self.lives.len() - 1;
        self.listener = Some(ops::listen(self.client.clone(), life, Arc::clone(&self.ops), self.origin));
    }

    /// kill -9.
    pub async fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill().await;
        }
        let now = self.server.age();
        self.ended(now);
    }

    fn ended(&mut self, now: Duration) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        self.checker.died(now);
        ops::locked(&self.ops).forget(self.lives.len() - 1, now);
        if let Some(life) = self.lives.last_mut() {
            life.died = Some(now);
        }
    }

    /// Whatever has gone on since is checked.
    pub async fn check(&mut self) {
        if let Some(daemon) = &mut self.daemon
            && let Ok(Some(status)) = daemon.try_wait()
        {
            self.daemon = None;
            let log = self.daemon_log();
            self.checker.violated(format!("the daemon ended by itself: {status}\n{log}"));
            let now = self.server.age();
            self.ended(now);
            let policies = self.policies;
            self.start_daemon(policies).await;
        }
        let scene = Scene { guests: &self.guests, calm: self.calm, slow: self.slow };
        let mut ops = ops::locked(&self.ops);
        self.checker.check(&self.server, &self.places, &mut ops, scene, &mut self.ledger);
    }

    /// Time passes, and is watched.
    pub async fn wait(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.check().await;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(TICK)).await;
        }
    }

    /// Says something. It must be answered soon, unless the daemon was killed.
    pub async fn command(&mut self, request: &CommandRequest) -> Result<Option<u64>, String> {
        use wechsler::front::{client::ClientError, protocol::CommandAnswer};
        let begun = Instant::now();
        let answer = self.client.command(request).await;
        let took = begun.elapsed();
        if took > SOON {
            self.checker.violated(format!("{request:?} was answered after {took:?}: {answer:?}"));
        }
        let (name, result) = match answer {
            Ok(CommandAnswer::Accepted { operation, joined }) => {
                (if joined { "joined" } else { "accepted" }.to_owned(), Ok(Some(operation)))
            }
            Ok(CommandAnswer::AlreadySo) => ("already so".into(), Ok(None)),
            Ok(CommandAnswer::Done) => ("done".into(), Ok(None)),
            Err(ClientError::Problem(problem)) => (format!("refused: {}", problem.code), Err(problem.code.to_string())),
            Err(error) => {
                self.checker.violated(format!("{request:?} was not answered: {error}"));
                ("not answered".into(), Err(error.to_string()))
            }
        };
        let options = [("replace", request.replace), ("no-drain", request.no_drain)];
        let options: Vec<_> = options.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        self.note(format!("{} {:?} {options:?}: {name}", request.command, request.backend));
        self.ledger.count("commands", format!("{}: {name}", request.command));
        result
    }

    /// What the daemon says is so.
    pub async fn status(&mut self) -> Option<Status> {
        match self.client.status().await {
            Ok(status) => Some(status),
            Err(error) => {
                self.checker.violated(format!("the status was not told: {error}"));
                None
            }
        }
    }

    /// Until an operation has ended, and how; `None` if it does not.
    pub async fn end_of(&mut self, id: u64, within: Duration) -> Option<wechsler::driver::OperationRecord> {
        let until = Instant::now() + within;
        let life = self.lives.len() - 1;
        loop {
            let found =
                ops::locked(&self.ops).all.iter().rev().find(|op| op.life == life && op.record.id == id).cloned();
            if let Some(op) = found.filter(|op| op.ended.is_some()) {
                return (!op.forgotten).then_some(op.record);
            }
            if Instant::now() >= until || life + 1 != self.lives.len() {
                return None;
            }
            self.wait(TICK).await;
        }
    }

    /// A request to a backend, beside all else.
    pub fn asks_beside(&mut self, backend: &str, prompt: String, tokens: u32) {
        let (http, url) = (self.http.clone(), self.url(backend));
        let (asked, answered) = (Arc::clone(&self.asked), Arc::clone(&self.answered));
        while self.asking.try_join_next().is_some() {}
        self.asking.spawn(async move {
            asked.fetch_add(1, Ordering::Relaxed);
            if ask(&http, url, prompt, tokens).await.is_some() {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// The same, waited for.
    pub async fn asks(&mut self, backend: &str, prompt: &str, tokens: u32) -> Option<Value> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = ask(&self.http, self.url(backend), prompt.to_owned(), tokens).await;
        self.answered.fetch_add(u64::from(answer.is_some()), Ordering::Relaxed);
        self.check().await;
        answer
    }

    fn url(&self, backend: &str) -> String {
        let address = self.server.unit_address(&unit(backend)).expect("a unit of the server");
        format!("http://{address}/v1/completions")
    }

    /// What the daemon takes now.
    pub fn measure(&mut self) {
        let Some(pid) = self.daemon.as_ref().and_then(Child::id) else { return };
        let (usage, Some(life)) = (usage(pid), self.lives.last_mut()) else { return };
        life.first.get_or_insert(usage);
        life.last = usage;
        life.most.rss_kib = life.most.rss_kib.max(usage.rss_kib);
        life.most.fds = life.most.fds.max(usage.fds);
    }

    /// The journals of steps of all lives, as far as they are kept.
    pub fn journals(&self) -> Vec<Vec<u8>> {
        let files = ["steps.1.jsonl", "steps.jsonl"].map(|name| self.folder.0.join("state").join(name));
        files.iter().filter_map(|file| fs::read(file).ok()).collect()
    }

    /// The end of the daemon's log.
    pub fn daemon_log(&self) -> String {
        let log = fs::read(self.folder.0.join("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

async fn ask(http: &reqwest::Client, url: String, prompt: String, tokens: u32) -> Option<Value> {
    let body = json!({"prompt": prompt, "max_tokens": tokens});
    let mut answer = http.post(url).json(&body).send().await.ok()?;
    let mut text = vec![];
    while let Some(part) = answer.chunk().await.ok()?.filter(|part| text.len() + part.len() <= ANSWER_BYTES) {
        text.extend_from_slice(&part);
    }
    serde_json::from_slice(&text).ok()
}

fn usage(pid: u32) -> Usage {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss_kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    Usage { rss_kib, fds: fs::read_dir(process.join("fd")).map_or(0, Iterator::count) }
}

/// A folder that goes with the soak.
struct Folder(PathBuf);

impl Folder {
    fn new(world: u64) -> Self {
        let path = std::env::temp_dir().join(format!("wechsler-soak-{}-{world}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
