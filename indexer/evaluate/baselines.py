"""What scores articles for a reader who has read some: vectors, TF-IDF, popularity, chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Profile = tuple[int, ...]
"""The rows of the articles that a recommendation starts from."""

_BLOCK = 512
_NEAR_DUPLICATE = 0.95


class Scorer(Protocol):
    """Scores every article for each profile, (profiles, n), the higher the better."""

    def __call__(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """(profiles, n)."""
        ...


class Vectors:
    """By the cosine to the mean of the profile's vectors; dense or sparse, of unit length, (n, dim)."""

    def __init__(self, vectors: Any) -> None:
        self.vectors = vectors

    def __call__(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """(profiles, n)."""
        from scipy.sparse import csr_matrix, issparse

        columns = np.concatenate([np.array(profile) for profile in profiles])
        starts = np.cumsum([0, *map(len, profiles)])
        weights = np.repeat([1 / len(profile) for profile in profiles], [len(profile) for profile in profiles])
        pick = csr_matrix((weights.astype(np.float32), columns, starts), shape=(len(profiles), self.vectors.shape[0]))
        scores: Any = (pick @ self.vectors) @ self.vectors.T
        return np.asarray(cast(Any, scores).toarray() if issparse(scores) else scores, np.float32)


class Popularity:
    """By how often an article was chosen by others, whatever the profile; counts, (n,)."""

    def __init__(self, counts: NDArray[np.float32]) -> None:
        self._counts = counts

    def __call__(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """(profiles, n)."""
        return np.broadcast_to(self._counts, (len(profiles), len(self._counts))).copy()


class InDegree:
    """By how many articles link to an article, those of the profile left out: theirs are what is asked for."""

    def __init__(self, links: Sequence[tuple[int, int]], n: int) -> None:
        self._counts = np.bincount([target for _, target in links], minlength=n).astype(np.float32)
        self._own: dict[int, list[int]] = {}
        for source, target in links:
            self._own.setdefault(source, []).append(target)

    def __call__(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """(profiles, n)."""
        scores = np.tile(self._counts, (len(profiles), 1))
        for row, profile in zip(scores, profiles, strict=True):
            for source in profile:
                row[self._own.get(source, [])] -= 1
        return scores


class Chance:
    """At random, the same for the same profile and seed."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed

    def __call__(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """(profiles, n)."""
        return np.stack([np.random.default_rng([self._seed, *p]).random(self._n, np.float32) for p in profiles])


def tfidf(texts: Sequence[str]) -> Any:
    """The baseline to beat, sparse and of unit length, (n, terms): English stop words, sublinear counts, terms of at
    least two articles.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings = {"sublinear_tf": True, "stop_words": "english", "dtype": np.float32}
    try:
        return TfidfVectorizer(min_df=2, **settings).fit_transform(texts)
    except ValueError:  # no term is shared, or there are stop words alone
        return TfidfVectorizer(analyzer=str.split, dtype=np.float32).fit_transform(texts)


def near_duplicates(vectors: Any) -> NDArray[np.int64]:
    """For each row the row that stands for it, (n,): the first one that it resembles too much to measure anything."""
    n = vectors.shape[0]
    kept = np.arange(n)
    for start in range(0, n, _BLOCK):
        similar = (vectors[start : start + _BLOCK] @ vectors.T).tocsr()
        for offset in range(similar.shape[0]):
            row = start + offset
            near = similar.indices[similar.indptr[offset] : similar.indptr[offset + 1]]
            values = similar.data[similar.indptr[offset] : similar.indptr[offset + 1]]
            earlier = [int(kept[other]) for other in near[(values >= _NEAR_DUPLICATE) & (near < row)]]
            kept[row] = min(earlier, default=row)
    return kept


def nearest(scorer: Scorer, profiles: Sequence[Profile], k: int) -> NDArray[np.int64]:
    """The k best rows for each profile, its own left out, ties by row, (profiles, k)."""
    found = []
    for start in range(0, len(profiles), _BLOCK):
        block = profiles[start : start + _BLOCK]
        scores = scorer(block)
        for row, profile in zip(scores, block, strict=True):
            row[list(profile)] = -np.inf
            found.append(_best(row, k))
    return np.array(found, np.int64).reshape(len(profiles), k)


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
