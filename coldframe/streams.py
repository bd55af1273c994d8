"""What a stream sends: requests made of the caller's items, one by one as they come, whoever reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from coldframe.errors import InvalidArgument
from coldframe.messages import sending
from coldframe.requests import upsert_request
from coldframe.v1.article_service_pb2 import StreamUpsertArticlesRequest
from coldframe.v1.embedding_service_pb2 import StreamEmbedRequest
from coldframe.v1.search_service_pb2 import SearchRequest, StreamSearchRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coldframe.v1.article_service_pb2 import UpsertArticlesRequest
    from coldframe.v1.types_pb2 import Article

MAX_GROUP = 256
"""Articles in one upsert, at most."""
_GROUP_BYTES = 8 * 1024 * 1024

Item = TypeVar("Item")
Request = TypeVar("Request")
Item_contra = TypeVar("Item_contra", contravariant=True)
Request_co = TypeVar("Request_co", covariant=True)


class Requests(Protocol[Item_contra, Request_co]):
    """Makes the requests of one stream."""

    def add(self, item: Item_contra, /) -> Sequence[Request_co]:
        """Take the next item, and return what can be sent now."""

    def rest(self) -> Sequence[Request_co]:
        """Return what is still to be sent when no item comes any more."""


class Numbered(Generic[Item, Request]):
    """A request for each item; `make` is given the item's number, from "0" on, as correlation id."""

    def __init__(self, make: Callable[[str, Item], Request]) -> None:
        self._make = make
        self._count = 0

    def add(self, item: Item) -> Sequence[Request]:
        """Return the item's request."""
        request = self._make(str(self._count), item)
        self._count += 1
        return (request,)

    def rest(self) -> Sequence[Request]:
        """Return nothing: all has been sent."""
        return ()


class Grouped:
    """An upsert for each group: as soon as it is full, or before an article that finds no room or has an id of it."""

    def __init__(self, size: int, make: Callable[[list[Article]], UpsertArticlesRequest]) -> None:
        self._size = size
        self._make = make
        self._begin(0)

    def _begin(self, first: int) -> None:
        self._first, self._room = first, _GROUP_BYTES
        self._members: list[Article] = []
        self._ids: set[str] = set()

    def add(self, article: Article) -> Sequence[StreamUpsertArticlesRequest]:
        """Return the groups that this article ends: none, that before it, its own, or both."""
        ended = [*self.rest()] if article.ByteSize() > self._room or article.id in self._ids else []
        self._members.append(article)
        self._ids.add(article.id)
        self._room -= article.ByteSize()
        return [*ended, *self.rest()] if len(self._members) == self._size else ended

    def rest(self) -> Sequence[StreamUpsertArticlesRequest]:
        """Return the group that was begun, if there is one."""
        if not self._members:
            return ()
        first, members = self._first, self._members
        self._begin(first + len(members))
        last = first + len(members) - 1
        return (StreamUpsertArticlesRequest(correlation_id=f"{first}-{last}", request=self._make(members)),)


def searches() -> Numbered[SearchRequest, StreamSearchRequest]:
    """Return what makes the requests of `stream_search`."""
    return Numbered(lambda number, item: StreamSearchRequest(correlation_id=number, request=item))


def texts(*, packed: bool) -> Numbered[str, StreamEmbedRequest]:
    """Return what makes the requests of `stream_embed`."""

    def make(number: str, text: str) -> StreamEmbedRequest:
        with sending("text"):
            return StreamEmbedRequest(correlation_id=number, text=text, packed=packed)

    return Numbered(make)


def upserts(size: int, *, validate_only: bool, cluster_limit: int, neighbor_limit: int) -> Grouped:
    """Return what makes the requests of `stream_upsert`. Raises InvalidArgument for a size that is not allowed."""
    if not 1 <= size <= MAX_GROUP:
        raise InvalidArgument(f"group is {size}; give 1 to {MAX_GROUP}.", field="group")
    options = {"cluster_limit": cluster_limit, "neighbor_limit": neighbor_limit}
    return Grouped(size, lambda members: upsert_request(members, validate_only=validate_only, **options))
