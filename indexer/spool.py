"""The corpus on disk, between reading and embedding.

Files hold articles in any order and may repeat an id. The spool takes them one by one into a SQLite file and gives them
back sorted by id, with duplicates found, in memory that does not grow with the corpus. An article's place in that
order is its row in the index.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self, TextIO

import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.text import article_text, text_digest
from indexer.corpus import Article, Reject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_encode = json.JSONEncoder(sort_keys=True).encode  # json.dumps would make an encoder for every row

# TEXT compares by its UTF-8 bytes, which is the order of code points. `texts` holds each distinct embedded text once,
# in the order in which texts are embedded; the text itself is made again from the first article that has it. `places`
# holds every article in the order of ids, from 1.
_SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -32768;
    CREATE TABLE articles (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL,
        line INTEGER NOT NULL,
        published_at TEXT,
        digest BLOB NOT NULL,
        title TEXT NOT NULL,
        attributes TEXT NOT NULL,
        content TEXT NOT NULL
    );
    CREATE TABLE texts (
        chars INTEGER NOT NULL,
        digest BLOB NOT NULL,
        first INTEGER NOT NULL,
        PRIMARY KEY (chars, digest)
    ) WITHOUT ROWID;
    CREATE TABLE places (place INTEGER PRIMARY KEY, article INTEGER NOT NULL, digest BLOB NOT NULL);
"""
# Texts whose first article was removed or replaced: another one that has the text is their first now, or nobody has it.
_MEND = """
    CREATE TEMP TABLE orphans AS
        SELECT chars, digest FROM texts
        WHERE NOT EXISTS (SELECT 1 FROM articles WHERE row = texts.first AND articles.digest = texts.digest);
    DELETE FROM texts WHERE digest IN (SELECT digest FROM orphans);
    INSERT INTO texts
        SELECT orphans.chars, orphans.digest, min(row) FROM articles JOIN orphans USING (digest)
        GROUP BY orphans.digest;
"""
_ORDER = """
    INSERT INTO places (article, digest) SELECT row, digest FROM articles ORDER BY id;
    CREATE INDEX places_by_digest ON places (digest);
"""
UNDATED = -(2**63)
"""Stands for the date of an article that has none."""


@dataclass(frozen=True, slots=True)
class SpooledArticle(Article):
    """An article with the digest (16 bytes) of its embedded text: equal for articles that share one vector."""

    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class DistinctText:
    """A text that is embedded: its digest, its length in characters, and where it lies in the spool."""

    digest: bytes
    chars: int
    first: int


class Spool:
    """Articles in a scratch file, which is begun anew: a crash while it was filled may leave it broken."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path)
        self._db.executescript(_SCHEMA)
        self._removed = False

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open a spool that was filled and put in order before."""
        spool = cls.__new__(cls)
        spool._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        return spool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and leave it where it is."""
        self._db.commit()
        self._db.close()

    def __len__(self) -> int:
        return self._count("articles")

    def add(self, article: Article) -> bool:
        """Take an article; False if its id is already there, in which case the first one stays."""
        text = article_text(article.title, article.content)
        digest = text_digest(text)
        published_at = article.published_at and article.published_at.isoformat()
        attributes = _encode(article.attributes)
        row = (
            article.id,
            article.source,
            article.line,
            published_at,
            digest,
            article.title,
            attributes,
            article.content,
        )
        added = self._db.execute("INSERT OR IGNORE INTO articles VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        if not added.rowcount:
            return False
        self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", (len(text), digest, added.lastrowid))
        return True

    def remove(self, article_id: str) -> bool:
        """Take an article out again; False if there is none with this id. Texts are right when `order` was called."""
        removed = self._db.execute("DELETE FROM articles WHERE id = ?", (article_id,)).rowcount > 0
        self._removed |= removed
        return removed

    def distinct(self) -> int:
        """Count the distinct embedded texts."""
        return self._count("texts")

    def chars(self) -> int:
        """Count the characters of the distinct embedded texts."""
        total: int | None = self._db.execute("SELECT sum(chars) FROM texts").fetchone()[0]
        return total or 0

    def where(self, article_id: str) -> tuple[str, int] | None:
        """Say in which source and on which line the article with this id was read; None if there is none."""
        found: tuple[str, int] | None = self._db.execute(
            "SELECT source, line FROM articles WHERE id = ?", (article_id,)
        ).fetchone()
        return found

    def articles(self) -> Iterator[SpooledArticle]:
        """Every article, ordered by the code points of its id."""
        rows = self._db.execute(
            "SELECT id, title, content, published_at, attributes, source, line, digest FROM articles ORDER BY id"
        )
        for article_id, title, content, published_at, attributes, source, line, digest in rows:
            date = datetime.fromisoformat(published_at) if published_at else None
            yield SpooledArticle(article_id, title, content, date, json.loads(attributes), source, line, digest)

    def order(self) -> None:
        """Give every article its row, once all are there: their order by id, from 0."""
        if self._removed:
            self._db.executescript(_MEND)
        self._db.executescript(_ORDER)

    def text(self, row: int) -> str:
        """The embedded text of a row."""
        title, content = self._db.execute(
            "SELECT title, content FROM places JOIN articles ON row = article WHERE place = ?", (row + 1,)
        ).fetchone()
        return article_text(title, content)

    def seconds(self) -> NDArray[np.int64]:
        """When each row was published, in seconds since 1970, (n,); UNDATED where that is not known."""
        rows = self._db.execute("SELECT published_at FROM places JOIN articles ON row = article ORDER BY place")
        return np.fromiter((_seconds(published_at) for (published_at,) in rows), np.int64, len(self))

    def undated(self) -> int:
        """Count the articles without a date."""
        return self._count("articles WHERE published_at IS NULL")

    def _count(self, what: str) -> int:
        count: int = self._db.execute(f"SELECT count(*) FROM {what}").fetchone()[0]  # noqa: S608
        return count

    def ids(self) -> list[str]:
        """The id of each row."""
        return [article_id for (article_id,) in self._db.execute("SELECT id FROM articles ORDER BY id")]

    def digests(self) -> list[bytes]:
        """The digest (16 bytes) of each row's embedded text."""
        return [digest for (digest,) in self._db.execute("SELECT digest FROM places ORDER BY place")]

    def texts(self) -> Iterator[DistinctText]:
        """Each distinct embedded text once, ordered by length in characters and digest."""
        for chars, digest, first in self._db.execute("SELECT chars, digest, first FROM texts ORDER BY chars, digest"):
            yield DistinctText(digest, chars, first)

    def read(self, first: int) -> tuple[bytes, str]:
        """The digest and the text that a `DistinctText` tells of."""
        digest, title, content = self._db.execute(
            "SELECT digest, title, content FROM articles WHERE row = ?", (first,)
        ).fetchone()
        return digest, article_text(title, content)

    def rows(self, digests: Sequence[bytes]) -> dict[bytes, list[int]]:
        """The rows that have these texts, a few hundred at a time."""
        marks = ",".join("?" * len(digests))
        found: dict[bytes, list[int]] = {digest: [] for digest in digests}
        for digest, place in self._db.execute(
            f"SELECT digest, place FROM places WHERE digest IN ({marks})",  # noqa: S608
            digests,
        ):
            found[digest].append(place - 1)
        return found

    def digest(self) -> str:
        """Return the sha256 (hex) of the ordered articles, the same whatever the order or the format of their files."""
        sha = hashlib.sha256()
        rows = self._db.execute("SELECT id, title, content, published_at, attributes FROM articles ORDER BY id")
        for row in rows:
            sha.update(_encode(row).encode())
        return sha.hexdigest()


def _seconds(published_at: str | None) -> int:
    return int(datetime.fromisoformat(published_at).timestamp()) if published_at else UNDATED


@dataclass(frozen=True)
class ReadStats:
    """What came of reading a corpus, in rows; `reasons` counts the rejected by kind."""

    read: int
    kept: int
    rejected: int
    rejects_path: Path | None
    reasons: dict[str, int]


def fill(
    spool: Spool,
    rows: Iterable[Article | Reject],
    rejects_path: Path,
    *,
    max_reject_share: float,
) -> ReadStats:
    """Put the articles into an empty spool and what cannot be used into `rejects_path`, one JSON object per line.

    The spool is not put in order: more may be added, or removed.

    The rejects file appears whole, and only if a row was rejected; one that an earlier run left is replaced or removed.
    Raises InvalidArgument if something else lies there, and if there are no rows, none that can be used, or a larger
    share of rejects than is allowed.
    """
    reasons: Counter[str] = Counter()
    with _rejects_file(rejects_path) as file:
        for row in rows:
            reject = row if isinstance(row, Reject) else _keep(spool, row)
            if reject:
                reasons[reject.kind] += 1
                file.write(_json_line(reject))
    kept, rejected = len(spool), reasons.total()
    stats = ReadStats(kept + rejected, kept, rejected, rejects_path if rejected else None, dict(reasons.most_common()))
    _judge(stats, max_reject_share)
    return stats


def _keep(spool: Spool, article: Article) -> Reject | None:
    if spool.add(article):
        return None
    source, line = spool.where(article.id) or ("", 0)
    reason = f"duplicate id: the id {article.id!r} was already used in {source} line {line}; the first one is kept"
    return Reject(article.source, article.line, reason, article.id)


_REJECT_KEYS = ["source", "line", "id", "reason"]
_MAX_REJECT_CHARS = 2**16


def _json_line(reject: Reject) -> str:
    return json.dumps({key: getattr(reject, key) for key in _REJECT_KEYS}) + "\n"


def _require_spare(path: Path) -> None:
    """Raise InvalidArgument where something lies that no earlier run left: an article file, named twice by mistake."""
    if not path.exists() or path.is_dir():
        return
    with suppress(ValueError, TypeError, RecursionError):
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                first = file.readline(_MAX_REJECT_CHARS)
            if not first or [*json.loads(first)] == _REJECT_KEYS:
                return
    raise InvalidArgument(
        f"--rejects {path}: this is there already and is no list of rejects, and would be replaced or removed; name "
        "another file, or one that does not exist",
        field="rejects",
    )


@contextmanager
def _rejects_file(path: Path) -> Iterator[TextIO]:
    unfinished = path.parent / f"{path.name}.tmp"
    try:
        _require_spare(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if unfinished.stat().st_size:
            unfinished.replace(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidArgument(
            f"the rejects file {path} cannot be written ({error.strerror}); name another one with --rejects",
            field="rejects",
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _judge(stats: ReadStats, max_reject_share: float) -> None:
    if stats.read == 0:
        raise InvalidArgument(
            "The corpus has no articles: its files hold column names only. Give --corpus a file with rows.",
            field="corpus",
        )
    if stats.kept and stats.rejected <= max_reject_share * stats.read:
        return
    share = stats.rejected / stats.read
    commonest = ", ".join(f"{kind} ({count:,})" for kind, count in list(stats.reasons.items())[:3])
    raise InvalidArgument(
        f"{stats.rejected:,} of {stats.read:,} rows ({share:.1%}) cannot be used; {max_reject_share:.1%} may be bad. "
        f"The commonest reasons: {commonest}. {stats.rejects_path} lists them all. "
        "Mend the rows, or allow more with --max-reject-share.",
        field="max-reject-share",
    )
