"""Files of articles, written in every format that the indexer reads, and what it makes of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns, Reject, read

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]
WHOLE_GZIP = gzip.compress(b"id,content\n" + b"".join(b"%d,text %d\n" % (n, n * n) for n in range(5000)), mtime=0)


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows in the format that the path's suffixes name."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), buffer, row_group_size=1000)
        data = buffer.getvalue()
    elif name.endswith((".csv", ".tsv")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if name.endswith(".csv") else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    else:
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    path.write_bytes(packed(data, path.name))
    return path


def packed(data: bytes, name: str) -> bytes:
    """As a file of this name holds it."""
    if name.endswith(".zst"):
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    return gzip.compress(data, mtime=0) if name.endswith(".gz") else data


def put(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows_of(*paths: Path, columns: Columns | None = None, **options: Any) -> list[Article | Reject]:
    return list(read(paths, columns or Columns(), **options))


def refusal(*paths: Path, columns: Columns | None = None) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        rows_of(*paths, columns=columns)
    return caught.value


def only_reject(rows: list[Article | Reject]) -> Reject:
    (reject,) = (row for row in rows if isinstance(row, Reject))
    return reject
