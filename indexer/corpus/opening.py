"""Files here and elsewhere, opened as bytes or as text, unpacked on the way."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from coldframe.errors import FailedPrecondition
from coldframe.shortage import NO_ROOM

if TYPE_CHECKING:
    from collections.abc import Iterator

GZIP, ZSTD = ".gz", ".zst"
_BLOCK_BYTES = 2**22  # of a remote file read from its beginning to its end; s3fs would hold 50 MiB
_TAIL_BYTES = 8
_NOT_FOUND = 404
# What is packed is unpacked here. Many servers say of a .gz file that gzip is its encoding on the way, and the driver
# would unpack it before.
_AS_STORED = {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}


def is_packed(path: Path | PurePosixPath) -> bool:
    """Whether the name says that what it holds is packed as a whole."""
    return path.name.lower().endswith((GZIP, ZSTD))


class File(Protocol):
    """Something that can be opened. `location` is how a person knows it, and holds no secret."""

    location: str
    path: Path | PurePosixPath
    """Its last part says what is in it."""

    def open(self) -> IO[bytes]:
        """To be read once, from the beginning."""

    def open_seekable(self) -> IO[bytes]:
        """To be read in any order. Raises io.UnsupportedOperation where that is not possible."""

    def position(self) -> int | None:
        """To which byte the reading under way has come; None where there is none."""


class _Opened:
    """What was opened last, and how far it has been read."""

    _last: IO[bytes] | None = None

    def position(self) -> int | None:
        """In stored bytes, packed or not. A pipe does not know."""
        last = self._last
        return None if last is None or last.closed or not last.seekable() else last.tell()


class _Stored(io.FileIO):
    """A file on a disk that may not lose, while it is read, what has not been read yet."""

    def readinto(self, buffer: Any) -> int:
        """Raises OSError at the end of a file that has become shorter. A pipe has no length."""
        read = super().readinto(buffer)
        if not read and self.seekable() and self.tell() > os.fstat(self.fileno()).st_size:
            raise OSError(
                "it became shorter while it was read. Let whatever writes it write another file, and rename that"
            )
        return read


class LocalFile(_Opened):
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self.path: Path | PurePosixPath = path
        self.location = os.fsencode(path).decode("utf-8", "replace")  # it is printed, and kept as text

    def open(self) -> IO[bytes]:
        """For any reading."""
        self._last = io.BufferedReader(_Stored(self.path))
        return self._last

    def open_seekable(self) -> IO[bytes]:
        """The same. A pipe is not even opened: whoever writes it ends when it is closed."""
        if Path(self.path).is_fifo():
            raise io.UnsupportedOperation("a pipe is read from its beginning to its end")
        return self.open()


class RemoteFile(_Opened):
    """A file that fsspec reads: only what is asked for is transferred, and little of it is held.

    `key` is the filesystem's name for it.
    """

    def __init__(self, filesystem: Any, key: str, location: str) -> None:
        self._filesystem, self._key = filesystem, key
        self.location = location
        self.path: Path | PurePosixPath = PurePosixPath(location)

    def open(self) -> IO[bytes]:
        """As one transfer over HTTP, whose servers need not know ranges; in blocks elsewhere."""
        if "http" not in self._filesystem.protocol:
            return self._open(block_size=_BLOCK_BYTES, cache_type="readahead")
        return self._open(block_size=0, **(_AS_STORED if is_packed(self.path) else {}))

    def open_seekable(self) -> IO[bytes]:
        """For range requests, each of what the reader asks for."""
        file = self._open(cache_type="none")
        try:
            file.seek(-_TAIL_BYTES, io.SEEK_END)
            file.read(_TAIL_BYTES)
            file.seek(0)
        except (OSError, ValueError) as error:  # a server that knows no ranges, or a file shorter than that
            file.close()
            raise io.UnsupportedOperation(str(error)) from error
        return file

    def _open(self, **options: Any) -> IO[bytes]:
        try:
            file = self._filesystem.open(self._key, "rb", **options)
        except Exception as error:
            raise OSError(explain(error, self._key, self.location)) from error
        self._last = io.BufferedReader(_Guarded(file, self._key, self.location))
        return self._last


class _Guarded(io.RawIOBase):
    """A driver's file: drivers raise anything, this an OSError."""

    def __init__(self, file: Any, key: str, location: str) -> None:
        self._file, self._key, self._location = file, key, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(explain(error, self._key, self._location)) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def explain(error: Exception, key: str, location: str) -> str:
    """Say in a few words what a driver complains of, without the secrets that an address may hold."""
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__  # HTTP's driver says so whatever happened, also where no server answers
        failed = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
        if failed and getattr(cause, "status", None) != _NOT_FOUND:
            return explain(cast("Exception", cause), key, location)
        return "there is no such file"
    if isinstance(error, TimeoutError):
        return "it fell silent: nothing came for minutes"
    status = getattr(error, "status", None)
    if status:  # 0 stands for a server that gave none
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    return str(error).replace(key, location) or type(error).__name__


@contextmanager
def open_bytes(file: File) -> Iterator[IO[bytes]]:
    """Open for one reading from the beginning, unpacked if the name says that it is packed."""
    name = file.path.name.lower()
    with file.open() as raw:
        if name.endswith(GZIP):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast("IO[bytes]", unpacked)
        elif name.endswith(ZSTD):
            import pyarrow as pa

            with pa.CompressedInputStream(raw, "zstd") as unpacked:
                yield unpacked
        else:
            yield raw


@contextmanager
def open_text(file: File) -> Iterator[TextIO]:
    """Open with line ends kept, and with bytes that are not UTF-8 as surrogates: they spoil their row, not the file."""
    with (
        open_bytes(file) as data,
        io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield text


@contextmanager
def open_seekable(file: File) -> Iterator[IO[bytes]]:
    """Open for reading in any order; what is packed, or comes without ranges, is first put into an unnamed file."""
    opened: IO[bytes] | None = None
    if not is_packed(file.path):
        with suppress(io.UnsupportedOperation):
            opened = file.open_seekable()
    try:
        with opened or tempfile.TemporaryFile() as whole:
            if opened is None:
                with open_bytes(file) as data:
                    shutil.copyfileobj(data, whole, _BLOCK_BYTES)
                whole.seek(0)
            yield whole
    except OSError as error:  # of closing it, too, which tries to write what is left
        if error.errno not in NO_ROOM:
            raise
        raise FailedPrecondition(
            f"there is no room in {tempfile.gettempdir()} for {file.location}, which is put there whole to be read "
            f"({error.strerror}); make room, or set TMPDIR to a folder that has some"
        ) from error
