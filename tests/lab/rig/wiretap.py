"""A tap on the server's network cable: which HTTP requests really went to the backends, whoever claims what."""

import dataclasses
import socket
import struct
import threading
import time

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
        self.wire.bind((interface, 0))
        self.start()

    def run(self) -> None:
        while True:
            try:
                frame = self.wire.recv(262144)
            except OSError:  # the cable is pulled; it will be plugged in again
                time.sleep(0.01)
                continue
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
        return [request for request in self.seen if word in request.line]
