//! The command line: what people type, and programs that would rather not speak HTTP.
//!
//! Text goes to standard output, trouble to standard error. With `--json` each outcome, good or bad, is one JSON object on
//! standard output: a document (`status`, `endpoints`, `holds`, `slots`), or `{outcome, exit_code, …}`.

#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "a page of text is written once: plain code before speed"
)]

pub mod args;
mod follow;
mod lbe;
mod lbs;
mod live;
mod pages;
mod replay;
mod slots;
mod text;
mod trouble;
mod waiting;

use std::{
    cell::Cell,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Parser;
use serde::Serialize;
use serde_json::json;

use self::{
    args::{Args, ConfigVerb, SlotsVerb, Verb, Way},
    follow::Outcome,
    text::{Paint, plain, say, say_line},
    trouble::{Exit, Trouble},
};
use super::{
    client::Client,
    protocol::{CommandRequest, CommandWord, DEFAULT_SOCKET, HoldRequest},
};
use crate::{
    config::{self, Config},
    driver::OperationRecord,
};

/// The configuration, unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/wechsler/config.toml";

/// Reads the command line. `Err` is the exit code when there is nothing more to do: help was wanted, or the use was wrong.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, ExitCode> {
    let words: Vec<OsString> = words.into_iter().collect();
    Args::try_parse_from(&words).map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        if words.iter().any(|word| word == "--json") {
            let text = error.render().to_string();
            let text = text.trim().trim_start_matches("error: ");
            report(&Trouble::new(Exit::Usage, "usage", text), true)
        } else {
            let _ = error.print();
            ExitCode::from(Exit::Usage as u8)
        }
    })
}

/// Reads the whole configuration for the daemon; trouble is told already when this gives an exit code.
pub fn configuration(args: &Args) -> Result<Config, ExitCode> {
    load(&config_path(args)).map_err(|trouble| report(&trouble, args.json))
}

/// Does what the command line says. Everything but `daemon` and `demo`.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let begun = Cell::new(None);
    let work = async {
        tokio::select! {
            done = go(args, &begun) => done,
            _ = tokio::signal::ctrl_c() => Err(interrupted(begun.get())),
        }
    };
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::new(Exit::Failed, "system", error.to_string()))
        .and_then(|runtime| runtime.block_on(work));
    match done {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(trouble) => report(&trouble, args.json),
    }
}

fn interrupted(begun: Option<u64>) -> Trouble {
    match begun {
        Some(id) => Trouble::new(Exit::Interrupted, "interrupted", format!("operation {id} goes on in the daemon"))
            .hint("`wechsler watch` shows it, `wechsler cancel` ends it"),
        None => Trouble::new(Exit::Interrupted, "interrupted", "interrupted"),
    }
}

/// Tells trouble in the wanted form.
fn report(trouble: &Trouble, json: bool) -> ExitCode {
    let only_stopped_listening = trouble.exit == Exit::Interrupted && trouble.hint.is_none();
    if json {
        say_line(&trouble.json());
    } else if !only_stopped_listening {
        trouble.tell(Paint::for_terminal(&io::stderr()));
    }
    ExitCode::from(trouble.exit as u8)
}

/// One line of JSON. What we print is made of maps with text keys, which always works.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

fn config_path(args: &Args) -> PathBuf {
    args.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into())
}

fn load(path: &Path) -> Result<Config, Trouble> {
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(path, env).map_err(|errors| Trouble::new(Exit::Usage, "bad_config", errors.to_string()))
}

/// Where the daemon listens: as told, else where the configuration says, else the default. The default configuration is
/// read only when nobody is at the default socket: most clients need no configuration at all.
fn socket(args: &Args) -> Result<PathBuf, Trouble> {
    if let Some(socket) = &args.socket {
        return Ok(socket.clone());
    }
    if let Some(path) = &args.config {
        return Ok(load(path)?.daemon.socket);
    }
    if Path::new(DEFAULT_SOCKET).exists() {
        return Ok(DEFAULT_SOCKET.into());
    }
    Ok(load(Path::new(DEFAULT_CONFIG)).map_or_else(|_| DEFAULT_SOCKET.into(), |c| c.daemon.socket))
}

async fn go(args: &Args, begun: &Cell<Option<u64>>) -> Result<Exit, Trouble> {
    let caller = || {
        Ok::<_, Trouble>(Caller {
            client: Client::new(&socket(args)?)?,
            json: args.json,
            paint: Paint::for_terminal(&io::stdout()),
        })
    };
    let named = |command, name: &str| CommandRequest { backend: Some(name.to_owned()), ..CommandRequest::new(command) };
    let (request, way) = match &args.verb {
        Verb::Status => return caller()?.status().await,
        Verb::Endpoints => return caller()?.endpoints().await,
        Verb::Holds => return caller()?.holds().await,
        Verb::Hold { what, lasts, reason } => return caller()?.hold(what, *lasts, reason.clone()).await,
        Verb::Release { id } => return caller()?.release(*id).await,
        Verb::Watch => {
            let caller = caller()?;
            return Err(waiting::watch(&caller.client, caller.json).await);
        }
        Verb::Wait { state, timeout } => return caller()?.wait(state, *timeout).await,
        Verb::Config { what: ConfigVerb::Check { path } } => {
            return check(path.as_ref().unwrap_or(&config_path(args)), args.json);
        }
        Verb::Replay { file } => return replay::show(file, args.json),
        Verb::Completions { shell } => return Ok(pages::completions(*shell)),
        Verb::Man { dir } => return pages::man(dir.as_deref()),
        // The daemon is not run from here.
        Verb::Daemon => return Ok(Exit::Usage),
        // Nor is the demo.
        #[cfg(feature = "virtual-server")]
        Verb::Demo { .. } => return Ok(Exit::Usage),
        Verb::Start { name, way } => {
            (CommandRequest { backend: name.clone(), ..CommandRequest::new(CommandWord::Start) }, *way)
        }
        Verb::Restart { name, way } => {
            (CommandRequest { backend: name.clone(), ..CommandRequest::new(CommandWord::Restart) }, *way)
        }
        Verb::Switch { name, way } => (named(CommandWord::Switch, name), *way),
        Verb::Resolve { keep, way } => (named(CommandWord::Resolve, keep), *way),
        Verb::Stop { way } => (CommandRequest::new(CommandWord::Stop), *way),
        Verb::Wake { way } => (CommandRequest::new(CommandWord::Wake), *way),
        Verb::Shutdown { keep_on, way, .. } => {
            (CommandRequest { power_off: Some(!keep_on), ..CommandRequest::new(CommandWord::Shutdown) }, *way)
        }
        Verb::Cancel => (CommandRequest::new(CommandWord::Cancel), Way::default()),
        Verb::Slots { what } => {
            let verb = what.as_ref().unwrap_or(&SlotsVerb::List);
            match slots::command(verb) {
                Some(command) => command,
                None => return caller()?.slots(verb).await,
            }
        }
    };
    let request = CommandRequest { replace: way.replace, no_drain: way.no_drain, ..request };
    caller()?.operate(&request, way, begun).await
}

/// Says whether a configuration is right.
fn check(path: &Path, as_json: bool) -> Result<Exit, Trouble> {
    let config = load(path)?;
    let names: Vec<_> = config.backends.iter().map(|b| b.name.as_str()).collect();
    if as_json {
        say_line(&json(&json!({
            "outcome": "done", "exit_code": 0, "path": path, "server": config.server.name, "backends": names,
        })));
    } else {
        say_line(&format!(
            "{} is right: server {}, backends {}",
            plain(&path.to_string_lossy()),
            plain(&config.server.name),
            plain(&names.join(", "))
        ));
    }
    Ok(Exit::Done)
}

/// Somebody who asks the daemon.
struct Caller {
    client: Client,
    json: bool,
    paint: Paint,
}

impl Caller {
    async fn status(&self) -> Result<Exit, Trouble> {
        let status = self.client.status().await?;
        if self.json {
            say_line(&json(&status));
        } else {
            say(&lbs::render(&status, SystemTime::now(), self.paint));
        }
        Ok(Exit::Done)
    }

    async fn endpoints(&self) -> Result<Exit, Trouble> {
        let endpoints = self.client.endpoints().await?;
        if self.json {
            say_line(&json(&endpoints));
        } else {
            say(&lbe::render(&endpoints.endpoints, self.paint));
        }
        Ok(Exit::Done)
    }

    async fn holds(&self) -> Result<Exit, Trouble> {
        let holds = self.client.holds().await?;
        if self.json {
            say_line(&json(&holds));
        } else if holds.holds.is_empty() {
            say_line("no holds");
        } else {
            for hold in &holds.holds {
                say_line(&lbs::hold_line(hold, SystemTime::now()));
            }
        }
        Ok(Exit::Done)
    }

    async fn hold(&self, what: &str, lasts: Option<Duration>, reason: Option<String>) -> Result<Exit, Trouble> {
        let request = HoldRequest {
            what: what.to_owned(),
            lasts: lasts.map(|lasts| humantime::format_duration(lasts).to_string()),
            reason,
        };
        let made = self.client.hold(&request).await?;
        if self.json {
            say_line(&json(&json!({"outcome": "done", "exit_code": 0, "hold": made.hold})));
        } else {
            say_line(&format!("hold {}: {}; `wechsler release {}` ends it", made.hold, plain(what), made.hold));
        }
        Ok(Exit::Done)
    }

    async fn release(&self, id: u64) -> Result<Exit, Trouble> {
        self.client.release(id).await?;
        self.good("done", &format!("hold {id} is released"));
        Ok(Exit::Done)
    }

    async fn wait(&self, wanted: &str, limit: Option<Duration>) -> Result<Exit, Trouble> {
        let status = waiting::wait(&self.client, wanted, limit).await?;
        self.good("done", &plain(&status.state));
        Ok(Exit::Done)
    }

    /// A good end without anything beside.
    fn good(&self, outcome: &str, line: &str) {
        if self.json {
            say_line(&json(&json!({"outcome": outcome, "exit_code": 0})));
        } else {
            say_line(line);
        }
    }

    async fn operate(&self, request: &CommandRequest, way: Way, begun: &Cell<Option<u64>>) -> Result<Exit, Trouble> {
        let outcome = follow::give(&self.client, request, way, self.json, begun).await?;
        match outcome {
            Outcome::AlreadySo => self.good("already_so", already(request)),
            Outcome::Done => self.good("done", &format!("{}: done", request.command)),
            Outcome::Accepted { operation, joined } if self.json => say_line(&json(&json!({
                "outcome": "accepted", "exit_code": 0, "operation_id": operation, "joined": joined,
            }))),
            Outcome::Accepted { operation, joined } => say_line(&format!(
                "operation {operation} {}",
                if joined { "was under way already" } else { "has begun" }
            )),
            Outcome::Ended(record) => {
                let exit = match record.end.as_deref() {
                    Some("done") => Exit::Done,
                    _ => Exit::Failed,
                };
                if !self.json {
                    let kind = follow::called(request).unwrap_or_else(|| record.kind.clone());
                    say(&live::conclusion(&OperationRecord { kind, ..*record }, self.paint));
                } else if exit == Exit::Done {
                    say_line(&json(&json!({"outcome": "done", "exit_code": 0, "operation": record})));
                } else {
                    let code = record.code.as_deref().or(record.end.as_deref());
                    let message = record.message.as_deref().unwrap_or("It did not come to its end.");
                    let mut trouble = Trouble::new(exit, code.unwrap_or("failed"), message);
                    trouble.hint.clone_from(&record.hint);
                    say_line(&trouble.about(Some(*record)).json());
                }
                return Ok(exit);
            }
        }
        Ok(Exit::Done)
    }
}

/// What there was nothing to do about.
fn already(request: &CommandRequest) -> &'static str {
    match request.command {
        CommandWord::Start | CommandWord::Switch => "already so: it is up",
        CommandWord::Stop => "already so: no backend is up",
        CommandWord::Wake => "already so: the server is on",
        CommandWord::Shutdown => "already so: it is down",
        _ => "already so",
    }
}
