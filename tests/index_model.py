"""What an index holds and should answer, by the book: a dict, sorting, and products in fp64. Nothing of the server's.

What a generation was built with is taken from its files: ids, dates, stories, centroids, the corpus mean. Its vectors
are not; every vector here is the encoder's own of a text by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from coldframe.generation import Generation

    Vector = NDArray[np.float64]
    Change = tuple[str, "Article | None"]
    """An id, and the article that is put; None where it is removed."""
    Log = dict[str, tuple[int, "Article | None"]]
    """Number of the latest change of each id, and the article, None where it was removed."""

SAME_STORY_WORDS = 0.6
NEIGHBOURS = 8


@dataclass(frozen=True)
class Article:
    """As a caller sends it."""

    id: str
    title: str
    content: str
    published_at: datetime | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(part for part in (self.title, self.content) if part)

    @property
    def excerpt(self) -> str:
        line = " ".join(self.content.split())
        return line if len(line) <= 280 else line[:280].rsplit(" ", 1)[0] + "…"


@dataclass(eq=False)
class Row:
    """An article where it lies. Rows that are replaced go on to be the first of their stories."""

    article: Article
    number: int
    """Those of the generation first, by id, then the others as they came."""
    vector: Vector
    cluster: int
    centrality: float
    live: bool
    first: Row | None = None
    """The row that told its story first; None where it did itself."""

    @property
    def story(self) -> Row:
        return self if self.first is None else self.first

    @property
    def words(self) -> set[tuple[str, ...]]:
        """What is known of its text, as runs of three words."""
        return runs(self.article.text if self.live else f"{self.article.title}\n{self.article.excerpt.rstrip('…')}")


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+(?:[.,]\w+)*", text.casefold())
    words += [""] * (3 - len(words))
    return {tuple(words[n : n + 3]) for n in range(len(words) - 2)}


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return 1.0 if one == other else len(one & other) / (min(len(one), len(other)) + 5)


def dot(one: Vector, other: Vector) -> float:
    return float((one * other).sum())


def unit(vector: Vector) -> Vector:
    found: Vector = vector / np.linalg.norm(vector)
    return found


class Basis:
    """A generation: its articles, and where other texts lie among them."""

    def __init__(
        self, generation: Generation, article_of: Callable[[str, bytes], Article], raw: Callable[[str], Vector]
    ) -> None:
        """`article_of` gives title and content of an id with a text digest, `raw` the encoder's vector of a text."""
        parameters = generation.manifest.parameters
        self.name, self.raw = generation.name, raw
        self.watermark: int = getattr(generation.manifest, "watermark", 0)
        self.probes = parameters.probes
        self.story_similarity, self.story_days = parameters.story_similarity, parameters.story_window_days
        mean = generation.placement.mean
        self.mean = None if mean is None else mean.astype(np.float64)
        self.centroids = generation.index.centroids.astype(np.float64)
        self.cluster_ids = [cluster.id for cluster in generation.clusters]
        self.labels = [cluster.label for cluster in generation.clusters]
        self.outlier_below = [cluster.outlier_below for cluster in generation.clusters]
        known = [generation.articles[row] for row in range(len(generation.articles))]
        self.rows: list[Row] = []
        for number, built in enumerate(known):
            sent = article_of(built.id, built.text_digest)
            article = Article(built.id, sent.title, sent.content, built.published_at, built.attributes)
            self.rows.append(self.row(article, number, live=False))
        for number, built in enumerate(known):
            self.rows[number].first = None if built.story == number else self.rows[built.story]

    def place(self, text: str) -> Vector:
        return self.placed(self.raw(text))

    def placed(self, raw: Vector) -> Vector:
        vector = unit(raw)
        return vector if self.mean is None else unit(vector - self.mean)

    def nearest(self, vector: Vector) -> list[tuple[float, int]]:
        """Every cluster's cosine and number, nearest first."""
        near = [(dot(vector, centroid), number) for number, centroid in enumerate(self.centroids)]
        return sorted(near, key=lambda pair: (-pair[0], pair[1]))

    def row(self, article: Article, number: int, *, live: bool) -> Row:
        vector = self.place(article.text)
        centrality, cluster = self.nearest(vector)[0]
        return Row(article, number, vector, cluster, centrality, live)


class State:
    """A generation and the changes since: which articles are there."""

    def __init__(self, basis: Basis, log: Log) -> None:
        """As a server that starts reads it: the latest change of each id, in their order."""
        self.basis = basis
        self.alive = {row.article.id: row for row in basis.rows}
        self.next_number = len(basis.rows)
        for article_id, (sequence, article) in sorted(log.items(), key=lambda item: item[1][0]):
            if sequence > basis.watermark:
                self.change(article_id, article)

    @classmethod
    def taken_over(cls, basis: Basis, before: Log, log: Log) -> State:
        """As a server reads it that replays what there is, and, once it serves, what came meanwhile."""
        state, known = cls(basis, before), max((sequence for sequence, _ in before.values()), default=0)
        for article_id, (sequence, article) in sorted(log.items(), key=lambda item: item[1][0]):
            if sequence > max(known, basis.watermark):
                state.change(article_id, article)
        return state

    @property
    def stories(self) -> dict[str, str]:
        """The story of each, as the wire names it."""
        return {name: self.story_id(row) for name, row in self.alive.items()}

    def story_id(self, row: Row) -> str:
        """The id of the article that began a row's story; where that is gone, of the earliest that is there."""
        if self.alive.get(row.story.article.id) is row.story:
            return row.story.article.id
        tell = [other.article for other in self.alive.values() if other.story is row.story]
        ever = datetime.max.replace(tzinfo=UTC)
        return min(tell, key=lambda article: (article.published_at or ever, article.id)).id

    def after(self, changes: Sequence[Change]) -> State:
        """What becomes of it; this one stays as it is."""
        other = State(self.basis, {})
        other.alive, other.next_number = dict(self.alive), self.next_number
        for article_id, article in changes:
            if article is None or not other.same(article):
                other.change(article_id, article)
        return other

    def change(self, article_id: str, article: Article | None) -> None:
        """Puts an article, or removes one."""
        if article is None:
            self.alive.pop(article_id, None)
            return
        row = self.basis.row(article, self.next_number, live=True)
        row.first = self._story_of(row)
        self.next_number += 1
        self.alive[article_id] = row

    def same(self, article: Article) -> bool:
        """Whether an article is there exactly so."""
        row = self.alive.get(article.id)
        return row is not None and row.article == article

    def cluster_id(self, row: Row) -> str:
        return self.basis.cluster_ids[row.cluster]

    def members(self, cluster: int) -> list[Row]:
        return [row for row in self.alive.values() if row.cluster == cluster]

    def nearest(self, vector: Vector, rows: list[Row]) -> list[tuple[float, Row]]:
        near = [(dot(vector, row.vector), row) for row in rows]
        return sorted(near, key=lambda pair: (-pair[0], pair[1].article.id))

    def _story_of(self, new: Row) -> Row | None:
        """The row whose story a new one tells; None where nobody told it (docs/decisions/0011-stories.md)."""
        others = [row for row in self.alive.values() if row.article.id != new.article.id]
        near = [row for near, row in self.nearest(new.vector, others)[:NEIGHBOURS] if near >= self._least]
        copies = [row for row in near if row.article.text == new.article.text]
        if copies:
            return copies[0].story
        best, most = None, 0.0
        for first in sorted({row.story for row in near}, key=lambda row: row.number):
            shared = overlap(new.words, first.words)
            confirmed = dot(new.vector, first.vector) >= self._least and self._within(new, first)
            if confirmed and shared >= SAME_STORY_WORDS and shared > most:
                best, most = first, shared
        return best

    @property
    def _least(self) -> float:
        return self.basis.story_similarity

    def _within(self, one: Row, other: Row) -> bool:
        dates = one.article.published_at, other.article.published_at
        if dates[0] is None or dates[1] is None:
            return True
        return abs(dates[0] - dates[1]) <= timedelta(days=self.basis.story_days)
