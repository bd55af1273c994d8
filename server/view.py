"""What one request sees: a generation, the live articles beside it, and which of both are there at this moment.

A view never changes. Each commit makes the next one, sharing all but what is new; a request takes the view once and
keeps it to its end, so that no answer mixes two states. Rows of the generation are numbered 0 to n - 1 in the order of
ids, live rows from n on in the order of arrival.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.articles import Shown
from coldframe.index import dots, lists_within
from coldframe.rows import RowSet
from server.columns import MAX_ATTRIBUTES, UNDATED, BaseColumns
from server.overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from coldframe.articles import ArticleRow
    from coldframe.generation import Generation
    from server.columns import Attribute
    from server.filters import Condition
    from server.overlay import LiveRow

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]

_FILTERS_KEPT = 64
_FEW_HIDDEN = 64  # so few are fetched and dropped; more are passed over by a bitmap
_FP32_NOISE = 1e-5


class Base:
    """A generation, and what of it is worked out once for all views."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.columns = BaseColumns(generation.articles)
        self.size = len(generation.index)
        self.rows = RowSet.of(np.ones(self.size, np.bool_), self.columns.clusters, len(generation.clusters))
        self._filtered: OrderedDict[bytes, RowSet] = OrderedDict()
        self._lock = threading.Lock()
        self.hits: dict[int, tuple[int, bytes]] = {}
        """How replies write rows, and the row of the first of the story that this says; they keep it here, with the
        generation that it is of."""

    def __len__(self) -> int:
        return self.size

    @cached_property
    def centralities(self) -> Floats:
        """The cosine of every row to the centroid of its cluster, (n,)."""
        return np.asarray(self.generation.articles.column("similarity").to_numpy(), np.float32)

    def matching(self, condition: Condition) -> RowSet:
        """The rows that a filter lets through. Filters come again and again: the last ones are kept."""
        with self._lock:
            found = self._filtered.pop(condition.key, None)
        if found is None:
            mask = condition.mask(self.columns, len(self))
            found = RowSet.of(mask, self.columns.clusters, len(self.rows.per_cluster))
        with self._lock:
            self._filtered[condition.key] = found
            while len(self._filtered) > _FILTERS_KEPT:
                self._filtered.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class Allowed:
    """The rows that a search may answer."""

    base: RowSet
    live: NDArray[np.bool_]
    """(live rows,)"""
    plain: frozenset[int] | None
    """Where all of the generation's rows are allowed but these few: what they are. None: see `base`."""
    filtered: bool = False
    """Whether a filter hides rows, or a caller more than a few: live ones are then sought in more lists. What was
    replaced hides none of them."""


@dataclass(frozen=True)
class View:
    """One state of the index. `sequence` is that of the last change it knows of."""

    base: Base
    overlay: Overlay
    sequence: int
    replaced: Rows
    """Rows of the generation that were replaced or removed, ascending."""
    base_rows: RowSet
    """The others."""
    alive: NDArray[np.bool_]
    """Which live rows are there, (live rows,)."""

    @classmethod
    def of(cls, base: Base) -> View:
        """A generation as it was built: `sequence` is its watermark."""
        overlay = Overlay(base.generation.index.dim)
        none = np.empty(0, np.int64)
        watermark = base.generation.manifest.watermark
        return cls(base, overlay, watermark, none, base.rows, np.empty(0, np.bool_))

    # --- the next state ----------------------------------------------------------------------------------------------

    def with_article(self, row: LiveRow, sequence: int) -> View:
        """The view with an article more, in place of one with the same id. One thread may call it."""
        view = self.without_article(row.article.id, sequence)
        number = self.overlay.append(row)
        # Rows that a change has left there which failed half-way are not alive, and never will be.
        alive = np.zeros(number + 1, np.bool_)
        alive[: len(view.alive)], alive[number] = view.alive, True
        return replace(view, alive=alive)

    def without_article(self, article_id: str, sequence: int) -> View:
        """The view with an article less; the same but for the sequence where it is not there."""
        row = self.row_of(article_id)
        if row is None:
            return replace(self, sequence=sequence)
        if row >= len(self.base):
            alive = self.alive.copy()
            alive[row - len(self.base)] = False
            return replace(self, alive=alive, sequence=sequence)
        gone = np.array([row])
        replaced = np.insert(self.replaced, np.searchsorted(self.replaced, row), row)
        rows = self.base_rows.without(gone, self.base.columns.clusters)
        return replace(self, replaced=replaced, base_rows=rows, sequence=sequence)

    def apart(self) -> View:
        """The same state, to try out what would become of it."""
        return replace(self, overlay=self.overlay.branch(len(self.alive)))

    # --- rows --------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.base_rows) + int(self.alive.sum())

    def row_of(self, article_id: str) -> int | None:
        """The row of an id; None where there is none."""
        live = self.overlay.row_of(article_id, self.alive)
        if live is not None:
            return len(self.base) + live
        row = self.base.generation.articles.row_of(article_id)
        return row if row is not None and self.base_rows.holds(row) else None

    def row_of_text(self, digest: bytes) -> int | None:
        """A row whose embedded text has that digest: its vector need not be computed again."""
        live = self.overlay.row_of_text(digest, self.alive)
        # A row that was replaced has the vector of its text all the same.
        return self.base.generation.articles.row_of_text(digest) if live is None else len(self.base) + live

    def has(self, row: int) -> bool:
        """Whether a row was neither replaced nor removed."""
        if self.is_live(row):
            return bool(self.alive[row - len(self.base)])
        return self.base_rows.holds(row)

    def is_live(self, row: int) -> bool:
        """Whether a row came after the generation was built."""
        return row >= self.base.size

    def article(self, row: int) -> ArticleRow:
        """What is known of a row; `story` is a row of this view, too."""
        return (
            self.overlay.rows[row - len(self.base)].article if self.is_live(row) else self.base.generation.articles[row]
        )

    def shown(self, row: int) -> Shown:
        """What of a row a hit shows."""
        if self.is_live(row):
            return Shown.of(self.overlay.rows[row - len(self.base)].article)
        return self.base.generation.articles.shown(row)

    def story(self, row: int) -> int:
        """The row that began the story that a row tells."""
        if self.is_live(row):
            return int(self.overlay.columns.stories[row - len(self.base)])
        return int(self.base.columns.stories[row])

    def first_of_story(self, row: int) -> int:
        """The row of the first article that tells a row's story. Where the one that began it is gone: of those that are
        there the earliest, those without a date last, equal ones by id.
        """
        leader = self.story(row)
        if self.has(leader):
            return leader
        of_base = np.flatnonzero(self.base.columns.stories == leader)
        of_live = np.flatnonzero(self.alive & (self.overlay.columns.stories[: len(self.alive)] == leader))
        rows = np.concatenate([of_base[self.base_rows.has(of_base)], of_live + len(self.base)])
        if not len(rows):
            return leader
        dates = self.microseconds(rows)
        late = np.where(dates == UNDATED, np.iinfo(np.int64).max, dates)
        return int(rows[self.by_score(rows, -late)[0]])

    def firsts_of_stories(self, rows: Rows) -> list[int]:
        """`first_of_story` of each."""
        if len(self.replaced) or len(self.alive):
            return [self.first_of_story(row) for row in rows.tolist()]
        leaders: list[int] = self.base.columns.stories[rows].tolist()
        return leaders  # as it was built, which all of them outlived

    def id_of(self, row: int) -> str:
        """The article id of a row."""
        if self.is_live(row):
            return self.overlay.rows[row - len(self.base)].article.id
        return self.base.generation.articles.id_of(row)

    def vector(self, row: int) -> Floats:
        """The vector of a row, (dim,)."""
        found: Floats = self.vectors(np.array([row]))[0]
        return found

    def vectors(self, rows: Rows) -> Floats:
        """Vectors of some rows, (n, dim)."""
        of_base, live = self.base.generation.index.vectors, rows >= len(self.base)
        if not live.any():
            return of_base[rows]
        found = np.empty((len(rows), of_base.shape[1]), np.float32)
        found[~live], found[live] = of_base[rows[~live]], self.overlay.vectors(rows[live] - len(self.base))
        return found

    def microseconds(self, rows: Rows) -> NDArray[np.int64]:
        """When they were published, since 1970, (n,); UNDATED where that is not known."""
        return self._pick(rows, self.base.columns.microseconds, self.overlay.columns.microseconds)

    def popularity(self, rows: Rows, key: str, largest: float | None = None) -> NDArray[np.float64]:
        """log(1 + n) of an attribute that holds a number, over that of the largest, (n,), 0 to 1; 0 without.

        largest: None for that of the index.
        """
        live, numbers = rows >= len(self.base), np.empty(len(rows))
        numbers[~live] = _numbers(self.base.columns.attribute(key), rows[~live])
        numbers[live] = _numbers(self.overlay.columns.attribute(key), rows[live] - len(self.base))
        most = self.largest(key) if largest is None else largest
        return np.log1p(np.clip(numbers, 0, most)) / np.log1p(most) if most > 0 else np.zeros(len(rows))

    def largest(self, key: str) -> float:
        """The largest number that an attribute of an article that is there says; 0 where none says one above."""
        found = self._most.get(key)
        if found is None:
            if len(self._most) >= MAX_ATTRIBUTES:  # threads that came at once may have gone beyond
                self._most.clear()
            of_base = _numbers(self.base.columns.attribute(key))
            of_base[self.replaced] = 0.0
            of_live = _numbers(self.overlay.columns.attribute(key))[: len(self.alive)][self.alive]
            found = self._most[key] = float(max(of_base.max(initial=0.0), of_live.max(initial=0.0)))
        return found

    @cached_property
    def _most(self) -> dict[str, float]:
        """What `largest` found, by attribute."""
        return {}

    def stories(self, rows: Rows) -> NDArray[np.int64]:
        """The row that began the story of each, (n,)."""
        return self._pick(rows, self.base.columns.stories, self.overlay.columns.stories)

    def clusters(self, rows: Rows) -> NDArray[np.int32]:
        """The cluster number of each, (n,)."""
        return self._pick(rows, self.base.columns.clusters, self.overlay.columns.clusters)

    def centralities(self, rows: Rows) -> Floats:
        """The cosine of each to the centroid of its cluster, (n,)."""
        found, live = np.empty(len(rows), np.float32), rows >= len(self.base)
        found[~live] = self.base.centralities[rows[~live]]
        found[live] = [self.article(row).similarity for row in rows[live].tolist()]
        return found

    def _pick(self, rows: Rows, of_base: NDArray[Any], of_live: NDArray[Any]) -> NDArray[Any]:
        if not len(self.alive) or not (live := rows >= len(self.base)).any():
            return of_base[rows]
        found = np.empty((len(rows), *of_base.shape[1:]), of_base.dtype)
        found[~live], found[live] = of_base[rows[~live]], of_live[rows[live] - len(self.base)]
        return found

    def members(self, cluster: int) -> Rows:
        """The rows in a cluster, ascending."""
        base = self.base.generation.index.members(cluster)
        live = np.flatnonzero(self.alive & (self.overlay.columns.clusters[: len(self.alive)] == cluster))
        return np.concatenate([base[self.base_rows.has(base)], live + len(self.base)])

    # --- all clusters at once ----------------------------------------------------------------------------------------

    @cached_property
    def live_sizes(self) -> NDArray[np.int64]:
        """Live articles of each cluster, (clusters,)."""
        clusters = self.overlay.columns.clusters[: len(self.alive)][self.alive]
        return np.bincount(clusters, minlength=len(self.base_rows.per_cluster))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Articles of each cluster, (clusters,)."""
        return self.base_rows.per_cluster + self.live_sizes

    @cached_property
    def dated(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Date, in microseconds, and cluster of every article that has a date, (n,) each."""
        rows = np.concatenate([self.base_rows.rows(), np.flatnonzero(self.alive) + len(self.base)])
        dates = self.microseconds(rows)
        known = dates != UNDATED
        return dates[known], self.clusters(rows)[known]

    @cached_property
    def newest(self) -> NDArray[np.int64]:
        """Date of the newest article of each cluster, in microseconds, (clusters,); UNDATED where none has one."""
        newest = np.full(len(self.base_rows.per_cluster), UNDATED, np.int64)
        dates, clusters = self.dated
        np.maximum.at(newest, clusters, dates)
        return newest

    # --- searching ---------------------------------------------------------------------------------------------------

    def allow(self, condition: Condition | None = None, excluded: Collection[int] = ()) -> Allowed:
        """The rows that match a filter, without some."""
        if condition is None and not excluded and not len(self.replaced):
            return Allowed(self.base_rows, self.alive, frozenset())
        out = np.array(sorted(set(excluded)), np.int64)
        live = self.alive
        if condition is not None:
            live = live & condition.mask(self.overlay.columns, len(live))
        if (of_live := out[out >= len(self.base)]).size:
            live = live.copy()
            live[of_live - len(self.base)] = False
        of_base = out[out < len(self.base)]
        few = condition is None and len(self.replaced) + len(of_base) <= _FEW_HIDDEN
        plain = frozenset([*self.replaced.tolist(), *of_base.tolist()]) if few else None
        base, clusters = self.base_rows, self.base.columns.clusters
        if condition is not None:
            matching = self.base.matching(condition)
            base = matching.common(base, clusters) if len(self.replaced) else matching
        if len(of_base):
            base = base.without(of_base, clusters)
        return Allowed(base, live, plain, filtered=condition is not None or len(out) > _FEW_HIDDEN)

    def lets(self, allowed: Allowed, rows: Rows) -> NDArray[np.bool_]:
        """Which of some rows are allowed, (n,)."""
        found, live = np.empty(len(rows), np.bool_), rows >= len(self.base)
        found[~live], found[live] = allowed.base.has(rows[~live]), allowed.live[rows[live] - len(self.base)]
        return found

    def search(
        self, vector: Floats, limit: int, probes: int, allowed: Allowed, margin: float | None = None
    ) -> tuple[Rows, Floats]:
        """The nearest allowed rows, best first, equal ones by id: at most `limit`, with their cosine similarities.

        vector: (dim,), of unit length. probes: lists that are visited, of the generation's clusters and of the live
        rows' alike; with all of them the answer is exact. margin: `ClusterIndex.search`, where no filter hides more
        than a few rows; without any, of the live rows those of all lists within it are looked at.
        """
        index = self.base.generation.index
        if allowed.plain is not None:
            rows, scores = index.search(vector, limit, probes, allowed.plain, margin)
        else:
            rows, scores = index.search_among(vector, limit, probes, allowed.base, margin)
        if not allowed.live.any():
            return rows, scores
        live, live_scores = self._search_live(vector, limit, probes, allowed, margin)
        rows, scores = np.concatenate([rows, live + len(self.base)]), np.concatenate([scores, live_scores])
        order = self.by_score(rows, scores)[:limit]
        return rows[order], scores[order]

    def _search_live(
        self, vector: Floats, limit: int, probes: int, allowed: Allowed, margin: float | None
    ) -> tuple[Rows, Floats]:
        """The nearest allowed live rows and all that could tie with the last of them, in no order."""
        similarities = self.base.generation.index.centroids @ vector  # (clusters,)
        nearest = np.argsort(-similarities, kind="stable")  # (clusters,)
        if margin is not None and not allowed.filtered:
            probes = max(probes, lists_within(similarities[nearest], probes, margin))
        rows = self.overlay.candidates(nearest, probes, limit, allowed.live, filtered=allowed.filtered)
        if not len(rows):
            return rows, np.empty(0, np.float32)
        guesses = self.overlay.products(rows, vector)
        last = np.partition(guesses, -limit)[-limit] if limit < len(rows) else -np.inf
        near = rows[guesses >= last - _FP32_NOISE]
        return near, dots(self.overlay.vectors(near), np.arange(len(near)), vector)

    def order_of_ids(self, rows: Rows) -> NDArray[np.int64]:
        """The place of each row among them in the order of article ids, (n,)."""
        places = np.empty(len(rows), np.int64)
        places[self.by_score(rows, np.zeros(len(rows)))] = np.arange(len(rows))
        return places

    def by_score(self, rows: Rows, scores: NDArray[Any]) -> NDArray[np.int64]:
        """The order of some rows, (n,): the highest score first, equal ones by article id."""
        order = np.lexsort((rows, -scores))
        ranked = scores[order]
        if not (rows >= len(self.base)).any() or not (ranked[1:] == ranked[:-1]).any():
            return order  # the generation's rows are in the order of ids
        keyed = sorted(order.tolist(), key=lambda place: (-scores[place], self.id_of(int(rows[place]))))
        return np.array(keyed, np.int64)


def _numbers(attribute: Attribute, rows: Rows | slice = slice(None)) -> NDArray[np.float64]:
    """What an attribute says of some rows as a number, (n,), without a look at all others; 0 where it says none."""
    codes = attribute.codes[rows]
    numbers, known = np.zeros(len(codes)), codes >= 0
    numbers[known] = np.nan_to_num(attribute.numbers[codes[known]])
    return numbers


def rows_of(view: View, ids: Sequence[str]) -> tuple[list[int], list[str]]:
    """Rows of the ids that are there, and the ids that are not, each once and in order."""
    if not ids:
        return [], []
    names = list(dict.fromkeys(ids))
    rows = view.base.generation.articles.rows_of(names)
    rows[~view.base_rows.has(rows)] = -1
    if len(view.alive):
        for n, name in enumerate(names):
            if (live := view.overlay.row_of(name, view.alive)) is not None:
                rows[n] = view.base.size + live
    return rows[rows >= 0].tolist(), [names[n] for n in np.flatnonzero(rows < 0).tolist()]
