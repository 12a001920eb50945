//! Ports of loopback that are kept, and that can be as silent as those of a machine without power.
//!
//! A closed port of loopback refuses at once, which from a real server would be a sign of life. What is as silent as a
//! dead host is a listener whose queue is full: the kernel drops every further SYN. So a queue of one is filled by
//! connections of our own, and nobody is ever let in.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};

/// Ports to choose from lie below those the kernel gives to connections: nobody gets one of ours by chance.
const FIRST: u16 = 18_000;
const MOST: u16 = 14_000;
/// A connection that takes longer on loopback is one that nobody will ever answer.
const UNANSWERED: Duration = Duration::from_millis(40);
/// A listener of a program that was just killed may take a moment to go.
const BIND_WITHIN: u32 = 200;
const BIND_REST: Duration = Duration::from_millis(5);

/// A port kept for as long as this lives. Without a listener it refuses.
#[derive(Debug)]
pub(super) struct Port {
    address: SocketAddr,
    _reserved: TcpSocket,
}

impl Port {
    /// A free one. `seed` chooses where to begin to look.
    pub(super) fn choose(seed: u64) -> io::Result<Self> {
        let mut last = io::ErrorKind::AddrInUse.into();
        for n in 0..200_u64 {
            let place = seed.wrapping_add(n.wrapping_mul(7919)) % u64::from(MOST);
            let port = FIRST + u16::try_from(place).unwrap_or(0);
            match Self::reserve(port) {
                Ok(port) => return Ok(port),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn reserve(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = TcpSocket::new_v4()?;
        // Bound without sharing, so that a port somebody else holds is refused; shared only afterwards.
        socket.set_reuseaddr(false)?;
        socket.bind(address)?;
        socket.set_reuseaddr(true)?;
        Ok(Self { address, _reserved: socket })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens it.
    pub(super) async fn listen(&self) -> io::Result<TcpListener> {
        self.listen_for(1).await
    }

    /// Opens it for so many who wait.
    pub(super) async fn listen_for(&self, waiting: u32) -> io::Result<TcpListener> {
        let mut tries = 0;
        loop {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            match socket.bind(self.address).and_then(|()| socket.listen(waiting)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_WITHIN => {
                    tries += 1;
                    sleep(BIND_REST).await;
                }
                result => return result,
            }
        }
    }

    /// Makes it silent.
    pub(super) async fn silence(&self) -> io::Result<Silent> {
        Ok(Silent::from(self.listen().await?).await)
    }
}

/// A port that answers nothing, until this is dropped.
#[derive(Debug)]
pub(super) struct Silent {
    _listener: TcpListener,
    _own: Vec<TcpStream>,
}

impl Silent {
    /// Takes a listener that nobody asks to accept any more. From here on it is never open nor closed.
    pub(super) async fn from(listener: TcpListener) -> Self {
        let mut own = vec![];
        if let Ok(address) = listener.local_addr() {
            for _ in 0..8 {
                match timeout(UNANSWERED, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => own.push(stream),
                    _ => break,
                }
            }
        }
        Self { _listener: listener, _own: own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connect(to: SocketAddr) -> &'static str {
        match timeout(Duration::from_millis(150), TcpStream::connect(to)).await {
            Ok(Ok(_)) => "open",
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Ok(Err(_)) => "odd",
            Err(_) => "silent",
        }
    }

    #[tokio::test]
    async fn a_port_refuses_or_is_open_or_is_as_silent_as_a_dead_host() {
        let port = Port::choose(u64::from(std::process::id())).expect("a port");
        assert_eq!(connect(port.address()).await, "refused");
        let listener = port.listen().await.expect("a listener");
        assert_eq!(connect(port.address()).await, "open");
        let silent = Silent::from(listener).await;
        for _ in 0..3 {
            assert_eq!(connect(port.address()).await, "silent");
        }
        drop(silent);
        assert_eq!(connect(port.address()).await, "refused");
        let silent = port.silence().await.expect("silent");
        assert_eq!(connect(port.address()).await, "silent");
        drop(silent);
        assert_eq!(connect(port.address()).await, "refused");
    }

    #[tokio::test]
    async fn a_port_that_is_kept_is_given_to_nobody_else() {
        let port = Port::choose(u64::from(std::process::id()) + 500).expect("a port");
        assert!(Port::reserve(port.address().port()).is_err());
    }
}
