//! The example is the truth about the keys, and each refusal reads well.

use std::collections::BTreeSet;

use super::*;

const EXAMPLE: &str = include_str!("../../config.toml.example");

/// As little as a configuration can say.
const SMALLEST: &str = r#"
[gpu_server]
host = "10.77.0.2"
[gpu_server.ssh]
host_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"]
[backends.a]
kind = "llama-cpp"
url = "http://10.77.0.2:8080"
"#;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(owned).collect()
}

fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let faults = parse(text, env(variables)).expect_err("it must be refused");
    faults.iter().map(ToString::to_string).collect()
}

/// The full keys that stand in a TOML text, backends called `*`; with `commented`, also those after `#`.
fn keys_in(text: &str, commented: bool) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let line = match line.strip_prefix('#') {
            Some(rest) if commented && !rest.starts_with(' ') => rest,
            Some(_) => continue,
            None => line,
        };
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let mut path: Vec<_> = header.split('.').collect();
            if let ["backends", name, ..] = path.as_mut_slice() {
                *name = "*";
            }
            section = path.join(".");
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

fn known() -> section::Known {
    examine(EXAMPLE, vec![]).expect("it is TOML").2
}

#[test]
fn the_example_is_a_sound_configuration() {
    let config = parse(EXAMPLE, env(&[])).unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert_eq!(config.backends.len(), 2);
    assert_eq!(config.policy.backend(config.policy.default_backend).name, "llama-cpp");
}

#[test]
fn the_example_names_every_key_and_no_other() {
    // Read once more with its own SSH, so that its keys are asked for.
    let with_ssh = format!("{EXAMPLE}[backends.vllm.ssh]\nport = 2222\n");
    let known: BTreeSet<_> = examine(&with_ssh, vec![]).unwrap().2.into_keys().collect();
    assert_eq!(known, keys_in(EXAMPLE, true));
}

#[test]
fn the_example_equals_the_defaults_where_there_are_any() {
    let known = known();
    let mut section = String::new();
    let without_defaults: String = EXAMPLE
        .lines()
        .filter(|line| {
            if line.starts_with('[') {
                section = line.replace(['[', ']'], "").replace("llama-cpp", "*").replace("vllm", "*");
            }
            let key = line.split(" = ").next().unwrap_or_default();
            let default = known.get(&format!("{section}.{key}")).cloned().flatten();
            // Which backend is the default of a bare `start` must be said: there are two.
            default.is_none() || key == "default"
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert!(without_defaults.lines().count() + 20 < EXAMPLE.lines().count());
    let said = parse(EXAMPLE, env(&[])).unwrap();
    let defaults = parse(&without_defaults, env(&[])).unwrap_or_else(|f| panic!("{f:#?}"));
    assert_eq!(said, defaults);
}

#[test]
fn every_default_passes_its_own_check() {
    let (config, faults, _) = examine("", vec![]).unwrap();
    // Only what must be set is complained of.
    let keys: Vec<_> = faults.iter().map(|f| f.key.as_str()).collect();
    assert_eq!(keys, ["backends.NAME", "gpu_server.host", "gpu_server.ssh.host_keys"]);
    assert_eq!(config.probe.busy, Duration::from_millis(30));
}

#[test]
fn the_smallest_configuration_is_sound() {
    let config = parse(SMALLEST, env(&[])).unwrap();
    assert_eq!(config.server.wake, Wake::None);
    assert!(!config.policy.can_wake);
    assert_eq!(config.backends[0].unit, "a.service");
    assert_eq!(config.backends[0].public_url, "http://10.77.0.2:8080");
    assert_eq!(config.policy.backends[0].restore, crate::machine::RestorePolicy::Never);
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_lines() {
    let text = SMALLEST.replace("host =", "hots =").replace("\"llama-cpp\"", "\"lama-cpp\"").replace("http:", "https:");
    let faults = faults(&format!("{text}start_timout = \"3m\"\n[probe]\nbusy = 30\n"), &[]);
    let expected = [
        ("line 2: gpu_server.host: ", "is missing"),
        ("line 3: gpu_server.hots: ", "unknown key; did you mean `host`?"),
        ("line 7: backends.a.kind: ", "did you mean `llama-cpp`?"),
        ("line 8: backends.a.url: ", "https is not built in"),
        ("line 9: backends.a.start_timout: ", "unknown key; did you mean `start_timeout`?"),
        ("line 11: probe.busy: ", "needs quotes and a unit"),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, (place, what)) in faults.iter().zip(expected) {
        assert!(fault.starts_with(place) && fault.contains(what), "{fault}");
    }
}

#[test]
fn every_error_of_the_grammar_is_reported_with_its_line() {
    let faults = faults("a = \n[b\nc = 1\nc = 2\n", &[]);
    assert!(faults.len() >= 2, "{faults:?}");
    assert!(faults[0].starts_with("line 1: "), "{faults:?}");
}

#[test]
fn the_largest_file_of_nothing_but_faults_is_told_in_a_few_lines() {
    let lines = usize::try_from(LARGEST / 2).unwrap();
    let faults = parse(&"}\n".repeat(lines), env(&[])).unwrap_err();
    assert_eq!(faults.len(), lines);
    assert_eq!(faults.last().unwrap().at, Origin::Line(lines));
    let told = ConfigErrors { path: "config.toml".into(), faults }.to_string();
    assert!(told.starts_with("config.toml: 524288 faults\n  line 1: "), "{}", &told[..80]);
    let end = "\n  line 99: invalid key-value pair, expected key\n  line 100: invalid key-value pair, expected key\n  \
               and 524188 more";
    assert!(told.ends_with(end), "{told}");
}

#[test]
fn a_variable_of_any_depth_is_an_unknown_key() {
    let deep = format!("WECHSLER_PROBE{}", "__A".repeat(50_000));
    let faults = faults(SMALLEST, &[(&deep, "1")]);
    assert!(faults.len() == 1 && faults[0].contains("probe.a: unknown key"), "{:?}", faults[0].get(..80));
}

/// What is added to the smallest configuration, and what must be said of it.
const REFUSED: &[(&str, &[&str])] = &[
    ("[gpu_server.wake]\nmethod = \"magic-packet\"", &["gpu_server.wake.mac: is missing"]),
    (
        "[probe]\nhttp_timeout = \"15s\"",
        &["15s must be shorter than `gpu_server.ssh.command_timeout`, which is 10s, and 5s more"],
    ),
    (
        "[gpu_server.wake]\nmac = \"52:54:00:12:34:56\"",
        &["gpu_server.wake.mac: goes with method = \"magic-packet\", but method is \"none\""],
    ),
    (
        "[gpu_server.wake]\nmethod = \"command\"\ncommand = [\"ipmitool\"]",
        &["\"ipmitool\" must be the absolute path of a program"],
    ),
    ("[gpu_server.wake]\nmethod = \"command\"\ncommand = []", &["command: must not be empty"]),
    ("[gpu_server.wake]\nmethod = \"magic-packet\"\nmac = \"ff:ff:ff:ff:ff:ff\"", &["multicast or broadcast"]),
    (
        "[gpu_server.wake]\nmethod = \"magic-packet\"\nmac = \"52:54:00:12:34:56\"\nsource = \"fd00::1\"",
        &["source: fd00::1 cannot send to 255.255.255.255:9"],
    ),
    (
        "[gpu_server.timeouts]\nboot = \"8s\"",
        &["gpu_server.ssh.command_timeout: 10s must be shorter than `gpu_server.timeouts.boot`, which is 8s"],
    ),
    (
        "[gpu_server.timeouts]\nsilence = \"4m\"",
        &["gpu_server.timeouts.silence: 4m must be shorter than `gpu_server.timeouts.power_off`, which is 3m"],
    ),
    ("[probe]\nrest = \"1h\"\nbusy = \"1h\"", &["probe.busy: 1h must be shorter than `probe.rest`, which is 1h"]),
    ("[idle]\nstop_after = \"10ms\"", &["idle.stop_after: 10ms is too short, at least 1s"]),
    ("[idle]\nstop_after = \"nevr\"", &["idle.stop_after: \"nevr\" is no duration"]),
    ("[daemon]\nsocket = \"run.sock\"", &["daemon.socket: \"run.sock\" is no absolute path"]),
    ("[daemon]\nstate_dir = \"/var/../etc\"", &["daemon.state_dir"]),
    ("daemon = 3", &["backends.a.daemon: unknown key"]),
    ("[gpu_servers]\nhost = \"x\"", &["gpu_servers: unknown key; did you mean `gpu_server`?"]),
    ("[gpu_server.commands]\nprefix = [\"sudo; reboot\"]", &["gpu_server.commands.prefix"]),
    ("[backends.gpu]\nkind = \"vllm\"\nurl = \"http://x:1\"\ndefault = true", &["\"gpu\" is a word of Wechsler's own"]),
    ("[backends.a-starting]\nkind = \"vllm\"\nurl = \"http://x:1\"\ndefault = true", &["\"a-starting\" is a word"]),
    ("[backends.B]\nkind = \"vllm\"\nurl = \"http://x:1\"\ndefault = true", &["\"B\" is no name"]),
    ("[backends.b]\nkind = \"vllm\"\nurl = \"http://x:1\"", &["no backend is the default of a bare `start`"]),
    (
        "default = true\n[backends.b]\nkind = \"vllm\"\nurl = \"http://x:1\"\ndefault = true",
        &["backends.b.default: `a` is the default already"],
    ),
    (
        "[backends.b]\nkind = \"vllm\"\nunit = \"a.service\"\nurl = \"http://10.77.0.2:8080\"\ndefault = true",
        &[
            "backends.b.unit: a.service is the unit of `a` too",
            "backends.b.url: http://10.77.0.2:8080 is the URL of `a` too",
        ],
    ),
    (
        "[backends.b]\nkind = \"vllm\"\nurl = \"http://x:1\"\ndefault = true\n[backends.b.slots]\ndir = \"/x\"\nname = \"y\"",
        &["backends.b.slots: only a backend of kind = \"llama-cpp\" has slots"],
    ),
    ("restore = \"offer\"", &["restore: nothing can be restored without `[backends.a.slots]`"]),
    ("health_path = \"/x\"", &["health_path: only a backend of kind = \"generic\""]),
    (
        "expected_start = \"5m\"",
        &["backends.a.expected_start: 5m must be shorter than `backends.a.start_timeout`, which is 2m"],
    ),
    ("api_key_file = \"hunter2\"", &["api_key_file: must be the absolute path"]),
    ("[backends.a.ssh]\nport = 2222", &["backends.a.ssh.host_keys: is missing"]),
    ("[backends.a.ssh]\nport = 70000", &["host_keys", "port: must be between 1 and 65535"]),
    ("slots = 3", &["backends.a.slots: must be a section, `[backends.a.slots]`"]),
    ("model = 1.5", &["backends.a.model: must be text in quotes"]),
    ("model = 1979-05-27", &["backends.a.model: must be text in quotes"]),
];

#[test]
fn each_refusal_says_what_and_where() {
    for (added, expected) in REFUSED {
        let faults = faults(&format!("{SMALLEST}{added}\n"), &[]);
        assert_eq!(faults.len(), expected.len(), "{added}: {faults:#?}");
        for what in *expected {
            assert!(faults.iter().any(|f| f.contains(what)), "{added}: {what}: {faults:#?}");
        }
        let secret = faults.iter().any(|f| f.contains("hunter2"));
        assert!(!secret, "{faults:#?}");
    }
}

#[test]
fn a_faulty_key_is_not_compared_with_others() {
    let text = format!("{SMALLEST}[probe]\nrest = \"1parsec\"\nbusy = \"1h\"\nhttp_timeout = \"2h\"\n");
    let faults = faults(&text, &[]);
    assert!(faults.iter().all(|f| !f.contains("probe.rest`")), "{faults:#?}");
}

#[test]
fn each_kind_of_key_can_come_from_the_environment() {
    let config = parse(
        SMALLEST,
        env(&[
            ("WECHSLER_GPU_SERVER__HOST", "10.0.0.9"),
            ("WECHSLER_GPU_SERVER__SSH__PORT", "2222"),
            ("WECHSLER_GPU_SERVER__COMMANDS__PREFIX", "sudo,-n"),
            ("WECHSLER_BACKENDS__A__START_TIMEOUT", "3m"),
            ("WECHSLER_BACKENDS__MY_OTHER__KIND", "generic"),
            ("WECHSLER_BACKENDS__MY_OTHER__URL", "http://10.0.0.9:1"),
            ("WECHSLER_BACKENDS__MY_OTHER__DEFAULT", "true"),
            ("WECHSLER_IDLE__STOP_AFTER", "20m"),
            ("WECHSLER_CONFIG", "/etc/passwd"),
            ("WECHSLER_LOG", "debug"),
            ("PATH", "/bin"),
        ]),
    )
    .unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert_eq!(config.server.ssh.host, "10.0.0.9");
    assert_eq!(config.server.ssh.port, 2222);
    assert_eq!(config.server.privilege, ["sudo", "-n"]);
    assert_eq!(config.policy.backends[0].start_timeout, Duration::from_mins(3));
    assert_eq!(config.policy.backend(config.policy.default_backend).name, "my-other");
    assert_eq!(config.policy.idle_stop_after, Some(Duration::from_mins(20)));
}

#[test]
fn a_faulty_variable_is_named() {
    let faults = faults(
        SMALLEST,
        &[("WECHSLER_GPU_SERVER__HOTS", "x"), ("WECHSLER_PROBE__REST", "soon"), ("WECHSLER_GPU_SERVER__SSH", "x")],
    );
    assert_eq!(faults.len(), 4, "{faults:#?}");
    for expected in [
        "WECHSLER_GPU_SERVER__HOTS: gpu_server.hots: unknown key; did you mean `host`?",
        "WECHSLER_PROBE__REST: probe.rest: \"soon\" is no duration",
        "WECHSLER_GPU_SERVER__SSH: gpu_server.ssh: must be a section",
        "gpu_server.ssh.host_keys: is missing",
    ] {
        assert!(faults.iter().any(|f| f.contains(expected)), "{expected}: {faults:#?}");
    }
}

#[test]
fn credentials_are_found_where_systemd_puts_them() {
    let text = SMALLEST.replace("host_keys", "key = \"$CREDENTIALS_DIRECTORY/ssh\"\nhost_keys");
    let inside = parse(&text, env(&[("CREDENTIALS_DIRECTORY", "/run/credentials/w")])).unwrap();
    assert_eq!(inside.server.ssh.key, Path::new("/run/credentials/w/ssh"));
    let outside = parse(&text, env(&[])).unwrap();
    assert!(outside.warnings()[0].contains("for the service only"));
}

#[test]
fn a_missing_key_file_is_a_warning_and_no_fault() {
    let text = SMALLEST.replace("host_keys", "key = \"/nonexistent/key\"\nhost_keys");
    let warnings = parse(&text, env(&[])).unwrap().warnings();
    assert!(warnings[0].contains("/nonexistent/key cannot be read"), "{warnings:?}");
}

#[test]
fn an_idle_time_under_a_minute_is_a_warning() {
    let text = format!("{SMALLEST}[idle]\nstop_after = \"59s\"\npower_off_after = \"1m\"\n");
    let warnings = parse(&text, env(&[])).unwrap().warnings();
    let idle: Vec<_> = warnings.iter().filter(|w| w.starts_with("idle")).collect();
    assert_eq!(idle.len(), 2, "{warnings:?}");
    assert!(idle[0].contains("stop_after is 59s") && idle[1].contains("by hand"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(Path::new("/nonexistent/config.toml"), env(&[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent/config.toml: 1 fault\n  file: cannot be read: No such file or directory (os error 2)"
    );
    let endless = load(Path::new("/dev/zero"), env(&[])).unwrap_err();
    assert!(endless.to_string().contains("is larger than 1048576 bytes"));
}

#[test]
fn backends_keep_the_order_of_the_file() {
    let text = SMALLEST
        .replace("[backends.a]", "[backends.z]\nkind=\"generic\"\nurl=\"http://x:1\"\ndefault=true\n[backends.a]");
    let names: Vec<_> = parse(&text, env(&[])).unwrap().backends.into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["z", "a"]);
}

proptest::proptest! {
    #[test]
    fn nothing_a_file_can_hold_makes_the_reader_panic(text in ".{0,200}", at in 0_usize..6000) {
        let at = EXAMPLE.floor_char_boundary(at);
        let broken = format!("{}{text}{}", &EXAMPLE[..at], &EXAMPLE[at..]);
        let _ = parse(&broken, env(&[]));
        let _ = parse(&text, env(&[("WECHSLER_BACKENDS__A__URL", &text)]));
    }
}
