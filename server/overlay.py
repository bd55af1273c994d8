"""Articles that came since the generation was built: rows of their own, beside the generation's and after them.

The overlay only grows, by one thread. Who reads it knows how many rows there were when it began (`server.view`), and
which of them were alive: nothing that a reader has seen is ever written again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.index import WIDER, products
from server.columns import LiveColumns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from coldframe.articles import ArticleRow

_FIRST_ROOM = 256
_FEW_ROWS = 2_048  # so many are all looked at: to gather those of some clusters costs as much


@dataclass(frozen=True, slots=True)
class LiveRow:
    """An article of the overlay: what a hit shows, its vector in the index's space, and the words of its text."""

    article: ArticleRow
    """`story` counts the generation's rows first, then the overlay's."""
    vector: NDArray[np.float32]
    """(dim,), of unit length."""
    shingles: NDArray[np.uint64]
    """As `coldframe.stories.shingles` makes them."""


class Overlay:
    """Rows numbered from 0. One thread appends, many read.

    below: an overlay whose first rows, `first` of them, are this one's, too; what is appended here it does not see.
    """

    def __init__(self, dim: int, below: Overlay | None = None, first: int = 0) -> None:
        self._below, self._first = below, first
        self._vectors = np.empty((_FIRST_ROOM, dim), np.float32)  # of the rows from `first` on
        self.columns: LiveColumns = LiveColumns() if below is None else below.columns.copy(first)
        self.rows: list[LiveRow] = [] if below is None else below.rows[:first]
        self._by_id: dict[str, list[int]] = defaultdict(list)
        self._by_text: dict[bytes, list[int]] = defaultdict(list)

    def append(self, row: LiveRow) -> int:
        """Adds a row and gives its number."""
        number, article = len(self.rows), row.article
        place = number - self._first
        if place == len(self._vectors):
            wider = np.empty((2 * place, self._vectors.shape[1]), np.float32)
            wider[:place] = self._vectors
            self._vectors = wider
        self._vectors[place] = row.vector
        self.columns.append(article.published_at, article.cluster, article.story, article.attributes)
        self._by_id[article.id].append(number)
        self._by_text[article.text_digest].append(number)
        self.rows.append(row)
        return number

    def branch(self, count: int) -> Overlay:
        """An overlay that goes on from the first rows. Vectors, ids and texts are looked up here and not copied."""
        return Overlay(self._vectors.shape[1], self, count)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some rows, (n, dim)."""
        if self._below is None:
            return self._vectors[rows]
        found = np.empty((len(rows), self._vectors.shape[1]), np.float32)
        own = rows >= self._first
        found[own], found[~own] = self._vectors[rows[own] - self._first], self._below.vectors(rows[~own])
        return found

    def products(self, rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products of some rows with a vector, (n,), in fp32."""
        if self._below is None:
            return products(self._vectors, rows, vector)
        found = np.empty(len(rows), np.float32)
        own = rows >= self._first
        found[own] = products(self._vectors, rows[own] - self._first, vector)
        found[~own] = self._below.products(rows[~own], vector)
        return found

    def row_of(self, article_id: str, alive: NDArray[np.bool_]) -> int | None:
        """The row alive, (count,), that has an id; None where there is none."""
        found = _alive(reversed(self._by_id.get(article_id, ())), alive)
        if found is None and self._below is not None:
            return self._below.row_of(article_id, alive[: self._first])
        return found

    def row_of_text(self, digest: bytes, alive: NDArray[np.bool_]) -> int | None:
        """The first row alive, (count,), that has a text; None where there is none."""
        found = None if self._below is None else self._below.row_of_text(digest, alive[: self._first])
        return _alive(self._by_text.get(digest, ()), alive) if found is None else found

    def candidates(
        self, nearest: NDArray[np.int64], probes: int, wanted: int, allowed: NDArray[np.bool_], *, filtered: bool
    ) -> NDArray[np.int64]:
        """Rows to look at, (n,), ascending: the allowed ones, (count,), of the nearest clusters; all where those are
        fewer than are wanted, or where few are allowed.

        nearest: every cluster, (clusters,), the nearest first. Of those as many are visited as `probes` says; with a
        filter as many as `ClusterIndex.search_among` would visit.
        """
        if np.count_nonzero(allowed) <= _FEW_ROWS:
            return np.flatnonzero(allowed)
        clusters, visited = self.columns.clusters[: len(allowed)], np.zeros(len(nearest), np.bool_)
        if filtered:
            held = np.bincount(clusters[allowed], minlength=len(nearest))
            nearest = nearest[held[nearest] > 0]
            enough = max(wanted, WIDER * probes * len(allowed) // len(held))
            probes = max(WIDER * probes, int(np.searchsorted(np.cumsum(held[nearest]), enough)) + 1)
        visited[nearest[:probes]] = True
        near = np.flatnonzero(visited.take(clusters) & allowed)  # four times as fast as an index
        return near if len(near) >= wanted else np.flatnonzero(allowed)


def _alive(numbers: Iterable[int], alive: NDArray[np.bool_]) -> int | None:
    """The first of some rows that is there."""
    return next((number for number in numbers if number < len(alive) and alive[number]), None)
