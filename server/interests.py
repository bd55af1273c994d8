"""What a reader's seeds have in common: interests kept apart, their turns, and what negative seeds take away.

Grouping seeds, and letting one of each group stand for it, follows PinnerSage (Pal et al. 2020, "PinnerSage:
Multi-Modal User Embedding Framework for Recommendations at Pinterest"): a mean of unlike things is like none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# To so many digits what is equal by the book is equal, whatever the order of a sum and the total that shares are of.
_DIGITS = 9
# A vector of unit length in fp32 has a cosine to itself that is so near to 1.
_FP32_NOISE = 1e-6


@dataclass(frozen=True, slots=True)
class Interest:
    """Seeds that are alike."""

    seeds: list[int]
    """Their numbers, ascending."""
    medoid: int
    """The one that is most like the others, by their weights."""
    weight: float
    """Their share of all weights."""


def group(
    vectors: NDArray[np.float32], weights: NDArray[np.float64], *, similarity: float, most: int
) -> list[Interest]:
    """Groups positive seeds, at most `most` groups, the heaviest first and of equal ones that of the lowest seed.

    Agglomerative, by average linkage: the two groups whose seeds' mean cosine is greatest become one, while it is at
    least `similarity` or there are too many groups. `vectors` (n, dim) are of unit length, `weights` (n,) above 0.
    For the at most 64 seeds of a call; steps grow with their cube.
    """
    wide = vectors.astype(np.float64)
    cosines = wide @ wide.T  # (n, n)
    np.fill_diagonal(cosines, 1.0)
    shares = weights / weights.sum()
    found = [_interest(members, cosines, shares) for members in _linked(cosines, similarity, most)]
    return sorted(found, key=lambda interest: (_fall(interest.weight), interest.seeds[0]))


def _linked(cosines: NDArray[np.float64], similarity: float, most: int) -> list[list[int]]:
    """Members of each group, ascending; cosines are (n, n)."""
    groups = [[seed] for seed in range(len(cosines))]
    sums = cosines.copy()  # of the cosines between two groups' seeds, (groups, groups)
    while len(groups) > 1:
        sizes = np.array([len(members) for members in groups])
        means = sums / np.outer(sizes, sizes)
        means[np.tril_indices(len(groups))] = -np.inf
        first, second = divmod(int(means.argmax()), len(groups))  # of equal ones the first: first < second
        if len(groups) <= most and means[first, second] < similarity - _FP32_NOISE:
            break
        groups[first] = sorted(groups[first] + groups.pop(second))
        sums[first] += sums[second]
        sums[:, first] += sums[:, second]
        sums = np.delete(np.delete(sums, second, 0), second, 1)
    return groups


def _interest(members: list[int], cosines: NDArray[np.float64], shares: NDArray[np.float64]) -> Interest:
    weight = shares[members]
    likeness = cosines[np.ix_(members, members)] @ (weight / weight.sum())  # (members,)
    return Interest(members, members[int(likeness.round(_DIGITS).argmax())], float(weight.sum()))


def _fall(number: float) -> float:
    """A key by which the greatest number comes first. Of logarithms, so that it is as fine for small ones."""
    return -round(log(number), _DIGITS)


class Turns:
    """Whose turn it is, without end: Sainte-Laguë's highest averages, weight / (2 x turns had + 1).

    After any number of turns each had its share of them to within about one half, and more turns never take one back.
    Where one leaves, the others go on in the order that they would have had without it. Equal averages go to the
    lowest number: 0.6 has two turns before 0.2 has its first, as 3 has before 1. Weights are above 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._heap = [(self._key(number, 1), number, 1) for number in range(len(weights))]
        heapify(self._heap)

    def _key(self, number: int, divisor: int) -> float:
        """The least is the highest average."""
        return _fall(self._weights[number] / divisor)

    def next(self) -> int | None:
        """The number whose turn it is, which stays so until `had` or `left`; None where all have left."""
        return self._heap[0][1] if self._heap else None

    def had(self) -> None:
        """The turn was taken."""
        _, number, divisor = self._heap[0]
        heapreplace(self._heap, (self._key(number, divisor + 2), number, divisor + 2))

    def left(self) -> None:
        """The one whose turn it is has no more to give."""
        heappop(self._heap)


def share_places(weights: Sequence[float], available: Sequence[int], limit: int) -> list[int]:
    """Who fills each of at most `limit` places, where number n can fill `available[n]`; longer lists begin alike."""
    turns, left = Turns(weights), list(available)
    places: list[int] = []
    while len(places) < limit and (number := turns.next()) is not None:
        if left[number] == 0:
            turns.left()
            continue
        turns.had()
        left[number] -= 1
        places.append(number)
    return places


def negative_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each negative seed counts, above 0 to 1, in order: its weight over the largest positive one, at most 1.

    `weights` are those of all seeds of a call, one of them above 0.
    """
    shares: NDArray[np.float64] = np.minimum(-weights[weights < 0] / weights.max(), 1.0)
    return shares


def negative_part(
    vectors: NDArray[np.float32], negatives: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """What likeness to negative seeds takes from each candidate, (c,): -max of weight x cosine, never above 0.

    `vectors` (c, dim) and `negatives` (m, dim) are of unit length; `weights` (m,) as `negative_weights` gives them.
    """
    most = np.zeros(len(vectors), np.float32)
    for negative, weight in zip(negatives, weights, strict=True):
        np.maximum(most, np.float32(weight) * cosines(vectors, negative), out=most)
    return 0 - most  # not -most: of nothing taken away it would make -0


def cosines(vectors: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of (c, dim) with (dim,), (c,).

    One dot product a row, so that equal vectors are equally near wherever they stand, and all on this thread: BLAS's
    product of matrix and vector takes the last rows another way, and wakes threads for which other calls have to wait.
    """
    products: NDArray[np.float32] = np.matmul(vectors[:, None, :], vector[:, None])[:, 0, 0]
    return products
