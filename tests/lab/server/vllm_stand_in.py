#!/usr/bin/env python3
"""A program that behaves as `vllm serve` does towards a supervisor, without the model and the minutes.

Kept from the real one: the port is bound but refuses connections for the whole load; /health has an empty body;
/v1/models says owned_by vllm; /metrics has the gauges and counters a supervisor reads; unknown paths answer FastAPI's
404; an engine process beside the main one, whose death makes /health 503 and ends the program with exit code 0 a
little later; requests under way get 500 at SIGTERM; with LAB_VLLM_TERM=swallow a SIGTERM during the load is lost.

Settings come from the environment (an EnvironmentFile of the unit):
  LAB_VLLM_LOAD=SECONDS    from start to listening (default 2)
  LAB_VLLM_STOP=SECONDS    from SIGTERM to the end (default 0.4)
  LAB_VLLM_TOKEN=SECONDS   per generated token (default 0.02)
  LAB_VLLM_ENGINE_DEATH=SECONDS  from the engine's death to exit 0 (default 1)
  LAB_VLLM_TERM=swallow    SIGTERM during the load is swallowed
  LAB_VLLM_FAIL=load       exit 1 after the load time       =loading    never listen
               =crash      SIGABRT one second after ready   =stop       ignore SIGTERM
               =not-json   /v1/models answers HTML          =endless    answers never end
"""

import argparse
import ctypes
import http.server
import json
import os
import signal
import sys
import threading
import time

STARTED = time.time()
LOAD = float(os.environ.get("LAB_VLLM_LOAD") or 2)
STOP = float(os.environ.get("LAB_VLLM_STOP") or 0.4)
TOKEN = float(os.environ.get("LAB_VLLM_TOKEN") or 0.02)
ENGINE_DEATH = float(os.environ.get("LAB_VLLM_ENGINE_DEATH") or 1)
FAIL = os.environ.get("LAB_VLLM_FAIL", "")
PR_SET_NAME, PR_SET_PDEATHSIG = 15, 1


class State:
    lock = threading.Lock()
    running = 0
    finished = 0
    prompt_tokens = 0
    generated_tokens = 0
    engine_dead = False
    stopping = threading.Event()
    model = ""


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "uvicorn"

    def log_message(self, *_: object) -> None:
        pass

    def body(self, code: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if FAIL == "endless":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                self.wfile.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
                time.sleep(0.001)
        path = self.path.split("?")[0]
        if path in ("/health", "/ping"):
            self.body(503 if State.engine_dead else 200, "", "text/plain")
        elif path == "/v1/models" and FAIL == "not-json":
            self.body(200, "<html><body>a proxy's greeting</body></html>", "text/html")
        elif path == "/v1/models":
            model = {"id": State.model, "object": "model", "created": int(time.time()), "owned_by": "vllm",
                     "root": State.model, "parent": None, "max_model_len": 2048, "permission": []}
            self.body(200, json.dumps({"object": "list", "data": [model]}))
        elif path == "/version":
            self.body(200, '{"version":"0.33.0"}')
        elif path == "/load":
            self.body(200, '{"server_load":0}')
        elif path == "/metrics":
            self.body(200, metrics(), "text/plain; version=1.0.0")
        else:
            self.body(404, '{"detail":"Not Found"}')

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        try:
            request = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            return self.body(400, '{"error":{"message":"bad JSON","type":"BadRequestError","code":400}}')
        if self.path != "/v1/completions":
            return self.body(404, '{"detail":"Not Found"}')
        wanted = int(request.get("max_tokens", 16))
        stream = bool(request.get("stream"))
        prompt = len(str(request.get("prompt", "")))
        with State.lock:
            State.running += 1
            State.prompt_tokens += prompt
        try:
            if stream:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
            for _ in range(wanted):
                if State.stopping.wait(TOKEN) or State.engine_dead:
                    error = {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for "
                                                  "the root cause.", "type": "InternalServerError", "code": 500}}
                    if not stream:
                        return self.body(500, json.dumps(error))
                    self.wfile.write(b"data: " + json.dumps(error).encode() + b"\n\n")
                    break
                with State.lock:
                    State.generated_tokens += 1
                if stream:
                    self.wfile.write(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')
                    self.wfile.flush()
            if stream:
                self.wfile.write(b"data: [DONE]\n\n")
            else:
                self.body(200, json.dumps({
                    "object": "text_completion", "model": State.model,
                    "choices": [{"index": 0, "text": "a" * wanted, "finish_reason": "length"}],
                    "usage": {"prompt_tokens": prompt, "completion_tokens": wanted, "total_tokens": prompt + wanted}}))
            with State.lock:
                State.finished += 1
        finally:
            with State.lock:
                State.running -= 1


def metrics() -> str:
    label = f'{{engine="0",model_name="{State.model}"}}'
    done = f'{{engine="0",finished_reason="length",model_name="{State.model}"}}'
    return f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{label} {float(State.running)}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{label} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{label} 0.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{label} {float(State.prompt_tokens)}
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{label} {float(State.generated_tokens)}
# TYPE vllm:request_success_total counter
vllm:request_success_total{done} {float(State.finished)}
# TYPE process_start_time_seconds gauge
process_start_time_seconds {STARTED}
"""


def start_engine() -> None:
    """The engine is a process of its own; when it dies the API answers 503 for a moment and exits with 0."""
    libc = ctypes.CDLL(None)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(PR_SET_NAME, b"VLLM::EngineCor", 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        while True:
            signal.pause()

    def watch() -> None:
        os.waitpid(pid, 0)
        if not State.stopping.is_set():
            State.engine_dead = True
            print("(EngineCore) died unexpectedly, shutting down", flush=True)
            time.sleep(ENGINE_DEATH)
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("command", choices=["serve"])
    options.add_argument("model")
    options.add_argument("--host", default="0.0.0.0")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--served-model-name")
    options, _ = options.parse_known_args()
    State.model = options.served_model_name or options.model

    print(f"(APIServer pid={os.getpid()}) INFO version 0.33.0", flush=True)
    ready = threading.Event()

    def on_term(number: int, _: object) -> None:
        if FAIL == "stop":
            return
        if not ready.is_set():
            if os.environ.get("LAB_VLLM_TERM") == "swallow":
                print("(APIServer) SIGTERM lost while the engine starts", flush=True)
                return
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        State.stopping.set()

    signal.signal(signal.SIGTERM, on_term)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    server = Server((options.host, options.port), Api, bind_and_activate=False)
    server.server_bind()  # bound, not listening: refused until the model is there
    end = time.monotonic() + (1e9 if FAIL == "loading" else LOAD)
    while time.monotonic() < end:
        time.sleep(min(0.05, max(0.0, end - time.monotonic())))
    if FAIL == "load":
        print("(APIServer) ERROR ValueError: no such model", flush=True)
        return 1
    start_engine()
    server.server_activate()
    ready.set()
    print("(APIServer) INFO:     Application startup complete.", flush=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    if FAIL == "crash":
        time.sleep(1)
        os.abort()
    while not State.stopping.wait(0.05):
        pass
    time.sleep(STOP)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
