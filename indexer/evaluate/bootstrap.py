"""How sure a figure is: percentile intervals over resampled items (Efron 1979)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RESAMPLES = 1_000
_BLOCK = 50


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the middle 95% of what resampling makes of it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.float64]) -> Interval:
        """From the figure and its resamples, (resamples,)."""
        low, high = np.percentile(resampled, [2.5, 97.5])
        return cls(float(value), float(low), float(high))


def resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of resamples of the items, (items,) -> (RESAMPLES,) or (items, columns) -> (RESAMPLES, columns).

    The same seed and number of items draw the same resamples, so differences of two of them are paired.
    """
    return np.concatenate([weights @ values / len(values) for weights in _weights(len(values), seed)])


def _weights(items: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for _ in range(0, RESAMPLES, _BLOCK):
        drawn = rng.integers(0, items, (_BLOCK, items))
        yield np.stack([np.bincount(row, minlength=items) for row in drawn]).astype(np.float64)
