"""More calls than a gRPC client can make: HTTP/2 frames written beforehand, sent by the clock on plain sockets.

A client of grpc's costs as much for each call as a server needs to refuse it, and on one machine takes that from the
server. Here a call costs some microseconds: its frames differ from those of the call before by the number of the stream
(and by what its message is), and of the reply only the status is looked for. No TLS, no HPACK table (the server is
told to use none), no look at what an answer says. Flow control is kept: what the server has no room for waits here,
and its wait counts.
"""

from __future__ import annotations

import itertools
import re
import selectors
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_TABLE_SIZE, _INITIAL_WINDOW, _FRAME_SIZE = 1, 4, 5
_LARGEST = 2**31 - 1
_WINDOW, _FRAME = 65_535, 16_384
_TICK_S = 0.002
_STATUS = re.compile(rb"grpc-status[\x01\x02](\d+)")
_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
# As gRPC maps what a stream is reset with (doc/PROTOCOL-HTTP2.md of grpc).
_RESETS = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(host: str, method: str, timeout_s: float) -> bytes:
    """The header fields of a call, none of them indexed or compressed (RFC 7541, section 6.2.2)."""

    def text(value: str) -> bytes:
        assert len(value) < 127
        return bytes([len(value)]) + value.encode()

    named = {"te": "trailers", "content-type": "application/grpc", "grpc-timeout": f"{round(1e3 * timeout_s)}m"}
    literals = b"".join(b"\x00" + text(name) + text(value) for name, value in named.items())
    return b"\x83\x86" + b"\x04" + text(method) + b"\x01" + text(host) + literals


@dataclass
class Connection:
    """A connection: what waits to be sent on it, and the calls that are under way."""

    socket: socket.socket
    headers: bytes
    ended: Callable[[str, float], None]
    """Is told the status of a call and when it was to be made."""
    calls: dict[int, float] = field(default_factory=dict)
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    _streams: Iterator[int] = field(default_factory=lambda: itertools.count(1, 2))
    _room: int = _WINDOW
    _frame_size: int = _FRAME
    _out: bytearray = field(default_factory=bytearray)
    _in: bytearray = field(default_factory=bytearray)

    @classmethod
    def to(cls, address: str, method: str, timeout_s: float, ended: Callable[[str, float], None]) -> Connection:
        """Connects to HOST:PORT."""
        host, _, port = address.rpartition(":")
        plug = socket.create_connection((host.strip("[]"), int(port)))
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plug.setblocking(False)
        settings = struct.pack(">HIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, _LARGEST)
        self = cls(plug, header_block(address, method, timeout_s), ended)
        self._out += _PREFACE + frame(_SETTINGS, 0, 0, settings)
        self._out += frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST - _WINDOW))
        return self

    @property
    def open(self) -> bool:
        """Whether any call has no answer yet."""
        return bool(self.calls or self.waiting)

    def unanswered(self) -> list[float]:
        """When the calls that have no answer were to be made."""
        return [*self.calls.values(), *(due for due, _ in self.waiting)]

    def send(self) -> None:
        """Sends as much of what waits as there is room for."""
        while self.waiting and len(self.waiting[0][1]) + 5 <= self._room:
            due, message = self.waiting.popleft()
            stream, body = next(self._streams), struct.pack(">BI", 0, len(message)) + message
            self.calls[stream] = due
            self._room -= len(body)
            self._out += frame(_HEADERS, _END_HEADERS, stream, self.headers)
            pieces = [body[start : start + self._frame_size] for start in range(0, len(body), self._frame_size)]
            for piece in pieces[:-1]:
                self._out += frame(_DATA, 0, stream, piece)
            self._out += frame(_DATA, _END_STREAM, stream, pieces[-1])
        self._flush()

    def _flush(self) -> None:
        while self._out:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return
            except OSError:
                self._break()
                return

    def receive(self) -> None:
        """Reads what is there."""
        try:
            got = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self._break()
            return
        self._in += got
        start = 0
        while len(self._in) - start >= 9:
            size = int.from_bytes(self._in[start : start + 3])
            if len(self._in) - start < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._in, start + 3)
            self._take(kind, flags, stream, bytes(self._in[start + 9 : start + 9 + size]))
            start += 9 + size
        del self._in[:start]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS and flags & _END_STREAM:
            status = _STATUS.search(payload)
            self._end(stream, "UNKNOWN" if status is None else _CODES[int(status[1])])
        elif kind == _RST_STREAM:
            self._end(stream, _RESETS.get(int.from_bytes(payload), "INTERNAL"))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._room += int.from_bytes(payload)
        elif kind == _PING and not flags & _ACK:
            self._out += frame(_PING, _ACK, 0, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _FRAME_SIZE:
                    self._frame_size = value
            self._out += frame(_SETTINGS, _ACK, 0, b"")

    def _end(self, stream: int, code: str) -> None:
        due = self.calls.pop(stream, None)
        if due is not None:  # a stream may be reset after its status
            self.ended(code, due)

    def _break(self) -> None:
        """Ends every call as broken off."""
        for due in self.unanswered():
            self.ended("BROKEN", due)
        self.calls.clear()
        self.waiting.clear()
        self._out.clear()


def storm(
    connections: list[Connection], messages: Callable[[], bytes], rate: float, seconds: float, patience_s: float
) -> None:
    """Makes so many calls a second, by turns on each connection, and waits for the last of them for a while."""
    begun, made, turns = time.perf_counter(), 0, itertools.cycle(connections)
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while (now := time.perf_counter() - begun) < seconds + patience_s:
            due = int(min(now, seconds) * rate)
            for n in range(made, due):
                next(turns).waiting.append((begun + n / rate, messages()))
            made = due
            for connection in connections:
                connection.send()
            for key, _ in selector.select(_TICK_S):
                key.data.receive()
            if now > seconds and not any(connection.open for connection in connections):
                return
