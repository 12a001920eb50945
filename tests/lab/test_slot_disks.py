"""Disks under the slot folder: full, without power at any moment, hung. What was whole once comes back."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import time

import pytest

from rig import conversation, daemon, disks, machine, slots

LLAMA, VLLM = machine.UNITS
# In CI fewer: what a cut can find it finds among the first.
CUTS, CUTS_BETWEEN = (60, 30) if os.environ.get("CI") else (210, 110)
#: So many of them are followed by a boot, a daemon and a restore.
BOOTS = 3


@pytest.fixture
def disk_of(server):
    """Makes a disk for the slot folder and boots the server with it: `disk_of(megabytes)`."""
    made = []

    def make(megabytes: int) -> disks.SlotDisk:
        server.fresh(power=False)
        made.append(disks.SlotDisk(server, megabytes))
        server.press()
        server.wait_up()
        return made[0]

    yield make
    server.cut()
    for disk in made:
        disk.close()


# --- full -----------------------------------------------------------------------------------------------------------------

def on_a_full_disk_the_save_fails_and_the_older_generation_comes_back(server, disk_of, wechsler):
    disk = disk_of(100)
    talk = _begin(server, wechsler)
    wechsler.do("slots", "save")
    saved = server.slot_files()
    talk.say("this will be lost " * 20)
    result = wechsler.do("switch", "vllm")
    assert "disk_full" in daemon.codes(result.json), result
    assert server.active() == {VLLM} and server.slot_files() == saved, "neither less nor remains of more"
    wechsler.do("switch", "llama-cpp")
    answer = talk.say()
    assert answer.cached >= slots.TOKENS, answer
    del disk


def a_disk_too_small_for_the_first_save_is_found_out_by_trying(server, disk_of, wechsler):
    disk_of(30)
    _begin(server, wechsler)
    result = wechsler.do("slots", "save", code=1)
    assert "disk_full" in daemon.codes(result.json), result
    assert server.slot_files() == {} and slots.notes(wechsler) == []
    wechsler.do("switch", "vllm")
    assert server.active() == {VLLM}


# --- without power --------------------------------------------------------------------------------------------------------

def whenever_the_power_is_cut_what_counts_as_saved_is_whole(server, disk_of, new_daemon, capsys):
    """At random moments around saves the disk is copied as it is at that moment, and the notes before it.

    Every note says of a file that it counts. After the cut the newest must be there, byte for byte; whatever else has a
    note is so too, or is something that the next daemon sees not to be.
    """
    disk = disk_of(400)
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"keep": 2}}})
    talk = _begin(server, wechsler)
    wechsler.do("slots", "save")
    chance = random.Random(5)
    found: list[Cut] = []
    usual = 0.3
    kept: list[Cut] = []
    while len(found) < CUTS or sum(cut.is_between for cut in found) < CUTS_BETWEEN:
        assert len(found) < 3 * CUTS, f"of {len(found)} cuts only {sum(cut.is_between for cut in found)} fell between"
        talk.say("x", n_predict=1)
        known = {note["file"] for note in slots.notes(wechsler)}
        began = time.time()
        client = wechsler.begin("slots", "save")
        cuts = []
        for moment in sorted(chance.uniform(0, 1.05 * usual) for _ in range(4)):
            time.sleep(max(0.0, began + moment - time.time()))
            cuts.append(Cut(disk, wechsler, len(cuts)))
        out, err = client.communicate(timeout=30)
        assert client.returncode == 0, (out, err)
        new = next(path for path in slots.notes_dir(wechsler).glob("*.slot.json") if path.stem not in known)
        committed = new.stat().st_ctime
        usual = 0.7 * usual + 0.3 * (committed - began)
        asked = server.tap.of("action=save")[-1].at
        for cut in cuts:
            cut.is_between = asked <= cut.began and cut.ended <= committed
            cut.judge(disk, new.stem)
        found += cuts
        if len(kept) < BOOTS and cuts[1].is_between and len(found) > len(kept) * CUTS // BOOTS:
            kept.append(cuts[1].keep(disk, len(kept)))
    with capsys.disabled():
        print(f"\n{'':8}{len(found)} cuts, {sum(cut.is_between for cut in found)} of them between the start of a save and "
              f"its commit; left of the save under way: {_counts(cut.left for cut in found if cut.is_between)}; "
              f"notes held against their files: {_counts(fate for cut in found for fate in cut.fates)}")
    for cut in kept:
        server.cut()
        wechsler.kill()
        disk.become(cut.image)
        shutil.rmtree(slots.notes_dir(wechsler))
        shutil.copytree(cut.notes, slots.notes_dir(wechsler))
        server.press()
        server.wait_up()
        wechsler.start()
        wechsler.do("start", "llama-cpp")
        assert server.restores() and talk.say().reused >= 0.9
        server.tap.seen.clear()


def _copy_notes(source: pathlib.Path, target: pathlib.Path) -> None:
    """The notes that are there now: others come and go meanwhile."""
    target.mkdir()
    for note in source.iterdir():
        if note.suffix != ".tmp":
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(note, target / note.name)


class Cut:
    """The disk as a power cut leaves it, and the notes that were there before."""

    def __init__(self, disk: disks.SlotDisk, wechsler: daemon.Wechsler, number: int) -> None:
        self.image = disk.carrier / f"cut{number}"
        self.notes = wechsler.folder / f"notes{number}"
        shutil.rmtree(self.notes, ignore_errors=True)
        _copy_notes(slots.notes_dir(wechsler), self.notes)
        noted = sorted((json.loads(path.read_text()) for path in self.notes.glob("*.slot.json")),
                       key=lambda note: note["round"], reverse=True)
        # Open files stay what they are, also where pruning removes their names.
        self.files = [(note, _opened(disk.place / note["file"])) for note in noted]
        self.began = time.time()
        disk.cut(self.image)
        self.ended = time.time()
        self.is_between = False
        self.left = ""
        self.fates: list[str] = []

    def judge(self, disk: disks.SlotDisk, under_way: str) -> None:
        with disk.after(self.image) as place, contextlib.ExitStack() as opened:
            for _, live in self.files:
                opened.enter_context(live or contextlib.nullcontext())
            for number, (note, live) in enumerate(self.files):
                fate = _fate(place / note["file"], note, live)
                assert fate != "wrong", f"{note['file']} looks as it was saved, and is not"
                assert number or fate == "whole", f"the newest that counted is {fate} after the cut: {note}"
                self.fates.append(fate)
            unfinished = under_way.replace(".slot", ".part")
            self.left = ("all but the note" if (place / under_way).exists()
                         else "an unfinished file" if (place / unfinished).exists() else "nothing")

    def keep(self, disk: disks.SlotDisk, number: int) -> "Cut":
        self.image = self.image.rename(disk.carrier / f"kept{number}")
        self.notes = self.notes.rename(self.notes.with_name(f"kept{number}"))
        return self


def _fate(path: pathlib.Path, note: dict, live) -> str:
    """`whole`; what the daemon sees to be wrong with it; or `wrong`, which it does not see."""
    if not path.exists():
        return "missing"
    if path.stat().st_size != note["bytes"]:
        return "short"
    with open(path, "rb") as after:
        if after.read(4) != b"qsgg":
            return "no slot file"
        if live is None:
            return "pruned"
        after.seek(0), live.seek(0)
        while block := after.read(1 << 20):
            if block != live.read(1 << 20):
                return "wrong"
    return "whole"


def _opened(path: pathlib.Path):
    return open(path, "rb") if path.exists() else None


def _counts(words) -> str:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in sorted(found.items(), key=lambda item: -item[1])) or "nothing"


# --- shared -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def share(gpu):
    """The slot folder of the server, mounted on this side."""
    shared = disks.Share(gpu)
    yield shared
    shared.close()


def through_a_mounted_folder_a_large_conversation_survives_a_switch(gpu, new_daemon, share):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"mounted": str(share.place)}}})
    talk = _begin(gpu, wechsler)
    wechsler.do("switch", "vllm")
    assert [name for name, size in gpu.slot_files().items() if size >= slots.LARGE_BYTES and name.endswith(".slot")]
    wechsler.do("switch", "llama-cpp")
    assert talk.say("go on ").reused >= 0.9


def a_hung_share_is_a_warning_and_nothing_waits_for_it_longer_than_its_deadline(gpu, new_daemon, share):
    wechsler = new_daemon(backends={"llama-cpp": {"slots": {"mounted": str(share.place)}}})
    talk = _begin(gpu, wechsler)
    wechsler.do("slots", "save")
    talk.say("and on ")
    share.hang()
    result = wechsler.do("switch", "vllm")
    assert daemon.codes(result.json) & {"save_unchecked", "save_timeout"}, result
    assert gpu.active() == {VLLM}
    result = wechsler.do("switch", "llama-cpp")
    assert "restore_unchecked" in daemon.codes(result.json), result
    assert gpu.restores() == 0 and wechsler.status()["state"] == "llama-cpp"
    share.hang(False)
    wechsler.do("slots", "restore")
    assert talk.say().reused >= 0.9, "what was saved before is still there"


def _begin(server, wechsler) -> conversation.Conversation:
    slots.serve(server)
    wechsler.do("start", "llama-cpp")
    talk = slots.talk_to(server)
    talk.say()
    return talk
