//! What a daemon did is done again: journals of steps replay, differ in nothing, and keep every law.
//!
//! A fault seen in production becomes a test by copying its journal into `tests/journals/`.

mod journals;
mod spec;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use wechsler::driver::replay::{Told, Why, replay};

fn journals() -> Vec<PathBuf> {
    let folder = std::env::var_os("JOURNALS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals"), PathBuf::from);
    let files = fs::read_dir(folder).expect("the folder of journals").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
    files.sort();
    assert!(!files.is_empty(), "no journals");
    files
}

/// It is the journal of a fault that has been mended since.
fn is_mended(journal: &Path) -> bool {
    journal.to_str().is_some_and(|path| path.ends_with(".mended.jsonl"))
}

fn wechsler(words: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wechsler")).args(words).arg(file).output().expect("it runs")
}

/// A journal that is short and has a bit of all.
fn demo() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals/demo.jsonl")).expect("text")
}

#[test]
fn every_journal_in_the_folder_replays_and_keeps_every_law() {
    let mut steps = 0;
    for path in journals() {
        let journal = fs::read(&path).expect("a journal");
        let summary = journals::check(&*journal, is_mended(&path));
        let summary = summary.unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        println!("{}: {} steps", path.display(), summary.steps);
        steps += summary.steps;
    }
    // One may be of a daemon that was stopped before it had seen anything.
    assert!(steps > 0, "nothing was replayed");
}

#[test]
fn the_journals_in_the_folder_walk_through_every_leaf() {
    let mut leaves = BTreeSet::new();
    for path in journals().into_iter().filter(|path| !is_mended(path)) {
        replay(&*fs::read(&path).expect("a journal"), |told| {
            if let Told::Step(step) = told {
                leaves.insert(step.after.place().kind);
            }
        })
        .expect("replayed");
    }
    assert_eq!(leaves, wechsler::machine::Kind::ALL.into_iter().collect());
}

#[test]
#[cfg(feature = "virtual-server")]
fn what_the_daemons_of_the_demo_do_is_done_again() {
    let place = std::env::temp_dir().join(format!("wechsler-rp-{}", std::process::id()));
    fs::create_dir_all(&place).expect("a folder");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_wechsler"));
    demo.args(["demo", "--fast", "--stay"]).env("TMPDIR", &place).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut demo = demo.spawn().expect("it runs");
    let told = BufReader::new(demo.stdout.take().expect("its output"));
    let stays = told.lines().any(|line| line.expect("a line").contains("until you press Ctrl-C"));
    let folder = fs::read_dir(&place).expect("the place").flatten().next().expect("the demo's folder").path();
    let summary = journals::check(&*fs::read(folder.join("state/steps.jsonl")).expect("a journal"), false);
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", demo.id())]).status();
    assert!(stays && sent.expect("a shell").success() && demo.wait().is_ok());
    let summary = summary.unwrap_or_else(|why| panic!("{why}"));
    assert!(summary.lives == 3 && summary.steps > 100 && summary.gaps == 0, "{summary:?}");
    let _ = fs::remove_dir_all(&place);
}

#[test]
fn a_step_that_came_out_otherwise_is_named_by_its_line() {
    // A daemon that said that nothing was under way where something was.
    let told = demo();
    let at = 1 + told.lines().position(|line| line.contains("\"kind\":\"draining\"")).expect("a drain");
    let wrong = told.replacen("\"kind\":\"draining\"", "\"kind\":\"running\"", 1);
    let error = replay(wrong.as_bytes(), |_| {}).expect_err("it differs");
    assert!(matches!(error.why, Why::Differs(_)), "{error}");
    assert_eq!(error.line, at as u64);
    // Once the machine is mended it does otherwise, and that is held against the laws to the end.
    let whole = journals::check(told.as_bytes(), false).expect("as it was");
    assert_eq!(journals::check(wrong.as_bytes(), true), Ok(whole));
}

#[test]
fn every_way_of_damage_is_told_with_its_line() {
    let told = demo();
    let lines: Vec<&str> = told.lines().collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        lines.join("\n")
    };
    let newer = lines[0].replace("\"format\":1", "\"format\":2").replace("\"policy\"", "\"rules\"");
    let elsewhere = lines[0].replace("\"default_backend\":0", "\"default_backend\":9");
    let switch = lines.iter().position(|line| line.contains("\"Switch\":[1")).expect("a switch");
    let look = lines.iter().position(|line| line.contains("\"same\"")).expect("a look");
    for (text, line, so) in [
        (with(0, &newer), 1, "written by version"),
        (with(0, &elsewhere), 1, "does not fit the policy"),
        (with(3, "# a comment"), 4, "as a line of a journal"),
        (with(3, "{\"line\":\"step\"}"), 4, "missing field"),
        (with(3, "{\"line\":\"dance\"}"), 4, "unknown variant"),
        (with(switch, &lines[switch].replace("\"Switch\":[1", "\"Switch\":[7")), switch + 1, "does not fit the policy"),
        (with(3, &lines[3].replace("\"at\":{\"secs\":", "\"at\":{\"secs\":99999999999")), 4, "does not fit the policy"),
        (with(look, &lines[look].replace("\"same\":[[", "\"same\":[[1,")), look + 1, "does not fit the policy"),
        (with(0, &"x".repeat(5 << 20)), 1, "longer than any line"),
    ] {
        let error = replay(text.as_bytes(), |_| {}).expect_err(so);
        assert_eq!(error.line, line as u64, "{error}");
        assert!(error.to_string().contains(so), "{error}");
    }
    let error = replay(&b"\xff\xfe\n"[..], |_| {}).expect_err("no text");
    assert_eq!(error.line, 1);
}

/// A line that tells a whole machine.
fn resume() -> &'static str {
    include_str!("../fuzz/corpus/journal/steps.resume").lines().next().expect("a line")
}

#[test]
fn a_machine_that_is_not_sound_is_refused_before_it_is_asked_anything() {
    for (backend, remembered) in [(9, 2), (0, 0)] {
        let mut line: serde_json::Value = serde_json::from_str(resume()).expect("JSON");
        let chart = &mut line["machine"]["chart"];
        // With nothing else that makes it doubtful, it would look up how well that backend is.
        chart["shared_storage"]["silence"] = serde_json::Value::Null;
        chart["shared_storage"]["backends"].as_array_mut().expect("what is remembered").truncate(remembered);
        chart["state"] = serde_json::json!({ "Running": { "backend": backend } });
        let error = replay(line.to_string().as_bytes(), |_| {}).expect_err("not sound");
        assert!(error.to_string().contains("does not fit the policy"), "{error}");
    }
}

#[test]
fn no_journal_begins_with_more_holds_than_are_kept() {
    let demo = demo();
    let start = demo.lines().next().expect("a line");
    for (line, kind) in [(start, "start"), (resume(), "resume")] {
        assert!(line.contains(&format!("\"line\":\"{kind}\"")) && line.contains("\"holds\":[]"), "{line}");
        let with = |count: u64| {
            let hold = |id| format!(r#"{{"id":{id},"what":"awake","until":null,"reason":"","by":""}}"#);
            let holds: Vec<String> = (1..=count).map(hold).collect();
            line.replace("\"holds\":[]", &format!("\"holds\":[{}]", holds.join(",")))
        };
        replay(with(1000).as_bytes(), |_| {}).expect(kind);
        let error = replay(with(1001).as_bytes(), |_| {}).expect_err(kind);
        assert!(error.to_string().contains("does not fit the policy"), "{error}");
    }
}

#[test]
fn missing_lines_are_told_and_passed_over_until_a_machine_begins_anew() {
    let told = demo();
    let mut lines: Vec<&str> = told.lines().collect();
    let second = 2 + lines[1..].iter().position(|line| line.contains("\"line\":\"start\"")).expect("a second life");
    lines.remove(3);
    let mut gaps = vec![];
    let text = lines.join("\n");
    let summary = replay(text.as_bytes(), |told| {
        if let Told::Gap { line } = told {
            gaps.push(line);
        }
    })
    .expect("replayed");
    assert_eq!(gaps, [4]);
    assert_eq!(summary.passed_over, second as u64 - 5);
    assert!(summary.lives > 1);
}

#[test]
fn a_line_that_was_cut_short_by_a_kill_is_told() {
    let told = demo();
    let cut = &told[..told.len() - 20];
    let summary = replay(cut.as_bytes(), |_| {}).expect("replayed");
    assert_eq!(summary.torn, 1);
}

#[test]
fn the_verb_shows_each_step_and_ends_well_only_where_nothing_differs() {
    let folder = std::env::temp_dir().join(format!("wechsler-replay-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("steps.jsonl");
    fs::write(&file, demo()).expect("written");

    let out = wechsler(&["replay"], &file);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for said in [
        "=== the daemon started at",
        "Offline: request 1: start",
        "→ orders 1: wake",
        "⇒ Waking",
        "came out as written",
    ] {
        assert!(text.contains(said), "{said:?} is missing:\n{text}");
    }
    let out = wechsler(&["--json", "replay"], &file);
    let object: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert!(object["steps"].as_u64().is_some_and(|steps| steps > 100), "{object}");

    fs::write(&file, demo().replace("\"kind\":\"draining\"", "\"kind\":\"running\"")).expect("written");
    let out = wechsler(&["replay"], &file);
    assert_eq!(out.status.code(), Some(1));
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(told.contains("line ") && told.contains("the machine differs"), "{told}");
    assert!(told.contains("operation 2\n  replayed:") && told.contains("operation 2 ⇒ Draining llama-cpp\n"), "{told}");

    fs::write(&file, "\n").expect("written");
    let out = wechsler(&["replay"], &file);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("there is nothing to replay"), "{out:?}");

    fs::write(&file, "hello\n").expect("written");
    let out = wechsler(&["--json", "replay"], &file);
    let object: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert_eq!((out.status.code(), object["error"]["code"].as_str()), (Some(2), Some("bad_journal")), "{object}");
    let out = wechsler(&["replay"], &folder.join("none"));
    assert_eq!(out.status.code(), Some(2));
    let _ = fs::remove_dir_all(&folder);
}
