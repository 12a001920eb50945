//! `wechsler demo`, as a newcomer runs it: every step comes out as told, and nothing is left.
#![cfg(feature = "virtual-server")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A place of its own for temporary files, gone with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wechsler-dt-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn demo(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wechsler"));
        command.arg("demo").args(words).env("TMPDIR", &self.0).stdin(Stdio::null());
        // What is meant for a real daemon must not reach the demo's.
        command.env("WECHSLER_SOCKET", "/nonexistent").env("WECHSLER_GPU_SERVER__HOST", "192.0.2.1");
        command
    }

    /// Nothing is left: no file, and no process that knows of the place.
    fn is_clean(&self) {
        let files: Vec<_> = fs::read_dir(&self.0).expect("the place").flatten().map(|entry| entry.path()).collect();
        assert!(files.is_empty(), "{files:?}");
        // A child that was killed may take a moment to be gone.
        for _ in 0..250 {
            if self.process().is_none() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        panic!("still there: {:?}", self.process());
    }

    fn process(&self) -> Option<String> {
        let knows = |path: &Path| {
            let told = |file: &str| fs::read(path.join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&told("cmdline")).replace('\0', " ");
            text.contains(self.0.to_str()?).then_some(text)
        };
        fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| knows(&entry.path()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_step_comes_out_as_told_and_nothing_is_left() {
    let place = Place::new("all");
    let out = place.demo(&["--fast"]).output().expect("it runs");
    let (told, complaints) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{told}\n{complaints}");
    let mut rest = &told[..];
    for said in [
        "$ wechsler status",
        "1. Cold start",
        "$ wechsler start",
        "✓ start llama-cpp: done",
        "2. A conversation",
        "cache_n 0:",
        "$ wechsler switch vllm",
        "✓ switch vllm: done",
        "localbot",
        "$ wechsler switch llama-cpp",
        "✓ switch llama-cpp: done",
        "prompt tokens were in its slot already",
        "5. A crash",
        "$ wechsler slots save",
        "$ wechsler watch",
        "prompt tokens were in its slot already",
        "6. A conflict",
        "conflict",
        "$ wechsler resolve --keep llama-cpp",
        "7. Idle",
        "$ wechsler watch",
        "powering-off",
        "everything came out as told",
    ] {
        let at = rest.find(said).unwrap_or_else(|| panic!("{said:?} is missing or not in its place:\n{told}"));
        rest = &rest[at + said.len()..];
    }
    assert_eq!(complaints, "");
    place.is_clean();
}

/// Reads what it says until a line that begins so.
fn read_until(demo: &mut Child, beginning: &str) {
    let out = demo.stdout.take().expect("its output");
    let mut lines = BufReader::new(out).lines();
    assert!(lines.any(|line| line.expect("a line").starts_with(beginning)), "it never said {beginning}");
    // The rest is read by nobody, which must not matter.
}

#[test]
fn told_to_end_in_the_middle_it_leaves_nothing_either() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let place = Place::new(signal);
        let mut demo = place.demo(&["--fast"]).stdout(Stdio::piped()).spawn().expect("it runs");
        read_until(&mut demo, "$ wechsler start");
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", demo.id())]).status();
        assert!(sent.expect("a shell").success());
        assert_eq!(demo.wait().expect("it ends").code(), Some(code), "SIG{signal}");
        place.is_clean();
    }
}
