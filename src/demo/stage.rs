//! What the tour plays on: the virtual server, the daemon, the client on this terminal, and one folder for it all.

use std::{
    fs,
    io::{self, IsTerminal, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::StreamExt as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::Broken;
use crate::{
    front::client::Client,
    virtual_server::{Engine, Places, Setup, Times, VirtualServer},
};

/// A client, or anything that is waited for, that takes longer is stuck.
const STUCK: Duration = Duration::from_mins(1);
/// The daemon ends within five seconds once told to.
const DAEMON_ENDS: Duration = Duration::from_secs(6);
/// Between two looks while something is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// The socket's path must fit into 107 bytes.
const LONGEST_TEMPORARY: usize = 60;
/// Bytes of an answer of the model.
const MOST_ANSWER: usize = 64 * 1024;
/// Lines of the daemon's log shown when something broke.
const LAST_LOG: usize = 15;

/// Times of a server that is in a hurry: a minute for the whole tour.
const TIMES: Times = Times {
    boot: Duration::from_millis(4500),
    power_off: Duration::from_millis(1500),
    llama_load: Duration::from_millis(2500),
    vllm_load: Duration::from_secs(8),
    per_token: Duration::from_millis(15),
    start_order: Duration::from_millis(20),
    timeout_stop: Duration::from_secs(5),
    restart_pause: Duration::from_secs(1),
    start_limit: Duration::from_secs(1),
    gpu_lag: Duration::from_millis(300),
    gpu_tool: Duration::from_millis(30),
};
/// With `--fast` they are so many times shorter.
const FASTER: f64 = 0.15;
/// A pause to read what was said, for each word.
const READING: Duration = Duration::from_millis(70);

/// All that is there.
pub(super) struct Stage {
    folder: Folder,
    pub(super) server: VirtualServer,
    program: PathBuf,
    daemon: Option<Child>,
    fast: bool,
    conversation: Vec<Value>,
}

/// What an answer cost.
pub(super) struct Answer {
    /// Tokens of the prompt that were in the slot already.
    pub(super) reused: u64,
    /// Tokens of the prompt.
    pub(super) prompt: u64,
}

impl Stage {
    /// Builds it: a server that is off, and no daemon yet.
    pub(super) async fn build(fast: bool) -> Result<Self, Broken> {
        let program = std::env::current_exe().map_err(|error| Broken::System("this program", error))?;
        let folder = Folder::new().map_err(|error| Broken::System("a temporary folder", error))?;
        let mut setup = Setup::usual(folder.path("server"));
        setup.times = if fast { TIMES.scaled(FASTER) } else { TIMES };
        for unit in &mut setup.units {
            // Small enough for both at a time, so that there can be a conflict.
            unit.vram_mib = if matches!(unit.engine, Engine::LlamaCpp { .. }) { 11_900 } else { 10_400 };
        }
        let server = VirtualServer::start(setup).await.map_err(|error| Broken::System("the virtual server", error))?;
        let stage = Self { folder, server, program, daemon: None, fast, conversation: vec![] };
        stage.write("id_ed25519", &stage.server.client_key())?;
        Ok(stage)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Broken> {
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.folder.path(name));
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Broken::System("a file in the temporary folder", error))
    }

    /// Where the daemon listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path("socket")
    }

    /// Starts the daemon; with `idle`, it stops a backend and powers the server off after so long without use.
    pub(super) async fn start_daemon(&mut self, idle: Option<Duration>) -> Result<(), Broken> {
        let places = Places {
            state_dir: self.folder.path("state"),
            socket: self.socket(),
            key: self.folder.path("id_ed25519"),
            stop_after: idle,
            power_off_after: idle,
        };
        self.write("config.toml", &self.server.config_toml(&places))?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path("daemon.log"));
        let log = log.map_err(|error| Broken::System("the daemon's log", error))?;
        let mut command = self.command();
        command.arg("--config").arg(self.folder.path("config.toml")).arg("daemon");
        // A group of its own: Ctrl-C is for us, who end it in good order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        self.daemon = Some(command.spawn().map_err(|error| Broken::System("the daemon", error))?);
        let socket = self.socket();
        let begun = Instant::now();
        while UnixStream::connect(&socket).await.is_err() {
            if begun.elapsed() > STUCK {
                return Err(Broken::NotAsTold("the daemon does not listen".into()));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends the daemon in good order.
    pub(super) async fn stop_daemon(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = daemon.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(DAEMON_ENDS, daemon.wait()).await.is_err() {
            let _ = daemon.kill().await;
        }
    }

    /// Kills the daemon where it stands.
    pub(super) async fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill().await;
        }
    }

    /// Ends everything and takes it away.
    pub(super) async fn end(mut self) {
        self.stop_daemon().await;
    }

    /// This program again, with nothing of ours from the environment: settings of a real daemon have no place here.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WECHSLER_") || ["NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"].contains(&&*text) {
                command.env_remove(name);
            }
        }
        command.env("WECHSLER_SOCKET", self.socket()).kill_on_drop(true);
        command
    }

    /// Types a command: shows it, runs it on this terminal, and it must succeed.
    pub(super) async fn types(&self, words: &str) -> Result<(), Broken> {
        let mut client = self.begin(words).await?;
        let ended = timeout(STUCK, client.wait()).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Broken::NotAsTold(format!("`wechsler {words}` ended with {status}"))),
            Ok(Err(error)) => Err(Broken::System("a client", error)),
            Err(_) => Err(Broken::NotAsTold(format!("`wechsler {words}` did not end"))),
        }
    }

    /// ... and does not wait for its end. It ends with what is returned.
    pub(super) async fn begin(&self, words: &str) -> Result<Child, Broken> {
        say(&bold(&format!("$ wechsler {words}")));
        self.read("type it").await;
        let mut command = self.command();
        command.args(words.split(' ')).stdin(Stdio::null());
        command.spawn().map_err(|error| Broken::System("a client", error))
    }

    /// Waits until the daemon sees that state, and does nothing more about it.
    pub(super) async fn until_state(&self, state: &str) -> Result<(), Broken> {
        let no = |why: String| Broken::NotAsTold(format!("the daemon does not say that it is {state}: {why}"));
        let client = Client::new(&self.socket()).map_err(|error| no(error.to_string()))?;
        let begun = Instant::now();
        loop {
            let status = client.status().await.map_err(|error| no(error.to_string()))?;
            if status.state == state && status.operation.is_none() {
                return Ok(());
            }
            if begun.elapsed() > STUCK {
                return Err(no(status.state));
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until that is really so on the server.
    pub(super) async fn until(&self, what: &str, so: impl Fn(&VirtualServer) -> bool) -> Result<(), Broken> {
        let begun = Instant::now();
        while !so(&self.server) {
            if begun.elapsed() > STUCK {
                return Err(Broken::NotAsTold(format!("it never came to this: {what}")));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Goes on with the one conversation there is.
    pub(super) async fn ask(&mut self, unit: &str, question: &str) -> Result<Answer, Broken> {
        let no = |why: String| Broken::NotAsTold(format!("the conversation broke off: {why}"));
        let address = self.server.unit_address(unit).ok_or_else(|| no(format!("there is no {unit}")))?;
        self.conversation.push(json!({"role": "user", "content": question}));
        let body = json!({"messages": self.conversation, "max_tokens": 40});
        let client = reqwest::Client::builder().no_proxy().timeout(STUCK).build().map_err(|e| no(e.to_string()))?;
        let sent = client.post(format!("http://{address}/v1/chat/completions")).json(&body).send().await;
        let mut pieces = sent.map_err(|e| no(e.to_string()))?.bytes_stream();
        let mut bytes = vec![];
        while let Some(piece) = pieces.next().await {
            bytes.extend(piece.map_err(|e| no(e.to_string()))?);
            if bytes.len() > MOST_ANSWER {
                return Err(no("the answer has no end".into()));
            }
        }
        let answer: Value = serde_json::from_slice(&bytes).map_err(|e| no(e.to_string()))?;
        let text = answer["choices"][0]["message"]["content"].as_str().ok_or_else(|| no(answer.to_string()))?;
        let reused = answer["timings"]["cache_n"].as_u64().ok_or_else(|| no("no cache_n".into()))?;
        let computed = answer["timings"]["prompt_n"].as_u64().ok_or_else(|| no("no prompt_n".into()))?;
        let answer = Answer { reused, prompt: reused + computed };
        say(&format!("  you:   {question}"));
        say(&format!("  model: {text}"));
        say(&format!(
            "         cache_n {reused}: {reused} of {} prompt tokens were in its slot already",
            answer.prompt
        ));
        self.conversation.push(json!({"role": "assistant", "content": text}));
        Ok(answer)
    }

    /// A heading and what is to be seen under it.
    pub(super) async fn tell(&self, heading: &str, text: &str) {
        say("");
        say(&bold(heading));
        self.remark(text).await;
    }

    /// The idle rules of the last step.
    pub(super) const fn idle(&self) -> Duration {
        Duration::from_secs(if self.fast { 1 } else { 2 })
    }

    /// Says something, and leaves time to read it.
    pub(super) async fn remark(&self, text: &str) {
        for line in wrapped(text) {
            say(&line);
        }
        self.read(text).await;
    }

    async fn read(&self, text: &str) {
        if !self.fast {
            let words = u32::try_from(text.split_whitespace().count()).unwrap_or(0);
            sleep(READING * words).await;
        }
    }

    /// The end of the daemon's log, for who wants to know what went wrong.
    pub(super) fn show_log(&self) {
        let log = fs::read(self.folder.path("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_LOG)..] {
            complain(line);
        }
    }
}

/// The folder, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let usual = std::env::temp_dir();
        let base = if usual.as_os_str().len() > LONGEST_TEMPORARY { Path::new("/tmp") } else { &usual };
        // Made anew, for us alone: whatever lies there already is somebody else's.
        let mut last = io::ErrorKind::AlreadyExists.into();
        for n in 0..100 {
            let path = base.join(format!("wechsler-demo-{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A line on standard output. A reader who has left is no reason to leave anything behind.
pub(super) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line on standard error.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Lines that fit any terminal.
fn wrapped(text: &str) -> Vec<String> {
    /// Columns.
    const MOST: usize = 79;
    let mut lines: Vec<String> = vec![];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= MOST => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn bold(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some() || !io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[1m{text}\x1b[0m") }
}
