//! Who uses the server beside us, read from logind (or `who`).

use super::remote::{self, plain_text};
use crate::machine::reading::People;

/// Most logins and inhibitors told of; more would be no news.
const MOST: usize = 32;

/// Reads the answer to [`remote::people`]. `our_user` is the user of our own SSH sessions.
#[must_use]
pub fn parse(stdout: &str, our_user: &str) -> People {
    let parts = remote::parts(stdout);
    let at = |name: &str| parts.iter().position(|(mark, _)| *mark == name);
    // The status that follows a part says whether its tool answered.
    let answered = |at: Option<usize>| {
        at.filter(|at| parts.get(at + 1).is_some_and(|(mark, _)| *mark == "status 0")).map(|at| parts[at].1)
    };
    if at("end").is_none() {
        return People::Unread("the answer is cut off".into());
    }
    let own = parts.iter().find_map(|(mark, _)| mark.strip_prefix("own ")).unwrap_or("");
    let mut logins = if let Some(blocks) = answered(at("sessions")) {
        sessions(blocks, own, our_user)
    } else if let Some(lines) = answered(at("who")) {
        who(lines)
    } else {
        return People::Unread("neither loginctl nor who answers".into());
    };
    let Some(mut inhibitors) = answered(at("inhibitors")).and_then(inhibitors) else {
        return People::Unread("logind does not tell its inhibitors".into());
    };
    logins.truncate(MOST);
    inhibitors.truncate(MOST);
    People::Read { logins, inhibitors }
}

/// Sessions of people, from the blocks of `loginctl show-session`.
///
/// Ours are the one the question came through, and any of our user over the network without a terminal. Sessions that are
/// closing are over; those of class `manager`, `greeter`, `background` are nobody's login.
fn sessions(blocks: &str, own: &str, our_user: &str) -> Vec<String> {
    let mut found = vec![];
    for block in blocks.split("\n\n") {
        let value = |key: &str| {
            let mut lines = block.lines().filter_map(|line| line.split_once('='));
            lines.find(|(k, _)| *k == key).map_or("", |(_, v)| v)
        };
        let (id, user, tty) = (value("Id"), value("Name"), value("TTY"));
        let ours = id == own || (user == our_user && value("Remote") == "yes" && matches!(tty, "" | "ssh" | "notty"));
        let person = value("Class").starts_with("user") && value("State") != "closing";
        if id.is_empty() || ours || !person {
            continue;
        }
        let mut line = user.to_owned();
        if let Some(place) = [tty, value("Display")].into_iter().find(|p| !p.is_empty()) {
            line.push_str(" on ");
            line.push_str(place);
        }
        if !value("RemoteHost").is_empty() {
            line.push_str(" from ");
            line.push_str(value("RemoteHost"));
        }
        found.push(plain_text(&line, 120));
    }
    found
}

/// `USER TTY DATE TIME (HOST)`: a session without a terminal, as ours, is not listed there at all.
fn who(lines: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (user, tty) = (words.next()?, words.next()?);
        let host = words.last().and_then(|w| w.strip_prefix('(')?.strip_suffix(')'));
        let from = host.map(|host| format!(" from {host}")).unwrap_or_default();
        Some(plain_text(&format!("{user} on {tty}{from}"), 120))
    };
    lines.lines().filter_map(line).collect()
}

/// Those that block a shutdown, from the JSON of `busctl … ListInhibitors`: `a(ssssuu)`, what, who, why, mode, uid, pid.
fn inhibitors(json: &str) -> Option<Vec<String>> {
    type Inhibitor = (String, String, String, String, u32, u32);
    #[derive(serde::Deserialize)]
    struct Answer {
        data: (Vec<Inhibitor>,),
    }
    let answer: Answer = serde_json::from_str(json.trim()).ok()?;
    let blocking =
        answer.data.0.into_iter().filter(|(what, _, _, mode, ..)| {
            mode.starts_with("block") && what.split(':').any(|what| what == "shutdown")
        });
    Some(blocking.map(|(_, who, why, ..)| plain_text(&format!("{who}: {why}"), 160)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INHIBITORS: &str = r#"@@inhibitors
{"type":"a(ssssuu)","data":[[["sleep","ModemManager","ModemManager needs to reset devices","delay",0,700],["shutdown:sleep","apt","Installing packages, please wait","block",0,811],["handle-power-key","gdm","own key","block",120,900]]]}
@@status 0
@@end
"#;

    fn read(sessions: &str) -> People {
        parse(&format!("{sessions}{INHIBITORS}"), "wechsler")
    }

    #[test]
    fn logins_of_others_and_blocking_inhibitors_are_told_and_our_own_sessions_are_not() {
        let told = read(
            "@@own 9\n@@sessions\n\
             Id=9\nName=wechsler\nRemote=yes\nRemoteHost=10.0.0.1\nTTY=\nClass=user\nState=active\n\n\
             Id=8\nName=wechsler\nRemote=yes\nRemoteHost=10.0.0.1\nTTY=\nClass=user\nState=online\n\n\
             Id=7\nName=wechsler\nRemote=yes\nRemoteHost=10.0.0.1\nTTY=pts/3\nClass=user\nState=active\n\n\
             Id=3\nName=ann\nRemote=yes\nRemoteHost=10.0.0.7\nTTY=pts/0\nClass=user\nState=active\n\n\
             Id=4\nName=bob\nRemote=no\nRemoteHost=\nTTY=\nDisplay=:0\nClass=user\nState=active\n\n\
             Id=5\nName=ann\nRemote=yes\nRemoteHost=10.0.0.7\nTTY=pts/1\nClass=user\nState=closing\n\n\
             Id=c1\nName=gdm\nRemote=no\nTTY=tty1\nClass=greeter\nState=active\n\n\
             Id=6\nName=ann\nRemote=no\nTTY=\nClass=manager\nState=active\n\
             @@status 0\n",
        );
        assert_eq!(
            told,
            People::Read {
                logins: vec![
                    "wechsler on pts/3 from 10.0.0.1".into(),
                    "ann on pts/0 from 10.0.0.7".into(),
                    "bob on :0".into()
                ],
                inhibitors: vec!["apt: Installing packages, please wait".into()],
            }
        );
    }

    #[test]
    fn without_logind_who_is_asked_and_with_neither_nobody_can_tell() {
        let told = read(
            "@@own \n@@who\nann      pts/0        2026-11-23 09:12 (10.0.0.7)\nbob      tty1         2026-11-23 09:12\n@@status 0\n",
        );
        let People::Read { logins, .. } = told else { panic!("{told:?}") };
        assert_eq!(logins, ["ann on pts/0 from 10.0.0.7", "bob on tty1"]);
        for unread in [
            read("@@own \n@@who\n@@status 127\n"),
            parse("@@own \n@@sessions\n@@status 0\n@@inhibitors\n@@status 1\n@@end\n", "w"),
            parse("@@own \n@@sessions\n@@status 0\n", "w"),
            parse("", "w"),
        ] {
            assert!(matches!(unread, People::Unread(_)), "{unread:?}");
        }
    }

    #[test]
    fn an_empty_house_is_empty() {
        let told = parse(
            "@@own 3\n@@sessions\n@@status 0\n@@inhibitors\n{\"type\":\"a(ssssuu)\",\"data\":[[]]}\n@@status 0\n@@end\n",
            "w",
        );
        assert_eq!(told, People::Read { logins: vec![], inhibitors: vec![] });
    }
}
