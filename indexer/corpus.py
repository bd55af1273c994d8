"""Articles from files: CSV, TSV, JSONL and Parquet, plain or gzipped, read as a stream.

A file that cannot be read, or that has no id or content column, stops the job with an `InvalidArgument` that names it.
A row that cannot be used never does: it comes out as a `Reject`, in its place among the articles.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from coldframe.errors import InvalidArgument
from coldframe.text import MAX_TEXT_CHARS
from indexer.dates import parse_date

MAX_ID_CHARS = 512
# The memory that one row may take. A field that is longer is no article but a quote that was never closed.
_MAX_FIELD_CHARS = 2**27
_PARQUET_BATCH_ROWS = 256
_PARQUET_BUFFER_BYTES = 2**20  # with pre_buffer off; else a whole column of a row group is held at once

# The names by which a column is recognised, best first; written without case, spaces, '_' and '-'.
_RECOGNISED = {
    "id": ("articleid", "id", "docid", "guid", "uuid"),
    "title": ("title", "headline"),
    "content": ("content", "text", "body", "article"),
    "date": ("date", "publishedat", "published", "publicationdate", "timestamp", "datetime"),
}


@dataclass(frozen=True, slots=True)
class Article:
    """One article. `published_at` is aware, in UTC; `source` and `line` say where it was read, and are not compared."""

    id: str
    title: str
    content: str
    published_at: datetime | None
    attributes: dict[str, str]
    source: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used.

    `source` is the name of the file, `line` the 1-based line on which the row begins (for Parquet the number of the
    row), `reason` a kind and its details: "text too long: 2,000,000 characters, ...". `id` is "" if it is not known.
    """

    source: str
    line: int
    reason: str
    id: str

    @property
    def kind(self) -> str:
        """The reason without its details, for counting."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Columns:
    """The columns' names exactly as in the files; None recognises the usual ones."""

    id: str | None = None
    title: str | None = None
    content: str | None = None
    date: str | None = None


class _Roles(NamedTuple):
    id: str | None
    title: str | None
    content: str | None
    date: str | None


# What a format's reader yields: the line, and the row by column or the reason why there is none.
_Row = dict[str, Any]
_Rows = Iterator[tuple[int, _Row | str]]
_Reader = Callable[[Path, Columns], _Rows]


def expand(corpus: Sequence[str]) -> list[Path]:
    """List the files that the values of `--corpus` (files or globs) name, sorted, each once.

    Raises InvalidArgument for a value that names no file, a folder, or a URL.
    """
    return sorted({path for value in corpus for path in _expand_one(value)})


def _expand_one(value: str) -> list[Path]:
    if "://" in value:
        raise _invalid(f"--corpus {value}: addresses are not read yet. Download the file and give its path.")
    path = Path(value).expanduser()
    if path.exists():
        _refuse_folder(path)
        return [path]
    found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = [path for path in found if path.is_file()]
    if not files:
        raise _invalid(
            f"--corpus {value}: there is no such file. Give a file, or a glob in quotes such as 'news/*.csv'."
        )
    return files


def read(
    sources: Sequence[Path], columns: Columns, *, max_text_chars: int = MAX_TEXT_CHARS
) -> Iterator[Article | Reject]:
    """Read the files one after another; the memory needed is that of a few rows.

    Raises InvalidArgument at once for a file of an unknown format, and while reading for one that is missing, empty,
    corrupt, or without the columns that are needed. `max_text_chars` bounds title and content together.
    """
    readers = [(path, _reader(path)) for path in sources]
    return (row for path, reader in readers for row in _read_file(path, reader, columns, max_text_chars))


def _reader(path: Path) -> _Reader:
    _refuse_folder(path)
    name = path.name.lower().removesuffix(".gz")
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            return reader
    allowed = ", ".join(_READERS)
    raise _invalid(f"{path}: the format is not known. A corpus is a {allowed} file, or one of these with .gz added.")


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise _invalid(f"{path} is a folder. Name its files with a glob in quotes, such as '{path / '*.csv'}'.")


def _invalid(message: str, name: str = "corpus") -> InvalidArgument:
    return InvalidArgument(message, field=name)


def _read_file(path: Path, reader: _Reader, columns: Columns, max_text_chars: int) -> Iterator[Article | Reject]:
    try:
        for line, row in reader(path, columns):
            if isinstance(row, str):
                yield Reject(path.name, line, row, "")
            else:
                yield _article(row, columns, path.name, line, max_text_chars)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _invalid(f"{path} is not a whole gzip file: it is cut short or corrupt. Copy it again.") from error
    except OSError as error:
        raise _invalid(f"{path} cannot be read: {error.strerror or error}.") from error


# --- one row -> one article ------------------------------------------------------------------------------------------


def _article(row: _Row, columns: Columns, source: str, line: int, max_text_chars: int) -> Article | Reject:
    roles = _recognise(tuple(row), columns)
    article_id, title, content = (_cell(row, name).strip() for name in (roles.id, roles.title, roles.content))
    published_at = parse_date(row[roles.date]) if roles.date else None
    used = {roles.id, roles.title, roles.content, roles.date if published_at else None, ""}
    attributes = {name: text for name in row if name not in used and (text := _cell(row, name)).strip()}
    reason = (
        _encoding_fault([article_id, title, content, *attributes, *attributes.values()])
        or _id_fault(article_id, roles)
        or _text_fault(row, roles, len(title) + len(content), max_text_chars)
    )
    if reason:
        return Reject(source, line, reason, _printable(article_id))
    return Article(article_id, title, content, published_at, attributes, source, line)


def _cell(row: _Row, name: str | None) -> str:
    value = row[name] if name is not None else None
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.isoformat() if isinstance(value, date) else str(value)


def _encoding_fault(texts: list[str]) -> str | None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # what could not be decoded was read as surrogates
        return "not UTF-8: the row holds bytes that are not UTF-8 text"
    return None


def _id_fault(article_id: str, roles: _Roles) -> str | None:
    if roles.id is None:
        return "no id: the row has no id column"
    if not article_id:
        return "empty id: every article needs an id"
    if "\0" in article_id:
        return "NUL in id: an id cannot hold the character NUL"
    if len(article_id) > MAX_ID_CHARS:
        return f"id too long: {len(article_id):,} characters, at most {MAX_ID_CHARS} are allowed"
    return None


def _text_fault(row: _Row, roles: _Roles, chars: int, max_chars: int) -> str | None:
    if roles.content is None:
        return "no content: the row has no content column"
    if isinstance(row[roles.content], list | dict):
        return "content is not text: it is a list or an object"
    if chars == 0:
        return "no text: title and content are both empty"
    if chars > max_chars:
        return f"text too long: {chars:,} characters, at most {max_chars:,} are allowed"
    return None


def _printable(text: str) -> str:
    return text[:MAX_ID_CHARS].encode("utf-8", "replace").decode()


# --- columns ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # the rows of a JSONL file may differ in their keys, and mostly do not
def _recognise(names: tuple[str, ...], columns: Columns) -> _Roles:
    """Find the column of each role. One that was named by a flag is not taken for another role too."""
    given = {role: getattr(columns, role) for role in _RECOGNISED}
    plain: dict[str, str] = {}
    for name in names:
        if name not in given.values():
            plain.setdefault(name.casefold().translate(_NO_PUNCTUATION), name)
    found = {role: next((plain[name] for name in usual if name in plain), None) for role, usual in _RECOGNISED.items()}
    named = {role: name if name in names else None for role, name in given.items() if name is not None}
    return _Roles(**(found | named))


_NO_PUNCTUATION = str.maketrans("", "", " _-")


def _check_columns(
    path: Path, names: Sequence[str], columns: Columns, required: Sequence[str] = ("id", "content")
) -> None:
    """Raise InvalidArgument unless the id and the content column are there, and the named ones among `required`."""
    listed = ", ".join(name[:60] for name in names[:40]) or "none"
    for role in required:
        name = getattr(columns, role)
        if name is not None and name not in names:
            raise _invalid(
                f"{path} has no column {name!r}, which --{role}-column names. Its columns are: {listed}.",
                f"{role}-column",
            )
    roles = _recognise(tuple(names), columns)
    if roles.id is None or roles.content is None:
        wanted = " and ".join(
            f"{role} column ({', '.join(_RECOGNISED[role])})" for role in ("id", "content") if not getattr(roles, role)
        )
        raise _invalid(
            f"{path} has no {wanted}. Its columns are: {listed}. Say which they are with --id-column, --title-column, "
            "--content-column and --date-column."
        )


def _check_header(path: Path, names: Sequence[str], columns: Columns) -> None:
    if _encoding_fault(list(names)):
        raise _invalid(
            f"{path} does not begin with UTF-8 text. Save it as UTF-8; if it is compressed, let it end in .gz."
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise _invalid(f"{path} has more than one column named {', '.join(twice)}. Rename or remove one.")
    _check_columns(path, names, columns, tuple(_RECOGNISED))


# --- formats ---------------------------------------------------------------------------------------------------------


def _open_text(path: Path) -> TextIO:
    """Open with line ends kept, and with bytes that are not UTF-8 as surrogates: they spoil their row, not the file."""
    opener: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=""))


class _Lines:
    """The lines of a file, and whether the reader has asked for more than there are."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return chain(self._file, self._end())

    def _end(self) -> Iterator[str]:
        self.ended = True
        yield from ()


def _read_csv(path: Path, columns: Columns, delimiter: str) -> _Rows:
    csv.field_size_limit(_MAX_FIELD_CHARS)  # of the whole process: the csv module has no other way
    with _open_text(path) as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                if cells and header:
                    # A row is complete at the end of a line, unless the file ended inside a quoted field.
                    yield line, _csv_row(header, cells, unclosed=lines.ended)
                elif cells:
                    header = [name.strip() for name in cells]
                    _check_header(path, header, columns)
                line = reader.line_num + 1
        except csv.Error as error:
            raise _invalid(f"{path}, line {line}: {error}. Is a quote in this row never closed?") from error
        if not header:
            raise _invalid(f"{path} is empty: not even a line of column names is there.")


def _csv_row(header: list[str], cells: list[str], *, unclosed: bool) -> _Row | str:
    if unclosed:
        return "unclosed quote: the file ends inside a quoted field of this row"
    if len(cells) != len(header):
        return f"wrong number of fields: {len(cells)}, the header has {len(header)}"
    return dict(zip(header, cells, strict=True))


def _read_jsonl(path: Path, columns: Columns) -> _Rows:
    checked, empty = False, True
    with _open_text(path) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            empty = False
            row = _json_row(text)
            if not checked and isinstance(row, dict):
                _check_columns(path, tuple(row), columns)
                checked = True
            yield line, row
    if empty:
        raise _invalid(f"{path} is empty.")


def _json_row(text: str) -> _Row | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return 'not a JSON object: each line must hold one object, such as {"id": "1", "content": "..."}'
    return row


def _read_parquet(path: Path, columns: Columns) -> _Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open_seekable(path) as file:
        try:
            table = pq.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
            names = table.schema_arrow.names
            _check_header(path, names, columns)
            line = 0
            for batch in table.iter_batches(_PARQUET_BATCH_ROWS):
                cells = zip(*(_values(column) for column in batch.columns), strict=True)
                for row in cells:
                    line += 1
                    yield line, dict(zip(names, row, strict=True))
        except pa.ArrowException as error:
            raise _invalid(f"{path} is not a Parquet file that can be read: {error}") from error


@contextmanager
def _open_seekable(path: Path) -> Iterator[IO[bytes]]:
    """Open a Parquet file, which is read from its end: a gzipped one is unpacked to an unnamed file first."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked


def _values(column: Any) -> list[Any]:
    """Turn an Arrow array into Python values; strings leniently, times to the microsecond."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", "UTC" if column.type.tz else None), safe=False)
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # times that Python cannot hold
        values = column.cast(pa.string()).to_pylist()
    return values


_READERS: dict[str, _Reader] = {
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
