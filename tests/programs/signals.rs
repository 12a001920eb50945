//! How the programs end.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};
use wechsler::virtual_server::programs::{Exit, Fault, Signal};

use crate::rig::Rig;

const LONG_LOAD: Duration = Duration::from_secs(20);

#[tokio::test]
async fn sigterm_during_the_load_kills_at_once() {
    let rig = Rig::starting(|s| s.load = LONG_LOAD, &[]);
    rig.waits_for_port().await;
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Signal(15));
    assert!(rig.is_refused().await);
}

#[tokio::test]
async fn idle_it_ends_with_0_within_milliseconds_also_with_a_connection_kept_open() {
    let rig = Rig::llama().await;
    rig.get("/health").await;
    let begun = Instant::now();
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(rig.is_refused().await);
}

#[tokio::test]
async fn with_a_request_open_it_closes_its_port_and_waits_for_the_client() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    rig.process.signal(Signal::Term);
    rig.until(|| !rig.process.truth().ready).await;
    rig.runs_on().await;
    assert!(rig.is_refused().await);
    assert!(!request.is_finished(), "the client gets nothing");
    assert_eq!(rig.process.vram_mib(), 8000);
    request.abort();
    assert_eq!(rig.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn a_stream_gets_nothing_more_and_is_waited_for_too() {
    let rig = Rig::llama().await;
    let asked = json!({ "prompt": "p", "n_predict": 4000, "stream": true });
    let mut answer = rig.post_request("/completion", &asked).send().await.expect("an answer");
    assert!(answer.chunk().await.expect("a chunk").is_some());
    rig.process.signal(Signal::Term);
    rig.runs_on().await;
    drop(answer);
    assert_eq!(rig.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn half_a_request_is_waited_for_too() {
    let rig = Rig::llama().await;
    let mut half = TcpStream::connect(rig.program.address()).await.expect("connected");
    half.write_all(b"POST /completion HTTP/1.1\r\nContent-Le").await.expect("sent");
    // Another answer, so that it has surely been read.
    tokio::time::sleep(Duration::from_millis(20)).await;
    rig.get("/health").await;
    rig.process.signal(Signal::Term);
    rig.runs_on().await;
    drop(half);
    assert_eq!(rig.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn a_second_sigterm_ends_with_1() {
    let rig = Rig::llama().await;
    let _request = rig.long_request().await;
    rig.process.signal(Signal::Term);
    rig.runs_on().await;
    rig.process.signal(Signal::Term);
    assert_eq!(rig.exit().await, Exit::Code(1));
}

#[tokio::test]
async fn sigkill_needs_nobody() {
    let rig = Rig::llama().await;
    let request = rig.long_request().await;
    rig.process.signal(Signal::Kill);
    assert_eq!(rig.exit().await, Exit::Signal(9));
    assert!(rig.is_refused().await);
    assert_eq!(request.await.expect("no panic"), None);
}

#[tokio::test]
async fn a_load_that_fails_looks_good_for_a_while_and_ends_with_1() {
    let rig = Rig::starting(|_| {}, &[Fault::LoadFails(Exit::Code(1))]);
    rig.waits_for_port().await;
    assert!(rig.try_get("/health").await.is_none_or(|(status, _)| status == 503));
    assert_eq!(rig.exit().await, Exit::Code(1));
    assert!(rig.process.log().iter().any(|line| line.contains("exiting due to model loading error")));
    assert_eq!(rig.faults.fired("load-fails"), 1);
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_also_when_it_really_is() {
    let mut rig = Rig::llama().await;
    let second = rig.program.start(4713, rig.faults.clone());
    let mut exited = second.exited();
    let exit = *exited.wait_for(Option::is_some).await.expect("an end");
    assert_eq!(exit, Some(Exit::Code(1)));
    rig.process.signal(Signal::Kill);
    rig.exit().await;
    rig.faults.set_times(Fault::PortInUse, 1);
    let refused = rig.program.start(4714, rig.faults.clone());
    let exit = *refused.exited().wait_for(Option::is_some).await.expect("an end");
    assert_eq!(exit, Some(Exit::Code(1)));
    rig.start_again().await;
}
