//! The configuration, validated: what the rest of the program is handed.
//!
//! From text to [`Config`] in four steps, none of which stops at its first fault: `raw` is the file as written with the
//! environment laid over it; `sections` says what keys there are; `value` what each may be; `relations` what must hold
//! between them. What comes out has passed every check, and names no file any more but those that are read later.

mod error;
mod raw;
mod relations;
mod section;
mod sections;
#[cfg(test)]
mod tests;
mod value;

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use error::{ConfigErrors, Fault, Origin};

use crate::machine::Policy;

/// A larger file is refused. The example, which says everything there is to say, has a hundredth of it.
const LARGEST: u64 = 1 << 20;

/// Everything configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// The server.
    pub server: Server,
    /// The backends, in the order of their ids in [`Policy::backends`].
    pub backends: Vec<Backend>,
    /// What the machine goes by.
    pub policy: Policy,
    /// How the world is looked at.
    pub probe: Probe,
}

/// Reads the file at `path`, with `env` (usually [`std::env::vars`]) laid over it, and checks everything.
///
/// # Errors
/// Every fault there is, at once.
pub fn load(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
    let errors = |faults| ConfigErrors { path: path.to_owned(), faults };
    let text = read(path).map_err(|message| {
        let (at, key) = (Origin::File, String::new());
        errors(vec![Fault { at, key, message }])
    })?;
    parse(&text, env).map_err(errors)
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes"));
    }
    Ok(text)
}

/// Reads and checks the text of a file, with `env` laid over it.
///
/// # Errors
/// Every fault there is, at once, in the order of lines.
pub fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, Vec<Fault>> {
    let mut credentials = None;
    let ours = env.into_iter().filter(|(name, value)| {
        if name == "CREDENTIALS_DIRECTORY" {
            credentials = Some(value.clone());
        }
        name.starts_with(raw::PREFIX)
    });
    let ours: Vec<_> = ours.collect();
    let (mut config, faults, _) = examine(text, ours)?;
    if !faults.is_empty() {
        return Err(faults);
    }
    if let Some(folder) = credentials {
        for path in config.secret_files_mut() {
            if let Ok(file) = path.strip_prefix(value::CREDENTIALS.trim_end_matches('/')) {
                *path = Path::new(&folder).join(file);
            }
        }
    }
    Ok(config)
}

/// Reads the text as far as it goes: what it says, what is wrong with it, and which keys there are.
fn examine(text: &str, env: Vec<(String, String)>) -> Result<(Config, Vec<Fault>, section::Known), Vec<Fault>> {
    let mut root = raw::parse(text)?;
    raw::overlay(&mut root, env);
    let reader = section::Reader::default();
    let config = reader.root(&root, sections::config);
    relations::check(&config, &reader);
    let (faults, known) = reader.finish();
    Ok((config, faults, known))
}

impl Config {
    /// What is allowed but probably not meant, or cannot work as things are on this machine now: for `config check` and
    /// the daemon's journal. Looks at the files that hold keys, and never at what is in them.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for path in self.secret_files() {
            let shown = path.display();
            if path.starts_with(value::CREDENTIALS.trim_end_matches('/')) {
                warnings.push(format!(
                    "{shown} cannot be looked at here: systemd sets $CREDENTIALS_DIRECTORY for the service only"
                ));
            } else if let Err(error) = std::fs::File::open(path) {
                warnings.push(format!("{shown} cannot be read by this user: {error}; the daemon must be able to"));
            }
        }
        for (key, after) in [
            ("idle.stop_after", self.policy.idle_stop_after),
            ("idle.power_off_after", self.policy.idle_power_off_after),
        ] {
            if let Some(after) = after.filter(|after| *after < Duration::from_mins(1)) {
                warnings
                    .push(format!("{key} is {}: a person who thinks for a minute finds it gone", value::show(after)));
            }
        }
        if self.server.wake == Wake::None && self.policy.idle_power_off_after.is_some() {
            warnings.push(
                "idle.power_off_after powers the server off, but gpu_server.wake.method is \"none\": somebody must \
                 switch it on by hand"
                    .into(),
            );
        }
        warnings
    }

    fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        let backends = self.backends.iter().flat_map(|backend| {
            let ssh = backend.ssh.iter().map(|ssh| &ssh.key);
            ssh.chain(&backend.api_key_file)
        });
        std::iter::once(&self.server.ssh.key).chain(backends)
    }

    fn secret_files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let backends = self.backends.iter_mut().flat_map(|backend| {
            let ssh = backend.ssh.iter_mut().map(|ssh| &mut ssh.key);
            ssh.chain(&mut backend.api_key_file)
        });
        std::iter::once(&mut self.server.ssh.key).chain(backends)
    }
}

/// `[daemon]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The unix socket.
    pub socket: PathBuf,
    /// Group of the socket; `None` leaves the daemon's own.
    pub group: Option<String>,
    /// Holds, slot notes, durations, the journal of steps.
    pub state_dir: PathBuf,
}

/// `[gpu_server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name in paths, status and configuration.
    pub name: String,
    /// How to reach it.
    pub ssh: SshTarget,
    /// How to wake it.
    pub wake: Wake,
    /// The NIC on the server whose Wake-on setting is read before a power-off; `None`: the one of the default route.
    pub wake_interface: Option<String>,
    /// How to read its GPUs.
    pub gpu: GpuTool,
    /// Put before `systemctl` for verbs that need rights, as `["sudo", "-n"]`; empty with polkit.
    pub privilege: Vec<String>,
}

/// An SSH target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshTarget {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Private key file (may be a systemd credential). Never printed.
    pub key: PathBuf,
    /// The pinned host keys, as `ssh-ed25519 AAAA…`.
    pub host_keys: Vec<String>,
    /// Keys of the initramfs' SSH.
    pub preboot_host_keys: Vec<String>,
    /// Until connected and authenticated. Shorter than `keepalive`.
    pub connect_timeout: Duration,
    /// One command that only looks.
    pub command_timeout: Duration,
    /// A kept session on which nothing has moved for four times as long is given up.
    pub keepalive: Duration,
}

/// How the server is woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// By hand only.
    None,
    /// Wake-on-LAN.
    MagicPacket {
        /// Its hardware address.
        mac: [u8; 6],
        /// `SecureOn` password.
        secure_on: Option<[u8; 6]>,
        /// Where the packets go; every one of them each time.
        targets: Vec<SocketAddr>,
        /// The local address they leave from, and so the interface.
        source: Option<std::net::IpAddr>,
    },
    /// A command on this machine (argv, no shell), for IPMI or a smart plug.
    Command(Vec<String>),
}

/// How the GPUs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuTool {
    /// Ask at all.
    pub enabled: bool,
    /// Memory in use on an idle GPU, MiB: a stopped backend has given its memory back once all GPUs are at or below it.
    /// `None`: its processes alone decide.
    pub baseline_mib: Option<u64>,
    /// Programs that may stay on the GPU: desktop, transcoder.
    pub ignore: Vec<String>,
    /// A foreign process that holds less than this, MiB, is shown but blocks nothing.
    pub foreign_threshold_mib: u64,
    /// How long the tool may take. Without persistence mode the driver initialises at each call, which takes 1 to 3 s.
    pub timeout: Duration,
}

/// `[backends.NAME]`, what the adapters need; the rest is in [`Policy::backends`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its unit on the server: letters, digits and `:_.@-` only.
    pub unit: String,
    /// Where the daemon asks, without a slash at the end.
    pub url: String,
    /// Where people and programs use it.
    pub public_url: String,
    /// The health path (`/health` unless generic and said otherwise).
    pub health_path: String,
    /// File with its API key. Never printed.
    pub api_key_file: Option<PathBuf>,
    /// The model id it must answer with; `None`: any.
    pub model: Option<String>,
    /// Its own SSH target, where it is not the server's.
    pub ssh: Option<SshTarget>,
    /// Its slot folder.
    pub slots: Option<Slots>,
    /// How long a start usually takes, until history knows better.
    pub expected_start: Duration,
}

/// `[backends.NAME.slots]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The folder on the server (`--slot-save-path`). Absolute.
    pub dir: PathBuf,
    /// Slot 0 is saved under this name, others under NAME-1, …
    pub name: String,
    /// Saved generations kept for each name and server that they fit.
    pub keep: u32,
    /// All saves before a stop together.
    pub save_timeout: Duration,
    /// One restore.
    pub restore_timeout: Duration,
    /// The same folder on this machine, where it is mounted; `None`: it is looked at over SSH.
    pub mounted: Option<PathBuf>,
    /// Files are held against a digest taken after they were saved, before they are restored.
    pub digest: bool,
    /// Saved generations older than this are removed; `None`: age does not matter.
    pub keep_for: Option<Duration>,
    /// All saved generations of the backend together, MiB; what is least likely to be wanted goes first. `None`: without limit.
    pub most_mib: Option<u64>,
    /// How it is found out whether a restore had effect.
    pub prove: Prove,
    /// How long the proof may take.
    pub prove_timeout: Duration,
    /// Larger slots are not saved while the backend goes on running, MiB; `None`: without limit.
    pub checkpoint_most_mib: Option<u64>,
}

/// How it is found out whether a restore had effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prove {
    /// By the next real request.
    #[default]
    Later,
    /// Before the backend counts as ready: the saved tokens are sent back, with nothing to predict.
    AtOnce,
}

impl Slots {
    /// The slots in `dir` under `name`, everything else as it is by default.
    #[must_use]
    pub fn new(dir: PathBuf, name: &str) -> Self {
        Self {
            dir,
            name: name.to_owned(),
            keep: 3,
            save_timeout: Duration::from_mins(1),
            restore_timeout: Duration::from_mins(1),
            mounted: None,
            digest: true,
            keep_for: None,
            most_mib: None,
            prove: Prove::Later,
            prove_timeout: Duration::from_secs(10),
            checkpoint_most_mib: None,
        }
    }
}

/// `[probe]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Between two looks at rest.
    pub rest: Duration,
    /// Between two looks while something is under way.
    pub busy: Duration,
    /// Between two looks while the server is off or coming up.
    pub waiting: Duration,
    /// One HTTP question.
    pub http_timeout: Duration,
}
