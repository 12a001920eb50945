//! `replay`: a journal of steps, step by step, for people.

use std::{collections::BTreeSet, fs, io::BufReader, path::Path};

use serde_json::{Map, Value, json};

use super::{
    text::{plain, say_line},
    trouble::{Exit, Trouble},
};
use crate::{
    driver::replay::{Difference, Outcome, ReplayError, Step, Summary, Told, Why, replay},
    machine::{
        self, Answer, BackendId, BackendLook, Command, Effect, End, Event, Goal, Held, Instant, Look, Place, Policy,
        Seen, Server, Use, Verb, Warning,
    },
};

/// Replays `file` and shows each step; with `as_json` only how it ended.
pub(super) fn show(file: &Path, as_json: bool) -> Result<Exit, Trouble> {
    let unreadable =
        |why: &dyn std::fmt::Display| Trouble::new(Exit::Usage, "bad_journal", format!("{}: {why}", file.display()));
    let journal = BufReader::new(fs::File::open(file).map_err(|error| unreadable(&error))?);
    let mut page = Page::default();
    let replayed = replay(journal, |told| {
        if !as_json {
            page.tell(&told);
        }
    });
    page.end_of_same();
    let summary = replayed.map_err(|error| match error {
        ReplayError { line, why: Why::Differs(difference) } => Trouble::new(
            Exit::Failed,
            "differs",
            format!("{}: line {line}: the machine differs\n{}", file.display(), differing(&difference)),
        )
        .hint("the `start` or `resume` line before it says which version wrote it: is it this one, of the same build?"),
        error => unreadable(&error),
    })?;
    let Summary { lives, steps, gaps, passed_over, torn } = summary;
    let more = format!(
        "steps are missing in {} ({} passed over), {} cut short",
        count(gaps, "place"),
        count(passed_over, "line"),
        count(torn, "line")
    );
    if steps == 0 {
        return Err(unreadable(&format!("there is nothing to replay: {more}")));
    }
    if as_json {
        let told = json!({
            "outcome": "done", "exit_code": 0, "lives": lives, "steps": steps, "gaps": gaps,
            "lines_passed_over": passed_over, "lines_cut_short": torn,
        });
        say_line(&told.to_string());
    } else {
        say_line(&format!(
            "{} in {} came out as written; {more}",
            count(steps, "step"),
            if lives == 1 { "1 life".to_owned() } else { format!("{lives} lives") }
        ));
    }
    Ok(Exit::Done)
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// What is written and what came out, each as the page shows it.
fn differing(difference: &Difference) -> String {
    match difference {
        Difference::Step(step) => {
            let names = Names(&step.policy);
            let happened = names.happened(step.at, step.before, &step.event);
            let came = |outcome: &Outcome| names.came(&outcome.effects, step.before, outcome.place);
            format!("{happened}\n  written: {}\n  replayed:{}", came(&step.written), came(&step.replayed))
        }
        Difference::Machine { written, replayed } => {
            let mut places = vec![];
            unlike("machine", written, replayed, &mut places);
            places.join("\n")
        }
    }
}

/// Where two values are unlike.
fn unlike(place: &str, written: &Value, replayed: &Value, places: &mut Vec<String>) {
    match (written, replayed) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let of = |object: &Map<String, Value>, name| object.get(name).cloned().unwrap_or_default();
            for name in names {
                unlike(&format!("{place}.{name}"), &of(a, name), &of(b, name), places);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                unlike(&format!("{place}.{at}"), a, b, places);
            }
        }
        (a, b) if a != b => places.push(format!("  {place}: written {a}, replayed {b}")),
        _ => {}
    }
}

/// Lines, one for each step; looks that show the same are counted.
#[derive(Default)]
struct Page {
    last: String,
    same: u64,
}

impl Page {
    fn tell(&mut self, told: &Told<'_>) {
        let text = line(told);
        let shown = match told {
            Told::Step(step) if matches!(step.event, Event::Looked(_)) => {
                text.split_once(':').map_or("", |(_, shown)| shown).to_owned()
            }
            _ => String::new(),
        };
        if !shown.is_empty() && shown == self.last {
            self.same += 1;
            return;
        }
        self.end_of_same();
        self.last = shown;
        say_line(&plain(&text));
    }

    fn end_of_same(&mut self) {
        match std::mem::take(&mut self.same) {
            0 => {}
            1 => say_line("              … once more"),
            n => say_line(&format!("              … {n} times more")),
        }
    }
}

fn line(told: &Told<'_>) -> String {
    match told {
        Told::Began { started, version, resumed, policy, .. } => {
            let names: Vec<&str> = policy.backends.iter().map(|b| b.name.as_str()).collect();
            let how = if *resumed { "resumed: the daemon" } else { "the daemon" };
            format!("=== {how} started at {started}, version {version}, backends {}", names.join(", "))
        }
        Told::Step(step) => step_line(step),
        Told::Gap { line } => format!("=== steps are missing before line {line}"),
        Told::Torn { line } => format!("=== line {line} was cut short"),
    }
}

/// When, what happened, what was asked for, and where that led.
fn step_line(step: &Step<'_>) -> String {
    let names = Names(step.after.policy());
    let before = step.before.place();
    names.happened(step.at, before, step.event) + &names.came(step.effects, before, step.after.place())
}

/// Puts names to numbers.
struct Names<'a>(&'a Policy);

impl Names<'_> {
    fn of(&self, id: BackendId) -> &str {
        self.0.backends.get(usize::from(id.0)).map_or("?", |b| &b.name)
    }

    fn place(&self, place: Place) -> String {
        match place.backend {
            Some(id) => format!("{} {}", place.kind, self.of(id)),
            None => place.kind.to_string(),
        }
    }

    fn happened(&self, at: Instant, place: Place, event: &Event) -> String {
        format!("{:>12}  {}: {}", at.to_string(), self.place(place), self.event(event))
    }

    fn came(&self, effects: &[Effect], before: Place, after: Place) -> String {
        let effects = effects.iter().map(|effect| format!(" → {}", self.effect(effect)));
        let moved = (before != after).then(|| format!(" ⇒ {}", self.place(after)));
        effects.chain(moved).collect()
    }

    fn event(&self, event: &Event) -> String {
        match event {
            Event::Looked(look) => format!("sees {}", self.look(look)),
            Event::Finished { verb, outcome } => format!("order {verb} {}", ended(outcome)),
            Event::Commanded { request, command } => format!("request {request}: {}", self.command(command)),
            Event::Tick => event.kind().into(),
        }
    }

    fn look(&self, look: &Look) -> String {
        let server = match look.server {
            Server::NotLooked => "nothing yet".into(),
            Server::Silent => "silence".into(),
            Server::Booting(phase) => format!("{phase:?}"),
            Server::On { session, .. } => format!("on (session {session})"),
            Server::Uncontrolled => "on, without SSH".into(),
        };
        let backends = self.0.backends.iter().zip(&look.backends).map(|(policy, look)| (policy.name.as_str(), look));
        let backends = backends.filter(|(_, look)| look.seen != Seen::Stopped).map(|(name, look)| backend(name, look));
        let more = [
            (look.foreign_gpu == Some(true), "a stranger on the GPU"),
            (look.gpu_late, "GPUs missing yet"),
            (look.people == Some(true), "people"),
            (look.wake_armed == Some(false), "card unarmed"),
        ];
        let more = more.into_iter().filter(|(so, _)| *so).map(|(_, text)| text.to_owned());
        let all: Vec<String> = [server].into_iter().chain(backends).chain(more).collect();
        all.join(", ")
    }

    fn command(&self, command: &Command) -> String {
        let about = match command {
            Command::Start(id, _) | Command::Restart(id, _) => id.map(|id| self.of(id).to_owned()),
            Command::Switch(id, _) | Command::Resolve(id, _) => Some(self.of(*id).to_owned()),
            Command::Shutdown(power, _) => Some(format!("{power:?}")),
            Command::Hold(spec) => Some(match spec.what {
                Held::Backend(id) => self.of(id).to_owned(),
                what => format!("{what:?}"),
            }),
            Command::Release(id) => Some(id.to_string()),
            _ => None,
        };
        let options = command.options();
        let options = [(options.replace, "--replace"), (options.no_drain, "--no-drain")];
        let options = options.into_iter().filter(|(on, _)| *on).map(|(_, text)| text.to_owned());
        let words: Vec<String> = [command.word().to_owned()].into_iter().chain(about).chain(options).collect();
        words.join(" ")
    }

    fn effect(&self, effect: &Effect) -> String {
        match effect {
            Effect::Answer { request, answer } => format!("answers request {request}: {}", answered(answer)),
            Effect::Do { verb, what, op, .. } => format!("orders {verb}: {} (operation {op})", self.verb(*what)),
            Effect::Began(op) => format!("begins operation {}: {} by {:?}", op.id, self.goal(op.goal), op.cause),
            Effect::Ended { op, end } => format!("ends operation {op}: {}", self::end(end)),
            Effect::HoldsChanged => "keeps the holds".into(),
        }
    }

    fn verb(&self, verb: Verb) -> String {
        match verb {
            Verb::Wake => "wake".into(),
            Verb::StartUnit(id) => format!("start {}", self.of(id)),
            Verb::StopUnit(id) => format!("stop {}", self.of(id)),
            Verb::KillUnit(id) => format!("kill {}", self.of(id)),
            Verb::SaveSlots(id) => format!("save the slots of {}", self.of(id)),
            Verb::RestoreSlots(id) => format!("restore the slots of {}", self.of(id)),
            Verb::PowerOff => "power off".into(),
        }
    }

    fn goal(&self, goal: Goal) -> String {
        match goal {
            Goal::Run(id) | Goal::Restart(id) | Goal::Save(id, _) | Goal::Restore(id, _) => {
                format!("{} {}", goal.kind(), self.of(id))
            }
            Goal::Stop | Goal::Awake | Goal::Off => goal.kind().into(),
        }
    }
}

fn backend(name: &str, look: &BackendLook) -> String {
    let use_ = match look.use_ {
        _ if look.seen != Seen::Running => "",
        Use::Busy => " busy",
        Use::Idle => " idle",
        Use::Unknown => " use unknown",
    };
    format!("{name} {:?}{use_}", look.seen)
}

fn ended(outcome: &machine::Outcome) -> String {
    match outcome {
        machine::Outcome::Succeeded(warnings) => format!("succeeded{}", codes(warnings)),
        machine::Outcome::Failed(why) => format!("failed: {} {}", why.code, why.message),
        machine::Outcome::Unknown(why) => format!("is lost: {} {}", why.code, why.message),
    }
}

fn answered(answer: &Answer) -> String {
    match answer {
        Answer::Accepted { op, joined: false } => format!("operation {op}"),
        Answer::Accepted { op, joined: true } => format!("operation {op}, under way already"),
        Answer::AlreadySo => "already so".into(),
        Answer::Done { hold: Some(id) } => format!("hold {id}"),
        Answer::Done { hold: None } => "done".into(),
        Answer::Refused(why) => format!("refused, {why}"),
    }
}

fn end(end: &End) -> String {
    match end {
        End::Done { warnings } => format!("done{}", codes(warnings)),
        End::Failed { failure, warnings } => format!("failed, {failure}{}", codes(warnings)),
        End::Cancelled => "cancelled".into(),
        End::Replaced { by } => format!("replaced by {by}"),
    }
}

fn codes(warnings: &[Warning]) -> String {
    let codes: Vec<&str> = warnings.iter().map(|w| w.code.as_str()).collect();
    if codes.is_empty() { String::new() } else { format!(" with {}", codes.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_machines_only_what_is_unlike_is_shown() {
        let written = json!({"core": {"at": 1, "seen": [1, 2]}, "holds": [7]});
        let replayed = json!({"core": {"at": 1, "seen": [1, 3]}, "holds": []});
        let difference = Difference::Machine { written, replayed };
        assert_eq!(
            differing(&difference),
            "  machine.core.seen.1: written 2, replayed 3\n  machine.holds: written [7], replayed []"
        );
    }
}
