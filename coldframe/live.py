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
import sqlite3
import threading
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coldframe.epoch import EPOCH
from coldframe.errors import FailedPrecondition
from coldframe.live_file import (
    LIVE,
    State,
    begin,
    copied,
    damage_told,
    file_id,
    log_of,
    open_to_read,
    open_to_write,
    read_state,
    refuse,
    refuse_at_sight,
    replaced,
    require_whole,
    save_state,
    traits,
    want_told,
    wants_index,
)
from coldframe.text import article_text, text_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.live_file import Copy

__all__ = ["LIVE", "Change", "Delete", "Embedded", "Entry", "LiveArticle", "LiveStore", "Outdated", "Upsert"]

_MICROSECOND = timedelta(microseconds=1)
_SAME_TEXT = """
    SELECT * FROM changes
    WHERE digest = ? AND vector IS NOT NULL AND fingerprint = ? AND (? IS NULL OR precision = ?)
    ORDER BY sequence LIMIT 1
"""
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


class Outdated(Exception):  # noqa: N818  # no error: the one who writes looks again, and tries again
    """Another process has written changes that the caller did not know of when it decided on its own."""


class LiveStore:
    """The file, for any number of threads. Without `read_only` it is made if it is not there.

    With `read_only`, a file that is not there is an empty store, and one in a folder that cannot be written, or on a
    disk that is full, is read from a copy, as it was when it was opened or at the last `refresh`. Raises
    CorruptGeneration for a file that is damaged or foreign, which is left as it is, InvalidArgument where the file
    shall be written and cannot be, and FailedPrecondition where there is no room. Where another file has taken its
    place meanwhile, what is open goes on to be read; to write and to open it again raises FailedPrecondition.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._copy: Copy | None = None
        self._file: tuple[int, int] | None = None
        self._log_path = log_of(path)
        self._log: tuple[int, int] | None = None  # of the one who writes: nobody removes it who finds it in use
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        self._closed = False
        if not read_only:
            self._writer = self._opened(open_to_write)
            self._log = file_id(self._log_path)
        try:
            with self._reading():  # refuses a damaged file now
                pass
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; whoever asks it later gets a ValueError. The last one who wrote moves the log into it."""
        with self._read_lock, self._write_lock:
            self._closed = True
            for db in (self._reader, self._writer):
                if db is not None:
                    db.close()
            self._reader = self._writer = None
            if self._copy is not None:
                self._copy.folder.cleanup()

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the last change that was ever made; 0 before the first one."""
        with self._reading() as db:
            return 0 if db is None else read_state(db).sequence

    def get(self, id: str) -> Entry | None:  # noqa: A002  (the wire's name)
        """The latest change of an id; None if there was none."""
        with self._reading() as db:
            rows = [] if db is None else db.execute("SELECT * FROM changes WHERE id = ?", (id,)).fetchall()
            return _entry(rows[0]) if rows else None

    def embedded(self, digest: bytes, fingerprint: str, precision: str | None = None) -> Embedded | None:
        """A vector of a text of this digest, by that encoder, if one is held; None for `precision` takes any."""
        with self._reading() as db:
            about = (digest, fingerprint, precision, precision)
            rows = [] if db is None else db.execute(_SAME_TEXT, about).fetchall()
            return _entry(rows[0]).embedded if rows else None

    def since(self, sequence: int) -> Iterator[Entry]:
        """The latest change of every id whose number is greater, ascending, all as of the moment of the first.

        Raises CorruptGeneration where an entry is damaged, or, at the end, where one of the file is missing.
        """
        with self._read_lock:
            db = self._connect()
        if db is not None:
            with damage_told(), closing(db):
                yield from _scan(db, sequence)

    def news(self, sequence: int) -> tuple[list[Entry], int]:
        """What `since` gives, and the number of the last change, in little time: only these entries are looked at, and
        the file as a whole is not.
        """
        with self._reading() as db:
            if db is None:
                return [], 0
            db.execute("BEGIN")
            try:
                rows = db.execute("SELECT * FROM changes WHERE sequence > ? ORDER BY sequence", (sequence,)).fetchall()
                return [_entry(row) for row in rows], read_state(db).sequence
            finally:
                db.execute("ROLLBACK")

    def pending(self, sequence: int) -> int:
        """How many entries `since` would give."""
        with self._reading() as db:
            if db is None:
                return 0
            count: int = db.execute("SELECT count(*) FROM changes WHERE sequence > ?", (sequence,)).fetchone()[0]
            return count

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection that answers short questions, for one thread at a time; None where there is no file."""
        with self._read_lock, damage_told():
            if self._reader is None:
                self._reader = self._connect()
            yield self._reader

    def _connect(self) -> sqlite3.Connection | None:
        self._require_open()
        self.require_in_place()
        if self._copy is not None:
            return open_to_read(self._copy.path)
        refuse_at_sight(self._path)
        if not self._path.exists():
            return None
        try:
            return self._opened(open_to_read)
        except sqlite3.OperationalError as error:
            if not wants_index(error):
                raise
        return self._opened(self._open_copy)

    def _open_copy(self, path: Path) -> sqlite3.Connection:
        copy = copied(path)
        try:
            db = open_to_read(copy.path)
        except BaseException:
            copy.folder.cleanup()
            raise
        self._copy = copy
        return db

    @property
    def reads_copy(self) -> bool:
        """Whether a copy of the file is read, since its folder cannot be written."""
        return self._copy is not None

    def refresh(self) -> None:
        """Where a copy is read and the file has changed since: reads the file, or a copy of it as it is by now.

        Takes some microseconds if nothing has. If that cannot be, raises what `LiveStore` does, and keeps the old one.
        """
        with self._read_lock, damage_told():
            if self._copy is None or traits(self._path) == self._copy.of:
                return
            before, self._copy = self._copy, None
            try:
                reader = self._connect()
            except BaseException:
                self._copy = before
                raise
            if self._reader is not None:
                self._reader.close()
            self._reader = reader
            before.folder.cleanup()

    def look_again(self) -> None:
        """Opens the file itself, where it or a copy of it was read: its folder can be written after all.

        At once: a question that comes when the file has been moved away finds the one that was.
        """
        with self._read_lock, damage_told():
            if self._reader is not None:
                self._reader.close()
            if self._copy is not None:
                self._copy.folder.cleanup()
            self._copy = self._reader = None
            self._reader = self._connect()

    def _opened(self, opening: Callable[[Path], sqlite3.Connection]) -> sqlite3.Connection:
        """A connection to the file, of which it is certain which one it is: the one of before, if there was one."""
        before = self._file or file_id(self._path)
        db = opening(self._path)
        self._file = file_id(self._path)
        if self._file is None or before not in (None, self._file):
            db.close()
            self._file = before
            raise replaced()
        return db

    def require_in_place(self) -> None:
        """Raises FailedPrecondition where the file that is open is not the one of the store any more, or, for who
        writes, its log is not: what is written would be lost. Takes some microseconds.
        """
        moved = self._file is not None and file_id(self._path) != self._file
        if moved or (self._log is not None and file_id(self._log_path) != self._log):
            raise replaced()

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this LiveStore is closed")

    # --- writing -----------------------------------------------------------------------------------------------------

    def apply(
        self,
        changes: Sequence[Change],
        after: int = 0,
        *,
        alone: bool = False,
        begun: Callable[[], None] | None = None,
    ) -> list[int]:
        """Takes all of the changes or, if this raises, none. They are on the disk when it returns.

        Returns the number of each change, ascending without a gap, all above `after`: where the file is new beside
        a generation that an earlier one was folded into, numbers go on where its watermark stands, or a server that
        starts would pass the changes over. Of several changes of one id the last one stays.
        Raises FailedPrecondition where the store has no room, cannot be written or has another file by now; with
        `alone`, Outdated where there are changes after `after`. begun: is called when nobody else can write any more.
        """
        now = (datetime.now(UTC) - EPOCH) // _MICROSECOND
        with self._writing() as db:
            state = read_state(db)
            if alone and state.sequence > after:
                raise Outdated
            if begun is not None:
                begun()
            first = max(state.sequence, after) + 1
            numbers = range(first, first + len(changes))
            for number, change in zip(numbers, changes, strict=True):
                state = _put(db, state, (number, now, *_values(change)))
            save_state(db, state)
        return list(numbers)

    def reembed(self, id: str, sequence: int, embedded: Embedded) -> None:  # noqa: A002
        """Replaces the vector of exactly that entry, which keeps its number; does nothing if it has changed since."""
        with self._writing() as db:
            question = "SELECT * FROM changes WHERE id = ? AND sequence = ? AND vector IS NOT NULL"
            for row in db.execute(question, (id, sequence)).fetchall():
                _entry(row)  # a damaged one gets no checksum that says it is whole
                number, _, *values = row
                save_state(db, _put(db, read_state(db), (number, *values[:6], *_embedded_values(embedded), values[-1])))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, one at a time. Whatever goes wrong, nothing of it stays."""
        with self._write_lock, damage_told(), want_told():
            self._require_open()
            if self._writer is None:
                raise FailedPrecondition(
                    "articles can be neither added nor removed: live.db of this store is open for reading only"
                )
            begin(self._writer)
            try:
                yield self._writer
                self.require_in_place()
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._writer.execute("ROLLBACK")
                raise


# --- rows ------------------------------------------------------------------------------------------------------------


def _values(change: Change) -> _Row:
    """A row without its number and time."""
    if isinstance(change, Delete):
        return (change.id, b"", *[None] * 9)
    article = change.article
    published_at = article.published_at and (article.published_at - EPOCH) // _MICROSECOND
    return (
        article.id,
        text_digest(article_text(article.title, article.content)),
        article.title,
        published_at,
        json.dumps(article.attributes, sort_keys=True, ensure_ascii=False),
        *_embedded_values(change.embedded),
        article.content,
    )


def _embedded_values(embedded: Embedded) -> _Row:
    vector = embedded.vector.astype("<f4").tobytes()
    return embedded.fingerprint, embedded.precision, int(embedded.tokens_seen), int(embedded.tokens_used), vector


def _put(db: sqlite3.Connection, state: State, row: _Row) -> State:
    """Writes a row in the place of the one that has its id, and says what the file comes to."""
    number, *values = row
    before = db.execute("SELECT checksum FROM changes WHERE id = ?", (values[1],)).fetchone()
    checksum = _checksum(row)
    db.execute(f"INSERT OR REPLACE INTO changes VALUES ({','.join('?' * 14)})", (number, checksum, *values))  # noqa: S608
    total = state.total + checksum - (before[0] if before else 0)
    return State(max(state.sequence, number), state.entries + (before is None), total)


def _checksum(row: _Row) -> int:
    return zlib.crc32(b"".join(map(_bytes, row)))


def _bytes(value: str | bytes | float | None) -> bytes:
    """A value, told apart from all others by its kind and its length."""
    if value is None:
        return b"none:"
    if isinstance(value, int):
        return b"int:%d:" % value
    if isinstance(value, float):  # was never written: a flipped bit made it of an integer
        return b"float:%b:" % value.hex().encode()
    kind, data = (b"text", value.encode()) if isinstance(value, str) else (b"blob", value)
    return b"%b:%d:%b" % (kind, len(data), data)


def _entry(row: _Row) -> Entry:
    """Raises CorruptGeneration for a row that is not what was written."""
    number, checksum, *values = row
    if _checksum((number, *values)) != checksum:
        refuse(f"change {number} does not match its checksum")
    changed_at, article_id, digest, title, published_at, attributes, *embedding, content = values
    moment = EPOCH + changed_at * _MICROSECOND
    if title is None:
        return Entry(number, article_id, None, digest, None, moment)
    published = None if published_at is None else EPOCH + published_at * _MICROSECOND
    article = LiveArticle(article_id, title, content, published, json.loads(attributes))
    fingerprint, precision, seen, used, vector = embedding
    embedded = Embedded(np.frombuffer(vector, "<f4"), fingerprint, precision, seen, used)
    return Entry(number, article_id, article, digest, embedded, moment)


def _scan(db: sqlite3.Connection, sequence: int) -> Iterator[Entry]:
    db.execute("BEGIN")
    sums = "SELECT count(*), ifnull(sum(checksum), 0) FROM changes WHERE sequence <= ?"
    entries, total = db.execute(sums, (sequence,)).fetchone()
    for row in db.execute("SELECT * FROM changes WHERE sequence > ? ORDER BY sequence", (sequence,)):
        yield _entry(row)
        entries, total = entries + 1, total + row[1]
    require_whole(db, entries, total)
