"""Centroids: spherical k-means (Dhillon and Modha 2001) on a seeded sample, warm from the last build's centroids."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import faiss
import numpy as np

from coldframe.cores import affordable
from coldframe.index import nearest_centroids
from indexer.sample import draw, take, training_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# FAISS's own rule: more points per centroid change a centroid little.
_POINTS_PER_CENTROID = 256
_ITERATIONS = 25
# k-means ends in a local optimum: small corpora, where a start costs nothing, get many starts and keep the best.
_MOST_STARTS = 30
_MULTIPLICATIONS = 1e11
# A start near an optimum needs few iterations; each more moves clusters that nobody asked to move.
_WARM_ITERATIONS = 10
# Single cold starts on news differ by 1% of their loss. A warm one may lose somewhat more than the best, to keep names.
_EXTRA_LOSS = 0.02
# Where that is not enough: of how many clusters the centroids are moved, at least one.
_MOVED_SHARES = (0.0, 0.02, 0.05, 0.1)
# sqrt(n) is a rule of thumb: a quarter more or fewer clusters serve as well, and keep their names.
_SLACK = 1.25


def choose_clusters(distinct: int, wanted: int | None, previous: int | None) -> int:
    """How many clusters to make for so many distinct texts.

    About sqrt(n): lists and the articles in a list then cost a search alike, and people can read the clusters. The
    `previous` generation's number is kept while it is within a quarter of that, so that a corpus that grows a little
    every day does not lose names every day; then it goes no farther than to that quarter, so that it does not lose a
    fifth of them in one night. What the user `wanted` is taken as it is.
    """
    if wanted is not None:
        return wanted
    fitting = max(1, round(math.sqrt(distinct)))
    least, most = math.ceil(fitting / _SLACK), math.floor(fitting * _SLACK)
    return min(max(fitting if previous is None else previous, least), most, max(1, distinct))


def train(vectors: Floats, clusters: int, seed: int, start: Floats | None = None) -> Floats:
    """Centroids of unit length, (clusters, dim), from vectors of unit length, (n, dim).

    `start` are the previous generation's centroids in the same space, (any number, dim); see `fit`.
    """
    # Held-out rows are not drawn, unless there are as many clusters as rows.
    count = max(clusters, min(training_rows(len(vectors)), _POINTS_PER_CENTROID * clusters))
    rows = draw(vectors, min(count, len(vectors)), seed)
    return fit(take(vectors, rows), clusters, seed, start=start)


def fit(
    points: Floats,
    clusters: int,
    seed: int,
    *,
    start: Floats | None = None,
    weights: Floats | None = None,
    extra_loss: float = _EXTRA_LOSS,
) -> Floats:
    """k-means of unit vectors, (n, dim), with optional weights, (n,): centroids of unit length, (clusters, dim).

    With a `start`, (any number, dim), what k-means reaches from there in a few iterations is held against a cold
    start, by their losses. The warm centroids, which resemble those of the start, are taken unless their loss is
    greater by more than the share `extra_loss`. Then a few are moved to where they are missed, and a few more; the cold
    ones are taken only where that does not help either.
    """
    cold = _cold(points, clusters, seed, weights)
    if start is None:
        return cold
    allowed = (1 + extra_loss) * loss(points, cold, weights) + 1e-6  # fp32 is no finer
    for moved in sorted({math.ceil(share * (clusters - 1)) for share in _MOVED_SHARES}):
        sized = resize(start, points, clusters, seed, weights, moved=moved)
        warm = _kmeans(points, clusters, seed, _WARM_ITERATIONS, start=sized, weights=weights)
        if loss(points, warm, weights) <= allowed:
            return warm
    return cold


def _cold(points: Floats, clusters: int, seed: int, weights: Floats | None) -> Floats:
    """The best of several starts from random points. FAISS would choose among starts too, but regardless of weights."""
    starts = np.clip(_MULTIPLICATIONS / (points.size * clusters * _ITERATIONS), 1, _MOST_STARTS)
    seeds = np.random.SeedSequence(seed).generate_state(int(starts)) >> 1  # FAISS keeps a seed in a C int
    if len(seeds) == 1:
        return _kmeans(points, clusters, int(seeds[0]), _ITERATIONS, weights=weights)
    # Of one thread each: the threads of a team would wait for each other some thousand times.
    with ThreadPoolExecutor(affordable(len(os.sched_getaffinity(0))), "start", faiss.omp_set_num_threads, (1,)) as pool:
        tries = pool.map(lambda each: _kmeans(points, clusters, int(each), _ITERATIONS, weights=weights), seeds)
        return min(tries, key=lambda centroids: loss(points, centroids, weights))


def _kmeans(
    points: Floats,
    clusters: int,
    seed: int,
    iterations: int,
    *,
    start: Floats | None = None,
    weights: Floats | None = None,
) -> Floats:
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points, weights=weights, init_centroids=start)
    assert kmeans.centroids is not None, "train leaves centroids"
    centroids: Floats = kmeans.centroids.reshape(clusters, points.shape[1])
    return centroids


def _nearest(points: Floats, centroids: Floats, limit: int = 1) -> tuple[Floats, NDArray[np.int64]]:
    """The cosines of each point to its nearest centroids and their numbers, (n, limit), as k-means sees them."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return index.search(points, limit)


def loss(points: Floats, centroids: Floats, weights: Floats | None = None) -> float:
    """What spherical k-means makes small: the mean of 1 - cosine(point, nearest centroid)."""
    return float(np.average(1 - _nearest(points, centroids)[0][:, 0].astype(np.float64), weights=weights))


def resize(
    centroids: Floats, points: Floats, clusters: int, seed: int, weights: Floats | None = None, *, moved: int = 0
) -> Floats:
    """So many centroids, (clusters, dim), made of others: what is too many is dropped, what is too few is split.

    `moved` more are dropped, and as many more are split. Those that stay are the same, and come first.
    """
    weighing = np.ones(len(points), np.float32) if weights is None else weights
    left = _drop(centroids, points, weighing, max(1, min(len(centroids), clusters) - moved))
    return _split(left, points, weighing, clusters, seed)


def _drop(centroids: Floats, points: Floats, weights: Floats, clusters: int) -> Floats:
    """Leaves out one centroid after another: the one whose points are nearly as near to another; of equal ones, the
    first.
    """
    left = np.arange(len(centroids))
    cosines, numbers = _nearest(points, centroids, 2)
    while len(left) > clusters:
        costs = np.bincount(numbers[:, 0], weights * (cosines[:, 0] - cosines[:, 1]), len(centroids))
        left = np.delete(left, costs[left].argmin())
        rows = np.flatnonzero(~np.isin(numbers, left).all(axis=1))
        cosines[rows], found = _nearest(points[rows], centroids[left], 2)
        numbers[rows] = left[found]
    return np.ascontiguousarray(centroids[left])


def _split(centroids: Floats, points: Floats, weights: Floats, clusters: int, seed: int) -> Floats:
    """Splits one cluster after another in two: the one with the greatest loss (bisecting k-means; Steinbach, Karypis
    and Kumar 2000).
    """
    cosines, numbers = (found[:, 0] for found in _nearest(points, centroids))
    while len(centroids) < clusters:
        losses = np.bincount(numbers, weights * (1 - cosines), len(centroids))
        losses[np.bincount(numbers, minlength=len(centroids)) < 2] = -np.inf
        worst = int(losses.argmax())
        rows = np.flatnonzero(numbers == worst)
        halves = _kmeans(points[rows], 2, seed, _ITERATIONS, weights=weights[rows])
        found, half = _nearest(points[rows], halves)
        cosines[rows], numbers[rows] = found[:, 0], np.where(half[:, 0] == 0, worst, len(centroids))
        centroids = np.concatenate([centroids, halves[1:]])
        centroids[worst] = halves[0]
    return centroids


def assign(vectors: Floats, centroids: Floats) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Assigns every row, once, and numbers the clusters by size, the largest first.

    Returns centroids that have members, (clusters, dim), the cluster of each row, (n,), and the row's similarity to
    its centroid, (n,).
    """
    nearest, similarity = nearest_centroids(centroids, vectors, 1)
    sizes = np.bincount(nearest[:, 0], minlength=len(centroids))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]  # a centroid that nothing is nearest to is no cluster
    number = np.full(len(centroids), -1, np.int64)
    number[order] = np.arange(len(order))
    return centroids[order], number[nearest[:, 0]], similarity[:, 0]
