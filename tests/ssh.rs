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
        remote::{self, CommandLine, RemotePath, RemoteVerb, UnitName},
        slot_files::{FileName, SlotFiles, SlotFilesError},
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
async fn a_command_that_hangs_ends_at_its_deadline_and_takes_its_session_with_it() {
    let folder = Folder::new();
    let (sshd, ssh) = server(&folder).await;
    for (i, word) in ["hang.service", "refuse.service"].into_iter().enumerate() {
        let lost = ssh.run(&line(word), SHORT).await;
        assert_eq!(lost, Err(Trouble::TimedOut(SHORT)));
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
    slots.write("localbot", b"ggsq\x02\0\0\0 and more");
    slots.write("model with space.gguf", b"weights");
    let place = |folder: &Folder| RemotePath::new(&folder.path().to_string_lossy()).expect("a path");
    let ssh = Arc::new(ssh);
    let files = SlotFolder::new(Arc::clone(&ssh), place(&slots));
    let name = |text: &str| FileName::new(text).expect("a name");

    let stat = files.stat(&name("localbot")).await.expect("an answer").expect("a file");
    assert!(stat.bytes == 17 && stat.mtime > 1_600_000_000, "{stat:?}");
    assert_eq!(files.stat(&name("nothing")).await, Ok(None));
    assert_eq!(files.head(&name("localbot"), 8).await, Ok(b"ggsq\x02\0\0\0".to_vec()));
    let refused = files.head(&name("nothing"), 8).await;
    assert!(matches!(refused, Err(SlotFilesError::Refused(_))), "{refused:?}");
    assert!(files.free_bytes().await.expect("an answer") > 0);
    let model = slots.path().join("model with space.gguf");
    let model = files.stat_path(&model.to_string_lossy()).await.expect("an answer");
    assert_eq!(model.map(|m| m.bytes), Some(7));

    files.rename(&name("localbot"), &name("localbot-old")).await.expect("renamed");
    let listed = files.list().await.expect("a list");
    assert_eq!(listed.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["localbot-old"]);
    files.remove(&name("localbot-old")).await.expect("removed");
    files.remove(&name("localbot-old")).await.expect("removed already");
    assert_eq!(files.list().await, Ok(vec![]));

    let gone = SlotFolder::new(ssh, RemotePath::new("/no/such/folder").expect("a path"));
    assert!(matches!(gone.list().await, Err(SlotFilesError::Refused(_))));
    assert!(matches!(gone.free_bytes().await, Err(SlotFilesError::Refused(_))));
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
