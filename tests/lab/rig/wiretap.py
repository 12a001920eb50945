"""A tap on the server's network cable: which HTTP requests really went to the backends, whoever claims what."""

import contextlib
import dataclasses
import select
import socket
import struct
import threading
import time

SO_RCVBUFFORCE = 33  # as SO_RCVBUF, beyond the limit for ordinary users
METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ")


@dataclasses.dataclass(frozen=True)
class Request:
    at: float
    source: str
    port: int
    line: str  # as "POST /slots/0?action=save HTTP/1.1"


class Tap(threading.Thread):
    """Listens on one network interface of this machine for ever; keeps request lines that contain one of `words`."""

    def __init__(self, interface: str, words: tuple[str, ...] = ("POST ",)) -> None:
        super().__init__(daemon=True)
        self.words = words
        self.seen: list[Request] = []
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self.wire.bind((interface, 0))
        self.lock = threading.Lock()
        self.start()

    def run(self) -> None:
        while True:
            select.select([self.wire], [], [])
            try:
                with self.lock:
                    self._take()
            except OSError:  # the cable is pulled; it will be plugged in again
                time.sleep(0.01)

    def _take(self) -> None:
        """All that has been on the wire until now."""
        while True:
            try:
                frame = self.wire.recv(262144, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
                continue
            tcp = 14 + (frame[14] & 15) * 4
            payload = frame[tcp + (frame[tcp + 12] >> 4) * 4:][:512]
            if not payload.startswith(METHODS):
                continue
            line = payload.split(b"\r\n", 1)[0].decode(errors="replace")
            if any(word in line for word in self.words):
                port = struct.unpack_from("!H", frame, tcp + 2)[0]
                self.seen.append(Request(time.time(), socket.inet_ntoa(frame[26:30]), port, line))

    def of(self, word: str) -> list[Request]:
        # On a busy machine the thread may be late: what was answered already has been on the wire.
        with contextlib.suppress(OSError), self.lock:
            self._take()
        return [request for request in self.seen if word in request.line]
