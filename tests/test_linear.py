"""The fast linear layers compute what the plain ones compute, as exactly as their precision allows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coldframe.linear import Int8Linear, Linear, PackedLinear, multiplies_bytes, prepare, runs

int8_only = pytest.mark.skipif(not multiplies_bytes(), reason="this processor sums products of bytes in 16 bits")


@pytest.fixture
def x() -> torch.Tensor:
    """Tokens whose sizes differ a thousandfold, some of them with one value far from the rest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 64, generator=generator) * torch.logspace(-2, 1, 37)[:, None]
    x[::5, 3] *= 20
    return x


def plain(*, gelu: bool) -> Linear:
    torch.manual_seed(1)
    return Linear(64, 48, gelu=gelu).requires_grad_(False)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest of the rows' errors, relative to the row's own size."""
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("twin", "most"), [(PackedLinear, 1e-5), pytest.param(Int8Linear, 0.05, marks=int8_only)])
def test_a_twin_computes_the_same(
    x: torch.Tensor, twin: type[nn.Module], most: float, gelu: bool, with_residual: bool
) -> None:
    linear = plain(gelu=gelu)
    residual = torch.randn(37, 48, generator=torch.Generator().manual_seed(2)) if with_residual else None
    wanted = linear(x, residual)
    dtype = torch.bfloat16 if twin is Int8Linear else torch.float32
    with torch.inference_mode():
        found = twin(linear)(x.to(dtype), residual if residual is None else residual.to(dtype))
    assert relative_error(found.float(), wanted) <= most


@pytest.mark.parametrize(
    ("twin", "dtype"), [(PackedLinear, torch.float32), pytest.param(Int8Linear, torch.bfloat16, marks=int8_only)]
)
def test_a_twin_leaves_its_input_and_the_residual_alone(
    x: torch.Tensor, twin: type[nn.Module], dtype: torch.dtype
) -> None:
    x, residual = x.to(dtype), torch.ones(37, 48, dtype=dtype)
    before = x.clone()
    with torch.inference_mode():
        twin(plain(gelu=False))(x, residual)
    assert torch.equal(x, before)
    assert torch.equal(residual, torch.ones(37, 48, dtype=dtype))


@int8_only
@pytest.mark.parametrize("rows", [1, 2, 511, 513, 1200])
def test_int8_rounds_each_token_by_its_own_size(rows: int) -> None:
    """A token's result is the same whatever stands beside it."""
    linear = Int8Linear(plain(gelu=False))
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    x[rows // 2] *= 1000
    with torch.inference_mode():
        torch.testing.assert_close(linear(x)[:1], linear(x[:1]))


@int8_only
def test_int8_bears_a_token_of_zeros() -> None:
    linear = plain(gelu=False)
    with torch.inference_mode():
        found = Int8Linear(linear)(torch.zeros(2, 64, dtype=torch.bfloat16))
    torch.testing.assert_close(found.float(), linear.bias.expand(2, -1), rtol=0.004, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_prepare_replaces_every_linear_layer_and_no_other(precision: str) -> None:
    if not runs(precision):
        pytest.skip(f"this processor cannot run {precision}")
    model = nn.ModuleDict({"in": plain(gelu=True), "norm": nn.LayerNorm(48), "plain": nn.Linear(48, 4)})
    prepared = copy.deepcopy(model).to(torch.float32 if precision == "fp32" else torch.bfloat16)
    prepare(prepared, precision)
    assert isinstance(prepared["in"], Int8Linear if precision == "int8" else PackedLinear)
    assert type(prepared["norm"]) is nn.LayerNorm
    assert type(prepared["plain"]) is nn.Linear
