//! The real world: SSH, HTTP, wake packets.
//!
//! [`Host`] composes the rooms beside it and decides nothing: what it reads goes to the machine unjudged. Command lines come
//! from [`remote`] only, answers are read by pure functions, and everything has its deadline and its bound.

mod doubt;
pub mod ethtool;
pub mod gpu;
pub mod http;
pub mod launch_flags;
pub mod mounted_folder;
pub mod people;
pub mod remote;
pub mod slot_files;
pub mod slot_folder;
mod slot_place;
pub mod slots;
pub mod ssh;
pub mod systemd;
mod tidy;
pub mod wake;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{join_all, join5};
use tokio::time::{Instant as Clock, timeout, timeout_at};

use crate::{
    config::{self, Config},
    driver::world::{PostMortem, SlotChoice, SlotTask, Tended, World},
    machine::{
        BackendId, BackendPolicy, BootId, Instant, Invocation, Outcome, RestorePolicy, Verb, Warning,
        reading::{self, Ask, BackendReading, Dated, Gpu, Http, People, Reading, Unit, UnitState, WakeArmed},
    },
};
use doubt::{Doubts, InDoubt, UnderWay, address};
use http::{HttpSetupError, Probe};
use mounted_folder::MountedFolder;
use remote::{Interface, RemotePath, RemoteVerb, UnitName};
use slot_folder::SlotFolder;
use slot_place::SlotPlace;
use slots::SlotStore;
use ssh::{Ssh, SshSetupError, Trouble};
use systemd::{Ended, UnitsAnswer};
use tidy::Slots;

/// For the quick question after a stop.
const QUICK: Duration = Duration::from_secs(2);
/// A GPU tool that hangs is not asked again for so long (or until the next boot): each call would hang beside it.
const GPU_HANGS_FOR: Duration = Duration::from_mins(10);
/// Both calls of the GPU tool end on the server by themselves, a second after their limit at the latest; then comes this.
const GPU_SLACK: Duration = Duration::from_secs(4);

/// The configured server and its backends.
#[derive(Debug)]
pub struct Host {
    server: Arc<Ssh>,
    backends: Vec<Backend>,
    wake: config::Wake,
    wake_interface: Option<Interface>,
    gpu: config::GpuTool,
    privilege: Vec<String>,
    /// The boot that last answered.
    boot: Mutex<Option<BootId>>,
    /// Orders under way.
    orders: AtomicUsize,
    /// A unit was just stopped: what is waited for is the proof that all are down.
    stopped: AtomicBool,
    /// What orders have left in doubt, by target.
    doubts: Mutex<Doubts>,
    /// The boot in which the GPU tool hung, and until when it is left alone.
    gpu_hung: Mutex<Option<(Option<BootId>, Clock)>>,
}

/// One backend's adapters.
#[derive(Debug)]
struct Backend {
    name: String,
    unit: UnitName,
    port: u16,
    /// The server's, or its own.
    ssh: Arc<Ssh>,
    probe: Probe,
    /// It answered as itself when last asked: only then it is asked about its use.
    ready: AtomicBool,
    slots: Option<Slots>,
    /// Its unit, as it was last asked about in full.
    known: Mutex<Option<UnitState>>,
}

/// The configuration cannot be turned into adapters.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// An SSH target.
    #[error(transparent)]
    Ssh(#[from] SshSetupError),
    /// A backend's URL or key file.
    #[error("backend `{backend}`: {source}")]
    Http {
        /// Its name.
        backend: String,
        /// What is wrong.
        source: HttpSetupError,
    },
    /// A word that must not reach the server's shell.
    #[error("`{word}` cannot be used as {what}")]
    Word {
        /// As configured.
        word: String,
        /// What it should be.
        what: &'static str,
    },
}

impl HostError {
    fn word(word: impl Into<String>, what: &'static str) -> Self {
        Self::Word { word: word.into(), what }
    }
}

impl Host {
    /// The world of that configuration. Connects to nothing yet.
    ///
    /// # Errors
    /// When something configured cannot be used: a pinned key, a key file, a unit name, a path.
    pub fn new(config: &Config) -> Result<Self, HostError> {
        let server = Arc::new(Ssh::new(&config.server.ssh)?);
        let backend = |(backend, policy): (&config::Backend, &BackendPolicy)| {
            let ssh = match &backend.ssh {
                Some(target) => Arc::new(Ssh::new(target)?),
                None => Arc::clone(&server),
            };
            let unit =
                UnitName::new(&backend.unit).ok_or_else(|| HostError::word(&backend.unit, "the name of a unit"))?;
            let slots = backend.slots.as_ref().map(|slots| {
                let dir = slots.dir.to_string_lossy();
                let folder = RemotePath::new(&dir).ok_or_else(|| HostError::word(dir, "the path of a slot folder"))?;
                let folder = SlotFolder::new(Arc::clone(&ssh), folder, unit.clone());
                let folder = match &slots.mounted {
                    Some(here) => SlotPlace::Mounted(MountedFolder::new(here.clone(), folder, ssh.command_timeout())),
                    None => SlotPlace::Server(folder),
                };
                let (state, server) = (&config.daemon.state_dir, &config.server.name);
                let store = SlotStore::new(state, server, &backend.name, slots.clone());
                Ok::<_, HostError>(Slots::new(store, folder, policy.restore != RestorePolicy::Never))
            });
            let probe = Probe::new(backend, policy.kind, config.probe.http_timeout)
                .map_err(|source| HostError::Http { backend: backend.name.clone(), source })?;
            Ok::<_, HostError>(Backend {
                name: backend.name.clone(),
                unit,
                port: reqwest::Url::parse(&backend.url)
                    .ok()
                    .and_then(|url| url.port_or_known_default())
                    .ok_or_else(|| HostError::word(&backend.url, "a backend's URL"))?,
                ssh,
                probe,
                ready: AtomicBool::new(false),
                slots: slots.transpose()?,
                known: Mutex::default(),
            })
        };
        let backends = config.backends.iter().zip(&config.policy.backends).map(backend);
        let backends = backends.collect::<Result<Vec<_>, _>>()?;
        let nic = config
            .server
            .wake_interface
            .as_deref()
            .map(|nic| Interface::new(nic).ok_or_else(|| HostError::word(nic, "the name of a network interface")));
        Ok(Self {
            wake_interface: nic.transpose()?,
            backends,
            wake: config.server.wake.clone(),
            gpu: config.server.gpu.clone(),
            privilege: config.server.privilege.clone(),
            server,
            boot: Mutex::default(),
            orders: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            doubts: Mutex::default(),
            gpu_hung: Mutex::default(),
        })
    }

    /// SSH and all units: one command for each target.
    async fn look_at_units(&self) -> (reading::Ssh, Vec<Unit>) {
        // Backends by target; the server's own target is always asked, also without units.
        let mut targets: BTreeMap<usize, (&Arc<Ssh>, Vec<usize>)> = BTreeMap::new();
        targets.insert(address(&self.server), (&self.server, vec![]));
        for (i, backend) in self.backends.iter().enumerate() {
            let entry = targets.entry(address(&backend.ssh)).or_insert((&backend.ssh, vec![]));
            entry.1.push(i);
        }
        let stopped = self.stopped.swap(false, Ordering::Relaxed);
        let ask = |(ssh, which): (&Arc<Ssh>, Vec<usize>)| {
            let (ssh, server) = (Arc::clone(ssh), Arc::ptr_eq(ssh, &self.server));
            async move {
                let answer = self.ask_units(&ssh, &which, stopped).await;
                (server, which, answer)
            }
        };
        let mut units = vec![Unit::Unread("not asked".into()); self.backends.len()];
        let mut told = reading::Ssh::Silent;
        let answers = join_all(targets.into_values().map(ask)).await;
        // Of all targets one number is told, and it moves only when each of those in doubt has answered over a new session:
        // a new session with one of them says nothing of what another was ordered.
        let session = locked(&self.doubts).cleared + 1;
        for (server, which, answer) in answers {
            let (ssh, states) = match answer {
                Ok(answer) => (reading::Ssh::Answered { boot: answer.boot, session }, answer.units),
                Err(down) => {
                    let unread = vec![Unit::Unread(down.words()); which.len()];
                    (down, unread)
                }
            };
            for (i, state) in which.into_iter().zip(states) {
                units[i] = state;
            }
            if server {
                told = ssh;
            }
        }
        if let reading::Ssh::Answered { boot, .. } = told {
            *locked(&self.boot) = Some(boot);
        }
        (told, units)
    }

    /// The units of the backends `which`, all at the same target. Just after a stop it is asked whether they are down, which is
    /// quickly told; in full if they are not.
    async fn ask_units(&self, ssh: &Ssh, which: &[usize], stopped: bool) -> Result<UnitsAnswer, reading::Ssh> {
        let backends: Vec<&Backend> = which.iter().filter_map(|i| self.backends.get(*i)).collect();
        let units: Vec<UnitName> = backends.iter().map(|backend| backend.unit.clone()).collect();
        let within = ssh.command_timeout();
        // A quick answer that does not come is no answer: then it is asked in full.
        if stopped && let Ok(reply) = ssh.ask(&remote::units_down(&units), within.min(QUICK)).await {
            let known: Vec<_> = backends.iter().map(|backend| locked(&backend.known).clone()).collect();
            if let Some(answer) = systemd::parse_down(&reply.stdout, &units, &known) {
                locked(&self.doubts).answered(ssh, reply.session);
                return Ok(answer);
            }
        }
        let reply = ssh.ask(&remote::units(&units), within).await.map_err(Trouble::reading)?;
        let answer = systemd::parse_units(&reply.stdout, &reply.stderr, &units).map_err(reading::Ssh::Broken)?;
        locked(&self.doubts).answered(ssh, reply.session);
        for (backend, unit) in backends.iter().zip(&answer.units) {
            *locked(&backend.known) = match unit {
                Unit::Loaded(state) => Some(state.clone()),
                Unit::Missing(_) | Unit::Unread(_) => None,
            };
        }
        Ok(answer)
    }

    /// `None` where SSH itself is in the way: that says nothing of the GPU.
    async fn look_at_gpu(&self) -> Option<Gpu> {
        if !self.gpu.enabled {
            return Some(Gpu::Absent);
        }
        let boot = *locked(&self.boot);
        if let Some((then, until)) = *locked(&self.gpu_hung)
            && then == boot
            && Clock::now() < until
        {
            return Some(Gpu::Hangs);
        }
        let within = self.gpu.timeout.saturating_mul(2) + GPU_SLACK;
        match self.server.run(&remote::gpu(self.gpu.timeout), within).await {
            Ok(reply) => {
                *locked(&self.gpu_hung) = None;
                let units: Vec<UnitName> = self.backends.iter().map(|b| b.unit.clone()).collect();
                Some(gpu::parse(&reply.stdout, &units, &self.gpu))
            }
            Err(Trouble::TimedOut(_)) => {
                *locked(&self.gpu_hung) = Some((boot, Clock::now() + GPU_HANGS_FOR));
                Some(Gpu::Hangs)
            }
            Err(Trouble::Down(_) | Trouble::Lost(_)) => None,
        }
    }

    async fn look_at_people(&self) -> People {
        match self.server.ask(&remote::people(), self.server.command_timeout()).await {
            Ok(reply) => people::parse(&reply.stdout, self.server.user()),
            Err(trouble) => People::Unread(trouble.to_string()),
        }
    }

    async fn look_at_wake_on(&self) -> WakeArmed {
        match &self.wake {
            // Whatever the command does, it does not go through the card.
            config::Wake::Command(_) => WakeArmed::Armed,
            config::Wake::None => WakeArmed::Unknown("no way of waking is configured".into()),
            config::Wake::MagicPacket { .. } => {
                let line = remote::wake_on(self.wake_interface.as_ref());
                match self.server.ask(&line, self.server.command_timeout()).await {
                    Ok(reply) => ethtool::parse(&reply.stdout),
                    Err(trouble) => WakeArmed::Unknown(trouble.to_string()),
                }
            }
        }
    }

    /// An inhibitor shows as a missing right (polkit asks for another one then): who it is, is asked after.
    async fn power_off(&self, within: Duration) -> Outcome {
        let until = Clock::now() + within;
        let outcome = self.order(&self.server, RemoteVerb::PowerOff, within).await;
        if let Outcome::Failed(refused) = &outcome
            && refused.code == "not_permitted"
            && let Ok(People::Read { inhibitors, .. }) = timeout_at(until, self.look_at_people()).await
            && let Some(inhibitor) = inhibitors.first()
        {
            let why = format!("the shutdown is inhibited by {inhibitor}");
            return Outcome::Failed(Warning::new("blocked", why));
        }
        outcome
    }

    async fn wake(&self, within: Duration) -> Outcome {
        match &self.wake {
            config::Wake::None => Outcome::Failed(Warning::new("cannot_wake", "no way of waking is configured")),
            config::Wake::Command(argv) => wake::run(argv, within).await,
            config::Wake::MagicPacket { mac, secure_on, targets, source } => {
                let packet = wake::magic_packet(*mac, *secure_on);
                let sent = timeout(within, wake::send(&packet, targets, *source)).await;
                sent.unwrap_or_else(|_| {
                    Outcome::Unknown(Warning::new("wake_send", format!("not sent within {within:?}")))
                })
            }
        }
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.get(usize::from(id.0))
    }

    /// Gives one order to systemd at `ssh` and judges its end.
    async fn order(&self, ssh: &Ssh, verb: RemoteVerb<'_>, within: Duration) -> Outcome {
        let ended = match verb {
            RemoteVerb::Start(_) | RemoteVerb::Stop(_) => Ended::Unit,
            RemoteVerb::Kill(_) | RemoteVerb::ResetFailed(_) => Ended::Harmless,
            RemoteVerb::PowerOff => Ended::PowerOff,
        };
        // Whatever is in doubt is cleared up by a later session, so there must be one: also if this future is dropped.
        let mut doubt = InDoubt(Some((ssh, &self.doubts)));
        let line = remote::verb(&self.privilege, verb);
        let outcome = match timeout(within, ssh.run(&line, within)).await {
            Ok(Ok(reply)) => systemd::judge_verb(ended, reply.status, &reply.stderr),
            Ok(Err(Trouble::Down(down))) => Outcome::Failed(Warning::new(down.code(), down.words())),
            Ok(Err(lost)) => Outcome::Unknown(Warning::new("verb_lost", lost.to_string())),
            Err(_) => Outcome::Unknown(Warning::new("verb_lost", format!("no answer within {within:?}"))),
        };
        if !matches!(outcome, Outcome::Unknown(_)) {
            doubt.0 = None;
        }
        outcome
    }
}

async fn when<T>(asked: bool, look: impl Future<Output = T>) -> Option<T> {
    if asked { Some(look.await) } else { None }
}

fn dated<T>(at: Instant, value: Option<T>) -> Option<Dated<T>> {
    value.map(|value| Dated { at, value })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only plain values are put in and taken out while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// The run of its unit, as far as it is known.
    fn run(&self) -> Option<Invocation> {
        locked(&self.known).as_ref().and_then(|unit| unit.invocation)
    }

    /// Health, then use, where the backend answers as itself. The first look that finds it so tells of its use, too: whether
    /// its slots may be restored hangs on that, and a start waits for it.
    async fn look(&self, ask: Ask, now: Instant) -> BackendReading {
        let mut reading = BackendReading::default();
        let mut newly_ready = false;
        if ask.http {
            let http = self.probe.health().await;
            let ready = matches!(http, Http::Ready(_));
            newly_ready = !self.ready.swap(ready, Ordering::Relaxed) && ready;
            reading.http = Some(Dated { at: now, value: http });
        }
        if newly_ready || (ask.activity && self.ready.load(Ordering::Relaxed)) {
            let run = self.run();
            let activity = self.probe.activity(now).await;
            if let (Some(slots), Some(activity)) = (&self.slots, &activity)
                && !activity.slots.is_empty()
            {
                slots.store.meets(run);
                slots.store.answers().await;
            }
            reading.activity = activity.map(|value| Dated { at: now, value });
        }
        if ask.saved
            && let Some(slots) = &self.slots
        {
            slots.store.meets(self.run());
            reading.saved = Some(Dated { at: now, value: slots.store.saved().await });
            reading.folder_is_open = slots.store.folder_is_open();
        }
        reading
    }
}

impl World for Host {
    async fn look(&self, ask: Ask, now: Instant) -> Reading {
        let backends = join_all(self.backends.iter().map(|backend| backend.look(ask, now)));
        // Boxed: all sources together are a large future, and most looks ask one or two.
        let (units, mut backends, gpu, people, wake_armed) = Box::pin(join5(
            when(ask.units, self.look_at_units()),
            backends,
            when(ask.gpu, self.look_at_gpu()),
            when(ask.people, self.look_at_people()),
            when(ask.wake_armed, self.look_at_wake_on()),
        ))
        .await;
        let mut reading = Reading {
            gpu: dated(now, gpu.flatten()),
            people: dated(now, people),
            wake_armed: dated(now, wake_armed),
            ..Reading::default()
        };
        if let Some((ssh, units)) = units {
            reading.ssh = dated(now, Some(ssh));
            for (backend, unit) in backends.iter_mut().zip(units) {
                backend.unit = dated(now, Some(unit));
            }
        }
        reading.backends = backends;
        reading
    }

    async fn carry_out(&self, verb: Verb, within: Duration) -> Outcome {
        self.carry_out_chosen(verb, SlotChoice::All, within).await
    }

    async fn carry_out_chosen(&self, verb: Verb, choice: SlotChoice, within: Duration) -> Outcome {
        let _under_way = UnderWay::new(&self.orders);
        let no_such = || Outcome::Failed(Warning::new("verb_failed", "there is no such backend"));
        let (Verb::StartUnit(id)
        | Verb::StopUnit(id)
        | Verb::KillUnit(id)
        | Verb::SaveSlots(id)
        | Verb::RestoreSlots(id)) = verb
        else {
            return match verb {
                Verb::Wake => self.wake(within).await,
                _ => self.power_off(within).await,
            };
        };
        let Some(backend) = self.backend(id) else {
            return no_such();
        };
        // Its end will be asked after at once, and what comes next as well.
        backend.ssh.expect_questions();
        let unit = &backend.unit;
        let order = match verb {
            Verb::StartUnit(_) => RemoteVerb::Start(unit),
            Verb::StopUnit(_) => RemoteVerb::Stop(unit),
            Verb::KillUnit(_) => RemoteVerb::Kill(unit),
            _ => {
                let Some(slots) = &backend.slots else {
                    return Outcome::Failed(Warning::new("no_slots", "no slot folder is configured"));
                };
                // Boxed: large, and rare.
                slots.store.meets(backend.run());
                let outcome = if let Verb::SaveSlots(_) = verb {
                    slots.sweep_again();
                    Box::pin(slots.store.save(&backend.probe, &slots.folder, &choice, within)).await
                } else {
                    Box::pin(slots.store.restore(&backend.probe, &slots.folder, &choice, within)).await
                };
                return slots::without_news(outcome, &choice);
            }
        };
        let until = Clock::now() + within;
        let left = || until.saturating_duration_since(Clock::now());
        let outcome = self.order(&backend.ssh, order, within).await;
        if let (Verb::StartUnit(_), Outcome::Succeeded(_), Some(slots)) = (verb, &outcome, &backend.slots) {
            slots.look_ahead();
        }
        let is_stop = matches!(order, RemoteVerb::Stop(_) | RemoteVerb::Kill(_));
        if is_stop && matches!(outcome, Outcome::Succeeded(_)) {
            self.stopped.store(true, Ordering::Relaxed);
        }
        // Quick switches use up systemd's start counter (manual starts count too): it is cleared, and asked once more, as far
        // as the time allows. After a clearing of which nobody knows how it ended nothing more is sent.
        match outcome {
            Outcome::Failed(why) if why.code == "start_limit" && matches!(order, RemoteVerb::Start(_)) => {
                match self.order(&backend.ssh, RemoteVerb::ResetFailed(unit), left()).await {
                    unknown @ Outcome::Unknown(_) => unknown,
                    _ if left().is_zero() => Outcome::Failed(why),
                    _ => self.order(&backend.ssh, order, left()).await,
                }
            }
            other => other,
        }
    }

    async fn tend_slots(&self, backend: BackendId, task: SlotTask) -> Tended {
        match self.backend(backend).and_then(|backend| backend.slots.as_ref()) {
            Some(slots) => slots.store.tend(&slots.folder, task).await,
            None => Err(Warning::new("no_slots", "no slot folder is configured")),
        }
    }

    async fn tidy(&self) -> bool {
        // A server that is off is not called for this.
        let open = self.backends.iter().filter(|backend| backend.ssh.is_open());
        let each = open.filter_map(|backend| Some(backend.slots.as_ref()?.tidy(&backend.ssh, &backend.name)));
        join_all(each).await.contains(&true)
    }

    async fn post_mortem(&self, backend: BackendId) -> PostMortem {
        let Some(backend) = self.backend(backend) else {
            return PostMortem::default();
        };
        let line = remote::post_mortem(&backend.unit, backend.port);
        match backend.ssh.ask(&line, backend.ssh.command_timeout()).await {
            Ok(reply) => systemd::parse_post_mortem(&reply.stdout, &backend.unit, backend.port),
            Err(trouble) => {
                PostMortem { lines: vec![format!("the server could not be asked why: {trouble}")], port_listens: false }
            }
        }
    }
}
