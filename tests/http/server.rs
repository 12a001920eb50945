//! A tiny HTTP server, made by hand so that it can misbehave.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use wechsler::{config, host::http::Probe, machine::BackendKind};

/// Long enough for a loaded machine; what is expected to hang is asked with less.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// For questions that must hit their deadline.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// A question as it came in.
pub(crate) struct Question {
    /// Method and path, as `GET /health`.
    pub(crate) what: String,
    /// The whole head, for its headers.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

/// What the server does.
pub(crate) enum Reply {
    /// An ordinary answer.
    Say(u16, String),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, and then nothing, with the connection open.
    Stall(Vec<u8>),
    /// A good head and a body without end.
    Endless,
}

/// A running server; it ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = Arc<dyn Fn(&Question) -> Reply + Send + Sync>;

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Question) -> Reply + Send + Sync + 'static) -> Self {
        Self::serving(Arc::new(answer)).await
    }

    // Apart, so that it is compiled once and not for each answer.
    async fn serving(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer)));
            }
        });
        Self { url, task }
    }

    pub(crate) fn probe(&self, kind: BackendKind) -> Probe {
        probe(&self.url, kind, |_| {}, TIMEOUT)
    }

    pub(crate) fn hasty_probe(&self, kind: BackendKind) -> Probe {
        probe(&self.url, kind, |_| {}, SHORT)
    }
}

/// A probe of whatever is at `url`.
pub(crate) fn probe(
    url: &str,
    kind: BackendKind,
    change: impl FnOnce(&mut config::Backend),
    timeout: Duration,
) -> Probe {
    let mut backend = config::Backend {
        name: "llama-cpp".into(),
        unit: "llama-cpp.service".into(),
        url: url.into(),
        public_url: url.into(),
        health_path: "/health".into(),
        api_key_file: None,
        model: None,
        ssh: None,
        slots: None,
        expected_start: Duration::from_secs(8),
    };
    change(&mut backend);
    Probe::new(&backend, kind, timeout).expect("a good configuration")
}

async fn serve(mut stream: TcpStream, answer: Answer) {
    let Some(question) = read(&mut stream).await else {
        return;
    };
    match answer(&question) {
        Reply::Say(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Reply::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            std::future::pending::<()>().await;
        }
        Reply::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b' '; 4096]).await.is_ok() {}
        }
    }
    let _ = stream.shutdown().await;
}

async fn read(stream: &mut TcpStream) -> Option<Question> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|l| l.to_lowercase().strip_prefix("content-length:").map(str::to_owned))
            .and_then(|l| l.trim().parse().ok())
            .unwrap_or(0);
        if body.len() >= length {
            let first = head.lines().next()?;
            return Some(Question {
                what: first.rsplit_once(' ')?.0.to_owned(),
                head: head.to_owned(),
                body: body.to_owned(),
            });
        }
    }
}
