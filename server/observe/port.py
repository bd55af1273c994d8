"""A port for machines that look after the server: /metrics for Prometheus, /livez and /readyz for probes.

    /livez     200 while the event loop turns; 503 once it has been silent for 10 s: the process is to be started anew
    /readyz    200 where calls are answered; 503 without an index, and from SIGTERM on: no calls are to be sent here
    /metrics   text for Prometheus

It has threads of its own: a probe must be answered, and say no, just when the event loop hangs; and where no thread can
be had, one after the other. It speaks plain HTTP and knows no keys; it is off unless asked for, and has its place on an
address that only operators reach.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import choose_encoder

from server.address import taken

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from server.address import Address
    from server.observe.metrics import Pulse

_log = logging.getLogger("coldframe.server")
SILENT_S = 10.0
_SHORT, _PAUSE_S = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}, 0.1
_PLAIN = "text/plain; charset=utf-8"
Reply = tuple[int, str, bytes]


class Port:
    """Answers from its construction until `close`. Raises InvalidArgument where the address cannot be had."""

    def __init__(self, address: Address, registry: CollectorRegistry, pulse: Pulse, ready: Callable[[], bool]) -> None:
        self._registry, self._pulse, self._ready = registry, pulse, ready
        port = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one connection, which may take five seconds to say what it wants."""

            timeout = 5
            server_version, sys_version = "coldframe", ""

            def do_GET(self) -> None:
                self.wfile.write(self.do_HEAD())

            def do_HEAD(self) -> bytes:
                """As probes of balancers and of shells ask (curl -I); returns what GET sends after it."""
                status, kind, body = port.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                return body

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Says nothing: probes come every few seconds."""

        self._server = _listening(address, Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def answer(self, path: str, accept: str) -> Reply:
        """What stands at a path."""
        if path == "/metrics":
            encode, kind = _encoder(accept)
            return 200, kind, encode(self._registry)
        if path == "/livez":
            silent = self._pulse.silent_s > SILENT_S
            return (503, _PLAIN, b"the event loop is silent\n") if silent else (200, _PLAIN, b"alive\n")
        if path == "/readyz":
            return (200, _PLAIN, b"ready\n") if self._ready() else (503, _PLAIN, b"not ready\n")
        return 404, _PLAIN, b"here are /metrics, /livez and /readyz\n"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """How metrics are written for whom: plainly, where what he accepts says nothing that has a sense."""
    try:
        return choose_encoder(" ".join(accept.split()))
    except (TypeError, ValueError):  # such as a version that is no number
        return choose_encoder("")


def _listening(address: Address, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    # A name of both families, such as localhost, is IPv4's, where Prometheus and probes look first.
    family, place = min(address.places(), key=lambda found: found[0] != socket.AF_INET)

    class Server(ThreadingHTTPServer):
        address_family = family
        daemon_threads = True
        request_queue_size = 128  # with Python's 5, who comes seventh in the same moment waits for a second or three

        def get_request(self) -> tuple[socket.socket, Any]:
            try:
                return super().get_request()
            except OSError as error:
                if error.errno in _SHORT:  # the caller stays in line, and would be tried again without a pause
                    time.sleep(_PAUSE_S)
                raise

        def process_request(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread can be begun
                self.process_request_thread(request, client_address)

        def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
            error = sys.exc_info()[1]
            if not isinstance(error, ConnectionError | TimeoutError):  # of callers that went, as probes may
                _log.error("a caller of --metrics at %s was not answered", client_address, exc_info=error)

    try:
        return Server(place, handler)
    except OSError as error:
        raise taken(address) from error
