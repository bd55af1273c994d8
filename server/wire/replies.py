"""How answers are written, but for hits (`server.wire.hits`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from coldframe.v1 import embedding_service_pb2, search_service_pb2, types_pb2
from server.columns import UNDATED
from server.wire.hits import summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coldframe.articles import ArticleRow
    from coldframe.errors import ColdframeError
    from coldframe.live import Embedded
    from server.engine import Timing
    from server.serving import Served
    from server.view import View

_Reply = TypeVar("_Reply", bound="_Signed")


class _Signed(Protocol):
    """A reply of any method."""

    @property
    def served_by(self) -> types_pb2.ServedBy: ...
    @property
    def timing(self) -> types_pb2.Timing: ...


def cluster(view: View, number: int, *, representatives: bool = False) -> types_pb2.Cluster:
    """A cluster with its medoid, and with its representatives where they were asked for."""
    described, newest = view.base.generation.clusters[number], int(view.newest[number])
    there = [row for row in described.representatives if view.has(row)]  # the medoid first, if it is still there
    message = types_pb2.Cluster(
        id=described.id,
        label=described.label,
        terms=[types_pb2.Term(term=term, weight=weight) for term, weight in described.terms],
        size=int(view.sizes[number]),
        medoid=summary(view, there[0]) if there else None,
        representatives=[summary(view, row) for row in there] if representatives else None,
        topic_id=described.topic or "",
        live_count=int(view.live_sizes[number]),
    )
    if newest != UNDATED:
        message.newest_at.FromMicroseconds(newest)
    return message


def cluster_matches(
    view: View, numbers: NDArray[np.int64], similarities: NDArray[np.float32], shares: NDArray[np.float64]
) -> list[search_service_pb2.ClusterMatch]:
    """Nearest clusters, in their order; (n,) each."""
    return [
        search_service_pb2.ClusterMatch(
            cluster=cluster(view, int(number)), similarity=float(near), share=float(share), distance=1.0 - float(near)
        )
        for number, near, share in zip(numbers, similarities, shares, strict=True)
    ]


def embedding(vector: NDArray[np.float32], of: Embedded, *, packed: bool) -> embedding_service_pb2.Embedding:
    """A vector, (dim,), and how much of its text was read."""
    packing = {"packed": vector.astype("<f4").tobytes()} if packed else {"values": vector.tolist()}
    values = types_pb2.Vector(**packing)
    return embedding_service_pb2.Embedding(vector=values, usage=usage(of))


def usage(of: ArticleRow | Embedded | None) -> types_pb2.Usage | None:
    """How much of a text was read; None where nothing was embedded."""
    return None if of is None else types_pb2.Usage(tokens_seen=of.tokens_seen, tokens_used=of.tokens_used)


def item_error(error: ColdframeError) -> types_pb2.ItemError:
    """An error of one of many items."""
    return types_pb2.ItemError(code=error.code, message=error.message, field=getattr(error, "field", ""))


def signed(reply: _Reply, served: Served, clock: Timing, attribution: str = "") -> _Reply:
    """A reply with what answered, to what where it is ranked, and where the time went up to now: sign it last."""
    write_served_by(reply.served_by, served, attribution)
    write_timing(reply.timing, clock)
    return reply


def write_timing(message: types_pb2.Timing, value: Timing) -> None:
    """The stages, and the total up to now: write it last."""
    message.tokenize_ms = value.tokenize_ms
    message.queue_ms = value.queue_ms
    message.embed_ms = value.embed_ms
    message.search_ms = value.search_ms
    message.rank_ms = value.rank_ms
    message.total_ms = value.total_ms


def write_served_by(message: types_pb2.ServedBy, served: Served, attribution: str) -> None:
    """What answered, and to what, where the answer is ranked; else ""."""
    model = served.generation.manifest.model
    message.generation = served.generation.name
    message.model = model.name
    message.fingerprint = model.fingerprint
    message.live_sequence = served.view.sequence
    message.attribution_token = attribution
