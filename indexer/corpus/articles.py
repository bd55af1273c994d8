"""A row of any source becomes an article, or a reject with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from coldframe.errors import InvalidArgument
from coldframe.text import article_text, is_unicode
from indexer.dates import DateOrder, parse_date

MAX_ID_CHARS = 512
MAX_ATTRIBUTE_CHARS = 2**26
"""Of all attributes together, with their names: the spool and the table of articles hold no more than a few times that
in one row.
"""
_SPREAD = "attributes"
_MARKUP = 10  # HTML that is so many times longer than a text may be is refused without being cleaned

# The names by which a column is recognised, best first; written without case, spaces, '_' and '-'.
_RECOGNISED = {
    "id": ("articleid", "id", "docid", "guid", "uuid"),
    "title": ("title", "headline"),
    "content": ("content", "text", "body", "article"),
    "date": ("date", "publishedat", "published", "publicationdate", "timestamp", "datetime"),
}

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]
"""What a source gives: the line, and the row by column or the reason why there is none."""


@dataclass(frozen=True, slots=True)
class Article:
    """One article. `published_at` is aware, in UTC; `source` and `line` say where it was read, and are not compared."""

    id: str
    title: str
    content: str
    published_at: datetime | None
    attributes: dict[str, str]
    source: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used.

    `source` is the name of the source, `line` the 1-based line on which the row begins (for Parquet and SQL the number
    of the row), `reason` a kind and its details: "text too long: 2,000,000 characters, ...". `id` is "" if not known.
    """

    source: str
    line: int
    reason: str
    id: str

    @property
    def kind(self) -> str:
        """The reason without its details, for counting."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Columns:
    """Which columns are what, by their names exactly as in the corpus; None recognises the usual names."""

    id: str | None = None
    title: str | None = None
    content: str | None = None
    date: str | None = None
    attributes: tuple[str, ...] | None = None
    """The other columns that are kept; None: all of them."""
    date_order: DateOrder | None = None
    """What 01/02/2016 means; None: what the corpus shows."""


class Roles(NamedTuple):
    """The column of each role; None where there is none."""

    id: str | None
    title: str | None
    content: str | None
    date: str | None


@dataclass(frozen=True)
class Parser:
    """Makes articles of rows. `clean` is applied to title and content; `max_text_chars` bounds the text of both."""

    columns: Columns
    max_text_chars: int
    clean: Callable[[str], str] | None = None

    def date_cell(self, row: Row) -> Any:
        """What stands in the date column; None where there is none."""
        name = recognise(tuple(row), self.columns).date
        return row[name] if name is not None else None

    def article(self, row: Row, source: str, line: int, order: DateOrder | None) -> Article | Reject:
        """Never raises: what cannot be used is a Reject."""
        roles = recognise(tuple(row), self.columns)
        article_id, title, content = (_cell(row, name).strip() for name in (roles.id, roles.title, roles.content))
        if self.clean and len(title) + len(content) <= _MARKUP * self.max_text_chars:
            title, content = self.clean(title).replace("\n", " "), self.clean(content)
        published_at = parse_date(row[roles.date], order) if roles.date is not None else None
        attributes = self._attributes(row, roles, dated=published_at is not None)
        reason = (
            _encoding_fault([*zip(roles, (article_id, title, content), strict=False), *attributes.items()], roles)
            or _id_fault(article_id, roles)
            or _text_fault(row, roles, len(article_text(title, content)), self.max_text_chars)
            or _attributes_fault(attributes)
        )
        if reason:
            return Reject(source, line, reason, _printable(article_id))
        return Article(article_id, title, content, published_at, attributes, source, line)

    def _attributes(self, row: Row, roles: Roles, *, dated: bool) -> dict[str, str]:
        """The chosen columns that have no role; a date that could not be read is always among them.

        Members of an object that is called attributes are columns too: `coldframe upsert` takes them so.
        """
        undated = None if dated else roles.date
        cells = {name: row[name] for name in row if name and (name not in roles or name == undated)}
        chosen = {*(cells if self.columns.attributes is None else self.columns.attributes), undated}
        inner = cells.get(_SPREAD)
        if isinstance(inner, dict) and inner.keys().isdisjoint(cells):
            del cells[_SPREAD]
            cells |= inner
            chosen |= inner.keys() if _SPREAD in chosen else set()
        return {name: text for name in cells if name and name in chosen and (text := _cell(cells, name)).strip()}


def _cell(row: Row, name: str | None) -> str:
    value = row[name] if name is not None else None
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):  # a table of floats has no other nothing
        return ""
    if isinstance(value, bool | list | dict):  # true and false as CSV files, SQL and JSON write them
        return json.dumps(value, ensure_ascii=False, default=_inner)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    return value.isoformat() if isinstance(value, date) else str(value)


def _inner(value: object) -> str:
    """What JSON has no form for."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _encoding_fault(cells: list[tuple[str | None, str]], roles: Roles) -> str | None:
    if is_unicode("".join(f"{name}{text}" for name, text in cells)):
        return None
    name = next(name or "" for name, text in cells if not is_unicode(f"{name}{text}"))
    spare = "" if name in roles else "; --attributes says which columns are kept"
    return f"not UTF-8: {name[:60]!r} holds bytes that are not UTF-8 text{spare}"


def _id_fault(article_id: str, roles: Roles) -> str | None:
    if roles.id is None:
        return "no id: the row has no id column"
    if not article_id:
        return "empty id: every article needs an id"
    if "\0" in article_id:
        return "NUL in id: an id cannot hold the character NUL"
    if len(article_id) > MAX_ID_CHARS:
        return f"id too long: {len(article_id):,} characters, at most {MAX_ID_CHARS} are allowed"
    return None


def _text_fault(row: Row, roles: Roles, chars: int, max_chars: int) -> str | None:
    if roles.content is None:
        return "no content: the row has no content column"
    if isinstance(row[roles.content], list | dict):
        return "content is not text: it is a list or an object"
    if chars == 0:
        return "no text: title and content are both empty"
    if chars > max_chars:
        return f"text too long: {chars:,} characters, at most {max_chars:,} are allowed"
    return None


def _attributes_fault(attributes: dict[str, str]) -> str | None:
    chars = sum(map(len, (*attributes, *attributes.values())))
    if chars > MAX_ATTRIBUTE_CHARS:
        return f"attributes too long: {chars:,} characters, at most {MAX_ATTRIBUTE_CHARS:,} are allowed"
    return None


def _printable(text: str) -> str:
    return text[:MAX_ID_CHARS].encode("utf-8", "replace").decode()


# --- columns ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # the rows of a JSONL file may differ in their keys, and mostly do not
def recognise(names: tuple[str, ...], columns: Columns) -> Roles:
    """Find the column of each role. One that was named by a flag is not taken for another role too."""
    given = {role: getattr(columns, role) for role in _RECOGNISED}
    plain: dict[str, str] = {}
    for name in names:
        if name not in given.values():
            plain.setdefault(name.casefold().translate(_NO_PUNCTUATION), name)
    found = {role: next((plain[name] for name in usual if name in plain), None) for role, usual in _RECOGNISED.items()}
    named = {role: name if name in names else None for role, name in given.items() if name is not None}
    return Roles(**(found | named))


_NO_PUNCTUATION = str.maketrans("", "", " _-")


def check_header(where: str, names: Sequence[str], columns: Columns, *, field: str = "corpus") -> None:
    """Raise InvalidArgument unless no column is named twice and all that are named by a flag, and needed, are there."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InvalidArgument(
            f"{where} has more than one column named {', '.join(twice)}. Rename or remove one.", field=field
        )
    for role in _RECOGNISED:
        _check_named(where, names, getattr(columns, role), f"{role}-column")
    for name in columns.attributes or ():
        _check_named(where, names, name, "attributes")
    check_needed(where, names, columns, field=field)


def check_needed(where: str, names: Sequence[str], columns: Columns, *, field: str = "corpus") -> None:
    """Raise InvalidArgument unless the id and the content column are there."""
    for role in ("id", "content"):
        _check_named(where, names, getattr(columns, role), f"{role}-column")
    roles = recognise(tuple(names), columns)
    wanted = [
        f"{role} column ({', '.join(_RECOGNISED[role])})" for role in ("id", "content") if not getattr(roles, role)
    ]
    if wanted:
        rename = "Rename in it (select body as content), or say" if field == "query" else "Say"
        raise InvalidArgument(
            f"{where} has no {' and '.join(wanted)}. Its columns are: {_listed(names)}. {rename} which they are with "
            "--id-column, --title-column, --content-column and --date-column.",
            field=field,
        )


def _check_named(where: str, names: Sequence[str], name: str | None, flag: str) -> None:
    if name is not None and name not in names:
        raise InvalidArgument(
            f"{where} has no column {name!r}, which --{flag} names. Its columns are: {_listed(names)}.", field=flag
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in names[:40]) or "none"
