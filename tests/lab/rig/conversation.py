"""A conversation with llama.cpp, long enough to matter, and what its answers say about the cache."""

import dataclasses
import http.client
import json
import threading
import time
import urllib.request

WORDS = ("the quick brown fox jumps over the lazy dog while seven wizards mix a jug of liquid and the daemon waits "
         "for its server to wake again").split()


def post(url: str, body: dict, timeout: float = 60) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@dataclasses.dataclass
class Answer:
    cached: int
    computed: int

    @property
    def prompt(self) -> int:
        return self.cached + self.computed

    @property
    def reused(self) -> float:
        """The part of the prompt that came from the cache, as llama.cpp itself tells it (timings.cache_n)."""
        return self.cached / self.prompt


class Conversation:
    """One letter is one token of the lab's model, so 4,500 characters are more than 4,000 tokens."""

    def __init__(self, url: str, tokens: int = 4500, about: str = "", slot: int = -1) -> None:
        self.url, self.slot = url, slot
        self.text = about
        number = 0
        while len(self.text) < tokens:
            self.text += f"{WORDS[number * 7 % len(WORDS)]} {number} "
            number += 1

    def say(self, more: str = "", n_predict: int = 24) -> Answer:
        self.text += more
        answer = post(self.url + "/completion",
                      {"prompt": self.text, "n_predict": n_predict, "temperature": 0, "cache_prompt": True,
                       "id_slot": self.slot})
        timings = answer["timings"]
        return Answer(timings["cache_n"], timings["prompt_n"])


class Stream(threading.Thread):
    """A client that reads a generated text as it comes: `tokens` pieces, `finished` when the server said so."""

    def __init__(self, host: str, port: int, n_predict: int, prompt: str = "once upon a time ") -> None:
        super().__init__(daemon=True)
        self.host, self.port, self.n_predict, self.prompt = host, port, n_predict, prompt
        self.pieces = 0
        self.finished = False
        self.error: str | None = None
        self.ended_at: float | None = None
        self.hang_up = False
        self.start()
        end = time.monotonic() + 10
        while not self.pieces and self.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.pieces, f"the stream never began: {self.error}"

    def run(self) -> None:
        body = {"prompt": self.prompt, "stream": True, "n_predict": self.n_predict, "max_tokens": self.n_predict,
                "temperature": 1.0, "ignore_eos": True}
        try:
            wire = http.client.HTTPConnection(self.host, self.port, timeout=30)
            path = "/completion" if self.port == 8080 else "/v1/completions"
            wire.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = wire.getresponse()
            while not self.hang_up and (line := answer.readline()):
                if line.startswith(b"data: "):
                    self.pieces += 1
                    if line.startswith(b"data: [DONE]") or b'"stop":true' in line:
                        self.finished = True
                    if b'"error"' in line:
                        self.error = line.decode()
            wire.close()
        except OSError as error:
            self.error = repr(error)
        except http.client.HTTPException as error:
            self.error = repr(error)
        self.ended_at = time.monotonic()
