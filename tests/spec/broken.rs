//! Machines that break a law, one for each of its demands: what they would have done instead on an edge of the true one. A
//! law that does not catch its own is worth nothing.

use wechsler::machine::{
    Answer, BackendId, Cause, Command, Effect, End, Event, Failure, Goal, Instant, Kind, Machine, OpId, Operation,
    Options, Outcome, Policy, Refusal, RequestId, Seen, Server, Use, Verb, VerbId,
};

use super::explore::Edge;

/// A step that was not the true machine's.
pub struct Broken {
    /// When it was taken.
    pub now: Instant,
    /// What it asked for.
    pub effects: Vec<Effect>,
    /// Where it left the machine.
    pub after: Machine,
}

impl Broken {
    /// The edge it makes of the true one.
    pub fn edge<'a>(&'a self, of: &Edge<'a>) -> Edge<'a> {
        Edge::new((of.before, of.was_ref()), (of.act, self.now, of.event), (&self.effects, &self.after))
    }
}

/// The true step with other effects.
fn with(e: &Edge, effects: Vec<Effect>) -> Option<Broken> {
    Some(Broken { now: e.now, effects, after: e.after.clone() })
}

/// ... without some.
fn without(e: &Edge, drop: impl Fn(&Effect) -> bool) -> Option<Broken> {
    let effects: Vec<Effect> = e.effects.iter().filter(|f| !drop(f)).cloned().collect();
    (effects.len() < e.effects.len()).then(|| with(e, effects)).flatten()
}

/// ... and one more.
fn and(e: &Edge, effect: Effect) -> Option<Broken> {
    with(e, e.effects.iter().cloned().chain([effect]).collect())
}

/// ... and one of its effects once more.
fn twice(e: &Edge, of: impl Fn(&Effect) -> bool) -> Option<Broken> {
    and(e, e.effects.iter().find(|f| of(f))?.clone())
}

/// ... and an order more, for the operation under way.
fn and_orders(e: &Edge, what: Verb) -> Option<Broken> {
    let op = e.after.operation().map_or(OpId(0), |o| o.id);
    and(e, Effect::Do { verb: VerbId(u64::MAX), what, within: e.after.policy().command_timeout, op })
}

/// The operation under way is ended so, too.
fn and_ends(e: &Edge, end: End) -> Option<Broken> {
    let op = e.before.operation()?.id;
    and(e, Effect::Ended { op, end })
}

/// ... and one operation more.
fn begins(e: &Edge, goal: Goal, cause: Cause) -> Option<Broken> {
    and(e, Effect::Began(Operation { id: OpId(u64::MAX), goal, cause, started: e.now, until: e.now }))
}

/// Nothing was done until `now`.
fn slept(e: &Edge, now: Instant) -> Option<Broken> {
    Some(Broken { now, effects: vec![], after: e.before.clone() })
}

fn up(e: &Edge) -> Option<BackendId> {
    e.after.policy().ids().find(|b| e.after.look().backend(*b).seen.is_up())
}

fn wants(e: &Edge) -> Option<BackendId> {
    match e.after.operation()?.goal {
        Goal::Run(b) | Goal::Restart(b) => Some(b),
        _ => None,
    }
}

fn accepted(e: &Edge) -> bool {
    e.effects.iter().any(|f| matches!(f, Effect::Answer { answer: Answer::Accepted { .. }, .. }))
}

fn failed(failure: Failure) -> End {
    End::Failed { failure, warnings: vec![] }
}

pub fn drops_answers(e: &Edge) -> Option<Broken> {
    without(e, |f| matches!(f, Effect::Answer { .. }))
}

pub fn answers_twice(e: &Edge) -> Option<Broken> {
    twice(e, |f| matches!(f, Effect::Answer { .. }))
}

pub fn forgets_ends(e: &Edge) -> Option<Broken> {
    without(e, |f| matches!(f, Effect::Ended { .. }))
}

pub fn ends_twice(e: &Edge) -> Option<Broken> {
    twice(e, |f| matches!(f, Effect::Ended { .. }))
}

pub fn begins_beside(e: &Edge) -> Option<Broken> {
    and(e, Effect::Began(Operation { id: OpId(u64::MAX), ..e.after.operation()?.clone() }))
}

pub fn outsleeps_bounds(e: &Edge) -> Option<Broken> {
    slept(e, e.before.operation()?.until)
}

/// What it was told first, under the same name.
pub fn begins_anew(e: &Edge) -> Option<Broken> {
    let mut after = Machine::new(e.after.policy().clone(), vec![]);
    let stop = Command::Stop(Options::default());
    for event in [Event::Looked(e.after.look().clone()), Event::Commanded { request: RequestId(0), command: stop }] {
        let _ = after.step(e.now, &event);
    }
    Some(Broken { now: e.now, effects: e.effects.to_vec(), after })
}

pub fn orders_twice(e: &Edge) -> Option<Broken> {
    twice(e, |f| matches!(f, Effect::Do { what, .. } if *what != Verb::Wake))
}

pub fn orders_for_nobody(e: &Edge) -> Option<Broken> {
    let effects = e.effects.iter().cloned().map(|f| match f {
        Effect::Do { verb, what, within, .. } => Effect::Do { verb, what, within, op: OpId(0) },
        other => other,
    });
    with(e, effects.collect())
}

pub fn cannot_sit_still(e: &Edge) -> Option<Broken> {
    and_orders(e, Verb::StopUnit(up(e)?))
}

pub fn starts_anyway(e: &Edge) -> Option<Broken> {
    and_orders(e, Verb::StartUnit(wants(e).or_else(|| e.after.policy().ids().next())?))
}

pub fn kills_anyway(e: &Edge) -> Option<Broken> {
    and_orders(e, Verb::KillUnit(e.after.policy().ids().next()?))
}

pub fn powers_off_anyway(e: &Edge) -> Option<Broken> {
    and_orders(e, Verb::PowerOff)
}

pub fn wakes_anyway(e: &Edge) -> Option<Broken> {
    and_orders(e, Verb::Wake)
}

/// It starts what is wanted as soon as somebody says so.
pub fn starts_beside(e: &Edge) -> Option<Broken> {
    let wanted = wants(e).filter(|_| accepted(e))?;
    let beside = up(e).is_some_and(|b| b != wanted);
    beside.then(|| and_orders(e, Verb::StartUnit(wanted))).flatten()
}

pub fn squeezes_in(e: &Edge) -> Option<Broken> {
    let wanted = wants(e)?;
    (e.after.look().foreign_gpu == Some(true)).then(|| and_orders(e, Verb::StartUnit(wanted))).flatten()
}

pub fn stops_unsaved(e: &Edge) -> Option<Broken> {
    let stop = matches!(e.event, Event::Commanded { command: Command::Stop(_), .. }) && accepted(e);
    let running = up(e).filter(|b| e.after.look().backend(*b).seen == Seen::Running)?;
    stop.then(|| and_orders(e, Verb::StopUnit(running))).flatten()
}

pub fn despairs_of_saves(e: &Edge) -> Option<Broken> {
    let failure = matches!(e.event, Event::Finished { outcome: Outcome::Failed(_), .. });
    let saving = matches!(e.before.order(), Some((_, Verb::SaveSlots(_))));
    (failure && saving).then(|| and_ends(e, failed(Failure::SaveFailed))).flatten()
}

pub fn despairs_of_restores(e: &Edge) -> Option<Broken> {
    let failure = matches!(e.event, Event::Finished { outcome: Outcome::Failed(_), .. });
    let restoring = matches!(e.before.order(), Some((_, Verb::RestoreSlots(_))));
    (failure && restoring).then(|| and_ends(e, failed(Failure::RestoreFailed))).flatten()
}

pub fn restores_again(e: &Edge) -> Option<Broken> {
    let wanted = wants(e)?;
    let run = e.after.look().backend(wanted).invocation;
    let again = run.is_some() && e.was().backend(wanted).restored == run;
    again.then(|| and_orders(e, Verb::RestoreSlots(wanted))).flatten()
}

/// It powers off as soon as somebody says so.
pub fn pulls_the_plug(e: &Edge) -> Option<Broken> {
    up(e)?;
    let off = matches!(e.event, Event::Commanded { command: Command::Shutdown(..), .. }) && accepted(e);
    off.then(|| and_orders(e, Verb::PowerOff)).flatten()
}

pub fn wakes_what_sleeps(e: &Edge) -> Option<Broken> {
    let asleep = e.after.place().kind == Kind::Offline && e.after.operation().is_none();
    asleep.then(|| and_orders(e, Verb::Wake)).flatten()
}

pub fn believes_old_answers(e: &Edge) -> Option<Broken> {
    let Event::Finished { verb: old, outcome } = e.event else { return None };
    let (verb, _) = e.before.order().filter(|(verb, _)| verb != old)?;
    let mut after = e.before.clone();
    let effects = after.step(e.now, &Event::Finished { verb, outcome: outcome.clone() });
    Some(Broken { now: e.now, effects, after })
}

pub fn acts_on_every_tick(e: &Edge) -> Option<Broken> {
    let what = e.before.order()?.1;
    (*e.event == Event::Tick).then(|| and_orders(e, what)).flatten()
}

pub fn sleeps_through(e: &Edge) -> Option<Broken> {
    slept(e, e.before.deadline()?)
}

pub fn swallows(e: &Edge) -> Option<Broken> {
    without(e, |_| true)
}

pub fn is_too_busy_to_stop(e: &Edge) -> Option<Broken> {
    e.before.operation()?;
    let effects = e.effects.iter().cloned().map(|f| match f {
        Effect::Answer { request, .. } => Effect::Answer { request, answer: Answer::Refused(Refusal::Busy) },
        other => other,
    });
    with(e, effects.collect())
}

/// What was cancelled.
pub fn begins_again(e: &Edge) -> Option<Broken> {
    and(e, Effect::Began(Operation { id: OpId(u64::MAX), ..e.before.operation()?.clone() }))
}

/// Its patience is none.
pub fn believes_silence(e: &Edge) -> Option<Broken> {
    let silent = matches!(e.event, Event::Looked(look) if look.server == Server::Silent);
    if !silent || e.before.look().boot().is_none() {
        return None;
    }
    let policy = Policy { misses: 1, silence: std::time::Duration::ZERO, ..e.after.policy().clone() };
    let mut hasty = Machine::new(policy, vec![]);
    let _ = hasty.step(e.was().now, &Event::Looked(e.before.look().clone()));
    let effects = hasty.step(e.now, e.event);
    Some(Broken { now: e.now, effects, after: hasty })
}

pub fn stops_users(e: &Edge) -> Option<Broken> {
    up(e).filter(|b| e.after.look().backend(*b).use_ == Use::Unknown)?;
    stops_by_policy(e)
}

pub fn stops_by_policy(e: &Edge) -> Option<Broken> {
    let by_policy = e.after.operation().is_some_and(|o| o.cause.is_policy());
    by_policy.then(|| cannot_sit_still(e)).flatten()
}

pub fn begins_idle_stops(e: &Edge) -> Option<Broken> {
    begins(e, Goal::Stop, Cause::IdleStop)
}

pub fn answers_nobody(e: &Edge) -> Option<Broken> {
    let is_asked = matches!(e.event, Event::Commanded { .. });
    (!is_asked).then(|| and(e, Effect::Answer { request: RequestId(0), answer: Answer::AlreadySo })).flatten()
}

pub fn agrees_with_everybody(e: &Edge) -> Option<Broken> {
    let Event::Commanded { request, .. } = e.event else { return None };
    let effects = vec![Effect::Answer { request: *request, answer: Answer::AlreadySo }];
    Some(Broken { now: e.now, effects, after: e.before.clone() })
}

pub fn boasts(e: &Edge) -> Option<Broken> {
    and_ends(e, End::Done { warnings: vec![] })
}

/// What cannot be read any more is taken for stopped.
pub fn loses_sight(e: &Edge) -> Option<Broken> {
    let wanted = wants(e).filter(|b| e.after.look().backend(*b).seen == Seen::Running)?;
    let (was, is) = (e.before.look(), e.after.look());
    let lost = |b: BackendId| was.backend(b).seen.is_up() && is.backend(b).seen == Seen::Unknown;
    e.after.policy().ids().any(|b| b != wanted && lost(b)).then(|| boasts(e)).flatten()
}

/// It begins as soon as nothing is in its way.
pub fn waits_at_the_door(e: &Edge) -> Option<Broken> {
    begins(e, Goal::Off, Cause::IdlePowerOff)
}

/// Its clocks go on as if nobody had asked.
pub fn is_deaf_to_wishes(e: &Edge) -> Option<Broken> {
    let is_at_rest = e.before.operation().is_none() && e.after.operation().is_none();
    is_at_rest.then(|| Broken { now: e.now, effects: e.effects.to_vec(), after: e.before.clone() })
}

/// ... since before what ended.
pub fn is_deaf_to_ends(e: &Edge) -> Option<Broken> {
    let has_ended = e.effects.iter().any(|f| matches!(f, Effect::Ended { .. }));
    has_ended.then(|| counts_from_before(e)).flatten()
}

/// It did the same, a moment too late.
pub fn counts_from_before(e: &Edge) -> Option<Broken> {
    let now = e.now + std::time::Duration::from_secs(1);
    Some(Broken { now, effects: e.effects.to_vec(), after: e.after.clone() })
}

pub fn sends_again(e: &Edge) -> Option<Broken> {
    and_orders(e, e.before.order()?.1)
}

pub fn believes_what_was_lost(e: &Edge) -> Option<Broken> {
    let Event::Finished { verb, outcome: Outcome::Unknown(_) } = *e.event else { return None };
    let mut after = e.before.clone();
    let effects = after.step(e.now, &Event::Finished { verb, outcome: Outcome::Succeeded(vec![]) });
    Some(Broken { now: e.now, effects, after })
}

pub fn clings(e: &Edge) -> Option<Broken> {
    let failed = e.effects.iter().any(|f| matches!(f, Effect::Ended { end: End::Failed { .. }, .. }));
    e.before.operation()?;
    failed.then(|| Broken { now: e.now, effects: e.effects.to_vec(), after: e.before.clone() })
}

pub fn trusts_old_words(e: &Edge) -> Option<Broken> {
    let wanted = wants(e)?;
    (e.after.look().gpu_at == Instant::START).then(|| and_orders(e, Verb::StartUnit(wanted))).flatten()
}

pub fn blames_the_next(e: &Edge) -> Option<Broken> {
    and_ends(e, failed(Failure::StartFailed))
}

pub fn takes_everything(e: &Edge) -> Option<Broken> {
    let effects = e.effects.iter().cloned().map(|f| match f {
        Effect::Answer { request, answer: Answer::Refused(_) } => {
            Effect::Answer { request, answer: Answer::Accepted { op: OpId(0), joined: false } }
        }
        other => other,
    });
    with(e, effects.collect())
}

pub fn gives_way(e: &Edge) -> Option<Broken> {
    and_ends(e, End::Replaced { by: OpId(u64::MAX) })
}

/// It knows what it sees, and no more.
pub fn forgets_doubt(e: &Edge) -> Option<Broken> {
    e.before.doubt()?;
    let mut after = Machine::new(e.after.policy().clone(), vec![]);
    let _ = after.step(e.now, &Event::Looked(e.after.look().clone()));
    Some(Broken { now: e.now, effects: vec![], after })
}
