"""How long the lines are before the encoder and the search threads, by what was computed and who was refused."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from server.admission import SearchLine
from server.embed_queue import Line
from server.threads import Threads


def test_who_comes_has_less_room_while_much_is_computed_but_some_always() -> None:
    line = Line("quick", 2_048)
    line.texts = 1
    line.noticed(tokens=1_000, seconds=0.2)  # a fifth of a second of it
    assert (line.takes(1_000), line.takes(1_001)) == (True, False)
    line.computing = 600
    assert (line.takes(400), line.takes(401)) == (True, False)
    line.computing = 990
    assert (line.takes(256), line.takes(257)) == (True, False)


def test_small_batches_say_nothing_of_how_fast_many_texts_are() -> None:
    line = Line("quick", 2_048)
    line.noticed(tokens=1_000, seconds=0.2)
    line.noticed(tokens=20, seconds=0.02)
    assert (line.pace, line.batch) == (5_000, 300)
    line.noticed(tokens=150, seconds=0.15)
    assert line.pace == pytest.approx(4_200)
    line.pace = 100.0
    line.noticed(tokens=70, seconds=0.1)
    assert line.pace == pytest.approx(220), "never less than 128 tokens go at once"


def test_a_line_that_refuses_for_a_while_is_kept_shorter_until_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = Line("quick", 2_048)
    line.noticed(tokens=1_000, seconds=0.2)
    assert line.room == 1_000
    line.counts.refuse()
    line.noticed(tokens=1_000, seconds=1)
    assert (line.pace, line.room) == (5_000, 1_000), "a refusal or two change nothing"
    for _ in range(4):
        now += 0.05
        line.counts.refuse()
    assert line.room == 600
    line.noticed(tokens=1_000, seconds=1)
    assert (line.pace, line.room) == (3_400, 408), "the pace of those who are let in beside others who are not"
    now += 0.3
    assert (line.pace, line.room) == (5_000, 1_000), "and that of before, once nobody is refused"


def test_a_search_line_that_refuses_is_kept_short_until_nobody_was_refused_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = SearchLine(64)

    def full(waiting: int) -> bool:
        line.waiting = waiting
        return line.full

    assert (full(63), full(64)) == (False, True)
    line.refuse()
    assert (full(63), full(8), full(7)) == (True, True, False)
    now += 0.3
    assert (full(63), full(64)) == (False, True)


def test_searches_count_as_going_on_for_a_second_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now, line, pool = 100.0, SearchLine(64), Threads(1, "test", lambda: None)
    monkeypatch.setattr("server.admission.time", SimpleNamespace(monotonic=lambda: now))
    found = [line.busy()]

    async def ask() -> None:
        search = line.through(pool, lambda: None)
        found.append(line.busy())
        await search

    asyncio.run(ask())
    for later in 0.9, 0.2:
        found.append(line.busy())
        now += later
    found.append(line.busy())
    pool.shutdown()
    assert found == [False, True, True, True, False]


def test_a_search_that_was_begun_is_not_counted_as_dropped_when_its_caller_goes() -> None:
    line, pool, begun, free = SearchLine(64), Threads(1, "test", lambda: None), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        free.wait(60)

    async def ask() -> None:
        search = asyncio.ensure_future(line.through(pool, wait))
        behind = asyncio.ensure_future(line.through(pool, lambda: None))
        assert begun.wait(60)
        search.cancel()
        behind.cancel()
        free.set()
        await asyncio.wait([search, behind])

    asyncio.run(ask())
    pool.shutdown()
    assert line.counts.dropped == {"deadline": 0, "gone": 1}


def test_a_line_of_few_searches_still_takes_those_of_one_batch_while_it_refuses() -> None:
    line = SearchLine(10)
    line.refuse()
    line.waiting = 3
    assert not line.full
