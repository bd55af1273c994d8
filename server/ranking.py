"""The order of answers: what is added to and taken from a similarity, caps, diversity, chance, and several interests.

    lists of candidates -> relevance of each -> places in turn: the best that is still allowed -> the answer's order

A search is a recommendation with one interest. docs/decisions/0018-ranking.md says why parts are added, and why the
lists of interests are never mixed by score.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from math import floor, inf
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from server.columns import UNDATED
from server.interests import Turns, cosines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

# By so much scores differ that are equal by the book: (1 - d) x relevance - d x likeness is 0 for all that follows what
# the seed itself is, where d is a half.
_FP32_NOISE = 1e-6
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Options:
    """How answers are put in order. The defaults are those of the wire contract, where everything is explained."""

    max_per_story: int = 1
    """0 for no limit."""
    max_per_cluster: int = 0
    """0 for no limit."""
    diversity: float = 0.0
    half_life_s: float | None = None
    """None: age takes nothing away."""
    recency_weight: float = 0.2
    as_of_s: float = 0
    """The moment that ages are counted to, in seconds since 1970."""
    explore_fraction: float = 0.0
    explore_seed: int = 0
    min_score: float | None = None

    @property
    def reranks(self) -> bool:
        """Whether these options can put another candidate than the most similar first. Negative seeds and priors can
        too, and are the caller's to know of.
        """
        return self.diversity > 0 or self.half_life_s is not None or self.explore_fraction > 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one interest found, in the order of similarity, equal ones by id. All arrays are (c,)."""

    rows: NDArray[np.int64]
    """Equal for one article in all the lists of a call."""
    similarity: NDArray[np.float32]
    negative: NDArray[np.float32]
    """At most 0."""
    prior: NDArray[np.float32]
    microseconds: NDArray[np.int64]
    """Date since 1970, UNDATED where it is unknown."""
    stories: NDArray[np.int64]
    clusters: NDArray[np.int32]
    vectors: NDArray[np.float32] | None = None
    """Of the first tier, (c of it, dim), of unit length; needed where diversity is above 0."""
    tier: NDArray[np.int64] | None = None
    """Those of a tier, from 0 on, come behind all of the one before; None: all are of the first."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The chosen ones, in order: parallel arrays (k,). score = similarity + negative + recency + prior + diversity."""

    interest: NDArray[np.int64]
    """Number of the list that it was taken from."""
    place: NDArray[np.int64]
    """Its place in that list."""
    score: NDArray[np.float32]
    similarity: NDArray[np.float32]
    negative: NDArray[np.float32]
    recency: NDArray[np.float32]
    """-recency_weight to 0."""
    freshness: NDArray[np.float32]
    """2^(-age / half_life): 1 for a fresh one, for one without a date, and where age does not count."""
    prior: NDArray[np.float32]
    diversity: NDArray[np.float32]
    """At most 0."""
    explored: NDArray[np.bool_]
    """Whether its place was given to chance."""

    def __len__(self) -> int:
        return len(self.place)

    @classmethod
    def plain(cls, similarity: NDArray[np.float32], places: Sequence[int]) -> Ranked:
        """Of one list, (k,), where nothing but similarity makes the score."""
        nothing, full, first, no = _constants(len(places))
        return cls(
            interest=first,
            place=np.array(places, np.int64),
            score=similarity,
            similarity=similarity,
            negative=nothing,
            recency=nothing,
            freshness=full,
            prior=nothing,
            diversity=nothing,
            explored=no,
        )

    def page(self, start: int, end: int) -> Ranked:
        """Those from place `start` on, before place `end`."""
        return Ranked(*(getattr(self, field.name)[start:end] for field in fields(self)))


@lru_cache(maxsize=64)
def _constants(
    count: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """0, 1, the first and no, (count,) each; nobody writes to them."""
    arrays = (
        np.zeros(count, np.float32),
        np.ones(count, np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.bool_),
    )
    for array in arrays:
        array.flags.writeable = False
    return arrays


def merge(
    lists: Sequence[Candidates],
    weights: Sequence[float],
    options: Options,
    limit: int,
    *,
    ties: Sequence[NDArray[np.int64]] | None = None,
    stories_taken: Collection[int] = (),
) -> Ranked:
    """Fills one answer from the lists of several interests, one or more, whose turns come by their weights (`Turns`).

    At each place the interest whose turn it is gives its best candidate that no other gave and no cap forbids, of the
    first tier that has one; an interest that has none left is passed over. Of equal scores the more relevant comes
    first, then the one of the lower `ties`, (c,) of each list, such as the places of the ids in order; without them,
    the one that stands first in its list. No story of `stories_taken` is answered, however many of a story are allowed.

    `explore_fraction` of the places, rounded up or down by chance, are drawn; a candidate that would not have had a
    place is drawn for each of them, all of a tier equally likely, from the interest whose turn it is. Where it has none
    that is allowed, the place goes by score. The same seed draws the same.

    Without exploration the answer of k places begins every longer one. Raises ValueError where diversity is asked for
    and a list has no vectors.
    """
    pool = _Pool(lists, options, ties)
    chosen = _fill(pool, weights, _Allowed(pool, options, stories_taken), limit)
    if options.explore_fraction > 0:
        draws = _Draws(pool, options, limit, {int(pool.rows[choice.place]) for choice in chosen})
        chosen = _fill(pool, weights, _Allowed(pool, options, stories_taken), limit, draws)
    return pool.ranked(chosen)


def in_order(
    stories: NDArray[np.int64],
    clusters: NDArray[np.int32] | None,
    options: Options,
    limit: int,
    stories_taken: Collection[int] = (),
) -> list[int]:
    """The places that `merge` takes of one list where similarity alone decides: the first that no cap forbids.

    stories, clusters: of each candidate, (c,); clusters may be None where they have no cap.
    """
    per_story, per_cluster = options.max_per_story or inf, options.max_per_cluster or inf
    of_story: dict[int, float] = dict.fromkeys(stories_taken, inf)
    of_cluster: dict[int, int] = {}
    places: list[int] = []
    if clusters is None:
        for place, story in enumerate(stories.tolist()):
            told = of_story.get(story, 0)
            if told < per_story:
                places.append(place)
                if len(places) == limit:
                    break
                of_story[story] = told + 1
        return places
    homes = clusters.tolist()
    for place, (story, home) in enumerate(zip(stories.tolist(), homes, strict=True)):
        told, held = of_story.get(story, 0), of_cluster.get(home, 0)
        if told < per_story and held < per_cluster:
            places.append(place)
            if len(places) == limit:
                break
            of_story[story], of_cluster[home] = told + 1, held + 1
    return places


def freshness(microseconds: NDArray[np.int64], options: Options) -> NDArray[np.float32]:
    """2^(-age / half_life) of dates since 1970, (c,); 1 where age does not count or is not known, and in the future."""
    if options.half_life_s is None:
        return np.ones(len(microseconds), np.float32)
    known = np.where(microseconds == UNDATED, options.as_of_s, microseconds / 1e6)
    ages = np.maximum(options.as_of_s - known, 0)  # seconds, (c,)
    return np.asarray(np.exp2(-ages / options.half_life_s), np.float32)


class _Choice(NamedTuple):
    place: int
    """In the pool."""
    diversity: np.float32
    explored: bool


class _Pool:
    """The candidates of all lists, end to end: (n,), with every part of their scores but diversity."""

    def __init__(self, lists: Sequence[Candidates], options: Options, ties: Sequence[NDArray[np.int64]] | None) -> None:
        self._lists, self._diversity = lists, options.diversity
        self.starts = np.cumsum([0] + [len(candidates) for candidates in lists])
        self.rows = _joined([c.rows for c in lists])
        self.stories = _joined([c.stories for c in lists])
        self.clusters = _joined([c.clusters for c in lists])
        self.similarity = _joined([c.similarity for c in lists])
        self.negative = _joined([c.negative for c in lists])
        self.prior = _joined([c.prior for c in lists])
        self.tier = _joined([np.zeros(len(c), np.int64) if c.tier is None else c.tier for c in lists])
        self.freshness = freshness(_joined([c.microseconds for c in lists]), options)
        weight = np.float32(0 if options.half_life_s is None else options.recency_weight)
        self.recency = weight * (self.freshness - 1)
        self.relevance = self.similarity + self.negative + self.recency + self.prior
        self.orders = [
            self._order(number, options.min_score, None if ties is None else ties[number])
            for number in range(len(lists))
        ]

    def _order(self, number: int, min_score: float | None, tie: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Places of one list's candidates, the most relevant of each tier first, without those of too low a score."""
        start, end = self.starts[number : number + 2]
        relevance = self.relevance[start:end]
        order = np.lexsort((np.arange(end - start) if tie is None else tie, -relevance, self.tier[start:end]))
        if min_score is not None:
            order = order[relevance[order] >= np.float32(min_score)]
        return np.asarray(start + order, np.int64)

    def best(self) -> _Best:
        """Who comes next by score, from the start."""
        return _Unlike(self, self._diversity) if self._diversity > 0 else _Relevant(self)

    def vectors(self) -> NDArray[np.float32]:
        """Of the first tier, in the order of places, (n of it, dim)."""
        found = [candidates.vectors for candidates in self._lists if candidates.vectors is not None]
        if len(found) < len(self._lists):
            raise ValueError("diversity needs the vectors of all candidates")
        return _joined(found)

    def ranked(self, chosen: Sequence[_Choice]) -> Ranked:
        """The chosen ones with the parts of their scores."""
        places = np.array([choice.place for choice in chosen], np.int64)
        interest = np.searchsorted(self.starts, places, side="right") - 1
        diversity = np.array([choice.diversity for choice in chosen], np.float32)
        return Ranked(
            interest=interest,
            place=places - self.starts[interest],
            score=self.relevance[places] + diversity,
            similarity=self.similarity[places],
            negative=self.negative[places],
            recency=self.recency[places],
            freshness=self.freshness[places],
            prior=self.prior[places],
            diversity=diversity,
            explored=np.array([choice.explored for choice in chosen], np.bool_),
        )


def _joined(arrays: Sequence[NDArray[_Scalar]]) -> NDArray[_Scalar]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _fill(
    pool: _Pool, weights: Sequence[float], allowed: _Allowed, limit: int, draws: _Draws | None = None
) -> list[_Choice]:
    """Gives the places, one after the other."""
    turns, best = Turns(weights), pool.best()
    chosen: list[_Choice] = []
    while len(chosen) < limit and (interest := turns.next()) is not None:
        drawn = None if draws is None else draws.next(len(chosen), interest, allowed)
        place = best.next(interest, allowed) if drawn is None else drawn
        if place is None:
            turns.left()
            continue
        turns.had()
        chosen.append(_Choice(place, best.part(place), drawn is not None))
        allowed.take(place)
        best.take(place)
    return chosen


class _Allowed:
    """Which candidates may still be chosen. One that may not never may again."""

    def __init__(self, pool: _Pool, options: Options, stories_taken: Collection[int]) -> None:
        self._rows: list[int] = pool.rows.tolist()
        self._stories: list[int] = pool.stories.tolist()
        self._clusters: list[int] = pool.clusters.tolist()
        self._max_per_story = options.max_per_story or inf
        self._max_per_cluster = options.max_per_cluster or inf
        self._rows_taken: set[int] = set()
        self._of_story: dict[int, float] = dict.fromkeys(stories_taken, inf)
        self._of_cluster: dict[int, int] = {}

    def __call__(self, place: int) -> bool:
        return (
            self._of_story.get(self._stories[place], 0) < self._max_per_story
            and self._of_cluster.get(self._clusters[place], 0) < self._max_per_cluster
            and self._rows[place] not in self._rows_taken
        )

    def take(self, place: int) -> None:
        """Counts one that was chosen."""
        story, cluster = self._stories[place], self._clusters[place]
        self._rows_taken.add(self._rows[place])
        self._of_story[story] = self._of_story.get(story, 0) + 1
        self._of_cluster[cluster] = self._of_cluster.get(cluster, 0) + 1


class _Best(Protocol):
    """Who comes next by score."""

    def next(self, interest: int, allowed: _Allowed) -> int | None:
        """The best allowed candidate of an interest that `next` has not given yet; None where there is none."""

    def part(self, place: int) -> np.float32:
        """What diversity takes from the score of a candidate that is chosen now."""

    def take(self, place: int) -> None:
        """Tells which one was chosen."""


class _Relevant:
    """By relevance alone: one walk down each list."""

    def __init__(self, pool: _Pool) -> None:
        self._left = [iter(order.tolist()) for order in pool.orders]

    def next(self, interest: int, allowed: _Allowed) -> int | None:
        return _first(self._left[interest], allowed)

    def part(self, place: int) -> np.float32:  # noqa: ARG002 - the protocol's
        return np.float32(0)

    def take(self, place: int) -> None:
        """Changes nothing."""


def _first(places: Iterable[int], allowed: _Allowed) -> int | None:
    return next((place for place in places if allowed(place)), None)


class _Unlike:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): (1 - d) x relevance - d x likeness to those chosen.

    Likeness is the greatest cosine to one that was chosen, by any interest; at least 0, so that the scores of an
    interest fall from place to place. A relevance below 0 is not made better by (1 - d): what diversity does to a score
    is at most 0.

    Candidates beyond the first tier come by relevance: they are too many to be held against each other.
    """

    def __init__(self, pool: _Pool, diversity: float) -> None:
        first = pool.tier == 0
        self._first = np.flatnonzero(first)  # places, (f,); they are numbered anew from here on
        self._numbers = np.where(first, np.cumsum(first) - 1, -1)  # of all places, (n,)
        self._orders = [self._numbers[order[first[order]]] for order in pool.orders]
        self._behind = [iter(order[~first[order]].tolist()) for order in pool.orders]
        self._vectors = pool.vectors()
        self._weight = np.float32(diversity)
        self._open = pool.relevance[first]  # -inf where a candidate is closed, (f,)
        self._merit = np.maximum(self._open, 0)
        self._likeness = np.zeros(len(self._open), np.float32)

    def next(self, interest: int, allowed: _Allowed) -> int | None:
        order = self._orders[interest]
        scores = (self._open - self._weight * (self._merit + self._likeness))[order]
        while len(order) and (most := scores.max()) > -inf:
            best = int((scores >= most - _FP32_NOISE).argmax())  # of equal ones the first: the most relevant
            place = int(self._first[order[best]])
            if allowed(place):
                return place
            scores[best] = self._open[order[best]] = -inf
        return _first(self._behind[interest], allowed)

    def part(self, place: int) -> np.float32:
        number = self._numbers[place]
        if number < 0:
            return np.float32(0)
        part: np.float32 = 0 - self._weight * (self._merit[number] + self._likeness[number])
        return part

    def take(self, place: int) -> None:
        if (number := self._numbers[place]) >= 0:
            np.maximum(self._likeness, cosines(self._vectors, self._vectors[number]), out=self._likeness)


class _Draws:
    """Places that are given to chance, and who is drawn for them."""

    def __init__(self, pool: _Pool, options: Options, limit: int, rows_placed: Collection[int]) -> None:
        random = np.random.default_rng(options.explore_seed % 2**64)  # a seed on the wire may be below 0
        count = min(floor(options.explore_fraction * limit + random.random()), limit)
        self._places = frozenset(random.choice(limit, count, replace=False).tolist())
        placed = np.fromiter(rows_placed, np.int64)
        others = [order[~np.isin(pool.rows[order], placed)] for order in pool.orders]
        drawn = [random.permutation(order) for order in others]
        # Of the first tier as long as it has somebody: those behind it are here for want of others.
        self._left = [iter(order[np.argsort(pool.tier[order], kind="stable")].tolist()) for order in drawn]

    def next(self, position: int, interest: int, allowed: _Allowed) -> int | None:
        """Who is drawn for a place of the answer; None where that place goes by score, or nobody is left."""
        return _first(self._left[interest], allowed) if position in self._places else None
