//! What `systemctl show`, its verbs and the journal say of units, whatever a broken server makes of it.

use wechsler::{
    host::{
        remote::UnitName,
        systemd::{Ended, judge_verb, parse_down, parse_post_mortem, parse_units},
    },
    machine::{Outcome, reading::Unit},
};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let text = String::from_utf8_lossy(data);
    let (stdout, stderr) = text.split_once("@@stderr").unwrap_or((&text, ""));
    let units: Vec<_> = ["llama-cpp.service", "vllm.service"].into_iter().filter_map(UnitName::new).collect();
    let mut kinds = Kinds::new();
    let mut known = vec![None; units.len()];
    if let Ok(answer) = parse_units(stdout, stderr, &units) {
        assert_eq!(answer.units.len(), units.len(), "one answer for each unit");
        kinds.extend(understood([("units", !answer.units.iter().any(|unit| matches!(unit, Unit::Unread(_))))]));
        for (known, unit) in known.iter_mut().zip(answer.units) {
            *known = if let Unit::Loaded(state) = unit { Some(state) } else { None };
        }
    }
    if let Some(answer) = parse_down(stdout, &units, &known) {
        assert_eq!(answer.units.len(), units.len(), "one answer for each unit");
        kinds.push("down");
    }
    for ended in [Ended::Unit, Ended::Harmless, Ended::PowerOff] {
        let outcome = judge_verb(ended, u32::from(data.first().copied().unwrap_or(0)), stderr);
        kinds.extend(understood([("verb", matches!(outcome, Outcome::Failed(why) if why.code != "verb_failed"))]));
    }
    if let Some(unit) = units.first() {
        let told = parse_post_mortem(stdout, unit, 8080);
        assert!(told.lines.len() < 1000, "bounded");
        // Beside the state, which is told in any case: the file and the port.
        kinds.extend(understood([("post-mortem", told.lines.len() > 2 && told.port_listens)]));
    }
    kinds
}
