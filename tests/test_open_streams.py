"""Keys that change while a stream of theirs is open: it may do what its key may by now."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import ColdframeError, PermissionDenied, Unauthenticated
from coldframe.requests import search_request
from server.security.keys import Role, changed, identify, removed
from tests.guarded import guarded
from tests.newsroom import piece, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe.v1.search_service_pb2 import SearchRequest
    from coldframe.v1.types_pb2 import Article
    from tests.conftest import Background
    from tests.guarded import Guarded


@pytest.fixture
def server(background: Background, own_newsroom: Path, tmp_path: Path) -> Iterator[Guarded]:
    with guarded(background, own_newsroom, tmp_path / "secrets") as running:
        yield running


def change(server: Guarded, token: str, **fields: Any) -> None:
    """Gives a key other fields, which the server knows at once."""
    with changed(server.keys) as keys:
        key = identify(keys, token)
        keys[key.id] = replace(key, **fields)
    server.guard.refresh()


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"role": Role.READ}, PermissionDenied, "has the role read; .* takes the role write"),
        ({"sha256": 64 * "0"}, Unauthenticated, "is worth nothing any more"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, Unauthenticated, "is worth nothing any more"),
    ],
)
def test_a_stream_ends_when_its_key_may_no_longer_do_what_it_does(
    server: Guarded, fields: dict[str, Any], error: type[ColdframeError], why: str
) -> None:
    less = False

    def articles() -> Iterator[Article]:
        yield piece("before")
        wait_until(lambda: less)
        yield piece("after")

    token = server.key("write")
    with server.client(token) as client:
        answers = client.stream_upsert(articles(), group=1)
        assert next(answers).response.results
        change(server, token, **fields)
        less = True
        with pytest.raises(error, match=why):
            next(answers)
    with server.client(server.key()) as client:
        assert client.index().index.article_count == 121


def test_a_stream_is_no_faster_than_its_key_may_be_by_now_and_goes_on(server: Guarded) -> None:
    slower = False

    def questions() -> Iterator[SearchRequest]:
        yield search_request(words("x"))
        wait_until(lambda: slower)
        yield from [search_request(words("x"))] * 30

    token = server.key(requests_per_second=1_000.0)
    with server.client(token) as client:
        answers = client.stream_search(questions())
        assert next(answers).response.hits
        change(server, token, requests_per_second=10.0, role=Role.ADMIN, name="renamed")
        start = time.monotonic()
        slower = True
        assert all(answer.response.hits for answer in answers)
        assert time.monotonic() - start > 0.9, "20 of them were saved up"


def test_a_stream_that_waits_for_its_turn_ends_when_its_key_is_taken_away(server: Guarded) -> None:
    with server.client(server.key(name="slow", requests_per_second=0.01)) as client:
        answers = client.stream_search([search_request(words("x"))] * 2)
        assert next(answers).response.hits
        with changed(server.keys) as keys:
            removed(keys, "slow")
        start = time.monotonic()
        with pytest.raises(Unauthenticated, match="is worth nothing any more"):
            next(answers)
        assert time.monotonic() - start < 30, "its turn would come in 100 s"
