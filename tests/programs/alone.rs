//! A program as a process of its own: real signals, and the end that its parent sees.

use std::{net::SocketAddr, os::unix::process::ExitStatusExt, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::rig::{LONG, address};

const SIGTERM: i32 = Signal::SIGTERM as i32;

struct Alone {
    address: SocketAddr,
    child: Child,
}

impl Alone {
    fn llama(load: &str) -> Self {
        let address = address();
        let child = Command::new(env!("CARGO_BIN_EXE_wechsler"))
            .args(["virtual-program", "llama", "--model", "m", "--load", load])
            .args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        Self { address, child }
    }

    /// Asks without a pause until the answer to `/health` begins so; its connection stays open.
    async fn until_health(&self, status: &str) -> TcpStream {
        let asked = async {
            loop {
                let Ok(mut wire) = TcpStream::connect(self.address).await else { continue };
                wire.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
                let mut answer = [0; 12];
                wire.read_exact(&mut answer).await.expect("an answer");
                if answer == *format!("HTTP/1.1 {status}").as_bytes() {
                    return wire;
                }
            }
        };
        timeout(LONG, asked).await.unwrap_or_else(|_| panic!("never {status}"))
    }

    /// Exit code and signal after a SIGTERM.
    async fn terminated(mut self) -> (Option<i32>, Option<i32>) {
        let pid = i32::try_from(self.child.id().expect("it lives")).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("sent");
        let status = timeout(LONG, self.child.wait()).await.expect("it ends").expect("a child");
        (status.code(), status.signal())
    }
}

#[tokio::test]
async fn sigterm_ends_it_with_0_from_its_first_answer_that_it_is_ready() {
    for _ in 0..5 {
        let server = Alone::llama("30ms");
        let _kept = server.until_health("200").await;
        assert_eq!(server.terminated().await, (Some(0), None));
    }
}

#[tokio::test]
async fn sigterm_during_the_load_kills_it() {
    let server = Alone::llama("20s");
    server.until_health("503").await;
    assert_eq!(server.terminated().await, (None, Some(SIGTERM)));
}
