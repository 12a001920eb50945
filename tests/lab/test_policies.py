"""Idle rules, holds, and what forbids a power-off; seen from outside."""

import contextlib
import subprocess
import time

from rig import conversation, daemon, machine

LLAMA, VLLM = machine.UNITS


def a_daemon_without_policies_and_commands_only_looks(gpu, wechsler):
    gpu.begin(LLAMA)
    before = gpu.unit(LLAMA)
    wechsler.wait_state("llama-cpp")
    time.sleep(5)
    assert gpu.unit(LLAMA) == before
    assert gpu.packets() == [] and gpu.slot_files() == {}
    assert gpu.tap.of("POST ") == []


def a_daemon_sends_no_packet_to_a_server_that_sleeps(off, wechsler):
    wechsler.wait_state("gpu-offline")
    time.sleep(4)
    assert off.packets() == []
    assert wechsler.status()["health"] == "ok"


def an_idle_backend_is_stopped_with_its_slot_saved(gpu, new_daemon):
    wechsler = new_daemon(idle={"stop_after": "4s", "power_off_after": "never"})
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    used = time.monotonic()
    status = wechsler.wait("a next action", lambda s: s["next_action"], 8)
    assert status["next_action"]["what"] == "stop"
    machine.until("the backend is stopped", lambda: gpu.active() == set(), 20)
    assert time.monotonic() - used > 3.5
    assert gpu.powered
    assert wechsler.wait_state("gpu-idle")["saved_slots"] == ["localbot"]
    wechsler.do("start", "llama-cpp")
    assert talk.say().reused > 0.9


def a_request_that_lasts_longer_than_the_idle_time_is_no_idleness(gpu, new_daemon):
    wechsler = new_daemon(idle={"stop_after": "3s"})
    wechsler.do("start", "vllm")
    stream = conversation.Stream(gpu.address, 8000, 350)
    stream.join(20)
    assert stream.finished and stream.error is None
    assert gpu.active() == {VLLM}
    machine.until("the backend is stopped", lambda: gpu.active() == set(), 20)
    assert time.monotonic() - stream.ended_at > 2.5


def an_idle_server_is_powered_off(gpu, new_daemon):
    wechsler = new_daemon(idle={"stop_after": "2s", "power_off_after": "3s"})
    wechsler.do("start", "llama-cpp")
    gpu.wait_off(30)
    wechsler.wait_state("gpu-offline", 10)
    time.sleep(2)
    assert gpu.packets() == [] and not gpu.powered


def a_hold_on_the_backend_keeps_it_from_the_idle_rule(gpu, new_daemon):
    wechsler = new_daemon(idle={"stop_after": "2s"})
    wechsler.do("start", "vllm")
    wechsler.do("hold", "vllm", "--for", "1h", "--reason", "evaluation")
    time.sleep(6)
    assert gpu.active() == {VLLM}
    holds = wechsler.status()["holds"]
    assert holds[0]["what"] == "vllm" and holds[0]["reason"] == "evaluation"
    wechsler.do("release", str(holds[0]["id"]))
    machine.until("the backend is stopped", lambda: gpu.active() == set(), 20)


def a_hold_keeps_the_server_awake_until_it_ends(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    wechsler.do("hold", "awake", "--for", "4s", "--reason", "backup")
    result = wechsler.do("shutdown", "--power-off", code=4)
    assert "held" in daemon.codes(result.json) or "blocked" in daemon.codes(result.json), result
    assert gpu.powered
    wechsler.wait("the hold has ended", lambda s: s["holds"] == [], 10)
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)


def a_hold_survives_the_death_of_the_daemon(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    wechsler.do("hold", "awake", "--for", "1h", "--reason", "backup")
    wechsler.kill()
    wechsler.start()
    assert [hold["reason"] for hold in wechsler.status()["holds"]] == ["backup"]
    wechsler.wait_state("gpu-idle")
    wechsler.do("shutdown", "--power-off", code=4)
    assert gpu.powered


def a_hold_keeps_the_server_asleep_and_the_gpu_free(off, wechsler):
    wechsler.wait_state("gpu-offline")
    hold = wechsler.do("hold", "off", "--for", "1h", "--reason", "thunderstorm")
    wechsler.do("start", code=4)
    time.sleep(1)
    assert off.packets() == []
    assert hold.code == 0


def somebody_elses_login_blocks_the_power_off(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    with _login(gpu):
        machine.until("the login", lambda: "root" in gpu.ssh("loginctl list-sessions").stdout, 10)
        _not_powered_off(gpu, wechsler, "blocked")
        blockers = wechsler.status()["blockers"]
        assert any(blocker["kind"] == "login" and "root" in blocker["what"] for blocker in blockers), blockers
    machine.until("the logout", lambda: "root" not in gpu.ssh("loginctl list-sessions").stdout, 10)
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)


def an_inhibitor_blocks_the_power_off(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    gpu.ssh("systemd-run --unit=upgrade systemd-inhibit --what=shutdown --mode=block --who=apt --why=upgrade sleep 100")
    _not_powered_off(gpu, wechsler, "blocked")
    blockers = wechsler.status()["blockers"]
    assert any(blocker["kind"] == "inhibitor" and "apt" in blocker["what"] for blocker in blockers), blockers
    gpu.ssh("systemctl stop upgrade.service")
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)


def a_card_that_is_not_armed_forbids_the_power_off(gpu, new_daemon):
    _ethtool(gpu, "d")
    wechsler = new_daemon(gpu_server={"wake": {"wake_check": "warn", "interface": "eth0"}})
    wechsler.wait_state("gpu-idle")
    _not_powered_off(gpu, wechsler, "wake_unarmed")
    _ethtool(gpu, "g")
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)


def a_card_of_which_nothing_is_known_forbids_it_only_where_required(gpu, new_daemon):
    wechsler = new_daemon(gpu_server={"wake": {"wake_check": "require", "interface": "eth0"}})
    wechsler.wait_state("gpu-idle")
    _not_powered_off(gpu, wechsler, "wake_unarmed")


def a_strangers_process_on_the_gpu_is_shown_and_blocks_the_power_off(gpu, wechsler):
    gpu.ssh("systemd-run --unit=render sleep 1000")
    pid = gpu.unit("render.service")["MainPID"]
    _nvidia_smi(gpu, used=8000, process=(pid, 7000, "/usr/bin/blender"))
    status = wechsler.wait("the stranger is seen", lambda s: any(b["kind"] == "gpu_process" for b in s["blockers"]), 70)
    assert any("blender" in blocker["what"] and pid in blocker["what"] for blocker in status["blockers"]), status
    assert status["gpu_memory"]["gpu0"] == {"used_mib": 8000, "total_mib": 12288}
    _not_powered_off(gpu, wechsler, "blocked")
    assert gpu.unit("render.service")["ActiveState"] == "active"


def memory_that_comes_back_late_is_waited_for(gpu, new_daemon):
    """A stop is proven only when the GPU's memory is given back; the other backend starts after that."""
    _nvidia_smi(gpu, used=1)
    wechsler = new_daemon(gpu_server={"gpu": {"baseline_mib": 500}})
    wechsler.do("start", "llama-cpp")
    _nvidia_smi(gpu, used=9000)
    switching = wechsler.begin("switch", "vllm")
    machine.until("llama.cpp is stopped", lambda: LLAMA not in gpu.active(), 15)
    time.sleep(1.5)
    assert gpu.active() == set(), "vllm was started while the memory was still held"
    _nvidia_smi(gpu, used=1)
    out, words = switching.communicate(timeout=30)
    assert switching.returncode == 0, (out, words)
    assert gpu.active() == {VLLM}


def a_hanging_nvidia_smi_blocks_nothing(gpu, wechsler):
    gpu.ssh("printf '%s\\n' '#!/bin/sh' 'sleep 1000' > /usr/local/bin/nvidia-smi; chmod 755 /usr/local/bin/nvidia-smi")
    wechsler.do("start", "llama-cpp")
    result = wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM} and result.seconds < 40


def _not_powered_off(gpu, wechsler, code: str) -> None:
    result = wechsler.run("shutdown", "--power-off", "--json")
    assert result.code in (1, 4) and code in daemon.codes(result.json), result
    assert gpu.powered and gpu.ssh("systemctl is-system-running", check=False).stdout.strip() == "running"


@contextlib.contextmanager
def _login(gpu):
    """Somebody is logged in at a terminal of the server."""
    with subprocess.Popen(
            ["ssh", "-F", "none", "-i", machine.RUN / "root_key", "-o", "StrictHostKeyChecking=no",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-tt", f"root@{gpu.address}", "sleep 100"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as somebody:
        yield
        somebody.terminate()


def _ethtool(gpu, setting: str) -> None:
    gpu.ssh(f"""printf '%s\\n' '#!/bin/sh' 'printf "Settings for eth0:\\n\\tSupports Wake-on: pumbg\\n\\tWake-on: {setting}\\n"' \
        > /usr/sbin/ethtool; chmod 755 /usr/sbin/ethtool""")


def _nvidia_smi(gpu, used: int, process: tuple[str, int, str] | None = None) -> None:
    """A program that answers as nvidia-smi does, for one card of 12 GiB."""
    app = {"pid": process[0], "used_gpu_memory": process[1], "process_name": process[2]} if process else None
    program = f"""#!/usr/bin/python3
import sys
gpu = {{"index": 0, "uuid": "GPU-1", "name": "Lab GPU", "memory.used": {used}, "memory.total": 12288}}
app = {app!r}
for word in sys.argv[1:]:
    what, _, fields = word.partition("=")
    row = {{"--query-gpu": gpu, "--query-compute-apps": app}}.get(what)
    if row:
        print(", ".join(str(row.get(field, "[N/A]")) for field in fields.split(",")))
"""
    machine.write(gpu.root / "usr/local/bin/nvidia-smi.new", program, 0o755)
    gpu.ssh("mv /usr/local/bin/nvidia-smi.new /usr/local/bin/nvidia-smi")
