//! The GPUs, read from `nvidia-smi` or the amdgpu driver's files.
//!
//! `nvidia-smi` prints its failures on stdout, so the exit code comes first; it is the number of an NVML error
//! (nvidia-ml-py, `pynvml.py`). Any field may be `[N/A]`, `[Not Supported]`, `ERR!` …: each is read on its own.

use std::collections::BTreeMap;

use super::remote::{self, UnitName, plain_text};
use crate::{
    config::GpuTool,
    machine::reading::{Gpu, GpuDevice, GpuProcess},
};

/// Most processes, and most GPUs, told of.
const MOST: usize = 64;

/// Reads the answer to [`remote::gpu`]. `units` are those of the backends, in configuration order.
#[must_use]
pub fn parse(stdout: &str, units: &[UnitName], tool: &GpuTool) -> Gpu {
    let parts = remote::parts(stdout);
    // The status that follows a part is its tool's exit code.
    let tool_part = |name: &str| {
        let at = parts.iter().position(|(mark, _)| *mark == name)?;
        let status = parts.get(at + 1)?.0.strip_prefix("status ")?.parse::<u32>().ok()?;
        Some((status, parts[at].1))
    };
    let (devices, listed) = match (tool_part("nvidia"), tool_part("amd")) {
        (Some((0, table)), _) => (nvidia_devices(table), tool_part("apps")),
        (Some((status, text)), _) => return failed(status, text),
        (None, Some((_, table))) => (amd_devices(table), tool_part("kfd")),
        (None, None) => return broken("gpu_tool_failed", "the answer is cut off"),
    };
    let Some(mut devices) = devices else {
        return broken("gpu_tool_failed", stdout);
    };
    devices.truncate(MOST);
    if devices.is_empty() {
        return Gpu::Absent;
    }
    let listed = match listed {
        Some((0, text)) => text,
        Some((status, text)) => return failed(status, text),
        None => return broken("gpu_tool_failed", "the list of processes is cut off"),
    };
    let nvidia = tool_part("nvidia").is_some();
    let mut owners = BTreeMap::new();
    for (mark, cgroup) in &parts {
        let mut words = mark.split(' ');
        if words.next() == Some("process")
            && let Some(pid) = words.next().and_then(|pid| pid.parse::<u32>().ok())
        {
            owners.entry(pid).or_insert((words.next(), *cgroup));
        }
    }
    let mut processes: Vec<GpuProcess> = vec![];
    for line in listed.lines() {
        let row = if nvidia { nvidia_process(line) } else { amd_process(line) };
        let Some((pid, used_mib, name)) = row else {
            continue;
        };
        // On several GPUs a process has a row for each.
        if let Some(known) = processes.iter_mut().find(|p| p.pid == pid) {
            known.used_mib = known.used_mib.zip(used_mib).map(|(a, b)| a.saturating_add(b));
            continue;
        }
        if processes.len() == MOST {
            continue;
        }
        let about = owners.get(&pid);
        processes.push(GpuProcess {
            pid,
            user: about.and_then(|(user, _)| *user).filter(|user| !user.is_empty()).map(|user| plain_text(user, 40)),
            backend: about.and_then(|(_, cgroup)| units.iter().position(|unit| belongs_to(cgroup, unit))),
            name: plain_text(name, 120),
            used_mib,
            ignored: false,
        });
    }
    for process in &mut processes {
        let program = process.name.rsplit('/').next().unwrap_or_default();
        process.ignored = process.backend.is_none()
            && (tool.ignore.iter().any(|name| *name == program || *name == process.name)
                || process.used_mib.is_some_and(|mib| mib < tool.foreign_threshold_mib));
    }
    Gpu::Read { devices, processes }
}

/// `/proc/PID/cgroup` names the unit somewhere on its path: also inside a container.
fn belongs_to(cgroup: &str, unit: &UnitName) -> bool {
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    cgroup.lines().filter_map(path).any(|path| path.split('/').any(|group| group == unit.as_str()))
}

/// `0, 417, 24576`; `None` if not one line is of this form.
fn nvidia_devices(table: &str) -> Option<Vec<GpuDevice>> {
    let device = |line: &str| {
        let mut fields = line.split(',').map(str::trim);
        let device = GpuDevice {
            index: fields.next()?.parse().ok()?,
            used_mib: mib(fields.next()?),
            total_mib: mib(fields.next()?),
        };
        fields.next().is_none().then_some(device)
    };
    let devices: Vec<_> = table.lines().filter_map(device).collect();
    (!devices.is_empty()).then_some(devices)
}

/// A number of MiB, or one of the many ways to say that there is none.
fn mib(field: &str) -> Option<u64> {
    field.parse().ok()
}

/// `4711, 20312, /usr/bin/llama-server`.
fn nvidia_process(line: &str) -> Option<(u32, Option<u64>, &str)> {
    let mut fields = line.splitn(3, ',').map(str::trim);
    Some((fields.next()?.parse().ok()?, mib(fields.next()?), fields.next()?))
}

/// `USED TOTAL` in bytes, a line for each card.
fn amd_devices(table: &str) -> Option<Vec<GpuDevice>> {
    let device = |(index, line): (usize, &str)| {
        let (used, total) = line.split_once(' ')?;
        Some(GpuDevice {
            index: u32::try_from(index).ok()?,
            used_mib: Some(used.trim().parse::<u64>().ok()? >> 20),
            total_mib: Some(total.trim().parse::<u64>().ok()? >> 20),
        })
    };
    table.lines().enumerate().map(device).collect()
}

/// `PID BYTES NAME`.
fn amd_process(line: &str) -> Option<(u32, Option<u64>, &str)> {
    let mut fields = line.splitn(3, ' ');
    let pid = fields.next()?.parse().ok()?;
    let used = fields.next()?.parse::<u64>().ok().map(|bytes| bytes >> 20);
    Some((pid, used, fields.next()?.trim()))
}

/// What a failing `nvidia-smi` means.
fn failed(status: u32, text: &str) -> Gpu {
    let says = |words: &str| text.contains(words);
    let code = match status {
        127 => return Gpu::Absent,
        124 | 137 => return Gpu::Hangs,
        _ if status == 18 || says("version mismatch") => "driver_mismatch",
        _ if status == 15 || says("GPU is lost") || says("fallen off the bus") => "gpu_lost",
        _ if status == 16 || says("requires reset") => "gpu_reset_required",
        _ if status == 9 || says("communicate with the NVIDIA driver") => "driver_not_loaded",
        _ if status == 4 || says("Insufficient Permissions") => "gpu_not_permitted",
        _ if status == 6 || status == 28 || says("No devices were found") => "gpu_not_found",
        _ if status == 12 || says("NVML Shared Library Not Found") => "driver_not_loaded",
        _ if status == 10 => "gpu_timeout",
        _ if status == 14 => "gpu_inforom",
        _ if status == 255 || says("Unable to determine the device handle") => "gpu_unreachable",
        _ if says("Failed to initialize NVML") => "gpu_access_lost",
        _ => "gpu_tool_failed",
    };
    let text = plain_text(text, 300);
    broken(code, if text.is_empty() { format!("exit status {status}") } else { text }.as_str())
}

fn broken(code: &str, message: &str) -> Gpu {
    Gpu::Broken { code: code.into(), message: plain_text(message, 300) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tool() -> GpuTool {
        GpuTool {
            enabled: true,
            baseline_mib: Some(600),
            ignore: vec!["Xorg".into(), "ffmpeg".into()],
            foreign_threshold_mib: 100,
            timeout: Duration::from_secs(5),
        }
    }

    fn read(stdout: &str) -> Gpu {
        let units = ["llama-cpp.service", "vllm.service"].map(|u| UnitName::new(u).expect("a unit"));
        parse(stdout, &units, &tool())
    }

    #[test]
    fn processes_are_told_with_owner_backend_and_whether_they_matter() {
        let gpu = read(
            "@@nvidia\n0, 21417, 24576\n1, [N/A], [N/A]\n@@status 0\n\
             @@apps\n4711, 20312, /usr/bin/python3, odd\n4712, 500, /usr/lib/xorg/Xorg\n4713, 90, blender\n4714, [N/A], train me\n4711, 100, /usr/bin/python3, odd\n@@status 0\n\
             @@process 4711 vllm\n0::/system.slice/vllm.service\n\
             @@process 4712 root\n0::/user.slice/session-2.scope\n\
             @@process 4713 \n\
             @@process 4714 ann\n11:cpu:/user.slice\n1:name=systemd:/user.slice/user-1000.slice\n@@end\n",
        );
        let Gpu::Read { devices, processes } = gpu else { panic!("{gpu:?}") };
        assert_eq!(
            devices,
            [
                GpuDevice { index: 0, used_mib: Some(21417), total_mib: Some(24576) },
                GpuDevice { index: 1, used_mib: None, total_mib: None }
            ]
        );
        let told: Vec<_> = processes
            .iter()
            .map(|p| (p.pid, p.name.as_str(), p.user.as_deref(), p.used_mib, p.backend, p.ignored))
            .collect();
        assert_eq!(
            told,
            [
                (4711, "/usr/bin/python3, odd", Some("vllm"), Some(20412), Some(1), false),
                (4712, "/usr/lib/xorg/Xorg", Some("root"), Some(500), None, true),
                (4713, "blender", None, Some(90), None, true),
                (4714, "train me", Some("ann"), None, None, false),
            ]
        );
    }

    #[test]
    fn an_idle_gpu_has_no_processes() {
        let gpu = read("@@nvidia\n0, 3, 24576\n@@status 0\n@@apps\n\n@@status 0\n@@end\n");
        let Gpu::Read { devices, processes } = gpu else { panic!("{gpu:?}") };
        assert_eq!((devices.len(), processes.len()), (1, 0));
    }

    #[test]
    fn each_failure_of_nvidia_smi_has_its_code() {
        for (status, text, expected) in [
            (
                9,
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.",
                "driver_not_loaded",
            ),
            (
                18,
                "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161",
                "driver_mismatch",
            ),
            (6, "No devices were found", "gpu_not_found"),
            (
                15,
                "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU",
                "gpu_lost",
            ),
            (255, "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", "gpu_unreachable"),
            (255, "Failed to initialize NVML: Unknown Error", "gpu_unreachable"),
            (1, "Failed to initialize NVML: Unknown Error", "gpu_access_lost"),
            (4, "Failed to initialize NVML: Insufficient Permissions", "gpu_not_permitted"),
            (16, "", "gpu_reset_required"),
            (77, "", "gpu_tool_failed"),
        ] {
            let gpu = read(&format!("@@nvidia\n{text}\n@@status {status}\n@@end\n"));
            let Gpu::Broken { code, message } = gpu else { panic!("{gpu:?}") };
            assert_eq!(code, expected, "{text}");
            assert!(!message.is_empty() && !message.contains('\n'), "{message}");
        }
        assert_eq!(read("@@nvidia\n@@status 124\n@@end\n"), Gpu::Hangs);
        assert_eq!(read("@@nvidia\n@@status 137\n@@end\n"), Gpu::Hangs);
        assert_eq!(read("@@nvidia\n@@status 127\n@@end\n"), Gpu::Absent);
    }

    #[test]
    fn half_an_answer_is_broken_and_never_an_idle_gpu() {
        for half in [
            "",
            "@@nvidia\n0, 3, 24576\n",
            "@@nvidia\n0, 3, 24576\n@@status 0\n",
            "@@nvidia\n0, 3, 24576\n@@status 0\n@@apps\n",
            "@@nvidia\nnonsense\n@@status 0\n@@apps\n@@status 0\n",
        ] {
            assert!(matches!(read(half), Gpu::Broken { .. }), "{half:?} {:?}", read(half));
        }
    }

    #[test]
    fn of_a_flood_of_rows_a_bounded_number_is_told() {
        let flood = |row: &str| (0..5000).map(|i| row.replace('N', &i.to_string())).collect::<String>();
        let gpu = read(&format!(
            "@@nvidia\n{}@@status 0\n@@apps\n{}@@status 0\n{}@@end\n",
            flood("N, 3, 24576\n"),
            flood("N, 500, x\n"),
            flood("@@process N ann\n0::/user.slice\n")
        ));
        let Gpu::Read { devices, processes } = gpu else { panic!("{gpu:?}") };
        assert_eq!((devices.len(), processes.len()), (MOST, MOST));
        assert!(processes.iter().all(|process| process.user.as_deref() == Some("ann")));
    }

    #[test]
    fn an_amd_card_is_read_from_sys_and_no_card_is_absent() {
        let gpu = read(
            "@@amd\n21474836480 25753026560\n@@status 0\n@@kfd\n900 20971520000 llama-server\n@@status 0\n@@process 900 llama\n0::/system.slice/llama-cpp.service\n@@end\n",
        );
        let Gpu::Read { devices, processes } = gpu else { panic!("{gpu:?}") };
        assert_eq!(devices[0].used_mib, Some(20480));
        assert_eq!((processes[0].used_mib, processes[0].backend), (Some(20000), Some(0)));
        assert_eq!(read("@@amd\n@@status 0\n@@kfd\n@@status 0\n@@end\n"), Gpu::Absent);
    }
}
