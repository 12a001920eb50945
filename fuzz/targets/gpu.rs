//! What the GPU's tool prints, on a machine whose driver may be gone.

use std::time::Duration;

use wechsler::{
    config::GpuTool,
    host::{gpu, remote::UnitName},
};

pub fn run(data: &[u8]) {
    let units: Vec<_> = UnitName::new("llama-cpp.service").into_iter().collect();
    let tool = GpuTool {
        enabled: true,
        baseline_mib: Some(500),
        ignore: vec!["Xorg".into()],
        foreign_threshold_mib: 256,
        timeout: Duration::from_secs(5),
    };
    let _ = gpu::parse(&String::from_utf8_lossy(data), &units, &tool);
}
