"""The daemon at rest, with the default pace of looking, a running llama.cpp and an open SSH session: resident memory and
processor time from /proc, and the wall time of `wechsler status` from fork to exit."""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rig import daemon, machine  # noqa: E402


def processor_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> tuple[float, float]:
    lines = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def status_ms(wechsler: daemon.Wechsler, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run(wechsler.command("status"), stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=int, default=120)
    options = options.parse_args()
    os.environ.setdefault("WECHSLER_LOG", "info")
    gpu = machine.GpuServer()
    gpu.prepare()
    gpu.fresh()
    wechsler = daemon.Wechsler(gpu, machine.RUN / "bench", probe=None, gpu_server={"timeouts": None})
    try:
        wechsler.start()
        wechsler.do("start", "llama-cpp")
        for what in ("a backend running", "the server off"):
            if what == "the server off":
                wechsler.do("shutdown", "--power-off", timeout=180)
            time.sleep(15)
            pid = wechsler.process.pid
            began, used = time.monotonic(), processor_seconds(pid)
            time.sleep(options.seconds)
            share = (processor_seconds(pid) - used) / (time.monotonic() - began) * 100
            rss, anonymous = resident_mib(pid)
            print(f"at rest, {what}: {rss:.1f} MiB resident ({anonymous:.1f} MiB its own), {share:.3f} % of a core")
        times = status_ms(wechsler, 200)
        print(f"wechsler status, whole process, 200 times: p50 {statistics.median(times):.2f} ms, "
              f"p95 {times[189]:.2f} ms")
        print(f"binary: {os.path.getsize(daemon.BIN) / 1e6:.1f} MB")
    finally:
        wechsler.stop()
        gpu.close()


if __name__ == "__main__":
    main()
