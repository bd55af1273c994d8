"""What a log says of a build that takes its time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from indexer.progress import Reporter

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
