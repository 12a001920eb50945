//! Requests in flight, the mark of use, sleep.

use std::time::Duration;

use wechsler::machine::{
    BackendKind::{Generic, LlamaCpp, Vllm},
    Instant,
    reading::{Activity, SlotReading},
};

use crate::{
    llama::World,
    server::{Reply, Server},
};

fn at(seconds: u64) -> Instant {
    Instant::after_start(Duration::from_secs(seconds))
}

#[tokio::test]
async fn trap_10_slots_and_metrics_are_asked_every_two_seconds_at_most() {
    let world = World::new();
    let server = world.serve().await;
    let probe = server.probe(LlamaCpp);
    assert!(probe.activity(at(10)).await.is_some());
    world.asked("");
    for now in [10, 11] {
        assert_eq!(probe.activity(at(now)).await, None);
    }
    assert_eq!(world.asked(""), [""; 0], "not even asked");
    assert!(probe.activity(at(12)).await.is_some());
    assert_eq!(world.asked(""), ["GET /props", "GET /slots", "GET /metrics"]);
}

#[tokio::test]
async fn the_next_process_is_asked_for_its_use_at_once() {
    let world = World::new();
    let server = world.serve().await;
    let probe = server.probe(LlamaCpp);
    assert!(probe.activity(at(0)).await.is_some());
    world.state().dead = true;
    probe.health().await;
    world.restart();
    assert!(probe.activity(at(1)).await.is_some());
    assert_eq!(probe.activity(at(2)).await, None);
}

#[tokio::test]
async fn a_slot_in_use_is_in_flight_and_shows_its_tokens() {
    let world = World::new();
    let server = world.serve().await;
    let probe = server.probe(LlamaCpp);
    let unused = probe.activity(at(0)).await.expect("asked for the first time");
    assert_eq!(unused.in_flight, Some(0));
    assert_eq!(unused.slots[0].tokens, None);
    world.use_slot(0, 33);
    world.state().slots[0].busy = true;
    let used = probe.activity(at(2)).await.expect("two seconds later");
    assert_eq!(used.in_flight, Some(1));
    let slot = SlotReading { id: 0, n_ctx: 4096, is_processing: true, tokens: Some(33) };
    assert_eq!(used.slots, [slot]);
    assert_ne!(used.mark, unused.mark);
}

#[tokio::test]
async fn our_own_questions_are_no_use() {
    let world = World::new();
    world.use_slot(0, 33);
    let server = world.serve().await;
    let probe = server.probe(LlamaCpp);
    let first = probe.activity(at(0)).await.expect("asked for the first time");
    for _ in 0..3 {
        probe.health().await;
    }
    let second = probe.activity(at(2)).await.expect("two seconds later");
    assert_eq!(first.mark, second.mark);
    assert!(first.mark.is_some());
}

#[tokio::test]
async fn trap_11_a_sleeping_server_is_asked_for_nothing_but_props() {
    let world = World::new();
    world.use_slot(0, 33);
    let server = world.serve().await;
    let probe = server.probe(LlamaCpp);
    let awake = probe.activity(at(0)).await.expect("asked for the first time");
    world.state().sleeping = true;
    world.asked("");
    let asleep = probe.activity(at(2)).await.expect("two seconds later");
    assert_eq!(world.asked(""), ["GET /props"]);
    assert!(asleep.sleeping && world.state().sleeping);
    assert_eq!((asleep.in_flight, asleep.mark), (Some(0), awake.mark));
}

#[tokio::test]
async fn trap_11_a_router_is_asked_for_nothing_but_props() {
    let world = World::new();
    world.state().router = true;
    let server = world.serve().await;
    let activity = server.probe(LlamaCpp).activity(at(0)).await.expect("an answer");
    assert_eq!(world.asked(""), ["GET /props"]);
    assert_eq!(activity.cannot_save.as_deref(), Some("router mode"));
    assert_eq!(activity.in_flight, None);
}

#[tokio::test]
async fn what_is_not_enabled_is_not_asked_and_slots_alone_tell_enough() {
    let world = World::new();
    world.state().without_metrics = true;
    world.use_slot(0, 33);
    let server = world.serve().await;
    let activity = server.probe(LlamaCpp).activity(at(0)).await.expect("an answer");
    assert_eq!(world.asked(""), ["GET /props", "GET /slots"]);
    assert_eq!(activity.in_flight, Some(0));
    assert!(activity.mark.is_some());
}

#[tokio::test]
async fn no_answer_is_no_reading() {
    let world = World::new();
    world.state().dead = true;
    let server = world.serve().await;
    assert_eq!(server.probe(LlamaCpp).activity(at(0)).await, None);
}

#[tokio::test]
async fn vllm_tells_by_its_metrics_and_without_them_nothing_is_known() {
    let server = Server::start(|q| match q.what.as_str() {
        "GET /metrics" => Reply::Say(
            200,
            "vllm:num_requests_running{engine=\"0\"} 1.0\nvllm:num_requests_waiting{engine=\"0\"} 2.0\n".into(),
        ),
        other => panic!("asked for {other}"),
    })
    .await;
    let activity = server.probe(Vllm).activity(at(0)).await.expect("an answer");
    assert_eq!(activity.in_flight, Some(3));
    let server = Server::start(|_| Reply::Say(404, String::new())).await;
    let activity = server.probe(Vllm).activity(at(0)).await;
    assert_eq!(activity, Some(Activity::default()));
}

#[tokio::test]
async fn nothing_is_known_of_a_generic_backends_use() {
    let server = Server::start(|q| panic!("asked for {}", q.what)).await;
    let activity = server.probe(Generic).activity(at(0)).await;
    assert_eq!(activity, Some(Activity::default()));
}
