"""Generations on disk: published whole, verified to the byte, found by row and by id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import string
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe import articles as articles_module
from coldframe.articles import ArticleRow, Articles, write_articles
from coldframe.clusters import Cluster, write_clusters
from coldframe.errors import (
    CorruptGeneration,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    NoGeneration,
)
from coldframe.generation import (
    ARTICLES,
    CLUSTERS,
    INDEX,
    MANIFEST,
    MEAN,
    VECTORS,
    CorpusInfo,
    Generation,
    Manifest,
    ModelInfo,
    Parameters,
)
from coldframe.index import ClusterIndex, nearest_centroids
from coldframe.recipe import unit
from coldframe.store import Store
from coldframe.text import text_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FILES = [MANIFEST, INDEX, VECTORS, ARTICLES, CLUSTERS, MEAN]
ROWS, DIM, LISTS = 30, 8, 3


def row(article_id: str, text: str = "", cluster: int = 0) -> ArticleRow:
    digest = text_digest(text or article_id)
    return ArticleRow(article_id, f"Title of {article_id}", "…", None, {"author": "Ö"}, cluster, 5, 5, digest)


def write_generation(folder: Path, seed: int) -> Manifest:
    """A small generation without an encoder: random vectors, and a file of every kind."""
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((ROWS, DIM)).astype(np.float32))
    centroids = unit(random.standard_normal((LISTS, DIM)).astype(np.float32))
    numbers = nearest_centroids(centroids, vectors, 1)[0][:, 0]
    np.save(folder / VECTORS, vectors)
    np.save(folder / MEAN, vectors.mean(axis=0))
    ClusterIndex.build(centroids, vectors, numbers).write(folder / INDEX)
    write_articles(folder / ARTICLES, (row(f"a{n:02d}", cluster=int(number)) for n, number in enumerate(numbers)))
    write_clusters(folder / CLUSTERS, [Cluster(f"c{n}", "Küste", [("küste", 1.0)], 10, 0, [0]) for n in range(LISTS)])
    return Manifest.seal(
        folder,
        model=ModelInfo("minilm", "f1" * 32, "mean", DIM, 4096),
        corpus=CorpusInfo("0" * 32, ROWS, ROWS, 0, 0, 150),
        parameters=Parameters(LISTS, seed, 2),
        report={"recall_at_10": 0.9931, "seconds": {"embed": 12.5}},
        source="minilm",
        precision="fp32",
    )


def publish(store: Store, seed: int = 0) -> str:
    """Publishes a small generation as a build does, and gives its name."""
    with store.draft() as draft:
        folder = draft / "generation"
        folder.mkdir()
        name = write_generation(folder, seed).name
        store.publish(folder, name)
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "store")


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


# ------------------------------------------------------------------------------------------------ publish, activate


def test_a_new_store_holds_nothing_and_says_how_to_fill_it(store: Store) -> None:
    assert (store.names(), store.current()) == ([], None)
    with pytest.raises(NoGeneration, match="indexer build"):
        store.open()
    assert not store.path.exists()


def test_what_is_published_is_current_and_opens(store: Store) -> None:
    name = publish(store)
    assert (store.names(), store.current(), store.open().name) == ([name], name, name)
    opened = store.open()
    assert (len(opened.index), len(opened.articles), len(opened.clusters)) == (ROWS, ROWS, LISTS)
    assert opened.placement.mean is not None
    assert opened.numbers == {"c0": 0, "c1": 1, "c2": 2}
    assert sorted(entry.name for entry in store.path.iterdir()) == ["CURRENT", "LOCK", "generations"]


def test_the_last_published_is_current_until_another_is_activated(store: Store) -> None:
    names = [publish(store, seed) for seed in range(3)]
    assert (store.names(), store.current()) == (sorted(names), names[2])
    store.activate(names[0])
    assert (store.current(), store.open().manifest.parameters.seed) == (names[0], 0)
    assert store.open(names[1]).manifest.parameters.seed == 1


def test_publishing_the_same_bytes_twice_is_one_generation(store: Store, sealed: Path) -> None:
    for _ in range(2):
        with store.draft() as draft:
            shutil.copytree(sealed, draft / "generation")
            store.publish(draft / "generation", sealed.name)
    assert (store.names(), store.current()) == ([sealed.name], sealed.name)


@pytest.mark.parametrize("name", ["20260101T000000Z-abc", "..", "", "../../etc"])
def test_only_generations_that_are_there_can_be_activated(store: Store, name: str) -> None:
    current = publish(store)
    with pytest.raises(InvalidArgument, match=current):
        store.activate(name)
    assert store.current() == current


def test_readers_find_a_whole_name_while_others_activate(store: Store) -> None:
    names = [publish(store, seed) for seed in range(2)]
    done = threading.Event()

    def activate(name: str) -> None:
        while not done.is_set():
            store.activate(name)

    writers = [threading.Thread(target=activate, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    seen = {store.current() for _ in range(2000)}
    done.set()
    for writer in writers:
        writer.join()
    assert seen <= {*names}
    assert sorted(entry.name for entry in store.path.iterdir()) == ["CURRENT", "LOCK", "generations"]


@pytest.mark.parametrize("content", [b"20200101T000000Z-gone\n", b"\xff\xfe"])
def test_a_current_that_names_no_generation_is_corrupt(store: Store, content: bytes) -> None:
    publish(store)
    (store.path / "CURRENT").write_bytes(content)
    with pytest.raises(CorruptGeneration, match="CURRENT"):
        store.open()


# ----------------------------------------------------------------------------------------------------------- drafts


def fail_in_a_draft(store: Store) -> None:
    with store.draft() as draft:
        (draft / "half").write_text("written")
        raise ZeroDivisionError


def test_a_draft_that_fails_leaves_the_store_as_it_was(store: Store) -> None:
    before = publish(store)
    with pytest.raises(ZeroDivisionError):
        fail_in_a_draft(store)
    assert not (store.path / "drafts").exists()
    assert (store.names(), store.current()) == ([before], before)


def test_one_build_at_a_time(store: Store) -> None:
    with store.draft() as draft:
        with pytest.raises(FailedPrecondition, match="another build"), Store(store.path).draft():
            pass
        assert draft.is_dir()
    publish(store)


DRAFT_FOR_EVER = """
import sys, time
from pathlib import Path
from coldframe.store import Store
with Store(sys.argv[1]).draft() as draft:
    (draft / "corpus.db").write_bytes(bytes(4096))
    print(draft, flush=True)
    time.sleep(600)
"""


def test_a_build_that_is_killed_leaves_a_store_that_serves_and_builds(store: Store) -> None:
    current = publish(store)
    command = [sys.executable, "-c", DRAFT_FOR_EVER, str(store.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        left = Path(builder.stdout.readline().strip())
        assert (left / "corpus.db").is_file()
        with pytest.raises(FailedPrecondition, match="another build"), store.draft():
            pass
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert left.is_dir()
    assert (store.names(), store.open().name) == ([current], current)
    with store.draft() as draft:
        assert not left.exists()
        assert [*draft.iterdir()] == []


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "articles.csv"
    file.write_text("id,title")
    for path in (file, file / "store"):
        with pytest.raises(InvalidArgument, match=r"articles\.csv") as refused, Store(path).draft():
            pass
        assert refused.value.field == "store"
        with pytest.raises(InvalidArgument, match=r"articles\.csv"):
            Store(path).open()
    assert file.read_text() == "id,title"


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights, where the tests run as root, whom no folder's mode stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_store_that_cannot_be_written_is_refused(store: Store) -> None:
    name = publish(store)
    for path in (store.path / "LOCK", store.path):
        path.chmod(0o555)
    try:
        with nobody():
            with pytest.raises(InvalidArgument, match="cannot be written") as refused, store.draft():
                pass
            assert refused.value.field == "store"
            with pytest.raises(InvalidArgument, match="cannot be written"), Store(store.path / "deeper").draft():
                pass
    finally:
        store.path.chmod(0o755)
    assert (store.names(), store.open().name) == ([name], name)


# ------------------------------------------------------------------------------------------- altered and broken files


@pytest.mark.parametrize("name", FILES)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("content", [b"[]", b"7", b'"format"', b"{}", b'{"format": 1}', b'{"format": null}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(sealed: Path, content: bytes) -> None:
    with altered(sealed / MANIFEST, content), pytest.raises(CorruptGeneration, match=MANIFEST):
        Generation(sealed)


def test_a_format_of_the_future_says_which_one_is_read(sealed: Path) -> None:
    document = json.loads((sealed / MANIFEST).read_text()) | {"format": 2}
    with (
        altered(sealed / MANIFEST, json.dumps(document).encode()),
        pytest.raises(CorruptGeneration, match="has format 2, this Coldframe reads format 1"),
    ):
        Generation(sealed)


def test_a_manifest_comes_back_as_it_was_sealed(tmp_path: Path) -> None:
    manifest = write_generation(tmp_path, seed=5)
    assert Manifest.read(tmp_path) == manifest


def test_the_digest_is_of_what_decides_an_answer_and_not_of_the_clock(tmp_path: Path) -> None:
    digests = []
    for n, seed in enumerate([0, 0, 1]):
        (tmp_path / str(n)).mkdir()
        digests.append(write_generation(tmp_path / str(n), seed).digest)
    assert digests[0] == digests[1] != digests[2]


def test_another_encoder_is_refused_by_both_names(sealed: Path) -> None:
    opened = Generation(sealed)
    opened.require("f1" * 32)
    with pytest.raises(FingerprintMismatch, match=r"minilm.*f1f1f1f1f1f1.*abababababab"):
        opened.require("ab" * 32)


# --------------------------------------------------------------------------------------------------------- articles

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


def test_a_text_is_found_at_its_first_row_and_never_by_half_a_digest(tmp_path: Path) -> None:
    texts = ["one", "two", "one", "three", "two", "one"]
    rows = [row(f"a{n}", text) for n, text in enumerate(texts)]
    twin = text_digest("one")[:8] + bytes(8)
    table = written(tmp_path / ARTICLES, [*rows, ArticleRow("b", "", "", None, {}, 0, 1, 1, twin)], per_batch=2)
    assert [table.row_of_text(text_digest(text)) for text in texts] == [0, 1, 0, 3, 1, 0]
    assert table.row_of_text(twin) == 6
    assert table.row_of_text(text_digest("four")) is None
    assert table.row_of_text(text_digest("one")[:8] + b"\1" * 8) is None


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
)


@given(rows=st.lists(_rows, min_size=1, max_size=12, unique_by=lambda row: row.id))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[ArticleRow]) -> None:
    rows = sorted(rows, key=lambda row: row.id)
    table = written(tmp_path / ARTICLES, rows)
    assert [table[n] for n in range(len(table))] == rows
    assert [table.row_of(row.id) for row in rows] == [*range(len(rows))]
    assert table.clusters().tolist() == [row.cluster for row in rows]
    for found in rows:
        first = table.row_of_text(found.text_digest)
        assert first == [row.text_digest for row in rows].index(found.text_digest)
