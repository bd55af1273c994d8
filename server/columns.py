"""What filters and ranking read of the articles, column by column: dates, clusters, stories, attributes.

A generation's rows never change; the rows that are added while it is served only grow in number. Both kinds answer
alike, so that a filter is one piece of code.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from coldframe.articles import Articles

UNDATED = int(np.iinfo(np.int64).min)
"""Stands for the date of an article that has none."""

MAX_ATTRIBUTES = 16
"""Attributes held at a time, by their last use: four bytes a row each, and the different values."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_FIRST_ROOM = 1_024


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of all the rows of one kind."""

    codes: NDArray[np.int32]
    """(rows,), the place in `values`; -1 where the article has no such attribute."""
    values: Sequence[str]
    """The different ones, as they first appear. It may have grown beyond what `codes` know of."""
    numbers: NDArray[np.float64]
    """(values,), what each value says as a number; NaN where it is none, or none that is finite."""
    places: Mapping[str, int]
    """Place of each value."""


class Columns(Protocol):
    """The rows of one kind, by column. All arrays are (rows,) and are not to be written to."""

    @property
    def microseconds(self) -> NDArray[np.int64]:
        """Date of each article since 1970, exactly; UNDATED where it is unknown."""

    @property
    def clusters(self) -> NDArray[np.int32]:
        """Number of the list that holds it."""

    @property
    def stories(self) -> NDArray[np.int64]:
        """Equal for articles that tell one story."""

    def attribute(self, key: str) -> Attribute:
        """One attribute; where no article has it, all codes are -1."""


def number(value: str) -> float:
    """What an attribute's value says as a decimal number; NaN where it is none, or none that is finite."""
    if re.fullmatch(_NUMBER, value) is None:
        return float("nan")
    read = float(value)
    return read if np.isfinite(read) else float("nan")


def microseconds(date: datetime | None) -> int:
    """A date that knows its time zone, since 1970; UNDATED for None."""
    return UNDATED if date is None else (date - _EPOCH) // _MICROSECOND


class BaseColumns:
    """Columns of a generation. Safe for many readers."""

    def __init__(self, articles: Articles) -> None:
        self.microseconds = _dates(articles.column("published_at"))
        self.clusters = articles.clusters()
        self.stories = np.asarray(articles.column("story").to_numpy(), np.int64)
        # Of no method: it would hold on to the columns, and they to it, long after another generation is served.
        self._read = lru_cache(MAX_ATTRIBUTES)(partial(_read_attribute, articles.column("attributes")))

    def attribute(self, key: str) -> Attribute:
        """One attribute; the first time it is asked for, it is read from the table."""
        return self._read(key)


def _read_attribute(attributes: pa.ChunkedArray, key: str) -> Attribute:
    rows, found = _entries(attributes, key)
    encoded = found.dictionary_encode()  # one dictionary for all chunks
    codes = np.full(len(attributes), -1, np.int32)
    values = pa.array([], pa.string())
    if len(rows):
        codes[rows] = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        values = encoded.chunk(0).dictionary
    texts: list[str] = values.to_pylist()
    return Attribute(codes, texts, _numbers(values), dict(zip(texts, range(len(texts)), strict=True)))


def _entries(attributes: pa.ChunkedArray, key: str) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """Rows that have an attribute, (found,), and their values. Several times as fast as Arrow's `map_lookup`."""
    rows, values = [np.empty(0, np.int64)], []
    first = 0
    for chunk in attributes.chunks:
        places = np.flatnonzero(pc.equal(chunk.keys, key).to_numpy(zero_copy_only=False))
        rows.append(first + np.searchsorted(chunk.offsets.to_numpy(), places, side="right") - 1)
        values.append(chunk.items.take(pa.array(places)))
        first += len(chunk)
    return np.concatenate(rows), pa.chunked_array(values, pa.string())


def _dates(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Microseconds since 1970 of a column of timestamps, (rows,)."""
    return np.asarray(column.cast(pa.int64()).fill_null(UNDATED).to_numpy(), np.int64)


def _numbers(values: pa.StringArray) -> NDArray[np.float64]:
    """`number` of each value, (values,): Arrow tells which are numbers, Python reads those."""
    is_number = np.asarray(pc.match_substring_regex(values, rf"\A{_NUMBER}\z").to_numpy(zero_copy_only=False), np.bool_)
    numbers = np.full(len(values), np.nan)
    numbers[is_number] = [float(value) for value in values.filter(pa.array(is_number)).to_pylist()]
    numbers[np.isinf(numbers)] = np.nan
    return numbers


class LiveColumns:
    """Columns that grow: one thread appends while many read what was there when they took the length."""

    def __init__(self) -> None:
        self._microseconds = _Growing(np.int64)
        self._clusters = _Growing(np.int32)
        self._stories = _Growing(np.int64)
        self._rows: list[Mapping[str, str]] = []
        self._attributes: OrderedDict[str, _GrowingAttribute] = OrderedDict()
        self._lock = threading.Lock()

    def copy(self, rows: int) -> LiveColumns:
        """The first rows, in columns of their own."""
        other = LiveColumns()
        for name in ("_microseconds", "_clusters", "_stories"):
            setattr(other, name, getattr(self, name).copy(rows))
        other._rows = self._rows[:rows]
        return other

    @property
    def microseconds(self) -> NDArray[np.int64]:
        """See `Columns`."""
        return self._microseconds.first(len(self._rows))

    @property
    def clusters(self) -> NDArray[np.int32]:
        """See `Columns`."""
        return self._clusters.first(len(self._rows))

    @property
    def stories(self) -> NDArray[np.int64]:
        """See `Columns`."""
        return self._stories.first(len(self._rows))

    def append(self, published_at: datetime | None, cluster: int, story: int, attributes: Mapping[str, str]) -> None:
        """Adds one row. `published_at` knows its time zone. `attributes` is kept, and must not change any more."""
        self._microseconds.append(microseconds(published_at))
        self._clusters.append(cluster)
        self._stories.append(story)
        self._rows.append(attributes)  # last: what readers count is whole

    def attribute(self, key: str) -> Attribute:
        """One attribute of the rows that are there. It is read once; later rows are added when it is asked again."""
        with self._lock:
            growing = self._attributes.pop(key, None) or _GrowingAttribute(key)
            self._attributes[key] = growing  # the last one used stands last
            if len(self._attributes) > MAX_ATTRIBUTES:
                self._attributes.popitem(last=False)
            return growing.read(self._rows)


class _Growing:
    """An array that grows at its end. What `first` gave before stays as it is."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._array: NDArray[Any] = np.empty(_FIRST_ROOM, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, value: float) -> None:
        """Adds one value; room is doubled, so that n values cost n steps."""
        if self._length == len(self._array):
            wider = np.empty(2 * self._length, self._array.dtype)
            wider[: self._length] = self._array
            self._array = wider
        self._array[self._length] = value
        self._length += 1

    def copy(self, length: int) -> _Growing:
        """The first values, in an array that grows by itself."""
        other = _Growing(self._array.dtype)
        other._array = np.concatenate([self._array[:length], other._array])
        other._length = length
        return other

    def first(self, length: int) -> NDArray[Any]:
        """The first values, (length,), without a copy."""
        return self._array[:length]


@dataclass(slots=True)
class _GrowingAttribute:
    """One attribute of the live rows, as far as it has been read."""

    key: str
    codes: _Growing = field(default_factory=lambda: _Growing(np.int32))
    values: list[str] = field(default_factory=list)
    numbers: _Growing = field(default_factory=lambda: _Growing(np.float64))
    places: dict[str, int] = field(default_factory=dict)

    def read(self, rows: Sequence[Mapping[str, str]]) -> Attribute:
        """Reads on to the last row, and gives all up to there."""
        for attributes in rows[len(self.codes) :]:
            value = attributes.get(self.key)
            self.codes.append(-1 if value is None else self._place(value))
        codes, numbers = self.codes.first(len(self.codes)), self.numbers.first(len(self.numbers))
        return Attribute(codes, self.values, numbers, self.places)

    def _place(self, value: str) -> int:
        place = self.places.get(value)
        if place is None:
            place = len(self.values)
            self.values.append(value)
            self.numbers.append(number(value))
            self.places[value] = place
        return place
