"""What vectors are measured by. Each task gives one value per item, so that items can be resampled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.evaluate.baselines import InDegree, Popularity, Profile, Scorer, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from indexer.evaluate.corpus import Corpus

NEIGHBOURS = 10
SEEDS = (1, 3, 5)
KMEANS_STARTS = 3
MOST_SESSIONS = 2_000


@dataclass(frozen=True)
class Task:
    """Profiles, what is right for each, and what popularity says where that means something."""

    name: str
    profiles: list[Profile]
    right: list[frozenset[int]]
    popularity: Scorer | None = None
    ceiling: bool = True
    """Whether the best possible is 1: recall counts against at most NEIGHBOURS right answers, agreement against all."""

    def values(self, scorer: Scorer) -> NDArray[np.float64]:
        """What each profile scores, (profiles,): the share of the right answers among the nearest NEIGHBOURS."""
        n = len(scorer(self.profiles[:1])[0])
        found = nearest(scorer, self.profiles, min(NEIGHBOURS, n - max(map(len, self.profiles))))
        pairs = zip(found.tolist(), self.right, strict=True)
        return np.array([len(right.intersection(rows)) / self._of(right, rows) for rows, right in pairs])

    def _of(self, right: frozenset[int], rows: Sequence[int]) -> int:
        return min(len(rows), len(right)) if self.ceiling else len(rows)


def label_task(labels: Sequence[str]) -> Task | None:
    """Share of the nearest labelled articles with the same label. None without two labels.

    Rows are those of the labelled articles alone, in their order.
    """
    known = [label for label in labels if label]
    if len(set(known)) < 2 or len(known) < 3:
        return None
    same: dict[str, set[int]] = defaultdict(set)
    for row, label in enumerate(known):
        same[label].add(row)
    shared = {label: frozenset(rows) for label, rows in same.items()}
    return Task(
        "neighbour label agreement",
        [(n,) for n in range(len(known))],
        [shared[label] for label in known],
        ceiling=False,
    )


def link_task(corpus: Corpus) -> Task | None:
    """Recall of the articles that an article links to, for every article that links to some."""
    targets: dict[int, set[int]] = defaultdict(set)
    for source, target in corpus.links:
        targets[source].add(target)
    if not targets or len(corpus.ids) < 3:
        return None
    sources = sorted(targets)
    return Task(
        f"link recall@{NEIGHBOURS}",
        [(source,) for source in sources],
        [frozenset(targets[source]) for source in sources],
        InDegree(corpus.links, len(corpus.ids)),
    )


def session_tasks(corpus: Corpus, seed: int) -> list[Task]:
    """Whether the next article is found from the first 1, 3 and 5: one task for each that has sessions long enough.

    Sessions are split in halves: one is asked about, the other tells what is popular, so that no answer is counted.
    """
    order = np.random.default_rng(seed).permutation(len(corpus.sessions))
    half = len(order) // 2
    counts = np.zeros(len(corpus.ids), np.float32)
    for n in order[half:]:
        counts[corpus.sessions[n]] += 1
    tasks = []
    for seeds in SEEDS:
        asked = [corpus.sessions[n] for n in order[:half] if len(corpus.sessions[n]) > seeds][:MOST_SESSIONS]
        if asked and len(corpus.ids) > seeds + 1:
            profiles = [tuple(session[:seeds]) for session in asked]
            right = [frozenset(session[seeds : seeds + 1]) for session in asked]
            name = f"next-article recall@{NEIGHBOURS} from {seeds}"
            tasks.append(Task(name, profiles, right, Popularity(counts)))
    return tasks


def contingencies(vectors: Any, labels: Sequence[str], seed: int) -> list[NDArray[np.int64]]:
    """Labels by clusters, (labels, clusters), of k-means with as many clusters as labels, from KMEANS_STARTS seeds."""
    from sklearn.cluster import KMeans

    _, numbers = np.unique(labels, return_inverse=True)
    k = int(numbers.max()) + 1
    tables = []
    for start in range(KMEANS_STARTS):
        clusters = KMeans(k, n_init=1, max_iter=50, random_state=seed + start).fit_predict(vectors)
        tables.append(np.bincount(numbers * k + clusters, minlength=k * k).reshape(k, k))
    return tables


def v_measure(table: NDArray[Any]) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg 2007) of labels by clusters."""
    share = table / table.sum()
    labels, clusters = _entropy(share.sum(1)), _entropy(share.sum(0))
    shared = labels + clusters - _entropy(share.ravel())
    homogeneity = shared / labels if labels else 1.0
    completeness = shared / clusters if clusters else 1.0
    total = homogeneity + completeness
    return float(2 * homogeneity * completeness / total) if total else 0.0


def _entropy(shares: NDArray[np.float64]) -> float:
    present = shares[shares > 0]
    return max(0.0, float(-(present * np.log(present)).sum()))
