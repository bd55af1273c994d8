"""Defaults and bounds of requests over real gRPC: what is just allowed is answered, what is just beyond is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coldframe import InvalidArgument, expansion, seed
from coldframe.requests import search_request
from coldframe.v1.cluster_service_pb2 import ListClusterArticlesRequest, ListClustersRequest
from coldframe.v1.search_service_pb2 import SearchRequest
from coldframe.v1.types_pb2 import Seed, Vector
from tests.newsroom import opened, piece, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coldframe import Client
    from tests.conftest import Background

    Call = Callable[[Client, Any], Any]

TEXT = words("a")


@pytest.fixture(scope="module")
def client(background: Background, newsroom: Path) -> Iterator[Client]:
    with opened(background, newsroom) as (client, _):
        yield client


MANY = [seed(article_id=f"{n:03}") for n in range(9)]
DEFAULTS: dict[str, tuple[Call, dict[str, Any]]] = {
    "trending": (
        lambda client, given: [(one.cluster.id, one.growth) for one in client.trending(**given).clusters],
        {"limit": 10, "window": timedelta(days=1), "baseline_windows": 7, "min_count": 2},
    ),
    "nearest": (
        lambda client, given: [one.share for one in client.nearest_clusters(article_id="000", **given).matches],
        {"limit": 5, "temperature": 0.05},
    ),
    "expansion": (
        lambda client, given: [hit.score for hit in client.recommend([TEXT], expansion=expansion(**given)).hits],
        {"weight": 0.5, "articles": 5},
    ),
    "interests": (
        lambda client, given: [*client.recommend(MANY, interest_similarity=1.0, **given).interests],
        {"max_interests": 5},
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_what_the_contract_says(client: Client, name: str) -> None:
    ask, defaults = DEFAULTS[name]
    answer = ask(client, {})
    assert answer
    wanted = ask(client, defaults)
    assert answer == (pytest.approx(wanted) if isinstance(answer[0], float) else wanted)


def packed(values: list[float], raw: bytes) -> SearchRequest:
    return SearchRequest(seed=Seed(vector=Vector(values=values, packed=raw)))


BOUNDS: dict[str, tuple[Call, list[Any], list[Any]]] = {
    "temperature": (
        lambda client, value: client.nearest_clusters(article_id="000", temperature=value),
        [0.0011, 10.0],
        [0.0, 0.0009, 10.1, float("nan")],
    ),
    "limit": (lambda client, value: client.trending(limit=value), [1, 1_000], [0, 1_001]),
    "baseline_windows": (lambda client, value: client.trending(baseline_windows=value), [1, 100], [0, 101]),
    "min_count": (lambda client, value: client.trending(min_count=value), [0, 1_000_000], [-1, 1_000_001]),
    "cluster_limit": (lambda client, value: client.get_article("000", cluster_limit=value), [0, 100], [-1, 101]),
    "neighbor_limit": (lambda client, value: client.get_article("000", neighbor_limit=value), [0, 100], [-1, 101]),
    "page_size": (lambda client, value: [*client.cluster_articles("c0000", page_size=value)], [1, 1_000], [0, 1_001]),
    "requests": (
        lambda client, value: client.batch_search([search_request(article_id="000")] * value),
        [1, 64],
        [0, 65],
    ),
    "ids": (
        lambda client, value: client.delete([f"nobody-{n}" for n in range(value)], validate_only=True),
        [1, 1_000],
        [0, 1_001],
    ),
    "seed.text": (
        lambda client, value: client.search(value),
        ["a", 1_000_000 * "a"],
        ["", " ", 1_000_001 * "a"],
    ),
    "articles[0].id": (
        lambda client, value: client.upsert([piece(value, "a b")], validate_only=True),
        ["x", 512 * "x"],
        ["", 513 * "x", "x ", "\u2003x"],
    ),
    "articles[0].attributes": (
        lambda client, value: client.upsert([piece("new", attributes=value)], validate_only=True),
        [{}, {f"{n}": "" for n in range(64)}, {"k" * 128: "v" * 4_096}],
        [{f"{n}": "" for n in range(65)}, {"": "v"}],
    ),
}


@pytest.mark.parametrize("field", BOUNDS)
def test_what_is_just_allowed_is_answered_and_what_is_beyond_names_its_field(client: Client, field: str) -> None:
    call, allowed, refused = BOUNDS[field]
    for value in allowed:
        call(client, value)
    for value in refused:
        with pytest.raises(InvalidArgument) as caught:
            call(client, value)
        assert caught.value.field == field, value


def test_so_much_is_asked_for_of_an_upsert_as_of_an_article(client: Client) -> None:
    for field in ("cluster_limit", "neighbor_limit"):
        asked: dict[str, Any] = {field: 101}
        with pytest.raises(InvalidArgument, match=f"{field} is 101; allowed are 0 to 100"):
            client.upsert([piece("new")], validate_only=True, **asked)
    assert len(client.cluster("c0000", neighbor_limit=100).neighbors) == 5
    with pytest.raises(InvalidArgument, match="neighbor_limit is 101; allowed are 0 to 100"):
        client.cluster("c0000", neighbor_limit=101)


@pytest.mark.parametrize(
    ("request_", "field", "said"),
    [
        (packed([1.0], b"\0\0\x80\x3f"), "seed.vector", "both values and packed"),
        (packed([], b"\0\0\x80\x3f\0"), "seed.vector.packed", "has 5 bytes; float32 values take four each"),
    ],
)
def test_a_vector_of_two_readings_or_of_half_a_number_is_refused(
    client: Client, request_: SearchRequest, field: str, said: str
) -> None:
    (result,) = client.batch_search([request_]).results
    assert (result.error.code, result.error.field) == ("INVALID_ARGUMENT", field)
    assert said in result.error.message


@pytest.mark.parametrize("scale", [0.98, 1.0 + 1e-5, 1.02])
def test_a_vector_of_nearly_unit_length_is_brought_to_it(client: Client, scale: float) -> None:
    (embedding,) = client.embed([TEXT]).embeddings
    numbers = [*embedding.vector.values]
    wanted = [hit.score for hit in client.search(vector=numbers).hits]
    found = [hit.score for hit in client.search(vector=[scale * number for number in numbers]).hits]
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", [ListClustersRequest, ListClusterArticlesRequest])
def test_an_order_that_there_is_not_is_refused_with_those_there_are(client: Client, kind: Any) -> None:
    request = kind(order=99)
    ask: Any = client._clusters.ListClusters
    if kind is ListClusterArticlesRequest:
        request.cluster_id, ask = "c0000", client._clusters.ListClusterArticles
    with pytest.raises(InvalidArgument, match=r"order is 99; allowed are \w+_ORDER_UNSPECIFIED, ") as refused:
        client._connection.call(ask, request, 60.0)
    assert refused.value.field == "order"


def test_every_page_of_an_answer_is_attributed_by_itself(client: Client) -> None:
    first = client.search(TEXT, limit=5)
    pages = [first, client.search(TEXT, limit=5, page_token=first.next_page_token), client.search(TEXT, limit=6)]
    assert len({page.served_by.attribution_token for page in pages}) == 3


def test_a_page_that_holds_the_last_one_has_no_token(client: Client) -> None:
    listed: Any = client._clusters.ListClusters
    members: Any = client._clusters.ListClusterArticles
    for ask, request in (
        (listed, ListClustersRequest()),
        (members, ListClusterArticlesRequest(cluster_id="c0000")),
    ):
        total = ask(request).total_size
        assert total >= 6
        for size, more in ((total - 1, True), (total, False), (total + 1, False)):
            request.page_size = size
            assert bool(ask(request).next_page_token) is more, (total, size)


@pytest.mark.parametrize("kind", [ListClustersRequest, ListClusterArticlesRequest])
def test_each_page_may_be_as_long_as_it_likes(client: Client, kind: Any) -> None:
    ask: Any = client._clusters.ListClusters
    request, listed = kind(page_size=2), "clusters"
    if kind is ListClusterArticlesRequest:
        request.cluster_id, listed, ask = "c0000", "articles", client._clusters.ListClusterArticles
    first = ask(request)
    request.page_token, request.page_size = first.next_page_token, 1_000
    second = ask(request)
    found = [one.id for page in (first, second) for one in getattr(page, listed)]
    assert len(found) == len(set(found)) == first.total_size
