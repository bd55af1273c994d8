"""Centroids: spherical k-means (Dhillon and Modha 2001) on a seeded random sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import faiss
import numpy as np

from coldframe.index import nearest_centroids

if TYPE_CHECKING:
    from numpy.typing import NDArray

# FAISS's own rule: more points per centroid change a centroid little.
_POINTS_PER_CENTROID = 256
_ITERATIONS = 25
# k-means ends in a local optimum: small corpora, where a start costs nothing, get many starts and keep the best.
_MOST_STARTS = 30
_MULTIPLICATIONS = 1e11


def default_clusters(distinct_texts: int) -> int:
    """About sqrt(n): lists and the articles in a list then cost a search alike, and people can read the clusters."""
    return max(1, round(math.sqrt(distinct_texts)))


def train(vectors: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    """Centroids of unit length, (clusters, dim), from vectors of unit length, (n, dim).

    A corpus ordered by date is no sample of itself: rows are drawn at random, by `seed`.
    """
    count = min(len(vectors), _POINTS_PER_CENTROID * clusters)
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=_ITERATIONS,
        nredo=_starts(count, clusters, vectors.shape[1]),
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=max(count, 1),
    )
    kmeans.train(np.ascontiguousarray(vectors[rows]))
    assert kmeans.centroids is not None, "train leaves centroids"
    centroids: NDArray[np.float32] = kmeans.centroids.reshape(clusters, vectors.shape[1])
    return centroids


def _starts(points: int, clusters: int, dim: int) -> int:
    return int(np.clip(_MULTIPLICATIONS / (points * clusters * dim * _ITERATIONS), 1, _MOST_STARTS))


def assign(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
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
