"""The program under test: its configuration, its daemon as a process, and its client."""

import copy
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from .machine import BROADCAST, OUTER, RUN, SLOTS, GpuServer, until

BIN = os.environ.get("WECHSLER_BIN", "wechsler")


def configuration(gpu: GpuServer, state: pathlib.Path) -> dict:
    """What a user would write for the lab's server, with the waits of a fast machine."""
    return {
        "daemon": {"socket": str(state / "wechsler.sock"), "state_dir": str(state / "state")},
        "gpu_server": {
            "name": "gpu", "host": gpu.address,
            "ssh": {"user": "wechsler", "port": 22, "key": str(RUN / "wechsler_key"), "host_keys": [gpu.host_key],
                    "connect_timeout": "2s", "command_timeout": "3s", "keepalive": "5s"},
            "wake": {"method": "magic-packet", "mac": gpu.mac, "targets": [f"{BROADCAST}:9"], "source": OUTER,
                     "resend_every": "500ms", "wake_check": "warn"},
            "timeouts": {"boot": "40s", "power_off": "30s", "silence": "3s"},
        },
        "backends": {
            "llama-cpp": {"kind": "llama-cpp", "unit": "llama-cpp.service", "url": gpu.LLAMA, "default": True,
                          "start_timeout": "20s", "stop_timeout": "20s", "drain_timeout": "10s", "restore": "auto",
                          "expected_start": "1s",
                          "slots": {"dir": SLOTS, "name": "localbot", "save_timeout": "10s", "restore_timeout": "10s",
                                    "keep": 3}},
            "vllm": {"kind": "vllm", "unit": "vllm.service", "url": gpu.VLLM, "start_timeout": "20s", "expected_start": "1s",
                     "stop_timeout": "20s", "drain_timeout": "10s"},
        },
        "probe": {"rest": "1s", "busy": "30ms", "http_timeout": "2s", "misses": 3},
    }


def toml(value: dict, path: tuple[str, ...] = ()) -> str:
    plain = {k: v for k, v in value.items() if not isinstance(v, dict)}
    text = f"[{'.'.join(path)}]\n" if path and plain else ""
    text += "".join(f"{key} = {json.dumps(item)}\n" for key, item in plain.items())
    return text + "".join(toml(item, (*path, key)) for key, item in value.items() if isinstance(item, dict))


def merged(base: dict, change: dict) -> dict:
    result = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def codes(document: object) -> set[str]:
    """Every `code` anywhere in a JSON document."""
    if isinstance(document, dict):
        found = {document["code"]} if isinstance(document.get("code"), str) else set()
        return found.union(*(codes(item) for item in document.values()))
    if isinstance(document, list):
        return set().union(*(codes(item) for item in document)) if document else set()
    return set()


class Result:
    """One run of the client."""

    def __init__(self, done: subprocess.CompletedProcess, seconds: float) -> None:
        self.code, self.out, self.err, self.seconds = done.returncode, done.stdout, done.stderr, seconds

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.code} after {self.seconds:.2f} s\nstdout: {self.out}\nstderr: {self.err}"


class Wechsler:
    """`wechsler daemon` as a process, with its own state folder, and `wechsler …` as its client."""

    def __init__(self, gpu: GpuServer, folder: pathlib.Path, **change: dict) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.toml"
        self.log = folder / "daemon.log"
        self.socket = folder / "wechsler.sock"
        self.process: subprocess.Popen | None = None
        self.journal_is_true = True
        self.configure(merged(configuration(gpu, folder), change))

    def configure(self, values: dict) -> None:
        self.values = values
        self.config.write_text(toml(values))

    def change(self, **change: dict) -> None:
        self.configure(merged(self.values, change))

    def start(self, ready: bool = True) -> "Wechsler":
        environment = {**os.environ, "WECHSLER_LOG": os.environ.get("WECHSLER_LOG", "wechsler=debug")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([BIN, "--config", self.config, "daemon"], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, env=environment)
        if ready:
            until("the daemon answers", lambda: self._answers(), 10)
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended ({self.process.returncode}):\n{self.log_tail()}"
        return self.run("status", "--json").code == 0

    def log_tail(self, lines: int = 80) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    def keep_journal(self, folder: pathlib.Path, name: str) -> None:
        """Copies what it has written down of its steps: `cargo test --test replay` can do them again."""
        if not self.journal_is_true:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for part in (self.folder / "state").glob("steps*.jsonl"):
            shutil.copy(part, folder / f"{name.replace('/', '-')}.{part.name}")

    def command(self, *words: str) -> list[str]:
        return [BIN, "--config", str(self.config), "--socket", str(self.socket), *words]

    def run(self, *words: str, timeout: float = 90) -> Result:
        began = time.monotonic()
        done = subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout)
        return Result(done, time.monotonic() - began)

    def do(self, *words: str, code: int = 0, timeout: float = 90) -> Result:
        """Run a verb with --json and expect its exit code."""
        result = self.run(*words, "--json", timeout=timeout)
        assert result.code == code, f"wechsler {' '.join(words)}: expected exit {code}\n{result}"
        return result

    def begin(self, *words: str) -> subprocess.Popen:
        """Run a verb without waiting for it."""
        return subprocess.Popen(self.command(*words, "--json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def status(self) -> dict:
        return self.do("status").json

    def wait(self, what: str, check, seconds: float = 20) -> dict:
        """The first status for which `check` is true."""
        last = {}

        def look():
            nonlocal last
            last = self.status()
            return check(last)

        try:
            until(what, look, seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast status: {json.dumps(last, indent=1)}") from None
        return last

    def wait_state(self, state: str, seconds: float = 20) -> dict:
        return self.wait(f"state {state}", lambda status: status.get("state") == state, seconds)
