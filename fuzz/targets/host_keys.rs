//! Host keys, as people paste them into the configuration.

use super::Kinds;

/// The least configuration, but for its keys.
const REST: &str = "[gpu_server]\nhost = \"gpu\"\n[gpu_server.ssh]\nuser = \"w\"\nkey = \"/k\"\n\
    [gpu_server.wake]\nmethod = \"none\"\n[backends.llama-cpp]\nkind = \"llama-cpp\"\nurl = \"http://gpu:8080\"\n";

pub fn run(data: &[u8]) -> Kinds {
    let Ok(text) = std::str::from_utf8(data) else {
        return Kinds::new();
    };
    let keys = text.to_owned();
    let env = [("WECHSLER_GPU_SERVER__SSH__HOST_KEYS".to_owned(), keys)];
    let Ok(config) = wechsler::config::parse(REST, env) else {
        return Kinds::new();
    };
    assert!(!config.server.ssh.host_keys.is_empty());
    // What the configuration takes, the daemon starts with.
    wechsler::host::ssh::Ssh::new(&config.server.ssh).expect("keys that can be read");
    vec!["keys"]
}
