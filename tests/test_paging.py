"""Pages follow each other, also where a deeper search finds what a shallower one missed."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import pytest

from coldframe import InvalidArgument, expansion, seed
from coldframe.requests import recommend_request, search_request
from server.wire import ranking
from tests.newsroom import COUNT, opened, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Client
    from tests.conftest import Background

SHALLOW: dict[str, Any] = {"target_recall": 0.01, "max_per_story": 0}
"""Visits one list, and more only once that one has no more to give."""


@pytest.fixture(scope="module")
def client(background: Background, newsroom: Path) -> Iterator[Client]:
    with opened(background, newsroom) as (client, _):
        yield client


@pytest.mark.parametrize("limit", [1, 5, 7])
@pytest.mark.parametrize("text", ["a", "q", "some other letters"])
def test_every_article_comes_on_one_page_and_scores_fall_until_those_come_that_were_passed_over(
    client: Client, limit: int, text: str
) -> None:
    hits = list(client.hits(search_request(words(text), limit=limit, **SHALLOW)))
    assert len(hits) == len({hit.article.id for hit in hits}) == COUNT
    assert sum(one.score < other.score for one, other in pairwise(hits)) == 1
    first = client.search(words(text), limit=limit, **SHALLOW)
    assert hits[:limit] == list(first.hits)


@pytest.mark.parametrize("text", ["a", "q", "some other letters"])
@pytest.mark.parametrize("lengths", [[3, 40], [40, 3], [1, 100, 7]])
def test_every_article_comes_on_one_page_however_long_each_is(client: Client, text: str, lengths: list[int]) -> None:
    found, token = [], ""
    for limit in cycle(lengths):
        page = client.search(words(text), limit=limit, page_token=token, **SHALLOW)
        found += [hit.article.id for hit in page.hits]
        if not (token := page.next_page_token):
            break
    assert len(found) == len(set(found)) == COUNT


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_every_article_comes_on_one_page_of_several_interests(client: Client, limit: int) -> None:
    seeds = [seed(words("a"), weight=3), seed(words("z"), weight=1)]
    asked = recommend_request(
        seeds, limit=limit, interest_similarity=1.0, read_mask=["article.id", "explanation"], **SHALLOW
    )
    hits = list(client.hits(asked))
    assert len(hits) == len({hit.article.id for hit in hits}) == COUNT
    assert {hit.explanation.interest for hit in hits} == {0, 1}


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_every_article_that_scores_enough_comes_on_one_page(client: Client, limit: int) -> None:
    hits = list(client.hits(search_request(words("a"), limit=limit, min_score=-1.0, **SHALLOW)))
    assert len(hits) == len({hit.article.id for hit in hits}) == COUNT
    assert sum(one.score < other.score for one, other in pairwise(hits)) == 1


@pytest.mark.parametrize(
    "asked", [{}, {"min_score": -1.0}, {"half_life": timedelta(days=30)}, {"max_per_cluster": 1_000}]
)
def test_pages_end_where_no_more_are_paged_and_no_token_leads_on(
    client: Client, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.search.MOST_PAGED", 50)
    monkeypatch.setattr("server.search.POOL", 50)
    long: dict[str, Any] = {"exact": True, "max_per_story": 0, "as_of": datetime(2026, 3, 1, tzinfo=UTC)} | asked
    whole = client.search(words("a"), limit=1_000, **long)
    assert (len(whole.hits), whole.next_page_token) == (50, "")
    for limit in (7, 25, 50):
        assert list(client.hits(search_request(words("a"), limit=limit, **long))) == list(whole.hits), limit


def test_pages_of_an_exact_search_are_one_long_one(client: Client) -> None:
    exact: dict[str, Any] = {"exact": True, "max_per_story": 0}
    hits = list(client.hits(search_request(words("a"), limit=7, **exact)))
    assert len(hits) == COUNT
    assert hits == list(client.search(words("a"), limit=1_000, **exact).hits)


def test_all_pages_count_ages_to_the_moment_of_the_first(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first, month = datetime(2026, 3, 1, tzinfo=UTC), timedelta(days=30)
    minutes = iter(range(int(first.timestamp()), 2_000_000_000, 30 * 86_400))
    monkeypatch.setattr(ranking, "_minute", lambda: next(minutes))
    fading: dict[str, Any] = {"half_life": month, "recency_weight": 2.0, "max_per_story": 0}
    hits = list(client.hits(search_request(words("a"), limit=20, **fading)))
    assert hits == list(client.search(words("a"), limit=1_000, as_of=first, **fading).hits)


def test_all_pages_ask_the_articles_that_were_young_at_the_first(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = datetime(2026, 2, 1, tzinfo=UTC)
    minutes = iter(range(int(first.timestamp()), 2_000_000_000, 10 * 86_400))
    monkeypatch.setattr(ranking, "_minute", lambda: next(minutes))
    mixed = expansion(weight=0.9, max_age=timedelta(days=20))
    young: dict[str, Any] = {"expansion": mixed, "max_per_story": 0, "effort": "exact"}
    hits = list(client.hits(recommend_request([words("a")], limit=20, **young)))
    assert hits == list(client.recommend([words("a")], limit=1_000, as_of=first, **young).hits)


def test_ages_may_be_counted_to_a_moment_before_1970(client: Client) -> None:
    fading: dict[str, Any] = {"half_life": timedelta(days=30), "as_of": datetime(1960, 1, 1, tzinfo=UTC)}
    hits = list(client.hits(search_request(words("a"), limit=50, max_per_story=0, **fading)))
    assert len(hits) == COUNT


@pytest.mark.parametrize(
    "numbers",
    [
        *("5:1001:0", f"5:10:{10**20}", f"5:10:-{10**20}", f"{10**20}:10:0", "5:-1:0", "-5:10:0", "5:10:0:1"),
        *("5:1001:0::0.5:a", f"5:10:{10**20}::0.5:a", f"{10**20}:10:0::0.5:a", "5:-1:0::0.5:a", "-5:10:0::0.5:a"),
        *("5:10:0::nan:a", "5:10:0::-inf:a", "5:10:0::1e999:a", "5:10:0::x:a", "5:10:0::0.5:" + 513 * "a"),
        *("5:10:0:-1:0.5:a", "5:10:0:nan:0.5:a", "5:10:0:inf:0.5:a", "5:10:0:x:0.5:a"),
    ],
)
def test_a_token_that_somebody_made_is_refused(client: Client, numbers: str) -> None:
    fading: dict[str, Any] = {"limit": 5, "half_life": timedelta(days=30)}
    name, asked, *_ = base64.urlsafe_b64decode(client.search(words("a"), **fading).next_page_token).decode().split(":")
    token = base64.urlsafe_b64encode(f"{name}:{asked}:{numbers}".encode()).decode()
    with pytest.raises(InvalidArgument, match="none of this server's") as refused:
        client.search(words("a"), page_token=token, **fading)
    assert refused.value.field == "page_token"
