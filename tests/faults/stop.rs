//! Stop is not stop: orphans, GPU memory, ports.

use wechsler::virtual_server::Foreign;

use crate::bench::{Bench, LLAMA_UNIT, START};
use wechsler::machine::Refusal;

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
