//! The tables of the module, cell by cell.

mod activity;
mod gpu;

use super::*;
use crate::machine::{
    BackendId, BootId, Invocation, OnStartTimeout, RestorePolicy, WakeCheck,
    reading::{GpuDevice, GpuProcess, Identity, SavedSlot, SlotReading},
};

const T0: Instant = Instant::after_start(Duration::from_hours(1));
const BOOT: BootId = BootId(1);
const RUN: Invocation = Invocation(7);

/// A policy for backends of these kinds, named after them; every time in it is a second.
pub(in crate::machine) fn policy(kinds: &[BackendKind]) -> Policy {
    let second = Duration::from_secs(1);
    let backend = |kind: &BackendKind| BackendPolicy {
        name: format!("{kind:?}"),
        kind: *kind,
        start_timeout: second,
        on_start_timeout: OnStartTimeout::Leave,
        drain_timeout: second,
        stop_timeout: second,
        kill_timeout: second,
        slots: *kind == BackendKind::LlamaCpp,
        restore: RestorePolicy::Auto,
        save_timeout: second,
        restore_timeout: second,
        checkpoint_tokens: None,
        checkpoint_quiet: None,
    };
    Policy {
        backends: kinds.iter().map(backend).collect(),
        default_backend: BackendId(0),
        can_wake: true,
        wake_check: WakeCheck::Warn,
        wake_resend: second,
        boot_timeout: second,
        power_off_timeout: second,
        command_timeout: second,
        silence: second,
        misses: 3,
        conflict_after: second,
        idle_stop_after: None,
        idle_power_off_after: None,
        policy_backoff: second,
        gpu_baseline_mib: None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what is assigned is an option")]
const fn at<T>(at: Instant, value: T) -> Option<Dated<T>> {
    Some(Dated { at, value })
}

fn state(active: ActiveState) -> UnitState {
    let down = matches!(active, ActiveState::Inactive | ActiveState::Failed);
    UnitState {
        active,
        sub: String::new(),
        job: false,
        main_pid: (!down).then_some(100),
        invocation: Some(RUN),
        restarts: 0,
        result: "success".into(),
        exec_status: 0,
        active_since: None,
        timeout_stop: None,
        fragment: String::new(),
        enabled: "enabled".into(),
        processes_left: false,
    }
}

fn unit(active: ActiveState) -> Unit {
    Unit::Loaded(state(active))
}

fn ready() -> Http {
    Http::Ready(Identity::default())
}

const fn answered() -> Ssh {
    Ssh::Answered { boot: BOOT, session: 1 }
}

/// One backend, everything read at [`T0`].
fn reading(ssh: Ssh, unit: Option<Unit>, http: Option<Http>) -> Reading {
    Reading {
        ssh: at(T0, ssh),
        backends: vec![BackendReading {
            unit: unit.and_then(|unit| at(T0, unit)),
            http: http.and_then(|http| at(T0, http)),
            ..BackendReading::default()
        }],
        ..Reading::default()
    }
}

fn seen_of(kind: BackendKind, reading: &Reading) -> Seen {
    judge(reading, &policy(&[kind]), T0).backends[0].seen
}

/// Every kind of answer, by the column it has in the table.
fn all_http() -> Vec<Option<Http>> {
    vec![
        None,
        Some(Http::Refused),
        Some(Http::TimedOut),
        Some(Http::Unreachable("no route".into())),
        Some(Http::Unavailable),
        Some(ready()),
        Some(Http::Stranger("nginx".into())),
        Some(Http::Status(500)),
        Some(Http::Status(502)),
        Some(Http::KeyRefused),
        Some(Http::Garbage("not JSON".into())),
    ]
}

/// The columns of [`all_http`] as one row: `.` unknown, `M`issing, `S`topped, `L`oading, `R`unning, `C`rash loop,
/// `X` sick, `~` lingering, `?` stranger.
fn row(kind: BackendKind, unit: Option<&Unit>) -> String {
    let cell = |http| match seen_of(kind, &reading(answered(), unit.cloned(), http)) {
        Seen::Unknown => '.',
        Seen::Missing => 'M',
        Seen::Stopped => 'S',
        Seen::Lingering => '~',
        Seen::Loading => 'L',
        Seen::Running => 'R',
        Seen::CrashLoop => 'C',
        Seen::Sick => 'X',
        Seen::Stranger => '?',
    };
    all_http().into_iter().map(cell).collect()
}

#[test]
fn each_cell_of_unit_and_http_has_its_value() {
    use ActiveState::{Activating, Active, Deactivating, Failed, Inactive, Reloading};
    use BackendKind::{Generic, LlamaCpp, Vllm};
    let with = |active, change: fn(&mut UnitState)| {
        let mut state = state(active);
        change(&mut state);
        Some(Unit::Loaded(state))
    };
    let same = |_: &mut UnitState| {};
    let rows: [(&str, BackendKind, Option<Unit>, &str); 16] = [
        //                                       none refused timeout no-route 503 ready stranger 500 502 key garbage
        ("not asked", LlamaCpp, None, ".....R....."),
        ("unread", LlamaCpp, Some(Unit::Unread(String::new())), ".....R....."),
        ("missing", LlamaCpp, Some(Unit::Missing(String::new())), "MMMMM???M??"),
        ("down", LlamaCpp, with(Inactive, same), "SSSSS???S??"),
        ("failed", Vllm, with(Failed, same), "SSSSS???S??"),
        ("down, job", LlamaCpp, with(Inactive, |s| s.job = true), "~~~~~~~~~~~"),
        ("down, process", LlamaCpp, with(Failed, |s| s.processes_left = true), "~~~~~~~~~~~"),
        ("down, main", LlamaCpp, with(Failed, |s| s.main_pid = Some(9)), "~~~~~~~~~~~"),
        ("deactivating", LlamaCpp, with(Deactivating, same), "~~~~~~~~~~~"),
        ("auto-restart", LlamaCpp, with(Activating, |s| s.sub = "auto-restart".into()), "CCCCCCCCCCC"),
        ("start-pre", LlamaCpp, with(Activating, |s| s.main_pid = None), "LLLLLLLLLLL"),
        ("activating", LlamaCpp, with(Activating, same), "LLLLLRXXLXX"),
        ("up", LlamaCpp, with(Active, same), "LLLLLRXXLXX"),
        ("up", Generic, with(Active, same), "LLLLLRXXLXX"),
        ("up", Vllm, with(Active, same), "LLLLXRXXLXX"),
        ("reloading", Vllm, with(Reloading, same), "LLLLXRXXLXX"),
    ];
    for (name, kind, unit, expected) in rows {
        assert_eq!(row(kind, unit.as_ref()), expected, "{name}, {kind:?}");
    }
}

#[test]
fn each_word_of_ssh_has_its_value_with_and_without_a_backend_that_answers() {
    use BootPhase::{AuthRefused, Booting, Preboot, WrongHostKey};
    let on = Server::On { boot: BOOT, session: 1 };
    for (ssh, alone, with_backend) in [
        (answered(), on, on),
        (Ssh::WrongKey(String::new()), Server::Booting(WrongHostKey), Server::Booting(WrongHostKey)),
        (Ssh::PreBoot, Server::Booting(Preboot), Server::Uncontrolled),
        (Ssh::AuthRefused(String::new()), Server::Booting(AuthRefused), Server::Uncontrolled),
        (Ssh::PortClosed, Server::Booting(Booting), Server::Uncontrolled),
        (Ssh::Mute(String::new()), Server::Booting(Booting), Server::Uncontrolled),
        (Ssh::Silent, Server::Silent, Server::Uncontrolled),
        (Ssh::Unreachable(String::new()), Server::Silent, Server::Uncontrolled),
        (Ssh::Broken(String::new()), Server::Silent, Server::Uncontrolled),
    ] {
        let policy = policy(&[BackendKind::LlamaCpp]);
        for http in all_http() {
            let as_itself = matches!(http, Some(Http::Ready(_)));
            let look = judge(&reading(ssh.clone(), None, http), &policy, T0);
            assert_eq!(look.server, if as_itself { with_backend } else { alone }, "{ssh:?}");
            let running = as_itself && (with_backend == Server::Uncontrolled || with_backend == on);
            let expected = if running { Seen::Running } else { Seen::Unknown };
            assert_eq!(look.backends[0].seen, expected, "{ssh:?}");
        }
    }
}

#[test]
fn an_answer_that_is_younger_than_the_word_of_a_unit_that_is_down_makes_no_stranger() {
    let policy = policy(&[BackendKind::LlamaCpp]);
    let http = Some(Http::Ready(Identity::default()));
    let mut reading = reading(answered(), Some(unit(ActiveState::Inactive)), http);
    assert_eq!(judge(&reading, &policy, T0).backends[0].seen, Seen::Stranger, "asked together");
    let later = T0 + Duration::from_millis(1);
    if let Some(http) = &mut reading.backends[0].http {
        http.at = later;
    }
    assert_eq!(judge(&reading, &policy, later).backends[0].seen, Seen::Unknown, "it may have been started since");
}

#[test]
fn before_any_reading_nothing_is_known() {
    let policy = policy(&[BackendKind::LlamaCpp, BackendKind::Vllm]);
    let look = judge(&Reading::default(), &policy, T0);
    assert_eq!(look, Look::nothing(2));
}

#[test]
fn what_a_silent_server_said_earlier_is_no_evidence() {
    let mut old = reading(answered(), Some(unit(ActiveState::Active)), Some(ready()));
    old.people = at(T0, People::Read { logins: vec![], inhibitors: vec![] });
    let later = T0 + Duration::from_secs(10);
    old.ssh = at(later, Ssh::Silent);
    let look = judge(&old, &policy(&[BackendKind::LlamaCpp]), later);
    assert_eq!(look.server, Server::Silent);
    assert_eq!(look.backends[0].seen, Seen::Unknown);
    assert_eq!(look.backends[0].invocation, None);
    assert_eq!((look.people, look.people_at), (None, Instant::START));
}

#[test]
fn a_unit_read_before_the_newest_word_of_ssh_is_no_evidence() {
    let mut reading = reading(answered(), Some(unit(ActiveState::Inactive)), None);
    reading.ssh = at(T0 + Duration::from_millis(1), Ssh::Answered { boot: BootId(2), session: 2 });
    assert_eq!(seen_of(BackendKind::LlamaCpp, &reading), Seen::Unknown);
}

#[test]
fn a_source_that_hangs_grows_too_old() {
    let reading = reading(answered(), Some(unit(ActiveState::Inactive)), Some(Http::Refused));
    let policy = policy(&[BackendKind::LlamaCpp]);
    let just = judge(&reading, &policy, T0 + OLDEST);
    assert_eq!(just.backends[0].seen, Seen::Stopped);
    let past = judge(&reading, &policy, T0 + OLDEST + Duration::from_millis(1));
    assert_eq!(past.server, Server::NotLooked);
    assert_eq!(past.backends[0].seen, Seen::Unknown);
}

fn absorbed(looks: impl IntoIterator<Item = Reading>) -> Reading {
    let mut all = Reading::default();
    looks.into_iter().for_each(|look| all.absorb(look));
    all
}

/// A look at `when` at one backend that is up in the run `run`.
fn look_at(when: Instant, run: Invocation, http: Http) -> Reading {
    let mut state = state(ActiveState::Active);
    state.invocation = Some(run);
    let mut look = reading(answered(), Some(Unit::Loaded(state)), Some(http));
    look.ssh = at(when, answered());
    for backend in &mut look.backends {
        backend.unit.iter_mut().for_each(|unit| unit.at = when);
        backend.http.iter_mut().for_each(|http| http.at = when);
    }
    look
}

#[test]
fn the_last_word_of_one_that_dies_in_the_middle_of_a_look_is_no_strangers() {
    let (dies, later) = (T0 + Duration::from_secs(1), T0 + Duration::from_secs(2));
    let down = |when| {
        let mut look = look_at(when, RUN, ready());
        look.backends[0].unit = at(when, unit(ActiveState::Failed));
        look
    };
    let seen = |looks: Vec<Reading>| {
        let reading = absorbed(looks);
        let now = reading.ssh.as_ref().map_or(T0, |ssh| ssh.at);
        judge(&reading, &policy(&[BackendKind::LlamaCpp]), now).backends[0].seen
    };
    let up = || look_at(T0, RUN, ready());
    assert_eq!(seen(vec![up(), down(dies)]), Seen::Lingering);
    assert_eq!(seen(vec![up(), down(dies), down(later)]), Seen::Stranger, "it answers still");
    assert_eq!(seen(vec![down(dies)]), Seen::Stranger, "it was never seen up");
}

#[test]
fn silence_of_a_run_that_has_served_is_work_and_of_a_new_one_is_loading() {
    let later = T0 + Duration::from_secs(1);
    for silence in [Http::TimedOut, Http::Unreachable(String::new())] {
        let busy = absorbed([look_at(T0, RUN, ready()), look_at(later, RUN, silence.clone())]);
        assert_eq!(seen_of(BackendKind::LlamaCpp, &busy), Seen::Running);
        let new = absorbed([look_at(T0, RUN, ready()), look_at(later, Invocation(8), silence)]);
        assert_eq!(seen_of(BackendKind::LlamaCpp, &new), Seen::Loading);
    }
    let closed = absorbed([look_at(T0, RUN, ready()), look_at(later, RUN, Http::Refused)]);
    assert_eq!(seen_of(BackendKind::LlamaCpp, &closed), Seen::Loading);
}

#[test]
fn an_answer_of_the_run_before_is_no_answer_of_this_one() {
    let later = T0 + Duration::from_secs(1);
    let mut restarted = look_at(later, Invocation(8), Http::Refused);
    restarted.backends[0].http = None;
    let reading = absorbed([look_at(T0, RUN, ready()), restarted]);
    assert_eq!(seen_of(BackendKind::LlamaCpp, &reading), Seen::Loading);
    // Of the same run it still counts when only the unit was asked anew.
    let mut again = look_at(later, RUN, Http::Refused);
    again.backends[0].http = None;
    let reading = absorbed([look_at(T0, RUN, ready()), again]);
    assert_eq!(judge(&reading, &policy(&[BackendKind::LlamaCpp]), later).backends[0].seen, Seen::Running);
}

#[test]
fn a_backend_with_its_own_ssh_is_judged_while_the_servers_is_down() {
    let mut reading = reading(Ssh::Silent, Some(unit(ActiveState::Active)), Some(ready()));
    reading.backends.push(BackendReading {
        unit: at(T0, unit(ActiveState::Inactive)),
        http: at(T0, Http::Refused),
        ..BackendReading::default()
    });
    let look = judge(&reading, &policy(&[BackendKind::LlamaCpp, BackendKind::Vllm]), T0);
    assert_eq!(look.server, Server::Uncontrolled);
    let seen: Vec<_> = look.backends.iter().map(|b| b.seen).collect();
    assert_eq!(seen, [Seen::Running, Seen::Stopped]);
}

#[test]
fn there_is_one_value_for_each_backend_whatever_the_reading_lacks() {
    let policy = policy(&[BackendKind::LlamaCpp, BackendKind::Vllm, BackendKind::Generic]);
    let look = judge(&reading(answered(), None, None), &policy, T0);
    assert_eq!(look.backends.len(), 3);
}
