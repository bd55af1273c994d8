"""Plain Python values as protobuf ones, refused by the field's name where they cannot be sent."""

from __future__ import annotations

import sys
from array import array as array_of
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from coldframe.errors import InvalidArgument
from coldframe.v1.types_pb2 import Article, Vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    VectorLike: TypeAlias = Vector | bytes | Sequence[float]

Texts = TypeVar("Texts")


class _Enum(Protocol):
    """What the stubs call an enum: names and numbers."""

    def items(self) -> Sequence[tuple[str, int]]: ...


@contextmanager
def sending(field: str) -> Iterator[None]:
    """Name the field that protobuf refuses: a number past 32 bits or past any float, a text that is not Unicode."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field} cannot be sent: {error}", field=field) from error


def timestamp(moment: datetime, field: str) -> Timestamp:
    """Return a moment to the microsecond. Raises InvalidArgument where it has no time zone, or no year in UTC."""
    if moment.tzinfo is None:
        raise InvalidArgument(f"{field} is {moment}, in no time zone; give one, such as tzinfo=UTC.", field=field)
    found = Timestamp()
    try:
        found.FromDatetime(moment)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{field} is {moment}, in UTC before the year 1 or after 9999; give a moment between.", field=field
        ) from error
    return found


def duration(length: timedelta, field: str) -> Duration:
    """Return a length of time to the microsecond."""
    found = Duration()
    with sending(field):
        found.FromTimedelta(length)
    return found


def vector(value: VectorLike) -> Vector:
    """Return a vector as it is, from its numbers, or from little-endian float32 bytes, four a number."""
    if isinstance(value, Vector):
        return value
    return Vector(packed=value if isinstance(value, bytes) else _packed(value))


def _packed(numbers: Sequence[float]) -> bytes:
    """Numbers as little-endian float32 bytes, which is how they travel fastest; struct would not take one past 3e38."""
    plain: Sequence[float] = numbers.tolist() if hasattr(numbers, "tolist") else numbers  # of NumPy
    array = array_of("f", plain)
    if sys.byteorder == "big":
        array.byteswap()
    return array.tobytes()


def several(values: Iterable[str], field: str) -> list[str]:
    """Return a list of texts. Raises InvalidArgument for one string, whose letters would be taken for texts."""
    return list(not_one(values, field))


def not_one(values: Texts, field: str) -> Texts:
    """Return the texts as they are, read by nobody yet. Raises what `several` raises."""
    if isinstance(values, str):
        raise InvalidArgument(f"{field} is one string; pass a list of texts, such as [text].", field=field)
    return values


def choice(kind: _Enum, value: str, field: str) -> int:
    """Return the number of an enum's value from the part of its name that tells it from the others, such as "fast"."""
    unspecified = next(name for name, number in kind.items() if number == 0)
    prefix = unspecified.removesuffix("UNSPECIFIED")
    numbers = {name.removeprefix(prefix).lower(): number for name, number in kind.items() if number}
    if value not in numbers:
        raise InvalidArgument(f"{field} is {value!r}; allowed are {', '.join(numbers)}.", field=field)
    return numbers[value]


def article(
    article_id: str = "",
    *,
    title: str = "",
    content: str = "",
    published_at: datetime | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Article:
    """Return an article to upsert, or to search with; for that it needs no id.

    published_at: in a time zone. Raises InvalidArgument for a field that cannot be sent.
    """
    found = Article(published_at=None if published_at is None else timestamp(published_at, "published_at"))
    fields = {"id": article_id, "title": title, "content": content, "attributes": attributes or {}}
    for field, value in fields.items():
        with sending(field):
            found.MergeFrom(Article(**{field: value}))  # type: ignore[arg-type]
    return found
