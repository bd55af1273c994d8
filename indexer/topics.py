"""Broad topics for people, made of the fine clusters that search uses.

Topics are clusters of clusters: spherical k-means of the clusters' mean vectors, each weighing as much as it has
articles. From one generation to the next they keep their clusters and their ids: k-means starts from the topics before,
and of the topics that have most of their articles from one previous topic, the one with most of them keeps its id.
Counted are the articles of clusters that kept their own ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.clusters import topic_id
from coldframe.index import nearest_centroids
from coldframe.recipe import unit
from coldframe.storage import blocks
from indexer.train import choose_clusters, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from indexer.lineage import Naming

_SEED = 0
# Names of a few broad subjects are worth more than the last percent: of so few points, starts differ by several.
_EXTRA_LOSS = 0.05
_BLOCK = 8_192


@dataclass(frozen=True)
class Grouping:
    """Which cluster belongs to which topic. Topics are numbered by size, the largest first."""

    ids: list[str]
    """Of the topics, by their numbers."""
    numbers: NDArray[np.int64]
    """(clusters,), each one's topic."""
    next_number: int

    def id_of(self, cluster: int) -> str | None:
        """The id of a cluster's topic; None where there are no topics."""
        return self.ids[self.numbers[cluster]] if self.ids else None


def group_clusters(
    vectors: NDArray[np.float32], assignment: NDArray[np.int64], naming: Naming, wanted: int | None
) -> Grouping:
    """Puts each cluster into a topic. vectors: (n, dim), assignment: (n,), the cluster of each row.

    `wanted` topics, at most one per cluster; None: about the square root of the clusters, or as many as before while
    that is near; 0: none.
    """
    clusters = len(naming.ids)
    count = min(choose_clusters(clusters, wanted, len(naming.topics) or None), clusters)
    if not count:
        return Grouping([], np.zeros(clusters, np.int64), naming.next_number)
    sizes = np.bincount(assignment, minlength=clusters)
    sums = _sums(vectors, assignment, clusters)
    before = _before(naming)
    # Each previous topic begins where those of its clusters that kept their names are now.
    start = unit(np.stack([sums[places].sum(axis=0) for places in before.values()])) if before else None
    points, weights = unit(sums), sizes.astype(np.float32)
    centres = fit(points, count, _SEED, start=start, weights=weights, extra_loss=_EXTRA_LOSS)
    numbers = _by_size(nearest_centroids(centres, points, 1)[0][:, 0], sizes)
    ids, next_number = _names(numbers, sizes, before, naming.next_number)
    return Grouping(ids, numbers, next_number)


def _sums(vectors: NDArray[np.float32], assignment: NDArray[np.int64], clusters: int) -> NDArray[np.float32]:
    """The sum of each cluster's vectors, (clusters, dim), in blocks, so that a memory-mapped array stays on disk."""
    from scipy.sparse import csr_array

    sums = np.zeros((clusters, vectors.shape[1]), np.float64)
    for start, block in blocks(vectors, _BLOCK):
        rows = assignment[start : start + len(block)]
        members = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(clusters, len(rows)))
        sums += members @ block.astype(np.float64)
    return sums.astype(np.float32)


def _before(naming: Naming) -> dict[str, list[int]]:
    """The clusters of each previous topic, by number, as far as they are still there; topics in the order of ids."""
    numbers = {name: number for number, name in enumerate(naming.ids)}
    found = {
        topic.id: sorted(numbers[name] for name in topic.clusters if name in numbers)
        for topic in sorted(naming.topics, key=lambda topic: (len(topic.id), topic.id))
    }
    return {name: places for name, places in found.items() if places}


def _by_size(numbers: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups of clusters, numbered by how many articles they have, the largest first."""
    articles = np.bincount(numbers, sizes)
    order = np.argsort(-articles, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))  # a topic without clusters comes last, and nothing refers to it
    ranked: NDArray[np.int64] = rank[numbers]
    return ranked


def _names(
    numbers: NDArray[np.int64], sizes: NDArray[np.int64], before: dict[str, list[int]], next_number: int
) -> tuple[list[str], int]:
    """The id of every topic, and the next number."""
    count = int(numbers.max()) + 1
    articles = {name: np.bincount(numbers[places], sizes[places], count) for name, places in before.items()}
    known = np.sum([*articles.values(), np.zeros(count)], axis=0)  # in clusters that had a topic before
    names: dict[int, str] = {}
    for name, common in articles.items():
        heirs = np.where(2 * common > known, common, 0)
        if heirs.any():
            names[int(heirs.argmax())] = name  # no other previous topic has over half of that
    for number in range(count):
        if number not in names:
            names[number] = topic_id(next_number)
            next_number += 1
    return [names[number] for number in range(count)], next_number
