"""Articles from JSON lines: one object a line, read one at a time, each mistake told with its line's number."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from coldframe.epoch import EPOCH_NUMBER, FIRST, from_epoch
from coldframe.errors import InvalidArgument
from coldframe.messages import article

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coldframe.v1.types_pb2 import Article

KEYS = ("id", "title", "content", "published_at", "attributes")
_EXAMPLE = 'one object such as {"id": "1", "title": "..."}'
_SHOWN_CHARS = 100


def read_articles(lines: Iterable[bytes]) -> Iterator[tuple[int, Article]]:
    """Yield the number of a line, from 1, and its article; empty lines are passed over.

    Raises InvalidArgument for a line that is no article.
    """
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            try:
                found = _article(_object(raw))
            except ValueError as error:
                raise InvalidArgument(f"line {number}: {error}") from error
            except RecursionError as error:
                raise InvalidArgument(f"line {number}: it is nested too deep; give {_EXAMPLE}.") from error
            except InvalidArgument as error:
                raise InvalidArgument(f"line {number}: {error.message}", field=error.field) from error
            yield number, found


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}); convert it.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg}, column {error.colno}); give one object a line.") from error
    except ValueError as error:  # Python reads no integer so long
        raise ValueError(f"it has a number of too many digits; give {_EXAMPLE}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is JSON and no object; give {_EXAMPLE}.")
    unknown = sorted(found.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}'; allowed are {', '.join(KEYS)}. Put others under attributes.")
    return found


def _article(found: dict[str, Any]) -> Article:
    given = [_attribute(*item) for item in _attributes(found).items()]
    return article(
        _id(found.get("id")),
        title=_text("title", found),
        content=_text("content", found),
        published_at=_date(found.get("published_at")),
        attributes={key: text for key, text in given if text.strip()},  # as a build keeps them
    )


def _id(value: object) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    if value == "" or not (number or isinstance(value, str)):
        raise ValueError(f"id is {_shown(value)}; give a text.")
    return str(value)


def _text(key: str, found: dict[str, Any]) -> str:
    value = found.get(key)
    if not isinstance(value, str | None):
        raise ValueError(f"{key} is {_shown(value)}; give a text.")
    return value or ""


def _date(value: object) -> datetime | None:
    """Return an ISO date, in UTC where it names no time zone, or a time since 1970: as the indexer reads one."""
    if value is None or value == "":
        return None
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    try:
        moment = from_epoch(text) if EPOCH_NUMBER.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        moment = None
    moment = moment and (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    if moment is None or moment < FIRST:
        raise ValueError(
            f"published_at is {_shown(value)}; give an ISO date or time from the year 1000 on, or seconds since 1970."
        )
    return moment


def _attributes(found: dict[str, Any]) -> dict[str, Any]:
    attributes = found.get("attributes")
    if not isinstance(attributes, dict | None):
        raise ValueError(f"attributes is {_shown(attributes)}; give an object of names and values.")
    return attributes or {}


def _attribute(key: str, value: object) -> tuple[str, str]:
    # NaN, which Python writes though JSON has none, is the empty cell of a table.
    empty = isinstance(value, float) and math.isnan(value)
    if empty or not isinstance(value, str | int | float):
        raise ValueError(f"attributes.{key} is {_shown(value)}; give a text or a number.")
    return key, json.dumps(value) if isinstance(value, bool) else str(value)  # true and false as a build writes them


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    text = text if text.isprintable() else json.dumps(value)  # nothing that steers a terminal
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
