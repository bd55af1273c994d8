"""Who changed what: a line of JSON for every write and every administrative call, and for those that were refused.

    {"at": "2026-03-01T06:00:00.123+00:00", "event": "end", "who": "ingest", "key": "5f0c...", "role": "write",
     "peer": "ipv4:10.0.0.7:51234", "certificate": "ingest.internal", "method": "/coldframe.v1.ArticleService/...",
     "request_id": "1f0a9c3e-2b", "requests": 1, "items": 64, "item_errors": 0, "outcome": "OK", "ms": 12.3}

A stream has a line when it opens ("begin"), too. No line has a text, an id or a key.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from io import TextIOWrapper

    from server.admission import Call

LOGGER = "coldframe.audit"
_log, _server = logging.getLogger(LOGGER), logging.getLogger("coldframe.server")


def note(call: Call, event: str = "end") -> None:
    """Writes the line of a call."""
    key = call.key
    document = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "who": key.name if key else "anonymous",
        "key": key.id if key else "",
        "role": key.role.value if key else "",
        "peer": call.peer,
        "certificate": call.certificate,
        "method": call.method,
        "request_id": call.request_id,
        "requests": call.requests,
        "items": call.items,
        "item_errors": call.item_errors,
        "outcome": call.outcome if event == "end" else "",
        "ms": round(1e3 * (time.monotonic() - call.began), 1),
    }
    # A call ends where its context is not at hand, of which the log would know the id.
    _log.info("%s", json.dumps(document, ensure_ascii=True), extra={"request_id": call.request_id})


class _File(WatchedFileHandler):
    """A file of lines. What it does not take stands in the log: no call fails, or is told of this machine, because a
    disk is full or somebody moved the folder away.
    """

    _said = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.reopenIfNeeded()
            self.stream = self.stream or self._open()
            self.stream.write(self.format(record) + self.terminator)
            self.flush()
        except OSError as error:
            self._let_go()
            if self._said != (said := str(error)):
                _server.error("the audit log cannot be written: %s; its lines stand here until it can", said)
            self._said = said
            logging.getLogger().handle(record)
        else:
            self._said = ""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        if _is_torn(Path(self.baseFilename)):
            stream.write(self.terminator)
        return stream

    def _let_go(self) -> None:
        """Closes the file, without what it did not take. One that is kept open is kept on the disk: where it was moved
        away or removed because it had filled that, the disk stayed full. A pipe stays: to open it waits for a reader.
        """
        stream = self.stream
        if stream is None or not (stream.closed or stat.S_ISREG(os.fstat(stream.fileno()).st_mode)):
            return
        self.stream = None
        with contextlib.suppress(OSError):
            stream.close()


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line, of which a full disk took no more, or which a process was killed in."""
    with contextlib.suppress(OSError):  # an empty one has no last byte
        if path.is_file():
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
    return False


def to_file(path: Path) -> None:
    """Lets the lines go to a file of their own instead of the log, whatever was said before (a worker is a copy of a
    process that may have said it). One that is moved away is begun anew.

    Raises InvalidArgument where the file cannot be written.
    """
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(
            f"the audit log {path} cannot be written ({error.strerror}); name another file", field="audit_log"
        ) from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    for before in [*_log.handlers]:
        if isinstance(before, WatchedFileHandler):
            _log.removeHandler(before)
            before.close()
    _log.addHandler(handler)
    _log.propagate = False
    _log.setLevel(logging.INFO)
