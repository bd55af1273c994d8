"""Which corpus, and how it is read: what the flags of every command that reads articles say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from indexer.corpus.articles import Columns
from indexer.corpus.reading import read
from indexer.corpus.sources import find_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from indexer.corpus.articles import Article, Reject
    from indexer.corpus.sources import Say, Source


@dataclass(frozen=True)
class CorpusConfig:
    """What a person says of a corpus: what there is to read, and everything that decides what an article of it is."""

    files: Sequence[str] = ()
    """Files, folders, globs, URLs."""
    query: str | None = None
    """Instead of files."""
    database: str | None = None
    """What the query is asked of; None: files that it names."""
    clean_html: bool = False
    columns: Columns = field(default_factory=Columns)
    apart_from: Sequence[Path] = ()
    """What is no part of it though one of its folders may hold it: the store, the file of rejects."""

    @property
    def named(self) -> bool:
        """Whether anything is named at all."""
        return bool(self.files) or self.query is not None or self.database is not None

    def sources(self, say: Say | None = None) -> list[Source]:
        """What there is to read, by `find_sources`, which says what it raises."""
        return find_sources(self.files, self.query, self.database, say=say, apart_from=self.apart_from)

    def read(self, sources: Sequence[Source] | None = None) -> Iterator[Article | Reject]:
        """All rows of these sources, or of those that there are now, by `read`, which says what it raises."""
        found = self.sources() if sources is None else sources
        return read(found, self.columns, clean_html=self.clean_html)
