"""A relay between a client and a server, for networks that fail."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class Relay:
    """Passes bytes on, both ways, until it falls silent: then it takes them and keeps connections open."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._server = host, int(port)
        self._silent = threading.Event()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._begin(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection, as close does not
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for one in (self._listener, *self._ends):
            one.close()

    def fall_silent(self) -> None:
        """Lets nothing through from now on."""
        self._silent.set()

    def cut(self) -> None:
        """Ends the connections that stand."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _begin(self, work: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._ends.append(client := self._listener.accept()[0])
                self._ends.append(server := socket.create_connection(self._server))
                self._begin(self._pass, client, server)
                self._begin(self._pass, server, client)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self._silent.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
