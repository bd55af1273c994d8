"""Between protobuf and the engine: what is allowed in, and how answers are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.text import MAX_TEXT_CHARS
from coldframe.v1 import types_pb2
from server.engine import RowSeed, Seed, TextSeed, VectorSeed, seed_of_article

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coldframe.articles import ArticleRow
    from coldframe.clusters import Cluster
    from coldframe.generation import Generation
    from server.engine import Served, Timing, Usage

MAX_LIMIT = 1_000
MAX_TEXTS = 256


def count(value: int | None, *, default: int, field: str) -> int:
    """A limit or a page size: the default where the caller gave none. Raises InvalidArgument outside 1 to 1,000."""
    if value is None:
        return default
    if not 1 <= value <= MAX_LIMIT:
        raise InvalidArgument(f"{field} is {value}; allowed are 1 to {MAX_LIMIT:,}, default {default}", field=field)
    return value


def text(value: str, field: str) -> str:
    """A text that can be embedded."""
    if not value.strip():
        raise InvalidArgument(f"{field} is empty; give a text of 1 to {MAX_TEXT_CHARS:,} characters", field=field)
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidArgument(
            f"{field} has {len(value):,} characters; at most {MAX_TEXT_CHARS:,} are allowed", field=field
        )
    return value


def texts(values: list[str]) -> list[str]:
    """The texts of an EmbedRequest."""
    if not 1 <= len(values) <= MAX_TEXTS:
        raise InvalidArgument(f"texts has {len(values)} entries; allowed are 1 to {MAX_TEXTS}", field="texts")
    return [text(value, f"texts[{n}]") for n, value in enumerate(values)]


def seed(message: types_pb2.Seed) -> Seed:
    """What a search starts from."""
    kind = message.WhichOneof("seed")
    if kind == "text":
        return TextSeed(text(message.text, "seed.text").strip())
    if kind == "article":
        article = message.article
        whole = seed_of_article(article.id, article.title, article.content)
        text(whole.text, "seed.article")
        return whole
    if kind == "article_id":
        if not message.article_id:
            raise InvalidArgument("seed.article_id is empty; give the id of an article", field="seed.article_id")
        return RowSeed(message.article_id)
    if kind == "vector":
        return VectorSeed(_vector(message.vector))
    raise InvalidArgument("seed is empty; give one of seed.text, article, article_id or vector", field="seed")


def _vector(message: types_pb2.Vector) -> NDArray[np.float32]:
    values = np.array(message.values, np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InvalidArgument(
            f"seed.vector.values[{bad[0]}] is {values[bad[0]]}; every value must be a finite number",
            field="seed.vector",
        )
    # In fp64: the squares of fp32's largest and smallest numbers are beyond fp32.
    wide = values.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if norm == 0.0:
        raise InvalidArgument(
            "seed.vector is empty or all zeros; it must point somewhere: at least one value other than 0",
            field="seed.vector",
        )
    return (wide / norm).astype(np.float32)


def exact(effort: int) -> bool:
    """Whether every list is visited."""
    if effort not in types_pb2.Effort.values():
        raise InvalidArgument(
            f"effort is {effort}; allowed are {', '.join(types_pb2.Effort.keys())}",
            field="effort",
        )
    return effort == types_pb2.EFFORT_EXACT


def article(row: ArticleRow, generation: Generation) -> types_pb2.ArticleSummary:
    """What is shown of an article."""
    message = types_pb2.ArticleSummary(
        id=row.id,
        title=row.title,
        excerpt=row.excerpt,
        cluster_id=generation.clusters[row.cluster].id,
        attributes=row.attributes,
    )
    if row.published_at is not None:
        message.published_at.FromDatetime(row.published_at)
    return message


def cluster(described: Cluster, generation: Generation, *, representatives: bool = False) -> types_pb2.Cluster:
    """A cluster with its medoid, and with its representatives where they were asked for."""
    articles = generation.articles
    return types_pb2.Cluster(
        id=described.id,
        label=described.label,
        terms=[types_pb2.Term(term=term, weight=weight) for term, weight in described.terms],
        size=described.size,
        medoid=article(articles[described.medoid], generation),
        representatives=[article(articles[row], generation) for row in described.representatives]
        if representatives
        else None,
    )


def usage(value: Usage | None) -> types_pb2.Usage | None:
    """None where nothing was embedded."""
    return None if value is None else types_pb2.Usage(tokens_seen=value.seen, tokens_used=value.used)


def timing(value: Timing) -> types_pb2.Timing:
    """The stages, and the total up to now: write it last."""
    return types_pb2.Timing(
        tokenize_ms=value.tokenize_ms,
        queue_ms=value.queue_ms,
        embed_ms=value.embed_ms,
        search_ms=value.search_ms,
        total_ms=value.total_ms,
    )


def served_by(served: Served) -> types_pb2.ServedBy:
    """What answered."""
    model = served.generation.manifest.model
    return types_pb2.ServedBy(generation=served.generation.name, model=model.name, fingerprint=model.fingerprint)
