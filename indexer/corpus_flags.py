"""The flags that say which corpus is read, and how: the same for every command that reads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from indexer.corpus import CorpusConfig

PANEL = "Corpus and store"


def _flag(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=PANEL)


@dataclass(frozen=True, kw_only=True)
class CorpusFlags:
    """Which corpus, and how it is read; a command takes them by `coldframe.flags.spread`."""

    corpus: Annotated[
        list[str] | None,
        _flag("CSV, TSV, JSONL or Parquet, plain, .gz or .zst: a file, folder, quoted glob or URL; repeatable."),
    ] = None
    query: Annotated[
        str | None, _flag("Instead of --corpus: SQL that selects the articles, from files or from --database.")
    ] = None
    database: Annotated[
        str | None, _flag("What --query is asked of: a SQLAlchemy URL, or a file of SQLite's or DuckDB's.")
    ] = None
    clean_html: Annotated[bool, _flag("Rid titles and texts of HTML markup and entities.", "--clean-html")] = False
    id_column: Annotated[str | None, _flag("The column of ids, where its name is unusual.")] = None
    title_column: Annotated[str | None, _flag("The column of titles.")] = None
    content_column: Annotated[str | None, _flag("The column of texts.")] = None
    date_column: Annotated[str | None, _flag("The column of dates.")] = None
    attributes: Annotated[
        str | None, _flag("Which other columns are kept, with commas between; without it all, with '' none.")
    ] = None
    date_order: Annotated[
        Literal["dmy", "mdy"] | None, _flag("What 01/02/2016 means; without it what the corpus shows.")
    ] = None

    def config(self) -> CorpusConfig:
        """What they say. Readers take a second to load: no --help waits for them."""
        from indexer.corpus import Columns, CorpusConfig

        names = self.attributes
        kept = None if names is None else tuple(filter(None, (name.strip() for name in names.split(","))))
        columns = Columns(
            self.id_column, self.title_column, self.content_column, self.date_column, kept, self.date_order
        )
        return CorpusConfig(self.corpus or (), self.query, self.database, self.clean_html, columns)
