"""How answers are written. A hit is made of the fields that were asked for, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from coldframe.v1 import embedding_service_pb2, search_service_pb2, types_pb2
from server.columns import UNDATED
from server.wire import paging

if TYPE_CHECKING:
    import numpy as np
    from google.protobuf.field_mask_pb2 import FieldMask
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from coldframe.errors import ColdframeError
    from server.engine import Timing
    from server.search import Found
    from server.seeds import Usage
    from server.serving import Served
    from server.view import View

_SUMMARY = tuple(field.name for field in types_pb2.ArticleSummary.DESCRIPTOR.fields)
_ALLOWED = ("article", *(f"article.{name}" for name in _SUMMARY), "score", "explanation")
_ID_ALONE = frozenset({"id"})
# 64 MiB at most, some 20 as articles usually are.
_SUMMARIES_KEPT, _SUMMARY_BYTES = 32_768, 2_048
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Parts:
    """What of a hit comes back."""

    summary: frozenset[str] = frozenset(_SUMMARY)
    score: bool = True
    explanation: bool = False

    @classmethod
    def of(cls, mask: FieldMask) -> Parts:
        """Raises InvalidArgument for a path that a hit has not."""
        if not mask.paths:
            return WHOLE
        for path in mask.paths:
            if path not in _ALLOWED:
                raise InvalidArgument(
                    f"ranking.read_mask has {path[:128]!r}; allowed are {', '.join(_ALLOWED)}",
                    field="ranking.read_mask",
                )
        named = {path.partition(".")[2] for path in mask.paths if path.startswith("article.")}
        summary = frozenset(_SUMMARY) if "article" in mask.paths else frozenset(named)
        return cls(summary, "score" in mask.paths, "explanation" in mask.paths)

    @cached_property
    def left_out(self) -> list[str]:
        """What of an article does not come back."""
        return [name for name in _SUMMARY if name not in self.summary]


WHOLE = Parts()


def summary(view: View, row: int) -> types_pb2.ArticleSummary:
    """What is shown of an article."""
    message = types_pb2.ArticleSummary()
    _summarize(message, view, row)
    return message


def _summarize(message: types_pb2.ArticleSummary, view: View, row: int) -> None:
    """Writes what is shown of an article where it belongs: to copy a message costs twice as much as to write it."""
    if view.is_live(row):
        _describe(message, view, row)
        message.live = True
        _tell_story(message, view, row)
        return
    # Of the generation's rows nothing changes but which article of a story comes first; news is asked for again and
    # again, and to read bytes costs a tenth of writing them from the columns.
    raw = view.base.summaries.get(row)
    if raw is None:
        _describe(message, view, row)
        _keep(view.base.summaries, row, message.SerializeToString())
    else:
        message.MergeFromString(raw)
    if not message.story_id:
        _tell_story(message, view, row)


def _keep(summaries: dict[int, bytes], row: int, raw: bytes) -> None:
    if len(raw) > _SUMMARY_BYTES:
        return
    if len(summaries) >= _SUMMARIES_KEPT:
        summaries.clear()
    summaries[row] = raw


def _tell_story(message: types_pb2.ArticleSummary, view: View, row: int) -> None:
    message.story_id = view.id_of(view.first_of_story(row))


def _describe(message: types_pb2.ArticleSummary, view: View, row: int) -> None:
    """All but what another view may tell otherwise: the story of an article that did not begin it."""
    article = view.shown(row)
    message.id = article.id
    message.title = article.title
    message.excerpt = article.excerpt
    message.cluster_id = view.base.generation.clusters[article.cluster].id
    message.attributes.update(article.attributes)
    message.centrality = article.similarity
    message.outlier = article.outlier
    if article.story == row:
        message.story_id = article.id
    if article.microseconds is not None:  # FromMicroseconds does the same, and more slowly
        seconds, rest = divmod(article.microseconds, 1_000_000)
        published_at = message.published_at
        published_at.seconds, published_at.nanos = seconds, 1_000 * rest


def add_hits(into: RepeatedCompositeFieldContainer[types_pb2.Hit], view: View, found: Found, parts: Parts) -> None:
    """Adds the hits of a search, in their order."""
    scores = found.ranked.score.tolist()
    for place, row in enumerate(found.rows.tolist()):
        hit = into.add()
        if parts.score:
            hit.score = scores[place]
        if parts.explanation:
            hit.explanation.CopyFrom(_explanation(view, found, place, row))
        if parts.summary == _ID_ALONE:
            hit.article.id = view.id_of(row)
        elif parts.summary:
            _summarize(hit.article, view, row)
            for name in parts.left_out:
                hit.article.ClearField(name)  # type: ignore[arg-type]


def _explanation(view: View, found: Found, place: int, row: int) -> types_pb2.Explanation:
    ranked, cluster = found.ranked, view.base.generation.clusters[view.article(row).cluster]
    interest = int(ranked.interest[place])
    return types_pb2.Explanation(
        similarity=float(ranked.similarity[place]),
        negative=float(ranked.negative[place]),
        recency=float(ranked.recency[place]),
        prior=float(ranked.prior[place]),
        diversity=float(ranked.diversity[place]),
        freshness=float(ranked.freshness[place]),
        explored=bool(ranked.explored[place]),
        interest=interest,
        seed=found.medoids[interest],
        cluster_id=cluster.id,
        cluster_label=cluster.label,
    )


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
        message.newest_at.FromDatetime(_EPOCH + timedelta(microseconds=newest))
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


def embedding(vector: NDArray[np.float32], of: Usage, *, packed: bool) -> embedding_service_pb2.Embedding:
    """A vector, (dim,), and how much of its text was read."""
    values = types_pb2.Vector(packed=vector.astype("<f4").tobytes()) if packed else types_pb2.Vector(values=vector)
    return embedding_service_pb2.Embedding(vector=values, usage=usage(of))


def usage(value: Usage | None) -> types_pb2.Usage | None:
    """None where nothing was embedded."""
    return None if value is None else types_pb2.Usage(tokens_seen=value.seen, tokens_used=value.used)


def item_error(error: ColdframeError) -> types_pb2.ItemError:
    """An error of one of many items."""
    return types_pb2.ItemError(code=error.code, message=error.message, field=getattr(error, "field", ""))


def timing(value: Timing) -> types_pb2.Timing:
    """The stages, and the total up to now: write it last."""
    message = types_pb2.Timing()
    write_timing(message, value)
    return message


def write_timing(message: types_pb2.Timing, value: Timing) -> None:
    """The same, where it belongs."""
    message.tokenize_ms = value.tokenize_ms
    message.queue_ms = value.queue_ms
    message.embed_ms = value.embed_ms
    message.search_ms = value.search_ms
    message.rank_ms = value.rank_ms
    message.total_ms = value.total_ms


def served_by(served: Served, request: Message | None = None) -> types_pb2.ServedBy:
    """What answered, and to what, where the answer is ranked."""
    message = types_pb2.ServedBy()
    write_served_by(message, served, request)
    return message


def write_served_by(message: types_pb2.ServedBy, served: Served, request: Message | None = None) -> None:
    """The same, where it belongs."""
    model = served.generation.manifest.model
    message.generation = served.generation.name
    message.model = model.name
    message.fingerprint = model.fingerprint
    message.live_sequence = served.view.sequence
    if request is not None:
        message.attribution_token = paging.attribution(served, request)
