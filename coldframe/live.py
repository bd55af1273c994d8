"""Articles that came and went while a server answered: STORE/live.db, the latest change of every id.

A change is on the disk before it is acknowledged, and nothing here is ever set aside: the file holds what callers were
told is safe. A server writes it and reads it again when it starts or swaps a generation; the rebuild job, another
process, reads it at the same time and folds it into a new generation, whose watermark says up to where.

The file keeps SQLite's write-ahead log, with synchronous = FULL. A commit is then one append and one fsync, and a job
that reads for minutes never keeps an acknowledgement waiting, nor the other way round; with a rollback journal each
would (docs/decisions/0017-live-articles.md). Every row has a checksum, and the file's one row of state counts the rows
and sums their checksums, so that a row that is gone is noticed like one that is altered.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import threading
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from coldframe.errors import CorruptGeneration, FailedPrecondition, InvalidArgument
from coldframe.store import known_errno
from coldframe.text import article_text, text_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

LIVE = "live.db"

_APPLICATION = 0x6C697665  # "live", in the header of the file
_VERSION = 1
_BUSY_S = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The checksum stands before all that is long: to sum it up, no page of texts and vectors is read.
_SCHEMA = f"""
    CREATE TABLE state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        sequence INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        total INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    );
    CREATE TABLE changes (
        sequence INTEGER PRIMARY KEY,
        checksum INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        id TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL,
        title TEXT,
        published_at INTEGER,
        attributes TEXT,
        fingerprint TEXT,
        precision TEXT,
        seen INTEGER,
        used INTEGER,
        vector BLOB,
        content TEXT
    );
    CREATE INDEX changes_by_digest ON changes (digest) WHERE vector IS NOT NULL;
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_VERSION};
"""
_COLUMNS = (
    "sequence, changed_at, id, digest, title, published_at, attributes, fingerprint, precision, seen, used, vector, "
    "content"
)
# What SQLite says of a file that is no database, that is one no more, or that has no such table.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
# What it says of a folder in which a reader may not make the log's index, which it needs.
_NO_INDEX = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class LiveArticle:
    """What a caller sent."""

    id: str
    title: str
    content: str
    published_at: datetime | None
    """Aware, UTC."""
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The encoder's own vector of a text, before an index's placement, (dim,), fp32, and what it was computed with."""

    vector: NDArray[np.float32]
    fingerprint: str
    precision: str
    """Of the computation, as `Encoder.precision` says it: "fp32", "bf16" or "int8"."""
    tokens_seen: int
    tokens_used: int


@dataclass(frozen=True, slots=True)
class Upsert:
    """Adds an article, or replaces the one of its id."""

    article: LiveArticle
    embedded: Embedded


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes an article, also one that nobody knows: a corpus that is read later may name it."""

    id: str


Change = Upsert | Delete


@dataclass(frozen=True, slots=True)
class Entry:
    """The latest change of one id."""

    sequence: int
    id: str
    article: LiveArticle | None
    """None: deleted."""
    digest: bytes
    """Of the embedded text, 16 bytes (`coldframe.text`); empty for a deletion."""
    embedded: Embedded | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class _State:
    """How far the file is, and what its rows come to."""

    sequence: int = 0
    entries: int = 0
    total: int = 0

    def checksum(self) -> int:
        return zlib.crc32(b"%d %d %d" % (self.sequence, self.entries, self.total))


class LiveStore:
    """The file, for any number of threads. Without `read_only` it is made if it is not there.

    With `read_only`, a file that is not there is an empty store, and one in a folder that cannot be written is read
    from a copy, as it was when it was opened. Raises CorruptGeneration for a file that is damaged or foreign, which is
    left as it is, and InvalidArgument where the file shall be written and cannot be.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        if not read_only:
            self._writer = _open_to_write(path)
        with self._reading():  # refuses a damaged file now
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The last one who wrote moves the log into it."""
        with self._read_lock, self._write_lock:
            for db in (self._reader, self._writer):
                if db is not None:
                    db.close()
            self._reader = self._writer = None
            if self._copy is not None:
                self._copy.cleanup()

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the last change that was ever made; 0 before the first one."""
        with self._reading() as db:
            return 0 if db is None else _state(db).sequence

    def get(self, id: str) -> Entry | None:  # noqa: A002  (the wire's name)
        """The latest change of an id; None if there was none."""
        with self._reading() as db:
            found = None if db is None else db.execute(f"SELECT checksum, {_COLUMNS} FROM changes WHERE id = ?", (id,))
            row = None if found is None else found.fetchone()
            return None if row is None else _entry(row)

    def embedded(self, digest: bytes, fingerprint: str, precision: str | None = None) -> Embedded | None:
        """A vector of a text of this digest, by that encoder, if one is held; None for `precision` takes any."""
        with self._reading() as db:
            if db is None:
                return None
            question = f"SELECT checksum, {_COLUMNS} FROM changes WHERE digest = ? AND vector IS NOT NULL"
            for row in db.execute(question + " ORDER BY sequence", (digest,)):
                held = _entry(row).embedded
                if held and held.fingerprint == fingerprint and precision in {None, held.precision}:
                    return held
        return None

    def since(self, sequence: int) -> Iterator[Entry]:
        """The latest change of every id whose number is greater, ascending, all as of the moment of the first.

        Raises CorruptGeneration where an entry is damaged, or, at the end, where one of the file is missing.
        """
        with _damage_told(), closing(self._connect()) as db:
            yield from _scan(db, sequence) if db.file else ()
