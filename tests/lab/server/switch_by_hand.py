#!/usr/bin/env python3
"""The yardstick of bench_switch: one switch, done on the server itself by somebody who knows exactly what to do.

`switch_by_hand.py FROM_UNIT FROM_PORT TO_UNIT TO_PORT FILE`: save slot 0, stop, start, poll /health every millisecond,
restore. Prints the milliseconds as JSON. No daemon, no network, no SSH, no checks beyond the answers themselves.
"""

import http.client
import json
import os
import subprocess
import sys
import time

SLOTS = {"8080": "/mnt/models/cache/slots", "8000": "/mnt/models/cache/slots"}


def ask(port: str, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    wire = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    try:
        wire.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = wire.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        wire.close()


def main() -> None:
    from_unit, from_port, to_unit, to_port, name = sys.argv[1:]
    began = time.monotonic()
    marks = {}

    def mark(what: str) -> None:
        marks[what] = round((time.monotonic() - began) * 1000, 2)

    status, saved = ask(from_port, "POST", "/slots/0?action=save", {"filename": f"{name}-{from_port}"})
    assert status == 200 and os.path.getsize(f"{SLOTS[from_port]}/{name}-{from_port}") == saved["n_written"], saved
    mark("saved")
    subprocess.run(["systemctl", "stop", from_unit], check=True)
    mark("stopped")
    subprocess.run(["systemctl", "start", to_unit], check=True)
    mark("started")
    while True:
        try:
            if ask(to_port, "GET", "/health")[0] == 200:
                break
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.001)
    mark("healthy")
    if os.path.exists(f"{SLOTS[to_port]}/{name}-{to_port}"):
        status, restored = ask(to_port, "POST", "/slots/0?action=restore", {"filename": f"{name}-{to_port}"})
        assert status == 200, restored
    mark("restored")
    print(json.dumps(marks))


if __name__ == "__main__":
    main()
