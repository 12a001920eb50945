//! What happened, counted.

use std::{collections::BTreeMap, fmt::Write as _};

use wechsler::virtual_server::{VirtualServer, programs::Fault};

use super::plan::{LLAMA, Trouble, VLLM, troubles, unit};

/// Counts by group and name.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    counts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Which fault of a family is set now, and how often the family had struck when it was.
    families: BTreeMap<&'static str, (String, u64)>,
}

/// How often a family of faults has struck.
fn struck(server: &VirtualServer, family: &str) -> u64 {
    let faults = server.faults();
    match family {
        "ssh" => faults.ssh.struck(),
        "command" => faults.command.struck(),
        "refusal" => faults.refusal.struck(),
        "unit" => faults.unit.struck(),
        "boot" => faults.boot.struck(),
        "packets" => faults.packets.struck(),
        "disarmed" => faults.disarmed.struck(),
        "clock" => faults.clock.struck(),
        "gpu" => faults.gpu.struck(),
        _ => faults.folder.struck(),
    }
}

impl Ledger {
    pub fn count(&mut self, group: &'static str, name: impl Into<String>) {
        self.add(group, name, 1);
    }

    pub fn add(&mut self, group: &'static str, name: impl Into<String>, more: u64) {
        *self.counts.entry(group).or_default().entry(name.into()).or_default() += more;
    }

    pub fn of(&self, group: &str, name: &str) -> u64 {
        self.counts.get(group).and_then(|names| names.get(name)).copied().unwrap_or(0)
    }

    pub fn total(&self, group: &str) -> u64 {
        self.counts.get(group).map_or(0, |names| names.values().sum())
    }

    /// A fault of a family takes the place of another: what has struck since was the other's.
    pub fn sets(&mut self, server: &VirtualServer, family: &'static str, name: String) {
        let now = struck(server, family);
        if let Some((before, then)) = self.families.insert(family, (name, now))
            && now > then
        {
            self.add("faults", before, now - then);
        }
    }

    /// All that has struck is counted.
    pub fn settle(&mut self, server: &VirtualServer) {
        let families: Vec<_> = self.families.iter().map(|(family, (name, _))| (*family, name.clone())).collect();
        for (family, name) in families {
            self.sets(server, family, name);
        }
        let programs: Vec<_> = [LLAMA, VLLM].iter().filter_map(|name| server.program_faults(&unit(name))).collect();
        for trouble in troubles() {
            let (Trouble::Program(..) | Trouble::Crash(..)) = &trouble else { continue };
            let told = if let Trouble::Program(_, fault, _) = &trouble { Fault::name(fault) } else { "crash" };
            let fired = programs.iter().map(|faults| faults.fired(told)).sum();
            self.counts.entry("faults").or_default().insert(trouble.name(), fired);
        }
    }

    /// What happened elsewhere is counted too.
    pub fn merge(&mut self, other: &Self) {
        for (group, names) in &other.counts {
            for (name, count) in names {
                self.add(group, name.clone(), *count);
            }
        }
    }

    /// Kinds of faults that struck less often than that.
    pub fn seldom(&self, least: u64) -> Vec<String> {
        let mut names: Vec<String> = troubles().iter().map(Trouble::name).collect();
        names.push("daemon killed".into());
        names.sort();
        names.dedup();
        names.retain(|name| self.of("faults", name) < least);
        names
    }

    /// Everything, a group a paragraph.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (group, names) in &self.counts {
            let _ = writeln!(text, "\n{group}: {}", names.values().sum::<u64>());
            for (name, count) in names {
                let _ = writeln!(text, "  {count:>7}  {name}");
            }
        }
        text
    }
}
