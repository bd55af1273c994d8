"""Filters: masks over columns against a row-by-row reading of the contract, and every refusal with its field."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.articles import ArticleRow, Articles, write_articles
from coldframe.errors import InvalidArgument
from coldframe.v1.ranking_pb2 import (
    AttributeFilter,
    ClusterFilter,
    DateFilter,
    Filter,
    FilterList,
    NumberRange,
    StringList,
)
from server import filters
from server.columns import MAX_ATTRIBUTES, UNDATED, BaseColumns, LiveColumns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from server.columns import Columns

CLUSTERS = {"c0": 0, "c1": 1, "c2": 2, "c3": 3}
KEYS = ("author", "views", "Größe")
VALUES = (
    "a",
    "b",
    "",
    "12",
    "-3.5",
    "1e3",
    "+7",
    ".5",
    "5.",
    "1e999",
    "nan",
    "inf",
    "1_000",
    " 4",
    "4 ",
    "٣",
    "12\n",
    "e",
)
NUMBERS = {"12": 12.0, "-3.5": -3.5, "1e3": 1000.0, "+7": 7.0, ".5": 0.5, "5.": 5.0}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """What a filter can see of an article."""

    microseconds: int | None
    cluster: int
    attributes: Mapping[str, str]

    @property
    def published_at(self) -> datetime | None:
        return None if self.microseconds is None else EPOCH + timedelta(microseconds=self.microseconds)


def matches(row: Row, message: Filter) -> bool:
    """The contract, read row by row."""
    kind = message.WhichOneof("condition")
    if kind == "all_of":
        return all(matches(row, part) for part in message.all_of.filters)
    if kind == "any_of":
        return any(matches(row, part) for part in message.any_of.filters)
    if kind == "not":
        return not matches(row, getattr(message, "not"))
    if kind == "cluster":
        return any(CLUSTERS.get(name) == row.cluster for name in message.cluster.ids)
    if kind == "published":
        return _in_dates(row, message.published)
    return _has(row, message.attribute)


def _in_dates(row: Row, dates: DateFilter) -> bool:
    if row.microseconds is None:
        return False
    nanoseconds = 1_000 * row.microseconds
    if dates.HasField("since") and nanoseconds < dates.since.ToNanoseconds():
        return False
    return not dates.HasField("before") or nanoseconds < dates.before.ToNanoseconds()


def _has(row: Row, asked: AttributeFilter) -> bool:
    value = row.attributes.get(asked.key)
    kind = asked.WhichOneof("condition")
    if kind == "exists":
        return (value is not None) == asked.exists
    if value is None:
        return False
    if kind == "in":
        return value in getattr(asked, "in").values
    found = NUMBERS.get(value)
    if found is None or (asked.range.HasField("min") and found < asked.range.min):
        return False
    return not asked.range.HasField("max") or found <= asked.range.max


def build(**fields: Any) -> Filter:
    return Filter(**fields)


def attribute(key: str, **condition: Any) -> Filter:
    return build(attribute=AttributeFilter(key=key, **condition))


def has(key: str, *values: str) -> Filter:
    return attribute(key, **{"in": StringList(values=values)})


def negated(message: Filter) -> Filter:
    return build(**{"not": message})


def all_of(*parts: Filter) -> Filter:
    return build(all_of=FilterList(filters=parts))


def any_of(*parts: Filter) -> Filter:
    return build(any_of=FilterList(filters=parts))


def in_clusters(*ids: str) -> Filter:
    return build(cluster=ClusterFilter(ids=ids))


def published(since: tuple[int, int] | None = None, before: tuple[int, int] | None = None) -> Filter:
    message = DateFilter()
    for name, moment in (("since", since), ("before", before)):
        if moment is not None:
            getattr(message, name).seconds, getattr(message, name).nanos = moment
    return build(published=message)


@st.composite
def _published(draw: st.DrawFn) -> Filter:
    moments = st.tuples(st.integers(-3, 3), st.sampled_from([0, 1, 999, 1_000, 500_000_000, 999_999_999]))
    ends = sorted(draw(st.lists(moments, min_size=2, max_size=2)))
    return published(ends[0] if draw(st.booleans()) else None, ends[1] if draw(st.booleans()) else None)


@st.composite
def _number_range(draw: st.DrawFn) -> Filter:
    ends = sorted(draw(st.lists(st.sampled_from([-5.0, -3.5, 0.5, 5.0, 12.0, 1e9]), min_size=2, max_size=2)))
    asked = NumberRange()
    if draw(st.booleans()):
        asked.min = ends[0]
    if draw(st.booleans()):
        asked.max = ends[1]
    return attribute(draw(st.sampled_from(KEYS)), range=asked)


LEAVES = st.one_of(
    st.builds(
        lambda key, values: has(key, *values), st.sampled_from(KEYS), st.lists(st.sampled_from(VALUES), min_size=1)
    ),
    st.builds(lambda key, wanted: attribute(key, exists=wanted), st.sampled_from((*KEYS, "none")), st.booleans()),
    st.builds(lambda ids: in_clusters(*ids), st.lists(st.sampled_from([*CLUSTERS, "c9"]), min_size=1)),
    _number_range(),
    _published(),
)
FILTERS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.builds(negated, parts),
        st.builds(lambda some: all_of(*some), st.lists(parts, max_size=3)),
        st.builds(lambda some: any_of(*some), st.lists(parts, max_size=3)),
    ),
    max_leaves=8,
).filter(lambda message: depth(message) <= filters.MAX_DEPTH)


def depth(message: Filter) -> int:
    parts = [*message.all_of.filters, *message.any_of.filters]
    if message.WhichOneof("condition") == "not":
        parts.append(getattr(message, "not"))
    return 1 + max(map(depth, parts), default=0)


# Most lie where a condition's since or before may be, or a microsecond beside it.
DATES = st.builds(
    lambda second, part: 1_000_000 * second + part, st.integers(-3, 3), st.sampled_from([-1, 0, 1, 500_000])
)
ROWS = st.builds(
    Row,
    st.none() | DATES | st.integers(-3_500_000, 3_500_000),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)),
)


def live(rows: list[Row]) -> LiveColumns:
    columns = LiveColumns()
    for row in rows:
        columns.append(row.published_at, row.cluster, 0, row.attributes)
    return columns


def base(rows: list[Row], path: Path) -> BaseColumns:
    write_articles(
        path,
        (
            ArticleRow(
                f"{n:06d}", "t", "", row.published_at, dict(row.attributes), row.cluster, 1, 1, b"0" * 16, n, 0.5, False
            )
            for n, row in enumerate(rows)
        ),
    )
    return BaseColumns(Articles(path))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new path at every call."""
    folder, numbers = tmp_path_factory.mktemp("articles"), count()
    return lambda: folder / f"{next(numbers)}.arrow"


# Of what is drawn as a tree next to nothing is a condition by itself, and most of those in one decide nothing.
@settings(max_examples=100)
@given(
    rows=st.lists(ROWS, min_size=10, max_size=20),
    alone=st.lists(LEAVES, min_size=10, max_size=10),
    trees=st.lists(FILTERS, min_size=1, max_size=4),
    data=st.data(),
)
def test_masks_are_what_the_contract_says_of_every_row(
    fresh: Callable[[], Path], rows: list[Row], alone: list[Filter], trees: list[Filter], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(rows)))
    kinds: list[Columns] = [live(rows), base(rows, fresh())]
    for message in (*alone, *trees):
        wanted = [matches(row, message) for row in rows]
        condition = filters.compile(message, CLUSTERS)
        for columns in kinds:
            assert condition.mask(columns, first).tolist() == wanted[:first]
            assert condition.mask(columns, len(rows)).tolist() == wanted


def test_a_range_holds_both_of_its_ends_and_a_time_its_first_alone() -> None:
    columns = live([Row(1_000_000 + part, 0, {"views": f"{12 + part}"}) for part in (-1, 0, 1)])
    for message, wanted in (
        (published(since=(1, 0)), [False, True, True]),
        (published(since=(1, 1)), [False, False, True]),
        (published(before=(1, 0)), [True, False, False]),
        (published(before=(1, 1)), [True, True, False]),
        (attribute("views", range=NumberRange(min=12.0)), [False, True, True]),
        (attribute("views", range=NumberRange(max=12.0)), [True, True, False]),
    ):
        assert filters.compile(message, CLUSTERS).mask(columns, 3).tolist() == wanted, message


@settings(max_examples=50)
@given(earlier=st.lists(ROWS, max_size=8), later=st.lists(ROWS, max_size=8), message=FILTERS)
def test_live_columns_that_were_asked_before_grow(earlier: list[Row], later: list[Row], message: Filter) -> None:
    columns, condition = live(earlier), filters.compile(message, CLUSTERS)
    before = condition.mask(columns, len(earlier))
    for row in later:
        columns.append(row.published_at, row.cluster, 0, row.attributes)
    assert before.tolist() == [matches(row, message) for row in earlier]
    assert condition.mask(columns, len(earlier) + len(later)).tolist() == [
        matches(row, message) for row in [*earlier, *later]
    ]
    assert condition.mask(columns, len(earlier)).tolist() == before.tolist()


def test_both_kinds_give_the_same_columns_over_many_batches(fresh: Callable[[], Path]) -> None:
    random = np.random.default_rng(3)
    rows = [
        Row(None if n % 5 == 0 else int(random.integers(-(10**15), 10**15)), n % 4, {"n": str(n // 2)} if n % 3 else {})
        for n in range(20_000)  # more than two batches of the table
    ]
    ours, theirs = live(rows), base(rows, fresh())
    assert len(ours.stories) == len(theirs.stories) == len(rows)
    for name in ("microseconds", "clusters"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for key in ("n", "absent"):
        found, known = ours.attribute(key), theirs.attribute(key)
        assert list(found.values) == list(known.values)
        np.testing.assert_array_equal(found.codes, known.codes)
        np.testing.assert_array_equal(found.numbers, known.numbers)
    assert ours.microseconds[0] == UNDATED
    assert theirs.stories.tolist() == list(range(len(rows)))


def test_an_attribute_of_no_article_of_an_empty_index_is_absent() -> None:
    columns = LiveColumns()
    condition = filters.compile(any_of(negated(has("author", "a")), all_of()), CLUSTERS)
    assert condition.mask(columns, 0).tolist() == []


def test_an_attribute_that_was_crowded_out_is_read_again(fresh: Callable[[], Path]) -> None:
    rows = [Row(None, 0, {f"k{n}": str(n) for n in range(40)}), Row(None, 0, {})]
    kinds: list[Columns] = [live(rows), base(rows, fresh())]
    for columns in kinds:
        for n in [*range(40), *range(40)]:
            assert columns.attribute(f"k{n}").codes.tolist() == [0, -1]
            assert columns.attribute(f"k{n}").numbers.tolist() == [n]
    assert isinstance(kinds[0], LiveColumns)
    assert len(kinds[0]._attributes) == MAX_ATTRIBUTES
    assert isinstance(kinds[1], BaseColumns)
    assert kinds[1]._read.cache_info().currsize == MAX_ATTRIBUTES


class Told(dict[str, str]):
    """Attributes of an article that tell when they are read."""

    def __init__(self, told: Callable[[], object], attributes: Mapping[str, str]) -> None:
        super().__init__(attributes)
        self._told = told

    def get(self, key: str, default: Any = None) -> Any:
        self._told()
        return super().get(key, default)


def test_an_attribute_that_is_asked_for_again_and_again_is_read_once_whatever_others_are_asked_for() -> None:
    columns, reads = LiveColumns(), count()
    columns.append(None, 0, 0, Told(lambda: next(reads), {"views": "7"}))
    for n in range(3 * MAX_ATTRIBUTES):
        assert columns.attribute("views").numbers.tolist() == [7]
        columns.attribute(f"other {n}")
        columns.attribute(f"other {n}")
    assert next(reads) == 1 + 3 * MAX_ATTRIBUTES


def test_columns_that_go_on_from_some_rows_and_those_they_came_from_do_not_see_each_other() -> None:
    ours = live([Row(n, n, {"n": str(n)}) for n in range(3)])
    theirs = ours.copy(2)
    theirs.append(EPOCH, 9, 9, {"n": "tried out"})
    ours.append(EPOCH + timedelta(microseconds=3), 3, 0, {"n": "3"})
    for columns, numbers, values in (
        (ours, [0, 1, 2, 3], ["0", "1", "2", "3"]),
        (theirs, [0, 1, 9], ["0", "1", "tried out"]),
    ):
        found = columns.attribute("n")
        assert [found.values[code] for code in found.codes.tolist()] == values
        assert columns.clusters.tolist() == numbers
    assert ours.microseconds.tolist() == [0, 1, 2, 3]
    assert (ours.stories.tolist(), theirs.stories.tolist()) == ([0] * 4, [0, 0, 9])


def test_two_who_ask_for_an_attribute_at_once_read_no_row_twice() -> None:
    columns, half_read, go_on = LiveColumns(), threading.Event(), threading.Event()

    def first_waits() -> None:
        if not half_read.is_set():
            half_read.set()
            assert go_on.wait(60)

    for n in range(4):
        attributes = {"n": str(n)}
        columns.append(None, 0, 0, Told(first_waits, attributes) if n == 1 else attributes)
    readers = [threading.Thread(target=columns.attribute, args=("n",)) for _ in range(2)]
    readers[0].start()
    assert half_read.wait(60)
    readers[1].start()
    readers[1].join(0.2)  # it waits for the first; one that did not would have read all rows by now
    go_on.set()
    for reader in readers:
        reader.join()
    columns.append(None, 0, 0, {"n": "4"})
    found = columns.attribute("n")
    assert [found.values[code] for code in found.codes.tolist()] == ["0", "1", "2", "3", "4"]


def test_a_value_that_came_after_the_rows_that_are_asked_about_is_none_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns, condition = live([Row(None, 0, {"author": "a"})]), filters.compile(has("author", "a", "late"), CLUSTERS)
    before = columns.attribute("author")
    columns.append(None, 0, 0, {"author": "late"})
    assert columns.attribute("author").codes.tolist() == [0, 1]
    monkeypatch.setattr(columns, "attribute", lambda key: before)  # as a reader has it who asked a moment ago
    assert condition.mask(columns, 1).tolist() == [True]


def test_readers_see_whole_rows_while_one_thread_appends() -> None:
    columns, rows, wrong = LiveColumns(), 20_000, []
    condition = filters.compile(attribute("n", range=NumberRange(max=99)), CLUSTERS)

    def read() -> None:
        known = 0
        while known < rows:
            known = len(columns.stories)
            mask = condition.mask(columns, known)
            arrays = (columns.microseconds[:known] // 1_000_000, columns.clusters[:known], columns.stories[:known])
            if any(not np.array_equal(array, np.arange(known)) for array in arrays):
                wrong.append("columns")
            if not np.array_equal(mask, np.arange(known) % 1_000 < 100):
                wrong.append("mask")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(rows):
        columns.append(EPOCH + timedelta(seconds=n), n, n, {"n": str(n % 1_000)})
    for reader in readers:
        reader.join()
    assert wrong == []


def nested(levels: int) -> Filter:
    message = has("author", "a")
    for _ in range(levels - 1):
        message = negated(message)
    return message


REFUSED: list[tuple[Filter, str, str]] = [
    (build(), "", "give one of"),
    (any_of(has("author", "a"), build()), ".any_of.filters[1]", "is empty"),
    (negated(build()), ".not", "is empty"),
    (nested(9), ".not" * 8, "9 conditions deep"),
    (all_of(*[has("author", "a")] * 256), ".all_of.filters[255]", "at most 256"),
    (all_of(build(), has("", "a")), ".all_of.filters[0]", "is empty"),
    (has("", "a"), ".attribute.key", "0 characters; allowed are 1 to 128"),
    (all_of(has("a", "a"), has("b", "b"), has("k" * 129, "a")), ".all_of.filters[2].attribute.key", "129 characters"),
    (attribute("author"), ".attribute", "in, range or exists"),
    (has("author"), ".attribute.in.values", "0 values; allowed are 1 to 1,000"),
    (has("author", *["a"] * 1_001), ".attribute.in.values", "1,001 values"),
    (attribute("n", range=NumberRange(min=2, max=1)), ".attribute.range", "min must not be above max"),
    (attribute("n", range=NumberRange(min=float("nan"))), ".attribute.range.min", "NaN"),
    (attribute("n", range=NumberRange(max=float("nan"))), ".attribute.range.max", "NaN"),
    (in_clusters(), ".cluster.ids", "0 ids of clusters; allowed are 1 to 1,000"),
    (in_clusters(*["c0"] * 1_001), ".cluster.ids", "1,001 ids"),
    (published(since=(2, 0), before=(1, 0)), ".published", "1970-01-01T00:00:02Z"),
    (published(since=(1, 1), before=(1, 0)), ".published", "since must not be after before"),
    (published(since=(2**62, 0)), ".published.since.seconds", "the years 1 to 9999"),
    (published(before=(-(2**62), 0)), ".published.before.seconds", "the years 1 to 9999"),
    (published(since=(0, -1)), ".published.since.nanos", "is -1"),
    (published(before=(0, 10**9)), ".published.before.nanos", "is 1,000,000,000"),
]


@pytest.mark.parametrize(("message", "below", "says"), REFUSED)
def test_what_is_refused_is_named(message: Filter, below: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        filters.compile(message, CLUSTERS, "requests[3].ranking.filter")
    assert refusal.value.field == f"requests[3].ranking.filter{below}"
    assert says in refusal.value.message
    assert refusal.value.field in refusal.value.message


def test_what_is_just_allowed_is_allowed() -> None:
    for message in (nested(8), all_of(*[has("k" * 128, *["a"] * 1_000)] * 255), published(since=(1, 0), before=(1, 0))):
        assert filters.compile(message, CLUSTERS).missing == []


def test_unknown_clusters_are_listed_once_in_order_and_match_nothing() -> None:
    condition = filters.compile(any_of(in_clusters("c8", "c1"), negated(in_clusters("c7", "c8"))), CLUSTERS)
    assert condition.missing == ["c8", "c7"]
    assert filters.compile(in_clusters("c8"), CLUSTERS).mask(live([Row(None, 0, {})]), 1).tolist() == [False]


def test_equal_filters_have_equal_keys() -> None:
    def key(*values: str) -> bytes:
        return filters.compile(has("author", *values), CLUSTERS).key

    assert key("a", "b") == key("a", "b")
    assert key("a", "b") != key("b")


def test_what_is_kept_of_a_filter_is_small_however_large_it_is() -> None:
    large = [filters.compile(has("author", *("x" * 50_000 for _ in range(40)), last), CLUSTERS) for last in "aab"]
    assert large[0].key == large[1].key != large[2].key
    assert len(large[0].key) < 100
