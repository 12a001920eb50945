//! The client's side of the socket. Every question has a deadline and every answer a bound: whoever listens there may be
//! no Wechsler, may hang, or may go away in the middle.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Method, Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    problem::Problem,
    protocol::{
        CommandAnswer, CommandRequest, Endpoints, HoldMade, HoldRequest, Holds, Slots, SlotsTended, VerifyRequest,
    },
};
use crate::driver::{Change, OperationRecord, status::Status, world::TENDED_WITHIN as DRIVER_TENDS_WITHIN};

/// Until a question that only reads is answered.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Until a command is answered; longer than the daemon gives itself.
const COMMAND_WITHIN: Duration = Duration::from_secs(15);
/// Until something was done about saved slots; longer than the daemon gives itself.
const TENDED_WITHIN: Duration = DRIVER_TENDS_WITHIN.saturating_add(Duration::from_secs(10));
/// How long one long poll waits for the end of an operation.
const POLL: Duration = Duration::from_secs(25);
/// How long a full daemon is asked again.
const FULL_FOR: Duration = Duration::from_secs(3);
/// Between two such tries.
const FULL_REST: Duration = Duration::from_millis(200);
/// An event stream without a sign of life for so long is broken: three times the daemon's own.
const QUIET: Duration = Duration::from_secs(45);
/// The largest answer, and the largest event.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or we may not connect.
    #[error("no daemon answers on {socket}: {why}")]
    NoDaemon {
        /// Where.
        socket: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Connected, but no answer within the deadline.
    #[error("the daemon on {socket} did not answer within {} s", within.as_secs_f32())]
    Silent {
        /// Where.
        socket: PathBuf,
        /// How long it was given.
        within: Duration,
    },
    /// What came back is not what a daemon says, or it broke off.
    #[error("what answers on {socket} makes no sense: {what}")]
    Garbage {
        /// Where.
        socket: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The daemon says no.
    #[error("{}", .0.title)]
    Problem(Box<Problem>),
}

impl ClientError {
    /// The daemon itself is not there or not well; a restart may mend it.
    #[must_use]
    pub fn is_daemon_gone(&self) -> bool {
        match self {
            Self::Problem(problem) => {
                matches!(&*problem.code, "stopping" | "too_many_clients")
            }
            _ => true,
        }
    }
}

type Answered<T> = Result<T, ClientError>;

/// A client of the daemon's socket.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `socket`; connects when first asked.
    pub fn new(socket: &Path) -> Answered<Self> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()
            .map_err(|error| ClientError::NoDaemon { socket: socket.to_path_buf(), why: innermost(&error) })?;
        Ok(Self { http, socket: socket.to_path_buf() })
    }

    /// The status document.
    pub async fn status(&self) -> Answered<Status> {
        self.get("/v1/status", READ_WITHIN).await
    }

    /// The endpoints of all backends.
    pub async fn endpoints(&self) -> Answered<Endpoints> {
        self.get("/v1/endpoints", READ_WITHIN).await
    }

    /// The slots, live and saved.
    pub async fn slots(&self) -> Answered<Slots> {
        self.get("/v1/slots", READ_WITHIN).await
    }

    /// Removes what is saved under a name.
    pub async fn forget(&self, name: &str, generation: Option<u64>, backend: Option<&str>) -> Answered<SlotsTended> {
        let mut url =
            Url::parse("http://wechsler/v1/slots/").map_err(|error| self.garbage_because(error.to_string()))?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        if let Some(generation) = generation {
            url.query_pairs_mut().append_pair("generation", &generation.to_string());
        }
        if let Some(backend) = backend {
            url.query_pairs_mut().append_pair("backend", backend);
        }
        let query = url.query().map_or(String::new(), |query| format!("?{query}"));
        let path = format!("{}{query}", url.path());
        self.ask(Method::DELETE, &path, None::<&()>, TENDED_WITHIN).await
    }

    /// Reads saved files whole.
    pub async fn verify(&self, request: &VerifyRequest) -> Answered<SlotsTended> {
        self.ask(Method::POST, "/v1/slots/verify", Some(request), TENDED_WITHIN).await
    }

    /// The holds in force.
    pub async fn holds(&self) -> Answered<Holds> {
        self.get("/v1/holds", READ_WITHIN).await
    }

    /// Gives a command.
    pub async fn command(&self, request: &CommandRequest) -> Answered<CommandAnswer> {
        self.post("/v1/commands", request).await
    }

    /// Makes a hold.
    pub async fn hold(&self, request: &HoldRequest) -> Answered<HoldMade> {
        self.post("/v1/holds", request).await
    }

    /// Ends a hold.
    pub async fn release(&self, id: u64) -> Answered<CommandAnswer> {
        let path = format!("/v1/holds/{id}");
        self.ask(Method::DELETE, &path, None::<&()>, COMMAND_WITHIN).await
    }

    /// An operation. With `wait`, its end is waited for a while, and it is told as it is then.
    pub async fn operation(&self, id: u64, wait: bool) -> Answered<OperationRecord> {
        let wait = if wait { POLL } else { Duration::ZERO };
        let path = format!("/v1/operations/{id}?wait={}", wait.as_secs());
        self.get(&path, wait + READ_WITHIN).await
    }

    /// Begins to listen to changes; the first says what is so now.
    pub async fn events(&self) -> Answered<Events> {
        let response = self.send(Method::GET, "/v1/events", None::<&()>, READ_WITHIN).await?;
        let status = response.status();
        if !status.is_success() {
            let body = self.body(response, READ_WITHIN).await?;
            return Err(self.problem(status, &body));
        }
        Ok(Events { client: self.clone(), response, pieces: Pieces::default(), heard: Instant::now() })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, within: Duration) -> Answered<T> {
        self.ask(Method::GET, path, None::<&()>, within).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Answered<T> {
        self.ask(Method::POST, path, Some(body), COMMAND_WITHIN).await
    }

    /// Asks; a daemon that has no place for us is asked again for a moment. Nothing that was taken is ever sent twice.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Answered<T> {
        let began = Instant::now();
        loop {
            let answer = self.ask_once(method.clone(), path, body, within).await;
            let full = matches!(&answer, Err(ClientError::Problem(problem)) if &*problem.code == "too_many_clients");
            if !full || began.elapsed() > FULL_FOR {
                return answer;
            }
            sleep(FULL_REST).await;
        }
    }

    async fn ask_once<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Answered<T> {
        let response = self.send(method, path, body, within).await?;
        let status = response.status();
        let body = self.body(response, within).await?;
        if status.is_success() {
            serde_json::from_slice(&body).map_err(|error| self.garbage(&error))
        } else {
            Err(self.problem(status, &body))
        }
    }

    /// Sends a request and waits for the head of its answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Answered<Response> {
        let began = Instant::now();
        loop {
            let mut request = self.http.request(method.clone(), format!("http://wechsler{path}"));
            if let Some(body) = body {
                request = request.json(body);
            }
            let error = match timeout(within, request.send()).await {
                Err(_) => return Err(self.silent(within)),
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => error,
            };
            if error.is_connect() {
                // The kernel's queue of the socket is full: nothing was sent yet.
                if is_would_block(&error) && began.elapsed() < FULL_FOR {
                    sleep(FULL_REST).await;
                    continue;
                }
                return Err(ClientError::NoDaemon { socket: self.socket.clone(), why: innermost(&error) });
            }
            return Err(self.garbage(&error));
        }
    }

    async fn body(&self, mut response: Response, within: Duration) -> Answered<Vec<u8>> {
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| self.garbage(&e))? {
                if body.len() + chunk.len() > ANSWER_BYTES {
                    return Err(self.garbage_because(format!("more than {ANSWER_BYTES} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        timeout(within, read).await.unwrap_or_else(|_| Err(self.silent(within)))
    }

    fn problem(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => self.garbage_because(format!("status {status} without a reason")),
        }
    }

    fn silent(&self, within: Duration) -> ClientError {
        ClientError::Silent { socket: self.socket.clone(), within }
    }

    fn garbage(&self, error: &dyn Error) -> ClientError {
        self.garbage_because(innermost(error))
    }

    fn garbage_because(&self, what: String) -> ClientError {
        ClientError::Garbage { socket: self.socket.clone(), what }
    }
}

/// Changes as they come in (server-sent events).
#[derive(Debug)]
pub struct Events {
    client: Client,
    response: Response,
    pieces: Pieces,
    /// The last sign of life.
    heard: Instant,
}

impl Events {
    /// The next change; `None` when the daemon ends the stream. May be dropped and called again without losing any.
    pub async fn next(&mut self) -> Answered<Option<Change>> {
        loop {
            if let Some(data) = self.pieces.take() {
                return serde_json::from_slice(&data).map(Some).map_err(|error| self.client.garbage(&error));
            }
            let chunk = timeout_at(self.heard + QUIET, self.response.chunk())
                .await
                .map_err(|_| self.client.silent(QUIET))?
                .map_err(|error| self.client.garbage(&error))?;
            self.heard = Instant::now();
            let Some(chunk) = chunk else {
                return Ok(None);
            };
            if self.pieces.bytes.len() + chunk.len() > ANSWER_BYTES {
                let what = format!("an event of more than {ANSWER_BYTES} bytes");
                return Err(self.client.garbage_because(what));
            }
            self.pieces.bytes.extend_from_slice(&chunk);
        }
    }
}

/// Server-sent events, as they come in pieces.
#[derive(Debug, Default)]
struct Pieces {
    bytes: Vec<u8>,
    /// So many of them hold no end of an event.
    searched: usize,
}

impl Pieces {
    /// The data of the first event that is whole and has any; comments and other fields are passed over.
    fn take(&mut self) -> Option<Vec<u8>> {
        while let Some(end) = self.bytes[self.searched..].windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.bytes.drain(..self.searched + end + 2).collect();
            self.searched = 0;
            let mut data = Vec::new();
            for line in event.split(|byte| *byte == b'\n') {
                if let Some(part) = line.strip_prefix(b"data:") {
                    data.extend_from_slice(part);
                }
            }
            if !data.is_empty() {
                return Some(data);
            }
        }
        // The last byte may be the first half of an end.
        self.searched = self.bytes.len().saturating_sub(1);
        None
    }
}

/// The last cause of an error: what the system said, without the layers above.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn is_would_block(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::WouldBlock;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_whole_wherever_it_is_cut() {
        let text = b": hello\n\nevent: change\ndata: 1\n\n: still here\n\ndata: 2\ndata: 3\n\nid: 4\n\n";
        for size in 1..=text.len() {
            let (mut pieces, mut told) = (Pieces::default(), vec![]);
            for piece in text.chunks(size) {
                pieces.bytes.extend_from_slice(piece);
                told.extend(std::iter::from_fn(|| pieces.take()));
            }
            assert_eq!(told, [b" 1".to_vec(), b" 2 3".to_vec()], "in pieces of {size}");
        }
    }
}
