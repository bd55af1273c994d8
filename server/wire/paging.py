"""Tokens: where the next page begins, and what an answer was made of."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from coldframe.errors import InvalidArgument
from server.pages import Last
from server.wire.requests import MAX_ID_CHARS, MAX_LIMIT

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from server.serving import Served

# Of more at once hashlib lets other threads run, and waits for them afterwards.
_BLOCK = 2_047
# Whoever makes a token of his own gets no further than numbers that can be counted with, and a search for so many.
_MOST = 2**40
_OF_A_PAGE = ("page_token", "page_size", "limit")


class Place(NamedTuple):
    """Where a page begins, and what of the first page all others must know to follow it."""

    start: int = 0
    first: int = 0
    """How many hits the first page was asked for; 0: this is the first."""
    moment: int = 0
    """That its ages were counted to, in seconds since 1970; 0: now, or no age counts."""
    last: Last | None = None
    """The hit that the page comes after; `start` is what it is where nothing changed since, and holds without it."""


@lru_cache
def _paged_by(kind: Descriptor) -> tuple[str, ...]:
    """The fields of a request that say which page of an answer it wants, and how long a one."""
    return tuple(field for field in _OF_A_PAGE if field in kind.fields_by_name)


def _digest(request: Message) -> str:
    """16 hex digits, equal for equal requests."""
    raw, digest = request.SerializeToString(deterministic=True), hashlib.blake2b(digest_size=8)
    for start in range(0, len(raw), _BLOCK):
        digest.update(raw[start : start + _BLOCK])
    return digest.hexdigest()


def attribution(served: Served, request: Message) -> str:
    """Ties an answer to the state of the index, the model and the request."""
    return _attribution(served, _digest(request))


def _attribution(served: Served, digest: str) -> str:
    return f"{served.generation.name}.{served.view.sequence}.{served.encoder.fingerprint[:12]}.{digest}"


class Asked:
    """What a request asks for, whichever of its pages and however long they are, of one generation."""

    def __init__(self, served: Served, request: Message) -> None:
        self._served, self._request = served, request

    @cached_property
    def _digest(self) -> str:
        # CopyFrom does the same, and takes four times as long.
        bare = self._request.FromString(self._request.SerializeToString())
        for field in _paged_by(bare.DESCRIPTOR):
            bare.ClearField(field)
        return _digest(bare)

    def attribution(self) -> str:
        """As that of the whole request; it is not digested a second time."""
        page = [str(getattr(self._request, field)) for field in _paged_by(self._request.DESCRIPTOR)]
        digest = hashlib.blake2b(" ".join([self._digest, *page]).encode(), digest_size=8)
        return _attribution(self._served, digest.hexdigest())

    def at(self, place: Place) -> str:
        """The token of the page that begins at a place."""
        last_id, score = place.last or ("", None)
        # The id comes last: it may hold any character.
        numbers = f"{place.start}:{place.first}:{place.moment}:{'' if score is None else score}"
        parts = f"{self._served.generation.name}:{self._digest}:{numbers}:{last_id}"
        return base64.urlsafe_b64encode(parts.encode()).decode()

    def place(self, token: str) -> Place:
        """The place that a token names; of the first page for an empty one."""
        if not token:
            return _FIRST
        try:
            parts = base64.b64decode(token.encode(), b"-_", validate=True).decode().split(":", 6)
            name, asked, start, first, moment, score, last_id = parts
            last = Last(last_id, float(score) if score else None) if last_id else None
            place = Place(int(start), int(first), int(moment), last)
        except (binascii.Error, ValueError) as error:
            raise _refused("is none of this server's") from error
        if name != self._served.generation.name:
            raise _refused("belongs to an index that is no longer served")
        if not _possible(place):
            raise _refused("is none of this server's")
        if asked != self._digest:
            raise _refused(
                "belongs to another request; send the one that it came with; only the number of hits may differ"
            )
        return place


_FIRST = Place()


def _possible(place: Place) -> bool:
    last = place.last
    numbers = 0 <= place.start <= _MOST and 0 <= place.first <= MAX_LIMIT and abs(place.moment) <= _MOST
    return numbers and (last is None or (len(last.id) <= MAX_ID_CHARS and math.isfinite(last.score or 0.0)))


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token {why}; leave it empty to start at the first page", field="page_token")
