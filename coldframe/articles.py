"""The articles of a generation, by row: what a hit shows, memory-mapped, shared by processes.

Rows are sorted by id (by code point, which is also the order of the UTF-8 bytes): an id is found by bisection, with
no dictionary in memory, and the order of rows is the order of ids.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
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
_ROWS_PER_BATCH = 8_192


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


def excerpt(content: str) -> str:
    """The beginning of a content on one line, cut between words."""
    line = " ".join(content[: 4 * EXCERPT_CHARS].split())
    if len(line) <= EXCERPT_CHARS:
        return line
    return line[:EXCERPT_CHARS].rsplit(" ", 1)[0] + "…"


def write_articles(path: Path, rows: Iterable[ArticleRow]) -> None:
    """Writes the rows, sorted by id already, as an Arrow file in batches, so that memory stays flat."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        batch: list[ArticleRow] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS_PER_BATCH:
                writer.write_batch(_to_batch(batch))
                batch = []
        if batch:
            writer.write_batch(_to_batch(batch))


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
        # Made once: a batch makes new column objects each time it is asked.
        self._columns = [list(zip(_SCHEMA.names, batch.columns, strict=True)) for batch in self._batches]
        self._starts = np.cumsum([0] + [batch.num_rows for batch in self._batches])
        self._ids = [batch.column("id") for batch in self._batches]
        self._first_ids = [ids[0].as_py() for ids in self._ids]
        self._digests = np.concatenate([_first_words(batch.column("text_digest")) for batch in self._batches])
        self._by_digest = np.argsort(self._digests, kind="stable")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> ArticleRow:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        offset = row - int(self._starts[number])
        fields = {name: column[offset].as_py() for name, column in self._columns[number]}
        fields["attributes"] = dict(fields["attributes"])
        return ArticleRow(**fields)

    def id_of(self, row: int) -> str:
        """The id of a row."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        found: str = self._ids[number][row - int(self._starts[number])].as_py()
        return found

    def row_of(self, article_id: str) -> int | None:
        """The row of an id; None where there is none."""
        number = bisect_right(self._first_ids, article_id) - 1
        if number < 0:
            return None
        ids = self._ids[number]
        offset = bisect_left(range(len(ids)), article_id, key=lambda i: ids[i].as_py())
        found = offset < len(ids) and ids[offset].as_py() == article_id
        return int(self._starts[number]) + offset if found else None

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


def _first_words(digests: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """The first 8 bytes of each 16-byte digest, little-endian, (n,)."""
    words = np.frombuffer(digests.buffers()[1], "<u8").reshape(-1, 2)
    return words[digests.offset : digests.offset + len(digests), 0]


def _open_batches(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    if not reader.schema.equals(_SCHEMA):
        raise pa.ArrowInvalid("another schema")
    return [reader.get_batch(n) for n in range(reader.num_record_batches)]
