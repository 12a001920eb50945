"""What is asked of a llama.cpp, real or virtual: each probe starts what it needs, and tells facts."""

import contextlib
import json
import re
import signal
import socket
import time

from .subject import FOREVER, SECONDS, STORY

#: Of the OpenAI forms: exactly three tokens. The real model would otherwise end one early, now and then.
THREE = {"max_tokens": 3, "ignore_eos": True}


def shape(value, at: str = "") -> dict[str, str]:
    """Which fields there are, and of what kind."""
    if isinstance(value, dict):
        found = {}
        for name, inner in value.items():
            found |= shape(inner, f"{at}.{name}")
        return found or {at: "object"}
    if isinstance(value, list):
        return shape(value[0], f"{at}[]") if value else {f"{at}[]": "empty"}
    kind = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]
    return {at: kind}


class Shape:
    """Fields: the virtual one may have fewer of them, but none that the real one has not, and these in any case."""

    def __init__(self, value, needed: str):
        self.fields = shape(value)
        self.needed = needed.split()

    def difference(self, virtual: "Shape") -> str:
        foreign = {name for name, kind in virtual.fields.items() if self.fields.get(name) != kind}
        missing = [name for name in self.needed if name not in self.fields or name not in virtual.fields]
        return f"foreign {sorted(foreign)}, missing {missing}" if foreign or missing else ""


def error(answer) -> tuple:
    """An error without what comes from the JSON library's own words."""
    status, body = answer
    body = json.loads(body) if isinstance(body, str) and body else body
    told = body["error"]
    message = re.sub(r"\d+ tokens", "N tokens", told["message"])
    found = re.match(r"\[json\.exception\.\w+\.\d+\]", message)
    return status, told["code"], told["type"], found.group(0) if found else message


def reuse(answer: dict) -> str:
    cached, computed = answer["timings"]["cache_n"], answer["timings"]["prompt_n"]
    if cached + computed != answer["tokens_evaluated"]:
        return "the sum is wrong"
    return "none" if cached <= 2 else "all but one" if computed == 1 else "some"


PROBES = []


def probe(function):
    PROBES.append(function)
    return function


@probe
def while_it_loads(start):
    server = start(slow=True)
    server.wait(lambda: server.get("/health")[0] != "refused", what="the port")
    facts = {}
    for method, path in [("GET", "/health"), ("GET", "/v1/health"), ("GET", "/v1/models"), ("GET", "/props"),
                         ("GET", "/slots"), ("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/completion"),
                         ("POST", "/slots/0?action=save"), ("DELETE", "/health")]:
        facts[f"{method} {path}"] = server.ask(method, path, key=None)
    server.signal(signal.SIGTERM)
    facts["exit after SIGTERM"] = server.exit()
    facts["port after it"] = server.get("/health")[0]
    return facts


@probe
def a_load_that_fails(start):
    server = start(broken=True)
    seen = set()
    while server.process.poll() is None:
        seen.add(server.get("/health")[0])
        time.sleep(0.005)
    return {"ever ready": 200 in seen, "exit": server.exit()}


@probe
def who_may_ask_what(start):
    server = start().ready()
    facts = {f"without a key {path}": server.get(path, key=None)[0]
             for path in ["/health", "/v1/health", "/v1/models", "/props", "/slots", "/metrics", "/nothing"]}
    for key in [("Authorization", "Bearer k"), ("Authorization", "bearer k"), ("Authorization", "k"),
                ("X-Api-Key", "k"), ("Authorization", "Bearer x")]:
        facts[f"with {key}"] = server.get("/props", key=key)[0]
    facts["the refusal"] = error(server.get("/props", key=None))
    return facts


@probe
def what_is_not_there(start):
    server = start().ready()
    return {f"{method} {path}": error(server.ask(method, path, body)) for method, path, body in [
        ("GET", "/nothing", None), ("GET", "/slots/0", None), ("POST", "/props", "{}"), ("POST", "/nothing", "{}"),
        ("DELETE", "/health", None)]}


@probe
def what_it_says_of_itself(start):
    server = start(parallel=2).ready()
    props, models = server.json("/props"), server.json("/v1/models")
    status, page = server.get("/metrics")
    return {
        "health": server.get("/health"),
        "props": Shape(props, ".total_slots .model_alias .model_path .build_info .is_sleeping .endpoint_slots "
                              ".endpoint_metrics .default_generation_settings.n_ctx"),
        "models": Shape(models, ".data[].id .data[].aliases[] .data[].owned_by .data[].meta.n_ctx"),
        "owned by": models["data"][0]["owned_by"],
        "slots": props["total_slots"],
        "context of a slot": props["default_generation_settings"]["n_ctx"],
        "path": props["model_path"],
        "asleep": props["is_sleeping"],
        "metrics": sorted(re.findall(r"^(llamacpp:\w+) \S+$", page, re.M)),
        "types of metrics": sorted(re.findall(r"^# TYPE (\S+ \S+)$", page, re.M)),
        "unused slots": server.json("/slots"),
    }


@probe
def without_a_slot_folder(start):
    server = start(slot_dir=None).ready()
    return {action: error(server.action(0, action)) for action in ["save", "restore", "erase"]} | {
        "bad id": error(server.action("x", "save")), "bad action": error(server.action(0, "foo"))}


@probe
def an_empty_slot_is_saved(start):
    server = start().ready()
    (server.slots / "a.bin").write_bytes(b"x" * 1000)
    status, answer = server.action(0, "save")
    size = (server.slots / "a.bin").stat().st_size
    return {"status": status, "n_saved": answer["n_saved"], "size": size, "said": answer["n_written"] == size,
            "shape": Shape(answer, ".id_slot .filename .n_saved .n_written"),
            "restored": server.action(0, "restore")[0]}


@probe
def wrong_questions_about_slots(start):
    server = start().ready()
    facts = {
        "bad id": error(server.action("x", "save")), "bad action": error(server.action(0, "foo")),
        "no action": error(server.post("/slots/0", {"filename": "a"})),
        "no body": error(server.post("/slots/0?action=save")),
        "bad body": error(server.post("/slots/0?action=save", "{bad")),
        "no name": error(server.post("/slots/0?action=save", {})),
        "a number": error(server.post("/slots/0?action=save", {"filename": 5})),
    }
    for name in ["a:b", "../a", "a/b", "a.", " a", "", "a" * 256, "a\n"]:
        facts[f"name {name!r:.12}"] = error(server.action(0, "save", name))
    (server.slots / "folder").mkdir()
    facts["a folder"] = error(server.action(0, "save", "folder"))
    facts["good names"] = [server.action(0, "save", name)[0] for name in ["a b", "ä.bin", "a" * 255, ".a"]]
    return facts


@probe
def slots_before_and_after_use(start):
    server = start(parallel=2).ready()
    server.complete(STORY, id_slot=0)
    first = server.json("/slots")
    again = server.json("/slots")
    answer = server.complete(STORY, id_slot=0)
    after = server.json("/slots")
    return {
        "used": Shape(first[0], ".id .n_ctx .is_processing .id_task .n_prompt_tokens .n_prompt_tokens_processed "
                                ".n_prompt_tokens_cache .next_token[].n_decoded"),
        "unused": first[1],
        "polls change nothing": first == again,
        "a request changes the task": after[0]["id_task"] > first[0]["id_task"],
        "polls take numbers": after[0]["id_task"] - first[0]["id_task"] > 1,
        "held": after[0]["n_prompt_tokens"] - answer["tokens_evaluated"] - answer["tokens_predicted"],
        "zeroed": [after[0][name] for name in ["n_prompt_tokens_processed", "n_prompt_tokens_cache"]],
        "tokens_cached is what it holds": answer["tokens_cached"] == after[0]["n_prompt_tokens"],
    }


@probe
def slots_while_a_request_runs(start):
    server = start(parallel=2).ready()
    idle = server.get("/slots?fail_on_no_slot=1")[0]
    with contextlib.ExitStack() as open_:
        for slot in [0, 1]:
            asked = {"prompt": STORY, "n_predict": FOREVER // 2 - 500, "ignore_eos": True, "id_slot": slot}
            open_.enter_context(server.open(asked))
        server.wait(lambda: all(s["is_processing"] and s["next_token"][0]["n_decoded"] for s in server.json("/slots")),
                    what="both run")
        slot = server.json("/slots")[0]
        return {
            "idle": idle,
            "all busy": error(server.get("/slots?fail_on_no_slot=1")),
            "shape": Shape(slot, ".id_task .next_token[].n_decoded"),
            "decoding": slot["next_token"][0]["n_decoded"] > 0,
            "remains": slot["next_token"][0]["n_decoded"] + slot["next_token"][0]["n_remain"],
            "processed": slot["n_prompt_tokens_processed"] > 0,
        }


@probe
def counters(start):
    server = start().ready()
    names = ["prompt_tokens_total", "tokens_predicted_total", "prompt_tokens_cached_total", "requests_deferred"]
    wire = server.busy(n_predict=SECONDS)
    during = {name: server.metric(name) for name in names}
    facts = {"prompt": during.pop("prompt_tokens_total") >= len(STORY)}
    running = server.metric("requests_processing")
    decoded = server.metric("n_decode_total")
    time.sleep(0.2)
    facts |= {"during": during, "running": running, "decodes move": server.metric("n_decode_total") > decoded > 0}
    server.wait(lambda: server.metric("requests_processing") == 0, 60, "the request ends")
    wire.close()
    facts["predicted"] = server.metric("tokens_predicted_total")
    facts["decodes"] = server.metric("n_decode_total")
    prompt = server.metric("prompt_tokens_total")
    facts["most"] = server.metric("n_tokens_max") - prompt
    again = server.complete(STORY)
    facts["cached"] = server.metric("prompt_tokens_cached_total") - again["timings"]["cache_n"]
    facts["both prompts alike"] = prompt - again["tokens_evaluated"]
    before = [server.metric(name) for name in names]
    for _ in range(3):
        server.json("/slots")
        server.post("/tokenize", {"content": "abc"})
        server.action(0, "save")
    facts["ours count for nothing"] = [server.metric(name) for name in names] == before
    return facts


@probe
def a_stream_is_hung_up(start):
    server = start().ready()
    wire = server.busy(stream=True)
    wire.recv(1000)
    wire.close()
    server.wait(lambda: server.metric("requests_processing") == 0, 5, "it is noticed")
    return {"what was generated counts": server.metric("tokens_predicted_total") > 0,
            "the slot keeps it": server.json("/slots")[0]["n_prompt_tokens"] > len(STORY)}


@probe
def a_stream_that_waits_for_a_slot(start):
    server = start().ready()
    with server.busy(), server.open({"prompt": STORY, "n_predict": 3, "stream": True}) as wire:
        wire.settimeout(0.5)
        try:
            return {"at once": wire.recv(1000).decode().splitlines()[:1]}
        except TimeoutError:
            return {"at once": "nothing"}


@probe
def a_stream_of_a_request_that_is_none(start):
    server = start(ctx_size=256).ready()
    return {"too long": error(server.post("/completion", {"prompt": "a" * 2000, "stream": True})),
            "no prompt": error(server.post("/v1/completions", {"stream": True})),
            "no messages": error(server.post("/v1/chat/completions", {"stream": True}))}


@probe
def somebody_hangs_up_while_others_poll(start):
    server = start().ready()
    server.busy().close()
    for _ in range(12):
        time.sleep(0.2)
        running = server.metric("requests_processing")
    time.sleep(2.5)
    return {"with fast polls": running, "without": server.metric("requests_processing")}


@probe
def reuse_in_memory(start):
    server = start().ready()
    facts = {"first": reuse(server.complete(STORY)), "same": reuse(server.complete(STORY)),
             "more": reuse(server.complete(STORY + "and on")),
             "not wanted": reuse(server.complete(STORY, cache_prompt=False))}
    status, answer = server.post("/v1/completions", {"prompt": STORY, **THREE})
    usage, timings = answer["usage"], answer["timings"]
    facts |= {"status": status, "told twice": usage["prompt_tokens_details"]["cached_tokens"] == timings["cache_n"],
              "sum": usage["prompt_tokens"] - timings["cache_n"] - timings["prompt_n"],
              "total": usage["total_tokens"] - usage["prompt_tokens"] - usage["completion_tokens"],
              "completion": usage["completion_tokens"]}
    return facts


@probe
def another_prompt_between(start):
    server = start().ready()
    server.complete(STORY)
    server.complete("0123456789" * 8)
    return {"from the cache": reuse(server.complete(STORY))}


@probe
def which_slot_is_taken(start):
    server = start(parallel=3).ready()
    a, b, c, d = (letter * 60 for letter in "abcd")
    order = [server.complete(prompt, 1)["id_slot"] for prompt in [a, b, c, a + "more", d]]
    return {"order": order, "wrapped": server.complete("e" * 60, 1, id_slot=7)["id_slot"]}


@probe
def forms_of_answers(start):
    server = start(ctx_size=512).ready()
    messages = [{"role": "user", "content": "hello there"}]
    _, text = server.post("/v1/completions", {"prompt": STORY, **THREE})
    _, chat = server.post("/v1/chat/completions", {"messages": messages, **THREE})
    full = server.complete(STORY, 5000)
    facts = {
        "native": Shape(full, ".content .id_slot .tokens_evaluated .tokens_cached .tokens_predicted .timings.cache_n "
                              ".timings.prompt_n .timings.predicted_n .truncated .stop_type"),
        "text": Shape(text, ".choices[].text .choices[].finish_reason .usage.prompt_tokens .timings.cache_n "
                            ".usage.prompt_tokens_details.cached_tokens .model .object .id"),
        "chat": Shape(chat, ".choices[].message.content .choices[].finish_reason .usage.prompt_tokens "
                            ".timings.cache_n"),
        "objects": (text["object"], chat["object"], text["choices"][0]["finish_reason"]),
        "full": (full["tokens_evaluated"] + full["tokens_predicted"], full["truncated"], full["stop_type"]),
        "nothing wanted": server.complete(STORY, 0)["tokens_predicted"],
        "too long": error(server.post("/completion", {"prompt": "a" * 2000})),
        "no prompt": error(server.post("/completion", {"n_predict": 1})),
        "bad JSON": error(server.post("/completion", "{bad")),
    }
    for path in ["/completion", "/v1/completions", "/v1/chat/completions"]:
        asked = {"prompt": STORY, "messages": messages, **THREE, "n_predict": 3, "stream": True}
        status, body = server.ask("POST", path, asked)
        events = [event.removeprefix("data: ") for event in body.split("\n\n") if event]
        last = json.loads([event for event in events if event != "[DONE]"][-1])
        facts[f"stream {path}"] = (status, events[-1] == "[DONE]", last["timings"]["predicted_n"], "usage" in last)
    ids = json.loads(server.ask("POST", "/tokenize", {"content": "abc"})[1])["tokens"]
    facts["tokens as a prompt"] = server.post("/completion", {"prompt": ids, "n_predict": 1})[0]
    return facts


def _saved(start, story=STORY * 3, **options):
    """A server that has told a story, saved it as a.bin and been started again."""
    server = start(**options).ready()
    server.complete(story, id_slot=0)
    status, answer = server.action(0, "save")
    assert status == 200, answer
    server.signal(signal.SIGTERM)
    assert server.exit() == 0
    return start(**options).ready(), answer


@probe
def a_restored_slot(start):
    server, saved = _saved(start)
    size = (server.slots / "a.bin").stat().st_size
    head = (server.slots / "a.bin").read_bytes()[:24]
    words = [int.from_bytes(head[at:at + 4], "little") for at in range(0, 24, 4)]
    status, answer = server.action(0, "restore")
    unused = server.json("/slots")
    facts = {
        "status": status, "restored": answer["n_restored"] == saved["n_saved"],
        "read": answer["n_read"] == saved["n_written"] == size,
        "shape": Shape(answer, ".id_slot .filename .n_restored .n_read"),
        "head": (words[0], words[1], words[2] - words[5], words[3], words[4], words[5] == saved["n_saved"]),
        "bytes a token": 500 < size / saved["n_saved"] < 600,
        "unused": unused,
        "reuse": reuse(server.complete(STORY * 3)),
    }
    server.action(0, "restore")
    facts["used and restored"] = server.json("/slots")[0]["n_prompt_tokens"] == saved["n_saved"]
    facts["a missing file"] = error(server.action(0, "restore", "none"))
    facts["empties"] = server.json("/slots")[0]["n_prompt_tokens"]
    facts["another id"] = server.action(5, "restore")[1]["id_slot"]
    status, answer = server.action(0, "erase")
    facts["erased"] = (status, answer["n_erased"] == saved["n_saved"], sorted(answer))
    facts["erased again"] = server.post("/slots/0?action=erase")[1]["n_erased"]
    return facts


@probe
def the_saved_tokens_are_sent_back(start):
    server, saved = _saved(start)
    content = (server.slots / "a.bin").read_bytes()
    count = saved["n_saved"]
    words = [int.from_bytes(content[at:at + 4], "little") for at in range(0, 4 * (count + 9), 4)]
    wanted = {"prompt": words[6:6 + count], "n_predict": 0, "id_slot": 0, "cache_prompt": True}
    server.action(0, "restore")
    decodes = server.metric("n_decode_total")
    status, answer = server.post("/completion", wanted | {"response_fields": ["timings"]})
    timings = answer["timings"]
    return {
        "status": status, "fields": sorted(answer), "predicted": timings["predicted_n"],
        "all but one": (timings["cache_n"] - count, timings["prompt_n"]),
        "decodes": server.metric("n_decode_total") - decodes,
        "counted": (server.metric("prompt_tokens_cached_total") - timings["cache_n"],
                    server.metric("tokens_predicted_total") - timings["predicted_n"]),
        "held": server.json("/slots")[0]["n_prompt_tokens"] - count,
        "after the tokens": words[6 + count:3 + words[2]],
        "one inside another": sorted(server.post("/completion", wanted | {"response_fields": ["timings/cache_n"]})[1]),
        "no such token": error(server.post("/completion", wanted | {"prompt": [99999]})),
    }


@probe
def files_that_are_not_as_saved(start):
    server, saved = _saved(start)
    good = (server.slots / "a.bin").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    changed = {
        "empty": b"", "two bytes": good[:2], "no version": good[:4], "ten bytes": good[:10],
        "within the record": good[:100], "magic": b"xxxx" + good[4:], "version 3": good[:4] + b"\3" + good[5:],
        "extra bytes": good + b"x" * 100, "flipped": bytes(flipped),
    }
    facts = {}
    for name, content in changed.items():
        (server.slots / "b.bin").write_bytes(content)
        status, answer = server.action(0, "restore", "b.bin")
        facts[name] = error((status, answer)) if status == 400 else (status, reuse(server.complete(STORY * 3)))
    return facts


@probe
def a_truncated_file(start):
    server, saved = _saved(start)
    good = (server.slots / "a.bin").read_bytes()
    facts = {}
    for name, length in [("half", len(good) // 2), ("one byte short", len(good) - 1), ("a quarter", len(good) // 4)]:
        (server.slots / "b.bin").write_bytes(good[:length])
        facts[name] = (server.action(0, "restore", "b.bin", timeout=60)[0], server.exit(60), server.get("/health")[0])
        server = start().ready()
    return facts


@probe
def a_file_for_another_server(start):
    # llama.cpp never makes a context smaller than 256.
    server, _ = _saved(start, story=STORY * 6)
    small = start(ctx_size=256).ready()
    two = start(parallel=2).ready()
    return {"too small": error(small.action(0, "restore")), "more slots": error(two.action(0, "restore"))}


@probe
def one_of_several_slots(start):
    server, saved = _saved(start, parallel=2)
    facts = {"into another": server.action(1, "restore")[0],
             "reuse": reuse(server.complete(STORY * 3, id_slot=1)),
             "empty": server.action(0, "save", "empty")[1]["n_saved"],
             "size of an empty one": (server.slots / "empty").stat().st_size}
    return facts


@probe
def a_save_of_a_busy_slot(start):
    server = start().ready()
    wire = server.busy(n_predict=SECONDS)
    facts = {"given up": server.action(0, "save", "gone", timeout=1.0)[0]}
    save = server.open({"filename": "kept"}, "/slots/0?action=save")
    save.settimeout(120)
    time.sleep(1.2)
    facts["health"] = server.get("/health")[0]
    facts["deferred"] = server.metric("requests_deferred") in (1, 2)
    facts["written while busy"] = (server.slots / "kept").exists()
    # The answer is read, so that it is not taken for one who has gone.
    with save, wire:
        answer = save.recv(65536).decode()
    facts["answer"] = answer.split()[1]
    facts["the file that was given up"] = (server.slots / "gone").exists()
    facts["held"] = json.loads(answer.split("\r\n\r\n")[1])["n_saved"] == server.json("/slots")[0]["n_prompt_tokens"]
    return facts


@probe
def sigterm_when_idle(start):
    server = start().ready()
    with socket.create_connection(("127.0.0.1", server.port)) as kept:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        kept.recv(1000)
        server.signal(signal.SIGTERM)
        return {"exit": server.exit(3), "port": server.get("/health")[0]}


@probe
def sigterm_with_a_stream_open(start):
    server = start().ready()
    wire = server.busy(stream=True)
    wire.recv(100)
    server.signal(signal.SIGTERM)
    time.sleep(0.5)
    wire.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while wire.recv(1 << 20):
            pass
    time.sleep(0.3)
    try:
        goes_on = len(wire.recv(1000)) > 0
    except BlockingIOError:
        goes_on = False
    facts = {"stream goes on": goes_on, "alive after a while": server.exit(1),
             "port": "closed" if server.get("/health")[0] == "refused" else "open"}
    wire.close()
    return facts | {"exit once the client hangs up": server.exit(10)}


@probe
def sigterm_with_a_request_open(start):
    server = start().ready()
    wire = server.busy()
    server.signal(signal.SIGTERM)
    facts = {"alive after a while": server.exit(1)}
    wire.close()
    return facts | {"exit once the client hangs up": server.exit(10)}


@probe
def sigterm_with_half_a_request_open(start):
    server = start().ready()
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"POST /completion HTTP/1.1\r\nContent-Le")
        time.sleep(0.1)
        server.signal(signal.SIGTERM)
        facts = {"alive after a while": server.exit(2) == "alive"}
    return facts | {"exit in the end": server.exit(10)}


@probe
def sigterm_twice(start):
    server = start().ready()
    with server.busy():
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        return {"exit": server.exit(5)}


@probe
def a_port_in_use(start):
    first = start().ready()
    second = start(port=first.port)
    return {"exit": second.exit(), "the first": first.get("/health")[0]}
