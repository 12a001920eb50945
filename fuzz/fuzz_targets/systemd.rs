//! What `systemctl show`, its verbs and the journal say of units, whatever a broken server makes of it.
#![no_main]

use wechsler::host::{
    remote::UnitName,
    systemd::{Ended, judge_verb, parse_post_mortem, parse_units},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (stdout, stderr) = text.split_once("@@stderr").unwrap_or((&text, ""));
    let units: Vec<_> = ["llama-cpp.service", "vllm.service"]
        .into_iter()
        .filter_map(|name| UnitName::new(name))
        .collect();
    if let Ok(answer) = parse_units(stdout, stderr, &units) {
        assert_eq!(answer.units.len(), units.len(), "one answer for each unit");
    }
    for ended in [Ended::Unit, Ended::Harmless, Ended::PowerOff] {
        let _ = judge_verb(ended, u32::from(data.first().copied().unwrap_or(0)), stderr);
    }
    if let Some(unit) = units.first() {
        assert!(parse_post_mortem(stdout, unit, 8080).lines.len() < 1000, "bounded");
    }
});
