"""Machines of the lab: an overlay over this system's own root, booted by systemd-nspawn on a link of their own."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from .wiretap import Tap

RUN = pathlib.Path("/run/wlab")
HERE = pathlib.Path(__file__).resolve().parent.parent
CONTRIB = HERE.parent.parent / "contrib"
OUTER = "10.77.0.1"
BROADCAST = "10.77.0.255"
UNITS = ("llama-cpp.service", "vllm.service")
SLOTS = "/mnt/models/cache/slots"


def sh(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{command}: rc {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def until(what: str, check, seconds: float, every: float = 0.03):
    """The first true answer of `check`; an assertion naming `what` when the time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds} s: {what} (last answer: {answer!r})"
        time.sleep(every)


def lay_the_link() -> None:
    """One bridge is the local network; this side of it is the management host, 10.77.0.1."""
    if subprocess.run(["ip", "link", "show", "lan"], capture_output=True).returncode == 0:
        return
    sh("ip", "link", "add", "lan", "type", "bridge")
    sh("ip", "address", "add", f"{OUTER}/24", "broadcast", BROADCAST, "dev", "lan")
    sh("ip", "link", "set", "lan", "up")


def key_pair(path: pathlib.Path) -> str:
    if not path.exists():
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path)
    return path.with_suffix(".pub").read_text().strip()


class Machine:
    """A machine: its network namespace, its mainboard, its disk. `prepare` lays the golden disk once."""

    def __init__(self, name: str, address: str, mac: str) -> None:
        self.name, self.address, self.mac = name, address, mac
        self.base = RUN / name
        self.golden = self.base / "golden"
        self.root = self.base / "root"
        self.state = self.base / name  # its last part names the control group
        self.netns = f"/run/netns/{name}"
        self.board: subprocess.Popen | None = None
        self.binds = [(HERE / "server", "/opt/lab/bin"), (self._site(), "/opt/lab/site")]
        self.wants: list[str] = []
        for folder in (self.golden, self.root, self.state):
            folder.mkdir(parents=True, exist_ok=True)
        lay_the_link()
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", f"port-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "set", f"port-{name}", "master", "lan", "up")
        for command in (("link", "set", "lo", "up"), ("link", "set", "eth0", "address", mac),
                        ("link", "set", "eth0", "up")):
            sh("nsenter", f"--net={self.netns}", "ip", *command)
        self.tap = Tap(f"port-{name}")

    @staticmethod
    def _site() -> pathlib.Path:
        return next(pathlib.Path(os.environ["LAB_VENV"]).glob("lib/python3*/site-packages"))

    # --- the disk -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Write the golden disk: a layer over this system's root that every fresh disk of this machine starts from."""
        home = self.golden / "root"
        home.mkdir(mode=0o700)
        os.setxattr(home, "trusted.overlay.opaque", b"y")  # an empty home, whatever this system's root has in its own
        with self._mounted(self.golden, "/"):
            self._install(self.root)

    @contextlib.contextmanager
    def _mounted(self, upper: pathlib.Path, lower: str):
        self._mount(upper, lower)
        try:
            yield
        finally:
            sh("umount", self.root)

    def _mount(self, upper: pathlib.Path, lower: str) -> None:
        work = upper.with_name(upper.name + ".work")
        for folder in (upper, work):
            folder.mkdir(exist_ok=True)
        sh("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", self.root)

    def _install(self, root: pathlib.Path) -> None:
        self.public_key = key_pair(RUN / "root_key")
        write(root / "etc/fstab", "")
        write(root / "etc/machine-id", "")
        write(root / "etc/hostname", self.name + "\n")
        write(root / "etc/hosts", f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        write(root / "root/.ssh/authorized_keys", self.public_key + "\n", 0o600).parent.chmod(0o700)
        shadow = root / "etc/shadow"
        lines = [":".join(["root", "*"] + line.split(":")[2:]) if line.startswith("root:") else line
                 for line in shadow.read_text().splitlines()]
        write(shadow, "\n".join(lines) + "\n", 0o640)
        # Only what the machine needs: none of the outer system's own services, timers or mounts.
        write(root / "etc/systemd/system/lab.target", f"""[Unit]
Requires=basic.target
Wants=dbus.service ssh.service lab-sshd.service systemd-logind.service systemd-user-sessions.service polkit.service
After=basic.target
Wants=lab-wanted.target {' '.join(self.wants)}
AllowIsolate=yes
""")
        # `systemctl enable` of the backends means multi-user.target; here that is a target of its own.
        write(root / "etc/systemd/system/lab-wanted.target", "[Unit]\nDescription=Enabled backends\n")
        shutil.rmtree(root / "etc/systemd/system/multi-user.target.wants", ignore_errors=True)
        # The tests' own way in: another port, and no PAM, so that it is no login as far as the machine knows.
        write(root / "etc/systemd/system/lab-sshd.service", """[Unit]
Description=The tests' own SSH server
DefaultDependencies=no
After=systemd-tmpfiles-setup.service
[Service]
ExecStartPre=/bin/mkdir -p /run/sshd
ExecStart=/usr/sbin/sshd -D -f /etc/ssh/lab_sshd_config
""")
        write(root / "etc/ssh/lab_sshd_config", """Port 2222
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
PermitRootLogin prohibit-password
PidFile none
Subsystem sftp internal-sftp
MaxSessions 100
""")
        for kind in ("rsa", "ecdsa", "ed25519"):
            for suffix in ("", ".pub"):
                (root / f"etc/ssh/ssh_host_{kind}_key{suffix}").unlink(missing_ok=True)
        sh("ssh-keygen", "-A", "-f", root)
        self.host_key = " ".join((root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
        write(root / "etc/ssh/sshd_config.d/lab.conf", "PasswordAuthentication no\n")
        write(root / "etc/systemd/journald.conf.d/lab.conf",
              "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nForwardToConsole=no\n")
        # Time-outs of a machine that shall not keep a test waiting.
        write(root / "etc/systemd/system.conf.d/lab.conf", "[Manager]\nDefaultTimeoutStopSec=5s\n")
        write(root / "etc/sysusers.d/.keep", "")

    def fresh(self, power: bool = True, **settings: object) -> None:
        """A new disk from the golden one, the settings of the mainboard, and the machine on or off."""
        self.cut()
        self.link(True)
        if os.path.ismount(self.root):
            sh("umount", self.root)
        for old in self.base.glob("disk*"):
            shutil.rmtree(old)
        self._mount(self.base / "disk", f"{self.golden}:/")
        self.adjust(**settings)
        self.tap.seen.clear()
        (self.state / "console").write_text("")
        if self.board is None:
            self._start_board()
        self.mark = len(self.events(whole=True))
        if power:
            self.press()
            self.wait_up()

    # --- power and link -----------------------------------------------------------------------------------------

    def _start_board(self) -> None:
        (self.state / "events.jsonl").write_text("")
        binds = [f"--bind-ro={outer}:{inner}" for outer, inner in self.binds]
        self.board = subprocess.Popen(
            ["nsenter", f"--net={self.netns}", sys.executable, HERE / "rig/mainboard.py", self.state, self.mac,
             f"{self.address}/24", "--",
             "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", self.root, f"--machine={self.name}",
             f"--network-namespace-path={self.netns}", "--boot", "--console=pipe", "--kill-signal=SIGRTMIN+3",
             "--resolv-conf=off", "--timezone=off", *binds, "--", "--unit=lab.target"],
            stdin=subprocess.DEVNULL)
        until("the mainboard listens", lambda: self.events(whole=True), 10)

    def adjust(self, **settings: object) -> None:
        write(self.state / "settings.json", json.dumps(settings))

    def events(self, kind: str | None = None, whole: bool = False) -> list[dict]:
        """What the mainboard saw and did since the last `fresh`."""
        path = self.state / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines][0 if whole else self.mark:]
        return [event for event in events if kind in (None, event["event"])]

    def packets(self) -> list[dict]:
        return self.events("packet")

    def press(self) -> None:
        self.board.send_signal(signal.SIGUSR1)

    @property
    def powered(self) -> bool:
        """Whether it has power, told by the last thing that happened on the mainboard."""
        last = [event["event"] for event in self.events(whole=True) if event["event"] in ("boot", "off")]
        return bool(last) and last[-1] == "boot"

    def cut(self) -> None:
        """The plug is pulled."""
        if self.board is not None and self.powered:
            self.board.send_signal(signal.SIGUSR2)
            self.wait_off(10)
        self._hang_up()

    def wait_off(self, seconds: float = 20) -> None:
        until(f"{self.name} is off", lambda: not self.powered, seconds)
        self._hang_up()

    def wait_up(self, seconds: float = 30) -> None:
        """It answers the tests' own SSH and has ended its boot."""
        running = "systemctl is-system-running | grep -qE 'running|degraded'"
        until(f"{self.name} has booted", lambda: self.ssh(running, check=False).returncode == 0, seconds, 0.05)

    def link(self, up: bool) -> None:
        """Plug the network cable in or out."""
        sh("ip", "link", "set", f"port-{self.name}", "up" if up else "down")

    def close(self) -> None:
        if self.board is not None:
            self.cut()
            self.board.terminate()
            self.board.wait(10)
        if os.path.ismount(self.root):
            sh("umount", self.root)

    # --- the tests' own eyes and hands --------------------------------------------------------------------------

    def _ssh_options(self) -> list[str]:
        return ["-F", "none", "-p", "2222", "-i", str(RUN / "root_key"), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=2",
                "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3", "-o", "ControlMaster=auto",
                "-o", f"ControlPath={self.base}/ssh", "-o", "ControlPersist=60"]

    def _hang_up(self) -> None:
        if (self.base / "ssh").exists():
            subprocess.run(["ssh", *self._ssh_options(), "-O", "exit", f"root@{self.address}"], capture_output=True)
            (self.base / "ssh").unlink(missing_ok=True)

    def ssh(self, command: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess:
        # Output goes to files: a control master that stays would hold a pipe open.
        with open(self.base / "ssh.out", "w+") as out, open(self.base / "ssh.err", "w+") as err:
            done = subprocess.run(["ssh", *self._ssh_options(), f"root@{self.address}", command],
                                  stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=timeout)
            out.seek(0), err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        if check:
            assert done.returncode == 0, f"{command}: rc {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def boot_id(self) -> str:
        return self.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def unit(self, name: str) -> dict[str, str]:
        names = "ActiveState,SubState,Result,MainPID,InvocationID,NRestarts,LoadState,Job,ExecMainStatus"
        text = self.ssh(f"systemctl show {name} -p {names}").stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def active(self) -> set[str]:
        """Those of the two units that are neither inactive nor failed."""
        text = self.ssh("systemctl show -p Id,ActiveState " + " ".join(UNITS)).stdout
        blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
        return {b["Id"] for b in blocks if b and b["ActiveState"] not in ("inactive", "failed")}

    def journal(self, unit: str = "", lines: int = 60) -> str:
        return self.ssh(f"journalctl --no-pager -o short-precise -n {lines} {'-u ' + unit if unit else ''}",
                        check=False).stdout


class GpuServer(Machine):
    """The GPU server: both backends, an ordinary user for the supervisor, and the least-privilege rule of contrib/."""

    LLAMA = "http://10.77.0.2:8080"
    VLLM = "http://10.77.0.2:8000"

    def __init__(self) -> None:
        super().__init__("gpu", "10.77.0.2", "52:54:00:00:00:01")
        self.binds.append((pathlib.Path(os.environ["LAB_MODELS"]), "/opt/lab/models"))
        if real := os.environ.get("LAB_VLLM"):
            self.binds.append((pathlib.Path(real).resolve().parent.parent, "/opt/lab/vllm"))

    def _install(self, root: pathlib.Path) -> None:
        super()._install(root)
        units = root / "etc/systemd/system"
        for unit in UNITS:
            shutil.copy(CONTRIB / unit, units / unit)
        write(units / "llama-cpp.service.d/lab.conf", f"""[Service]
Environment=PYTHONPATH=/opt/lab/site PYTHONUNBUFFERED=1
EnvironmentFile=-/etc/lab/llama.env
ExecStart=
ExecStart=/usr/bin/python3 /opt/lab/bin/llama_server.py --model /opt/lab/models/small.gguf --host 0.0.0.0 --port 8080 \\
    --ctx-size 16384 --parallel 1 --slot-save-path {SLOTS}/
RestartSec=1
TimeoutStopSec=6
""")
        serve = ("/opt/lab/vllm/bin/vllm serve" if os.environ.get("LAB_VLLM")
                 else "/usr/bin/python3 /opt/lab/bin/vllm_stand_in.py serve")
        write(units / "vllm.service.d/lab.conf", f"""[Service]
Environment=PYTHONUNBUFFERED=1
EnvironmentFile=-/etc/lab/vllm.env
ExecStart=
ExecStart={serve} {os.environ.get('LAB_VLLM_MODEL', '/mnt/models/hf/model')} --host 0.0.0.0 --port 8000
RestartSec=1
TimeoutStopSec=6
""")
        (units / "lab-wanted.target.wants").mkdir(exist_ok=True)
        for unit in UNITS:  # in the lab "multi-user" is lab-wanted.target
            text = (units / unit).read_text().replace("WantedBy=multi-user.target", "WantedBy=lab-wanted.target")
            write(units / unit, text)
        rules = root / "etc/polkit-1/rules.d"
        rules.mkdir(parents=True, exist_ok=True)
        shutil.copy(CONTRIB / "49-wechsler.rules", rules)
        (rules / "49-wechsler.rules").chmod(0o644)
        shutil.copy(CONTRIB / "wechsler-gpu.sysusers.conf", root / "etc/sysusers.d/wechsler-gpu.conf")
        write(root / "etc/tmpfiles.d/wechsler-gpu.conf", (CONTRIB / "wechsler-gpu.tmpfiles.conf").read_text())
        sh("systemd-sysusers", f"--root={root}")
        sh("systemd-tmpfiles", f"--root={root}", "--create", "wechsler-gpu.conf")
        home = root / "var/lib/wechsler"
        public = key_pair(RUN / "wechsler_key")
        keys = write(home / ".ssh/authorized_keys", f"restrict {public}\n", 0o600)
        owner = home.stat()
        os.chown(keys, owner.st_uid, owner.st_gid)

    def configure(self, backend: str, **values: object) -> None:
        """The environment of a backend's program (LAB_LLAMA_…, LAB_VLLM_…): how it loads, stops and fails."""
        name = {"llama-cpp": "llama", "vllm": "vllm"}[backend]
        text = "".join(f"LAB_{name.upper()}_{key.upper()}={value}\\n" for key, value in values.items())
        self.ssh(f"mkdir -p /etc/lab && printf '{text}' > /etc/lab/{name}.env")

    def begin(self, unit: str) -> None:
        """Start a backend by the tests' own hand, and wait until it is healthy."""
        self.ssh(f"systemctl start {unit}")
        self.wait_healthy(unit)

    def wait_healthy(self, unit: str, seconds: float = 30) -> None:
        until(f"{unit} is healthy", lambda: self.health(unit) == 200, seconds)

    def health(self, unit: str) -> int:
        """Status code of /health; 0 when the port is closed."""
        base = self.LLAMA if unit.startswith("llama") else self.VLLM
        try:
            with urllib.request.urlopen(base + "/health", timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def port_open(self, port: int) -> bool:
        with socket.socket() as wire:
            wire.settimeout(1)
            return wire.connect_ex((self.address, port)) == 0

    def slot_files(self) -> dict[str, int]:
        text = self.ssh(f"find {SLOTS} -type f -printf '%P %s\\n'").stdout
        return {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in text.splitlines()}

    def restores(self) -> int:
        """How many restores of slots were sent over the wire to llama.cpp since `fresh`."""
        return len(self.tap.of("action=restore"))

    def log_of(self, unit: str) -> str:
        return self.journal(unit, 2000)


class ControlHost(Machine):
    """A second machine on the same link, on which the daemon runs as a service from contrib/."""

    def __init__(self) -> None:
        super().__init__("control", "10.77.0.3", "52:54:00:00:00:03")
        self.binds.append((pathlib.Path(os.environ["WECHSLER_BIN"]), "/opt/lab/wechsler"))

    def _install(self, root: pathlib.Path) -> None:
        super()._install(root)
        shutil.copy(CONTRIB / "wechsler.service", root / "etc/systemd/system")
        shutil.copy(CONTRIB / "wechsler.sysusers.conf", root / "etc/sysusers.d/wechsler.conf")
        sh("systemd-sysusers", f"--root={root}")
        link = root / "usr/local/bin/wechsler"
        link.unlink(missing_ok=True)
        link.symlink_to("/opt/lab/wechsler")
        (root / "etc/wechsler").mkdir(exist_ok=True)
        key = root / "etc/wechsler/id_ed25519"
        shutil.copy(RUN / "wechsler_key", key)
        key.chmod(0o600)


def write(path: pathlib.Path, text: str, mode: int = 0o644) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # never through a link of the lower layer
    path.write_text(text)
    path.chmod(mode)
    return path
