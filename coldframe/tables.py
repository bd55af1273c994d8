"""Replies as tables for people. Nothing from a corpus is trusted: no markup, no control characters."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from coldframe.v1.cluster_service_pb2 import GetClusterResponse
    from coldframe.v1.embedding_service_pb2 import EmbedResponse
    from coldframe.v1.index_service_pb2 import GetIndexResponse
    from coldframe.v1.search_service_pb2 import NearestClustersResponse, SearchResponse
    from coldframe.v1.types_pb2 import ArticleSummary, Cluster, ServedBy, Timing, Usage

MAX_WIDTH = 120
"""Columns: wider tables tear a row's ends apart. Also the width of what is written to a file or a pipe."""

FIRST_VALUES = 4


def show(content: RenderableType) -> None:
    """Print to standard output: as wide as the terminal up to `MAX_WIDTH`, in colour on a terminal only."""
    console = Console(markup=False, highlight=False, emoji=False)
    if console.width > MAX_WIDTH or not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = MAX_WIDTH
    console.print(content)


def hits(reply: SearchResponse) -> RenderableType:
    """Articles found, the best first."""
    table = _table("#", "score", "title", "date", "cluster", "id")
    for rank, hit in enumerate(reply.hits, 1):
        article = hit.article
        table.add_row(
            str(rank),
            f"{hit.score:.3f}",
            _plain(article.title),
            _date(article),
            _plain(article.cluster_id),
            _plain(article.id),
        )
    found = table if reply.hits else Text("no articles found")
    return Group(found, *_cut_notes([reply.usage]), _footer(reply.served_by, reply.timing, reply.usage))


def matches(reply: NearestClustersResponse) -> RenderableType:
    """Clusters found, the nearest first."""
    table = _table("#", "score", "label", "articles", "typical article", "id")
    for rank, match in enumerate(reply.matches, 1):
        cells = _cluster_cells(match.cluster)
        table.add_row(str(rank), f"{match.similarity:.3f}", *cells)
    found = table if reply.matches else Text("no clusters found")
    return Group(found, *_cut_notes([reply.usage]), _footer(reply.served_by, reply.timing, reply.usage))


def clusters(found: Sequence[Cluster]) -> RenderableType:
    """All clusters, as the server sorts them."""
    table = _table("#", "label", "articles", "typical article", "id")
    for rank, item in enumerate(found, 1):
        table.add_row(str(rank), *_cluster_cells(item))
    articles = sum(item.size for item in found)
    return Group(table, Text(f"\n{len(found):,} clusters, {articles:,} articles", style="dim"))


def cluster(reply: GetClusterResponse) -> RenderableType:
    """One cluster: label, terms with their weights, typical articles."""
    found = reply.cluster
    heading = Text.assemble((_plain(found.label), "bold"), f"  {_plain(found.id)}, {found.size:,} articles")
    terms = Text(", ".join(f"{_plain(term.term)} {term.weight:.2f}" for term in found.terms))
    table = _table("typical article", "date", "id")
    for article in found.representatives:
        table.add_row(_plain(article.title), _date(article), _plain(article.id))
    return Group(heading, terms, Text(), table, Text(), _footer(reply.served_by, reply.timing))


def embeddings(reply: EmbedResponse, texts: Sequence[str]) -> RenderableType:
    """One row for each text: how much of it was read, and how its vector begins."""
    table = _table("#", "text", "tokens seen", "used", "dimension", "first values")
    for rank, (embedding, text) in enumerate(zip(reply.embeddings, texts, strict=True), 1):
        values, usage = embedding.vector.values, embedding.usage
        first = " ".join(f"{value:+.3f}" for value in values[:FIRST_VALUES])
        row = (f"{usage.tokens_seen:,}", f"{usage.tokens_used:,}", f"{len(values):,}", first)
        table.add_row(str(rank), _plain(text[:MAX_WIDTH]), *row)
    usages = [embedding.usage for embedding in reply.embeddings]
    return Group(table, *_cut_notes(usages), _footer(reply.served_by, reply.timing))


def index(reply: GetIndexResponse) -> RenderableType:
    """Facts about the index, one a line."""
    found = reply.index
    facts = {
        "generation": found.generation,
        "built": f"{found.created_at.ToDatetime():%Y-%m-%d %H:%M} UTC",
        "articles": f"{found.article_count:,}",
        "clusters": f"{found.cluster_count:,}",
        "model": f"{found.model} ({found.precision})",
        "recipe": found.recipe,
        "fingerprint": found.fingerprint,
        "dimension": f"{found.dimension:,}",
        "longest text": f"{found.max_tokens:,} tokens",
        "search": f"visits {found.probes:,} lists, recall at 10 measured as {found.recall_at_10:.3f}",
    }
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        grid.add_row(Text(name, style="dim"), Text(_plain(fact), overflow="fold"))
    return grid


_FLEXIBLE = {"ratio": 1, "min_width": 12, "no_wrap": True, "overflow": "ellipsis"}
_NUMBER = {"justify": "right", "no_wrap": True}
_ID = {"max_width": 24, "overflow": "fold"}  # Whole, whatever its length: a person copies it into the next command.
_STYLES: dict[str, dict[str, Any]] = {
    "title": _FLEXIBLE,
    "typical article": _FLEXIBLE,
    "label": _FLEXIBLE,
    "text": _FLEXIBLE,
    "#": _NUMBER,
    "score": _NUMBER,
    "articles": _NUMBER,
    "tokens seen": _NUMBER,
    "used": _NUMBER,
    "dimension": _NUMBER,
    "cluster": _ID,
    "id": _ID,
}


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True, header_style="bold")
    for heading in headings:
        table.add_column(heading, **_STYLES.get(heading, {"no_wrap": True}))
    return table


def _cluster_cells(found: Cluster) -> tuple[str, str, str, str]:
    return _plain(found.label), f"{found.size:,}", _plain(found.medoid.title), _plain(found.id)


def _plain(text: str) -> str:
    """Return a text without control characters: a title must not steer a person's terminal."""
    kept = ("" if unicodedata.category(char) == "Cc" and not char.isspace() else char for char in text)
    return " ".join("".join(kept).split())


def _date(article: ArticleSummary) -> str:
    return f"{article.published_at.ToDatetime():%Y-%m-%d}" if article.HasField("published_at") else ""


def _cut_notes(usages: Sequence[Usage]) -> list[Text]:
    """Say of each text whose end was not read how much of it was."""
    notes = [Text()]
    for rank, usage in enumerate(usages, 1):
        if usage.tokens_used < usage.tokens_seen:
            name = "the text" if len(usages) == 1 else f"text {rank}"
            note = f"{name} has {usage.tokens_seen:,} tokens; the first {usage.tokens_used:,} were read"
            notes.append(Text(note, style="yellow"))
    return notes


def _footer(served_by: ServedBy, timing: Timing, usage: Usage | None = None) -> Text:
    spent = {
        "tokenize": timing.tokenize_ms,
        "queue": timing.queue_ms,
        "embed": timing.embed_ms,
        "search": timing.search_ms,
    }
    steps = ", ".join(f"{step} {ms:.1f}" for step, ms in spent.items() if ms > 0)
    tokens = f"{usage.tokens_used:,} tokens · " if usage is not None and usage.tokens_used else ""
    return Text(
        f"generation {_plain(served_by.generation)} · model {_plain(served_by.model)}\n"
        f"{tokens}{timing.total_ms:.1f} ms{f' ({steps})' if steps else ''}",
        style="dim",
    )
