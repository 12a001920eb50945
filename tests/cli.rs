//! The binary as a whole process: exit codes, what it prints, and how it bears daemons that are not there, hang or lie.

mod fake;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use fake::{Fake, Folder};
use serde_json::Value;

const STEP: Duration = Duration::from_millis(30);

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wechsler"));
    command
        .env_remove("WECHSLER_CONFIG")
        .env("WECHSLER_SOCKET", socket)
        .env("COLUMNS", "100")
        .args(words)
        .stdin(Stdio::null());
    command
}

fn run(socket: &Path, words: &[&str]) -> Output {
    command(socket, words).output().unwrap()
}

fn begin(socket: &Path, words: &[&str]) -> Child {
    command(socket, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// The one JSON object on standard output.
fn object(output: &Output) -> Value {
    let text = out(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value.is_object(), "{text}");
    value
}

fn daemon() -> (Folder, Fake) {
    let folder = Folder::new();
    let fake = Fake::serve(&folder.socket(), STEP);
    (folder, fake)
}

#[test]
fn status_prints_the_form_of_the_workflows() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["status"]);
    assert_eq!(
        out(&output),
        "Backend: llama-cpp ✓\n\
         Model: Nemotron-3-Nano-30B (196k ctx)\n\
         GPU: 94% + 90% VRAM used\n\
         Slot: cached (localbot, 48MB)\n\
         Uptime: 1h\n"
    );
    assert_eq!(code(&output), 0);
}

#[test]
fn endpoints_prints_the_form_of_the_workflows() {
    let (_folder, fake) = daemon();
    assert_eq!(
        out(&run(&fake.socket, &["endpoints"])),
        "llama-cpp: http://llama-cpp:8080/v1 ✓ (active)\n\
         vllm:      http://vllm:8000/v1 ● (stopped, ~80s to start)\n"
    );
}

#[test]
fn documents_come_as_one_object_with_json() {
    let (_folder, fake) = daemon();
    for words in [&["status"][..], &["endpoints"], &["holds"], &["slots"], &["slots", "list"]] {
        let output = run(&fake.socket, &[words, &["--json"]].concat());
        assert_eq!(code(&output), 0);
        object(&output);
    }
}

#[test]
fn what_was_done_about_saved_slots_has_its_outcome_in_json() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["slots", "forget", "localbot", "--json"]);
    let document = object(&output);
    assert_eq!((code(&output), &document["outcome"], &document["exit_code"]), (0, &"done".into(), &0.into()));
    assert_eq!(document["slots"][0]["code"], "forgotten");
    let output = run(&fake.socket, &["slots", "verify", "--json"]);
    let document = object(&output);
    assert_eq!((code(&output), &document["outcome"], &document["exit_code"]), (1, &"failed".into(), &1.into()));
}

#[test]
fn a_start_in_a_pipe_tells_each_phase_once_and_then_what_came_of_it() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["start"]);
    let text = out(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(code(&output), 0, "{text}");
    assert_eq!(lines.len(), 5, "{text}");
    assert_eq!(lines[0], "start llama-cpp · waking · 0s of ~8s");
    assert!(lines[1].contains("· starting ·") && lines[2].contains("· restoring ·"));
    assert!(lines[3].starts_with("✓ start llama-cpp: done in 0."), "{text}");
    assert!(lines[4].starts_with("  warning: The slot did not fit"), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn a_failed_start_exits_1_and_shows_the_last_words_of_the_unit() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["switch", "vllm"]);
    let text = out(&output);
    assert_eq!(code(&output), 1);
    assert!(text.contains("✗ switch vllm: failed after 0."), "{text}");
    assert!(text.contains("[start_failed]") && text.contains("  hint: read the unit"));
    assert!(text.contains("  │ ValueError: no such model /mnt/models/x\n"), "{text}");
    let document = object(&run(&fake.socket, &["switch", "vllm", "--json"]));
    assert_eq!(document["outcome"], "failed");
    assert_eq!(document["error"]["code"], "start_failed");
    assert_eq!(document["operation"]["post_mortem"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_so_already_or_done_at_once_exits_0() {
    let (_folder, fake) = daemon();
    assert_eq!(out(&run(&fake.socket, &["stop"])), "already so: no backend is up\n");
    let document = object(&run(&fake.socket, &["stop", "--json"]));
    assert_eq!(document["outcome"], "already_so");
    let output = run(&fake.socket, &["hold", "awake", "--for", "2h", "--reason", "long run"]);
    assert_eq!(out(&output), "hold 3: awake; `wechsler release 3` ends it\n");
    assert_eq!(out(&run(&fake.socket, &["release", "3"])), "hold 3 is released\n");
    assert_eq!(code(&run(&fake.socket, &["wait", "ready"])), 0);
}

#[test]
fn no_wait_returns_with_the_number_of_the_operation() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["start", "--no-wait"]);
    assert_eq!((code(&output), out(&output).as_str()), (0, "operation 1 has begun\n"));
    let document = object(&run(&fake.socket, &["start", "--no-wait", "--json"]));
    assert_eq!(document["operation_id"], 2);
}

#[test]
fn wrong_use_exits_2_with_a_suggestion() {
    let (_folder, fake) = daemon();
    for (words, says) in [
        (&["strat"][..], "start"),
        (&["start", "lama-cpp"], "did you mean `llama-cpp`?"),
        (&["start", "--no-wiat"], "--no-wait"),
        (&["wait", "redy"], "did you mean `ready`?"),
        (&["hold", "vlm"], "did you mean `vllm`?"),
        (&["start", "--timeout", "soon"], "soon"),
        (&["start", "--no-wait", "--timeout", "3s"], "cannot be used with"),
        (&["shutdown", "--power-off", "--keep-on"], "cannot be used with"),
        (&["config", "check", "/no/such/file.toml"], "/no/such/file.toml"),
        (&["daemon", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (&[], "Usage:"),
    ] {
        let output = run(&fake.socket, words);
        assert_eq!(code(&output), 2, "{words:?}: {}", err(&output));
        assert!(err(&output).contains(says), "{words:?}: {}", err(&output));
        let output = run(&fake.socket, &[words, &["--json"]].concat());
        assert_eq!(code(&output), 2, "{words:?}");
        assert_eq!(object(&output)["exit_code"], 2);
    }
}

#[test]
fn refusals_exit_4_with_code_and_hint() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["shutdown"]);
    assert_eq!(code(&output), 4);
    assert!(err(&output).contains("[busy]") && err(&output).contains("--replace"));
    let document = object(&run(&fake.socket, &["cancel", "--json"]));
    assert_eq!(document["exit_code"], 4);
    assert_eq!(document["error"]["code"], "nothing_to_cancel");
    assert_eq!(code(&run(&fake.socket, &["release", "9"])), 4);
}

#[test]
fn a_name_that_nothing_is_saved_under_is_refused_and_one_that_cannot_be_is_wrong_use() {
    let (_folder, fake) = daemon();
    for verb in ["restore", "forget", "verify"] {
        let output = run(&fake.socket, &["slots", verb, "lokalbot"]);
        assert_eq!(code(&output), 4, "{verb}: {}", err(&output));
        let says = "No slot is saved under that name: `lokalbot` is none; there are: localbot [no_such_slot]";
        assert!(err(&output).contains(says), "{verb}: {}", err(&output));
        assert!(err(&output).contains("did you mean `localbot`?"), "{verb}: {}", err(&output));
    }
    let output = run(&fake.socket, &["slots", "restore", "localbot", "--generation", "8"]);
    assert_eq!(code(&output), 4);
    assert!(err(&output).contains("of `localbot` there are: 7 [no_such_generation]"), "{}", err(&output));
    for name in ["", "a b", "../x"] {
        let output = run(&fake.socket, &["slots", "save", name]);
        assert_eq!(code(&output), 2, "{name:?}: {}", err(&output));
    }
}

#[test]
fn without_a_daemon_the_client_exits_3_and_names_the_socket() {
    let folder = Folder::new();
    let socket = folder.socket();
    for words in [&["status"][..], &["start"], &["watch"], &["wait", "ready"], &["holds"]] {
        let output = run(&socket, words);
        assert_eq!(code(&output), 3, "{words:?}");
        assert!(err(&output).contains(socket.to_str().unwrap()), "{}", err(&output));
        let output = run(&socket, &[words, &["--json"]].concat());
        assert_eq!((code(&output), &object(&output)["error"]["code"]), (3, &"no_daemon".into()));
    }
    // A socket nobody listens on.
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(code(&run(&socket, &["status"])), 3);
}

#[test]
fn an_operation_that_outlasts_the_timeout_exits_5_and_goes_on() {
    let (_folder, fake) = daemon();
    let output = run(&fake.socket, &["restart", "--timeout", "300ms"]);
    assert_eq!(code(&output), 5);
    assert!(err(&output).contains("operation 1 goes on in the daemon"), "{}", err(&output));
    let document = object(&run(&fake.socket, &["restart", "--timeout", "300ms", "--json"]));
    assert_eq!((&document["outcome"], &document["exit_code"]), (&"unfinished".into(), &5.into()));
    let output = run(&fake.socket, &["wait", "gpu-offline", "--timeout", "200ms"]);
    assert_eq!(code(&output), 5);
}

#[test]
fn a_daemon_that_never_answers_is_given_up() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    thread::spawn(move || {
        // Kept open, never answered.
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
        }
    });
    let output = run(&folder.socket(), &["status", "--json"]);
    assert_eq!((code(&output), &object(&output)["error"]["code"]), (3, &"daemon_silent".into()));
    let output = run(&folder.socket(), &["start", "--timeout", "300ms"]);
    assert_eq!(code(&output), 5);
}

#[test]
fn what_is_no_daemon_is_told_apart() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    thread::spawn(move || {
        let answers = [
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"schema\":",
            "",
        ];
        for (stream, answer) in listener.incoming().zip(answers) {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    for _ in 0..5 {
        let output = run(&folder.socket(), &["status", "--json"]);
        assert_eq!((code(&output), &object(&output)["error"]["code"]), (3, &"not_a_daemon".into()));
    }
}

/// Reads the lines of a child until one contains `text`.
fn read_until(child: &mut Child, text: &str) -> BufReader<std::process::ChildStdout> {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended without {text}");
    }
    lines
}

#[test]
fn a_daemon_restarted_in_the_middle_has_forgotten_the_operation() {
    let (folder, fake) = daemon();
    let mut child = begin(&fake.socket, &["restart"]);
    let mut rest = read_until(&mut child, "stopping");
    drop(fake);
    let _fake = Fake::serve(&folder.socket(), STEP);
    let mut text = String::new();
    rest.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(err(&output).contains("has forgotten operation 1"), "{}", err(&output));
}

#[test]
fn ctrl_c_leaves_the_operation_to_the_daemon_and_exits_130() {
    let (_folder, fake) = daemon();
    let mut child = begin(&fake.socket, &["restart"]);
    let _rest = read_until(&mut child, "stopping");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130);
    assert!(err(&output).contains("operation 1 goes on in the daemon"), "{}", err(&output));
}

#[test]
fn watch_tells_what_is_so_and_each_change_and_lives_through_a_restart() {
    let (folder, fake) = daemon();
    let mut child = begin(&fake.socket, &["watch", "--json"]);
    let mut lines = read_until(&mut child, "\"now\"");
    run(&fake.socket, &["start", "--no-wait"]);
    drop(fake);
    let _fake = Fake::serve(&folder.socket(), STEP);
    let mut line = String::new();
    while !line.contains("\"now\"") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0);
        let change: Value = serde_json::from_str(&line).unwrap();
        assert!(change["status"]["state"].is_string(), "{line}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn nobody_reading_any_more_ends_watch_quietly() {
    let (_folder, fake) = daemon();
    let mut child = begin(&fake.socket, &["watch"]);
    drop(read_until(&mut child, "now llama-cpp"));
    run(&fake.socket, &["start", "--no-wait"]);
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), err(&output).as_str()), (141, ""));
}

#[test]
fn help_completions_and_man_page_come_from_the_same_definitions() {
    let socket = Path::new("/nonexistent");
    let help = run(socket, &["--help"]);
    assert_eq!(code(&help), 0);
    for verb in [
        "start",
        "switch",
        "stop",
        "restart",
        "wake",
        "shutdown",
        "resolve",
        "cancel",
        "hold",
        "release",
        "holds",
        "slots",
        "status",
        "endpoints",
        "watch",
        "wait",
        "config",
        "daemon",
        "completions",
        "man",
    ]
    .into_iter()
    .chain(cfg!(feature = "virtual-server").then_some("demo"))
    {
        assert!(out(&help).contains(&format!("\n  {verb}  ")), "{verb}: {}", out(&help));
        assert_eq!(code(&run(socket, &[verb, "--help"])), 0, "{verb}");
    }
    assert!(out(&help).contains("Exit codes:"));
    let save = out(&run(socket, &["slots", "save", "--help"]));
    assert!(save.contains("the newest `keep` saves stay") && !save.contains("until it is forgotten"), "{save}");
    assert_eq!(code(&run(socket, &["--version"])), 0);
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&run(socket, &["completions", shell])).contains("no-drain"), "{shell}");
    }
    assert!(out(&run(socket, &["man"])).starts_with(".ie"));
    let folder = Folder::new();
    assert_eq!(code(&run(socket, &["man", folder.0.to_str().unwrap()])), 0);
    assert!(folder.0.join("wechsler-start.1").exists());
}

/// For looking at it on a terminal: `WECHSLER_SOCKET=/tmp/w.sock cargo test --test cli -- --ignored by_hand`, then
/// `wechsler --socket /tmp/w.sock start` in another window.
#[test]
#[ignore = "serves for ten minutes"]
fn serves_a_script_by_hand() {
    let socket = std::env::var_os("WECHSLER_SOCKET").expect("WECHSLER_SOCKET says where");
    let _fake = Fake::serve(Path::new(&socket), Duration::from_secs(3));
    thread::park_timeout(Duration::from_mins(10));
}
