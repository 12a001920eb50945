//! What the GPU's tool prints, on a machine whose driver may be gone.

use std::time::Duration;

use wechsler::{
    config::GpuTool,
    host::{gpu, remote::UnitName},
    machine::reading::Gpu,
};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let units: Vec<_> = UnitName::new("llama-cpp.service").into_iter().collect();
    let tool = GpuTool {
        enabled: true,
        baseline_mib: Some(500),
        ignore: vec!["Xorg".into()],
        foreign_threshold_mib: 256,
        timeout: Duration::from_secs(5),
    };
    let gpu = gpu::parse(&String::from_utf8_lossy(data), &units, &tool);
    understood([
        ("read", matches!(&gpu, Gpu::Read { processes, .. } if !processes.is_empty())),
        // What says why it cannot be read, and not only that it is no answer.
        ("broken", matches!(&gpu, Gpu::Broken { code, .. } if code != "gpu_tool_failed")),
    ])
}
