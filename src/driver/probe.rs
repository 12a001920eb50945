//! When to look at what. Pure: the driver asks what is due, and tells what came back.
//!
//! Each kind of look runs by itself, so that a GPU tool that hangs does not keep the health of a backend waiting; of each
//! kind at most one is in flight (two of [`Source::Core`] for the moment in which an order ended and the look under way
//! was asked before that; beside them what is saved, when something was done about it).

use std::time::Duration;

use crate::{
    config::Probe,
    machine::{
        Command, Instant, Kind, Look, Pace, Policy, PowerChoice, Seen, Server, Verb, View, WakeCheck,
        reading::{ActiveState, Ask, BackendReading, Dated, Gpu, Http, People, Reading, Ssh, Unit, WakeArmed},
    },
};

/// Between two looks at use while it matters: llama.cpp's `/slots` and `/metrics` interrupt its work.
const ACTIVITY: Duration = Duration::from_secs(2);
/// ... and at rest at most: an older word of it is no evidence of idleness.
const ACTIVITY_REST: Duration = Duration::from_secs(10);
/// Between two looks at the GPUs at rest.
const GPU_REST: Duration = Duration::from_mins(1);
/// ... and while something is wrong with them: what is cured need not be shown for another minute.
const GPU_TROUBLED: Duration = Duration::from_secs(10);
/// Between two looks at the GPUs while a backend is to be proven stopped.
const GPU_PROOF: Duration = Duration::from_secs(1);
/// ... and just after its unit went down, when the memory is about to come back and a switch waits for it.
const GPU_PROOF_SOON: Duration = Duration::from_millis(250);
/// So long is just after.
const SOON: Duration = Duration::from_secs(5);
/// Between two looks at logins and inhibitors at rest.
const PEOPLE_REST: Duration = Duration::from_secs(10);
/// Between two looks at the network card's Wake-on setting at rest.
const WAKE_ARMED_REST: Duration = Duration::from_mins(10);
/// Between two looks at the saved slots.
const SAVED_REST: Duration = Duration::from_mins(1);
/// Between two questions for the health of a backend that loads.
const HEALTH: Duration = Duration::from_millis(10);
/// While one loads, its unit is asked so many times more seldom than its health; and so it is while an order is carried out,
/// at whose end it is asked at once: the question costs the server more than the order.
const UNITS_SELDOM: u32 = 8;
/// After a look that did not end in time, its source is left alone for so long.
const AFTER_HANG: Duration = Duration::from_secs(10);

/// What is looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Units over SSH and health over HTTP: what states are made of. Asked together, so that they tell of one moment.
    Core,
    /// Health over HTTP alone, while a backend loads: the moment it is up is caught without troubling the server's SSH.
    Health,
    /// Requests in flight and slots.
    Activity,
    /// GPU memory and processes.
    Gpu,
    /// Logins and inhibitors.
    People,
    /// The network card's Wake-on setting.
    WakeArmed,
    /// Saved slots.
    Saved,
}

impl Source {
    /// All sources, the ones that decide first.
    pub(super) const ALL: [Self; 7] =
        [Self::Core, Self::Health, Self::Activity, Self::Gpu, Self::People, Self::WakeArmed, Self::Saved];

    /// Asked rarely, and once more before a start or a power-off.
    const fn is_looked_at_last(self) -> bool {
        matches!(self, Self::Gpu | Self::People | Self::WakeArmed)
    }

    /// The question.
    #[must_use]
    pub(super) fn ask(self) -> Ask {
        let mut ask = Ask::default();
        match self {
            Self::Core => (ask.units, ask.http) = (true, true),
            Self::Health => ask.http = true,
            Self::Activity => ask.activity = true,
            Self::Gpu => ask.gpu = true,
            Self::People => ask.people = true,
            Self::WakeArmed => ask.wake_armed = true,
            Self::Saved => ask.saved = true,
        }
        ask
    }
}

/// What the schedule remembers of one source.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// When the newest look began.
    began: Option<Instant>,
    /// Looks under way.
    in_flight: u8,
    /// The look under way was asked before an order ended: it tells of the past.
    superseded: bool,
    /// Look as soon as possible.
    wanted: bool,
    /// Not before.
    not_before: Option<Instant>,
}

/// When to look at what.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    probe: Probe,
    lines: [Line; Source::ALL.len()],
    /// Since when each backend's unit has been seen down without a break; its GPU memory must be read after that.
    down_since: Vec<Option<Instant>>,
    /// The next use of a backend will tell something.
    use_tells: bool,
}

impl Schedule {
    /// The daemon starts: everything is wanted.
    #[must_use]
    pub(super) fn new(probe: Probe) -> Self {
        let line = Line { wanted: true, ..Line::default() };
        Self { probe, lines: [line; Source::ALL.len()], down_since: vec![], use_tells: false }
    }

    /// When `source` is to be looked at next; `None` while it is in flight or there is nobody to ask.
    #[must_use]
    pub(super) fn due(&self, source: Source, view: &View, reading: &Reading) -> Option<Instant> {
        let line = &self.lines[source as usize];
        let most = if source == Source::Core && line.superseded { 2 } else { 1 };
        if line.in_flight >= most {
            return None;
        }
        let every = self.every(source, view, reading)?;
        let due = match line.began {
            Some(_) if line.wanted => Instant::START,
            // Somebody is about to act on it.
            Some(began) if source.is_looked_at_last() && view.last_look.is_some_and(|since| began < since) => {
                Instant::START
            }
            Some(began) => began + every,
            None => Instant::START,
        };
        Some(line.not_before.map_or(due, |n| n.max(due)))
    }

    /// The next look of all.
    #[must_use]
    pub(super) fn next(&self, view: &View, reading: &Reading) -> Option<Instant> {
        Source::ALL.into_iter().filter_map(|s| self.due(s, view, reading)).min()
    }

    /// A look begins.
    pub(super) fn began(&mut self, source: Source, now: Instant) {
        let line = &mut self.lines[source as usize];
        line.began = Some(now);
        line.in_flight += 1;
        line.wanted = false;
        line.not_before = None;
    }

    /// A look has ended. `began` is when it was asked, `hung` that it had to be given up.
    pub(super) fn ended(&mut self, source: Source, began: Instant, hung: bool, now: Instant) {
        let line = &mut self.lines[source as usize];
        line.in_flight = line.in_flight.saturating_sub(1);
        if line.in_flight == 0 || line.began.is_some_and(|newest| began < newest) {
            line.superseded = false;
        }
        if hung {
            line.not_before = Some(now + AFTER_HANG);
        }
    }

    /// An order has ended: what was asked before tells of the past, and the world is looked at again at once. A save leaves the
    /// units as they are, and who stops one now is not to be kept waiting by questions about them.
    pub(super) fn order_ended(&mut self, verb: Verb) {
        if !matches!(verb, Verb::SaveSlots(_)) {
            self.want(Source::Core);
            let core = &mut self.lines[Source::Core as usize];
            core.superseded = core.in_flight == 1 && verb != Verb::Wake;
        }
        if let Verb::SaveSlots(_) | Verb::RestoreSlots(_) = verb {
            self.want(Source::Activity);
        }
        // A start takes for there what was missing before.
        if let Verb::SaveSlots(_) | Verb::RestoreSlots(_) | Verb::StartUnit(_) = verb {
            self.want(Source::Saved);
        }
    }

    /// Whether the next use of a backend will tell something: it is looked for more often then.
    pub(super) const fn use_tells(&mut self, tells: bool) {
        self.use_tells = tells;
    }

    /// Look as soon as possible.
    pub(super) fn want(&mut self, source: Source) {
        self.lines[source as usize].wanted = true;
    }

    /// Another boot, or the first answer after silence: everything on the server is new.
    pub(super) fn want_everything(&mut self) {
        for source in Source::ALL {
            self.want(source);
        }
    }

    /// Remembers since when each unit has been down, by its newest reading.
    pub(super) fn note(&mut self, reading: &Reading) {
        self.down_since.resize(reading.backends.len(), None);
        for (since, backend) in self.down_since.iter_mut().zip(&reading.backends) {
            let down = matches!(
                backend.unit.as_ref().map(|u| &u.value),
                Some(Unit::Loaded(u)) if matches!(u.active, ActiveState::Inactive | ActiveState::Failed)
            );
            match (&backend.unit, down) {
                (Some(unit), true) => *since = Some(since.unwrap_or(unit.at)),
                _ => *since = None,
            }
        }
    }

    /// How long after the last look the next one is due; zero: at once. `None`: there is nobody to ask.
    fn every(&self, source: Source, view: &View, reading: &Reading) -> Option<Duration> {
        let answers = matches!(reading.ssh.as_ref().map(|s| &s.value), Some(Ssh::Answered { .. }));
        let busy = view.pace == Pace::Busy;
        let loads = busy && view.place.kind == Kind::Starting && view.order.is_none();
        match source {
            Source::Core => Some(match view.pace {
                Pace::Rest => self.probe.rest,
                Pace::Busy if loads || view.order.is_some() => self.probe.busy * UNITS_SELDOM,
                Pace::Busy => self.probe.busy,
                Pace::Waiting => self.probe.waiting,
            }),
            Source::Health => loads.then_some(self.probe.busy.min(HEALTH)),
            Source::Activity => {
                let up = view.look.backends.iter().any(|b| b.seen == Seen::Running);
                let pace =
                    if busy || self.use_tells { ACTIVITY } else { self.probe.rest.clamp(ACTIVITY, ACTIVITY_REST) };
                up.then_some(pace)
            }
            Source::Gpu => answers.then(|| self.gpu(view, reading)),
            Source::People => answers.then_some(PEOPLE_REST),
            Source::WakeArmed => answers.then_some(WAKE_ARMED_REST),
            Source::Saved => Some(SAVED_REST),
        }
    }

    fn gpu(&self, view: &View, reading: &Reading) -> Duration {
        let to_prove = view.look.backends.iter().any(|b| b.seen == Seen::Lingering);
        if !to_prove && view.last_look.is_some() {
            // A start waits for a GPU that is late.
            return GPU_PROOF;
        }
        if !to_prove {
            return if reading.gpu_trouble.is_some() { GPU_TROUBLED } else { GPU_REST };
        }
        // The first look after the unit went down is the one that proves; it is not kept waiting.
        let read = reading.gpu.as_ref().map(|g| g.at);
        let asked = self.lines[Source::Gpu as usize].began;
        let newest = read.max(asked);
        let (Some(newest), Some(down)) = (newest, self.down_since.iter().flatten().max()) else {
            return GPU_PROOF;
        };
        if newest < *down {
            Duration::ZERO
        } else if newest.since(*down) < SOON {
            GPU_PROOF_SOON
        } else {
            GPU_PROOF
        }
    }
}

/// What must be asked before `command` can be judged, and was not since then.
pub(super) fn looks_first(
    command: &Command,
    since: Instant,
    view: &View,
    reading: &Reading,
    policy: &Policy,
) -> impl Iterator<Item = Source> + use<> {
    let asked = [
        (Source::Gpu, reading.gpu.as_ref().map(|g| g.at)),
        (Source::People, reading.people.as_ref().map(|p| p.at)),
        (Source::WakeArmed, reading.wake_armed.as_ref().map(|w| w.at)),
    ];
    let powers_off = matches!(command, Command::Shutdown(PowerChoice::PowerOff, _));
    let starts = matches!(command, Command::Start(..) | Command::Switch(..) | Command::Restart(..));
    let occupied = view.look.foreign_gpu == Some(true);
    let checks_wake = policy.wake_check != WakeCheck::Off;
    let answers = matches!(view.look.server, Server::On { .. });
    asked.into_iter().filter(move |(_, at)| answers && at.is_none_or(|at| at < since)).map(|(source, _)| source).filter(
        move |source| match source {
            // Where nobody was seen, the start itself looks once more.
            Source::Gpu => powers_off || (starts && occupied),
            Source::WakeArmed => powers_off && checks_wake,
            _ => powers_off,
        },
    )
}

/// The server answered, and it is another boot than before, or nothing had answered before.
#[must_use]
pub(super) fn is_new(before: &Server, after: &Server) -> bool {
    match (before, after) {
        (Server::On { boot: old, .. }, Server::On { boot: new, .. }) => old != new,
        (_, Server::On { .. }) => true,
        _ => false,
    }
}

/// A backend is running that was not, or by another run: its use and what it holds are worth a look at once.
pub(super) fn newly_running(before: &Look, after: &Look) -> bool {
    after
        .backends
        .iter()
        .zip(&before.backends)
        .any(|(new, old)| new.seen == Seen::Running && (old.seen != Seen::Running || old.invocation != new.invocation))
}

/// What a look that did not end says: that its sources do not answer.
pub(super) fn given_up(source: Source, at: Instant, backends: usize) -> Reading {
    let why = || "the look did not end in time".to_owned();
    let mut reading = Reading::default();
    match source {
        Source::Core => {
            let value = Ssh::Broken(why());
            reading.ssh = Some(Dated { at, value });
            let silent = BackendReading {
                unit: Some(Dated { at, value: Unit::Unread(why()) }),
                http: Some(Dated { at, value: Http::TimedOut }),
                ..BackendReading::default()
            };
            reading.backends = vec![silent; backends];
        }
        Source::Health => {
            let silent =
                BackendReading { http: Some(Dated { at, value: Http::TimedOut }), ..BackendReading::default() };
            reading.backends = vec![silent; backends];
        }
        Source::Gpu => {
            let value = Gpu::Hangs;
            reading.gpu = Some(Dated { at, value });
        }
        Source::People => {
            let value = People::Unread(why());
            reading.people = Some(Dated { at, value });
        }
        Source::WakeArmed => {
            let value = WakeArmed::Unknown(why());
            reading.wake_armed = Some(Dated { at, value });
        }
        Source::Activity | Source::Saved => {}
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        driver::{tests_policy, tests_unit},
        machine::{BackendId, BootId, Invocation, Machine, Options, VerbId},
    };

    const PROBE: Probe = Probe {
        rest: Duration::from_secs(10),
        busy: Duration::from_millis(30),
        waiting: Duration::from_secs(1),
        http_timeout: Duration::from_secs(2),
    };

    fn at(millis: u64) -> Instant {
        Instant::after_start(Duration::from_millis(millis))
    }

    fn view(pace: Pace) -> View {
        let mut view = Machine::new(tests_policy(), vec![]).view();
        view.pace = pace;
        view
    }

    /// The server answers; the unit of each backend is as given.
    fn answers(units: &[ActiveState], asked: Instant) -> Reading {
        let unit = |active: &ActiveState| BackendReading {
            unit: Some(Dated { at: asked, value: Unit::Loaded(tests_unit(*active)) }),
            ..BackendReading::default()
        };
        Reading {
            ssh: Some(Dated { at: asked, value: Ssh::Answered { boot: BootId(1), session: 1 } }),
            backends: units.iter().map(unit).collect(),
            ..Reading::default()
        }
    }

    #[test]
    fn at_the_start_everything_is_asked_but_nobody_who_cannot_answer() {
        let schedule = Schedule::new(PROBE);
        let due = |source, reading: &Reading| schedule.due(source, &view(Pace::Rest), reading);
        let nobody = Reading::default();
        assert_eq!(due(Source::Core, &nobody), Some(Instant::START));
        assert_eq!(due(Source::Saved, &nobody), Some(Instant::START));
        assert_eq!(due(Source::Gpu, &nobody), None);
        let somebody = answers(&[], at(1));
        for source in [Source::Gpu, Source::People, Source::WakeArmed] {
            assert_eq!(due(source, &somebody), Some(Instant::START), "{source:?}");
        }
    }

    #[test]
    fn of_a_new_server_everything_is_asked_again() {
        let mut schedule = Schedule::new(PROBE);
        let (mut rest, reading) = (view(Pace::Rest), answers(&[], at(0)));
        rest.look.backends[0].seen = Seen::Running;
        let asked = Source::ALL.into_iter().filter(|source| *source != Source::Health);
        for source in asked.clone() {
            schedule.began(source, at(1000));
            schedule.ended(source, at(1000), false, at(1005));
        }
        assert!(schedule.next(&rest, &reading) > Some(at(1005)));
        schedule.want_everything();
        for source in asked {
            assert_eq!(schedule.due(source, &rest, &reading), Some(Instant::START), "{source:?}");
        }
    }

    #[test]
    fn the_pace_is_the_machines_and_one_look_is_in_flight() {
        let mut schedule = Schedule::new(PROBE);
        let nobody = Reading::default();
        schedule.began(Source::Core, at(1000));
        assert_eq!(schedule.due(Source::Core, &view(Pace::Busy), &nobody), None);
        schedule.ended(Source::Core, at(1000), false, at(1005));
        for (pace, next) in [(Pace::Rest, 11_000), (Pace::Busy, 1030), (Pace::Waiting, 2000)] {
            let due = schedule.due(Source::Core, &view(pace), &nobody);
            assert_eq!(due, Some(at(next)), "{pace:?}");
        }
    }

    #[test]
    fn an_order_that_ended_is_looked_after_at_once_but_never_by_a_third_look() {
        let mut schedule = Schedule::new(PROBE);
        let (rest, nobody) = (view(Pace::Rest), Reading::default());
        schedule.began(Source::Core, at(1000));
        schedule.order_ended(Verb::StopUnit(BackendId(0)));
        let due = schedule.due(Source::Core, &rest, &nobody);
        assert_eq!(due, Some(Instant::START));
        schedule.began(Source::Core, at(1001));
        schedule.order_ended(Verb::StartUnit(BackendId(0)));
        assert_eq!(schedule.due(Source::Core, &rest, &nobody), None);
        schedule.ended(Source::Core, at(1000), false, at(1010));
        schedule.ended(Source::Core, at(1001), false, at(1011));
        let due = schedule.due(Source::Core, &rest, &nobody);
        assert_eq!(due, Some(Instant::START), "what was wanted is not forgotten");
    }

    #[test]
    fn only_a_look_of_before_the_end_of_an_order_makes_room_for_a_second_one_while_it_lasts() {
        const STOP: Verb = Verb::StopUnit(BackendId(0));
        type Story = (&'static str, fn(&mut Schedule));
        let stories: [Story; 4] = [
            ("it is over", |schedule| {
                schedule.began(Source::Core, at(1000));
                schedule.order_ended(STOP);
                schedule.ended(Source::Core, at(1000), false, at(1010));
                schedule.began(Source::Core, at(1010));
            }),
            ("it is over, and the second goes on", |schedule| {
                schedule.began(Source::Core, at(1000));
                schedule.order_ended(STOP);
                schedule.began(Source::Core, at(1001));
                schedule.ended(Source::Core, at(1000), false, at(1010));
            }),
            ("there was none", |schedule| {
                schedule.order_ended(STOP);
                schedule.began(Source::Core, at(1010));
            }),
            ("a packet was sent, which changes nothing at once", |schedule| {
                schedule.began(Source::Core, at(1000));
                schedule.order_ended(Verb::Wake);
            }),
        ];
        for (why, story) in stories {
            let mut schedule = Schedule::new(PROBE);
            story(&mut schedule);
            schedule.want(Source::Core);
            assert_eq!(schedule.due(Source::Core, &view(Pace::Rest), &Reading::default()), None, "{why}");
        }
    }

    #[test]
    fn an_old_look_that_hangs_does_not_keep_the_next_ones_waiting() {
        let mut schedule = Schedule::new(PROBE);
        schedule.began(Source::Core, at(1000));
        schedule.order_ended(Verb::StopUnit(BackendId(0)));
        schedule.began(Source::Core, at(1001));
        schedule.ended(Source::Core, at(1001), false, at(1011));
        schedule.want(Source::Core);
        let due = schedule.due(Source::Core, &view(Pace::Rest), &Reading::default());
        assert_eq!(due, Some(Instant::START));
    }

    #[test]
    fn a_source_that_hung_is_left_alone_for_a_while() {
        let mut schedule = Schedule::new(PROBE);
        schedule.began(Source::Saved, at(0));
        schedule.ended(Source::Saved, at(0), true, at(300_000));
        let due = schedule.due(Source::Saved, &view(Pace::Rest), &Reading::default());
        assert_eq!(due, Some(at(300_000) + AFTER_HANG));
    }

    #[test]
    fn the_gpu_is_read_as_soon_as_a_unit_is_down_and_then_once_a_second() {
        let mut schedule = Schedule::new(PROBE);
        let mut busy = view(Pace::Busy);
        schedule.began(Source::Gpu, at(1000));
        schedule.ended(Source::Gpu, at(1000), false, at(1100));
        let up = answers(&[ActiveState::Active, ActiveState::Inactive], at(900));
        schedule.note(&up);
        let rest = schedule.due(Source::Gpu, &busy, &up);
        assert_eq!(rest, Some(at(61_000)), "nothing is to be proven");

        let down = answers(&[ActiveState::Inactive, ActiveState::Inactive], at(1200));
        schedule.note(&down);
        busy.look.backends[0].seen = Seen::Lingering;
        let due = schedule.due(Source::Gpu, &busy, &down);
        assert_eq!(due, Some(at(1000)), "at once");
        let mut asked = schedule.clone();
        asked.began(Source::Gpu, at(1200));
        asked.ended(Source::Gpu, at(1200), false, at(1250));
        assert_eq!(asked.due(Source::Gpu, &busy, &down), Some(at(1450)), "it was asked at that very moment");
        schedule.began(Source::Gpu, at(1201));
        schedule.ended(Source::Gpu, at(1201), false, at(1300));
        let due = schedule.due(Source::Gpu, &busy, &down);
        assert_eq!(due, Some(at(1451)), "then soon again");
        schedule.began(Source::Gpu, at(6200));
        schedule.ended(Source::Gpu, at(6200), false, at(6300));
        let due = schedule.due(Source::Gpu, &busy, &down);
        assert_eq!(due, Some(at(7200)), "then at most once a second");
    }

    #[test]
    fn what_is_asked_rarely_is_asked_once_more_before_somebody_acts_on_it() {
        let mut schedule = Schedule::new(PROBE);
        let mut rest = view(Pace::Rest);
        let reading = answers(&[], at(0));
        for source in [Source::Gpu, Source::People, Source::WakeArmed, Source::Core] {
            schedule.began(source, at(1000));
            schedule.ended(source, at(1000), false, at(1005));
        }
        assert_eq!(schedule.due(Source::People, &rest, &reading), Some(at(11_000)));
        rest.last_look = Some(at(4000));
        assert_eq!(schedule.due(Source::Core, &rest, &reading), Some(at(11_000)), "that is asked often enough");
        for source in [Source::Gpu, Source::People, Source::WakeArmed] {
            assert_eq!(schedule.due(source, &rest, &reading), Some(Instant::START), "{source:?}: at once");
            schedule.began(source, at(4000));
            schedule.ended(source, at(4000), false, at(4005));
            assert!(schedule.due(source, &rest, &reading) > Some(at(4005)), "{source:?}: once");
        }
    }

    #[test]
    fn use_is_asked_only_of_who_runs_and_not_too_often() {
        let mut schedule = Schedule::new(PROBE);
        let mut busy = view(Pace::Busy);
        let reading = answers(&[], at(0));
        assert_eq!(schedule.due(Source::Activity, &busy, &reading), None);
        busy.look.backends[1].seen = Seen::Running;
        schedule.began(Source::Activity, at(0));
        schedule.ended(Source::Activity, at(0), false, at(5));
        let due = schedule.due(Source::Activity, &busy, &reading);
        assert_eq!(due, Some(at(2000)));
    }

    #[test]
    fn while_a_backend_loads_or_an_order_is_carried_out_units_are_asked_seldom_and_health_often() {
        let mut schedule = Schedule::new(PROBE);
        let nobody = Reading::default();
        for source in [Source::Core, Source::Health] {
            schedule.began(source, at(1000));
            schedule.ended(source, at(1000), false, at(1005));
        }
        let due =
            |view: &View| (schedule.due(Source::Core, view, &nobody), schedule.due(Source::Health, view, &nobody));
        let mut busy = view(Pace::Busy);
        assert_eq!(due(&busy), (Some(at(1030)), None), "something else is under way");
        busy.place.kind = Kind::Starting;
        assert_eq!(due(&busy), (Some(at(1240)), Some(at(1010))), "it loads");
        busy.order = Some((VerbId(1), Verb::StartUnit(BackendId(0))));
        assert_eq!(due(&busy), (Some(at(1240)), None), "the order to start it is under way");
        let mut rest = view(Pace::Rest);
        rest.place.kind = Kind::Starting;
        assert_eq!(due(&rest), (Some(at(11_000)), None));
    }

    #[test]
    fn use_is_asked_for_more_often_when_it_will_tell_something() {
        let mut rest = view(Pace::Rest);
        rest.look.backends[0].seen = Seen::Running;
        for (probe_rest, tells, next) in
            [(10, false, 10_000), (10, true, 2000), (300, false, 10_000), (5, false, 5000), (1, false, 2000)]
        {
            let mut schedule = Schedule::new(Probe { rest: Duration::from_secs(probe_rest), ..PROBE });
            schedule.use_tells(tells);
            schedule.began(Source::Activity, at(0));
            schedule.ended(Source::Activity, at(0), false, at(5));
            let due = schedule.due(Source::Activity, &rest, &Reading::default());
            assert_eq!(due, Some(at(next)), "{probe_rest} {tells}");
        }
    }

    #[test]
    fn a_gpu_that_is_in_trouble_or_waited_for_is_read_more_often() {
        let mut schedule = Schedule::new(PROBE);
        schedule.began(Source::Gpu, at(4000));
        schedule.ended(Source::Gpu, at(4000), false, at(4005));
        let mut reading = answers(&[], at(0));
        let mut rest = view(Pace::Rest);
        assert_eq!(schedule.due(Source::Gpu, &rest, &reading), Some(at(64_000)));
        reading.gpu_trouble = Some(Dated { at: at(4000), value: "gpu_lost".into() });
        assert_eq!(schedule.due(Source::Gpu, &rest, &reading), Some(at(14_000)));
        rest.last_look = Some(at(3000));
        assert_eq!(schedule.due(Source::Gpu, &rest, &reading), Some(at(5000)));
    }

    #[test]
    fn what_a_command_acts_on_is_asked_first_unless_it_was_since() {
        let policy = tests_policy();
        let off = Command::Shutdown(PowerChoice::PowerOff, Options::default());
        let keep_on = Command::Shutdown(PowerChoice::KeepOn, Options::default());
        let start = Command::Start(None, Options::default());
        let switch = Command::Switch(BackendId(0), Options::default());
        let restart = Command::Restart(None, Options::default());
        let stop = Command::Stop(Options::default());
        let mut on = view(Pace::Rest);
        on.look.server = Server::On { boot: BootId(1), session: 1 };
        let mut taken = on.clone();
        taken.look.foreign_gpu = Some(true);
        let asked = |command: &Command, view: &View, reading: &Reading, policy: &Policy| {
            looks_first(command, at(1000), view, reading, policy).collect::<Vec<_>>()
        };
        let nothing = Reading::default();
        let all = [Source::Gpu, Source::People, Source::WakeArmed];
        assert_eq!(asked(&off, &on, &nothing, &policy), all);
        assert_eq!(asked(&off, &view(Pace::Rest), &nothing, &policy), [], "nobody could answer");
        let unchecked = Policy { wake_check: WakeCheck::Off, ..policy.clone() };
        assert_eq!(asked(&off, &on, &nothing, &unchecked), all[..2]);
        for command in [&start, &switch, &restart] {
            assert_eq!(asked(command, &on, &nothing, &policy), [], "{command:?} looks once more itself");
            assert_eq!(asked(command, &taken, &nothing, &policy), [Source::Gpu], "{command:?}");
        }
        for command in [&keep_on, &stop] {
            assert_eq!(asked(command, &taken, &nothing, &policy), [], "{command:?}");
        }
        for (asked_at, left) in [(999, &all[..]), (1000, &[])] {
            let read = Reading {
                gpu: Some(Dated { at: at(asked_at), value: Gpu::Absent }),
                people: Some(Dated { at: at(asked_at), value: People::Unread(String::new()) }),
                wake_armed: Some(Dated { at: at(asked_at), value: WakeArmed::Armed }),
                ..Reading::default()
            };
            assert_eq!(asked(&off, &on, &read, &policy), left, "{asked_at}");
        }
    }

    #[test]
    fn a_server_is_new_when_it_answers_first_or_was_booted() {
        let on = |boot, session| Server::On { boot: BootId(boot), session };
        assert!(is_new(&Server::Silent, &on(1, 1)));
        assert!(is_new(&on(1, 1), &on(2, 2)));
        assert!(!is_new(&on(1, 1), &on(1, 2)), "another session of the same boot");
        assert!(!is_new(&on(1, 1), &Server::Silent));
    }

    #[test]
    fn a_backend_runs_newly_when_it_did_not_or_by_another_run() {
        let shows = |seen, run| {
            let mut look = Look::nothing(2);
            (look.backends[1].seen, look.backends[1].invocation) = (seen, Some(Invocation(run)));
            look
        };
        let running = shows(Seen::Running, 1);
        assert!(newly_running(&shows(Seen::Loading, 1), &running));
        assert!(newly_running(&shows(Seen::Running, 2), &running));
        assert!(!newly_running(&running, &running));
        assert!(!newly_running(&running, &shows(Seen::Loading, 2)));
    }

    #[test]
    fn a_look_that_does_not_end_says_that_whom_it_asked_does_not_answer() {
        let says = |source| given_up(source, at(9), 2);
        let core = says(Source::Core);
        assert!(matches!(&core.ssh, Some(Dated { value: Ssh::Broken(_), .. })));
        assert_eq!(core.backends.len(), 2);
        for backend in &core.backends {
            assert!(matches!(&backend.unit, Some(Dated { value: Unit::Unread(_), .. })));
            assert_eq!(backend.http, Some(Dated { at: at(9), value: Http::TimedOut }));
        }
        let health = says(Source::Health);
        assert_eq!((health.ssh, health.backends[1].unit.clone()), (None, None));
        assert_eq!(health.backends[1].http, Some(Dated { at: at(9), value: Http::TimedOut }));
        assert_eq!(says(Source::Gpu).gpu, Some(Dated { at: at(9), value: Gpu::Hangs }));
        assert!(matches!(says(Source::People).people, Some(Dated { value: People::Unread(_), .. })));
        assert!(matches!(says(Source::WakeArmed).wake_armed, Some(Dated { value: WakeArmed::Unknown(_), .. })));
        assert_eq!(says(Source::Activity), Reading::default());
        assert_eq!(says(Source::Saved), Reading::default());
    }
}
