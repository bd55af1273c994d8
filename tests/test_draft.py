"""A build that ends too early goes on where it stood, if it is the same build; and comes to the same generation."""

from __future__ import annotations

import io
import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from coldframe.encoder import Encoder
from coldframe.errors import FailedPrecondition
from coldframe.store import Store
from indexer.corpus import CorpusConfig
from indexer.draft import JOURNAL, Draft, differences
from indexer.estimate import Disk, disk_for
from indexer.progress import Reporter
from tests.builds import build, build_aloud, letters
from tests.corpus_files import write
from tests.models import longformer_directory
from tests.power import Power
from tests.web import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from coldframe.generation import Manifest

PHASES = ["read", "embed", "train", "add", "describe", "measure", "publish"]
# What each phase calls in the middle of its work.
INSIDE = {
    "read": "indexer.spool.Spool.digest",
    "embed": "indexer.build.place",
    "train": "indexer.build.assign",
    "add": "indexer.draft.Build.index",
    "describe": "indexer.build.write_articles",
    "measure": "indexer.build.measure",
    "publish": "indexer.publish.write_report",
}


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def die(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    write(folder / "articles.csv", letters(60))
    return folder


@pytest.fixture(scope="module")
def undisturbed(desk: Path) -> Manifest:
    return build(desk / "undisturbed", desk / "articles.csv", model=str(desk / "model"))


def break_off(desk: Path, store: Path, phase: str, **options: Any) -> None:
    """A build that ends in the middle of a phase."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(INSIDE[phase], die)
        with pytest.raises(Killed):
            build(store, desk / "articles.csv", model=str(desk / "model"), **options)
    assert Store(store).current() is None


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_build_goes_on_after_the_last_phase_that_was_done(
    desk: Path, tmp_path: Path, undisturbed: Manifest, phase: str
) -> None:
    break_off(desk, tmp_path, phase)
    manifest, said = build_aloud(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    done = PHASES[: PHASES.index(phase)]
    left = [line.split()[0] for line in said.splitlines() if line.split()[0] in PHASES]
    assert left == PHASES[len(done) :]
    assert ("gone on with" in said) is bool(done)
    assert not done or f"after the phase {done[-1]}" in said
    assert manifest.digest == undisturbed.digest
    assert list(manifest.report["seconds"]) == list(undisturbed.report["seconds"])
    assert not (tmp_path / "drafts").exists()


def test_a_build_that_breaks_off_again_and_again_gets_there(desk: Path, tmp_path: Path, undisturbed: Manifest) -> None:
    for phase in PHASES:
        break_off(desk, tmp_path, phase)
    manifest, said = build_aloud(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    assert "after the phase measure" in said
    assert manifest.digest == undisturbed.digest


def test_what_was_embedded_is_not_embedded_again(
    desk: Path, tmp_path: Path, undisturbed: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.embed._CHARS_PER_CHUNK", 500)
    whole = build(tmp_path / "whole", desk / "articles.csv", model=str(desk / "model"))
    chunks: list[list[int]] = []
    embed_ids = Encoder.embed_ids

    def counted(encoder: Encoder, documents: Sequence[Sequence[int]]) -> Any:
        chunks.append([hash(tuple(ids)) for ids in documents])
        if len(chunks) % 3 == 0:
            raise Killed
        return embed_ids(encoder, documents)

    monkeypatch.setattr(Encoder, "embed_ids", counted)
    manifest = None
    while manifest is None:
        try:
            manifest = build(tmp_path / "store", desk / "articles.csv", model=str(desk / "model"))
        except Killed:
            assert chunks, "it was killed while it embedded"
    again = [chunk for chunk, following in pairwise(chunks) if chunk == following]
    assert len(again) == len(chunks) // 3 > 2, "each chunk that was killed, whole, and no other"
    assert sum(map(len, chunks)) - sum(map(len, again)) == 60
    assert manifest.digest == whole.digest


@pytest.mark.parametrize("phase", ["embed", "publish"])
def test_what_a_broken_phase_left_is_not_mistaken_for_a_whole_file(
    desk: Path, tmp_path: Path, undisturbed: Manifest, phase: str
) -> None:
    break_off(desk, tmp_path, phase)
    out = tmp_path / "drafts" / "job" / "generation"
    (out / "mean.npy").write_bytes(b"half of it")
    (out / "stray").write_text("of nobody")
    manifest = build(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    assert manifest.digest == undisturbed.digest
    assert {path.name for path in Store(tmp_path).directory(manifest.name).iterdir()} == {
        "manifest.json",
        *manifest.files,
    }


def test_a_build_that_goes_on_needs_room_for_what_is_left_to_write(
    desk: Path, tmp_path: Path, undisturbed: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []

    def noted(*args: Any, **sizes: Any) -> Disk:
        disk = disk_for(*args, **sizes)
        needed.append(disk.total)
        return disk

    monkeypatch.setattr("indexer.estimate.disk_for", noted)
    break_off(desk, tmp_path, "describe")
    monkeypatch.setattr("indexer.estimate.free_bytes", lambda _: 0)
    with pytest.raises(FailedPrecondition, match="has room for 0 bytes"):
        build(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    whole, without_the_cache = needed
    assert without_the_cache < whole
    monkeypatch.setattr("indexer.estimate.free_bytes", lambda _: without_the_cache - 1)
    manifest = build(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    assert manifest.digest == undisturbed.digest


# --- beginning anew --------------------------------------------------------------------------------------------------


def touch(desk: Path) -> dict[str, Any]:
    os.utime(desk / "articles.csv", (1, 1))
    return {}


OTHER_PLANS: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda _: {"seed": 5}, "seed was 0 and is 5"),
    (lambda _: {"recipe": "mean"}, "recipe was seed and is mean"),
    (lambda _: {"target_recall": 0.5, "topics": 3}, "target-recall was 0.99 and is 0.5; topics was None and is 3"),
    (touch, "corpus is another"),
    (lambda desk: {"rejects": desk / "bad.jsonl"}, "rejects was None and is"),
    (lambda _: {"max_reject_share": 0.5}, "max-reject-share was 0.05 and is 0.5"),
]


@pytest.mark.parametrize(("change", "said"), OTHER_PLANS, ids=[said for _, said in OTHER_PLANS])
def test_another_plan_begins_anew_and_says_what_differs(
    desk: Path, tmp_path: Path, change: Callable[[Path], dict[str, Any]], said: str
) -> None:
    break_off(desk, tmp_path, "describe")
    options = {"model": str(desk / "model")} | change(desk)
    fresh = build(tmp_path / "fresh", desk / "articles.csv", **options)
    manifest, text = build_aloud(tmp_path, desk / "articles.csv", **options)
    assert "begun anew" in text
    assert said in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[0] in PHASES] == PHASES
    assert manifest.digest == fresh.digest
    assert ("60 from the cache" in text) is ("recipe" not in options), "the embeddings outlive the draft"


def test_an_address_with_another_query_string_begins_anew(desk: Path, tmp_path: Path) -> None:
    with serving(desk) as web:
        first, second = (CorpusConfig([f"{web.url}/articles.csv?key=secret&day={day}"]) for day in (1, 2))
        break_off(desk, tmp_path, "train", corpus=first)
        assert "secret" not in (tmp_path / "drafts" / "job" / JOURNAL).read_text()
        assert "corpus is another" in build_aloud(tmp_path, corpus=second, model=str(desk / "model"))[1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99, "plan": {}, "phases": {"read": {}}}', b"\xff"])
def test_a_journal_that_cannot_be_read_begins_anew(
    desk: Path, tmp_path: Path, undisturbed: Manifest, content: bytes
) -> None:
    break_off(desk, tmp_path, "describe")
    (tmp_path / "drafts" / "job" / JOURNAL).write_bytes(content)
    manifest, said = build_aloud(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    assert "its journal cannot be read" in said
    assert manifest.digest == undisturbed.digest


@pytest.mark.parametrize("name", ["corpus.db", "clustering.npz", "generation/vectors.npy"])
@pytest.mark.parametrize("content", [b"cut short", None])
def test_a_file_of_a_finished_phase_that_is_gone_or_cut_short_begins_anew(
    desk: Path, tmp_path: Path, undisturbed: Manifest, name: str, content: bytes | None
) -> None:
    break_off(desk, tmp_path, "describe")
    path = tmp_path / "drafts" / "job" / name
    path.unlink() if content is None else path.write_bytes(content)
    manifest, said = build_aloud(tmp_path, desk / "articles.csv", model=str(desk / "model"))
    assert f"{name} is not as it was" in said
    assert manifest.digest == undisturbed.digest


def test_a_refusal_before_anything_is_done_leaves_nothing(desk: Path, tmp_path: Path) -> None:
    break_off(desk, tmp_path, "read")
    assert not (tmp_path / "drafts").exists()


# --- the journal by itself -------------------------------------------------------------------------------------------


def opened(store: Store, plan: dict[str, Any]) -> Draft:
    folder = store.path / "drafts" / "job"
    folder.mkdir(parents=True, exist_ok=True)
    return Draft.open(folder, store, Reporter(Console(file=io.StringIO())), plan)


def test_a_power_cut_takes_nothing_of_a_phase_that_the_journal_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = Power(monkeypatch, needs={JOURNAL: tmp_path / "drafts" / "job" / "generation"})
    draft = opened(Store(tmp_path), {})
    for name in ("embed", "train"):
        draft.phase(name, lambda say, name=name: {"bytes": (draft.out / name).write_bytes(b"all of it")})  # type: ignore[misc]
    assert power.lost == []


def test_a_phase_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def work(say: Callable[[str], None]) -> dict[str, Any]:
        say("done")
        calls.append(1)
        return {"rows": 7, "curve": [(1, 0.5)]}

    for _ in range(2):
        draft = opened(store, {"seed": (1, 2)})
        assert draft.phase("read", work) == draft.record("read") == {"rows": 7, "curve": [[1, 0.5]]}
        assert list(draft.seconds) == list(draft.peak_memory_mib) == ["read"]
        assert draft.peak_memory_mib["read"] > 1
    assert len(calls) == 1
    journal = json.loads((tmp_path / "drafts" / "job" / JOURNAL).read_text())
    assert (journal["plan"], list(journal["phases"])) == ({"seed": [1, 2]}, ["read"])


def test_differences_name_what_was_and_what_is() -> None:
    before = {"seed": 0, "corpus": [["a.csv", 10, 1]], "gone": None, "recipe": "mean"}
    now = {"seed": 1, "corpus": [["a.csv", 11, 2]], "new": 0.5, "recipe": "mean"}
    assert differences(before, now) == ["corpus is another", "new was None and is 0.5", "seed was 0 and is 1"]
