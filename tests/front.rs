//! The socket and its client, on real unix sockets, with a script for a driver.

mod fake;

use std::{
    io::{Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use fake::{Fake, Folder, everything, serving};
use serde_json::{Value, json};
use wechsler::{
    driver::status::Status,
    front::{
        client::{Client, ClientError},
        problem::Problem,
        protocol::{CommandAnswer, CommandRequest, CommandWord, HoldRequest, VerifyRequest},
        socket::{BindError, Listener, MOST_CLIENTS},
    },
};

const STEP: Duration = Duration::from_millis(10);

fn daemon() -> (Folder, Fake, Client) {
    let folder = Folder::new();
    let fake = Fake::serve(&folder.socket(), STEP);
    let client = Client::new(&fake.socket).unwrap();
    (folder, fake, client)
}

fn problem<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Problem {
    match answer {
        Err(ClientError::Problem(problem)) => *problem,
        other => panic!("not a problem: {other:?}"),
    }
}

/// Raw bytes in, raw bytes out.
fn raw(fake: &Fake, request: &str) -> String {
    let mut stream = UnixStream::connect(&fake.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A server that has seen enough may close before all is sent.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn post(fake: &Fake, path: &str, body: &str) -> String {
    let length = body.len();
    raw(
        fake,
        &format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

#[tokio::test]
async fn a_client_reads_the_status_the_driver_published() {
    let (_folder, _fake, client) = daemon();
    let status = client.status().await.unwrap();
    assert_eq!(status.state, "llama-cpp");
    assert_eq!(status.backends, serving().backends);
}

#[tokio::test]
async fn endpoints_end_where_clients_expect_the_api() {
    let (_folder, _fake, client) = daemon();
    let endpoints = client.endpoints().await.unwrap().endpoints;
    let urls: Vec<_> = endpoints.iter().map(|e| e.url.as_str()).collect();
    assert_eq!(urls, ["http://llama-cpp:8080/v1", "http://vllm:8000/v1"]);
    assert!(endpoints[0].active && !endpoints[1].active);
}

#[tokio::test]
async fn an_accepted_command_names_its_operation_whose_end_can_be_waited_for() {
    let (_folder, _fake, client) = daemon();
    let request = CommandRequest::new(CommandWord::Start);
    let answer = client.command(&request).await.unwrap();
    let CommandAnswer::Accepted { operation, joined } = answer else {
        panic!("{answer:?}");
    };
    assert!(!joined);
    let record = client.operation(operation, true).await.unwrap();
    assert_eq!(record.end.as_deref(), Some("done"));
    assert_eq!(record.warnings[0].code, "restore_rejected");
}

#[tokio::test]
async fn refusals_carry_code_hint_and_whether_to_try_again() {
    let (_folder, _fake, client) = daemon();
    let shutdown = CommandRequest::new(CommandWord::Shutdown);
    let busy = problem(client.command(&shutdown).await);
    assert_eq!((busy.status, &*busy.code, busy.retryable), (409, "busy", true));
    assert!(busy.hint.unwrap().contains("--replace"));
    let cancel = CommandRequest::new(CommandWord::Cancel);
    let nothing = problem(client.command(&cancel).await);
    assert_eq!((&*nothing.code, nothing.retryable), ("nothing_to_cancel", false));
}

#[tokio::test]
async fn an_unknown_backend_is_answered_with_the_known_ones_and_the_likely_one() {
    let (_folder, _fake, client) = daemon();
    let request = CommandRequest { backend: Some("lama-cpp".into()), ..CommandRequest::new(CommandWord::Switch) };
    let unknown = problem(client.command(&request).await);
    assert_eq!((unknown.status, &*unknown.code), (404, "unknown_backend"));
    assert!(unknown.detail.unwrap().contains("llama-cpp, vllm"));
    assert_eq!(unknown.hint.as_deref(), Some("did you mean `llama-cpp`?"));
}

#[tokio::test]
async fn an_operation_nobody_knows_is_forgotten() {
    let (_folder, _fake, client) = daemon();
    let forgotten = problem(client.operation(99, true).await);
    assert_eq!((forgotten.status, &*forgotten.code), (404, "operation_forgotten"));
}

#[tokio::test]
async fn holds_are_made_with_a_number_and_ended_by_it() {
    let (_folder, _fake, client) = daemon();
    let request = HoldRequest { what: "awake".into(), lasts: Some("2h".into()), reason: Some("long run".into()) };
    assert_eq!(client.hold(&request).await.unwrap().hold, 3);
    client.release(3).await.unwrap();
    let unknown = problem(client.release(4).await);
    assert_eq!((unknown.status, &*unknown.code), (404, "no_such_hold"));
    let never = HoldRequest { lasts: Some("0s".into()), ..request.clone() };
    assert_eq!(&*problem(client.hold(&never).await).code, "bad_request");
    let nothing = HoldRequest { what: "vlm".into(), ..request };
    let hint = problem(client.hold(&nothing).await).hint;
    assert_eq!(hint.as_deref(), Some("did you mean `vllm`?"));
}

#[tokio::test]
async fn a_saved_slot_is_forgotten_and_verified_by_its_name() {
    let (_folder, _fake, client) = daemon();
    let told = client.forget("localbot", None, None).await.unwrap().slots;
    assert_eq!((told[0].name.as_str(), told[0].generation, told[0].code.as_str()), ("localbot", 7, "forgotten"));
    let told = client.forget("my talk/1 ?", Some(3), Some("llama-cpp")).await.unwrap().slots;
    assert_eq!((told[0].name.as_str(), told[0].generation), ("my talk/1 ?", 3), "a name is one part of the path");
    let told = client.verify(&VerifyRequest::default()).await.unwrap().slots;
    assert_eq!((told[0].name.as_str(), told[0].code.as_str()), ("localbot", "damaged"));
    let unknown = problem(client.forget("nobody", None, None).await);
    assert_eq!((unknown.status, &*unknown.code), (404, "no_such_slot"));
    let other = problem(client.forget("localbot", Some(1000), None).await);
    assert_eq!((other.status, &*other.code), (404, "no_such_generation"));
    let request = VerifyRequest { generation: Some(1), ..VerifyRequest::default() };
    assert_eq!(&*problem(client.verify(&request).await).code, "bad_request");
    let request = VerifyRequest { backend: Some("lama-cpp".into()), ..VerifyRequest::default() };
    assert_eq!(&*problem(client.verify(&request).await).code, "unknown_backend");
}

#[tokio::test]
async fn only_saves_and_restores_take_a_name_and_only_a_restore_a_generation() {
    let (_folder, _fake, client) = daemon();
    let named = |command| CommandRequest { name: Some("talk".into()), ..CommandRequest::new(command) };
    for good in [
        named(CommandWord::Save),
        CommandRequest { slot: Some(1), ..named(CommandWord::Save) },
        CommandRequest {
            name: Some("localbot".into()),
            generation: Some(7),
            slot: Some(1),
            ..CommandRequest::new(CommandWord::Restore)
        },
    ] {
        assert_eq!(client.command(&good).await.unwrap(), CommandAnswer::Done);
    }
    for bad in [
        named(CommandWord::Start),
        CommandRequest { generation: Some(4), ..named(CommandWord::Save) },
        CommandRequest { name: None, slot: Some(1), ..named(CommandWord::Save) },
        CommandRequest { name: Some(String::new()), ..named(CommandWord::Save) },
        CommandRequest { name: Some("a b".into()), ..named(CommandWord::Save) },
        CommandRequest { name: Some("../x".into()), ..named(CommandWord::Save) },
        CommandRequest { name: Some("x".repeat(200)), ..named(CommandWord::Restore) },
    ] {
        assert_eq!(&*problem(client.command(&bad).await).code, "bad_request", "{bad:?}");
    }
}

#[tokio::test]
async fn a_listener_hears_what_is_so_now_and_then_each_change_in_order() {
    let (_folder, _fake, client) = daemon();
    let mut events = client.events().await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!((first.what.as_str(), first.status.state.as_str()), ("now", "llama-cpp"));
    client.command(&CommandRequest::new(CommandWord::Start)).await.unwrap();
    let mut heard = vec![];
    loop {
        let change = events.next().await.unwrap().unwrap();
        heard.push(change.what.clone());
        if change.what == "operation_ended" {
            assert_eq!(change.operation.unwrap().end.as_deref(), Some("done"));
            break;
        }
    }
    assert_eq!(heard, ["operation_began", "state", "state", "state", "operation_ended"]);
}

#[test]
fn requests_that_make_no_sense_are_told_what_is_wrong() {
    let folder = Folder::new();
    let fake = Fake::serve(&folder.socket(), STEP);
    for (body, status, says) in [
        ("{", 400, "EOF"),
        (r#"{"command":"strat"}"#, 400, "unknown variant `strat`"),
        (r#"{"command":"start","nodrain":true}"#, 400, "unknown field `nodrain`"),
        (r#"{"command":"stop","backend":"vllm"}"#, 400, "takes no `backend`"),
        (r#"{"command":"switch"}"#, 400, "needs a `backend`"),
        (r#"{"command":"start","power_off":true}"#, 400, "takes no `power_off`"),
        (&"[".repeat(20_000), 400, "expected value"),
        (&" ".repeat(70_000), 413, "at most 65536 bytes"),
    ] {
        let answer = post(&fake, "/v1/commands", body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains(says), "{says}: {answer}");
    }
    let answer = raw(&fake, "GET /v2/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("404") && answer.contains("\"not_found\""), "{answer}");
    let answer = raw(&fake, "PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("405") && answer.contains("problem+json"), "{answer}");
    let answer = raw(&fake, "GET /v1/operations/1?wiat=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("400") && answer.contains("wiat"), "{answer}");
    assert!(raw(&fake, "\0\u{7f} garbage\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = "a".repeat(1 << 20);
    let answer = raw(&fake, &format!("GET /v1/status HTTP/1.1\r\nX: {long}\r\n\r\n"));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_body_that_does_not_arrive_is_given_up() {
    let folder = Folder::new();
    let fake = Fake::serve(&folder.socket(), STEP);
    let answer =
        raw(&fake, "POST /v1/commands HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{\"comm");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_so_and_served_when_others_have_gone() {
    let (_folder, fake, client) = daemon();
    let mut others: Vec<_> = (0..MOST_CLIENTS).map(|_| UnixStream::connect(&fake.socket).unwrap()).collect();
    // Until the last of them has been accepted.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let full = problem(client.status().await);
    assert_eq!((full.status, &*full.code, full.retryable), (503, "too_many_clients", true));
    others.clear();
    assert_eq!(client.status().await.unwrap().state, "llama-cpp");
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_only_and_goes_with_the_daemon() {
    let folder = Folder::new();
    let path = folder.socket();
    let listener = Listener::bind(&path, None).await.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
    let (folder, fake, client) = daemon();
    let second = Listener::bind(&fake.socket, None).await;
    assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
    assert!(client.status().await.is_ok());
    let other = folder.0.join("other.sock");
    let alive = UnixListener::bind(&other).unwrap();
    let refused = Listener::bind(&other, None).await;
    assert!(matches!(refused, Err(BindError::InUse(_))), "{refused:?}");
    drop(alive);
    assert!(other.exists());
    Listener::bind(&other, None).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone_and_an_unknown_group_refused() {
    let folder = Folder::new();
    let path = folder.socket();
    std::fs::write(&path, "precious").unwrap();
    let refused = Listener::bind(&path, None).await;
    assert!(matches!(refused, Err(BindError::NotASocket(_))), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let refused = Listener::bind(&folder.0.join("b.sock"), Some("no-such-group-here")).await;
    assert!(matches!(refused, Err(BindError::NoSuchGroup(_))), "{refused:?}");
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(include_str!("../src/driver/status.schema.json")).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

fn faults(document: &Value) -> Vec<String> {
    validator().iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_schema_describes_the_status_document_with_and_without_everything() {
    let before_any_look = Status {
        schema: 1,
        gpu_server: "unknown".into(),
        state: "unknown".into(),
        health: "unknown".into(),
        ..Status::default()
    };
    for status in [before_any_look, serving(), everything()] {
        let document = serde_json::to_value(&status).unwrap();
        assert_eq!(faults(&document), Vec::<String>::new());
    }
}

#[test]
fn the_schema_refuses_what_is_not_in_it() {
    let mut document = serde_json::to_value(everything()).unwrap();
    document["surprise"] = json!(1);
    document["operation"]["surprise"] = json!(1);
    document["gpu_server"] = json!("perhaps");
    document["since"] = json!("yesterday");
    assert_eq!(faults(&document).len(), 4, "{:?}", faults(&document));
}

#[test]
fn the_fields_of_the_workflows_come_out_as_written_there() {
    let wanted = json!({
        "gpu_server": "on",
        "active_backend": "llama-cpp",
        "health": "ok",
        "uptime_seconds": 3600,
        "slots": [{"id": 0, "n_ctx": 196_608, "is_processing": false}],
        "saved_slots": ["localbot"],
        "gpu_memory": {
            "gpu0": {"used_mib": 11573, "total_mib": 12288},
            "gpu1": {"used_mib": 11099, "total_mib": 12288}
        }
    });
    let document = serde_json::to_value(serving()).unwrap();
    assert!(contains(&document, &wanted), "{document}");
}

/// `whole` says everything `part` says, and maybe more.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p))
        }
        _ => whole == part,
    }
}
