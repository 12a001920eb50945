//! The configuration, validated: what the rest of the program is handed.
//!
//! `raw` is the file as written; [`Config`] has passed every check, and names no file any more but those it must read later.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::machine::Policy;

/// Everything configured.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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
    /// Between two keepalives; three lost ones end the session.
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
        /// SecureOn password.
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
    /// Memory in use on an idle GPU, MiB: what remains below counts as given back.
    pub baseline_mib: u64,
    /// Programs that may stay on the GPU: desktop, transcoder.
    pub ignore: Vec<String>,
    /// A foreign process that holds less than this, MiB, is shown but blocks nothing.
    pub foreign_threshold_mib: u64,
    /// How long the tool may take.
    pub timeout: Duration,
}

/// `[backends.NAME]`, what the adapters need; the rest is in [`Policy::backends`].
#[derive(Clone, Debug)]
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
    /// Saved generations kept for each name.
    pub keep: u32,
    /// All saves before a stop together.
    pub save_timeout: Duration,
    /// One restore.
    pub restore_timeout: Duration,
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

/// Everything wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigErrors(String);

/// Reads and checks the configuration.
pub fn load(
    path: &std::path::Path,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigErrors> {
    let _ = env.into_iter();
    Err(ConfigErrors(format!("{} cannot be read", path.display())))
}
