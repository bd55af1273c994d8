"""The flags that say which corpus is read, and how: the same for every command that reads one."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.corpus import CorpusConfig

PANEL = "Corpus and store"


def _flag(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=PANEL)


def _config(
    *,
    corpus: Annotated[
        list[str] | None,
        _flag("CSV, TSV, JSONL or Parquet, plain, .gz or .zst: a file, folder, quoted glob or URL; repeatable."),
    ] = None,
    query: Annotated[
        str | None, _flag("Instead of --corpus: SQL that selects the articles, from files or from --database.")
    ] = None,
    database: Annotated[
        str | None, _flag("What --query is asked of: a SQLAlchemy URL, or a file of SQLite's or DuckDB's.")
    ] = None,
    clean_html: Annotated[bool, _flag("Rid titles and texts of HTML markup and entities.", "--clean-html")] = False,
    id_column: Annotated[str | None, _flag("The column of ids, where its name is unusual.")] = None,
    title_column: Annotated[str | None, _flag("The column of titles.")] = None,
    content_column: Annotated[str | None, _flag("The column of texts.")] = None,
    date_column: Annotated[str | None, _flag("The column of dates.")] = None,
    attributes: Annotated[
        str | None, _flag("Which other columns are kept, with commas between; without it all, with '' none.")
    ] = None,
    date_order: Annotated[
        Literal["dmy", "mdy"] | None, _flag("What 01/02/2016 means; without it what the corpus shows.")
    ] = None,
) -> CorpusConfig:
    from indexer.corpus import Columns, CorpusConfig

    kept = None if attributes is None else tuple(filter(None, (name.strip() for name in attributes.split(","))))
    columns = Columns(id_column, title_column, content_column, date_column, kept, date_order)
    return CorpusConfig(corpus or (), query, database, clean_html, columns)


def reads_corpus(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command of Typer's the flags of a corpus; what they say it gets as `corpus`, a CorpusConfig."""
    flags = inspect.signature(_config).parameters
    own = [each for name, each in inspect.signature(command).parameters.items() if name != "corpus"]

    @wraps(command)
    def asked(**given: Any) -> None:
        chosen = _config(**{name: given.pop(name) for name in flags})
        command(corpus=chosen, **given)

    hints = _hints(command) | _hints(_config)
    asked.__annotations__ = {name: hints[name] for name in [*flags, *(each.name for each in own)]}
    parameters = [each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY) for each in [*flags.values(), *own]]
    asked.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return asked


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of its parameters. CorpusConfig is not imported until a command runs: readers take a second to load."""
    return get_type_hints(function, localns={"CorpusConfig": object}, include_extras=True)
