//! A configuration file, and the environment over it: refused or read, never a panic.

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Lines that look like variables are the environment, the rest is the file.
    let (env, file): (Vec<_>, Vec<_>) = text.lines().partition(|l| l.starts_with("WECHSLER_"));
    let env = env.iter().filter_map(|line| line.split_once('='));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    if let Ok(config) = wechsler::config::parse(&file.join("\n"), env) {
        // Whatever was let through is something the rest of the program can live with.
        assert!(!config.backends.is_empty());
        assert_eq!(config.backends.len(), config.policy.backends.len());
        assert!(config.probe.busy < config.probe.rest);
        assert!(config.policy.is_sound());
    }
}
