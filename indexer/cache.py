"""Vectors that were computed once: STORE/embeddings.db, by the encoder that computed them and the text they are of.

A build asks here before it computes, and puts here what it computed, so that the next build, or the same one after it
was killed, embeds only what is new. The vectors are the encoder's own, before an index's placement.

The file is worth nothing but time: one that is damaged or foreign is set aside and begun anew. It keeps SQLite's
rollback journal, with synchronous = FULL: what is committed survives a power cut, an append is written once (a
write-ahead log would write it twice, and keep both copies while the disk fills), and the file can be read in a store
that cannot be written (docs/decisions/0016-resume-and-cache.md).
"""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from coldframe.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.encoder import Tokens

CACHE = "embeddings.db"
_APPLICATION = 0x636F6C64  # "cold", in the header of the file
_VERSION = 1
# Vectors of 1.5 or 3 KB fill pages of this size to nine tenths; SQLite's own 4 KB pages would waste a quarter.
_PAGE_BYTES = 16_384
# A build writes for less than a second at a time, a prune for as long as it takes to remove what it does.
_WAIT_S = 60.0
# Much of a text can be told from its vector. Also while vectors are put: as pages fill, some are moved to others.
_OVERWRITE = "PRAGMA secure_delete = ON"
_SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS spaces (
        space INTEGER PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        precision TEXT NOT NULL,
        UNIQUE (fingerprint, precision)
    );
    CREATE TABLE IF NOT EXISTS vectors (
        space INTEGER NOT NULL,
        digest BLOB NOT NULL,
        seen INTEGER NOT NULL,
        used INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        vector BLOB NOT NULL,
        UNIQUE (space, digest)
    );
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_VERSION};
    COMMIT;
"""
# What SQLite says of a file that is no database, that is one no more, or that has no such table.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_IN_USE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# It may quote what is damaged, which then is no text for Python.
_REFUSED = (sqlite3.DatabaseError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Space:
    """Vectors that may stand for each other: of one encoder, computed with one precision."""

    fingerprint: str
    precision: str
    dim: int


@dataclass(frozen=True, slots=True)
class Cached:
    """A vector, (dim,), fp32, and the length of its text in tokens, before and after its end was cut off."""

    vector: NDArray[np.float32]
    seen: int
    used: int


class Cache:
    """The vectors of one space, in the file that holds those of all. `warn` is told if the file is set aside.

    Raises FailedPrecondition where another process keeps it waiting for too long, and sqlite3.Error where the file
    cannot be read or written for another reason than damage.
    """

    def __init__(self, path: Path, space: Space, warn: Callable[[str], None]) -> None:
        self._path, self._space, self._warn = path, space, warn
        try:
            self._db, self._number = _open(path, space)
        except (*_REFUSED, _ForeignError) as error:
            self._begin_anew(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Cached]:
        """What is known of texts with these digests (16 bytes), a few hundred at a time."""
        try:
            return self._get(digests)
        except _REFUSED as error:
            self._begin_anew(error)
            return {}

    def put(self, digests: Sequence[bytes], tokens: Sequence[Tokens], vectors: NDArray[np.float32]) -> None:
        """Keep the vectors, (texts, dim), of some texts, all of them or, if this is interrupted, none."""
        parts = zip(digests, tokens, vectors, strict=True)
        self.keep({digest: Cached(vector, token.seen, token.used) for digest, token, vector in parts})

    def keep(self, known: Mapping[bytes, Cached]) -> None:
        """Keep what is known of some texts, by digest, all of it or, if this is interrupted, nothing."""
        try:
            self._keep(known)
        except _REFUSED as error:
            self._begin_anew(error)
            self._keep(known)

    def _get(self, digests: Sequence[bytes]) -> dict[bytes, Cached]:
        marks = ",".join("?" * len(digests))
        rows = self._db.execute(
            f"SELECT digest, seen, used, checksum, vector FROM vectors WHERE space = ? AND digest IN ({marks})",  # noqa: S608
            (self._number, *digests),
        )
        return dict(_whole(rows, self._space))

    def _keep(self, known: Mapping[bytes, Cached]) -> None:
        rows = []
        for digest, cached in known.items():
            data = cached.vector.astype("<f4").tobytes()
            checksum = _checksum(digest, cached.seen, cached.used, data)
            rows.append((self._number, digest, cached.seen, cached.used, checksum, data))
        with _transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _begin_anew(self, error: sqlite3.DatabaseError | UnicodeDecodeError | _ForeignError) -> None:
        """Sets a damaged or foreign file aside. Raises any other error again, or what it means."""
        if not _damaged(error):
            _refuse(error, self._path)
        with suppress(AttributeError):  # nothing is open yet
            self._db.close()
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        why = str(error).partition(" with text ")[0]  # Python would quote a text that is no UTF-8
        self._warn(f"the cache of embeddings cannot be read ({why}); it lies in {aside} now, and a new one is begun")
        self._db, self._number = _open(self._path, self._space)


def _whole(rows: Iterable[tuple[Any, ...]], space: Space) -> Iterator[tuple[bytes, Cached]]:
    """What is as it was put there; a vector that is not, by a flipped bit, is computed again."""
    for digest, seen, used, checksum, vector in rows:
        if [type(value) for value in (digest, seen, used, vector)] != [bytes, int, int, bytes]:
            continue  # a flipped bit may make a number of a text, too
        if len(vector) == 4 * space.dim and _checksum(digest, seen, used, vector) == checksum:
            numbers = np.frombuffer(vector, "<f4")
            if np.isfinite(numbers).all():  # or an encoder that failed once would be believed for ever
                yield digest, Cached(numbers, seen, used)


class _ForeignError(Exception):
    """A good SQLite file that is no cache of this version."""


def _open(path: Path, space: Space) -> tuple[sqlite3.Connection, int]:
    """The file, made if it is not there, and the number of the space in it."""
    db = sqlite3.connect(path, _WAIT_S, isolation_level=None)  # transactions begin and end where it is written
    try:
        _prepare(db)
        key = (space.fingerprint, space.precision)
        db.execute("INSERT OR IGNORE INTO spaces (fingerprint, precision) VALUES (?, ?)", key)
        number: int = db.execute("SELECT space FROM spaces WHERE fingerprint = ? AND precision = ?", key).fetchone()[0]
    except BaseException:
        db.close()
        raise
    return db, number


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = FULL")
    db.execute(_OVERWRITE)
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that `prune` gives room back without a copy of the file
        db.executescript(_SCHEMA)
    found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if found != [_APPLICATION, _VERSION]:
        raise _ForeignError("it is no cache, or another version's")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            db.execute("ROLLBACK")
        raise


def count(path: Path, space: Space, digests: Sequence[bytes]) -> int:
    """How many of these texts, a few hundred, have a vector; 0 where the file is not there or cannot be read."""
    return len(_read(path, space, digests, "digest"))


def look_up(path: Path, space: Space, digests: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
    """The vectors of these texts, a few hundred, without a change to the file; {} where it cannot be read."""
    rows = _read(path, space, digests, "digest, seen, used, checksum, vector")
    return {digest: cached.vector for digest, cached in _whole(rows, space)}


def _read(path: Path, space: Space, digests: Sequence[bytes], columns: str) -> list[Any]:
    """The rows of these texts, without a change to the file; none where it cannot be read."""
    marks = ",".join("?" * len(digests))
    question = (
        f"SELECT {columns} FROM vectors JOIN spaces USING (space) "  # noqa: S608
        f"WHERE fingerprint = ? AND precision = ? AND digest IN ({marks})"
    )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(question, (space.fingerprint, space.precision, *digests)).fetchall()
    except sqlite3.Error:
        return []


def prune(path: Path, kept: Iterable[tuple[str, str, Iterable[bytes]]]) -> int:
    """Removes every vector but those `kept`: fingerprint, precision and digests of texts. Returns the bytes freed.

    A damaged file is removed as a whole. Raises as `Cache` does for one that cannot be read or written.
    """
    if not path.exists():
        return 0
    before = path.stat().st_size
    try:
        with closing(sqlite3.connect(path, _WAIT_S, isolation_level=None)) as db:
            _keep_only(db, kept)
    except _REFUSED as error:
        if not _damaged(error):
            _refuse(error, path)
        path.unlink()
        return before
    return before - path.stat().st_size


def _keep_only(db: sqlite3.Connection, kept: Iterable[tuple[str, str, Iterable[bytes]]]) -> None:
    db.execute(_OVERWRITE)
    db.execute("CREATE TEMP TABLE kept (space INTEGER, digest BLOB, PRIMARY KEY (space, digest)) WITHOUT ROWID")
    known = {(fingerprint, precision): n for n, fingerprint, precision in db.execute("SELECT * FROM spaces")}
    for fingerprint, precision, digests in kept:
        space = known.get((fingerprint, precision), -1)
        db.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", ((space, digest) for digest in digests))
    with _transaction(db):
        db.execute(
            "DELETE FROM vectors WHERE NOT EXISTS "
            "(SELECT 1 FROM kept WHERE kept.space = vectors.space AND kept.digest = vectors.digest)"
        )
    db.executescript("PRAGMA incremental_vacuum")  # `execute` would stop after the first page


def _checksum(digest: bytes, seen: int, used: int, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(b"%b %d %d" % (digest, seen, used)))


def _damaged(error: Exception) -> bool:
    """Whether an error says that a file is not what it was, or never was what it should be."""
    if isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode"):
        return True  # of Python's own: a text that is no UTF-8
    return not isinstance(error, sqlite3.DatabaseError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _refuse(error: Exception, path: Path) -> NoReturn:
    """Raises an error that is no damage, in words where it says that the file is in use."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _IN_USE:
        raise FailedPrecondition(
            f"another process has kept the cache of embeddings {path} for itself for {_WAIT_S:g} seconds; wait until "
            f"the build, prune or backup that uses it has ended, and the same command goes on"
        ) from error
    raise error
