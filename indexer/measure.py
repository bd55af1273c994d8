"""What a search finds with so many lists visited, and the shape of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coldframe.index import ClusterIndex

NEIGHBOURS = 10
_QUERIES = 200


@dataclass(frozen=True)
class Measured:
    """How many lists a balanced search visits, and what the build's report says of it."""

    probes: int
    recall: float
    curve: list[tuple[int, float]]
    """(lists visited, recall at 10)."""

    def report(self, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """For the manifest."""
        return {
            "recall_at_10": self.recall,
            "recall_by_probes": [[probes, recall] for probes, recall in self.curve],
            "cluster_sizes": {
                "smallest": int(sizes.min()),
                "median": float(np.median(sizes)),
                "largest": int(sizes.max()),
            },
        }


def measure(index: ClusterIndex, target_recall: float, seed: int) -> Measured:
    """Finds the fewest lists, in powers of two, that reach the target recall at 10 against an exact search.

    Queries are articles of the corpus, drawn by `seed`, each hidden from its own answer.
    """
    rows = np.random.default_rng(seed).choice(len(index), min(_QUERIES, len(index)), replace=False)
    exact = {int(row): _neighbours(index, int(row), index.clusters) for row in rows}
    curve: list[tuple[int, float]] = []
    probes = 1
    while True:
        probes = min(probes, index.clusters)
        recall = _recall(index, exact, probes)
        curve.append((probes, recall))
        if recall >= target_recall or probes == index.clusters:
            return Measured(probes, recall, curve)
        probes *= 2


def _neighbours(index: ClusterIndex, row: int, probes: int) -> set[int]:
    found, _ = index.search(index.vector(row), NEIGHBOURS, probes, frozenset({row}))
    return {int(neighbour) for neighbour in found}


def _recall(index: ClusterIndex, exact: dict[int, set[int]], probes: int) -> float:
    """The share of true neighbours that are found; 1.0 for a corpus of one article."""
    wanted = sum(map(len, exact.values()))
    found = sum(len(truth & _neighbours(index, row, probes)) for row, truth in exact.items())
    return round(found / wanted, 4) if wanted else 1.0
