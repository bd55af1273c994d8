"""What --corpus can name: files, folders, globs and addresses."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import ClientTimeout
from fsspec.implementations.http import HTTPFileSystem

from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns, find_sources, read
from tests.corpus_files import packed, put, write
from tests.rights import nobody
from tests.web import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

CSV = b"id,content\n1,a\n2,b\n"
NAMES = ["a.csv", "b.csv.gz", "c.csv.zst", "d.jsonl", "e.parquet", "f.parquet.gz"]
ROWS = [{"id": "1", "content": "a"}, {"id": "2", "content": "b"}]


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def locations(*values: str, **options: Any) -> list[str]:
    return [source.location for source in find_sources(values, **options)]


def ids(*values: str) -> list[str]:
    return [row.id for row in read(find_sources(values), Columns()) if isinstance(row, Article)]


def refusal(*values: str, **options: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        list(read(find_sources(values, **options), Columns()))
    return caught.value


# --- here ------------------------------------------------------------------------------------------------------------


def test_files_and_globs_are_listed_in_order_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.csv", "a.csv", "[1].csv"):
        put(tmp_path / name, CSV)
    (tmp_path / "deep").mkdir()
    put(tmp_path / "deep" / "c.csv", CSV)
    values = [str(tmp_path / "*.csv"), str(tmp_path / "a.csv"), str(tmp_path / "[1].csv")]
    wanted = [tmp_path / "[1].csv", tmp_path / "a.csv", tmp_path / "b.csv"]
    assert locations(*values) == [str(path) for path in wanted]
    assert str(tmp_path / "deep" / "c.csv") in locations(str(tmp_path / "**" / "*.csv"))
    monkeypatch.chdir(tmp_path)
    assert locations("a.csv", str(tmp_path / "a.csv"), f"file://{tmp_path}/a.csv") == ["a.csv"]


def test_a_file_whose_name_is_not_utf_8_is_read_and_named(tmp_path: Path) -> None:
    for name in (b"caf\xe9.csv", b"caf\xe8.csv"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(CSV)
    rows = [row for row in read(find_sources([str(tmp_path)]), Columns()) if isinstance(row, Article)]
    assert [row.source for row in rows] == ["caf\ufffd.csv (1)"] * 2 + ["caf\ufffd.csv (2)"] * 2


def test_a_source_says_what_is_known_of_its_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", CSV)
    (before,) = find_sources([str(path)])
    assert (before.name, before.location, before.size) == ("a.csv", str(path), len(CSV))
    assert [before] == find_sources([str(path)])
    os.utime(path, (1, 1))
    (after,) = find_sources([str(path)])
    assert before.version != after.version


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for year in ("2016", "2017"):
        (tmp_path / year).mkdir()
        put(tmp_path / year / "a.csv", CSV)
    put(tmp_path / "b.csv", CSV)
    assert [source.name for source in find_sources([str(tmp_path / "*" / "a.csv")])] == ["2016/a.csv", "2017/a.csv"]
    assert [source.name for source in find_sources([str(tmp_path / "2016"), str(tmp_path / "b.csv")])] == [
        "a.csv",
        "b.csv",
    ]


def test_a_folder_is_read_to_its_depth_and_what_is_skipped_is_said(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in (
        *NAMES,
        "deep/g.TSV",
        "deep/deeper/h.ndjson",
        ".git/i.csv",
        ".hidden.csv",
        "_SUCCESS",
        "deep/README.md",
    ):
        put(tmp_path / name, b"")
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    said: list[str] = []
    found = locations(str(tmp_path), say=said.append)
    assert [str(Path(path).relative_to(tmp_path)) for path in found] == [
        *NAMES[:3], "d.jsonl", "deep/deeper/h.ndjson", "deep/g.TSV", *NAMES[4:],
    ]  # fmt: skip
    (sentence,) = said
    assert sentence.startswith(f"{tmp_path}: 8 file(s) are read, 5 skipped that are no corpus files: ")
    assert ".git/" in sentence


def test_a_linked_folder_hides_no_other_of_its_name(tmp_path: Path) -> None:
    for folder in ("real", "news/a", "news/b/2015"):
        (tmp_path / folder).mkdir(parents=True)
        put(tmp_path / folder / "c.csv", CSV)
    (tmp_path / "news" / "a" / "2015").symlink_to(tmp_path / "real")
    wanted = [str(tmp_path / "news" / name / "c.csv") for name in ("a", "b/2015")]
    assert locations(str(tmp_path / "news")) == wanted


def test_folders_that_a_glob_names_are_not_passed_over_in_silence(tmp_path: Path, memory: Any) -> None:
    for name in ("news/a.csv", "news/2016/b.csv", "news/2017.csv/c.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        put(tmp_path / name, CSV)
        memory.pipe(f"/{name}", CSV)
    for news in (f"{tmp_path}/news", "memory://news"):
        said: list[str] = []
        (found,) = locations(f"{news}/*", say=said.append)
        assert found.endswith("/news/a.csv")
        (sentence,) = said
        assert "/news/*: 1 file(s) are read, 2 folder(s) skipped: 2016/, 2017.csv/; " in sentence
        assert "names only folders, 2016/, 2017.csv/. For what is in them say" in refusal(f"{news}/2*").message
        assert len(locations(f"{news}/2*/**", f"{news}/**", say=said.append)) == 3
        assert len(said) == 1


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("value", ["news", "news/*/*.csv", "news/**/*.csv", "news/**", "news/shut/a.csv"])
def test_what_cannot_be_read_of_a_corpus_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, mode: int
) -> None:
    (tmp_path / "news" / "shut").mkdir(parents=True)
    for name in ("news/b.csv", "news/shut/a.csv"):
        put(tmp_path / name, CSV)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "news" / "shut").chmod(mode)
    with nobody():
        error = refusal(value)
    assert error.field == "corpus"
    assert f"--corpus {value}: news/shut" in error.message
    assert "cannot be read (Permission denied)" in error.message


def test_a_folder_is_read_without_what_is_no_part_of_it(tmp_path: Path) -> None:
    for name in ("news/a.jsonl", "news/store/rejects.jsonl", "news/deep/bad.jsonl", "news/deep/store/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        put(tmp_path / name, CSV)
    news = tmp_path / "news"
    (tmp_path / "link").symlink_to(news / "store")
    found = locations(str(news), apart_from=[tmp_path / "link", news / "deep" / ".." / "deep" / "bad.jsonl"])
    assert found == [str(news / "a.jsonl"), str(news / "deep" / "store" / "c.jsonl")]
    assert locations(str(news / "deep" / "bad.jsonl"), apart_from=[news]) == [str(news / "deep" / "bad.jsonl")]


@pytest.mark.parametrize("names", [[], ["README.md"]])
def test_a_folder_without_a_corpus_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        put(tmp_path / name, b"")
    error = refusal(str(tmp_path))
    assert error.field == "corpus"
    assert "no corpus file" in error.message
    assert all(name in error.message for name in [*names, ".csv", ".parquet"])


@pytest.mark.parametrize(
    ("values", "options", "said", "field"),
    [
        (["none/*.csv"], {}, "no such file", "corpus"),
        (["none.csv"], {}, "no such file", "corpus"),
        (["file:///none.csv"], {}, "no such file", "corpus"),
        (["~nobody-at-all/a.csv"], {}, "no such file", "corpus"),
        (["a" * 300 + ".csv"], {}, "cannot be read (File name too long)", "corpus"),
        ([], {}, "nothing to read", "corpus"),
        (["a.csv"], {"query": "select 1"}, "either --corpus or --query", "corpus"),
        ([], {"database": "sqlite:///a.db"}, "needs a --query", "query"),
        (["nope://x/a.csv"], {}, "Protocol not known: nope", "corpus"),
        (["s3://bucket/*.csv"], {}, "s3fs", "corpus"),
        (["gs://bucket/a.csv"], {}, "gcsfs", "corpus"),
        (["memory://none/a.csv"], {}, "there is no such file", "corpus"),
        (["memory://none/*.csv"], {}, "there is no such file", "corpus"),
    ],
)
def test_a_corpus_that_names_nothing_is_refused(
    values: list[str], options: dict[str, Any], said: str, field: str
) -> None:
    error = refusal(*values, **options)
    assert said in error.message
    assert error.field == field


def test_a_format_that_is_not_known_is_refused_when_files_are_listed(tmp_path: Path) -> None:
    path = put(tmp_path / "notes.doc", b"")
    with pytest.raises(InvalidArgument, match=r"notes\.doc: the format is not known.*\.jsonl.*\.zst"):
        find_sources([str(path)])


# --- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_file_can_be_read_from_a_store(tmp_path: Path, memory: Any, name: str) -> None:
    memory.put(str(write(tmp_path / name, ROWS)), f"/news/{name}")
    (source,) = find_sources([f"memory://news/{name}"])
    assert (source.name, source.size) == (name, (tmp_path / name).stat().st_size)
    assert ids(f"memory://news/{name}") == ["1", "2"]


def test_a_web_server_that_does_not_answer_is_not_taken_for_one_without_the_file(tmp_path: Path) -> None:
    with serving(tmp_path) as web:
        assert "a.csv cannot be read: there is no such file" in refusal(f"{web.url}/a.csv").message
        dropped = refusal(f"{web.url}/drop/a.csv").message
    assert re.search(r"a\.csv cannot be read: .*[Cc]onnect", refusal(f"{web.url}/a.csv").message)
    assert re.search(r"a\.csv cannot be read: .*[Dd]isconnect", dropped)


def test_a_transfer_may_take_any_time_but_a_server_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.csv", CSV)
    HTTPFileSystem.clear_instance_cache()  # what tests before have opened
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", ClientTimeout(total=1e-9))  # five minutes, passed at once
    with serving(tmp_path) as web:
        assert ids(f"{web.url}/a.csv") == ["1", "2"]
        monkeypatch.setattr("indexer.corpus.sources._SILENCE_S", 0.5)
        assert "a.csv cannot be read: it fell silent" in refusal(f"{web.url}/silent/a.csv").message


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv", "a.parquet.gz"])
def test_a_server_may_call_gzip_the_encoding_of_a_file_on_the_way(tmp_path: Path, name: str) -> None:
    stored = write(tmp_path / name, ROWS)
    if not name.endswith(".gz"):
        stored.write_bytes(packed(stored.read_bytes(), ".gz"))
    with serving(tmp_path) as web:
        web.encoding = "gzip"
        assert ids(f"{web.url}/{name}") == ["1", "2"]


def test_folders_and_globs_of_a_store(memory: Any) -> None:
    for name in ("a.csv", "deep/b.csv", "README.md", "_temporary/c.csv"):
        memory.pipe(f"/news/{name}", CSV)
    said: list[str] = []
    assert [source.name for source in find_sources(["memory://news"], say=said.append)] == ["a.csv", "b.csv"]
    assert "2 file(s) are read, 2 skipped" in said[0]
    assert len(find_sources(["memory://news/*.csv", "memory://news/a.csv"])) == 1
    assert ids("memory://news/**/*.csv", "memory://news/a.csv")[:2] == ["1", "2"]
    memory.pipe("/empty/README.md", b"")
    assert "no corpus file" in refusal("memory://empty").message


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_any_file_can_be_read_from_a_web_server(tmp_path: Path, name: str, ranges: bool) -> None:
    write(tmp_path / name, ROWS)
    with serving(tmp_path, ranges=ranges) as web:
        (source,) = find_sources([f"{web.url}/{name}"])
        assert (source.name, source.size) == (name, (tmp_path / name).stat().st_size)
        assert source.version
        assert ids(f"{web.url}/{name}") == ["1", "2"]


def test_of_parquet_only_what_is_wanted_is_fetched(tmp_path: Path) -> None:
    table = pa.table({"id": ["1", "2"], "content": ["a", "b"], "html": [os.urandom(2_000_000).hex()] * 2})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    with serving(tmp_path) as web:
        rows = list(read(find_sources([f"{web.url}/a.parquet"]), Columns(attributes=())))
        assert rows == [Article("1", "", "a", None, {}), Article("2", "", "b", None, {})]
        assert web.sent < 2_000_000 < (tmp_path / "a.parquet").stat().st_size


def test_globs_and_folders_of_a_web_server_are_what_its_page_lists(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.gz", "README.md"):
        put(tmp_path / name, packed(CSV, name))
    with serving(tmp_path) as web:
        assert locations(f"{web.url}/*.csv") == [f"{web.url}/a.csv"]
        assert locations(f"{web.url}/") == [f"{web.url}/a.csv", f"{web.url}/b.csv.gz"]


def test_an_address_keeps_its_secrets(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", CSV)
    with serving(tmp_path) as web:
        (source,) = find_sources([f"{web.url}/a.csv?signature=secret"])
        assert (source.name, source.location) == ("a.csv", f"{web.url}/a.csv")
        assert web.asked[0] == ("HEAD", "/a.csv?signature=secret", None)
        for path in ("none.csv", "secret.csv"):
            error = refusal(f"{web.url}/{path}?signature=xyz")
            assert f"{web.url}/{path}" in error.message
            assert "xyz" not in error.message
    error = refusal(f"http://user:xyz@127.0.0.1:{web.server_port}/a.csv")
    assert "cannot be read" in error.message
    assert "xyz" not in error.message


def test_addresses_that_differ_in_what_is_not_shown_are_sources_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", CSV)
    for number in (1, 2):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr("b.csv", f"id,content\n{number},a\n")
    archives = [f"zip://b.csv::{tmp_path}/{number}.zip" for number in (1, 2, 1)]
    assert ids(*archives) == ["1", "2"]
    with serving(tmp_path) as web:
        days = [f"{web.url}/a.csv?day={day}&key=secret" for day in (1, 2, 1)]
        sources = find_sources([*days, *archives])
        assert [source.name for source in sources] == ["a.csv (1)", "a.csv (2)", "b.csv (1)", "b.csv (2)"]
        assert len({source.address for source in sources}) == len(sources)
        assert "secret" not in repr(sources)


def test_a_password_tells_no_source_from_another(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", CSV)
    with serving(tmp_path) as web:
        plain, *others = (web.url.replace("//", f"//{who}") + "/a.csv" for who in ("", "me:old@", "me:new@"))
        before, after = (find_sources([address]) for address in others)
        assert before == after != find_sources([plain])
        assert before == find_sources(others)


def test_a_store_that_fails_on_the_way_is_named(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/news/a.csv", CSV)
    sources = find_sources(["memory://news/a.csv"])
    memory.rm("/news/a.csv")
    with pytest.raises(InvalidArgument, match=r"memory://.*a\.csv cannot be read: there is no such file"):
        list(read(sources, Columns()))
