"""Short versions of `benchmarks.load`: a real server that is asked for too much, and told to stop under load.

And of `benchmarks.gate`, which serves without the gate that names every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import gate
from benchmarks.crowd import Answers
from benchmarks.drawn import queries_path
from benchmarks.load import Running, running, soak, term, together
from coldframe.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(own_newsroom: Path, tmp_path: Path) -> Path:
    """As `benchmarks.drawn` leaves it: a store, and vectors to ask with."""
    folder = tmp_path / "load"
    folder.mkdir()
    own_newsroom.rename(folder / "store")
    index = Store(folder / "store").open().index
    np.save(queries_path(folder), np.asarray(index.vectors)[:50])
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with running(folder / "store", folder, "--precision", "fp32", "--max-searches", "4") as server:
        yield server


def test_overload_is_refused_and_over_when_it_is_over(server: Running) -> None:
    calm = server.press("vector", 4, 1.0)
    assert set(calm.took) == {"OK"}
    before = server.memory_mib
    pressed = together(server.crowds.press(*[server.order("vector", 3.0, callers=40) for _ in range(2)]))
    assert set(pressed.took) <= {"OK", "RESOURCE_EXHAUSTED", "CANCELLED"}
    assert len(pressed.ok()) > 20
    assert len(pressed.took["RESOURCE_EXHAUSTED"]) > 20
    assert pressed.p(50, "RESOURCE_EXHAUSTED") < 1_000
    assert server.memory_mib < before + 100
    after = server.press("vector", 4, 1.0)
    assert set(after.took) == {"OK"}, "nothing is left of it"


def test_calls_by_the_clock_are_made_and_answered(server: Running) -> None:
    """By `benchmarks.storm`, over sockets: what it is told is what a client of grpc's hears."""
    answers = server.crowds.press(server.order("vector", 2.0, rate=40))[0]
    assert set(answers.took) == {"OK"}
    assert answers.count == pytest.approx(80, abs=4)
    upserts = server.crowds.press(server.order("upsert", 1.0, rate=5))[0]
    assert set(upserts.took) == {"OK"}


def test_seed_texts_and_searches_are_answered_beside_long_articles(server: Running) -> None:
    orders = [server.order(kind, 3.0, callers=n) for kind, n in (("article", 2), ("text", 1), ("vector", 1))]
    articles, texts, vectors = server.crowds.press(*orders)
    assert set(articles.took) == set(texts.took) == set(vectors.took) == {"OK"}
    assert texts.p(50) < articles.p(50)
    assert len(vectors.ok()) > 20


def test_sigterm_under_load_answers_whom_it_let_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    term(folder, 2.0)
    said = capsys.readouterr().out
    assert "kept    exit status 0" in said
    assert "kept    ended after" in said
    assert "BROKEN" not in said


def test_a_soak_of_seconds_finds_nothing_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak(folder, 0.1, every_s=1.5)
    said = capsys.readouterr().out
    assert "kept    open files" in said
    assert "kept    no call failed" in said


def test_answers_are_joined_by_status() -> None:
    one, other = Answers(seconds=1.0), Answers(seconds=2.0)
    one.add("OK", 0.0, 5.0)
    other.add("OK", 0.5, 7.0)
    other.add("CANCELLED", 0.5, 1.0)
    whole = together([one, other])
    assert (whole.count, whole.seconds, whole.p(50), whole.p(50, "CANCELLED")) == (3, 2.0, 6.0, 1.0)


def test_what_the_gate_costs_is_held_against_a_server_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gate", "--calls", "100"])
    gate.main()
    assert [line[:12] for line in capsys.readouterr().out.splitlines()] == ["without a ga", "with a gate "]
