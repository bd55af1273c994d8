"""Articles from JSON lines: one object a line, read one at a time, each mistake told with its line's number."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument
from coldframe.messages import article

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coldframe.v1.types_pb2 import Article

KEYS = ("id", "title", "content", "published_at", "attributes")


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
    if not isinstance(found, dict):
        raise ValueError('it is JSON and no object; give one such as {"id": "1", "title": "..."}.')
    unknown = sorted(found.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}'; allowed are {', '.join(KEYS)}. Put others under attributes.")
    return found


def _article(found: dict[str, Any]) -> Article:
    return article(
        _id(found.get("id")),
        title=_text("title", found),
        content=_text("content", found),
        published_at=_date(found.get("published_at")),
        attributes=dict(_attribute(*item) for item in _attributes(found).items()),
    )


def _id(value: object) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    if value == "" or not (number or isinstance(value, str)):
        raise ValueError(f"id is {json.dumps(value)}; give a text.")
    return str(value)


def _text(key: str, found: dict[str, Any]) -> str:
    value = found.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is {json.dumps(value)}; give a text.")
    return value


def _date(value: object) -> datetime | None:
    """Return an ISO date, in UTC where it names no time zone: as the indexer reads one."""
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ValueError(f"published_at is {json.dumps(value)}; give an ISO date or time.") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _attributes(found: dict[str, Any]) -> dict[str, Any]:
    attributes = found.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise ValueError("attributes is no object; give names and values.")
    return attributes


def _attribute(key: str, value: object) -> tuple[str, str]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"attributes.{key} is {json.dumps(value)}; give a text or a number.")
    return key, str(value)
