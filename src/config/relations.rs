//! What must hold between keys. Each complaint names both, with both values.

use std::time::Duration;

use super::{Config, SshTarget, section::Reader, value::show};

/// What the machine allows a look beyond one command over SSH.
const YOUNG: Duration = Duration::from_secs(5);

/// A duration of the configuration: the key it stands under, and its value.
type Timed = (String, Duration);

/// Checks everything. A key that is faulty by itself is not compared.
pub(super) fn check(config: &Config, reader: &Reader) {
    for (shorter, longer, why) in orders(config) {
        let ((a, a_value), (b, b_value)) = (&shorter, &longer);
        if a_value >= b_value {
            let (a_value, b_value) = (show(*a_value), show(*b_value));
            let message = format!("{a_value} must be shorter than `{b}`, which is {b_value}: {why}");
            reader.disagree(a, b, message);
        }
    }
    old_looks(config, reader);
    twins(config, reader);
}

/// Health and units are asked together. A look that takes longer than this is too old to act on, and so would be the next.
fn old_looks(config: &Config, reader: &Reader) {
    let (http, command) = (config.probe.http_timeout, config.policy.command_timeout);
    let most = command + YOUNG;
    if http >= most {
        let message = format!(
            "{} must be shorter than `gpu_server.ssh.command_timeout`, which is {}, and {} more: a look that takes longer is too old to act on",
            show(http),
            show(command),
            show(YOUNG)
        );
        reader.disagree("probe.http_timeout", "gpu_server.ssh.command_timeout", message);
    }
}

/// Every pair of durations of which the first must be shorter than the second, with the reason.
fn orders(config: &Config) -> Vec<(Timed, Timed, &'static str)> {
    const WAITED: &str = "one order over SSH must have ended before that is given up";
    let (policy, probe) = (&config.policy, &config.probe);
    let key = |key: &str, value| (key.to_owned(), value);
    let command = || key("gpu_server.ssh.command_timeout", policy.command_timeout);
    let silence = || key("gpu_server.timeouts.silence", policy.silence);
    let mut orders = vec![
        (command(), key("gpu_server.timeouts.boot", policy.boot_timeout), WAITED),
        (command(), key("gpu_server.timeouts.power_off", policy.power_off_timeout), WAITED),
        (
            silence(),
            key("gpu_server.timeouts.power_off", policy.power_off_timeout),
            "a server counts as off only after that silence",
        ),
        (
            key("probe.http_timeout", probe.http_timeout),
            silence(),
            "one lost question must not look like a server that is off",
        ),
        (
            key("gpu_server.ssh.connect_timeout", config.server.ssh.connect_timeout),
            silence(),
            "one lost connection must not look like a server that is off",
        ),
        (
            key("gpu_server.wake.resend_every", policy.wake_resend),
            key("gpu_server.timeouts.boot", policy.boot_timeout),
            "one lost packet must not be the last",
        ),
        (
            key("probe.busy", probe.busy),
            key("probe.rest", probe.rest),
            "more is looked at while something is under way",
        ),
    ];
    orders.push(keepalive("gpu_server.ssh", &config.server.ssh));
    for (backend, policy) in config.backends.iter().zip(&config.policy.backends) {
        let own = |name: &str, value| (format!("backends.{}.{name}", backend.name), value);
        for (name, value) in [
            ("start_timeout", policy.start_timeout),
            ("stop_timeout", policy.stop_timeout),
            ("kill_timeout", policy.kill_timeout),
        ] {
            orders.push((command(), own(name, value), WAITED));
        }
        orders.push((
            own("expected_start", backend.expected_start),
            own("start_timeout", policy.start_timeout),
            "a usual start must not time out",
        ));
        if let Some(ssh) = &backend.ssh {
            orders.push(keepalive(&format!("backends.{}.ssh", backend.name), ssh));
            orders.push((
                own("ssh.command_timeout", ssh.command_timeout),
                own("kill_timeout", policy.kill_timeout),
                WAITED,
            ));
        }
    }
    orders
}

/// The SSH library spins if a keepalive falls due before it has authenticated.
fn keepalive(section: &str, ssh: &SshTarget) -> (Timed, Timed, &'static str) {
    (
        (format!("{section}.connect_timeout"), ssh.connect_timeout),
        (format!("{section}.keepalive"), ssh.keepalive),
        "a session must stand before its first keepalive is due",
    )
}

/// No two backends may share a unit of one machine, or a URL: nobody could tell which of them is up.
fn twins(config: &Config, reader: &Reader) {
    let machine = |ssh: &Option<SshTarget>| {
        let ssh = ssh.as_ref().unwrap_or(&config.server.ssh);
        (ssh.host.clone(), ssh.port)
    };
    for (later, b) in config.backends.iter().enumerate() {
        for a in &config.backends[..later] {
            let key = |name: &str, key: &str| format!("backends.{name}.{key}");
            if a.url == b.url {
                let message = format!("{} is the URL of `{}` too", b.url, a.name);
                reader.disagree(&key(&b.name, "url"), &key(&a.name, "url"), message);
            }
            if a.unit == b.unit && machine(&a.ssh) == machine(&b.ssh) {
                let message = format!("{} is the unit of `{}` too", b.unit, a.name);
                reader.disagree(&key(&b.name, "unit"), &key(&a.name, "unit"), message);
            }
        }
    }
}
