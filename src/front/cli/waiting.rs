//! `watch` and `wait`: both listen to changes, and both live through a restart of the daemon.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    follow::{BACK_REST, BACK_WITHIN},
    text::{clock, plain, say_line},
    trouble::{Exit, Trouble},
};
use crate::{
    driver::{Change, status::Status},
    front::{
        client::{Client, ClientError},
        nearest,
    },
};

/// A quiet stream is checked against the status so often: not everything that matters to `ready` is a change of state.
const CHECK: Duration = Duration::from_secs(2);

/// Prints each change until the daemon is gone for good.
pub(super) async fn watch(client: &Client, json: bool) -> Trouble {
    let mut patience = Patience::default();
    loop {
        let error = match client.events().await {
            Err(error) => error,
            Ok(mut events) => loop {
                match events.next().await {
                    Ok(Some(change)) => {
                        patience.reset();
                        say_line(&if json { super::json(&change) } else { line(&change) });
                    }
                    Ok(None) => break away(),
                    Err(error) => break error,
                }
            },
        };
        if !json && patience.is_fresh() && patience.was_there {
            say_line("the daemon went away; waiting for it to come back");
        }
        if let Err(trouble) = patience.after(error).await {
            return trouble;
        }
    }
}

/// `12:00:01Z llama-cpp-starting (starting)`.
fn line(change: &Change) -> String {
    let text = if change.what == "now" {
        let phase = change.status.phase.as_deref();
        let phase = phase.map_or(String::new(), |phase| format!(" ({})", plain(phase)));
        format!("now {}{phase}", plain(&change.status.state))
    } else {
        plain(&change.line)
    };
    format!("{} {text}", clock(&change.at))
}

/// Waits until the server is in the state `wanted`, or `ready`.
pub(super) async fn wait(client: &Client, wanted: &str, limit: Option<Duration>) -> Result<Arc<Status>, Trouble> {
    let work = reach(client, wanted);
    let Some(limit) = limit else {
        return work.await;
    };
    timeout(limit, work).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        Err(Trouble::new(Exit::Unfinished, "unfinished", format!("not {wanted} within {limit}"))
            .hint("see `wechsler status` for what is so now"))
    })
}

async fn reach(client: &Client, wanted: &str) -> Result<Arc<Status>, Trouble> {
    let status = client.status().await?;
    must_exist(wanted, &status)?;
    let mut patience = Patience::default();
    loop {
        let error = match client.events().await {
            Err(error) => error,
            Ok(mut events) => loop {
                let status = tokio::select! {
                    change = events.next() => match change {
                        Ok(Some(change)) => change.status,
                        Ok(None) => break away(),
                        Err(error) => break error,
                    },
                    () = sleep(CHECK) => match client.status().await {
                        Ok(status) => Arc::new(status),
                        Err(error) => break error,
                    },
                };
                patience.reset();
                if is_reached(wanted, &status) {
                    return Ok(status);
                }
            },
        };
        patience.after(error).await?;
    }
}

fn is_reached(wanted: &str, status: &Status) -> bool {
    if wanted == "ready" {
        status.health == "ok" && status.active_backend.as_ref() == Some(&status.state)
    } else {
        status.state == wanted
    }
}

/// A state that cannot be is a mistake, not something to wait for.
fn must_exist(wanted: &str, status: &Status) -> Result<(), Trouble> {
    let fixed = ["ready", "gpu-offline", "waking", "gpu-idle", "stopping", "powering-off", "conflict", "unknown"];
    let mut known: Vec<String> = fixed.map(String::from).into();
    for name in status.backends.keys() {
        known.push(name.clone());
        known.push(format!("{name}-starting"));
    }
    if known.iter().any(|state| state == wanted) {
        return Ok(());
    }
    let message = format!("there is no state `{wanted}`; there are: {}", known.join(", "));
    let trouble = Trouble::new(Exit::Usage, "unknown_state_name", message);
    Err(match nearest(wanted, known.iter().map(String::as_str)) {
        Some(near) => trouble.hint(format!("did you mean `{near}`?")),
        None => trouble,
    })
}

fn away() -> ClientError {
    ClientError::Garbage { socket: std::path::PathBuf::new(), what: "the stream of changes ended".into() }
}

/// How long a daemon is waited for that was there once.
#[derive(Default)]
struct Patience {
    was_there: bool,
    lost: Option<Instant>,
}

impl Patience {
    const fn reset(&mut self) {
        self.was_there = true;
        self.lost = None;
    }

    const fn is_fresh(&self) -> bool {
        self.lost.is_none()
    }

    /// Rests before the next try, unless it is time to give up: a daemon that never was there is not waited for.
    async fn after(&mut self, error: ClientError) -> Result<(), Trouble> {
        let lost = *self.lost.get_or_insert_with(Instant::now);
        if !self.was_there || !error.is_daemon_gone() || lost.elapsed() > BACK_WITHIN {
            return Err(error.into());
        }
        sleep(BACK_REST).await;
        Ok(())
    }
}
