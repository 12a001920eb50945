"""Interleaved A/B of whole switches between two real llama.cpp servers, each with 4,500 tokens to save and restore.

A: `wechsler switch NAME --no-drain`, the wall time of the whole client process, over SSH and HTTP from the management
host (--no-drain because waiting for clients, and confirming that there are none, is no overhead of the supervisor).
B: server/switch_by_hand.py on the server itself, which saves, stops, starts, polls /health every millisecond and
restores; the time it measures itself. Prints median and 95th percentile of both and of the difference, and the medians of
their steps: of A by the daemon's log, from one line to the next.
"""

import argparse
import datetime
import json
import pathlib
import re
import shutil
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rig import conversation, daemon, machine  # noqa: E402

NAMES = ("llama-cpp", "vllm")  # the second is a llama.cpp too; it has borrowed the unit that the rights name
UNIT = dict(zip(NAMES, machine.UNITS))
PORT = {"llama-cpp": "8080", "vllm": "8000"}
URL = {"llama-cpp": machine.GpuServer.LLAMA, "vllm": machine.GpuServer.VLLM}


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


STEPS = ("saved", "stopped", "proven", "started", "healthy", "restored")


def steps_of_the_log(log: str, skip: int) -> list[dict[str, float]]:
    """Milliseconds of each step of each switch that the daemon logged, but the first `skip`."""
    marks = {"SaveSlots": "saved", "StopUnit": "stopped", "StartUnit": "started", "RestoreSlots": "restored"}
    switches: list[dict[str, float]] = []
    last = 0.0
    for line in log.splitlines():
        stamp, _, rest = line.partition(" ")
        what = re.search(r"(command request=|order succeeded |order verb=).*?(?:what|command)=(\w+)", rest)
        if not what:
            continue
        at = datetime.datetime.fromisoformat(stamp).timestamp() * 1000
        if what[1] == "command request=":
            switches.append({})
            last = at
        elif switches and what[1] == "order succeeded " and what[2] in marks:
            switches[-1][marks[what[2]]], last = at - last, at
        elif switches and what[1] == "order verb=" and what[2] in ("StartUnit", "RestoreSlots"):
            step = "proven" if what[2] == "StartUnit" else "healthy"
            switches[-1][step], last = at - last, at
    return switches[skip:]


def steps_of_the_script(all_marks: list[dict[str, float]]) -> list[dict[str, float]]:
    """The same of what the script says, which counts from its beginning."""
    found = []
    for marks in all_marks:
        times = [0.0, *marks.values()]
        found.append({step: after - before for step, before, after in zip(marks, times, times[1:])})
    return found


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--switches", type=int, default=48, help="of each kind")
    options.add_argument("--json", action="store_true", help="the single times as JSON at the end")
    options.add_argument("--log", help="copy the daemon's log to this file")
    options = options.parse_args()

    gpu = machine.GpuServer()
    gpu.prepare()
    gpu.fresh()
    wechsler = None
    try:
        for name in NAMES:
            machine.write(gpu.root / f"etc/systemd/system/{UNIT[name]}.d/zz-bench.conf", f"""[Unit]
StartLimitBurst=10000
[Service]
User=llama
Group=llama-slots
Environment=PYTHONPATH=/opt/lab/site PYTHONUNBUFFERED=1
ExecStart=
ExecStart=/usr/bin/python3 /opt/lab/bin/llama_server.py --model /opt/lab/models/small.gguf --host 0.0.0.0 \\
    --port {PORT[name]} --ctx-size 16384 --parallel 1 --slot-save-path {machine.SLOTS}/
""")
        gpu.ssh("sync; systemctl daemon-reload")
        slots = {"dir": machine.SLOTS, "save_timeout": "10s", "restore_timeout": "10s", "keep": 2}
        wechsler = daemon.Wechsler(gpu, machine.RUN / "bench", backends={
            "llama-cpp": {"restore": "offer"},
            "vllm": {"kind": "llama-cpp", "restore": "offer", "slots": {**slots, "name": "other"}}})
        wechsler.start()
        wechsler.do("start", "llama-cpp")
        talks = {name: conversation.Conversation(URL[name], about=name) for name in NAMES}

        def by_daemon(old: str, new: str) -> float:
            wechsler.wait(old, lambda s: s["state"] == old and not s["operation"], 10)
            return wechsler.do("switch", new, "--no-drain").seconds * 1000

        marks = []

        def by_hand(old: str, new: str) -> float:
            out = gpu.ssh(f"/usr/bin/python3 /opt/lab/bin/switch_by_hand.py {UNIT[old]} {PORT[old]} {UNIT[new]} "
                          f"{PORT[new]} by-hand").stdout
            marks.append(json.loads(out))
            return marks[-1]["restored"]

        times = {by_daemon: [], by_hand: []}
        current, other = NAMES
        talks[current].say()
        for warm in (by_daemon, by_daemon, by_hand, by_hand):  # both have saved both before it counts
            warm(current, other)
            current, other = other, current
            talks[current].say()
        misses = {by_daemon: 0, by_hand: 0}
        order = [by_daemon, by_hand, by_hand, by_daemon]
        for number in range(options.switches * 2):
            method = order[number % 4]
            times[method].append(method(current, other))
            current, other = other, current
            misses[method] += talks[current].say().reused < 0.9
            if number % 8 == 7:
                print(f"{number + 1} of {options.switches * 2}", file=sys.stderr, flush=True)
        a, b = times[by_daemon], times[by_hand]
        print(f"switches of each kind: {len(a)}; conversations lost: {misses[by_daemon]} by wechsler, "
              f"{misses[by_hand]} by the script")
        if misses[by_daemon]:
            print(wechsler.log_tail(400), file=sys.stderr)
        print(f"{'':24}{'p50':>9}{'p95':>9}{'mean':>9}  ms")
        for label, values in (("wechsler switch", a), ("script on the server", b)):
            print(f"{label:24}{percentile(values, .5):9.1f}{percentile(values, .95):9.1f}{statistics.mean(values):9.1f}")
        print(f"{'difference':24}{percentile(a, .5) - percentile(b, .5):9.1f}"
              f"{percentile(a, .95) - percentile(b, .95):9.1f}{statistics.mean(a) - statistics.mean(b):9.1f}")
        print(f"{'':24}" + "".join(f"{step:>9}" for step in STEPS) + "  ms, medians")
        log = steps_of_the_log(wechsler.log.read_text(), skip=3)
        for label, found in (("wechsler switch", log), ("script on the server", steps_of_the_script(marks[2:]))):
            medians = (statistics.median([s[step] for s in found if step in s] or [0]) for step in STEPS)
            print(f"{label:24}" + "".join(f"{median:9.1f}" for median in medians))
        if options.json:
            print(json.dumps({"wechsler": a, "script": b}))
    except AssertionError:
        if wechsler is not None:
            print(wechsler.log_tail(100), file=sys.stderr)
        raise
    finally:
        if wechsler is not None:
            wechsler.stop()
            if options.log:
                shutil.copy(wechsler.log, options.log)
        gpu.close()


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"({time.monotonic() - began:.0f} s in all)")
