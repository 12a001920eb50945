//! A virtual vLLM (`vllm serve`, as 0.32 was seen to behave).

mod generate;
mod paths;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    Exit, Fault, ProgramFaults, VllmSetup, door,
    life::{Life, Phase, pause},
};

/// From SIGTERM to the end. A server that loads faster than any real one also ends faster.
const TERM_TAKES: Duration = Duration::from_millis(500);
/// So much shorter than the load it is at least.
const TERM_BELOW_LOAD: u32 = 10;
/// From the engine's death to the end, where nothing else is told.
const DEFAULT_DEATH: Duration = Duration::from_secs(5);

/// One process.
#[derive(Debug)]
pub(super) struct Vllm {
    setup: VllmSetup,
    life: Arc<Life>,
    counters: Mutex<Counters>,
    engine_dead: AtomicBool,
}

/// What `/metrics` shows, and the prefix cache.
#[derive(Debug, Default)]
struct Counters {
    running: u64,
    prompt: u64,
    cached: u64,
    generated: u64,
    /// By reason: stop, length.
    finished: [u64; 2],
    /// The newest prompts.
    prefixes: VecDeque<Vec<u8>>,
}

/// Starts a process.
pub(super) fn start(setup: VllmSetup, pid: u32, faults: Arc<ProgramFaults>) -> Arc<Life> {
    let life = Life::begin(pid, Exit::Code(0), faults);
    let vllm = Vllm { setup, life: Arc::clone(&life), counters: Mutex::default(), engine_dead: AtomicBool::new(false) };
    life.run(main(Arc::new(vllm)));
    life
}

async fn main(vllm: Arc<Vllm>) -> Exit {
    let Vllm { setup, life, .. } = &*vllm;
    let pid = life.pid();
    let say = |line: &str| life.say(format!("(APIServer pid={pid}) {line}"));
    say("INFO vLLM API server version 0.32.0");
    // Bound and not listening: connections are refused during the whole load.
    let Ok(socket) = door::bind(setup.address, life) else {
        say("OSError: [Errno 98] Address already in use");
        return Exit::Code(1);
    };
    life.say(format!("(EngineCore pid={}) INFO Initializing a V1 LLM engine (v0.32.0)", pid + 1));
    if let Err(exit) = life.load(setup.load, setup.vram_mib).await {
        if matches!(exit, Exit::Code(_)) {
            say("ERROR RuntimeError: Engine core initialization failed. See root cause above.");
        }
        return exit;
    }
    let Ok(listener) = door::listen(socket) else {
        say("OSError: [Errno 98] Address already in use");
        return Exit::Code(1);
    };
    say(&format!("INFO Starting vLLM server on http://{}", setup.address));
    say("INFO:     Application startup complete.");
    life.set_phase(Phase::Ready);
    let accepting = door::accept(life, listener, Arc::clone(&vllm));
    let end = async {
        tokio::select! {
            () = life.told_to_end() => None,
            () = life.faults.wait_for("engine-dead") => {
                let told = life.faults.fires("engine-dead");
                let Some(Fault::EngineDead(after)) = told else { return Some(DEFAULT_DEATH) };
                Some(after)
            }
        }
    };
    tokio::pin!(accepting);
    let dies_after = tokio::select! {
        () = &mut accepting => None,
        dies_after = end => dies_after,
    };
    if let Some(after) = dies_after {
        vllm.engine_dead.store(true, Relaxed);
        life.set_phase(Phase::Ending);
        say("ERROR EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.");
        // Still answering, with 503.
        tokio::select! {
            () = accepting => {}
            () = pause(after) => {}
        }
        // 0, so that Restart=on-failure does nothing.
        return Exit::Code(0);
    }
    say("INFO:     Shutting down");
    pause(TERM_TAKES.min(setup.load / TERM_BELOW_LOAD)).await;
    say("INFO:     Application shutdown complete.");
    Exit::Code(0)
}
