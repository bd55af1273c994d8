"""The file of live articles: how it is made, opened by those who write and those who read, and refused if damaged.

What is in it, and why it keeps a write-ahead log: `coldframe.live`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coldframe.durable import sync_path
from coldframe.errors import ColdframeError, CorruptGeneration, FailedPrecondition, InvalidArgument
from coldframe.shortage import MORE_FILES, NO_FILES, SEE_TO_DISK, known_errno

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVE = "live.db"

_APPLICATION = 0x6C697665  # "live", in the header of the file
_VERSION = 1
_BUSY_S = 10.0
_LOOK_S = 0.001
_TRIES = 3
# What SQLite says of a file that is no database, that is one no more, or that has no such table.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
# What it says of a folder in which a reader may not make the log's index, which it needs; the last, of a full disk.
_NO_INDEX = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_SHMSIZE}


@dataclass(frozen=True, slots=True)
class State:
    """How far the file is, and what its rows come to."""

    sequence: int = 0
    entries: int = 0
    total: int = 0

    def checksum(self) -> int:
        """Of these numbers."""
        return zlib.crc32(b"%d %d %d" % (self.sequence, self.entries, self.total))


# Two may begin the file at once. The checksum stands before all that is long: to sum it up, no page that only goes on
# with a text or a vector is read.
_SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        sequence INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        total INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0, {State().checksum()});
    CREATE TABLE IF NOT EXISTS changes (
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
    CREATE INDEX IF NOT EXISTS changes_by_digest ON changes (digest) WHERE vector IS NOT NULL;
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_VERSION};
    COMMIT;
"""  # noqa: S608


def read_state(db: sqlite3.Connection) -> State:
    """Raises CorruptGeneration where the file does not know what it comes to."""
    row = db.execute("SELECT sequence, entries, total, checksum FROM state").fetchone()
    # A flipped bit may make anything of a number.
    if row is None or not all(isinstance(value, int) for value in row) or State(*row[:3]).checksum() != row[3]:
        refuse("its row of state does not match its checksum")
    return State(*row[:3])


def save_state(db: sqlite3.Connection, state: State) -> None:
    """Within the transaction that made it so."""
    row = (state.sequence, state.entries, state.total, state.checksum())
    db.execute("UPDATE state SET sequence = ?, entries = ?, total = ?, checksum = ?", row)


def require_whole(db: sqlite3.Connection, entries: int, total: int) -> None:
    """Raises CorruptGeneration unless so many rows, with checksums of this sum, are what the file should hold."""
    state = read_state(db)
    if (entries, total) != (state.entries, state.total):
        refuse(f"it holds {entries:,} changes and should hold {state.entries:,}, or not the same ones")


# --- the file --------------------------------------------------------------------------------------------------------


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection that writes; the file is made if it is not there.

    Raises CorruptGeneration for a damaged or foreign file, and InvalidArgument or FailedPrecondition where the store
    cannot be written.
    """
    with damage_told(), _unwritable_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_at_sight(path)
        if not path.exists():
            _make(path)
        db = _connect(path, "rwc")
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")  # an article that must go goes from the disk, too
            _prepare(db, path)
            db.execute("PRAGMA busy_timeout = 0")  # `begin` waits
        except BaseException:
            db.close()
            raise
        sync_path(path.parent)
    return db


def begin(db: sqlite3.Connection) -> None:
    """Begins to write, and waits until others have written: SQLite itself would look every tenth of a second, and begin
    when nobody else happens to in that moment.
    """
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        else:
            return
        time.sleep(_LOOK_S)


def _make(path: Path) -> None:
    """Makes a new file beside its place and puts it there whole: who reads at this moment finds no half of it."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with closing(_connect(partial, "rwc")) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            db.execute("PRAGMA journal_mode = WAL")  # now, as long as nobody else has it open
        # Another one was quicker, and its file is as good; or there are no links here, and it is made in its place.
        with suppress(OSError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new file, in one step, and refuses a foreign one."""
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        db.executescript(_SCHEMA)
    _check(db)
    _require_right(db, path)
    # Half the time of reading all articles, once, and none is ever acknowledged on top of what is broken.
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        refuse(found)
    _require_whole_now(db)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise FailedPrecondition(
            f"live.db cannot keep a write-ahead log on this file system (it keeps a {mode} journal); keep the store on "
            f"a local disk"
        )


def _require_right(db: sqlite3.Connection, path: Path) -> None:
    """SQLite opens to read what it may not write, and would refuse each change, though the right be given."""
    try:
        db.execute("DELETE FROM state WHERE false")
    except sqlite3.OperationalError as error:
        if code_of(error) != sqlite3.SQLITE_READONLY:
            raise
        raise InvalidArgument(
            f"{LIVE} cannot be written in the store {path.parent}: it may only be read; give the user that this "
            f"program runs as the right to write it",
            field="store",
        ) from error


def _require_whole_now(db: sqlite3.Connection) -> None:
    """Looks at the rows and at what they should come to in one moment: another process may be writing."""
    db.execute("BEGIN")
    try:
        require_whole(db, *db.execute("SELECT count(*), ifnull(sum(checksum), 0) FROM changes").fetchone())
    finally:
        db.execute("ROLLBACK")


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that reads. Raises CorruptGeneration for a foreign file, and what SQLite raises."""
    db = _connect(path, "ro")
    try:
        _check(db)
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Transactions begin and end where it is written, and locks of ours keep threads apart.
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _check(db: sqlite3.Connection) -> None:
    whose, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if whose != _APPLICATION:
        refuse("it holds no live articles")
    if version != _VERSION:  # whole, and to be put away by nobody
        raise CorruptGeneration(
            f"{LIVE} has format {version}, this Coldframe reads format {_VERSION}; it is left as it is, with all its "
            f"articles. Serve and build with the Coldframe that wrote it, or a later one"
        )
    read_state(db)


@dataclass(frozen=True, slots=True)
class Copy:
    """The file and its log in a folder of their own, where the log may have its index."""

    folder: tempfile.TemporaryDirectory[str]
    of: tuple[object, ...]
    """`traits` of the file when it was copied."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.folder.name) / LIVE


def copied(path: Path) -> Copy:
    """A copy of the file and its log, if possible one of a moment at which nobody wrote.

    Raises InvalidArgument where the file cannot be read, and FailedPrecondition where there is no room for the copy.
    """
    copy = _copied(path)
    for _ in range(_TRIES - 1):
        if traits(path) == copy.of:
            break
        copy.folder.cleanup()
        copy = _copied(path)
    return copy  # or one that does not fit together: then its checksums say so


def _copied(path: Path) -> Copy:
    folder = None
    try:
        folder = tempfile.TemporaryDirectory(prefix="coldframe-live-")
        copy = Copy(folder, traits(path))
        shutil.copyfile(path, copy.path)
        with suppress(FileNotFoundError):  # there is no log after a server that ended well
            shutil.copyfile(log_of(path), log_of(copy.path))
    except OSError as error:
        if folder is not None:
            folder.cleanup()
        raise _uncopied(path, error, no_room=folder is None or error.errno == errno.ENOSPC) from error
    return copy


def _uncopied(path: Path, error: OSError, *, no_room: bool) -> ColdframeError:
    """What is said where neither the file nor a copy can be read."""
    if no_room:
        return FailedPrecondition(
            f"{LIVE} cannot be read where it lies, since the store {path.parent} cannot be written or is full; "
            f"nor can it be copied ({error.strerror}). Make room, or set TMPDIR to a folder that has some"
        )
    return InvalidArgument(
        f"{LIVE} in the store {path.parent} cannot be read ({error.strerror}); choose a store that you may read",
        field="store",
    )


def traits(path: Path) -> tuple[object, ...]:
    """What changes whenever the file or its log does."""
    found: list[object] = []
    for file in (path, log_of(path)):
        with suppress(FileNotFoundError):
            at = os.stat(file)
            found.append((file.name, at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns))
    return tuple(found)


def log_of(path: Path) -> Path:
    """Its write-ahead log; of a link, that of the file itself, beside which SQLite keeps it."""
    real = path.resolve() if path.is_symlink() else path
    return real.with_name(f"{real.name}-wal")


def refuse_at_sight(path: Path) -> None:
    """Raises CorruptGeneration for what is no file, and for a log without its file.

    SQLite would take such a log for rubbish and remove it, and what is in it was acknowledged.
    """
    if path.exists() and not path.is_file():
        refuse("it is no file")
    if _size(log_of(path)) and not _size(path):
        refuse(f"it is empty or missing beside its log {log_of(path).name}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def file_id(path: Path) -> tuple[int, int] | None:
    """Which file has the name at this moment: as long as somebody has it open, no other one is equal. None: no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# --- what can go wrong -----------------------------------------------------------------------------------------------


def refuse(reason: str) -> NoReturn:
    """Raises CorruptGeneration: nothing is ever done to the file."""
    raise CorruptGeneration(
        f"{LIVE} cannot be trusted: {reason}. It holds articles that were acknowledged, so it is left as it is. "
        f"Stop all servers of the store and move {LIVE}, {LIVE}-wal and {LIVE}-shm out of it, all three. Put a copy in "
        f"its place, as docs/operations.md says, or start without"
    )


def replaced() -> FailedPrecondition:
    """The error that says that a file which is open is not the store's any more. It crosses the wire."""
    return FailedPrecondition(
        f"{LIVE} of the store is no longer the file that this server has open: it was moved, removed or replaced while "
        f"the server ran. No article is added or removed, or it would be lost; searches are answered. Put it back with "
        f"its {LIVE}-wal, or stop all servers of the store and restore it as docs/operations.md says"
    )


def code_of(error: Exception) -> int:
    """SQLite's; that of damage for an error of Python's own, such as text that is no UTF-8."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def wants_index(error: sqlite3.Error) -> bool:
    """Whether a reader could not make the log's index. Other errors may come while this process writes the file, and
    to copy it then would take the writer's locks.
    """
    return bool({code_of(error), getattr(error, "sqlite_errorcode", None)} & _NO_INDEX)


@contextmanager
def damage_told() -> Iterator[None]:
    """Raises CorruptGeneration for what SQLite says of a damaged file, and FailedPrecondition for one that cannot be
    locked, or that its disk does not give; other errors pass.
    """
    try:
        yield
    except sqlite3.ProgrammingError:  # ours
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # What SQLite says may quote what is damaged, and be no text for Python.
        code = code_of(error)
        if code == sqlite3.SQLITE_BUSY:
            raise FailedPrecondition(
                f"{LIVE} cannot be locked: another program holds it, or its file system keeps no locks; keep the store "
                f"on a local disk, never on NFS"
            ) from error
        if code == sqlite3.SQLITE_IOERR:
            raise FailedPrecondition(
                f"{LIVE} cannot be read ({os.strerror(known_errno(error) or errno.EIO)}); {SEE_TO_DISK}"
            ) from error
        if code not in _DAMAGED:
            raise
        # And Python quotes a text that is no UTF-8: an article's, to all callers and to the log.
        refuse(str(error).partition(" with text ")[0])


@contextmanager
def want_told() -> Iterator[None]:
    """Says in a sentence that what was sent was not taken. It crosses the wire: it names no path."""
    try:
        yield
    except sqlite3.Error as error:
        if code_of(error) == sqlite3.SQLITE_BUSY:
            raise FailedPrecondition(
                f"the store cannot keep these articles now: another process has been writing in it for {_BUSY_S:.0f} "
                f"s, its disk may be slow; none of this call was taken. Send them again"
            ) from error
        known = known_errno(error)
        if known is None:
            raise
        remedy = "See to the disk" if known == errno.EIO else "Make room, or give the right to write,"
        raise FailedPrecondition(
            f"the store cannot keep these articles ({os.strerror(known)}); none of this call was taken. {remedy} where "
            f"the server runs, and send them again"
        ) from error


@contextmanager
def _unwritable_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        known = known_errno(error) or getattr(error, "errno", None)
        if known is None:
            raise
        if known == errno.ENOSPC:
            raise FailedPrecondition(f"there is no room for {LIVE} in the store {path.parent}; make room") from error
        if known in NO_FILES or known == errno.EIO:
            raise FailedPrecondition(
                f"{LIVE} cannot be opened in the store {path.parent} ({os.strerror(known)}); "
                f"{MORE_FILES if known in NO_FILES else SEE_TO_DISK}"
            ) from error
        raise InvalidArgument(
            f"{LIVE} cannot be written in the store {path.parent} ({os.strerror(known)}); choose a folder that you may "
            f"write to",
            field="store",
        ) from error
