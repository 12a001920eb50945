"""The error table, row by row, and the failures of starting and stopping; asserted from outside."""

import subprocess
import time

from rig import conversation, daemon, machine

LLAMA, VLLM = machine.UNITS
SLOTS = machine.SLOTS


QUICK = {"ssh": {"command_timeout": "1500ms", "connect_timeout": "1s"}}  # for starts that are given up soon

# --- save fails before a switch: a warning, and on it goes ------------------------------------------------------------

def a_failed_save_is_a_warning_and_the_switch_goes_on(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    conversation.Conversation(gpu.LLAMA).say()
    gpu.ssh(f"chown root:root {SLOTS} && chmod 0555 {SLOTS}")
    result = wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    assert daemon.codes(result.json), f"no warning in {result}"
    assert gpu.slot_files() == {}


def a_failed_save_leaves_the_good_file_of_before(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("slots", "save")
    before = gpu.slot_files()
    # A disk that is full: a file system of its own with a few kilobytes left.
    gpu.ssh(f"mkdir /mnt/small && mount -t tmpfs -o size=6m tmpfs /mnt/small && cp -a {SLOTS}/. /mnt/small/ && "
            f"chown llama:llama-slots /mnt/small && chmod 2770 /mnt/small && mount --bind /mnt/small {SLOTS} && "
            f"systemctl restart {LLAMA}")
    gpu.wait_healthy(LLAMA)
    wechsler.wait_state("llama-cpp")
    talk.say("much more " * 400)
    gpu.ssh(f"dd if=/dev/zero of={SLOTS}/filler bs=64k count=1000", check=False)
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    after = gpu.slot_files()
    for name, size in before.items():
        assert after.get(name) == size, (before, after)
    gpu.ssh(f"rm -f {SLOTS}/filler")
    wechsler.do("switch", "llama-cpp")
    assert gpu.unit(LLAMA)["NRestarts"] == "0"
    assert talk.say().cached > 4000, "the older slot was not used"


def a_hung_backend_is_restarted_without_a_save(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"save_timeout": "2s"}}})
    wechsler.do("start", "llama-cpp")
    conversation.Conversation(gpu.LLAMA).say()
    before = gpu.unit(LLAMA)["MainPID"]
    gpu.ssh(f"kill -STOP {before}")
    wechsler.do("restart", "llama-cpp")
    assert gpu.unit(LLAMA)["MainPID"] != before and gpu.health(LLAMA) == 200


# --- restore fails after the start: a warning, an empty context -------------------------------------------------------

def a_truncated_slot_file_is_never_sent(gpu, wechsler):
    talk = _saved_and_stopped(gpu, wechsler)
    gpu.ssh(f"find {SLOTS} -type f -size +1000k -exec truncate -s -100 {{}} \\;")
    result = wechsler.do("start", "llama-cpp")
    assert daemon.codes(result.json), f"no warning in {result}"
    assert gpu.unit(LLAMA)["NRestarts"] == "0" and "GGML_ASSERT" not in gpu.log_of(LLAMA)
    assert talk.say().reused < 0.05
    assert gpu.restores() == 0


def a_slot_file_with_a_damaged_head_is_never_sent(gpu, wechsler):
    talk = _saved_and_stopped(gpu, wechsler)
    gpu.ssh(f"for f in $(find {SLOTS} -type f -size +1000k); do printf XXXX | dd of=$f bs=1 conv=notrunc; done")
    result = wechsler.do("start", "llama-cpp")
    assert daemon.codes(result.json), f"no warning in {result}"
    assert talk.say().reused < 0.05
    assert gpu.restores() == 0


def a_rejected_restore_is_a_warning_and_never_tried_again(gpu, wechsler):
    _saved_and_stopped(gpu, wechsler)
    # The same model with another type of cache, which no endpoint tells: llama.cpp answers 400.
    gpu.configure("llama-cpp", cache_k="f32")
    result = wechsler.do("start", "llama-cpp")
    assert daemon.codes(result.json), f"no warning in {result}"
    assert gpu.active() == {LLAMA} and gpu.health(LLAMA) == 200
    assert gpu.restores() == 1
    wechsler.do("restart", "llama-cpp")
    assert gpu.health(LLAMA) == 200
    assert gpu.restores() == 1


def a_slot_that_does_not_fit_the_context_is_not_restored(gpu, wechsler):
    _saved_and_stopped(gpu, wechsler)
    gpu.ssh(f"sed -i 's/--ctx-size 16384/--ctx-size 1024/' /etc/systemd/system/{LLAMA}.d/lab.conf && "
            f"systemctl daemon-reload")
    result = wechsler.do("start", "llama-cpp")
    assert daemon.codes(result.json), f"no warning in {result}"
    assert gpu.health(LLAMA) == 200 and gpu.restores() == 0


def a_slot_of_another_model_is_not_restored(gpu, wechsler):
    talk = _saved_and_stopped(gpu, wechsler)
    gpu.ssh(f"cp /opt/lab/models/small.gguf /mnt/models/other.gguf && printf X | "
            f"dd of=/mnt/models/other.gguf bs=1 seek=400000 conv=notrunc && "
            f"sed -i 's,/opt/lab/models/small.gguf,/mnt/models/other.gguf,' /etc/systemd/system/{LLAMA}.d/lab.conf && "
            f"systemctl daemon-reload")
    wechsler.do("start", "llama-cpp")
    assert talk.say().reused < 0.05
    assert gpu.restores() == 0


# --- health timeout ---------------------------------------------------------------------------------------------------

def a_health_timeout_ends_the_start_and_a_late_answer_still_counts(gpu, new_daemon):
    wechsler = new_daemon(gpu_server=QUICK, backends={"llama-cpp": {"start_timeout": "2s"}})
    gpu.configure("llama-cpp", load=5)
    result = wechsler.do("start", "llama-cpp", code=1)
    assert "health_timeout" in daemon.codes(result.json), result
    assert gpu.active() == {LLAMA}, "by default the unit is left"
    assert wechsler.wait_state("llama-cpp", 10)["health"] == "ok"


def a_health_timeout_can_stop_the_unit(gpu, new_daemon):
    wechsler = new_daemon(gpu_server=QUICK, backends={"vllm": {"start_timeout": "2s", "on_start_timeout": "stop"}})
    gpu.configure("vllm", fail="loading")
    result = wechsler.do("start", "vllm", code=1)
    assert "health_timeout" in daemon.codes(result.json), result
    machine.until("the unit is stopped", lambda: gpu.active() == set(), 12)
    gpu.configure("vllm", load=0.2)
    wechsler.do("start", "vllm")
    assert gpu.health(VLLM) == 200


def a_port_that_only_the_server_itself_reaches_is_named_so(gpu, new_daemon):
    wechsler = new_daemon(gpu_server=QUICK, backends={"llama-cpp": {"start_timeout": "3s"}})
    gpu.ssh(f"sed -i 's/--host 0.0.0.0 --port 8080/--host 127.0.0.1 --port 8080/' "
            f"/etc/systemd/system/{LLAMA}.d/lab.conf && systemctl daemon-reload")
    result = wechsler.do("start", "llama-cpp", code=1)
    assert "http_unreachable" in daemon.codes(result.json), result


# --- the server is unreachable ----------------------------------------------------------------------------------------

def an_unreachable_server_is_offline_and_a_start_ends_with_an_error(gpu, new_daemon):
    wechsler = new_daemon(gpu_server={"timeouts": {"boot": "5s"}})
    wechsler.do("start", "llama-cpp")
    gpu.link(False)
    status = wechsler.wait_state("gpu-offline", 20)
    assert status["gpu_server"] == "off" and status["reason"] == "unreachable", status
    result = wechsler.do("start", "llama-cpp", code=1)
    assert "wake_timeout" in daemon.codes(result.json), result
    gpu.link(True)
    assert wechsler.wait_state("llama-cpp", 20)["health"] == "ok"
    assert len(gpu.events("boot")) == 1


def power_loss_is_noticed_and_a_start_brings_it_back(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    gpu.cut()
    wechsler.wait_state("gpu-offline", 20)
    assert gpu.packets() == []
    wechsler.do("start")
    assert gpu.active() == {LLAMA}


# --- both backends are healthy ----------------------------------------------------------------------------------------

def two_backends_are_a_conflict_and_nothing_moves_until_it_is_resolved(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    gpu.begin(VLLM)
    status = wechsler.wait_state("conflict", 15)
    assert status["health"] == "conflict" and status["attention"]
    result = wechsler.do("start", "llama-cpp", code=4)
    assert "conflict" in daemon.codes(result.json), result
    time.sleep(2)
    assert gpu.active() == {LLAMA, VLLM}
    wechsler.do("resolve", "--keep", "vllm")
    assert gpu.active() == {VLLM}
    assert wechsler.wait_state("vllm")["attention"] == []


def resolving_in_favour_of_llama_cpp_keeps_its_conversation(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    before = gpu.unit(LLAMA)["MainPID"]
    gpu.begin(VLLM)
    wechsler.wait_state("conflict", 15)
    wechsler.do("resolve", "--keep", "llama-cpp")
    assert gpu.active() == {LLAMA} and gpu.unit(LLAMA)["MainPID"] == before
    assert talk.say("go on ").reused > 0.9


def stop_in_a_conflict_stops_all_and_saves_first(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    conversation.Conversation(gpu.LLAMA).say()
    gpu.begin(VLLM)
    wechsler.wait_state("conflict", 15)
    wechsler.do("stop")
    assert gpu.active() == set()
    assert any(size > 1_000_000 for size in gpu.slot_files().values())


# --- a backend crashes ------------------------------------------------------------------------------------------------

def a_crash_during_a_request_is_healed_by_systemd_and_followed(gpu, wechsler):
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("slots", "save")
    stream = conversation.Stream(gpu.address, 8080, 4000)
    before = gpu.unit(LLAMA)
    gpu.ssh(f"kill -9 {before['MainPID']}")
    stream.join(10)
    assert not stream.finished
    machine.until("systemd has restarted it", lambda: gpu.unit(LLAMA)["NRestarts"] == "1", 10)
    gpu.wait_healthy(LLAMA)
    wechsler.wait("the restore", lambda s: s["state"] == "llama-cpp" and not s["operation"]
                  and gpu.restores(), 15)
    assert talk.say("go on ").reused > 0.9
    assert gpu.unit(LLAMA)["NRestarts"] == "1"


def the_death_of_vllms_engine_is_followed(gpu, wechsler):
    wechsler.do("start", "vllm")
    before = gpu.unit(VLLM)["InvocationID"]
    gpu.ssh("pkill -9 VLLM::EngineCor")
    machine.until("systemd has restarted it", lambda: gpu.unit(VLLM)["NRestarts"] == "1", 10)
    gpu.wait_healthy(VLLM)
    wechsler.wait_state("vllm", 10)
    assert gpu.unit(VLLM)["InvocationID"] != before


def a_start_that_crashes_again_and_again_is_ended_with_its_last_words(gpu, wechsler):
    gpu.configure("llama-cpp", fail="load")
    result = wechsler.do("start", "llama-cpp", code=1)
    assert daemon.codes(result.json) & {"crash_loop", "start_failed"}, result
    assert "exiting due to model loading error" in result.out, "the unit's last journal lines are not shown"
    machine.until("it is stopped for good", lambda: gpu.active() == set(), 5)
    count = gpu.ssh(f"journalctl -u {LLAMA} | grep -c 'exiting due to' || true").stdout
    time.sleep(2.5)
    assert gpu.ssh(f"journalctl -u {LLAMA} | grep -c 'exiting due to' || true").stdout == count
    gpu.configure("llama-cpp")
    wechsler.do("start", "llama-cpp")
    assert gpu.health(LLAMA) == 200


def a_backend_that_ignores_sigterm_is_stopped_all_the_same(gpu, wechsler):
    gpu.configure("vllm", fail="stop")
    wechsler.do("start", "vllm")
    wechsler.do("switch", "llama-cpp")
    assert gpu.active() == {LLAMA}
    assert gpu.ssh("pgrep -f vllm_stand_in", check=False).returncode == 1


def a_sigterm_that_is_swallowed_during_the_load_does_not_bring_vllm_back(gpu, wechsler):
    gpu.configure("vllm", term="swallow", load=4)
    starting = wechsler.begin("start", "vllm")
    wechsler.wait_state("vllm-starting", 5)
    wechsler.do("stop")
    assert gpu.active() == set()
    starting.wait(10)
    time.sleep(1)
    assert gpu.active() == set() and gpu.health(VLLM) == 0


def a_sleeping_ssh_server_does_not_take_the_state_away(gpu, wechsler):
    """sshd dies, the backend goes on: the state stays, control is unreachable, verbs are refused, no packet is sent."""
    wechsler.do("start", "llama-cpp")
    gpu.ssh("systemctl stop ssh.service; pkill -u wechsler", check=False)
    status = wechsler.wait("control is lost", lambda s: s["control"] == "unreachable", 20)
    assert status["state"] == "llama-cpp" and status["gpu_server"] == "on"
    result = wechsler.do("switch", "vllm", code=4)
    assert "control_unreachable" in daemon.codes(result.json), result
    assert gpu.packets() == [] and gpu.active() == {LLAMA}
    gpu.ssh("systemctl start ssh.service")
    wechsler.wait("control is back", lambda s: s["control"] == "ok", 20)
    wechsler.do("switch", "vllm")


def _saved_and_stopped(gpu, wechsler) -> conversation.Conversation:
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("stop")
    assert gpu.active() == set()
    assert any(size > 1_000_000 for size in gpu.slot_files().values())
    return talk
