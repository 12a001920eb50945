//! No answer of the server, however odd, makes a reader panic or break its bounds.

use std::time::Duration;

use proptest::{prelude::*, test_runner::FileFailurePersistence};
use wechsler::{
    config::GpuTool,
    host::{ethtool, gpu, people, remote, remote::UnitName, systemd},
    machine::reading::{Gpu, People},
};

/// Lines as the server's programs print them, whole and broken, in any order.
fn answer() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        prop::sample::select(vec![
            "@@boot",
            "3c1b2f6e-9a40-4e57-8a52-0f0c9d3b1a77",
            "@@units",
            "@@status 0",
            "@@status 9",
            "@@status x",
            "@@left",
            "populated 1",
            "@@end",
            "",
            "Names=a.service",
            "LoadState=loaded",
            "ActiveState=active",
            "MainPID=99999999999",
            "TimeoutStopUSec=1e400y",
            "TimeoutStopUSec=999999999999999y",
            "ActiveEnterTimestamp=Mon 9999-12-31 99:99:99 UTC",
            "ExecMainStatus=-1",
            "@@own 3",
            "@@sessions",
            "Id=4",
            "Class=user",
            "@@who",
            "ann pts/0",
            "@@inhibitors",
            "{\"type\":\"a(ssssuu)\",\"data\":[[]]}",
            "@@nvidia",
            "0, 1, 2",
            "4294967296, [N/A], ERR!",
            "@@apps",
            "7, 18446744073709551615, x",
            "7, 5, y",
            "@@process 7 u",
            "0::/system.slice/a.service",
            ":",
            "@@amd",
            "1 2",
            "@@kfd",
            "7 1 x",
            "@@nic",
            "@@none",
            "Wake-on: ",
            "@@unit",
            "@@listens",
            "@@asked",
            "@@journal",
        ])
        .prop_map(str::to_owned),
        ".{0,40}",
    ];
    prop::collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_answer_makes_a_reader_panic_or_break_its_bounds(text in answer(), stderr in ".{0,600}", status in any::<u32>()) {
        let units = ["a.service", "b.service"].map(|unit| UnitName::new(unit).expect("a unit"));
        let tool = GpuTool {
            enabled: true,
            baseline_mib: None,
            ignore: vec![],
            foreign_threshold_mib: 10,
            timeout: Duration::from_secs(1),
        };
        if let Ok(answer) = systemd::parse_units(&text, &stderr, &units) {
            prop_assert_eq!(answer.units.len(), units.len());
        }
        for what in [systemd::Ended::Unit, systemd::Ended::Harmless, systemd::Ended::PowerOff] {
            let _ = systemd::judge_verb(what, status, &stderr);
        }
        let lines = systemd::parse_post_mortem(&text, &units[0], 80).lines;
        prop_assert!(lines.len() <= 12 && lines.iter().all(|line| !line.chars().any(char::is_control)));
        if let People::Read { logins, inhibitors } = people::parse(&text, "us") {
            prop_assert!(logins.len() <= 32 && inhibitors.len() <= 32);
        }
        if let Gpu::Read { processes, .. } = gpu::parse(&text, &units, &tool) {
            prop_assert!(processes.len() <= 64);
        }
        let _ = ethtool::parse(&text);
        prop_assert!(remote::plain_text(&stderr, 100).chars().count() <= 102);
    }
}
