//! One question over HTTP: a fresh connection, a deadline, a bounded answer. What came back is told apart finely, because
//! "refused", "cut off" and "silent" mean different things of a backend.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{Client, Method, StatusCode, header, redirect};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

/// A longer answer is not read to its end. `/props` carries the chat template and `/slots` the parameters of every
/// request, so tens of kilobytes are ordinary; vLLM's `/metrics` has some 100 KB.
pub(crate) const MOST_ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// The longest answer of a health path.
pub(crate) const MOST_HEALTH_BYTES: usize = 64 * 1024;
/// The longest API key file.
const MOST_KEY_BYTES: usize = 4096;
/// So much of what a backend says goes into messages for people.
const MOST_QUOTED_CHARS: usize = 200;

/// Why there is no HTTP client for a backend. A fault of the configuration.
#[derive(Debug, Error)]
pub enum HttpSetupError {
    /// The URL cannot be read.
    #[error("`{url}` is not a URL: {reason}")]
    BadUrl {
        /// As configured.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No TLS is built in: backends are asked on a private network.
    #[error("`{0}` does not begin with http://")]
    NotHttp(String),
    /// The client could not be made.
    #[error("the HTTP client could not be made: {0}")]
    Client(#[source] reqwest::Error),
}

/// An answer that came in whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum WireError {
    /// Nothing listens there. The question was surely not received.
    #[error("connection refused")]
    Refused,
    /// No connection and no local reason to hope for one: no route, unknown name. Surely not received.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The deadline passed before an answer began. It may have been received, and may still be worked on.
    #[error("no answer in time")]
    TimedOut,
    /// The connection ended before an answer began: what a dying process does. It was very likely received.
    #[error("the connection was closed before an answer came")]
    Closed,
    /// An answer began that is none: not HTTP, cut off, too long, without an end.
    #[error("{0}")]
    Garbage(String),
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, WireError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| WireError::Garbage(format!("not the JSON expected ({e}): {}", quoted(&self.body))))
    }

    /// What the body says went wrong: the `message` of an error as llama-server and vLLM write it, else the body itself.
    pub(crate) fn complaint(&self) -> String {
        let said: Option<String> = serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|v| Some(v.get("error")?.get("message")?.as_str()?.to_owned()));
        quoted(said.as_deref().map_or(&self.body[..], str::as_bytes))
    }
}

/// The beginning of what somebody said, fit for a message: one line, bounded, no control characters.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(4 * MOST_QUOTED_CHARS)];
    String::from_utf8_lossy(start)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST_QUOTED_CHARS)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Asks one backend.
#[derive(Debug)]
pub(crate) struct Wire {
    client: Client,
    base: String,
    key_file: Option<PathBuf>,
}

impl Wire {
    /// Checks the URL and makes the client: no pool (each question proves a fresh connection, and an idle connection
    /// never keeps a stopping server waiting), no proxy, no redirects.
    pub(crate) fn new(base: &str, key_file: Option<&Path>) -> Result<Self, HttpSetupError> {
        let url = reqwest::Url::parse(base)
            .map_err(|e| HttpSetupError::BadUrl { url: base.to_owned(), reason: e.to_string() })?;
        if url.scheme() != "http" {
            return Err(HttpSetupError::NotHttp(base.to_owned()));
        }
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("wechsler/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(HttpSetupError::Client)?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), key_file: key_file.map(Path::to_owned) })
    }

    /// An API key is configured.
    pub(crate) const fn has_key(&self) -> bool {
        self.key_file.is_some()
    }

    /// `GET path`, without the key.
    pub(crate) async fn get_open(&self, path: &str, most: usize, deadline: Instant) -> Result<Answer, WireError> {
        self.ask(Method::GET, path, None, None, most, deadline).await
    }

    /// `GET path`, with the key where one is configured.
    pub(crate) async fn get(&self, path: &str, deadline: Instant) -> Result<Answer, WireError> {
        let key = self.key().await;
        self.ask(Method::GET, path, None, key, MOST_ANSWER_BYTES, deadline).await
    }

    /// `POST path` with a JSON body, with the key where one is configured.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
        within: Duration,
    ) -> Result<Answer, WireError> {
        let deadline = Instant::now() + within;
        let key = self.key().await;
        let body = Some(body.to_string());
        self.ask(Method::POST, path, body, key, MOST_ANSWER_BYTES, deadline).await
    }

    /// The key, read anew each time so that it may be changed under way. A file that cannot be read counts as no key: the
    /// backend then refuses, which is what a person gets to see.
    async fn key(&self) -> Option<header::HeaderValue> {
        let path = self.key_file.as_deref()?;
        let key = match tokio::fs::read(path).await {
            Ok(bytes) if bytes.len() <= MOST_KEY_BYTES => bytes,
            Ok(_) => {
                tracing::warn!(path = %path.display(), "the API key file is too long to be one");
                return None;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the API key file cannot be read");
                return None;
            }
        };
        // llama-server insists on the capital B.
        let line = [b"Bearer ", key.trim_ascii()].concat();
        let Ok(mut value) = header::HeaderValue::from_bytes(&line) else {
            tracing::warn!(path = %path.display(), "the API key file holds what no header may carry");
            return None;
        };
        value.set_sensitive(true);
        Some(value)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        key: Option<header::HeaderValue>,
        most: usize,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let began = Instant::now();
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).header(header::CONNECTION, "close");
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, key);
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        let answer = match timeout_at(deadline, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(unanswered(&error)),
            Err(_) => return Err(WireError::TimedOut),
        };
        let status = answer.status();
        let mut parts = answer.bytes_stream();
        let mut body = Vec::new();
        loop {
            match timeout_at(deadline, parts.next()).await {
                Ok(None) => {
                    tracing::trace!(took = ?began.elapsed(), path, status = status.as_u16(), "answer");
                    return Ok(Answer { status, body });
                }
                Ok(Some(Ok(part))) if body.len() + part.len() <= most => {
                    body.extend_from_slice(&part);
                }
                Ok(Some(Ok(_))) => {
                    return Err(WireError::Garbage(format!("the answer is longer than {most} bytes")));
                }
                Ok(Some(Err(_))) => {
                    return Err(WireError::Garbage("the answer was cut off".into()));
                }
                Err(_) => return Err(WireError::Garbage("the answer did not end in time".into())),
            }
        }
    }
}

/// Tells apart why no answer began.
fn unanswered(error: &reqwest::Error) -> WireError {
    let mut cause = error.source();
    let mut innermost = error.to_string();
    let mut io_kind = None;
    let mut parse_error = false;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            io_kind = Some(io.kind());
        }
        innermost = error.to_string();
        parse_error |= innermost.starts_with("invalid HTTP");
        cause = error.source();
    }
    if parse_error {
        return WireError::Garbage(format!("not HTTP ({innermost})"));
    }
    match io_kind {
        Some(io::ErrorKind::ConnectionRefused) => WireError::Refused,
        Some(io::ErrorKind::TimedOut) => WireError::TimedOut,
        _ if error.is_connect() => WireError::Unreachable(innermost),
        _ if error.is_timeout() => WireError::TimedOut,
        _ => WireError::Closed,
    }
}
