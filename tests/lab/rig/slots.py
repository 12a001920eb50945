"""Large slots: llama.cpp with the model for them, and what the notes of the daemon say."""

import json
import pathlib

from . import conversation
from .daemon import Wechsler
from .machine import SLOTS, GpuServer, write

LLAMA = "llama-cpp.service"
#: Of a conversation with the large model: more than 50 MB of slot file.
TOKENS = 2200
LARGE_BYTES = 50_000_000


def serve(gpu: GpuServer, model: str = "large", *flags: str, ctx: int = 4096, parallel: int = 1) -> None:
    """From its next start llama.cpp runs with this model (one of the lab's, or a path) and these flags."""
    path = model if model.startswith("/") else f"/opt/lab/models/{model}.gguf"
    write(gpu.root / f"etc/systemd/system/{LLAMA}.d/zz-slots.conf", f"""[Service]
ExecStart=
ExecStart=/usr/bin/python3 /opt/lab/bin/llama_server.py --model {path} --host 0.0.0.0 --port 8080 --ctx-size {ctx} \\
    --parallel {parallel} --slot-save-path {SLOTS}/ {' '.join(flags)}
""")
    gpu.ssh("systemctl daemon-reload")


def talk_to(gpu: GpuServer, tokens: int = TOKENS, about: str = "", slot: int = -1) -> conversation.Conversation:
    return conversation.Conversation(gpu.LLAMA, tokens, about, slot)


def notes_dir(wechsler: Wechsler) -> pathlib.Path:
    return wechsler.folder / "state/slots/gpu/llama-cpp"


def notes(wechsler: Wechsler) -> list[dict]:
    """The notes on disk, newest first."""
    found = [json.loads(path.read_text()) for path in notes_dir(wechsler).glob("*.slot.json")]
    return sorted(found, key=lambda note: note["round"], reverse=True)


def last_restore(status: dict, name: str = "localbot") -> dict:
    """What the status says of the last restore of a slot of that name; empty if there was none."""
    restores = [d["last_restore"] for d in status["saved_slot_details"] if d["name"] == name and d["last_restore"]]
    return max(restores, key=lambda restore: restore["at"], default={})
