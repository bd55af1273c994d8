"""Conditions on articles: a `Filter` from the wire is checked once, and then gives a mask over whole columns.

An article without what a condition asks for does not match it, so `not` of the condition does match the article.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import isnan
from typing import TYPE_CHECKING

import numpy as np

from coldframe.errors import InvalidArgument
from server.columns import UNDATED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp
    from numpy.typing import NDArray

    from coldframe.v1 import ranking_pb2
    from server.columns import Attribute, Columns

    _Mask = NDArray[np.bool_]
    _Test = Callable[[Columns, int], _Mask]
    """One condition of the tree: which of the first rows match, (rows,), in a fresh array."""

MAX_DEPTH = 8
MAX_CONDITIONS = 256
MAX_VALUES = 1_000
MAX_KEY_CHARS = 128
# What a protobuf Timestamp may hold: the years 1 to 9999.
FIRST_SECOND = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
LAST_SECOND = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter that can be evaluated, over any number of indexes whose clusters have the numbers it was made with."""

    key: bytes
    """Equal for equal filters: what caches go by."""
    missing: list[str]
    """Ids of clusters that are not there, as they first appear."""
    _test: _Test

    def mask(self, columns: Columns, rows: int) -> NDArray[np.bool_]:
        """Which of the first `rows` rows match, (rows,). The array is the caller's."""
        return self._test(columns, rows)


def compile(  # noqa: A001 - what it does; the module is named where it is called
    message: ranking_pb2.Filter, clusters: Mapping[str, int], field: str = "ranking.filter"
) -> Condition:
    """Checks a filter and makes it ready. `clusters` gives the number of each id, 0 to len(clusters) - 1.

    Raises InvalidArgument naming the field, below `field`, that is wrong.
    """
    compiler = _Compiler(clusters)
    test = compiler.compile(message, field, 1)
    raw = message.SerializeToString(deterministic=True)  # which may have megabytes, and is kept as a key
    return Condition(hashlib.blake2b(raw, digest_size=16).digest(), list(compiler.missing), test)


class _Compiler:
    """Walks one filter from the wire."""

    def __init__(self, clusters: Mapping[str, int]) -> None:
        self._clusters = clusters
        self._conditions = 0
        self.missing: dict[str, None] = {}

    def compile(self, message: ranking_pb2.Filter, field: str, depth: int) -> _Test:
        """The condition that a message says, with all below it."""
        self._count(field, depth)
        kind = message.WhichOneof("condition")
        if kind == "attribute":
            return _attribute(message.attribute, f"{field}.attribute")
        if kind == "published":
            return _published(message.published, f"{field}.published")
        if kind == "cluster":
            return self._cluster(message.cluster.ids, f"{field}.cluster.ids")
        if kind == "all_of":
            return partial(_all_of, self._list(message.all_of, f"{field}.all_of", depth))
        if kind == "any_of":
            return partial(_any_of, self._list(message.any_of, f"{field}.any_of", depth))
        if kind == "not":
            return partial(_not, self.compile(getattr(message, "not"), f"{field}.not", depth + 1))
        raise InvalidArgument(
            f"{field} is empty; give one of attribute, published, cluster, all_of, any_of or not", field=field
        )

    def _count(self, field: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"{field} is {depth} conditions deep; at most {MAX_DEPTH} are allowed", field=field)
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidArgument(
                f"{field} is condition {self._conditions} of its filter; at most {MAX_CONDITIONS} are allowed, those "
                "that hold others counted; many values of one attribute are one condition, attribute.in",
                field=field,
            )

    def _list(self, message: ranking_pb2.FilterList, field: str, depth: int) -> list[_Test]:
        return [self.compile(part, f"{field}.filters[{n}]", depth + 1) for n, part in enumerate(message.filters)]

    def _cluster(self, ids: Sequence[str], field: str) -> _Test:
        _check_count(ids, field, "ids of clusters")
        self.missing |= {name: None for name in ids if name not in self._clusters}
        wanted = np.zeros(len(self._clusters), np.bool_)
        wanted[[self._clusters[name] for name in ids if name in self._clusters]] = True
        return partial(_in_cluster, wanted)


def _attribute(message: ranking_pb2.AttributeFilter, field: str) -> _Test:
    key = message.key
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidArgument(
            f"{field}.key has {len(key):,} characters; allowed are 1 to {MAX_KEY_CHARS}", field=f"{field}.key"
        )
    kind = message.WhichOneof("condition")
    if kind == "in":
        values = getattr(message, "in").values
        _check_count(values, f"{field}.in.values", "values")
        return partial(_has_value, key, list(values))
    if kind == "range":
        return _range(message.range, key, f"{field}.range")
    if kind == "exists":
        return partial(_exists, key) if message.exists else partial(_not, partial(_exists, key))
    raise InvalidArgument(f"{field} asks for nothing of {key!r}; give one of in, range or exists", field=field)


def _range(message: ranking_pb2.NumberRange, key: str, field: str) -> _Test:
    for name in ("min", "max"):
        if isnan(getattr(message, name)):
            raise InvalidArgument(f"{field}.{name} is NaN; it must be a number", field=f"{field}.{name}")
    least = message.min if message.HasField("min") else -np.inf
    most = message.max if message.HasField("max") else np.inf
    if least > most:
        raise InvalidArgument(
            f"{field}.min is {least:g}, above {field}.max, which is {most:g}; min must not be above max", field=field
        )
    return partial(_in_range, key, least, most)


def _published(message: ranking_pb2.DateFilter, field: str) -> _Test:
    since = _microseconds(message.since, f"{field}.since") if message.HasField("since") else UNDATED + 1
    before = _microseconds(message.before, f"{field}.before") if message.HasField("before") else -UNDATED - 1
    if since > before:
        raise InvalidArgument(
            f"{field}.since is {message.since.ToJsonString()}, after {field}.before, which is "
            f"{message.before.ToJsonString()}; since must not be after before",
            field=field,
        )
    return partial(_published_within, since, before)


def _microseconds(moment: Timestamp, field: str) -> int:
    """Microseconds since 1970, rounded up: articles' dates have none between."""
    if not FIRST_SECOND <= moment.seconds <= LAST_SECOND:
        raise InvalidArgument(
            f"{field}.seconds is {moment.seconds:,}; allowed are the years 1 to 9999, "
            f"{FIRST_SECOND:,} to {LAST_SECOND:,}",
            field=f"{field}.seconds",
        )
    if not 0 <= moment.nanos < 1_000_000_000:
        raise InvalidArgument(
            f"{field}.nanos is {moment.nanos:,}; allowed are 0 to 999,999,999", field=f"{field}.nanos"
        )
    return moment.seconds * 1_000_000 - (-moment.nanos // 1_000)


def _check_count(values: Sequence[str], field: str, what: str) -> None:
    if not 1 <= len(values) <= MAX_VALUES:
        raise InvalidArgument(f"{field} has {len(values):,} {what}; allowed are 1 to {MAX_VALUES:,}", field=field)


# --- the conditions, each with what it was told first ----------------------------------------------------------------


def _has_value(key: str, values: Sequence[str], columns: Columns, rows: int) -> _Mask:
    attribute = columns.attribute(key)
    wanted = np.zeros(len(attribute.numbers), np.bool_)  # (values,)
    for value in values:
        place = attribute.places.get(value)
        if place is not None and place < len(wanted):  # or it came after the rows that are asked about
            wanted[place] = True
    return _rows_with(attribute, wanted, rows)


def _in_range(key: str, least: float, most: float, columns: Columns, rows: int) -> _Mask:
    attribute = columns.attribute(key)
    numbers = attribute.numbers  # (values,)
    return _rows_with(attribute, (numbers >= least) & (numbers <= most), rows)


def _rows_with(attribute: Attribute, wanted: _Mask, rows: int) -> _Mask:
    """Rows that have one of the wanted values, (rows,)."""
    table = np.append(wanted, False)  # the last place, -1, is that of rows without the attribute
    return table[attribute.codes[:rows]]


def _exists(key: str, columns: Columns, rows: int) -> _Mask:
    return columns.attribute(key).codes[:rows] >= 0


def _published_within(since: int, before: int, columns: Columns, rows: int) -> _Mask:
    dates = columns.microseconds[:rows]
    return (dates >= since) & (dates < before)  # `since` is above UNDATED


def _in_cluster(wanted: _Mask, columns: Columns, rows: int) -> _Mask:
    return wanted[columns.clusters[:rows]]


def _all_of(tests: Sequence[_Test], columns: Columns, rows: int) -> _Mask:
    found = np.ones(rows, np.bool_)
    for test in tests:
        found &= test(columns, rows)
    return found


def _any_of(tests: Sequence[_Test], columns: Columns, rows: int) -> _Mask:
    found = np.zeros(rows, np.bool_)
    for test in tests:
        found |= test(columns, rows)
    return found


def _not(test: _Test, columns: Columns, rows: int) -> _Mask:
    return ~test(columns, rows)
