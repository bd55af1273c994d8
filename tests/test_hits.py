"""Hits are written as bytes, from what was written before: always the same as plain messages written field by field."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from coldframe.store import Store
from coldframe.v1 import search_service_pb2 as pb
from coldframe.v1 import types_pb2
from server.overlay import LiveRow
from server.ranking import Options
from server.search import Ask, search
from server.seeds import Point
from server.view import Base, View
from server.wire.hits import Parts, add_hits, summary
from tests.generations import LISTS, publish, row

if TYPE_CHECKING:
    from pathlib import Path

    from server.search import Found

WORDS = np.empty(0, np.uint64)
MASKS: tuple[list[str], ...] = (
    [],
    ["article", "score"],
    ["article.id"],
    ["article.id", "score"],
    ["score"],
    ["article.title", "article.story_id"],
    ["article"],
    ["article", "score", "explanation"],
    ["explanation"],
)


@pytest.fixture
def view(tmp_path: Path) -> View:
    store = Store(tmp_path / "store")
    publish(store)
    return View.of(Base(store.open()))


def slow(view: View, n: int) -> types_pb2.ArticleSummary:
    article = view.article(n)
    message = types_pb2.ArticleSummary(
        id=article.id,
        title=article.title,
        excerpt=article.excerpt,
        cluster_id=view.base.generation.clusters[article.cluster].id,
        attributes=article.attributes,
        story_id=view.id_of(view.first_of_story(n)),
        centrality=article.similarity,
        outlier=article.outlier,
        live=view.is_live(n),
    )
    if article.published_at is not None:
        message.published_at.FromDatetime(article.published_at)
    return message


def asked(view: View) -> Found:
    ask = Ask(12, Options(max_per_story=0), LISTS)
    return search(view, Point(view.base.generation.index.vector(3)), ask)


def check(view: View) -> None:
    found = asked(view)
    for paths in MASKS:
        for _ in range(2):  # the second time from what was kept
            reply = pb.SearchResponse()
            add_hits(reply, view, found, Parts.of(FieldMask(paths=paths)))
            assert len(reply.hits) == len(found.rows)
            for place, (hit, n) in enumerate(zip(reply.hits, found.rows.tolist(), strict=True)):
                whole, expected = types_pb2.Hit(article=slow(view, n)), types_pb2.Hit()
                whole.score = found.ranked.score[place]
                mask = FieldMask(paths=[path for path in paths if path != "explanation"])
                if paths:
                    mask.MergeMessage(whole, expected)
                else:
                    expected = whole
                assert hit.HasField("explanation") == ("explanation" in paths)
                hit.ClearField("explanation")
                if not hit.article.ByteSize():
                    hit.ClearField("article")
                if not expected.article.ByteSize():
                    expected.ClearField("article")
                assert hit == expected
    for n in found.rows.tolist():
        assert summary(view, n) == slow(view, n)


def test_hits_are_those_that_plain_messages_would_be(view: View) -> None:
    check(view)


def test_a_story_whose_first_article_goes_is_told_of_anew(view: View) -> None:
    check(view)
    told = [hit for hit in asked(view).rows.tolist() if view.first_of_story(hit) != hit]
    assert told, "the generation has a story of several articles"
    check(view.without_article(view.id_of(view.first_of_story(told[0])), 1))


def test_a_live_article_and_one_that_scores_nothing(view: View) -> None:
    vector = view.base.generation.index.vector(3)
    across = np.roll(vector, 1) * np.where(np.arange(len(vector)) % 2, 1, -1)
    across -= (across @ vector) * vector
    across = (across / np.linalg.norm(across)).astype(np.float32)
    cluster = int(view.base.generation.index.nearest_clusters(vector[None], 1)[0][0, 0])
    new = replace(row("news", cluster=cluster), story=0, published_at=datetime(2005, 3, 1, 12, 30, 1, 250_000, UTC))
    for date in (new.published_at, datetime(1930, 3, 1, 12, 30, 1, 250_000, UTC), datetime(1970, 1, 1, tzinfo=UTC)):
        check(view.with_article(LiveRow(replace(new, published_at=date), vector, WORDS), 1))
    check(view.with_article(LiveRow(new, across, WORDS), 1))


def test_a_row_that_was_only_tried_out_is_in_no_hit_that_is_kept(view: View) -> None:
    told = next(n for n in asked(view).rows.tolist() if view.first_of_story(n) != n)
    leader, early = view.first_of_story(told), datetime(1990, 1, 1, tzinfo=UTC)

    def earlier(name: str) -> LiveRow:
        first = replace(row(name, cluster=view.article(leader).cluster), story=leader, published_at=early)
        return LiveRow(first, view.vector(leader), WORDS)

    tried = view.apart().with_article(earlier(view.id_of(leader)), 0)
    assert tried.first_of_story(told) == len(view.base)
    check(tried)
    check(view.without_article(view.id_of(leader), 1).with_article(earlier("another"), 2))


def test_a_version_that_was_only_tried_out_is_not_shown_in_place_of_one_that_came(view: View) -> None:
    def version(name: str) -> LiveRow:
        return LiveRow(replace(row(name, cluster=view.article(3).cluster), story=3), view.vector(3), WORDS)

    for shown in (view.apart().with_article(version("tried"), 0), view.with_article(version("came"), 1)):
        assert not shown.is_live(shown.first_of_story(len(view.base)))
        assert len(view.base) in asked(shown).rows
        check(shown)


def test_what_is_kept_is_bounded(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.wire.hits._HITS_KEPT", 5)
    check(view)
    assert 0 < len(view.base.hits) <= 5
    monkeypatch.setattr("server.wire.hits._HIT_BYTES", 10)
    view.base.hits.clear()
    check(view)
    assert not view.base.hits


def test_recommendations_have_their_hits_where_searches_have_them() -> None:
    fields = [reply.DESCRIPTOR.fields_by_name["hits"] for reply in (pb.SearchResponse, pb.RecommendResponse)]
    assert fields[0].number == fields[1].number
    assert fields[0].message_type is fields[1].message_type
