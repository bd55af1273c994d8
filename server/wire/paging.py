"""Tokens: where the next page begins, and what an answer was made of."""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from coldframe.errors import InvalidArgument
from server.wire.requests import MAX_LIMIT

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
    """That its ages were counted to, in seconds since 1970; 0: now."""


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
        parts = self._served.generation.name, self._digest, *place
        return base64.urlsafe_b64encode(":".join(map(str, parts)).encode()).decode()

    def place(self, token: str) -> Place:
        """The place that a token names; of the first page for an empty one."""
        if not token:
            return _FIRST
        try:
            name, asked, *numbers = base64.b64decode(token.encode(), b"-_", validate=True).decode().split(":")
            place = Place._make(map(int, numbers))
        except (binascii.Error, ValueError, TypeError) as error:
            raise _refused("is none of this server's") from error
        if name != self._served.generation.name:
            raise _refused("belongs to an index that is no longer served")
        if not (0 <= place.start <= _MOST and 0 <= place.first <= MAX_LIMIT and abs(place.moment) <= _MOST):
            raise _refused("is none of this server's")
        if asked != self._digest:
            raise _refused(
                "belongs to another request; send the one that it came with; only the number of hits may differ"
            )
        return place


_FIRST = Place()


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token {why}; leave it empty to start at the first page", field="page_token")
