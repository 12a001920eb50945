//! A machine that was written down goes on as if it had not been, whatever happens next.

use std::{fs, path::PathBuf, sync::LazyLock};

use serde_json::json;
use wechsler::{driver::replay::replay, machine::Machine};

use crate::{EXPLORED, spec::explore::Edge};

/// With `SEEDS=FOLDER` the journal of each kind of step is kept there, as what fuzzing can begin with.
static SEEDS: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("SEEDS").map(PathBuf::from));

/// The steps that were done again.
#[derive(Default)]
pub struct Done {
    steps: usize,
    wrong: Vec<String>,
}

impl Done {
    /// Does the step again from a journal that begins with the machine before it, and ends with the one after.
    pub fn add(&mut self, world: &str, e: &Edge) {
        let whole = |step: u64, machine: &Machine| json!({ "line": "resume", "format": 1, "version": "", "started": "", "step": step, "machine": machine });
        let step = json!({
            "line": "step", "step": 2, "at": e.now, "event": e.event, "effects": e.effects, "place": e.after.place(),
        });
        let journal = format!("{}\n{step}\n", whole(1, e.before));
        self.steps += 1;
        if let Some(folder) = &*SEEDS {
            let name = format!("steps.{}.{}", world.replace(' ', "-"), self.steps);
            fs::write(folder.join(name), &journal).expect("written");
        }
        let journal = format!("{journal}{}\n", whole(2, e.after));
        match replay(journal.as_bytes(), |_| {}) {
            Ok(summary) if (summary.steps, summary.gaps) == (1, 0) => {}
            Ok(summary) => self.wrong.push(format!("{}: {summary:?}", e.act)),
            Err(error) => self.wrong.push(format!("{}: {error}", e.act)),
        }
    }
}

#[test]
fn every_kind_of_step_that_is_explored_is_done_again_by_a_machine_that_was_written_down() {
    let (mut steps, mut wrong) = (0, vec![]);
    for explored in &*EXPLORED {
        steps += explored.written.steps;
        wrong.extend(explored.written.wrong.iter().map(|why| format!("{}: {why}", explored.world)));
    }
    println!("{steps} steps");
    assert!(steps > 10_000, "{steps}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(9)].join("\n"));
}
