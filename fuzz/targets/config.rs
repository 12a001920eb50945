//! A configuration file, and the environment over it: refused or read, never a panic.

use super::Kinds;

pub fn run(data: &[u8]) -> Kinds {
    let Ok(text) = std::str::from_utf8(data) else {
        return Kinds::new();
    };
    // Lines that look like variables are the environment, the rest is the file.
    let is_variable = |line: &&str| line.starts_with("WECHSLER_") || line.starts_with("CREDENTIALS_DIRECTORY=");
    let (env, file): (Vec<_>, Vec<_>) = text.lines().partition(is_variable);
    let env = env.iter().filter_map(|line| line.split_once('='));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let Ok(config) = wechsler::config::parse(&file.join("\n"), env) else {
        return Kinds::new();
    };
    // Whatever was let through is something the rest of the program can live with.
    assert!(!config.backends.is_empty());
    assert_eq!(config.backends.len(), config.policy.backends.len());
    assert!(config.probe.busy < config.probe.rest);
    assert!(config.policy.is_sound());
    vec!["config"]
}
