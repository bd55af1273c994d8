"""A build after a build: nothing is computed twice, nothing is built for nothing, and what is worse is kept back."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.encoder import Encoder
from coldframe.errors import FailedPrecondition
from coldframe.generation import MANIFEST, Manifest
from coldframe.linear import runs
from coldframe.store import Store
from indexer.cache import CACHE
from indexer.gates import Limits
from tests.builds import ANYTHING, build, build_aloud, letters
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.corpus_files import Row

PHASES = ["read", "embed", "train", "add", "describe", "measure", "publish"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, a corpus and a store of it."""
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    longformer_directory(folder / "other-model", window=256, layers=4, seed=1)
    write(folder / "articles.csv", letters(100))
    build(folder / "store", folder / "articles.csv", model=str(folder / "model"))
    return folder


@pytest.fixture
def store(desk: Path, tmp_path: Path) -> Path:
    """The store, to be changed."""
    return shutil.copytree(desk / "store", tmp_path / "store")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions of the encoders that were compiled."""
    precisions: list[str] = []
    compile_ = Encoder.compile

    def noted(encoder: Encoder) -> None:
        precisions.append(encoder.precision)
        compile_(encoder)

    monkeypatch.setattr(Encoder, "compile", noted)
    return precisions


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through a model, chunk by chunk."""
    chunks: list[int] = []
    embed_ids = Encoder.embed_ids

    def counted(encoder: Encoder, documents: Sequence[Sequence[int]]) -> Any:
        chunks.append(len(documents))
        return embed_ids(encoder, documents)

    monkeypatch.setattr(Encoder, "embed_ids", counted)
    return chunks


def changed(rows: list[Row], numbers: Sequence[int]) -> list[Row]:
    """The rows, some of them with a text of their own."""
    return [
        row | ({"content": f"{row['content']} z z {n * 'z '}"} if n in numbers else {}) for n, row in enumerate(rows)
    ]


def names(store: Path) -> list[str]:
    return Store(store).names()


# --- nothing new -----------------------------------------------------------------------------------------------------


def test_the_same_again_is_a_no_op_that_says_so(desk: Path, store: Path, computed: list[int]) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    shuffled = write(store.parent / "articles.jsonl", letters(100)[::-1])
    for corpus in (desk / "articles.csv", shuffled):
        manifest, said = build_aloud(store, corpus, model=str(desk / "model"))
        assert [manifest.name] == names(store)
        assert f"nothing has changed since {manifest.name}; no generation was made" in said
    assert computed == []
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"clusters": 5},
        {"topics": 0},
        {"target_recall": 0.5},
        {"story_window_days": 9.0},
        {"min_cluster_similarity": 0.99},
        {"memory_budget": 2**24},
        {"recipe": "mean"},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.skipif(not runs("bf16"), reason="no bf16 here")),
        {"model": "other-model"},
    ],
    ids=str,
)
def test_whatever_is_asked_for_differently_is_built(desk: Path, store: Path, options: dict[str, Any]) -> None:
    options = {"model": "model"} | options
    build(store, desk / "articles.csv", **options | {"model": str(desk / options["model"])})
    assert len(names(store)) == 2


def test_what_decides_nothing_may_differ(desk: Path, store: Path, tmp_path: Path) -> None:
    options = {"limits": Limits(), "force": True, "rejects": tmp_path / "bad.jsonl", "max_reject_share": 0.5}
    build(store, desk / "articles.csv", model=str(desk / "model"), **options)
    assert len(names(store)) == 1


def test_a_corpus_may_hold_the_store_and_what_was_rejected(desk: Path, tmp_path: Path) -> None:
    write(tmp_path / "articles.jsonl", [*letters(40), letters(1)[0]])
    for rejects in (None, None, tmp_path / "bad.jsonl", tmp_path / "bad.jsonl"):
        build(tmp_path / "store", tmp_path, model=str(desk / "model"), rejects=rejects)
        assert (rejects or tmp_path / "store" / "rejects.jsonl").is_file()
    assert len(names(tmp_path / "store")) == 1


# --- little new ------------------------------------------------------------------------------------------------------


def test_only_new_and_changed_texts_are_embedded(desk: Path, store: Path, computed: list[int], tmp_path: Path) -> None:
    rows = changed(letters(105), [3])[5:]  # five new, five gone; of those that stay none is changed
    rows = changed(rows, [50])
    manifest, said = build_aloud(store, write(tmp_path / "new.csv", rows), model=str(desk / "model"))
    assert sum(computed) == 6
    assert manifest.report["cache"] == {"reused": 94, "computed": 6}
    assert "of 6 texts, 94 from the cache" in said
    assert manifest.corpus.tokens > 90 * 20, "the tokens of the corpus, whether they were computed now or before"


def test_a_title_or_a_date_that_changes_embeds_what_it_must(
    desk: Path, store: Path, computed: list[int], tmp_path: Path
) -> None:
    rows = [row | {"date": "2026-02-01", "desk": "z"} for row in letters(100)]
    rows[7] |= {"title": "z z z"}
    build(store, write(tmp_path / "new.csv", rows), model=str(desk / "model"))
    assert sum(computed) == 1


def test_another_subject_is_drift_also_where_each_generation_takes_its_own_mean_away(
    desk: Path, tmp_path: Path
) -> None:
    rows = letters(240)
    files = [write(tmp_path / f"{subject}.csv", [row for row in rows if row["desk"] == subject]) for subject in "ac"]
    found = {}
    for recipe in ("mean", "mean-centred"):
        first, other = (build(tmp_path / recipe, file, model=str(desk / "model"), recipe=recipe) for file in files)
        assert first.report["drift"] is None
        found[recipe] = other.report["drift"]
    assert found["mean-centred"] == pytest.approx(found["mean"], abs=0.02)
    assert found["mean-centred"] > 0.1


def test_clusters_keep_their_ids_when_one_article_in_a_hundred_changes(desk: Path, store: Path, tmp_path: Path) -> None:
    before = Store(store).open()
    after = build(store, write(tmp_path / "new.csv", changed(letters(100), [40])), model=str(desk / "model"))
    assert after.report["lineage"]["survived"] >= 0.95
    assert after.report["previous"] == before.name
    assert 0 <= after.report["drift"] < 0.1
    kept = [cluster for cluster in Store(store).open().clusters if cluster.lineage.kind == "kept"]
    assert {cluster.id for cluster in kept} <= {*before.numbers}
    assert kept


def test_a_text_from_the_cache_has_the_vector_that_was_computed(desk: Path, store: Path, tmp_path: Path) -> None:
    before = Store(store).open()
    build(store, write(tmp_path / "new.csv", letters(101)), model=str(desk / "model"))
    after = Store(store).open()
    for row in range(len(before.articles)):
        now = after.articles.row_of(before.articles[row].id)
        assert now is not None
        assert after.index.vector(now).tobytes() == before.index.vector(row).tobytes()
        assert after.articles[now].tokens_used == before.articles[row].tokens_used


@pytest.mark.parametrize("content", [b"", b"no database" * 999])
def test_a_cache_that_is_lost_or_damaged_costs_time_and_nothing_else(
    desk: Path, store: Path, computed: list[int], content: bytes
) -> None:
    (store / CACHE).write_bytes(content)
    manifest, said = build_aloud(store, desk / "articles.csv", model=str(desk / "model"), seed=1)
    assert sum(computed) == 100
    assert manifest.corpus == Manifest.read(Store(store).directory(names(store)[0])).corpus
    assert ("cannot be read" in said) is bool(content)


# --- the generation before -------------------------------------------------------------------------------------------


def test_ids_of_another_encoders_clusters_are_never_used_again(desk: Path, store: Path) -> None:
    before = Store(store).open()
    after, said = build_aloud(store, desk / "articles.csv", model=str(desk / "other-model"))
    opened = Store(store).open()
    assert not {*opened.numbers} & {*before.numbers}
    assert "all ids of clusters and topics are new" in said
    assert opened.table.next_number > before.table.next_number
    assert after.report["lineage"]["survived"] is None
    assert after.report["drift"] is None


def test_a_number_is_used_once_though_the_store_was_rolled_back(desk: Path, store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": str(desk / "model"), "min_cluster_similarity": 1.0}
    first = Store(store).open()
    _, said = build_aloud(store, write(tmp_path / "other.csv", letters(110, seed=5)), **options)
    assert "all ids" not in said
    second = Store(store).open()
    assert second.table.next_number > first.table.next_number
    Store(store).activate(first.name)
    build(store, write(tmp_path / "third.csv", letters(120, seed=6)), **options)
    third = Store(store).open()
    new = {name for name in third.numbers if name not in first.numbers}
    assert new
    assert not new & {*second.numbers}
    assert third.table.next_number > second.table.next_number


def test_a_first_build_beside_one_that_cannot_be_read_takes_new_numbers(desk: Path, store: Path) -> None:
    before = Store(store).open()
    flipped(Store(store).directory(before.name))
    build(store, desk / "articles.csv", model=str(desk / "model"))
    assert not {*Store(store).open().numbers} & {*before.numbers}


def old_format(directory: Path) -> None:
    document = json.loads((directory / MANIFEST).read_text()) | {"format": 1}
    (directory / MANIFEST).write_text(json.dumps(document))


def flipped(directory: Path) -> None:
    content = bytearray((directory / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (directory / "vectors.npy").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"), [(old_format, "has format 1"), (flipped, "vectors.npy"), (shutil.rmtree, "CURRENT names")]
)
def test_a_generation_that_cannot_be_read_is_built_beside(
    desk: Path, store: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(Store(store).directory(names(store)[0]))
    manifest, text = build_aloud(store, desk / "articles.csv", model=str(desk / "model"))
    assert "the new generation is built as a first one" in text
    assert said in text
    assert Store(store).open().name == manifest.name
    assert manifest.report["previous"] is None


# --- kept back -------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A feed that was half delivered."""
    return write(tmp_path / "few.csv", letters(50))


def hold_back(desk: Path, store: Path, corpus: Path, **options: Any) -> tuple[FailedPrecondition, str]:
    """The refusal to publish, and the name of what was kept."""
    limits = {"limits": Limits(max_drift=1, min_survived=0, max_cell_share=1)}
    with pytest.raises(FailedPrecondition) as raised:
        build(store, corpus, **{"model": str(desk / "model")} | limits | options)
    (name,) = [name for name in names(store) if name != Store(store).current()]
    return raised.value, name


def test_a_build_that_is_worse_than_the_limits_is_kept_and_not_published(desk: Path, store: Path, few: Path) -> None:
    served = Store(store).current()
    refusal, name = hold_back(desk, store, few)
    said = (
        "50.0% fewer than the 100",
        "--max-article-loss",
        "kept, and not published",
        f"activate {name} --force --store {store}",
    )
    assert all(part in refusal.message for part in said), refusal.message
    assert Store(store).current() == served
    manifest = Store(store).open(name).manifest
    assert len(manifest.held) == 1
    assert manifest.held[0] in refusal.message
    assert [breach["gate"] for breach in manifest.report["gates"]] == ["articles"]
    assert not (store / "drafts").exists()


def test_what_was_kept_back_is_not_built_again_and_again(
    desk: Path, store: Path, few: Path, computed: list[int]
) -> None:
    first, name = hold_back(desk, store, few)
    second, same = hold_back(desk, store, few)
    assert (second.message, same) == (first.message, name)
    assert computed == []
    assert not (store / "drafts").exists()


def test_other_limits_judge_anew(desk: Path, store: Path, few: Path) -> None:
    hold_back(desk, store, few)
    manifest = build(store, few, model=str(desk / "model"), limits=ANYTHING)
    assert Store(store).current() == manifest.name
    assert manifest.held == []


def test_force_publishes_what_was_kept_back(desk: Path, store: Path, few: Path) -> None:
    _, name = hold_back(desk, store, few)
    limits = Limits(max_drift=1, min_survived=0, max_cell_share=1)
    manifest, said = build_aloud(store, few, model=str(desk / "model"), limits=limits, force=True)
    assert (manifest.name, Store(store).current(), len(names(store))) == (name, name, 2)
    assert f"{name} was built before, and is published now" in said


def test_force_publishes_nothing_that_is_damaged_but_builds_it_anew(desk: Path, store: Path, few: Path) -> None:
    _, name = hold_back(desk, store, few)
    flipped(Store(store).directory(name))
    limits = Limits(max_drift=1, min_survived=0, max_cell_share=1)
    manifest, said = build_aloud(store, few, model=str(desk / "model"), limits=limits, force=True)
    assert f"{name} was built before, and is built anew: vectors.npy of generation {name} does not match" in said
    assert Store(store).current() == manifest.name != name
    assert Store(store).open().manifest.held == []


def test_force_publishes_at_once_and_says_what_is_worse(desk: Path, store: Path, few: Path) -> None:
    manifest, said = build_aloud(store, few, model=str(desk / "model"), limits=Limits(), force=True)
    assert (Store(store).current(), manifest.held) == (manifest.name, [])
    assert manifest.report["gates"][0]["gate"] == "articles"
    assert "published by force: 50 articles, 50.0% fewer" in said


@pytest.mark.skipif(not runs("bf16"), reason="this processor cannot run bf16")
def test_much_text_is_embedded_by_a_compiled_encoder_also_where_little_of_it_is_left(
    desk: Path, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, options = tmp_path / "articles.csv", {"model": str(desk / "model"), "precision": "bf16"}
    write(corpus, letters(60))
    monkeypatch.setattr("indexer.build._CHARS_TO_COMPILE_FOR", 2_000)
    build(tmp_path / "whole", corpus, **options)
    assert compiled == ["bf16"]
    write(corpus, letters(59))
    build(tmp_path / "store", corpus, **options)
    write(corpus, letters(60))
    build(tmp_path / "store", corpus, **options)
    assert compiled == ["bf16"] * 3, "one text was left, of a corpus of many"
    build(tmp_path / "store", corpus, **options | {"clusters": 3})
    assert compiled == ["bf16"] * 3, "none was left"
    monkeypatch.setattr("indexer.build._CHARS_TO_COMPILE_FOR", 1_000_000)
    build(tmp_path / "little", corpus, **options)
    assert compiled == ["bf16"] * 3
