"""Commands while something is under way: draining, joining, refusing, replacing, cancelling, going away."""

import json
import signal
import subprocess
import time

from rig import conversation, daemon, machine

LLAMA, VLLM = machine.UNITS


def a_switch_waits_for_a_client_that_is_being_answered(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    stream = conversation.Stream(gpu.address, 8080, 3500)
    wechsler.do("switch", "vllm")
    stream.join(1)
    assert stream.finished and stream.error is None
    assert gpu.active() == {VLLM}


def a_vllm_client_is_waited_for_as_well(gpu, wechsler):
    wechsler.do("start", "vllm")
    stream = conversation.Stream(gpu.address, 8000, 150)
    wechsler.do("switch", "llama-cpp")
    stream.join(1)
    assert stream.finished and stream.error is None
    assert gpu.active() == {LLAMA}


def no_drain_cuts_the_client_off(gpu, wechsler):
    wechsler.do("start", "vllm")
    stream = conversation.Stream(gpu.address, 8000, 1000)
    result = wechsler.do("switch", "llama-cpp", "--no-drain")
    assert result.seconds < 8
    stream.join(2)
    assert stream.error or not stream.finished or stream.pieces < 1000
    assert gpu.active() == {LLAMA}


def a_drain_has_a_deadline_after_which_a_persons_command_goes_on(gpu, new_daemon):
    wechsler = new_daemon(backends={"vllm": {"drain_timeout": "2s"}})
    wechsler.do("start", "vllm")
    conversation.Stream(gpu.address, 8000, 2000)
    result = wechsler.do("switch", "llama-cpp")
    assert 2 < result.seconds < 15, result
    assert gpu.active() == {LLAMA}


def start_with_another_backend_up_is_refused_and_a_bare_start_is_already_so(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    before = gpu.unit(LLAMA)["InvocationID"]
    result = wechsler.do("start", "vllm", code=4)
    assert "switch_needed" in daemon.codes(result.json) and "switch" in result.out, result
    wechsler.do("start")
    wechsler.do("start", "llama-cpp")
    wechsler.do("switch", "llama-cpp")
    assert gpu.active() == {LLAMA} and gpu.unit(LLAMA)["InvocationID"] == before


def the_same_goal_joins_another_is_busy_or_replaces(gpu, wechsler):
    gpu.configure("vllm", load=3)
    wechsler.wait_state("gpu-idle")
    first = wechsler.begin("start", "vllm")
    wechsler.wait_state("vllm-starting", 5)
    second = wechsler.begin("start", "vllm")
    result = wechsler.do("switch", "llama-cpp", code=4)
    assert "busy" in daemon.codes(result.json), result
    assert gpu.active() == {VLLM}
    wechsler.do("switch", "llama-cpp", "--replace")
    assert gpu.active() == {LLAMA}
    for client in (first, second):
        out, _ = client.communicate(timeout=10)
        assert client.returncode == 1 and "replaced" in out, (client.returncode, out)


def cancel_ends_the_operation_and_what_happened_stays(gpu, wechsler):
    gpu.configure("vllm", load=4)
    wechsler.wait_state("gpu-idle")
    starting = wechsler.begin("start", "vllm")
    wechsler.wait_state("vllm-starting", 5)
    wechsler.do("cancel")
    out, _ = starting.communicate(timeout=10)
    assert starting.returncode == 1 and "cancelled" in out, (starting.returncode, out)
    machine.until("the unit stays", lambda: gpu.active() == {VLLM}, 3)  # its start may still be on the way
    wechsler.wait_state("vllm", 15)
    result = wechsler.do("cancel", code=4)
    assert "nothing_to_cancel" in daemon.codes(result.json)


def cancelling_a_wake_ends_the_packets(off, wechsler):
    off.adjust(deaf=True)
    wechsler.wait_state("gpu-offline")
    waking = wechsler.begin("start")
    machine.until("packets", lambda: len(off.packets()) >= 2, 10)
    wechsler.do("cancel")
    waking.communicate(timeout=10)
    count = len(off.packets())
    time.sleep(1.5)
    assert len(off.packets()) <= count + 1
    wechsler.wait_state("gpu-offline", 5)


def a_client_may_go_away_and_the_operation_goes_on(gpu, wechsler):
    gpu.configure("vllm", load=3)
    wechsler.wait_state("gpu-idle")
    result = wechsler.do("start", "vllm", "--timeout", "1s", code=5)
    assert result.seconds < 2.5
    client = wechsler.begin("start", "vllm")
    time.sleep(0.4)
    client.send_signal(signal.SIGINT)
    _, words = client.communicate(timeout=5)
    assert client.returncode == 130, (client.returncode, words)
    wechsler.do("wait", "ready")
    assert gpu.health(VLLM) == 200


def no_wait_answers_at_once_with_the_operation(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    result = wechsler.do("start", "vllm", "--no-wait")
    assert result.seconds < 1
    wechsler.do("wait", "vllm")
    assert gpu.health(VLLM) == 200


def a_start_during_a_power_off_waits_for_off_and_wakes_again(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    first = gpu.boot_id()
    going = wechsler.begin("shutdown", "--power-off")
    wechsler.wait_state("powering-off", 15)
    result = wechsler.do("stop", code=4)
    assert "too_late" in daemon.codes(result.json), result
    wechsler.do("start", "llama-cpp", "--replace")
    going.communicate(timeout=10)
    assert gpu.boot_id() != first and gpu.active() == {LLAMA}
    kinds = [event["event"] if event["event"] != "packet" else event["what"] for event in gpu.events()]
    assert kinds.index("off") < kinds.index("accepted")


def a_backend_that_comes_up_during_a_start_of_the_other_is_stopped_in_its_favour(off, wechsler):
    """Boot starts the enabled llama-cpp by itself while `start vllm` is under way."""
    off.press()
    off.wait_up()
    off.ssh(f"systemctl enable {LLAMA}; sync")
    off.ssh("systemctl poweroff", check=False)
    off.wait_off()
    wechsler.wait_state("gpu-offline")
    wechsler.do("start", "vllm")
    assert off.active() == {VLLM}
    assert wechsler.status()["state"] == "vllm"


def watch_tells_each_change_as_one_object_a_line(gpu, wechsler):
    wechsler.wait_state("gpu-idle")
    with subprocess.Popen(wechsler.command("watch", "--json"), stdout=subprocess.PIPE, text=True) as watching:
        time.sleep(0.5)
        wechsler.do("start", "llama-cpp")
        time.sleep(0.5)
        watching.terminate()
        lines = [json.loads(line) for line in watching.stdout.read().splitlines()]
    states = [line["status"]["state"] for line in lines if "status" in line]
    assert "llama-cpp-starting" in states and states[-1] == "llama-cpp", states


def slots_can_be_listed_saved_and_restored_by_hand(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"restore": "never"}})
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("slots", "save")
    assert "localbot" in wechsler.do("slots", "list").out
    wechsler.do("restart")
    wechsler.do("slots", "restore")
    assert talk.say("go on ").reused > 0.9
    count = gpu.restores()
    result = wechsler.run("slots", "restore", "--json")  # refused when the use is known already, else it fails
    assert result.code in (1, 4) and daemon.codes(result.json), result
    assert gpu.restores() == count and talk.say("and on ").reused > 0.9


def an_empty_slot_never_replaces_a_saved_conversation(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("stop")
    saved = gpu.slot_files()
    gpu.begin(LLAMA)
    gpu.ssh(f"systemctl restart {LLAMA}")
    gpu.wait_healthy(LLAMA)
    wechsler.wait("it rests", lambda s: s["state"] == "llama-cpp" and not s["operation"])
    wechsler.do("stop")
    for name, size in saved.items():
        assert gpu.slot_files().get(name) == size
    wechsler.do("start", "llama-cpp")
    assert talk.say("go on ").reused > 0.9
