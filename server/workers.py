"""Several processes that serve one port and one store, and the one that looks after them.

Python runs one thread at a time in a process; `--workers N` is how a server uses more cores than one for what is not
torch or FAISS. The kernel deals connections out among the workers (SO_REUSEPORT). The files of a generation are mapped,
and so shared; each worker has an encoder of its own. What one worker commits all of them show before it is
acknowledged to be seen anywhere: see `server.place` and `Engine.catch_up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.address import require_free
from server.place import VARIABLE, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from server.address import Address

_log = logging.getLogger("coldframe.server")
LISTENING = "listening on "
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_HEALTHY_S = 30.0
"""Who has lived so long is started again at once."""
_LAST_WORD_S = 5.0


def supervise(
    arguments: Sequence[str], workers: int, address: Address, grace_s: float, announce: Callable[[str], None]
) -> int:
    """Runs `python -m server` with these arguments so many times on one port, until SIGTERM; returns the exit status.

    A worker that dies is started again; one that cannot even start ends them all, with its status.
    """
    require_free(address)
    with _held(address) as taken, _shared_page() as word:
        ending, alive = os.pipe()
        try:
            crew = _Crew([*arguments, "--listen", str(taken)], workers, (word, ending), grace_s, announce)
            return asyncio.run(crew.run(taken))
        finally:
            os.close(alive)
            os.close(ending)


@contextlib.contextmanager
def _held(address: Address) -> Iterator[Address]:
    """Keeps the port from others, also in the moment when no worker listens; the address with the port it is."""
    family, place = address.places()[0]
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(place)
        yield address.at(holder.getsockname()[1])


@contextlib.contextmanager
def _shared_page() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        yield file.fileno()


@dataclass
class _Crew:
    """The workers of one port."""

    arguments: Sequence[str]
    workers: int
    files: tuple[int, int]
    """The page that is shared, and the pipe that ends with this process."""
    grace_s: float
    announce: Callable[[str], None]
    running: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0

    async def run(self, address: Address) -> int:
        """Until SIGTERM, or until one cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        listening = [asyncio.Event() for _ in range(self.workers)]
        keeping = [asyncio.create_task(self._keep(number, listening[number])) for number in range(self.workers)]
        telling = asyncio.create_task(self._tell(address, listening))
        await self.stopping.wait()
        telling.cancel()
        self._pass_on(signal.SIGTERM)
        await asyncio.wait(keeping, timeout=self.grace_s + _LAST_WORD_S)
        self._pass_on(signal.SIGKILL)
        await asyncio.gather(*keeping)
        return self.status

    async def _tell(self, address: Address, listening: Sequence[asyncio.Event]) -> None:
        for event in listening:
            await event.wait()
        self.announce(f"{LISTENING}{address}")

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, listening: asyncio.Event) -> None:
        """Has a worker in this place, whatever becomes of those before it."""
        pause = _FIRST_PAUSE_S
        while not self.stopping.is_set():
            begun = time.monotonic()
            status = await self._live(number, listening)
            if self.stopping.is_set() or not listening.is_set():
                self.status = self.status or status
                self.stopping.set()
                return
            pause = _FIRST_PAUSE_S if time.monotonic() - begun > _HEALTHY_S else min(2 * pause, _LONGEST_PAUSE_S)
            _log.error("worker %d ended with status %d; the next one starts in %.1f s", number, status, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)

    async def _live(self, number: int, listening: asyncio.Event) -> int:
        """The life of one worker: its exit status."""
        place = Place(number, *self.files)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", *self.arguments),
            env=_environment(self.workers) | {VARIABLE: str(place)},
            pass_fds=self.files,
            stdout=asyncio.subprocess.PIPE,
        )
        self.running[number] = process
        if self.stopping.is_set():
            process.terminate()
        assert process.stdout is not None
        async for line in process.stdout:
            said = line.decode(errors="replace").rstrip()
            if said.startswith(LISTENING):
                listening.set()
            elif number == 0:
                self.announce(said)
        return await process.wait()


def _environment(workers: int) -> dict[str, str]:
    """Each worker's share of the cores for torch, unless whoever started this knows better."""
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return {"OMP_NUM_THREADS": str(share)} | dict(os.environ)
