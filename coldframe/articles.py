"""The articles of a generation, by row: what a hit shows, memory-mapped, shared by processes.

Rows are sorted by id (by code point, which is also the order of the UTF-8 bytes): an id is found by bisection, with
no dictionary in memory, and the order of rows is the order of ids.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import accumulate, pairwise
from struct import calcsize
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import regex

from coldframe.epoch import EPOCH
from coldframe.errors import CorruptGeneration
from coldframe.storage import touch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

EXCERPT_CHARS = 280
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
        pa.field("published_at", pa.timestamp("us", tz="UTC")),
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("tokens_seen", pa.int32(), nullable=False),
        pa.field("tokens_used", pa.int32(), nullable=False),
        pa.field("text_digest", pa.binary(16), nullable=False),
        pa.field("story", pa.int32(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("outlier", pa.bool_(), nullable=False),
    ]
)
_SIGN = regex.compile(r"\X")
_ROWS_PER_BATCH = 8_192
# And at most about so many characters, of up to 4 bytes: in one batch Arrow holds less than 2 GiB of a column.
_CHARS_PER_BATCH = 2**26
_FEW_IDS = 16
"""So few are found by bisection, and more by their hashes."""


@dataclass(frozen=True, slots=True)
class ArticleRow:
    """One row of the table."""

    id: str
    title: str
    excerpt: str
    published_at: datetime | None
    attributes: dict[str, str]
    cluster: int
    """Number of the list that holds it."""
    tokens_seen: int
    tokens_used: int
    """Less than `tokens_seen` where the text's end was cut off."""
    text_digest: bytes
    story: int
    """Row of the first article that tells the same story; its own where none tells it before."""
    similarity: float
    """To the centroid of its cluster."""
    outlier: bool
    """Whether it lies farther from the centroid than the members of its cluster usually do."""


class Shown(NamedTuple):
    """What of a row a hit shows: the same as in `ArticleRow`, for half of what it costs to read one."""

    id: str
    title: str
    excerpt: str
    microseconds: int | None
    """Since 1970; None without a date."""
    attributes: dict[str, str]
    cluster: int
    story: int
    similarity: float
    outlier: bool

    @classmethod
    def of(cls, row: ArticleRow) -> Self:
        """Of a row that was read."""
        since = None if row.published_at is None else (row.published_at - EPOCH) // timedelta(microseconds=1)
        return cls(
            row.id,
            row.title,
            row.excerpt,
            since,
            row.attributes,
            row.cluster,
            row.story,
            row.similarity,
            row.outlier,
        )


def excerpt(content: str) -> str:
    """The beginning of a content on one line."""
    return beginning(" ".join(content[: 4 * EXCERPT_CHARS].split()), EXCERPT_CHARS)


def beginning(line: str, most: int) -> str:
    """The first characters of a line, with an ellipsis where it is longer, cut between words; between signs where words
    have no spaces between them: the last space of Chinese or Japanese is often that of the dateline.
    """
    if len(line) <= most:
        return line
    words = line[:most].rpartition(" ")[0]
    return (words if len(words) > most // 2 else _signs(line, most)) + "…"


def _signs(line: str, most: int) -> str:
    """The first characters of a longer line: what is seen as one sign, such as a letter and its accents, a syllable of
    Korean or an emoji of several parts, stays together.
    """
    *_, last = _SIGN.finditer(line[: most + 1])
    return line[: last.start() or most]


def write_articles(path: Path, rows: Iterable[ArticleRow]) -> None:
    """Writes the rows, sorted by id already, as an Arrow file in batches, so that memory stays flat."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        batch: list[ArticleRow] = []
        chars = 0
        for row in rows:
            batch.append(row)
            chars += _chars(row)
            if len(batch) == _ROWS_PER_BATCH or chars >= _CHARS_PER_BATCH:
                writer.write_batch(_to_batch(batch))
                batch, chars = [], 0
        if batch:
            writer.write_batch(_to_batch(batch))


def _chars(row: ArticleRow) -> int:
    attributes = sum(len(key) + len(value) for key, value in row.attributes.items())
    return len(row.id) + len(row.title) + len(row.excerpt) + attributes


def _to_batch(rows: list[ArticleRow]) -> pa.RecordBatch:
    columns = [
        pa.array([_value(row, field.name) for row in rows], type=field.type)  # pyarrow infers nothing
        for field in _SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _value(row: ArticleRow, name: str) -> object:
    return sorted(row.attributes.items()) if name == "attributes" else getattr(row, name)


class Articles:
    """The table, read by row."""

    def __init__(self, path: Path) -> None:
        try:
            self._batches = _open_batches(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptGeneration(f"{path.name} cannot be read; verify the store and rebuild") from error
        self._rows = [_Rows(batch) for batch in self._batches]
        self._starts: list[int] = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self._first_ids = [rows.ids[0] for rows in self._rows]
        self._digests = np.concatenate([_first_words(batch.column("text_digest")) for batch in self._batches])
        self._by_digest = np.argsort(self._digests, kind="stable")

    def warm(self) -> None:
        """Touches every page of the file, which the first reader of each would pay for otherwise."""
        for batch in self._batches:
            for column in batch.columns:
                for buffer in filter(None, column.buffers()):
                    touch(np.frombuffer(buffer, np.uint8))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> ArticleRow:
        rows, place = self._find(row)
        return rows.read(place)

    def shown(self, row: int) -> Shown:
        """What of a row a hit shows."""
        rows, place = self._find(row)
        return rows.shown(place)

    def _find(self, row: int) -> tuple[_Rows, int]:
        number = bisect_right(self._starts, row) - 1
        return self._rows[number], row - self._starts[number]

    def id_of(self, row: int) -> str:
        """The id of a row."""
        rows, place = self._find(row)
        return rows.ids[place]

    def row_of(self, article_id: str) -> int | None:
        """The row of an id; None where there is none."""
        number = bisect_right(self._first_ids, article_id) - 1
        if number < 0:
            return None
        ids = self._rows[number].ids
        place = bisect_left(range(len(ids)), article_id, key=ids.__getitem__)
        found = place < len(ids) and ids[place] == article_id
        return self._starts[number] + place if found else None

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, (n,); -1 where there is none. Of many a sixth of the time that `row_of` takes."""
        if len(ids) <= _FEW_IDS:
            return np.array([-1 if (row := self.row_of(name)) is None else row for name in ids], np.int64)
        hashes, by_hash = self._by_hash
        asked = np.fromiter(map(hash, ids), np.int64, len(ids))
        places = np.searchsorted(hashes, asked)
        rows = np.full(len(ids), -1)
        for n in np.flatnonzero(hashes[np.minimum(places, len(self) - 1)] == asked).tolist():
            row = int(by_hash[places[n]])
            if self.id_of(row) != ids[n]:  # another one has the same hash
                row = -1 if (found := self.row_of(ids[n])) is None else found
            rows[n] = row
        return rows

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Python's own hashes of all ids, ascending, (n,), and their rows, (n,)."""
        hashes = np.empty(len(self), np.int64)
        for start, rows in zip(self._starts, self._rows, strict=False):
            hashes[start : start + len(rows.ids)] = [*map(hash, rows.ids.some(0, len(rows.ids)))]
        order = np.argsort(hashes).astype(np.int32)
        return hashes[order], order

    def row_of_text(self, digest: bytes) -> int | None:
        """The first row whose embedded text has that digest: its vector need not be computed again."""
        key = np.uint64(int.from_bytes(digest[:8], "little"))
        place = int(np.searchsorted(self._digests, key, sorter=self._by_digest))
        while place < len(self) and self._digests[self._by_digest[place]] == key:
            row = int(self._by_digest[place])
            if self[row].text_digest == digest:
                return row
            place += 1
        return None

    def clusters(self) -> NDArray[np.int32]:
        """The cluster number of every row, (n,)."""
        return np.asarray(self.column("cluster").to_numpy(), np.int32)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the whole table."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], type=_SCHEMA.field(name).type)


class _Rows:
    """The rows of one batch. They are read from Arrow's buffers: to make its scalars takes twenty times as long."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.ids, self._titles, self._excerpts = (_Texts(batch.column(name)) for name in ("id", "title", "excerpt"))
        dates, attributes = batch.column("published_at"), batch.column("attributes")
        self._dates, self._dated = _values(dates, "q"), None if dates.null_count == 0 else _Bits(dates, 0)
        self._entries = _values(attributes, "i", len(attributes) + 1)
        self._keys, self._items = _Texts(attributes.keys), _Texts(attributes.items)
        self._digests = _values(batch.column("text_digest"), "B", 16 * len(batch))
        names = ("cluster", "tokens_seen", "tokens_used", "story")
        self._clusters, self._seen, self._used, self._stories = (_values(batch.column(name), "i") for name in names)
        self._similarities, self._outliers = _values(batch.column("similarity"), "f"), _Bits(batch.column("outlier"), 1)

    def read(self, place: int) -> ArticleRow:
        """One row."""
        start, end = self._entries[place], self._entries[place + 1]
        dated = self._dated is None or self._dated[place]
        return ArticleRow(
            id=self.ids[place],
            title=self._titles[place],
            excerpt=self._excerpts[place],
            published_at=EPOCH + timedelta(microseconds=self._dates[place]) if dated else None,
            attributes=dict(zip(self._keys.some(start, end), self._items.some(start, end), strict=True)),
            cluster=self._clusters[place],
            tokens_seen=self._seen[place],
            tokens_used=self._used[place],
            text_digest=bytes(self._digests[16 * place : 16 * place + 16]),
            story=self._stories[place],
            similarity=self._similarities[place],
            outlier=self._outliers[place],
        )

    def shown(self, place: int) -> Shown:
        """What of one row a hit shows."""
        start, end = self._entries[place], self._entries[place + 1]
        dated = self._dated is None or self._dated[place]
        return Shown(
            self.ids[place],
            self._titles[place],
            self._excerpts[place],
            self._dates[place] if dated else None,
            dict(zip(self._keys.some(start, end), self._items.some(start, end), strict=True)),
            self._clusters[place],
            self._stories[place],
            self._similarities[place],
            self._outliers[place],
        )


class _Texts:
    """The strings of a column."""

    def __init__(self, column: pa.StringArray) -> None:
        self._ends = _values(column, "i", len(column) + 1)
        self._bytes = memoryview(column.buffers()[2] or b"")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return str(self._bytes[self._ends[place] : self._ends[place + 1]], "utf-8")

    def some(self, start: int, end: int) -> list[str]:
        """Those from one place on, before another."""
        ends, raw = self._ends[start : end + 1].tolist(), self._bytes
        return [str(raw[a:b], "utf-8") for a, b in pairwise(ends)]


class _Bits:
    """One of a column's buffers of bits."""

    def __init__(self, column: pa.Array, buffer: int) -> None:
        self._bytes, self._offset = memoryview(column.buffers()[buffer]).cast("B"), column.offset

    def __getitem__(self, place: int) -> bool:
        place += self._offset
        return bool(self._bytes[place >> 3] >> (place & 7) & 1)


def _values(column: pa.Array, kind: Literal["B", "i", "q", "f"], count: int | None = None) -> Any:
    """The first values of a column's second buffer, as many as it has rows; `kind` is that of the module `struct`."""
    assert column.offset == 0, "a column as it lies in the file"
    values = memoryview(column.buffers()[1]).cast("B")
    count = len(column) if count is None else count
    return values[: calcsize(kind) * count].cast(kind)


def _first_words(digests: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """The first 8 bytes of each 16-byte digest, little-endian, (n,)."""
    words = np.frombuffer(digests.buffers()[1], "<u8").reshape(-1, 2)
    return words[digests.offset : digests.offset + len(digests), 0]


def _open_batches(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    if not reader.schema.equals(_SCHEMA):
        raise pa.ArrowInvalid("another schema")
    return [reader.get_batch(n) for n in range(reader.num_record_batches)]
