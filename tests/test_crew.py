"""Workers that the system does not let start: their place is not left empty, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from server import workers
from server.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path


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


def crew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forks: Refusing) -> workers._Crew:
    monkeypatch.setattr(workers, "_forks", lambda: forks)
    monkeypatch.setattr(workers, "work", idle)
    return workers._Crew(Config(workers=1, grace=1.0), tmp_path / "page", print)


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
