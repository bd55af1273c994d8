"""A set of rows of an index: which may be answered, and how many of them each cluster holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RowSet:
    """Rows as a bitmap. It never changes: what takes rows away makes another one."""

    bits: NDArray[np.uint8]
    """(ceil(rows / 8),): row i is bit i % 8 of byte i // 8."""
    per_cluster: NDArray[np.int64]
    """How many of the rows each cluster holds, (clusters,)."""

    @classmethod
    def of(cls, mask: NDArray[np.bool_], assignment: NDArray[np.int32], clusters: int) -> Self:
        """The rows where `mask`, (n,), is true; `assignment`, (n,), is the cluster of every row."""
        bits = np.packbits(mask, bitorder="little")
        return cls(bits, np.bincount(assignment[mask], minlength=clusters))

    def __len__(self) -> int:
        return int(self.per_cluster.sum())

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows are in the set, (n,)."""
        found: NDArray[np.bool_] = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1) == 1
        return found

    def holds(self, row: int) -> bool:
        """Whether one row is in the set."""
        return bool(self.bits[row >> 3] >> (row & 7) & 1)

    def rows(self) -> NDArray[np.int64]:
        """All of them, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    def without(self, rows: NDArray[np.int64], assignment: NDArray[np.int32]) -> Self:
        """The set less some rows, which need not be in it; `assignment`, (n,), is the cluster of every row."""
        rows = np.unique(rows)
        rows = rows[self.has(rows)]
        bits, per_cluster = self.bits.copy(), self.per_cluster.copy()
        np.bitwise_and.at(bits, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        np.subtract.at(per_cluster, assignment[rows], 1)
        return type(self)(bits, per_cluster)

    def common(self, other: Self, assignment: NDArray[np.int32]) -> Self:
        """The rows that are in another set of the same index, too. Where many are not, `without` takes far longer."""
        bits = self.bits & ~other.bits
        places = np.flatnonzero(bits)
        byte, bit = np.nonzero(np.unpackbits(bits[places, None], axis=1, bitorder="little"))
        gone = 8 * places[byte] + bit
        per_cluster = self.per_cluster - np.bincount(assignment[gone], minlength=len(self.per_cluster))
        return type(self)(self.bits & other.bits, per_cluster)
