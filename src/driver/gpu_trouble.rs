//! What is wrong with the GPUs, for people. It blocks nothing: a backend that can do without them may, and one that cannot
//! says so itself.

use super::{clock::Clock, status::AttentionStatus};
use crate::machine::reading::Reading;

/// The trouble, if the newest word is of this boot and there is any.
pub(super) fn attention(reading: &Reading, clock: &Clock) -> Option<AttentionStatus> {
    let gpu = reading.gpu.as_ref().filter(|gpu| reading.is_of_boot(gpu.at))?;
    let (code, message) = gpu.value.trouble(reading.gpus)?;
    let since = reading.gpu_trouble.as_ref().map_or(gpu.at, |trouble| trouble.at);
    Some(AttentionStatus { hint: hint(&code).into(), code, message, since: clock.rfc3339(since), backend: None })
}

fn hint(code: &str) -> &'static str {
    match code {
        "driver_mismatch" => "the GPU's driver was updated under the running kernel: reboot the server",
        "driver_not_loaded" => "check the GPU's kernel module; after a kernel update it may have to be built again",
        "gpu_lost" => "read the server's kernel log (Xid), check the card's power and slot; a reboot may bring it back",
        "gpu_not_permitted" => "let our user read the GPU's devices",
        "gpu_reset_required" => "reset the GPU, or reboot the server",
        _ => "run the GPU's tool on the server; a reboot may be needed",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::{
        BootId, Instant,
        reading::{Dated, Gpu, GpuDevice, Ssh},
    };

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    fn read(devices: u32) -> Gpu {
        let device = |index| GpuDevice { index, used_mib: None, total_mib: None };
        Gpu::Read { devices: (0..devices).map(device).collect(), processes: vec![] }
    }

    fn told(gpu: Gpu, seconds: u64) -> Reading {
        Reading { gpu: Some(Dated { at: at(seconds), value: gpu }), ..Reading::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_with_its_beginning_and_ends_with_its_cause() {
        let clock = Clock::start();
        let mut reading = Reading::default();
        let code = |reading: &Reading| attention(reading, &clock).map(|a| (a.code, a.since));
        reading.absorb(told(read(2), 1));
        assert_eq!(code(&reading), None);
        for seconds in [5, 6] {
            reading.absorb(told(read(1), seconds));
            assert_eq!(code(&reading), Some(("gpu_lost".into(), clock.rfc3339(at(5)))));
        }
        reading.absorb(told(Gpu::Hangs, 7));
        assert_eq!(code(&reading), Some(("gpu_hangs".into(), clock.rfc3339(at(7)))));
        reading.absorb(told(read(2), 8));
        assert_eq!(code(&reading), None);
        reading.absorb(told(Gpu::Absent, 9));
        assert_eq!(code(&reading).map(|c| c.0).as_deref(), Some("gpu_lost"));
        let boot = Ssh::Answered { boot: BootId(2), session: 2 };
        reading.absorb(Reading { ssh: Some(Dated { at: at(10), value: boot }), ..Reading::default() });
        assert_eq!(code(&reading), None, "an earlier boot's word");
    }

    #[test]
    fn each_trouble_has_a_hint_of_its_own_and_one_that_is_new_a_general_one() {
        let words = [
            ("driver_mismatch", "reboot the server"),
            ("driver_not_loaded", "kernel module"),
            ("gpu_lost", "Xid"),
            ("gpu_not_permitted", "let our user read"),
            ("gpu_reset_required", "reset the GPU"),
            ("gpu_hangs", "run the GPU's tool"),
        ];
        for (code, word) in words {
            assert!(hint(code).contains(word), "{code}: {}", hint(code));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_gpus_has_no_trouble_with_them() {
        let mut reading = Reading::default();
        reading.absorb(told(Gpu::Absent, 1));
        assert_eq!(attention(&reading, &Clock::start()), None);
    }
}
