//! What fuzzing has found, and what it began with, is tried again: each file of the corpus by its target. See `fuzz/run`.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::{collections::BTreeSet, fs, path::PathBuf};

use targets::TARGETS;

/// More bytes than this for one target are not minimised. What a journal tells is long: whole machines, and lives.
fn most_bytes(target: &str) -> u64 {
    if target == "journal" { 1_500_000 } else { 300_000 }
}

fn fuzz(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The corpus of a target: each file's name, and what is in it.
fn corpus(target: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let files = fs::read_dir(fuzz("corpus").join(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
    files.map(|file| {
        let file = file.expect("an entry");
        (file.file_name().into_string().expect("a name"), fs::read(file.path()).expect("a file"))
    })
}

#[test]
fn every_file_of_the_corpus_is_borne() {
    for (target, _) in TARGETS {
        let mut bytes = 0;
        for (name, data) in corpus(target) {
            println!("{target}/{name}");
            bytes += data.len() as u64;
            let _ = targets::run(target, &data);
        }
        assert!((1..=most_bytes(target)).contains(&bytes), "{target}: {bytes} bytes");
    }
}

#[test]
fn what_a_target_begins_with_is_understood_as_what_its_name_says() {
    let is_hash = |name: &str| name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut wrong = vec![];
    for (target, _) in TARGETS {
        let mut understood = BTreeSet::new();
        for (name, data) in corpus(target).filter(|(name, _)| !is_hash(name)) {
            let kinds = targets::run(target, &data);
            let kind = name.split('.').next().unwrap_or_default();
            let as_named = if kind == "refused" { kinds.is_empty() } else { kinds.contains(&kind) };
            if !as_named {
                wrong.push(format!("{target}/{name} is understood as {kinds:?}"));
            }
            understood.extend(kinds);
        }
        if understood.is_empty() {
            wrong.push(format!("{target} begins with nothing that it understands"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz(folder)).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("fuzz_targets"), names);
    // Words for most of them.
    assert!(listed("dictionaries").is_subset(&names));
    let manifest = fs::read_to_string(fuzz("Cargo.toml")).expect("a manifest");
    let programs = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    assert_eq!(programs.skip(1).map(str::to_owned).collect::<BTreeSet<_>>(), names);
}
