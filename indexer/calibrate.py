"""From which cosine on two articles may tell one story: that belongs to the encoder, and a corpus can teach it.

A sample of texts is drawn, the nearest other texts of each are found, and all these pairs are compared word by word
(`coldframe.stories.overlap`). The threshold is the highest that keeps 99% of the pairs whose words agree, but not so
low that texts would be compared in vain more than once per article: words decide in the end, and a low threshold only
costs time. Where too few pairs agree to learn from, it lies halfway between the usual similarity of nearest neighbours
and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from coldframe.storage import release
from coldframe.stories import SAME_WORDS, cosine, overlap, shingles
from indexer.sample import take
from indexer.stories import PROBES, Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from coldframe.index import ClusterIndex

SAMPLE = 2_000
"""Texts that a build looks at."""
LEAST_PAIRS = 20
"""Fewer pairs with the same words teach nothing."""
USUAL_THRESHOLD = 0.9
"""Where there is not even a pair of neighbours."""

_KEPT = 0.99
_STEPS = 1_000
_MOST_IN_VAIN = 1.0  # comparisons per article
_NEIGHBOURS = 16  # those that lie outside the window are passed over
_PAIRS_PER_TEXT = 5
_TEXTS_KEPT = 16_384
_PAIRS_AT_ONCE = 256  # before the pages that they touched are let go of


@dataclass(frozen=True, slots=True)
class Near:
    """Two rows that are near neighbours: their cosine, and the days between them where both dates are known."""

    first: int
    second: int
    cosine: float
    days: float | None


@dataclass(frozen=True, slots=True)
class Pair(Near):
    """The same with how far the shorter text's words are found in the other one, 0 to 1."""

    overlap: float

    @property
    def same(self) -> bool:
        """Whether the words agree so far that the texts are versions of one."""
        return self.overlap >= SAME_WORDS


@dataclass(frozen=True)
class Calibration:
    """A proposed threshold and what it rests on."""

    threshold: float
    """Cosine, a multiple of 0.001."""
    learned: bool
    """False: too few pairs had the same words, and the threshold is a guess from how near neighbours usually are."""
    pairs: list[Pair]
    """Nearest neighbours within the window, the most similar first."""
    sampled: int
    """Texts whose neighbours were looked at."""

    @property
    def same(self) -> list[Pair]:
        """Pairs whose words agree."""
        return [pair for pair in self.pairs if pair.same]

    def kept(self, threshold: float) -> float:
        """The share of the pairs with the same words that a threshold keeps; 1 where there are none."""
        same = self.same
        return sum(pair.cosine >= threshold for pair in same) / len(same) if same else 1.0

    def in_vain(self, threshold: float) -> float:
        """How often, per text, a threshold has words compared that differ."""
        return sum(pair.cosine >= threshold for pair in self.pairs if not pair.same) / max(self.sampled, 1)


def calibrate(
    index: ClusterIndex,
    published_at: NDArray[np.int64],
    digests: Sequence[bytes],
    text_of: Callable[[int], str],
    *,
    window_days: float,
    seed: int,
    sample: int = SAMPLE,
) -> Calibration:
    """Proposes a threshold for `find_stories`, whose arguments it shares; `sample` texts are drawn by `seed`."""
    near = nearest_pairs(index, published_at, digests, window_days=window_days, seed=seed, sample=sample)
    return propose(near, text_of, sampled=min(sample, len(set(digests))))


def nearest_pairs(
    index: ClusterIndex,
    published_at: NDArray[np.int64],
    digests: Sequence[bytes],
    *,
    window_days: float,
    seed: int,
    sample: int,
) -> list[Near]:
    """The few nearest other texts, within the window, of each text of a sample; the most similar pairs first."""
    texts = Texts.of(published_at, digests)
    drawn = np.random.default_rng(seed).choice(len(texts), min(sample, len(texts)), replace=False)
    drawn = np.sort(drawn)
    limit = min(_NEIGHBOURS, len(texts))
    rows, _ = index.search_many(take(index.vectors, texts.first[drawn]), limit, PROBES, texts.firsts())
    pairs: dict[tuple[int, int], None] = {}
    for text, found in zip(drawn.tolist(), rows, strict=True):
        others = texts.number[found[found >= 0]].tolist()
        kept = [other for other in others if other != text and texts.within(text, other, window_days)]
        pairs |= dict.fromkeys((min(text, other), max(text, other)) for other in kept[:_PAIRS_PER_TEXT])
    return sorted(_near(index.vectors, texts, [*pairs]), key=lambda near: (-near.cosine, near.first))


def _near(vectors: NDArray[np.float32], texts: Texts, pairs: Sequence[tuple[int, int]]) -> Iterator[Near]:
    for done, (text, other) in enumerate(pairs, 1):
        first, second = int(texts.first[text]), int(texts.first[other])
        yield Near(first, second, cosine(vectors[first], vectors[second]), texts.days(text, other))
        if done % _PAIRS_AT_ONCE == 0:
            release(vectors)


def propose(near: Sequence[Near], text_of: Callable[[int], str], *, sampled: int) -> Calibration:
    """Compares the words of the pairs, the most similar first, and proposes a threshold."""
    shingles_of = lru_cache(maxsize=_TEXTS_KEPT)(lambda row: shingles(text_of(row)))
    pairs = [
        Pair(n.first, n.second, n.cosine, n.days, overlap(shingles_of(n.first), shingles_of(n.second))) for n in near
    ]
    same = np.array([pair.cosine for pair in pairs if pair.same])
    learned = len(same) >= LEAST_PAIRS
    kept = float(np.quantile(same, 1 - _KEPT, method="lower")) if learned else _guess(pairs, same)
    threshold = max(kept, _not_in_vain(pairs, sampled), 1 / _STEPS)
    # Rounded down, that the number a person copies keeps what was measured.
    return Calibration(math.floor(threshold * _STEPS) / _STEPS, learned, pairs, sampled)


def _guess(pairs: Sequence[Pair], same: NDArray[np.float64]) -> float:
    """Halfway from where the nearest neighbours usually are to 1, and not above a pair that has the same words."""
    nearest: dict[int, float] = {}
    for pair in pairs:  # the most similar come first
        nearest.setdefault(pair.first, pair.cosine)
        nearest.setdefault(pair.second, pair.cosine)
    usual = (1 + float(np.median([*nearest.values()]))) / 2 if nearest else USUAL_THRESHOLD
    return float(min([usual, *same.tolist()]))


def _not_in_vain(pairs: Sequence[Pair], sampled: int) -> float:
    """The lowest threshold that has words compared in vain at most `_MOST_IN_VAIN` times per text; -1 if all do."""
    different = [pair.cosine for pair in pairs if not pair.same]
    most = int(_MOST_IN_VAIN * sampled)
    return different[most - 1] if len(different) > most > 0 else -1.0
