//! The sections of the file, key by key: what each is called, what it defaults to, what it may be.

use std::{net::IpAddr, time::Duration};

use super::{
    Backend, Config, Daemon, GpuTool, Probe, Prove, Server, Slots, SshTarget, Wake,
    section::Section,
    value::{
        absolute, any, at_least_one, boolean, duration, duration_or_never, host, host_key, integer, interface, list_of,
        mac, name, one_of, path, secure_on, socket_path, text, text_as, unit, url, url_path, wake_target, word,
    },
};
use crate::machine::{BackendId, BackendKind, BackendPolicy, Kind, OnStartTimeout, Policy, RestorePolicy, WakeCheck};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Words that commands and documents use for something else than a backend, beside the names of states.
const RESERVED: [&str; 4] = ["ready", "awake", "gpu", "off"];

/// Reads everything. The result means something only if the reader found no fault.
pub(super) fn config(root: &Section<'_>) -> Config {
    let daemon = root.section("daemon", daemon);
    let (server, timing) = root.section("gpu_server", gpu_server);
    let (backends, backend_policies, default_backend) = root.section("backends", |s| backends(s, &server.ssh));
    let idle = root.section("idle", idle);
    let (probe, misses, conflict_after) = root.section("probe", probe);
    let policy = Policy {
        backends: backend_policies,
        default_backend,
        can_wake: server.wake != Wake::None,
        wake_check: timing.wake_check,
        wake_resend: timing.wake_resend,
        boot_timeout: timing.boot,
        power_off_timeout: timing.power_off,
        command_timeout: server.ssh.command_timeout,
        silence: timing.silence,
        misses,
        conflict_after,
        idle_stop_after: idle.stop_after,
        idle_power_off_after: idle.power_off_after,
        policy_backoff: idle.backoff,
        gpu_baseline_mib: server.gpu.baseline_mib,
    };
    Config { daemon, server, backends, policy, probe }
}

fn daemon(s: &Section<'_>) -> Daemon {
    Daemon {
        socket: s.get("socket", "/run/wechsler/wechsler.sock", text_as(socket_path)),
        group: s.optional("group", text_as(word)),
        state_dir: s.get("state_dir", "/var/lib/wechsler", text_as(absolute)),
    }
}

/// What of `[gpu_server]` goes into the policy.
struct Timing {
    wake_check: WakeCheck,
    wake_resend: Duration,
    boot: Duration,
    power_off: Duration,
    silence: Duration,
}

fn gpu_server(s: &Section<'_>) -> (Server, Timing) {
    let server_name = s.get("name", "gpu", text_as(name));
    let host = s.required("host", "\"192.168.1.20\"", text_as(host));
    let ssh = s.section("ssh", |s| SshTarget {
        host,
        port: s.get("port", "22", integer(1..=65535)),
        user: s.get("user", "wechsler", text_as(word)),
        key: s.get("key", "/etc/wechsler/id_ed25519", text_as(path)),
        host_keys: host_keys(s),
        preboot_host_keys: s.get("preboot_host_keys", "", list_of(host_key)),
        connect_timeout: s.get("connect_timeout", "5s", duration(100 * MILLISECOND)),
        command_timeout: s.get("command_timeout", "10s", duration(SECOND)),
        keepalive: s.get("keepalive", "15s", duration(SECOND)),
    });
    let (wake, wake_interface, wake_check, wake_resend) = s.section("wake", wake);
    let (boot, power_off, silence) = s.section("timeouts", |s| {
        (
            s.get("boot", "5m", duration(SECOND)),
            s.get("power_off", "3m", duration(SECOND)),
            s.get("silence", "30s", duration(SECOND)),
        )
    });
    let server = Server {
        name: server_name,
        ssh,
        wake,
        wake_interface,
        gpu: s.section("gpu", gpu),
        privilege: s.section("commands", |s| s.get("prefix", "", list_of(prefix_word))),
    };
    let timing = Timing { wake_check, wake_resend, boot, power_off, silence };
    (server, timing)
}

fn host_keys(s: &Section<'_>) -> Vec<String> {
    s.required(
        "host_keys",
        "[\"ssh-ed25519 AAAA...\"]`, as `ssh-keyscan HOST` prints it, compared with the server's own `/etc/ssh/*.pub",
        at_least_one(list_of(host_key)),
    )
}

/// A word of a command that goes through a remote shell.
fn prefix_word(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "/._-=".contains(c);
    if text.chars().all(safe) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" must be letters, digits and /._-= only"))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Method {
    #[default]
    None,
    MagicPacket,
    Command,
}

const METHODS: &[(&str, Method)] =
    &[("magic-packet", Method::MagicPacket), ("command", Method::Command), ("none", Method::None)];

fn wake(s: &Section<'_>) -> (Wake, Option<String>, WakeCheck, Duration) {
    let method = s.get("method", "none", one_of(METHODS));
    let mac = s.optional("mac", text_as(mac));
    let secure_on = s.optional("secure_on", text_as(secure_on));
    let targets = s.get("targets", "255.255.255.255:9", at_least_one(list_of(wake_target)));
    let source: Option<IpAddr> = s.optional("source", text_as(own_address));
    let command = s.optional("command", at_least_one(list_of(any)));
    let resend = s.get("resend_every", "3s", duration(SECOND / 2));
    let checks: &'static [_] = &[("require", WakeCheck::Require), ("warn", WakeCheck::Warn), ("off", WakeCheck::Off)];
    let check = s.get("wake_check", "warn", one_of(checks));
    let interface = s.optional("interface", text_as(interface));

    let word = |m| METHODS.iter().find(|(_, n)| *n == m).map_or("", |(w, _)| w);
    for (key, belongs) in [
        ("mac", Method::MagicPacket),
        ("secure_on", Method::MagicPacket),
        ("targets", Method::MagicPacket),
        ("source", Method::MagicPacket),
        ("command", Method::Command),
    ] {
        if s.has(key) && belongs != method {
            let (wanted, is) = (word(belongs), word(method));
            let message = format!("goes with method = \"{wanted}\", but method is \"{is}\"");
            s.disagree(key, "method", message);
        }
    }
    if let Some(source) = source
        && let Some(target) = targets.iter().find(|t| t.is_ipv4() != source.is_ipv4())
    {
        let message = format!("{source} cannot send to {target}: one is IPv4, the other IPv6");
        s.disagree("source", "targets", message);
    }
    let wake = match method {
        Method::None => Wake::None,
        Method::MagicPacket => {
            if !s.has("mac") {
                s.fault(
                    "mac",
                    "is missing; method = \"magic-packet\" needs the server's hardware address, \
                     as `mac = \"52:54:00:12:34:56\"`",
                );
            }
            Wake::MagicPacket { mac: mac.unwrap_or_default(), secure_on, targets, source }
        }
        Method::Command => {
            if !s.has("command") {
                s.fault(
                    "command",
                    "is missing; method = \"command\" needs the program and its arguments, \
                     as `command = [\"/usr/bin/ipmitool\", \"power\", \"on\"]`",
                );
            }
            let command = command.unwrap_or_default();
            if let Some(program) = command.first().filter(|p| !p.starts_with('/')) {
                let message = format!("\"{program}\" must be the absolute path of a program: no shell looks for it");
                s.fault("command", message);
            }
            Wake::Command(command)
        }
    };
    (wake, interface, check, resend)
}

fn own_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no address of this machine, as 192.168.1.2"))
}

fn gpu(s: &Section<'_>) -> GpuTool {
    let tools: &'static [_] = &[("auto", true), ("nvidia-smi", true), ("none", false)];
    GpuTool {
        enabled: s.get("tool", "auto", one_of(tools)),
        baseline_mib: s.optional("baseline_mib", integer(0..=1 << 30)),
        ignore: s.get("ignore", "Xorg, Xwayland, gnome-shell, kwin_wayland", list_of(any)),
        foreign_threshold_mib: s.get("foreign_threshold_mib", "256", integer(0..=1 << 30)),
        timeout: s.get("timeout", "5s", duration(SECOND)),
    }
}

fn backends(s: &Section<'_>, server: &SshTarget) -> (Vec<Backend>, Vec<BackendPolicy>, BackendId) {
    let names = s.names();
    if names.is_empty() {
        s.fault("NAME", "at least one section `[backends.NAME]` is needed");
    }
    if let Some(extra) = names.get(Policy::MOST_BACKENDS) {
        s.fault(extra, format!("is one too many: at most {} backends", Policy::MOST_BACKENDS));
    }
    let names = &names[..names.len().min(Policy::MOST_BACKENDS)];
    let mut default = None;
    let mut backends = Vec::new();
    let mut policies = Vec::new();
    for (place, name) in names.iter().enumerate() {
        if let Err(message) = backend_name(name) {
            s.fault(name, message);
        }
        let (backend, policy, is_default) = s.section(name, |s| backend(s, name, server));
        if is_default {
            match default {
                None => default = Some(place),
                Some(first) => s.disagree(
                    &format!("{name}.default"),
                    &format!("{}.default", names[first]),
                    format!("`{}` is the default already: only one can be", names[first]),
                ),
            }
        }
        backends.push(backend);
        policies.push(policy);
    }
    if default.is_none() && names.len() > 1 {
        let all = names.join("`, `");
        s.fault(
            &names[0],
            format!("no backend is the default of a bare `start`; write `default = true` into one of `{all}`"),
        );
    }
    let id = u8::try_from(default.unwrap_or(0)).unwrap_or(0);
    (backends, policies, BackendId(id))
}

/// A backend's name must not be taken for a state, a word of a command, or another backend's starting state.
fn backend_name(text: &str) -> Result<String, String> {
    let state = |kind: &Kind| kind.public_name("") == text;
    if RESERVED.contains(&text) || Kind::ALL.iter().any(state) || text.ends_with("-starting") {
        return Err(format!("\"{text}\" is a word of Wechsler's own and cannot name a backend"));
    }
    name(text)
}

fn backend(s: &Section<'_>, name: &str, server: &SshTarget) -> (Backend, BackendPolicy, bool) {
    let kinds: &'static [_] = &[
        ("llama-cpp", Some(BackendKind::LlamaCpp)),
        ("vllm", Some(BackendKind::Vllm)),
        ("generic", Some(BackendKind::Generic)),
    ];
    let kind = s.required("kind", "\"llama-cpp\"", one_of(kinds)).unwrap_or(BackendKind::Generic);
    let (start, expected) = match kind {
        BackendKind::LlamaCpp => ("120s", "8s"),
        BackendKind::Vllm => ("300s", "80s"),
        BackendKind::Generic => ("120s", "30s"),
    };
    let on_timeouts: &'static [_] = &[("leave", OnStartTimeout::Leave), ("stop", OnStartTimeout::Stop)];
    let restores: &'static [_] =
        &[("auto", RestorePolicy::Auto), ("offer", RestorePolicy::Offer), ("never", RestorePolicy::Never)];
    let url_ = s.required("url", "\"http://192.168.1.20:8080\"", text_as(url));
    let slots = s.section("slots", |s| s.is_given().then(|| (slots(s), checkpoints(s))));
    let (slots, checkpoints) = slots.unzip();
    let (checkpoint_tokens, checkpoint_quiet) = checkpoints.unwrap_or_default();
    let ssh = s.section("ssh", |s| s.is_given().then(|| own_ssh(s, server)));
    let restore = s.get("restore", "auto", one_of(restores));
    let health_path = s.get("health_path", "/health", text_as(url_path));
    if kind != BackendKind::Generic && s.has("health_path") {
        s.disagree("health_path", "kind", "only a backend of kind = \"generic\" has a choice; the others' is known");
    }
    if kind != BackendKind::LlamaCpp && slots.is_some() {
        s.fault("slots", "only a backend of kind = \"llama-cpp\" has slots to save");
    }
    if slots.is_none() && s.has("restore") {
        s.disagree("restore", "kind", format!("nothing can be restored without `[{}]`", s.full("slots")));
    }
    let policy = BackendPolicy {
        name: name.to_owned(),
        kind,
        start_timeout: s.get("start_timeout", start, duration(SECOND)),
        on_start_timeout: s.get("on_start_timeout", "leave", one_of(on_timeouts)),
        drain_timeout: s.get("drain_timeout", "60s", duration(Duration::ZERO)),
        stop_timeout: s.get("stop_timeout", "90s", duration(SECOND)),
        kill_timeout: s.get("kill_timeout", "15s", duration(SECOND)),
        slots: slots.is_some(),
        restore: if slots.is_some() { restore } else { RestorePolicy::Never },
        save_timeout: slots.as_ref().map_or(MINUTE, |slots| slots.save_timeout),
        restore_timeout: slots.as_ref().map_or(MINUTE, |slots| slots.restore_timeout),
        checkpoint_tokens,
        checkpoint_quiet,
    };
    let backend = Backend {
        name: name.to_owned(),
        unit: s.optional("unit", text_as(unit)).unwrap_or_else(|| format!("{name}.service")),
        public_url: s.optional("public_url", text_as(public_url)).unwrap_or_else(|| url_.clone()),
        url: url_,
        health_path,
        api_key_file: s.optional("api_key_file", text_as(path)),
        model: s.optional("model", text),
        ssh,
        slots,
        // A short start timeout says that starts are short.
        expected_start: s
            .get_fitted("expected_start", expected, duration(MILLISECOND), |usual| usual.min(policy.start_timeout / 2)),
    };
    (backend, policy, s.get("default", "false", boolean))
}

/// What people are told is theirs to choose, TLS and all; only what cannot be a URL is refused.
fn public_url(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("must begin with http:// or https://".into())
    }
}

fn slots(s: &Section<'_>) -> Slots {
    let proofs = &[("later", Prove::Later), ("at-once", Prove::AtOnce)];
    Slots {
        dir: s.required("dir", "\"/mnt/models/cache/slots\"", text_as(absolute)),
        name: s.required("name", "\"localbot\"", text_as(word)),
        keep: s.get("keep", "3", integer(1..=100)),
        save_timeout: s.get("save_timeout", "60s", duration(SECOND)),
        restore_timeout: s.get("restore_timeout", "60s", duration(SECOND)),
        mounted: s.optional("mounted", text_as(absolute)),
        digest: s.get("digest", "true", boolean),
        keep_for: s.get("keep_for", "never", duration_or_never(MINUTE)),
        most_mib: s.optional("most_mib", integer(1..=1 << 30)),
        prove: s.get("prove", "later", one_of(proofs)),
        prove_timeout: s.get("prove_timeout", "10s", duration(SECOND)),
        checkpoint_most_mib: s.optional("checkpoint_most_mib", integer(1..=1 << 30)),
    }
}

/// When slots are saved while the backend goes on running: tokens, and quiet.
fn checkpoints(s: &Section<'_>) -> (Option<u64>, Option<Duration>) {
    (
        s.optional("checkpoint_tokens", integer(1..=1 << 32)),
        s.get("checkpoint_quiet", "never", duration_or_never(SECOND)),
    )
}

/// A backend's own SSH: what it does not say is as for the server, but for its identity.
fn own_ssh(s: &Section<'_>, server: &SshTarget) -> SshTarget {
    SshTarget {
        host: s.optional("host", text_as(host)).unwrap_or_else(|| server.host.clone()),
        port: s.optional("port", integer(1..=65535)).unwrap_or(server.port),
        user: s.optional("user", text_as(word)).unwrap_or_else(|| server.user.clone()),
        key: s.optional("key", text_as(path)).unwrap_or_else(|| server.key.clone()),
        host_keys: host_keys(s),
        preboot_host_keys: s.get("preboot_host_keys", "", list_of(host_key)),
        connect_timeout: s.optional("connect_timeout", duration(100 * MILLISECOND)).unwrap_or(server.connect_timeout),
        command_timeout: s.optional("command_timeout", duration(SECOND)).unwrap_or(server.command_timeout),
        keepalive: s.optional("keepalive", duration(SECOND)).unwrap_or(server.keepalive),
    }
}

/// `[idle]`.
struct Idle {
    stop_after: Option<Duration>,
    power_off_after: Option<Duration>,
    backoff: Duration,
}

fn idle(s: &Section<'_>) -> Idle {
    Idle {
        stop_after: s.get("stop_after", "never", duration_or_never(SECOND)),
        power_off_after: s.get("power_off_after", "never", duration_or_never(SECOND)),
        backoff: s.get("backoff", "60s", duration(SECOND)),
    }
}

fn probe(s: &Section<'_>) -> (Probe, u32, Duration) {
    let probe = Probe {
        rest: s.get("rest", "10s", duration(SECOND)),
        busy: s.get("busy", "30ms", duration(10 * MILLISECOND)),
        waiting: s.get("waiting", "1s", duration(100 * MILLISECOND)),
        http_timeout: s.get("http_timeout", "2s", duration(100 * MILLISECOND)),
    };
    let misses = s.get("misses", "3", integer(1..=100));
    (probe, misses, s.get("conflict_after", "3s", duration(Duration::ZERO)))
}
