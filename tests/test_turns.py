"""Several processes write in one store on a slow disk: each has its turn."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import FailedPrecondition
from coldframe.live import LIVE, LiveStore
from server.turns import next_in_line
from tests.live_articles import filled, upsert
from tests.newsroom import opened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import Background

_WRITE_S = 0.05


class SlowDisk:
    """Each write takes its time, as long as nobody else can write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        """Ids, in their order."""
        usual = LiveStore.apply

        def apply(store: LiveStore, changes: Sequence[Any], *about: int, begun: Any = None, **how: bool) -> list[int]:
            def begin() -> None:
                begun()
                self.written.extend(change.id for change in changes)
                time.sleep(_WRITE_S)

            return usual(store, changes, *about, begun=begin, **how)

        monkeypatch.setattr(LiveStore, "apply", apply)


def test_who_writes_beside_one_who_never_pauses_waits_for_a_write_or_two(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, done = SlowDisk(monkeypatch), threading.Event()
    with (
        opened(background, own_newsroom) as (busy, _),
        opened(background, own_newsroom) as (client, engine),
        ThreadPoolExecutor(3) as pool,
    ):
        see_others = engine._see_others

        def see_slowly() -> None:
            see_others()
            time.sleep(0.02)  # as where there is much to be seen

        monkeypatch.setattr(engine.writer, "_see_others", see_slowly)

        def write(name: str) -> None:
            numbers = count()
            while not done.is_set():
                busy.delete([f"{name}{next(numbers)}"])

        writing = [pool.submit(write, name) for name in "abc"]
        try:
            for n in range(10):
                client.delete([f"own{n}"], timeout=20)
        finally:
            done.set()
        for one in writing:
            one.result(60)
    own = [place for place, name in enumerate(disk.written) if name.startswith("own")]
    assert len(own) == 10
    assert max(after - before for before, after in pairwise(own)) < 12, "of the other's groups of three"


def test_who_is_not_let_through_goes_all_the_same(tmp_path: Path) -> None:
    with next_in_line(tmp_path), next_in_line(tmp_path, 0.05) as begun:
        begun()
    with next_in_line(tmp_path / "none"):
        pass
    with next_in_line(tmp_path) as begun:
        begun()
        begin = time.monotonic()
        with next_in_line(tmp_path, 60):
            assert time.monotonic() - begin < 30


def test_where_others_write_all_the_time_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldframe.live_file._BUSY_S", 0.1)
    path = filled(tmp_path / LIVE, 5)
    with LiveStore(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(FailedPrecondition, match=r"another process has been writing .* Send them again"):
            store.apply([upsert("new")])
        other.execute("ROLLBACK")
        store.apply([upsert("new")])
