//! What the server answers to a command, in the form of the real tools.

use std::{
    fmt::Write as _,
    io::Read as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    faults::{FolderFault, GpuFault, Refusal},
    gpu, power,
    shared::Shared,
    shell::Command,
    truth::{By, What},
    units::{self, Answer, Ran},
};

/// Carries a command out. `session` is the number of the one it comes from.
pub(super) async fn carry_out(shared: &Arc<Shared>, command: &Command, session: u64) -> Ran {
    match command {
        Command::Start(unit) => order(shared, "start", unit, units::start).await,
        Command::Stop(unit) => order(shared, "stop", unit, units::stop).await,
        Command::Kill(unit) => match refusal(shared, "kill unit", unit, 1) {
            Some(no) => no,
            None => units::kill(shared, unit, By::Ssh),
        },
        Command::ResetFailed(unit) => match refusal(shared, "reset failed state of unit", unit, 1) {
            Some(no) => no,
            None => units::reset_failed(shared, unit),
        },
        Command::PowerOff => power_off(shared),
        Command::Units(names) => Ran::said(show(shared, names)),
        Command::PostMortem(unit, port) => post_mortem(shared, unit, *port).await,
        Command::People => Ran::said(shared.state().people.answer(session, &shared.setup.user)),
        Command::Gpu(limit) => gpu_tool(shared, *limit).await,
        Command::WakeOn(interface) => Ran::said(wake_on(shared, interface.as_deref())),
        Command::Stat(path) => stat(path),
        Command::List(path) => list(path),
        Command::Head(path, bytes) => head(path, *bytes),
        Command::Free(path) => free(shared, path),
        Command::Remove(path) => remove(shared, path),
        Command::Rename(from, to) => rename(shared, from, to),
    }
}

async fn order(shared: &Arc<Shared>, doing: &str, unit: &str, order: fn(&Arc<Shared>, &str, By) -> Answer) -> Ran {
    if let Some(no) = refusal(shared, doing, unit, 4) {
        return no;
    }
    let answer = order(shared, unit, By::Ssh);
    sleep(shared.setup.times.start_order).await;
    match answer {
        Answer::Now(ran) => ran,
        // The job is gone with the machine: nobody will hear of it.
        Answer::Later(ended) => ended.await.unwrap_or_else(|_| Ran::failed(255, "")),
    }
}

/// polkit's no, which ends with `denied` where it is a plain one.
fn refusal(shared: &Shared, doing: &str, unit: &str, denied: u32) -> Option<Ran> {
    Some(match shared.faults.refusal.strike()? {
        Refusal::Denied => Ran::failed(denied, format!("Failed to {doing} {unit}: Access denied\n")),
        Refusal::WouldAsk => {
            Ran::failed(1, format!("Failed to {doing} {unit}: Interactive authentication required.\n"))
        }
    })
}

fn power_off(shared: &Arc<Shared>) -> Ran {
    let ask = "Call to PowerOff failed: Interactive authentication required.\n";
    match shared.faults.refusal.strike() {
        Some(Refusal::Denied) => return Ran::failed(1, "Call to PowerOff failed: Access denied\n"),
        Some(Refusal::WouldAsk) => return Ran::failed(1, ask),
        None => {}
    }
    // An inhibitor asks for another right, which nobody has.
    if !shared.state().people.inhibitors.is_empty() {
        return Ran::failed(1, ask);
    }
    shared.did(What::PowerOffOrdered(By::Ssh));
    power::go_down(shared, false);
    Ran::default()
}

fn show(shared: &Shared, names: &[String]) -> String {
    let fault = shared.faults.unit.now();
    let state = shared.state();
    let boot = uuid(state.boot.0);
    let known = |name: &String| state.units.iter().find(|u| u.setup.name == *name);
    let block = |name: &String| match known(name) {
        Some(unit) => unit.show(fault.as_ref(), shared.setup.times.timeout_stop),
        None => units::absent(name),
    };
    let blocks: Vec<String> = names.iter().map(block).collect();
    let mut out = format!("@@boot\n{boot}\n@@units\n{}@@status 0\n", blocks.join("\n"));
    for name in names {
        out.push_str("@@left\n");
        if known(name).is_some_and(super::units::Unit::is_populated) {
            out.push_str("populated 1\n");
        }
    }
    out.push_str("@@end\n");
    out
}

fn uuid(id: u128) -> String {
    let hex = format!("{id:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

async fn post_mortem(shared: &Shared, name: &str, port: u16) -> Ran {
    /// Loopback answers at once or never.
    const LISTENS_WITHIN: Duration = Duration::from_millis(100);
    let fault = shared.faults.unit.now();
    let (end, journal) = {
        let state = shared.state();
        match state.units.iter().find(|u| u.setup.name == name) {
            Some(unit) => (unit.show_end(fault.as_ref()), unit.journal(10)),
            None => (units::absent(name), vec![]),
        }
    };
    let address = shared.ports.iter().map(super::ports::Port::address).find(|a| a.port() == port);
    let listens = match address {
        Some(address) => matches!(timeout(LISTENS_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_))),
        None => false,
    };
    let mut out = format!("@@unit\n{end}@@listens\n");
    if listens {
        let _ = writeln!(out, "LISTEN 0 512 127.0.0.1:{port} 0.0.0.0:*");
    }
    let _ = writeln!(out, "@@asked\n@@journal\n{}\n@@end", journal.join("\n"));
    Ran::said(out)
}

async fn gpu_tool(shared: &Shared, limit: Duration) -> Ran {
    sleep(shared.setup.times.gpu_tool.saturating_mul(2)).await;
    match shared.faults.gpu.strike() {
        None => Ran::said(gpu::answer(shared, 0, 0)),
        Some(GpuFault::Missing(missing)) => Ran::said(gpu::answer(shared, missing, 0)),
        Some(GpuFault::Leaks(mib)) => Ran::said(gpu::answer(shared, 0, mib)),
        Some(GpuFault::ToolAbsent) => Ran::said("@@amd\n@@status 0\n@@kfd\n@@status 0\n@@end\n"),
        Some(GpuFault::Broken(code, text)) => {
            Ran::said(format!("@@nvidia\n{}\n@@status {code}\n@@end\n", text.trim_end()))
        }
        Some(GpuFault::Hangs) => {
            sleep(limit).await;
            Ran::said("@@nvidia\n@@status 124\n@@end\n")
        }
        Some(GpuFault::HangsForEver) => std::future::pending().await,
    }
}

fn wake_on(shared: &Shared, interface: Option<&str>) -> String {
    let nic = interface.unwrap_or("eth0");
    let modes = if shared.faults.disarmed.strike().is_some() { "d" } else { "g" };
    format!(
        "@@nic {nic}\nSettings for {nic}:\n\tSpeed: 1000Mb/s\n\tSupports Wake-on: pumbg\n\tWake-on: {modes}\n\tLink detected: yes\n@@end\n"
    )
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// As `systemctl` shows it: `Mon 2026-11-23 22:04:34 UTC`.
pub(super) fn timestamp(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let days = seconds(time) / 86_400;
    let day = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let text = humantime::format_rfc3339_seconds(time).to_string().replace('T', " ");
    format!("{day} {} UTC", text.trim_end_matches('Z'))
}

fn complaint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "No such file or directory",
        std::io::ErrorKind::PermissionDenied => "Permission denied",
        std::io::ErrorKind::NotADirectory => "Not a directory",
        _ => "Input/output error",
    }
}

/// Size and age, as `stat -c "%s %Y"`.
fn stat_line(path: &Path) -> std::io::Result<String> {
    let about = std::fs::metadata(path)?;
    Ok(format!("{} {}", about.len(), about.modified().map_or(0, seconds)))
}

fn stat(path: &str) -> Ran {
    match stat_line(Path::new(path)) {
        Ok(line) => Ran::said(format!("{line}\n")),
        Err(error) => Ran::failed(1, format!("stat: cannot statx '{path}': {}\n", complaint(&error))),
    }
}

fn list(path: &str) -> Ran {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Ran::failed(1, format!("wechsler: 1: cd: can't cd to {path}\n"));
    };
    let mut lines: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
            Some(format!("{} {name}\n", stat_line(&entry.path()).ok()?))
        })
        .collect();
    lines.truncate(512);
    Ran::said(format!("{}@@end\n", lines.concat()))
}

/// As `head -c BYTES | od -An -v -tx1`, of which the end hides a failure of the beginning.
fn head(path: &str, bytes: usize) -> Ran {
    let mut first = vec![];
    let most = u64::try_from(bytes).unwrap_or(u64::MAX);
    let read = std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut first));
    if let Err(error) = read {
        return Ran {
            stderr: format!("head: cannot open '{path}' for reading: {}\n", complaint(&error)),
            ..Ran::default()
        };
    }
    let line = |part: &[u8]| part.iter().fold(String::new(), |line, byte| format!("{line} {byte:02x}")) + "\n";
    Ran::said(first.chunks(16).map(line).collect::<String>())
}

fn free(shared: &Shared, path: &str) -> Ran {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Ran::failed(1, format!("df: {path}: No such file or directory\n"));
    };
    let sizes = entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|about| about.len());
    let used = sizes.sum::<u64>() / 1024;
    let all = shared.setup.disk_mib * 1024;
    let full = shared.faults.folder.strike_if(|fault| *fault == FolderFault::Full).is_some();
    let available = if full { 0 } else { all.saturating_sub(used) };
    Ran::said(format!(
        "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/sda1 {all} {used} {available} 1% /mnt\n"
    ))
}

/// Only what lies in the slot folder is ever changed.
fn foreign(shared: &Shared, path: &str) -> bool {
    let inside = Path::new(path).parent() == Some(&shared.setup.slot_dir());
    if !inside {
        shared.violated(format!("a change outside the slot folder: {path}"));
    }
    !inside
}

fn read_only(shared: &Shared) -> bool {
    shared.faults.folder.strike_if(|fault| *fault == FolderFault::ReadOnly).is_some()
}

fn remove(shared: &Shared, path: &str) -> Ran {
    if foreign(shared, path) || read_only(shared) {
        return Ran::failed(1, format!("rm: cannot remove '{path}': Read-only file system\n"));
    }
    match std::fs::remove_file(path) {
        Ok(()) => shared.did(What::FileRemoved(path.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Ran::failed(1, format!("rm: cannot remove '{path}': {}\n", complaint(&error))),
    }
    Ran::default()
}

fn rename(shared: &Shared, from: &str, to: &str) -> Ran {
    if foreign(shared, from) || foreign(shared, to) || read_only(shared) {
        return Ran::failed(1, format!("mv: cannot move '{from}' to '{to}': Read-only file system\n"));
    }
    match std::fs::rename(from, to) {
        Ok(()) => shared.did(What::FileRenamed(from.into(), to.into())),
        Err(error) => return Ran::failed(1, format!("mv: cannot stat '{from}': {}\n", complaint(&error))),
    }
    Ran::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_systemd_shows_them() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_471_474);
        assert_eq!(timestamp(time), "Mon 2026-11-23 22:04:34 UTC");
        assert_eq!(uuid(0x3c1b_2f6e_9a40_4e57_8a52_0f0c_9d3b_1a77), "3c1b2f6e-9a40-4e57-8a52-0f0c9d3b1a77");
    }
}
