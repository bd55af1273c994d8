"""The thin typed client: a question in, a protobuf reply out.

It imports grpc, protobuf and the stubs, and nothing else: a backend installs no torch to ask a question.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast
from urllib.parse import unquote

import grpc

from coldframe.errors import (
    ColdframeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Overloaded,
    Unavailable,
    error_classes,
)
from coldframe.v1.cluster_service_pb2 import GetClusterRequest, GetClusterResponse, ListClustersRequest
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceStub
from coldframe.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest, GetIndexResponse
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2 import (
    NearestClustersRequest,
    NearestClustersResponse,
    SearchRequest,
    SearchResponse,
)
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from coldframe.v1.types_pb2 import EFFORT_BALANCED, EFFORT_EXACT, Article, Cluster, Seed, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message, both ways. gRPC's own limit of 4 MiB is less than 256 long articles."""

MAX_ATTEMPTS = 5
"""gRPC makes no more attempts than this, whatever its retry policy says."""

Request = TypeVar("Request")
Response = TypeVar("Response")


class UseClientDefault:
    """The type of `USE_CLIENT_DEFAULT`, for a timeout that is not given: None already means to wait for ever."""


USE_CLIENT_DEFAULT: Final = UseClientDefault()

Timeout: TypeAlias = float | UseClientDefault | None
"""Seconds to wait for an answer; None waits for ever."""


class Client:
    """Asks a Coldframe server, and raises the errors of `coldframe.errors`.

        with Client("localhost:50051") as client:
            for hit in client.search("rate cut expected").hits:
                print(hit.score, hit.article.title)

    A client is safe to share between threads, and keeps one connection: make one and reuse it.

    target: HOST:PORT, or any gRPC name such as "dns:///host:port" or "unix:/path".
    timeout: seconds that a call may take, its retries included; None waits for ever. Each call can say otherwise.
    attempts: 1 to 5. A call that finds the server UNAVAILABLE is made so often in all; nothing else is retried.
    metadata: sent with every call, such as [("authorization", "Bearer ...")].
    credentials: None speaks plain text; `grpc.ssl_channel_credentials()` speaks TLS.

    Raises InvalidArgument where one of these is not allowed. It does not connect before the first call.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float | None = 30.0,
        attempts: int = 4,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = _checked_target(target)
        self._timeout = _checked_timeout(timeout)
        self._metadata = tuple((key.lower(), value) for key, value in metadata)
        self._channel = _open_channel(target, _checked_attempts(attempts), credentials)
        self._closed = False
        self._embedding = EmbeddingServiceStub(self._channel)
        self._search = SearchServiceStub(self._channel)
        self._clusters = ClusterServiceStub(self._channel)
        self._index = IndexServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<coldframe.Client {self._target}{' (closed)' if self._closed else ''}>"

    def close(self) -> None:
        """Close the connection. Calls in flight are cancelled; closing twice does no harm."""
        self._closed = True
        self._channel.close()

    def embed(self, texts: Sequence[str], *, timeout: Timeout = USE_CLIENT_DEFAULT) -> EmbedResponse:
        """Embed 1 to 256 texts; `embeddings` has one for each, in their order.

        Raises InvalidArgument for an empty text, too many texts, or one string in place of a list.
        """
        if isinstance(texts, str):
            raise InvalidArgument("texts is one string; pass a list of texts, such as [text].", field="texts")
        with _sending("texts"):
            request = EmbedRequest(texts=texts)
        return self._call(self._embedding.Embed, request, timeout)

    def search(
        self,
        text: str | None = None,
        *,
        article: Article | None = None,
        article_id: str | None = None,
        vector: Sequence[float] | None = None,
        limit: int | None = None,
        exact: bool = False,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> SearchResponse:
        """Find the articles nearest to one seed, the best first.

        The seed is a text, an article that the index need not hold, the id of one that it holds, or a vector of
        length `Index.dimension`. limit: 1 to 1,000, by default 10. exact: visit every list of the index, as a
        brute-force search does.

        Raises InvalidArgument (field "seed" unless exactly one is given) and UnknownArticle.
        """
        seed = _seed(text, article, article_id, vector)
        with _sending("limit"):
            request = SearchRequest(seed=seed, limit=limit, effort=EFFORT_EXACT if exact else EFFORT_BALANCED)
        return self._call(self._search.Search, request, timeout)

    def nearest_clusters(
        self,
        text: str | None = None,
        *,
        article: Article | None = None,
        article_id: str | None = None,
        vector: Sequence[float] | None = None,
        limit: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> NearestClustersResponse:
        """Find the clusters nearest to one seed, the nearest first. Seeds and errors are those of `search`.

        limit: 1 to 1,000, by default 5.
        """
        seed = _seed(text, article, article_id, vector)
        with _sending("limit"):
            request = NearestClustersRequest(seed=seed, limit=limit)
        return self._call(self._search.NearestClusters, request, timeout)

    def clusters(self, *, page_size: int | None = None, timeout: Timeout = USE_CLIENT_DEFAULT) -> Iterator[Cluster]:
        """Yield every cluster, the largest first, fetching page after page; the timeout is for each page.

        page_size: 1 to 1,000, by default 100.
        """
        page_token = ""
        while True:
            with _sending("page_size"):
                request = ListClustersRequest(page_size=page_size, page_token=page_token)
            page = self._call(self._clusters.ListClusters, request, timeout)
            yield from page.clusters
            page_token = page.next_page_token
            if not page_token:
                return

    def cluster(self, cluster_id: str, *, timeout: Timeout = USE_CLIENT_DEFAULT) -> GetClusterResponse:
        """Return one cluster with its representative articles. Raises UnknownCluster."""
        with _sending("cluster_id"):
            request = GetClusterRequest(cluster_id=cluster_id)
        return self._call(self._clusters.GetCluster, request, timeout)

    def index(self, *, timeout: Timeout = USE_CLIENT_DEFAULT) -> GetIndexResponse:
        """Describe the generation that answers now. Raises NoGeneration where nothing has been published."""
        return self._call(self._index.GetIndex, GetIndexRequest(), timeout)

    def _call(
        self,
        method: Callable[..., Response],
        request: Request,
        timeout: Timeout,
    ) -> Response:
        if self._closed:
            raise FailedPrecondition("this client is closed; make a new one to ask again.")
        seconds = self._timeout if isinstance(timeout, UseClientDefault) else _checked_timeout(timeout)
        try:
            return method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _translated(error, self._target, seconds) from error


def _checked_target(target: str) -> str:
    if not target or target.startswith(("http://", "https://")):
        raise InvalidArgument(
            f"{target!r} is not a server's address; give HOST:PORT, such as localhost:50051.", field="target"
        )
    return target


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise InvalidArgument(f"timeout is {timeout}; give seconds above 0, or None to wait for ever.", field="timeout")
    return timeout


def _checked_attempts(attempts: int) -> int:
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise InvalidArgument(f"attempts is {attempts}; give 1 to {MAX_ATTEMPTS}.", field="attempts")
    return attempts


def _open_channel(target: str, attempts: int, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A request larger than this buffer (256 KiB unless told) is silently never retried.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # As quick as the retries: otherwise all of them meet the connection's first pause of one second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.service_config", _service_config(attempts)),
    ]
    if re.match(r"(localhost|127\.[\d.]+|\[::1\])(:|$)", target):
        # gRPC obeys http_proxy even for this machine itself, which no proxy can reach.
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def _service_config(attempts: int) -> str:
    method: dict[str, object] = {"name": [{}]}
    if attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return json.dumps({"methodConfig": [method]})


@contextmanager
def _sending(field: str) -> Iterator[None]:
    """Name the field that protobuf refuses: a number past 32 bits, a text that is not Unicode."""
    try:
        yield
    except ValueError as error:
        raise InvalidArgument(f"{field} cannot be sent: {error}", field=field) from error


def _seed(text: str | None, article: Article | None, article_id: str | None, vector: Sequence[float] | None) -> Seed:
    seeds = {"text": text, "article": article, "article_id": article_id, "vector": vector}
    given = [name for name, value in seeds.items() if value is not None]
    if len(given) != 1:
        raise InvalidArgument(
            f"{' and '.join(given) or 'no seed'} given; give exactly one of {', '.join(seeds)}.", field="seed"
        )
    with _sending(f"seed.{given[0]}"):
        point = None if vector is None else Vector(values=vector)
        # None leaves a field of a oneof unset, which the stubs do not know of strings.
        return Seed(text=cast("str", text), article=article, article_id=cast("str", article_id), vector=point)


# ---------------------------------------------------------------------------------------------------------------
# Errors: the server names the class in `coldframe-error`; what gRPC itself raises goes by its status code.

_BY_NAME = error_classes()
_BY_CODE: dict[str, type[ColdframeError]] = {}
for _class in _BY_NAME.values():
    _BY_CODE.setdefault(_class.code, _class)  # parents come first: NOT_FOUND is NotFound

_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")


def _translated(error: grpc.RpcError, target: str, timeout: float | None) -> ColdframeError:
    trailers = cast("tuple[tuple[str, str | bytes], ...]", error.trailing_metadata() or ())
    metadata = {key: unquote(value) for key, value in trailers if isinstance(value, str)}
    message = error.details() or error.code().name
    named = _BY_NAME.get(metadata.get("coldframe-error", ""))
    if named is not None:
        return _rebuilt(named, message, metadata)
    too_large = _TOO_LARGE.search(message)
    if too_large is not None:
        return _message_too_large(*map(int, too_large.groups()))
    kind = _BY_CODE.get(error.code().name, ColdframeError)
    return _rebuilt(kind, _explained(kind, message, target, timeout), metadata)


def _rebuilt(kind: type[ColdframeError], message: str, metadata: dict[str, str]) -> ColdframeError:
    if issubclass(kind, InvalidArgument):
        return kind(message, field=metadata.get("coldframe-field", ""))
    retry_after_ms = metadata.get("coldframe-retry-after-ms", "")
    if issubclass(kind, Overloaded) and retry_after_ms.isdecimal():
        return kind(message, retry_after_s=int(retry_after_ms) / 1000)
    return kind(message)


def _message_too_large(size: int, limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"the message is too large: {size:,} bytes, and at most {limit:,} are allowed; "
        "send fewer or shorter texts at once, or ask for fewer results."
    )


def _explained(kind: type[ColdframeError], message: str, target: str, timeout: float | None) -> str:
    """Say what a person can do about an error that gRPC raised on its own."""
    if kind is Unavailable:
        cause = message.rsplit(": ", 1)[-1]
        return (
            f"no Coldframe server answers at {target} ({cause}); "
            f"start one with: python -m server --store DIR --listen {target}"
        )
    if kind is DeadlineExceeded and timeout is not None:
        return f"no answer from {target} within {timeout:g} s; allow a longer timeout, or ask for less."
    return message
