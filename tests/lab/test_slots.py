"""Slots of more than 50 MB on a real llama.cpp: nothing saved is lost, nothing wrong is restored, and its worth is known."""

import json
import threading
import time

import pytest

from rig import conversation, daemon, machine, slots

LLAMA, VLLM = machine.UNITS
SLOTS = machine.SLOTS
MISMATCH, DAMAGED, MISSING = "restore_mismatch", "restore_damaged", "restore_missing"


# --- the same server again: it comes back, and its worth is measured --------------------------------------------------

def a_large_conversation_survives_a_switch(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("switch", "vllm")
    assert gpu.active() == {VLLM}
    assert [size for size in gpu.slot_files().values() if size >= slots.LARGE_BYTES], gpu.slot_files()
    wechsler.do("switch", "llama-cpp")
    _comes_back(gpu, wechsler, talk)


def it_survives_a_crash_of_llama_cpp(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("slots", "save")
    gpu.ssh(f"systemctl kill --signal=KILL {LLAMA}")
    machine.until("systemd restarts it", lambda: gpu.unit(LLAMA)["NRestarts"] == "1", 10)
    gpu.wait_healthy(LLAMA)
    wechsler.wait("it is restored", lambda s: s["state"] == "llama-cpp" and not s["operation"] and gpu.restores(), 20)
    _comes_back(gpu, wechsler, talk, crashes=1)


def llama_cpp_killed_in_the_middle_of_a_save_has_the_older_generation_restored(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("slots", "save")
    talk.say("and on ")
    # The save takes less than a tenth of a second: the killer stands ready before it begins, starts no process after
    # that, and yields to nothing else on a busy machine.
    ready = gpu.root / "root/ready"
    main = f"renice -n -20 $$; main=$(systemctl show --property=MainPID --value {LLAMA}); touch /root/ready"
    kill = f"{main}; until set -- {SLOTS}/*.part && [ -e $1 ]; do :; done; kill -KILL $main"
    killer = threading.Thread(target=gpu.ssh, args=(kill,))
    killer.start()
    machine.until("the killer stands ready", ready.exists, 10)
    result = wechsler.do("slots", "save", code=1)
    killer.join()
    assert daemon.codes(result.json), result
    gpu.wait_healthy(LLAMA)
    wechsler.wait("it is restored", lambda s: s["state"] == "llama-cpp" and not s["operation"] and gpu.restores(), 20)
    assert len(slots.notes(wechsler)) == 1
    _comes_back(gpu, wechsler, talk, crashes=1)
    assert not [name for name in gpu.slot_files() if name.endswith(".part")], "remains"


def it_survives_the_daemon_and_so_does_what_its_restore_was_worth(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("stop")
    wechsler.kill()
    wechsler.start()
    wechsler.do("start", "llama-cpp")
    _comes_back(gpu, wechsler, talk)
    before = slots.last_restore(wechsler.status())
    wechsler.kill()
    wechsler.start()
    wechsler.wait_state("llama-cpp")
    assert slots.last_restore(wechsler.status()) == before


def a_restore_is_proved_at_once_where_that_is_wanted(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"prove": "at-once"}}})
    talk = _begin(gpu, wechsler)
    wechsler.do("restart", "llama-cpp")
    restore = slots.last_restore(wechsler.status())
    assert restore["verdict"] == "effective" and restore["reused"] >= slots.TOKENS, restore
    assert restore["computed"] <= 2, restore
    assert talk.say("go on ").reused >= 0.9


# --- another server: refused before llama.cpp sees the file, and kept ---------------------------------------------------

def other_flags_are_refused_with_the_reason_and_the_old_ones_bring_it_back(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("stop")
    changes = [("context 2048 instead of 4096", ("large",), {"ctx": 2048}),
               ("2 slots instead of 1", ("large",), {"parallel": 2, "ctx": 8192}),
               ("cache-type-k", ("large", "--cache-type-k", "q8_0"), {}),
               ("cache-type-v", ("large", "-ctv", "f32"), {}),
               ("flash-attn", ("large", "--flash-attn", "off"), {})]
    for reason, words, options in changes:
        slots.serve(gpu, *words, **options)
        result = wechsler.do("start", "llama-cpp")
        assert MISMATCH in daemon.codes(result.json) and reason in result.out, (reason, result)
        wechsler.do("stop")
    assert gpu.restores() == 0
    slots.serve(gpu)
    wechsler.do("start", "llama-cpp")
    _comes_back(gpu, wechsler, talk)


def another_model_of_the_same_shapes_is_refused_and_the_first_one_gets_its_conversation_back(gpu, wechsler):
    """llama.cpp would take the file, and answer garbage."""
    served = "/mnt/models/served.gguf"
    gpu.ssh(f"cp /opt/lab/models/large.gguf {served}")
    talk = _begin(gpu, wechsler, served)
    wechsler.do("stop")
    slots.serve(gpu, "other")
    wechsler.do("start", "llama-cpp")
    result = wechsler.run("slots", "restore", "--json")
    assert result.code in (1, 4) and {MISMATCH, "nothing_saved"} & daemon.codes(result.json), result
    wechsler.do("stop")
    slots.serve(gpu, served)
    gpu.ssh(f"mv {served} /mnt/models/first.gguf && cp /opt/lab/models/other.gguf {served}")  # of the same name
    result = wechsler.do("start", "llama-cpp")
    assert MISMATCH in daemon.codes(result.json) and "has changed" in result.out, result
    assert talk.say().reused < 0.05
    assert gpu.restores() == 0
    wechsler.do("stop")
    gpu.ssh(f"mv /mnt/models/first.gguf {served}")
    wechsler.do("start", "llama-cpp")
    _comes_back(gpu, wechsler, talk)


def a_file_of_another_build_is_refused(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    wechsler.do("stop")
    build = slots.notes(wechsler)[0]["build"]
    _edit_notes(wechsler, build="b1-0000000")
    result = wechsler.do("start", "llama-cpp")
    assert MISMATCH in daemon.codes(result.json) and f"build {build} instead of b1-0000000" in result.out, result
    assert gpu.restores() == 0
    wechsler.do("stop")
    _edit_notes(wechsler, build=build)
    wechsler.do("start", "llama-cpp")
    _comes_back(gpu, wechsler, talk)


# --- damaged files: put aside, and an older one in use ------------------------------------------------------------------

def of_several_generations_the_newest_whole_one_is_restored(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"keep": 6}}})
    talk = _begin(gpu, wechsler)
    oldest = talk.say().prompt
    for _ in range(4):
        _save_with_digest(wechsler)
        talk.say("and on ")
    wechsler.do("stop")
    newest = slots.notes(wechsler)
    assert len(newest) == 5 and min(note["bytes"] for note in newest) >= slots.LARGE_BYTES, newest
    truncated, flipped, emptied, missing, whole = (f"{SLOTS}/{note['file']}" for note in newest)
    gpu.ssh(f"truncate -s -1 {truncated} && : > {emptied} && rm {missing} && "
            f"printf X | dd of={flipped} bs=1 seek=30000000 conv=notrunc")
    result = wechsler.do("start", "llama-cpp")
    assert {DAMAGED, MISSING} <= daemon.codes(result.json), result
    assert gpu.restores() == 1
    aside = {note["file"]: note.get("put_aside") for note in slots.notes(wechsler)}
    for damaged in (truncated, flipped, emptied):
        assert aside[damaged.rsplit("/")[-1]], aside
    assert not aside[missing.rsplit("/")[-1]], "the folder may only not have been mounted"
    answer = talk.say("where were we? ")
    assert oldest - 1 <= answer.cached <= oldest, "it is another generation"
    assert gpu.unit(LLAMA)["NRestarts"] == "0"
    wechsler.do("restart", "llama-cpp")
    _comes_back(gpu, wechsler, talk)


def verify_finds_a_flipped_bit_and_says_which_files_are_whole(gpu, wechsler):
    talk = _begin(gpu, wechsler)
    _save_with_digest(wechsler)
    talk.say("and on ")
    _save_with_digest(wechsler)
    newer, older = slots.notes(wechsler)
    assert [end["code"] for end in wechsler.do("slots", "verify").json["slots"]] == ["whole", "whole"]
    gpu.ssh(f"printf X | dd of={SLOTS}/{older['file']} bs=1 seek=30000000 conv=notrunc")
    result = wechsler.do("slots", "verify", code=1)
    assert {end["generation"]: end["code"] for end in result.json["slots"]} == {
        newer["round"]: "whole", older["round"]: "damaged"}, result
    assert {note["file"]: bool(note.get("put_aside")) for note in slots.notes(wechsler)} == {
        newer["file"]: False, older["file"]: True}


def nobody_but_the_backend_and_the_supervisor_can_read_a_conversation(gpu, wechsler):
    _begin(gpu, wechsler, "small", tokens=700)
    wechsler.do("slots", "save")
    note, = slots.notes(wechsler)
    reads = f"cat {SLOTS}/{note['file']} >/dev/null"
    assert gpu.ssh(f"runuser -u wechsler -- sh -c '{reads}'").returncode == 0
    assert gpu.ssh(f"runuser -u vllm -- sh -c '{reads}'", check=False).returncode != 0
    modes = {path.stat().st_mode & 0o777 for path in slots.notes_dir(wechsler).iterdir() if path.suffix == ".json"}
    assert modes == {0o600} and slots.notes_dir(wechsler).stat().st_mode & 0o777 == 0o700


# --- restores that do nothing -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", ["sliding", "mamba", "jamba"])
def a_model_for_which_restores_do_nothing_is_no_longer_paid_for(gpu, wechsler, model):
    """Without its checkpoints the state of such a model cannot be cut back to where the conversation goes on."""
    talk = _begin(gpu, wechsler, model, "--ctx-checkpoints", "0", tokens=700)
    for _ in range(2):
        before = gpu.restores()
        wechsler.do("restart", "llama-cpp")
        assert gpu.restores() == before + 1
        answer = talk.say("go on ")
        assert answer.cached == 0, answer
        _is_proved(wechsler, answer)
    assert _called_useless(wechsler)
    before = gpu.restores()
    wechsler.do("restart", "llama-cpp")
    assert gpu.restores() == before, "paid for in vain"
    wechsler.do("slots", "restore", "localbot")
    assert gpu.restores() == before + 1, "somebody who asks for it gets it"


@pytest.mark.parametrize("model", ["sliding", "mamba", "jamba"])
def with_checkpoints_in_its_files_the_same_model_is_restored_with_effect(gpu, wechsler, model):
    talk = _begin(gpu, wechsler, model, tokens=700)
    for _ in range(2):
        wechsler.do("restart", "llama-cpp")
        answer = talk.say("go on ")
        assert answer.reused >= 0.9, answer
        _is_proved(wechsler, answer)
    assert not _called_useless(wechsler)


# --- several slots --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [(), ("--kv-unified", "--no-cache-idle-slots")], ids=["split", "unified"])
def each_of_two_slots_comes_back_into_its_own(gpu, wechsler, flags):
    slots.serve(gpu, "small", *flags, ctx=8192, parallel=2)
    wechsler.do("start", "llama-cpp")
    talks = [slots.talk_to(gpu, 1500, about, slot) for slot, about in enumerate(("first ", "second "))]
    for talk in talks:
        talk.say()
    wechsler.do("switch", "vllm")
    assert sorted(wechsler.status()["saved_slots"]) == ["localbot", "localbot-1"]
    wechsler.do("switch", "llama-cpp")
    assert gpu.restores() == 2
    for talk, name in reversed(list(zip(talks, ("localbot", "localbot-1")))):
        answer = talk.say("go on ")
        assert answer.reused >= 0.9, (talk.slot, answer)
        _is_proved(wechsler, answer, name)


def a_request_in_a_slot_that_was_not_restored_says_nothing_of_the_one_that_was(gpu, wechsler):
    slots.serve(gpu, "small", ctx=8192, parallel=2)
    wechsler.do("start", "llama-cpp")
    talk, stranger = slots.talk_to(gpu, 1500, "first ", 0), slots.talk_to(gpu, 1500, "second ", 1)
    talk.say()
    wechsler.do("restart", "llama-cpp")
    assert gpu.restores() == 1
    stranger.say()
    time.sleep(5)  # more than one look
    assert slots.last_restore(wechsler.status())["verdict"] == "unknown"
    answer = talk.say("go on ")
    assert answer.reused >= 0.9, answer
    _is_proved(wechsler, answer)


def of_two_slots_that_share_a_cache_the_one_that_is_filled_is_saved(gpu, wechsler):
    """As llama.cpp comes: a request in one slot moves what lies in the other out of it."""
    slots.serve(gpu, "small", "--kv-unified", ctx=8192, parallel=2)
    wechsler.do("start", "llama-cpp")
    talks = [slots.talk_to(gpu, 1500, about, slot) for slot, about in enumerate(("first ", "second "))]
    for talk in talks:
        talk.say()
    wechsler.do("switch", "vllm")
    assert wechsler.status()["saved_slots"] == ["localbot-1"]
    wechsler.do("switch", "llama-cpp")
    assert talks[1].say("go on ").reused >= 0.9


def a_slot_is_saved_and_restored_by_a_name_of_its_own(gpu, new_daemon):
    wechsler = new_daemon(backends={"llama-cpp": {"restore": "never"}})
    talk = _begin(gpu, wechsler)
    wechsler.do("slots", "save", "novel")
    wechsler.do("restart", "llama-cpp")
    assert gpu.restores() == 0
    wechsler.do("slots", "restore", "novel")
    answer = talk.say("go on ")
    assert answer.reused >= 0.9
    _is_proved(wechsler, answer, "novel")
    wechsler.do("slots", "forget", "novel")
    assert "novel" not in wechsler.status()["saved_slots"]
    assert not [name for name in gpu.slot_files() if name.startswith("novel.")]


# --- checkpoints ----------------------------------------------------------------------------------------------------------

def a_request_that_arrives_during_a_checkpoint_waits_for_it_and_no_longer(gpu, new_daemon, capsys):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"checkpoint_quiet": "1s"}}})
    talk = _begin(gpu, wechsler)
    waits, alone = [], []
    for _ in range(3):
        before = len(gpu.tap.of("action=save"))
        machine.until("a checkpoint", lambda: len(gpu.tap.of("action=save")) > before, 20, every=0.001)
        waits.append(_seconds(lambda: talk.say("w ", n_predict=1)))
        alone.append(_seconds(lambda: talk.say("a ", n_predict=1)))
        assert gpu.health(LLAMA) == 200
    with capsys.disabled():
        print(f"\n{'':8}a request during a checkpoint of 50 MB: {max(waits) * 1000:.0f} ms at most, alone "
              f"{max(alone) * 1000:.0f} ms at most")
    assert max(waits) < 10, "longer than a save may take"
    wechsler.wait("it rests", lambda s: not s["operation"], 20)
    gpu.ssh(f"systemctl kill --signal=KILL {LLAMA}")
    gpu.wait_healthy(LLAMA)
    wechsler.wait("it is restored", lambda s: s["state"] == "llama-cpp" and not s["operation"] and gpu.restores(), 20)
    assert talk.say("go on ").reused >= 0.9, "a checkpoint is a save like any other"


# --- helpers --------------------------------------------------------------------------------------------------------------

def _begin(gpu, wechsler, model: str = "large", *flags: str, tokens: int = slots.TOKENS) -> conversation.Conversation:
    """llama.cpp runs with that model, and a conversation lies in its slot."""
    slots.serve(gpu, model, *flags)
    wechsler.do("start", "llama-cpp")
    talk = slots.talk_to(gpu, tokens)
    assert talk.say().prompt >= tokens
    return talk


def _comes_back(gpu, wechsler, talk, crashes: int = 0) -> None:
    answer = talk.say("and where were we? ")
    assert answer.prompt >= slots.TOKENS and answer.reused >= 0.9, answer
    assert gpu.unit(LLAMA)["NRestarts"] == str(crashes)
    _is_proved(wechsler, answer)


def _is_proved(wechsler, answer: conversation.Answer, name: str = "localbot") -> None:
    """The daemon's verdict is what llama.cpp itself said of the first request."""
    told = ("effective", "ineffective")
    status = wechsler.wait("the verdict", lambda s: slots.last_restore(s, name).get("verdict") in told, 10)
    last = slots.last_restore(status, name)
    assert (last["reused"], last["computed"]) == (answer.cached, answer.computed), (last, answer)
    assert last["verdict"] == told[answer.reused < 0.1], last


def _called_useless(wechsler) -> list[str]:
    return [detail["useless"] for detail in wechsler.status()["saved_slot_details"] if detail["useless"]]


def _save_with_digest(wechsler) -> None:
    """A save, and the calm after it in which its digest is taken."""
    wechsler.do("slots", "save")
    machine.until("a digest", lambda: slots.notes(wechsler)[0].get("digest"), 20, every=0.1)


def _edit_notes(wechsler, **change: object) -> None:
    """While no daemon runs, the notes become others."""
    wechsler.stop()
    for path in slots.notes_dir(wechsler).glob("*.slot.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    wechsler.start()


def _seconds(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
