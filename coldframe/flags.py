"""Flags that several commands of the `coldframe` command line share, and how a person's words become values.

A command takes a group of flags as one parameter, such as `given: SeedFlags`; `spread` lays its fields out as options.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_type_hints

import typer

from coldframe import filters
from coldframe.client import Client
from coldframe.errors import InvalidArgument
from coldframe.v1.types_pb2 import Article

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coldframe.requests import RankingOptions, SeedOptions

Command = TypeVar("Command", bound="Callable[..., None]")

_MANY = "; may be given several times."


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Whom to ask, and how to print the answer."""

    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")] = (
        "localhost:50051"
    )
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for an answer.")] = (
        30.0
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS; the other --tls options mean it, too.")] = False
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", metavar="FILE", help="Authorities to believe (PEM), such as your own.")
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Your own certificate (PEM), if asked for one.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="The key of --tls-cert.")] = None
    tls_server_name: Annotated[
        str | None, typer.Option("--tls-server-name", metavar="NAME", help="The name in the server's certificate.")
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", metavar="KEY", help="Who you are; best by environment, COLDFRAME_API_KEY."),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the key in plain text to another machine all the same.")
    ] = False

    def client(self) -> Client:
        """Open a client."""
        if not 0 < self.timeout < math.inf:
            raise InvalidArgument(
                f"--timeout is {self.timeout:g}; give seconds above 0, such as 60.", field="--timeout"
            )
        return Client(
            self.server,
            timeout=self.timeout,
            tls=self.tls,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_server_name=self.tls_server_name,
            api_key=self.api_key,
            insecure=self.insecure,
        )


@dataclass(frozen=True, kw_only=True)
class SeedFlags:
    """What a search starts from: one of these."""

    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Any text; '-' reads it from standard input.")] = (
        None
    )
    article: Annotated[
        Path | None,
        typer.Option("--article", metavar="FILE", help="A text file: the title on its first line, then the content."),
    ] = None
    article_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="An article that the index holds.")] = (
        None
    )
    vector: Annotated[
        Path | None,
        typer.Option(
            "--vector", metavar="FILE", help="A JSON list of numbers, or what 'embed --json' printed for a text."
        ),
    ] = None
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="CLUSTER", help="A cluster: what is nearest to its centre.")
    ] = None

    def read(self) -> tuple[str | None, SeedOptions]:
        """Return the text and, by name, what else is given. Raises InvalidArgument unless there is one seed."""
        given = [value for value in dataclasses.astuple(self) if value is not None]
        if len(given) != 1:
            raise InvalidArgument(
                f"{len(given)} seeds given; give exactly one of TEXT, --article, --id, --vector, --topic."
            )
        return read_stdin() if self.text == "-" else self.text, {
            "article": None if self.article is None else _read_article(self.article),
            "article_id": self.article_id,
            "vector": None if self.vector is None else _read_vector(self.vector),
            "cluster_id": self.topic,
        }


@dataclass(frozen=True, kw_only=True)
class RankingFlags:
    """Which articles may be answered, and how they are put in order."""

    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="KEY=VALUE,..", help=f"Only articles whose attribute is one of these values{_MANY}"
        ),
    ] = None
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="Only articles published then or later; UTC.")
    ] = None
    before: Annotated[
        str | None, typer.Option("--before", metavar="DATE", help="Only articles published earlier; UTC.")
    ] = None
    cluster: Annotated[
        list[str] | None, typer.Option("--cluster", metavar="ID", help=f"Only articles of these clusters{_MANY}")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="ID", help=f"An article not to answer{_MANY}")
    ] = None
    max_per_story: Annotated[
        int | None,
        typer.Option("--max-per-story", metavar="N", help="Articles that tell one story; 1 unless given, 0 for all."),
    ] = None
    max_per_cluster: Annotated[
        int | None,
        typer.Option("--max-per-cluster", metavar="N", help="Articles of one cluster; any number unless given."),
    ] = None
    diversity: Annotated[
        float | None,
        typer.Option("--diversity", metavar="SHARE", help="0, the order of relevance, to 1, unlike all before it."),
    ] = None
    half_life: Annotated[
        str | None,
        typer.Option(
            "--half-life", metavar="AGE", help="Age, such as 12h or 3d, that takes half of the weight of being fresh."
        ),
    ] = None
    recency_weight: Annotated[
        float | None,
        typer.Option("--recency-weight", metavar="COSINE", help="What age takes away at most; 0.2 unless given."),
    ] = None
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="ID=COSINE", help=f"Add this to the score of an article{_MANY}"),
    ] = None
    popularity: Annotated[
        str | None,
        typer.Option("--popularity", metavar="KEY", help="An attribute with a number that counts, such as views."),
    ] = None
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="SCORE", help="Leave out what scores less.")
    ] = None
    explore: Annotated[
        float | None,
        typer.Option("--explore", metavar="SHARE", help="Give this share of places to chance, 0 to 1."),
    ] = None
    explore_seed: Annotated[
        int | None, typer.Option("--explore-seed", metavar="N", help="The same number draws the same.")
    ] = None
    effort: Annotated[
        str | None,
        typer.Option("--effort", metavar="LEVEL", help="fast, balanced or exact; balanced unless given."),
    ] = None
    recall: Annotated[
        float | None,
        typer.Option("--recall", metavar="SHARE", help="Search as much as finds this share of the true nearest."),
    ] = None
    page: Annotated[
        str | None, typer.Option("--page", metavar="TOKEN", help="The page after one that ended with this token.")
    ] = None
    explain: Annotated[bool, typer.Option("--explain", help="Show the parts that add up to each score.")] = False

    def options(self) -> RankingOptions:
        """Return the client's options."""
        return {
            "filter": self._filter(),
            "exclude_ids": self.exclude,
            "max_per_story": self.max_per_story,
            "max_per_cluster": self.max_per_cluster,
            "diversity": self.diversity,
            "half_life": None if self.half_life is None else read_age(self.half_life, "--half-life"),
            "recency_weight": self.recency_weight,
            "priors": dict(read_weight(item) for item in self.prior or ()) or None,
            "popularity_attribute": self.popularity,
            "min_score": self.min_score,
            "explore_fraction": self.explore,
            "explore_seed": self.explore_seed,
            "effort": cast("Any", self.effort),
            "target_recall": self.recall,
            "read_mask": ["article", "score", "explanation"] if self.explain else None,
        }

    def _filter(self) -> filters.Condition | None:
        conditions = [_attribute_in(item) for item in self.where or ()]
        if self.cluster:
            conditions.append(filters.cluster(*self.cluster))
        if self.since is not None or self.before is not None:
            since, before = _moment(self.since, "--since"), _moment(self.before, "--before")
            conditions.append(filters.published(since=since, before=before))
        if len(conditions) > 1:
            return filters.all_of(*conditions)
        return conditions[0] if conditions else None


def spread(command: Command) -> Command:
    """Lay out a command's parameters that are groups of flags, for Typer to read: an option for each field."""
    own = inspect.signature(command, eval_str=True)
    groups = {name: item.annotation for name, item in own.parameters.items() if _is_group(item.annotation)}
    laid_out: list[inspect.Parameter] = []
    for name, item in own.parameters.items():
        laid_out += _parameters(groups[name]) if name in groups else [item]

    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        command(**values)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {item.name: item.annotation for item in laid_out}
    run.__signature__ = inspect.Signature(laid_out)  # type: ignore[attr-defined]
    return cast("Command", run)


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
            annotation=hints[name],
        )
        for name, default in defaults.items()
    ]


# ---------------------------------------------------------------------------------------------------------------
# Words


def read_weight(item: str, default: float | None = None) -> tuple[str, float]:
    """Return what stands before the last '=' and the number behind it; without one, the default. --prior has none."""
    found = re.fullmatch(r"(.+)=([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", item, re.DOTALL)
    if found is not None:
        return found[1], float(found[2])
    if default is None:
        raise InvalidArgument(f"--prior is '{item}'; give ID=NUMBER, such as 1001=0.1.", field="--prior")
    return item, default


def read_folder(word: str) -> Path:
    """Return a store's folder. A shell makes "" of a variable that is not set, and Path of that the folder at hand."""
    if not word:
        raise InvalidArgument("--store is empty; give the folder of generations, or '.' for this one.", field="store")
    return Path(word)


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_age(word: str, flag: str) -> timedelta:
    """Return the length of time that 90s, 30m, 12h, 3d or 2w is."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhdw])", word)
    if found is None:
        raise InvalidArgument(f"{flag} is '{word}'; give a number and s, m, h, d or w, such as 12h or 3d.", field=flag)
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def read_moment(word: str, flag: str) -> datetime:
    """Return an ISO date or time; in UTC where it names no time zone."""
    try:
        moment = datetime.fromisoformat(word)
    except ValueError as error:
        raise InvalidArgument(
            f"{flag} is '{word}'; give a date such as 2026-03-01 or a time such as 2026-03-01T06:00Z.", field=flag
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _moment(word: str | None, flag: str) -> datetime | None:
    return None if word is None else read_moment(word, flag)


def _attribute_in(item: str) -> filters.Condition:
    key, found, values = item.partition("=")
    if not (key and found and values):
        raise InvalidArgument(
            f"--where is '{item}'; give KEY=VALUE, or KEY=VALUE,VALUE for one of several.", field="--where"
        )
    return filters.attribute(key).is_in(*values.split(","))


# ---------------------------------------------------------------------------------------------------------------
# Files and standard input


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
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InvalidArgument(
            f"{path} is no vector; give a JSON list of numbers, or what 'coldframe embed --json' printed for one text.",
            field="--vector",
        ) from error


def _read_file(path: Path, flag: str) -> str:
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field=flag) from error


def nothing_piped() -> bool:
    """Whether standard input is a person's, who was asked for nothing, or was closed by who started this program."""
    return sys.stdin is None or sys.stdin.isatty()


def read_stdin() -> str:
    """Return all of standard input."""
    if sys.stdin is None:
        raise InvalidArgument("standard input is closed; pipe a text into this command, or give it as an argument.")
    return decoded(sys.stdin.buffer.read(), "standard input")


def read_lines(what: str, *, or_arguments: bool = True) -> Sequence[str]:
    """Return the lines of standard input. Raises InvalidArgument where nothing is piped in; or_arguments: whether the
    command would take them as arguments, too.
    """
    piped = "" if nothing_piped() else read_stdin()
    if not piped:
        ways = "give them as arguments, or pipe" if or_arguments else "pipe"
        raise InvalidArgument(f"no {what}; {ways} one a line into this command.")
    # Not splitlines: texts hold form feeds and U+2028, and what comes back must line up with what was piped in.
    *lines, rest = piped.split("\n")
    return [line.removesuffix("\r") for line in ([*lines, rest] if rest else lines)]


def decoded(data: bytes, name: str) -> str:
    """Return UTF-8 as text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is not UTF-8 (byte {error.start}); convert it and try again.") from error
