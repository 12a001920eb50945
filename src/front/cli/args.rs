//! What can be typed. Help, completions and the man page come from here.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes: 0 done, or already so · 1 the operation failed · 2 wrong use or configuration · 3 no daemon · \
4 refused · 5 not finished within --timeout · 130 interrupted (what was begun goes on in the daemon)";

/// Switches a shared GPU server between inference backends, wakes it and sends it to sleep.
#[derive(Clone, Debug, Parser)]
#[command(name = "wechsler", version, after_help = EXIT_CODES, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", env = "WECHSLER_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// The configuration file [default: /etc/wechsler/config.toml].
    #[arg(long, global = true, value_name = "PATH", env = "WECHSLER_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// One JSON object on standard output instead of text, whatever happens.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Show what is so now.
    Status,
    /// Show where the backends are reached and how long a start takes.
    Endpoints,
    /// Bring a backend up, waking the server if needed.
    Start {
        /// The backend [default: the configured one].
        name: Option<String>,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Bring this backend up and whatever else runs down, saving its slots first.
    Switch {
        /// The backend.
        name: String,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Bring whatever runs down, saving its slots first.
    Stop {
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Stop and start again, with slots saved and restored.
    Restart {
        /// The backend [default: the one that runs].
        name: Option<String>,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Bring the server up, nothing else.
    Wake {
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Bring everything down, and the server too.
    Shutdown {
        /// Power the server off (this is what it does anyway).
        #[arg(long)]
        power_off: bool,
        /// Leave the server on.
        #[arg(long, conflicts_with = "power_off")]
        keep_on: bool,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// End a conflict: keep one backend, stop the others.
    Resolve {
        /// The backend to keep.
        #[arg(long, value_name = "NAME")]
        keep: String,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Forget the operation under way; what has happened stays.
    Cancel,
    /// Keep something as it is for a while.
    Hold {
        /// `awake` (no power-off), a backend's name (it stays up), `gpu` (nothing is started), `off` (nothing wakes it).
        what: String,
        /// How long, as "2h" or "1h 30m" [default: until released].
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        lasts: Option<Duration>,
        /// Why, for others.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// End a hold.
    Release {
        /// Its number, from `holds`.
        id: u64,
    },
    /// Show the holds in force.
    Holds,
    /// Show, save, restore, check or forget the slots of llama.cpp.
    Slots {
        /// What to do with them.
        #[command(subcommand)]
        what: Option<SlotsVerb>,
    },
    /// Show each change as it happens.
    Watch,
    /// Wait until the server is in a state.
    Wait {
        /// As in `status` (`gpu-idle`, `gpu-offline`, a backend's name …), or `ready`: a backend is up and well.
        state: String,
        /// Give up after so long, as "90s".
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },
    /// Look after the configuration.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        what: ConfigVerb,
    },
    /// Run the daemon.
    Daemon,
    /// See it all at work on a virtual server in this process; needs nothing and leaves nothing.
    #[cfg(feature = "virtual-server")]
    Demo {
        /// Half a minute instead of a whole one.
        #[arg(long)]
        fast: bool,
        /// Keep the server and its daemon running at the end, to be tried from another terminal, until Ctrl-C.
        #[arg(long)]
        stay: bool,
    },
    /// Run a daemon's journal of steps through the machine again, show each step, and say where it differs.
    ///
    /// For those who look for a fault in the program. The journal is `steps.jsonl` in the daemon's state directory
    /// (/var/lib/wechsler), the one before it `steps.1.jsonl`. Copied into tests/journals/, it is a test.
    Replay {
        /// The journal.
        file: PathBuf,
    },
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the man page, or write all pages into a folder.
    Man {
        /// The folder.
        dir: Option<PathBuf>,
    },
}

/// How an operation is meant, and how long to stay with it.
#[derive(Clone, Copy, Debug, Default, ClapArgs)]
pub struct Way {
    /// Return as soon as the daemon has accepted it.
    #[arg(long)]
    pub no_wait: bool,
    /// Do not wait for requests in flight.
    #[arg(long)]
    pub no_drain: bool,
    /// Replace another operation under way instead of being refused.
    #[arg(long)]
    pub replace: bool,
    /// Stop waiting after so long, as "90s"; the operation goes on in the daemon.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

/// `slots …`.
#[derive(Clone, Debug, Subcommand)]
pub enum SlotsVerb {
    /// Show them (this is what it does without a word).
    List,
    /// Save those that hold tokens, now; with a name, one of them under it.
    Save {
        /// The name to save under, restored only by it. Of each name the newest `keep` saves stay, and the largest;
        /// `keep_for` and `most_mib` may end them sooner.
        name: Option<String>,
        /// The slot to save, where several hold something.
        #[arg(long, value_name = "NUMBER", requires = "name")]
        slot: Option<u32>,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Restore the saved ones into the running backend; with a name, that one.
    Restore {
        /// The name it was saved under.
        name: Option<String>,
        /// The slot to restore it into [default: the one it was saved from].
        #[arg(long, value_name = "NUMBER", requires = "name")]
        slot: Option<u32>,
        /// Which of its generations, from `slots list` [default: the newest that fits].
        #[arg(long, value_name = "NUMBER", requires = "name")]
        generation: Option<u64>,
        /// How.
        #[command(flatten)]
        way: Way,
    },
    /// Remove what is saved under a name.
    Forget {
        /// The name.
        name: String,
        /// Only this generation.
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
        /// Whose, where several backends have it.
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
    },
    /// Read saved files whole and say whether they are as they were saved.
    Verify {
        /// Only what is saved under this name.
        name: Option<String>,
        /// Only this generation.
        #[arg(long, value_name = "NUMBER", requires = "name")]
        generation: Option<u64>,
        /// Whose, where several backends have it.
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
    },
}

/// `config …`.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigVerb {
    /// Say whether the configuration is right, and everything that is wrong.
    Check {
        /// The file [default: the one the daemon would read].
        path: Option<PathBuf>,
    },
}
