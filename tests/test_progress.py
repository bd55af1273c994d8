"""What a log says of a build that takes its time."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from indexer.progress import Reporter
from tests.waiting import wait_until

if TYPE_CHECKING:
    import pytest


@dataclass
class Clock:
    """What `time.perf_counter` says."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def reporter(monkeypatch: pytest.MonkeyPatch) -> tuple[Reporter, io.StringIO, Clock]:
    said, clock = io.StringIO(), Clock()
    monkeypatch.setattr("indexer.progress.time.perf_counter", clock)
    return Reporter(Console(file=said, width=200)), said, clock


def test_time_left_is_told_by_the_pace_of_embedding_and_not_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    report, said, clock = reporter(monkeypatch)
    with report.embedding(100, 10_000) as advance:
        clock.now = 60.0  # the first texts, and compiling
        advance(1, 10, 100)
        for _ in range(20):
            clock.now += 1.0
            advance(1, 10, 100)
    assert said.getvalue() == "embedding 16/100 articles, 2 tokens/s, 84 s left\n"


def test_reading_a_large_corpus_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    report, said, clock = reporter(monkeypatch)
    for share in (lambda row: row / 40, lambda _row: None):
        for row in report.reading(range(1, 41), share):
            clock.now += 1.0
            assert row
    lines = ["reading: 15 rows, 38% of the corpus", "reading: 30 rows, 75% of the corpus"]
    assert said.getvalue().splitlines() == [*lines, "reading: 15 rows", "reading: 30 rows"]


def test_a_phase_that_says_nothing_is_told_to_go_on_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.progress._LOG_EVERY_S", 0.05)
    said = io.StringIO()
    report = Reporter(Console(file=said, width=200))
    with report.phase("describe"):
        wait_until(lambda: said.getvalue().count("describe: ") >= 3)
    took = report.seconds["describe"]
    assert took >= 0.05 + 0.1 + 0.2
    *lines, last = said.getvalue().splitlines()
    assert {line[:9] + line[-7:] for line in lines} == {"describe:" + " so far"}
    assert last.startswith("describe  ")


def test_a_phase_of_which_something_is_seen_is_not_told_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.progress._LOG_EVERY_S", 1.0)
    said = io.StringIO()
    report = Reporter(Console(file=said, width=200))
    with report.phase("embed"), report.embedding(100, 10_000) as advance:
        for _ in range(30):
            time.sleep(0.05)
            advance(1, 10, 100)
    assert "so far" not in said.getvalue()
