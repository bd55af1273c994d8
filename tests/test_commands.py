"""What the command line sends and shows: recommendations, filters, explanations, and the articles that it changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from typer.testing import CliRunner

from coldframe import commands, filters, tables
from coldframe.errors import ColdframeError, InvalidArgument, Unavailable, UnknownArticle, UnknownGeneration
from coldframe.v1.article_service_pb2 import StreamUpsertArticlesRequest
from coldframe.v1.search_service_pb2 import RecommendRequest, SearchRequest
from indexer.corpus import Article as BuiltArticle
from indexer.corpus import Columns
from indexer.corpus.articles import Parser
from indexer.dates import parse_date
from tests.relay import Relay
from tests.scripted import Failure, Server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[..., str]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def ask(server: Server) -> Ask:
    def run(*args: str, stdin: str | bytes | None = None, target: str = server.target) -> str:
        done = CliRunner().invoke(commands.app, [*args, "--server", target], input=stdin)
        if isinstance(done.exception, ColdframeError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def lines(*articles: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(article)}\n" for article in articles)


def numbered(*numbers: int) -> str:
    return lines(*({"id": f"n{n}", "title": f"Storm {n}"} for n in numbers))


# ------------------------------------------------------------------------------------------ recommending, ranking


def test_seeds_and_their_weights(server: Server, ask: Ask) -> None:
    words = ["--text", "the economy=1.5", "--text", "a=b", "--like", "a3=2", "--article-id", "x?v=2=3"]
    ask("recommend", *words, "--topic", "c2", "--unlike", "a1=0.5", "--unlike", "a2", "--interests", "3", "--expand")
    (request,) = server.requests
    assert isinstance(request, RecommendRequest)
    given = [(getattr(one.seed, one.seed.WhichOneof("seed") or ""), one.weight) for one in request.seeds]
    assert given[:4] == [("the economy", 1.5), ("a=b", 1.0), ("a3", 2.0), ("x?v=2", 3.0)]
    assert given[4:] == [("c2", 1.0), ("a1", -0.5), ("a2", -1.0)]
    assert request.max_interests == 3
    assert request.HasField("expansion")


@pytest.mark.parametrize(
    ("item", "name", "weight"),
    [("a3=.5", "a3", 0.5), ("a3=2.", "a3", 2.0), ("a3=1e-1", "a3", 0.1), ("a3=.", "a3=.", 1), ("a=b=e5", "a=b=e5", 1)],
)
def test_a_weight_is_any_number_that_a_person_writes(
    server: Server, ask: Ask, item: str, name: str, weight: float
) -> None:
    ask("recommend", "--text", item)
    (one,) = server.requests[-1].seeds  # type: ignore[attr-defined]
    assert (one.seed.text, one.weight) == (name, pytest.approx(weight))


@pytest.mark.parametrize("call", [["search", "economy"], ["recommend", "--text", "economy"]])
def test_every_ranking_flag_reaches_the_server(server: Server, ask: Ask, call: list[str]) -> None:
    ask(
        *call, "--where", "section=sport,city", "--where", "lang=en", "--since", "2026-03-01",
        "--before", "2026-03-02T06:00+01:00", "--cluster", "c0", "--cluster", "c1", "--exclude", "a1",
        "--exclude", "a2", "--max-per-story", "0", "--max-per-cluster", "4", "--diversity", "0.3", "--half-life", "36h",
        "--recency-weight", "0.4", "--prior", "a3=-0.25", "--popularity", "views", "--min-score", "-0.5",
        "--explore", "0.1", "--explore-seed", "7", "--recall", "0.95", "--page", "1", "--explain", "--limit", "5",
    )  # fmt: skip
    (request,) = server.requests
    assert isinstance(request, SearchRequest | RecommendRequest)
    ranking = request.ranking
    since, before = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, 5, tzinfo=UTC)
    expected = filters.all_of(
        filters.attribute("section").is_in("sport", "city"),
        filters.attribute("lang").is_in("en"),
        filters.cluster("c0", "c1"),
        filters.published(since=since, before=before),
    )
    assert ranking.filter == expected.message
    assert list(ranking.exclude_ids) == ["a1", "a2"]
    assert ranking.HasField("max_per_story")
    assert (ranking.max_per_story, ranking.max_per_cluster) == (0, 4)
    assert ranking.half_life.ToTimedelta() == timedelta(hours=36)
    assert dict(ranking.priors) == {"a3": -0.25}
    assert (ranking.popularity_attribute, ranking.min_score, ranking.explore_seed) == ("views", -0.5, 7)
    parts = (ranking.diversity, ranking.recency_weight, ranking.explore_fraction, ranking.target_recall)
    assert parts == pytest.approx((0.3, 0.4, 0.1, 0.95))
    assert list(ranking.read_mask.paths) == ["article", "score", "explanation"]
    assert (request.limit, request.page_token) == (5, "1")


def test_a_search_without_flags_leaves_the_ranking_to_the_server(server: Server, ask: Ask) -> None:
    ask("search", "economy")
    (request,) = server.requests
    assert isinstance(request, SearchRequest)
    assert [field.name for field, _ in request.ListFields()] == ["seed"]


@pytest.mark.parametrize(
    ("flags", "published"),
    [
        (["--since", "2026-03-01T06:00+01:00"], {"since": datetime(2026, 3, 1, 5, tzinfo=UTC)}),
        (["--before", "2026-03-02"], {"before": datetime(2026, 3, 2, tzinfo=UTC)}),
    ],
)
def test_one_end_of_a_time_is_enough(
    server: Server, ask: Ask, flags: list[str], published: dict[str, datetime]
) -> None:
    ask("search", "economy", *flags)
    assert server.requests[-1].ranking.filter == filters.published(**published).message  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "age"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1.5h", timedelta(hours=1.5)),
        ("3d", timedelta(days=3)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_an_age_has_one_of_five_units(server: Server, ask: Ask, word: str, age: timedelta) -> None:
    ask("search", "economy", "--half-life", word)
    assert server.requests[-1].ranking.half_life.ToTimedelta() == age  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--half-life", "3"], "--half-life is '3'; give a number and s, m, h, d or w, such as 12h or 3d."),
        (["--since", ""], "--since is ''; give a date such as 2026-03-01"),
        (["--before", ""], "--before is ''; give a date such as 2026-03-01"),
        (["--since", "monday"], "--since is 'monday'; give a date such as 2026-03-01"),
        (["--since", "0001-01-01T00:00+14:00"], "since is 0001-01-01 00:00:00+14:00, in UTC before the year 1"),
        (["--where", "section"], "--where is 'section'; give KEY=VALUE"),
        (["--where", "section="], "--where is 'section='; give KEY=VALUE"),
        (["--prior", "a1"], "--prior is 'a1'; give ID=NUMBER, such as 1001=0.1."),
        (["--explore-seed", str(2**70)], "explore_seed cannot be sent"),
    ],
)
def test_flags_that_cannot_be_read(server: Server, ask: Ask, flags: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        ask("search", "economy", *flags)
    assert not server.requests


def test_filters_and_exclusions_for_people(ask: Ask) -> None:
    out = ask("search", "economy", "--where", "section=sport,weather", "--exclude", "a3", "--exclude", "a9", "-n", "2")
    assert re.findall(r" (a\d) *$", out, re.MULTILINE) == ["a4", "a5", "a9"]
    assert "not in the index: a9" in out
    assert "more: the same with --page 2" in out
    rest = ask("search", "economy", "--where", "section=sport,weather", "--exclude", "a3", "-n", "2", "--page", "2")
    assert re.findall(r" (a\d) *$", rest, re.MULTILINE) == ["a6"]
    assert "more:" not in rest


def parts_of(out: str) -> list[list[float]]:
    """The numbers of the table that says why, a row for each hit: score, then its parts."""
    below = out.split(" why")[1]
    rows = [re.match(r"\d+ +(-?\d\.\d{3})((?: +[+-]\d\.\d{3})+)", line) for line in below.splitlines()]
    return [[float(row[1]), *map(float, row[2].split())] for row in rows if row]


def test_explanations_add_up_to_the_score(ask: Ask) -> None:
    flags = ["--half-life", "3d", "--diversity", "0.3", "--prior", "a4=0.1", "--explain"]
    for out in (
        ask("search", "economy and sport", *flags),
        ask("recommend", "--text", "economy", "--like", "a3", "--unlike", "a2=0.2", *flags),
    ):
        rows = parts_of(out)
        assert len(rows) >= 4
        for score, *parts in rows:
            assert sum(parts) == pytest.approx(score, abs=0.003)  # each is rounded to three places
        assert max(len(parts) for _, *parts in rows) >= 3


def test_recommendations_name_their_interests(ask: Ask) -> None:
    out = ask("recommend", "--text", "sport", "--like", "a1=3", "--explain")
    assert re.search(r"^ *1 +75% +rates, bank, inflation +2 +c0 *$", out, re.MULTILINE)
    assert re.search(r"^ *2 +25% +goal, cup, keeper +1 +c1 *$", out, re.MULTILINE)
    assert re.search(r"interest 1: \w+.*interest 2: \w+", out, re.DOTALL)
    assert not re.search(r" a1 *$", out, re.MULTILINE)


def test_a_recommendation_needs_a_seed_to_like(ask: Ask) -> None:
    for seeds, said in (([], "give at least one --text, --like or --topic"), (["--unlike", "a1"], "seeds has")):
        with pytest.raises(InvalidArgument, match=said):
            ask("recommend", *seeds)


# ------------------------------------------------------------------------------------------------------- clusters


def test_clusters_in_another_order(ask: Ask) -> None:
    assert re.findall(r" (c\d) *$", ask("clusters", "--order", "freshness"), re.MULTILINE) == ["c0", "c1", "c2"]
    with pytest.raises(InvalidArgument, match="order is 'age'; allowed are size, freshness, growth"):
        ask("clusters", "--order", "age")


def test_articles_of_a_cluster(server: Server, ask: Ask) -> None:
    assert re.findall(r" (a\d) *$", ask("articles", "c0", "--order", "newest"), re.MULTILINE) == ["a2", "a1"]
    assert "1 articles" in ask("articles", "c0", "--limit", "1")
    assert len(server.requests) == 2
    assert "2 articles" in ask("articles", "c0", "--limit", str(2**70))
    for limit in ("0", "-1"):
        with pytest.raises(InvalidArgument, match=f"--limit is {limit}; give 1 or more, or leave it away for all"):
            ask("articles", "nowhere", "--limit", limit)


def test_what_is_known_of_a_cluster(ask: Ask) -> None:
    out = ask("cluster", "c1", "--neighbors", "1")
    for fact in ("half within 0.200", "kept from c1 (cosine 0.987)", "under 7 d 1, older 1", "rates, bank, inflation"):
        assert fact in out
    assert "storm" not in out


def test_trending(ask: Ask) -> None:
    out = ask("trending", "--window", "5d", "--as-of", "2026-03-02", "--min-count", "1")
    assert re.search(r"^1 +1\.5 +2 +1\.0 +rates, bank, inflation ", out, re.MULTILINE)
    assert "until 2026-03-02 00:00 UTC" in out
    assert "no cluster grows" in ask("trending", "--as-of", "2020-01-01")


# --------------------------------------------------------------------------------------------------------- upsert


def test_articles_from_a_file_and_standard_input(server: Server, ask: Ask, tmp_path: Path) -> None:
    document = {
        "id": "n1", "title": "Storm", "content": "at sea", "published_at": "2026-03-02",
        "attributes": {"section": "weather", "views": 3},
    }  # fmt: skip
    (tmp_path / "new.jsonl").write_text("\ufeff" + lines(document) + "\n" + lines({"id": 2, "title": "Economy"}))
    out = ask("upsert", str(tmp_path / "new.jsonl"))
    assert re.search(r"^1 +created +Storm +c2 +n1 +n1 *$", out, re.MULTILINE)
    assert "2 created, 0 replaced, 0 unchanged" in out
    assert "0 created, 0 replaced, 1 unchanged" in ask("upsert", stdin=lines(document))
    assert "0 created, 1 replaced, 0 unchanged" in ask("upsert", stdin=lines({**document, "content": "on land"}))
    (request, *_) = server.requests
    assert isinstance(request, StreamUpsertArticlesRequest)
    first, second = request.request.articles
    assert first.published_at.ToDatetime(UTC) == datetime(2026, 3, 2, tzinfo=UTC)
    assert dict(first.attributes) == {"section": "weather", "views": "3"}
    assert (second.id, second.HasField("published_at")) == ("2", False)


def test_many_articles_go_in_groups_and_are_counted(server: Server, ask: Ask) -> None:
    out = ask("upsert", "--group", "50", stdin=numbered(*range(120)))
    assert [len(request.request.articles) for request in server.requests] == [50, 50, 20]  # type: ignore[attr-defined]
    assert "120 created" in out
    assert "Storm 1" not in out
    document = json.loads(ask("upsert", "--json", stdin=numbered(*range(tables.SHOWN * 2))))
    assert (document["unchanged"], len(document["results"])) == (40, 40)
    assert document["results"][3]["article"]["id"] == "n3"


def test_an_id_that_comes_twice_is_replaced_in_order(server: Server, ask: Ask) -> None:
    out = ask("upsert", stdin=lines({"id": "n1", "title": "Storm"}, {"id": "n1", "title": "Sport"}))
    assert "1 created, 1 replaced" in out
    assert server.services.index.summary("n1").title == "Sport"


def test_validate_only_changes_nothing(server: Server, ask: Ask) -> None:
    out = ask("upsert", "--validate-only", "--clusters", "1", "--neighbors", "2", stdin=numbered(1))
    assert "1 would be created, 0 would be replaced" in out
    assert "near Storm 1" in out
    assert "n1" not in server.services.index.entries()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: it is not JSON (Expecting property name enclosed in double quotes, column 2)"),
        ("[1]", "line 3: it is JSON and no object"),
        ('{"id": "n9", "titel": "x"}', "line 3: unknown key 'titel'; allowed are id, title, content, published_at"),
        ('{"title": "x"}', "line 3: id is null; give a text"),
        ('{"id": "n9", "title": ["x"]}', 'line 3: title is ["x"]; give a text'),
        ('{"id": "n9", "published_at": "soon"}', 'line 3: published_at is "soon"; give an ISO date or time'),
        ('{"id": "n9", "published_at": "2016年8月"}', 'line 3: published_at is "2016年8月"; give an ISO date or time'),
        ('{"id": "n9", "published_at": "\\u009b\\u202e"}', r'line 3: published_at is "\u009b\u202e"; give an ISO date'),
        ('{"id": "n9", "attributes": {"a": null}}', "line 3: attributes.a is null; give a text or a number"),
        ('{"id": "n9", "attributes": {"a": NaN}}', "line 3: attributes.a is NaN; give a text or a number"),
        ('{"id": "n9", "attributes": [1]}', "line 3: attributes is [1]; give an object of names and values"),
        ('{"id": "n9", "attributes": false}', "line 3: attributes is false; give an object of names and values"),
        ('{"id": "n9", "title": 0}', "line 3: title is 0; give a text"),
        ('{"id": "n9", "title": "x", "content": []}', "line 3: content is []; give a text"),
        ('{"id": "n9", "content": false}', "line 3: content is false; give a text"),
        (f'{{"id": "n9", "title": ["{"x" * 200}"]}}', f'line 3: title is ["{"x" * 98}...; give a text'),
        ('{"id": "n9", "published_at": 4133980800000}', "line 3: published_at is 4133980800000; give an ISO date or"),
        ('{"id": "n9", "published_at": true}', "line 3: published_at is true; give an ISO date or"),
        ('{"id": "n9", "published_at": "0001-01-01T00:00+14:00"}', 'line 3: published_at is "0001-01-01T00:'),
        pytest.param("[" * 100_000, "line 3: it is nested too deep; give one object", id="deep"),
        pytest.param(f'{{"id": {"1" * 5_000}}}', "line 3: it has a number of too many digits; give one", id="long"),
        ('{"id": "n9", "title": "\\ud800"}', "line 3: title cannot be sent"),
    ],
)
def test_a_bad_line_is_named_and_what_was_done_before(server: Server, ask: Ask, line: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)) as caught:
        ask("upsert", "--group", "1", stdin=f"\n{numbered(1)}{line}\n{numbered(2)}")
    assert caught.value.message.endswith(" Lines 2 to 2 were upserted (1 created); sending them again does no harm.")
    assert {"n1"} == server.services.index.entries().keys() & {"n1", "n2"}


@pytest.mark.parametrize(
    "value",
    [20160822, 1471824000, "1471824000", 1471824000.0, 1471824000000, 1471824000000000, "2016-08-22T02+02"],
)
def test_a_date_is_read_as_a_build_reads_it(server: Server, ask: Ask, value: object) -> None:
    ask("upsert", stdin=lines({"id": "n1", "title": "Storm", "published_at": value}))
    (request,) = server.requests
    assert isinstance(request, StreamUpsertArticlesRequest)
    assert request.request.articles[0].published_at.ToDatetime(UTC) == datetime(2016, 8, 22, tzinfo=UTC)
    assert parse_date(value) == datetime(2016, 8, 22, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_a_feed_that_is_silent_does_not_keep_the_command_from_ending(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    feed = os.open(tmp_path / "pipe", os.O_RDWR)  # open to the end, as that of a program that goes on
    os.write(feed, b'{"id": "n1", "title": "Storm"}\n')
    command = [sys.executable, "-m", "coldframe.cli", "upsert", name, "--server", "localhost:1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    try:
        done = subprocess.run(
            command, stdin=feed, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, timeout=60, check=False
        )
    finally:
        os.close(feed)
    assert (done.returncode, done.stderr[:7]) == (1, b"error: "), done.stderr
    assert b"Nothing was upserted." in done.stderr


def test_attributes_are_read_as_a_build_reads_them(server: Server, ask: Ask) -> None:
    given: dict[str, Any] = {"desk": " b ", "views": 12, "share": 3.0, "large": 1e22, "paid": True, "video": False}
    ask("upsert", stdin=lines({"id": "n1", "title": "Storm", "attributes": given}))
    (request,) = server.requests
    assert isinstance(request, StreamUpsertArticlesRequest)
    parser = Parser(Columns(), 1_000)
    built = parser.article({"id": "n1", "content": "Storm", **given}, "n.jsonl", 1, None)
    assert isinstance(built, BuiltArticle)
    assert dict(request.request.articles[0].attributes) == built.attributes


def test_null_is_what_is_missing(server: Server, ask: Ask) -> None:
    nothing = dict.fromkeys(["content", "published_at", "attributes"])
    ask("upsert", stdin=lines({"id": "n1", "title": "Storm", **nothing}))
    (request,) = server.requests
    assert isinstance(request, StreamUpsertArticlesRequest)
    assert [field.name for field, _ in request.request.articles[0].ListFields()] == ["id", "title"]


def test_bytes_that_are_no_text(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(InvalidArgument, match=r"line 1: it is not UTF-8 \(byte 11\).* Nothing was upserted"):
        ask("upsert", str(tmp_path / "latin.jsonl"))
    with pytest.raises(InvalidArgument, match=r"none\.jsonl cannot be read: No such file"):
        ask("upsert", str(tmp_path / "none.jsonl"))


def test_a_group_that_the_server_refuses(server: Server, ask: Ask) -> None:
    content = numbered(0, 1, 2) + lines({"id": "n3", "content": "no title"}) + numbered(*range(4, 500))
    with pytest.raises(InvalidArgument, match=r"line 4: articles\[1\]\.title is empty") as caught:
        ask("upsert", "--group", "2", stdin=content)
    assert re.search(r" Lines 1 to 2(, 5 to \d+)? were upserted", caught.value.message)
    assert "n3" not in server.services.index.entries()


def test_a_stream_that_breaks_says_what_was_done(server: Server, ask: Ask) -> None:
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable, match="Nothing was upserted"):
        ask("upsert", stdin=numbered(1))
    assert len(server.requests) == 1


def test_a_connection_that_breaks_leaves_open_what_was_done(server: Server, ask: Ask) -> None:
    server.stalled = True
    with Relay(server.target) as relay, ThreadPoolExecutor(1) as pool:
        done = pool.submit(ask, "upsert", "--group", "2", stdin=numbered(1, 2, 3), target=relay.target)
        wait_until(lambda: bool(server.requests))
        relay.cut()
        with pytest.raises(Unavailable, match=r"broke off .* No line is known to be upserted, some may be; sending"):
            done.result(20)


# ---------------------------------------------------------------------------------------------------- delete, get


def test_delete(server: Server, ask: Ask) -> None:
    assert "1 would be deleted" in ask("delete", "a1", "--validate-only")
    out = ask("delete", "a1", "a9")
    assert out.startswith("1 deleted\nnot in the index: a9\n")
    assert not re.search(r" a1 *$", ask("search", "economy"), re.MULTILINE)
    assert "2 deleted" in ask("delete", stdin="a2\n\na3\n")
    assert "2 deleted" in ask("delete", stdin="  a4\na5 \t\r\n"), "as psql prints a column"
    with pytest.raises(InvalidArgument, match="no ids"):
        ask("delete", stdin="\n")
    server.requests.clear()
    ask("delete", stdin="\n".join(map(str, range(2500))))
    assert [len(request.ids) for request in server.requests] == [1000, 1000, 500]  # type: ignore[attr-defined]


def test_get(ask: Ask) -> None:
    out = ask("get", "a4", "--clusters", "2", "--neighbors", "1")
    for fact in ("Goalkeeper signs", "c1 (cosine 0.900)", "sport", "by the build", "[bold]Cup final[/bold] decided"):
        assert fact in out
    with pytest.raises(UnknownArticle, match="no article has the id 'a9'"):
        ask("get", "a9")


# ---------------------------------------------------------------------------------------------------------- activate


def test_activate(ask: Ask) -> None:
    served = "20260314T061500Z-4f9a1c22"
    assert ask("activate", "another").startswith(f"another is served; before it was {served}\n")
    assert ask("activate", served).startswith(f"{served} was served already\n")
    with pytest.raises(UnknownGeneration, match="it holds: another"):
        ask("activate", "a-third")
