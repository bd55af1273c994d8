"""A corpus in two dimensions: near in the map is near in the index, as well as paper allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 2_500
FEWEST = 10
"""Articles that a map is drawn of."""
_COMPONENTS = 50
_ITERATIONS = 400
_PERPLEXITY = 30.0
_ANGLE = 0.7  # Barnes-Hut: a fifth less time than 0.5, and no difference to the eye


def sample_rows(stories: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """At most `SAMPLE` rows, ascending, drawn by `seed`; one of each story, since others would lie upon it."""
    first = np.flatnonzero(stories == np.arange(len(stories)))
    count = min(len(first), SAMPLE)
    return np.sort(np.random.default_rng(seed).choice(first, count, replace=False))


def project(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Coordinates, (n, 2), of at least `FEWEST` vectors, (n, dim).

    50 principal components, then t-SNE (van der Maaten and Hinton 2008) begun from the first two (Kobak and Berens
    2019), which keeps neighbours and, roughly, where groups of them lie. One thread: the same vectors, the same map,
    and no thread that waits for another 1,000 times, which beside a busy server took 37 s instead of 8.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), np.errstate(invalid="ignore"):  # equal vectors have no variance to divide by
        components = min(_COMPONENTS, *vectors.shape)
        reduced = PCA(components, svd_solver="covariance_eigh", random_state=seed).fit_transform(vectors)
        spread = float(reduced[:, 0].std())
        start = 1e-4 * reduced[:, :2] / spread if spread else np.zeros((len(vectors), 2))
        start += 1e-7 * np.random.default_rng(seed).standard_normal(start.shape)  # equal vectors part
        tsne = TSNE(
            init=start.astype(np.float32),
            angle=_ANGLE,
            perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3),
            max_iter=_ITERATIONS,
            random_state=seed,
        )
        placed: NDArray[np.float32] = tsne.fit_transform(reduced)
    return placed
