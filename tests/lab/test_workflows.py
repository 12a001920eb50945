"""The six workflows, seen from outside: units over the tests' own SSH, ports, files, packets, llama.cpp's own answers."""

import time

from rig import conversation, machine

LLAMA, VLLM = machine.UNITS


def a_cold_start_wakes_the_server_and_starts_the_default_backend(off, wechsler):
    status = wechsler.wait_state("gpu-offline")
    assert status["gpu_server"] == "off" and status["active_backend"] is None
    off.adjust(drop=2, delay=0.5)
    wechsler.do("start")
    assert off.active() == {LLAMA}
    assert off.health(LLAMA) == 200
    packets = off.packets()
    assert [packet["what"] for packet in packets[:3]] == ["dropped", "dropped", "accepted"], packets
    assert {packet["sender"] for packet in packets} == {machine.OUTER}
    time.sleep(1.5)
    assert len(off.packets()) == len(packets), "packets go on although the server is up"
    status = wechsler.status()
    assert (status["gpu_server"], status["state"], status["active_backend"]) == ("on", "llama-cpp", "llama-cpp")
    assert status["health"] == "ok"
    assert status["slots"][0]["n_ctx"] == 16384


def wake_brings_up_the_server_and_nothing_else(off, wechsler):
    wechsler.wait_state("gpu-offline")
    wechsler.do("wake")
    off.wait_up()
    assert off.active() == set()
    wechsler.wait_state("gpu-idle")


def a_switch_to_vllm_saves_the_slot_first_and_leaves_only_vllm(gpu, wechsler):
    gpu.begin(LLAMA)
    conversation.Conversation(gpu.LLAMA).say()
    wechsler.wait_state("llama-cpp")
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    assert gpu.health(VLLM) == 200 and gpu.health(LLAMA) == 0
    assert gpu.ssh("pgrep -f llama_server", check=False).returncode == 1
    assert any(size > 1_000_000 for size in gpu.slot_files().values()), gpu.slot_files()
    status = wechsler.status()
    assert status["saved_slots"] == ["localbot"]
    assert status["saved_slot_details"][0]["tokens"] > 4000


def a_conversation_survives_llama_cpp_to_vllm_to_llama_cpp(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    assert talk.say().prompt > 4000
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    wechsler.do("switch", "llama-cpp")
    assert gpu.active() == {LLAMA}
    answer = talk.say("and where were we? ")
    assert answer.prompt > 4000 and answer.reused >= 0.9, answer
    assert gpu.unit(LLAMA)["NRestarts"] == "0"


def a_conversation_survives_power_off_and_cold_start(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    first = gpu.boot_id()
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)
    wechsler.do("start")
    assert gpu.boot_id() != first
    answer = talk.say("and where were we? ")
    assert answer.prompt > 4000 and answer.reused >= 0.9, answer


def without_a_restore_the_same_conversation_is_computed_anew(gpu, new_daemon):
    """The control run: what the two tests above measure comes from the restore and from nothing else."""
    wechsler = new_daemon(backends={"llama-cpp": {"restore": "never"}})
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("switch", "vllm")
    wechsler.do("switch", "llama-cpp")
    answer = talk.say("and where were we? ")
    assert answer.prompt > 4000 and answer.reused < 0.05, answer
    assert gpu.restores() == 0


def shutdown_saves_stops_and_can_keep_the_server_on(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    conversation.Conversation(gpu.LLAMA).say()
    wechsler.do("shutdown", "--keep-on")
    assert gpu.active() == set() and not gpu.port_open(8080)
    assert gpu.powered
    assert any(size > 1_000_000 for size in gpu.slot_files().values())
    assert wechsler.wait_state("gpu-idle")["gpu_server"] == "on"


def shutdown_can_power_the_server_off(gpu, wechsler):
    wechsler.do("start", "vllm")
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)
    status = wechsler.wait_state("gpu-offline", 5)
    assert status["gpu_server"] == "off" and status["health"] == "ok"
    assert gpu.packets() == []


def a_quick_restart_is_a_new_process_with_the_old_conversation(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    before = gpu.unit(LLAMA)
    wechsler.do("restart")
    after = gpu.unit(LLAMA)
    assert after["ActiveState"] == "active"
    assert after["MainPID"] != before["MainPID"] and after["InvocationID"] != before["InvocationID"]
    assert talk.say("go on ").reused >= 0.9


def vllm_is_restarted_without_any_slots(gpu, wechsler):
    wechsler.do("start", "vllm")
    before = gpu.unit(VLLM)["InvocationID"]
    wechsler.do("restart", "vllm")
    assert gpu.unit(VLLM)["InvocationID"] != before and gpu.health(VLLM) == 200
    assert gpu.slot_files() == {}


def after_an_unexpected_reboot_the_slot_is_restored_by_itself(gpu, wechsler):
    gpu.ssh(f"systemctl enable {LLAMA}")
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("slots", "save")
    _reboot(gpu)
    gpu.wait_healthy(LLAMA)
    wechsler.wait("the restore", lambda s: s["state"] == "llama-cpp" and not s["operation"] and gpu.restores(), 20)
    assert talk.say("go on ").reused >= 0.9
    assert gpu.packets() == []


def after_an_unexpected_reboot_the_restore_can_be_offered_instead(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"restore": "offer"}})
    gpu.ssh(f"systemctl enable {LLAMA}")
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("slots", "save")
    _reboot(gpu)
    status = wechsler.wait("the offer", lambda s: s["state"] == "llama-cpp" and s["restore_available"], 20)
    assert status["operation"] is None
    assert gpu.restores() == 0
    wechsler.do("slots", "restore")
    assert talk.say("go on ").reused >= 0.9


def vllm_that_comes_up_by_itself_after_a_reboot_is_simply_seen(gpu, wechsler):
    gpu.ssh(f"systemctl enable {VLLM}")
    wechsler.do("start", "vllm")
    _reboot(gpu)
    gpu.wait_healthy(VLLM)
    assert wechsler.wait_state("vllm")["active_backend"] == "vllm"


def the_two_outputs_for_people_are_in_their_form(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    conversation.Conversation(gpu.LLAMA).say()
    wechsler.do("slots", "save")
    lines = wechsler.run("status").out.splitlines()
    assert lines[0] == "Backend: llama-cpp ✓", lines
    assert any(line.startswith("Model: ") and "ctx)" in line for line in lines), lines
    assert any(line.startswith("Slot: cached (localbot, ") for line in lines), lines
    assert any(line.startswith("Uptime: ") for line in lines), lines
    lines = wechsler.run("endpoints").out.splitlines()
    assert lines[0].startswith("llama-cpp: http://10.77.0.2:8080") and lines[0].endswith("✓ (active)"), lines
    assert lines[1].startswith("vllm:") and "● (stopped, ~" in lines[1] and lines[1].endswith("to start)"), lines


def quick_switches_do_not_hit_the_start_limit(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    gpu.configure("vllm", load=0.1)
    for _ in range(4):
        wechsler.do("switch", "vllm")
        wechsler.do("switch", "llama-cpp")
    assert gpu.active() == {LLAMA}


def _reboot(gpu) -> None:
    """The machine reboots, and nobody asked Wechsler."""
    first = gpu.boot_id()
    gpu.ssh("systemctl reboot", check=False)
    machine.until("the reboot", lambda: gpu.events("off"), 20)
    gpu._hang_up()
    gpu.wait_up()
    assert gpu.boot_id() != first

