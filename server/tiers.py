"""What an interest has to give, tier after tier, and the articles that the caller's priors move from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from server.view import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.view import Allowed, Floats, Rows, View

_BLOCK = 2_048


@dataclass(frozen=True, slots=True)
class Priors:
    """The allowed articles that a caller gives a prior, wherever they lie."""

    rows: Rows
    """(n,)"""
    values: Floats
    """(n,)"""
    similarities: Floats
    """To each interest, (interests, n), to the same bits as a search finds."""

    @classmethod
    def of(cls, view: View, priors: Mapping[str, float], allowed: Allowed, vectors: Floats) -> Priors:
        """Priors by article id; vectors are those of the interests, (interests, dim). Unknown ids are passed over."""
        found, missing = rows_of(view, [*priors])
        gone = set(missing)
        rows = np.array(found, np.int64)
        values = np.array([value for name, value in priors.items() if name not in gone], np.float32)
        kept = view.lets(allowed, rows)
        rows, values = rows[kept], values[kept]
        similarities, wide = np.empty((len(vectors), len(rows)), np.float32), vectors.astype(np.float64)
        for start in range(0, len(rows), _BLOCK):
            block = view.vectors(rows[start : start + _BLOCK]).astype(np.float64)  # once for all interests
            for own, vector in zip(similarities, wide, strict=True):
                own[start : start + _BLOCK] = np.vecdot(block, vector)
        return cls(rows, values, similarities)


class Tiers:
    """Candidates of one interest by similarity + prior, in tiers: each step down is one, and none takes any back."""

    def __init__(self, view: View, priors: Priors | None, interest: int) -> None:
        self._view, self._priors, self._interest = view, priors, interest
        self.rows = np.empty(0, np.int64)
        self.similarity = np.empty(0, np.float32)
        self.prior = np.empty(0, np.float32)
        """The caller's."""
        self.tier = np.empty(0, np.int64)
        """Of each, ascending from 0."""
        self.below = inf
        """What is not among them has no more similarity + prior; -inf: there is nothing else."""
        self._count = 0

    def add(self, rows: Rows, similarity: Floats, *, whole: bool, most: int) -> None:
        """Takes the next tier of what a descent has found up to now, best first; `whole`: there is no more to find.

        most: candidates, with those of the tiers before. An article with a prior comes where it would have been found,
        had its prior been part of its similarity.
        """
        floor = -inf if whole or not len(rows) else float(similarity[-1])
        if self._priors is None:
            known = len(self.rows)
            self._append(rows[known:], similarity[known:], np.zeros(len(rows) - known, np.float32))
            self.below = floor
            return
        named, values, own = self._priors.rows, self._priors.values, self._priors.similarities[self._interest]
        plain, near = ~np.isin(rows, named), own + values >= floor
        rows, similarity = np.append(rows[plain], named[near]), np.append(similarity[plain], own[near])
        prior = np.append(np.zeros(np.count_nonzero(plain), np.float32), values[near])
        new = np.flatnonzero(~np.isin(rows, self.rows))
        order = new[self._view.by_score(rows[new], (similarity + prior)[new])]
        taken = order[: max(most - len(self.rows), 0)]
        self._append(rows[taken], similarity[taken], prior[taken])
        self.below = floor if len(taken) == len(order) else float((similarity + prior)[order[len(taken)]])

    def _append(self, rows: Rows, similarity: Floats, prior: Floats) -> None:
        self.rows, self.similarity = np.append(self.rows, rows), np.append(self.similarity, similarity)
        self.prior = np.append(self.prior, prior)
        self.tier = np.append(self.tier, np.full(len(rows), self._count))
        self._count += 1
