"""Rows drawn by what they hold, not by where they lie: a sample of today's corpus is nearly one of yesterday's.

draw        the rows with the smallest hashes: k-means is trained on them
held_out    the rows with the greatest: recall is measured by them
take        the vectors of some rows
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coldframe.storage import blocks, release

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_HELD_OUT = 500
_MOST_HELD_OUT_SHARE = 0.05
# In a smaller corpus centroids are means of a few rows, which they would miss.
_LEAST_ROWS = 2_000
_BLOCK = 8_192
_TAKEN_AT_ONCE = 1_024


def draw(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """`count` rows of (n, dim), ascending: those whose contents have the smallest hashes.

    A corpus ordered by date is no sample of itself, so rows are drawn all over. Drawn by content (bottom-k sampling,
    Cohen and Kaplan 2007), an article that was in yesterday's sample is in today's: a sample of other articles would
    move every centroid. The hash is multilinear (Lemire and Kaser 2014, arXiv:1202.4961).
    """
    if count == len(vectors):
        return np.arange(count)
    factors = np.random.default_rng(seed).integers(0, 2**64, vectors.shape[1], np.uint64)
    hashes = np.empty(len(vectors), np.uint64)
    for start, block in blocks(vectors, _BLOCK):
        hashes[start : start + len(block)] = block.view(np.uint32).astype(np.uint64) @ factors
    return np.sort(np.argsort(hashes, kind="stable")[:count])


def take(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A copy of some rows, (rows, dim). Of a mapped file no more than a few pages are held beside it: the system maps
    16 pages about each that is touched, so that scattered rows would bring in all of the file.
    """
    taken = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), _TAKEN_AT_ONCE):
        block = slice(start, start + _TAKEN_AT_ONCE)
        taken[block] = vectors[rows[block]]
        release(vectors)
    return taken


def training_rows(rows: int) -> int:
    """How many rows of a corpus are not held out, and may be trained on."""
    return rows if rows < _LEAST_ROWS else rows - min(_MOST_HELD_OUT, int(_MOST_HELD_OUT_SHARE * rows))


def held_out(vectors: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """The rows that k-means does not see, ascending; none of a corpus of fewer than 2,000 rows.

    They are in the index all the same. A row that k-means has seen lies nearer to its centroid than a new article
    would, and is found with fewer lists. `draw` of at most `training_rows` draws none of them.
    """
    return np.setdiff1d(np.arange(len(vectors)), draw(vectors, training_rows(len(vectors)), seed))
