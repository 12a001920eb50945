//! One command on one channel of a session; and shells kept ready for questions.
//!
//! Most of what a question costs is its beginning: a channel is opened, sshd forks, the account's shell starts `sh`. While
//! an order is carried out the next question is known to come soon, and somebody waits for its answer. So a shell is kept
//! ready then, which needs only be told what to do. Orders never go this way: they stay plain commands.

use std::{sync::Arc, time::Duration};

use async_ssh2_tokio::Client;
use russh::{Channel, ChannelMsg, client::Msg};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{Kept, MOST_OUTPUT, Ssh};
use crate::host::remote::{self, plain_text};

/// Shells are kept ready for so long after it was last asked for.
const WARM_FOR: Duration = Duration::from_secs(10);
/// So many of them, beside the commands under way.
pub(super) const SHELLS: usize = 2;

/// How a command ended: exit status, stdout, stderr.
pub(super) type Ended = (u32, Vec<u8>, Vec<u8>);

/// A shell that waits for its script on standard input.
pub(super) struct Shell(Channel<Msg>);

/// When shells are kept ready.
#[derive(Debug, Default)]
pub(super) struct Warm {
    /// `None`: nobody keeps any.
    pub(super) until: Option<Instant>,
    pub(super) changed: Arc<Notify>,
}

/// Begins a command.
pub(super) async fn begin(client: &Client, line: &str) -> Result<Channel<Msg>, String> {
    let channel = client.get_channel().await.map_err(|error| plain_text(&error.to_string(), 200))?;
    channel.exec(true, line).await.map_err(|error| plain_text(&error.to_string(), 200))?;
    Ok(channel)
}

/// Waits for its end.
pub(super) async fn end(mut channel: Channel<Msg>) -> Result<Ended, String> {
    let (mut status, mut stdout, mut stderr) = (None, Vec::new(), Vec::new());
    while let Some(message) = channel.wait().await {
        let (to, data) = match &message {
            ChannelMsg::Data { data } => (&mut stdout, data),
            ChannelMsg::ExtendedData { data, ext: 1 } => (&mut stderr, data),
            // What was printed may come after it.
            ChannelMsg::ExitStatus { exit_status } => {
                status = Some(*exit_status);
                continue;
            }
            ChannelMsg::Failure => return Err("the server does not take the command".into()),
            _ => continue,
        };
        if to.len() + data.len() > MOST_OUTPUT {
            return Err(format!("it printed more than {MOST_OUTPUT} bytes"));
        }
        to.extend_from_slice(data);
    }
    // Killed by a signal, or the connection is lost.
    let status = status.ok_or("it ended without an exit status")?;
    Ok((status, stdout, stderr))
}

impl Shell {
    /// Has it do what `script` says, and end.
    pub(super) async fn run(self, script: &str) -> Result<Ended, String> {
        let failed = |error: russh::Error| plain_text(&error.to_string(), 200);
        self.0.data(script.as_bytes()).await.map_err(failed)?;
        self.0.eof().await.map_err(failed)?;
        end(self.0).await
    }
}

impl Ssh {
    /// Questions will come soon, and their answers be waited for: keeps shells ready for them for a while. Opens no session.
    pub fn expect_questions(self: &Arc<Self>) {
        let mut kept = self.kept();
        let keeps = kept.warm.until.replace(Instant::now() + WARM_FOR).is_some();
        // There may be a session by now.
        kept.warm.changed.notify_one();
        drop(kept);
        if !keeps {
            let ssh = Arc::clone(self);
            tokio::spawn(async move { ssh.keep_shells().await });
        }
    }

    /// A shell of that session.
    pub(super) fn shell(&self, session: u64) -> Option<Shell> {
        let mut kept = self.kept();
        let shell = if kept.is_current(session) { kept.shells.pop() } else { None };
        if shell.is_some() {
            kept.warm.changed.notify_one();
        }
        shell
    }

    async fn keep_shells(&self) {
        let changed = Arc::clone(&self.kept().warm.changed);
        loop {
            let until = {
                let mut kept = self.kept();
                let Some(until) = kept.warm.until.filter(|until| *until > Instant::now()) else {
                    kept.warm.until = None;
                    break;
                };
                until
            };
            while self.kept().shells.len() < SHELLS && self.add_shell().await {}
            // The end is looked at again: it may have moved on meanwhile.
            let _ = timeout(until.saturating_duration_since(Instant::now()), changed.notified()).await;
        }
        let shells = std::mem::take(&mut self.kept().shells);
        for shell in shells {
            let _ = shell.0.close().await;
        }
    }

    async fn add_shell(&self) -> bool {
        let Some(session) = self.open_session() else {
            return false;
        };
        let begun = timeout(self.command_timeout(), begin(&session.client, remote::SHELL)).await;
        let mut kept = self.kept();
        match begun {
            Ok(Ok(channel)) if kept.is_current(session.number) => {
                kept.shells.push(Shell(channel));
                true
            }
            _ => false,
        }
    }
}

impl Kept {
    pub(super) fn is_current(&self, session: u64) -> bool {
        self.session.as_ref().is_some_and(|s| s.number == session)
    }

    /// Its shells go with it: they would keep it open.
    pub(super) fn forget(&mut self) {
        self.session = None;
        self.shells.clear();
    }
}
