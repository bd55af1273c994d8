"""Replies as tables for people. Nothing from a corpus is trusted: no markup, no control characters."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from coldframe.v1.article_service_pb2 import (
    UPSERT_OUTCOME_CREATED,
    UPSERT_OUTCOME_REPLACED,
    UPSERT_OUTCOME_UNCHANGED,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from coldframe.v1.article_service_pb2 import DeleteArticlesResponse, GetArticleResponse, UpsertResult
    from coldframe.v1.cluster_service_pb2 import AgeBucket, GetClusterResponse, TrendingClustersResponse
    from coldframe.v1.embedding_service_pb2 import EmbedResponse, StreamEmbedResponse
    from coldframe.v1.index_service_pb2 import ActivateGenerationResponse, GetIndexResponse
    from coldframe.v1.search_service_pb2 import (
        ClusterMatch,
        Interest,
        NearestClustersResponse,
        RecommendResponse,
        SearchResponse,
        StreamSearchResponse,
    )
    from coldframe.v1.types_pb2 import ArticleSummary, Cluster, Hit, ServedBy, Timing, Usage

MAX_WIDTH = 120
"""Columns: wider tables tear a row's ends apart. Also the width of what is written to a file or a pipe."""

FIRST_VALUES = 4

SHOWN = 20
"""Upserted articles that are listed one by one; more are counted only."""

_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
"""Classes of Unicode's characters that begin or end a direction; marks such as RLM, which turn nothing, stay."""

OUTCOMES = {
    int(UPSERT_OUTCOME_CREATED): "created",
    int(UPSERT_OUTCOME_REPLACED): "replaced",
    int(UPSERT_OUTCOME_UNCHANGED): "unchanged",
}


def show(content: RenderableType) -> None:
    """Print to standard output: as wide as the terminal up to `MAX_WIDTH`, in colour on a terminal only."""
    console = Console(markup=False, highlight=False, emoji=False)
    if console.width > MAX_WIDTH or not has_window(console):
        console.width = MAX_WIDTH
    console.print(content, crop=False)


def has_window(console: Console) -> bool:
    """Whether a terminal, or who calls, says how wide it is; to a pipe or a file `MAX_WIDTH` is written."""
    return console.is_terminal or "COLUMNS" in os.environ


def hits(reply: SearchResponse) -> RenderableType:
    """Articles found, the best first; below them why, where the call asked."""
    footer = _footer(reply.served_by, reply.timing, reply.usage)
    return Group(*_hits_and_why(reply.hits), *_notes(reply), *_cut_notes([reply.usage]), footer)


def one_of_many(text: str, reply: StreamSearchResponse) -> RenderableType:
    """What was found for a line of many, or why nothing could be."""
    title = Text(_plain(text), style="bold")
    if reply.HasField("error"):
        return Group(title, Text(f"error: {_plain(reply.error.message)}"), Text())
    return Group(title, *_hits_and_why(reply.response.hits), *_cut_notes([reply.response.usage]), Text())


def recommendations(reply: RecommendResponse) -> RenderableType:
    """Articles for a reader, the interests that brought them, and why, where the call asked."""
    table = _table("interest", "share", "label", "seeds", "cluster")
    for number, interest in enumerate(reply.interests, 1):
        table.add_row(str(number), f"{interest.weight:.0%}", _plain(interest.cluster_label), *_interest_cells(interest))
    usages = [usage for usage in reply.usages if usage.tokens_seen]
    footer = _footer(reply.served_by, reply.timing)
    found = _hits_and_why(reply.hits, interests=True)
    return Group(*found, Text(), table, *_notes(reply), *_cut_notes(usages), footer)


def _interest_cells(interest: Interest) -> tuple[str, str]:
    """Numbers of the seeds as a person counts, the medoid first."""
    seeds = [interest.medoid, *(seed for seed in interest.seeds if seed != interest.medoid)]
    return ", ".join(str(seed + 1) for seed in seeds), _plain(interest.cluster_id)


def _hits_and_why(found: Sequence[Hit], *, interests: bool = False) -> list[RenderableType]:
    if not found:
        return [Text("no articles found")]
    table = _table("#", "score", "title", "date", "cluster", "id")
    for rank, hit in enumerate(found, 1):
        table.add_row(str(rank), f"{hit.score:.3f}", *_article_cells(hit.article))
    explained = any(hit.HasField("explanation") for hit in found)
    return [table, Text(), _why(found, interests)] if explained else [table]


def _why(found: Sequence[Hit], interests: bool) -> Table:
    """The parts that add up to each score; then which interest it is for, and the label of its cluster."""
    parts = ("negative", "recency", "prior", "diversity")
    table = _table("#", "score", "similarity", *parts, "why")
    for rank, hit in enumerate(found, 1):
        why = hit.explanation
        values = [getattr(why, part) for part in parts]
        cells = [f"{why.similarity:+.3f}", *(f"{value:+.3f}" if value else "" for value in values)]
        interest = f"interest {why.interest + 1}: " if interests else ""
        chance = "by chance: " if why.explored else ""
        table.add_row(str(rank), f"{hit.score:.3f}", *cells, f"{interest}{chance}{_plain(why.cluster_label)}")
    return table


def _notes(reply: SearchResponse | RecommendResponse) -> list[Text]:
    """What a person should know of the answer: ids that are not there, and how to turn the page."""
    notes = []
    if reply.missing_ids:
        notes.append(Text(f"\nnot in the index: {_plain(', '.join(reply.missing_ids))}", style="yellow"))
    if reply.next_page_token:
        # On one line, however long: a person copies it, and a line break in the middle would come along.
        more = f"\nmore: the same with --page {_plain(reply.next_page_token)}"
        notes.append(Text(more, style="dim", no_wrap=True, overflow="ignore"))
    return notes


def matches(reply: NearestClustersResponse) -> RenderableType:
    """Clusters found, the nearest first."""
    found = _matches(reply.matches) if reply.matches else Text("no clusters found")
    outlier = [Text("\nlike no cluster: next to no article of the nearest lies so far out", style="yellow")]
    footer = _footer(reply.served_by, reply.timing, reply.usage)
    return Group(found, *(outlier if reply.outlier else []), *_cut_notes([reply.usage]), footer)


def _matches(found: Sequence[ClusterMatch]) -> Table:
    table = _table("#", "score", "share", "label", "articles", "typical article", "id")
    for rank, match in enumerate(found, 1):
        table.add_row(str(rank), f"{match.similarity:.3f}", f"{match.share:.0%}", *_cluster_cells(match.cluster))
    return table


def clusters(found: Sequence[Cluster]) -> RenderableType:
    """All clusters, as the server sorts them."""
    table = _table("#", "label", "articles", "typical article", "id")
    for rank, item in enumerate(found, 1):
        table.add_row(str(rank), *_cluster_cells(item))
    count = sum(item.size for item in found)
    return Group(table, Text(f"\n{len(found):,} clusters, {count:,} articles", style="dim"))


def cluster(reply: GetClusterResponse) -> RenderableType:
    """One cluster: label, terms with their weights, typical articles, how it lies and what is beside it."""
    found = reply.cluster
    heading = Text.assemble((_plain(found.label), "bold"), f"  {_plain(found.id)}, {found.size:,} articles")
    terms = Text(", ".join(f"{_plain(term.term)} {term.weight:.2f}" for term in found.terms))
    table = _table("typical article", "date", "id")
    for article in found.representatives:
        table.add_row(_plain(article.title), _date(article), _plain(article.id))
    beside = _table("beside it", "articles", "score", "id")
    for other in reply.neighbors:
        beside.add_row(_plain(other.label), f"{other.size:,}", f"{other.similarity:.3f}", _plain(other.id))
    tables = [table, Text(), beside] if reply.neighbors else [table]
    footer = _footer(reply.served_by, reply.timing)
    return Group(heading, terms, Text(), _cluster_facts(reply), Text(), *tables, Text(), footer)


def _cluster_facts(reply: GetClusterResponse) -> RenderableType:
    away, origin = reply.residuals, reply.lineage
    parents = f" from {', '.join(origin.parent_ids)}" if origin.parent_ids else ""
    cosine = f" (cosine {origin.similarity:.3f})" if origin.HasField("similarity") else ""
    facts = {
        "from its centre": f"mean {away.mean:.3f}, half within {away.p50:.3f}, 90% within {away.p90:.3f}, "
        f"99% within {away.p99:.3f}",
        "outliers": f"{away.outliers:,}",
        "comes from": f"{origin.kind}{parents}{cosine}",
        "ages": ", ".join(_age(bucket) for bucket in reply.ages if bucket.count),
        "live": f"{reply.cluster.live_count:,} articles since the build",
    }
    return _facts(facts)


def _age(bucket: AgeBucket) -> str:
    if bucket.undated:
        return f"no date {bucket.count:,}"
    oldest = f"under {bucket.max_age.ToTimedelta().days:,} d" if bucket.HasField("max_age") else "older"
    return f"{oldest} {bucket.count:,}"


def articles(found: Sequence[ArticleSummary]) -> RenderableType:
    """Articles of a cluster, as the server sorts them."""
    table = _table("#", "score", "title", "date", "id")
    for rank, item in enumerate(found, 1):
        table.add_row(str(rank), f"{item.centrality:.3f}", _plain(item.title), _date(item), _plain(item.id))
    return Group(
        table, Text(f"\n{len(found):,} articles; the score is the cosine to the cluster's centre", style="dim")
    )


def trending(reply: TrendingClustersResponse) -> RenderableType:
    """Clusters that grow, the fastest first."""
    table = _table("#", "growth", "new", "usual", "label", "articles", "typical article", "id")
    for rank, item in enumerate(reply.clusters, 1):
        numbers = (f"{item.growth:.1f}", f"{item.count:,}", f"{item.usual:.1f}")
        table.add_row(str(rank), *numbers, *_cluster_cells(item.cluster))
    found = table if reply.clusters else Text("no cluster grows")
    until = f"\nuntil {reply.as_of.ToDatetime():%Y-%m-%d %H:%M} UTC" if reply.HasField("as_of") else ""
    return Group(found, Text(until, style="dim"), _footer(reply.served_by, reply.timing))


def article(reply: GetArticleResponse) -> RenderableType:
    """One article, and what was asked for of what is near it."""
    found = reply.article
    facts = {
        "id": found.id,
        "date": _date(found),
        "cluster": f"{found.cluster_id} (cosine {found.centrality:.3f}{', an outlier' if found.outlier else ''})",
        "story": found.story_id,
        **dict(sorted(found.attributes.items())),
        "indexed": "live, after the build" if found.live else "by the build",
        "tokens": f"{reply.usage.tokens_used:,} of {reply.usage.tokens_seen:,}",
    }
    near: list[RenderableType] = [Text()]
    if reply.clusters:
        near += [_matches(reply.clusters), Text()]
    if reply.neighbors:
        near += [*_hits_and_why(reply.neighbors), Text()]
    heading = Text(_plain(found.title), style="bold")
    return Group(
        heading, Text(_plain(found.excerpt)), Text(), _facts(facts), *near, _footer(reply.served_by, reply.timing)
    )


def upserted(results: Sequence[UpsertResult], counts: Mapping[str, int], validate_only: bool) -> RenderableType:
    """What became of each article where they are few, and how many of them became what."""
    table = _table("#", "outcome", "title", "cluster", "story", "id")
    for rank, result in enumerate(results, 1):
        item = result.article
        cells = (OUTCOMES[result.outcome], _plain(item.title), _plain(item.cluster_id), _plain(item.story_id))
        table.add_row(str(rank), *cells, _plain(item.id))
    total = sum(counts.values())
    near = [_near(result) for result in results if result.clusters or result.neighbors] if total <= SHOWN else []
    would = "would be " if validate_only else ""
    summary = ", ".join(f"{count:,} {would}{name}" for name, count in counts.items())
    return Group(*([table] if 0 < total <= SHOWN else []), *near, Text(f"\n{summary}", style="dim"))


def _near(result: UpsertResult) -> RenderableType:
    parts: list[RenderableType] = [Text(f"\nnear {_plain(result.article.title)}", style="bold")]
    if result.clusters:
        parts.append(_matches(result.clusters))
    if result.neighbors:
        parts += _hits_and_why(result.neighbors)
    return Group(*parts)


def deleted(reply: DeleteArticlesResponse, validate_only: bool) -> RenderableType:
    """How many were removed, and which were not there."""
    would = "would be " if validate_only else ""
    lines = [Text(f"{len(reply.deleted_ids):,} {would}deleted")]
    if reply.missing_ids:
        lines.append(Text(f"not in the index: {_plain(', '.join(reply.missing_ids))}", style="yellow"))
    return Group(*lines, Text(), _footer(reply.served_by, reply.timing))


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


def embedded(text: str, reply: StreamEmbedResponse) -> RenderableType:
    """How the vector of a line of many begins, or why there is none."""
    title = Text(_plain(text[:MAX_WIDTH]), style="bold")
    if reply.HasField("error"):
        return Group(title, Text(f"error: {_plain(reply.error.message)}"), Text())
    values, usage = reply.embedding.vector.values, reply.embedding.usage
    first = " ".join(f"{value:+.3f}" for value in values[:FIRST_VALUES])
    told = Text(f"{usage.tokens_used:,} tokens, {len(values):,} numbers: {first} ...")
    return Group(title, told, *_cut_notes([usage]), Text())


def activated(reply: ActivateGenerationResponse) -> RenderableType:
    """What is served now, and what was before."""
    name, before = reply.served_by.generation, reply.previous_generation
    if not reply.changed:
        return Group(Text(f"{name} was served already"), Text(), _footer(reply.served_by, reply.timing))
    said = f"{name} is served" + (f"; before it was {before}" if before not in {"", name} else "")
    return Group(Text(said), Text(), _footer(reply.served_by, reply.timing))


def index(reply: GetIndexResponse) -> RenderableType:
    """Facts about the index, one a line."""
    found = reply.index
    facts = {
        "generation": found.generation,
        "built": f"{found.created_at.ToDatetime():%Y-%m-%d %H:%M} UTC",
        "articles": f"{found.article_count:,}",
        "since then": f"{found.live_count:,} articles came, {found.replaced_count:,} were replaced or removed",
        "clusters": f"{found.cluster_count:,}",
        "model": f"{found.model} ({found.precision})",
        "recipe": found.recipe,
        "fingerprint": found.fingerprint,
        "dimension": f"{found.dimension:,}",
        "longest text": f"{found.max_tokens:,} tokens",
        "search": f"visits {found.probes:,} lists, recall at 10 measured as {found.recall_at_10:.3f}",
    }
    return _facts(facts)


def _facts(facts: Mapping[str, str]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        if fact:
            grid.add_row(Text(_plain(name), style="dim"), Text(_plain(fact), overflow="fold"))
    return grid


_FLEXIBLE = {"ratio": 1, "min_width": 12, "no_wrap": True, "overflow": "ellipsis"}
_NUMBER = {"justify": "right", "no_wrap": True}
_ID = {"max_width": 24, "overflow": "fold"}  # Whole, whatever its length: a person copies it into the next command.
_STYLES: dict[str, dict[str, Any]] = {
    "title": _FLEXIBLE,
    "typical article": _FLEXIBLE,
    "label": _FLEXIBLE,
    "why": _FLEXIBLE,
    "beside it": _FLEXIBLE,
    "text": _FLEXIBLE,
    "#": _NUMBER,
    **dict.fromkeys(("score", "similarity", "negative", "recency", "prior", "diversity"), _NUMBER),
    **dict.fromkeys(("interest", "share", "growth", "new", "usual"), _NUMBER),
    "articles": _NUMBER,
    "tokens seen": _NUMBER,
    "used": _NUMBER,
    "dimension": _NUMBER,
    "cluster": _ID,
    "story": _ID,
    "id": _ID,
}


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True, header_style="bold")
    for heading in headings:
        table.add_column(heading, **_STYLES.get(heading, {"no_wrap": True}))
    return table


def _article_cells(found: ArticleSummary) -> tuple[str, str, str, str]:
    return _plain(found.title), _date(found), _plain(found.cluster_id), _plain(found.id)


def _cluster_cells(found: Cluster) -> tuple[str, str, str, str]:
    return _plain(found.label), f"{found.size:,}", _plain(found.medoid.title), _plain(found.id)


def _plain(text: str) -> str:
    """Return a text without control characters: a title must not steer a person's terminal, nor turn around what stands
    behind it on the line. What of right-to-left text closes such a turn is often cut off.
    """
    return " ".join("".join(char for char in text if char.isspace() or not _steers(char)).split())


def _steers(char: str) -> bool:
    return unicodedata.category(char) == "Cc" or unicodedata.bidirectional(char) in _TURNS


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
        "rank": timing.rank_ms,
    }
    steps = ", ".join(f"{step} {ms:.1f}" for step, ms in spent.items() if ms > 0)
    tokens = f"{usage.tokens_used:,} tokens · " if usage is not None and usage.tokens_used else ""
    return Text(
        f"generation {_plain(served_by.generation)} · model {_plain(served_by.model)}\n"
        f"{tokens}{timing.total_ms:.1f} ms{f' ({steps})' if steps else ''}",
        style="dim",
    )
