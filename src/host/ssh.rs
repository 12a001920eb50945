//! One kept SSH session to one target, and short commands over it.
//!
//! The crate async-ssh2-tokio knows no deadlines, cannot say which key a server offered, leaves a channel open when a
//! command is given up, and buffers without bound. So it is used only here, and only so:
//!
//! * **Keys are pinned.** A session is opened to exactly one expected key; when the server offers another, one glance at its
//!   key (by russh itself, which the crate is built on) tells whether that is another pinned key, an initramfs' key, or a
//!   stranger's, whose fingerprint is told.
//! * **Every step has its deadline**, and after any doubt (a deadline, no exit status, a broken transport, a dropped
//!   future) the session is forgotten: it ends with its last user, and the next command opens a new one.
//! * **No keepalives of russh's**: in 0.62 its keepalive timer spins a whole core while a server stalls in the key exchange,
//!   also when nobody waits for that session any more (fixed in 0.65, which async-ssh2-tokio 0.13 cannot take). A half-open
//!   session is found by the deadline of the next command, and a session on which nothing moved for four times
//!   [`SshTarget::keepalive`] ends by russh's inactivity timer.
//! * **Output is bounded** to [`MOST_OUTPUT`].
//!
//! Commands run on channels of our own ([`exchange`]); of the crate only the login is used.

mod exchange;

use std::{
    borrow::Cow,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_ssh2_tokio::{
    AuthMethod, Client, Config, Error as ClientError, ServerCheckMethod, ToSocketAddrsWithHostname,
};
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyBase64};
use tokio::{
    net::TcpStream,
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{Instant, timeout},
};

use exchange::{Shell, Warm};

use super::remote::{CommandLine, plain_text};
use crate::{config::SshTarget, machine::reading};

/// Most bytes a command may print on stdout, and on stderr. Ours print a few KiB.
pub const MOST_OUTPUT: usize = 64 * 1024;
/// Most commands at a time in one session: sshd's default `MaxSessions` is 10.
const MOST_AT_A_TIME: usize = 10 - exchange::SHELLS;
/// A server whose SSH does not answer in time is asked once more whether its port is open at all; on the local network that
/// takes a few milliseconds.
const PORT_TIMEOUT: Duration = Duration::from_millis(500);

/// What a command printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Exit status.
    pub status: u32,
    /// Standard output, made valid UTF-8.
    pub stdout: String,
    /// Standard error, made valid UTF-8.
    pub stderr: String,
    /// The number of the session it came over.
    pub session: u64,
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// There is no session, and the command was not sent: how the target answered instead.
    #[error("{}", .0.words())]
    Down(reading::Ssh),
    /// The command was sent (or may have been), and nobody knows what became of it.
    #[error("{0}")]
    Lost(String),
    /// ... because it did not end within its deadline.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl Trouble {
    /// As a reading of the server's SSH.
    #[must_use]
    pub fn reading(self) -> reading::Ssh {
        match self {
            Self::Down(ssh) => ssh,
            lost => reading::Ssh::Broken(lost.to_string()),
        }
    }
}

impl reading::Ssh {
    /// The stable code of an order that could not be sent because of it.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::WrongKey(_) => "wrong_host_key",
            Self::PreBoot => "preboot",
            Self::AuthRefused(_) => "auth_refused",
            _ => "control_unreachable",
        }
    }

    /// In words for people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Answered { .. } => "answered".into(),
            Self::WrongKey(key) => format!("another host key answers: {key}"),
            Self::PreBoot => "the initramfs answers".into(),
            Self::PortClosed => "the SSH port is closed".into(),
            Self::Silent => "no answer over SSH".into(),
            Self::AuthRefused(why) | Self::Mute(why) | Self::Unreachable(why) | Self::Broken(why) => why.clone(),
        }
    }
}

/// A target cannot be used as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SshSetupError {
    /// A pinned key cannot be read.
    #[error("`{key}` is not a public key as `ssh-ed25519 AAAA…`: {why}")]
    Key {
        /// As configured.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// No key is pinned: without one nobody would know who answers.
    #[error("no host key of `{0}` is pinned")]
    NoKey(String),
}

/// A target with its kept session.
#[derive(Debug)]
pub struct Ssh {
    target: SshTarget,
    pinned: Vec<PublicKey>,
    preboot: Vec<PublicKey>,
    /// Held while connecting, so that there is one login at a time; inside, the key to expect.
    connecting: AsyncMutex<Option<PublicKey>>,
    kept: Mutex<Kept>,
    opened: AtomicU64,
    at_a_time: Semaphore,
}

#[derive(Default)]
struct Kept {
    session: Option<Session>,
    /// Ready for questions, in that session.
    shells: Vec<Shell>,
    warm: Warm,
    /// The last failure to connect, for those who waited for that same attempt.
    failure: Option<(Instant, reading::Ssh)>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.session.as_ref().map(|s| s.number);
        f.debug_struct("Kept").field("session", &number).finish_non_exhaustive()
    }
}

/// An open session. Ends when the last clone is dropped.
#[derive(Clone)]
struct Session {
    client: Client,
    number: u64,
    /// It was there before this command.
    reused: bool,
}

impl Ssh {
    /// A target, not yet connected.
    ///
    /// # Errors
    /// When a pinned key cannot be read, or there is none.
    pub fn new(target: &SshTarget) -> Result<Self, SshSetupError> {
        let read = |keys: &[String]| -> Result<Vec<_>, _> {
            keys.iter()
                .map(|key| {
                    PublicKey::from_openssh(key.trim())
                        .map_err(|error| SshSetupError::Key { key: plain_text(key, 40), why: error.to_string() })
                })
                .collect()
        };
        let pinned: Vec<PublicKey> = read(&target.host_keys)?;
        let preboot = read(&target.preboot_host_keys)?;
        let Some(first) = pinned.first().cloned() else {
            return Err(SshSetupError::NoKey(target.host.clone()));
        };
        Ok(Self {
            target: target.clone(),
            pinned,
            preboot,
            connecting: AsyncMutex::new(Some(first)),
            kept: Mutex::default(),
            opened: AtomicU64::new(0),
            at_a_time: Semaphore::new(MOST_AT_A_TIME),
        })
    }

    /// How many sessions were opened so far.
    pub fn sessions(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// A session is open, as far as anybody knows.
    pub fn is_open(&self) -> bool {
        self.open_session().is_some()
    }

    /// The deadline of a command that only looks.
    pub fn command_timeout(&self) -> Duration {
        self.target.command_timeout
    }

    /// The user of our sessions.
    pub fn user(&self) -> &str {
        &self.target.user
    }

    /// Runs a command once, ended by `within` after the session stands (which has its own `connect_timeout`).
    ///
    /// # Errors
    /// [`Trouble`], where no exit status came back. Then, and when this future is dropped, the session is forgotten.
    pub async fn run(&self, line: &CommandLine, within: Duration) -> Result<Reply, Trouble> {
        let session = self.session().await.map_err(Trouble::Down)?;
        self.run_in(session, line, within).await
    }

    /// Like [`Ssh::run`], for a command that only looks: where a kept session turns out to be gone, asks once more in a new one.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub async fn ask(&self, line: &CommandLine, within: Duration) -> Result<Reply, Trouble> {
        let session = self.session().await.map_err(Trouble::Down)?;
        let reused = session.reused;
        match self.run_in(session, line, within).await {
            Err(Trouble::Lost(_)) if reused => self.run(line, within).await,
            answer => answer,
        }
    }

    /// Forgets the session: the next command opens a new one. Commands under way end in the old one.
    pub fn forget(&self) {
        self.kept().forget();
    }

    async fn run_in(&self, session: Session, line: &CommandLine, within: Duration) -> Result<Reply, Trouble> {
        let mut doubt = Doubt { ssh: self, number: session.number, settled: false };
        let began = Instant::now();
        let work = async {
            let Ok(_permit) = self.at_a_time.acquire().await else {
                return Err("the target is closed".to_owned());
            };
            let shell = line.fed().and_then(|script| Some((self.shell(session.number)?, script)));
            let ready = shell.is_some();
            let (status, stdout, stderr) = match shell {
                Some((shell, script)) => shell.run(script).await?,
                None => exchange::end(exchange::begin(&session.client, line.as_str()).await?).await?,
            };
            tracing::trace!(took = ?began.elapsed(), ready, command = told(line.as_str()), "exchange");
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(Reply { status, stdout: text(stdout), stderr: text(stderr), session: session.number })
        };
        match timeout(within, work).await {
            Ok(Ok(reply)) => {
                doubt.settled = true;
                Ok(reply)
            }
            Ok(Err(why)) => Err(Trouble::Lost(why)),
            Err(_) => Err(Trouble::TimedOut(within)),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held; a poisoned lock would still hold a whole value.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_session(&self) -> Option<Session> {
        let mut kept = self.kept();
        if kept.session.as_ref().is_some_and(|s| s.client.is_closed()) {
            kept.forget();
        }
        kept.session.clone()
    }

    /// The kept session, or a new one. Callers that come while one connects share its result, also a failure.
    async fn session(&self) -> Result<Session, reading::Ssh> {
        let asked = Instant::now();
        if let Some(session) = self.open_session() {
            return Ok(session);
        }
        let mut expected = self.connecting.lock().await;
        if let Some(session) = self.open_session() {
            return Ok(session);
        }
        if let Some((at, failure)) = &self.kept().failure
            && *at >= asked
        {
            return Err(failure.clone());
        }
        match self.connect(&mut expected).await {
            Ok(client) => {
                let number = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::info!(host = %self.target.host, session = number, "SSH session opened");
                let session = Session { client, number, reused: false };
                let mut kept = self.kept();
                kept.failure = None;
                kept.session = Some(Session { reused: true, ..session.clone() });
                Ok(session)
            }
            Err(failure) => {
                self.kept().failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn connect(&self, expected: &mut Option<PublicKey>) -> Result<Client, reading::Ssh> {
        let within = self.target.connect_timeout;
        if let Ok(result) = timeout(within, self.attempt(expected)).await {
            return result;
        }
        Err(if self.port_is_open().await {
            reading::Ssh::Mute(format!("the SSH port is open, but nobody lets us in within {within:?}"))
        } else {
            reading::Ssh::Silent
        })
    }

    /// Connects to the expected key; where another is offered, looks which, and takes it if it is pinned.
    async fn attempt(&self, expected: &mut Option<PublicKey>) -> Result<Client, reading::Ssh> {
        let resolved = self.resolve().await?;
        // Read anew each time, so that it may be changed under way; the crate itself would read it on this very thread.
        let ours = tokio::fs::read_to_string(&self.target.key).await.map_err(|error| self.unusable_key(&error))?;
        if let Some(key) = expected {
            match self.log_in(&resolved, key, &ours).await {
                Err(ClientError::SshError(russh::Error::UnknownKey)) => *expected = None,
                result => return result.map_err(|error| self.judge(error)),
            }
        }
        let offered = self.offered(&resolved).await?;
        let same = |key: &PublicKey| key.key_data() == offered.key_data();
        if self.preboot.iter().any(same) {
            return Err(reading::Ssh::PreBoot);
        }
        let Some(key) = self.pinned.iter().find(|key| same(key)) else {
            return Err(reading::Ssh::WrongKey(fingerprint(&offered)));
        };
        let client = self.log_in(&resolved, key, &ours).await.map_err(|error| self.judge(error))?;
        *expected = Some(key.clone());
        Ok(client)
    }

    async fn log_in(&self, to: &Resolved, key: &PublicKey, ours: &str) -> Result<Client, ClientError> {
        Client::connect_with_config(
            to.clone(),
            &self.target.user,
            AuthMethod::with_key(ours, None),
            ServerCheckMethod::with_public_key(&key.public_key_base64()),
            self.config(),
        )
        .await
    }

    /// The key the server offers. Nothing is told to it, and the connection ends there.
    async fn offered(&self, at: &Resolved) -> Result<PublicKey, reading::Ssh> {
        let config = Arc::new(self.config());
        let mut last = reading::Ssh::Unreachable(format!("`{}` has no address", at.host));
        for address in &at.addresses {
            match russh::client::connect(Arc::clone(&config), *address, Glance).await {
                Err(Glimpse::Offered(key)) => return Ok(*key),
                Err(Glimpse::Lost(error)) => last = judge_transport(error),
                Ok(_) => last = reading::Ssh::Broken("the server offered no key".into()),
            }
        }
        Err(last)
    }

    async fn resolve(&self) -> Result<Resolved, reading::Ssh> {
        let (host, port) = (self.target.host.as_str(), self.target.port);
        match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => Ok(Resolved { host: host.into(), addresses: addresses.collect() }),
            Err(error) => Err(reading::Ssh::Unreachable(format!("cannot resolve `{host}`: {error}"))),
        }
    }

    async fn port_is_open(&self) -> bool {
        let to = (self.target.host.as_str(), self.target.port);
        matches!(timeout(PORT_TIMEOUT, TcpStream::connect(to)).await, Ok(Ok(_)))
    }

    fn config(&self) -> Config {
        let mut config = Config {
            nodelay: true,
            inactivity_timeout: Some(self.target.keepalive.saturating_mul(4)),
            ..Config::default()
        };
        // A server with keys of several kinds shows the kind asked for first: ask for the pinned kinds.
        let mut kinds: Vec<Algorithm> = vec![];
        for key in self.pinned.iter().chain(&self.preboot) {
            if !kinds.contains(&key.algorithm()) {
                kinds.push(key.algorithm());
            }
        }
        let rsa = |kind: &Algorithm| matches!(kind, Algorithm::Rsa { .. });
        let mut order = config.preferred.key.to_vec();
        order.sort_by_key(|kind| {
            let pinned = kinds.iter().position(|k| k == kind || (rsa(k) && rsa(kind)));
            pinned.unwrap_or(kinds.len())
        });
        config.preferred.key = Cow::Owned(order);
        config
    }

    fn unusable_key(&self, why: &dyn std::fmt::Display) -> reading::Ssh {
        reading::Ssh::AuthRefused(format!("our key {} cannot be used: {why}", self.target.key.display()))
    }

    /// Why there is no session.
    fn judge(&self, error: ClientError) -> reading::Ssh {
        match error {
            ClientError::KeyAuthFailed => reading::Ssh::AuthRefused(format!(
                "user `{}` with key {} is refused",
                self.target.user,
                self.target.key.display()
            )),
            ClientError::KeyInvalid(error) => self.unusable_key(&error),
            ClientError::AddressInvalid(error) => reading::Ssh::Unreachable(error.to_string()),
            ClientError::IoError(error) => judge_io(&error),
            ClientError::SshError(error) => judge_transport(error),
            other => reading::Ssh::Broken(plain_text(&other.to_string(), 200)),
        }
    }
}

fn judge_transport(error: russh::Error) -> reading::Ssh {
    match error {
        russh::Error::IO(error) => judge_io(&error),
        other => reading::Ssh::Broken(plain_text(&other.to_string(), 200)),
    }
}

fn judge_io(error: &io::Error) -> reading::Ssh {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => reading::Ssh::PortClosed,
        // A neighbour that does not answer ARP is "no route to host": it is off, or its cable is.
        Kind::HostUnreachable | Kind::TimedOut => reading::Ssh::Silent,
        Kind::NetworkUnreachable | Kind::NetworkDown | Kind::AddrNotAvailable | Kind::PermissionDenied => {
            reading::Ssh::Unreachable(error.to_string())
        }
        _ => reading::Ssh::Broken(error.to_string()),
    }
}

/// Enough of a command to know it by.
fn told(line: &str) -> String {
    let script = line.split("@@").nth(1).map(|mark| format!("@@{mark}"));
    plain_text(script.as_deref().unwrap_or(line), 60)
}

/// As `ssh-keygen -l` shows it: `ssh-ed25519 SHA256:…`.
fn fingerprint(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

/// Forgets the session unless all went well: also when the future is dropped, since its channel stays open then.
struct Doubt<'a> {
    ssh: &'a Ssh,
    number: u64,
    settled: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut kept = self.ssh.kept();
        if kept.is_current(self.number) {
            kept.forget();
            tracing::info!(host = %self.ssh.target.host, session = self.number, "SSH session given up");
        }
    }
}

/// A name already resolved: the crate itself would resolve with the blocking resolver.
#[derive(Clone)]
struct Resolved {
    host: String,
    addresses: Vec<SocketAddr>,
}

impl ToSocketAddrsWithHostname for Resolved {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.addresses.clone())
    }
    fn hostname(&self) -> String {
        self.host.clone()
    }
}

/// Looks at the offered key and goes no further.
struct Glance;

enum Glimpse {
    Offered(Box<PublicKey>),
    Lost(russh::Error),
}

impl std::fmt::Debug for Glimpse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Offered(key) => write!(f, "Offered({})", fingerprint(key)),
            Self::Lost(error) => write!(f, "Lost({error})"),
        }
    }
}

impl From<russh::Error> for Glimpse {
    fn from(error: russh::Error) -> Self {
        Self::Lost(error)
    }
}

impl russh::client::Handler for Glance {
    type Error = Glimpse;

    fn check_server_key(&mut self, key: &PublicKey) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        std::future::ready(Err(Glimpse::Offered(Box::new(key.clone()))))
    }
}
