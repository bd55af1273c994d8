"""What the `coldframe` command line asks a server: each command is one question.

A person gets a table (`tables`), a program gets `--json`: the reply's protobuf message as one JSON document, field
names as in the .proto files, nothing left out (`printing`). What changes the index is in `article_commands`.
"""

from __future__ import annotations

import importlib.metadata
import sys
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from coldframe import article_commands, tables
from coldframe.client import error_of
from coldframe.errors import InvalidArgument
from coldframe.flags import RankingFlags, SeedFlags, ServerFlags, read_age, read_lines, read_moment, read_weight, spread
from coldframe.printing import show, show_several
from coldframe.requests import expansion, search_request, seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from coldframe.errors import ColdframeError
    from coldframe.v1.embedding_service_pb2 import StreamEmbedResponse
    from coldframe.v1.search_service_pb2 import StreamSearchResponse, WeightedSeed

Streamed = TypeVar("Streamed", "StreamSearchResponse", "StreamEmbedResponse")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coldframe {importlib.metadata.version('coldframe')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", "-n", metavar="N", help="How many articles, 1 to 1,000; 10 unless given.")
]
Clusters = Annotated[
    int | None, typer.Option("--limit", "-n", metavar="N", help="How many clusters, 1 to 1,000; 5 unless given.")
]


@app.callback(help='Ask a Coldframe server: "what is like this?"')
def _root(*, version: Version = False) -> None:
    """Own the options that stand without a command."""


@app.command(epilog='Example: coldframe search "central bank expected to cut rates" --limit 5')
@spread
def search(
    *,
    given: SeedFlags,
    limit: Limit = None,
    exact: Annotated[bool, typer.Option("--exact", help="Search every list, as brute force does.")] = False,
    ranking: RankingFlags,
    ask: ServerFlags,
) -> None:
    """Find the articles nearest to a text, an article, an indexed article's id, a vector, or a cluster."""
    text, other = given.read()
    with ask.client() as client:
        reply = client.search(text, **other, **ranking.options(), limit=limit, exact=exact, page_token=ranking.page)
    show(reply, tables.hits, ask.as_json)


@app.command(epilog="Example: coldframe search-each --limit 3 --json < headlines.txt")
@spread
def search_each(*, limit: Limit = None, ranking: RankingFlags, ask: ServerFlags) -> None:
    """Find the articles nearest to each line of standard input, as fast as the server takes them.

    --json prints a document a line, as they come; their correlation_id counts from 0. --timeout does not end that.

    A line that is refused says so in its place; the exit code tells of it.
    """
    texts = _texts_on_lines("search for")
    options = ranking.options()
    with ask.client() as client:
        requests = (search_request(text, **options, limit=limit, page_token=ranking.page) for text in texts)
        _show_each(texts, client.stream_search(requests), tables.one_of_many, ask.as_json)


def _texts_on_lines(use: str) -> Sequence[str]:
    texts = read_lines("texts", or_arguments=False)
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InvalidArgument(f"line {number} of standard input is empty; give a text to {use} on each.")
    return texts


def _show_each(
    texts: Sequence[str], replies: Iterable[Streamed], table: Callable[[str, Streamed], RenderableType], as_json: bool
) -> None:
    """Prints the answer to each text as it comes. Raises the first refusal, once all are there."""
    refused: ColdframeError | None = None
    for text, reply in zip(texts, replies, strict=True):
        show(reply, partial(table, text), as_json)
        if reply.HasField("error"):
            refused = refused or error_of(reply.error)
    if refused is not None:
        raise refused


@app.command(epilog="Example: coldframe recommend --like 1001=2.0 --like 1007 --unlike 1042 --text 'night trains'")
@spread
def recommend(
    *,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT[=WEIGHT]", help="Words of the reader; several are several interests."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            "--article-id",
            metavar="ID[=WEIGHT]",
            help="An article to find more like; may be given several times.",
        ),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(
            "--unlike", metavar="ID[=WEIGHT]", help="An article to find less like; may be given several times."
        ),
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", metavar="CLUSTER[=WEIGHT]", help="A cluster to find more of; may be given several times."
        ),
    ] = None,
    limit: Limit = None,
    interests: Annotated[
        int | None,
        typer.Option("--interests", metavar="N", help="Keep at most so many interests apart; 5 unless given."),
    ] = None,
    expand: Annotated[bool, typer.Option("--expand", help="Move texts towards the articles nearest to them.")] = False,
    ranking: RankingFlags,
    ask: ServerFlags,
) -> None:
    """Recommend to a reader of whom little is known.

    A weight, 1 unless given, stands behind the last '=': 1001=2.0 counts twice; below 0 it means less like this.

    An id or a text that ends in '=' and a number itself needs its weight written: 'page?v=5=1'.
    """
    seeds = [
        *_seeds("text", text),
        *_seeds("article_id", like),
        *_seeds("cluster_id", topic),
        *_seeds("article_id", unlike, sign=-1),
    ]
    if not seeds:
        raise InvalidArgument("nothing to go by; give at least one --text, --like or --topic.")
    with ask.client() as client:
        reply = client.recommend(
            seeds,
            **ranking.options(),
            limit=limit,
            max_interests=interests,
            expansion=expansion() if expand else None,
            page_token=ranking.page,
        )
    show(reply, tables.recommendations, ask.as_json)


def _seeds(kind: str, items: list[str] | None, sign: int = 1) -> Iterator[WeightedSeed]:
    for item in items or ():
        value, weight = read_weight(item, 1.0)
        yield seed(**cast("Any", {kind: value}), weight=sign * weight)


@app.command(epilog="Example: coldframe nearest --article draft.txt")
@spread
def nearest(
    *,
    given: SeedFlags,
    limit: Clusters = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", help="Of the shares: a small one sharpens them; 0.05 unless given."),
    ] = None,
    ask: ServerFlags,
) -> None:
    """Find the clusters nearest to a text, an article, an indexed article's id, a vector, or a cluster."""
    text, other = given.read()
    with ask.client() as client:
        reply = client.nearest_clusters(text, **other, limit=limit, temperature=temperature)
    show(reply, tables.matches, ask.as_json)


@app.command(epilog="Example: coldframe clusters --order freshness --server news.internal:50051")
@spread
def clusters(
    *,
    order: Annotated[str, typer.Option("--order", metavar="ORDER", help="size, freshness or growth.")] = "size",
    ask: ServerFlags,
) -> None:
    """List all clusters, the largest first."""
    with ask.client() as client:
        found = list(client.clusters(order=cast("Any", order)))  # the client says what is allowed
    show_several(found, "clusters", tables.clusters, ask.as_json)


@app.command(epilog="Example: coldframe cluster c0007")
@spread
def cluster(
    *,
    cluster_id: Annotated[str, typer.Argument(metavar="ID", help="A cluster's id, as 'coldframe clusters' lists it.")],
    neighbors: Annotated[
        int | None,
        typer.Option("--neighbors", metavar="N", help="How many clusters beside it, 0 to 100; 5 unless given."),
    ] = None,
    ask: ServerFlags,
) -> None:
    """Show one cluster: terms, typical articles, how they lie, how old they are, and what is beside it."""
    with ask.client() as client:
        reply = client.cluster(cluster_id, neighbor_limit=neighbors)
    show(reply, tables.cluster, ask.as_json)


@app.command(epilog="Example: coldframe articles c0007 --order newest --limit 20")
@spread
def articles(
    *,
    cluster_id: Annotated[str, typer.Argument(metavar="CLUSTER", help="A cluster's id.")],
    order: Annotated[
        str, typer.Option("--order", metavar="ORDER", help="centrality (the most typical first), newest or id.")
    ] = "centrality",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="How many articles; all of them unless given.")
    ] = None,
    ask: ServerFlags,
) -> None:
    """List the articles of a cluster."""
    if limit is not None and limit < 1:
        raise InvalidArgument(f"--limit is {limit}; give 1 or more, or leave it away for all.", field="--limit")
    page_size = None if limit is None else min(limit, 1_000)
    with ask.client() as client:
        each = client.cluster_articles(cluster_id, order=cast("Any", order), page_size=page_size)
        found = list(each if limit is None else islice(each, min(limit, sys.maxsize)))
    show_several(found, "articles", tables.articles, ask.as_json)


@app.command(epilog="Example: coldframe trending --window 12h --baseline 14")
@spread
def trending(
    *,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="AGE", help="How far back 'now' reaches, such as 12h; 1d unless given."),
    ] = None,
    baseline: Annotated[
        int | None,
        typer.Option("--baseline", metavar="N", help="How many windows before it tell what is usual; 7 unless given."),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of", metavar="DATE", help="The window's end; else the newest date that is not in the future."
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option("--min-count", metavar="N", help="Leave out clusters with fewer articles in it; 2 unless given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="How many clusters, 1 to 1,000; 10 unless given.")
    ] = None,
    ask: ServerFlags,
) -> None:
    """List the clusters that grow most."""
    with ask.client() as client:
        reply = client.trending(
            window=None if window is None else read_age(window, "--window"),
            baseline_windows=baseline,
            as_of=None if as_of is None else read_moment(as_of, "--as-of"),
            min_count=min_count,
            limit=limit,
        )
    show(reply, tables.trending, ask.as_json)


@app.command(epilog='Example: coldframe embed "a headline" --json > vector.json')
@spread
def embed(
    *,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; without any, each line of standard input is one."),
    ] = None,
    ask: ServerFlags,
) -> None:
    """Embed texts, at most 256, as the index's articles were embedded; --json prints whole vectors."""
    given = texts or read_lines("texts")
    with ask.client() as client:
        reply = client.embed(given)
    show(reply, lambda shown: tables.embeddings(shown, given), ask.as_json)


@app.command(epilog="Example: coldframe embed-each --json < headlines.txt > vectors.jsonl")
@spread
def embed_each(*, ask: ServerFlags) -> None:
    """Embed each line of standard input, any number of them, as fast as the server takes them.

    --json prints a document a line, as they come; their correlation_id counts from 0. --timeout does not end that.

    A line that is refused says so in its place; the exit code tells of it.
    """
    texts = _texts_on_lines("embed")
    with ask.client() as client:
        _show_each(texts, client.stream_embed(texts, packed=False), tables.embedded, ask.as_json)


@app.command(epilog="Example: coldframe info --json")
@spread
def info(*, ask: ServerFlags) -> None:
    """Describe the index that is being served, and the model that built it."""
    with ask.client() as client:
        reply = client.index()
    show(reply, tables.index, ask.as_json)


@app.command(epilog="Example: coldframe activate 20260301T040000Z-0123456789ab --server news.internal:50051")
@spread
def activate(
    *,
    generation: Annotated[
        str, typer.Argument(metavar="NAME", help="A generation of the server's store, as 'python -m indexer list' has.")
    ],
    force: Annotated[bool, typer.Option("--force", help="One that its build kept back, too.")] = False,
    ask: ServerFlags,
) -> None:
    """Make another generation the served one, and wait until it is; where it cannot be, the old one goes on."""
    with ask.client() as client:
        reply = client.activate(generation, force=force)
    show(reply, tables.activated, ask.as_json)


for _command, _example in (
    (article_commands.upsert, "coldframe upsert new.jsonl --validate-only"),
    (article_commands.delete, "coldframe delete 1001 1002"),
    (article_commands.get, "coldframe get 1001 --neighbors 5"),
):
    app.command(epilog=f"Example: {_example}")(spread(_command))
