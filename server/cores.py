"""How many cores torch has for a batch, and which.

A team of threads waits for its slowest one: on cores that others need, what takes 30 ms takes 300. So a batch has all
cores of its worker only where nobody else waits for them, and half of them otherwise. A text that is quite alone may
have those of the other workers, too, while they have nothing to do.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from coldframe.cores import affordable

if TYPE_CHECKING:
    from collections.abc import Collection

    from server.place import Presence


class Cores:
    """The cores of a worker; what is asked of them holds for the thread that asks, and for the team that it starts."""

    def __init__(self, presence: Presence | None = None) -> None:
        self._count = torch.get_num_threads()
        self._presence = presence if sys.platform == "linux" else None
        self._own = os.sched_getaffinity(0) if self._presence is not None else set()
        self._everybodys = affordable(len(self._presence.cores)) if self._presence is not None else 0
        self._abroad: int | None = None
        """The thread that may go to the cores of others."""

    def half(self) -> None:
        """Takes half of them."""
        self._come_home()
        _use(max(1, self._count // 2))

    def all(self) -> None:
        """Takes all of them."""
        self._come_home()
        _use(self._count)

    def everybodys(self) -> None:
        """Takes those of all workers while the others are idle, else all of this one's."""
        if self._presence is None or not self._presence.alone:
            self.all()
            return
        if self._abroad is None:
            self._abroad = threading.get_native_id()
            go_to(self._presence.cores)
        _use(self._everybodys)

    def _come_home(self) -> None:
        if self._abroad == threading.get_native_id():
            self._abroad = None
            go_to(self._own)


def go_to(cores: Collection[int]) -> None:
    """Keeps this thread, and those that it starts, to some cores, where it may choose."""
    # A container may have been given other cores since, or may not choose at all (systemd's filter of @resources); then
    # the thread stays where it is, and computes all the same.
    with suppress(OSError):
        os.sched_setaffinity(0, cores)


def _use(count: int) -> None:
    if torch.get_num_threads() != count:  # which torch knows for each thread
        torch.set_num_threads(count)
