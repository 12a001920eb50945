#!/usr/bin/env python3
"""llama.cpp's own HTTP server (by xllamacpp) with the command line and the habits of llama-server.

What is real: the HTTP server, the model, the slots, the slot files, the metrics. What the wheel lacks and this
program adds is the signal handling of llama-server's main(): SIGTERM during the load kills at once; when ready and
idle it ends with 0; with requests open it stops listening and waits for the clients; a second SIGTERM ends with 1.
(The wheel cannot close its listening socket, so here the port stays open while waiting; see ../README.md.)

Faults come from the environment (an EnvironmentFile of the unit):
  LAB_LLAMA_LOAD=SECONDS   answer 503 "Loading model" that long before the model is loaded
  LAB_LLAMA_FAIL=load      exit 1 instead of loading, as llama-server does for a broken model
  LAB_LLAMA_FAIL=loading   answer 503 for ever
  LAB_LLAMA_FAIL=stop      ignore SIGTERM
  LAB_LLAMA_CACHE_K=f32    another type of KV cache than the command line says, with which files saved before are rejected
"""

import argparse
import http.server
import json
import os
import signal
import sys
import threading
import time
import urllib.request

LOADING = json.dumps({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}).encode()


class Loading(http.server.BaseHTTPRequestHandler):
    """Every path answers 503 while the model loads."""

    protocol_version = "HTTP/1.0"

    def answer(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(LOADING)))
        self.end_headers()
        self.wfile.write(LOADING)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


def answer_loading(host: str, port: int, seconds: float) -> None:
    server = http.server.ThreadingHTTPServer((host, port), Loading)
    threading.Timer(seconds, server.shutdown).start()
    server.serve_forever(poll_interval=0.01)
    server.server_close()


def in_flight(port: int, key: str | None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=2) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("llamacpp:requests_processing "):
                return int(float(line.split()[1]))
    return 0


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8080)
    options.add_argument("--ctx-size", type=int, default=8192)
    options.add_argument("--parallel", type=int, default=1)
    options.add_argument("--kv-unified", "-kvu", action="store_true")
    options.add_argument("--no-cache-idle-slots", action="store_true")
    options.add_argument("--swa-full", action="store_true")
    options.add_argument("--ctx-checkpoints", type=int)
    options.add_argument("--flash-attn", "-fa", choices=("on", "off", "auto"), default="auto")
    options.add_argument("--cache-type-k", "-ctk", default="f16")
    options.add_argument("--cache-type-v", "-ctv", default="f16")
    options.add_argument("--slot-save-path")
    options.add_argument("--alias")
    options.add_argument("--api-key")
    options = options.parse_args()

    fail = os.environ.get("LAB_LLAMA_FAIL", "")
    load = float(os.environ.get("LAB_LLAMA_LOAD") or 0)
    if fail == "loading":
        load = 1e9
    if load:
        print("srv  main: loading model", flush=True)
        answer_loading(options.host, options.port, min(load, threading.TIMEOUT_MAX))
    if fail == "load":
        print(f"gguf_init_from_file: failed to open GGUF file '{options.model}'", flush=True)
        print("srv  main: exiting due to model loading error", flush=True)
        return 1
    if options.slot_save_path and not os.path.isdir(options.slot_save_path):
        print(f"error: --slot-save-path: not a directory: {options.slot_save_path}", flush=True)
        return 1

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.warmup = False
    params.kv_unified = options.kv_unified
    params.cache_idle_slots = not options.no_cache_idle_slots
    params.swa_full = options.swa_full
    if options.ctx_checkpoints is not None:
        params.n_ctx_checkpoints = options.ctx_checkpoints
    attention = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[options.flash_attn]
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{attention}")
    cache_k = os.environ.get("LAB_LLAMA_CACHE_K") or options.cache_type_k
    params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache_k.upper()}")
    params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type_v.upper()}")
    if options.slot_save_path:
        params.slot_save_path = os.path.join(options.slot_save_path, "")
    if options.alias:
        params.model_alias = {options.alias}  # a set: a bare string would be one of its letters
    if options.api_key:
        params.api_keys = [options.api_key]
    server = xllamacpp.Server(params)
    print(f"srv  main: server is listening on {server.listening_address}", flush=True)

    asked = threading.Event()

    def on_signal(number: int, _: object) -> None:
        if fail == "stop":
            print("srv  lab: SIGTERM ignored", flush=True)
        elif asked.is_set():
            print("Received second interrupt, terminating immediately.", flush=True)
            os._exit(1)
        else:
            asked.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while not asked.wait(0.02):
        pass
    print("srv  operator(): cleaning up before exit...", flush=True)
    while in_flight(options.port, options.api_key):
        time.sleep(1.6)  # faster polls would hide a client that has gone from llama.cpp
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
