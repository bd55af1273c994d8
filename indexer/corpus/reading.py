"""All rows of all sources, one after another, as articles and rejects."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from coldframe.errors import InvalidArgument
from coldframe.text import MAX_TEXT_CHARS
from indexer.corpus.articles import Article, Columns, Parser, Reject, Row
from indexer.corpus.sources import Source, source_of
from indexer.dates import DateOrder, shown_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

# How long rows wait for a date that shows the order.
_MAX_WAITING_ROWS = 1000
_MAX_WAITING_CHARS = 2**24


class _Found(NamedTuple):
    """A row, or the reason why there is none, and where it was found."""

    source: str
    line: int
    row: Row | str


def read(
    sources: Sequence[Source | Path],
    columns: Columns,
    *,
    clean_html: bool = False,
    max_text_chars: int = MAX_TEXT_CHARS,
) -> Iterator[Article | Reject]:
    """Read the sources one after another; the memory needed is that of a few rows.

    `max_text_chars` bounds title and content together, with the line break between them; `clean_html` rids both of
    markup first (`indexer.clean`).

    Whether 01/02/2016 is the first of February or the second of January is decided once for the whole corpus: by
    `columns.date_order`, else by the first date that can be read in one way only (22/08/2016). Rows with dates that
    can be read in both ways wait for it, 1,000 rows at most; then, and if there is none, the month is first. A date
    that contradicts the order is not read: its article is kept undated, with the text as an attribute.

    Raises InvalidArgument at once for a file of an unknown format; while reading, for a source that is missing, empty,
    corrupt, or without the columns that are needed, and for a date that shows, after more than 1,000 rows were read
    with the month first, that the day is.
    """
    found = [source if isinstance(source, Source) else source_of(source) for source in sources]
    parser = Parser(columns, max_text_chars, _cleaner() if clean_html else None)
    return _articles(_rows(found, columns), parser)


def _cleaner() -> Callable[[str], str]:
    from indexer.clean import clean

    return clean


def _rows(sources: Iterable[Source], columns: Columns) -> Iterator[_Found]:
    for source in sources:
        for line, row in source.rows(columns):
            yield _Found(source.name, line, row)


def _articles(rows: Iterable[_Found], parser: Parser) -> Iterator[Article | Reject]:
    for found, order in _ordered(rows, parser):
        if isinstance(found.row, str):
            yield Reject(found.source, found.line, found.row, "")
        else:
            yield parser.article(found.row, found.source, found.line, order)


def _ordered(rows: Iterable[_Found], parser: Parser) -> Iterator[tuple[_Found, DateOrder | None]]:
    """Every row with the order of numbers in dates, or None as long as that does not matter."""
    order, assumed = parser.columns.date_order, False
    waiting: list[_Found] = []
    chars = 0
    for found in rows:
        shown = shown_order(parser.date_cell(found.row)) if isinstance(found.row, dict) else None
        if assumed and shown == "dmy":
            raise _contradiction(found, parser)
        if shown in {"dmy", "mdy"}:
            order, assumed = order or shown, False
        waiting.append(found)
        if order is None and (shown == "either" or len(waiting) > 1):
            chars += _chars(found.row)
            if len(waiting) < _MAX_WAITING_ROWS and chars < _MAX_WAITING_CHARS:
                continue
            order, assumed = "mdy", True
        yield from ((row, order) for row in waiting)
        waiting.clear()
    yield from ((row, order or "mdy") for row in waiting)


def _chars(row: Row | str) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str)) if isinstance(row, dict) else 0


def _contradiction(found: _Found, parser: Parser) -> InvalidArgument:
    date = parser.date_cell(found.row) if isinstance(found.row, dict) else ""
    return InvalidArgument(
        f"{found.source}, line {found.line}: in the date {date!s} the day comes first, and in none of more than "
        "1,000 dates before it could that be told: they were read with the month first. Say --date-order dmy, or mdy "
        "if this date is a mistake.",
        field="date-order",
    )
