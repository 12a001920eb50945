//! What went wrong, as an exit code, as text and as JSON.

use serde::Serialize;

use super::text::{Paint, plain, warn_line};
use crate::{
    driver::OperationRecord,
    front::{client::ClientError, problem::Problem},
};

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Done, or already so.
    Done = 0,
    /// The operation failed.
    Failed = 1,
    /// Wrong use or configuration.
    Usage = 2,
    /// No daemon.
    NoDaemon = 3,
    /// Refused.
    Refused = 4,
    /// Not finished within `--timeout`.
    Unfinished = 5,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The word for it in JSON.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NoDaemon => "no_daemon",
            Self::Refused => "refused",
            Self::Unfinished => "unfinished",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Any end that is not a good one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trouble {
    /// The exit code.
    pub(super) exit: Exit,
    /// Stable code.
    pub(super) code: String,
    /// What happened; may have several lines.
    pub(super) message: String,
    /// What a person can do.
    pub(super) hint: Option<String>,
    /// It may go better later, by itself.
    pub(super) retryable: bool,
    /// When.
    pub(super) retry_after_seconds: Option<u64>,
    /// The operation it is about.
    pub(super) operation: Option<Box<OperationRecord>>,
}

impl Trouble {
    /// Trouble without anything beside.
    pub(super) fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.into(),
            message: message.into(),
            hint: None,
            retryable: false,
            retry_after_seconds: None,
            operation: None,
        }
    }

    /// With what a person can do.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// With the operation it is about.
    pub(super) fn about(self, operation: Option<OperationRecord>) -> Self {
        Self { operation: operation.map(Box::new), ..self }
    }

    /// One JSON object.
    pub(super) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Told<'a> {
            outcome: &'a str,
            exit_code: u8,
            error: Error<'a>,
            operation: &'a Option<Box<OperationRecord>>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'a str,
            message: &'a str,
            hint: &'a Option<String>,
            retryable: bool,
            retry_after_seconds: Option<u64>,
        }
        super::json(&Told {
            outcome: self.exit.word(),
            exit_code: self.exit as u8,
            error: Error {
                code: &self.code,
                message: &self.message,
                hint: &self.hint,
                retryable: self.retryable,
                retry_after_seconds: self.retry_after_seconds,
            },
            operation: &self.operation,
        })
    }

    /// For people, on standard error.
    pub(super) fn tell(&self, paint: Paint) {
        let mut lines = self.message.lines();
        let first = plain(lines.next().unwrap_or_default());
        let mark = match self.exit {
            Exit::Interrupted | Exit::Unfinished => paint.fair("wechsler:"),
            _ => paint.bad("wechsler:"),
        };
        let code = paint.faint(&format!("[{}]", plain(&self.code)));
        if matches!(self.exit, Exit::Usage | Exit::Interrupted) {
            warn_line(&format!("{mark} {first}"));
        } else {
            warn_line(&format!("{mark} {first} {code}"));
        }
        for line in lines {
            warn_line(&plain(line));
        }
        if let Some(hint) = &self.hint {
            warn_line(&format!("  hint: {}", plain(hint)));
        }
        if let Some(seconds) = self.retry_after_seconds {
            warn_line(&format!("  worth trying again in {seconds}s"));
        }
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::NoDaemon { .. } => Self::new(Exit::NoDaemon, "no_daemon", message).hint(
                "is it running (`systemctl status wechsler`), is the socket right (--socket), are you in its group?",
            ),
            ClientError::Silent { .. } => {
                Self::new(Exit::NoDaemon, "daemon_silent", message).hint("see its journal: `journalctl -u wechsler`")
            }
            ClientError::Garbage { .. } => Self::new(Exit::NoDaemon, "not_a_daemon", message)
                .hint("is the socket right (--socket)? are client and daemon of the same version?"),
            ClientError::Problem(problem) => (*problem).into(),
        }
    }
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        let exit = match &*problem.code {
            "unknown_backend" | "bad_request" | "not_found" | "method_not_allowed" | "too_large" => Exit::Usage,
            "operation_forgotten" => Exit::Failed,
            "no_answer" | "stopping" => Exit::NoDaemon,
            _ => Exit::Refused,
        };
        let message = match &problem.detail {
            Some(detail) => format!("{}: {detail}", problem.title.trim_end_matches('.')),
            None => problem.title.into(),
        };
        Self {
            exit,
            code: problem.code.into(),
            message,
            hint: problem.hint,
            retryable: problem.retryable,
            retry_after_seconds: problem.retry_after_seconds,
            operation: None,
        }
    }
}
