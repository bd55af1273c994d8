"""The commands of the `coldframe` command line that add, replace, remove and show single articles."""

from __future__ import annotations

import re
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldframe import tables
from coldframe.article_lines import read_articles
from coldframe.client import error_of
from coldframe.connection import broke_off
from coldframe.errors import ColdframeError, InvalidArgument
from coldframe.flags import ServerFlags, nothing_piped, read_lines
from coldframe.printing import document, print_json, show
from coldframe.v1.article_service_pb2 import DeleteArticlesResponse, UpsertResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import RawIOBase

    from coldframe.v1.article_service_pb2 import StreamUpsertArticlesResponse
    from coldframe.v1.types_pb2 import Article, ItemError

ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Say what would happen, and change nothing.")]
Clusters = Annotated[int, typer.Option("--clusters", metavar="N", help="Show so many nearest clusters, 0 to 100.")]
Neighbors = Annotated[int, typer.Option("--neighbors", metavar="N", help="Show so many nearest articles, 0 to 100.")]

MAX_IDS = 1_000
"""In one call of DeleteArticles."""
_BLOCK_BYTES = 2**20


def upsert(
    *,
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="JSON lines; '-', or no file, reads standard input.")
    ] = "-",
    validate_only: ValidateOnly = False,
    group: Annotated[
        int, typer.Option("--group", metavar="N", help="Articles that stand or fall together, 1 to 256.")
    ] = 64,
    clusters: Clusters = 0,
    neighbors: Neighbors = 0,
    ask: ServerFlags,
) -> None:
    """Add or replace articles, one JSON object a line: id, title, content, published_at, attributes.

    They are sent in groups, as fast as the server takes them; --timeout does not end that.

    A line that is wrong does: the message names it, and what was done before it. Sending a file again does no harm.
    """
    progress = _Progress(validate_only, kept=sys.maxsize if ask.as_json else tables.SHOWN)
    with ask.client() as client, _lines_of(file) as lines, progress.told():
        replies = client.stream_upsert(
            progress.read(lines),
            group=group,
            validate_only=validate_only,
            cluster_limit=clusters,
            neighbor_limit=neighbors,
        )
        for reply in replies:
            progress.take(reply)
    if ask.as_json:
        results = [document(result) for result in progress.results]
        print_json({**progress.counts, "results": results})
    else:
        tables.show(tables.upserted(progress.results, progress.counts, validate_only))


@contextmanager
def _lines_of(name: str) -> Iterator[Iterable[bytes]]:
    if name == "-":
        if nothing_piped():
            raise InvalidArgument("no articles; name a file of JSON lines, or pipe one into this command.")
        given: Any = sys.stdin.buffer
        yield _lines(getattr(given, "raw", given))
        return
    try:
        with open(name, "rb", buffering=0) as file:
            yield _lines(file)
    except OSError as error:
        raise InvalidArgument(f"{name} cannot be read: {error.strerror}.", field="FILE") from error


def _lines(file: RawIOBase) -> Iterator[bytes]:
    """Yield the lines of a file without a buffer: gRPC's thread may still wait for the next one when the command ends.
    A buffer would be locked meanwhile, for which Python aborts, or waits until the line comes.
    """
    line = bytearray()
    while block := file.read(_BLOCK_BYTES):
        *ends, begun = block.split(b"\n")
        for end in ends:
            yield bytes(line + end)
            line.clear()
        line += begun
    if line:
        yield bytes(line)


@dataclass
class _Progress:
    """How far an upsert has come, in lines of its file."""

    validate_only: bool
    kept: int
    """Results to keep, for printing: a file may be longer than memory."""
    lines: list[int] = field(default_factory=list)
    """The line of each article that was read."""
    done: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of the first and the last article of each stretch that was taken."""
    results: list[UpsertResult] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(tables.OUTCOMES.values(), 0)))
    refusal: ColdframeError | None = None

    def read(self, lines: Iterable[bytes]) -> Iterator[Article]:
        """Yield the articles; none follow after a group was refused."""
        for number, found in read_articles(lines):
            if self.refusal is not None:
                return
            self.lines.append(number)
            yield found

    def take(self, reply: StreamUpsertArticlesResponse) -> None:
        """Note what became of a group."""
        first, last = map(int, reply.correlation_id.split("-"))
        if reply.HasField("error"):
            self.refusal = self.refusal or self._refused(reply.error, first, last)
            return
        self.counts.update(tables.OUTCOMES[result.outcome] for result in reply.response.results)
        self.results.extend(reply.response.results[: self.kept - len(self.results)])
        before = self.done.pop() if self.done and self.done[-1][1] == first - 1 else (first, last)
        self.done.append((before[0], last))

    def _refused(self, error: ItemError, first: int, last: int) -> ColdframeError:
        """Name the line, where the server names the article."""
        number = re.match(r"articles\[(\d+)\]", error.field)
        if number is None:
            where = f"lines {self.lines[first]} to {self.lines[last]}"
        else:
            where = f"line {self.lines[first + int(number[1])]}"
        told = type(error)(code=error.code, message=f"{where}: {error.message}", field=error.field)
        return error_of(told)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say with an error what was done before it."""
        try:
            yield
            if self.refusal is not None:
                raise self.refusal
        except ColdframeError as error:
            told = f"{error.message.rstrip('.')}. {self._so_far(unsure=broke_off(error))}"
            raise type(error)(told) from error

    def _so_far(self, *, unsure: bool) -> str:
        verb, again = "checked" if self.validate_only else "upserted", "sending them again does no harm"
        if not self.done:
            return f"No line is known to be {verb}, some may be; {again}." if unsure else f"Nothing was {verb}."
        spans = ", ".join(f"{self.lines[first]} to {self.lines[last]}" for first, last in self.done)
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        return f"Lines {spans} were {verb} ({counts}){', and others may be' if unsure else ''}; {again}."


def delete(
    *,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Ids; without any, each line of standard input is one."),
    ] = None,
    validate_only: ValidateOnly = False,
    ask: ServerFlags,
) -> None:
    """Remove articles: no search finds them any more, and no rebuild brings them back, unless its corpus is said to be
    newer (--corpus-as-of). What is left on the disk: docs/operations.md.
    """
    # No id has a space at its ends, and what prints a column of them often puts some there.
    given = [name for line in ids or read_lines("ids") if (name := line.strip())]
    if not given:
        raise InvalidArgument("no ids; give at least one.")
    whole = DeleteArticlesResponse()
    with ask.client() as client:
        for start in range(0, len(given), MAX_IDS):
            try:
                reply = client.delete(given[start : start + MAX_IDS], validate_only=validate_only)
            except ColdframeError as error:
                raise type(error)(f"{error.message.rstrip('.')}. {start:,} ids before were dealt with.") from error
            whole.MergeFrom(reply)
    show(whole, lambda shown: tables.deleted(shown, validate_only), ask.as_json)


def get(
    *,
    article_id: Annotated[str, typer.Argument(metavar="ID", help="An article that the index holds.")],
    clusters: Clusters = 0,
    neighbors: Neighbors = 0,
    ask: ServerFlags,
) -> None:
    """Show one article: its cluster, its story, and what is near it."""
    with ask.client() as client:
        reply = client.get_article(article_id, cluster_limit=clusters, neighbor_limit=neighbors)
    show(reply, tables.article, ask.as_json)
