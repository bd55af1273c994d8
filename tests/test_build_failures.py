"""A build that cannot end well says why, and leaves the store as it was."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument, ModelUnavailable
from coldframe.store import Store
from tests.builds import build, letters
from tests.corpus_files import put, write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from pathlib import Path

KEPT_FROM_A_FAILURE = {"LOCK", "rejects.jsonl"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and good and bad corpora."""
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    rows = letters(30)
    write(folder / "good.csv", rows)
    write(folder / "copies.csv", [{**rows[n % 5], "id": n} for n in range(30)])
    write(folder / "columns.csv", [{"key": "1", "summary": "a b c"}])
    write(folder / "rejects.csv", [{**row, "id": row["id"] if n > 1 else ""} for n, row in enumerate(rows)])
    put(folder / "header.csv", "id,content\n")
    put(folder / "cut.csv.gz", b"\x1f\x8b\x08\x00 and no more")
    put(folder / "file", "")
    return folder


@pytest.fixture
def store(desk: Path, tmp_path: Path) -> Path:
    """A store that has a generation already."""
    build(tmp_path / "store", desk / "good.csv", model=str(desk / "model"))
    return tmp_path / "store"


def contents(store: Path) -> dict[str, bytes]:
    """All that matters in a store, by path; folders too."""
    paths = (path for path in store.rglob("*") if path.name not in KEPT_FROM_A_FAILURE)
    return {str(path.relative_to(store)): path.read_bytes() if path.is_file() else b"" for path in paths}


BAD_BUILDS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("missing.csv", {}, "corpus", ("missing.csv", "no such file")),
    ("columns.csv", {}, "corpus", ("columns.csv", "key, summary", "--id-column")),
    ("good.csv", {"columns": "lead"}, "content-column", ("lead", "--content-column")),
    ("header.csv", {}, "corpus", ("no articles",)),
    ("cut.csv.gz", {}, "corpus", ("cut.csv.gz", "gzip")),
    ("rejects.csv", {}, "max-reject-share", ("2 of 30 rows", "empty id (2)", "rejects.jsonl", "--max-reject-share")),
    ("good.csv", {"max_reject_share": 1.5}, "max-reject-share", ("1.5", "between 0 and 1")),
    ("rejects.csv", {"rejects": "file/bad.jsonl"}, "rejects", ("bad.jsonl", "--rejects")),
    ("rejects.csv", {"rejects": "."}, "rejects", ("cannot be written", "--rejects")),
    ("good.csv", {"clusters": 31}, "clusters", ("31", "30 distinct texts")),
    ("copies.csv", {"clusters": 6}, "clusters", ("6", "5 distinct texts")),
    ("good.csv", {"clusters": 0}, "clusters", ("0", "at least 1")),
    ("good.csv", {"recipe": "soup"}, "recipe", ("soup", "seed-centred", "mean")),
    ("good.csv", {"precision": "int7"}, "precision", ("int7", "fp32", "bf16")),
    ("good.csv", {"device": "abacus"}, "device", ("abacus", "cpu")),
    ("good.csv", {"target_recall": 0.0}, "target-recall", ("0.0", "over 0 and at most 1")),
    ("good.csv", {"target_recall": 1.5}, "target-recall", ("1.5", "over 0 and at most 1")),
    ("good.csv", {"target_recall": float("nan")}, "target-recall", ("nan",)),
    ("good.csv", {"seed": -1}, "seed", ("-1",)),
    ("good.csv", {"seed": 2**31}, "seed", ("2147483648", "2147483647")),
]


def fail(desk: Path, store: Path, corpus: str, options: dict[str, Any]) -> ColdframeError:
    """The error of a build that must fail; paths among the options are in the desk's folder."""
    from indexer.corpus import Columns, CorpusConfig

    given = {"model": str(desk / "model")} | options
    if "columns" in given:
        given["corpus"] = CorpusConfig([str(desk / corpus)], columns=Columns(content=str(given.pop("columns"))))
    if "rejects" in given:
        given["rejects"] = desk / given["rejects"]
    with pytest.raises(ColdframeError) as caught:
        build(store, desk / corpus, **given)
    return caught.value


@pytest.mark.parametrize(
    ("corpus", "options", "field", "said"),
    BAD_BUILDS,
    ids=[f"{corpus}-{'-'.join(map(str, options.values()))}" for corpus, options, _, _ in BAD_BUILDS],
)
def test_what_cannot_be_built_is_refused_and_nothing_is_left_behind(
    desk: Path, tmp_path: Path, corpus: str, options: dict[str, Any], field: str, said: tuple[str, ...]
) -> None:
    store = tmp_path / "new"
    error = fail(desk, store, corpus, options)
    assert isinstance(error, InvalidArgument)
    assert error.field == field
    assert all(part in error.message for part in said), error.message
    left = {entry.name for entry in store.iterdir()} if store.exists() else set()
    assert left <= KEPT_FROM_A_FAILURE
    assert not list(desk.glob("*.tmp"))


@pytest.mark.parametrize("corpus", ["missing.csv", "columns.csv", "header.csv", "rejects.csv"])
def test_a_failed_build_leaves_the_generation_that_was_there(desk: Path, store: Path, corpus: str) -> None:
    before = contents(store)
    fail(desk, store, corpus, {})
    assert contents(store) == before
    assert "drafts" not in before


def test_rows_that_were_too_many_to_reject_are_listed_all_the_same(desk: Path, store: Path) -> None:
    fail(desk, store, "rejects.csv", {})
    assert len((store / "rejects.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("model", ["file", "nothing", "."])
def test_a_model_that_is_none_is_named(desk: Path, tmp_path: Path, model: str) -> None:
    error = fail(desk, tmp_path / "store", "good.csv", {"model": str(desk / model)})
    assert isinstance(error, ModelUnavailable)
    assert str(desk / model) in error.message
    assert not (tmp_path / "store").exists()


def test_a_model_name_that_nobody_knows_is_refused_with_what_is_known(desk: Path, tmp_path: Path) -> None:
    error = fail(desk, tmp_path / "store", "good.csv", {"model": "maxilm"})
    assert isinstance(error, ModelUnavailable)
    assert all(part in error.message for part in ("'maxilm'", "hub id", "minilm"))


@pytest.mark.parametrize("store", ["file", "file/deeper"])
def test_a_store_that_is_a_file_is_refused(desk: Path, store: str) -> None:
    error = fail(desk, desk / store, "good.csv", {})
    assert isinstance(error, InvalidArgument)
    assert (error.field, str(desk / store) in error.message) == ("store", True)
    assert (desk / "file").read_bytes() == b""


def test_a_build_that_breaks_in_the_middle_leaves_what_is_served(
    desk: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def served() -> dict[str, bytes]:
        return {name: content for name, content in contents(store).items() if name.startswith(("gen", "CURRENT"))}

    before = served()
    monkeypatch.setattr("indexer.build.write_clusters", no_space)
    with pytest.raises((OSError, ColdframeError), match=r"(?i)no space|full"):
        build(store, desk / "good.csv", model=str(desk / "model"), seed=1)
    assert served() == before


# --- a build that is killed, and one that is in the way --------------------------------------------------------------


@dataclass(frozen=True)
class Interrupted:
    """A store whose second build was killed while it embedded, and what a third one was told meanwhile."""

    store: Path
    before: dict[str, bytes]
    refusal: ColdframeError


@pytest.fixture(scope="module")
def interrupted(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("interrupted")
    store = folder / "store"
    build(store, desk / "good.csv", model=str(desk / "model"))
    before = contents(store)
    endless = write(folder / "endless.csv", [{"id": n, "content": f"{n} " + "a b c d " * 1_000} for n in range(2_000)])
    command = [sys.executable, "-m", "indexer", "build", "--corpus", str(endless), "--store", str(store)]
    building = subprocess.Popen([*command, "--model", str(desk / "model")], stdout=subprocess.DEVNULL)
    try:
        wait_for_vectors(building, store)
        refusal = fail(desk, store, "good.csv", {})
        assert building.poll() is None, "it is still embedding"
    finally:
        building.kill()
        building.wait()
    return Interrupted(store, before, refusal)


def wait_for_vectors(building: subprocess.Popen[bytes], store: Path) -> None:
    """Until the build has begun to embed."""
    end = time.monotonic() + 120
    while not list(store.glob("drafts/*/generation/vectors.npy")):
        assert building.poll() is None, "the build ended by itself"
        assert time.monotonic() < end, "the build never came to embedding"
        time.sleep(0.05)


def test_two_builds_on_one_store_at_once_are_one_too_many(interrupted: Interrupted) -> None:
    assert isinstance(interrupted.refusal, FailedPrecondition)
    assert "another build is at work" in interrupted.refusal.message
    assert str(interrupted.store) in interrupted.refusal.message


def test_after_a_build_was_killed_the_old_generation_is_served_and_the_next_build_clears_up(
    interrupted: Interrupted, desk: Path
) -> None:
    left = contents(interrupted.store)
    assert {name: left[name] for name in left if not name.startswith(("drafts", "embeddings"))} == {
        name: content for name, content in interrupted.before.items() if not name.startswith("embeddings")
    }
    assert [name for name in left if name.endswith("vectors.npy") and name.startswith("drafts")]
    assert not [name for name in left if name.endswith("index.faiss") and name.startswith("drafts")]
    store = Store(interrupted.store)
    assert store.open().name == store.current()

    manifest = build(interrupted.store, desk / "good.csv", model=str(desk / "model"), seed=1)
    assert (store.current(), len(store.names())) == (manifest.name, 2)
    assert not (interrupted.store / "drafts").exists()
