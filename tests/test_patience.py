"""Waiting for a time and no longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.security.patience import Patience


def test_what_comes_in_time_is_given_and_what_does_not_ends() -> None:
    async def run() -> None:
        patience = Patience(0.3)
        assert await patience.wait(asyncio.sleep(0.05, "here")) == "here"
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            await patience.wait(asyncio.sleep(60))
        assert 0.25 < time.monotonic() - start < 5
        assert await patience.wait(asyncio.sleep(0.01, "again")) == "again", "the task is not cancelled for good"
        assert not patience._waiting
        assert not patience._ended

    asyncio.run(run())


def test_many_wait_and_each_ends_by_itself() -> None:
    async def one(patience: Patience, n: int) -> str:
        try:
            return await patience.wait(asyncio.sleep(0 if n % 2 else 60, "here"))
        except TimeoutError:
            return "late"

    async def run() -> list[str]:
        patience = Patience(0.2)
        return await asyncio.gather(*(one(patience, n) for n in range(2_000)))

    assert asyncio.run(run()) == ["late", "here"] * 1_000


def test_a_caller_who_goes_is_not_taken_for_a_late_message_and_errors_pass() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async def run() -> None:
        patience = Patience(60)
        waiting = asyncio.create_task(patience.wait(asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(ValueError, match="broken"):
            await patience.wait(fail())
        assert not patience._waiting

    asyncio.run(run())


def test_both_at_once_is_a_cancellation() -> None:
    async def run() -> None:
        patience = Patience(0.2)
        waiting = asyncio.create_task(patience.wait(asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        patience._look(_Late())  # type: ignore[arg-type]  # says that it is later than it is
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


class _Late:
    def time(self) -> float:
        return asyncio.get_running_loop().time() + 3_600
