"""The `coldframe` command line against a real server in this process."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from coldframe import commands, tables
from coldframe.cli import NEEDS_EXTRA
from coldframe.errors import ColdframeError, InvalidArgument, Unavailable, UnknownCluster
from coldframe.v1.search_service_pb2 import SearchRequest, SearchResponse
from coldframe.v1.types_pb2 import EFFORT_EXACT, EFFORT_FAST
from tests import scripted_index
from tests.scripted import Server
from tests.scripted_index import ARTICLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coldframe.v1.types_pb2 import Seed

    Ask = Callable[..., str]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def ask(server: Server, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*args: str, stdin: str | bytes | None = None, **env: str) -> str:
        done = CliRunner().invoke(commands.app, [*args, "--server", server.target], input=stdin, env=env)
        if isinstance(done.exception, ColdframeError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def last_request(server: Server) -> SearchRequest:
    request = server.requests[-1]
    assert isinstance(request, SearchRequest)
    return request


# --------------------------------------------------------------------------------------------------------- seeds


def test_a_text_an_id_and_standard_input(server: Server, ask: Ask) -> None:
    ask("search", "the economy", "-n", "3", "--exact")
    assert (last_request(server).seed.text, last_request(server).limit) == ("the economy", 3)
    assert last_request(server).effort == EFFORT_EXACT
    ask("search", "--id", "a4")
    assert last_request(server).seed.article_id == "a4"
    ask("search", "-", stdin="Fähren im Hafen\n")
    assert last_request(server).seed.text == "Fähren im Hafen\n"


def test_an_article_from_a_file(server: Server, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "draft.txt").write_text("\ufeff\n \nStorm warning\n\nHeavy seas.\nMore to come.\n", encoding="utf-8")
    ask("search", "--article", str(tmp_path / "draft.txt"))
    article = last_request(server).seed.article
    assert (article.title, article.content) == ("Storm warning", "Heavy seas.\nMore to come.")


def test_a_vector_from_a_list_or_from_embed(server: Server, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "vector.json"
    for document in ("[0, 1.0, 0]", ask("embed", "sport", "--json")):
        path.write_text(document, encoding="utf-8")
        ask("search", "--vector", str(path))
        assert last_request(server).seed.vector.packed == struct.pack("<3f", 0.0, 1.0, 0.0)


@pytest.mark.parametrize("seeds", [[], ["a text", "--id", "a1"], ["--id", "a1", "--vector", "v.json"]])
@pytest.mark.parametrize("command", ["search", "nearest"])
def test_exactly_one_seed(ask: Ask, command: str, seeds: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="exactly one of TEXT, --article, --id, --vector"):
        ask(command, *seeds)


@pytest.mark.parametrize(
    "content",
    [
        *["", "{}", "[1, 'x']", "3", '["a"]', '{"embeddings": []}', "[[1.0]]"],
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(f"[{10**400}]", id="long"),
    ],
)
def test_a_file_that_is_no_vector(ask: Ask, tmp_path: Path, content: str) -> None:
    (tmp_path / "v.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidArgument, match="is no vector; give a JSON list of numbers"):
        ask("search", "--vector", str(tmp_path / "v.json"))


def test_files_that_cannot_be_read(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidArgument, match=r"latin\.txt is not UTF-8 \(byte 3\)"):
        ask("search", "--article", str(tmp_path / "latin.txt"))
    with pytest.raises(InvalidArgument, match=r"none\.txt cannot be read: No such file"):
        ask("nearest", "--article", str(tmp_path / "none.txt"))
    with pytest.raises(InvalidArgument, match="standard input is not UTF-8"):
        ask("search", "-", stdin=b"\xff\xfe")


# -------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "args",
    [
        ["search", "economy"],
        ["nearest", "storm"],
        ["clusters"],
        ["cluster", "c0"],
        ["articles", "c1"],
        ["trending", "--window", "5d", "--min-count", "1"],
        ["embed", "sport", "storm"],
        ["get", "a3", "--clusters", "3", "--neighbors", "5"],
        ["recommend", "--like", "a1", "--unlike", "a2", "--half-life", "3d", "--diversity", "0.5", "--prior", "a4=0.1",
         "--explain"],
        ["info"],
    ],
)  # fmt: skip
def test_tables_fit_and_carry_no_control_characters(ask: Ask, width: int, args: list[str]) -> None:
    out = ask(*args, COLUMNS=str(width))
    assert max(map(len, out.splitlines())) <= width
    assert out.isascii() or re.search(r"[─…·]", out)
    assert "\x1b" not in out


def test_no_title_turns_around_what_stands_behind_it(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "\u202bخبر\u202c \u202e\u2067مصر\u200f"
    monkeypatch.setitem(ARTICLES, "a1", (title, "2026-03-05", "c0", (1.0, 0.0, 0.0)))
    for args in (["search", "economy"], ["get", "a1"], ["nearest", "economy"]):
        out = ask(*args)
        assert "خبر مصر\u200f" in out
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", out)


def test_a_pipe_is_120_columns_wide(ask: Ask) -> None:
    assert max(map(len, ask("search", "economy").splitlines())) == 120


def test_hits_for_people(ask: Ask) -> None:
    out = ask("search", "the economy")
    assert re.search(r"^1 +1\.000 +Central bank expected to cut rates +2026-03-01 +c0 +a1 *$", out, re.MULTILINE)
    assert "[bold]Cup final[/bold] decided" in out
    assert "generation 20260314T061500Z-4f9a1c22 · model minilm" in out
    assert "4 tokens · 7.9 ms (tokenize 0.2, queue 0.1, embed 6.0, search 1.2)" in out
    assert "were read" not in out


def test_an_id_is_whole_however_long(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    long_id = "https://www.example.org/news/2026/03/14/" + "x" * 50
    monkeypatch.setitem(ARTICLES, long_id, ("A long id", "2026-03-05", "c0", (1.0, 0.0, 0.0)))
    heading, *rows = ask("search", "economy", COLUMNS="80").splitlines()
    assert long_id in "".join(row[heading.index(" id") + 1 :].strip() for row in rows)
    assert any("Central bank" in row for row in rows)


def test_a_token_stands_on_one_line_however_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables.show(tables.hits(SearchResponse(next_page_token="t" * 300)))
    assert f"more: the same with --page {'t' * 300}\n" in capsys.readouterr().out


def test_a_cut_text_is_told(ask: Ask) -> None:
    note = "the text has 5,002 tokens; the first 4,096 were read"
    assert note in ask("search", "-", stdin="storm " * 5000)
    assert note in ask("nearest", "-", stdin="storm " * 5000)
    assert "text 2 has 5,002 tokens" in ask("embed", stdin="short\n" + "storm " * 5000)


def test_no_hits_is_no_error(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted_index, "ARTICLES", {})
    assert "no articles found" in ask("search", "economy")
    assert json.loads(ask("search", "economy", "--json"))["hits"] == []


def test_clusters_and_one_cluster(ask: Ask) -> None:
    near = ask("nearest", "storm")
    assert re.search(r"^1 +1\.000 +50% +storm, ferry, coast +2 +Unwetter .* +c2 *$", near, re.MULTILINE)
    assert "3 clusters, 6 articles" in ask("clusters")
    out = ask("cluster", "c1")
    assert out.startswith("goal, cup, keeper  c1, 2 articles\ngoal 1.00, cup 0.50, keeper 0.33\n")
    assert "Goalkeeper signs for three more years" in out


def test_embed_and_info(ask: Ask) -> None:
    assert re.search(r"^1 +sport and storm +5 +5 +3 +\+0\.000 \+0\.707", ask("embed", "sport and storm"), re.MULTILINE)
    out = ask("info")
    for fact in ("2026-03-14 06:15 UTC", "2,225", "minilm (bf16)", "4,096 tokens", "visits 2 lists", "0.993"):
        assert fact in out


# ---------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["search", "economy"], {"hits", "usage", "timing", "served_by", "next_page_token", "missing_ids"}),
        (["search", "--id", "a1"], {"hits", "timing", "served_by", "next_page_token", "missing_ids"}),
        (
            ["recommend", "--like", "a1"],
            {"hits", "interests", "usages", "timing", "served_by", "next_page_token", "missing_ids"},
        ),
        (["nearest", "economy"], {"matches", "usage", "timing", "served_by", "outlier"}),
        (["clusters"], {"clusters"}),
        (["cluster", "c0"], {"cluster", "timing", "served_by", "residuals", "lineage", "ages", "neighbors"}),
        (["articles", "c0"], {"articles"}),
        (["trending"], {"clusters", "as_of", "timing", "served_by"}),
        (["upsert", "-"], {"created", "replaced", "unchanged", "results"}),
        (["delete", "a9"], {"deleted_ids", "missing_ids", "timing", "served_by"}),
        (["get", "a1"], {"article", "usage", "clusters", "neighbors", "timing", "served_by"}),
        (["embed", "economy"], {"embeddings", "timing", "served_by"}),
        (["info"], {"index", "timing", "served_by"}),
        (["activate", "another"], {"previous_generation", "changed", "timing", "served_by"}),
    ],
)
def test_json_is_one_document(ask: Ask, args: list[str], keys: set[str]) -> None:
    assert set(json.loads(ask(*args, "--json"))) == keys


def test_json_names_and_numbers(ask: Ask) -> None:
    document: dict[str, Any] = json.loads(ask("search", "economy", "--json", "--limit", "1"))
    (hit,) = document["hits"]
    assert hit["article"]["published_at"] == "2026-03-01T00:00:00Z"
    assert hit["article"]["cluster_id"] == "c0"
    assert (hit["score"], document["usage"]["tokens_seen"]) == (1.0, 3)
    assert document["served_by"]["generation"] == "20260314T061500Z-4f9a1c22"


def test_json_embeds_lines_from_standard_input(ask: Ask) -> None:
    document = json.loads(ask("embed", "--json", stdin="economy\nsport\n"))
    assert [item["vector"]["values"] for item in document["embeddings"]] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_each_line_of_standard_input_is_searched_for(server: Server, ask: Ask) -> None:
    told = ask("search-each", "--json", "-n", "1", "--effort", "fast", stdin="economy\nsport\n")
    first, second = map(json.loads, told.splitlines())
    assert [reply["correlation_id"] for reply in (first, second)] == ["0", "1"]
    assert [reply["response"]["hits"][0]["article"]["cluster_id"] for reply in (first, second)] == ["c0", "c1"]
    shown = ask("search-each", "-n", "1", stdin="economy\nsport")
    assert shown.index("economy\n") < shown.index(" c0 ") < shown.index("sport\n") < shown.index(" c1 ")
    with pytest.raises(InvalidArgument, match="line 2 of standard input is empty"):
        ask("search-each", stdin="economy\n\nsport\n")
    with pytest.raises(InvalidArgument, match="no texts; "):
        ask("search-each", stdin="")


def test_each_line_of_standard_input_is_embedded(server: Server, ask: Ask) -> None:
    lines = "economy\nsport\n" * 200  # of which one call takes 256
    replies = [json.loads(line) for line in ask("embed-each", "--json", stdin=lines).splitlines()]
    assert [reply["correlation_id"] for reply in replies] == [str(number) for number in range(400)]
    assert [reply["embedding"]["vector"]["values"] for reply in replies] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 200
    shown = ask("embed-each", stdin="economy\nsport")
    places = [shown.index(told) for told in ("economy\n", "+1.000 +0.000", "sport\n", "+0.000 +1.000")]
    assert places == sorted(places)
    with pytest.raises(InvalidArgument, match="line 2 of standard input is empty; give a text to embed on each"):
        ask("embed-each", stdin="economy\n\nsport\n")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_line_that_is_refused_says_so_in_its_place(
    server: Server, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    seeker = scripted_index.Index.seeker

    def picky(index: scripted_index.Index, seed: Seed) -> Any:
        if seed.text == "nonsense":
            raise InvalidArgument("request.seed.text is nonsense", field="request.seed.text")
        return seeker(index, seed)

    monkeypatch.setattr(scripted_index.Index, "seeker", picky)
    given = "economy\nnonsense\nsport\n"
    done = CliRunner().invoke(commands.app, ["search-each", "-n", "1", *form, "--server", server.target], input=given)
    assert isinstance(done.exception, InvalidArgument)
    assert done.stdout.index("c0") < done.stdout.index("request.seed.text is nonsense") < done.stdout.index("c1")


def test_how_much_is_searched(server: Server, ask: Ask) -> None:
    for effort, asked in (("fast", EFFORT_FAST), ("exact", EFFORT_EXACT)):
        ask("search", "economy", "--effort", effort)
        assert last_request(server).ranking.effort == asked
    with pytest.raises(InvalidArgument, match="fast"):
        ask("search", "economy", "--effort", "utmost")
    with pytest.raises(InvalidArgument, match="give one of them"):
        ask("search", "economy", "--exact", "--effort", "fast")


@pytest.mark.parametrize("last", ["\n", "", "\r\n"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(server: Server, ask: Ask, last: str) -> None:
    texts = ["one\u2028line", "a page\fand\x85another", "so\rold", ""]
    given = "\r\n".join([*texts, "last"]) + last
    document = json.loads(ask("embed", "--json", stdin=given.encode()))
    assert len(document["embeddings"]) == 5
    assert list(server.requests[-1].texts) == [*texts, "last"]  # type: ignore[attr-defined]
    ask("delete", stdin=given.encode())
    assert list(server.requests[-1].ids) == [*texts[:3], "last"]  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- errors, help, the script


def test_errors_of_the_server(ask: Ask) -> None:
    with pytest.raises(UnknownCluster, match="no cluster has the id 'c9'"):
        ask("cluster", "c9")
    done = CliRunner().invoke(commands.app, ["info", "--server", "localhost:1"])
    assert isinstance(done.exception, Unavailable)


def script(*args: str, encoding: str = "utf-8", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldframe.cli", *args]
    return subprocess.run(command, capture_output=True, encoding=encoding, check=False, env={"PATH": "", **env})


def test_the_script_and_its_environment(server: Server) -> None:
    done = script("search", "economy", "--json", COLDFRAME_SERVER=server.target, COLDFRAME_SEARCH_LIMIT="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["hits"]) == 2
    done = script("cluster", "c9", COLDFRAME_SERVER=server.target)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: no cluster has the id 'c9'.\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["embed"], "no texts; give them as arguments, or pipe one a line "),
        (["embed-each"], "no texts; pipe one a line "),
        (["search-each"], "no texts; pipe one a line "),
        (["delete"], "no ids; "),
        (["upsert"], "no articles; "),
        (["search", "-"], "is closed; "),
    ],
)
def test_standard_input_that_is_closed(args: list[str], said: str) -> None:
    words = [sys.executable, "-m", "coldframe.cli", *args]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_disk_that_is_full_under_what_is_printed(server: Server) -> None:
    command = [sys.executable, "-m", "coldframe.cli", "search", "economy", "--server", server.target]
    for more in ([], ["--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command + more, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith("error: No space left on device: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_letters(server: Server, encoding: str) -> None:
    asked = {"encoding": encoding, "COLDFRAME_SERVER": server.target, "PYTHONIOENCODING": encoding}
    done = script("search", "storm", **asked)
    assert (done.returncode, done.stderr) == (0, "")
    hits = json.loads(script("search", "storm", "--json", **asked).stdout)["hits"]
    assert hits[0]["article"]["title"] == ARTICLES["a5"][0]


COMMANDS = [
    "search", "recommend", "nearest", "clusters", "cluster", "articles", "trending", "embed", "info", "activate",
    "upsert", "delete", "get",
]  # fmt: skip


def test_the_commands_are_these() -> None:
    listed = re.findall(
        r"^│ (\w+) ", CliRunner().invoke(commands.app, ["--help"]).stdout.split("Commands")[1], re.MULTILINE
    )
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option_with_an_example(command: str) -> None:
    out = CliRunner().invoke(commands.app, [command, "--help"]).stdout
    assert f"Example: coldframe {command} " in out
    for option in ("--server", "--timeout", "--json"):
        assert re.search(rf"{option} .+[A-Z]\w+ ", out)


def test_version() -> None:
    assert re.fullmatch(r"coldframe \d+\.\d+\.\d+\n", CliRunner().invoke(commands.app, ["--version"]).stdout)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_get_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from coldframe.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{NEEDS_EXTRA}\n")
