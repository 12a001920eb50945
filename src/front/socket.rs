//! The unix socket: one daemon on it, only for its group, with limits on everything a client could use up.
//!
//! An in-use socket is never taken over: a lock file beside it is held for the daemon's life (so two that start at once
//! cannot both win), and a socket file that is there is connected to before it is replaced. Owner and mode are set
//! between `bind` and `listen`, when nobody can connect yet.

use std::{
    future::Future,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixSocket, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tracing::{debug, warn};

use super::{api, problem::Problem};
use crate::driver::Handle;

/// Clients served at once.
pub const MOST_CLIENTS: usize = 64;
/// Clients beyond those that are told so; still more are cut off.
const MOST_TURNED_AWAY: usize = 64;
/// Until the head of a request is there, also between two requests on one connection.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Until a client that was sent something takes a part of it.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
/// For the head of a request; hyper's least is 8 KiB.
const HEAD_BYTES: usize = 16 * 1024;
/// Connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;
/// How long clients may finish once the daemon stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long an existing socket may take to show whether somebody is there.
const PROBE: Duration = Duration::from_secs(2);

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon is there.
    #[error("another daemon already listens on {0}")]
    InUse(PathBuf),
    /// The path is taken by something else, which is not removed.
    #[error("{0} exists and is not a socket; it is left alone")]
    NotASocket(PathBuf),
    /// The group is unknown.
    #[error("there is no group `{0}` (daemon.group)")]
    NoSuchGroup(String),
    /// The system refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The bound socket. Its file goes when this does.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
    /// Held, not read.
    _lock: std::fs::File,
}

/// Who is at the other end, as the kernel tells.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The user's number.
    pub uid: Option<u32>,
}

impl Listener {
    /// Binds the socket at `path`, mode 0660, for `group` where one is given. Needs a tokio runtime.
    pub async fn bind(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let failed = |doing, path: &Path| {
            let path = path.to_path_buf();
            move |source| BindError::Io { doing, path, source }
        };
        let group = group.map(group_id).transpose()?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("cannot open the lock", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(BindError::InUse(path.to_path_buf()));
            }
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(failed("cannot lock", &lock_path)(source));
            }
        }
        clear_stale(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed("cannot make a socket for", path))?;
        socket.bind(path).map_err(failed("cannot bind", path))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))
                .map_err(failed("cannot give the group its socket", path))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(failed("cannot set the mode of", path))?;
        let inner = socket.listen(BACKLOG).map_err(failed("cannot listen on", path))?;
        Ok(Self { inner, path: path.to_path_buf(), _lock: lock })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "the socket was already gone");
        }
    }
}

/// Removes a socket file nobody listens on.
async fn clear_stale(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { doing: "cannot look at", path: path.to_path_buf(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(io),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == ErrorKind::PermissionDenied => Err(io(error)),
        // Connected, or too busy to take us: somebody is there.
        _ => Err(BindError::InUse(path.to_path_buf())),
    }
}

fn group_id(name: &str) -> Result<u32, BindError> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => name.parse().map_err(|_| BindError::NoSuchGroup(name.to_owned())),
    }
}

/// Serves the API until `stop` is ready, then lets clients finish for a moment. The socket file is gone afterwards.
pub async fn serve(listener: Listener, handle: Handle, stop: impl Future<Output = ()>) {
    let app = api::router(handle);
    let full = Router::new().fallback(async || {
        Problem::overloaded("too_many_clients", "Too many clients are connected.")
            .hint("try again; see who keeps connections open")
    });
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    let queue = Arc::new(Semaphore::new(MOST_TURNED_AWAY));
    let (closing, closed) = watch::channel(false);
    let mut clients = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.inner.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors or memory: the others must end first.
                    warn!(%error, "cannot accept a client");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = clients.join_next() => continue,
        };
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        let app = app.clone().layer(Extension(Peer { uid }));
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let closed = closed.clone();
            clients.spawn(async move {
                converse(stream, app, true, closed).await;
                drop(place);
            });
        } else if let Ok(place) = Arc::clone(&queue).try_acquire_owned() {
            let (full, closed) = (full.clone(), closed.clone());
            clients.spawn(async move {
                let _ = timeout(GOODBYE, converse(stream, full, false, closed)).await;
                drop(place);
            });
        } else {
            warn!(uid, "too many clients; one was cut off");
        }
    }
    // No new client may come while the old ones finish.
    drop(listener);
    let _ = closing.send(true);
    let _ = timeout(GOODBYE, async { while clients.join_next().await.is_some() {} }).await;
}

/// One client, from its first request to its last.
async fn converse(stream: UnixStream, app: Router, keep_alive: bool, mut closed: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .keep_alive(keep_alive)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream)), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let told_to_close = async {
        let _ = closed.wait_for(|closed| *closed).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = told_to_close => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(error) = ended {
        debug!(%error, "a client broke off");
    }
}

/// A stream whose writes give up on a client that takes nothing for [`TAKEN_WITHIN`]: without this, one that never reads
/// would keep its place for ever.
struct Patient {
    stream: UnixStream,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    const fn new(stream: UnixStream) -> Self {
        Self { stream, waiting: None }
    }

    /// Passes a finished write on, and bounds how long one may be unfinished.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.waiting.get_or_insert_with(|| Box::pin(sleep(TAKEN_WITHIN)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
