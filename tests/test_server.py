"""The service over real gRPC in this process: answers beside brute force, and refusals of bad requests."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from coldframe import Client
from coldframe.client import MAX_MESSAGE_BYTES
from coldframe.errors import UnknownArticle, UnknownCluster
from coldframe.recipe import unit
from coldframe.store import Store
from coldframe.v1.cluster_service_pb2 import GetClusterRequest, ListClustersRequest, ListClustersResponse
from coldframe.v1.embedding_service_pb2 import EmbedRequest
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.search_service_pb2 import NearestClustersRequest, SearchRequest
from coldframe.v1.types_pb2 import Article, Effort, Seed, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from coldframe import Encoder
    from coldframe.generation import Generation
    from tests.conftest import Sample

    BruteForce = Callable[[NDArray[np.float32]], tuple[list[str], NDArray[np.float32]]]

METHODS = {
    EmbedRequest: "/coldframe.v1.EmbeddingService/Embed",
    SearchRequest: "/coldframe.v1.SearchService/Search",
    NearestClustersRequest: "/coldframe.v1.SearchService/NearestClusters",
    ListClustersRequest: "/coldframe.v1.ClusterService/ListClusters",
    GetClusterRequest: "/coldframe.v1.ClusterService/GetCluster",
    GetIndexRequest: "/coldframe.v1.IndexService/GetIndex",
}
OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # no proxy can reach this machine itself
]


@pytest.fixture(scope="module")
def client(target: str) -> Iterator[Client]:
    with Client(target, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def channel(target: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target, OPTIONS) as opened:
        yield opened


@dataclass(frozen=True)
class Refusal:
    """What a caller without Coldframe's client sees of an error."""

    code: str
    message: str
    fields: list[str]
    reason: str
    retry_s: float | None


def refusal(channel: grpc.Channel, method: str, raw: bytes) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        cast("Any", channel.unary_unary(method))(raw, timeout=60)  # the stubs know of no call without serializers
    # Raises unless code and message are the same in the details as in the status.
    status = rpc_status.from_call(raised.value)
    assert status is not None, raised.value
    fields, reason, retry_s = [], "", None
    for detail in status.details:
        bad, info, retry = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(raised.value.code().name, status.message, fields, reason, retry_s)


def refused(channel: grpc.Channel, request: Message) -> Refusal:
    return refusal(channel, METHODS[type(request)], request.SerializeToString())


# ------------------------------------------------------------------------------------------------- clusters of a seed


def test_every_articles_own_text_puts_its_cluster_first(
    client: Client, generation: Generation, articles: list[Sample]
) -> None:
    assert len(articles) == len(generation.articles) == 43
    for article in articles:
        row = generation.articles.row_of(article.id)
        assert row is not None
        own = generation.clusters[generation.articles[row].cluster].id
        answers = [
            client.nearest_clusters(article.text),
            client.nearest_clusters(f"\n {article.text}\t"),
            client.nearest_clusters(article=Article(title=article.title, content=article.content)),
            client.nearest_clusters(article=Article(id="new", title=f" {article.title} ", content=article.content)),
            client.nearest_clusters(article_id=article.id),
        ]
        assert {answer.matches[0].cluster.id for answer in answers} == {own}


def test_the_nearest_clusters_are_those_of_numpy(client: Client, generation: Generation) -> None:
    vectors, centroids = random_vectors(30, 5), generation.index.centroids.astype(np.float64)
    for vector in vectors:
        matches = client.nearest_clusters(vector=vector.tolist(), limit=1000).matches
        exact = centroids @ unit(vector).astype(np.float64)
        assert [generation.numbers[match.cluster.id] for match in matches] == np.argsort(-exact).tolist()
        np.testing.assert_allclose([match.similarity for match in matches], np.sort(exact)[::-1], atol=1e-6)
    assert len(client.nearest_clusters(vector=vectors[0].tolist()).matches) == min(5, len(centroids))


# ------------------------------------------------------------------------------------------------------------ search


def random_vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Of any length: the server brings them to one."""
    random = np.random.default_rng(seed)
    lengths = 10.0 ** random.uniform(-6, 6, (count, 1))
    return (random.standard_normal((count, 768)) * lengths).astype(np.float32)


@pytest.fixture(scope="module")
def brute_force(store_path: Path, generation: Generation) -> BruteForce:
    """For a vector every id, best first and equal scores by id, and the scores."""
    rows = np.load(Store(store_path).directory(generation.name) / "vectors.npy").astype(np.float64)
    ids = generation.articles.column("id").to_pylist()

    def search(vector: NDArray[np.float32]) -> tuple[list[str], NDArray[np.float32]]:
        scores = (rows @ unit(vector).astype(np.float64)).astype(np.float32)
        order = sorted(range(len(rows)), key=lambda row: (-scores[row], ids[row]))
        return [ids[row] for row in order], scores[order]

    return search


def test_an_exact_search_by_vector_is_brute_force(client: Client, brute_force: BruteForce) -> None:
    for n, vector in enumerate(random_vectors(200, 6)):
        limit = 1 + n % 50
        hits = client.search(vector=vector.tolist(), limit=limit, exact=True, max_per_story=0).hits
        ids, scores = brute_force(vector)
        assert [hit.article.id for hit in hits] == ids[:limit]
        np.testing.assert_allclose([hit.score for hit in hits], scores[:limit], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-44, 1e-22, 1.0, 1e22, 1e36])
def test_only_the_direction_of_a_vector_counts(client: Client, brute_force: BruteForce, scale: float) -> None:
    vector = np.sign(random_vectors(1, 7)[0])
    hits = client.search(vector=(vector * np.float32(scale)).tolist(), limit=40, exact=True, max_per_story=0).hits
    ids, scores = brute_force(vector)
    assert [hit.article.id for hit in hits] == ids[:40]
    np.testing.assert_allclose([hit.score for hit in hits], scores[:40], rtol=0, atol=1e-6)


def test_a_vector_is_the_same_however_its_numbers_are_sent(client: Client) -> None:
    numbers = random_vectors(1, 8)[0]
    packed, plain = Vector(packed=numbers.tobytes()), Vector(values=numbers.tolist())
    one_by_one = Vector.FromString(b"".join(b"\x0d" + number.tobytes() for number in numbers))
    # As a newer caller may send it: with a field of four bytes, number 15, that this server does not know.
    unknown = Vector.FromString(plain.SerializeToString() + b"\x7d\x00\x00\x80\x3f")
    wanted = client.search(vector=packed).hits
    assert len(wanted) == 10
    for vector in (plain, one_by_one, unknown, numbers, numbers.astype(np.float64), numbers.tolist()):
        assert client.search(vector=vector).hits == wanted


def test_an_article_is_not_like_itself_but_like_its_copies(client: Client, articles: list[Sample]) -> None:
    everything = {article.id for article in articles}
    for article in articles:
        hits = client.search(article_id=article.id, limit=1000, exact=True, max_per_story=0).hits
        assert {hit.article.id for hit in hits} == everything - {article.id}
    for one, other in ((articles[5].id, "copy-of-5"), (articles[7].id, "0999"), (articles[9].id, "nearly-9")):
        assert client.search(article_id=one).hits[0].article.id == other
        assert client.search(article_id=other).hits[0].article.id == one
        assert client.search(article_id=one).hits[0].score > 0.98


def test_an_article_sent_with_an_indexed_id_hides_that_id(client: Client, articles: list[Sample]) -> None:
    old = articles[2]
    for content in (old.content, f"{old.content} Since then the story has gone on."):
        sent = Article(id=old.id, title=old.title, content=content)
        found = {hit.article.id for hit in client.search(article=sent, limit=1000, exact=True, max_per_story=0).hits}
        assert found == {article.id for article in articles} - {old.id}
    assert (
        client.search(article=Article(id="unheard of", title=old.title, content=old.content)).hits[0].article.id
        == old.id
    )


def test_equal_texts_come_in_the_order_of_their_ids(client: Client, articles: list[Sample]) -> None:
    hits = client.search(articles[7].text, limit=2, exact=True, max_per_story=0).hits
    assert [hit.article.id for hit in hits] == sorted(["0999", articles[7].id])
    assert hits[0].score == hits[1].score == pytest.approx(1, abs=1e-6)


def test_a_hit_shows_the_article(client: Client, articles: list[Sample]) -> None:
    for article in (articles[0], articles[3], articles[13]):
        hits = client.search(article.text, limit=1, exact=True, max_per_story=0).hits
        shown = hits[0].article
        assert (shown.id, shown.title) == (article.id, article.title)
        assert " ".join(article.content.split()).startswith(shown.excerpt.removesuffix("…"))
        assert shown.attributes["Author"] == f"Author of {article.id}"
        assert shown.HasField("published_at") == bool(article.date)


def test_without_a_limit_ten_hits_come_and_asking_twice_changes_nothing(client: Client) -> None:
    for ask in (client.search, client.nearest_clusters):
        for seed in ({"text": "a flood closed the road"}, {"article_id": "1001"}, {"vector": [1.0] * 768}):
            first, second = ask(**cast("Any", seed)), ask(**cast("Any", seed))
            for reply in (first, second):
                reply.ClearField("timing")
            assert first == second
    assert len(client.search("a flood closed the road").hits) == 10


# --------------------------------------------------------------------------------------------------------- embedding


def test_vectors_are_the_encoders_in_the_index_s_space(
    client: Client, encoder: Encoder, generation: Generation, articles: list[Sample]
) -> None:
    texts = [article.text for article in articles]
    reply = client.embed(texts)
    vectors = np.array([embedding.vector.values for embedding in reply.embeddings], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, generation.placement(encoder.embed(texts)), rtol=0, atol=1e-6)
    lengths = [token.seen for token in encoder.tokenize(texts)]
    assert [embedding.usage.tokens_seen for embedding in reply.embeddings] == lengths
    for article, vector in zip(articles, vectors, strict=True):
        best = client.search(vector=vector.tolist(), limit=3, exact=True, max_per_story=0).hits
        assert article.id in {hit.article.id for hit in best}
        assert best[0].score == pytest.approx(1, abs=1e-5)


def test_a_text_over_4096_tokens_is_cut_and_says_so(client: Client) -> None:
    usage = client.embed(["flood " * 5000]).embeddings[0].usage
    assert (usage.tokens_seen, usage.tokens_used) == (5002, 4096)


def test_the_most_texts_that_are_allowed_are_embedded(client: Client) -> None:
    assert len(client.embed([f"text {n}" for n in range(256)]).embeddings) == 256


# ---------------------------------------------------------------------------------------------------------- clusters


def pages(channel: grpc.Channel, size: int) -> Iterator[ListClustersResponse]:
    ask = channel.unary_unary(
        METHODS[ListClustersRequest],
        request_serializer=ListClustersRequest.SerializeToString,
        response_deserializer=ListClustersResponse.FromString,
    )
    token = ""
    while page := ask(ListClustersRequest(page_size=size, page_token=token)):
        yield page
        if not (token := page.next_page_token):
            return


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_the_pages_hold_every_cluster_once_the_largest_first(
    channel: grpc.Channel, articles: list[Sample], size: int
) -> None:
    found = [*pages(channel, size)]
    clusters = [cluster for page in found for cluster in page.clusters]
    assert {len(page.clusters) for page in found[:-1]} <= {size}
    assert {page.total_size for page in found} == {len(clusters)} == {len({cluster.id for cluster in clusters})}
    sizes = [cluster.size for cluster in clusters]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(articles)


def test_a_clusters_representatives_belong_to_it_the_medoid_first(client: Client, generation: Generation) -> None:
    for listed in client.clusters(page_size=3):
        whole = client.cluster(listed.id).cluster
        members = {generation.articles[int(row)].id for row in generation.index.members(generation.numbers[whole.id])}
        assert whole.size == len(members)
        assert whole.medoid == whole.representatives[0] == listed.medoid
        assert {shown.id for shown in whole.representatives} <= members
        assert {shown.cluster_id for shown in whole.representatives} == {whole.id}
        assert whole.terms[0].weight == 1
        assert whole.label
        assert not listed.representatives


# ------------------------------------------------------------------------------------- what every reply says of itself


def test_every_reply_names_what_answered_and_where_the_time_went(client: Client, generation: Generation) -> None:
    model = generation.manifest.model
    replies: list[Any] = [
        client.index(),
        client.embed(["rain"]),
        client.search("rain"),
        client.nearest_clusters("rain"),
        client.cluster("c0000"),
        client.search(article_id="1001"),
    ]
    for reply in replies:
        by, timing = reply.served_by, reply.timing
        assert (by.generation, by.model, by.fingerprint) == (generation.name, "minilm", model.fingerprint)
        parts = timing.tokenize_ms, timing.queue_ms, timing.embed_ms, timing.search_ms
        assert min(parts) >= 0
        assert 0 < timing.total_ms >= sum(parts) * (1 - 1e-6)
    searched = client.search("rain").timing
    assert min(searched.tokenize_ms, searched.embed_ms, searched.search_ms) > 0
    assert client.search("rain").usage.tokens_seen == 3
    assert not client.search(article_id="1001").HasField("usage")


def test_the_index_describes_itself(client: Client, generation: Generation, articles: list[Sample]) -> None:
    index = client.index().index
    assert (index.generation, index.article_count, index.dimension) == (generation.name, len(articles), 768)
    assert (index.cluster_count, index.max_tokens) == (len(generation.clusters), 4096)
    assert (index.model, index.recipe, index.precision) == ("minilm", "lead-words", "fp32")
    assert index.created_at.ToDatetime().year >= 2025
    assert 1 <= index.probes <= index.cluster_count
    assert 0.9 <= index.recall_at_10 <= 1


# --------------------------------------------------------------------------------------------------------- bad input


def search(**seed: Any) -> SearchRequest:
    return SearchRequest(seed=Seed(**seed))


def vector(*values: float) -> SearchRequest:
    return search(vector=Vector(values=values))


def page_token(name: str, place: object) -> ListClustersRequest:
    return ListClustersRequest(page_token=base64.urlsafe_b64encode(f"{name}:{place}".encode()).decode())


LONG = "a" * 1_000_001
NAN, INF = float("nan"), float("inf")
BAD: dict[str, tuple[Message, str, str]] = {
    "no seed": (SearchRequest(), "seed", "give one of"),
    "empty seed": (NearestClustersRequest(seed=Seed()), "seed", "give one of"),
    "empty text": (search(text=""), "seed.text", "1 to 1,000,000 characters"),
    "whitespace": (search(text=" \t\n\u2003"), "seed.text", "1 to 1,000,000 characters"),
    "long text": (search(text=LONG), "seed.text", "1,000,001 characters; at most 1,000,000"),
    "50 MB": (search(text="word " * 10_000_000), "seed.text", "50,000,000 characters; at most 1,000,000"),
    "empty article": (search(article=Article(id="x", title=" ")), "seed.article", "1 to 1,000,000 characters"),
    "long article": (search(article=Article(content=LONG)), "seed.article", "at most 1,000,000"),
    "empty id": (search(article_id=""), "seed.article_id", "give the id"),
    "empty vector": (vector(), "seed.vector", "at least one value"),
    "zero vector": (vector(*[0.0] * 768), "seed.vector", "at least one value"),
    "NaN": (vector(*[1.0] * 767, NAN), "seed.vector", "holds nan at place 767; every value must be a finite number"),
    "inf": (vector(-INF, *[1.0] * 767), "seed.vector", "every value must be a finite number"),
    "short vector": (vector(*[1.0] * 767), "seed.vector", "767 values; this index's vectors have 768"),
    "long vector": (vector(*[1.0] * 769), "seed.vector", "769 values; this index's vectors have 768"),
    "limit 0": (SearchRequest(seed=Seed(text="x"), limit=0), "limit", "1 to 1,000"),
    "limit -1": (SearchRequest(seed=Seed(text="x"), limit=-1), "limit", "1 to 1,000"),
    "limit 1001": (NearestClustersRequest(seed=Seed(text="x"), limit=1001), "limit", "1 to 1,000"),
    "limit 2**31-1": (SearchRequest(seed=Seed(text="x"), limit=2**31 - 1), "limit", "is 2147483647; allowed are 1 to"),
    "effort": (SearchRequest(seed=Seed(text="x"), effort=cast("Effort.ValueType", 99)), "effort", "EFFORT_EXACT"),
    "no texts": (EmbedRequest(), "texts", "1 to 256"),
    "257 texts": (EmbedRequest(texts=["x"] * 257), "texts", "257 entries; allowed are 1 to 256"),
    "one empty text": (EmbedRequest(texts=["x", " "]), "texts[1]", "1 to 1,000,000 characters"),
    "one long text": (EmbedRequest(texts=["x", "x", LONG]), "texts[2]", "at most 1,000,000"),
    "page size 0": (ListClustersRequest(page_size=0), "page_size", "1 to 1,000"),
    "page size 1001": (ListClustersRequest(page_size=1001), "page_size", "1 to 1,000"),
    "token of nothing": (ListClustersRequest(page_token="garbage"), "page_token", "leave it empty"),
    "token in Greek": (ListClustersRequest(page_token="Ωμέγα"), "page_token", "leave it empty"),
    "token of old": (page_token("20200101T000000Z-0", 1), "page_token", "leave it empty"),
    "token of no number": (page_token("20200101T000000Z-0", "x"), "page_token", "leave it empty"),
    "empty cluster id": (GetClusterRequest(), "cluster_id", "ListClusters"),
}


def assert_it_is_for_people(message: str, store_path: Path) -> None:
    for internal in ("Traceback", ".py", str(store_path), "0x"):
        assert internal not in message


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_hears_which_field_and_what_is_allowed(
    channel: grpc.Channel, store_path: Path, name: str
) -> None:
    request, field, allowed = BAD[name]
    found = refused(channel, request)
    assert (found.code, found.fields, found.reason) == ("INVALID_ARGUMENT", [field], "InvalidArgument")
    assert allowed in found.message
    assert_it_is_for_people(found.message, store_path)


@pytest.mark.parametrize("place", [-1, 10**6, "9" * 5000])
def test_a_page_past_the_end_is_refused(channel: grpc.Channel, generation: Generation, place: object) -> None:
    assert refused(channel, page_token(generation.name, place)).fields == ["page_token"]


@pytest.mark.parametrize("method", METHODS.values())
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", bytes(range(256)), b"GET / HTTP/1.1"])
def test_bytes_that_are_no_request_are_the_callers_fault(channel: grpc.Channel, method: str, raw: bytes) -> None:
    found = refusal(channel, method, raw)
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["request"])


@pytest.mark.parametrize("kind", [EmbedRequest, GetClusterRequest])
def test_text_that_is_not_utf_8_is_the_callers_fault(channel: grpc.Channel, kind: type[Message]) -> None:
    found = refusal(channel, METHODS[kind], b"\x0a\x03\xff\xfe\xfd")
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["request"])


@pytest.mark.parametrize("unknown", ["no-such", "c9999", "Ω" * 100, "🗞" * 25_000, "\x00\n%", "x" * 100_000])
def test_unknown_ids_are_not_found_however_long_they_are(channel: grpc.Channel, client: Client, unknown: str) -> None:
    for request, reason in (
        (search(article_id=unknown), "UnknownArticle"),
        (NearestClustersRequest(seed=Seed(article_id=unknown)), "UnknownArticle"),
        (GetClusterRequest(cluster_id=unknown), "UnknownCluster"),
    ):
        found = refused(channel, request)
        assert (found.code, found.reason, found.fields) == ("NOT_FOUND", reason, [])
        assert "in the index" in found.message
    with pytest.raises(UnknownArticle, match="in the index; to ask about a new one, send its text"):
        client.search(article_id=unknown)
    with pytest.raises(UnknownCluster, match="ListClusters gives the ids"):
        client.cluster(unknown)


def test_after_all_that_it_still_answers(client: Client) -> None:
    assert client.search("rain").hits
