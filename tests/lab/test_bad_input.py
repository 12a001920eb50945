"""Bad configuration, bad peers, bad answers: a clear error that says what and where, and the daemon goes on."""

import json
import pathlib
import socket
import subprocess
import time

import pytest

from rig import daemon, machine

LLAMA, VLLM = machine.UNITS


def a_server_with_another_host_key_gets_nothing_from_us(gpu, new_daemon):
    other = machine.key_pair(machine.RUN / "other_key").rsplit(" ", 1)[0]
    wechsler = new_daemon(gpu_server={"ssh": {"host_keys": [other]}, "timeouts": {"boot": "5s"}})
    status = wechsler.wait("the key is refused", lambda s: s["reason"] == "wrong-host-key", 15)
    assert status["gpu_server"] == "off"
    result = wechsler.run("start", "--json")
    assert result.code in (1, 4) and "wrong_host_key" in daemon.codes(result.json), result
    assert gpu.active() == set()
    assert "Accepted publickey for wechsler" not in gpu.journal(lines=5000)


def a_second_pinned_key_is_allowed(gpu, new_daemon):
    other = machine.key_pair(machine.RUN / "other_key").rsplit(" ", 1)[0]
    wechsler = new_daemon(gpu_server={"ssh": {"host_keys": [other, gpu.host_key]}})
    wechsler.wait_state("gpu-idle")


def a_server_that_waits_in_its_initramfs_is_told_apart(gpu, new_daemon):
    """Before the disk is unlocked another SSH server answers, with another key that is known as such."""
    other = machine.key_pair(machine.RUN / "other_key").rsplit(" ", 1)[0]
    wechsler = new_daemon(gpu_server={"ssh": {"host_keys": [other], "preboot_host_keys": [gpu.host_key]},
                                      "timeouts": {"boot": "4s"}})
    wechsler.wait("it is seen", lambda s: s["reason"] == "preboot", 15)
    result = wechsler.run("start", "--json")
    assert result.code in (1, 4) and "preboot" in daemon.codes(result.json), result
    assert gpu.active() == set()


def a_refused_login_key_is_said(gpu, new_daemon):
    machine.key_pair(machine.RUN / "other_key")
    wechsler = new_daemon(gpu_server={"ssh": {"key": str(machine.RUN / "other_key")}, "timeouts": {"boot": "5s"}})
    status = wechsler.wait("the refusal is seen", lambda s: s["reason"] == "auth-refused", 15)
    result = wechsler.run("start", "--json")
    assert result.code in (1, 4) and "auth_refused" in daemon.codes(result.json), (status, result)


def a_wrong_mac_ends_in_a_wake_timeout(off, new_daemon):
    wechsler = new_daemon(gpu_server={"wake": {"mac": "52:54:00:00:00:99"}, "timeouts": {"boot": "4s"}})
    wechsler.wait_state("gpu-offline")
    result = wechsler.do("start", code=1)
    assert "wake_timeout" in daemon.codes(result.json), result
    assert {packet["what"] for packet in off.packets()} == {"wrong-mac"} and len(off.packets()) >= 3
    count = len(off.packets())
    time.sleep(1.2)
    assert len(off.packets()) == count


def a_missing_unit_is_named(gpu, new_daemon):
    wechsler = new_daemon(backends={"vllm": {"unit": "no-such.service"}})
    wechsler.wait_state("gpu-idle")
    result = wechsler.run("start", "vllm", "--json")
    assert result.code in (1, 4) and "unit_missing" in daemon.codes(result.json), result
    wechsler.do("start", "llama-cpp")
    assert gpu.active() == {LLAMA}


def missing_rights_are_named(gpu, wechsler):
    gpu.ssh("rm /etc/polkit-1/rules.d/49-wechsler.rules && systemctl restart polkit.service")
    wechsler.wait_state("gpu-idle")
    result = wechsler.do("start", "llama-cpp", code=1)
    assert "not_permitted" in daemon.codes(result.json) and "polkit" in result.out, result
    assert gpu.active() == set()
    wechsler.wait_state("gpu-idle")


def an_answer_that_is_not_json_is_not_taken_for_the_backend(gpu, new_daemon):
    wechsler = new_daemon(backends={"vllm": {"start_timeout": "5s"}})
    gpu.configure("vllm", fail="not-json")
    result = wechsler.do("start", "vllm", code=1)
    assert daemon.codes(result.json), result
    assert wechsler.status()["state"] != "vllm"


def an_answer_that_never_ends_is_bounded(gpu, new_daemon):
    wechsler = new_daemon(backends={"vllm": {"start_timeout": "6s"}})
    gpu.configure("vllm", fail="endless")
    wechsler.do("start", "vllm", code=1)
    memory = pathlib.Path(f"/proc/{wechsler.process.pid}/status").read_text()
    resident = int(next(line for line in memory.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident < 60_000, f"{resident} KiB resident"
    assert wechsler.run("status").code == 0
    wechsler.do("stop")
    assert gpu.active() == set()


def a_stranger_at_the_port_is_not_the_backend(gpu, wechsler):
    """llama.cpp's port answers as vLLM: the identity is looked at, not only the 200."""
    gpu.ssh("systemd-run --unit=stranger --setenv=LAB_VLLM_LOAD=0.1 /usr/bin/python3 /opt/lab/bin/vllm_stand_in.py "
            "serve m --port 8080")
    machine.until("the stranger answers", lambda: gpu.health(LLAMA) == 200, 5)
    time.sleep(2.5)
    status = wechsler.status()
    assert status["active_backend"] is None and status["state"] != "llama-cpp", status


@pytest.mark.parametrize("bad", [
    b"\x00\xff\xfe garbage\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 2_000_000 + b"\r\n\r\n",
    b"POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"comman",
    b"POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
    + b"[" * 3_000_000,
    b"POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20000\r\n\r\n"
    + b"[" * 20_000,
    b"POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n"
    b'{"command":"no-such"} ',
    b"DELETE /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
], ids=["garbage", "long-header", "half-sent", "huge-body", "deep-json", "unknown-verb", "unknown-path"])
def the_socket_survives_a_bad_client(gpu, wechsler, bad):
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(3)
        wire.connect(str(wechsler.socket))
        try:
            wire.sendall(bad)
            answer = wire.recv(65536)
        except OSError:
            answer = b""
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
        assert wechsler.run("status", "--json").code == 0
    assert wechsler.run("status", "--json").seconds < 0.5
    assert gpu.active() == set()


def many_idle_clients_do_not_lock_the_others_out(gpu, wechsler):
    wires = []
    for _ in range(200):
        wire = socket.socket(socket.AF_UNIX)
        wire.settimeout(0.2)
        try:
            wire.connect(str(wechsler.socket))
            wires.append(wire)
        except OSError:
            break
    time.sleep(0.2)
    for wire in wires:
        wire.close()
    assert machine.until("others are served again", lambda: wechsler.run("status", "--json").code == 0, 10)


def a_broken_configuration_is_refused_with_line_and_suggestion(gpu, new_daemon):
    wechsler = new_daemon(start=False)
    text = wechsler.config.read_text().replace("start_timeout", "start_timeuot")
    wechsler.config.write_text(text)
    for words in (("config", "check"), ("daemon",)):
        result = wechsler.run(*words)
        assert result.code == 2, result
        assert "start_timeuot" in result.err + result.out and "start_timeout" in result.err + result.out
        number = next(i for i, line in enumerate(text.splitlines(), 1) if "start_timeuot" in line)
        assert str(number) in result.err + result.out, result


def all_faults_of_a_configuration_are_told_at_once(gpu, new_daemon):
    wechsler = new_daemon(start=False, gpu_server={"wake": {"mac": "nonsense"}},
                          backends={"vllm": {"url": "not a url"}}, probe={"rest": "soon"})
    result = wechsler.run("config", "check")
    words = result.err + result.out
    assert result.code == 2 and "mac" in words and "url" in words and "rest" in words, result


def the_environment_overrides_the_file(gpu, new_daemon):
    wechsler = new_daemon(start=False, gpu_server={"host": "10.77.0.99"})
    import os
    os.environ["WECHSLER_GPU_SERVER__HOST"] = gpu.address
    try:
        wechsler.start()
    finally:
        del os.environ["WECHSLER_GPU_SERVER__HOST"]
    wechsler.wait_state("gpu-idle")


def an_unknown_verb_or_backend_is_wrong_use(gpu, wechsler):
    assert wechsler.run("strat").code == 2
    result = wechsler.run("start", "lama-cpp")
    assert result.code == 2 and "llama-cpp" in result.err + result.out, result


def without_a_daemon_the_client_says_so(gpu, new_daemon):
    wechsler = new_daemon(start=False)
    result = wechsler.run("status")
    assert result.code == 3 and str(wechsler.socket) in result.err, result
    result = wechsler.run("start", "--json")
    assert result.code == 3 and daemon.codes(result.json), result


def a_second_daemon_refuses_to_start_and_a_stale_socket_is_replaced(gpu, wechsler):
    second = subprocess.run([daemon.BIN, "--config", wechsler.config, "daemon"], capture_output=True, text=True, timeout=10)
    assert second.returncode != 0 and str(wechsler.socket) in second.stderr + second.stdout
    assert wechsler.run("status").code == 0
    wechsler.kill()
    assert wechsler.socket.exists()
    wechsler.start()


def damaged_files_of_its_own_are_said_and_lived_without(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    wechsler.do("hold", "awake", "--for", "1h", "--reason", "x")
    wechsler.do("start", "llama-cpp")
    wechsler.do("stop")
    wechsler.kill()
    files = [path for path in (wechsler.folder / "state").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"\x00{not what it was")
    wechsler.journal_is_true = False
    wechsler.start()
    wechsler.wait_state("gpu-idle")
    wechsler.do("start", "llama-cpp")
    assert gpu.active() == {LLAMA}


def json_of_every_outcome_is_one_object(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    for words, code in ((("status",), 0), (("endpoints",), 0), (("holds",), 0), (("slots", "list"), 0), (("cancel",), 4),
                        (("start", "vllm"), 0), (("start", "llama-cpp"), 4), (("stop",), 0), (("stop",), 0)):
        document = wechsler.do(*words, code=code).json
        assert isinstance(document, (dict, list)), (words, document)
    json.dumps(document)
