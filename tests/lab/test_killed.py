"""The daemon is killed in the middle; the next one looks and is right again."""

import json
import subprocess
import time

from rig import conversation, machine

LLAMA, VLLM = machine.UNITS


def killed_while_the_other_backend_loads_it_follows_the_load(gpu, wechsler):
    gpu.configure("vllm", load=4)
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    client = wechsler.begin("switch", "vllm")
    wechsler.wait_state("vllm-starting", 10)
    operation = wechsler.status()["operation"]["id"]
    wechsler.kill()
    wechsler.start()
    out, _ = client.communicate(timeout=10)
    assert client.returncode == 1 and "operation_forgotten" in out, (client.returncode, out)
    wechsler.wait("it is seen again", lambda s: s["state"] in ("vllm-starting", "vllm"), 3)
    assert wechsler.status()["operation"] is None
    wechsler.wait_state("vllm", 10)
    answer = subprocess.run(["curl", "-s", "--unix-socket", wechsler.socket,
                             f"http://wechsler/v1/operations/{operation}"], capture_output=True, text=True)
    assert "operation_forgotten" in answer.stdout, answer
    wechsler.do("switch", "llama-cpp")
    assert talk.say().reused > 0.9, "the slot saved before the kill was lost"


def killed_while_draining_the_backend_goes_on_serving(gpu, wechsler):
    wechsler.do("start", "vllm")
    stream = conversation.Stream(gpu.address, 8000, 300)
    client = wechsler.begin("switch", "llama-cpp")
    wechsler.wait_state("stopping", 10)
    wechsler.kill()
    wechsler.start()
    client.communicate(timeout=10)
    wechsler.wait_state("vllm", 10)
    stream.join(15)
    assert stream.finished and stream.error is None
    time.sleep(1)
    assert gpu.active() == {VLLM}


def killed_while_a_stop_is_under_way_the_server_is_idle(gpu, wechsler):
    gpu.configure("vllm", stop=3)
    wechsler.do("start", "vllm")
    client = wechsler.begin("switch", "llama-cpp")
    machine.until("the stop began", lambda: gpu.unit(VLLM)["ActiveState"] == "deactivating", 10)
    wechsler.kill()
    wechsler.start()
    client.communicate(timeout=10)
    wechsler.wait_state("gpu-idle", 10)
    time.sleep(1)
    assert gpu.active() == set()


def killed_while_waking_no_more_packets_are_sent(off, wechsler):
    off.adjust(deaf=True)
    wechsler.wait_state("gpu-offline")
    client = wechsler.begin("start")
    machine.until("packets", lambda: len(off.packets()) >= 2, 10)
    wechsler.kill()
    count = len(off.packets())
    wechsler.start()
    client.communicate(timeout=10)
    wechsler.wait_state("gpu-offline")
    time.sleep(1.5)
    assert len(off.packets()) == count


def killed_while_powering_off_the_server_is_off(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    client = wechsler.begin("shutdown", "--power-off")
    wechsler.wait_state("powering-off", 15)
    wechsler.kill()
    wechsler.start()
    client.communicate(timeout=10)
    gpu.wait_off(20)
    wechsler.wait_state("gpu-offline", 15)


def killed_again_and_again_during_switches_nothing_is_lost(gpu, wechsler):
    """Kills at many moments of the same switch: never two backends, and the conversation is there in the end."""
    gpu.configure("vllm", load=0.5)
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    for moment in (0.05, 0.2, 0.4, 0.7):
        client = wechsler.begin("switch", "vllm")
        time.sleep(moment)
        wechsler.kill()
        assert len(gpu.active()) <= 1
        wechsler.start()
        client.communicate(timeout=10)
        wechsler.wait("it rests", lambda s: not s["operation"] and s["state"] in ("gpu-idle", "llama-cpp", "vllm"), 15)
        wechsler.do("switch", "llama-cpp")
        answer = talk.say("go on ")
        assert answer.reused > 0.9, (moment, answer)
    leftovers = [name for name in gpu.slot_files() if "tmp" in name or "new" in name or "part" in name]
    assert len(gpu.slot_files()) <= 8, (gpu.slot_files(), json.dumps(leftovers))
