//! What is fuzzed: one function for each target, given any bytes. Run by libFuzzer (`fuzz/run`), and on the stored corpus by
//! `cargo test --test fuzz_corpus`.
//!
//! A file of the corpus with a name of its own is what a target begins with: `KIND` or `KIND.WORD`, to be understood as that
//! kind, or `refused.WORD`. What no longer passes the first guard leads nowhere behind it. All others are named by their hash.

mod backends;
mod config;
mod gpu;
mod host_keys;
mod journal;
mod machine;
mod metrics;
mod people;
mod protocol;
mod slots;
#[path = "../../tests/spec/mod.rs"]
mod spec;
mod systemd;

/// What some bytes were understood as: nothing, mostly.
pub type Kinds = Vec<&'static str>;

/// A target: it panics at what must not be.
pub type Target = fn(&[u8]) -> Kinds;

/// Those that were understood.
fn understood<const N: usize>(kinds: [(&'static str, bool); N]) -> Kinds {
    kinds.into_iter().filter_map(|(kind, understood)| understood.then_some(kind)).collect()
}

/// All targets by name, each with a program of that name in `fuzz_targets/` and a folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("backends", backends::run),
    ("config", config::run),
    ("gpu", gpu::run),
    ("host_keys", host_keys::run),
    ("journal", journal::run),
    ("machine", machine::run),
    ("metrics", metrics::run),
    ("people", people::run),
    ("protocol", protocol::run),
    ("slots", slots::run),
    ("systemd", systemd::run),
];

/// Gives `data` to the target of that name.
pub fn run(name: &str, data: &[u8]) -> Kinds {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of that name");
    target(data)
}
