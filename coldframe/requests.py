"""Questions in plain Python, as the messages of the wire.

The options that several calls share stand here once: `Client.search(**options)`, `search_request(**options)` for
batches and streams, and `Client.recommend(**options)` take them by name. None stands for the server's default; what
that is, and what is allowed, is said in docs/api.md, and the server says it again when it refuses.

Further down: what the other methods of `Client` and `AsyncClient` send. Each takes the arguments of its method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from coldframe.errors import InvalidArgument
from coldframe.filters import Condition
from coldframe.messages import choice, duration, sending, several, timestamp, vector
from coldframe.v1.article_service_pb2 import DeleteArticlesRequest, GetArticleRequest, UpsertArticlesRequest
from coldframe.v1.cluster_service_pb2 import (
    ArticleOrder,
    ClusterOrder,
    GetClusterRequest,
    ListClusterArticlesRequest,
    ListClustersRequest,
    TrendingClustersRequest,
)
from coldframe.v1.embedding_service_pb2 import EmbedRequest
from coldframe.v1.index_service_pb2 import ActivateGenerationRequest
from coldframe.v1.ranking_pb2 import Filter, Ranking
from coldframe.v1.search_service_pb2 import (
    Expansion,
    NearestClustersRequest,
    RecommendRequest,
    SearchRequest,
    WeightedSeed,
)
from coldframe.v1.types_pb2 import EFFORT_EXACT, EFFORT_UNSPECIFIED, Article, Effort, Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta
    from typing import Unpack

    from coldframe.messages import VectorLike


Request = TypeVar("Request", bound=Message)


class SeedOptions(TypedDict, total=False):
    """What a search starts from where it is not a text: exactly one of these."""

    article: Article | None
    """An article that the index need not hold."""
    article_id: str | None
    """The id of an article that the index holds."""
    vector: VectorLike | None
    """`Index.dimension` numbers, or those as little-endian float32 bytes, or a Vector as `embed` returns it."""
    cluster_id: str | None
    """A cluster: its centroid."""


class RankingOptions(TypedDict, total=False):
    """Which articles may be answered, and how they are put in order (coldframe.v1.Ranking)."""

    filter: Filter | Condition | None
    """See `coldframe.filters`."""
    exclude_ids: Iterable[str] | None
    max_per_story: int | None
    """0 for all articles of a story."""
    max_per_cluster: int | None
    diversity: float | None
    """0, the order of relevance, to 1, unlike all before it."""
    half_life: timedelta | None
    recency_weight: float | None
    as_of: datetime | None
    """The moment that ages are counted to, in a time zone."""
    priors: Mapping[str, float] | None
    """By article id: added to the score."""
    popularity_attribute: str | None
    popularity_weight: float | None
    explore_fraction: float | None
    explore_seed: int | None
    min_score: float | None
    effort: Literal["fast", "balanced", "exact"] | None
    target_recall: float | None
    """Instead of an effort."""
    read_mask: Iterable[str] | None
    """What of a hit comes back, such as ["article.title", "score", "explanation"]."""


class SearchOptions(SeedOptions, RankingOptions, total=False):
    """All that `search` takes beside a text."""

    limit: int | None
    exact: bool
    """The same as effort="exact"."""
    page_token: str | None


class RecommendOptions(RankingOptions, total=False):
    """All that `recommend` takes beside the seeds."""

    limit: int | None
    max_interests: int | None
    interest_similarity: float | None
    expansion: Expansion | None
    """Moves seed texts towards the articles: `expansion()`."""
    page_token: str | None


def seed(text: str | None = None, *, weight: float = 1.0, **options: Unpack[SeedOptions]) -> WeightedSeed:
    """Return a seed for `recommend`: above 0, more like this, below 0, less like this.

    Raises InvalidArgument (field "seed") unless it starts from exactly one thing.
    """
    _refuse_unknown(options, SeedOptions, "seed")
    found = seed_message(text, options)
    with sending("weight"):
        return WeightedSeed(seed=found, weight=weight)


def expansion(
    *, weight: float | None = None, articles: int | None = None, max_age: timedelta | None = None
) -> Expansion:
    """Return how seed texts are moved towards the articles; None for the server's defaults."""
    with sending("expansion"):
        age = None if max_age is None else duration(max_age, "expansion.max_age")
        return Expansion(weight=weight, articles=articles, max_age=age)


def search_request(text: str | None = None, **options: Unpack[SearchOptions]) -> SearchRequest:
    """Return what `search` sends, for `batch_search`, `stream_search` and `hits`. It raises what `search` raises."""
    _refuse_unknown(options, SearchOptions, "search")
    exact = options.get("exact", False)
    if exact and options.get("effort") is not None:
        raise InvalidArgument("both exact and effort are given; give one of them.", field="effort")
    request = SearchRequest(
        seed=seed_message(text, options),
        effort=EFFORT_EXACT if exact else EFFORT_UNSPECIFIED,
        ranking=_ranking(options),
    )
    return _filled(request, limit=options.get("limit"), page_token=options.get("page_token"))


def recommend_request(seeds: Iterable[WeightedSeed | str], **options: Unpack[RecommendOptions]) -> RecommendRequest:
    """Return what `recommend` sends, for `hits`. A seed that is a string is a text of weight 1."""
    _refuse_unknown(options, RecommendOptions, "recommend")
    if isinstance(seeds, str):
        raise InvalidArgument("seeds is one string; pass a list of seeds, such as [text].", field="seeds")
    weighted = [seed(item) if isinstance(item, str) else item for item in seeds]
    request = RecommendRequest(seeds=weighted, ranking=_ranking(options), expansion=options.get("expansion"))
    plain = ("limit", "max_interests", "interest_similarity", "page_token")
    return _filled(request, **{name: options.get(name) for name in plain})


def seed_message(text: str | None, options: SeedOptions | SearchOptions) -> Seed:
    """Return the one thing that is given, as a seed."""
    kinds = {"text": text, **{name: options.get(name) for name in ("article", "article_id", "vector", "cluster_id")}}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) != 1:
        raise InvalidArgument(
            f"{' and '.join(given) or 'no seed'} given; give exactly one of {', '.join(kinds)}.", field="seed"
        )
    (name,) = given
    value: Any = kinds[name]
    with sending(f"seed.{name}"):
        return Seed(**{name: vector(value) if name == "vector" else value})  # type: ignore[arg-type]


def _ranking(options: RankingOptions) -> Ranking | None:
    """Return the ranking, None where it is the server's own: field by field, so that a wrong one is named."""
    given = {name: value for name in _RANKING_FIELDS if (value := options.get(name)) is not None}
    ranking = Ranking()
    for name, value in given.items():
        with sending(name):
            converted = _CONVERTED[name](value) if name in _CONVERTED else value
            ranking.MergeFrom(Ranking(**{name: cast("Any", converted)}))
    return ranking if given else None


_RANKING_FIELDS = sorted(RankingOptions.__optional_keys__)
_CONVERTED: dict[str, Callable[[Any], object]] = {
    "filter": lambda value: value.message if isinstance(value, Condition) else value,
    "exclude_ids": lambda value: several(value, "exclude_ids"),
    "half_life": lambda value: duration(value, "half_life"),
    "as_of": lambda value: timestamp(value, "as_of"),
    "effort": lambda value: choice(Effort, value, "effort"),
    "read_mask": lambda value: FieldMask(paths=several(value, "read_mask")),
}


def _filled(request: Request, **fields: object) -> Request:
    """Return the request with what is not None in its fields, each refused by its own name."""
    for name, value in fields.items():
        if value is not None:
            with sending(name):
                setattr(request, name, value)
    return request


def _refuse_unknown(options: Mapping[str, object], known: Any, call: str) -> None:
    """Be as strict as a signature is, where no type checker was."""
    for name in options:
        if name not in known.__optional_keys__:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")


# ----------------------------------------------------------------------------------------- what the other methods send


def nearest_clusters_request(
    text: str | None, seed_options: SeedOptions, *, limit: int | None, temperature: float | None
) -> NearestClustersRequest:
    """Return what `nearest_clusters` sends."""
    return _filled(NearestClustersRequest(seed=seed_message(text, seed_options)), limit=limit, temperature=temperature)


def embed_request(texts: Iterable[str], *, packed: bool) -> EmbedRequest:
    """Return what `embed` sends."""
    given = several(texts, "texts")
    with sending("texts"):
        return EmbedRequest(texts=given, packed=packed)


def upsert_request(
    articles: Iterable[Article], *, validate_only: bool, cluster_limit: int, neighbor_limit: int
) -> UpsertArticlesRequest:
    """Return what `upsert` sends, and of `stream_upsert` each group."""
    request = UpsertArticlesRequest(articles=articles, validate_only=validate_only)
    return _filled(request, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit)


def delete_request(ids: Iterable[str], *, validate_only: bool) -> DeleteArticlesRequest:
    """Return what `delete` sends."""
    given = several(ids, "ids")
    with sending("ids"):
        return DeleteArticlesRequest(ids=given, validate_only=validate_only)


def get_article_request(article_id: str, *, cluster_limit: int, neighbor_limit: int) -> GetArticleRequest:
    """Return what `get_article` sends."""
    return _filled(GetArticleRequest(), id=article_id, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit)


def list_clusters_request(*, order: str, page_size: int | None) -> ListClustersRequest:
    """Return what `clusters` sends."""
    return _filled(ListClustersRequest(), page_size=page_size, order=choice(ClusterOrder, order, "order"))


def get_cluster_request(cluster_id: str, *, neighbor_limit: int | None) -> GetClusterRequest:
    """Return what `cluster` sends."""
    return _filled(GetClusterRequest(), cluster_id=cluster_id, neighbor_limit=neighbor_limit)


def list_cluster_articles_request(cluster_id: str, *, order: str, page_size: int | None) -> ListClusterArticlesRequest:
    """Return what `cluster_articles` sends."""
    found = choice(ArticleOrder, order, "order")
    return _filled(ListClusterArticlesRequest(), cluster_id=cluster_id, page_size=page_size, order=found)


def trending_request(
    *,
    limit: int | None,
    window: timedelta | None,
    baseline_windows: int | None,
    as_of: datetime | None,
    min_count: int | None,
) -> TrendingClustersRequest:
    """Return what `trending` sends."""
    request = TrendingClustersRequest(
        window=None if window is None else duration(window, "window"),
        as_of=None if as_of is None else timestamp(as_of, "as_of"),
    )
    return _filled(request, limit=limit, baseline_windows=baseline_windows, min_count=min_count)


def activate_request(generation: str, *, force: bool) -> ActivateGenerationRequest:
    """Return what `activate` sends."""
    return _filled(ActivateGenerationRequest(force=force), generation=generation)
