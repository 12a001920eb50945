//! The GPU after a suspend, a boot, an upgrade.

use std::time::Duration;

use tokio::time::sleep;
use wechsler::virtual_server::{
    By, GpuFault, Power, What,
    programs::{Exit, Fault},
};

use crate::{
    bench::{Bench, LLAMA_UNIT, POWER_OFF, START},
    swap::STOP_NOW,
};

#[tokio::test]
async fn row_g1_cuda_that_does_not_start_is_told_once_and_rest_is_power_off_never_suspend() {
    let bench = Bench::on().await;
    // The control.
    bench.done(START).await;
    bench.done(STOP_NOW).await;

    // nvidia-smi is content, and CUDA is not until the next boot.
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadFails(Exit::Code(1)));
    let record = bench.fails(START, "crash_loop").await;
    assert!(record.post_mortem.iter().any(|line| line.contains("error loading model")), "{:#?}", record.post_mortem);
    assert!(record.hint.is_some_and(|hint| hint.contains("journal")));
    assert!(inside.fired("load-fails") > 0);
    bench.state("gpu-idle").await;

    // What puts it to rest is a power-off: a suspend is not among the commands, and would show as a violation.
    bench.done(POWER_OFF).await;
    bench.power(Power::Off).await;
    assert_eq!(bench.count(|what| matches!(what, What::PowerOffOrdered(By::Ssh))), 1);
    inside.clear_all();
    bench.done(START).await;
    assert_eq!(bench.server.truth().boots, 2);
    bench.works().await;
}

#[tokio::test]
async fn row_g2_a_gpu_that_fell_off_the_bus_is_said_and_nothing_is_tried_by_itself() {
    let lost = "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.\n";
    for fault in [GpuFault::Missing(1), GpuFault::Broken(15, lost.into())] {
        let bench = Bench::on().await;
        // The control: both are there.
        bench.done(START).await;
        bench.done(STOP_NOW).await;
        assert!(bench.status().attention.is_empty(), "{:?}", bench.status().attention);

        bench.server.faults().gpu.always(fault);
        bench.inside(LLAMA_UNIT).set(Fault::LoadFails(Exit::Code(1)));
        bench.fails(START, "crash_loop").await;
        assert!(bench.server.faults().gpu.struck() > 0 && bench.inside(LLAMA_UNIT).fired("load-fails") > 0);
        let status = bench.attention("gpu_lost").await;
        let attention = status.attention.iter().find(|a| a.code == "gpu_lost").expect("there");
        assert!(attention.hint.contains("Xid"), "{attention:?}");
        let begun = bench.count(|what| matches!(what, What::Started { .. }));
        sleep(Duration::from_millis(500)).await;
        assert_eq!(bench.count(|what| matches!(what, What::Started { .. })), begun, "no loop");
        bench.works().await;
        bench.until("cleared", |s| s.attention.is_empty()).await;
    }
}

#[tokio::test]
async fn row_g4_a_driver_that_does_not_fit_its_library_is_said_by_its_code() {
    let bench = Bench::on().await;
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    assert!(bench.status().attention.is_empty(), "the control: {:?}", bench.status().attention);

    let text = "Failed to initialize NVML: Driver/library version mismatch\n";
    bench.server.faults().gpu.always(GpuFault::Broken(18, text.into()));
    // It is no block: a backend that can do without the library may.
    bench.done(START).await;
    assert!(bench.server.faults().gpu.struck() > 0);
    let status = bench.attention("driver_mismatch").await;
    let attention = status.attention.iter().find(|a| a.code == "driver_mismatch").expect("there");
    assert!(attention.message.contains("version mismatch") && attention.hint.contains("reboot"), "{attention:?}");
    assert_eq!(status.gpu_memory, None, "what cannot be known is null");
    bench.works().await;
    bench.until("cleared", |s| s.attention.is_empty()).await;
}

#[tokio::test]
async fn row_g5_a_gpu_that_is_late_at_boot_is_waited_for() {
    let bench = Bench::off().await;
    // The control: it is there when the server is.
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    bench.done(POWER_OFF).await;
    bench.power(Power::Off).await;

    let started = bench.starts(LLAMA_UNIT);
    bench.server.faults().gpu.always(GpuFault::Missing(2));
    let op = bench.accepted(START).await;
    bench.power(Power::On).await;
    bench.truly("asked in vain", |s| s.faults().gpu.struck() >= 2).await;
    assert_eq!(bench.starts(LLAMA_UNIT), started, "it would have fallen back to the processor");
    bench.attention("gpu_not_found").await;
    bench.server.faults().clear();
    let record = bench.ended(op).await;
    assert_eq!((record.end.as_deref(), record.warnings.as_slice()), (Some("done"), &[][..]), "{record:#?}");
    bench.works().await;
}
