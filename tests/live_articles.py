"""Changes of live articles, made from numbers, and how they are told from others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from coldframe.live import Change, Delete, Embedded, Entry, LiveArticle, LiveStore, Upsert
from coldframe.text import article_text, text_digest

if TYPE_CHECKING:
    from pathlib import Path

DIM = 48
MODEL = "f1" * 32
PUBLISHED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def vector(seed: int) -> Embedded:
    """Made from the seed: what a wrong answer is told from."""
    values = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return Embedded(values, MODEL, "fp32", seed % 5000, seed % 4096)


def upsert(article_id: str, seed: int = 0, words: int = 30) -> Upsert:
    content = " ".join(f"word{seed}" for _ in range(words))
    article = LiveArticle(article_id, f"Title {seed}", content, PUBLISHED + timedelta(days=seed), {"desk": str(seed)})
    return Upsert(article, vector(seed))


def plain(embedded: Embedded | None) -> object:
    """What can be compared."""
    return embedded and (embedded.vector.tobytes(), *(getattr(embedded, name) for name in Embedded.__slots__[1:]))


def assert_is(entry: Entry | None, sequence: int, change: Change) -> None:
    assert entry is not None
    assert entry.sequence == sequence
    if isinstance(change, Delete):
        assert (entry.id, entry.article, entry.digest, entry.embedded) == (change.id, None, b"", None)
        return
    article = change.article
    assert (entry.id, entry.article) == (article.id, article)
    assert entry.digest == text_digest(article_text(article.title, article.content))
    assert plain(entry.embedded) == plain(change.embedded)


def contents(path: Path) -> list[tuple[int, str, bytes, object]]:
    """All that a reader finds."""
    with LiveStore(path, read_only=True) as store:
        return [(entry.sequence, entry.id, entry.digest, plain(entry.embedded)) for entry in store.since(0)]


def filled(path: Path, count: int = 60) -> Path:
    with LiveStore(path) as store:
        for start in range(0, count, 5):
            store.apply([upsert(f"id{n:03}", n, 40 * (n % 7)) for n in range(start, start + 5)])
        store.apply([Delete("id003"), Delete("unknown")])
    return path
