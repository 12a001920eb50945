//! An SSH server in this process: it runs what it is asked with `sh`, or misbehaves on demand.
#![allow(dead_code, unreachable_pub, reason = "shared by several tests, each using its part")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh::{
    Channel, ChannelId, Sig,
    keys::{
        PrivateKey, PublicKey,
        ssh_key::{LineEnding, private::Ed25519Keypair},
    },
    server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session},
};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::{mpsc, watch},
};
use wechsler::config::SshTarget;

/// The user that is let in.
pub const USER: &str = "wechsler";

/// A key that is always the same for the same `seed`.
pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

/// Its public half, as it is pinned.
pub fn public(seed: u8) -> String {
    key(seed).public_key().to_openssh().expect("a public key")
}

/// What the server does with a command.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Runs it.
    Run,
    /// Never answers.
    Hang,
    /// Says that it was killed by a signal.
    Signal,
    /// Breaks the connection off.
    Cut,
    /// Breaks the connection off, if it is the first session; runs it in later ones.
    CutFirst,
    /// Prints without end.
    Flood,
    /// Does not take it.
    Refuse,
}

/// A running server. Ends with the runtime of its test.
pub struct Sshd {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
}

/// What server and test both see.
pub struct Shared {
    /// The host key shown to the next client.
    pub host_key: Mutex<PrivateKey>,
    /// Logins so far.
    pub logins: AtomicUsize,
    /// Commands so far.
    pub commands: Mutex<Vec<String>>,
    live: watch::Sender<usize>,
    act: fn(&str) -> Act,
    path: Option<PathBuf>,
}

impl Sshd {
    /// Starts one with the host key of `seed`. Programs are looked for in `path` first.
    pub async fn start(seed: u8, act: fn(&str) -> Act, path: Option<&Path>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            host_key: Mutex::new(key(seed)),
            logins: AtomicUsize::new(0),
            commands: Mutex::default(),
            live: watch::Sender::new(0),
            act,
            path: path.map(Path::to_owned),
        });
        let served = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let config = Arc::new(Config {
                    keys: vec![served.host_key.lock().expect("the key").clone()],
                    auth_rejection_time: Duration::ZERO,
                    ..Config::default()
                });
                served.live.send_modify(|n| *n += 1);
                let client = Client { shared: Arc::clone(&served), number: 0, inputs: HashMap::new() };
                tokio::spawn(async move {
                    if let Ok(session) = russh::server::run_stream(config, stream, client).await {
                        let _ = session.await;
                    }
                });
            }
        });
        Self { address, shared }
    }

    /// Logins so far.
    pub fn logins(&self) -> usize {
        self.shared.logins.load(Ordering::SeqCst)
    }

    /// Waits until that many connections are open.
    pub async fn until_open(&self, wanted: usize) {
        let mut live = self.shared.live.subscribe();
        let reached = tokio::time::timeout(Duration::from_secs(10), live.wait_for(|n| *n == wanted));
        let reached = reached.await.is_ok();
        assert!(reached, "{} connections are open", *self.shared.live.borrow());
    }
}

struct Client {
    shared: Arc<Shared>,
    number: usize,
    /// Standard input of the shells that read their script from it.
    inputs: HashMap<ChannelId, mpsc::Sender<Vec<u8>>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.live.send_modify(|n| *n -= 1);
    }
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: &PublicKey) -> Result<Auth, Self::Error> {
        let ours = crate::sshd::key(CLIENT_KEY);
        if user != USER || key.key_data() != ours.public_key().key_data() {
            return Ok(Auth::reject());
        }
        self.number = self.shared.logins.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let line = String::from_utf8_lossy(data).into_owned();
        self.shared.commands.lock().expect("the commands").push(line.clone());
        let act = match (self.shared.act)(&line) {
            Act::CutFirst if self.number == 1 => Act::Cut,
            Act::CutFirst => Act::Run,
            act => act,
        };
        match act {
            Act::Cut => return Err(russh::Error::Disconnect),
            Act::Refuse => return session.channel_failure(channel),
            _ => session.channel_success(channel)?,
        }
        let handle = session.handle();
        let path = self.shared.path.clone();
        let shared = Arc::clone(&self.shared);
        let (input, mut script) = mpsc::channel::<Vec<u8>>(64);
        if line == "exec sh -s" {
            self.inputs.insert(channel, input);
        }
        tokio::spawn(async move {
            match act {
                Act::Hang | Act::Cut | Act::CutFirst | Act::Refuse => return,
                Act::Signal => {
                    let (none, signal) = (String::new(), Sig::KILL);
                    let _ = handle.exit_signal_request(channel, signal, false, none.clone(), none).await;
                }
                Act::Flood => while handle.data(channel, vec![b'x'; 16 * 1024]).await.is_ok() {},
                Act::Run => {
                    let mut whole = Vec::new();
                    // Ends at once where there is no input.
                    while let Some(part) = script.recv().await {
                        whole.extend(part);
                    }
                    let line = if whole.is_empty() { line } else { String::from_utf8_lossy(&whole).into_owned() };
                    if !whole.is_empty() {
                        shared.commands.lock().expect("the commands").push(line.clone());
                    }
                    let mut command = Command::new("sh");
                    command.args(["-c", &line]);
                    if let Some(stubs) = path {
                        let usual = std::env::var("PATH").unwrap_or_default();
                        command.env("PATH", format!("{}:{usual}", stubs.display()));
                    }
                    command.env("XDG_SESSION_ID", "9").env("SSH_CONNECTION", "127.0.0.1 1 127.0.0.1 22");
                    let output = command.output().await.expect("there is an sh");
                    let status = u32::try_from(output.status.code().unwrap_or(255)).unwrap_or(255);
                    let _ = handle.data(channel, output.stdout).await;
                    let _ = handle.extended_data(channel, 1, output.stderr).await;
                    let _ = handle.exit_status_request(channel, status).await;
                }
            }
            let _ = handle.eof(channel).await;
            let _ = handle.close(channel).await;
        });
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        if let Some(input) = self.inputs.get(&channel) {
            let _ = input.send(data.to_vec()).await;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.inputs.remove(&channel);
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.inputs.remove(&channel);
        Ok(())
    }
}

/// Seed of the client's key.
const CLIENT_KEY: u8 = 200;

/// A folder of a test's own, gone with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("wechsler-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// A program in it.
    pub fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a program");
    }

    /// The client's private key, or another that is not let in.
    pub fn client_key(&self, good: bool) -> PathBuf {
        let key = key(if good { CLIENT_KEY } else { 201 });
        let text = key.to_openssh(LineEnding::LF).expect("a key");
        self.write("id_ed25519", text.as_bytes())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A target at `address` with these pinned keys. Deadlines are long beside what a loopback takes, short for a test.
pub fn target(address: SocketAddr, key: PathBuf, pinned: &[u8], preboot: &[u8]) -> SshTarget {
    SshTarget {
        host: address.ip().to_string(),
        port: address.port(),
        user: USER.into(),
        key,
        host_keys: pinned.iter().map(|seed| public(*seed)).collect(),
        preboot_host_keys: preboot.iter().map(|seed| public(*seed)).collect(),
        connect_timeout: Duration::from_secs(3),
        command_timeout: Duration::from_secs(3),
        keepalive: Duration::from_secs(15),
    }
}
