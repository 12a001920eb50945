//! `host::ssh` and `host::Host` against a real SSH server on a real socket, in this process.
//!
//! Each trap of the SSH crates that was met has its test here: no deadlines of their own, a wrong key that is not named,
//! several keys, a command whose end is lost, a half-open connection, a server that never says who it is.

mod sshd;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use sshd::{Act, Folder, Sshd, public, target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};
use wechsler::{
    host::{
        mounted_folder::MountedFolder,
        remote::{self, CommandLine, FileQuestion, RemotePath, RemoteVerb, UnitName},
        slot_files::{FileName, Listed, SlotFiles, SlotFilesError, Survey},
        slot_folder::SlotFolder,
        ssh::{Ssh, SshSetupError, Trouble},
    },
    machine::reading,
};

/// More than any loopback needs.
const LONG: Duration = Duration::from_secs(10);
/// Enough for the server to have taken a command, too short for one that hangs.
const SHORT: Duration = Duration::from_millis(300);

/// What the server does is said by the name of the unit.
fn act(line: &str) -> Act {
    for (word, act) in [
        ("hang.service", Act::Hang),
        ("signal.service", Act::Signal),
        ("cut.service", Act::Cut),
        ("cut-first.service", Act::CutFirst),
        ("flood.service", Act::Flood),
        ("refuse.service", Act::Refuse),
    ] {
        if line.contains(word) {
            return act;
        }
    }
    Act::Run
}

/// A harmless line with that word in it.
fn line(word: &str) -> CommandLine {
    let unit = UnitName::new(word).expect("a unit");
    remote::verb(&["echo".into()], RemoteVerb::Start(&unit))
}

fn said(word: &str) -> String {
    format!("systemctl --no-ask-password start {word}\n")
}

/// A server with host key 1, and a target that pins it.
async fn server(folder: &Folder) -> (Sshd, Ssh) {
    let sshd = Sshd::start(1, act, None).await;
    let ssh = Ssh::new(&target(sshd.address, folder.client_key(true), &[1], &[])).expect("a target");
    (sshd, ssh)
}

#[tokio::test]
async fn all_commands_share_one_kept_session() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    for word in ["a.service", "b.service", "c.service"] {
        let reply = ssh.run(&line(word), LONG).await.expect("a reply");
        assert_eq!((reply.status, reply.stdout, reply.stderr), (0, said(word), String::new()));
    }
    assert_eq!((sshd.logins(), ssh.sessions()), (1, 1));
}

#[tokio::test]
async fn commands_that_come_while_one_connects_share_its_login_and_its_failure() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    let lines: Vec<_> = (0..20).map(|i| line(&format!("u{i}.service"))).collect();
    let replies = futures_util::future::join_all(lines.iter().map(|line| ssh.ask(line, LONG))).await;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert_eq!(sshd.logins(), 1);

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut to = target(silent.local_addr().expect("it"), folder.client_key(true), &[1], &[]);
    to.connect_timeout = SHORT;
    let ssh = Ssh::new(&to).expect("a target");
    let began = Instant::now();
    let replies = futures_util::future::join_all(lines.iter().map(|line| ssh.ask(line, LONG))).await;
    assert!(replies.iter().all(Result::is_err));
    assert!(began.elapsed() < 4 * SHORT, "one after the other: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_wrong_key_is_refused_before_any_login_and_named() {
    let folder = Folder::new();
    let sshd = Sshd::start(1, act, None).await;
    let ssh = Ssh::new(&target(sshd.address, folder.client_key(true), &[2, 3], &[4])).expect("a target");
    let Err(Trouble::Down(reading::Ssh::WrongKey(named))) = ssh.run(&line("a.service"), LONG).await else {
        panic!("it must be refused");
    };
    let fingerprint = sshd::key(1).public_key().fingerprint(russh::keys::HashAlg::Sha256);
    assert_eq!(named, format!("ssh-ed25519 {fingerprint}"));
    assert_eq!((sshd.logins(), ssh.sessions()), (0, 0));
}

#[tokio::test]
async fn any_pinned_key_will_do_and_the_initramfs_key_is_known_as_such() {
    let folder = Folder::new();
    let sshd = Sshd::start(4, act, None).await;
    let ssh = Ssh::new(&target(sshd.address, folder.client_key(true), &[1, 2], &[4])).expect("a target");
    let show = |seed| *sshd.shared.host_key.lock().expect("the key") = sshd::key(seed);
    for _ in 0..2 {
        let down = ssh.run(&line("a.service"), LONG).await;
        assert_eq!(down, Err(Trouble::Down(reading::Ssh::PreBoot)));
    }
    for seed in [2, 1] {
        show(seed);
        ssh.forget();
        ssh.run(&line("a.service"), LONG).await.expect("a pinned key");
    }
    assert_eq!((sshd.logins(), ssh.sessions()), (2, 2));
}

#[tokio::test]
async fn a_refused_user_or_key_is_told() {
    let folder = Folder::new();
    let sshd = Sshd::start(1, act, None).await;
    let refused = target(sshd.address, folder.client_key(false), &[1], &[]);
    let mut missing = refused.clone();
    missing.key = folder.path().join("no-such-key");
    let mut stranger = target(sshd.address, folder.client_key(true), &[1], &[]);
    stranger.user = "nobody".into();
    for to in [missing, stranger] {
        let down = Ssh::new(&to).expect("a target").run(&line("a.service"), LONG).await;
        assert!(matches!(&down, Err(Trouble::Down(reading::Ssh::AuthRefused(_)))), "{down:?}");
    }
    folder.client_key(false);
    let down = Ssh::new(&refused).expect("a target").run(&line("a.service"), LONG).await;
    assert!(matches!(&down, Err(Trouble::Down(reading::Ssh::AuthRefused(_)))), "{down:?}");
}

#[test]
fn a_target_without_a_readable_pinned_key_is_refused() {
    let to = target(SocketAddr::from(([127, 0, 0, 1], 22)), "/dev/null".into(), &[], &[]);
    assert!(matches!(Ssh::new(&to), Err(SshSetupError::NoKey(_))));
    let mut garbled = to;
    garbled.host_keys = vec!["ssh-ed25519 AAAA".into()];
    assert!(matches!(Ssh::new(&garbled), Err(SshSetupError::Key { .. })));
}

#[tokio::test]
async fn a_closed_port_and_an_unknown_name_are_told_apart() {
    let folder = Folder::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = target(listener.local_addr().expect("it"), folder.client_key(true), &[1], &[]);
    drop(listener);
    let down = Ssh::new(&to).expect("a target").run(&line("a.service"), LONG).await;
    assert_eq!(down, Err(Trouble::Down(reading::Ssh::PortClosed)));
    let mut unknown = to;
    unknown.host = "no-such-host.invalid".into();
    unknown.connect_timeout = SHORT;
    let down = Ssh::new(&unknown).expect("a target").run(&line("a.service"), LONG).await;
    let unresolved = |d: &reading::Ssh| matches!(d, reading::Ssh::Unreachable(_) | reading::Ssh::Silent);
    assert!(matches!(&down, Err(Trouble::Down(d)) if unresolved(d)), "{down:?}");
}

#[tokio::test]
async fn a_server_that_never_says_who_it_is_ends_at_the_connect_deadline() {
    for banner in [&b""[..], b"SSH-2.0-OpenSSH_9.2\r\n"] {
        let folder = Folder::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut to = target(listener.local_addr().expect("it"), folder.client_key(true), &[1], &[]);
        to.connect_timeout = SHORT;
        let stalled = tokio::spawn(async move {
            let mut kept = vec![];
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(banner).await.expect("written");
                kept.push(stream);
            }
        });
        let began = Instant::now();
        let down = Ssh::new(&to).expect("a target").run(&line("a.service"), LONG).await;
        assert!(matches!(&down, Err(Trouble::Down(reading::Ssh::Mute(_)))), "{down:?}");
        assert!(began.elapsed() < LONG);
        stalled.abort();
    }
}

#[tokio::test]
async fn a_command_that_hangs_or_is_refused_ends_and_takes_its_session_with_it() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    let refused = Trouble::Lost("the server does not take the command".into());
    for (i, (word, trouble)) in
        [("hang.service", Trouble::TimedOut(SHORT)), ("refuse.service", refused)].into_iter().enumerate()
    {
        assert_eq!(ssh.run(&line(word), SHORT).await, Err(trouble));
        sshd.until_open(0).await;
        ssh.run(&line("a.service"), LONG).await.expect("a new session");
        assert_eq!(ssh.sessions(), i as u64 + 2);
    }
}

#[tokio::test]
async fn a_command_that_is_given_up_leaves_no_open_channel_behind() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    ssh.run(&line("a.service"), LONG).await.expect("a session");
    assert!(timeout(SHORT, ssh.run(&line("hang.service"), LONG)).await.is_err());
    sshd.until_open(0).await;
}

#[tokio::test]
async fn a_command_without_an_exit_status_is_lost_whatever_the_reason() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    for word in ["signal.service", "cut.service", "flood.service"] {
        let lost = ssh.run(&line(word), LONG).await;
        assert!(matches!(&lost, Err(Trouble::Lost(_))), "{word}: {lost:?}");
        sshd.until_open(0).await;
    }
    assert_eq!(ssh.sessions(), 3);
}

#[tokio::test]
async fn a_question_is_asked_once_more_when_a_kept_session_turns_out_to_be_gone() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    ssh.ask(&line("a.service"), LONG).await.expect("a session");
    let reply = ssh.ask(&line("cut-first.service"), LONG).await.expect("the second session answers");
    assert_eq!((reply.stdout, sshd.logins()), (said("cut-first.service"), 2));
    let lost = ssh.ask(&line("cut.service"), LONG).await;
    assert!(matches!(lost, Err(Trouble::Lost(_))), "not for ever: {lost:?}");
}

#[tokio::test]
async fn a_half_open_connection_ends_at_the_deadline_of_the_next_command() {
    let folder = Folder::new();
    let (sshd, _) = server(&folder).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = listener.local_addr().expect("its address");
    let (cut, is_cut) = watch::channel(false);
    let behind = sshd.address;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(behind).await.expect("the server");
            let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
            tokio::spawn(pass(client_in, server_out, is_cut.clone()));
            tokio::spawn(pass(server_in, client_out, is_cut.clone()));
        }
    });
    let mut to = target(proxy, folder.client_key(true), &[1], &[]);
    to.connect_timeout = SHORT * 3;
    let ssh = Ssh::new(&to).expect("a target");
    ssh.ask(&line("a.service"), LONG).await.expect("a session");
    cut.send_replace(true);
    let lost = ssh.ask(&line("b.service"), SHORT).await;
    assert_eq!(lost, Err(Trouble::TimedOut(SHORT)));
    let down = ssh.ask(&line("b.service"), SHORT).await;
    assert!(matches!(down, Err(Trouble::Down(reading::Ssh::Mute(_)))), "{down:?}");
    cut.send_replace(false);
    ssh.ask(&line("c.service"), LONG).await.expect("the link is back");
}

/// Passes bytes on until the link is cut; then swallows them, and keeps the connection open.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if !*is_cut.borrow() && to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn the_slot_folder_is_looked_at_and_cleared_over_ssh() {
    let folder = Folder::new();
    let (_sshd, ssh) = server(&folder).await;
    let slots = Folder::new();
    slots.write("localbot.part", b"qsgg\x02\0\0\0 and more");
    slots.write("garbage.part", b"ggsq\x02\0\0\0 and more");
    slots.write("model with space.gguf", b"weights");
    let place = |folder: &Folder| RemotePath::new(&folder.path().to_string_lossy()).expect("a path");
    let ssh = Arc::new(ssh);
    let files = SlotFolder::new(Arc::clone(&ssh), place(&slots), unit());
    let name = |text: &str| FileName::new(text).expect("a name");
    let head = b"qsgg\x02\0\0\0 and more".to_vec();

    let model = slots.path().join("model with space.gguf");
    let asked = [name("localbot.part"), name("nothing")];
    let what = Survey { free: true, model: Some(&model.to_string_lossy()), flags: true, files: &asked };
    let found = files.survey(what).await.expect("an answer");
    assert!(found.free.is_some_and(|free| free > 0));
    assert_eq!((found.model.map(|m| m.bytes), &found.flags), (Some(7), &None), "no such unit runs here");
    let Ok(Some(first)) = &found.files[0] else { panic!("{found:?}") };
    assert!(first.stat.bytes == 17 && first.stat.mtime > 1_600_000_000, "{first:?}");
    assert_eq!((&first.head, &found.files[1]), (&head, &Ok(None)));

    let listed = |listed: Result<Listed, SlotFilesError>| listed.expect("an answer").names;
    let (unfinished, finished) = (name("localbot.part"), name("localbot.slot"));
    let short = files.keep(&unfinished, &finished, 18, LONG).await.expect("an answer").expect("a file");
    assert_eq!(short.stat.bytes, 17);
    let odd = files.keep(&name("garbage.part"), &finished, 17, LONG).await.expect("an answer").expect("a file");
    assert_eq!(&odd.head[..4], b"ggsq");
    assert_eq!(listed(files.list(".slot").await), vec![], "neither is what it should be");
    let kept = files.keep(&unfinished, &finished, 17, LONG).await.expect("an answer").expect("a file");
    assert_eq!((kept.stat.bytes, kept.head), (17, head));
    assert_eq!(files.keep(&unfinished, &finished, 17, LONG).await, Ok(None), "it has another name now");
    assert_eq!(listed(files.list(".slot").await), vec![finished.clone()]);
    assert_eq!(listed(files.list(".part").await), vec![name("garbage.part")]);
    for _ in 0..2 {
        files.remove(&[finished.clone(), name("garbage.part")]).await.expect("removed, or removed already");
    }
    assert_eq!(listed(files.list("").await), vec![], "but one with a name that is none of ours");

    let gone = SlotFolder::new(ssh, RemotePath::new("/no/such/folder").expect("a path"), unit());
    assert!(matches!(gone.list(".part").await, Err(SlotFilesError::Refused(_))));
    assert!(matches!(gone.keep(&finished, &finished, 1, LONG).await, Err(SlotFilesError::Refused(_))));
    assert_eq!(gone.survey(Survey { free: true, ..Survey::default() }).await.map(|found| found.free), Ok(None));
}

#[tokio::test]
async fn where_the_slot_folder_is_mounted_here_only_the_model_is_asked_for_over_ssh() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    let (slots, models) = (Folder::new(), Folder::new());
    slots.write("localbot.slot", b"qsgg and more");
    models.write("m.gguf", b"weights");
    let on_server = SlotFolder::new(Arc::new(ssh), RemotePath::new("/another/path/there").expect("a path"), unit());
    let files = MountedFolder::new(slots.path().into(), on_server, LONG);
    let asked = [FileName::new("localbot.slot").expect("a name")];
    let what = Survey { free: true, files: &asked, ..Survey::default() };
    let found = files.survey(what).await.expect("an answer");
    assert!(found.free.is_some() && matches!(&found.files[0], Ok(Some(file)) if file.stat.bytes == 13), "{found:?}");
    assert_eq!(sshd.logins(), 0, "nobody is called for this");
    let model = models.path().join("m.gguf");
    let found = files.survey(Survey { model: Some(&model.to_string_lossy()), ..what }).await.expect("an answer");
    assert_eq!((found.model.map(|model| model.bytes), found.files.len()), (Some(7), 1));
}

fn unit() -> UnitName {
    UnitName::new("llama-cpp.service").expect("a unit")
}

/// Waits until so many shells were asked for.
async fn until_shells(sshd: &Sshd, wanted: usize) {
    let count = || sshd.shared.commands.lock().expect("them").iter().filter(|line| *line == "exec sh -s").count();
    let reached = async {
        while count() < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, reached).await.unwrap_or_else(|_| panic!("{} shells", count()));
}

#[tokio::test]
async fn questions_that_are_expected_find_a_shell_ready_and_orders_stay_plain_commands() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    let ssh = Arc::new(ssh);
    let question = remote::files(&RemotePath::new("/").expect("a path"), FileQuestion::List("etc"));
    ssh.expect_questions();
    assert_eq!(sshd.logins(), 0, "nobody is called for this");
    let plain = ssh.ask(&question, LONG).await.expect("a reply");
    assert_eq!(sshd.shared.commands.lock().expect("them").last().map(String::as_str), Some(question.as_str()));
    ssh.expect_questions();
    ssh.ask(&question, LONG).await.expect("a reply");

    until_shells(&sshd, 2).await;
    sshd.shared.commands.lock().expect("them").clear();
    ssh.run(&line("a.service"), LONG).await.expect("a reply");
    assert!(sshd.shared.commands.lock().expect("them").last().is_some_and(|last| last.starts_with("env ")));
    for taken in 1..=6 {
        let fed = ssh.ask(&question, LONG).await.expect("a reply");
        assert_eq!(fed, plain);
        until_shells(&sshd, taken).await;
    }
    assert!(!sshd.shared.commands.lock().expect("them").iter().any(|line| line == question.as_str()));
    assert_eq!((sshd.logins(), ssh.sessions()), (1, 1));
}

#[tokio::test]
async fn a_forgotten_session_takes_its_shells_with_it() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    let ssh = Arc::new(ssh);
    ssh.run(&line("a.service"), LONG).await.expect("a reply");
    ssh.expect_questions();
    until_shells(&sshd, 2).await;
    assert!(ssh.run(&line("hang.service"), SHORT).await.is_err());
    sshd.until_open(0).await;
    let question = remote::files(&RemotePath::new("/").expect("a path"), FileQuestion::List("etc"));
    assert_eq!(ssh.ask(&question, LONG).await.expect("a reply").session, 2);
}

#[tokio::test]
async fn a_pinned_key_may_carry_a_comment() {
    let folder = Folder::new();
    let sshd = Sshd::start(1, act, None).await;
    let mut to = target(sshd.address, folder.client_key(true), &[], &[]);
    to.host_keys = vec![format!(" {} root@gpu\n", public(1))];
    let ssh = Ssh::new(&to).expect("a target");
    ssh.run(&line("a.service"), LONG).await.expect("a reply");
}
