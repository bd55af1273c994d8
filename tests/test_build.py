"""From a file of articles to a generation: what is in it, and that the same input makes the same one."""

from __future__ import annotations

import math
import random
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coldframe import Encoder
from coldframe.generation import INDEX, REPORT
from coldframe.index import nearest_centroids
from coldframe.recipe import MEAN, RECIPES, unit
from coldframe.store import Store
from indexer.build import place
from tests.builds import build, letters, recall_at_10
from tests.conftest import write_corpus
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.generation import Generation, Manifest
    from tests.conftest import Sample
    from tests.corpus_files import Row

    Make = Callable[..., "Built"]

LONG = 5_000  # words, of a token each; the model reads 4,096 tokens


@dataclass(frozen=True)
class Built:
    """A store with one generation."""

    store: Path
    manifest: Manifest

    def file(self, name: str) -> bytes:
        """A file of the generation."""
        return (Store(self.store).directory(self.manifest.name) / name).read_bytes()


@pytest.fixture(scope="module")
def corpus() -> list[Row]:
    """60 articles in no order of ids: one over 4,096 tokens, three of one text, and two that cannot be used."""
    rows = letters(58)
    rows[50]["content"] = "a b c d e " * (LONG // 5)
    copies = [{**rows[7], "id": name, "desk": "copies"} for name in ("copy", "0070")]
    unusable = [{**rows[7], "content": "another text"}, {**rows[8], "id": "empty", "title": "", "content": " "}]
    return [*random.Random(0).sample(rows, len(rows)), *copies, *unusable]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, corpus: list[Row]) -> Make:
    """Builds in a new store with a random Longformer, of `corpus` unless other rows are given."""
    model = longformer_directory(tmp_path_factory.mktemp("model") / "random", window=256, layers=4)

    def made(rows: list[Row] | None = None, suffix: str = ".csv", **options: Any) -> Built:
        folder = tmp_path_factory.mktemp("made")
        path = write(folder / f"articles{suffix}", rows or corpus)
        return Built(folder / "store", build(folder / "store", path, **{"model": str(model)} | options))

    return made


@pytest.fixture(scope="module")
def plain(make: Make) -> Built:
    return make()


@pytest.fixture(scope="module")
def centred(make: Make) -> Built:
    return make(recipe="seed-centred", clusters=7, target_recall=1.0)


@pytest.fixture(scope="module", params=["minilm", "plain", "centred"])
def any_generation(request: pytest.FixtureRequest) -> Generation:
    """Of minilm with its own recipe, of a random model with the recipe seed, and with seed-centred."""
    if request.param == "minilm":
        return Store(request.getfixturevalue("store_path")).open()
    return Store(request.getfixturevalue(request.param).store).open()


def all_vectors(generation: Generation) -> NDArray[np.float32]:
    return np.stack([generation.index.vector(row) for row in range(len(generation.index))])


def stored_vectors(generation: Generation, ids: list[str]) -> NDArray[np.float32]:
    rows = [generation.articles.row_of(article_id) for article_id in ids]
    return np.stack([generation.index.vector(row) for row in rows if row is not None])


# --- what is in a generation -----------------------------------------------------------------------------------------


def test_a_build_publishes_the_generation_that_the_store_opens(plain: Built) -> None:
    store = Store(plain.store)
    assert store.names() == [plain.manifest.name] == [store.current()]
    assert store.open().manifest == plain.manifest
    left = {"CURRENT", "HISTORY", "LOCK", "embeddings.db", "generations", "rejects.jsonl"}
    assert {entry.name for entry in plain.store.iterdir()} == left


def test_the_manifest_counts_the_corpus(plain: Built) -> None:
    counted = plain.manifest.corpus
    assert (counted.articles, counted.distinct_texts) == (60, 58)
    assert (counted.rejected, counted.truncated) == (2, 1)
    assert len((plain.store / "rejects.jsonl").read_text().splitlines()) == 2


def test_the_manifest_counts_the_tokens_of_each_text_once(
    generation: Generation, encoder: Encoder, articles: list[Sample]
) -> None:
    texts = sorted({article.text for article in articles})
    assert generation.manifest.corpus.articles == len(articles)
    assert generation.manifest.corpus.distinct_texts == len(texts) < len(articles)
    assert generation.manifest.corpus.tokens == sum(token.used for token in encoder.tokenize(texts))


def test_the_end_of_a_long_text_is_cut_and_its_article_says_so(plain: Built) -> None:
    table = Store(plain.store).open().articles
    rows = [table[row] for row in range(len(table))]
    title_and_special_tokens = 4
    (cut,) = (row for row in rows if row.tokens_used < row.tokens_seen)
    assert (cut.id, cut.tokens_seen, cut.tokens_used) == ("050", LONG + title_and_special_tokens, 4_096)


def test_rows_are_sorted_by_id_and_hold_the_articles(generation: Generation, articles: list[Sample]) -> None:
    rows = [generation.articles[row] for row in range(len(generation.articles))]
    wanted = sorted(articles, key=lambda article: article.id)
    assert [(row.id, row.title) for row in rows] == [(article.id, article.title) for article in wanted]
    assert all(row.attributes["Author"] == f"Author of {row.id}" for row in rows)


def test_equal_texts_have_equal_vectors_to_the_bit(plain: Built) -> None:
    first, *others = stored_vectors(Store(plain.store).open(), ["007", "0070", "copy"])
    assert [other.tobytes() for other in others] == [first.tobytes()] * 2


def test_vectors_have_unit_length(any_generation: Generation) -> None:
    np.testing.assert_allclose(np.linalg.norm(all_vectors(any_generation), axis=1), 1, atol=1e-6)


def test_every_row_lies_in_the_list_of_its_nearest_centroid(any_generation: Generation) -> None:
    index = any_generation.index
    nearest, _ = nearest_centroids(index.centroids, all_vectors(any_generation), 1)
    np.testing.assert_array_equal(any_generation.articles.clusters(), nearest[:, 0])
    for number in range(index.clusters):
        assert index.members(number).tolist() == np.flatnonzero(nearest[:, 0] == number).tolist()


def test_clusters_are_numbered_by_size_and_none_is_empty(any_generation: Generation) -> None:
    sizes = [cluster.size for cluster in any_generation.clusters]
    assert sizes == [len(any_generation.index.members(number)) for number in range(len(sizes))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0
    assert sum(sizes) == any_generation.manifest.corpus.articles
    assert len(sizes) == any_generation.index.clusters == any_generation.manifest.parameters.clusters


def test_medoids_and_representatives_are_members_of_their_cluster(any_generation: Generation) -> None:
    vectors, centroids = all_vectors(any_generation), any_generation.index.centroids
    for number, cluster in enumerate(any_generation.clusters):
        members = any_generation.index.members(number)
        similarity = vectors[members].astype(np.float64) @ centroids[number]
        assert vectors[cluster.medoid].astype(np.float64) @ centroids[number] == pytest.approx(similarity.max())
        assert set(cluster.representatives) <= set(members.tolist())


def test_the_measured_recall_is_what_numpy_finds(any_generation: Generation) -> None:
    report, index = any_generation.manifest.report, any_generation.index
    vectors, assignment = all_vectors(any_generation), any_generation.articles.clusters().astype(np.int64)
    stories = any_generation.articles.column("story").to_numpy().astype(np.int64)
    for probes, recall, milliseconds in report["recall_by_probes"]:
        expected = recall_at_10(vectors, index.centroids, assignment, probes, stories)
        assert recall == pytest.approx(expected, abs=5e-5)
        assert milliseconds > 0
    chosen = {probes: recall for probes, recall, _ in report["recall_by_probes"]}
    with_all = chosen[any_generation.manifest.parameters.probes]
    assert report["recall_at_10"] >= with_all
    assert any_generation.margin is not None or report["recall_at_10"] == with_all


def test_an_article_is_found_again_by_its_text(
    generation: Generation, encoder: Encoder, articles: list[Sample]
) -> None:
    some = articles[::5]
    found = generation.placement(encoder.embed([article.text for article in some]))
    np.testing.assert_allclose(found, stored_vectors(generation, [article.id for article in some]), atol=1e-6)


# --- recipes and parameters ------------------------------------------------------------------------------------------


def test_a_recipe_that_centres_stores_the_mean_and_places_by_it(centred: Built, corpus: list[Row]) -> None:
    generation = Store(centred.store).open()
    encoder = Encoder.load(centred.manifest.source, "seed-centred", "fp32")
    articles = {row["id"]: row for row in reversed(corpus) if row["content"].strip()}  # of two with one id, the first
    short = [articles[name] for name in sorted(articles) if len(articles[name]["content"]) < LONG]
    embedded = encoder.embed([f"{row['title']}\n{row['content'].strip()}" for row in short])
    stored = stored_vectors(generation, [row["id"] for row in short])
    np.testing.assert_allclose(generation.placement(embedded), stored, atol=1e-6)


def test_the_mean_of_centred_vectors_is_near_zero(plain: Built, centred: Built) -> None:
    before, after = (all_vectors(Store(built.store).open()) for built in (plain, centred))
    stored = Store(centred.store).open().placement.mean
    assert stored is not None
    np.testing.assert_allclose(stored, before.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(unit(before - stored), after, atol=1e-5)
    assert np.linalg.norm(after.mean(axis=0)) < 0.2 * np.linalg.norm(before.mean(axis=0))


def test_vectors_are_placed_block_by_block(tmp_path: Path) -> None:
    shape = 32_768, 256
    vectors = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float32, shape)
    vectors[:] = np.random.default_rng(0).standard_normal(shape, np.float32) + 1
    tracemalloc.start()
    place(vectors, RECIPES["mean-centred"], tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vectors.nbytes
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_only_a_recipe_that_centres_stores_a_mean(plain: Built, centred: Built) -> None:
    assert MEAN in centred.manifest.files
    assert MEAN not in plain.manifest.files


def test_the_manifest_names_the_recipe_and_the_model(plain: Built, centred: Built, generation: Generation) -> None:
    assert (plain.manifest.model.name, plain.manifest.model.recipe) == ("random", "seed")
    assert (centred.manifest.model.recipe, centred.manifest.precision) == ("seed-centred", "fp32")
    assert plain.manifest.model.fingerprint != centred.manifest.model.fingerprint
    assert (generation.manifest.model.name, generation.manifest.source) == ("minilm", "minilm")


def test_there_are_as_many_clusters_as_asked_for_or_the_root_of_the_texts(plain: Built, centred: Built) -> None:
    assert centred.manifest.parameters.clusters == 7
    assert plain.manifest.parameters.clusters == round(math.sqrt(58))


def test_the_time_and_the_memory_of_every_phase_are_written_down(plain: Built) -> None:
    phases = ["read", "embed", "train", "add", "describe", "measure"]
    for measured in ("seconds", "peak_memory_mib"):
        assert list(plain.manifest.report[measured]) == phases
        assert all(value > 0 for value in plain.manifest.report[measured].values())


def test_one_article_is_a_corpus(make: Make) -> None:
    manifest = make(letters(1), recipe="seed-centred").manifest
    assert (manifest.parameters.clusters, manifest.parameters.probes, manifest.report["recall_at_10"]) == (1, 1, 1.0)


def test_rejects_go_where_they_are_wanted(make: Make, tmp_path: Path) -> None:
    built = make(rejects=tmp_path / "deep" / "bad.jsonl")
    assert len((tmp_path / "deep" / "bad.jsonl").read_text().splitlines()) == 2
    assert not (built.store / "rejects.jsonl").exists()


# --- the same input, the same generation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def once_more(tmp_path_factory: pytest.TempPathFactory, articles: list[Sample]) -> Built:
    """The shared store of minilm, built again elsewhere."""
    folder = tmp_path_factory.mktemp("once-more")
    write_corpus(folder / "other.csv", articles)
    return Built(folder / "store", build(folder / "store", folder / "other.csv"))


def decisive(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The files of which two builds of the same have the same bytes: the picture shows how long they took."""
    return {name: file for name, file in manifest.files.items() if name != REPORT}


def test_the_same_input_makes_the_same_index_byte_for_byte(
    once_more: Built, store_path: Path, generation: Generation
) -> None:
    assert once_more.manifest.digest == generation.manifest.digest
    assert decisive(once_more.manifest) == decisive(generation.manifest)
    assert once_more.file(INDEX) == (Store(store_path).directory(generation.name) / INDEX).read_bytes()


def test_the_order_of_rows_and_the_format_change_nothing(make: Make, corpus: list[Row], plain: Built) -> None:
    whole, repeated = corpus[:-2], corpus[-2:]  # of two articles with one id the first stays
    shuffled = [dict(reversed(row.items())) for row in [*random.Random(1).sample(whole, len(whole)), *repeated]]
    other = make(shuffled, suffix=".jsonl.gz")
    assert other.manifest.digest == plain.manifest.digest
    assert decisive(other.manifest) == decisive(plain.manifest)
    assert other.file(INDEX) == plain.file(INDEX)


def test_several_files_are_one_corpus(corpus: list[Row], tmp_path: Path, plain: Built) -> None:
    first, second = write(tmp_path / "a.csv", corpus[:20]), write(tmp_path / "b.parquet", corpus[20:])
    manifest = build(tmp_path / "store", second, tmp_path / "*.csv", first, model=plain.manifest.source)
    assert manifest.digest == plain.manifest.digest


def test_another_seed_makes_another_generation(make: Make, plain: Built) -> None:
    other = make(seed=1).manifest
    assert other.digest != plain.manifest.digest
    assert other.corpus == plain.manifest.corpus
    assert other.files["vectors.npy"] == plain.manifest.files["vectors.npy"]


def test_another_corpus_makes_another_generation(make: Make, corpus: list[Row], plain: Built) -> None:
    other = make([{**row, "desk": "z"} for row in corpus]).manifest
    assert other.digest != plain.manifest.digest
    assert other.corpus.digest != plain.manifest.corpus.digest
    assert other.files[INDEX] == plain.manifest.files[INDEX]


def test_a_store_keeps_its_generations_and_serves_the_last(make: Make, corpus: list[Row], tmp_path: Path) -> None:
    first = make()
    second = build(first.store, write(tmp_path / "new.jsonl", corpus[:40]), model=first.manifest.source)
    store = Store(first.store)
    assert sorted(store.names()) == sorted([first.manifest.name, second.name])
    assert store.current() == second.name
    assert store.open(first.manifest.name).manifest == first.manifest
    assert not (first.store / "rejects.jsonl").exists()  # which were of the first corpus
