//! A virtual program as a process of its own, with real signals: for comparing it with the real one.

use std::{
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Fault, LlamaSetup, Program, ProgramFaults, Signal, VllmSetup};

/// Its output is printed so often.
const PRINTS_EVERY: Duration = Duration::from_millis(20);

/// The first word of a command line that is meant for [`command`]. Not among the verbs people are shown.
pub const VERB: &str = "virtual-program";

/// The options of the real ones that matter, and how fast to be.
#[derive(Debug, Parser)]
#[command(name = "wechsler virtual-program")]
enum Words {
    /// A virtual `llama-server`.
    Llama {
        #[command(flatten)]
        any: Any,
        #[arg(long)]
        model: String,
        #[arg(long, default_value_t = 8192)]
        ctx_size: u64,
        #[arg(long, default_value_t = 1)]
        parallel: u32,
        #[arg(long)]
        slot_save_path: Option<PathBuf>,
        #[arg(long)]
        alias: Option<String>,
    },
    /// A virtual `vllm serve`.
    Vllm {
        #[command(flatten)]
        any: Any,
        #[arg(long)]
        model: String,
        #[arg(long, default_value_t = 8192)]
        max_model_len: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Any {
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    #[arg(long, default_value_t = 8080)]
    port: u16,
    #[arg(long)]
    api_key: Option<String>,
    /// From the start to ready.
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    load: Duration,
    /// To generate one token.
    #[arg(long, default_value = "1ms", value_parser = humantime::parse_duration)]
    per_token: Duration,
    /// Exit with 1 instead of being ready.
    #[arg(long)]
    load_fails: bool,
}

/// Runs what a command line wants (without the verb).
#[must_use]
pub fn command(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words = match Words::try_parse_from(std::iter::once(VERB.into()).chain(words)) {
        Ok(words) => words,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    let faults = ProgramFaults::default();
    let wish = |any: &Any| {
        if let Some(key) = &any.api_key {
            faults.set(Fault::ApiKey(key.clone()));
        }
        if any.load_fails {
            faults.set(Fault::LoadFails(Exit::Code(1)));
        }
        SocketAddr::new(any.host, any.port)
    };
    let program = match words {
        Words::Llama { any, model, ctx_size, parallel, slot_save_path, alias } => Program::LlamaCpp(LlamaSetup {
            address: wish(&any),
            alias: alias.unwrap_or_default(),
            model_path: model,
            n_ctx: ctx_size,
            parallel,
            slot_dir: slot_save_path.unwrap_or_default(),
            build: "b11434-virtual".into(),
            load: any.load,
            per_token: any.per_token,
            vram_mib: 1,
        }),
        Words::Vllm { any, model, max_model_len } => Program::Vllm(VllmSetup {
            address: wish(&any),
            model,
            max_model_len,
            load: any.load,
            per_token: any.per_token,
            vram_mib: 1,
        }),
    };
    as_process(&program, Arc::new(faults))
}

/// Runs a program until it ends, and ends this process as it ended. SIGTERM means to it what it means to the real one.
fn as_process(program: &Program, faults: Arc<ProgramFaults>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(program, faults)) {
        Ok(Exit::Code(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Ok(Exit::Signal(number)) => {
            // Here SIGTERM is handled; in a program that takes the place of this one it is not.
            let error = Command::new("sh").args(["-c", &format!("kill -{number} $$")]).exec();
            eprintln!("not ended by signal {number}: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("SIGTERM cannot be handled: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(program: &Program, faults: Arc<ProgramFaults>) -> io::Result<Exit> {
    // Before it can tell anybody that it is ready.
    let mut term = signal(SignalKind::terminate())?;
    let process = program.start(std::process::id(), faults);
    let mut exited = process.exited();
    let mut printed = 0;
    let mut print = || {
        let lines = process.log();
        for line in lines.iter().skip(printed) {
            println!("{line}");
        }
        printed = lines.len();
    };
    loop {
        let exit = *exited.borrow_and_update();
        if let Some(exit) = exit {
            print();
            return Ok(exit);
        }
        tokio::select! {
            _ = exited.changed() => {}
            () = tokio::time::sleep(PRINTS_EVERY) => {}
            _ = term.recv() => process.signal(Signal::Term),
        }
        print();
    }
}
