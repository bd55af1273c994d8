"""Threads that work for an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from server.threads import Threads


def threads(count: int = 1) -> Threads:
    return Threads(count, "test", lambda: None)


def test_each_caller_gets_what_its_own_work_came_to() -> None:
    def fails() -> int:
        raise KeyError("this one")

    async def ask() -> list[object]:
        return await asyncio.gather(
            *(pool.run(lambda n=n: n * n) for n in range(50)),  # type: ignore[misc]
            pool.run(fails),
            return_exceptions=True,
        )

    pool = threads(3)
    *squares, error = asyncio.run(ask())
    pool.shutdown()
    assert squares == [n * n for n in range(50)]
    assert isinstance(error, KeyError)


def test_what_was_cancelled_before_its_turn_is_not_done_and_nobody_else_notices(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    async def ask() -> None:
        busy, free = threading.Event(), threading.Event()

        def wait() -> None:
            busy.set()
            free.wait(60)
            done.append("first")

        first = pool.run(wait)
        second = pool.run(lambda: done.append("second"))
        third = pool.run(lambda: done.append("third"))
        assert busy.wait(60)
        first.cancel()  # under way: it ends, and nobody hears of it
        second.cancel()
        free.set()
        await third
        with pytest.raises(asyncio.CancelledError):
            await first

    pool = threads()
    asyncio.run(ask())
    pool.shutdown()
    assert done == ["first", "third"]
    assert caplog.records == []


def test_shutting_down_waits_for_all_that_is_in_line() -> None:
    done: list[int] = []

    async def leave() -> None:
        for n in range(20):
            pool.run(lambda n=n: done.append(n))  # type: ignore[misc]

    pool = threads()
    asyncio.run(leave())  # the loop is gone before the work is done
    pool.shutdown()
    assert done == [*range(20)]


def test_every_thread_is_prepared_before_it_works() -> None:
    prepared: list[str] = []
    pool = Threads(2, "ready", lambda: prepared.append(threading.current_thread().name))

    async def ask() -> str:
        return await pool.run(lambda: threading.current_thread().name)

    assert asyncio.run(ask()) in prepared
    pool.shutdown()
    assert sorted(prepared) == ["ready_0", "ready_1"]


def spin(seconds: float) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return threading.current_thread().name


def test_short_works_are_all_done_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.threads._LOOK_S", 60.0)  # a machine that stops for a moment makes no work a long one

    async def ask() -> list[str]:
        return await asyncio.gather(*(pool.run(lambda: threading.current_thread().name) for _ in range(500)))

    pool = threads(4)
    assert set(asyncio.run(ask())) == {"test_0"}
    pool.shutdown()


def test_while_one_work_takes_long_others_are_done_all_the_same() -> None:
    async def ask() -> set[str]:
        free = threading.Event()
        waits = [pool.run(lambda: free.wait(60)) for _ in range(2)]  # those two are in the way
        done = await asyncio.wait_for(asyncio.gather(*(pool.run(lambda: spin(0)) for _ in range(20))), 60)
        free.set()
        assert all(await asyncio.gather(*waits))
        again = await asyncio.gather(*(pool.run(lambda: spin(0)) for _ in range(100)))
        assert set(again) <= {"test_0", "test_1", "test_2"}
        return set(done)

    pool = threads(3)
    assert len(asyncio.run(ask())) == 1, "by the one that was left"
    pool.shutdown()


def test_long_works_are_shared() -> None:
    async def ask() -> list[str]:
        return await asyncio.gather(*(pool.run(lambda: spin(0.02)) for _ in range(40)))

    pool = threads(3)
    assert set(asyncio.run(ask())) == {"test_0", "test_1", "test_2"}
    pool.shutdown()


def test_works_that_were_long_of_late_are_shared_at_once_and_short_ones_after_them_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.threads._LOOK_S", 60.0)  # nobody sees how long they take but by those before

    async def ask() -> tuple[set[str], list[set[str]]]:
        await pool.run(lambda: spin(0.05))
        long = await asyncio.gather(*(pool.run(lambda: spin(0.02)) for _ in range(20)))
        for _ in range(100):
            await pool.run(lambda: None)
        rounds = [await asyncio.gather(*(pool.run(lambda: spin(0)) for _ in range(200))) for _ in range(3)]
        return set(long), [set(names) for names in rounds]

    pool = threads(3)
    long, rounds = asyncio.run(ask())
    assert long == {"test_0", "test_1", "test_2"}
    assert {"test_0"} in rounds, "who was called before may still come once"
    pool.shutdown()


def test_nobody_looks_after_threads_that_have_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.threads._LOOK_S", 0.0)
    looks: list[object] = []

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def counted(*what: Any) -> object:
            looks.append(what)
            return call_later(*what)

        monkeypatch.setattr(loop, "call_later", counted)
        await asyncio.gather(*(pool.run(lambda: spin(0)) for _ in range(9)))
        for _ in range(9):
            await asyncio.sleep(0)  # until it was seen that none is left
        seen = len(looks)
        assert seen
        for _ in range(9):
            await asyncio.sleep(0)
        assert len(looks) == seen

    pool = threads(2)
    asyncio.run(ask())
    pool.shutdown()


def test_helpers_end_with_works_in_line() -> None:
    done: list[str] = []

    async def leave() -> None:
        for _ in range(30):
            pool.run(lambda: done.append(spin(0.005)))

    pool = threads(3)
    asyncio.run(leave())
    pool.shutdown()
    assert len(done) == 30
