//! Timelines: what the machine does when, told one event at a time. Each was once done wrong.

mod attention;
mod commands;
mod flaps;
mod idle;
mod power_off;
mod shows;
mod slots;
#[path = "../spec/mod.rs"]
mod spec;
mod starts;

use std::time::Duration;

use spec::sample::{self, LLAMA, VLLM};
use wechsler::machine::{
    Answer, BootId, BootPhase, Cause, Command, Effect, End, Event, Failure, Goal, Held, HoldSpec, Instant, Invocation,
    Kind, Look, Machine, Options, Outcome, Policy, PowerChoice, Refusal, RequestId, Seen, Selection, Server, Use, Verb,
    VerbId, WakeCheck, Warning,
};

const PLAIN: Options = Options { replace: false, no_drain: false };
const REPLACE: Options = Options { replace: true, no_drain: false };

/// A machine and its time.
struct Line {
    machine: Machine,
    now: Instant,
}

impl Line {
    fn new(policy: Policy) -> Self {
        Self { machine: Machine::new(policy, vec![]), now: Instant::START }
    }

    /// A quiet server that is on, as `look` shows it.
    fn on(policy: Policy, llama: Seen, vllm: Seen) -> Self {
        let mut line = Self::new(policy);
        line.after(10);
        line.sees(llama, vllm);
        line
    }

    /// A server that nothing answers of, and that was never seen up.
    fn off(policy: Policy) -> Self {
        let mut line = Self::new(policy);
        for _ in 0..3 {
            silence(line.after(1));
        }
        line
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now = self.now + Duration::from_secs(seconds);
        self
    }

    fn take(&mut self, event: Event) -> Vec<Effect> {
        self.machine.step(self.now, &event)
    }

    fn looked(&mut self, look: Look) -> Vec<Effect> {
        self.take(Event::Looked(look))
    }

    /// A look asked and answered now.
    fn sees(&mut self, llama: Seen, vllm: Seen) -> Vec<Effect> {
        self.looked(sample::on(self.now, llama, vllm))
    }

    /// Such a look, changed.
    fn sees_with(&mut self, llama: Seen, vllm: Seen, change: impl FnOnce(&mut Look)) -> Vec<Effect> {
        let mut look = sample::on(self.now, llama, vllm);
        change(&mut look);
        self.looked(look)
    }

    fn told(&mut self, command: Command) -> Vec<Effect> {
        self.take(Event::Commanded { request: RequestId(1), command })
    }

    fn ends(&mut self, verb: VerbId, outcome: Outcome) -> Vec<Effect> {
        self.take(Event::Finished { verb, outcome })
    }

    fn tick(&mut self) -> Vec<Effect> {
        self.take(Event::Tick)
    }

    /// A start, and the last look it waits for.
    fn started(&mut self, backend: wechsler::machine::BackendId) -> Vec<Effect> {
        let mut effects = self.told(Command::Start(Some(backend), PLAIN));
        effects.extend(self.after(1).sees(Seen::Stopped, Seen::Stopped));
        effects
    }

    /// The two looks two seconds apart that show nobody using llama.cpp, whatever they lead to.
    fn drains(&mut self) -> Vec<Effect> {
        let mut effects = self.after(2).sees(Seen::Running, Seen::Stopped);
        effects.extend(self.after(2).sees(Seen::Running, Seen::Stopped));
        effects
    }

    fn kind(&self) -> Kind {
        self.machine.place().kind
    }
}

/// llama.cpp runs, tells that it was not used yet, and what was saved of it may be put back.
fn fresh(line: &mut Line) -> Vec<Effect> {
    fresh_run(line, 1)
}

/// ... and its invocation.
fn fresh_run(line: &mut Line, run: u128) -> Vec<Effect> {
    line.sees_with(Seen::Running, Seen::Stopped, |look| {
        let llama = &mut look.backends[0];
        (llama.unused, llama.restorable, llama.holds_tokens) = (true, true, false);
        llama.invocation = Some(Invocation(run));
    })
}

/// The orders in `effects`.
fn orders(effects: &[Effect]) -> Vec<(VerbId, Verb)> {
    effects
        .iter()
        .filter_map(|e| if let Effect::Do { verb, what, .. } = e { Some((*verb, *what)) } else { None })
        .collect()
}

/// The one order in `effects`.
#[track_caller]
fn order(effects: &[Effect]) -> (VerbId, Verb) {
    let all = orders(effects);
    let [one] = all[..] else { panic!("one order, and not {all:?}, in {effects:?}") };
    one
}

fn failure(effects: &[Effect]) -> Option<Failure> {
    effects.iter().find_map(|e| match e {
        Effect::Ended { end: End::Failed { failure, .. }, .. } => Some(*failure),
        _ => None,
    })
}

fn fine() -> Outcome {
    Outcome::Succeeded(vec![])
}

fn failed(code: &str) -> Outcome {
    Outcome::Failed(Warning::new(code, ""))
}

fn lost() -> Outcome {
    Outcome::Unknown(Warning::new("verb_lost", ""))
}

#[test]
fn a_stop_given_while_a_start_is_under_way_is_not_ended_by_the_starts_end() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, what) = order(&line.told(Command::Start(Some(VLLM), PLAIN)));
    assert_eq!(what, Verb::StartUnit(VLLM));
    line.told(Command::Stop(PLAIN));
    let effects = line.after(1).ends(start, failed("verb_failed"));
    assert_eq!(failure(&effects), None);
    let effects = line.after(1).sees(Seen::Stopped, Seen::Loading);
    assert_eq!(order(&effects).1, Verb::StopUnit(VLLM));
}

#[test]
fn a_start_waits_for_a_last_look_at_the_gpu_and_is_refused_by_what_it_shows() {
    let old = |look: &mut Look| look.gpu_at = sample::at(1);
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.after(60).sees_with(Seen::Stopped, Seen::Stopped, old);
    let asked = line.now;
    assert_eq!(orders(&line.told(Command::Start(Some(LLAMA), PLAIN))), []);
    assert_eq!(line.machine.view().last_look, Some(asked), "the driver is told to ask");
    let mut told = line.machine.clone();
    let effects = line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.foreign_gpu = Some(true));
    assert_eq!(failure(&effects), Some(Failure::Occupied));
    // Told in time that nobody is there, it starts.
    let effects = told.step(line.now, &Event::Looked(sample::on(line.now, Seen::Stopped, Seen::Stopped)));
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA));
}

#[test]
fn a_gpu_that_cannot_be_asked_in_time_does_not_keep_a_start_waiting() {
    let old = |look: &mut Look| look.gpu_at = Instant::START;
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.after(60).sees_with(Seen::Stopped, Seen::Stopped, old);
    line.told(Command::Start(Some(LLAMA), PLAIN));
    for _ in 0..14 {
        assert_eq!(orders(&line.after(1).sees_with(Seen::Stopped, Seen::Stopped, old)), []);
    }
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(1)));
    assert_eq!(order(&line.after(1).tick()).1, Verb::StartUnit(LLAMA));
    assert_eq!(told_when_up(&mut line), ["gpu_unread"]);
}

/// The warnings that come with the end of the start of llama.cpp just ordered.
fn told_when_up(line: &mut Line) -> Vec<String> {
    let (start, _) = line.machine.order().expect("the start");
    line.after(1).ends(start, fine());
    match &line.after(1).sees(Seen::Running, Seen::Stopped)[..] {
        [Effect::Ended { end: End::Done { warnings }, .. }] => warnings.iter().map(|w| w.code.clone()).collect(),
        effects => panic!("{effects:?}"),
    }
}

#[test]
fn a_gpu_that_is_late_after_a_boot_is_waited_for_but_not_for_ever() {
    let late = |look: &mut Look| look.gpu_late = true;
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.after(1).sees_with(Seen::Stopped, Seen::Stopped, late);
    assert_eq!(orders(&line.told(Command::Start(Some(LLAMA), PLAIN))), []);
    let mut came = line.machine.clone();
    for _ in 0..29 {
        assert_eq!(orders(&line.after(1).sees_with(Seen::Stopped, Seen::Stopped, late)), []);
    }
    assert_eq!(line.machine.deadline(), Some(line.now + Duration::from_secs(1)));
    assert_eq!(order(&line.after(1).tick()).1, Verb::StartUnit(LLAMA));
    assert_eq!(told_when_up(&mut line), ["gpu_late"]);
    // Once it is there, nothing is waited for any more.
    let soon = sample::at(13);
    let effects = came.step(soon, &Event::Looked(sample::on(soon, Seen::Stopped, Seen::Stopped)));
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA));
}

#[test]
fn what_does_not_end_is_stuck_and_what_is_down_but_not_gone_has_not_freed_the_gpu() {
    for (run, expected) in [(Some(Invocation(2)), Failure::StopStuck), (None, Failure::GpuNotFreed)] {
        let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
        let stop = order(&line.told(Command::Stop(Options { no_drain: true, ..PLAIN }))).0;
        let lingers = |look: &mut Look| look.backends[1].invocation = run;
        line.after(1).ends(stop, fine());
        line.after(1).sees_with(Seen::Stopped, Seen::Lingering, lingers);
        line.now = line.machine.deadline().expect("it is waited for");
        let (kill, what) = order(&line.sees_with(Seen::Stopped, Seen::Lingering, lingers));
        assert_eq!(what, Verb::KillUnit(VLLM));
        line.after(1).ends(kill, fine());
        line.now = line.machine.deadline().expect("it is waited for");
        let effects = line.sees_with(Seen::Stopped, Seen::Lingering, lingers);
        assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(expected)));
    }
}

#[test]
fn an_idle_stop_gives_up_also_for_a_request_that_was_over_between_two_looks() {
    let mut line = Line::on(without_checkpoints(), Seen::Running, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle stop");
    line.tick();
    assert_eq!(line.kind(), Kind::Draining);
    let effects = line.after(2).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].mark = Some(7));
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::InUse)));
    assert_eq!(line.kind(), Kind::Running);
}

#[test]
fn a_look_that_took_long_to_come_may_be_acted_on_when_it_comes() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    line.told(Command::Start(Some(LLAMA), PLAIN));
    let mut line = Line::new(sample::quiet());
    line.after(10).sees_with(Seen::Stopped, Seen::Stopped, |look| look.server = Server::NotLooked);
    line.told(Command::Start(Some(LLAMA), PLAIN));
    let asked = line.now;
    line.after(9);
    let mut look = sample::on(asked, Seen::Stopped, Seen::Stopped);
    look.gpu_at = line.now;
    assert_eq!(order(&line.looked(look)).1, Verb::StartUnit(LLAMA));
}

#[test]
fn a_stop_that_was_lost_is_ordered_again_and_what_is_up_is_never_killed() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    line.told(Command::Stop(Options { no_drain: true, ..PLAIN }));
    let mut session = 1;
    let mut again = |line: &mut Line, stop: VerbId| {
        line.after(5).ends(stop, lost());
        session += 1;
        line.after(1).sees_with(Seen::Stopped, Seen::Running, |look| {
            look.server = Server::On { boot: BootId(1), session };
        })
    };
    let first = line.machine.view().order.expect("a stop").0;
    let (second, what) = order(&again(&mut line, first));
    assert_eq!(what, Verb::StopUnit(VLLM), "the new session shows it untouched");
    assert_eq!(orders(&again(&mut line, second)), [], "twice is enough");
    let deadline = line.machine.deadline().expect("it is waited for");
    line.now = deadline;
    let effects = line.sees_with(Seen::Stopped, Seen::Running, |look| {
        look.server = Server::On { boot: BootId(1), session: 9 };
    });
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::StopStuck)));
}

#[test]
fn a_lost_answer_is_not_cleared_up_by_a_unit_that_cannot_be_read() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    line.told(Command::Stop(Options { no_drain: true, ..PLAIN }));
    let stop = line.machine.view().order.expect("a stop").0;
    line.after(1).ends(stop, lost());
    let next = Server::On { boot: BootId(1), session: 2 };
    line.after(1).sees_with(Seen::Stopped, Seen::Unknown, |look| look.server = next);
    let effects = line.after(1).told(Command::Start(Some(LLAMA), REPLACE));
    assert_eq!(orders(&effects), []);
    let effects = line.after(1).sees_with(Seen::Stopped, Seen::Stopped, |look| look.server = next);
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA));
}

#[test]
fn holds_made_on_the_way_are_kept() {
    let hold = |what| Command::Hold(HoldSpec { what, lasts: None, reason: String::new(), by: String::new() });
    // No packet more once the server is to stay off.
    let mut line = Line::off(sample::quiet());
    assert_eq!(order(&line.told(Command::Wake(PLAIN))).1, Verb::Wake);
    assert_eq!(failure(&line.told(hold(Held::Off))), Some(Failure::Held));
    assert_eq!(orders(&line.after(3).tick()), []);
    // Nothing is started once the GPU is to stay free.
    let mut line = Line::on(sample::quiet(), Seen::Running, Seen::Stopped);
    line.told(Command::Switch(VLLM, Options { no_drain: true, ..PLAIN }));
    let save = line.machine.view().order.expect("a save").0;
    line.ends(save, fine());
    line.told(hold(Held::Gpu));
    let stop = line.machine.view().order.expect("a stop").0;
    line.after(1).ends(stop, fine());
    let effects = line.after(1).sees(Seen::Stopped, Seen::Stopped);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], Some(Failure::Held)));
}

#[test]
fn a_unit_that_cannot_be_read_is_waited_for_as_long_as_a_silent_server() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Unknown);
    assert!(
        line.told(Command::Start(Some(LLAMA), PLAIN))
            .iter()
            .any(|e| { matches!(e, Effect::Answer { answer: Answer::Accepted { .. }, .. }) })
    );
    for _ in 0..29 {
        let effects = line.after(1).sees(Seen::Stopped, Seen::Unknown);
        assert_eq!((orders(&effects), failure(&effects)), (vec![], None));
    }
    let effects = line.after(1).tick();
    assert_eq!(failure(&effects), Some(Failure::UnitUnread));
}

#[test]
fn the_wanted_backends_own_unit_is_not_waited_for_longer_than_another() {
    let mut line = Line::on(sample::quiet(), Seen::Unknown, Seen::Stopped);
    line.told(Command::Start(Some(LLAMA), PLAIN));
    for _ in 0..29 {
        let effects = line.after(1).sees(Seen::Unknown, Seen::Stopped);
        assert_eq!((orders(&effects), failure(&effects)), (vec![], None));
    }
    assert_eq!(failure(&line.after(1).sees(Seen::Unknown, Seen::Stopped)), Some(Failure::UnitUnread));
}

#[test]
fn a_lost_answer_of_a_unit_that_cannot_be_read_is_waited_for_no_longer() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    line.told(Command::Stop(Options { no_drain: true, ..PLAIN }));
    let stop = line.machine.view().order.expect("a stop").0;
    line.after(1).ends(stop, lost());
    let mut failed = None;
    for _ in 0..31 {
        failed = failed.or(failure(&line.after(1).sees(Seen::Stopped, Seen::Unknown)));
    }
    assert_eq!(failed, Some(Failure::UnitUnread));
}

#[test]
fn an_answer_that_comes_after_it_was_given_up_clears_the_doubt() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.started(LLAMA));
    line.now = line.machine.deadline().expect("the order's deadline");
    line.sees(Seen::Loading, Seen::Stopped);
    line.after(1).ends(start, fine());
    line.after(1).sees(Seen::Running, Seen::Stopped);
    assert_eq!(line.machine.view().operation, None, "the next look decides");
}

#[test]
fn a_gpu_that_answers_slowly_is_told_all_the_same() {
    let mut line = Line::on(sample::eager(), Seen::Stopped, Seen::Stopped);
    line.now = line.machine.deadline().expect("the idle power-off");
    let old = sample::at(1);
    let asked = line.now;
    let effects = line.sees_with(Seen::Stopped, Seen::Stopped, |look| look.gpu_at = old);
    assert_eq!(orders(&effects), []);
    let effects = line.after(7).sees_with(Seen::Stopped, Seen::Stopped, |look| look.gpu_at = asked);
    assert_eq!(order(&effects).1, Verb::PowerOff);
}

#[test]
fn nothing_is_killed_that_nobody_can_see() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Running);
    line.told(Command::Stop(Options { no_drain: true, ..PLAIN }));
    let stop = line.machine.view().order.expect("a stop").0;
    line.after(1).ends(stop, fine());
    line.after(1).sees(Seen::Stopped, Seen::Lingering);
    line.now = line.machine.deadline().expect("the stop's deadline");
    assert_eq!(orders(&line.sees(Seen::Stopped, Seen::Unknown)), []);
    assert_eq!(order(&line.after(1).sees(Seen::Stopped, Seen::Lingering)).1, Verb::KillUnit(VLLM));
}

#[test]
fn a_restart_of_a_run_that_could_not_be_named_restarts_it_when_it_can() {
    let mut line = Line::new(sample::quiet());
    line.after(10).sees_with(Seen::Running, Seen::Stopped, |look| look.backends[0].invocation = None);
    line.told(Command::Restart(Some(LLAMA), Options { no_drain: true, ..PLAIN }));
    let mut effects = line.after(1).sees_with(Seen::Running, Seen::Stopped, |l| l.backends[0].invocation = None);
    assert_eq!(orders(&effects), []);
    effects = line.after(1).sees(Seen::Running, Seen::Stopped);
    let (save, what) = order(&effects);
    assert_eq!(what, Verb::SaveSlots(LLAMA));
    assert_eq!(order(&line.ends(save, fine())).1, Verb::StopUnit(LLAMA));
}

#[test]
fn a_start_wished_for_during_a_power_off_goes_on_when_the_server_reboots_instead() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (off, what) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN)));
    assert_eq!(what, Verb::PowerOff);
    line.ends(off, fine());
    line.told(Command::Start(Some(LLAMA), PLAIN));
    assert_eq!(orders(&line.after(1).sees(Seen::Stopped, Seen::Stopped)), [], "still going down");
    let effects = line.after(20).sees_with(Seen::Stopped, Seen::Stopped, |look| {
        look.server = Server::On { boot: BootId(2), session: 2 };
    });
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA));
    assert!(matches!(line.machine.view().operation.map(|o| o.goal), Some(Goal::Run(LLAMA))));
}

#[test]
fn a_run_that_had_no_name_yet_at_the_first_look_is_no_crash_loop() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (start, _) = order(&line.told(Command::Start(Some(LLAMA), PLAIN)));
    line.after(1).ends(start, fine());
    line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| look.backends[0].invocation = None);
    let effects = line.after(1).sees(Seen::Loading, Seen::Stopped);
    assert_eq!((orders(&effects), failure(&effects)), (vec![], None));
    let effects = line.after(1).sees_with(Seen::Loading, Seen::Stopped, |look| {
        look.backends[0].invocation = Some(Invocation(99));
    });
    assert_eq!(order(&effects).1, Verb::StopUnit(LLAMA), "another name is one");
}

/// A look at which nothing of the server answers.
fn silence(line: &mut Line) -> Vec<Effect> {
    let mut look = Look::nothing(2);
    (look.at, look.server) = (line.now, Server::Silent);
    line.looked(look)
}

#[test]
fn a_suspended_server_that_resumes_is_not_stopped_at_once_for_its_idle_time_of_before() {
    let policy = Policy { idle_power_off_after: None, ..without_checkpoints() };
    let mut line = Line::on(policy, Seen::Running, Seen::Stopped);
    for after in [600, 40, 3600] {
        line.after(after);
        silence(&mut line);
    }
    assert_eq!(line.kind(), Kind::Offline);
    let effects = line.after(60).sees(Seen::Running, Seen::Stopped);
    assert_eq!((orders(&effects), line.kind()), (vec![], Kind::Running), "its idle time begins anew");
    assert_eq!(line.machine.view().next_action.map(|next| next.at), Some(line.now + Duration::from_mins(20)));
}

#[test]
fn why_no_packet_could_be_sent_is_told_with_the_end_of_the_operation_that_wanted_it() {
    let mut line = Line::new(sample::quiet());
    for after in [1, 40, 1] {
        line.after(after);
        silence(&mut line);
    }
    let (wake, _) = order(&line.told(Command::Wake(PLAIN)));
    let why = Warning::new("wake_send", "no way leads there");
    line.ends(wake, Outcome::Failed(why.clone()));
    line.ends(wake, Outcome::Failed(Warning::new("wake_send", "an older answer")));
    let mut ended = vec![];
    for _ in 0..200 {
        line.after(3);
        ended.extend(silence(&mut line).into_iter().filter(|e| matches!(e, Effect::Ended { .. })));
    }
    let [Effect::Ended { end: End::Failed { failure: Failure::WakeTimeout, warnings }, .. }] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(*warnings, [why]);
}

#[test]
fn a_power_off_that_was_refused_has_not_begun() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (off, _) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN)));
    assert_eq!(failure(&line.ends(off, failed("not_permitted"))), Some(Failure::NotPermitted));
    assert_eq!(line.kind(), Kind::Idle);
    let mut effects = line.told(Command::Start(Some(LLAMA), PLAIN));
    effects.extend(line.after(1).sees(Seen::Stopped, Seen::Stopped));
    assert_eq!(order(&effects).1, Verb::StartUnit(LLAMA), "nothing waits for it to go down");
}

#[test]
fn a_power_off_whose_answer_was_lost_is_not_ordered_again_when_that_comes_late() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (power_off, what) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN)));
    assert_eq!(what, Verb::PowerOff);
    line.after(10).ends(power_off, lost());
    let effects = line.after(1).ends(power_off, failed("verb_failed"));
    assert_eq!((effects, line.kind()), (vec![], Kind::PoweringOff));
}

#[test]
fn a_server_that_still_refuses_while_it_goes_down_is_not_off_yet() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    let (off, _) = order(&line.told(Command::Shutdown(PowerChoice::PowerOff, PLAIN)));
    line.ends(off, fine());
    line.told(Command::Start(Some(LLAMA), PLAIN));
    for _ in 0..10 {
        let mut look = Look::nothing(2);
        (look.at, look.server) = (line.after(6).now, Server::Booting(BootPhase::Booting));
        assert_eq!(orders(&line.looked(look)), [], "no packet: it would not hear it");
        assert_eq!(line.kind(), Kind::PoweringOff);
    }
    line.after(6);
    assert_eq!(order(&silence(&mut line)).1, Verb::Wake);
}

/// Everything that can happen by itself does, but nothing is saved before a stop.
fn without_checkpoints() -> Policy {
    let mut policy = sample::eager();
    policy.backends[0].checkpoint_quiet = None;
    policy
}

#[test]
fn a_machine_in_the_middle_of_something_goes_on_as_if_it_had_not_been_written_down() {
    let mut machine = Machine::new(sample::quiet(), vec![]);
    let at = |seconds| Instant::after_start(Duration::from_secs(seconds));
    let look = |seconds| Event::Looked(Look { at: at(seconds), server: Server::Silent, ..Look::nothing(2) });
    for second in 1..5 {
        let _ = machine.step(at(second), &look(second));
    }
    let command = Command::Switch(VLLM, Options::default());
    let sent = machine.step(at(6), &Event::Commanded { request: RequestId(1), command });
    assert!(!sent.is_empty(), "{machine:?}");

    let text = serde_json::to_string(&machine).expect("written");
    let mut again: Machine = serde_json::from_str(&text).expect("read");
    assert_eq!(again.view(), machine.view());
    for second in 7..400 {
        let event = if second % 3 == 0 { look(second) } else { Event::Tick };
        assert_eq!(again.step(at(second), &event), machine.step(at(second), &event));
    }
    assert_eq!(again.view(), machine.view());
}

#[test]
fn a_server_that_nobody_directs_is_in_the_leaf_of_what_it_shows() {
    let mut line = Line::on(sample::quiet(), Seen::Stopped, Seen::Stopped);
    for (llama, vllm, kind, backend) in [
        (Seen::Lingering, Seen::Stopped, Kind::Stopping, Some(LLAMA)),
        (Seen::Stopped, Seen::Lingering, Kind::Stopping, Some(VLLM)),
        (Seen::Stopped, Seen::Sick, Kind::Starting, Some(VLLM)),
        (Seen::Running, Seen::Stopped, Kind::Running, Some(LLAMA)),
        (Seen::Stopped, Seen::Sick, Kind::Starting, Some(VLLM)),
        (Seen::Stopped, Seen::Running, Kind::Running, Some(VLLM)),
        (Seen::Loading, Seen::Stopped, Kind::Starting, Some(LLAMA)),
        (Seen::Running, Seen::Stopped, Kind::Running, Some(LLAMA)),
        (Seen::Sick, Seen::Stopped, Kind::Running, Some(LLAMA)),
        (Seen::Running, Seen::Stopped, Kind::Running, Some(LLAMA)),
        // A flap until it has lasted.
        (Seen::Loading, Seen::Stopped, Kind::Running, Some(LLAMA)),
        (Seen::Loading, Seen::Stopped, Kind::Starting, Some(LLAMA)),
    ] {
        line.after(1).sees(llama, vllm);
        let place = line.machine.place();
        assert_eq!((place.kind, place.backend), (kind, backend), "{llama:?}, {vllm:?}");
    }
}
