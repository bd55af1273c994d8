"""What the state machine asks: drawn by Hypothesis, as the wire says it and as the model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from coldframe.v1 import ranking_pb2, types_pb2
from tests.ranking_model import Question

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

    from tests.index_model import Article, Row, State, Vector

DATES = (
    None,
    datetime(2025, 6, 1, tzinfo=UTC),
    datetime(2026, 1, 9, 8, tzinfo=UTC),
    datetime(2026, 1, 10, 17, 35, tzinfo=UTC),
    datetime(2026, 1, 12, 12, 0, 0, 250_000, tzinfo=UTC),
    datetime(2026, 3, 20, tzinfo=UTC),
)
ATTRIBUTES: tuple[dict[str, str], ...] = (
    {},
    {"desk": "a"},
    {"desk": "b", "views": "12"},
    {"views": "3.5"},
    {"views": "many", "Größe": "groß"},
    {"desk": "", "Author": "Ö"},
)
NUMBERS = {"12": 12.0, "3.5": 3.5}
HALF_LIVES_S = (3_600, 86_400, 30 * 86_400)
Filter = tuple[Any, ...]


# --- filters ---------------------------------------------------------------------------------------------------------


def filters(cluster_ids: Sequence[str]) -> SearchStrategy[Filter]:
    """Trees of conditions: ("in", key, values), ("range", key, min, max), ("exists", key, wanted), ..."""
    key = st.sampled_from(["desk", "views", "Author", "nobody has it"])
    leaves = st.one_of(
        st.tuples(st.just("in"), key, st.lists(st.sampled_from(["a", "b", "", "12", "Ö"]), min_size=1, max_size=3)),
        st.tuples(st.just("range"), key, st.sampled_from([None, 0.0, 3.5, 12.0]), st.sampled_from([None, 12.0, 99.0])),
        st.tuples(st.just("exists"), key, st.booleans()),
        st.tuples(st.just("published"), st.sampled_from(DATES[:4]), st.sampled_from([None, *DATES[4:]])),
        st.tuples(st.just("cluster"), st.lists(st.sampled_from([*cluster_ids, "c-unknown"]), min_size=1, max_size=4)),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.just("all_of"), st.lists(inner, max_size=3)),
            st.tuples(st.just("any_of"), st.lists(inner, max_size=3)),
            st.tuples(st.just("not"), inner),
        ),
        max_leaves=4,
    )


def written(condition: Filter) -> ranking_pb2.Filter:
    """As the wire says it."""
    kind, *about = condition
    message = ranking_pb2.Filter()
    if kind in {"all_of", "any_of"}:
        getattr(message, kind).SetInParent()
        getattr(message, kind).filters.extend(written(part) for part in about[0])
    elif kind == "not":
        getattr(message, "not").CopyFrom(written(about[0]))
    elif kind == "cluster":
        message.cluster.ids.extend(about[0])
    elif kind == "published":
        message.published.SetInParent()
        for name, date in zip(("since", "before"), about, strict=True):
            if date is not None:
                getattr(message.published, name).FromDatetime(date)
    else:
        _write_attribute(message.attribute, kind, *about)
    return message


def _write_attribute(message: ranking_pb2.AttributeFilter, kind: str, key: str, *about: Any) -> None:
    message.key = key
    if kind == "in":
        getattr(message, "in").values.extend(about[0])
    elif kind == "exists":
        message.exists = about[0]
    else:
        message.range.SetInParent()
        for name, end in zip(("min", "max"), about, strict=True):
            if end is not None:
                setattr(message.range, name, end)


def holds(condition: Filter, state: State, row: Row) -> bool:
    """Whether an article matches."""
    kind, *about = condition
    if kind == "all_of":
        return all(holds(part, state, row) for part in about[0])
    if kind == "any_of":
        return any(holds(part, state, row) for part in about[0])
    if kind == "not":
        return not holds(about[0], state, row)
    if kind == "cluster":
        return state.cluster_id(row) in about[0]
    if kind == "published":
        date, (since, before) = row.article.published_at, about
        return date is not None and (since is None or date >= since) and (before is None or date < before)
    return _attribute_holds(kind, row.article.attributes.get(about[0]), *about[1:])


def _attribute_holds(kind: str, value: str | None, *about: Any) -> bool:
    if kind == "exists":
        return bool((value is not None) == about[0])
    if kind == "in":
        return bool(value in about[0])
    number, (least, most) = NUMBERS.get(value or ""), about
    return number is not None and bool(least is None or number >= least) and bool(most is None or number <= most)


def unknown_clusters(condition: Filter, known: Sequence[str]) -> list[str]:
    """Ids that a filter names and no cluster has, as they first appear."""
    kind, *about = condition
    if kind in {"all_of", "any_of"}:
        return list(dict.fromkeys(name for part in about[0] for name in unknown_clusters(part, known)))
    if kind == "not":
        return unknown_clusters(about[0], known)
    return [name for name in dict.fromkeys(about[0]) if name not in known] if kind == "cluster" else []


# --- ranking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """What a ranked call asks beside its seeds. None: left out of the request."""

    limit: int
    exact: bool
    excluded: Sequence[str]
    condition: Filter | None
    max_per_story: int | None
    max_per_cluster: int
    diversity: float
    half_life_s: int | None
    recency_weight: float | None
    as_of: datetime
    priors: Mapping[str, float]
    min_score: float | None

    @property
    def reranks(self) -> bool:
        return bool(self.priors) or self.diversity > 0 or self.half_life_s is not None

    def written(self) -> ranking_pb2.Ranking:
        message = ranking_pb2.Ranking(exclude_ids=self.excluded, diversity=self.diversity, priors=self.priors)
        message.effort = types_pb2.EFFORT_EXACT if self.exact else types_pb2.EFFORT_BALANCED
        message.read_mask.paths.extend(["article", "score", "explanation"])
        if self.condition is not None:
            message.filter.CopyFrom(written(self.condition))
        if self.half_life_s is not None:
            message.half_life.FromSeconds(self.half_life_s)
            message.as_of.FromDatetime(self.as_of)
        if self.max_per_cluster:
            message.max_per_cluster = self.max_per_cluster
        for name in ("max_per_story", "recency_weight", "min_score"):
            if getattr(self, name) is not None:
                setattr(message, name, getattr(self, name))
        return message

    def question(self, state: State, vector: Vector, **about: Any) -> Question:
        """As the model reads it."""
        condition = self.condition
        return Question(
            vector=vector,
            limit=self.limit,
            excluded=self.excluded,
            allowed=lambda state, row: condition is None or holds(condition, state, row),
            max_per_story=1 if self.max_per_story is None else self.max_per_story,
            max_per_cluster=self.max_per_cluster,
            diversity=self.diversity,
            half_life_s=self.half_life_s,
            recency_weight=0.2 if self.recency_weight is None else self.recency_weight,
            as_of=self.as_of,
            priors=self.priors,
            min_score=self.min_score,
            exact=self.exact or self.reranks or state.basis.probes >= len(state.basis.centroids),
            **about,
        )

    def missing(self, state: State) -> list[str]:
        """Ids that it names and that are not there."""
        unknown = [name for name in dict.fromkeys(self.excluded) if name not in state.alive]
        return unknown + ([] if self.condition is None else unknown_clusters(self.condition, state.basis.cluster_ids))


def rankings(ids: SearchStrategy[str], cluster_ids: Sequence[str]) -> SearchStrategy[Ranking]:
    """Most of a question is left out, most of the time. Weights and priors are exact in fp32."""
    seldom = st.sampled_from([False, False, True])

    def maybe(default: Any, strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
        return seldom.flatmap(lambda given: strategy if given else st.just(default))

    eighths = st.integers(-4, 4).map(lambda n: n / 8)
    return st.builds(
        Ranking,
        limit=st.sampled_from([1, 3, 10, 25, 100]),
        exact=st.booleans(),
        excluded=maybe([], st.lists(ids, max_size=6)),
        condition=maybe(None, filters(cluster_ids)),
        max_per_story=st.sampled_from([None, 0, 1, 2]),
        max_per_cluster=maybe(0, st.integers(1, 3)),
        diversity=maybe(0.0, st.sampled_from([0.125, 0.5, 0.75, 1.0])),
        half_life_s=maybe(None, st.sampled_from(HALF_LIVES_S)),
        recency_weight=maybe(None, st.sampled_from([0.0, 0.5, 2.0])),
        as_of=st.sampled_from(DATES[2:]),
        priors=maybe({}, st.dictionaries(ids, eighths, max_size=4)),
        min_score=maybe(None, st.sampled_from([-1.0, 0.0, 0.25, 0.75])),
    )


def message_of(article: Article) -> types_pb2.Article:
    """As the wire says it."""
    message = types_pb2.Article(
        id=article.id, title=article.title, content=article.content, attributes=article.attributes
    )
    if article.published_at is not None:
        message.published_at.FromDatetime(article.published_at)
    return message
