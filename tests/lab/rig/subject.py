"""One llama.cpp as a process on loopback: the real one (`server/llama_server.py`) or the virtual one."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

LAB = pathlib.Path(__file__).parent.parent
KEY = "k"
#: Of letters that the lab's model has as one token each, and longer than any likeness that comes from the first two.
STORY = "the quick brown fox jumps over the lazy dog and runs away, "
#: A request that runs for some seconds.
SECONDS = 3000
#: One that nobody waits for.
FOREVER = 15000


class Subject:
    """One running server, real or virtual."""

    def __init__(self, kind: str, folder: pathlib.Path, **options):
        self.kind = kind
        self.slots = folder / "slots"
        self.slots.mkdir(parents=True, exist_ok=True)
        self.log = open(folder / "log", "ab")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = options.pop("port", free.getsockname()[1])
        slot_dir = options.pop("slot_dir", self.slots)
        broken = options.pop("broken", False)
        slow = options.pop("slow", False)
        words = ["--port", str(self.port), "--parallel", str(options.pop("parallel", 1))]
        ctx_size = options.pop("ctx_size", 16384)
        assert not options, options
        if slot_dir:
            words += ["--slot-save-path", str(slot_dir)]
        words += ["--api-key", KEY]
        if kind == "real":
            model = "/nowhere/model.gguf" if broken else os.environ["LAB_MODELS"] + "/small.gguf"
            # What takes long in a load is the memory for the context.
            ctx_size = 1_500_000 if slow else ctx_size
            command = [os.environ["LAB_VENV"] + "/bin/python", LAB / "server/llama_server.py"]
        else:
            model = os.environ["LAB_MODELS"] + "/small.gguf"
            words += ["--load", "2s" if slow else "100ms", "--per-token", "1500us"]
            words += ["--load-fails"] if broken else []
            command = [os.environ["WECHSLER_BIN"], "virtual-program", "llama"]
        words += ["--ctx-size", str(ctx_size), "--model", model]
        self.process = subprocess.Popen([*command, *words], stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self, so, within: float = 20.0, what: str = "it becomes so"):
        end = time.monotonic() + within
        while time.monotonic() < end:
            if got := so():
                return got
            time.sleep(0.01)
        raise AssertionError(f"{self.kind}: {what}: not within {within} s")

    def ready(self) -> "Subject":
        self.wait(lambda: self.get("/health")[0] == 200, what="ready")
        return self

    def ask(self, method: str, path: str, body=None, key=("Authorization", f"Bearer {KEY}"), timeout=10.0):
        """Status and body; ("refused"|"closed"|"silent", "") where there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = {"Connection": "close"}
        if key:
            headers[key[0]] = key[1]
        if body is not None and not isinstance(body, str):
            body = json.dumps(body)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except ConnectionRefusedError:
            return "refused", ""
        except TimeoutError:
            return "silent", ""
        except (ConnectionError, http.client.HTTPException):
            return "closed", ""
        finally:
            connection.close()

    def get(self, path: str, **how):
        return self.ask("GET", path, **how)

    def json(self, path: str):
        status, body = self.get(path)
        assert status == 200, f"{self.kind} {path}: {status} {body}"
        return json.loads(body)

    def post(self, path: str, body=None, **how):
        status, body = self.ask("POST", path, body, **how)
        with contextlib.suppress(ValueError):
            body = json.loads(body)
        return status, body

    def complete(self, prompt: str, n_predict: int = 4, **more):
        """A completion of exactly `n_predict` tokens, if there is room: the real model would otherwise end one early, now
        and then."""
        asked = {"prompt": prompt, "n_predict": n_predict, "ignore_eos": True, **more}
        status, answer = self.post("/completion", asked, timeout=60)
        assert status == 200, f"{self.kind}: {answer}"
        return answer

    def action(self, slot, action: str, file: str = "a.bin", **how):
        return self.post(f"/slots/{slot}?action={action}", {"filename": file}, **how)

    def metric(self, name: str) -> float:
        page = self.get("/metrics")[1]
        return float(re.search(rf"^llamacpp:{name} (\S+)", page, re.M).group(1))

    def open(self, body: dict, path: str = "/completion") -> socket.socket:
        """A request whose answer is not waited for."""
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        body = json.dumps(body)
        wire.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
                     f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return wire

    def busy(self, stream: bool = False, n_predict: int = FOREVER) -> socket.socket:
        wire = self.open({"prompt": STORY, "n_predict": n_predict, "ignore_eos": True, "stream": stream})
        self.wait(self._decodes, what="the request runs")
        return wire

    def _decodes(self) -> bool:
        slot = self.json("/slots")[0]
        return slot["is_processing"] and slot["next_token"][0]["n_decoded"] > 0

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit(self, within: float = 10.0):
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            return "alive"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
