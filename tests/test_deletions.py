"""Articles that are withdrawn: more than once, and from the disk."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.live import LIVE, Delete, LiveStore
from indexer.cache import CACHE, prune
from tests.clocks import ahead
from tests.live_articles import upsert, vector
from tests.newsroom import opened
from tests.test_cache import SPACE, filled, texts, vectors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Background


def test_one_that_is_said_again_later_is_of_that_moment(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of the time between, or a build that read it, would else bring the article back."""
    monkeypatch.setattr("server.writer._AGAIN", timedelta(0))
    with opened(background, own_newsroom) as (client, _):
        assert client.delete(["005"]).deleted_ids == ["005"]
        exported = datetime.now(UTC)
        assert client.delete(["005"]).missing_ids == ["005"]
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        (entry,) = live.since(1)
        assert entry.id == "005"
        assert entry.article is None
        assert entry.changed_at >= exported


@pytest.fixture
def as_sqlite_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's overwrites what is deleted by itself; that of sqlite.org, or of a Python from python.org, does not."""
    connect = sqlite3.connect

    def plainly(*args: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **options)
        db.execute("PRAGMA secure_delete = OFF")
        return db

    monkeypatch.setattr(sqlite3, "connect", plainly)


@pytest.mark.usefixtures("as_sqlite_comes")
@pytest.mark.parametrize("words", [3, 3_000])
def test_of_an_article_that_was_removed_or_replaced_nothing_stays_in_the_file(tmp_path: Path, words: int) -> None:
    path = tmp_path / LIVE
    with LiveStore(path) as store:
        store.apply([upsert(name, seed, words) for seed, name in enumerate(["stays", "goes", "changes"])])
    assert [raw in path.read_bytes() for raw in (b"word0", b"word1", b"word2")] == [True, True, True]
    with LiveStore(path) as store:
        store.apply([Delete("goes"), upsert("changes", 3, words)])
    raw = path.read_bytes()
    assert [f"word{seed}".encode() in raw for seed in range(4)] == [True, False, False, True]
    assert [vector(seed).vector.tobytes()[-64:] in raw for seed in range(4)] == [True, False, False, True]


@pytest.mark.usefixtures("as_sqlite_comes")
def test_of_a_vector_that_was_pruned_nothing_stays_in_the_cache(tmp_path: Path) -> None:
    path = filled(tmp_path / CACHE, texts(200))
    kept = [text for n, text in enumerate(texts(200)) if n % 2]
    prune(path, [(SPACE.fingerprint, SPACE.precision, kept)])
    raw = path.read_bytes()
    assert [vector.tobytes() in raw for vector in vectors(texts(200))] == [bool(n % 2) for n in range(200)]


def test_one_that_is_said_again_after_the_clock_was_put_back_is_of_that_moment(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(background, own_newsroom) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr("coldframe.live.datetime", ahead(by=timedelta(hours=1)))
            client.delete(["005"])
        client.delete(["005"])
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        (entry,) = live.since(0)
        assert (entry.sequence, entry.id) == (2, "005")
        assert entry.changed_at <= datetime.now(UTC)
