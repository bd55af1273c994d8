"""How far the vectors of two generations lie apart, as wholes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from coldframe.recipe import Placement
from indexer.sample import take

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLE = 2_000


def drift(
    vectors: NDArray[np.float32],
    previous: NDArray[np.float32],
    placements: tuple[Placement, Placement] = (Placement(), Placement()),
    *,
    seed: int = 0,
) -> float | None:
    """How differently two generations' vectors are spread: 0 for one distribution, 1 for two single points.

    The square root of the energy statistic H = (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / 2 E|X-Y| (Szekely and Rizzo, "Energy
    statistics", J. Stat. Plan. Inference 143, 2013, section 2): the share of the mean distance between an old and a
    new article that is there only because one is old and one is new. H is 0 if and only if the distributions are the
    same; its root grows in proportion to a shift, as a standard deviation does. docs/decisions/0014-report.md has
    examples of the scale.

    vectors: (n, dim), previous: (m, dim), of unit length, of one encoder, and how each was placed, which is undone: two
    corpora whose means were taken away lie about one point, whatever they are about. Of each at most 2,000 rows are
    looked at, drawn by `seed`, in some 0.2 s. None where there are fewer than two rows or the dimensions differ.
    """
    if min(len(vectors), len(previous)) < 2 or vectors.shape[1] != previous.shape[1]:
        return None
    new, old = (
        placement.undone(_sample(rows, seed)) for placement, rows in zip(placements, (vectors, previous), strict=True)
    )
    between = float(_distances(new, old).mean())
    within = _mean_of_pairs(_distances(new, new)) + _mean_of_pairs(_distances(old, old))
    # Without bias, so that two samples of one distribution differ from 0 by their noise alone, to either side.
    share = (2 * between - within) / (2 * between) if between else 0.0
    return math.sqrt(max(share, 0.0)) if math.isfinite(share) else math.nan


def _sample(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    count = min(len(vectors), _SAMPLE)
    rows = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    return take(vectors, np.sort(rows))


def _distances(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances of vectors of unit length, (rows, others)."""
    return np.sqrt(np.maximum(2 - 2 * (rows @ others.T).astype(np.float64), 0))


def _mean_of_pairs(distances: NDArray[np.float64]) -> float:
    """The mean over pairs of two different rows, (n, n)."""
    count = len(distances)
    return float((distances.sum() - np.trace(distances)) / (count * (count - 1)))
