//! A virtual GPU server on loopback, which speaks the real protocols: for the demo, for tests, and for trying things out.
//!
//! It hears magic packets, lets the daemon in over SSH and answers exactly the command lines of [`crate::host::remote`],
//! runs a virtual llama.cpp and a virtual vLLM in units as systemd would, gives GPU memory back with a lag, and keeps saved
//! slots in a real folder. When its power is off nothing of it answers, not even by a refusal. The daemon's own adapters
//! talk to it and cannot tell the difference.
//!
//! How long things take is in [`Times`] and can be scaled; what goes wrong, in [`Faults`]; what is really so and what was
//! really done, for those who check the daemon from outside, in [`VirtualServer::truth`] and [`VirtualServer::deeds`].

mod answers;
mod configuration;
mod faults;
mod faulty_wire;
mod faulty_world;
mod gpu;
mod people;
mod ports;
mod power;
pub mod programs;
mod setup;
mod shared;
mod shell;
mod sshd;
mod truth;
mod unit;
mod units;
mod wire_alone;

use std::{
    fmt, fs,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    sync::Arc,
    time::Duration,
};

use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, timeout},
};

pub use configuration::Places;
pub use faults::{
    BootFault, CommandFault, Dice, Fault, Faults, FolderFault, GpuFault, On, Refusal, SshFault, UnitFault,
};
pub use faulty_wire::{FaultyWire, WireFault};
pub use faulty_world::{FaultPlan, FaultyWorld, LookFault, OrderFault};
pub use people::{Foreign, Inhibitor, Login};
pub use setup::{Engine, GpuSetup, Restart, Setup, Times, UnitSetup};
pub use truth::{By, Deed, Power, Truth, UnitTruth, What};
pub use wire_alone::{WIRE_VERB, wire_command};

use ports::Port;
use programs::{LlamaSetup, Program, ProgramFaults, Signal, VllmSetup};
use shared::{Keys, Shared};
use unit::Unit;

/// Becoming as it should be takes milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A running virtual server. Needs the tokio runtime it was started in; everything of it ends when it is dropped, but for
/// its folder.
pub struct VirtualServer {
    shared: Arc<Shared>,
    wake_address: SocketAddr,
}

impl fmt::Debug for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualServer").field("truth", &self.truth()).finish_non_exhaustive()
    }
}

impl Drop for VirtualServer {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl VirtualServer {
    /// Starts one. Makes the folders of models and slots in its folder.
    ///
    /// # Errors
    /// When there are no ports to be had, or its folder cannot be written.
    pub async fn start(setup: Setup) -> io::Result<Self> {
        let seed = u64::from_ne_bytes(random()?);
        let models = setup.folder.join("models");
        fs::create_dir_all(&models)?;
        // Slot files are transcripts of conversations: closed, as contrib has it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(setup.slot_dir())?;
        let ssh_port = Port::choose(seed)?;
        let mut ports = vec![];
        let mut units = vec![];
        for (unit, place) in setup.units.iter().zip(1_u64..) {
            let port = Port::choose(seed.wrapping_add(place * 101))?;
            let program = program(&setup, unit, port.address());
            if let Program::LlamaCpp(llama) = &program {
                // Saved slots are bound to their model file by its size and age.
                fs::write(&llama.model_path, format!("GGUF, virtually: {}\n", llama.alias))?;
            }
            units.push(Unit::new(unit.clone(), port.address(), program));
            ports.push(port);
        }
        let card = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let wake_address = card.local_addr()?;
        let keys = Keys { host: key()?, stranger: key()?, initramfs: key()?, client: key()? };
        let on = setup.on;
        let shared = Shared::new(setup, keys, ssh_port, ports, units, seed);
        let server = Self { shared: Arc::clone(&shared), wake_address };
        if on {
            power::be_on(&shared).await;
        } else {
            power::silence(&shared).await;
        }
        shared.spawn(power::hear(Arc::clone(&shared), card));
        let ready = watch::Sender::new(false);
        let mut is_ready = ready.subscribe();
        shared.spawn(sshd::serve(Arc::clone(&shared), ready));
        let _ = timeout(READY_WITHIN, is_ready.wait_for(|ready| *ready)).await;
        Ok(server)
    }

    /// Where SSH is.
    pub fn ssh_address(&self) -> SocketAddr {
        self.shared.ssh_port.address()
    }

    /// Where its network card hears magic packets.
    pub const fn wake_address(&self) -> SocketAddr {
        self.wake_address
    }

    /// Where a unit's program listens.
    pub fn unit_address(&self, unit: &str) -> Option<SocketAddr> {
        self.shared.state().units.iter().find(|u| u.setup.name == unit).map(|u| u.address)
    }

    /// Its public host key, as it is pinned.
    pub fn host_key(&self) -> String {
        public(&self.shared.keys.host)
    }

    /// The host key of its initramfs.
    pub fn initramfs_key(&self) -> String {
        public(&self.shared.keys.initramfs)
    }

    /// The private key that is let in, for a file.
    pub fn client_key(&self) -> String {
        let text = self.shared.keys.client.to_openssh(LineEnding::LF);
        text.map_or_else(|_| String::new(), |text| text.to_string())
    }

    /// What it was started with.
    pub fn setup(&self) -> &Setup {
        &self.shared.setup
    }

    /// What goes wrong with it.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What goes wrong inside the program of a unit.
    pub fn program_faults(&self, unit: &str) -> Option<Arc<ProgramFaults>> {
        self.shared.state().units.iter().find(|u| u.setup.name == unit).map(|u| Arc::clone(&u.faults))
    }

    /// Whether it has power, and how far it is.
    pub fn power(&self) -> Power {
        self.shared.power()
    }

    /// Waits for that; false if it does not come within `within`.
    pub async fn until(&self, power: Power, within: Duration) -> bool {
        let mut told = self.shared.power.subscribe();
        timeout(within, told.wait_for(|now| *now == power)).await.is_ok_and(|told| told.is_ok())
    }

    /// Somebody presses the button of a server that is off.
    pub fn press(&self) {
        self.shared.state().armed = true;
        power::press(&self.shared);
    }

    /// Somebody pulls the plug, and puts it in again: it stays off.
    pub fn power_cut(&self) {
        power::cut(&self.shared);
    }

    /// Somebody reboots it.
    pub fn reboot(&self) {
        power::go_down(&self.shared, true);
    }

    /// Somebody starts a unit by hand.
    pub fn start_unit(&self, unit: &str) {
        units::start(&self.shared, unit, By::Hand);
    }

    /// Somebody stops a unit by hand.
    pub fn stop_unit(&self, unit: &str) {
        units::stop(&self.shared, unit, By::Hand);
    }

    /// A unit's main process gets a signal out of the blue. False if there is none.
    pub fn signal(&self, unit: &str, signal: Signal) -> bool {
        units::signal(&self.shared, unit, signal)
    }

    /// Somebody logs in. With the power all logins end.
    pub fn log_in(&self, login: Login) {
        self.shared.state().people.logins.push(login);
    }

    /// A user logs out.
    pub fn log_out(&self, user: &str) {
        self.shared.state().people.logins.retain(|l| l.user != user);
    }

    /// Somebody inhibits shutdown.
    pub fn inhibit(&self, inhibitor: Inhibitor) {
        self.shared.state().people.inhibitors.push(inhibitor);
    }

    /// All inhibitors end.
    pub fn uninhibit(&self) {
        self.shared.state().people.inhibitors.clear();
    }

    /// A stranger's process takes GPU memory.
    pub fn occupy(&self, process: Foreign) {
        self.shared.state().people.on_gpu.push(process);
    }

    /// A stranger's process ends.
    pub fn vacate(&self, pid: u32) {
        self.shared.state().people.on_gpu.retain(|p| p.pid != pid);
    }

    /// The disk with the slot folder is not mounted, or is again.
    pub fn hide_slots(&self, hidden: bool) {
        let folder = self.shared.setup.slot_dir();
        let away = folder.with_extension("away");
        let (from, to) = if hidden { (folder, away) } else { (away, folder) };
        let _ = fs::rename(from, to);
    }

    /// The last lines of a unit's journal.
    pub fn journal(&self, unit: &str, lines: usize) -> Vec<String> {
        let state = self.shared.state();
        state.units.iter().find(|u| u.setup.name == unit).map_or_else(Vec::new, |u| u.journal(lines))
    }

    /// What is really so.
    pub fn truth(&self) -> Truth {
        let mut state = self.shared.state();
        let since = |at: Instant| at.saturating_duration_since(self.shared.began);
        let units = state.units.iter().map(|unit| UnitTruth {
            name: unit.setup.name.clone(),
            active: unit.active(),
            pid: unit.process().map(|p| p.pid()),
            since: unit.since().map(since),
            inside: unit.process().map(|p| p.truth()),
        });
        let units = units.collect();
        let (gpu_used_mib, gpu_holders) = gpu::used(&mut state);
        let files = fs::read_dir(self.shared.setup.slot_dir()).into_iter().flatten().flatten();
        let file = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.len()));
        Truth {
            power: self.shared.power(),
            boots: state.boots,
            boot: state.boot,
            units,
            gpu_used_mib,
            gpu_holders,
            slot_files: files.filter_map(file).collect(),
        }
    }

    /// What was really done, in order; the last hundred thousand.
    pub fn deeds(&self) -> Vec<Deed> {
        self.shared.deeds()
    }

    /// The deeds from the `first` on (0 is the first that ever was), as far as they are remembered, in the order in which
    /// they became known.
    pub fn deeds_from(&self, first: u64) -> Vec<Deed> {
        self.shared.deeds_from(first)
    }

    /// How long it has existed: what [`Deed::at`] counts in.
    pub fn age(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// What was asked over SSH that the daemon never asks: command lines not of [`crate::host::remote`], changes outside the
    /// slot folder.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations()
    }
}

fn program(setup: &Setup, unit: &UnitSetup, address: SocketAddr) -> Program {
    let (per_token, vram_mib) = (setup.times.per_token, unit.vram_mib);
    match &unit.engine {
        Engine::LlamaCpp { alias, n_ctx, parallel } => Program::LlamaCpp(LlamaSetup {
            address,
            alias: alias.clone(),
            model_path: setup.folder.join("models").join(format!("{alias}.gguf")).to_string_lossy().into_owned(),
            n_ctx: *n_ctx,
            parallel: *parallel,
            slot_dir: setup.slot_dir(),
            build: "b11434-virtual".into(),
            load: setup.times.llama_load,
            per_token,
            vram_mib,
        }),
        Engine::Vllm { model, max_model_len } => Program::Vllm(VllmSetup {
            address,
            model: model.clone(),
            max_model_len: *max_model_len,
            load: setup.times.vllm_load,
            per_token,
            vram_mib,
        }),
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn key() -> io::Result<PrivateKey> {
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&random()?)))
}

fn public(key: &PrivateKey) -> String {
    key.public_key().to_openssh().unwrap_or_default()
}
