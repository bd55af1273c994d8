"""A worker's place among those that share one port and one store, and what they have in common."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Place:
    """What the supervisor gave a worker."""

    number: int
    """0 to workers - 1."""
    page: Path
    """A file that all of them map, for `Latest`."""
    alive: int
    """A file descriptor at its end when the supervisor has ended."""


class Latest:
    """The number of the last change to the live articles, which workers tell each other. Alone, a server tells itself.

    An aligned word is written and read in one step by every processor that Python's wheels are made for; two that
    write at once are told apart by SQLite, which gives them their numbers.
    """

    def __init__(self, page: Path | None = None) -> None:
        if page is None:
            memory = memoryview(bytearray(_WORD_BYTES))
        else:
            with page.open("r+b") as file:
                memory = memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        self._word = memory[:_WORD_BYTES].cast("Q")

    @property
    def number(self) -> int:
        """0 before the first change."""
        return self._word[0]

    def tell(self, number: int) -> None:
        """Tells of a change, unless a later one was told of."""
        self._word[0] = max(self._word[0], number)
