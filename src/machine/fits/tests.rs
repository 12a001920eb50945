//! What fits, and each single thing that does not.

use std::sync::Arc;

use statig::blocking::IntoStateMachineExt;

use super::*;
use crate::machine::{
    BackendKind, Cause, Doubt, HoldSpec, Instant, Machine, Options, Outcome, PowerChoice, RequestId, Selection, VerbId,
    attention::WorryKind,
    core::{Backoff, Memory, Step},
    evidence::tests::policy,
    rules::State,
};

const FIRST: BackendId = BackendId(0);
const LAST: BackendId = BackendId(1);
/// The first that is not configured.
const NOBODY: BackendId = BackendId(2);

const THOUSAND_YEARS: Duration = Duration::from_hours(8_760_000);
const TOO_LONG: Duration = THOUSAND_YEARS.saturating_add(Duration::from_nanos(1));
/// Up to here JSON keeps every number exactly.
const COUNTED_UP_TO: u64 = 9_007_199_254_740_992;

/// One of its times.
type Time = fn(&mut Policy) -> &mut Duration;
type Change = fn(&mut Core);

fn two() -> Policy {
    policy(&[BackendKind::LlamaCpp, BackendKind::Vllm])
}

#[test]
fn no_time_of_a_policy_is_longer_than_a_thousand_years() {
    let times: [(&str, Time); 16] = [
        ("wake_resend", |p| &mut p.wake_resend),
        ("boot_timeout", |p| &mut p.boot_timeout),
        ("power_off_timeout", |p| &mut p.power_off_timeout),
        ("command_timeout", |p| &mut p.command_timeout),
        ("silence", |p| &mut p.silence),
        ("conflict_after", |p| &mut p.conflict_after),
        ("policy_backoff", |p| &mut p.policy_backoff),
        ("idle_stop_after", |p| p.idle_stop_after.get_or_insert_default()),
        ("idle_power_off_after", |p| p.idle_power_off_after.get_or_insert_default()),
        ("start_timeout", |p| &mut p.backends[1].start_timeout),
        ("drain_timeout", |p| &mut p.backends[1].drain_timeout),
        ("stop_timeout", |p| &mut p.backends[1].stop_timeout),
        ("kill_timeout", |p| &mut p.backends[1].kill_timeout),
        ("save_timeout", |p| &mut p.backends[1].save_timeout),
        ("restore_timeout", |p| &mut p.backends[1].restore_timeout),
        ("checkpoint_quiet", |p| p.backends[1].checkpoint_quiet.get_or_insert_default()),
    ];
    for (name, time) in times {
        let mut policy = two();
        *time(&mut policy) = THOUSAND_YEARS;
        assert!(policy.is_sound(), "{name}");
        *time(&mut policy) = TOO_LONG;
        assert!(!policy.is_sound(), "{name}");
    }
}

#[test]
fn what_comes_again_or_has_an_end_takes_some_time() {
    for (time, sound) in [(Duration::ZERO, false), (Duration::from_nanos(1), true)] {
        assert_eq!(Policy { wake_resend: time, ..two() }.is_sound(), sound, "{time:?}");
        assert_eq!(Policy { policy_backoff: time, ..two() }.is_sound(), sound, "{time:?}");
        assert_eq!(Policy { command_timeout: time, ..two() }.is_sound(), sound, "{time:?}");
    }
}

#[test]
fn there_is_time_after_every_moment() {
    assert!(Instant::after_start(THOUSAND_YEARS).is_sound());
    assert!(!Instant::after_start(TOO_LONG).is_sound());
}

#[test]
fn a_policy_has_its_default_backend_and_not_too_many_others() {
    let sound = |backends: usize, default_backend| {
        Policy { default_backend, ..policy(&vec![BackendKind::Generic; backends]) }.is_sound()
    };
    assert!(sound(2, FIRST) && sound(2, LAST) && !sound(2, NOBODY) && !sound(0, FIRST));
    assert!(sound(Policy::MOST_BACKENDS, FIRST) && !sound(Policy::MOST_BACKENDS + 1, FIRST));
}

fn hold(id: u64, what: Held) -> Hold {
    Hold { id: HoldId(id), what, until: None, reason: String::new(), by: String::new() }
}

#[test]
fn a_hold_holds_something_of_the_policy_and_can_be_counted_on_from() {
    for (hold, fits) in [
        (hold(1, Held::Backend(LAST)), true),
        (hold(1, Held::Backend(NOBODY)), false),
        (hold(1, Held::Awake), true),
        (hold(COUNTED_UP_TO - 1, Held::Gpu), true),
        (hold(COUNTED_UP_TO, Held::Gpu), false),
    ] {
        assert_eq!(hold.fits(&two()), fits, "{hold:?}");
    }
}

#[test]
fn a_look_shows_each_backend_of_the_policy_and_no_other() {
    let fits = |backends| Event::Looked(Look::nothing(backends)).fits(&two());
    assert_eq!([0, 1, 2, 3].map(fits), [false, false, true, false]);
}

#[test]
fn a_command_that_names_a_backend_names_one_of_the_policy() {
    let plain = Options::default();
    let fits = |command| Event::Commanded { request: RequestId(1), command }.fits(&two());
    let held = |what| Command::Hold(HoldSpec { what, lasts: None, reason: String::new(), by: String::new() });
    let of = |id| {
        [
            Command::Start(Some(id), plain),
            Command::Restart(Some(id), plain),
            Command::Switch(id, plain),
            Command::Resolve(id, plain),
            held(Held::Backend(id)),
        ]
    };
    assert_eq!(of(LAST).map(fits), [true; 5]);
    assert_eq!(of(NOBODY).map(fits), [false; 5]);
    let of_none = [
        Command::Start(None, plain),
        Command::Restart(None, plain),
        Command::Stop(plain),
        Command::Shutdown(PowerChoice::PowerOff, plain),
        Command::SaveSlots(Selection::Named(7), plain),
        held(Held::Off),
    ];
    assert_eq!(of_none.map(fits), [true; 6]);
}

#[test]
fn the_end_of_an_order_and_a_tick_fit_always() {
    let finished = Event::Finished { verb: VerbId(COUNTED_UP_TO), outcome: Outcome::Succeeded(vec![]) };
    assert!(finished.fits(&two()) && Event::Tick.fits(&two()));
}

/// What a machine holds in which everything that can speak of a backend speaks of the last one.
fn core(change: impl FnOnce(&mut Core)) -> Core {
    let begun = Instant::START;
    let mut core = Core::new(two().into(), vec![hold(1, Held::Backend(LAST))]);
    core.begin(Goal::Run(LAST), Cause::IdleStop, false, &mut Step::at(begun));
    core.work.as_mut().expect("an operation").leaving(LAST, None);
    core.order(Verb::StopUnit(LAST));
    core.doubt = Some(Doubt { verb: VerbId(1), session: None, boot: None, backend: LAST });
    core.backoff = Some(Backoff { until: begun, wait: THOUSAND_YEARS });
    core.checkpoint_backoff = core.backoff;
    core.attention = vec![Worry { what: WorryKind::Crashed, backend: Some(LAST), since: begun }];
    change(&mut core);
    core
}

fn wants(core: &mut Core, goal: Goal) {
    core.work.as_mut().expect("an operation").op.goal = goal;
}

fn orders(core: &mut Core, what: Verb) {
    core.order.as_mut().expect("an order").what = what;
}

#[test]
fn a_machine_is_sound_if_all_of_it_speaks_of_its_own_policy() {
    let kept: [(&str, Change); 8] = [
        ("everything", |_| {}),
        ("no operation", |core| core.work = None),
        ("no backend in its goal", |core| wants(core, Goal::Off)),
        ("no order", |core| core.order = None),
        ("no backend in its order", |core| orders(core, Verb::PowerOff)),
        ("no doubt", |core| core.doubt = None),
        ("no backoff", |core| (core.backoff, core.checkpoint_backoff) = (None, None)),
        ("counted far", |core| [core.next_hold, core.next_op, core.next_verb] = [COUNTED_UP_TO; 3]),
    ];
    for (name, change) in kept {
        for leaf in [State::Idle, State::Running { backend: LAST }] {
            assert!(core(change).is_sound(leaf.place()), "{name}");
        }
    }
    assert!(Core::new(two().into(), vec![]).is_sound(State::Idle.place()));
}

#[test]
fn a_machine_of_which_one_part_speaks_of_something_else_is_not_sound() {
    let wrong: [(&str, Change); 24] = [
        ("policy", |core| Arc::make_mut(&mut core.policy).silence = TOO_LONG),
        ("look", |core| core.look = Look::nothing(3)),
        ("memory", |core| core.backends.push(Memory::default())),
        ("run", |core| wants(core, Goal::Run(NOBODY))),
        ("restart", |core| wants(core, Goal::Restart(NOBODY))),
        ("save", |core| wants(core, Goal::Save(NOBODY, Selection::All))),
        ("restore", |core| wants(core, Goal::Restore(NOBODY, Selection::All))),
        ("leaving", |core| core.work.as_mut().expect("an operation").leaving(NOBODY, None).stops = 1),
        ("start order", |core| orders(core, Verb::StartUnit(NOBODY))),
        ("stop order", |core| orders(core, Verb::StopUnit(NOBODY))),
        ("kill order", |core| orders(core, Verb::KillUnit(NOBODY))),
        ("save order", |core| orders(core, Verb::SaveSlots(NOBODY))),
        ("restore order", |core| orders(core, Verb::RestoreSlots(NOBODY))),
        ("doubt", |core| core.doubt.as_mut().expect("a doubt").backend = NOBODY),
        ("hold", |core| core.holds.push(hold(2, Held::Backend(NOBODY)))),
        ("next hold", |core| core.next_hold = COUNTED_UP_TO + 1),
        ("next operation", |core| core.next_op = COUNTED_UP_TO + 1),
        ("next order", |core| core.next_verb = COUNTED_UP_TO + 1),
        ("backoff", |core| core.backoff.as_mut().expect("a backoff").wait = TOO_LONG),
        ("checkpoint_backoff", |core| core.checkpoint_backoff.as_mut().expect("a backoff").wait = TOO_LONG),
        ("end of time", |core| core.now = Instant::after_start(TOO_LONG)),
        ("no pause", |core| core.backoff.as_mut().expect("a backoff").wait = Duration::ZERO),
        ("no pause for checkpoints", |core| core.checkpoint_backoff.as_mut().expect("a backoff").wait = Duration::ZERO),
        ("attention", |core| core.attention[0].backend = Some(NOBODY)),
    ];
    for (name, change) in wrong {
        assert!(!core(change).is_sound(State::Idle.place()), "{name}");
    }
    assert!(!core(|_| {}).is_sound(State::Running { backend: NOBODY }.place()), "leaf");
}

#[test]
fn a_machine_that_is_not_sound_is_not_read() {
    let (backend, order, begun) = (LAST, VerbId(1), Instant::START);
    for leaf in [
        State::Running { backend },
        State::Saving { backend, order },
        State::Restoring { backend, order },
        State::Stopping { backend, order: Some(order), until: Some(begun), killed: false },
    ] {
        let mut chart = core(|_| {}).uninitialized_state_machine();
        *chart.state_mut() = leaf;
        let machine = Machine { chart: chart.init_with_context(&mut Step::at(begun)), since: begun, ignored: None };
        let written = serde_json::to_value(machine).expect("JSON");
        assert!(serde_json::from_value::<Machine>(written.clone()).is_ok(), "{leaf:?}");
        let name = written["chart"]["state"].as_object().and_then(|state| state.keys().next()).expect("a leaf");
        for (part, wrong) in [
            (format!("/chart/state/{name}/backend"), 2),
            ("/chart/shared_storage/next_verb".into(), u64::MAX),
            ("/since/secs".into(), u64::MAX),
        ] {
            let mut written = written.clone();
            *written.pointer_mut(&part).expect("a part") = wrong.into();
            let refused = serde_json::from_value::<Machine>(written).expect_err(&part);
            assert!(refused.to_string().contains("does not fit the policy"), "{part}: {refused}");
        }
    }
}
