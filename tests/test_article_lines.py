"""A JSON line is the same article to `coldframe upsert` and to a build, or the former refuses it."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import pytest

from coldframe.article_lines import read_articles
from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns
from tests.corpus_files import put, rows_of

if TYPE_CHECKING:
    from pathlib import Path


def upserted(line: str) -> Article:
    """As the server keeps what is sent of it: title and content without space at their ends."""
    ((_, sent),) = read_articles([line.encode()])
    moment = sent.published_at.ToDatetime(UTC) if sent.HasField("published_at") else None
    return Article(sent.id, sent.title.strip(), sent.content.strip(), moment, dict(sent.attributes))


@pytest.mark.parametrize(
    "members",
    [
        '"published_at": "1000-01-01"',
        '"published_at": "1987-03-03T12:13:48.901234567+05:30"',
        '"published_at": "20160822T123456Z"',
        '"published_at": 1471868040.125',
        '"published_at": 1471868040123, "title": " a title "',
        '"published_at": "", "title": ""',
        '"published_at": null, "attributes": null, "title": null',
        '"attributes": {"desk": "Sport ", "empty": "", "blank": " \\n", "page": 7, "free": true, "score": 0.5}',
        '"attributes": {"title": "a", "id": "b", "published_at": "c", "date": "d"}',
        '"attributes": {}',
    ],
)
def test_a_line_is_the_same_article_to_an_upsert_and_to_a_build(tmp_path: Path, members: str) -> None:
    line = f'{{"id": "1", "content": "é\\u00e9 b\\u0000c", {members}}}'
    assert rows_of(put(tmp_path / "a.jsonl", line)) == [upserted(line)]


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00Z", "0999-12-31", "1000-01-01T00:00+05:00"])
def test_a_date_that_a_build_does_not_read_is_refused(tmp_path: Path, date: str) -> None:
    line = f'{{"id": "1", "content": "a", "published_at": "{date}"}}'
    assert rows_of(put(tmp_path / "a.jsonl", line)) == [Article("1", "", "a", None, {"published_at": date})]
    with pytest.raises(InvalidArgument, match=r'published_at is ".*"; give an ISO date or time from the year 1000 on'):
        upserted(line)


def test_members_of_attributes_can_be_chosen_and_displace_no_column(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"id": 1, "text": "a", "page": 3, "attributes": {"desk": "Sport", "by": "x"}}')

    def kept(*chosen: str) -> dict[str, str]:
        (article,) = rows_of(path, columns=Columns(attributes=chosen))
        assert isinstance(article, Article)
        return article.attributes

    assert kept("desk") == {"desk": "Sport"}
    assert kept("attributes") == {"desk": "Sport", "by": "x"}
    assert kept("by", "page") == {"by": "x", "page": "3"}
    assert kept() == {}
    both = put(tmp_path / "b.jsonl", '{"id": 1, "text": "a", "desk": "City", "attributes": {"desk": "Sport"}}')
    assert rows_of(both) == [Article("1", "", "a", None, {"desk": "City", "attributes": '{"desk": "Sport"}'})]
