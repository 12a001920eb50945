//! The programs of a virtual GPU server: a llama.cpp and a vLLM without a model, answering real HTTP on loopback.
//!
//! They do what the real ones were seen doing, also the surprising things: a llama.cpp that aborts on a truncated slot
//! file, that says 200 to the save of an empty slot, that waits for ever for a client at SIGTERM; a vLLM that refuses
//! connections for its whole load and exits with 0 when its engine has died. A lab test holds the virtual llama.cpp
//! against the real one. On top of that come faults, set from outside ([`ProgramFaults`]).
//!
//! One byte is one token. The text that comes out is a function of the model and of what the slot really holds, so that
//! a slot with another model's contents says something else than [`right_text`].

mod alone;
mod door;
mod faults;
mod life;
mod llama;
mod text;
mod vllm;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

pub use self::{
    alone::{VERB, command},
    faults::{Fault, ProgramFaults},
    llama::tokens_of_file,
    text::{chat_prompt, right_text},
};
use life::Life;

/// What a unit runs.
#[derive(Clone, Debug)]
pub enum Program {
    /// llama.cpp's `llama-server`.
    LlamaCpp(LlamaSetup),
    /// `vllm serve`.
    Vllm(VllmSetup),
}

/// The command line of a virtual `llama-server`, and how fast it is.
#[derive(Clone, Debug)]
pub struct LlamaSetup {
    /// Where it listens.
    pub address: SocketAddr,
    /// `--alias`; empty: none.
    pub alias: String,
    /// `--model`. Another path is another model, of the same shape.
    pub model_path: String,
    /// `--ctx-size`: shared evenly among the slots.
    pub n_ctx: u64,
    /// `--parallel`: number of slots.
    pub parallel: u32,
    /// `--slot-save-path`; empty: none, and saving answers 501.
    pub slot_dir: PathBuf,
    /// As `b11434-abcdef`.
    pub build: String,
    /// From the start to ready.
    pub load: Duration,
    /// To generate one token; a token of the prompt takes a tenth of it.
    pub per_token: Duration,
    /// GPU memory it holds once loaded.
    pub vram_mib: u64,
}

/// The command line of a virtual `vllm serve`, and how fast it is.
#[derive(Clone, Debug)]
pub struct VllmSetup {
    /// Where it listens.
    pub address: SocketAddr,
    /// `--served-model-name`.
    pub model: String,
    /// `--max-model-len`.
    pub max_model_len: u64,
    /// From the start to ready.
    pub load: Duration,
    /// To generate one token; a token of the prompt takes a tenth of it.
    pub per_token: Duration,
    /// GPU memory it holds once loaded.
    pub vram_mib: u64,
}

/// What can be sent to a process.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// For checkers: what is really so inside a process, whatever it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// The model is loaded and the process not ending.
    pub ready: bool,
    /// Inference requests running or waiting.
    pub in_flight: u32,
    /// Inference requests answered to their end.
    pub served: u64,
    /// llama.cpp: the tokens that each slot holds and can really use; `None`: never used since the start, nor restored.
    pub slots: Vec<Option<u64>>,
    /// llama.cpp: tokens in slots that were used since anybody asked to save them, and how long ago they were last used.
    pub unsaved: Option<(u64, Duration)>,
}

/// What became of a slot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAct {
    /// A slot was written to it.
    Saved,
    /// It was to be written, and is not there, or not whole.
    SaveFailed,
    /// A slot was filled from it.
    Restored,
    /// It was rejected, or has killed the process.
    RestoreFailed,
}

/// What a llama.cpp did with a slot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotDeed {
    /// When.
    pub at: Instant,
    /// What.
    pub act: SlotAct,
    /// Its name.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
}

/// A running program. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    life: Arc<Life>,
}

impl Program {
    /// Starts it, within a tokio runtime with time and IO. It binds its own port when the real one would: llama.cpp at
    /// once (503 while it loads), vLLM when it is ready.
    pub fn start(&self, pid: u32, faults: Arc<ProgramFaults>) -> Process {
        let life = match self {
            Self::LlamaCpp(setup) => llama::start(setup.clone(), pid, faults),
            Self::Vllm(setup) => vllm::start(setup.clone(), pid, faults),
        };
        Process { life }
    }

    /// The words it was started with.
    pub fn command_line(&self) -> Vec<String> {
        let port = self.address().port();
        let line = match self {
            Self::LlamaCpp(LlamaSetup { alias, model_path, n_ctx, parallel, .. }) => format!(
                "/usr/local/bin/llama-server --port {port} --model {model_path} --alias {alias} --ctx-size {n_ctx} \
                 --parallel {parallel} --metrics"
            ),
            Self::Vllm(VllmSetup { model, max_model_len, .. }) => format!(
                "/usr/bin/python3 /usr/local/bin/vllm serve {model} --port {port} --max-model-len {max_model_len}"
            ),
        };
        line.split(' ').map(str::to_owned).collect()
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        match self {
            Self::LlamaCpp(setup) => setup.address,
            Self::Vllm(setup) => setup.address,
        }
    }
}

impl Process {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.life.pid()
    }

    /// Sends it a signal. What comes of it shows in [`Process::exited`].
    pub fn signal(&self, signal: Signal) {
        match signal {
            Signal::Term => self.life.term(),
            Signal::Kill => self.life.kill(),
            Signal::Abort => self.life.end(Exit::Signal(6)),
        }
    }

    /// How it ended. Its sockets are closed by then.
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.life.exited()
    }

    /// What it has printed.
    pub fn log(&self) -> Vec<String> {
        self.life.lines()
    }

    /// What it has done with slot files since this was last asked.
    pub fn take_slot_deeds(&self) -> Vec<SlotDeed> {
        self.life.take_slot_deeds()
    }

    /// MiB it holds on the GPU now; grows while it loads. After its end this is 0, or what an orphan still holds.
    pub fn vram_mib(&self) -> u64 {
        self.life.vram_mib()
    }

    /// A worker that outlived the process ([`Fault::OrphanStays`]): its pid, and the MiB it holds.
    pub fn orphan(&self) -> Option<(u32, u64)> {
        self.life.orphan()
    }

    /// Kills such a worker.
    pub fn kill_orphan(&self) {
        self.life.kill_orphan();
    }

    /// What is really so inside.
    pub fn truth(&self) -> Truth {
        self.life.truth()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.life.end(Exit::Signal(9));
    }
}
