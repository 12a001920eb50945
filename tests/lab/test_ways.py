"""Other ways to the same server: another way of waking, of getting rights, of reaching a backend."""

import json

from rig import conversation, machine

LLAMA, VLLM = machine.UNITS


def waking_can_be_a_command(off, new_daemon):
    """As with IPMI or a smart plug: a program presses the power button; what counts is that the server answers."""
    wechsler = new_daemon(gpu_server={"wake": {
        "method": "command", "command": ["/bin/kill", "-USR1", str(off.board.pid)],
        "mac": None, "targets": None, "source": None}})
    wechsler.wait_state("gpu-offline")
    wechsler.do("start")
    assert off.active() == {LLAMA}
    assert off.packets() == [] and off.events("button")


def sudo_can_take_the_place_of_polkit(gpu, new_daemon):
    lines = (machine.CONTRIB / "wechsler.sudoers").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("#wechsler ALL"))
    lines[first:] = [line.removeprefix("#") for line in lines[first:]]
    machine.write(gpu.root / "etc/sudoers.d/wechsler.new", "\n".join(lines) + "\n", 0o440)
    gpu.ssh("visudo -cf /etc/sudoers.d/wechsler.new && mv /etc/sudoers.d/wechsler.new /etc/sudoers.d/wechsler && "
            "rm /etc/polkit-1/rules.d/49-wechsler.rules && systemctl restart polkit.service")
    wechsler = new_daemon(gpu_server={"commands": {"prefix": ["sudo", "-n"]}})
    wechsler.do("start", "llama-cpp")
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    wechsler.do("shutdown", "--power-off")
    gpu.wait_off(1)


def a_backend_can_have_its_own_ssh_target(gpu, new_daemon):
    """As with a container that has its own sshd: here another port of the same machine."""
    gpu.ssh("systemd-run --unit=other-sshd /usr/sbin/sshd -D -p 2022 -o PidFile=none")
    wechsler = new_daemon(backends={"vllm": {"ssh": {"host": gpu.address, "port": 2022, "host_keys": [gpu.host_key]}}})
    wechsler.do("start", "llama-cpp")
    talk = conversation.Conversation(gpu.LLAMA)
    talk.say()
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    assert gpu.ssh("ss -Htn state established sport = :2022").stdout.strip(), "the other target was not used"
    wechsler.do("switch", "llama-cpp")
    assert talk.say().reused > 0.9


def the_server_says_which_slots_it_has_when_there_are_several(gpu, new_daemon):
    """Two slots, two conversations: both are saved and both come back."""
    gpu.ssh(f"sed -i 's/--parallel 1/--parallel 2/; s/--ctx-size 16384/--ctx-size 32768/' "
            f"/etc/systemd/system/{LLAMA}.d/lab.conf && systemctl daemon-reload")
    wechsler = new_daemon()
    wechsler.do("start", "llama-cpp")
    talks = [conversation.Conversation(gpu.LLAMA, about=about, slot=slot)
             for slot, about in enumerate(("of cabbages ", "of kings "))]
    for talk in talks:
        talk.say()
    wechsler.do("switch", "vllm")
    assert len([size for size in gpu.slot_files().values() if size > 1_000_000]) == 2
    wechsler.do("switch", "llama-cpp")
    for talk in talks:
        assert talk.say("go on ").reused > 0.9
    names = json.loads(wechsler.run("status", "--json").out)["saved_slots"]
    assert sorted(names) == ["localbot", "localbot-1"]
