"""What tables say for people of replies that the other tests of the command line do not meet."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from coldframe import tables
from coldframe.v1.article_service_pb2 import GetArticleResponse
from coldframe.v1.cluster_service_pb2 import GetClusterResponse
from coldframe.v1.embedding_service_pb2 import Embedding, StreamEmbedResponse
from coldframe.v1.index_service_pb2 import ActivateGenerationResponse, GetIndexResponse, Index
from coldframe.v1.search_service_pb2 import (
    Interest,
    NearestClustersResponse,
    RecommendResponse,
    SearchResponse,
    StreamSearchResponse,
)
from coldframe.v1.types_pb2 import ArticleSummary, Explanation, Hit, ServedBy, Usage, Vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    Shown = Callable[[RenderableType], str]

CUT = Usage(tokens_seen=5_002, tokens_used=4_096)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    def show(content: RenderableType) -> str:
        tables.show(content)
        return capsys.readouterr().out

    return show


def test_only_a_text_that_is_like_no_cluster_is_said_to_be(shown: Shown) -> None:
    for outlier in (True, False):
        assert ("like no cluster" in shown(tables.matches(NearestClustersResponse(outlier=outlier)))) is outlier


def test_what_came_by_chance_is_told_from_what_came_by_its_score(shown: Shown) -> None:
    hits = [
        Hit(explanation=Explanation(cluster_label=label, explored=label == "floods")) for label in ("rain", "floods")
    ]
    out = shown(tables.hits(SearchResponse(hits=hits)))
    assert "by chance: floods" in out
    assert "by chance: rain" not in out
    assert "interest" not in out


def test_an_article_says_whether_it_came_after_the_build_and_lies_far_out(shown: Shown) -> None:
    for live, outlier in ((True, False), (False, True)):
        summary = ArticleSummary(id="a1", cluster_id="c0", live=live, outlier=outlier)
        out = shown(tables.article(GetArticleResponse(article=summary)))
        assert ("live, after the build" in out) is live
        assert (", an outlier" in out) is outlier


def test_ages_end_with_the_articles_that_have_no_date(shown: Shown) -> None:
    reply = GetClusterResponse()
    for days, count in ((1, 3), (3, 0)):
        reply.ages.add(count=count).max_age.FromTimedelta(timedelta(days=days))
    reply.ages.add(count=1_234)
    reply.ages.add(count=2, undated=True)
    assert "under 1 d 3, older 1,234, no date 2 " in shown(tables.cluster(reply))


def test_seeds_of_an_interest_are_counted_from_1_and_that_which_stands_for_it_is_first(shown: Shown) -> None:
    reply = RecommendResponse(interests=[Interest(seeds=[0, 2, 3], medoid=2, weight=1.0, cluster_label="floods")])
    assert "3, 1, 4" in shown(tables.recommendations(reply))


def test_a_text_that_was_cut_is_told_on_every_command(shown: Shown) -> None:
    for content in (
        tables.recommendations(RecommendResponse(usages=[Usage(), CUT])),
        tables.one_of_many("flood", StreamSearchResponse(response=SearchResponse(usage=CUT))),
        tables.embedded("flood", StreamEmbedResponse(embedding=Embedding(vector=Vector(values=[1]), usage=CUT))),
    ):
        assert "the text has 5,002 tokens; the first 4,096 were read" in shown(content)


def test_the_index_says_how_many_articles_came_and_how_many_went(shown: Shown) -> None:
    out = shown(tables.index(GetIndexResponse(index=Index(live_count=1_203, replaced_count=7))))
    assert "1,203 articles came, 7 were replaced or removed" in out


@pytest.mark.parametrize("before", ["", "new"])
def test_the_first_generation_is_served_after_none(shown: Shown, before: str) -> None:
    reply = ActivateGenerationResponse(changed=True, previous_generation=before, served_by=ServedBy(generation="new"))
    assert shown(tables.activated(reply)).startswith("new is served\n")
