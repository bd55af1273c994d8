"""Clusters that keep their names: those of a rebuild are matched to those of the generation before it.

Names. Centroids are matched one to one so that the sum of scores is largest (the assignment problem; Crouse 2016,
doi:10.1109/TAES.2016.140952). A pair's score is the cosine of its centroids plus the Jaccard similarity of its two sets
of articles: the first says that the topic is the same, the second that readers find the same articles under the name.
A pair whose cosine is below a minimum is no match, whatever it shares. A matched cluster keeps its id; any other gets
the next number, and no number is used twice.

Kinds. They follow the articles that both generations hold; "most" is more than half of them.
    kept     matched
    merged   matched or not, and most articles of two or more previous clusters came here, none of which lives on
             elsewhere
    split    not matched, and most of its articles come from one previous cluster that lives on, or that gave another
             new cluster most of its articles too
    new      not matched, and neither of these
    first    there was no previous generation
A few common articles prove nothing: where a cluster's share of them is less than half of its whole generation's share,
it counts as one without any.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from coldframe.clusters import ClusterTable, Lineage, Topic, Vanished, cluster_id, read_clusters
from coldframe.errors import CorruptGeneration
from coldframe.generation import CLUSTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from coldframe.generation import Generation
    from coldframe.store import Store

    Numbers = NDArray[np.int64]

# What gave, or got, less than a tenth of the articles is no parent, or heir, unless nothing gave, or got, more.
_LEAST_SHARE = 0.1
_FP32_NOISE = 1e-6


@dataclass(frozen=True)
class Previous:
    """The generation that names come from."""

    name: str
    centroids: NDArray[np.float32] | None
    """(clusters, dim), of unit length, in the order of the table; None where they are in another space."""
    table: ClusterTable
    article_clusters: Callable[[Sequence[str]], Sequence[str | None]]
    """From articles' ids to their clusters'; None for an article that was not there."""

    @classmethod
    def of(cls, generation: Generation, centroids: NDArray[np.float32] | None) -> Previous:
        """Of an open generation, whose centroids, (clusters, dim), are given in the new space."""
        articles, clusters = generation.articles, generation.clusters
        numbers = articles.clusters()

        def clusters_of(article_ids: Sequence[str]) -> list[str | None]:
            rows = articles.rows_of(article_ids)
            return [None if row < 0 else clusters[numbers[row]].id for row in rows.tolist()]

        return cls(generation.name, centroids, generation.table, clusters_of)

    def by_id(self) -> Previous:
        """The same with its clusters in the order of their ids: the order in which they came shall decide nothing."""
        clusters = self.table.clusters
        order = sorted(range(len(clusters)), key=lambda place: (len(clusters[place].id), clusters[place].id))
        table = replace(self.table, clusters=[clusters[place] for place in order])
        return replace(self, table=table, centroids=None if self.centroids is None else self.centroids[order])


@dataclass(frozen=True)
class Naming:
    """What the clusters of a generation are called, and why; in the order of their numbers."""

    ids: list[str]
    lineages: list[Lineage]
    vanished: list[Vanished]
    next_number: int
    survived: float | None
    """The share of the articles of both generations whose cluster's id is the same; None where there is no previous
    generation in the same space, or no such article."""
    topics: list[Topic] = field(default_factory=list)
    """The previous generation's; new ones may keep their ids."""


def name_clusters(
    centroids: NDArray[np.float32],
    assignment: NDArray[np.int64],
    article_ids: Sequence[str],
    previous: Previous | None,
    *,
    min_similarity: float,
    first_number: int = 0,
) -> Naming:
    """Names every cluster by the rules above.

    centroids: (clusters, dim), of unit length. assignment: (n,), the cluster of each row. article_ids: of each row.
    Clusters in another space (`previous.centroids` is None) all get new ids; where they come from is still told.
    New ids begin at `first_number`, the store's, or at the previous generation's next one if that is greater.
    """
    if previous is None:
        ids = [cluster_id(first_number + number) for number in range(len(centroids))]
        return Naming(ids, [Lineage("first", [], None) for _ in ids], [], first_number + len(ids), None)
    previous = previous.by_id()
    came_from = _came_from(article_ids, previous)
    flow = _flow(assignment, came_from, len(centroids), previous)
    own = _match(centroids, flow, previous, min_similarity)
    ids, next_number = [], max(first_number, previous.table.next_number)
    for old in own:
        ids.append(cluster_id(next_number) if old < 0 else previous.table.clusters[old].id)
        next_number += old < 0
    survived = None if previous.centroids is None else _survived(assignment, came_from, own)
    lineages = _lineages(centroids, flow, own, previous)
    return Naming(ids, lineages, _vanished(flow, ids, previous), int(next_number), survived, previous.table.topics)


def next_number(store: Store) -> int:
    """The first number that no cluster and no topic in a store has had: after a rollback it is not the current
    generation that has the last ones. Generations that cannot be read are passed over.
    """
    found = 0
    for name in store.names():
        with suppress(CorruptGeneration):
            found = max(found, read_clusters(store.directory(name) / CLUSTERS).next_number)
    return found


def _came_from(article_ids: Sequence[str], previous: Previous) -> Numbers:
    """The place of each article's previous cluster in the table, (n,); -1 for new articles."""
    places: dict[str | None, int] = {cluster.id: place for place, cluster in enumerate(previous.table.clusters)}
    found = (places.get(cluster, -1) for cluster in previous.article_clusters(article_ids))
    return np.fromiter(found, np.int64, len(article_ids))


@dataclass(frozen=True)
class _Flow:
    """How many articles went from each previous cluster to each new one."""

    arrived: csr_array
    """(new, previous)."""
    left: csr_array
    """(previous, new), the same turned over."""
    new_sizes: Numbers
    """(new,), all articles of each."""
    old_sizes: Numbers
    """(previous,), all articles of each."""


def _flow(assignment: Numbers, came_from: Numbers, clusters: int, previous: Previous) -> _Flow:
    from scipy.sparse import csr_array

    common = came_from >= 0
    places = (assignment[common], came_from[common])
    shape = (clusters, len(previous.table.clusters))
    arrived = csr_array((np.ones(len(places[0]), np.int64), places), shape=shape)  # adds what is in one place
    old_sizes = np.array([cluster.size for cluster in previous.table.clusters], np.int64)
    return _Flow(arrived, arrived.T.tocsr(), np.bincount(assignment, minlength=clusters), old_sizes)


def _match(centroids: NDArray[np.float32], flow: _Flow, previous: Previous, min_similarity: float) -> Numbers:
    """The previous cluster that each new one is, as its place in the table, (clusters,); -1 where it is none."""
    from scipy.optimize import linear_sum_assignment

    own = np.full(len(centroids), -1)
    if previous.centroids is None:
        return own
    cosines = centroids @ previous.centroids.T  # (new, previous)
    eligible = (cosines >= min_similarity - _FP32_NOISE) & (cosines > 0)
    scores = np.where(eligible, cosines, 0).astype(np.float64)
    common = flow.arrived.tocoo()
    new, old = common.coords
    union = flow.new_sizes[new] + flow.old_sizes[old] - common.data
    scores[new, old] += np.where(eligible[new, old], common.data / union, 0)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    matched = eligible[rows, columns]
    own[rows[matched]] = columns[matched]
    return own


def _lineages(centroids: NDArray[np.float32], flow: _Flow, own: Numbers, previous: Previous) -> list[Lineage]:
    source, heir = _main(flow.arrived, flow.new_sizes), _main(flow.left, flow.old_sizes)
    lives = np.isin(np.arange(len(heir)), own)
    fed = np.bincount(source[source >= 0], minlength=len(heir))  # of how many new clusters it is the main source
    telling = _telling(flow.arrived, flow.new_sizes)
    old_ids = [cluster.id for cluster in previous.table.clusters]
    lineages = []
    for number, old in enumerate(own):
        taken = [int(other) for other in np.flatnonzero(heir == number) if other == old or not lives[other]]
        main = source[number]
        if len(taken) > 1:
            kind = "merged"
        elif old >= 0:
            kind = "kept"
        else:
            kind = "split" if main >= 0 and (lives[main] or fed[main] > 1) else "new"
        articles = _row(flow.arrived, number)
        parents = {*taken, *(_good_shares(articles) if telling[number] else []), *([int(old)] if old >= 0 else [])}
        similarity = None if old < 0 else _cosine(centroids[number], previous, old)
        lineages.append(Lineage(kind, [old_ids[n] for n in _largest_first(parents, articles)], similarity))
    return lineages


def _cosine(centroid: NDArray[np.float32], previous: Previous, old: int) -> float:
    assert previous.centroids is not None, "what was matched has a centroid"
    products = centroid.astype(np.float64) * previous.centroids[old]  # summed in one order on every machine
    return round(float(products.sum()), 6)


def _vanished(flow: _Flow, ids: list[str], previous: Previous) -> list[Vanished]:
    alive = set(ids)
    found = [
        Vanished(cluster.id, cluster.label, cluster.size, [ids[heir] for heir in _good_shares(_row(flow.left, place))])
        for place, cluster in enumerate(previous.table.clusters)
        if cluster.id not in alive
    ]
    return sorted(found, key=lambda vanished: -vanished.size)  # equal ones stay in the order of ids


def _survived(assignment: Numbers, came_from: Numbers, own: Numbers) -> float | None:
    common = came_from >= 0
    return float((own[assignment] == came_from)[common].mean()) if common.any() else None


def _telling(counts: csr_array, sizes: Numbers) -> NDArray[np.bool_]:
    """Of each row, whether its share of common articles is at least half of all rows' share, and not none."""
    common = counts.sum(axis=1)
    enough: NDArray[np.bool_] = (common > 0) & (2 * common * sizes.sum() >= common.sum() * sizes)
    return enough


def _main(counts: csr_array, sizes: Numbers) -> Numbers:
    """The column that has more than half of each row's articles; -1 where there is none, or the row tells nothing."""
    places = counts.tocoo()
    rows, columns = places.coords
    most = (2 * places.data > counts.sum(axis=1)[rows]) & _telling(counts, sizes)[rows]
    main = np.full(len(sizes), -1, np.int64)
    main[rows[most]] = columns[most]
    return main


def _row(counts: csr_array, row: int) -> dict[int, int]:
    """The articles in each column of a row."""
    places = slice(counts.indptr[row], counts.indptr[row + 1])
    return dict(zip(counts.indices[places].tolist(), counts.data[places].tolist(), strict=True))


def _good_shares(articles: dict[int, int]) -> list[int]:
    """Columns with a good share of the articles, the largest first; at least one, if there is any."""
    least = min(_LEAST_SHARE * sum(articles.values()), max(articles.values(), default=0))
    return _largest_first([column for column, count in articles.items() if count >= least], articles)


def _largest_first(columns: Iterable[int], articles: dict[int, int]) -> list[int]:
    return sorted(columns, key=lambda column: (-articles.get(column, 0), column))
