"""Whether an answer is the one that was asked for, place by place, by the book.

Each place is held against all articles that may still be given it. Scores that differ by less than `TOLERANCE` may come
in either order, since one side counts in fp32; articles that are the same but for their ids come in the order of those.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.index_model import Row, State, dot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from tests.index_model import Vector

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Question:
    """What a ranked call asks."""

    vector: Vector
    limit: int
    hidden: Collection[Row] = ()
    """What it is asked about."""
    excluded: Collection[str] = ()
    allowed: Callable[[State, Row], bool] = lambda _state, _row: True
    max_per_story: int = 1
    max_per_cluster: int = 0
    diversity: float = 0.0
    half_life_s: float | None = None
    recency_weight: float = 0.2
    as_of: datetime | None = None
    priors: Mapping[str, float] = field(default_factory=dict)
    min_score: float | None = None
    against: Sequence[tuple[float, Vector]] = ()
    """Weights, 0 to 1, and vectors of negative seeds."""
    stories_taken: Collection[Row] = ()
    exact: bool = True
    """False: not all lists are visited, and some of what is there may be missed."""


@dataclass(frozen=True)
class Parts:
    """What makes a score, diversity aside."""

    similarity: float
    negative: float
    freshness: float
    recency: float
    prior: float

    @property
    def relevance(self) -> float:
        return self.similarity + self.negative + self.recency + self.prior


def parts(question: Question, row: Row) -> Parts:
    likeness = [weight * dot(row.vector, vector) for weight, vector in question.against]
    freshness, date = 1.0, row.article.published_at
    if question.half_life_s is not None and question.as_of is not None and date is not None:
        age = max((question.as_of - date).total_seconds(), 0)
        freshness = 2 ** (-age / question.half_life_s)
    return Parts(
        similarity=dot(row.vector, question.vector),
        negative=-max([0.0, *likeness]),
        freshness=freshness,
        recency=0.0 if question.half_life_s is None else question.recency_weight * (freshness - 1),
        prior=question.priors.get(row.article.id, 0.0),
    )


class Answer:
    """The places given so far, and who may be given the next."""

    def __init__(self, state: State, question: Question) -> None:
        self.question = question
        rows = [row for row in state.alive.values() if row not in question.hidden]
        rows = [row for row in rows if row.article.id not in question.excluded and question.allowed(state, row)]
        found = {row: parts(question, row) for row in rows}
        least = -float("inf") if question.min_score is None else question.min_score
        self.parts = {row: of for row, of in found.items() if of.relevance >= least - TOLERANCE}
        self.sure = {row for row, of in found.items() if of.relevance >= least + TOLERANCE}
        self.by_id = {row.article.id: row for row in self.parts}
        self.chosen: list[Row] = []
        self._likeness = dict.fromkeys(self.parts, 0.0)
        self._stories = Counter[Row]()
        self._clusters = Counter[int]()

    def open(self, row: Row) -> bool:
        question = self.question
        return (
            row not in self.chosen
            and row.story not in question.stories_taken
            and (not question.max_per_story or self._stories[row.story] < question.max_per_story)
            and (not question.max_per_cluster or self._clusters[row.cluster] < question.max_per_cluster)
        )

    def diversity(self, row: Row) -> float:
        """Maximal marginal relevance: (1 - d) relevance - d likeness, a relevance below 0 left as it is."""
        return -self.question.diversity * (max(self.parts[row].relevance, 0) + self._likeness[row])

    def score(self, row: Row) -> float:
        return self.parts[row].relevance + self.diversity(row)

    def candidates(self) -> list[Row]:
        return [row for row in self.parts if self.open(row)]

    def take(self, row: Row) -> None:
        self.chosen.append(row)
        self._stories[row.story] += 1
        self._clusters[row.cluster] += 1
        if self.question.diversity:
            self._likeness = {o: max(old, dot(o.vector, row.vector)) for o, old in self._likeness.items()}


def best(state: State, question: Question) -> list[float]:
    """The scores of the answer."""
    answer, scores = Answer(state, question), list[float]()
    while len(scores) < question.limit and (candidates := [row for row in answer.candidates() if row in answer.sure]):
        row = min(candidates, key=lambda row: (-answer.score(row), row.article.id))
        scores.append(answer.score(row))
        answer.take(row)
    return scores


def check(state: State, question: Question, hits: Sequence[Any]) -> None:
    """Holds hits against what they should be."""
    answer = Answer(state, question)
    assert len(hits) <= question.limit
    for hit in hits:
        row = answer.by_id.get(hit.article.id)
        assert row is not None, f"{hit.article.id!r} is not there, or not allowed"
        assert answer.open(row), f"{hit.article.id!r} is answered twice, or more of its story or cluster than allowed"
        check_score(answer, state, row, hit)
        if question.exact:
            check_place(answer, row)
        answer.take(row)
    scores = [hit.score for hit in hits]
    assert question.diversity or scores == sorted(scores, reverse=True)
    for one, other in pairwise(hits):
        same = one.score == other.score and one.explanation.similarity == other.explanation.similarity
        assert question.diversity or not same or one.article.id < other.article.id, "equal scores are ordered by id"
    check_enough(answer, state, scores)


def check_score(answer: Answer, state: State, row: Row, hit: Any) -> None:
    """A hit's score, and the parts that explain it, where the call asked for them."""
    of, why = answer.parts[row], hit.explanation
    assert abs(hit.score - answer.score(row)) <= TOLERANCE, f"{row.article.id!r}: {hit.score} for {answer.score(row)}"
    if not hit.HasField("explanation"):
        return
    pairs = [
        (why.similarity, of.similarity),
        (why.negative, of.negative),
        (why.recency, of.recency),
        (why.prior, of.prior),
        (why.diversity, answer.diversity(row)),
        (why.freshness, of.freshness),
        (why.similarity + why.negative + why.recency + why.prior + why.diversity, hit.score),
    ]
    for found, true in pairs:
        assert abs(found - true) <= TOLERANCE, f"{row.article.id!r}: {pairs}"
    assert (why.cluster_id, why.cluster_label) == (state.cluster_id(row), state.basis.labels[row.cluster])


def check_place(answer: Answer, row: Row) -> None:
    """Nobody who may have the place has a better score, and nobody the same article under a lower id."""
    score = answer.score(row)
    for other in answer.candidates():
        if other in answer.sure:
            assert answer.score(other) <= score + TOLERANCE, f"{other.article.id!r} is better than {row.article.id!r}"
        if replace(other.article, id="") == replace(row.article, id="") and answer.parts[other] == answer.parts[row]:
            assert row.article.id <= other.article.id, f"{other.article.id!r} comes before {row.article.id!r}"


def check_enough(answer: Answer, state: State, scores: list[float]) -> None:
    """As many as were asked for, or as are allowed; where lists were left out, none worse than those visited hold."""
    question = answer.question
    if len(scores) < question.limit:
        missed = [row.article.id for row in answer.candidates() if row in answer.sure]
        assert missed == [], f"{len(scores)} of {question.limit} are answered, and {missed} could be"
    if question.exact or question.max_per_cluster or question.diversity:
        return
    visited = {number for _, number in state.basis.nearest(question.vector)[: state.basis.probes]}
    few = replace(question, allowed=lambda state, row: row.cluster in visited and question.allowed(state, row))
    for found, least in zip(scores, best(state, few), strict=False):
        assert found >= least - TOLERANCE, "a list that should be visited was not"
