"""What the `coldframe` command line asks a server: each command is one question.

A person gets a table (`tables`), a program gets `--json`: the reply's protobuf message as one JSON document, field
names as in the .proto files, nothing left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from google.protobuf.json_format import MessageToDict

from coldframe import tables
from coldframe.client import Client
from coldframe.errors import InvalidArgument
from coldframe.v1.types_pb2 import Article

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message
    from rich.console import RenderableType

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for an answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
SeedText = Annotated[str | None, typer.Argument(metavar="TEXT", help="Any text; '-' reads it from standard input.")]
SeedArticle = Annotated[
    Path | None,
    typer.Option("--article", metavar="FILE", help="A text file: the title on its first line, then the content."),
]
SeedId = Annotated[str | None, typer.Option("--id", metavar="ID", help="An article that the index holds.")]
SeedVector = Annotated[
    Path | None,
    typer.Option("--vector", metavar="FILE", help="A JSON list of numbers, or what 'embed --json' printed for a text."),
]

LOCAL = "localhost:50051"
PATIENCE_S = 30.0


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coldframe {importlib.metadata.version('coldframe')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


@app.callback(help='Ask a Coldframe server: "what is like this?"')
def _root(*, version: Version = False) -> None:
    """Own the options that stand without a command."""


@app.command(epilog='Example: coldframe search "central bank expected to cut rates" --limit 5')
def search(
    *,
    text: SeedText = None,
    article: SeedArticle = None,
    article_id: SeedId = None,
    vector: SeedVector = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="How many articles, 1 to 1,000; 10 unless given.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Search every list, as brute force does.")] = False,
    server: Server = LOCAL,
    timeout: Timeout = PATIENCE_S,
    as_json: AsJson = False,
) -> None:
    """Find the articles nearest to a text, an article, an indexed article's id, or a vector."""
    seed = _read_seed(text, article, article_id, vector)
    with Client(server, timeout=timeout) as client:
        reply = client.search(
            seed.text,
            article=seed.article,
            article_id=seed.article_id,
            vector=seed.vector,
            limit=limit,
            exact=exact,
        )
    _show(reply, tables.hits, as_json)


@app.command(epilog="Example: coldframe nearest --article draft.txt")
def nearest(
    *,
    text: SeedText = None,
    article: SeedArticle = None,
    article_id: SeedId = None,
    vector: SeedVector = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="How many clusters, 1 to 1,000; 5 unless given.")
    ] = None,
    server: Server = LOCAL,
    timeout: Timeout = PATIENCE_S,
    as_json: AsJson = False,
) -> None:
    """Find the clusters nearest to a text, an article, an indexed article's id, or a vector."""
    seed = _read_seed(text, article, article_id, vector)
    with Client(server, timeout=timeout) as client:
        reply = client.nearest_clusters(
            seed.text, article=seed.article, article_id=seed.article_id, vector=seed.vector, limit=limit
        )
    _show(reply, tables.matches, as_json)


@app.command(epilog="Example: coldframe clusters --server news.internal:50051")
def clusters(*, server: Server = LOCAL, timeout: Timeout = PATIENCE_S, as_json: AsJson = False) -> None:
    """List all clusters, the largest first."""
    with Client(server, timeout=timeout) as client:
        found = list(client.clusters())
    if as_json:
        _print_json({"clusters": [_document(cluster) for cluster in found]})
    else:
        tables.show(tables.clusters(found))


@app.command(epilog="Example: coldframe cluster c0007")
def cluster(
    *,
    cluster_id: Annotated[str, typer.Argument(metavar="ID", help="A cluster's id, as 'coldframe clusters' lists it.")],
    server: Server = LOCAL,
    timeout: Timeout = PATIENCE_S,
    as_json: AsJson = False,
) -> None:
    """Show one cluster: its terms and its typical articles."""
    with Client(server, timeout=timeout) as client:
        reply = client.cluster(cluster_id)
    _show(reply, tables.cluster, as_json)


@app.command(epilog='Example: coldframe embed "a headline" --json > vector.json')
def embed(
    *,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; without any, each line of standard input is one."),
    ] = None,
    server: Server = LOCAL,
    timeout: Timeout = PATIENCE_S,
    as_json: AsJson = False,
) -> None:
    """Embed texts as the index's articles were embedded; --json prints whole vectors."""
    given = texts or _read_lines()
    with Client(server, timeout=timeout) as client:
        reply = client.embed(given)
    _show(reply, lambda shown: tables.embeddings(shown, given), as_json)


@app.command(epilog="Example: coldframe info --json")
def info(*, server: Server = LOCAL, timeout: Timeout = PATIENCE_S, as_json: AsJson = False) -> None:
    """Describe the index that is being served, and the model that built it."""
    with Client(server, timeout=timeout) as client:
        reply = client.index()
    _show(reply, tables.index, as_json)


# ---------------------------------------------------------------------------------------------------------------
# Reading seeds


@dataclass(frozen=True)
class _Seed:
    """What a search starts from: one of these, the others None."""

    text: str | None
    article: Article | None
    article_id: str | None
    vector: Sequence[float] | None


def _read_seed(text: str | None, article: Path | None, article_id: str | None, vector: Path | None) -> _Seed:
    given = [seed for seed in (text, article, article_id, vector) if seed is not None]
    if len(given) != 1:
        raise InvalidArgument(f"{len(given)} seeds given; give exactly one of TEXT, --article, --id, --vector.")
    return _Seed(
        text=_read_stdin() if text == "-" else text,
        article=None if article is None else _read_article(article),
        article_id=article_id,
        vector=None if vector is None else _read_vector(vector),
    )


def _read_article(path: Path) -> Article:
    title, _, content = _read_file(path, "--article").lstrip().partition("\n")
    return Article(title=title.strip(), content=content.strip())


def _read_vector(path: Path) -> list[float]:
    text = _read_file(path, "--vector")
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            (embedding,) = document["embeddings"]
            document = embedding["vector"]["values"]
        return [float(value) for value in document]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgument(
            f"{path} is no vector; give a JSON list of numbers, or what 'coldframe embed --json' printed for one text.",
            field="--vector",
        ) from error


def _read_file(path: Path, flag: str) -> str:
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field=flag) from error


def _read_stdin() -> str:
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _read_lines() -> list[str]:
    if sys.stdin.isatty():
        raise InvalidArgument("no texts; give them as arguments, or pipe one a line into this command.")
    return _read_stdin().splitlines()


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is not UTF-8 (byte {error.start}); convert it and try again.") from error


# ---------------------------------------------------------------------------------------------------------------
# Printing replies


Reply = TypeVar("Reply", bound="Message")


def _show(reply: Reply, table: Callable[[Reply], RenderableType], as_json: bool) -> None:
    if as_json:
        _print_json(_document(reply))
    else:
        tables.show(table(reply))


def _document(message: Message) -> dict[str, Any]:
    """Return a message as a dictionary, with fields that hold their default, such as an empty list of hits."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
