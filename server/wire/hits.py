"""How articles that were found are written. A hit is made of the fields that were asked for, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from coldframe.v1 import search_service_pb2, types_pb2

if TYPE_CHECKING:
    from google.protobuf.field_mask_pb2 import FieldMask

    from server.search import Found
    from server.view import View

    Reply = search_service_pb2.SearchResponse | search_service_pb2.RecommendResponse

_SUMMARY = tuple(field.name for field in types_pb2.ArticleSummary.DESCRIPTOR.fields)
_ALLOWED = ("article", *(f"article.{name}" for name in _SUMMARY), "score", "explanation")
_ID_ALONE = frozenset({"id"})
# 64 MiB at most, some 20 as articles usually are.
_HITS_KEPT, _HIT_BYTES = 32_768, 2_048
_SCORE_BYTES = 4


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
    _describe(message, view, row, view.first_of_story(row))
    return message


def _describe(message: types_pb2.ArticleSummary, view: View, row: int, first: int) -> None:
    """Writes what is shown where it belongs: to copy a message costs twice as much. first: of the story, its row."""
    article = view.shown(row)
    message.id = article.id
    message.title = article.title
    message.excerpt = article.excerpt
    message.cluster_id = view.base.generation.clusters[article.cluster].id
    message.attributes.update(article.attributes)
    message.centrality = article.similarity
    message.outlier = article.outlier
    message.live = view.is_live(row)
    message.story_id = article.id if first == row else view.id_of(first)
    if article.microseconds is not None:  # FromMicroseconds does the same, and more slowly
        seconds, rest = divmod(article.microseconds, 1_000_000)
        published_at = message.published_at
        published_at.seconds, published_at.nanos = seconds, 1_000 * rest


def add_hits(reply: Reply, view: View, found: Found, parts: Parts) -> None:
    """Adds the hits of a search, in their order, to a reply that has none."""
    if parts.summary and parts.summary != _ID_ALONE:
        reply.MergeFromString(_written(view, found))
        for name in parts.left_out:
            for hit in reply.hits:
                hit.article.ClearField(name)  # type: ignore[arg-type]
    else:
        _add_ids(reply, view, found, parts)
    if not parts.score:
        for hit in reply.hits:
            hit.ClearField("score")
    if parts.explanation:
        for place, hit in enumerate(reply.hits):
            hit.explanation.CopyFrom(_explanation(view, found, place))


def _add_ids(reply: Reply, view: View, found: Found, parts: Parts) -> None:
    for row, score in zip(found.rows.tolist(), found.ranked.score.tolist(), strict=True):
        hit = reply.hits.add()
        hit.score = score
        if parts.summary:
            hit.article.id = view.id_of(row)


# --- as bytes --------------------------------------------------------------------------------------------------------


def _written(view: View, found: Found) -> bytes:
    """The hits with all but their explanations, as the bytes of a reply that has nothing else.

    News is asked for again and again: to put together what was written before costs a tenth of writing it from the
    columns, and a third of reading it into one message after the other.
    """
    scores, kept = found.ranked.score.astype("<f4").tobytes(), view.base.hits
    firsts = view.firsts_of_stories(found.rows)
    parts: list[bytes] = []
    for place, (row, first) in enumerate(zip(found.rows.tolist(), firsts, strict=True)):
        before = kept.get(row)
        # Of the generation's rows nothing changes but which article of a story comes first.
        raw = before[1] if before is not None and before[0] == first else _write(view, row, first)
        parts += raw, scores[_SCORE_BYTES * place : _SCORE_BYTES * (place + 1)]
    return b"".join(parts)


def _write(view: View, row: int, first: int) -> bytes:
    """A hit as a field of a reply, but for the bytes of its score, which end it."""
    reply = search_service_pb2.SearchResponse()
    hit = reply.hits.add()
    _describe(hit.article, view, row, first)
    hit.score = 1.0  # any but 0, of which nothing would be written
    raw = reply.SerializeToString()[:-_SCORE_BYTES]
    # A live row has its number in one view, and perhaps another in one that was only tried out.
    if len(raw) <= _HIT_BYTES and not view.is_live(row) and not view.is_live(first):
        if len(view.base.hits) >= _HITS_KEPT:
            view.base.hits.clear()
        view.base.hits[row] = first, raw
    return raw


def _explanation(view: View, found: Found, place: int) -> types_pb2.Explanation:
    ranked, row = found.ranked, int(found.rows[place])
    cluster = view.base.generation.clusters[view.article(row).cluster]
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
        seed=found.interests[interest].medoid,
        cluster_id=cluster.id,
        cluster_label=cluster.label,
    )
