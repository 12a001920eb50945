//! The house's rules, as data: who may use whom, how long a file may be, what is nowhere to be found.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A room, what it may use beside itself and `std`, and which parts of `std` it may not use.
struct Room {
    name: &'static str,
    /// Modules of this crate.
    ours: &'static [&'static str],
    /// Crates.
    crates: &'static [&'static str],
    /// Parts of `std` that would make it something else than it is.
    never: &'static [&'static str],
}

/// The clock, the network, files, threads, processes, the environment, and orders that differ from run to run: what a pure
/// room does not touch.
const OUTSIDE: &[&str] = &[
    "std::collections::Hash",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    // Shared, unchanging data is allowed: `std::sync::Arc`.
    "std::sync::Condvar",
    "std::sync::Mutex",
    "std::sync::Once",
    "std::sync::RwLock",
    "std::sync::atomic",
    "std::sync::mpsc",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// std's clock cannot be paused in a test; tokio's can. The time of day is only for people, and asked in one place.
const STD_CLOCK: &[&str] = &["std::time::Instant"];

const ROOMS: &[Room] = &[
    Room { name: "machine", ours: &[], crates: &["serde", "statig"], never: OUTSIDE },
    Room {
        name: "driver",
        ours: &["machine", "config"],
        crates: &["futures_util", "humantime", "serde", "serde_json", "thiserror", "tokio", "tracing"],
        never: STD_CLOCK,
    },
    Room {
        name: "host",
        ours: &["machine", "driver::World", "driver::world", "config"],
        crates: &[
            "async_ssh2_tokio",
            "futures_util",
            "nix",
            "reqwest",
            "russh",
            "serde",
            "serde_json",
            "sha2",
            "thiserror",
            "tokio",
            "tracing",
        ],
        never: STD_CLOCK,
    },
    Room {
        name: "config",
        ours: &["machine"],
        crates: &["humantime", "russh", "serde", "strsim", "thiserror", "toml"],
        never: &["std::time::Instant", "std::time::SystemTime", "std::thread", "std::process"],
    },
    Room {
        name: "front",
        ours: &["machine", "driver", "config"],
        crates: &[
            "axum",
            "clap",
            "clap_complete",
            "clap_mangen",
            "futures_util",
            "humantime",
            "hyper",
            "hyper_util",
            "nix",
            "reqwest",
            "sd_notify",
            "serde",
            "serde_json",
            "strsim",
            "terminal_size",
            "thiserror",
            "tokio",
            "tracing",
            "tracing_journald",
            "tracing_subscriber",
        ],
        never: STD_CLOCK,
    },
    // A world of its own: of ours it knows the command lines, and nothing it could be wrong about in the same way.
    Room {
        name: "virtual_server",
        // The faulty layer over a world stands at the driver's seam.
        ours: &["machine", "driver::World", "driver::world", "host::remote", "host::slot_files"],
        crates: &["axum", "clap", "futures_util", "humantime", "hyper", "hyper_util", "russh", "serde_json", "tokio"],
        never: STD_CLOCK,
    },
];

/// Files that put the rooms together, and may use all of them.
const DOORS: &[&str] =
    &["src/lib.rs", "src/main.rs", "src/daemon.rs", "src/demo/mod.rs", "src/demo/stage.rs", "src/demo/tour.rs"];

/// A file with more lines is two rooms. Tests beside the code count in their own files.
const LONGEST_FILE: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files under `folder`, by their path from the root, in order.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    files.sort();
    files
}

/// The code of a file, without comments and without the tests at its end.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(root().join(file)).expect("a file of the project");
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..tests]
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn is_test(file: &Path) -> bool {
    let mut names = file.iter().filter_map(|name| name.to_str());
    names.any(|name| name == "tests" || name == "tests.rs")
}

/// The paths that `use` declarations name, groups taken apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn uses(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let starts = code.match_indices("use ").filter(|(at, _)| {
        let before = code[..*at].rsplit('\n').next().unwrap_or_default().trim();
        before.is_empty() || before.starts_with("pub")
    });
    for (at, _) in starts {
        let rest = &code[at + "use ".len()..];
        let declaration = rest.split(';').next().unwrap_or_default();
        let flat: String = declaration.split_whitespace().collect::<Vec<_>>().join(" ");
        take_apart("", &flat, &mut found);
    }
    found
}

fn take_apart(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        if !path.is_empty() {
            found.push(format!("{prefix}{path}"));
        }
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                take_apart(&prefix, &inner[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    take_apart(&prefix, &inner[start..], found);
}

/// The room a file is in.
fn room_of(file: &Path) -> Option<&'static Room> {
    let name = file.iter().nth(1)?.to_str()?;
    ROOMS.iter().find(|room| room.name == name.trim_end_matches(".rs"))
}

/// Where a used path leads: a module of ours (`crate::...`), a crate, or nowhere beyond the room.
fn complaint(room: &Room, path: &str) -> Option<String> {
    let first = path.split("::").next().unwrap_or_default();
    match first {
        "std" | "core" | "alloc" => {
            let part = room.never.iter().find(|never| path.starts_with(**never));
            part.map(|part| format!("{} must not touch {part}", room.name))
        }
        "self" | "super" => None,
        "crate" => {
            let inside = path.trim_start_matches("crate::");
            let allowed = inside.split("::").next() == Some(room.name)
                || room.ours.iter().any(|ours| inside == *ours || inside.starts_with(&format!("{ours}::")));
            (!allowed).then(|| format!("{} must not use crate::{inside}", room.name))
        }
        // A module or type of the same room: rooms are lower case too, but only crates are declared.
        name => {
            let declared = dependencies().iter().any(|d| d == name);
            let allowed = room.crates.contains(&name);
            (declared && !allowed).then(|| format!("{} must not use the crate {name}", room.name))
        }
    }
}

/// The crates declared in `Cargo.toml`, as code writes them.
fn dependencies() -> Vec<String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    text.lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = "))
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, _)| name.replace('-', "_"))
        .collect()
}

#[test]
fn each_room_uses_only_what_it_may() {
    let mut complaints = Vec::new();
    for file in rust_files("src") {
        if is_test(&file) || DOORS.iter().any(|door| file == Path::new(door)) {
            continue;
        }
        let Some(room) = room_of(&file) else {
            complaints.push(format!("{}: belongs to no room", file.display()));
            continue;
        };
        let code = code(&file);
        let full_paths = room.never.iter().filter(|never| code.contains(**never));
        complaints.extend(full_paths.map(|never| format!("{}: {never}", file.display())));
        let bad = uses(&code).into_iter().filter_map(|path| complaint(room, &path));
        complaints.extend(bad.map(|bad| format!("{}: {bad}", file.display())));
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn no_file_is_two_rooms() {
    let long = |file: &PathBuf| {
        let lines = if is_test(file) {
            fs::read_to_string(root().join(file)).expect("a file").lines().count()
        } else {
            code(file).lines().count()
        };
        (lines > LONGEST_FILE).then(|| format!("{}: {lines} lines", file.display()))
    };
    let long: Vec<_> = rust_files("src").iter().filter_map(long).collect();
    assert!(long.is_empty(), "more than {LONGEST_FILE}:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_called_utils() {
    for file in rust_files("src") {
        let names = ["util", "utils", "helpers", "misc", "common"];
        let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        assert!(!names.contains(&stem), "{}: say what it is for", file.display());
    }
}

#[test]
fn unsafe_code_is_forbidden() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    assert!(lib.contains("#![forbid(unsafe_code)]"));
    let cargo = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(cargo.contains("unsafe_code = \"forbid\""));
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let mut before = "";
    let mut in_dependencies = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies]");
        } else if in_dependencies && line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with('#'), "no reason above: {line}");
        }
        before = line;
    }
}

#[test]
fn declarations_are_taken_apart() {
    let code = "use a::{b, c::{d, e as f}};\n    use g;\nlet reuse = 1;\npub(crate) use crate::h::*;\n";
    assert_eq!(uses(code), ["a::b", "a::c::d", "a::c::e", "g", "crate::h::*"]);
}

#[test]
fn a_wrong_use_is_noticed() {
    let machine = &ROOMS[0];
    for bad in ["std::time::Instant", "crate::driver::World", "tokio::time", "std::net::IpAddr"] {
        assert!(complaint(machine, bad).is_some(), "{bad}");
    }
    for good in ["std::time::Duration", "crate::machine::Look", "super::Look", "serde::Serialize", "Kind::*"] {
        assert_eq!(complaint(machine, good), None);
    }
}
