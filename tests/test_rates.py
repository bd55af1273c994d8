"""Batches of callers who may make so many requests a second: each search counts, and none is refused for ever."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from coldframe.errors import InvalidArgument, Overloaded
from coldframe.requests import search_request
from coldframe.v1.search_service_pb2 import SearchRequest
from server.place import Words
from server.security.limits import Bucket
from server.wire.errors import status_of
from tests.guarded import guarded
from tests.newsroom import words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Background


@pytest.mark.parametrize(("burst", "searches"), [(4, 15), (1, 2), (4, 5), (20, 19), (20, 20)])
def test_a_batch_of_any_size_passes_when_its_caller_was_told_to_come_back(
    background: Background, newsroom: Path, tmp_path: Path, burst: int, searches: int
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", requests_per_second=20, burst=burst) as server,
        server.client(server.key()) as client,
    ):
        batch = [search_request(words("x"))] * searches
        assert len(client.batch_search(batch).results) == searches, "of a full bucket"
        for _ in range(2):
            assert refusals(lambda: client.batch_search(batch)) <= 2, "of the call, which says nothing yet, and of it"


def test_a_batch_that_is_too_large_costs_its_key_no_more_than_the_largest_that_is_allowed(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", requests_per_second=10, burst=1) as server,
        server.client(server.key()) as client,
    ):
        with pytest.raises(InvalidArgument, match="requests has 200,000 entries; allowed are 1 to 64"):
            client.batch_search([SearchRequest()] * 200_000)
        with pytest.raises(Overloaded) as raised:
            client.index()
        assert raised.value.retry_after_s <= 6.4


def refusals(ask: Callable[[], object]) -> int:
    """How often a caller is told to come back who does as told."""
    for count in range(10):
        try:
            ask()
        except Overloaded as error:
            time.sleep(error.retry_after_s)
        else:
            return count
    return 10


def test_what_a_batch_has_paid_for_is_not_asked_for_twice() -> None:
    now = 0.0
    bucket = Bucket(10, 5, Words().of("a"), clock=lambda: round(1e9 * now))
    assert [bucket.take(), bucket.take(5, paid=1)] == [0, 0]
    now = 0.2
    assert bucket.take() == 0
    assert bucket.take(4, paid=1) == pytest.approx(0.3), "with the one that comes again"
    now = 0.5
    assert [bucket.take(), bucket.take(4, paid=1)] == [0, 0]
    assert bucket.take() == pytest.approx(0.1)
    now = 100
    assert [bucket.take(), bucket.take(50, paid=1)] == [0, 0]
    assert bucket.take() == pytest.approx(4.6), "and the rest is owed"


def test_nobody_is_told_to_come_back_a_moment_too_early() -> None:
    trailing = dict(status_of(Overloaded("wait", retry_after_s=0.0101))[2])
    assert trailing["coldframe-retry-after-ms"] == "11"
