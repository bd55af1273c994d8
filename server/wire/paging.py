"""Tokens: where the next page begins, and what an answer was made of."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from server.serving import Served


def _digest(request: Message) -> str:
    """16 hex digits, equal for equal requests."""
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=8).hexdigest()


def _asked(request: Message) -> str:
    """What a request asks for, whichever of its pages and however long they are."""
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_token", "page_size", "limit"):
        if field in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(field)
    return _digest(bare)


def attribution(served: Served, request: Message) -> str:
    """Ties an answer to the state of the index, the model and the request."""
    view, fingerprint = served.view, served.encoder.fingerprint
    return f"{served.generation.name}.{view.sequence}.{fingerprint[:12]}.{_digest(request)}"


class PageToken:
    """Names places of what a request asks for, in this generation."""

    def __init__(self, served: Served, request: Message) -> None:
        self._asked = f"{served.generation.name}:{_asked(request)}"

    def at(self, start: int) -> str:
        """The token of the page that begins at a place."""
        return base64.urlsafe_b64encode(f"{self._asked}:{start}".encode()).decode()


def read_page_token(served: Served, request: Message, token: str) -> int:
    """The place that a token names; 0 for an empty one."""
    if not token:
        return 0
    try:
        name, asked, start = base64.b64decode(token.encode(), b"-_", validate=True).decode().split(":")
        place = int(start)
    except (binascii.Error, ValueError) as error:
        raise _refused("is none of this server's") from error
    if name != served.generation.name:
        raise _refused("belongs to an index that is no longer served")
    if asked != _asked(request) or place < 0:
        raise _refused("belongs to another request; send the one that it came with; only the number of hits may differ")
    return place


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"page_token {why}; leave it empty to start at the first page", field="page_token")
