//! The SSH server: lets one user with one key in, and hands his commands to the shell.
//!
//! Between the socket and the SSH library stands a relay, so that a session can end as it does on a real server: with a
//! word (sshd closes it), cut off, or in silence because nobody is there any more.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use russh::{
    Channel, ChannelId,
    keys::PublicKey,
    server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

use super::{
    answers,
    faults::{CommandFault, On, SshFault},
    ports::Silent,
    shared::Shared,
    shell::{self, Command},
    truth::Power,
    units::Ran,
};
use crate::host::remote;

/// How often the state of the port is compared with what it should be.
const LOOK: Duration = Duration::from_millis(10);
/// Between socket and library; more is held back at the sender.
const RELAYED: usize = 64 * 1024;
/// What a session that was ended in good order may take to say so.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The port as it is.
enum Port {
    Closed,
    Open(TcpListener),
    Silent { _held: Silent },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Closed,
    Open,
    Silent,
}

fn wanted(shared: &Shared) -> Wanted {
    match (shared.power(), shared.faults.ssh.now()) {
        (Power::Off | Power::PoweringUp | Power::Halting, _) => Wanted::Silent,
        (_, Some(SshFault::Silent)) => Wanted::Silent,
        (Power::Booting | Power::GoingDown, _) | (_, Some(SshFault::Refuses)) => Wanted::Closed,
        (Power::On, _) => Wanted::Open,
    }
}

/// Serves the SSH port for as long as the server exists. Says on `ready` when the port is as it should be.
pub(super) async fn serve(shared: Arc<Shared>, ready: watch::Sender<bool>) {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut power = shared.power.subscribe();
    let mut port = Port::Closed;
    loop {
        let on = shared.power() == Power::On;
        port = match (port, wanted(&shared)) {
            (Port::Closed, Wanted::Open) => {
                if let Ok(listener) = shared.ssh_port.listen().await {
                    Port::Open(listener)
                } else {
                    sleep(LOOK).await;
                    Port::Closed
                }
            }
            (Port::Closed, Wanted::Silent) => match shared.ssh_port.silence().await {
                Ok(held) => {
                    count_outage(&shared, on);
                    Port::Silent { _held: held }
                }
                Err(_) => Port::Closed,
            },
            (Port::Open(listener), Wanted::Silent) => {
                count_outage(&shared, on);
                Port::Silent { _held: Silent::from(listener).await }
            }
            (Port::Open(_), Wanted::Closed) => {
                count_outage(&shared, on);
                Port::Closed
            }
            (Port::Silent { .. }, Wanted::Closed | Wanted::Open) => Port::Closed,
            (same, _) => same,
        };
        ready.send_replace(true);
        if matches!(port, Port::Closed) && wanted(&shared) == Wanted::Open {
            continue;
        }
        let accepted = async {
            match &port {
                Port::Open(listener) => listener.accept().await.ok(),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = power.changed() => {}
            stream = accepted => if let Some((stream, _)) = stream {
                let number = numbers.fetch_add(1, Ordering::Relaxed) + 1;
                let server = Arc::clone(&shared);
                shared.spawn(async move { connection(server, stream, number).await });
            },
            () = sleep(LOOK) => {}
        }
    }
}

/// An outage of a server that is on is a fault that has struck.
fn count_outage(shared: &Shared, on: bool) {
    if on && matches!(shared.faults.ssh.now(), Some(SshFault::Refuses | SshFault::Silent)) {
        shared.faults.ssh.count();
    }
}

/// How a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Up,
    /// At once.
    Cut,
    /// Nothing is heard any more, as if the other side were not there.
    Dead,
}

async fn connection(shared: Arc<Shared>, mut stream: TcpStream, number: u64) {
    let fault = shared.faults.ssh.strike_if(|fault| !matches!(fault, SshFault::Refuses | SshFault::Silent));
    match fault {
        Some(SshFault::NoBanner) => {
            until_powerless(&shared).await;
            return;
        }
        Some(SshFault::SlowBanner(delay)) => sleep(delay).await,
        _ => {}
    }
    let key = match fault {
        Some(SshFault::OtherHostKey) => &shared.keys.stranger,
        Some(SshFault::InitramfsKey) => &shared.keys.initramfs,
        _ => &shared.keys.host,
    };
    let config = Arc::new(Config {
        keys: vec![key.clone()],
        auth_rejection_time: Duration::ZERO,
        nodelay: true,
        ..Config::default()
    });
    let _ = stream.set_nodelay(true);
    let line = watch::Sender::new(Line::Up);
    let mut told = line.subscribe();
    let client = Client { shared: Arc::clone(&shared), number, fault, line, shells: HashMap::new() };
    let (mut ours, theirs) = tokio::io::duplex(RELAYED);
    let session = async {
        if let Ok(session) = russh::server::run_stream(config, theirs, client).await {
            let _ = session.await;
        }
    };
    let relay = async { tokio::join!(session, copy_bidirectional(&mut stream, &mut ours)).1 };
    let mut power = shared.power.subscribe();
    let end = async {
        tokio::select! {
            line = async { told.wait_for(|line| *line != Line::Up).await.map_or(Line::Cut, |line| *line) } => line,
            power = async { power.wait_for(|power| *power != Power::On).await.map_or(Power::Off, |power| *power) } => {
                if !matches!(power, Power::GoingDown | Power::Halting) {
                    return Line::Dead;
                }
                // sshd is stopped with everything else.
                sleep(LAST_WORDS).await;
                Line::Cut
            }
        }
    };
    let ended: Result<io::Result<_>, Line> = tokio::select! {
        done = relay => Ok(done),
        how = end => Err(how),
    };
    shared.state().people.ours.retain(|ours| *ours != number);
    if matches!(ended, Err(Line::Dead)) {
        until_network(&shared, fault == Some(SshFault::FallsSilent)).await;
        // The host that comes back knows nothing of this connection.
        let _ = stream.set_zero_linger();
    }
}

async fn until_powerless(shared: &Shared) {
    let _ = shared.power.subscribe().wait_for(|power| matches!(power, Power::Off)).await;
}

/// Until packets are answered again, be it by a reset.
async fn until_network(shared: &Shared, fault: bool) {
    let mut power = shared.power.subscribe();
    if fault {
        let _ = power.wait_for(|power| *power != Power::On).await;
    }
    let _ = power.wait_for(|power| matches!(power, Power::Booting)).await;
}

struct Client {
    shared: Arc<Shared>,
    number: u64,
    fault: Option<SshFault>,
    line: watch::Sender<Line>,
    /// Shells that wait for their script on standard input, and what they have of it.
    shells: HashMap<ChannelId, Vec<u8>>,
}

impl Client {
    /// Runs what was understood, or says that it was not, and ends the channel.
    fn run(&self, channel: ChannelId, command: Option<Command>, text: &str, session: &Session) {
        if command.is_none() {
            self.shared.violated(format!("not one of our commands: {text}"));
        }
        let (handle, line) = (session.handle(), self.line.clone());
        let (server, number) = (Arc::clone(&self.shared), self.number);
        self.shared.spawn(async move {
            let Some(ran) = run(&server, command, number, &line).await else {
                return;
            };
            let _ = handle.data(channel, ran.stdout.into_bytes()).await;
            if !ran.stderr.is_empty() {
                let _ = handle.extended_data(channel, 1, ran.stderr.into_bytes()).await;
            }
            let _ = handle.exit_status_request(channel, ran.status).await;
            if ran.stays_open {
                return;
            }
            let _ = handle.eof(channel).await;
            let _ = handle.close(channel).await;
        });
    }
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: &PublicKey) -> Result<Auth, Self::Error> {
        let ours = self.shared.keys.client.public_key();
        let known = user == self.shared.setup.user && key.key_data() == ours.key_data();
        if !known || self.fault == Some(SshFault::RefusesUs) {
            return Ok(Auth::reject());
        }
        self.shared.state().people.ours.push(self.number);
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.fault == Some(SshFault::FallsSilent) {
            self.line.send_replace(Line::Dead);
            return Ok(());
        }
        session.channel_success(channel)?;
        let text = String::from_utf8_lossy(data);
        if text == remote::SHELL {
            self.shells.insert(channel, vec![]);
        } else {
            self.run(channel, shell::understand(&text), &text, session);
        }
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        if let Some(script) = self.shells.get_mut(&channel).filter(|script| script.len() < RELAYED) {
            script.extend_from_slice(data);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        if let Some(script) = self.shells.remove(&channel) {
            let text = String::from_utf8_lossy(&script);
            self.run(channel, shell::understand_fed(&text), &text, session);
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.shells.remove(&channel);
        Ok(())
    }
}

/// Runs a command, with what goes wrong about it. `None`: there is no answer.
async fn run(shared: &Arc<Shared>, command: Option<Command>, number: u64, line: &watch::Sender<Line>) -> Option<Ran> {
    let Some(command) = command else {
        return Some(Ran::failed(127, "sh: 1: not found\n"));
    };
    let verb = command.is_verb();
    let fault = shared.faults.command.strike_if(|(on, _)| match on {
        On::Any => true,
        On::Verbs => verb,
        On::Questions => !verb,
        On::Start => matches!(command, Command::Start(_)),
        On::Stop => matches!(command, Command::Stop(_)),
        On::Kill => matches!(command, Command::Kill(_)),
        On::PowerOff => command == Command::PowerOff,
    });
    match &fault {
        Some((_, CommandFault::Cut)) => {
            line.send_replace(Line::Cut);
            return None;
        }
        Some((_, CommandFault::Hangs)) => return None,
        _ => {}
    }
    if matches!(fault, Some((_, CommandFault::Doubled))) {
        answers::carry_out(shared, &command, number).await;
    }
    let mut ran = answers::carry_out(shared, &command, number).await;
    // A machine without power says nothing.
    if !shared.is_up() {
        return None;
    }
    match fault {
        Some((_, CommandFault::AnswerLost)) => {
            line.send_replace(Line::Cut);
            return None;
        }
        Some((_, CommandFault::Truncated(bytes))) => {
            let at = (0..=bytes.min(ran.stdout.len())).rev().find(|at| ran.stdout.is_char_boundary(*at));
            ran.stdout.truncate(at.unwrap_or(0));
        }
        Some((_, CommandFault::Garbage(garbage))) => ran.stdout = garbage,
        Some((_, CommandFault::Late(delay))) => sleep(delay).await,
        Some((_, CommandFault::StaysOpen)) => ran.stays_open = true,
        _ => {}
    }
    Some(ran)
}
