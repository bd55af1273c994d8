"""Log lines for people (text) or for machines (a JSON object each), with the id of the request that they belong to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc.aio

from coldframe.errors import InvalidArgument
from server.admission import CALL
from server.observe.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = ("text", "json")
_LAST_WORDS_S = 1.0
_OWN = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "request_id"}


def with_request_id(record: logging.LogRecord) -> bool:
    """Gives every record the id of the request at hand, "" where there is none."""
    if not hasattr(record, "request_id"):
        record.request_id = CALL.get().request_id
    return True


def _of_one_who_stayed(record: logging.LogRecord) -> bool:
    """False for what gRPC says, with a traceback, of each caller who goes while a reply is written, such as one that
    takes no more than 4 MiB and was sent more.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("grpc.") and isinstance(error, grpc.aio.InternalError))


class Told(logging.Handler):
    """Sends records where lines go, and says how many found no room there, once there is some again."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines, self._left_out = lines, 0
        self.lost = 0
        """How many records found no room so far."""

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        try:
            if self._left_out and self._lines.put(self.format(_gap(self._left_out))):
                self._left_out = 0
            if not self._lines.put(self.format(record)):
                self._left_out += 1
                self.lost += 1
        except Exception:  # as every handler does, what cannot be formatted is told and harms nobody
            self.handleError(record)

    def flush(self) -> None:
        """Before the process ends."""
        self._lines.flush(_LAST_WORDS_S)


def _gap(lines: int) -> logging.LogRecord:
    told = "%d lines of the log are left out here: nobody read what stood in line, or its disk was full"
    return logging.LogRecord("coldframe.server", logging.WARNING, "", 0, told, (lines,), None)


class JsonFormatter(logging.Formatter):
    """One object a line: at, level, logger, message, request_id, and what the record brings beside."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        document = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", ""),
            **_beside(record.__dict__),
        }
        if record.exc_info and record.exc_info[1] is not None:
            document["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(document, ensure_ascii=False, default=str)


def _beside(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in _OWN}


def require_format(form: str) -> None:
    """Raises InvalidArgument for a form that there is not."""
    if form not in FORMATS:
        raise InvalidArgument(f"--log-format is {form!r}; allowed are {' and '.join(FORMATS)}", field="log_format")


def begin(form: str) -> None:
    """Sends the log to standard error. Raises InvalidArgument for a form that there is not."""
    require_format(form)
    handler = Told(Lines(sys.stderr))
    handler.addFilter(with_request_id)
    handler.addFilter(_of_one_who_stayed)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def lost() -> int:
    """How many lines of the log are left out so far: nobody took them."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, Told))
