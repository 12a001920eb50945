//! The configuration of a daemon for this server.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use super::{VirtualServer, setup::Engine};

/// What the configuration leaves to whoever runs the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// The file with the client's private key, see [`VirtualServer::client_key`].
    pub key: PathBuf,
    /// `idle.stop_after`.
    pub stop_after: Option<Duration>,
    /// `idle.power_off_after`.
    pub power_off_after: Option<Duration>,
}

impl VirtualServer {
    /// The configuration of a daemon for this server. Its deadlines fit the server's times.
    #[must_use]
    pub fn config_toml(&self, places: &Places) -> String {
        let setup = &self.shared.setup;
        let times = &setup.times;
        let mac: Vec<String> = setup.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        // Deadlines several times as long as what they wait for, so that a slow machine under test misses none.
        let long = |time: Duration, least: u64| show((time * 4).max(Duration::from_secs(least)));
        let idle = |after: Option<Duration>| after.map_or_else(|| "never".into(), show);
        let baseline = setup.gpus.iter().map(|g| g.baseline_mib).max().unwrap_or(0) + 100;
        let mut text = format!(
            "[daemon]\nsocket = {socket}\nstate_dir = {state}\n\n\
             [gpu_server]\nname = \"virtual\"\nhost = \"127.0.0.1\"\n\n\
             [gpu_server.ssh]\nuser = {user}\nport = {port}\nkey = {key}\nhost_keys = [\"{host_key}\"]\n\
             preboot_host_keys = [\"{initramfs}\"]\nconnect_timeout = \"900ms\"\ncommand_timeout = \"2s\"\nkeepalive = \"2s\"\n\n\
             [gpu_server.wake]\nmethod = \"magic-packet\"\nmac = \"{mac}\"\ntargets = [\"{wake}\"]\nsource = \"127.0.0.1\"\n\
             resend_every = \"500ms\"\n\n\
             [gpu_server.timeouts]\nboot = \"{boot}\"\npower_off = \"{power_off}\"\nsilence = \"{silence}\"\n\n\
             [gpu_server.gpu]\nbaseline_mib = {baseline}\ntimeout = \"1s\"\n",
            socket = quoted(&places.socket.to_string_lossy()),
            state = quoted(&places.state_dir.to_string_lossy()),
            user = quoted(&setup.user),
            port = self.ssh_address().port(),
            key = quoted(&places.key.to_string_lossy()),
            host_key = self.host_key(),
            initramfs = self.initramfs_key(),
            mac = mac.join(":"),
            wake = self.wake_address(),
            boot = long(times.boot, 10),
            power_off = long(times.power_off, 10),
            silence = show(SILENCE),
        );
        for (place, unit) in setup.units.iter().enumerate() {
            let name = unit.name.trim_end_matches(".service");
            let url = format!("http://{}", self.shared.ports[place].address());
            let (kind, model, load) = match &unit.engine {
                Engine::LlamaCpp { alias, .. } => ("llama-cpp", alias, times.llama_load),
                Engine::Vllm { model, .. } => ("vllm", model, times.vllm_load),
            };
            let _ = write!(
                text,
                "\n[backends.{name}]\nkind = \"{kind}\"\nunit = {}\nurl = \"{url}\"\nmodel = {}\nstart_timeout = \"{}\"\n\
                 expected_start = \"{}\"\ndrain_timeout = \"{}\"\nstop_timeout = \"{}\"\nkill_timeout = \"5s\"\ndefault = {}\n",
                quoted(&unit.name),
                quoted(model),
                long(load, 10),
                show(load.max(Duration::from_millis(1))),
                show((times.timeout_stop * 2).max(Duration::from_secs(5))),
                long(times.timeout_stop, 10),
                place == 0,
            );
            if kind == "llama-cpp" {
                let dir = quoted(&setup.slot_dir().to_string_lossy());
                let _ = write!(text, "\n[backends.{name}.slots]\ndir = {dir}\nname = \"localbot\"\n");
            }
        }
        let _ = write!(
            text,
            "\n[idle]\nstop_after = \"{}\"\npower_off_after = \"{}\"\nbackoff = \"1s\"\n\n\
             [probe]\nrest = \"1s\"\nbusy = \"30ms\"\nwaiting = \"100ms\"\nhttp_timeout = \"500ms\"\nconflict_after = \"500ms\"\n",
            idle(places.stop_after),
            idle(places.power_off_after),
        );
        text
    }
}

/// Loopback answers at once or never. Longer than a question over HTTP and a connection may take.
const SILENCE: Duration = Duration::from_millis(1500);

fn show(time: Duration) -> String {
    humantime::format_duration(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))).to_string()
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| match c {
        '"' => "\\\"".chars().collect::<Vec<_>>(),
        '\\' => "\\\\".chars().collect(),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)).chars().collect(),
        c => vec![c],
    });
    format!("\"{}\"", escaped.collect::<String>())
}
