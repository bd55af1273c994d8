"""A generation on disk: verified to the byte, its articles found by row, by id and by text."""

from __future__ import annotations

import json
import string
import unicodedata
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pyarrow.ipc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe import articles as articles_module
from coldframe.articles import EXCERPT_CHARS, ArticleRow, Articles, excerpt, write_articles
from coldframe.errors import CorruptGeneration, FingerprintMismatch
from coldframe.generation import (
    ARTICLES,
    CLUSTERS,
    INDEX,
    MANIFEST,
    REPORT,
    VECTORS,
    CorpusInfo,
    Generation,
    Manifest,
    Parameters,
    _sealed,
)
from coldframe.recipe import MEAN
from coldframe.store import Store
from coldframe.text import text_digest
from tests.generations import LISTS, ROWS, publish, row, write_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FILES = [MANIFEST, INDEX, VECTORS, ARTICLES, CLUSTERS, MEAN, REPORT]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published generation's folder; tests that alter it put it right again."""
    store = Store(tmp_path_factory.mktemp("sealed"))
    return store.directory(publish(store))


@contextmanager
def altered(file: Path, content: bytes | None) -> Iterator[None]:
    """The file with other content, or gone, while the block runs."""
    before = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


# --- altered and broken files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_altered_byte_is_refused_with_the_files_name(sealed: Path, name: str, place: float, flip: int) -> None:
    content = bytearray((sealed / name).read_bytes())
    content[int(place * len(content))] ^= flip
    with altered(sealed / name, bytes(content)), pytest.raises(CorruptGeneration, match=name):
        Generation(sealed)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_gone_is_refused_with_its_name(sealed: Path, name: str) -> None:
    content = (sealed / name).read_bytes()
    for left in (content[:-1], content[: len(content) // 2], b"", content + b"\n", None):
        with altered(sealed / name, left), pytest.raises(CorruptGeneration, match=name):
            Generation(sealed)
    Generation(sealed)


@pytest.mark.parametrize(
    "change",
    [
        {"corpus": {"articles": ROWS + 1}},
        {"parameters": {"clusters": LISTS + 1}},
        {"parameters": {"probes": 1}},
        {"report": {"recall_at_10": 1.0}},
        {"source": "elsewhere"},
        {"files": {VECTORS: {"size": 1}}},
        {"note": "added"},
    ],
)
def test_a_manifest_edited_by_hand_is_refused(sealed: Path, change: dict[str, object]) -> None:
    document = json.loads((sealed / MANIFEST).read_text())
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with altered(sealed / MANIFEST, text.encode()), pytest.raises(CorruptGeneration, match=MANIFEST):
        Generation(sealed)


@pytest.mark.parametrize("content", [b"[]", b"7", b'"format"', b"{}", b'{"format": 3}', b'{"format": null}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(sealed: Path, content: bytes) -> None:
    with altered(sealed / MANIFEST, content), pytest.raises(CorruptGeneration, match=MANIFEST):
        Generation(sealed)


@pytest.mark.parametrize("found", [1, 2, 6])
def test_another_format_says_which_one_is_read(sealed: Path, found: int) -> None:
    document = json.loads((sealed / MANIFEST).read_text()) | {"format": found}
    with (
        altered(sealed / MANIFEST, json.dumps(document).encode()),
        pytest.raises(CorruptGeneration, match=f"has format {found}, this Coldframe reads the formats 3 to 5"),
    ):
        Generation(sealed)


def test_a_generation_from_before_there_were_margins_is_served_without_one(sealed: Path) -> None:
    document = json.loads((sealed / MANIFEST).read_text()) | {"format": 3}
    del document["sha256"], document["parameters"]["margin"]
    with altered(sealed / MANIFEST, _sealed(document)):
        assert Generation(sealed).margin is None


def test_a_manifest_comes_back_as_it_was_sealed(tmp_path: Path) -> None:
    manifest = write_generation(tmp_path, seed=5)
    assert Manifest.read(tmp_path) == manifest


def test_the_digest_is_of_what_decides_an_answer_and_not_of_the_clock(tmp_path: Path) -> None:
    digests = []
    for n, seed in enumerate([0, 0, 1]):
        (tmp_path / str(n)).mkdir()
        digests.append(write_generation(tmp_path / str(n), seed).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"report": {"seconds": {"embed": 99.0}}}, True),
        ({"held": ["too few articles"]}, True),
        ({"requested": {"target-recall": 0.9}}, True),
        ({"precision": "bf16"}, True),
        ({"parameters": Parameters(LISTS, 0, 2, "sq8", 0.9, 3.0, 0.8)}, False),
        ({"parameters": Parameters(LISTS, 0, 2, "flat", 0.95, 3.0, 0.8)}, False),
        ({"corpus": CorpusInfo("1" * 32, ROWS, ROWS, 0, 0, 150)}, False),
    ],
)
def test_what_was_measured_and_asked_is_no_part_of_the_digest(
    tmp_path: Path, changed: dict[str, Any], same: bool
) -> None:
    for name in ("plain", "changed"):
        (tmp_path / name).mkdir()
    plain, other = write_generation(tmp_path / "plain"), write_generation(tmp_path / "changed", **changed)
    assert (plain.digest == other.digest) is same


def test_the_picture_is_verified_but_no_part_of_the_digest(sealed: Path, tmp_path: Path) -> None:
    manifest = write_generation(tmp_path)
    (tmp_path / REPORT).write_text("another picture")
    (tmp_path / "half-written.tmp").write_text("of a phase that was killed")
    again = Manifest.seal(
        tmp_path,
        **{
            name: getattr(manifest, name)
            for name in ("model", "corpus", "parameters", "report", "source", "precision", "requested")
        },
    )
    assert again.digest == manifest.digest
    assert again.files[REPORT] != manifest.files[REPORT]
    assert sorted([*again.files, MANIFEST]) == sorted(FILES)


@pytest.mark.parametrize(
    ("names", "second"),
    [
        (["20260101T000000Z-f3", "20991231T235959Z-f3"], "21000101T000000Z"),  # of a clock that was ahead
        (["20991231T235959Z-f3", "lost+found"], "21000101T000000Z"),
        (["20991231T235959Z-f3", "99991231T235959Z"], "21000101T000000Z"),
    ],
)
def test_a_generation_is_named_after_those_that_are_there(tmp_path: Path, names: list[str], second: str) -> None:
    assert write_generation(tmp_path, after=names).name.startswith(f"{second}-")


def test_another_encoder_is_refused_by_both_names(sealed: Path) -> None:
    opened = Generation(sealed)
    opened.require("f1" * 32)
    with pytest.raises(FingerprintMismatch, match=r"minilm.*f1f1f1f1f1f1.*abababababab"):
        opened.require("ab" * 32)


# --- articles --------------------------------------------------------------------------------------------------------

IDS = ["%", "%2F", "/etc/passwd", "0", "1001", "10010", "a b", "café", "cafe\u0301", "z" * 500, "Ω", "新聞", "🗞", "🗞️"]


def written(path: Path, rows: Sequence[ArticleRow], per_batch: int = 3) -> Articles:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(articles_module, "_ROWS_PER_BATCH", per_batch)
        write_articles(path, rows)
    return Articles(path)


@pytest.mark.parametrize("per_batch", [1, 2, 3, len(IDS) - 1, len(IDS), 8192])
def test_every_id_is_found_in_whichever_batch_it_lies(tmp_path: Path, per_batch: int) -> None:
    ids = sorted(IDS)
    table = written(tmp_path / ARTICLES, [row(article_id) for article_id in ids], per_batch)
    assert len(table) == len(ids)
    assert [table.row_of(article_id) for article_id in ids] == [*range(len(ids))]
    assert [table[n].id for n in range(len(ids))] == ids
    for absent in ("", "\x00", "$", "1000", "1001 ", "10011", "cafe", "z" * 499, "新", "🗞🗞", "\U0010ffff"):
        assert table.row_of(absent) is None


@pytest.mark.parametrize("hashed", [hash, len, lambda _: 0], ids=["as usual", "many alike", "all alike"])
def test_many_ids_are_found_at_once_also_where_their_hashes_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: Callable[[str], int]
) -> None:
    monkeypatch.setattr(articles_module, "hash", hashed, raising=False)
    ids = sorted({f"{'ä' * (n % 5)}{n}" for n in range(100)})
    table = written(tmp_path / "articles", [row(article_id) for article_id in ids])
    asked = [*ids[::3], "none", *ids[::-2], "", "zzz", "ä" * 600]
    assert table.rows_of(asked).tolist() == [ids.index(name) if name in ids else -1 for name in asked]
    assert table.rows_of(asked[-5:]).tolist() == [ids.index(asked[-5]), ids.index(asked[-4]), -1, -1, -1]
    assert table.rows_of([]).tolist() == []


def test_rows_with_long_attributes_share_a_batch_with_few_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(articles_module, "_CHARS_PER_BATCH", 1_000)
    rows = [replace(row(f"a{n:02}"), attributes={"html": "x" * (400 if n < 6 else 10)}) for n in range(40)]
    table = written(tmp_path / ARTICLES, rows, per_batch=30)
    batches = pyarrow.ipc.open_file(tmp_path / ARTICLES)
    assert [batches.get_batch(n).num_rows for n in range(batches.num_record_batches)] == [3, 3, 30, 4]
    assert [table[n] for n in range(40)] == rows


def test_a_text_is_found_at_its_first_row_and_never_by_half_a_digest(tmp_path: Path) -> None:
    texts = ["one", "two", "one", "three", "two", "one"]
    rows = [row(f"a{n}", text) for n, text in enumerate(texts)]
    twin = text_digest("one")[:8] + bytes(8)
    table = written(
        tmp_path / ARTICLES, [*rows, ArticleRow("b", "", "", None, {}, 0, 1, 1, twin, 0, 1.0, False)], per_batch=2
    )
    assert [table.row_of_text(text_digest(text)) for text in texts] == [0, 1, 0, 3, 1, 0]
    assert table.row_of_text(twin) == 6
    assert table.row_of_text(text_digest("four")) is None
    assert table.row_of_text(text_digest("one")[:8] + b"\1" * 8) is None


def test_an_excerpt_of_a_script_without_spaces_is_as_long_as_any() -> None:
    dateline, report = "新华社北京11月29日电 记者 张三", "国务院总理周六在会议上说经济平稳。" * 40
    assert excerpt(dateline + report) == f"{(dateline + report)[:EXCERPT_CHARS]}…"
    thai = "กระบี่ " + "น้ำท่วมที่ลุ่มต่ำ" * 40  # the 281st character is a sign over the 280th
    assert unicodedata.category(thai[EXCERPT_CHARS]) == "Mn"
    assert excerpt(thai) == f"{thai[: EXCERPT_CHARS - 1]}…"
    english = "Rain fell on the hills for nine days. " * 20
    assert excerpt(english) == f"{english[:EXCERPT_CHARS].rsplit(' ', 1)[0]}…"


SIGNS = {
    "Thai": "ต่ำ",
    "Hindi": "क्षि",
    "Korean of a Mac": unicodedata.normalize("NFD", "한"),
    "variant": "葛\U000e0100",
    "family": "👨\u200d👩\u200d👧\u200d👦",
    "skin": "👍🏽",
    "flag": "🇩🇪",
}


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
def test_an_excerpt_without_spaces_ends_with_a_whole_sign(sign: str) -> None:
    for before in range(len(sign)):
        told = excerpt("国" * before + sign * EXCERPT_CHARS).removesuffix("…")
        assert told == "国" * before + sign * ((EXCERPT_CHARS - before) // len(sign))


def test_an_excerpt_of_one_endless_sign_ends_all_the_same() -> None:
    assert excerpt("a" + "\u0301" * 1_000) == "a" + "\u0301" * (EXCERPT_CHARS - 1) + "…"


_zones = st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-14 * 60, 14 * 60))
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_counts = st.integers(0, 2**31 - 1)
_rows = st.builds(
    ArticleRow,
    id=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(string.digits), min_size=1, max_size=8),
    title=_texts,
    excerpt=_texts,
    published_at=st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC) | _zones),  # noqa: DTZ001, RUF100
    attributes=st.dictionaries(_texts, _texts, max_size=4),
    cluster=_counts,
    tokens_seen=_counts,
    tokens_used=_counts,
    text_digest=st.binary(min_size=16, max_size=16),
    story=_counts,
    similarity=st.floats(-1, 1, width=32),
    outlier=st.booleans(),
)


@given(rows=st.lists(_rows, min_size=1, max_size=12, unique_by=lambda row: row.id))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[ArticleRow]) -> None:
    rows = sorted(rows, key=lambda row: row.id)
    table = written(tmp_path / ARTICLES, rows)
    assert [table[n] for n in range(len(table))] == rows
    assert [table.row_of(row.id) for row in rows] == [*range(len(rows))]
    assert table.clusters().tolist() == [row.cluster for row in rows]
    for found in rows:
        first = table.row_of_text(found.text_digest)
        assert first == [row.text_digest for row in rows].index(found.text_digest)
