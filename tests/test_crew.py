"""Workers that the system does not let start: their place is not left empty, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server import workers
from server.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A crew that is done hears no signal any more, for its process ends then; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def idle(_config: Config, _number: int, _page: Path, told: Connection) -> None:
    """A worker that serves nobody."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    told.send(f"{workers.LISTENING}nothing")
    told.send("idle")
    time.sleep(60)


class Refusing:
    """Starts processes, but for those of certain numbers, counted from 0."""

    def __init__(self, refused: Iterable[int]) -> None:
        self.refused, self.asked = {*refused}, 0

    def Process(self, **options: Any) -> Any:  # noqa: N802  # as multiprocessing's contexts have it
        """A process that is not started yet."""
        process = multiprocessing.get_context("forkserver").Process(**options)
        if self.asked in self.refused:
            process.start = self._refuse  # type: ignore[method-assign]
        self.asked += 1
        return process

    def _refuse(self) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")


def crew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forks: Refusing, count: int = 1) -> workers._Crew:
    monkeypatch.setattr(workers, "_forks", lambda: forks)
    monkeypatch.setattr(workers, "work", idle)
    return workers._Crew(Config(workers=count, grace=1.0), tmp_path / "page", print)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


def test_a_worker_that_could_not_be_started_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looked_after = crew(monkeypatch, tmp_path, Refusing({1, 2}))
    heard: list[str] = []
    looked_after.announce = heard.append

    async def live() -> int:
        running = asyncio.create_task(looked_after.run())
        await until(lambda: heard.count("idle") == 1)
        looked_after.running[0].kill()
        await until(lambda: heard.count("idle") == 2)
        looked_after.stopping.set()
        return await running

    assert asyncio.run(live()) == 0
    assert caplog.text.count("worker 0 could not be started") == 2
    assert caplog.text.count("worker 0 ended with status 1; the next one starts in ") == 2


def test_a_server_whose_first_worker_cannot_be_started_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looked_after = crew(monkeypatch, tmp_path, Refusing({0}))

    async def live() -> int:
        return await asyncio.wait_for(looked_after.run(), 30)

    assert asyncio.run(live()) == 1


def test_workers_outlive_the_one_that_forked_them_and_are_looked_after_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends where it may not fork, as at the limit of pids of a container."""
    looked_after = crew(monkeypatch, tmp_path, Refusing(()), 2)
    pids: list[int | None] = []
    listening = asyncio.Event()
    looked_after.announce = lambda said: listening.set() if said.startswith(workers.LISTENING) else None

    async def live() -> int:
        running = asyncio.create_task(looked_after.run())
        await until(listening.is_set)
        first, second = looked_after.running[0], looked_after.running[1]
        assert first.pid is not None
        os.kill(parent_of(first.pid), signal.SIGKILL)
        await until(lambda: not second.is_alive())  # as multiprocessing sees it
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: looked_after.running.get(0, first) is not first)
        pids.extend((second.pid, looked_after.running[1].pid))
        looked_after.stopping.set()
        return await running

    assert asyncio.run(live()) == 0
    assert pids[0] == pids[1]
    assert "worker 1 ended" not in caplog.text


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
