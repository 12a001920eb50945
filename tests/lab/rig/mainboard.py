#!/usr/bin/env python3
"""The part of a machine that has power while it is off: waits for a magic packet and boots.

Runs inside the machine's network namespace. Like a real network card it looks for the pattern of a magic packet in
every frame on the wire, whatever its port, and like a real machine that is off it has no address: nobody answers, not
even a refusal. `mainboard.py STATE MAC ADDRESS -- COMMAND…`: STATE is a folder with `settings.json` (read at each packet: `drop` the first k packets after each power-off, `delay` seconds
before the boot, `deaf`), `events.jsonl` (written: everything seen and done, with the time) and `console` (output of
the machine). COMMAND boots the machine in the foreground. SIGUSR1 is the power button, SIGUSR2 cuts the power.
"""

import json
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import sys
import time

REBOOT = 133  # nspawn's exit code of a machine that wants to boot again
ANY_MAGIC = re.compile(rb"\xff{6}(.{6})\1{15}", re.DOTALL)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Mainboard:
    def __init__(self, state: pathlib.Path, mac: str, address: str, command: list[str]) -> None:
        self.state, self.address, self.command = state, address, command
        self.magic = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16
        self.machine: subprocess.Popen[bytes] | None = None
        self.boot_at: float | None = None
        self.seen_while_off = 0
        self.events = open(state / "events.jsonl", "a", buffering=1)

    def note(self, event: str, **more: object) -> None:
        self.events.write(json.dumps({"at": time.time(), "event": event, **more}) + "\n")

    def settings(self) -> dict:
        try:
            return json.loads((self.state / "settings.json").read_text())
        except (OSError, ValueError):
            return {}

    def frame(self, frame: bytes) -> None:
        """A frame on the wire: a magic packet of any kind, or something else that was sent to the discard port."""
        kind, data = frame[12:14], frame[14:]
        ip = kind == b"\x08\x00" and len(frame) > 38
        discard = ip and frame[23] == socket.IPPROTO_UDP and frame[36:38] == b"\0\x09"
        if discard or ANY_MAGIC.search(data):
            self.packet(data, socket.inet_ntoa(frame[26:30]) if ip else "")

    def network(self, up: bool) -> None:
        command = ["add", self.address, "broadcast", "+"] if up else ["flush"]
        subprocess.run(["ip", "address", *command, "dev", "eth0"], check=False, stdin=subprocess.DEVNULL)

    def packet(self, data: bytes, sender: str) -> None:
        settings = self.settings()
        if self.magic not in data:
            what = "wrong-mac" if ANY_MAGIC.search(data) else "not-magic"
        elif self.machine is not None:
            what = "running"
        elif settings.get("deaf"):
            what = "deaf"
        elif self.seen_while_off < settings.get("drop", 0):
            self.seen_while_off += 1
            what = "dropped"
        elif self.boot_at is not None:
            what = "booting"
        else:
            what = "accepted"
            self.boot_at = time.monotonic() + settings.get("delay", 0)
        self.note("packet", what=what, sender=sender, bytes=len(data))

    def boot(self) -> None:
        self.boot_at = None
        if self.machine is not None:
            return
        self.network(True)
        with open(self.state / "console", "ab") as console:
            self.machine = subprocess.Popen(
                self.command + self.settings().get("arguments", []),
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, preexec_fn=self.own_control_group)
        self.note("boot", pid=self.machine.pid)

    def own_control_group(self) -> None:
        """Two machines in one control group would share their folders in it."""
        os.setsid()
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, name, path = line.split(":", 2)
            if name == "name=systemd":
                tops = ["/sys/fs/cgroup/systemd"]
            elif name == "":
                tops = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            else:
                continue
            for top in tops:
                if os.path.exists(f"{top}/cgroup.procs"):
                    group = pathlib.Path(top + path) / f"{os.environ['LAB_ID']}-{self.state.name}"
                    group.mkdir(exist_ok=True)
                    (group / "cgroup.procs").write_text("0")
                    break

    def cut(self) -> None:
        """Kill the machine's own first process: nspawn alone would leave it running."""
        self.boot_at = None
        if self.machine is None:
            return
        first = children(self.machine.pid)
        for pid in first or [self.machine.pid]:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        if self.machine is None:
            return
        code = self.machine.poll()
        if code is None:
            return
        self.machine = None
        self.seen_while_off = 0
        self.network(False)
        self.note("off", code=code)
        if code == REBOOT:
            self.boot()

    def run(self) -> None:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        wire.bind(("eth0", 0))
        self.network(False)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        selector = selectors.DefaultSelector()
        selector.register(wire, selectors.EVENT_READ)
        selector.register(ours, selectors.EVENT_READ)
        self.note("listening")
        while True:
            wait = None if self.boot_at is None else max(0.0, self.boot_at - time.monotonic())
            for key, _ in selector.select(wait):
                if key.fileobj is wire:
                    try:
                        frame, (_, _, direction, *_) = wire.recvfrom(65536)
                    except OSError:  # the cable was pulled
                        continue
                    if direction != socket.PACKET_OUTGOING:
                        self.frame(frame)
                    continue
                for number in ours.recv(64):
                    if number == signal.SIGUSR1:
                        self.note("button")
                        self.boot()
                    elif number == signal.SIGUSR2:
                        self.note("cut")
                        self.cut()
                    elif number == signal.SIGTERM:
                        self.cut()
                        if self.machine is not None:
                            self.machine.wait(10)
                        return
            self.reap()
            if self.boot_at is not None and time.monotonic() >= self.boot_at:
                self.boot()


if __name__ == "__main__":
    Mainboard(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[sys.argv.index("--") + 1:]).run()
