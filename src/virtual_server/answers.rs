//! What the server answers to a command, in the form of the real tools.

use std::{
    fmt::Write as _,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    faults::{FolderFault, GpuFault, Refusal, UnitFault},
    gpu, power,
    shared::Shared,
    shell::{Command, Files},
    truth::{By, What},
    unit::{self, Unit},
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
        Command::UnitsDown(names) => Ran::said(show_down(shared, names)),
        Command::PostMortem(unit, port) => post_mortem(shared, unit, *port).await,
        Command::People => Ran::said(shared.state().people.answer(session, &shared.setup.user)),
        Command::Gpu(limit) => gpu_tool(shared, *limit).await,
        Command::WakeOn(interface) => Ran::said(wake_on(shared, interface.as_deref())),
        Command::Files(folder, asked) => files(shared, folder, asked).await,
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
    if let Some(UnitFault::Missing(unit) | UnitFault::Masked(unit)) = &fault
        && names.contains(unit)
    {
        shared.faults.unit.count();
    }
    let known = |name: &String| state.units.iter().find(|u| u.setup.name == *name);
    let block = |name: &String| match known(name) {
        Some(unit) => unit.show(fault.as_ref(), shared.setup.times.timeout_stop),
        None => unit::absent(name),
    };
    let blocks: Vec<String> = names.iter().map(block).collect();
    let out = format!("@@boot\n{boot}\n@@units\n{}@@status 0\n", blocks.join("\n"));
    let left: String = names.iter().map(|name| left(known(name))).collect();
    format!("{out}{left}@@end\n")
}

/// What the control group of a unit still holds.
fn left(unit: Option<&Unit>) -> &'static str {
    if unit.is_some_and(Unit::is_populated) { "@@left\npopulated 1\n" } else { "@@left\n" }
}

/// As systemd's `ListUnitsByNames` answers over busctl.
fn show_down(shared: &Shared, names: &[String]) -> String {
    let fault = shared.faults.unit.now();
    let state = shared.state();
    let known = |name: &String| state.units.iter().find(|u| u.setup.name == *name);
    let listed = |name: &String| match known(name) {
        Some(unit) => unit.listed(fault.as_ref()),
        None => unit::listed_absent(name),
    };
    let list: Vec<String> = names.iter().map(listed).collect();
    let left: String = names.iter().map(|name| left(known(name))).collect();
    let boot = uuid(state.boot.0);
    let list = list.join(",");
    format!("@@boot\n{boot}\n@@list\n{{\"type\":\"a(ssssssouso)\",\"data\":[[{list}]]}}\n{left}@@end\n")
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
            None => (unit::absent(name), vec![]),
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

/// Bytes as `od -An -v -tx1` prints them.
fn dump(bytes: &[u8]) -> String {
    let line = |part: &[u8]| part.iter().fold(String::new(), |line, byte| format!("{line} {byte:02x}")) + "\n";
    bytes.chunks(16).map(line).collect()
}

/// The first bytes as `od -An -v -tx1 -N 24` prints them.
fn head_lines(path: &Path) -> std::io::Result<String> {
    let mut first = vec![];
    std::fs::File::open(path)?.take(24).read_to_end(&mut first)?;
    Ok(dump(&first))
}

/// The command line of what runs in the control group of a unit, as /proc has it.
fn processes(shared: &Shared, unit: &str) -> String {
    let state = shared.state();
    let running = state.units.iter().find(|known| known.setup.name == *unit && known.process.is_some());
    let line = running.map(|unit| unit.program.command_line().join("\0") + "\0");
    line.map_or_else(String::new, |line| format!("@@process\n{}", dump(line.as_bytes())))
}

/// Size, age and first bytes; what `stat` complains of in their place.
fn file_lines(path: &Path) -> String {
    match (stat_line(path), head_lines(path)) {
        (Ok(about), Ok(head)) => format!("{about}\n{head}"),
        (Ok(about), Err(error)) => format!("{about}\nod: {}: {}\n", path.display(), complaint(&error)),
        (Err(error), _) => format!("stat: cannot statx '{}': {}\n", path.display(), complaint(&error)),
    }
}

async fn files(shared: &Shared, folder: &str, asked: &Files) -> Ran {
    let dir = Path::new(folder);
    match asked {
        Files::Survey { free: wanted, model, unit, names } => {
            let free = if *wanted { free(shared, folder) } else { String::new() };
            let model = model.as_ref().map_or_else(String::new, |model| match stat_line(Path::new(model)) {
                Ok(line) => format!("{line}\n"),
                Err(error) => format!("stat: cannot statx '{model}': {}\n", complaint(&error)),
            });
            let files: Vec<String> = names.iter().map(|name| file_lines(&dir.join(name))).collect();
            let files = files.iter().fold(String::new(), |all, file| all + "@@file\n" + file);
            let processes = unit.as_ref().map_or_else(String::new, |unit| processes(shared, unit));
            Ran::said(format!("@@free\n{free}@@model\n{model}{processes}{files}@@end\n"))
        }
        _ if !dir.is_dir() => Ran::failed(2, format!("sh: 2: cd: can't cd to {folder}\n")),
        Files::Digest { name, within } => digest(dir, name, *within).await,
        Files::Words { name, from, count } => words(dir, name, *from, *count),
        Files::List { suffix } => list(dir, suffix),
        Files::Keep { from, to, bytes } => keep(shared, dir, from, to, *bytes),
        Files::Remove(names) => remove(shared, dir, names),
    }
}

fn list(dir: &Path, suffix: &str) -> Ran {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_file()).filter_map(|entry| entry.file_name().into_string().ok());
    let ours = names.filter(|name| name.ends_with(suffix) && !name.starts_with('.'));
    let lines: String = ours.take(512).map(|name| name + "\n").collect();
    let mode = std::fs::metadata(dir).map_or_else(|_| String::new(), |about| format!("{:o}", about.mode() & 0o7777));
    Ran::said(format!("@@mode {mode}\n{lines}@@end\n"))
}

/// As `od -An -v -tx4` prints them.
fn words(dir: &Path, name: &str, from: usize, count: usize) -> Ran {
    let bytes = match std::fs::read(dir.join(name)) {
        Ok(bytes) => bytes,
        Err(error) => return Ran::failed(1, format!("od: {name}: {}\n", complaint(&error))),
    };
    let wanted = bytes.get(from..).unwrap_or_default();
    let line = |part: &[u8]| {
        let words = part.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        words.fold(String::new(), |line, word| format!("{line} {word:08x}")) + "\n"
    };
    let lines: String = wanted[..count.min(wanted.len())].chunks(16).map(line).collect();
    Ran::said(format!("@@words\n{lines}@@end\n"))
}

/// By the real tool, of this machine.
async fn digest(dir: &Path, name: &str, within: Duration) -> Ran {
    let mut tool = tokio::process::Command::new("sha256sum");
    tool.args(["--", name]).current_dir(dir).env("LC_ALL", "C").kill_on_drop(true);
    let said = match timeout(within, tool.output()).await {
        Err(_) => "@@status 124\n".into(),
        Ok(Err(error)) => format!("timeout: failed to run command 'sha256sum': {error}\n@@status 127\n"),
        Ok(Ok(ran)) => {
            let text = [ran.stdout, ran.stderr].concat();
            format!("{}@@status {}\n", String::from_utf8_lossy(&text), ran.status.code().unwrap_or(255))
        }
    };
    Ran::said(format!("@@digest\n{said}@@end\n"))
}

fn free(shared: &Shared, folder: &str) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("df: {folder}: No such file or directory\n");
    };
    let sizes = entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|about| about.len());
    let used = sizes.sum::<u64>() / 1024;
    let all = shared.setup.disk_mib * 1024;
    let full = shared.faults.folder.strike_if(|fault| *fault == FolderFault::Full).is_some();
    let available = if full { 0 } else { all.saturating_sub(used) };
    format!(
        "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/sda1 {all} {used} {available} 1% /mnt\n"
    )
}

/// Only what lies in the slot folder is ever changed.
fn foreign(shared: &Shared, dir: &Path) -> bool {
    let inside = dir == shared.setup.slot_dir();
    if !inside {
        shared.violated(format!("a change outside the slot folder: {}", dir.display()));
    }
    !inside
}

fn read_only(shared: &Shared) -> bool {
    shared.faults.folder.strike_if(|fault| *fault == FolderFault::ReadOnly).is_some()
}

fn keep(shared: &Shared, dir: &Path, from: &str, to: &str, bytes: u64) -> Ran {
    let (old, new) = (dir.join(from), dir.join(to));
    let found = file_lines(&old);
    let is_whole = std::fs::metadata(&old).is_ok_and(|about| about.len() == bytes) && found.contains("\n 71 73 67 67");
    if is_whole {
        if foreign(shared, dir) || read_only(shared) {
            return Ran::failed(1, format!("mv: cannot move '{from}' to '{to}': Read-only file system\n"));
        }
        if let Err(error) = std::fs::rename(&old, &new) {
            return Ran::failed(1, format!("mv: cannot stat '{from}': {}\n", complaint(&error)));
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        shared.did(What::FileRenamed(text(&old), text(&new)));
    }
    Ran::said(format!("@@file\n{found}@@end\n"))
}

fn remove(shared: &Shared, dir: &Path, names: &[String]) -> Ran {
    if foreign(shared, dir) || read_only(shared) {
        return Ran::failed(1, "rm: cannot remove: Read-only file system\n");
    }
    for name in names {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => shared.did(What::FileRemoved(path.to_string_lossy().into_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Ran::failed(1, format!("rm: cannot remove '{name}': {}\n", complaint(&error))),
        }
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
