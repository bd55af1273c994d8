"""The encoder computes what the reference computes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe import longformer, models
from coldframe.encoder import Encoder
from coldframe.flex import BLOCK, FlexMasks
from coldframe.linear import runs
from coldframe.longformer import (
    PRODUCTS,
    ROWS,
    TILES,
    Layer,
    Longformer,
    LongformerConfig,
    Way,
)
from coldframe.packing import EVEN, Group, evened, lay_out, pack, part_size
from coldframe.recipe import RECIPES
from tests.models import VOCABULARY, longformer_directory
from tests.oracle import LENGTHS, Reference, cosine, dense_attention, relative_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SEED = RECIPES["seed"]
bf16_only = pytest.mark.skipif(not runs("bf16"), reason="this processor cannot run bf16")


def documents(lengths: Sequence[int], first: int, last: int, vocabulary: range) -> list[list[int]]:
    """Random ids of the lengths, between the two special tokens as far as they fit."""
    rng = np.random.default_rng(7)
    found = [rng.integers(vocabulary.start, vocabulary.stop, length).tolist() for length in lengths]
    for ids in found:
        ids[-1] = last
        ids[0] = first
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    return models.load(str(longformer_directory(tmp_path_factory.mktemp("small"))))


@pytest.fixture(scope="module")
def minilm() -> models.Model:
    return models.load("minilm")


class Case:
    """A model, documents of every length, and what the reference makes of them."""

    def __init__(self, model: models.Model, docs: list[list[int]]) -> None:
        self.model, self.docs = model, docs
        reference = Reference(model.config, model.weights)
        self.wanted = np.stack([reference.seed(ids) for ids in docs])


@pytest.fixture(scope="module")
def small_case(small: models.Model) -> Case:
    return Case(small, documents(LENGTHS, 0, 2, range(4, VOCABULARY)))


@pytest.fixture(scope="module")
def minilm_case(minilm: models.Model) -> Case:
    # The small model has all of `LENGTHS`, minilm in benchmarks.parity: a minute and more, most of it for the longest.
    lengths = (1, 2, 3, 257, 512, 513, 1025, 4096)
    return Case(minilm, documents(lengths, 101, 102, range(1000, 30_000)))


@pytest.fixture(params=["small_case", "minilm_case"])
def case(request: pytest.FixtureRequest) -> Case:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found


def test_each_document_alone_equals_the_reference(case: Case) -> None:
    encoder = Encoder(case.model, SEED, "fp32", "cpu")
    alone = np.concatenate([encoder.embed_ids([ids]) for ids in case.docs])
    assert relative_error(alone, case.wanted) <= 1e-5


def test_documents_packed_in_shuffled_order_equal_the_reference(case: Case) -> None:
    encoder = Encoder(case.model, SEED, "fp32", "cpu")
    order = np.random.default_rng(3).permutation(len(case.docs))
    packed = encoder.embed_ids([case.docs[n] for n in order])
    assert relative_error(packed, case.wanted[order]) <= 1e-5


def test_one_pack_of_all_documents_equals_the_reference(small_case: Case) -> None:
    encoder = Encoder(small_case.model, SEED, "fp32", "cpu")
    packed = encoder._longformer(small_case.docs, [SEED])[0].numpy()
    assert relative_error(packed, small_case.wanted) <= 1e-5


@bf16_only
def test_bf16_points_where_the_reference_points(small_case: Case) -> None:
    encoder = Encoder(small_case.model, SEED, "bf16", "cpu")
    assert cosine(encoder.embed_ids(small_case.docs), small_case.wanted) >= 0.9999


@bf16_only
def test_bf16_minilm_points_where_the_reference_points(minilm_case: Case) -> None:
    # All lengths up to 4,096 are in benchmarks.parity: processors without bf16 take minutes for them.
    few = [n for n, ids in enumerate(minilm_case.docs) if len(ids) <= 513]
    encoder = Encoder(minilm_case.model, SEED, "bf16", "cpu")
    found = encoder.embed_ids([minilm_case.docs[n] for n in few])
    assert cosine(found, minilm_case.wanted[few]) >= 0.9999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_computes_what_the_reference_computes(minilm_case: Case) -> None:
    encoder = Encoder(minilm_case.model, SEED, "auto", "auto")
    assert (encoder.device, encoder.precision) == ("cuda", "bf16")
    assert cosine(encoder.embed_ids(minilm_case.docs), minilm_case.wanted) >= 0.9999


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=8),
    window=st.sampled_from([2, 4, 16, 64]),
    dense=st.sampled_from([0, 40, 600]),
    block=st.sampled_from([8, 32, 128]),
    projected=st.sampled_from([0, 1_000]),
    even=st.sampled_from([1, 16]),
    way=st.sampled_from([PRODUCTS, TILES]),
)
def test_any_pack_of_documents_equals_the_dense_oracle(
    lengths: list[int], window: int, dense: int, block: int, projected: int, even: int, way: Way
) -> None:
    config = LongformerConfig(50, 32, 1, 4, 64, 200, 1, (window,), 1e-5)
    torch.manual_seed(0)
    layer = Layer(config, window).eval().requires_grad_(False)
    _lay_out_twice(layer)
    weights = {f"{part}_global.{kind}": tensor for part, kind, tensor in _global_tensors(layer)}
    for part, weight, bias in zip(
        ("query", "key", "value"), layer.local.qkv.weight.chunk(3), layer.local.qkv.bias.chunk(3), strict=True
    ):
        scale = (config.hidden // config.heads) ** 0.5 if part == "query" else 1  # the fast code's queries come scaled
        weights |= {f"{part}.weight": weight * scale, f"{part}.bias": bias * scale}
    blocks = lay_out(lengths, window // 2)
    bounds = [bound for block in blocks for bound in block.bounds]
    x = torch.randn(evened(blocks[-1].end), config.hidden)
    groups = [Group.of(block, x) for block in blocks]
    rows = torch.tensor([row for start, end in bounds for row in (start, end - 1)])
    tokens = torch.cat([torch.arange(start, end) for start, end in bounds])
    with pytest.MonkeyPatch.context() as patch:
        way = replace(way, dense=dense, block=block, projected=projected, even=even)
        patch.setattr(longformer, "way_of", lambda _: way)
        found = layer.local(x, groups)
        found[rows] = layer.global_(x, groups, rows)
    bounds, x = pack(lengths), x[tokens]
    rows = torch.tensor([row for start, end in bounds for row in (start, end - 1)])
    flex = FlexMasks.of(bounds, {window // 2}, x.device)  # as on a GPU
    at_once = layer.local(x, [], flex)
    at_once[rows] = layer.global_(x, [], rows, flex)
    wanted = torch.cat([dense_attention(x[start:end], weights, config.heads, window) for start, end in bounds])
    torch.testing.assert_close(found[tokens], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_once, wanted, rtol=1e-4, atol=1e-5)
    assert found.isfinite().all(), "rows of no token, too: they are multiplied by nothing later"


@given(
    lengths=st.lists(st.integers(1, 8) | st.integers(100, 700), min_size=1, max_size=6),
    reach=st.sampled_from([1, 64, 128, 200, 256]),
)
def test_a_gpu_looks_at_the_blocks_in_which_somebody_sees_somebody(lengths: list[int], reach: int) -> None:
    mask = FlexMasks.of(pack(lengths), {reach}, torch.device("cpu")).windows[reach]
    tokens, blocks = sum(lengths), -(-sum(lengths) // BLOCK)
    document = np.repeat(np.arange(len(lengths)), lengths)
    end = np.isin(np.arange(tokens), [row for start, end in pack(lengths) for row in (start, end - 1)])
    near = abs(np.arange(tokens)[:, None] - np.arange(tokens)) <= reach
    sees = np.zeros((blocks * BLOCK, blocks * BLOCK), bool)
    sees[:tokens, :tokens] = (document[:, None] == document) & (near | end)
    pairs = sees.reshape(blocks, BLOCK, blocks, BLOCK).swapaxes(1, 2).reshape(blocks, blocks, -1)
    wholly = _listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert np.array_equal(_listed(mask.kv_num_blocks, mask.kv_indices) | wholly, pairs.any(2))
    assert not (wholly & ~pairs.all(2)).any()


def _listed(counts: torch.Tensor | None, numbers: torch.Tensor | None) -> NDArray[np.bool_]:
    """The blocks of keys that a mask lists for each block of queries, (blocks, blocks)."""
    assert counts is not None
    assert numbers is not None
    blocks = np.zeros(numbers.shape[2:], bool)
    for row, (count, each) in enumerate(zip(counts[0, 0].tolist(), numbers[0, 0].tolist(), strict=True)):
        blocks[row, each[:count]] = True
    return blocks


def _lay_out_twice(layer: Layer) -> None:
    attention = layer.global_
    attention.kv.weight.copy_(torch.cat([attention.key.weight, attention.value.weight]))
    attention.kv.bias.copy_(torch.cat([torch.zeros_like(attention.value.bias), attention.value.bias]))


def _global_tensors(layer: Layer) -> list[tuple[str, str, torch.Tensor]]:
    attention = layer.global_
    scale = attention.head_dim**0.5  # the fast code's queries come scaled
    # The key's bias adds the same to every score of a query: any will do, and the fast code keeps none.
    return [
        ("query", "weight", attention.query.weight * scale),
        ("query", "bias", attention.query.bias * scale),
        ("key", "weight", attention.key.weight),
        ("key", "bias", torch.randn(32)),
        ("value", "weight", attention.value.weight),
        ("value", "bias", attention.value.bias),
    ]


def test_products_keep_to_few_shapes() -> None:
    sizes = {rows: evened(rows) for rows in range(1, 4097)}
    assert all(rows <= size < rows + EVEN for rows, size in sizes.items())
    assert all(4 * (size - rows) < rows for rows, size in sizes.items() if rows > 16), "less than a quarter of no token"
    assert len(set(sizes.values())) <= 16 + 4096 // EVEN
    for rows in set(sizes.values()):
        size = part_size(rows, ROWS)
        assert size <= ROWS
        assert -(-rows // size) == -(-rows // ROWS), "no more parts than are needed"


def test_a_model_of_few_positions_reads_a_pack_of_many_documents() -> None:
    """Rows that belong to no document are more than it has positions."""
    model = Longformer(LongformerConfig(50, 32, 1, 4, 64, 18, 1, (4,), 1e-5)).eval()
    assert model([[3] * 13] * 5, [SEED])[0].shape == (5, 32)


@pytest.mark.parametrize("lengths", [[20] * 9, [8, 9, 12, 40, 41, 300, 5], [1], [128, 129, 130]])
def test_groups_hold_every_document_in_its_order_and_see_nothing_else(lengths: list[int]) -> None:
    blocks = lay_out(lengths, reach=256)
    bounds = [bound for block in blocks for bound in block.bounds]
    assert [end - start for start, end in bounds] == lengths
    rows = torch.arange(evened(blocks[-1].end), dtype=torch.float32)[:, None]
    groups = [Group.of(block, rows) for block in blocks]
    assert sum(group.documents for group in groups) == len(lengths)
    document = 0
    for group in groups:
        own = group.own.expand(group.documents, 1, -1)
        for seen, spread, mask in zip(group.seen(rows), group.spread(rows), own, strict=True):
            start, end = bounds[document]
            assert seen[mask[0] == 0].flatten().tolist() == list(range(start, end)), "what its global tokens see"
            kept = spread if group.hidden is None else spread[mask[0] == 0]
            assert kept.flatten().tolist() == list(range(start, end)), "what its tokens see"
            document += 1


def test_short_documents_are_padded_a_little_and_long_ones_are_not() -> None:
    lengths = [20] * 9 + [90, 100] + [300, 301]
    blocks = lay_out(lengths, reach=256)
    assert [(block.stride, len(block.lengths)) for block in blocks] == [(20, 9), (112, 2), (300, 1), (301, 1)]


def test_minilm_equals_the_sentence_encoder_it_was_made_of(minilm: models.Model, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(models.locate("minilm")), device="cpu")
    original.max_seq_length = 512
    ours = Encoder(minilm, RECIPES["mean"], "fp32", "cpu")
    words = ["frost", "lettuce", "seedling", "glass", "straw", "frame", "april", "rain", "compost", "gardener"]
    texts = [" ".join(words[(n * k) % 10] for n in range(length)) for k, length in ((1, 1), (3, 60), (7, 120))]
    texts.append(" ".join(["frost"] * 255))
    assert ours.tokenize(texts)[-1].used == 257
    wanted = original.encode(texts, normalize_embeddings=True, convert_to_numpy=True)
    assert relative_error(ours.embed(texts), wanted) <= 1e-5
