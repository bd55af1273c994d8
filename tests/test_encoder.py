"""What a caller of `Encoder` may rely on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldframe import Encoder, InvalidArgument, models
from coldframe.encoder import TOKENS_PER_BATCH, PrecisionWarning, TruncationWarning, on_cores, plan_batches, plan_cores
from coldframe.errors import ModelUnavailable
from coldframe.linear import runs
from coldframe.recipe import RECIPES, Placement, unit
from tests.models import VOCABULARY, longformer_directory
from tests.oracle import cosine, relative_error

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return longformer_directory(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Encoder:
    return Encoder.load(str(directory), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return Encoder.load("minilm", precision="fp32", device="cpu")


def test_texts_become_float32_vectors_in_their_order(encoder: Encoder) -> None:
    texts = ["a b c", "d", "e f g h i j k", ""]
    vectors = encoder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, encoder.dim)
    each = np.concatenate([encoder.embed([text]) for text in texts])
    assert relative_error(vectors, each) <= 1e-6


def test_no_texts_are_no_vectors(encoder: Encoder) -> None:
    assert encoder.embed([]).shape == (0, encoder.dim)


def test_ids_embed_as_their_text_does(encoder: Encoder) -> None:
    tokens = encoder.tokenize(["a b c"])
    assert tokens[0].ids == [0, 4, 5, 6, 2]
    np.testing.assert_array_equal(encoder.embed_ids([tokens[0].ids]), encoder.embed(["a b c"]))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_ids_may_be_whole_numbers_of_any_type(encoder: Encoder, kind: type[np.integer]) -> None:
    expected = encoder.embed(["a b c"])
    for documents in (np.array([[0, 4, 5, 6, 2]], kind), [[kind(n) for n in (0, 4, 5, 6, 2)]]):
        np.testing.assert_array_equal(encoder.embed_ids(documents), expected)  # type: ignore[arg-type]


def test_one_text_for_a_list_of_texts_is_refused(encoder: Encoder) -> None:
    for read in (encoder.embed, encoder.tokenize):
        with pytest.raises(InvalidArgument, match="give a list of texts") as caught:
            read("hello")
        assert caught.value.field == "texts"


def test_a_text_without_a_token_is_refused_by_its_own_name(tmp_path: Path) -> None:
    """Of most models every text has two, those at its ends; not of all."""
    directory = longformer_directory(tmp_path / "bare", layers=1)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    bare = Encoder.load(str(directory), precision="fp32", device="cpu")
    assert bare.embed(["a b", "a"]).shape == (2, bare.dim)
    for blank in ("", " \n"):
        with pytest.raises(InvalidArgument, match="has no token: it is blank") as refused:
            bare.embed(["a b", blank])
        assert refused.value.field == "texts"


def test_a_long_text_is_cut_at_its_end_and_never_in_silence(encoder: Encoder) -> None:
    text = "a " * 5000
    tokens = encoder.tokenize([text])[0]
    assert (tokens.seen, tokens.used) == (5002, encoder.max_tokens)
    assert tokens.ids == [0, *[4] * (encoder.max_tokens - 2), 2]
    with pytest.warns(TruncationWarning, match="1 of 2 texts are longer than 4,096 tokens"):
        encoder.embed([text, "b"])


def test_a_lone_surrogate_is_read_and_not_a_crash(encoder: Encoder) -> None:
    assert encoder.embed(["a \ud800 b"]).shape == (1, encoder.dim)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "has 0 tokens"),
        ([0] * 4097, "4,097 tokens; allowed are 1 to 4,096"),
        ([0, 120, 2], "0 to 119"),
        ([-1], "0 to 119"),
        ([2**70], "no list of token ids, which are whole numbers"),
        ([0.0, 2.0], "document 1 is no list of token ids"),
        ([0, float("nan")], "no list of token ids"),
        ([True, False], "no list of token ids"),
        (["a"], "no list of token ids"),
        ([[0, 2], [0]], "no list of token ids"),
        (np.array([0, 2], np.float32), "no list of token ids"),
        (np.array([True, False]), "no list of token ids"),
        (np.array([0, 120], np.uint8), "0 to 119"),
        (7, "no list of token ids"),
        ("abc", "no list of token ids"),
    ],
)
def test_ids_of_no_text_are_refused(encoder: Encoder, ids: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        encoder.embed_ids([[0, 2], ids])
    assert caught.value.field == "documents"


def test_a_vector_that_is_no_number_is_refused(directory: Path) -> None:
    broken = Encoder.load(str(directory), precision="fp32")
    with torch.no_grad():
        broken._longformer.embeddings.word.weight[7] = torch.nan
    with pytest.raises(ModelUnavailable, match="what is no number"):
        broken.embed_ids([[0, 5, 2], [0, 7, 2]])
    assert np.isfinite(broken.embed_ids([[0, 5, 2]])).all()


def test_a_text_beyond_all_articles_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidArgument, match="text 1 has 1,000,001 characters; at most 1,000,000"):
        encoder.embed(["a", "x" * 1_000_001])


@pytest.mark.parametrize("name", ["recipe", "precision", "device"])
def test_a_choice_that_there_is_not_is_refused_with_those_there_are(directory: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="'best'") as caught:
        Encoder.load(str(directory), **{name: "best"})  # type: ignore[arg-type]
    assert caught.value.field == name


def test_auto_precision_says_what_it_chose(encoder: Encoder, directory: Path) -> None:
    assert encoder.precision == "fp32"
    assert Encoder.load(str(directory)).precision in {"fp32", "bf16", "int8"}


@pytest.mark.skipif(not runs("int8"), reason="this processor cannot run int8")
def test_int8_points_where_fp32_points(minilm: Encoder) -> None:
    texts = ["Frost is due tonight.", "Cover the lettuces with glass. " * 30, "The bus is late. " * 120]
    int8 = Encoder.load("minilm", precision="int8", device="cpu")
    assert int8.precision == "int8"
    assert cosine(int8.embed(texts), minilm.embed(texts)) >= 0.995


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("runs_bf16", [False, True])
def test_a_precision_that_the_processor_lacks_gives_way_to_one_that_it_has(
    directory: Path, monkeypatch: pytest.MonkeyPatch, precision: str, runs_bf16: bool
) -> None:
    if runs_bf16 and (precision == "bf16" or not runs("bf16")):
        pytest.skip("there is nothing to give way to")
    monkeypatch.setattr("coldframe.encoder.runs", lambda asked: asked == "fp32" or (asked == "bf16" and runs_bf16))
    with pytest.warns(PrecisionWarning, match=rf"no instructions for .*, which {precision} needs; the model runs in"):
        found = Encoder(models.load(str(directory)), RECIPES["seed"], precision, "cpu")  # type: ignore[arg-type]
    assert found.precision == "fp32" if not runs_bf16 else found.precision in {"fp32", "bf16"}
    wanted = Encoder(models.load(str(directory)), RECIPES["seed"], found.precision, "cpu")  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.embed(["a b c"]), wanted.embed(["a b c"]))


@pytest.mark.skipif(not runs("int8"), reason="this processor cannot run int8")
def test_a_model_that_does_not_bear_int8_runs_in_more_and_says_so(tmp_path: Path) -> None:
    model = models.load(str(longformer_directory(tmp_path / "model")))
    # One input of each output dwarfs the others, whose weights all round to zero.
    for name, weight in model.weights.items():
        if name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight")):
            weight[:, 0] *= 1000
    with pytest.warns(PrecisionWarning, match=r"loses too much in int8 \(cosine -?0\.\d+, needed 0.995\); it runs in"):
        encoder = Encoder(model, RECIPES["seed"], "int8", "cpu")
    assert encoder.precision in {"bf16", "fp32"}
    wanted = Encoder(model, RECIPES["seed"], "bf16" if encoder.precision == "bf16" else "fp32", "cpu")
    np.testing.assert_array_equal(encoder.embed(["a b c"]), wanted.embed(["a b c"]))


def test_the_fingerprint_follows_weights_tokenizer_and_recipe_and_nothing_else(
    directory: Path, encoder: Encoder, tmp_path: Path
) -> None:
    def fingerprint(path: Path, recipe: str | None = None) -> str:
        return Encoder.load(str(path), recipe).fingerprint

    assert fingerprint(directory) == encoder.fingerprint
    assert fingerprint(longformer_directory(tmp_path / "same", layers=4)) == encoder.fingerprint
    other_weights = longformer_directory(tmp_path / "weights", layers=4, seed=1)
    other_tokenizer = longformer_directory(tmp_path / "tokenizer", layers=4)
    file = other_tokenizer / "tokenizer.json"
    file.write_text(file.read_text().replace('"z": 29', '"Z": 29').replace('"z":29', '"Z":29'))
    found = {
        fingerprint(directory, "mean"),
        fingerprint(directory, "seed-centred"),
        fingerprint(other_weights),
        fingerprint(other_tokenizer),
        fingerprint(longformer_directory(tmp_path / "window", layers=4, window=16)),
        encoder.fingerprint,
    }
    assert len(found) == 6


def test_the_fingerprint_is_the_same_in_another_process(directory: Path, encoder: Encoder) -> None:
    code = "import sys; from coldframe import Encoder; print(Encoder.load(sys.argv[1]).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == encoder.fingerprint


def test_recipes_are_what_they_say(directory: Path) -> None:
    texts = ["a b c d", "e f"]
    vectors = {name: Encoder.load(str(directory), name, "fp32").embed(texts) for name in RECIPES}
    lengths = np.array([[6], [4]], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors["mean"], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors["first"], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors["seed"], vectors["seed-centred"])
    assert np.linalg.norm(vectors["seed"] / lengths, axis=1).min() > 1, "seed keeps the length of its sum"


def test_placement_removes_the_corpus_mean_from_articles_and_queries_alike() -> None:
    vectors = np.random.default_rng(0).normal(3, 1, (500, 8)).astype(np.float32)
    placement = Placement.fit(RECIPES["seed-centred"], vectors, rows=64)
    placed = placement(vectors)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)
    assert placement.mean is not None
    np.testing.assert_allclose(placement.mean, unit(vectors).mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(placement(vectors[7:8]), placed[7:8])


def test_a_vector_of_zeros_has_no_direction_and_stays() -> None:
    assert not unit(np.zeros((2, 3), np.float32)).any()


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(1, 8192))
def test_batches_hold_every_document_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(plan_batches(lengths, budget))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[n] for n in batch) <= budget for batch in batches)


@given(st.lists(st.integers(1, 4096), max_size=60), st.integers(1, 8))
def test_cores_share_all_documents_and_none_is_left_alone_with_a_long_one(lengths: list[int], cores: int) -> None:
    together, apart = plan_cores(lengths, cores)
    assert sorted(n for batch in together + apart for n in batch) == list(range(len(lengths)))
    tokens = [sum(lengths[n] for n in batch) for batch in apart]
    assert tokens == sorted(tokens, reverse=True)
    assert all(count <= TOKENS_PER_BATCH or len(batch) == 1 for count, batch in zip(tokens, apart, strict=True))
    # Whoever takes the longest has little more than a share, so that no core waits for it.
    assert not apart or tokens[0] <= 1.15 * sum(tokens) / cores + 1


def test_cores_are_done_at_about_the_same_time() -> None:
    rng, late = np.random.default_rng(0), []
    for _ in range(200):
        lengths = rng.lognormal(6.1, 0.45, 16).astype(int).clip(20, 1_024).tolist()
        done = [0, 0]
        for batch in plan_cores(lengths, 2)[1]:
            done[done.index(min(done))] += sum(lengths[n] for n in batch)
        late.append(2 * max(done) / sum(lengths))
    assert np.mean(late) < 1.015


def test_one_core_and_few_tokens_are_not_split() -> None:
    assert plan_cores([300, 300], 1) == ([[0, 1]], [])
    assert plan_cores([20] * 10, 2) == ([list(range(10))], [])
    assert plan_cores([4096], 2) == ([[0]], [])
    assert plan_cores([4096, 20, 20], 2) == ([[0], [1, 2]], [])
    assert plan_cores([600, 600], 2) == ([], [[0], [1]])


def test_cores_keep_the_order_and_leave_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    later: list[int] = []

    def run(part: int) -> int:
        seen.append(torch.get_num_threads())
        return part * part

    assert list(on_cores(run, range(20), 3)) == [n * n for n in range(20)]
    assert set(seen) == {1}
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [before, before]


def test_a_thread_that_first_asks_while_cores_compute_has_all_of_them() -> None:
    """What torch tells a thread that first time holds for ever."""
    before, both, asked = torch.get_num_threads(), threading.Barrier(2, timeout=60), []

    def run(part: int) -> None:
        both.wait()
        thread = threading.Thread(target=lambda: asked.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        both.wait()

    torch.set_num_threads(3)
    try:
        list(on_cores(run, range(2), 2))
    finally:
        torch.set_num_threads(before)
    assert asked == [3, 3]


def test_many_documents_have_the_vectors_that_they_have_alone(encoder: Encoder) -> None:
    rng = np.random.default_rng(3)
    docs = [rng.integers(4, VOCABULARY, n).tolist() for n in (500, 3, 9, 400, 3, 250, 31, 8, 8, 410, 120)]
    alone = np.concatenate([encoder.embed_ids([ids]) for ids in docs])
    np.testing.assert_allclose(encoder.embed_ids(docs), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not runs("bf16"), reason="this processor cannot run bf16")
def test_compiling_changes_how_fast_and_not_what() -> None:
    encoder = Encoder.load("minilm", "seed", "bf16", "cpu")
    documents = [[101, *range(2_000, 2_000 + length), 102] for length in (3, 200, 320, 700)]
    before = encoder.embed_ids(documents)
    encoder.compile()
    after = encoder.embed_ids(documents)
    assert float((unit(before) * unit(after)).sum(axis=1).min()) > 0.9999
    np.testing.assert_array_equal(after, encoder.embed_ids(documents))


def test_compiling_leaves_fp32_alone() -> None:
    encoder = Encoder.load("minilm", precision="fp32", device="cpu")
    documents = [[101, 2_000, 102], [101, *range(2_000, 2_300), 102]]
    before = encoder.embed_ids(documents)
    encoder.compile()
    np.testing.assert_array_equal(encoder.embed_ids(documents), before)
