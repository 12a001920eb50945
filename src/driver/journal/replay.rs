//! Replaying a journal of steps: the machine takes them again, and must ask for the same and be in the same places.
//!
//! [`replay`] tells each step with the machine before and after it, so that more can be asked of a journal than whether it
//! differs: whether every law holds on it, which edges it walked.

use std::{
    fmt,
    io::{BufRead, Read},
};

use super::{super::keep::MOST_KEPT_HOLDS, FORMAT, Line, Moments};
use crate::machine::{Effect, Event, Instant, Machine, Place, Policy};

/// A longer line is none of ours.
const LONGEST_LINE: u64 = 4 << 20;

/// What is told while a journal is replayed, in its order.
#[derive(Debug)]
pub enum Told<'a> {
    /// A machine begins to take steps.
    Began {
        /// The line that says so, counted from 1.
        line: u64,
        /// When its daemon was started, RFC 3339.
        started: &'a str,
        /// The program's version.
        version: &'a str,
        /// It goes on in the middle of its life: a new file was begun, or lines are missing.
        resumed: bool,
        /// What it goes by.
        policy: &'a Policy,
    },
    /// A step, which came out as it is written.
    Step(Step<'a>),
    /// Steps are missing before this line. What follows is passed over until a machine begins anew.
    Gap {
        /// The line, counted from 1.
        line: u64,
    },
    /// This line was cut short: the daemon was killed, or the disk was full.
    Torn {
        /// The line, counted from 1.
        line: u64,
    },
}

/// One step.
#[derive(Debug)]
pub struct Step<'a> {
    /// The line that tells of it, counted from 1.
    pub line: u64,
    /// When.
    pub at: Instant,
    /// The machine before it.
    pub before: &'a Machine,
    /// What happened.
    pub event: &'a Event,
    /// What the machine asked for.
    pub effects: &'a [Effect],
    /// The machine after it.
    pub after: &'a Machine,
}

/// What a journal held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lives of the daemon that begin in it.
    pub lives: u64,
    /// Steps replayed.
    pub steps: u64,
    /// Places where steps are missing.
    pub gaps: u64,
    /// Lines passed over after a gap, for want of a machine.
    pub passed_over: u64,
    /// Lines that were cut short.
    pub torn: u64,
}

/// Why a journal cannot be replayed to its end.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ReplayError {
    /// The line, counted from 1.
    pub line: u64,
    /// Why.
    pub why: Why,
}

/// What is the matter with a line.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The machine does something else now.
    #[error("the machine differs\n{0}")]
    Differs(Difference),
    /// It is of a journal that a newer program has written.
    #[error(
        "written by version {version}, in format {format}; this is version {}, which reads up to format {FORMAT}",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The journal's format.
        format: u32,
        /// The program that wrote it.
        version: String,
    },
    /// It is damaged, does not fit together, or is none of a journal of steps.
    #[error("cannot be understood as a line of a journal of steps: {0}")]
    Foreign(#[source] serde_json::Error),
    /// It speaks of what its own policy does not know.
    #[error("{0} does not fit the policy of this journal")]
    Misfit(&'static str),
    /// It has no end.
    #[error("longer than any line of a journal of steps")]
    TooLong,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] std::io::Error),
}

/// What is written, and what came out.
#[derive(Debug)]
pub enum Difference {
    /// Of a step.
    Step(Box<StepDifference>),
    /// Of a machine that the journal tells whole.
    Machine {
        /// What is written.
        written: serde_json::Value,
        /// What came out.
        replayed: serde_json::Value,
    },
}

/// A step that comes out otherwise.
#[derive(Debug)]
pub struct StepDifference {
    /// When it was taken.
    pub at: Instant,
    /// What the machine goes by.
    pub policy: Policy,
    /// Where the machine was.
    pub before: Place,
    /// What happened.
    pub event: Event,
    /// What is written.
    pub written: Outcome,
    /// What came out.
    pub replayed: Outcome,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What was asked for.
    pub effects: Vec<Effect>,
    /// Where the machine is then.
    pub place: Place,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => {
                write!(f, "  by {:?}\n  written:  {:?}\n  replayed: {:?}", step.event, step.written, step.replayed)
            }
            Self::Machine { written, replayed } => write!(f, "  written:  {written}\n  replayed: {replayed}"),
        }
    }
}

/// A machine at work.
struct Life {
    machine: Machine,
    steps: u64,
    /// What comes out otherwise is taken as it comes out.
    is_mended: bool,
}

/// Replays a journal and tells each step. Where lines are missing it goes on with the next machine that is told whole.
///
/// # Errors
/// The first line that differs, is damaged, or cannot be understood.
pub fn replay(journal: impl BufRead, told: impl FnMut(Told<'_>)) -> Result<Summary, ReplayError> {
    run(journal, false, told)
}

/// As [`replay`], of a machine that has been mended since: it is told the same, and what it does now is what counts.
///
/// # Errors
/// The first line that is damaged, or cannot be understood.
pub fn replay_mended(journal: impl BufRead, told: impl FnMut(Told<'_>)) -> Result<Summary, ReplayError> {
    run(journal, true, told)
}

fn run(mut journal: impl BufRead, is_mended: bool, mut told: impl FnMut(Told<'_>)) -> Result<Summary, ReplayError> {
    let mut summary = Summary::default();
    let mut life: Option<Life> = None;
    let mut text = vec![];
    for line in 1.. {
        let wrong = |why| ReplayError { line, why };
        text.clear();
        let length = journal.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text);
        match length.map_err(|error| wrong(Why::Unreadable(error)))? as u64 {
            0 => break,
            LONGEST_LINE if !text.ends_with(b"\n") => return Err(wrong(Why::TooLong)),
            _ => {}
        }
        let read = match read(text.trim_ascii_end()) {
            Ok(read) => read,
            Err(Why::Foreign(error)) if error.is_eof() => {
                summary.torn += 1;
                told(Told::Torn { line });
                life = None;
                continue;
            }
            Err(why) => return Err(wrong(why)),
        };
        let (resumed, version, started, new) = match read {
            Line::Start { version, started, policy, holds, .. } => {
                let holds_fit = holds.len() <= MOST_KEPT_HOLDS && holds.iter().all(|hold| hold.fits(&policy));
                if !policy.is_sound() || !holds_fit {
                    return Err(wrong(Why::Misfit("what it starts with")));
                }
                summary.lives += 1;
                let machine = Machine::new(policy.into_owned(), holds.into_owned());
                (false, version, started, Life { machine, steps: 0, is_mended })
            }
            Line::Resume { version, started, step, machine, .. } => {
                let machine = machine.into_owned();
                if machine.holds().len() > MOST_KEPT_HOLDS {
                    return Err(wrong(Why::Misfit("the machine it resumes")));
                }
                if let Some(life) = life.take_if(|life| life.steps == step && !is_mended) {
                    same_machine(&machine, &life.machine).map_err(wrong)?;
                }
                (true, version, started, Life { machine, steps: step, is_mended })
            }
            Line::Step { step, at, same, event, effects, place } => {
                if follows(&mut life, step, same.len() as u64 + 1, line, &mut summary, &mut told)
                    && let Some(life) = &mut life
                {
                    life.look_again(line, &same, &mut told).map_err(wrong)?;
                    let written = Outcome { effects: effects.into_owned(), place };
                    life.take(line, at, &event, &written, &mut told).map_err(wrong)?;
                    summary.steps += same.len() as u64 + 1;
                }
                continue;
            }
            Line::Looks { step, same } => {
                if follows(&mut life, step, same.len() as u64, line, &mut summary, &mut told)
                    && let Some(life) = &mut life
                {
                    life.look_again(line, &same, &mut told).map_err(wrong)?;
                    summary.steps += same.len() as u64;
                }
                continue;
            }
        };
        let policy = new.machine.policy();
        told(Told::Began { line, started: &started, version: &version, resumed, policy });
        life = Some(new);
    }
    Ok(summary)
}

/// The steps up to number `step` are the next of this life. If not, the life is given up, and that is told.
fn follows(
    alive: &mut Option<Life>,
    step: u64,
    steps: u64,
    line: u64,
    summary: &mut Summary,
    told: &mut impl FnMut(Told<'_>),
) -> bool {
    if alive.as_ref().is_some_and(|life| life.steps.checked_add(steps) == Some(step)) {
        return true;
    }
    // A file that begins in the middle of a life has a gap before its first line.
    if alive.take().is_some() || summary.passed_over == 0 && summary.steps == 0 {
        summary.gaps += 1;
        told(Told::Gap { line });
    }
    summary.passed_over += 1;
    false
}

fn read(text: &[u8]) -> Result<Line<'static>, Why> {
    /// What every format has in its first line.
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
        version: String,
    }
    match serde_json::from_slice::<Head>(text) {
        Ok(Head { format, version }) if format > FORMAT => Err(Why::Newer { format, version }),
        _ => serde_json::from_slice(text).map_err(Why::Foreign),
    }
}

fn same_machine(written: &Machine, replayed: &Machine) -> Result<(), Why> {
    let whole = |machine| serde_json::to_value(machine).map_err(Why::Foreign);
    let (written, replayed) = (whole(written)?, whole(replayed)?);
    if written == replayed {
        return Ok(());
    }
    Err(Why::Differs(Difference::Machine { written, replayed }))
}

impl Life {
    /// Takes the looks that said the same as the one before.
    fn look_again(&mut self, line: u64, same: &[Moments], told: &mut impl FnMut(Told<'_>)) -> Result<(), Why> {
        for moments in same {
            let (at, look) = moments.of_look(self.machine.look()).ok_or(Why::Misfit("a look"))?;
            let written = Outcome { effects: vec![], place: self.machine.place() };
            self.take(line, at, &Event::Looked(look), &written, told)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        line: u64,
        at: Instant,
        event: &Event,
        written: &Outcome,
        told: &mut impl FnMut(Told<'_>),
    ) -> Result<(), Why> {
        if !at.is_sound() || !event.fits(self.machine.policy()) {
            return Err(Why::Misfit("what happened"));
        }
        let before = self.machine.clone();
        let effects = self.machine.step(at, event);
        let replayed = Outcome { effects, place: self.machine.place() };
        if replayed != *written && !self.is_mended {
            return Err(Why::Differs(Difference::Step(Box::new(StepDifference {
                at,
                policy: before.policy().clone(),
                before: before.place(),
                event: event.clone(),
                written: written.clone(),
                replayed,
            }))));
        }
        self.steps += 1;
        told(Told::Step(Step { line, at, before: &before, event, effects: &replayed.effects, after: &self.machine }));
        Ok(())
    }
}
