//! A virtual llama.cpp (`llama-server`, as build 11434 was seen to behave).

mod core;
mod generate;
mod metrics;
mod paths;
mod slot_actions;
mod slot_file;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use self::core::Core;
use super::{
    Exit, Fault, LlamaSetup, ProgramFaults, door,
    life::{Held, Life, Phase, pause},
};

pub use self::slot_file::tokens_of_file;

/// Between the last answer and the end, so that it leaves.
const FAREWELL: Duration = Duration::from_millis(5);
/// Of its GPU memory a sleeping server keeps this share: the context.
const ASLEEP_KEEPS: u64 = 20;
/// How finely the idle timer is looked at.
const SLEEP_LOOKS_EVERY: Duration = Duration::from_millis(10);

/// One process.
#[derive(Debug)]
pub(super) struct Llama {
    setup: LlamaSetup,
    life: Arc<Life>,
    core: Arc<Core>,
}

/// Starts a process.
pub(super) fn start(setup: LlamaSetup, pid: u32, faults: Arc<ProgramFaults>) -> Arc<Life> {
    let life = Life::begin(pid, Exit::Code(1), faults);
    let core = Core::new(setup.parallel);
    let held: Weak<dyn Held> = Arc::downgrade(&(Arc::clone(&core) as Arc<dyn Held>));
    // It was just made: nobody else can have set it.
    let _ = life.held.set(held);
    life.run(main(Arc::new(Llama { setup, life: Arc::clone(&life), core })));
    life
}

async fn main(llama: Arc<Llama>) -> Exit {
    let Llama { setup, life, .. } = &*llama;
    life.say(format!("build_info: {}", setup.build));
    if !setup.slot_dir.as_os_str().is_empty() && !setup.slot_dir.is_dir() {
        let dir = setup.slot_dir.display();
        life.say(format!("error while handling argument \"--slot-save-path\": not a directory: {dir}"));
        return Exit::Code(1);
    }
    let listener = match door::bind(setup.address, life).and_then(door::listen) {
        Ok(listener) => listener,
        Err(error) => {
            life.say(format!("start: couldn't bind HTTP server socket {}: {error}", setup.address));
            life.say("srv  llama_server: exiting due to HTTP server error");
            return Exit::Code(1);
        }
    };
    let up = async {
        life.say(format!("srv    load_model: loading model '{}'", setup.model_path));
        if let Err(exit) = life.load(setup.load, setup.vram_mib).await {
            if matches!(exit, Exit::Code(_)) {
                life.say(format!("llama_model_load: error loading model '{}'", setup.model_path));
                life.say("srv  llama_server: exiting due to model loading error");
            }
            return Some(exit);
        }
        life.say("srv  llama_server: model loaded");
        life.say(format!("srv  llama_server: server is listening on http://{}", setup.address));
        life.set_phase(Phase::Ready);
        tokio::select! {
            () = life.told_to_end() => {}
            () = llama.fall_asleep() => {}
        }
        None
    };
    // The port closes with the end of this.
    let failed = tokio::select! {
        () = door::accept(life, listener, Arc::clone(&llama)) => None,
        failed = up => failed,
    };
    if let Some(exit) = failed {
        return exit;
    }
    life.say("srv    operator(): operator(): cleaning up before exit...");
    // No limit of time: it waits for its clients to hang up.
    life.quiet().await;
    pause(FAREWELL).await;
    Exit::Code(0)
}

impl Llama {
    /// Context of one slot.
    fn slot_n_ctx(&self) -> u64 {
        self.setup.n_ctx / u64::from(self.setup.parallel.max(1))
    }

    /// Falls asleep whenever nothing was asked for long enough, where that is wanted. Never ends.
    async fn fall_asleep(&self) {
        let core = &self.core;
        loop {
            let Some(Fault::SleepIdle(after)) = self.life.faults.look("sleep-idle") else {
                self.life.faults.wait_for("sleep-idle").await;
                continue;
            };
            pause(SLEEP_LOOKS_EVERY).await;
            let _turn = core.turn.lock().await;
            let sleeps = core.with(|state| {
                let quiet = state.slots.iter().all(|slot| !slot.busy) && state.deferred == 0;
                let sleeps = quiet && !state.asleep && state.last_task + after <= Instant::now();
                state.asleep |= sleeps;
                sleeps
            });
            if sleeps {
                core.all_empty();
                self.life.faults.fires("sleep-idle");
                self.life.set_vram(self.setup.vram_mib / ASLEEP_KEEPS);
                self.life.say("srv  handle_sleep: server is entering sleeping state");
            }
        }
    }

    /// Loads the model again if it sleeps.
    async fn awake(&self) {
        if !self.core.with(|state| state.asleep) {
            return;
        }
        let _turn = self.core.turn.lock().await;
        if self.core.with(|state| state.asleep) {
            self.life.say("srv  handle_sleep: server is exiting sleeping state");
            if let Err(exit) = self.life.load(self.setup.load, self.setup.vram_mib).await {
                self.life.end(exit);
            }
            self.core.with(|state| {
                state.asleep = false;
                state.last_task = Instant::now();
            });
        }
    }
}
