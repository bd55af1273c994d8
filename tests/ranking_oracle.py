"""The order of answers, slowly: every place looks at every candidate anew."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from server.columns import UNDATED

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from server.ranking import Candidates, Options


class Chosen(NamedTuple):
    interest: int
    place: int
    score: float


def turn(weights: Sequence[float], had: Sequence[int], waiting: Collection[int]) -> int:
    """Sainte-Laguë's highest average among those that wait; of equal ones the lowest number."""
    return max(sorted(waiting), key=lambda n: Fraction(weights[n]) / (2 * had[n] + 1))


def relevance(candidates: Candidates, place: int, options: Options) -> float:
    parts = (candidates.similarity, candidates.negative, candidates.prior)
    fresh, date = 1.0, int(candidates.microseconds[place])
    if options.half_life_s is not None and date != UNDATED:
        fresh = 2 ** (-max(options.as_of_s - date / 1e6, 0) / options.half_life_s)
    return sum(float(part[place]) for part in parts) - options.recency_weight * (1 - fresh)


class Answer:
    """An answer that grows place by place."""

    def __init__(
        self,
        lists: Sequence[Candidates],
        options: Options,
        ties: Sequence[Sequence[int]],
        stories_taken: Collection[int],
    ) -> None:
        self.lists, self.options, self.ties, self.stories_taken = lists, options, ties, stories_taken
        self.chosen: list[Chosen] = []

    def score(self, interest: int, place: int) -> float:
        found = relevance(self.lists[interest], place, self.options)
        if self.tier(interest, place):
            return found
        others = [other for other in self.chosen if not self.tier(other.interest, other.place)]
        likeness = max((self._cosine(interest, place, other) for other in others), default=0.0)
        return found - self.options.diversity * (max(found, 0) + max(likeness, 0))

    def tier(self, interest: int, place: int) -> int:
        tiers = self.lists[interest].tier
        return 0 if tiers is None else int(tiers[place])

    def _cosine(self, interest: int, place: int, other: Chosen) -> float:
        one, two = self.lists[interest].vectors, self.lists[other.interest].vectors
        assert one is not None
        assert two is not None
        return float(sum(float(a) * float(b) for a, b in zip(one[place], two[other.place], strict=True)))

    def allows(self, interest: int, place: int) -> bool:
        ours = self.lists[interest]
        before = [(self.lists[c.interest], c.place) for c in self.chosen]
        of_story = sum(1 for theirs, p in before if theirs.stories[p] == ours.stories[place])
        of_cluster = sum(1 for theirs, p in before if theirs.clusters[p] == ours.clusters[place])
        least = self.options.min_score
        return (
            ours.stories[place] not in self.stories_taken
            and all(theirs.rows[p] != ours.rows[place] for theirs, p in before)
            and (self.options.max_per_story == 0 or of_story < self.options.max_per_story)
            and (self.options.max_per_cluster == 0 or of_cluster < self.options.max_per_cluster)
            and (least is None or relevance(ours, place, self.options) >= least)
        )

    def best(self, interest: int) -> int | None:
        ours = self.lists[interest]
        allowed = [place for place in range(len(ours)) if self.allows(interest, place)]

        def worth(place: int) -> tuple[int, float, float, int]:
            score, merit = self.score(interest, place), relevance(ours, place, self.options)
            return -self.tier(interest, place), score, merit, -self.ties[interest][place]

        return max(allowed, key=worth, default=None)

    def fill(self, weights: Sequence[float], limit: int) -> list[Chosen]:
        had, waiting = [0] * len(weights), set(range(len(weights)))
        while waiting and len(self.chosen) < limit:
            interest = turn(weights, had, waiting)
            place = self.best(interest)
            if place is None:
                waiting.remove(interest)
                continue
            had[interest] += 1
            self.chosen.append(Chosen(interest, place, self.score(interest, place)))
        return self.chosen
