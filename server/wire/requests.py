"""What requests say, checked: every refusal names its field, what it holds and what is allowed."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.live import LiveArticle
from coldframe.text import MAX_TEXT_CHARS, article_text
from server.filters import MAX_KEY_CHARS
from server.seeds import ClusterSeed, RowSeed, Seed, TextSeed, VectorSeed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from numpy.typing import NDArray

    from coldframe.v1 import types_pb2

MAX_LIMIT = 1_000
MAX_TEXTS = 256
MAX_ARTICLES = 256
MAX_DELETES = 1_000
MAX_SEARCHES = 64
MAX_ID_CHARS = 512
MAX_ATTRIBUTES = 64
MAX_VALUE_CHARS = 4_096
YEAR_S = 366 * 86_400
# Of the squared length, in fp32: what was brought to unit length once is not to be had any nearer.
_UNIT = 5e-7
_NUMBER_BYTES = 4
_Number = TypeVar("_Number", int, float)


def optional(message: Message, field: str) -> int | float | None:
    """A field's number; None where the caller gave none."""
    value: int | float | None = getattr(message, field) if message.HasField(field) else None
    return value


def within(value: _Number | None, least: _Number, most: _Number, default: _Number, field: str) -> _Number:
    """A number in a range; the default where the caller gave none. A range is never left by NaN."""
    if value is None:
        return default
    if not least <= value <= most:
        raise InvalidArgument(
            f"{field} is {value:g}; allowed are {least:g} to {most:,g}, default {default:g}", field=field
        )
    return value


def count(message: Message, field: str, default: int, *, most: int = MAX_LIMIT, least: int = 1) -> int:
    """A limit or a page size: the default where the caller gave none."""
    value = optional(message, field)
    if value is not None and not least <= value <= most:
        raise InvalidArgument(f"{field} is {value}; allowed are {least} to {most:,}, default {default}", field=field)
    return default if value is None else int(value)


def entries(values: Sequence[object], most: int, field: str, least: int = 1) -> None:
    """Raises InvalidArgument for too few or too many of something."""
    if not least <= len(values) <= most:
        raise InvalidArgument(f"{field} has {len(values):,} entries; allowed are {least} to {most:,}", field=field)


def text(value: str, field: str) -> str:
    """A text that can be embedded."""
    if not value.strip():
        raise InvalidArgument(f"{field} is empty; give a text of 1 to {MAX_TEXT_CHARS:,} characters", field=field)
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidArgument(
            f"{field} has {len(value):,} characters; at most {MAX_TEXT_CHARS:,} are allowed", field=field
        )
    return value


def texts(values: Sequence[str]) -> list[str]:
    """The texts of an EmbedRequest."""
    entries(values, MAX_TEXTS, "texts")
    return [text(value, f"texts[{n}]") for n, value in enumerate(values)]


def identifier(value: str, field: str, what: str = "an article") -> str:
    """An id that is looked up: one that nothing has, such as one that is too long, is not there."""
    if not value:
        raise InvalidArgument(f"{field} is empty; give the id of {what}", field=field)
    return value


def identifiers(values: Sequence[str], most: int, field: str, least: int = 1) -> list[str]:
    """Ids, each once, in their order."""
    entries(values, most, field, least)
    return list(dict.fromkeys(identifier(value, f"{field}[{n}]") for n, value in enumerate(values)))


def seed(message: types_pb2.Seed, field: str = "seed") -> Seed:
    """What a search starts from."""
    kind = message.WhichOneof("seed")
    name = f"{field}.{kind}"
    if kind == "text":
        return TextSeed(text(message.text, name).strip())
    if kind == "article":
        whole = article_text(message.article.title, message.article.content)
        return TextSeed(text(whole, name), message.article.id)
    if kind == "article_id":
        return RowSeed(identifier(message.article_id, name))
    if kind == "vector":
        return VectorSeed(vector(message.vector, name), name)
    if kind == "cluster_id":
        return ClusterSeed(identifier(message.cluster_id, name, "a cluster"))
    raise InvalidArgument(
        f"{field} is empty; give one of {field}.text, article, article_id, vector or cluster_id", field=field
    )


def vector(message: types_pb2.Vector, field: str) -> NDArray[np.float32]:
    """A point, (dim,), brought to unit length."""
    packed = message.packed
    if packed and message.values:
        raise InvalidArgument(f"{field} has both values and packed; give one of them", field=field)
    if len(packed) % 4:
        raise InvalidArgument(
            f"{field}.packed has {len(packed)} bytes; float32 values take four each", field=f"{field}.packed"
        )
    values: NDArray[np.float32] = np.frombuffer(packed or _packed(message), "<f4")
    with np.errstate(all="ignore"):  # of what is no number, or too large; it is told below
        if abs(float(values.dot(values)) - 1.0) < _UNIT:  # as an encoder gives it; false for NaN
            return values
        # In fp64: the squares of fp32's largest and smallest numbers are beyond fp32.
        wide = values.astype(np.float64)
    norm = math.sqrt(wide.dot(wide))
    if norm == 0.0 or not math.isfinite(norm):
        raise _no_direction(values, field)
    return (wide / norm).astype(np.float32)


def _packed(message: types_pb2.Vector) -> bytes:
    """The numbers of a vector as they came, little-endian float32: to read them one by one takes 40 times as long."""
    message.DiscardUnknownFields()  # which would come behind the only field that there is
    raw = message.SerializeToString()
    return raw[len(raw) - _NUMBER_BYTES * len(message.values) :]


def _no_direction(values: NDArray[np.float32], field: str) -> InvalidArgument:
    """Why values, (dim,), cannot be brought to unit length."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        why = f"{field} holds {values[bad[0]]} at place {bad[0]}; every value must be a finite number"
    else:
        why = f"{field} is empty or all zeros; it must point somewhere: at least one value other than 0"
    return InvalidArgument(why, field=field)


def articles(messages: Sequence[types_pb2.Article]) -> list[LiveArticle]:
    """The articles of an upsert, no two with one id."""
    entries(messages, MAX_ARTICLES, "articles")
    seen: dict[str, int] = {}
    for n, message in enumerate(messages):
        first = seen.setdefault(message.id, n)
        if first != n:
            field = f"articles[{n}].id"
            raise InvalidArgument(
                f"{field} is {message.id!r}, as is that of articles[{first}]; send it once", field=field
            )
    return [_article(message, f"articles[{n}]") for n, message in enumerate(messages)]


def _article(message: types_pb2.Article, field: str) -> LiveArticle:
    if not 1 <= len(message.id) <= MAX_ID_CHARS:
        raise InvalidArgument(
            f"{field}.id has {len(message.id):,} characters; allowed are 1 to {MAX_ID_CHARS}", field=f"{field}.id"
        )
    if message.id != message.id.strip():
        raise InvalidArgument(f"{field}.id is {message.id!r}; an id has no space at its ends", field=f"{field}.id")
    text(article_text(message.title, message.content), field)
    published_at = moment(message.published_at, f"{field}.published_at") if message.HasField("published_at") else None
    return LiveArticle(
        message.id,
        message.title.strip(),
        message.content.strip(),
        published_at,
        _attributes(message.attributes, f"{field}.attributes"),
    )


def _attributes(given: object, field: str) -> dict[str, str]:
    attributes: dict[str, str] = dict(given)  # type: ignore[call-overload]  # a map field
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArgument(
            f"{field} has {len(attributes)} entries; at most {MAX_ATTRIBUTES} are allowed", field=field
        )
    for key, value in attributes.items():
        if not 1 <= len(key) <= MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS:
            raise InvalidArgument(
                f"{field}[{key[:MAX_KEY_CHARS]!r}] is too long; keys have 1 to {MAX_KEY_CHARS} characters, values at "
                f"most {MAX_VALUE_CHARS:,}",
                field=field,
            )
    return attributes


def moment(message: Timestamp, field: str) -> datetime:
    """A point in time, to the microsecond."""
    try:
        return datetime.fromtimestamp(message.seconds, UTC) + timedelta(microseconds=_microseconds(message.nanos))
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidArgument(
            f"{field} is no date: {message.seconds} seconds, {message.nanos} nanoseconds; allowed are years 1 to 9999 "
            f"and 0 to 999,999,999 nanoseconds",
            field=field,
        ) from error


def _microseconds(nanos: int) -> int:
    if not 0 <= nanos <= 999_999_999:
        raise ValueError(nanos)
    return nanos // 1_000


def seconds(message: Duration, field: str, least: float, most: float = 100 * YEAR_S) -> float:
    """A length of time."""
    if abs(message.nanos) > 999_999_999 or message.seconds * message.nanos < 0:
        raise InvalidArgument(
            f"{field} is no length of time: {message.seconds} seconds, {message.nanos} nanoseconds; allowed are at "
            f"most 999,999,999 nanoseconds, of the sign of the seconds",
            field=field,
        )
    value = message.seconds + message.nanos / 1e9
    if not least <= value <= most:
        raise InvalidArgument(f"{field} is {value:.10g} seconds; allowed are {least:g} to {most:,.0f}", field=field)
    return value
