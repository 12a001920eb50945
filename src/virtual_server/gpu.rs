//! The GPUs: who holds what, and what `nvidia-smi` says of it.

use std::fmt::Write as _;

use tokio::time::Instant;

use super::shared::{Shared, State};

/// Memory of a process that is gone, not yet given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lingering {
    pub(super) until: Instant,
    pub(super) mib: u64,
}

/// A process on the GPU.
struct Row {
    pid: u32,
    user: String,
    name: String,
    /// The control group it is in.
    group: String,
    mib: u64,
    /// On all GPUs, not on the first alone.
    spread: bool,
}

fn rows(state: &State) -> Vec<Row> {
    let mut rows = vec![];
    for unit in &state.units {
        for (pid, mib) in unit.on_gpu() {
            let group = format!("/system.slice/{}", unit.setup.name);
            let (user, name) = unit.program_name();
            rows.push(Row { pid, user: user.into(), name: name.into(), group, mib, spread: true });
        }
    }
    for foreign in &state.people.on_gpu {
        rows.push(Row {
            pid: foreign.pid,
            user: foreign.user.clone(),
            name: foreign.name.clone(),
            group: "/user.slice/user-1000.slice/session-7.scope".into(),
            mib: foreign.mib,
            spread: false,
        });
    }
    rows
}

/// Memory of processes that are gone.
fn lingering(state: &mut State) -> u64 {
    let now = Instant::now();
    state.lingering.retain(|l| l.until > now);
    state.lingering.iter().map(|l| l.mib).sum()
}

/// All memory in use beyond the baseline, and who holds it.
pub(super) fn used(state: &mut State) -> (u64, Vec<String>) {
    let rows = rows(state);
    let held = rows.iter().map(|row| row.mib).sum::<u64>() + lingering(state);
    let names = rows.into_iter().map(|row| row.group.rsplit('/').next().map_or(row.name, str::to_owned));
    (held, names.collect())
}

/// Memory that nobody uses.
pub(super) fn free(shared: &Shared, state: &mut State) -> u64 {
    let room: u64 = shared.setup.gpus.iter().map(|g| g.total_mib.saturating_sub(g.baseline_mib)).sum();
    room.saturating_sub(used(state).0)
}

/// The answer to [`crate::host::remote::gpu`] of a healthy tool, with `missing` GPUs less, and on each of them so many MiB
/// more that are nobody's.
pub(super) fn answer(shared: &Shared, missing: usize, leaked: u64) -> String {
    let mut state = shared.state();
    let shown = shared.setup.gpus.len().saturating_sub(missing);
    let all = shared.setup.gpus.len();
    let gpus = &shared.setup.gpus[..shown];
    if gpus.is_empty() {
        return "@@nvidia\nNo devices were found\n@@status 6\n@@end\n".into();
    }
    let share = |mib: u64| mib / u64::try_from(all).unwrap_or(1).max(1);
    let lingering = lingering(&mut state);
    let rows = rows(&state);
    let mut out = String::from("@@nvidia\n");
    for (index, gpu) in gpus.iter().enumerate() {
        let held = |row: &Row| if row.spread { share(row.mib) } else { row.mib * u64::from(index == 0) };
        let used = gpu.baseline_mib + leaked + rows.iter().map(held).sum::<u64>() + share(lingering);
        let _ = writeln!(out, "{index}, {}, {}", used.min(gpu.total_mib), gpu.total_mib);
    }
    out.push_str("@@status 0\n@@apps\n");
    for index in 0..gpus.len() {
        for row in rows.iter().filter(|row| row.mib > 0 && (row.spread || index == 0)) {
            let mib = if row.spread { share(row.mib) } else { row.mib };
            let _ = writeln!(out, "{}, {mib}, {}", row.pid, row.name);
        }
    }
    out.push_str("@@status 0\n");
    for row in rows.iter().filter(|row| row.mib > 0) {
        let _ = writeln!(out, "@@process {} {}\n0::{}", row.pid, row.user, row.group);
    }
    out.push_str("@@end\n");
    out
}
