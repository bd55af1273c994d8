"""Servers of one store and workers of one server: what any of them has said, none takes back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coldframe.errors import UnknownArticle
from coldframe.live import LIVE, Embedded, LiveArticle, LiveStore, Upsert
from coldframe.v1.article_service_pb2 import UPSERT_OUTCOME_CREATED as CREATED
from coldframe.v1.article_service_pb2 import UPSERT_OUTCOME_REPLACED as REPLACED
from server.place import PAGE_BYTES, Latest, Place
from tests.live_articles import upsert
from tests.newsroom import opened, piece

if TYPE_CHECKING:
    from pathlib import Path

    from coldframe import Client
    from tests.conftest import Background


def scores(client: Client) -> dict[str, float]:
    """Of all articles, as one question finds them."""
    return {hit.article.id: hit.score for hit in client.search("a b", limit=1_000, exact=True, max_per_story=0).hits}


def has(client: Client, article_id: str) -> bool:
    try:
        client.get_article(article_id)
    except UnknownArticle:
        return False
    return True


def test_what_one_worker_showed_of_a_change_that_its_writer_has_not_told_of_the_others_show_too(
    background: Background, own_newsroom: Path, tmp_path: Path
) -> None:
    """A writer is slow, or stopped, between the disk and the page: who looks at the file meanwhile finds the change."""
    (page := tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    writing, *others = (Latest(Place(number, 3, page, -1, frozenset(os.sched_getaffinity(0)))) for number in range(3))
    with (
        LiveStore(own_newsroom / LIVE) as live,
        opened(background, own_newsroom, latest=others[0]) as (one, _),
        opened(background, own_newsroom, latest=others[1]) as (other, _),
    ):
        (number,) = live.apply([upsert("told")])
        writing.tell(number)
        assert has(other, "told")
        live.apply([upsert("not told")])
        assert has(one, "told")
        assert has(one, "not told")
        assert has(other, "not told")


def test_what_comes_as_a_server_shows_it_is_held_against_what_another_one_has_written_since(
    background: Background, own_newsroom: Path
) -> None:
    """Who is told of nothing looks once a second: an article that was corrected, or removed, by way of the other one,
    and is sent again as it was, was not "unchanged", and nothing of it would have been kept.
    """
    first, second = piece("corrected", title="first"), piece("corrected", title="second")
    with opened(background, own_newsroom) as (one, _), opened(background, own_newsroom) as (other, _):
        one.upsert([first, piece("removed")])
        other.upsert([second])
        other.delete(["removed"])
        outcomes = [one.upsert([each]).results[0].outcome for each in (first, piece("removed"))]
    assert outcomes == [REPLACED, CREATED]
    with opened(background, own_newsroom) as (client, _):
        assert client.get_article("corrected").article.title == "first"
        assert has(client, "removed")


@pytest.mark.parametrize("calls", [1, 2])
def test_copies_that_were_embedded_apart_have_one_vector_also_when_the_first_of_them_is_gone(
    background: Background, own_newsroom: Path, calls: int
) -> None:
    """A worker that begins later never saw the first, and must not answer otherwise than those that did."""
    with opened(background, own_newsroom) as (client, engine):
        own = np.array(client.embed(["c b a"]).embeddings[0].vector.values, np.float32)
        fingerprint = client.index().index.fingerprint
        apart = [Embedded(own + np.float32(n) * 1e-3, fingerprint, "fp32", 9, 9) for n in range(2)]
        copies = [Upsert(LiveArticle(name, "", "a b c", None, {}), e) for name, e in zip("xy", apart, strict=True)]
        for changes in (copies,) if calls == 1 else ([copies[0]], [copies[1]]):
            background.run(engine.writer.apply(changes))
        client.delete(["x"])
        before = scores(client)
    with opened(background, own_newsroom) as (client, _):
        assert scores(client) == before
