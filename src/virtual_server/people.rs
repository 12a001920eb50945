//! Who else uses the server.

use std::fmt::Write as _;

use serde_json::json;

/// People, and what they hold up.
#[derive(Debug, Default)]
pub(super) struct People {
    pub(super) logins: Vec<Login>,
    pub(super) inhibitors: Vec<Inhibitor>,
    /// Our own sessions, by number.
    pub(super) ours: Vec<u64>,
    /// Programs of theirs on the GPU.
    pub(super) on_gpu: Vec<Foreign>,
}

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The terminal, as `pts/0`.
    pub tty: String,
    /// From where; empty at the server itself.
    pub from: String,
}

/// A systemd inhibitor of shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inhibitor {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// A process on the GPU that belongs to no unit of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its process id.
    pub pid: u32,
    /// Its user.
    pub user: String,
    /// Its program, with path.
    pub name: String,
    /// What it holds, on the first GPU.
    pub mib: u64,
}

impl People {
    /// The answer to [`crate::host::remote::people`], asked in session `own` of `user`.
    pub(super) fn answer(&self, own: u64, user: &str) -> String {
        let mut blocks = vec![];
        for number in &self.ours {
            blocks.push(format!(
                "Id=c{number}\nName={user}\nTTY=\nRemote=yes\nRemoteHost=127.0.0.1\nClass=user\nState=active\nDisplay=\n"
            ));
        }
        for (place, Login { user, tty, from }) in self.logins.iter().enumerate() {
            let remote = if from.is_empty() { "no" } else { "yes" };
            blocks.push(format!(
                "Id=p{place}\nName={user}\nTTY={tty}\nRemote={remote}\nRemoteHost={from}\nClass=user\nState=active\nDisplay=\n"
            ));
        }
        let held = self.inhibitors.iter().zip(2000_u32..);
        let inhibitors: Vec<_> =
            held.map(|(i, pid)| json!(["shutdown:sleep", i.who, i.why, "block", 0, pid])).collect();
        let inhibitors = json!({"type": "a(ssssuu)", "data": [inhibitors]});
        let mut out = format!("@@own c{own}\n@@sessions\n{}@@status 0\n@@inhibitors\n", blocks.join("\n"));
        let _ = write!(out, "{inhibitors}\n@@status 0\n@@end\n");
        out
    }
}
