//! A faulty wire in front of any server that is spoken to over TCP, be it SSH or HTTP, virtual or real: connections that
//! are taken and then silent, slow, cut off, or full of nonsense.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{VirtualServer, faults::Dice, ports::Port, truth::Power};

/// A server that is not connected to within this is as silent as the wire then is.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// So much is carried at once.
const PIECE: usize = 16 * 1024;
/// Connections that wait to be taken.
const WAITING: u32 = 64;
/// After an error of the listener, so that it cannot spin.
const REST: Duration = Duration::from_millis(20);
const NONSENSE: &[u8] = b"\x00\xff\x1b[2Jnobody speaks like this\r\n\r\n";

/// What is wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFault {
    /// It is taken, and nothing is ever heard of it.
    HalfOpen,
    /// The first word of the server comes so much later: a slow banner.
    SlowFirst(Duration),
    /// Each word of the server comes so much later.
    Slow(Duration),
    /// It is cut off after so many bytes of the server's.
    CutAfter(usize),
    /// After so many bytes of the server's nothing more is heard of it, and nobody is told.
    DeadAfter(usize),
    /// Nonsense comes before the first word of the server.
    Nonsense,
}

impl WireFault {
    /// What it is counted as.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::SlowFirst(_) => "slow first word",
            Self::Slow(_) => "slow",
            Self::CutAfter(_) => "cut off",
            Self::DeadAfter(_) => "dead in the middle",
            Self::Nonsense => "nonsense",
        }
    }

    fn any(dice: &mut Dice, slow: Duration) -> Self {
        match dice.below(6) {
            0 => Self::HalfOpen,
            1 => Self::SlowFirst(slow),
            2 => Self::Slow(slow / 20),
            3 => Self::CutAfter(dice.below(4000)),
            4 => Self::DeadAfter(dice.below(4000)),
            _ => Self::Nonsense,
        }
    }
}

/// A wire. Its port closes, and its connections end, when it is dropped.
#[derive(Debug)]
pub struct FaultyWire {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Plan {
    dice: Dice,
    /// So many of a thousand connections.
    chance: usize,
    slow: Duration,
    next: Option<WireFault>,
    struck: BTreeMap<&'static str, u64>,
}

impl Plan {
    fn new(seed: u64) -> Arc<Mutex<Self>> {
        let (dice, slow) = (Dice::new(seed), Duration::from_secs(1));
        Arc::new(Mutex::new(Self { dice, chance: 0, slow, next: None, struck: BTreeMap::new() }))
    }

    fn draw(&mut self) -> Option<WireFault> {
        let drawn = (self.dice.below(1000) < self.chance).then(|| WireFault::any(&mut self.dice, self.slow));
        let fault = self.next.take().or(drawn)?;
        *self.struck.entry(fault.name()).or_default() += 1;
        Some(fault)
    }
}

/// The client's end of the wire.
enum End {
    /// Always open.
    Open(TcpListener),
    /// Open while there is power.
    Follows { port: Port, power: watch::Receiver<Power> },
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FaultyWire {
    /// A wire before `server`, on a port of loopback; nothing is wrong with it yet.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn before(server: SocketAddr, seed: u64) -> io::Result<Self> {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), server, seed).await
    }

    /// ... that listens there.
    ///
    /// # Errors
    /// When that port cannot be had.
    pub async fn at(address: SocketAddr, server: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (address, plan) = (listener.local_addr()?, Plan::new(seed));
        let task = tokio::spawn(accept(End::Open(listener), server, Arc::clone(&plan))).abort_handle();
        Ok(Self { address, plan, task })
    }

    /// A wire before a port of a virtual server: without its power the wire is as silent as the port.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub fn of(server: &VirtualServer, address: SocketAddr, seed: u64) -> io::Result<Self> {
        let port = Port::choose(seed.wrapping_mul(31).wrapping_add(address.port().into()))?;
        let (there, plan, power) = (port.address(), Plan::new(seed), server.shared.power.subscribe());
        let end = End::Follows { port, power };
        let task = tokio::spawn(accept(end, address, Arc::clone(&plan))).abort_handle();
        Ok(Self { address: there, plan, task })
    }

    /// Where it is.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on so many of a thousand connections go wrong; slow ones by `slow`.
    pub fn storm(&self, chance: usize, slow: Duration) {
        let mut plan = locked(&self.plan);
        (plan.chance, plan.slow) = (chance, slow);
    }

    /// The next connection goes wrong like this.
    pub fn next(&self, fault: WireFault) {
        locked(&self.plan).next = Some(fault);
    }

    /// New connections are good again.
    pub fn calm(&self) {
        let mut plan = locked(&self.plan);
        (plan.chance, plan.next) = (0, None);
    }

    /// How often each kind struck, by [`WireFault::name`].
    pub fn struck(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.plan).struck.clone()
    }
}

fn locked(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    // Only plain values are changed while it is held.
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(end: End, server: SocketAddr, plan: Arc<Mutex<Plan>>) {
    let mut connections = JoinSet::new();
    let (mut listener, mut follows) = match end {
        End::Open(listener) => (Some(listener), None),
        End::Follows { port, power } => (None, Some((port, power))),
    };
    let mut silent = None;
    loop {
        while connections.try_join_next().is_some() {}
        if let Some((port, power)) = &mut follows {
            let dark = matches!(*power.borrow_and_update(), Power::Off | Power::PoweringUp);
            if dark && silent.is_none() {
                listener = None;
                silent = port.silence().await.ok();
            } else if !dark && listener.is_none() {
                silent = None;
                listener = port.listen_for(WAITING).await.ok();
            }
            if listener.is_none() && silent.is_none() {
                sleep(REST).await;
                continue;
            }
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None => std::future::pending().await,
            }
        };
        let changed = async {
            match &mut follows {
                Some((_, power)) => drop(power.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            accepted = accepted => match accepted {
                Some((client, _)) => drop(connections.spawn(carry(client, server, locked(&plan).draw()))),
                None => sleep(REST).await,
            },
        }
    }
}

/// A connection from its beginning to its end.
async fn carry(mut client: TcpStream, server: SocketAddr, fault: Option<WireFault>) {
    if fault == Some(WireFault::HalfOpen) {
        until_gone(&mut client).await;
        return;
    }
    let Ok(Ok(mut server)) = timeout(CONNECTED_WITHIN, TcpStream::connect(server)).await else {
        // As near to a refused connection as one can come that was taken already.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let carried = {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
        let there = async {
            copy(&mut from_client, &mut to_server).await?;
            to_server.shutdown().await
        };
        let back = back(&mut from_server, &mut to_client, fault);
        tokio::try_join!(there, back)
    };
    if carried.is_err() {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Nothing is answered until the client gives up.
async fn until_gone(client: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    while matches!(client.read(&mut buffer).await, Ok(read) if read > 0) {}
}

/// What the server says, on its way to the client.
async fn back(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    fault: Option<WireFault>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut carried = 0;
    loop {
        let read = server.read(&mut buffer).await?;
        if read == 0 {
            return client.shutdown().await;
        }
        let mut piece = &buffer[..read];
        match fault {
            Some(WireFault::SlowFirst(by)) if carried == 0 => sleep(by).await,
            Some(WireFault::Slow(by)) => sleep(by).await,
            Some(WireFault::Nonsense) if carried == 0 => client.write_all(NONSENSE).await?,
            Some(WireFault::CutAfter(most) | WireFault::DeadAfter(most)) => piece = &piece[..read.min(most - carried)],
            _ => {}
        }
        client.write_all(piece).await?;
        carried += piece.len();
        match fault {
            Some(WireFault::CutAfter(most)) if carried >= most => return Err(io::ErrorKind::ConnectionReset.into()),
            // Whatever else either of them says is lost; the client will give up some time.
            Some(WireFault::DeadAfter(most)) if carried >= most => std::future::pending().await,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that greets, and says back what it hears.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.write_all(b"hello\n").await?;
                    let (mut read, mut write) = stream.split();
                    copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    /// What comes of a connection within a moment, and whether it was cut.
    async fn says(wire: &FaultyWire) -> (Vec<u8>, bool) {
        let mut stream = TcpStream::connect(wire.address()).await.expect("it is taken");
        let _ = stream.write_all(b"echo").await;
        let mut heard = vec![];
        let mut buffer = [0; 100];
        loop {
            match timeout(Duration::from_millis(200), stream.read(&mut buffer)).await {
                Err(_) | Ok(Ok(0)) => return (heard, false),
                Ok(Err(_)) => return (heard, true),
                Ok(Ok(read)) => heard.extend_from_slice(&buffer[..read]),
            }
        }
    }

    #[tokio::test]
    async fn a_wire_carries_both_ways_and_goes_wrong_as_told() {
        let wire = FaultyWire::before(echo().await, 1).await.expect("a wire");
        assert_eq!(says(&wire).await, (b"hello\necho".to_vec(), false));
        wire.next(WireFault::HalfOpen);
        assert_eq!(says(&wire).await, (vec![], false));
        wire.next(WireFault::CutAfter(3));
        assert_eq!(says(&wire).await, (b"hel".to_vec(), true));
        wire.next(WireFault::DeadAfter(3));
        assert_eq!(says(&wire).await, (b"hel".to_vec(), false));
        wire.next(WireFault::SlowFirst(Duration::from_millis(50)));
        assert_eq!(says(&wire).await.0.len(), 10);
        wire.next(WireFault::Nonsense);
        assert!(says(&wire).await.0.starts_with(NONSENSE));
        assert_eq!(says(&wire).await, (b"hello\necho".to_vec(), false));
        assert_eq!(wire.struck().values().sum::<u64>(), 5);
    }

    #[tokio::test]
    async fn before_nobody_it_is_cut_at_once() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("one");
        let wire = FaultyWire::before(nobody, 1).await.expect("a wire");
        assert_eq!(says(&wire).await, (vec![], true));
    }

    #[tokio::test]
    async fn the_same_seed_goes_wrong_in_the_same_way() {
        let struck = async |seed| {
            let wire = FaultyWire::before(echo().await, seed).await.expect("a wire");
            wire.storm(700, Duration::from_millis(1));
            for _ in 0..12 {
                let _ = TcpStream::connect(wire.address()).await.map(|stream| stream.set_zero_linger());
                sleep(Duration::from_millis(2)).await;
            }
            wire.struck()
        };
        assert_eq!(struck(7).await, struck(7).await);
    }
}
