"""Ranked calls: seeds in, rows in their order out. Everything here runs on a search thread, over one view.

A call reads on, by the same steps for each of its pages, until the page is full. One that sorts by more than similarity
puts the nearest `POOL` articles of every interest in order. What lies farther away comes behind them, tier after tier,
where those do not fill the page, so that the order of one page does not depend on the next.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from coldframe.recipe import unit
from coldframe.v1 import ranking_pb2
from server import filters, pages
from server.interests import Interest, group, negative_part, negative_weights, share_places
from server.pages import FIRST, Place
from server.ranking import Candidates, Options, Ranked, in_order, merge
from server.tiers import Priors, Tiers
from server.view import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from server.filters import Condition
    from server.seeds import Point
    from server.view import Allowed, Floats, Rows, View

POOL = 1_000
"""Candidates of an interest that are ranked by more than similarity before all others. So many can be paged through."""
MOST_PAGED = 10_000
_SPARE = 5
_WIDEN = 4
_BLOCK = 2_048
_FP32_NOISE = 1e-5
_ALONE = Interest([0], 0, 1.0)
_NOWHERE: tuple[Rows, Floats] = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class Ask:
    """What a ranked call asks for, beside its seeds."""

    limit: int
    options: Options
    probes: int
    """Lists that are visited."""
    margin: float | None = None
    """Of `ClusterIndex.search`."""
    condition: Condition | None = None
    excluded: Sequence[str] = ()
    priors: Mapping[str, float] = field(default_factory=dict)
    popularity: tuple[str, float] | None = None
    """An attribute that holds a number, and the weight of its logarithm."""
    place: Place = FIRST

    @property
    def fetch(self) -> int:
        """How many articles are looked for at first."""
        return (self.place.first or self.limit) + _SPARE

    @property
    def pool(self) -> int:
        """How many are ranked by more than similarity: where some are explored, as many again as have a place."""
        return max(POOL, 2 * self.limit) if self.options.explore_fraction > 0 else POOL

    @property
    def reranks(self) -> bool:
        """Whether more than similarity decides."""
        return bool(self.priors) or self.popularity is not None or self.options.reranks


@dataclass(frozen=True, slots=True)
class Expansion:
    """Moves a seed text towards the articles nearest to it."""

    weight: float
    """Share of the articles in the mixture, 0 to 1."""
    articles: int
    max_age_s: float | None
    """Only articles younger than this; None: of any age."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How seeds become interests."""

    most: int
    similarity: float | None
    """Seeds at least so similar are one interest; None: as two articles of one cluster usually are."""
    expansion: Expansion | None


@dataclass(frozen=True)
class Taste:
    """What is known of a reader: seeds as points, None where the index does not hold one, and their weights."""

    points: Sequence[Point | None]
    weights: Sequence[float]
    shape: Shape

    def numbers(self, sign: int) -> list[int]:
        """The seeds that are there whose weights have a sign."""
        pairs = enumerate(zip(self.points, self.weights, strict=True))
        return [n for n, (point, weight) in pairs if point is not None and sign * weight > 0]

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """Of some seeds, (n, dim)."""
        return np.stack([point.vector for n in numbers if (point := self.points[n]) is not None])


@dataclass(frozen=True)
class Found:
    """One page: rows, best first, and why they stand where they do."""

    rows: Rows
    ranked: Ranked
    interests: Sequence[Interest]
    missing: Sequence[str]
    """Ids that the request excludes or filters by, and that are not there."""
    more: bool
    """Whether another page follows."""
    search_ms: float
    end: int = 0
    """How many hits there are up to its last one, from the first page on."""
    late: bool = False
    """Whether that one is among those that a deeper search found above others, and come after them."""


@dataclass(frozen=True)
class _Hunt:
    """What is looked for: one vector an interest, and what speaks against an article."""

    interests: Sequence[Interest]
    vectors: Floats
    """(interests, dim)"""
    against: tuple[Floats, NDArray[np.float64]] | None = None
    """Negative seeds, (n, dim), and how much each counts, (n,)."""
    hidden: frozenset[int] = frozenset()
    stories_taken: frozenset[int] = frozenset()


class _Descent:
    """The articles nearest to a vector, best first, as far down as they are needed.

    A deeper search visits more lists, and may find what a shallower one missed. What would stand above what was there
    comes after all others, once there are no more: pages go down by the same steps, and so none has an article that
    another one had, and each is on one.
    """

    def __init__(self, view: View, vector: Floats, ask: Ask, allowed: Allowed, least: float | None = None) -> None:
        self._search = partial(view.search, vector, probes=ask.probes, allowed=allowed, margin=ask.margin)
        self.rows, self.scores = _NOWHERE
        self._least = -np.inf if least is None else least
        self.whole = False
        """Whether there are no more, or those that follow score less than the least."""
        self.late = 0
        """So many at the end were passed over, and are in an order of their own."""
        self.search_ms = 0.0

    @property
    def ordered(self) -> int:
        """How many are in order, from the first on."""
        return len(self.rows) - self.late

    def deepen(self, fetch: int) -> None:
        """Looks for so many in all."""
        if self.whole:
            return
        begun = time.perf_counter()
        rows, scores = self._search(limit=fetch)
        self.search_ms += 1e3 * (time.perf_counter() - begun)
        self.whole = len(rows) < fetch or bool(scores[-1] < self._least)
        if len(self.rows):
            last = np.flatnonzero(rows == self.rows[-1])
            below = int(last[0]) + 1 if len(last) else np.count_nonzero(scores >= self.scores[-1])
            late = np.flatnonzero(~np.isin(rows[:below], self.rows)) if self.whole else np.empty(0, np.int64)
            places, self.late = np.append(np.arange(below, len(rows)), late), len(late)
            rows, scores = np.append(self.rows, rows[places]), np.append(self.scores, scores[places])
        self.rows, self.scores = rows, scores


def search(view: View, point: Point, ask: Ask) -> Found:
    """The articles nearest to a point, without the one that it is."""
    hidden = frozenset() if point.row is None else frozenset({point.row})
    return _page(view, _Hunt([_ALONE], point.vector[None], hidden=hidden), ask)


def neighbours(view: View, vector: Floats, hidden: frozenset[int], limit: int) -> Found:
    """The articles nearest to a vector, (dim,), without some rows: every one of a story, in the order of similarity."""
    generation = view.base.generation
    ask = Ask(limit, Options(max_per_story=0), generation.probes, generation.margin)
    return _page(view, _Hunt([_ALONE], vector[None], hidden=hidden), ask)


def recommend(view: View, taste: Taste, ask: Ask) -> Found:
    """What a reader may like: each interest's own articles, the places shared by weight."""
    liked, disliked = taste.numbers(1), taste.numbers(-1)
    if not liked:
        return _nothing(view, ask)
    vectors = _moved(view, taste, liked, ask)
    weights = np.array([taste.weights[n] for n in liked])
    similarity = typical_similarity(view) if taste.shape.similarity is None else taste.shape.similarity
    grouped = group(vectors, weights, similarity=similarity, most=taste.shape.most)
    interests = [replace(g, seeds=[liked[n] for n in g.seeds], medoid=liked[g.medoid]) for g in grouped]
    read = frozenset(point.row for point in taste.points if point is not None and point.row is not None)
    stories = view.stories(np.array(sorted(read), np.int64)).tolist()
    hunt = _Hunt(
        interests,
        vectors[[g.medoid for g in grouped]],
        against=_against(taste, liked, disliked),
        hidden=read,
        stories_taken=frozenset(stories),
    )
    return _page(view, hunt, ask)


def _against(taste: Taste, liked: Sequence[int], disliked: Sequence[int]) -> tuple[Floats, NDArray[np.float64]] | None:
    if not disliked:
        return None
    return taste.vectors(disliked), negative_weights(np.array([taste.weights[n] for n in (*liked, *disliked)]))


def typical_similarity(view: View) -> float:
    """The cosine that two articles of one cluster usually have: the square of theirs to the centroid.

    Two unit vectors that deviate from a centroid independently have the product of their cosines to it.
    """
    clusters = view.base.generation.clusters
    sizes = np.array([cluster.size for cluster in clusters], np.float64)
    near = 1.0 - np.array([cluster.residuals.mean for cluster in clusters])
    return float((sizes * near**2).sum() / sizes.sum())


def _moved(view: View, taste: Taste, numbers: Sequence[int], ask: Ask) -> Floats:
    """Vectors of some seeds, (n, dim), texts moved towards the articles nearest to them where that is asked for."""
    vectors, expansion = taste.vectors(numbers), taste.shape.expansion
    if expansion is None:
        return vectors
    condition = None
    if expansion.max_age_s is not None:
        young = ranking_pb2.Filter()
        young.published.since.seconds = max(int(ask.options.as_of_s - expansion.max_age_s), filters.FIRST_SECOND)
        condition = filters.compile(young, {})
    allowed = view.allow(condition)
    for place, n in enumerate(numbers):
        point = taste.points[n]
        if point is None or not point.text:
            continue
        rows, _ = view.search(vectors[place], expansion.articles, ask.probes, allowed, ask.margin)
        if len(rows):
            mean = view.vectors(rows).mean(axis=0)
            vectors[place] = unit((1 - expansion.weight) * vectors[place] + expansion.weight * mean)
    return vectors


def _nothing(view: View, ask: Ask) -> Found:
    """What is found for a reader of whom nothing is known after all."""
    rows, scores = _NOWHERE
    return Found(rows, Ranked.plain(scores, []), [], _split(view, ask)[1], False, 0.0)


def _split(view: View, ask: Ask) -> tuple[list[int], list[str]]:
    """Rows that are excluded, and the ids that a request excludes or filters by and that are not there."""
    excluded, missing = rows_of(view, ask.excluded)
    return excluded, missing + (ask.condition.missing if ask.condition else [])


def _page(view: View, hunt: _Hunt, ask: Ask, reach: int = 0) -> Found:
    """reach: at least so many hits are put in order, which the page may lie farther down than it did."""
    excluded, missing = _split(view, ask)
    allowed = view.allow(ask.condition, [*excluded, *hunt.hidden])
    reranks = _reranks(hunt, ask)
    least = None if reranks else ask.options.min_score
    descents = [_Descent(view, vector, ask, allowed, least) for vector in hunt.vectors]
    if not reranks and len(hunt.interests) == 1 and ask.options.min_score is None:
        return replace(_nearest(view, hunt, ask, descents[0]), missing=missing)
    priors = Priors.of(view, ask.priors, allowed, hunt.vectors) if ask.priors else None
    levels = [(descent, Tiers(view, priors, interest)) for interest, descent in enumerate(descents)]
    most = POOL if reranks else MOST_PAGED
    depth = min(max(ask.place.start + ask.limit, reach), most)
    # One more than the page shows whether there is another; exploration shares out exactly the places there are.
    places = min(depth + (depth < most and ask.options.explore_fraction == 0), _room(view, ask))
    ranked = _fill(view, hunt, ask, levels, places=places, fetch=ask.pool if reranks else ask.fetch)
    rows = np.array([levels[i][1].rows[n] for i, n in zip(ranked.interest, ranked.place, strict=True)], np.int64)
    # Scores may rise where a tier begins, unless all that it brings lies below the one before.
    risen = [(tiers.tier > 0) & (reranks or descent.late > 0) for descent, tiers in levels]
    begin = _begin(view, ask, rows, ranked, falling=len(levels) == 1 and not risen[0].any())
    end = min(begin + ask.limit, most)
    if end > depth and len(ranked) > depth:
        return _page(view, hunt, ask, 2 * depth)
    more = len(ranked) > end > begin and end < most
    search_ms, page = sum(found.search_ms for found in descents), ranked.page(begin, end)
    late = len(page) > 0 and bool(risen[int(page.interest[-1])][page.place[-1]])
    return Found(rows[begin:end], page, hunt.interests, missing, more, search_ms, begin + len(page), late)


def _fill(
    view: View, hunt: _Hunt, ask: Ask, levels: Sequence[tuple[_Descent, Tiers]], *, places: int, fetch: int
) -> Ranked:
    """Puts so many places in order, or as many as there are: every interest is given tiers until that is done."""
    weights = [interest.weight for interest in hunt.interests]
    while True:
        for descent, tiers in levels:
            descent.deepen(fetch)
            tiers.add(descent.rows, descent.scores, whole=descent.whole, most=fetch)
        candidates = [_candidates(view, tiers, ask, hunt) for _, tiers in levels]
        whole = [_whole(tiers, ask) for _, tiers in levels]
        ranked = merge(
            candidates,
            weights,
            ask.options,
            places,
            # Where similarity alone decides, candidates are in the order of ids already where they are equal.
            ties=[view.order_of_ids(found.rows) for found in candidates] if _reranks(hunt, ask) else None,
            stories_taken=hunt.stories_taken,
        )
        if all(whole) or (len(ranked) >= places and _in_turn(ranked, weights, whole)):
            return ranked
        fetch *= _WIDEN


def _reranks(hunt: _Hunt, ask: Ask) -> bool:
    return ask.reranks or hunt.against is not None


def _room(view: View, ask: Ask) -> int:
    """How many hits the caps let through at most: to look for more would read the whole index."""
    cap = ask.options.max_per_cluster
    return cap * len(view.base.generation.clusters) if cap else MOST_PAGED + 1


def _begin(view: View, ask: Ask, rows: Rows, ranked: Ranked, *, falling: bool) -> int:
    """How many hits come before the page. falling: whether scores do, from the first to the last."""
    start, last = ask.place.start, ask.place.last
    if last is None:
        return start
    place = pages.standing(view, last, rows, ranked.score)
    if place is not None:
        return place + 1
    return pages.passed(view, last, rows, ranked.score, start) if falling else start


def _nearest(view: View, hunt: _Hunt, ask: Ask, found: _Descent) -> Found:
    """The page of most calls: one list, which is in order as it comes."""
    fetch, room, last = ask.fetch, _room(view, ask), ask.place.last
    late = last is not None and last.score is None
    most = min(ask.place.start + ask.limit, MOST_PAGED) if last is None else MOST_PAGED
    while True:
        found.deepen(fetch)
        clusters = view.clusters(found.rows) if ask.options.max_per_cluster else None
        # One more than the page shows whether there is another.
        places = in_order(view.stories(found.rows), clusters, ask.options, most + 1, hunt.stories_taken)
        begin = _passed(view, ask, found, places)
        depth = min(begin + ask.limit, most)
        if len(places) >= min((most if late else depth) + 1, room) or found.whole:
            break
        fetch *= _WIDEN
    page = places[begin:depth]
    more = len(places) > depth > begin and depth < MOST_PAGED
    ranked = Ranked.plain(found.scores[page], page)
    late = bool(page) and page[-1] >= found.ordered
    return Found(found.rows[page], ranked, hunt.interests, [], more, found.search_ms, begin + len(page), late)


def _whole(found: Tiers, ask: Ask) -> bool:
    """Whether these are all that an interest can give: there are no more, or those that follow score too little.

    Nothing but popularity makes a score more than similarity + prior.
    """
    least, most = ask.options.min_score, found.below + (ask.popularity[1] if ask.popularity else 0.0)
    return most == -inf or (least is not None and most < least - _FP32_NOISE)


def _passed(view: View, ask: Ask, found: _Descent, places: Sequence[int]) -> int:
    """How many of the places of a list, ascending, come before the page."""
    start, last = ask.place.start, ask.place.last
    if last is None:
        return start
    place = pages.standing(view, last, found.rows, found.scores)
    if place is not None:
        return bisect_right(places, place)
    if last.score is None:
        return start
    count = pages.passed(view, last, found.rows[: found.ordered], found.scores[: found.ordered], 0)
    return bisect_left(places, count)


def _in_turn(ranked: Ranked, weights: Sequence[float], whole: Sequence[bool]) -> bool:
    """Whether each interest had its places, or no more to give: none was passed over that has more in the index."""
    if len(weights) == 1:
        return True
    had = np.bincount(ranked.interest, minlength=len(weights)).tolist()
    could = [places if done else len(ranked) for places, done in zip(had, whole, strict=True)]
    return bool(np.array_equal(share_places(weights, could, len(ranked)), ranked.interest))


def _candidates(view: View, found: Tiers, ask: Ask, hunt: _Hunt) -> Candidates:
    rows, prior = found.rows, found.prior
    if ask.popularity is not None:
        key, weight = ask.popularity
        prior = prior + (weight * view.popularity(rows, key, ask.place.largest)).astype(np.float32)
    first = view.vectors(rows[found.tier == 0]) if ask.options.diversity > 0 else None
    return Candidates(
        rows=rows,
        similarity=found.similarity,
        negative=_negative(view, rows, hunt, first),
        prior=prior,
        microseconds=view.microseconds(rows),
        stories=view.stories(rows),
        clusters=view.clusters(rows),
        vectors=first,
        tier=found.tier,
    )


def _negative(view: View, rows: Rows, hunt: _Hunt, first: Floats | None) -> Floats:
    """What negative seeds take from each, (n,). first: vectors of the first ones, where they are at hand."""
    if hunt.against is None:
        return np.zeros(len(rows), np.float32)
    known = np.empty((0, hunt.vectors.shape[1]), np.float32) if first is None else first
    blocks = range(len(known), len(rows), _BLOCK)  # of which no call holds more vectors at once
    others = [negative_part(view.vectors(rows[n : n + _BLOCK]), *hunt.against) for n in blocks]
    return np.concatenate([negative_part(known, *hunt.against), *others])
