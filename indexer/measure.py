"""What a search finds with so many lists visited, and how long it takes: against brute force, on held-out queries."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import faiss
import numpy as np

from coldframe.index import REACH
from coldframe.storage import FAITHFUL, release
from indexer.sample import draw, held_out, take, training_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from coldframe.index import ClusterIndex

NEIGHBOURS = 10
# Of the rows that k-means has seen.
_QUERIES = 500
# To hide more rows from an answer takes longer than to find it.
_MOST_OF_A_STORY = 100
# Brute force in fp32 may get the order of the last few wrong; those are scored again.
_SPARE = 8
# Answers are scored from rows that lie all over a file: its pages are let go of after so many questions.
_ASKED_AT_ONCE = 64
# Margins that are tried lie so close: 1 is as far as a centroid usually is from anything.
_STEPS = 256


@dataclass(frozen=True)
class Measured:
    """How many lists a balanced search visits, and what the build's report says of it."""

    probes: int
    recall: float
    """At 10, of so many probes: below the target where codes too short to reach it are searched."""
    latency_ms: float
    """The median of a search on one thread."""
    curve: list[tuple[int, float, float]]
    """(lists visited, recall at 10, milliseconds), by lists."""
    margin: float | None = None
    """With it a search finds as much in fewer rows; None where it does not."""
    visited: float = 0.0
    """Lists that a search visits, in the mean."""


@dataclass(frozen=True)
class _Question:
    """A query, what may not be its answer, and what its answer must be as good as."""

    vector: NDArray[np.float32]
    hidden: frozenset[int]
    wanted: int
    least: float
    """Similarity of the last true neighbour: whatever is as similar is as good an answer."""
    new: bool
    """Whether k-means has not seen it."""


def measure(
    index: ClusterIndex, target_recall: float, seed: int, *, stories: NDArray[np.integer] | None = None
) -> Measured:
    """Finds the fewest lists that reach the target recall at 10 against an exact search.

    Then the least margin that finds as much as those do (`ClusterIndex.search`), unless that reads as many rows.
    Queries are the `held_out` rows, as new articles are, and as many and more that k-means has seen, as those of the
    index are: the recall is that of the kind for which it is lower. From the answer to each are hidden the row itself
    and those of its story; `stories`, (n,), has one number per story. Where no number of lists reaches the target,
    because the lists keep codes, takes the fewest that find most.
    """
    new = held_out(index.vectors, seed)
    seen = draw(index.vectors, min(_QUERIES, training_rows(len(index))), seed)
    questions = _questions(index, new, seen, np.arange(len(index)) if stories is None else stories)
    with _one_thread():
        curve = _search_curve(index, questions, target_recall)
        reached = [point for point in curve if point[1] >= target_recall]
        probes, recall, latency_ms = reached[0] if reached else max(curve, key=lambda point: (point[1], -point[0]))
        fixed = Measured(probes, recall, latency_ms, curve, visited=probes)
        return _with_margin(index, questions, fixed)


def _with_margin(index: ClusterIndex, questions: list[_Question], fixed: Measured) -> Measured:
    """The same by a margin, where that reads fewer rows."""
    if not 1 < fixed.probes < index.clusters:
        return fixed
    least, most = 0, _STEPS
    found = {most: _ask(index, questions, fixed.probes, most / _STEPS)}
    while most - least > 1:
        middle = (least + most) // 2
        found[middle] = _ask(index, questions, fixed.probes, middle / _STEPS)
        least, most = (least, middle) if found[middle][0] >= fixed.recall else (middle, most)
    margin = most / _STEPS
    lists, similarities = index.nearest_clusters(np.stack([one.vector for one in questions]), REACH * fixed.probes)
    within = similarities >= similarities[:, :1] - margin  # (questions, lists)
    sizes = index.sizes[lists]
    if found[most][0] < fixed.recall or (sizes * within).sum() >= sizes[:, : fixed.probes].sum():
        return fixed
    visited = round(float(within.sum(axis=1).mean()), 2)
    return replace(fixed, recall=found[most][0], latency_ms=found[most][1], margin=margin, visited=visited)


def _search_curve(
    index: ClusterIndex, questions: list[_Question], target_recall: float
) -> list[tuple[int, float, float]]:
    """Points at powers of two up to the target, and between the last two down to the least that reaches it."""
    # All lists of short codes are searched by reading every stored vector, which no budget counts on.
    most = index.clusters if index.storage in FAITHFUL else max(1, index.clusters - 1)
    points = {}
    below, probes = 0, 1
    while True:
        points[probes] = _ask(index, questions, probes)
        if points[probes][0] >= target_recall or probes == most:
            break
        below, probes = probes, min(2 * probes, most)
    while points[probes][0] >= target_recall and probes - below > 1:
        middle = (below + probes) // 2
        points[middle] = _ask(index, questions, middle)
        below, probes = (below, middle) if points[middle][0] >= target_recall else (middle, probes)
    return [(probes, *points[probes]) for probes in sorted(points)]


def _questions(
    index: ClusterIndex, new: NDArray[np.int64], seen: NDArray[np.int64], stories: NDArray[np.integer]
) -> list[_Question]:
    """The true neighbours of all rows, by reading the stored vectors once."""
    rows, held = np.concatenate([new, seen]), frozenset(new.tolist())
    _, story, sizes = np.unique(stories, return_inverse=True, return_counts=True)
    short = rows[sizes[story[rows]] <= _MOST_OF_A_STORY]
    rows = short if len(short) else rows
    fetch = min(len(index), NEIGHBOURS + _SPARE + int(sizes[story[rows]].max()))
    found, _ = index.nearest_rows(take(index.vectors, rows), fetch)
    questions = []
    for asked, (row, near) in enumerate(zip(rows.tolist(), found, strict=True), 1):
        hidden = np.flatnonzero(story == story[row])
        others = near[~np.isin(near, hidden)]
        scores = np.sort(index.similarities(others, index.vectors[row]))[::-1][:NEIGHBOURS]
        least = float(scores[-1]) if len(scores) else 0.0
        hides = frozenset(hidden.tolist())
        questions.append(_Question(index.vector(row), hides, len(scores), least, row in held))
        if asked % _ASKED_AT_ONCE == 0:
            release(index.vectors)
    return questions


def _ask(
    index: ClusterIndex, questions: list[_Question], probes: int, margin: float | None = None
) -> tuple[float, float]:
    """The share of true neighbours that are found, 1.0 where there are none, and the median time in milliseconds.

    The share is that of the new questions or of the others, whichever is lower.
    """
    found, wanted, seconds = [0, 0], [0, 0], []
    for asked, question in enumerate(questions, 1):
        start = time.perf_counter()
        _, scores = index.search(question.vector, NEIGHBOURS, probes, question.hidden, margin)
        seconds.append(time.perf_counter() - start)
        found[question.new] += int((scores >= question.least).sum())
        wanted[question.new] += question.wanted
        if asked % _ASKED_AT_ONCE == 0:
            release(index.vectors)
    recall = min(there / all_ if all_ else 1.0 for there, all_ in zip(found, wanted, strict=True))
    return round(recall, 4), round(1e3 * float(np.median(seconds)), 4)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a server searches under load: one thread per query."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
