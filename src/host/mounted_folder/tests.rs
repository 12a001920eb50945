use std::{os::unix::fs::symlink, sync::mpsc};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;
use crate::{
    config::SshTarget,
    host::{
        remote::{RemotePath, UnitName},
        ssh::Ssh,
    },
};

/// More than any of this takes.
const LONG: Duration = Duration::from_secs(10);
/// For what must hit its deadline.
const SHORT: Duration = Duration::from_millis(100);

/// A share in a temporary folder, of a server that nobody can reach.
struct Share {
    root: PathBuf,
    folder: MountedFolder,
}

impl Share {
    fn new(name: &str, within: Duration) -> Self {
        let root = std::env::temp_dir().join(format!("wechsler-mounted-{}-{name}", std::process::id()));
        let dir = root.join("slots");
        fs::create_dir_all(&dir).expect("a temporary folder");
        let target = SshTarget {
            host: "127.0.0.1".into(),
            port: 1,
            user: "nobody".into(),
            key: root.join("no-key"),
            host_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl".into()],
            preboot_host_keys: vec![],
            connect_timeout: LONG,
            command_timeout: LONG,
            keepalive: LONG,
        };
        let ssh = Arc::new(Ssh::new(&target).expect("a target"));
        let unit = UnitName::new("llama-cpp.service").expect("a unit");
        let server = SlotFolder::new(ssh, RemotePath::new("/slots").expect("a path"), unit);
        Self { root, folder: MountedFolder::new(dir, server, within) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.dir.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> FileName {
        fs::write(self.path(name), bytes).expect("written");
        file(name)
    }

    async fn look_at(&self, names: &[FileName]) -> Vec<Result<Option<Found>, SlotFilesError>> {
        let found = self.folder.survey(Survey { files: names, ..Survey::default() }).await;
        found.expect("the share answers").files
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn file(name: &str) -> FileName {
    FileName::new(name).expect("a name")
}

fn refusal<T: std::fmt::Debug>(result: Result<T, SlotFilesError>) -> String {
    match result {
        Err(SlotFilesError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_folder_is_looked_at_where_it_is_mounted() {
    let share = Share::new("look", LONG);
    let bytes = [b"qsgg\x04\0\0\0".as_slice(), &[7; 40]].concat();
    let names = [share.write("a.slot", &bytes), file("b.slot"), share.write("c.slot", b"qs")];
    let found =
        share.folder.survey(Survey { free: true, files: &names, ..Survey::default() }).await.expect("it answers");
    assert!(found.free.is_some_and(|free| free > 0));
    let [Ok(Some(first)), Ok(None), Ok(Some(short))] = &found.files[..] else { panic!("{found:?}") };
    assert!(first.stat.bytes == 48 && first.stat.mtime > 1_600_000_000, "{first:?}");
    assert_eq!((&first.head[..], &short.head[..]), (&bytes[..HEAD_BYTES], &b"qs"[..]));
}

#[tokio::test]
async fn a_file_that_is_what_it_should_be_gets_its_name_and_no_other() {
    let share = Share::new("keep", LONG);
    let (unfinished, finished) = (share.write("a.part", b"qsgg and more"), file("a.slot"));
    let odd = share.write("b.part", b"ggsq and more");
    let found = share.folder.keep(&odd, &finished, 13, LONG).await.expect("it answers").expect("a file");
    assert_eq!(&found.head[..4], b"ggsq");
    assert!(!share.path("a.slot").exists());
    let kept = share.folder.keep(&unfinished, &finished, 13, LONG).await.expect("it answers").expect("a file");
    assert_eq!((kept.stat.bytes, &kept.head[..]), (13, &b"qsgg and more"[..]));
    assert!(share.path("a.slot").exists() && !share.path("a.part").exists());
}

#[tokio::test]
async fn what_was_kept_is_never_replaced() {
    let share = Share::new("replace", LONG);
    let kept = share.write("a.slot", b"qsgg of before");
    let unfinished = share.write("a.part", b"qsgg anew");
    assert!(share.folder.keep(&unfinished, &kept, 9, LONG).await.is_err());
    assert_eq!(fs::read(share.path("a.slot")).expect("it is there"), b"qsgg of before");
}

#[tokio::test(start_paused = true)]
async fn what_another_machine_wrote_may_take_a_while_to_show_here_in_full() {
    let share = Share::new("late", LONG);
    let (unfinished, finished) = (share.write("a.part", b"qsgg"), file("a.slot"));
    let (kept, ()) = tokio::join!(share.folder.keep(&unfinished, &finished, 13, LONG), async {
        sleep(VISIBLE_WITHIN / 2).await;
        share.write("a.part", b"qsgg and more");
    });
    assert_eq!(kept.expect("it answers").expect("a file").stat.bytes, 13);
    assert!(share.path("a.slot").exists());
}

#[tokio::test(start_paused = true)]
async fn what_never_shows_here_is_not_waited_for_without_end() {
    let share = Share::new("never", LONG);
    let begun = Instant::now();
    assert_eq!(share.folder.keep(&file("a.part"), &file("a.slot"), 13, LONG).await, Ok(None));
    assert!(begun.elapsed() >= VISIBLE_WITHIN && begun.elapsed() < VISIBLE_WITHIN + 2 * LOOK_AGAIN);
}

#[tokio::test]
async fn only_regular_files_with_our_kind_of_name_are_listed_and_removed_ones_may_be_gone() {
    let share = Share::new("list", LONG);
    let ours = share.write("a.part", b"");
    share.write("a.slot", b"");
    fs::write(share.path(".hidden.part"), b"").expect("written");
    fs::create_dir(share.path("folder.part")).expect("made");
    symlink(share.path("a.slot"), share.path("link.part")).expect("made");
    let names = async || share.folder.list(".part").await.map(|listed| listed.names);
    assert_eq!(names().await, Ok(vec![ours.clone()]));
    for _ in 0..2 {
        assert_eq!(share.folder.remove(std::slice::from_ref(&ours)).await, Ok(()));
    }
    assert_eq!(names().await, Ok(vec![]));
    assert!(share.folder.remove(&[file("folder.part")]).await.is_err());
}

#[tokio::test]
async fn the_first_words_of_a_file_are_read_and_no_half_ones() {
    let share = Share::new("words", LONG);
    let slot = share.write("a.slot", b"qsgg\x04\0\0\0\0\x01\0\0\x07");
    assert_eq!(share.folder.words(&slot, 2).await, Ok(vec![0x6767_7371, 4]));
    assert_eq!(share.folder.words(&slot, 9).await, Ok(vec![0x6767_7371, 4, 256]));
    assert!(refusal(share.folder.words(&file("b.slot"), 1).await).contains("b.slot is gone"));
}

#[tokio::test]
async fn a_folder_that_others_may_look_into_is_told() {
    let share = Share::new("open", LONG);
    for (mode, open) in [(0o2770, false), (0o755, true), (0o701, true)] {
        fs::set_permissions(&share.folder.dir, fs::Permissions::from_mode(mode)).expect("changed");
        assert_eq!(share.folder.list("").await.map(|listed| listed.open), Ok(open), "{mode:o}");
    }
}

#[tokio::test]
async fn a_whole_file_is_read_for_its_digest_and_no_further_than_somebody_waits_for_it() {
    let share = Share::new("digest", LONG);
    let [empty, long] = [share.write("a.slot", b""), share.write("b.slot", &vec![b'a'; 1_000_000])];
    let told = async |name: &FileName| share.folder.digest(name, LONG).await.expect("it answers");
    let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let of_a_million_letters = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    assert_eq!(told(&empty).await.as_deref(), Some(of_nothing));
    assert_eq!(told(&long).await.as_deref(), Some(of_a_million_letters));
    assert_eq!(told(&file("c.slot")).await, None);
    let waiting = Waiting(Wanted::default());
    let wanted = waiting.0.clone();
    drop(waiting);
    assert!(digest(&share.folder.dir, &wanted, &long).is_err());
}

#[tokio::test]
async fn neither_a_link_nor_a_pipe_nor_a_folder_is_opened() {
    let share = Share::new("odd", LONG);
    fs::write(share.root.join("secret"), b"qsgg of somebody else").expect("written");
    symlink(share.root.join("secret"), share.path("link.slot")).expect("made");
    mkfifo(&share.path("pipe.slot"), Mode::S_IRWXU).expect("made");
    fs::create_dir(share.path("folder.slot")).expect("made");
    let found = share.look_at(&[file("link.slot"), file("pipe.slot"), file("folder.slot")]).await;
    for (found, why) in found.into_iter().zip(["symbolic link", "no regular file", "no regular file"]) {
        let told = refusal(found);
        assert!(told.contains(why), "{told}");
    }
    assert!(share.folder.keep(&file("link.slot"), &file("a.slot"), 21, LONG).await.is_err());
}

#[tokio::test]
async fn a_folder_that_has_vanished_is_not_taken_for_an_empty_one() {
    let share = Share::new("vanished", LONG);
    fs::remove_dir(&share.folder.dir).expect("it is empty");
    let why = refusal(share.look_at(&[file("a.slot")]).await.remove(0));
    assert!(why.contains("is the share mounted?"), "{why}");
    assert_eq!(refusal(share.folder.list(".part").await), why);
    assert_eq!(refusal(share.folder.remove(&[file("a.slot")]).await), why);
    assert_eq!(refusal(share.folder.keep(&file("a.part"), &file("a.slot"), 1, LONG).await), why);
    let free = share.folder.survey(Survey { free: true, ..Survey::default() }).await;
    assert_eq!(free.expect("it answers").free, None);
}

#[test]
fn what_a_share_refuses_is_said_in_words() {
    let told = |errno: Errno| words(&io::Error::from(errno));
    assert!(told(Errno::ESTALE).contains("mount it anew"));
    assert!(told(Errno::EACCES).contains("Permission denied"));
}

#[tokio::test]
async fn a_share_that_hangs_is_a_deadline_and_holds_one_thread() {
    let share = Share::new("hangs", LONG);
    let (release, held) = mpsc::channel::<()>();
    let (tell, begun) = tokio::sync::oneshot::channel();
    let patient = share.folder.clone();
    let stuck = tokio::spawn(async move {
        let deadline = patient.deadline();
        let hang = move |_: &Path, _: &Wanted| {
            let _ = tell.send(());
            let _ = held.recv();
            Ok(())
        };
        patient.work(deadline, hang).await
    });
    begun.await.expect("it has begun");
    let whole = share.write("b.slot", b"");
    assert!(share.folder.digest(&whole, LONG).await.is_ok(), "reading whole files has a thread of its own");
    fs::remove_file(share.path("b.slot")).expect("it was there");
    // What comes after it waits for its turn, and is not done later.
    let hasty = MountedFolder { within: SHORT, ..share.folder.clone() };
    let unfinished = share.write("a.part", b"qsgg");
    let Err(SlotFilesError::Unreachable(why)) = hasty.list("").await else { panic!("it hangs") };
    assert!(why.contains("has not answered in time"), "{why}");
    assert!(matches!(hasty.keep(&unfinished, &file("a.slot"), 4, SHORT).await, Err(SlotFilesError::Unreachable(_))));
    drop(release);
    assert_eq!(stuck.await.expect("no panic"), Ok(()));
    assert_eq!(share.folder.list("").await.map(|listed| listed.names), Ok(vec![unfinished]));
}

#[tokio::test]
async fn a_save_that_nobody_waits_for_any_more_is_not_kept_when_the_share_comes_back() {
    let share = Share::new("given-up", LONG);
    let (unfinished, finished) = (share.write("a.part", b"qsgg"), file("a.slot"));
    let waiting = Waiting(Wanted::default());
    let wanted = waiting.0.clone();
    drop(waiting);
    assert!(keep(&share.folder.dir, &wanted, &unfinished, &finished, 4).is_err());
    assert!(share.path("a.part").exists() && !share.path("a.slot").exists());
}

#[tokio::test]
async fn without_the_server_nothing_is_said_of_a_model() {
    let share = Share::new("model", LONG);
    let asked = share.folder.survey(Survey { model: Some("/models/m.gguf"), ..Survey::default() }).await;
    assert!(matches!(asked, Err(SlotFilesError::Unreachable(_))), "{asked:?}");
}
