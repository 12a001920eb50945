//! Everything the daemon ever asks a shell on the server to do: a closed set of command lines.
//!
//! Command lines are made of fixed text and of words whose type keeps them plain ([`UnitName`], [`RemotePath`],
//! [`FileName`], [`Interface`]), so no configured or remote text reaches the server's shell as anything but a word.
//!
//! Two forms. *Verbs* are one plain command, so that polkit, a sudoers file or a forced command can name it exactly.
//! *Questions* are POSIX scripts handed to `sh -c`, whatever the login shell is; they hold neither `'` nor `\`, take
//! their words as positional parameters, and print their answers between lines that begin with `@@`.

use std::{fmt, time::Duration};

use super::slot_files::FileName;

/// Begins each line that divides the parts of an answer.
pub const MARK: &str = "@@";

/// A shell that takes a question from standard input.
pub const SHELL: &str = "exec sh -s";

/// A command line for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    line: String,
    fed: Option<String>,
}

impl CommandLine {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.line
    }

    /// The same as a script for [`SHELL`]; only questions can be asked that way.
    #[must_use]
    pub fn fed(&self) -> Option<&str> {
        self.fed.as_deref()
    }

    /// It goes a way of its own, as what changes something must: that way is not found dead.
    fn unfed(self) -> Self {
        Self { fed: None, ..self }
    }

    /// A plain command with its words; they are quoted only where a shell would notice them.
    fn plain<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        // Messages are read by us: in English, whatever the account's locale.
        let mut line = String::from("env LC_ALL=C");
        for word in words {
            line.push(' ');
            line.push_str(&quoted(word));
        }
        Self { line, fed: None }
    }

    /// A script for `sh` with its positional parameters.
    fn script<'a>(text: &str, parameters: impl IntoIterator<Item = &'a str>) -> Self {
        debug_assert!(!text.contains(['\'', '\\']), "a script must survive any shell's single quotes");
        let mut words = String::new();
        for word in parameters {
            words.push(' ');
            words.push_str(&quoted(word));
        }
        Self {
            line: format!("exec sh -c '{text}' wechsler{words}"),
            // The shell reads all of it before it begins, and leaves nothing of it to the programs it runs.
            fed: Some(format!("{{\nset --{words}\n{text}\n}} </dev/null\n")),
        }
    }
}

/// One word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

macro_rules! plain_word {
    ($(#[$doc:meta])* $name:ident, $test:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);
        impl $name {
            /// Takes a word that keeps to the rule; `None` for any other.
            #[must_use]
            pub fn new(word: &str) -> Option<Self> {
                let test: fn(&str) -> bool = $test;
                test(word).then(|| Self(word.to_owned()))
            }
            /// The word.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

plain_word!(
    /// The name of a systemd unit: letters, digits and `:_.@-`, not beginning with a dash, at most 255 bytes (systemd's
    /// own limit; its backslash escapes are left out on purpose).
    UnitName,
    |w| {
        !w.is_empty()
            && w.len() <= 255
            && !w.starts_with('-')
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.@-".contains(&b))
    }
);
plain_word!(
    /// An absolute path on the server, of at most 4096 bytes, without control characters, quotes, backslashes and `..`.
    RemotePath,
    |w| {
        w.starts_with('/')
            && w.len() <= 4096
            && !w.chars().any(|c| c.is_control() || c == '\'' || c == '\\')
            && !w.split('/').any(|part| part == "..")
    }
);
plain_word!(
    /// A network interface (Linux allows 15 bytes).
    Interface,
    |w| {
        !w.is_empty()
            && w.len() <= 15
            && !w.starts_with(['-', '.'])
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.@-".contains(&b))
    }
);

/// What changes something on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteVerb<'a> {
    /// `systemctl start`.
    Start(&'a UnitName),
    /// `systemctl stop`: waits until the unit is down.
    Stop(&'a UnitName),
    /// SIGKILL to all processes of the unit.
    Kill(&'a UnitName),
    /// `systemctl reset-failed`.
    ResetFailed(&'a UnitName),
    /// `systemctl poweroff`.
    PowerOff,
}

/// The command line of a verb. `privilege` (as `["sudo", "-n"]`) comes before `systemctl`.
///
/// `--no-ask-password`: without a terminal there is nobody to ask, and a refusal must come at once.
#[must_use]
pub fn verb(privilege: &[String], verb: RemoteVerb<'_>) -> CommandLine {
    let words: &[&str] = match verb {
        RemoteVerb::Start(unit) => &["start", unit.as_str()],
        RemoteVerb::Stop(unit) => &["stop", unit.as_str()],
        RemoteVerb::Kill(unit) => &["kill", "--signal=KILL", unit.as_str()],
        RemoteVerb::ResetFailed(unit) => &["reset-failed", unit.as_str()],
        RemoteVerb::PowerOff => &["poweroff"],
    };
    let systemctl = ["systemctl", "--no-ask-password"];
    let privilege = privilege.iter().map(String::as_str);
    CommandLine::plain(privilege.chain(systemctl).chain(words.iter().copied()))
}

/// What is left in the control groups of the units. They are looked for where systemd puts them: at most two slices deep, in
/// the unified hierarchy (`cgroup.events` counts the groups below, too) or the old one.
const LEFT: &str = r#"for unit do
  echo @@left
  for root in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    for file in "$root"/*.slice/"$unit"/cgroup.events "$root"/*.slice/*.slice/"$unit"/cgroup.events "$root"/*.slice/"$unit"/cgroup.procs "$root"/*.slice/*.slice/"$unit"/cgroup.procs; do
      [ -r "$file" ] && read -r line <"$file" && echo "$line"
    done
  done 2>/dev/null
done
echo @@end"#;

/// Boot id, the state of `units`, and what their control groups still hold, in one exchange. Read by
/// [`super::systemd::parse_units`].
///
/// Times come out in UTC, which every systemd prints alike.
#[must_use]
pub fn units(units: &[UnitName]) -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C TZ=UTC
echo @@boot
read -r boot </proc/sys/kernel/random/boot_id && echo "$boot"
echo @@units
systemctl --no-pager show -p Names,LoadState,ActiveState,SubState,Job,MainPID,InvocationID,NRestarts,Result,ExecMainStatus,ActiveEnterTimestamp,TimeoutStopUSec,FragmentPath,UnitFileState -- "$@"
echo "@@status $?"
"#;
    CommandLine::script(&[SCRIPT, LEFT].concat(), units.iter().map(UnitName::as_str))
}

/// Boot id, which of `units` are down, and what their control groups still hold: a fraction of the work of [`units`], for the
/// moment after a stop, when somebody waits for just that. Read by [`super::systemd::parse_down`].
///
/// `systemctl show` has systemd collect some three hundred properties of each unit, whatever is asked for.
#[must_use]
pub fn units_down(units: &[UnitName]) -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C
echo @@boot
read -r boot </proc/sys/kernel/random/boot_id && echo "$boot"
echo @@list
busctl --json=short call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager ListUnitsByNames as $# "$@"
"#;
    CommandLine::script(&[SCRIPT, LEFT].concat(), units.iter().map(UnitName::as_str))
}

/// Why a unit is not up: its result, its files, and the last lines of its journal. And whether `port` listens on the server.
#[must_use]
pub fn post_mortem(unit: &UnitName, port: u16) -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C TZ=UTC
echo @@unit
systemctl --no-pager show -p ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,NRestarts,FragmentPath,DropInPaths,NeedDaemonReload -- "$1"
echo @@listens
command -v ss >/dev/null 2>&1 && timeout -k 1 3 ss -Hltn "sport = :$2" && echo @@asked
echo @@journal
timeout -k 1 5 journalctl --no-pager -q -n 10 -o cat -u "$1" 2>&1
echo @@end"#;
    CommandLine::script(SCRIPT, [unit.as_str(), &port.to_string()])
}

/// Who is logged in, and what inhibits a shutdown. Read by [`super::people::parse`].
///
/// Properties rather than tables: the columns of `loginctl` and `systemd-inhibit` differ between versions and may be
/// empty or hold spaces.
#[must_use]
pub fn people() -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C
echo "@@own $XDG_SESSION_ID"
ids=$(timeout -k 1 3 loginctl list-sessions --no-legend 2>/dev/null)
if [ $? = 0 ]; then
  echo @@sessions
  ids=$(echo "$ids" | while read -r id rest; do echo "$id"; done)
  [ -z "$ids" ] || timeout -k 1 3 loginctl show-session -p Id -p Name -p TTY -p Remote -p RemoteHost -p Class -p State -p Display $ids
  echo "@@status $?"
else
  echo @@who
  timeout -k 1 3 who
  echo "@@status $?"
fi
echo @@inhibitors
timeout -k 1 3 busctl --json=short call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager ListInhibitors
echo "@@status $?"
echo @@end"#;
    CommandLine::script(SCRIPT, [])
}

/// GPU memory and compute processes by `nvidia-smi`, or by the amdgpu driver's files in /sys. Read by [`super::gpu::parse`].
///
/// Free-text fields come last, as they may hold commas. Each tool call has its limit on the server as well: one that
/// hangs must not outlive the question by much.
#[must_use]
pub fn gpu(limit: Duration) -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C PATH="$PATH:/usr/local/bin:/usr/bin:/usr/lib/wsl/lib"
owner() {
  echo "@@process $1 $(stat -c %U /proc/"$1" 2>/dev/null)"
  cat /proc/"$1"/cgroup 2>/dev/null
}
if command -v nvidia-smi >/dev/null 2>&1; then
  echo @@nvidia
  timeout -k 1 "$1" nvidia-smi --query-gpu=index,memory.used,memory.total --format=csv,noheader,nounits
  status=$?
  echo "@@status $status"
  if [ $status = 0 ]; then
    apps=$(timeout -k 1 "$1" nvidia-smi --query-compute-apps=pid,used_gpu_memory,process_name --format=csv,noheader,nounits)
    status=$?
    echo @@apps
    echo "$apps"
    echo "@@status $status"
    echo "$apps" | while IFS=, read -r pid rest; do
      case $pid in ""|*[!0-9]*) ;; *) owner "$pid" ;; esac
    done
  fi
else
  echo @@amd
  for card in /sys/class/drm/card*/device; do
    [ -r "$card/mem_info_vram_used" ] && read -r used <"$card/mem_info_vram_used" && read -r total <"$card/mem_info_vram_total" && echo "$used $total"
  done
  echo "@@status 0"
  echo @@kfd
  for queue in /sys/class/kfd/kfd/proc/*; do
    [ -d "$queue" ] || continue
    sum=0
    for file in "$queue"/vram_*; do
      [ -r "$file" ] && read -r bytes <"$file" && sum=$((sum + bytes))
    done
    pid=${queue##*/}
    [ "$sum" -gt 0 ] && read -r name <"/proc/$pid/comm" && echo "$pid $sum $name"
  done 2>/dev/null
  echo "@@status 0"
  for queue in /sys/class/kfd/kfd/proc/*; do
    [ -d "$queue" ] && owner "${queue##*/}"
  done
fi
echo @@end"#;
    CommandLine::script(SCRIPT, [limit.as_secs().max(1).to_string().as_str()])
}

/// The Wake-on setting of `interface`, or of the one that carries this very session. Read by [`super::ethtool::parse`].
///
/// Reading it needs root: first as we are, then by `sudo -n`, which contrib's sudoers file allows.
#[must_use]
pub fn wake_on(interface: Option<&Interface>) -> CommandLine {
    const SCRIPT: &str = r#"export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
nic=$1
if [ -z "$nic" ]; then
  set -- $SSH_CONNECTION
  nic=$(ip -o addr show to "$3" 2>/dev/null | { read -r number name rest; echo "${name%%@*}"; })
fi
echo "@@nic $nic"
command -v ethtool >/dev/null 2>&1 || { echo @@none; exit 0; }
text=$(timeout -k 1 3 ethtool "$nic" 2>&1)
case $text in
  *Wake-on:*) ;;
  *) more=$(timeout -k 1 3 sudo -n ethtool "$nic" 2>/dev/null) && text=$more ;;
esac
echo "$text"
echo @@end"#;
    CommandLine::script(SCRIPT, [interface.map_or("", Interface::as_str)])
}

/// What is asked of a slot folder. Answers are read by [`super::slot_folder`].
#[derive(Clone, Copy, Debug)]
pub enum FileQuestion<'a> {
    /// Free space, some file elsewhere, command lines, and the size, age and first bytes of files.
    Survey {
        /// The folder's free space, too.
        free: bool,
        /// A file elsewhere.
        model: Option<&'a RemotePath>,
        /// The command lines of the first processes of this unit, too.
        unit: Option<&'a UnitName>,
        /// Files of the folder.
        files: &'a [FileName],
    },
    /// Size, age and first bytes of the first file; if it has so many bytes and begins as a slot file, it is flushed to the disk
    /// and gets the second name.
    Keep(&'a FileName, &'a FileName, u64),
    /// SHA-256 of a file, read within so long.
    Digest(&'a FileName, Duration),
    /// Some of the 32-bit words of a file.
    Words {
        /// The file.
        name: &'a FileName,
        /// So many before them are left out.
        from: usize,
        /// So many are read.
        count: usize,
    },
    /// The mode of the folder, and the plain files whose names end so.
    List(&'a str),
    /// Remove.
    Remove(&'a [FileName]),
}

/// The command line of a question about the files of `folder`.
///
/// What `stat` and `od` complain of stands in the place of their answer, so that it is known of which file it is.
#[must_use]
pub fn files(folder: &RemotePath, question: FileQuestion<'_>) -> CommandLine {
    use FileQuestion as Q;
    // Command lines at most as long as LaunchFlags reads them, and so few that the answer stays within its bound. They are
    // read from the control group, which costs next to nothing, while `systemctl show` collects hundreds of properties.
    const SURVEY: &str = r#"export LC_ALL=C
dir=$1 free=$2 model=$3 unit=$4
shift 4
echo @@free
[ -z "$free" ] || df -Pk -- "$dir" 2>&1
echo @@model
[ -z "$model" ] || stat -L -c "%s %Y" -- "$model" 2>&1
left=3
[ -z "$unit" ] || for root in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
  for group in "$root"/*.slice/"$unit"/cgroup.procs "$root"/*.slice/*.slice/"$unit"/cgroup.procs; do
    [ -r "$group" ] && while [ $left -gt 0 ] && read -r pid; do
      left=$((left - 1))
      echo @@process
      od -An -v -tx1 -N 4096 "/proc/$pid/cmdline"
    done <"$group"
  done
done 2>/dev/null
for f do
  echo @@file
  stat -L -c "%s %Y" -- "$dir/$f" 2>&1 && od -An -v -tx1 -N 24 -- "$dir/$f" 2>&1
done
echo @@end"#;
    // "qsgg" in hexadecimal digits. The name is new; -f only keeps mv from asking. Neither llama.cpp nor mv flushes anything:
    // without sync a power cut within the next half minute leaves a missing, empty or short file of the final name. Not every
    // file system flushes folders; there the new name may be lost, and the file with it, but no older one.
    const KEEP: &str = r#"export LC_ALL=C
cd -- "$1" || exit
echo @@file
found=$(stat -L -c "%s %Y" -- "$2" 2>&1) && head=$(od -An -v -tx1 -N 24 -- "$2" 2>&1)
echo "$found"
echo "$head"
case "${found%% *} $head" in
  "$4  71 73 67 67"*)
    sync -d -- "$2" && mv -f -- "$2" "$3" || exit
    sync -- . 2>/dev/null ;;
esac
echo @@end"#;
    const DIGEST: &str = r#"export LC_ALL=C
cd -- "$1" || exit
echo @@digest
timeout -k 1 "$3" sha256sum -- "$2" 2>&1
echo "@@status $?"
echo @@end"#;
    // In the byte order of the machine, which is that of llama.cpp there.
    const WORDS: &str = r#"export LC_ALL=C
cd -- "$1" || exit
echo @@words
od -An -v -tx4 -j "$3" -N "$4" -- "$2" || exit
echo @@end"#;
    const LIST: &str = r#"export LC_ALL=C
cd -- "$1" || exit
echo "@@mode $(stat -L -c %a .)"
for f in *"$2"; do [ -f "$f" ] && echo "$f"; done | head -n 512
echo @@end"#;
    const REMOVE: &str = r#"export LC_ALL=C
cd -- "$1" || exit
shift
rm -f -- "$@""#;
    let folder = folder.as_str();
    match question {
        Q::Survey { free, model, unit, files } => {
            let (free, model) = (if free { "free" } else { "" }, model.map_or("", RemotePath::as_str));
            let fixed = [folder, free, model, unit.map_or("", UnitName::as_str)];
            CommandLine::script(SURVEY, fixed.into_iter().chain(files.iter().map(FileName::as_str)))
        }
        Q::Keep(from, to, bytes) => {
            CommandLine::script(KEEP, [folder, from.as_str(), to.as_str(), &bytes.to_string()]).unfed()
        }
        // It takes its time: no shell that is kept ready for quick questions is spent on it.
        Q::Digest(name, within) => {
            let seconds = within.as_secs().max(1).to_string();
            CommandLine::script(DIGEST, [folder, name.as_str(), &seconds]).unfed()
        }
        Q::Words { name, from, count } => {
            let [from, count] = [from, count].map(|words| (4 * words).to_string());
            CommandLine::script(WORDS, [folder, name.as_str(), &from, &count])
        }
        Q::List(suffix) => CommandLine::script(LIST, [folder, suffix]),
        Q::Remove(names) => {
            CommandLine::script(REMOVE, [folder].into_iter().chain(names.iter().map(FileName::as_str))).unfed()
        }
    }
}

/// Splits an answer at its marks: what stands before the first is noise of a login script and is dropped.
pub(super) fn parts(answer: &str) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, usize, usize)> = Vec::new();
    let mut at = 0;
    for line in answer.split_inclusive('\n') {
        let end = at + line.len();
        if let Some(mark) = line.strip_prefix(MARK) {
            if let Some(last) = found.last_mut() {
                last.2 = at;
            }
            found.push((mark.trim(), end, answer.len()));
        }
        at = end;
    }
    found.into_iter().map(|(mark, from, to)| (mark, &answer[from..to])).collect()
}

/// Text of the server made fit to show: no control characters, at most `most` characters, one line.
#[must_use]
pub fn plain_text(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut blank = false;
    let mut length = 0;
    for c in text.trim().chars() {
        if c.is_control() || c.is_whitespace() || c == '\u{fffd}' {
            blank = length > 0;
            continue;
        }
        if length >= most {
            out.push('…');
            break;
        }
        if std::mem::take(&mut blank) {
            out.push(' ');
            length += 1;
        }
        out.push(c);
        length += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitName {
        UnitName::new(name).expect("a plain unit name")
    }

    #[test]
    fn verbs_are_plain_commands_that_a_sudoers_file_can_name() {
        let (none, sudo) = ([], ["sudo".to_owned(), "-n".to_owned()]);
        let vllm = unit("vllm.service");
        for (privilege, what, line) in [
            (&none[..], RemoteVerb::Start(&vllm), "env LC_ALL=C systemctl --no-ask-password start vllm.service"),
            (&sudo[..], RemoteVerb::Stop(&vllm), "env LC_ALL=C sudo -n systemctl --no-ask-password stop vllm.service"),
            (
                &none[..],
                RemoteVerb::Kill(&vllm),
                "env LC_ALL=C systemctl --no-ask-password kill --signal=KILL vllm.service",
            ),
            (
                &none[..],
                RemoteVerb::ResetFailed(&vllm),
                "env LC_ALL=C systemctl --no-ask-password reset-failed vllm.service",
            ),
            (&sudo[..], RemoteVerb::PowerOff, "env LC_ALL=C sudo -n systemctl --no-ask-password poweroff"),
        ] {
            assert_eq!(verb(privilege, what).as_str(), line);
        }
    }

    #[test]
    fn no_word_reaches_the_shell_as_anything_but_a_word() {
        for bad in ["", "-H evil", "--host=evil", "a b", "a;b", "$(a)", "a\nb", "a'b", "a\\x2d", "ä"] {
            assert!(UnitName::new(bad).is_none(), "{bad:?}");
            assert!(Interface::new(bad).is_none(), "{bad:?}");
        }
        for bad in ["", "relative", "/a/../b", "/a'b", "/a\nb", "/a\\b"] {
            assert!(RemotePath::new(bad).is_none(), "{bad:?}");
        }
        let path = RemotePath::new("/mnt/my models/$(x)").expect("quoted, so harmless");
        let line = files(&path, FileQuestion::List(".part"));
        assert!(line.as_str().ends_with(" '/mnt/my models/$(x)' .part"), "{}", line.as_str());
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn every_script_survives_single_quotes_and_is_posix() {
        let path = RemotePath::new("/a").expect("a path");
        let name = FileName::new("a").expect("a name");
        let lines = [
            units(&[unit("a.service"), unit("b@1.service")]),
            units_down(&[unit("a.service"), unit("b@1.service")]),
            post_mortem(&unit("a.service"), 8080),
            people(),
            gpu(Duration::from_secs(3)),
            wake_on(None),
            files(
                &path,
                FileQuestion::Survey { free: true, model: Some(&path), unit: Some(&unit("a.service")), files: &[] },
            ),
            files(&path, FileQuestion::Keep(&name, &name, 36)),
            files(&path, FileQuestion::Digest(&name, Duration::from_mins(1))),
            files(&path, FileQuestion::Words { name: &name, from: 6, count: 9 }),
            files(&path, FileQuestion::List(".part")),
            files(&path, FileQuestion::Remove(&[])),
        ];
        for line in lines {
            let inner = line.as_str().strip_prefix("exec sh -c '").expect("a script");
            let script = inner.split_once('\'').expect("its end").0;
            for script in [Some(script), line.fed()].into_iter().flatten() {
                let checked = std::process::Command::new("sh").args(["-n", "-c", script]).status();
                assert!(checked.expect("there is an sh").success(), "{script}");
            }
        }
    }

    #[test]
    fn an_answer_is_read_between_its_marks_whatever_a_login_script_says_first() {
        let answer = "Welcome!\n@@boot\nabc\n@@status 0\n@@end\n";
        assert_eq!(parts(answer), [("boot", "abc\n"), ("status 0", ""), ("end", "")]);
        assert_eq!(parts("nothing"), []);
    }

    #[test]
    fn shown_text_is_one_bounded_line_without_control_characters() {
        assert_eq!(plain_text(" a\x1b[31m\tb\r\n\nc ", 80), "a [31m b c");
        assert_eq!(plain_text("abcdef", 3), "abc…");
    }
}
