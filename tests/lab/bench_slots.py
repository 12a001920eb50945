"""Large slots of a real llama.cpp on a real disk (ext4 in a file of this system's disk): times and sizes, medians.

save, restore: what llama.cpp says of its own part, by hand. save all, restore all: `wechsler slots save|restore`, the wall
time of the whole client process; so what is more than save is the look before, the check, the flush to the disk and the
note. flush: `sync` of a file just written. digest: sha256sum on the server, as the daemon has it taken in calm.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rig import conversation, daemon, disks, machine, slots  # noqa: E402

COLUMNS = ("save", "save all", "flush", "digest", "restore", "restore all")
#: More tokens in a slot, a request at a time.
STEP = 2000


def seconds(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def by_hand(gpu: machine.GpuServer, action: str) -> dict:
    return conversation.post(f"{gpu.LLAMA}/slots/0?action={action}", {"filename": "by-hand"})


def measure(gpu: machine.GpuServer, wechsler: daemon.Wechsler, talk: conversation.Conversation) -> dict[str, float]:
    """One round; the slot is full before and after it."""
    found = {}
    file = f"{machine.SLOTS}/by-hand"
    found["save"] = by_hand(gpu, "save")["timings"]["save_ms"]
    on_server = gpu.ssh(f"t() {{ date +%s%N; }}; a=$(t); sync -d {file}; b=$(t); sha256sum {file} >/dev/null; "
                        f"c=$(t); echo $(((b - a) / 1000)) $(((c - b) / 1000))").stdout.split()
    found["flush"], found["digest"] = (int(microseconds) / 1000 for microseconds in on_server)
    found["save all"] = wechsler.do("slots", "save").seconds * 1000
    wechsler.do("restart", "--no-drain")
    found["restore"] = by_hand(gpu, "restore")["timings"]["restore_ms"]
    wechsler.do("restart", "--no-drain")
    found["restore all"] = wechsler.do("slots", "restore").seconds * 1000
    answer = talk.say("x", n_predict=1)
    assert answer.reused > 0.9, answer
    gpu.ssh(f"rm {file}")
    return found


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options = options.parse_args()
    gpu = machine.GpuServer()
    gpu.prepare()
    gpu.fresh(power=False)
    disk = disks.SlotDisk(gpu, 2000, pathlib.Path(os.environ["LAB_VENV"]).parent)
    wechsler = None
    try:
        gpu.press()
        gpu.wait_up()
        slots.serve(gpu, ctx=12288)
        times = {"save_timeout": "60s", "restore_timeout": "60s", "keep": 1}
        wechsler = daemon.Wechsler(gpu, machine.RUN / "bench", backends={"llama-cpp": {"restore": "never", "slots": times}})
        wechsler.start()
        wechsler.do("start", "llama-cpp")
        talk = slots.talk_to(gpu, slots.TOKENS)
        talk.say(n_predict=1)
        print(f"{'MB':>6}{'tokens':>8}" + "".join(f"{column:>13}" for column in COLUMNS))
        for tokens in (slots.TOKENS, 4 * slots.TOKENS):
            while len(talk.text) < tokens:
                talk.say("once more " * (min(STEP, tokens - len(talk.text)) // 10 + 1), n_predict=1)
            rounds = [measure(gpu, wechsler, talk) for _ in range(options.rounds)]
            saved = by_hand(gpu, "save")
            size, held = saved["n_written"] / 1e6, saved["n_saved"]
            medians = [statistics.median(found[column] for found in rounds) for column in COLUMNS]
            print(f"{size:6.0f}{held:8}" + "".join(f"{value:13.1f}" for value in medians) + "  ms")
            print(f"{1000 * size / held:6.1f}    1000" + "".join(f"{1000 * value / held:13.1f}" for value in medians)
                  + "  ms per 1000 tokens", flush=True)
    except AssertionError:
        if wechsler is not None:
            print(wechsler.log_tail(100), file=sys.stderr)
        raise
    finally:
        if wechsler is not None:
            wechsler.stop()
        gpu.cut()
        disk.close()
        gpu.close()


if __name__ == "__main__":
    main()
