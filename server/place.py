"""A worker's place among those that share one port and one store, and what they have in common.

The supervisor (`server.workers`) gives each worker two open files: a page of memory that all of them map, which holds
the number of the last change to the live articles that any of them wrote, and the reading end of a pipe whose writing
end only the supervisor has: the pipe ends when the supervisor does, however that came.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from coldframe.errors import InvalidArgument

VARIABLE = "COLDFRAME_WORKER_PLACE"
_WORD = struct.Struct("=Q")


class Latest:
    """The number of the last change, which workers tell each other. Alone, a server tells itself.

    An aligned word is written and read in one step by every processor that Python's wheels are made for; two that
    write at once are told apart by SQLite, which gives them their numbers.
    """

    def __init__(self, file: int | None = None) -> None:
        self._memory = memoryview(bytearray(_WORD.size) if file is None else mmap.mmap(file, mmap.PAGESIZE))
        self._word = self._memory[: _WORD.size].cast("Q")

    @property
    def number(self) -> int:
        """0 before the first change."""
        return self._word[0]

    def tell(self, number: int) -> None:
        """Tells of a change, unless a later one was told of."""
        self._word[0] = max(self._word[0], number)


@dataclass(frozen=True, slots=True)
class Place:
    """What the supervisor gave a worker."""

    number: int
    """0 to workers - 1."""
    word: int
    """The file of the page that is shared."""
    alive: int
    """Ends when the supervisor does."""

    @classmethod
    def of_environment(cls) -> Place | None:
        """None for a server that no supervisor started."""
        given = os.environ.get(VARIABLE)
        if given is None:
            return None
        try:
            return cls(*map(int, given.split(",")))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"{VARIABLE} is {given!r}; it is set by --workers for its own processes, and by nobody else",
                field="workers",
            ) from error

    def __str__(self) -> str:
        return f"{self.number},{self.word},{self.alive}"
