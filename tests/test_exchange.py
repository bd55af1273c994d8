"""When a generation is looked for and tried again, by a clock that only looking moves."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import CorruptGeneration
from server import exchange
from server.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 0.125


class Broken:
    """A store whose current generation cannot be opened, and the time: each look at it takes an eighth of a second."""

    def __init__(self) -> None:
        self.now, self.looks, self.name = 100.0, 0, "one"
        self.mended: Any = None
        """What can be opened after all."""
        self.served: Any = None
        self.tries: list[tuple[str, float]] = []
        self.ends: Callable[[], bool] = lambda: False
        self.exchange = Exchange(
            self,  # type: ignore[arg-type]
            load=self._load,
            take_over=self._take_over,
            served=lambda: self.served,
            refused=lambda _: None,
        )

    def monotonic(self) -> float:
        return self.now

    def current(self) -> str:
        self.now, self.looks = self.now + LOOK_S, self.looks + 1
        if self.ends():
            raise asyncio.CancelledError
        return self.name

    def follow(self, until: Callable[[], bool]) -> None:
        """Follows the store until something is so."""
        self.ends = until
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(self.exchange.follow(self._nothing, 1e-4))

    async def _load(self, name: str) -> Any:
        self.tries.append((name, self.now))
        if self.mended is None:
            raise CorruptGeneration("a file of it is damaged")
        return self.mended

    async def _take_over(self, new: object) -> None:
        self.served = new

    async def _nothing(self) -> None:
        """Is told of an exchange."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    store = Broken()
    monkeypatch.setattr(exchange, "time", store)
    return store


def test_what_cannot_be_served_is_tried_ever_more_seldom_and_each_minute_in_the_end_and_said_once(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    broken.follow(until=lambda: len(broken.tries) == 10)
    moments = [moment for _, moment in broken.tries]
    waited = [int(after - before) for before, after in pairwise(moments)]
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert caplog.messages == ["cannot serve: a file of it is damaged; trying again"]


def test_another_generation_is_tried_at_once_however_long_the_last_one_would_wait(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    def follow_another() -> bool:
        if len(broken.tries) == 7:
            broken.name = "another"
        return len(broken.tries) == 9

    broken.follow(until=follow_another)
    (_, before), (name, first), (same, second) = broken.tries[6:]
    assert (name, same) == ("another", "another")
    assert first - before <= 3 * LOOK_S
    assert int(second - first) == 1, "it waits as long as any other does at first"
    assert len(caplog.messages) == 2, "of each"


def test_a_generation_whose_folder_was_given_another_name_is_opened_once(broken: Broken) -> None:
    broken.mended = SimpleNamespace(generation=SimpleNamespace(name="what it was"))
    broken.follow(until=lambda: broken.looks == 20)
    assert [name for name, _ in broken.tries] == ["one"]


def test_who_is_told_to_look_looks_once(broken: Broken) -> None:
    async def look() -> None:
        following = asyncio.create_task(broken.exchange.follow(broken._nothing, 60))
        await asyncio.sleep(0.1)
        broken.exchange.look()
        await asyncio.wait([following], timeout=0.5)
        following.cancel()

    broken.ends = lambda: broken.looks > 100
    asyncio.run(look())
    assert len(broken.tries) == 2
    assert broken.looks == 4, "two for each try"
