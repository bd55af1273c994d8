"""Clusters as things of their own: which are near, how old their articles are, which of them grow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from server.columns import UNDATED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.view import View

    Numbers = NDArray[np.int64]

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
AGES_US = tuple(n * _DAY_US for n in (0, 1, 3, 7, 30, 90, 365, 1_825))
"""Where the buckets of ages begin, in microseconds: today, three days, a week, a month, a quarter, a year, five."""
TEMPERATURE = 0.05
"""Of the softmax over cosines: a cluster that is 0.05 nearer has 2.7 times the share."""


def nearest(
    view: View, vector: NDArray[np.float32], limit: int, temperature: float = TEMPERATURE
) -> tuple[Numbers, NDArray[np.float32], NDArray[np.float64]]:
    """The clusters nearest to a vector, (dim,): their numbers, cosine similarities and shares, (limit,) each.

    Shares are the softmax of the similarities to all clusters over the temperature.
    """
    index = view.base.generation.index
    numbers, similarities = index.nearest_clusters(vector[None], limit)
    every = index.centroids.astype(np.float64) @ vector.astype(np.float64)  # (clusters,)
    shares = np.exp((every - every.max()) / temperature)
    return numbers[0], similarities[0], shares[numbers[0]] / shares.sum()


def neighbours(view: View, number: int, limit: int) -> tuple[Numbers, NDArray[np.float32]]:
    """The clusters whose centroids are nearest to a cluster's own, and their similarities."""
    index = view.base.generation.index
    numbers, similarities = index.nearest_clusters(index.centroids[number : number + 1], limit + 1)
    others = numbers[0] != number
    return numbers[0][others][:limit], similarities[0][others][:limit]


def ages(view: View, number: int, now_us: int) -> tuple[list[int], int]:
    """How many articles of a cluster are in each bucket of `AGES_US`, and how many have no date."""
    dates, clusters = view.dated
    old = np.maximum(now_us - dates[clusters == number], 0)
    counts = np.bincount(np.searchsorted(AGES_US, old, side="right") - 1, minlength=len(AGES_US))
    return counts.tolist(), int(view.sizes[number]) - len(old)


@dataclass(frozen=True, slots=True)
class Trend:
    """How a cluster fares within a window."""

    number: int
    count: int
    usual: float
    """Articles per window in those before it."""
    growth: float
    """(count + 1) / (usual + 1)."""


def trends(
    view: View, window_us: int, baseline_windows: int, as_of_us: int | None = None, min_count: int = 0
) -> tuple[list[Trend], int | None]:
    """Clusters by their growth, the fastest first, and the end of the window: where none was given the newest date that
    is not in the future, where one that somebody mistyped would leave the window empty.

    Counts are compared as (count + 1) / (usual + 1), so that one article in a quiet cluster is no explosion.
    """
    dates, clusters = view.dated
    if as_of_us is None and not len(dates):
        return [], None
    end = _newest(dates) if as_of_us is None else as_of_us
    start, first = end - window_us, end - window_us * (1 + baseline_windows)
    size = len(view.sizes)
    counts = np.bincount(clusters[(dates > start) & (dates <= end)], minlength=size)
    usual = np.bincount(clusters[(dates > first) & (dates <= start)], minlength=size) / baseline_windows
    growth = (counts + 1) / (usual + 1)
    order = np.lexsort((np.arange(size), -counts, -growth))
    found = [
        Trend(n, int(counts[n]), float(usual[n]), float(growth[n])) for n in order.tolist() if counts[n] >= min_count
    ]
    return found, end


def _newest(dates: NDArray[np.int64]) -> int:
    past = dates[dates <= time.time_ns() // 1_000]
    return int((past if len(past) else dates).max())


def by_size(view: View) -> Numbers:
    """All clusters, the largest first."""
    return np.argsort(-view.sizes, kind="stable")


def by_freshness(view: View) -> Numbers:
    """All clusters, that with the newest article first, those without a date last."""
    return np.argsort(-np.maximum(view.newest, _EVER), kind="stable")


def by_growth(view: View) -> Numbers:
    """All clusters by the growth of their last day against the week before."""
    found, _ = trends(view, _DAY_US, 7)
    return np.array([trend.number for trend in found], np.int64) if found else by_size(view)


def members_by_centrality(view: View, number: int) -> tuple[Numbers, NDArray[Any]]:
    """Rows of a cluster, the most typical first, and what they are in order of, the highest first, equal ones by id."""
    rows = view.members(number)
    return _by(view, rows, view.centralities(rows))


def members_by_date(view: View, number: int) -> tuple[Numbers, NDArray[Any]]:
    """The same, the newest first, those without a date last."""
    rows = view.members(number)
    return _by(view, rows, np.maximum(view.microseconds(rows), _EVER))


def members_by_id(view: View, number: int) -> tuple[Numbers, NDArray[Any]]:
    """The same in the order of article ids."""
    rows = view.members(number)
    return _by(view, rows, np.zeros(len(rows)))


def _by(view: View, rows: Numbers, keys: NDArray[Any]) -> tuple[Numbers, NDArray[Any]]:
    order = view.by_score(rows, keys)
    return rows[order], keys[order]


_EVER = UNDATED // 2  # a number that can be negated, before every date
