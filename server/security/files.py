"""Files that are read again when they change: certificates and keys."""

from __future__ import annotations

import errno
import logging
import stat
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from coldframe.errors import ColdframeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_log = logging.getLogger("coldframe.server")
T = TypeVar("T")
Signature: TypeAlias = "list[tuple[int, ...] | None]"


class Watched(Generic[T]):
    """A value read from files. What cannot be read later on is refused with a line in the log, and the old one goes on.

    what: its name in the log. Making the object reads the files, and raises what `read` raises.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._what, self._paths, self._read = what, paths, read
        self._signature = self._look()
        self._refusal = ""
        self.value = read()

    @property
    def refused(self) -> bool:
        """Whether the files, as they are now, are not what goes on."""
        return bool(self._refusal)

    def refresh(self) -> None:
        """Reads the files if they changed; blocks for as long as that takes.

        What was refused is read again every time: a certificate of tomorrow becomes valid without a change.
        """
        signature = self._look()
        if signature == self._signature and not self._refusal:
            return
        self._signature = signature
        try:
            self.value = self._read()
        except ColdframeError as error:
            if error.message != self._refusal:
                _log.error("%s refused, and the old goes on: %s", self._what, error)
            self._refusal = error.message
        else:
            self._refusal = ""
            _log.info("%s read anew", self._what)

    def _look(self) -> Signature:
        return [_signature(path) for path in self._paths]


def content(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, also for a pipe: who looks each second would wait until somebody writes, and
    of what is taken away meanwhile nobody would hear.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is no regular file, which can be read again whenever it changes")
    return path.read_bytes()


def _signature(path: Path) -> tuple[int, ...] | None:
    """What differs once a file was written, another one was put in its place, or its rights or owner were changed: who
    may not read it any more must say so before the next process does that is started. None where there is none.

    Through links: a mounted secret is a link that is turned to a new folder.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
