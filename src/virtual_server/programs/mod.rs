//! What runs in the units: a stub of the virtual llama.cpp and vLLM, which loads, holds memory and ends.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// What a unit runs.
#[derive(Clone, Debug)]
pub enum Program {
    /// llama.cpp's `llama-server`.
    LlamaCpp(LlamaSetup),
    /// vLLM's server.
    Vllm(VllmSetup),
}

/// A `llama-server`.
#[derive(Clone, Debug)]
pub struct LlamaSetup {
    /// Where it listens.
    pub address: SocketAddr,
    /// `--alias`.
    pub alias: String,
    /// `--model`.
    pub model_path: String,
    /// `--ctx-size`.
    pub n_ctx: u64,
    /// `--parallel`.
    pub parallel: u32,
    /// `--slot-save-path`.
    pub slot_dir: PathBuf,
    /// Its build.
    pub build: String,
    /// How long the model loads.
    pub load: Duration,
    /// For one token.
    pub per_token: Duration,
    /// GPU memory once it is loaded.
    pub vram_mib: u64,
}

/// A vLLM server.
#[derive(Clone, Debug)]
pub struct VllmSetup {
    /// Where it listens.
    pub address: SocketAddr,
    /// The model.
    pub model: String,
    /// `--max-model-len`.
    pub max_model_len: u64,
    /// How long until it is ready.
    pub load: Duration,
    /// For one token.
    pub per_token: Duration,
    /// GPU memory once it is loaded.
    pub vram_mib: u64,
}

/// What goes wrong inside.
#[derive(Debug, Default)]
pub struct ProgramFaults {}

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
    /// SIGABRT.
    Abort,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What is really so inside a process, for checkers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// It is ready.
    pub ready: bool,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests served.
    pub served: u64,
    /// Tokens in each slot.
    pub slots: Vec<Option<u64>>,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    signals: mpsc::UnboundedSender<Signal>,
    exited: watch::Receiver<Option<Exit>>,
    ready: Arc<AtomicBool>,
    vram_mib: u64,
}

impl Program {
    /// Starts it, in a tokio runtime.
    pub fn start(&self, pid: u32, _: Arc<ProgramFaults>) -> Process {
        let (load, vram_mib) = match self {
            Self::LlamaCpp(setup) => (setup.load, setup.vram_mib),
            Self::Vllm(setup) => (setup.load, setup.vram_mib),
        };
        let (signals, mut sent) = mpsc::unbounded_channel();
        let (exit, exited) = watch::channel(None);
        let ready = Arc::new(AtomicBool::new(false));
        let is_ready = Arc::clone(&ready);
        let loaded = Instant::now() + load;
        tokio::spawn(async move {
            let signal = tokio::select! {
                signal = sent.recv() => signal,
                () = sleep_until(loaded) => {
                    is_ready.store(true, Ordering::Relaxed);
                    sent.recv().await
                }
            };
            let end = match signal {
                Some(Signal::Term) if is_ready.load(Ordering::Relaxed) => Exit::Code(0),
                Some(Signal::Term) => Exit::Signal(15),
                Some(Signal::Abort) => Exit::Signal(6),
                Some(Signal::Kill) | None => Exit::Signal(9),
            };
            let _ = exit.send(Some(end));
        });
        Process { pid, signals, exited, ready, vram_mib }
    }
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = self.signals.send(signal);
    }

    /// How it ended, once it has.
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    /// What it said.
    pub fn log(&self) -> Vec<String> {
        vec![]
    }

    /// MiB it holds on the GPU now.
    pub fn vram_mib(&self) -> u64 {
        let alive = self.exited.borrow().is_none();
        if alive && self.ready.load(Ordering::Relaxed) { self.vram_mib } else { 0 }
    }

    /// What is really so.
    pub fn truth(&self) -> Truth {
        Truth { ready: self.ready.load(Ordering::Relaxed), ..Truth::default() }
    }
}
