"""What is done in one pass over each row, beside the slow obvious way: softmaxes, rounding and scaling.

The kernels take seconds to compile. So their tests stand in one file, which one process runs, and no import waits.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldframe.softmax import Band, CompiledSoftmax, Softmax, triangles


def test_masks_leave_each_query_its_window() -> None:
    behind, ahead = triangles(3, torch.float32, torch.device("cpu"))
    assert (behind == 0).int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert (ahead == 0).int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, int, Band]:
    """Queries, keys, and who sees whom, as documents and blocks of the band have it and beyond."""
    queries, keys = draw(st.integers(1, 70)), draw(st.integers(4, 90))
    front, back = draw(st.integers(1, 2)), draw(st.integers(0, 1))
    low = draw(st.integers(-70, front + 5))
    high = draw(st.integers(max(low + 1, front), 100))
    return queries, keys, Band(front, back, low, high)


def obvious(scores: torch.Tensor, queries: int, keys: int, band: Band | None) -> torch.Tensor:
    """One score after the other asked about; what is not seen is minus infinity. (..., queries, keys)."""
    scores = scores[..., :queries, :keys].float()
    if band is not None:
        sees = [
            [k < band.front or k >= keys - band.back or band.low + q <= k < band.high + q for k in range(keys)]
            for q in range(queries)
        ]
        scores = scores.masked_fill(~torch.tensor(sees), -torch.inf)
    return torch.softmax(scores, dim=-1)


def scores_of(queries: int, keys: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    return (torch.randn(2, 3, queries + 5, keys + 3, generator=generator) * size).to(dtype)


@given(block=blocks(), size=st.sampled_from([0.01, 3, 40]))
def test_each_query_weighs_what_it_sees_and_nothing_else(block: tuple[int, int, Band], size: float) -> None:
    queries, keys, band = block
    for softmax, dtype, close in (
        (Softmax(), torch.float32, 1e-5),
        (CompiledSoftmax(), torch.bfloat16, 0.005),
    ):
        scores = scores_of(queries, keys, size, dtype)
        wanted = obvious(scores, queries, keys, band)
        weights = softmax(scores, queries, keys, band)
        assert weights.data_ptr() == scores.data_ptr(), "in place"
        torch.testing.assert_close(weights[:, :, :queries, :keys].float(), wanted, rtol=close, atol=1e-6)
        assert weights[:, :, :queries, :keys][wanted == 0].abs().sum() < 1e-30
        assert not weights[:, :, :queries, keys:].any(), "columns of no key"


def test_without_windows_all_see_all() -> None:
    scores = scores_of(20, 40, 3, torch.bfloat16)
    wanted = obvious(scores, 20, 40, None)
    found = CompiledSoftmax()(scores, 20, 40, None)[:, :, :20, :40].float()
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-6)


def test_many_threads_share_a_softmax() -> None:
    """One thread by itself would keep all others waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        scores = scores_of(30, 40, 3, torch.bfloat16)
        wanted = Softmax()(scores.clone(), 30, 40, None)
        assert torch.equal(CompiledSoftmax()(scores, 30, 40, None), wanted)
    finally:
        torch.set_num_threads(before)


def test_one_score_far_above_all_others_takes_all() -> None:
    scores = torch.full((1, 1, 2, 8), -3e38).to(torch.bfloat16)
    scores[..., 5] = 1e4
    weights = CompiledSoftmax()(scores, 2, 8, None)
    torch.testing.assert_close(weights[0, 0].float(), torch.eye(8)[5].expand(2, -1), rtol=0, atol=1e-30)


def test_rows_are_rounded_to_the_nearest_of_their_own_255_steps() -> None:
    from coldframe import kernels

    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(37, 64, generator=generator) * torch.logspace(-2, 1, 37)[:, None]).to(torch.bfloat16)
    rows[::5, 3] *= 20
    rounded, steps = kernels.round_rows(rows)
    torch.testing.assert_close(steps, rows.abs().amax(1).float() / 127)
    assert rounded.min() >= 1
    # bf16 has 8 digits: a value halfway between two steps may go either way.
    away = (rounded.float() - kernels.ZERO_POINT) * steps[:, None] - rows.float()
    assert float((away.abs() / steps[:, None]).max()) <= 0.5001


@pytest.mark.parametrize("what", ["plain", "gelu", "residual"])
def test_products_are_scaled_as_torch_would(what: str) -> None:
    from coldframe import kernels

    generator = torch.Generator().manual_seed(4)
    product = (torch.randn(33, 70, generator=generator) * 50).to(torch.bfloat16)
    steps, bias = torch.rand(33, generator=generator) / 8, torch.randn(70, generator=generator)
    residual = torch.randn(33, 70, generator=generator).to(torch.bfloat16) if what == "residual" else None
    wanted = product.float() * steps[:, None] + bias
    if what == "gelu":
        wanted = torch.nn.functional.gelu(wanted)
    elif residual is not None:
        wanted += residual
    found = kernels.scale_rows(product, steps, bias, gelu=what == "gelu", residual=residual)
    # Written in bf16, which keeps a 256th; GELU is a polynomial within 1e-4.
    torch.testing.assert_close(found.float(), wanted, rtol=1 / 256, atol=2e-4)


def test_gelu_stays_flat_far_from_zero() -> None:
    from coldframe import kernels

    product = torch.tensor([[-1000.0, -50.0, -6.0, 6.0, 50.0, 1000.0]]).to(torch.bfloat16)
    wanted = torch.nn.functional.gelu(product.float())
    found = kernels.scale_rows(product, torch.ones(1), torch.zeros(6), gelu=True, residual=None)
    torch.testing.assert_close(found.float(), wanted, rtol=1 / 256, atol=0.03)
