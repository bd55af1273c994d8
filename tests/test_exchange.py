"""When a generation is looked for and tried again, by a clock that only looking moves."""

from __future__ import annotations

import asyncio
from itertools import pairwise
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
        self.tries: list[tuple[str, float]] = []
        self.ends: Callable[[], bool] = lambda: False
        self.exchange = Exchange(
            self,  # type: ignore[arg-type]
            load=self._load,
            take_over=self._take_over,
            served=lambda: None,
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
        raise CorruptGeneration("a file of it is damaged")

    async def _take_over(self, new: object) -> None:
        raise AssertionError("nothing was opened")

    async def _nothing(self) -> None:
        """Is told of an exchange."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    store = Broken()
    monkeypatch.setattr(exchange, "time", store)
    return store


def test_what_cannot_be_served_is_tried_ever_more_seldom_and_each_minute_in_the_end(broken: Broken) -> None:
    broken.follow(until=lambda: len(broken.tries) == 10)
    moments = [moment for _, moment in broken.tries]
    waited = [int(after - before) for before, after in pairwise(moments)]
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_another_generation_is_tried_at_once_however_long_the_last_one_would_wait(broken: Broken) -> None:
    def follow_another() -> bool:
        if len(broken.tries) == 7:
            broken.name = "another"
        return len(broken.tries) == 9

    broken.follow(until=follow_another)
    (_, before), (name, first), (same, second) = broken.tries[6:]
    assert (name, same) == ("another", "another")
    assert first - before <= 3 * LOOK_S
    assert int(second - first) == 1, "it waits as long as any other does at first"


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
