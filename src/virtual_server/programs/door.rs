//! The HTTP side of a program: connections, requests taken whole, answers. Everything ends with the process.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
};
use futures_util::stream;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::{
    Fault,
    life::{Busy, Life, lock, pause},
};

/// The longest request that is taken.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// What a proxy in front would say.
const HTML: &str = "<html><body>a page</body></html>";

/// A request, whole.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Ask {
    /// Its body as JSON; an empty one is no JSON.
    pub(super) fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// Answers requests.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers one. Dropped when the client goes.
    fn answer(self: Arc<Self>, ask: Ask) -> impl Future<Output = Response<Body>> + Send;
}

/// The port, bound but not yet listening: connections are refused. `None`: somebody else has it.
pub(super) fn bind(address: SocketAddr, life: &Life) -> io::Result<TcpSocket> {
    if life.faults.fires("port-in-use").is_some() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As the real ones do; else the port of one that has just ended could not be had.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Begins to listen.
pub(super) fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Accepts connections until it is dropped, which closes the port and leaves the connections as they are.
pub(super) async fn accept(life: &Arc<Life>, listener: TcpListener, answers: Arc<impl Answers>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => life.spawn(converse(Arc::clone(life), stream, Arc::clone(&answers))),
            // Out of descriptors: others must end first.
            Err(_) => pause(Duration::from_millis(20)).await,
        }
    }
}

async fn converse(life: Arc<Life>, stream: TcpStream, answers: Arc<impl Answers>) {
    let _ = stream.set_nodelay(true);
    let heard = Heard { life, busy: Arc::default() };
    let busy = Arc::clone(&heard.busy);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answers, busy) = (Arc::clone(&answers), Arc::clone(&busy));
        async move {
            let Some(ask) = whole(request).await else {
                return Ok(json(400, "{}"));
            };
            let answer = answers.answer(ask).await;
            Ok::<_, Infallible>(answer.map(|body| Body::new(Told { body, busy })))
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(Ear { stream, heard }), service).await;
}

async fn whole(request: Request<Incoming>) -> Option<Ask> {
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), MOST_BYTES).await.ok()?;
    let query = head.uri.query().unwrap_or_default();
    let query = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Some(Ask {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: query.collect(),
        headers: head.headers,
        body,
    })
}

/// Whether a connection is in the middle of a request or an answer: set by the first byte of a request, also one that
/// never becomes whole, and taken back with the last of its answer.
type Middle = Arc<Mutex<Option<Busy>>>;

struct Heard {
    life: Arc<Life>,
    busy: Middle,
}

/// The stream, with an ear for the first byte of a request.
struct Ear {
    stream: TcpStream,
    heard: Heard,
}

impl AsyncRead for Ear {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            let life = &self.heard.life;
            lock(&self.heard.busy).get_or_insert_with(|| life.connection_busy());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ear {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer that says when it has been told to its end.
struct Told {
    body: Body,
    busy: Middle,
}

impl hyper::body::Body for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        lock(&self.busy).take();
    }
}

/// An answer.
pub(super) fn answer(status: u16, kind: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !kind.is_empty() {
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    answer
}

/// An answer of JSON.
pub(super) fn json(status: u16, body: impl ToString) -> Response<Body> {
    answer(status, "application/json; charset=utf-8", body.to_string())
}

/// One event of a stream.
pub(super) fn event(data: impl ToString) -> Bytes {
    Bytes::from(format!("data: {}\n\n", data.to_string()))
}

/// The faults of health (`/health` and the like) and, as far as they are about bodies, of identity.
pub(super) async fn troubled(life: &Life, is_health: bool) -> Option<Response<Body>> {
    let faults = &life.faults;
    if is_health {
        if faults.is_set("health-hangs") {
            faults.wait_out("health-hangs").await;
        }
        if let Some(Fault::HealthSlow(time)) = faults.fires("health-slow") {
            pause(time).await;
        }
        if let Some(Fault::HealthStatus(status)) = faults.fires("health-status") {
            return Some(answer(status, "text/plain", ""));
        }
    }
    if faults.fires("health-garbage").is_some() {
        return Some(answer(200, "text/html", HTML));
    }
    if faults.fires("health-endless").is_some() {
        let endless = stream::unfold((), |()| async {
            pause(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096])), ()))
        });
        return Some(answer(200, "application/json", Body::from_stream(endless)));
    }
    None
}

/// The beginning of an answer, and then the end of the connection.
pub(super) fn cut_off() -> Response<Body> {
    let parts = stream::unfold(0, |n| async move {
        match n {
            0 => Some((Ok(Bytes::from_static(b"{\"choices\":[{\"te")), 1)),
            1 => {
                // So that the beginning has left before the end comes.
                pause(Duration::from_millis(10)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), 2))
            }
            _ => None,
        }
    });
    answer(200, "application/json", Body::from_stream(parts))
}

/// Whether the key is right, where one is wanted. llama.cpp insists on the capital B.
pub(super) fn key_is_right(life: &Life, headers: &HeaderMap) -> bool {
    let Some(Fault::ApiKey(key)) = life.faults.look("api-key") else {
        return true;
    };
    let given = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = given("authorization").map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
    bearer == Some(&key) || given("x-api-key") == Some(&key)
}

/// The time of day, which both backends give as the time at which their model was made.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
