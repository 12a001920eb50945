//! The daemon as a process: the driver, the real world, the socket, and what systemd expects of a service.

use std::{io, path::Path, process::ExitCode, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinError,
};
use tracing::{error, info, warn};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::Config,
    driver::{self, Pulse, Setup, status::Status},
    front::socket,
    host::{Host, HostError},
};

/// Once told to end, the process does so after this long at the latest, whatever hangs.
const END_AT_MOST: Duration = Duration::from_secs(5);
/// Directives before those of `WECHSLER_LOG`: the libraries' own stories are for those who ask.
const QUIET: &str = "info,russh=warn,async_ssh2_tokio=warn,hyper_util=warn,reqwest=warn";

/// Why the daemon could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] socket::BindError),
    /// The server cannot be spoken to as configured.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The system refuses to tell of signals.
    #[error("signals cannot be listened for: {0}")]
    Signals(#[source] io::Error),
    /// A bug: the driver's task broke off.
    #[error("the driver broke off: {0}")]
    Driver(#[source] JoinError),
    /// A bug: the driver ended although nobody told it to.
    #[error("the driver ended by itself")]
    DriverEnded,
}

/// Sends what the program has to say to the journal, or to standard error where there is none. `WECHSLER_LOG` filters it
/// (as `debug`, `wechsler=trace,russh=debug`); the default is `info`.
pub fn start_tracing() {
    let wanted = std::env::var("WECHSLER_LOG").unwrap_or_default();
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{wanted}"));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM where standard error is the journal: then with fields, else as lines.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let lines = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_target(false)
    });
    // A second call (in a test) changes nothing.
    let _ = registry.with(journal).with(lines).try_init();
}

/// The process of `wechsler daemon`: from configuration to exit code.
#[must_use]
pub fn process(config: Config) -> ExitCode {
    start_tracing();
    for warning in config.warnings() {
        warn!("{warning}");
    }
    // One thread: everything here waits, nothing computes.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(config));
    // A disk that hangs must not keep the process.
    runtime.shutdown_timeout(END_AT_MOST);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!("{why}");
            match why {
                // Wrong configuration, for systemd's RestartPreventExitStatus.
                DaemonError::Host(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The daemon until SIGTERM, SIGINT or SIGHUP. Needs a tokio runtime with time and IO.
///
/// # Errors
/// See [`DaemonError`]. A daemon that ends by a signal has not failed.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut signals = Signals::listen().map_err(DaemonError::Signals)?;
    prepare_state_dir(&config.daemon.state_dir);
    // First the socket: a second daemon ends here, before it has looked at or touched anything.
    let listener = socket::Listener::bind(&config.daemon.socket, config.daemon.group.as_deref()).await?;
    let host = Host::new(&config)?;

    let (end, told_to_end) = watch::channel(false);
    let setup = Setup { pulse: watchdog(), ..Setup::from(&config) };
    let (handle, mut driver) = driver::spawn(setup, host, told_to_end.clone());
    let status_line = tokio::spawn(tell_status(handle.status.clone()));
    let mut stop_serving = told_to_end;
    let front = tokio::spawn(socket::serve(listener, handle, async move {
        let _ = stop_serving.wait_for(|end| *end).await;
    }));
    notify(&[NotifyState::Ready]);
    info!(socket = %config.daemon.socket.display(), server = config.server.name,
        version = env!("CARGO_PKG_VERSION"), "the daemon is up");

    let died = tokio::select! {
        (name, _) = signals.next() => {
            info!(signal = name, "told to end");
            None
        }
        ended = &mut driver => Some(match ended {
            Ok(()) => DaemonError::DriverEnded,
            Err(error) => DaemonError::Driver(error),
        }),
    };
    notify(&[NotifyState::Stopping]);
    status_line.abort();
    let _ = end.send(true);
    let ending = async {
        let driver = async {
            match died {
                Some(died) => Err(died),
                None => driver.await.map_err(DaemonError::Driver),
            }
        };
        let (driver, front) = tokio::join!(driver, front);
        if let Err(error) = front {
            warn!(%error, "the socket's task broke off");
        }
        driver
    };
    tokio::time::timeout(END_AT_MOST, ending).await.unwrap_or_else(|_| {
        warn!("something hangs; ending without it");
        Ok(())
    })
}

/// Without it nothing is kept, which is said and lived with.
fn prepare_state_dir(dir: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir);
    if let Err(error) = made {
        warn!(dir = %dir.display(), %error, "the state directory cannot be made; holds and slot notes will not outlive the daemon");
    }
}

/// The watchdog of systemd is fed by the driver's own loop, so that a driver that hangs is restarted although everything
/// else still answers.
fn watchdog() -> Option<Pulse> {
    let limit = sd_notify::watchdog_enabled()?;
    Some(Pulse { every: limit / 3, beat: Arc::new(|| notify(&[NotifyState::Watchdog])) })
}

/// Keeps `systemctl status` at one line about the present.
async fn tell_status(mut status: watch::Receiver<Arc<Status>>) {
    let mut told = String::new();
    loop {
        let line = {
            let status = status.borrow_and_update();
            let phase = status.phase.as_deref().map(|p| format!(", {p}"));
            format!("{}{}, health {}", status.state, phase.unwrap_or_default(), status.health)
        };
        if line != told {
            notify(&[NotifyState::Status(&line)]);
            told = line;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Outside systemd there is nobody to tell, which is no fault.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// What tells a process to end.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Name and number of the next one.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.interrupt.recv() => ("SIGINT", 2),
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.hang_up.recv() => ("SIGHUP", 1),
        }
    }
}
