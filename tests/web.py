"""A web server of a folder, with or without ranges, that remembers what it was asked, and answers badly if told to."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Web(ThreadingHTTPServer):
    """`asked` holds (method, path, range) of every request; `sent` counts the bytes of files that went out.

    Of what begins with /secret it says 403; /drop it drops, and /silent it lets wait for the end.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.ranges = ranges
        self.asked: list[tuple[str, str, str | None]] = []
        self.sent = 0
        self.encoding = ""
        """What it says is the encoding of every file on the way."""
        self.ending = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers["Range"]))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "") if self.server.ranges else None
        if self.path.startswith("/secret"):
            self.send_error(403)
        elif asked is None:
            super().do_GET()
        else:
            self._send_part(int(asked[1]), int(asked[2]))

    def do_HEAD(self) -> None:
        self.server.asked.append((self.command, self.path, None))
        super().do_HEAD()

    def parse_request(self) -> bool:
        known = super().parse_request()
        if known and self.path.startswith("/silent"):
            self.server.ending.wait()
        return known and not self.path.startswith(("/drop", "/silent"))

    def _send_part(self, first: int, last: int) -> None:
        with open(self.translate_path(self.path), "rb") as file:
            whole = file.read()
        part = whole[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(part)
        self.server.sent += len(part)

    def end_headers(self) -> None:
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path, *, ranges: bool = True) -> Iterator[Web]:
    with Web(folder, ranges=ranges) as web:
        thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield web
        finally:
            web.ending.set()
            web.shutdown()
            thread.join()
