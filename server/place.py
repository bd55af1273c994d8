"""A worker's place among those that share one port and one store, and what they have in common."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WORD_BYTES = 8
MOST_WORKERS = 64
MOST_NAMES = 1_024
PAGE_BYTES = _WORD_BYTES * (2 * MOST_WORKERS + 2 * MOST_NAMES)
"""Of the file that workers map: those of `Latest`, those of `Presence`, two for each of the `Words`."""
_AWHILE_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """What the supervisor gave a worker."""

    number: int
    """0 to workers - 1."""
    workers: int
    page: Path
    """A file of `PAGE_BYTES` that all of them map, zeros at first."""
    alive: int
    """A file descriptor at its end when the supervisor has ended."""
    cores: frozenset[int]
    """Of all workers together."""


class Latest:
    """The number of the last change to the live articles, which workers tell each other. Alone, a server tells itself.

    Each has a word of its own: whoever was stopped before it wrote a number puts none back that others wrote since. An
    aligned word is written and read in one step by every processor that Python's wheels are made for.
    """

    def __init__(self, place: Place | None = None) -> None:
        self._words = _private() if place is None else _words(place.page)[: place.workers]
        self._own = 0 if place is None else place.number
        self._lock = threading.Lock()  # of the threads of this process

    @property
    def number(self) -> int:
        """0 before the first change."""
        return max(self._words)

    def tell(self, number: int) -> None:
        """Tells of a change, unless a later one was told of."""
        with self._lock:
            self._words[self._own] = max(self._words[self._own], number)


class Presence:
    """Who has something to do: every worker notes when it last had, on the page of `Latest`, behind its words."""

    def __init__(self, place: Place) -> None:
        self._number, self._words = place.number, _words(place.page)[MOST_WORKERS : 2 * MOST_WORKERS]
        self.cores = place.cores
        """Of all workers together."""

    def note(self) -> None:
        """Says that this one has."""
        self._words[self._number] = time.monotonic_ns()  # a clock that all processes share

    @property
    def alone(self) -> bool:
        """Whether none of the others has had for a tenth of a second."""
        awhile_ago, own = time.monotonic_ns() - _AWHILE_NS, self._number
        return all(noted < awhile_ago for number, noted in enumerate(self._words) if number != own)


class Words:
    """A word for each name, 0 at first, which is the same one in every worker. Alone, a server has its own.

    Behind those of `Presence` there are two words for a name, the first of which says whose they are. More names than
    have room there have words of each worker's own.
    """

    def __init__(self, page: Path | None = None) -> None:
        self._page = page
        self._table = None if page is None else _words(page)[2 * MOST_WORKERS :]
        self._known: dict[str, memoryview] = {}

    def of(self, name: str) -> memoryview:
        """Its word."""
        if name not in self._known:
            self._known[name] = self._shared(name) or _private()
        return self._known[name]

    def _shared(self, name: str) -> memoryview | None:
        """Its place on the page, if there is one for it."""
        if self._page is None or self._table is None:
            return None
        mark = int.from_bytes(hashlib.sha256(name.encode()).digest()[:_WORD_BYTES]) | 1  # no name's is 0
        with self._page.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed: two that come at once find two places
            for n in range(MOST_NAMES):
                at = 2 * (((mark >> 1) + n) % MOST_NAMES)
                if self._table[at] in (0, mark):
                    self._table[at] = mark
                    return self._table[at + 1 : at + 2]
        return None


def _private() -> memoryview:
    return memoryview(bytearray(_WORD_BYTES)).cast("Q")


def _words(page: Path) -> memoryview:
    with page.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), PAGE_BYTES)).cast("Q")
