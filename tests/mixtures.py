"""Articles without texts: directions around topics, as a corpus has them, and what changes from day to day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.clusters import Cluster, ClusterTable, Residuals
from coldframe.recipe import unit
from indexer.lineage import Naming, Previous, name_clusters
from indexer.train import assign, choose_clusters, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]


def random_units(count: int, dim: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def around(topics: Floats, count: int, seed: int = 0, noise: float = 1.0) -> Floats:
    """Directions around topics of unequal size; with a noise of 1 the cosine to the topic is about 0.7."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(len(topics)).dirichlet(np.full(len(topics), 2.0))  # every day the same
    drawn = topics[rng.choice(len(topics), count, p=weights)]
    return unit((drawn + noise * random_units(count, topics.shape[1], seed + 1)).astype(np.float32))


def table_of(naming: Naming, sizes: Sequence[int]) -> ClusterTable:
    """The table of so named clusters, labelled by their ids."""
    clusters = [
        Cluster(name, f"about {name}", [], size, 0, [0], Residuals(0, 0, 0, 0), 0.0, 0, lineage, None)
        for name, size, lineage in zip(naming.ids, sizes, naming.lineages, strict=True)
    ]
    return ClusterTable(clusters, naming.topics, naming.vanished, naming.next_number)


@dataclass(frozen=True)
class Day:
    """A generation as far as names are concerned."""

    vectors: Floats
    articles: list[str]
    centroids: Floats
    assignment: Rows
    similarity: Floats
    naming: Naming

    @property
    def table(self) -> ClusterTable:
        return table_of(self.naming, np.bincount(self.assignment).tolist())

    @property
    def clusters(self) -> dict[str, str]:
        """Article -> cluster."""
        return {a: self.naming.ids[c] for a, c in zip(self.articles, self.assignment, strict=True)}

    def as_previous(self) -> Previous:
        clusters = self.clusters
        return Previous("yesterday", self.centroids, self.table, lambda ids: [clusters.get(name) for name in ids])


def build_day(vectors: Floats, articles: list[str], before: Day | None = None, seed: int = 0) -> Day:
    """What a build does, from vectors to names."""
    start = None if before is None else before.centroids
    count = choose_clusters(len(vectors), None, None if start is None else len(start))
    centroids, assignment, similarity = assign(vectors, train(vectors, count, seed, start))
    previous = None if before is None else before.as_previous()
    naming = name_clusters(centroids, assignment, articles, previous, min_similarity=0.8)
    return Day(vectors, articles, centroids, assignment, similarity, naming)


def next_day(before: Day, fresh: Floats, seed: int = 0) -> Day:
    """Some articles, drawn at random, are replaced by as many fresh ones."""
    gone = np.random.default_rng(seed).choice(len(before.vectors), len(fresh), replace=False)
    vectors, articles = before.vectors.copy(), list(before.articles)
    vectors[gone] = fresh
    for number, row in enumerate(gone):
        articles[row] = f"fresh-{seed}-{number:04}"
    return build_day(vectors, articles, before)
