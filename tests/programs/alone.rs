//! A program as a process of its own: real signals, and the end that its parent sees.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
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
            .spawn()
            .expect("it starts");
        Self { address, child }
    }

    /// Asks without a pause until the answer to `/health` begins so; its connection stays open.
    fn until_health(&self, status: &str) -> TcpStream {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < LONG, "never {status}");
            let Ok(mut wire) = TcpStream::connect(self.address) else { continue };
            wire.set_read_timeout(Some(LONG)).expect("a deadline");
            wire.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
            let mut answer = [0; 12];
            wire.read_exact(&mut answer).expect("an answer");
            if answer == *format!("HTTP/1.1 {status}").as_bytes() {
                return wire;
            }
        }
    }

    /// Exit code and signal after a SIGTERM.
    fn terminated(mut self) -> (Option<i32>, Option<i32>) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it lives");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return (status.code(), status.signal());
            }
            assert!(begun.elapsed() < LONG, "it goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_ends_it_with_0_from_its_first_answer_that_it_is_ready() {
    for _ in 0..5 {
        let server = Alone::llama("30ms");
        let _kept = server.until_health("200");
        assert_eq!(server.terminated(), (Some(0), None));
    }
}

#[test]
fn sigterm_during_the_load_kills_it() {
    let server = Alone::llama("20s");
    server.until_health("503");
    assert_eq!(server.terminated(), (None, Some(SIGTERM)));
}
