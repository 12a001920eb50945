//! What systemd says, read: the blocks of `systemctl show`, and how `systemctl` ends.
//!
//! Facts observed on systemd 252: `show` exits 0 even for a unit that does not exist, prints properties in its own order and
//! one block for each unit in the order asked; `start` exits 0 although the program is missing; a stop that needed SIGKILL
//! exits 0. So exit codes only tell that an order was refused; what became of a unit is only in its state.

use std::time::Duration;

use super::remote::{self, UnitName, plain_text};
use crate::{
    driver::world::PostMortem,
    machine::{
        BootId, Outcome, Warning,
        reading::{ActiveState, Unit, UnitState},
    },
};

/// systemd's own default of `TimeoutStopSec`, taken where its text cannot be read.
const DEFAULT_TIMEOUT_STOP: Duration = Duration::from_secs(90);

/// The answer to [`remote::units`].
#[derive(Clone, Debug, PartialEq)]
pub struct UnitsAnswer {
    /// This boot.
    pub boot: BootId,
    /// One for each unit asked for, in that order.
    pub units: Vec<Unit>,
}

/// Reads the answer to [`remote::units`] for `asked`; `stderr` is only quoted.
///
/// # Errors
/// In words, when not even the boot id can be read: then nothing of the answer is believed.
pub fn parse_units(stdout: &str, stderr: &str, asked: &[UnitName]) -> Result<UnitsAnswer, String> {
    let parts = remote::parts(stdout);
    let part = |name: &str| parts.iter().find(|(mark, _)| *mark == name).map(|p| p.1);
    let boot = part("boot").unwrap_or_default().trim();
    let boot = (boot.len() >= 32)
        .then(|| boot.parse().ok())
        .flatten()
        .ok_or_else(|| format!("no boot id, but: {}", plain_text(stdout, 200)))?;
    if part("end").is_none() {
        return Err("the answer is cut off".into());
    }
    let blocks: Vec<&str> =
        part("units").unwrap_or_default().split("\n\n").map(str::trim).filter(|block| !block.is_empty()).collect();
    let left: Vec<&str> = parts.iter().filter(|(m, _)| *m == "left").map(|p| p.1).collect();
    let units = if part("status 0").is_some() && blocks.len() == asked.len() {
        asked
            .iter()
            .zip(blocks)
            .enumerate()
            .map(|(i, (name, block))| {
                parse_unit(block, name, left.get(i).copied().unwrap_or_default()).unwrap_or_else(Unit::Unread)
            })
            .collect()
    } else {
        let why = match plain_text(stderr, 200) {
            text if text.is_empty() => "systemctl gave no answer for each unit".to_owned(),
            text => text,
        };
        vec![Unit::Unread(why); asked.len()]
    };
    Ok(UnitsAnswer { boot, units })
}

/// Reads the answer to [`remote::units_down`] for `asked`; `None` unless it shows every unit plainly inactive, without a job.
/// What it does not tell is as it was in `known`, when each unit was last asked about in full.
#[must_use]
pub fn parse_down(stdout: &str, asked: &[UnitName], known: &[Option<UnitState>]) -> Option<UnitsAnswer> {
    /// Name, description, load, active and sub state, what it follows, path, job's number, type and path.
    type Listed = (String, String, String, String, String, String, String, u32, String, String);
    #[derive(serde::Deserialize)]
    struct Answer {
        data: (Vec<Listed>,),
    }
    let parts = remote::parts(stdout);
    let part = |name: &str| parts.iter().find(|(mark, _)| *mark == name).map(|p| p.1);
    part("end")?;
    let boot = part("boot")?.trim();
    let boot = (boot.len() >= 32).then(|| boot.parse().ok()).flatten()?;
    let (listed,) = serde_json::from_str::<Answer>(part("list")?).ok()?.data;
    let left: Vec<&str> = parts.iter().filter(|(m, _)| *m == "left").map(|p| p.1).collect();
    let down = |(i, name): (usize, &UnitName)| {
        let (_, _, load, active, sub, following, _, job, ..) = listed.iter().find(|l| l.0 == name.as_str())?;
        let plain = load == "loaded" && active == "inactive" && following.is_empty() && *job == 0;
        let known = known.get(i)?.clone()?;
        plain.then(|| {
            Unit::Loaded(UnitState {
                active: ActiveState::Inactive,
                sub: plain_text(sub, 40),
                job: false,
                main_pid: None,
                processes_left: group_is_populated(left.get(i).copied().unwrap_or_default()),
                ..known
            })
        })
    };
    let units = asked.iter().enumerate().map(down).collect::<Option<Vec<_>>>()?;
    (left.len() == units.len()).then_some(UnitsAnswer { boot, units })
}

/// One block of `KEY=VALUE` lines, and the first lines of its control group's files.
fn parse_unit(block: &str, name: &UnitName, left: &str) -> Result<Unit, String> {
    let value = |key: &str| {
        let mut lines = block.lines().filter_map(|line| line.split_once('='));
        lines.find(|(k, _)| *k == key).map_or("", |(_, v)| v.trim())
    };
    if !value("Names").split(' ').any(|n| n == name.as_str()) {
        return Err(format!("systemctl answered for `{}`", plain_text(value("Names"), 80)));
    }
    let active = match value("ActiveState") {
        "active" => ActiveState::Active,
        "reloading" | "refreshing" => ActiveState::Reloading,
        "inactive" | "maintenance" => ActiveState::Inactive,
        "failed" => ActiveState::Failed,
        "activating" => ActiveState::Activating,
        "deactivating" => ActiveState::Deactivating,
        other => return Err(format!("unknown ActiveState `{}`", plain_text(other, 40))),
    };
    let down = matches!(active, ActiveState::Inactive | ActiveState::Failed);
    // A unit whose file was deleted or masked while it runs is still running.
    if down && value("LoadState") != "loaded" {
        return Ok(Unit::Missing(plain_text(value("LoadState"), 40)));
    }
    let number = |key: &str| value(key).parse::<u32>().unwrap_or(0);
    let main_pid = Some(number("MainPID")).filter(|pid| *pid != 0);
    Ok(Unit::Loaded(UnitState {
        active,
        sub: plain_text(value("SubState"), 40),
        job: !matches!(value("Job"), "" | "0"),
        main_pid,
        invocation: Some(value("InvocationID")).filter(|id| id.len() == 32).and_then(|id| id.parse().ok()),
        restarts: number("NRestarts"),
        result: plain_text(value("Result"), 40),
        exec_status: value("ExecMainStatus").parse().unwrap_or(0),
        active_since: epoch_seconds(value("ActiveEnterTimestamp")),
        timeout_stop: match value("TimeoutStopUSec") {
            "infinity" => None,
            text => Some(timespan(text).unwrap_or(DEFAULT_TIMEOUT_STOP)),
        },
        fragment: plain_text(value("FragmentPath"), 300),
        enabled: plain_text(value("UnitFileState"), 40),
        processes_left: down && main_pid.is_none() && group_is_populated(left),
    }))
}

/// `populated 1` of the unified hierarchy, or a process id of the old one.
fn group_is_populated(first_lines: &str) -> bool {
    first_lines.lines().any(|line| line == "populated 1" || line.parse::<u32>().is_ok())
}

/// systemd's `1min 30s` (systemd.time(7)).
fn timespan(text: &str) -> Option<Duration> {
    let mut total = None;
    for word in text.split_whitespace() {
        let digits = word.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = word.split_at(digits);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            "month" => 2_629_800.0,
            "y" => 31_557_600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = Some(total.unwrap_or(Duration::ZERO).saturating_add(part));
    }
    total
}

/// `Mon 2026-11-23 22:04:34 UTC`, or `@1795471474` of `--timestamp=unix`; `None` for never.
fn epoch_seconds(text: &str) -> Option<u64> {
    if let Some(unix) = text.strip_prefix('@') {
        return unix.parse().ok().filter(|at| *at != 0);
    }
    let mut words = text.split(' ');
    let (_weekday, date, time, "UTC") = (words.next()?, words.next()?, words.next()?, words.next()?) else {
        return None;
    };
    let three = |text: &str, by: char| -> Option<[i64; 3]> {
        let mut numbers = text.split(by).map(|n| n.parse::<u32>().map(i64::from));
        let all = [numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?];
        numbers.next().is_none().then_some(all)
    };
    let [year, month, day] = three(date, '-')?;
    let [hour, minute, second] = three(time, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since the epoch, with years that begin in March (Howard Hinnant's `days_from_civil`).
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()
}

/// The verbs whose end is judged, as far as the judgement differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A start or stop.
    Unit,
    /// `reset-failed` or `kill`, which have nothing to do where nothing is loaded.
    Harmless,
    /// `poweroff`, whose answer is often cut off.
    PowerOff,
}

/// How `systemctl` (or what stands before it) ended a verb.
///
/// Exit codes as observed on systemd 252: 0 done; 1 job failed, or polkit would have to ask; 4 polkit says no; 5 no such unit;
/// sudo refuses with 1.
#[must_use]
pub fn judge_verb(what: Ended, status: u32, stderr: &str) -> Outcome {
    let text = plain_text(stderr, 400);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let failed = |code: &str| {
        let message = if text.is_empty() { format!("exit status {status}") } else { text.clone() };
        Outcome::Failed(Warning::new(code, message))
    };
    if status == 0 {
        return Outcome::Succeeded(vec![]);
    }
    if says(&[
        "Interactive authentication required",
        "Access denied",
        "password is required",
        "is not allowed to execute",
        "is not in the sudoers file",
        "may not run sudo",
    ]) {
        return failed("not_permitted");
    }
    if what == Ended::Harmless && says(&["not loaded", "No process to kill", "No such process", "no main process"]) {
        return Outcome::Succeeded(vec![]);
    }
    if says(&["attempted too often", "start-limit", "repeated too quickly"]) {
        return failed("start_limit");
    }
    if what == Ended::Unit && (status == 5 || says(&["not found.", "not loaded", "is masked", "bad unit file setting"]))
    {
        return failed("unit_missing");
    }
    if what == Ended::PowerOff && says(&["inhibited"]) {
        return failed("blocked");
    }
    // ssh and shells give 255 and 128+N for ends that are not the command's own; a server going down does that, too.
    if status >= 128 {
        return Outcome::Unknown(Warning::new("verb_cut_off", format!("exit status {status} {text}")));
    }
    failed("verb_failed")
}

/// Reads the answer to [`remote::post_mortem`]: lines for people, at most 4 KiB.
#[must_use]
pub fn parse_post_mortem(stdout: &str, unit: &UnitName, port: u16) -> PostMortem {
    /// Longest journal line kept, characters: ten of them and the rest stay within 4 KiB.
    const MOST: usize = 300;
    let parts = remote::parts(stdout);
    let section = |name: &str| parts.iter().find(|(mark, _)| *mark == name).map_or("", |p| p.1);
    let block = section("unit");
    let value = |key: &str| {
        let mut lines = block.lines().filter_map(|line| line.split_once('='));
        lines.find(|(k, _)| *k == key).map_or("?", |(_, v)| v)
    };
    let ended = match value("ExecMainCode") {
        "0" => "no exit status yet".to_owned(),
        "1" => format!("exit status {}", value("ExecMainStatus")),
        "2" | "3" => format!("killed by signal {}", value("ExecMainStatus")),
        _ => format!("status {}", value("ExecMainStatus")),
    };
    let state = format!(
        "{unit} is {} ({}), result {}, {ended}, {} automatic restarts",
        value("ActiveState"),
        value("SubState"),
        value("Result"),
        value("NRestarts")
    );
    let mut lines = vec![plain_text(&state, MOST)];
    // Often enough it is not the file somebody had in mind, or not the text that stands in it by now.
    let (fragment, drop_ins) = (value("FragmentPath"), value("DropInPaths"));
    if fragment.starts_with('/') {
        let and = if drop_ins.starts_with('/') { format!(", with {drop_ins}") } else { String::new() };
        let unread = match value("NeedDaemonReload") {
            "yes" => ", changed since systemd read it (`systemctl daemon-reload`)",
            _ => "",
        };
        lines.push(plain_text(&format!("its file is {fragment}{and}{unread}"), MOST));
    }
    let port_listens = !section("listens").trim().is_empty();
    if port_listens {
        lines.push(format!("port {port} listens on the host"));
    } else if parts.iter().any(|(mark, _)| *mark == "asked") {
        lines.push(format!("port {port} does not listen on the host"));
    }
    // The journal may hold lines that look like our marks: everything up to the last mark belongs to it.
    let journal = stdout.split_once("@@journal\n").map_or("", |(_, rest)| rest);
    let journal = journal.rsplit_once("@@end").map_or(journal, |(text, _)| text);
    let last = journal.lines().map(|line| plain_text(line, MOST));
    let mut last: Vec<String> = last.filter(|line| !line.is_empty()).collect();
    lines.extend(last.split_off(last.len().saturating_sub(10)));
    PostMortem { lines, port_listens }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Invocation;

    const BOOT: &str = "3c1b2f6e-9a40-4e57-8a52-0f0c9d3b1a77";
    const RUNNING: &str = "\
Restart=on-failure
TimeoutStopUSec=1min 30s
Type=simple
Names=llama-cpp.service
Job=
MainPID=4711
Result=success
NRestarts=0
ExecMainStatus=0
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/etc/systemd/system/llama-cpp.service
UnitFileState=enabled
ActiveEnterTimestamp=Mon 2026-11-23 22:04:34 UTC
InvocationID=0b7a1c9e55d14a07bb2df2f43f1d9e6a
";
    const ABSENT: &str = "Names=vllm.service\nMainPID=0\nResult=success\nNRestarts=0\nExecMainStatus=0\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nTimeoutStopUSec=1min 30s\nInvocationID=\n";

    fn units() -> Vec<UnitName> {
        ["llama-cpp.service", "vllm.service"].map(|u| UnitName::new(u).expect("a unit")).to_vec()
    }

    fn read(one: &str, two: &str, left: &str) -> UnitsAnswer {
        let answer = format!("hello\n@@boot\n{BOOT}\n@@units\n{one}\n{two}@@status 0\n@@left\n{left}@@left\n@@end\n");
        parse_units(&answer, "", &units()).expect("a whole answer")
    }

    fn first(block: &str, left: &str) -> UnitState {
        match read(block, ABSENT, left).units.swap_remove(0) {
            Unit::Loaded(state) => state,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn units_that_are_plainly_down_are_told_without_all_the_rest() {
        let names = units();
        let known = || match read(RUNNING, RUNNING.replace("llama-cpp", "vllm").as_str(), "").units.swap_remove(1) {
            Unit::Loaded(state) => vec![Some(state.clone()), Some(state)],
            other => panic!("{other:?}"),
        };
        let listed = |name: &str, active: &str, job: u32| {
            format!(r#"["{name}","text","loaded","{active}","dead","","/org/u",{job},"","/"]"#)
        };
        let answer = |first: &str, second: &str, left: &str| {
            let list = format!(r#"{{"type":"a(ssssssouso)","data":[[{second},{first}]]}}"#);
            format!("@@boot\n{BOOT}\n@@list\n{list}\n@@left\n{left}@@left\n@@end\n")
        };
        let inactive = |name: &str| listed(name, "inactive", 0);
        let (llama, vllm) = (inactive("llama-cpp.service"), inactive("vllm.service"));
        let told = parse_down(&answer(&llama, &vllm, ""), &names, &known()).expect("both are down");
        let Unit::Loaded(state) = &told.units[0] else { panic!("{told:?}") };
        assert_eq!((state.active, state.main_pid, state.processes_left), (ActiveState::Inactive, None, false));
        assert_eq!(state.timeout_stop, Some(Duration::from_secs(90)), "as it was known");
        let left = parse_down(&answer(&llama, &vllm, "populated 1\n"), &names, &known()).expect("down, but");
        assert!(matches!(&left.units[0], Unit::Loaded(state) if state.processes_left));
        for other in ["active", "failed", "activating", "deactivating"] {
            let first = listed("llama-cpp.service", other, 0);
            assert_eq!(parse_down(&answer(&first, &vllm, ""), &names, &known()), None, "{other}");
        }
        let queued = listed("llama-cpp.service", "inactive", 7);
        let alias = inactive("llm.service");
        for odd in [&queued, &alias, "7", "[]"] {
            assert_eq!(parse_down(&answer(odd, &vllm, ""), &names, &known()), None, "{odd}");
        }
        assert_eq!(parse_down(&answer(&llama, &vllm, ""), &names, &[None, None]), None, "never asked in full");
        assert_eq!(parse_down("Call failed: Access denied", &names, &known()), None);
    }

    #[test]
    fn blocks_are_read_in_the_order_asked_whatever_the_order_of_their_lines() {
        let answer = read(RUNNING, ABSENT, "populated 1\n");
        assert_eq!(answer.boot, BOOT.parse().expect("an id"));
        assert_eq!(answer.units[1], Unit::Missing("not-found".into()));
        let state = first(RUNNING, "populated 1\n");
        assert_eq!(
            state,
            UnitState {
                active: ActiveState::Active,
                sub: "running".into(),
                job: false,
                main_pid: Some(4711),
                invocation: Some(Invocation(0x0b7a_1c9e_55d1_4a07_bb2d_f2f4_3f1d_9e6a)),
                restarts: 0,
                result: "success".into(),
                exec_status: 0,
                active_since: Some(1_795_471_474),
                timeout_stop: Some(Duration::from_secs(90)),
                fragment: "/etc/systemd/system/llama-cpp.service".into(),
                enabled: "enabled".into(),
                processes_left: false,
            }
        );
    }

    #[test]
    fn a_unit_that_is_down_may_leave_processes_behind() {
        let down = RUNNING.replace("=active", "=failed").replace("MainPID=4711", "MainPID=0");
        for (left, expected) in [("", false), ("populated 0\n", false), ("populated 1\n", true), ("4713\n", true)] {
            assert_eq!(first(&down, left).processes_left, expected, "{left:?}");
        }
    }

    #[test]
    fn a_crash_loop_a_pending_job_and_an_endless_stop_are_told() {
        let odd = RUNNING
            .replace("ActiveState=active\nSubState=running", "ActiveState=activating\nSubState=auto-restart")
            .replace("Job=", "Job=812")
            .replace("NRestarts=0", "NRestarts=7")
            .replace("Result=success", "Result=exit-code")
            .replace("TimeoutStopUSec=1min 30s", "TimeoutStopUSec=infinity");
        let state = first(&odd, "");
        assert_eq!((state.active, state.sub.as_str()), (ActiveState::Activating, "auto-restart"));
        assert_eq!((state.job, state.restarts, state.timeout_stop), (true, 7, None));
        assert_eq!(state.result, "exit-code");
    }

    #[test]
    fn a_unit_masked_while_it_runs_is_still_running() {
        let masked = RUNNING.replace("LoadState=loaded", "LoadState=masked");
        assert_eq!(first(&masked, "").active, ActiveState::Active);
        let down = masked.replace("=active", "=inactive");
        assert_eq!(read(&down, ABSENT, "").units[0], Unit::Missing("masked".into()));
    }

    #[test]
    fn what_is_not_an_answer_is_never_a_stopped_unit() {
        let whole = format!("@@boot\n{BOOT}\n@@units\n{RUNNING}\n{ABSENT}@@status 0\n@@left\n@@left\n@@end\n");
        for cut in 0..whole.len() - 7 {
            match parse_units(&whole[..cut], "", &units()) {
                Err(_) => {}
                Ok(answer) => panic!("cut at {cut}: {answer:?}"),
            }
        }
        let unread = |text: &str, stderr: &str| {
            let answer = parse_units(text, stderr, &units()).expect("the boot id is there");
            assert!(answer.units.iter().all(|u| matches!(u, Unit::Unread(_))), "{answer:?}");
            answer
        };
        let no_bus = format!("@@boot\n{BOOT}\n@@units\n@@status 1\n@@left\n@@left\n@@end\n");
        let told = unread(&no_bus, "Failed to connect to bus: No such file or directory\n");
        assert_eq!(told.units[0], Unit::Unread("Failed to connect to bus: No such file or directory".into()));
        unread(&whole.replace("vllm.service", "other.service").replace("llama-cpp.service", "x.service"), "");
        unread(&whole.replace("\n\n", "\n"), "");
    }

    #[test]
    fn times_are_read_as_systemd_writes_them() {
        for (text, seconds) in [("90s", 90), ("1min 30s", 90), ("5min", 300), ("1h 1min 1s", 3661), ("1d", 86_400)] {
            assert_eq!(timespan(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(timespan("500ms"), Some(Duration::from_millis(500)));
        for odd in ["", "soon", "1 fortnight", "-1s", "12"] {
            assert_eq!(timespan(odd), None, "{odd}");
        }
        for (text, seconds) in [
            ("Thu 1970-01-01 00:00:01 UTC", Some(1)),
            ("Mon 2026-11-23 22:04:34 UTC", Some(1_795_471_474)),
            ("Thu 2024-02-29 00:00:00 UTC", Some(1_709_164_800)),
            ("@1795471474", Some(1_795_471_474)),
            ("n/a", None),
            ("", None),
            ("Mon 2026-11-23 22:04:34 CET", None),
        ] {
            assert_eq!(epoch_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn each_end_of_systemctl_has_its_meaning() {
        let code = |outcome: Outcome| match outcome {
            Outcome::Succeeded(_) => "succeeded".to_owned(),
            Outcome::Failed(w) => w.code,
            Outcome::Unknown(_) => "unknown".to_owned(),
        };
        for (what, status, stderr, expected) in [
            (Ended::Unit, 0, "sudo: unable to resolve host gpu: Name or service not known\n", "succeeded"),
            (
                Ended::Unit,
                1,
                "Failed to start llama-cpp.service: Interactive authentication required.\n",
                "not_permitted",
            ),
            (Ended::Unit, 4, "Failed to start cron.service: Access denied\n", "not_permitted"),
            (Ended::Unit, 1, "sudo: a password is required\n", "not_permitted"),
            (Ended::Harmless, 1, "Failed to kill unit vllm.service: Access denied\n", "not_permitted"),
            (Ended::Unit, 5, "Failed to start vllm.service: Unit vllm.service not found.\n", "unit_missing"),
            (Ended::Unit, 1, "Failed to start vllm.service: Unit vllm.service is masked.\n", "unit_missing"),
            (
                Ended::Unit,
                1,
                "Job for vllm.service failed.\nvllm.service: start of the service was attempted too often.\n",
                "start_limit",
            ),
            (
                Ended::Unit,
                1,
                "Job for vllm.service failed because the control process exited with error code.\n",
                "verb_failed",
            ),
            (Ended::Unit, 1, "Job for vllm.service canceled.\n", "verb_failed"),
            (
                Ended::Harmless,
                1,
                "Failed to reset failed state of unit vllm.service: Unit vllm.service not loaded.\n",
                "succeeded",
            ),
            (Ended::PowerOff, 1, "Operation inhibited by \"apt\" (PID 811), reason is \"Installing\".\n", "blocked"),
            (Ended::PowerOff, 255, "", "unknown"),
            (Ended::Unit, 143, "", "unknown"),
            (Ended::Unit, 127, "sh: systemctl: not found\n", "verb_failed"),
        ] {
            assert_eq!(code(judge_verb(what, status, stderr)), expected, "{stderr}");
        }
    }

    #[test]
    fn a_post_mortem_is_short_and_fit_to_show() {
        let journal = (0..12).map(|i| format!("line {i} \x1b[31mred\n"));
        let journal = journal.collect::<Vec<_>>().concat();
        let answer = format!(
            "@@unit\nActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=203\nNRestarts=5\n\
             FragmentPath=/etc/systemd/system/llama-cpp.service\nDropInPaths=/etc/systemd/system/llama-cpp.service.d/a.conf\n\
             NeedDaemonReload=yes\n@@listens\nLISTEN 0 512 127.0.0.1:8080 0.0.0.0:*\n@@asked\n@@journal\n{journal}@@odd {}\n@@end\n",
            "x".repeat(5000)
        );
        let PostMortem { lines, port_listens } = parse_post_mortem(&answer, &units()[0], 8080);
        assert!(port_listens);
        assert_eq!(
            lines[0],
            "llama-cpp.service is failed (failed), result exit-code, exit status 203, 5 automatic restarts"
        );
        assert_eq!(
            lines[1],
            "its file is /etc/systemd/system/llama-cpp.service, with /etc/systemd/system/llama-cpp.service.d/a.conf, \
             changed since systemd read it (`systemctl daemon-reload`)"
        );
        assert_eq!(lines[2], "port 8080 listens on the host");
        assert_eq!((lines.len(), lines[3].as_str()), (13, "line 3 [31mred"));
        assert!(lines.iter().map(String::len).sum::<usize>() <= 4096);
        assert!(lines.iter().all(|line| !line.chars().any(char::is_control)));
    }
}
