//! What a virtual server is made of, and how long things take on it.

use std::{path::PathBuf, time::Duration};

/// How long things take. [`Times::real`] is a usual server's; [`Times::scaled`] makes all of them shorter or longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// From power on to SSH.
    pub boot: Duration,
    /// From the order to power off until nothing answers.
    pub power_off: Duration,
    /// llama.cpp loads its model.
    pub llama_load: Duration,
    /// vLLM gets ready.
    pub vllm_load: Duration,
    /// For one token.
    pub per_token: Duration,
    /// What `systemctl start` takes.
    pub start_order: Duration,
    /// `TimeoutStopSec` of the units.
    pub timeout_stop: Duration,
    /// `RestartSec` of the units.
    pub restart_pause: Duration,
    /// `StartLimitIntervalSec`.
    pub start_limit: Duration,
    /// Until the memory of a process that is gone is free again.
    pub gpu_lag: Duration,
    /// What one call of `nvidia-smi` takes.
    pub gpu_tool: Duration,
}

impl Times {
    /// As on a real server.
    #[must_use]
    pub const fn real() -> Self {
        Self {
            boot: Duration::from_secs(40),
            power_off: Duration::from_secs(10),
            llama_load: Duration::from_secs(8),
            vllm_load: Duration::from_secs(80),
            per_token: Duration::from_millis(20),
            start_order: Duration::from_millis(20),
            timeout_stop: Duration::from_secs(30),
            restart_pause: Duration::from_secs(5),
            start_limit: Duration::from_secs(10),
            gpu_lag: Duration::from_secs(1),
            gpu_tool: Duration::from_millis(50),
        }
    }

    /// All of them times `factor` (not negative).
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let by = |time: Duration| Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(time);
        Self {
            boot: by(self.boot),
            power_off: by(self.power_off),
            llama_load: by(self.llama_load),
            vllm_load: by(self.vllm_load),
            per_token: by(self.per_token),
            start_order: by(self.start_order),
            timeout_stop: by(self.timeout_stop),
            restart_pause: by(self.restart_pause),
            start_limit: by(self.start_limit),
            gpu_lag: by(self.gpu_lag),
            gpu_tool: by(self.gpu_tool),
        }
    }
}

/// A virtual server to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A folder of its own: slot files and models lie there. Must exist, and is left as it is at the end.
    pub folder: PathBuf,
    /// How long things take.
    pub times: Times,
    /// Who may log in.
    pub user: String,
    /// The address of its network card.
    pub mac: [u8; 6],
    /// It is on from the beginning.
    pub on: bool,
    /// Its units.
    pub units: Vec<UnitSetup>,
    /// Its GPUs.
    pub gpus: Vec<GpuSetup>,
    /// The size of the disk with the slot folder, MiB.
    pub disk_mib: u64,
}

/// A unit.
#[derive(Clone, Debug)]
pub struct UnitSetup {
    /// Its name, as `vllm.service`.
    pub name: String,
    /// What it runs.
    pub engine: Engine,
    /// It starts at boot.
    pub enabled: bool,
    /// When systemd starts it again.
    pub restart: Restart,
    /// GPU memory it takes, MiB.
    pub vram_mib: u64,
}

/// What a unit runs.
#[derive(Clone, Debug)]
pub enum Engine {
    /// llama.cpp.
    LlamaCpp {
        /// The name of its model.
        alias: String,
        /// Context of a slot.
        n_ctx: u64,
        /// Slots.
        parallel: u32,
    },
    /// vLLM.
    Vllm {
        /// The name of its model.
        model: String,
        /// Longest context.
        max_model_len: u64,
    },
}

/// `Restart=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// `no`.
    Never,
    /// `on-failure`.
    OnFailure,
    /// `always`.
    Always,
}

/// A GPU.
#[derive(Clone, Copy, Debug)]
pub struct GpuSetup {
    /// Its memory.
    pub total_mib: u64,
    /// What it holds when idle.
    pub baseline_mib: u64,
}

impl Setup {
    /// The usual server with llama.cpp and vLLM, off, with the times of a real one.
    #[must_use]
    pub fn usual(folder: impl Into<PathBuf>) -> Self {
        let gpu = GpuSetup { total_mib: 12_288, baseline_mib: 117 };
        Self {
            folder: folder.into(),
            times: Times::real(),
            user: "wechsler".into(),
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            on: false,
            units: vec![
                UnitSetup {
                    name: "llama-cpp.service".into(),
                    engine: Engine::LlamaCpp { alias: "Nemotron-3-Nano-30B".into(), n_ctx: 196_608, parallel: 1 },
                    enabled: false,
                    restart: Restart::OnFailure,
                    vram_mib: 22_400,
                },
                UnitSetup {
                    name: "vllm.service".into(),
                    engine: Engine::Vllm { model: "Qwen3-VL-30B-A3B-AWQ".into(), max_model_len: 32_768 },
                    enabled: false,
                    restart: Restart::Always,
                    vram_mib: 21_800,
                },
            ],
            gpus: vec![gpu; 2],
            disk_mib: 4096,
        }
    }

    /// The same with all times multiplied.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.times = self.times.scaled(factor);
        self
    }

    /// Where llama.cpp saves slots.
    #[must_use]
    pub fn slot_dir(&self) -> PathBuf {
        self.folder.join("slots")
    }
}
