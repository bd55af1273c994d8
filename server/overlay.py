"""Articles that came since the generation was built: rows of their own, beside the generation's and after them.

The overlay only grows, by one thread. Who reads it knows how many rows there were when it began (`server.view`), and
which of them were alive: nothing that a reader has seen is ever written again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
    """Rows numbered from 0. One thread appends, many read."""

    def __init__(self, dim: int) -> None:
        self._vectors = np.empty((_FIRST_ROOM, dim), np.float32)
        self.columns = LiveColumns()
        self.rows: list[LiveRow] = []
        self._by_id: dict[str, list[int]] = defaultdict(list)
        self._by_text: dict[bytes, list[int]] = defaultdict(list)
        self._by_cluster: dict[int, list[int]] = defaultdict(list)

    def append(self, row: LiveRow) -> int:
        """Adds a row and gives its number."""
        number, article = len(self.rows), row.article
        if number == len(self._vectors):
            wider = np.empty((2 * number, self._vectors.shape[1]), np.float32)
            wider[:number] = self._vectors
            self._vectors = wider
        self._vectors[number] = row.vector
        self.columns.append(article.published_at, article.cluster, article.story, article.attributes)
        self._by_id[article.id].append(number)
        self._by_text[article.text_digest].append(number)
        self._by_cluster[article.cluster].append(number)
        self.rows.append(row)
        return number

    def copy(self, count: int) -> Overlay:
        """The first rows in an overlay of their own."""
        other = Overlay(self._vectors.shape[1])
        for row in self.rows[:count]:
            other.append(row)
        return other

    def vectors(self, count: int) -> NDArray[np.float32]:
        """Of the first rows, (count, dim), without a copy."""
        return self._vectors[:count]

    def row_of(self, article_id: str, alive: NDArray[np.bool_]) -> int | None:
        """The row alive, (count,), that has an id; None where there is none."""
        return _alive(reversed(self._by_id.get(article_id, ())), alive)

    def row_of_text(self, digest: bytes, alive: NDArray[np.bool_]) -> int | None:
        """The first row alive, (count,), that has a text; None where there is none."""
        return _alive(self._by_text.get(digest, ()), alive)

    def candidates(self, clusters: NDArray[np.int64], wanted: int, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Rows to look at, (n,), ascending: the allowed ones, (count,), of some clusters; all where those are fewer
        than are wanted, or where there are only few in all.
        """
        if len(allowed) > _FEW_ROWS:
            numbers = [
                n for cluster in clusters.tolist() for n in self._by_cluster.get(cluster, ()) if n < len(allowed)
            ]
            rows = np.sort(np.array(numbers, np.int64))
            rows = rows[allowed[rows]]
            if len(rows) >= wanted:
                return rows
        return np.flatnonzero(allowed)


def _alive(numbers: Iterable[int], alive: NDArray[np.bool_]) -> int | None:
    """The first of some rows that is there."""
    return next((number for number in numbers if number < len(alive) and alive[number]), None)
