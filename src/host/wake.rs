//! Waking the server: magic packets, or a command on this machine.
//!
//! Nothing here tells whether the server woke: a packet is never answered, and a smart plug's exit code is only a word. The
//! machine goes by what then answers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::UdpSocket, process::Command, time::timeout};

use super::remote::plain_text;
use crate::machine::{Outcome, Warning};

/// A Wake-on-LAN frame: six bytes FF, sixteen times the address, the `SecureOn` password if there is one.
#[must_use]
pub fn magic_packet(mac: [u8; 6], secure_on: Option<[u8; 6]>) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(mac.repeat(16));
    packet.extend(secure_on.into_iter().flatten());
    packet
}

/// Sends one packet to each target, from `source` where one is given: it chooses the interface on a machine with several.
///
/// Targets that cannot be reached are warnings as long as one packet left.
pub async fn send(packet: &[u8], targets: &[SocketAddr], source: Option<IpAddr>) -> Outcome {
    let mut warnings = vec![];
    let mut sent = false;
    for target in targets {
        match send_one(packet, *target, source).await {
            Ok(()) => sent = true,
            Err(error) => {
                warnings.push(Warning::new("wake_send", format!("no packet to {target}: {error}")));
            }
        }
    }
    match warnings {
        warnings if sent => Outcome::Succeeded(warnings),
        mut warnings => {
            Outcome::Failed(warnings.pop().unwrap_or_else(|| Warning::new("wake_send", "no target is configured")))
        }
    }
}

async fn send_one(packet: &[u8], target: SocketAddr, source: Option<IpAddr>) -> std::io::Result<()> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A source of the other family cannot reach this target: leave the choice to the system.
    let source = source.filter(|s| s.is_ipv4() == target.is_ipv4()).unwrap_or(any);
    let socket = UdpSocket::bind((source, 0)).await?;
    socket.set_broadcast(true)?;
    let sent = socket.send_to(packet, target).await?;
    if sent == packet.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
}

/// Runs the wake command (argv, no shell) and ends it at the deadline.
pub async fn run(argv: &[String], within: Duration) -> Outcome {
    /// Of its complaints, bytes.
    const MOST: u64 = 4096;
    let Some((program, arguments)) = argv.split_first() else {
        return Outcome::Failed(Warning::new("wake_command", "no command is configured"));
    };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            return Outcome::Failed(Warning::new("wake_command", format!("{program}: {error}")));
        }
    };
    let stderr = child.stderr.take();
    let ended = timeout(within, async {
        let mut complaints = vec![];
        let status = match stderr {
            None => child.wait().await,
            Some(stderr) => {
                let mut stderr = stderr.take(MOST);
                let read = stderr.read_to_end(&mut complaints);
                tokio::pin!(read);
                // What it leaves behind may hold the pipe open: its own end counts, not the pipe's.
                tokio::select! {
                    biased;
                    _ = &mut read => child.wait().await,
                    status = child.wait() => {
                        let _ = timeout(Duration::from_millis(50), read).await;
                        status
                    }
                }
            }
        };
        (status, complaints)
    });
    match ended.await {
        Ok((Ok(status), _)) if status.success() => Outcome::Succeeded(vec![]),
        Ok((Ok(status), complaints)) => {
            let text = plain_text(&String::from_utf8_lossy(&complaints), 300);
            Outcome::Failed(Warning::new("wake_command", format!("{program}: {status} {text}")))
        }
        Ok((Err(error), _)) => Outcome::Unknown(Warning::new("wake_command", error.to_string())),
        Err(_) => Outcome::Unknown(Warning::new(
            "wake_command",
            format!("{program} did not end within {within:?} and was killed"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    #[test]
    fn a_magic_packet_is_six_ff_and_sixteen_addresses_and_the_password() {
        let packet = magic_packet(MAC, None);
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..6], [0xff; 6]);
        assert!(packet[6..].chunks(6).all(|chunk| chunk == MAC));
        let secured = magic_packet(MAC, Some([1, 2, 3, 4, 5, 6]));
        assert_eq!((secured.len(), &secured[102..]), (108, &[1, 2, 3, 4, 5, 6][..]));
    }

    #[tokio::test]
    async fn every_target_gets_the_packet_and_one_bad_target_is_a_warning() {
        let hear = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let here = hear.local_addr().expect("its address");
        let nowhere: SocketAddr = "[2001:db8::1]:9".parse().expect("an address");
        let source = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let packet = magic_packet(MAC, None);
        let outcome = send(&packet, &[here, nowhere, here], source).await;
        assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
        for _ in 0..2 {
            let mut buffer = [0; 200];
            let (n, from) = hear.recv_from(&mut buffer).await.expect("a packet");
            assert_eq!((&buffer[..n], from.ip()), (&packet[..], IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
        let all_bad = send(&packet, &[], None).await;
        assert!(matches!(all_bad, Outcome::Failed(_)), "{all_bad:?}");
    }

    #[tokio::test]
    async fn a_wake_command_ends_by_its_exit_code_or_at_its_deadline() {
        let argv = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
        let long = Duration::from_secs(10);
        assert_eq!(run(&argv("exit 0"), long).await, Outcome::Succeeded(vec![]));
        let Outcome::Failed(why) = run(&argv("echo no such plug >&2; exit 3"), long).await else {
            panic!("a failing command fails");
        };
        assert!(why.message.contains("no such plug"), "{}", why.message);
        let hung = run(&argv("sleep 60"), Duration::from_millis(50)).await;
        assert!(matches!(hung, Outcome::Unknown(_)), "{hung:?}");
        let missing = run(&["/no/such/program".into()], long).await;
        assert!(matches!(missing, Outcome::Failed(_)), "{missing:?}");
    }
}
