//! Stop is not stop: orphans, GPU memory, ports.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use wechsler::{
    machine::{Command, Refusal, reading::GpuProcess},
    virtual_server::{
        CommandFault, Foreign, GpuFault, On, UnitFault, What,
        programs::{Exit, Fault},
    },
};

use crate::{
    bench::{Bench, LLAMA, LLAMA_UNIT, NO_DRAIN, POWER_OFF, Plan, START, STOP, VLLM, VLLM_UNIT},
    paused::Paused,
    sim,
    swap::{STOP_NOW, once, short},
};

const TO_VLLM_NOW: Command = Command::Switch(VLLM, NO_DRAIN);

/// When the first deed of that kind was done, since the server exists.
fn when(bench: &Bench, of: impl Fn(&What) -> bool) -> Duration {
    let deeds = bench.server.deeds();
    deeds.iter().find(|deed| of(&deed.what)).unwrap_or_else(|| panic!("never done: {deeds:#?}")).at
}

fn starts(what: &What, unit: &str) -> bool {
    matches!(what, What::Started { unit: u, .. } if u == unit)
}

#[tokio::test]
async fn row_o1_a_worker_that_outlives_its_unit_is_killed_before_anything_else_is_started() {
    let bench = short().on().await;
    // The control: nothing is left, and nothing is killed.
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    assert_eq!(bench.count(|what| matches!(what, What::Killed { .. })), 0);

    bench.done(START).await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set_times(Fault::OrphanStays, 1);
    let op = bench.accepted(TO_VLLM_NOW).await;
    let lingers = |s: &std::sync::Arc<wechsler::driver::status::Status>| {
        s.backends["llama-cpp"].state == "lingering"
            && s.backends["llama-cpp"].unit.active.as_deref() == Some("inactive")
    };
    assert_eq!(bench.until("down by its unit alone", lingers).await.state, "stopping");
    assert_eq!(bench.starts(VLLM_UNIT), 0);
    let record = bench.ended(op).await;
    assert_eq!(record.end.as_deref(), Some("done"), "{record:#?}");
    assert_eq!(inside.fired("orphan-stays"), 1);
    let killed = when(&bench, |what| matches!(what, What::Killed { unit, .. } if unit == LLAMA_UNIT));
    assert!(killed < when(&bench, |what| starts(what, VLLM_UNIT)));
    bench.works().await;
}

#[tokio::test]
async fn row_o2_a_worker_left_by_a_stop_during_the_load_is_killed_too() {
    let bench = short().on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadHangs);
    inside.set_times(Fault::OrphanStays, 1);
    bench.accepted(START).await;
    bench.truly("half loaded", |_| inside.fired("load-hangs") == 1).await;
    bench.done(STOP).await;
    assert_eq!((inside.fired("orphan-stays"), bench.count(|what| matches!(what, What::Killed { .. }))), (1, 1));
    assert!(bench.server.truth().gpu_holders.is_empty());
    // The control.
    inside.clear_all();
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    assert_eq!(bench.count(|what| matches!(what, What::Killed { .. })), 1);
    bench.works().await;
}

#[tokio::test]
async fn row_o3_a_foreign_process_on_the_gpu_refuses_a_start_and_is_named() {
    // The control: nobody there.
    let bench = Bench::on().await;
    bench.done(START).await;
    bench.done(crate::bench::STOP).await;

    bench.server.occupy(Foreign { pid: 4711, user: "ada".into(), name: "blender".into(), mib: 9000 });
    let record = bench.fails(START, "occupied").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("blockers")));
    assert_eq!(bench.starts(LLAMA_UNIT), 1, "only the control's");
    let status = bench.until("named", |s| !s.blockers.is_empty()).await;
    let blocker = format!("{:?}", status.blockers);
    assert!(["4711", "ada", "blender", "9000"].iter().all(|word| blocker.contains(word)), "{blocker}");
    // Seen by now, it is refused at once.
    assert_eq!(bench.refused(START).await, Refusal::Occupied);

    bench.server.vacate(4711);
    bench.works().await;
}

#[tokio::test]
async fn row_o4_memory_that_comes_back_late_is_waited_for() {
    const LAG: Duration = Duration::from_millis(1500);
    let took = async |lag: Duration| {
        let bench = Plan::default().server(move |setup| setup.times.gpu_lag = lag).on().await;
        bench.done(START).await;
        bench.done(TO_VLLM_NOW).await;
        let gone = when(&bench, |what| matches!(what, What::Exited { .. }));
        let pause = when(&bench, |what| starts(what, VLLM_UNIT)).saturating_sub(gone);
        bench.works().await;
        pause
    };
    let control = took(Duration::ZERO).await;
    let late = took(LAG).await;
    assert!(late >= LAG && control < late, "{late:?}, {control:?} without");
}

#[tokio::test]
async fn row_o4_memory_that_never_comes_back_is_said_and_nothing_is_started_into_it() {
    let bench = short().on().await;
    bench.done(START).await;
    bench.server.faults().gpu.always(GpuFault::Leaks(6000));
    let record = bench.fails(TO_VLLM_NOW, "gpu_not_freed").await;
    assert!(record.hint.is_some_and(|hint| hint.contains("GPU")));
    assert!(bench.server.faults().gpu.struck() > 0);
    assert_eq!(bench.starts(VLLM_UNIT), 0);
    let status = bench.state("stopping").await;
    assert_eq!(status.backends["llama-cpp"].state, "lingering");
    assert_eq!(status.last_error.as_ref().map(|e| e.code.as_str()), Some("gpu_not_freed"));
    // It comes back after all: seen without being told.
    bench.server.faults().clear();
    bench.state("gpu-idle").await;
    bench.works().await;
}

#[tokio::test]
async fn row_o6_a_port_that_is_still_in_use_is_told_and_the_next_start_works() {
    for (unit, start, says) in
        [(LLAMA_UNIT, START, "couldn't bind"), (VLLM_UNIT, TO_VLLM_NOW, "Address already in use")]
    {
        let bench = once().on().await;
        bench.inside(unit).set_times(Fault::PortInUse, 1);
        let record = bench.fails(start.clone(), "start_failed").await;
        assert_eq!(bench.inside(unit).fired("port-in-use"), 1);
        let told = |words: &str| record.post_mortem.iter().any(|line| line.contains(words));
        assert!(told(says) && told("exit status 1"), "{:#?}", record.post_mortem);
        bench.done(start).await;
        bench.works().await;
    }
}

#[tokio::test]
async fn row_o7_an_order_whose_output_stays_open_has_a_deadline() {
    let bench = short().on().await;
    // The control.
    bench.done(START).await;
    bench.done(STOP_NOW).await;
    bench.done(START).await;
    let faults = bench.server.faults();
    faults.command.times((On::Verbs, CommandFault::StaysOpen), 1);
    let began = Instant::now();
    let record = bench.record(STOP_NOW).await;
    assert_eq!((record.end.as_deref(), faults.command.struck()), (Some("done"), 1), "{record:#?}");
    assert!(record.warnings.iter().any(|w| w.code == "verb_lost"), "what it said is not believed: {record:#?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    bench.works().await;
}

#[tokio::test]
async fn row_o7_a_question_whose_output_stays_open_costs_one_look() {
    let bench = Bench::with_llama().await;
    let faults = bench.server.faults();
    faults.command.always((On::Questions, CommandFault::StaysOpen));
    let status = bench.until("unheard", |s| s.control.as_deref() == Some("unreachable")).await;
    assert_eq!(status.state, "llama-cpp", "it answers over HTTP");
    assert_eq!(status.attention.first().map(|a| a.code.as_str()), Some("control_unreachable"));
    assert!(status.attention.iter().all(|a| !a.hint.is_empty()));
    assert!(faults.command.struck() > 0);
    assert_eq!(bench.refused(STOP_NOW).await, Refusal::ControlUnreachable);
    faults.clear();
    bench.until("heard again", |s| s.control.as_deref() == Some("ok")).await;
    bench.works().await;
}

#[tokio::test(start_paused = true)]
async fn row_o9_who_comes_to_the_gpu_later_is_seen_and_named_and_so_is_that_they_have_left() {
    let bench = Paused::with_llama(sim::policy()).await;
    let named = |s: &wechsler::driver::status::Status| s.blockers.iter().any(|b| b.kind == "gpu_process");
    // The control.
    sleep(Duration::from_mins(3)).await;
    assert!(!named(&bench.status()));
    let stranger = GpuProcess {
        pid: 4711,
        name: "blender".into(),
        user: Some("ada".into()),
        used_mib: Some(900),
        backend: None,
        ignored: false,
    };
    bench.world.sim().foreign = Some(stranger);
    let came = tokio::time::Instant::now();
    let status = bench.until("named", |s| named(s)).await;
    assert!(came.elapsed() <= Duration::from_secs(61), "{:?}", came.elapsed());
    let blocker = status.blockers.iter().find(|b| b.kind == "gpu_process").expect("there");
    assert!(["blender", "4711", "ada", "900"].iter().all(|word| blocker.what.contains(word)), "{blocker:?}");
    assert_eq!(status.state, "llama-cpp", "who runs goes on running");
    assert_eq!(bench.told(POWER_OFF).await, wechsler::machine::Answer::Refused(Refusal::Blocked));
    bench.world.sim().foreign = None;
    bench.until("gone", |s| !named(s)).await;
    bench.works().await;
}

#[tokio::test]
async fn row_o9_who_comes_during_the_load_blocks_what_comes_after() {
    let bench = Bench::on().await;
    let inside = bench.inside(LLAMA_UNIT);
    inside.set(Fault::LoadHangs);
    let op = bench.accepted(START).await;
    // The check is over: the load has begun.
    bench.truly("half loaded", |_| inside.fired("load-hangs") == 1).await;
    bench.server.occupy(Foreign { pid: 4711, user: "ada".into(), name: "blender".into(), mib: 900 });
    inside.clear_all();
    assert_eq!(bench.ended(op).await.end.as_deref(), Some("done"), "the memory was enough for both");
    assert_eq!(bench.refused(POWER_OFF).await, Refusal::Blocked);
    bench.until("named", |s| s.blockers.iter().any(|b| b.what.contains("4711"))).await;
    // A switch would find no room: it is refused before anything is stopped for it.
    assert_eq!(bench.refused(TO_VLLM_NOW).await, Refusal::Occupied);
    assert_eq!((bench.starts(VLLM_UNIT), bench.status().state.as_str()), (0, "llama-cpp"));
    bench.server.vacate(4711);
    bench.works().await;
}

#[tokio::test]
async fn row_o10_a_start_killed_for_lack_of_memory_is_told_in_systemds_words_and_any_other_kill_is_not_called_that() {
    for (exit, for_memory, result, status, told) in [
        (Exit::Signal(9), true, "oom-kill", 9, "killed by signal 9"),
        (Exit::Signal(9), false, "signal", 9, "killed by signal 9"),
        (Exit::Code(137), false, "exit-code", 137, "exit status 137"),
    ] {
        let bench = once().on().await;
        let inside = bench.inside(LLAMA_UNIT);
        inside.set_times(Fault::LoadFails(exit), 1);
        if for_memory {
            inside.set_times(Fault::OomKill, 1);
        }
        let record = bench.fails(START, "start_failed").await;
        assert_eq!((inside.fired("load-fails"), inside.fired("oom-kill")), (1, u64::from(for_memory)));
        let first = &record.post_mortem[0];
        assert!(first.contains(&format!("result {result}")) && first.contains(told), "{first}");
        let said = format!("{:?} {:?}", record.message, record.post_mortem);
        assert_eq!(said.contains("oom"), for_memory, "{said}");
        let status_now =
            bench.until("shown", |s| s.backends["llama-cpp"].unit.active.as_deref() == Some("failed")).await;
        let unit = &status_now.backends["llama-cpp"].unit;
        assert_eq!((unit.result.as_deref(), unit.exec_status), (Some(result), Some(status)));
        bench.works().await;
    }
}

#[tokio::test]
async fn row_o11_the_file_a_unit_is_read_from_is_shown_and_a_failed_start_names_it() {
    let bench = once().on().await;
    let fragment = |s: &wechsler::driver::status::Status| s.backends["llama-cpp"].unit.fragment.clone();
    let usual = format!("/etc/systemd/system/{LLAMA_UNIT}");
    assert_eq!(fragment(&bench.status()), Some(usual), "the control");
    let stale = "/run/systemd/transient/llama-cpp.service";
    bench.server.faults().unit.always(UnitFault::OtherFile(LLAMA_UNIT.into(), stale.into()));
    bench.inside(LLAMA_UNIT).set_times(Fault::LoadFails(Exit::Code(1)), 1);
    bench.until("shown", |s| fragment(s).as_deref() == Some(stale)).await;
    let record = bench.fails(START, "start_failed").await;
    assert!(bench.server.faults().unit.struck() > 0);
    let named = record.post_mortem.iter().any(|line| line.contains(stale) && line.contains("daemon-reload"));
    assert!(named, "{:#?}", record.post_mortem);
    bench.works().await;
    assert_eq!(bench.starts(LLAMA_UNIT), 2);
    assert_eq!(bench.server.truth().units[usize::from(LLAMA.0)].name, LLAMA_UNIT);
}
