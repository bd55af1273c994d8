"""Several processes that serve one port and one store, and the one that looks after them.

Python runs one thread at a time in a process; `--workers N` is how a server uses more cores than one for what is not
torch or FAISS. The kernel deals connections out among the workers (SO_REUSEPORT). The files of a generation are mapped,
and so shared; each worker has an encoder of its own. What one worker commits all of them show before it is
acknowledged to be seen anywhere: see `server.place` and `Engine.catch_up`.

Workers are forked from a process that has imported everything and done nothing (multiprocessing's fork server): they
share what the libraries take, and one that must be replaced is there in the time that its model takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coldframe.cores import affordable
from coldframe.errors import ColdframeError, InvalidArgument
from server.address import require_free, taken
from server.place import PAGE_BYTES, Place
from server.signals import ENDS, hear_no_more

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from server.address import Address
    from server.config import Config

_log = logging.getLogger("coldframe.server")
LISTENING = "listening on "
PRELOADED = (
    "server.__main__",
    "server.app",
    "server.engine",
    "server.security.gate",
    "coldframe.longformer",
    "coldframe.models",
)
"""What every worker imports, and none of which starts a thread or a connection."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_HEALTHY_S = 30.0
"""Who has lived so long is started again at once."""
_LAST_WORD_S = 5.0
_HELD_BACK = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_UNKNOWN = 255
"""The status of a worker whose fork server, which alone hears it, ended before it."""


def supervise(config: Config, address: Address, announce: Callable[[str], object]) -> int:
    """Serves by as many workers as the configuration says, until SIGTERM; returns the exit status.

    A worker that dies is started again; one that cannot even start ends them all, with its status.
    """
    require_free(address)
    share = max(1, affordable(len(os.sched_getaffinity(0))) // config.workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # each one's share of the cores for torch
    _begin_forks()
    with held(address) as own, _shared_page() as page:
        return asyncio.run(_Crew(dataclasses.replace(config, listen=str(own)), page, announce).run())


@contextlib.contextmanager
def held(address: Address) -> Iterator[Address]:
    """Keeps the port from others, also in the moment when no worker listens; the address with the port it is."""
    family, place = address.places()[0]
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            _bind(holder, place)
        except OSError as error:
            raise taken(address) from error
        yield address.at(holder.getsockname()[1])


def _bind(holder: socket.socket, place: Any) -> None:
    """Binds beside connections that a server of before left in TIME_WAIT, too.

    Who may stand beside those lets others beside himself; so it is asked for only where it must be, and taken back.
    """
    try:
        holder.bind(place)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(place)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


@contextlib.contextmanager
def _shared_page() -> Iterator[Path]:
    """A file of this process, in memory: one under /tmp is cleared away on many systems after some days, and no worker
    could be started any more.
    """
    page = os.memfd_create("coldframe-workers")
    try:
        os.ftruncate(page, PAGE_BYTES)
        yield Path(f"/proc/{os.getpid()}/fd/{page}")
    finally:
        os.close(page)


def work(config: Config, number: int, page: Path, told: Connection) -> None:
    """The life of a worker, in its own process; what it announces goes to the supervisor."""
    from server.__main__ import run

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the event loop hears it, whatever the fork server began with
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)  # SIGTERM ends it if it came meanwhile
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    cores = frozenset(os.sched_getaffinity(0))
    _keep_to_share(number, config.workers)
    try:
        run(config, Place(number, config.workers, page, supervisor.sentinel, cores), told.send)
    except ColdframeError as error:
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(2 if isinstance(error, InvalidArgument) else 1)


def _keep_to_share(number: int, workers: int) -> None:
    """Keeps a worker to its share of the cores, before it starts threads: those that hand a call on to each other wake
    each other on the same core, or on one near by, and not on one that sleeps. A sandbox may forbid it.
    """
    cores = sorted(os.sched_getaffinity(0))
    first, last = (len(cores) * edge // workers for edge in (number, number + 1))
    if first < last:
        with contextlib.suppress(OSError):  # as where systemd's filter of @resources lets nobody choose
            os.sched_setaffinity(0, cores[first:last])


def _begin_forks() -> None:
    """Starts the fork server as long as SIGHUP and SIGINT are ignored: so they are then there and in its children, too,
    which the signals would end before they are ready for them. All hear Ctrl-C; this one tells its workers of it.

    And as long as SIGTERM is held back: who ends a service may tell all of its processes. Without the fork server
    nobody would hear how workers end, and this one would end before they have finished their calls.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource_tracker.ensure_running()  # which lets SIGTERM through again when it is begun
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        _forks()
        ensure_running()
    except OSError as error:
        if "path too long" not in str(error):
            raise
        raise InvalidArgument(
            f"workers are begun through a socket in {tempfile.gettempdir()}, which is too long a path for one; name a "
            "shorter one by TMPDIR, such as /tmp",
            field="workers",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, interrupted)


def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


@dataclass
class _Crew:
    """The workers of one port."""

    config: Config
    page: Path
    announce: Callable[[str], object]
    running: dict[int, BaseProcess] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0

    async def run(self) -> int:
        """Until SIGTERM, or until one cannot start."""
        loop = asyncio.get_running_loop()
        for number in ENDS:
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        places = range(self.config.workers)
        listening = [asyncio.Event() for _ in places]
        keeping = [asyncio.create_task(self._keep(number, listening[number])) for number in places]
        telling = asyncio.create_task(self._tell(listening))
        await self.stopping.wait()
        telling.cancel()
        self._pass_on(signal.SIGTERM)
        await asyncio.wait(keeping, timeout=self.config.grace + _LAST_WORD_S)
        self._pass_on(signal.SIGKILL)
        await asyncio.gather(*keeping)
        hear_no_more()
        return self.status

    async def _tell(self, listening: Sequence[asyncio.Event]) -> None:
        for event in listening:
            await event.wait()
        self.announce(f"{LISTENING}{self.config.listen}")

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self.running.values():
            assert process.pid is not None, "it was started"
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

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
        hears, tells = multiprocessing.Pipe(duplex=False)
        process = _forks().Process(target=work, args=(self.config, number, self.page, tells))
        with hears:
            try:
                with tells:
                    await asyncio.to_thread(_start, process)  # the first one waits for all that is imported
            except Exception:  # such as too many processes or too little memory, for now
                _log.exception("worker %d could not be started", number)
                return 1
            self.running[number] = process
            if self.stopping.is_set():
                process.terminate()
            loop = asyncio.get_running_loop()
            loop.add_reader(hears.fileno(), self._hear, hears, number, listening)
            await _end(process)
            loop.remove_reader(hears.fileno())
            process.join()
            del self.running[number]
        assert process.exitcode is not None
        # One that has no ear for it yet ends by the signal itself, as it was told to.
        told_to_end = self.stopping.is_set() and process.exitcode in (-signal.SIGTERM, _UNKNOWN)
        return 0 if told_to_end else process.exitcode

    def _hear(self, hears: Connection, number: int, listening: asyncio.Event) -> None:
        try:
            said: str = hears.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(hears.fileno())
            return
        if said.startswith(LISTENING):
            listening.set()
        elif number == 0:
            self.announce(said)


def _start(process: BaseProcess) -> None:
    """Where the fork server is no longer there, this begins one, which must not hear what ends the others either."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _end(process: BaseProcess) -> None:
    """Waits until a worker has ended, and until its status is there.

    The fork server tells of it; but it ends itself where it may not fork, as at a limit of pids, and when it does the
    system says the same of all its workers, which go on: they would be let go, and nobody would answer any more.
    """
    assert process.pid is not None, "it was started"
    await _readable(process.sentinel)
    with contextlib.suppress(OSError):  # it is there no more; or a sandbox knows no such files, and the word must do
        end = os.pidfd_open(process.pid)
        try:
            await _readable(end)
        finally:
            os.close(end)


async def _readable(file: int) -> None:
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)
