//! GPU memory and processes, people, Wake-on-LAN: what is asked rarely.

use super::*;

fn process(backend: Option<usize>, used_mib: Option<u64>, ignored: bool) -> GpuProcess {
    GpuProcess { pid: 1, name: "python".into(), user: None, used_mib, backend, ignored }
}

fn gpu(used_mib: Option<u64>, processes: Vec<GpuProcess>) -> Gpu {
    let device = GpuDevice { index: 0, used_mib, total_mib: Some(24_000) };
    Gpu::Read { devices: vec![device], processes }
}

#[test]
fn a_backend_is_stopped_only_when_its_gpu_process_is_gone() {
    let mut reading = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
    let cases = [
        (gpu(Some(9000), vec![process(Some(0), None, false)]), Seen::Lingering),
        (gpu(Some(9000), vec![process(Some(1), None, false)]), Seen::Stopped),
        (gpu(Some(9000), vec![process(None, None, false)]), Seen::Stopped),
        (gpu(Some(9000), vec![]), Seen::Stopped),
        // Absent, broken or hanging is a fact to report, never a block.
        (Gpu::Absent, Seen::Stopped),
        (Gpu::Hangs, Seen::Stopped),
        (Gpu::Broken { code: "gpu_lost".into(), message: String::new() }, Seen::Stopped),
    ];
    for (gpu, expected) in cases {
        reading.gpu = at(T0, gpu);
        assert_eq!(seen_of(BackendKind::LlamaCpp, &reading), expected, "{:?}", reading.gpu);
    }
}

#[test]
fn memory_above_the_baseline_that_nobody_explains_has_not_been_given_back() {
    let mut policy = policy(&[BackendKind::LlamaCpp, BackendKind::Vllm]);
    policy.gpu_baseline_mib = Some(500);
    let down = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
    let mut both = down.clone();
    both.backends.push(down.backends[0].clone());
    let seen = |reading: &Reading, gpu| {
        let mut reading = reading.clone();
        reading.gpu = at(T0, gpu);
        judge(&reading, &policy, T0).backends[1].seen
    };
    assert_eq!(seen(&both, gpu(Some(500), vec![])), Seen::Stopped);
    assert_eq!(seen(&both, gpu(Some(501), vec![])), Seen::Lingering);
    assert_eq!(seen(&both, gpu(None, vec![])), Seen::Stopped);
    let foreign = |mib| vec![process(None, mib, true)];
    assert_eq!(seen(&both, gpu(Some(2500), foreign(Some(2000)))), Seen::Stopped);
    assert_eq!(seen(&both, gpu(Some(2501), foreign(Some(2000)))), Seen::Lingering);
    assert_eq!(seen(&both, gpu(Some(2501), foreign(None))), Seen::Stopped);
    // While another backend is up, the memory is its.
    both.backends[0].unit = at(T0, unit(ActiveState::Active));
    assert_eq!(seen(&both, gpu(Some(9000), vec![])), Seen::Stopped);
}

#[test]
fn what_was_read_in_an_earlier_boot_is_forgotten() {
    let mut before = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
    before.gpu = at(T0, gpu(Some(1), vec![process(Some(0), None, false), process(None, None, false)]));
    before.people = at(T0, People::Read { logins: vec!["a".into()], inhibitors: vec![] });
    before.wake_armed = at(T0, WakeArmed::Armed);
    let look = |reading: &Reading| judge(reading, &policy(&[BackendKind::LlamaCpp]), T0);
    let old = look(&absorbed([before.clone()]));
    assert_eq!(old.foreign_gpu, Some(true));
    assert_eq!((old.people, old.wake_armed), (Some(true), Some(true)));
    assert_eq!(old.backends[0].seen, Seen::Lingering);

    let later = T0 + Duration::from_mins(1);
    let mut after = look_at(later, RUN, Http::Refused);
    after.ssh = at(later, Ssh::Answered { boot: BootId(2), session: 2 });
    after.backends[0].unit = at(later, unit(ActiveState::Inactive));
    let new = look(&absorbed([before, after]));
    assert_ne!(new.foreign_gpu, Some(true));
    assert_eq!((new.people, new.wake_armed), (None, None));
    assert_eq!([new.gpu_at, new.people_at, new.wake_armed_at], [Instant::START; 3], "it has to be asked anew");
    assert_eq!(new.backends[0].seen, Seen::Stopped);
}

#[test]
fn foreign_processes_people_and_wake_are_judged_one_by_one() {
    let policy = policy(&[BackendKind::LlamaCpp]);
    let mut reading = reading(answered(), None, None);
    for (processes, expected) in [
        (vec![], false),
        (vec![process(Some(0), None, false)], false),
        (vec![process(None, None, true)], false),
        (vec![process(None, None, true), process(None, None, false)], true),
    ] {
        reading.gpu = at(T0, gpu(None, processes));
        assert_eq!(judge(&reading, &policy, T0).foreign_gpu, Some(expected));
    }
    let broken = Gpu::Broken { code: String::new(), message: String::new() };
    for (gpu, expected) in [(Gpu::Absent, Some(false)), (Gpu::Hangs, None), (broken, None)] {
        reading.gpu = at(T0, gpu);
        assert_eq!(judge(&reading, &policy, T0).foreign_gpu, expected);
    }
    let one = || vec!["somebody".to_owned()];
    for (people, expected) in [
        (People::Unread(String::new()), None),
        (People::Read { logins: vec![], inhibitors: vec![] }, Some(false)),
        (People::Read { logins: one(), inhibitors: vec![] }, Some(true)),
        (People::Read { logins: vec![], inhibitors: one() }, Some(true)),
    ] {
        reading.people = at(T0, people);
        assert_eq!(judge(&reading, &policy, T0).people, expected);
    }
    for (armed, expected) in [
        (WakeArmed::Armed, Some(true)),
        (WakeArmed::NotArmed("d".into()), Some(false)),
        (WakeArmed::Unknown(String::new()), None),
    ] {
        reading.wake_armed = at(T0, armed);
        assert_eq!(judge(&reading, &policy, T0).wake_armed, expected);
    }
}

#[test]
fn a_gpu_is_late_only_just_after_a_boot_and_only_if_it_was_there_before() {
    let broken = |code: &str| Gpu::Broken { code: code.into(), message: String::new() };
    let booted = T0 + Duration::from_hours(1);
    let late = |gpu_now: Gpu, seconds: u64| {
        let mut before = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
        before.gpu = at(T0, gpu(Some(1), vec![]));
        let now = booted + Duration::from_secs(seconds);
        let look = |then| {
            let mut look = look_at(then, RUN, Http::Refused);
            look.ssh = at(then, Ssh::Answered { boot: BootId(2), session: 2 });
            look
        };
        let mut newest = look(now);
        newest.gpu = at(now, gpu_now);
        judge(&absorbed([before, look(booted), newest]), &policy(&[BackendKind::LlamaCpp]), now).gpu_late
    };
    assert!(late(broken("gpu_not_found"), 1) && late(broken("driver_not_loaded"), 60) && late(Gpu::Absent, 1));
    assert!(!late(broken("gpu_not_found"), 61), "it will not come any more");
    assert!(!late(broken("driver_mismatch"), 1) && !late(Gpu::Hangs, 1), "nor will these");
    assert!(!late(gpu(Some(1), vec![]), 1), "it is there");
    // In the first boot that was ever seen there was none before.
    let mut first = reading(answered(), None, None);
    first.gpu = at(T0, gpu(Some(1), vec![]));
    let gone = T0 + Duration::from_secs(1);
    let mut then = reading(answered(), None, None);
    then.gpu = at(gone, Gpu::Absent);
    assert!(!judge(&absorbed([first, then]), &policy(&[BackendKind::LlamaCpp]), gone).gpu_late);
}
