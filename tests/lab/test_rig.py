"""The lab itself: does the machine that the other tests trust do what a real one does?"""

import socket
import subprocess
import time

from rig import conversation, machine

MAGIC = b"\xff" * 6 + bytes.fromhex("525400000001") * 16


def _send(data: bytes, target: str = machine.BROADCAST) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        wire.sendto(data, (target, 9))


def _as_wechsler(gpu, command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["ssh", "-F", "none", "-i", machine.RUN / "wechsler_key", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
         "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", f"wechsler@{gpu.address}", command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)


def a_magic_packet_boots_the_machine_and_a_power_off_ends_it(off):
    assert not off.port_open(22)
    _send(b"hello")
    _send(MAGIC.replace(b"\x52\x54", b"\x52\x55"))
    _send(MAGIC)
    off.wait_up()
    first = off.boot_id()
    assert [packet["what"] for packet in off.packets()] == ["not-magic", "wrong-mac", "accepted"]
    off.ssh("systemctl poweroff", check=False)
    off.wait_off()
    _send(MAGIC)
    off.wait_up()
    assert off.boot_id() != first


def the_first_packets_can_be_lost_and_the_boot_be_slow(off):
    off.adjust(drop=2, delay=0.5)
    for _ in range(3):
        _send(MAGIC)
        time.sleep(0.05)
    machine.until("the boot begins", lambda: off.events("boot"), 5)
    packets = off.packets()
    assert [packet["what"] for packet in packets] == ["dropped", "dropped", "accepted"]
    assert off.events("boot")[0]["at"] - packets[-1]["at"] >= 0.5
    off.wait_up()


def a_reboot_comes_back_by_itself(gpu):
    first = gpu.boot_id()
    gpu.ssh("systemctl reboot", check=False)
    machine.until("the second boot", lambda: len(gpu.events("boot")) == 2, 20)
    gpu._hang_up()
    gpu.wait_up()
    assert gpu.boot_id() != first


def real_llama_cpp_saves_and_restores_a_conversation_over_a_power_cycle(gpu):
    gpu.begin("llama-cpp.service")
    talk = conversation.Conversation(gpu.LLAMA)
    assert talk.say().prompt > 4000
    assert talk.say("go on ").reused > 0.9
    saved = conversation.post(gpu.LLAMA + "/slots/0?action=save", {"filename": "mine.bin"})
    assert gpu.slot_files() == {"mine.bin": saved["n_written"]}
    assert "2770 llama llama-slots" in gpu.ssh(f"stat -c '%a %U %G' {machine.SLOTS}").stdout
    assert "640 llama llama-slots" in gpu.ssh(f"stat -c '%a %U %G' {machine.SLOTS}/mine.bin").stdout
    gpu.ssh("systemctl poweroff", check=False)
    gpu.wait_off()
    gpu.press()
    gpu.wait_up()
    gpu.begin("llama-cpp.service")
    conversation.post(gpu.LLAMA + "/slots/0?action=restore", {"filename": "mine.bin"})
    assert talk.say("and on ").reused > 0.9


def a_truncated_slot_file_makes_llama_cpp_abort(gpu):
    gpu.begin("llama-cpp.service")
    conversation.Conversation(gpu.LLAMA).say()
    conversation.post(gpu.LLAMA + "/slots/0?action=save", {"filename": "mine.bin"})
    before = gpu.unit("llama-cpp.service")["MainPID"]
    gpu.ssh(f"truncate -s -100 {machine.SLOTS}/mine.bin")
    try:
        conversation.post(gpu.LLAMA + "/slots/0?action=restore", {"filename": "mine.bin"})
        raise AssertionError("a truncated file was taken")
    except OSError:
        pass
    machine.until("systemd restarts it", lambda: gpu.unit("llama-cpp.service")["MainPID"] not in (before, "0"), 10)
    assert gpu.unit("llama-cpp.service")["NRestarts"] == "1"


def the_stand_in_loads_and_ends_as_vllm_does(gpu):
    gpu.ssh("systemctl start vllm.service")
    assert gpu.unit("vllm.service")["ActiveState"] == "active"
    assert gpu.health("vllm.service") == 0
    gpu.wait_healthy("vllm.service")
    stream = conversation.Stream(gpu.address, 8000, 20)
    stream.join(10)
    assert stream.finished
    gpu.ssh("pkill -9 VLLM::EngineCor")
    machine.until("the API says that its engine is dead", lambda: gpu.health("vllm.service") == 503, 3)
    machine.until("systemd restarts it after exit 0", lambda: gpu.unit("vllm.service")["NRestarts"] == "1", 10)
    gpu.wait_healthy("vllm.service")
    gpu.ssh("systemctl stop vllm.service")
    assert gpu.unit("vllm.service")["ActiveState"] == "inactive"


def the_supervisors_user_may_do_what_it_needs_and_nothing_else(gpu):
    machine.until("logins are open", lambda: _as_wechsler(gpu, "true").returncode == 0, 10)
    for command in ("systemctl start llama-cpp.service", "systemctl stop llama-cpp.service",
                    "systemctl start vllm.service", "systemctl kill --signal=SIGKILL vllm.service",
                    "systemctl stop vllm.service", "systemctl start llama-cpp.service",
                    "systemctl reset-failed llama-cpp.service", "systemctl stop llama-cpp.service",
                    "journalctl -q -u llama-cpp.service -n 1 | grep -q .", f"touch {machine.SLOTS}/x",
                    f"mv {machine.SLOTS}/x {machine.SLOTS}/y", f"rm {machine.SLOTS}/y"):
        done = _as_wechsler(gpu, command)
        assert done.returncode == 0, (command, done)
    for command in ("systemctl start systemd-networkd.service", "systemctl restart ssh.service",
                    "systemctl enable vllm.service", "systemctl mask vllm.service", "systemctl daemon-reload",
                    "systemctl reboot", "systemctl set-property llama-cpp.service CPUWeight=1",
                    "systemctl restart llama-cpp.service", "cat /etc/shadow", "sudo -n true"):
        done = _as_wechsler(gpu, command)
        assert done.returncode != 0, (command, done)
    # Somebody else is logged in as well: power-off is a right all the same.
    with subprocess.Popen(["ssh", "-F", "none", "-i", machine.RUN / "root_key", "-o", "StrictHostKeyChecking=no",
                           "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-tt", f"root@{gpu.address}",
                           "sleep 60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as somebody:
        machine.until("a login", lambda: "root" in _as_wechsler(gpu, "loginctl list-sessions").stdout, 10)
        _as_wechsler(gpu, "systemctl poweroff")
        gpu.wait_off()
        somebody.terminate()


def pulling_the_plug_and_the_cable_are_noticed_outside(gpu):
    gpu.begin("llama-cpp.service")
    gpu.link(False)
    assert not gpu.port_open(8080)
    gpu.link(True)
    machine.until("it answers again", lambda: gpu.port_open(8080), 5)
    began = time.monotonic()
    gpu.cut()
    assert time.monotonic() - began < 3
    assert not gpu.port_open(22)
