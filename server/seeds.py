"""Seeds: what a caller knows of a reader or an article, and the points that stand for it in the index's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument, UnknownArticle, UnknownCluster
from coldframe.text import text_digest
from server.engine import placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from coldframe.articles import ArticleRow
    from coldframe.live import Embedded
    from server.engine import Engine, Timing
    from server.serving import Served


@dataclass(frozen=True, slots=True)
class TextSeed:
    """Any text."""

    text: str
    article_id: str | None = None
    """The id of the article that it is, which may be empty; None where it is no article."""


@dataclass(frozen=True, slots=True)
class RowSeed:
    """An indexed article."""

    article_id: str


@dataclass(frozen=True, slots=True)
class ClusterSeed:
    """A cluster's centroid."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class VectorSeed:
    """A vector, (dim,), of unit length."""

    vector: NDArray[np.float32]
    field: str
    """Where the request has it."""


Seed = TextSeed | RowSeed | ClusterSeed | VectorSeed


@dataclass(frozen=True, slots=True)
class Point:
    """A seed in the index's space, (dim,)."""

    vector: NDArray[np.float32]
    row: int | None = None
    """The row of the article that it is: a search must not find it."""
    usage: ArticleRow | Embedded | None = None
    """What says how much of it was read, where it was a text."""
    text: bool = False
    """Whether it was a text, and not an article or a place in the index."""


async def resolve(engine: Engine, served: Served, seeds: Sequence[Seed], timing: Timing) -> list[Point | None]:
    """The point of each seed; None where the index does not hold what it names.

    Raises InvalidArgument for a vector of another length. Texts are embedded together.
    """
    points = [_known(served, seed) for seed in seeds]
    new = [n for n, seed in enumerate(seeds) if points[n] is None and isinstance(seed, TextSeed)]
    if new:
        texts = [seed.text for n in new if isinstance(seed := seeds[n], TextSeed)]
        embedded = await engine.embed(served, texts, timing)
        for n, vector, of in zip(new, placed(served, embedded), embedded, strict=True):
            points[n] = Point(vector, _itself(served, seeds[n]), of, text=_is_text(seeds[n]))
    return points


def _known(served: Served, seed: Seed) -> Point | None:
    """The point of a seed that need not be embedded."""
    view = served.view
    if isinstance(seed, VectorSeed):
        dim = served.generation.index.dim
        if len(seed.vector) != dim:
            raise InvalidArgument(
                f"{seed.field} has {len(seed.vector)} values; this index's vectors have {dim}", field=seed.field
            )
        return Point(seed.vector)
    if isinstance(seed, ClusterSeed):
        number = served.generation.numbers.get(seed.cluster_id)
        return None if number is None else Point(served.generation.index.centroids[number])
    if isinstance(seed, RowSeed):
        row = view.row_of(seed.article_id)
        return None if row is None else Point(view.vector(row), row)
    # A text that was indexed has its vector already: the same one, whatever it was batched with.
    known = view.row_of_text(text_digest(seed.text))
    if known is None:
        return None
    return Point(view.vector(known), _itself(served, seed), view.article(known), text=_is_text(seed))


def _is_text(seed: Seed) -> bool:
    return isinstance(seed, TextSeed) and seed.article_id is None


def _itself(served: Served, seed: Seed) -> int | None:
    named = isinstance(seed, TextSeed) and seed.article_id
    return served.view.row_of(named) if named else None


def missing(seeds: Sequence[Seed], points: Sequence[Point | None]) -> list[str]:
    """Ids of the articles and clusters that are not there."""
    return [_name(seed) for seed, point in zip(seeds, points, strict=True) if point is None]


def _name(seed: Seed) -> str:
    if isinstance(seed, ClusterSeed):
        return seed.cluster_id
    return seed.article_id if isinstance(seed, RowSeed) else ""


def unknown(seed: Seed) -> UnknownArticle | UnknownCluster:
    """What a call says that cannot go on without a seed."""
    if isinstance(seed, ClusterSeed):
        return UnknownCluster(f"no cluster {seed.cluster_id!r} in the index; ListClusters gives the ids")
    return UnknownArticle(f"no article {_name(seed)!r} in the index; to ask about a new one, send its text")
