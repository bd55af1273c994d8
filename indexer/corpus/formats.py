"""Files -> rows: CSV and TSV by the csv module, JSON lines by json, Parquet by pyarrow (docs/decisions/0010)."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from gzip import BadGzipFile
from typing import TYPE_CHECKING, Any, TextIO

from coldframe.errors import InvalidArgument
from coldframe.text import is_unicode
from indexer.corpus.articles import Columns, Row, Rows, check_header, check_needed, recognise
from indexer.corpus.opening import GZIP, ZSTD, File, open_seekable, open_text

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath

# The memory that one row may take. A field that is longer is no article but a quote that was never closed, a line that
# is longer no row but a file of another kind.
_MAX_FIELD_CHARS = 2**27
_UNCLOSED = "unclosed quote: the file ends inside a quoted field of this row"
_ONE_OBJECT = 'each line must hold one object, such as {"id": "1", "content": "..."}'
_LINE_ENDS = ("\n", "\r")
BATCH_ROWS = 256
_PARQUET_BUFFER_BYTES = 2**20  # with pre_buffer off; else a whole column of a row group is held at once

_ANY_SEPARATOR = "A query finds out by itself: --query \"select * from 'FILE.csv'\""
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}

_Reader = Callable[[File, Columns], Rows]


def known_format(path: Path | PurePosixPath) -> str | None:
    """The suffix, of a name such as a.CSV.gz, that says how it is read: ".csv"; None if there is none."""
    name = path.name.lower()
    for packing in (GZIP, ZSTD):
        name = name.removesuffix(packing)
    return next((suffix for suffix in _READERS if name.endswith(suffix)), None)


def allowed_formats() -> str:
    """For messages."""
    formats = f"A corpus is a {', '.join(_READERS)} file, or one of these with {GZIP} or {ZSTD} added."
    return formats + " An array of JSON is read by --query \"select * from 'FILE.json'\"."  # noqa: S608  # a sentence


def read_file(file: File, columns: Columns) -> Rows:
    """Every row with its line, or for Parquet its number. Raises InvalidArgument if the file cannot be read."""
    reader = _READERS[known_format(file.path) or ".csv"]
    try:
        yield from reader(file, columns)
    except (EOFError, zlib.error, BadGzipFile) as error:
        raise _invalid(
            f"{file.location} is not a whole gzip file: it is cut short or corrupt, or not packed at all. Copy it "
            f"again, or take {GZIP} off its name."
        ) from error
    except OSError as error:
        raise _invalid(f"{file.location} cannot be read: {error.strerror or error}.") from error


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="corpus")


class _Lines:
    """The lines of a file, those of the row that is being read, and whether more were asked for than there are."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.row: list[str] = []
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for line in _lines(self._file):
            if line is None:
                raise csv.Error(f"no line ends within {_MAX_FIELD_CHARS:,} characters")
            self.row.append(line)
            yield line
        self.ended = True


def _lines(file: TextIO) -> Iterator[str | None]:
    """Every line with its end; None for one that is too long, of which nothing is held."""
    while line := file.readline(_MAX_FIELD_CHARS):
        whole = len(line) < _MAX_FIELD_CHARS or line.endswith(_LINE_ENDS)
        yield line if whole else None
        while not whole and (line := file.readline(_MAX_FIELD_CHARS)):
            whole = line.endswith(_LINE_ENDS)


def _read_csv(file: File, columns: Columns, delimiter: str) -> Rows:
    csv.field_size_limit(_MAX_FIELD_CHARS)  # of the whole process: the csv module has no other way
    with open_text(file) as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=delimiter)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                if cells and header:
                    # A row is complete at the end of a line, unless the file ended inside a quoted field.
                    fault = _UNCLOSED if lines.ended else _quoting_fault(lines.row, line, delimiter)
                    yield line, fault or _csv_row(header, cells)
                elif cells:
                    header = [name.strip() for name in cells]
                    _check_text(file, header)
                    _check_separator(file, header)
                    check_header(file.location, header, columns)
                line = reader.line_num + 1
                lines.row.clear()
        except csv.Error as error:
            raise _invalid(f"{file.location}, line {line}: {error}. Is a quote in this row never closed?") from error
        if not header:
            raise _invalid(f"{file.location} is empty: not even a line of column names is there.")


def _check_text(file: File, header: list[str]) -> None:
    text = "".join(header)
    # UTF-16 without its mark is letters with NULs between them.
    if "\0" in text or not is_unicode(text):
        raise _not_text(file)


def _not_text(file: File) -> InvalidArgument:
    return _invalid(
        f"{file.location} does not begin with UTF-8 text. Save it as UTF-8; if it is compressed, let it end in "
        f"{GZIP} or {ZSTD}."
    )


def _check_separator(file: File, header: list[str]) -> None:
    """Raise InvalidArgument for a header that is one column, because something else stands between its names."""
    between = next((said for mark, said in _SEPARATORS.items() if len(header) == 1 and mark in header[0]), None)
    if between is not None:
        raise _invalid(
            f"{file.location} has {between} between its columns; a .csv file is read with commas, a .tsv file with "
            f"tabs. Save or name it so. {_ANY_SEPARATOR}"
        )


def _quoting_fault(lines: list[str], first: int, delimiter: str) -> str | None:
    """Why a row of several lines may be several rows that a quote has joined; None for a row as it should be.

    In one line it does no such harm, and much is written so: "Brexit" vote today.
    """
    if len(lines) > 1:
        try:
            for _ in csv.reader(lines, delimiter=delimiter, strict=True):
                pass
        except csv.Error:
            return (
                f"stray quote: lines {first} to {first + len(lines) - 1} were read as one row, in which text follows "
                "a closing quote; the quotes within a field must be doubled"
            )
    return None


def _csv_row(header: list[str], cells: list[str]) -> Row | str:
    if len(cells) != len(header):
        return f"wrong number of fields: {len(cells)}, the header has {len(header)}"
    return dict(zip(header, cells, strict=True))


def _read_jsonl(file: File, columns: Columns) -> Rows:
    checked, empty = False, True
    with open_text(file) as lines:
        for line, text in enumerate(_lines(lines), 1):
            if text is not None and not text.strip():
                continue
            if empty and text and "\0" in text:
                raise _not_text(file)
            empty = False
            row = _json_row(text)
            if not checked and isinstance(row, dict):
                check_needed(file.location, list(row), columns)
                checked = True
            yield line, row
    if empty:
        raise _invalid(f"{file.location} is empty.")


def _json_row(text: str | None) -> Row | str:
    if text is None:
        return f"line too long: more than {_MAX_FIELD_CHARS:,} characters; {_ONE_OBJECT}"
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}, at character {error.pos + 1}; {_ONE_OBJECT}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"not a JSON object: {_ONE_OBJECT}"
    return row


def _read_parquet(file: File, columns: Columns) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_seekable(file) as data:
        try:
            table = pq.ParquetFile(data, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
            names = table.schema_arrow.names
            check_header(file.location, names, columns)
            yield from arrow_rows(table.iter_batches(BATCH_ROWS, columns=_wanted(names, columns)))
        except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of a column's name
            raise _invalid(f"{file.location} is not a Parquet file that can be read: {error}") from error


def _wanted(names: Sequence[str], columns: Columns) -> list[str] | None:
    """The columns to take out of a file; None: all of them."""
    if columns.attributes is None:
        return None
    return [name for name in names if name in {*recognise(tuple(names), columns), *columns.attributes}]


def arrow_rows(batches: Iterable[Any]) -> Iterator[tuple[int, Row]]:
    """The rows of Arrow record batches, numbered from 1."""
    number = 0
    for batch in batches:
        names = batch.schema.names
        for cells in zip(*(_values(column) for column in batch.columns), strict=True):
            number += 1
            yield number, dict(zip(names, cells, strict=True))


def _values(column: Any) -> list[Any]:
    """Turn an Arrow array into Python values; strings leniently, times to the microsecond."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    if pa.types.is_timestamp(column.type):
        unit = "us" if column.type.unit == "ns" else column.type.unit  # what of a coarser one does not fit would wrap
        column = column.cast(pa.timestamp(unit, "UTC" if column.type.tz else None), safe=False)
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # times that Python cannot hold; within lists and objects, bytes too
        values = column.cast(_lenient(column.type), safe=False).to_pylist()
    return values


def _lenient(kind: Any) -> Any:
    """A type that holds the same, but nothing that Python cannot."""
    import pyarrow as pa

    is_a = pa.types
    if is_a.is_struct(kind):
        return pa.struct([part.with_type(_lenient(part.type)) for part in kind])
    if is_a.is_map(kind):
        return pa.map_(_lenient(kind.key_type), _lenient(kind.item_type))
    if is_a.is_nested(kind):  # one of the kinds of lists
        return pa.large_list(_lenient(kind.value_type))
    if is_a.is_temporal(kind):
        return pa.timestamp("us", kind.tz) if is_a.is_timestamp(kind) and kind.unit == "ns" else pa.string()
    return pa.large_binary() if is_a.is_string(kind) or is_a.is_large_string(kind) else kind


_READERS: dict[str, _Reader] = {
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
