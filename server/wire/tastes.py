"""RecommendRequest: what is known of a reader, checked; and how interests are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from coldframe.v1 import search_service_pb2, types_pb2
from server.search import Expansion, Shape
from server.wire import requests

if TYPE_CHECKING:
    from server.interests import Interest
    from server.search import Taste
    from server.seeds import Seed
    from server.view import View

MAX_SEEDS = 64
NO_USAGE = types_pb2.Usage()
_MOST_WEIGHT = 1_000.0


def seeds(request: search_service_pb2.RecommendRequest) -> list[tuple[Seed, float]]:
    """The seeds, and how much each counts, one of them at least above 0; below, against what is like it."""
    requests.entries(request.seeds, MAX_SEEDS, "seeds")
    read = [
        (requests.seed(message.seed, f"seeds[{n}].seed"), _weight(message, f"seeds[{n}].weight"))
        for n, message in enumerate(request.seeds)
    ]
    if not any(weight > 0 for _, weight in read):
        raise InvalidArgument(
            "seeds all have weights below 0; at least one must be above: what is wanted", field="seeds"
        )
    return read


def _weight(message: search_service_pb2.WeightedSeed, field: str) -> float:
    weight = requests.within(requests.optional(message, "weight"), -_MOST_WEIGHT, _MOST_WEIGHT, 1.0, field)
    if weight == 0.0:
        raise InvalidArgument(f"{field} is 0; give one above 0 for more like this, below 0 for less", field=field)
    return weight


def shape(request: search_service_pb2.RecommendRequest) -> Shape:
    """How seeds become interests."""
    similarity = requests.optional(request, "interest_similarity")
    if similarity is not None and not -1.0 <= similarity <= 1.0:  # its default is the index's, and no number
        raise InvalidArgument(
            f"interest_similarity is {similarity:g}; allowed are -1 to 1, default as similar as two articles of one "
            f"cluster usually are",
            field="interest_similarity",
        )
    return Shape(
        most=requests.count(request, "max_interests", 5, most=16),
        similarity=similarity,
        expansion=_expansion(request.expansion) if request.HasField("expansion") else None,
    )


def _expansion(message: search_service_pb2.Expansion) -> Expansion:
    weight = requests.within(requests.optional(message, "weight"), 0.0, 1.0, 0.5, "expansion.weight")
    if weight == 0.0:
        raise InvalidArgument(
            "expansion.weight is 0; give a share above 0 and at most 1, or no expansion", field="expansion.weight"
        )
    articles = requests.within(requests.optional(message, "articles"), 1, 100, 5, "expansion.articles")
    age = None
    if message.HasField("max_age"):
        age = requests.seconds(message.max_age, "expansion.max_age", 1.0)
    return Expansion(weight, int(articles), age)


def interest(view: View, found: Interest, taste: Taste) -> search_service_pb2.Interest:
    """An interest, by the numbers of the request's seeds."""
    point = taste.points[found.medoid]
    assert point is not None, "interests are made of seeds that are there"
    number = int(view.base.generation.index.nearest_clusters(point.vector[None], 1)[0][0, 0])
    cluster = view.base.generation.clusters[number]
    return search_service_pb2.Interest(
        seeds=found.seeds, medoid=found.medoid, weight=found.weight, cluster_id=cluster.id, cluster_label=cluster.label
    )
