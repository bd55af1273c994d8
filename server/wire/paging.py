"""Tokens: where the next page begins, and what an answer was made of."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from coldframe.errors import InvalidArgument
from server.pages import FIRST, Last, Place
from server.wire.requests import MAX_ID_CHARS, MAX_LIMIT

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from server.serving import Served

# Of more at once hashlib lets other threads run, and waits for them afterwards.
_BLOCK = 2_047
# Whoever makes a token of his own gets no further than numbers that can be counted with, and a search for so many.
_MOST = 2**40
_OF_A_PAGE = ("page_token", "page_size", "limit")


@lru_cache
def _paged_by(kind: Descriptor) -> tuple[str, ...]:
    """The fields of a request that say which page of an answer it wants, and how long a one."""
    return tuple(field for field in _OF_A_PAGE if field in kind.fields_by_name)


class Asked:
    """What a request asks for, whichever of its pages and however long they are, of one generation."""

    def __init__(self, served: Served, request: Message) -> None:
        self._served, self._request = served, request

    @cached_property
    def _digest(self) -> str:
        """16 hex digits, equal for equal requests."""
        # CopyFrom does the same, and takes four times as long.
        bare = self._request.FromString(self._request.SerializeToString())
        for field in _paged_by(bare.DESCRIPTOR):
            bare.ClearField(field)
        raw, digest = bare.SerializeToString(deterministic=True), hashlib.blake2b(digest_size=8)
        for start in range(0, len(raw), _BLOCK):
            digest.update(raw[start : start + _BLOCK])
        return digest.hexdigest()

    def attribution(self) -> str:
        """Ties an answer to the state of the index, the model and the request, which is not digested a second time."""
        page = [str(getattr(self._request, field)) for field in _paged_by(self._request.DESCRIPTOR)]
        digest = hashlib.blake2b(" ".join([self._digest, *page]).encode(), digest_size=8).hexdigest()
        served = self._served
        return f"{served.generation.name}.{served.view.sequence}.{served.encoder.fingerprint[:12]}.{digest}"

    def at(self, place: Place) -> str:
        """The token of the page that begins at a place."""
        last_id, score = place.last or ("", None)
        numbers = place.start, place.first, place.moment, place.largest, score
        # The id comes last: it may hold any character.
        return self._token(":".join(["" if number is None else str(number) for number in numbers] + [last_id]))

    def place(self, token: str) -> Place:
        """The place that a token names; of the first page for an empty one."""
        if not token:
            return FIRST
        try:
            start, first, moment, largest, score, last_id = self._said(token).split(":", 5)
            last = Last(last_id, float(score) if score else None) if last_id else None
            place = Place(int(start), int(first), int(moment), float(largest) if largest else None, last)
        except ValueError as error:
            raise _unknown() from error
        if not _possible(place):
            raise _unknown()
        return place

    def without(self, shown: NDArray[np.bool_]) -> str:
        """The token of a page that has none of the things, (n,), that were shown."""
        return self._token(np.packbits(shown).tobytes().hex())

    def shown(self, token: str, count: int) -> NDArray[np.bool_]:
        """Which things, (count,), were shown on the pages before, by such a token; none by an empty one."""
        if not token:
            return np.zeros(count, np.bool_)
        try:
            bits = np.frombuffer(bytes.fromhex(self._said(token)), np.uint8)
        except ValueError as error:
            raise _unknown() from error
        if len(bits) != (count + 7) // 8:
            raise _unknown()
        return np.unpackbits(bits, count=count).astype(np.bool_)

    def _token(self, said: str) -> str:
        parts = f"{self._served.generation.name}:{self._digest}:{said}"
        return base64.urlsafe_b64encode(parts.encode()).decode()

    def _said(self, token: str) -> str:
        """What `_token` was given."""
        try:
            name, asked, said = base64.b64decode(token.encode(), b"-_", validate=True).decode().split(":", 2)
        except (binascii.Error, ValueError) as error:
            raise _unknown() from error
        if name != self._served.generation.name:
            raise _refused("belongs to an index that is no longer served")
        if asked != self._digest:
            raise _refused(
                "belongs to another request; send the one that it came with; only the number of hits may differ"
            )
        return said


def _possible(place: Place) -> bool:
    last, largest = place.last, place.largest or 0.0
    numbers = 0 <= place.start <= _MOST and 0 <= place.first <= MAX_LIMIT and abs(place.moment) <= _MOST
    known = last is None or (len(last.id) <= MAX_ID_CHARS and math.isfinite(last.score or 0.0))
    return numbers and known and 0 <= largest < math.inf


def _unknown() -> InvalidArgument:
    return _refused("is none of this server's")


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token {why}; leave it empty to start at the first page", field="page_token")
