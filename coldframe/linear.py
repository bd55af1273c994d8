"""Linear layers at the speed of the processor: oneDNN with weights laid out once, in fp32, bf16 or int8.

A model is made of `Linear`, plain PyTorch. `prepare` puts a faster twin in the place of each, where the processor has
one; the twins compute the same product, with GELU or a residual sum as part of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Weights are laid out for products of about so many rows; other numbers of rows use the same layout.
_ROWS = 512


class Linear(nn.Linear):
    """x W' + b, then GELU where `gelu`. An `exact` one is never run in int8."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False, exact: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.gelu, self.exact = gelu, exact

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(rows, inputs) -> (rows, outputs); `residual`, (rows, outputs), is added at the end."""
        y = F.linear(x, self.weight, self.bias)
        if self.gelu:
            y = F.gelu(y)
        return y if residual is None else y + residual


class PackedLinear(nn.Module):
    """fp32 or bf16 by oneDNN: its own order of the weights, GELU and the residual sum inside the product."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        # No parameter: the packed layout is opaque and cannot be copied, moved or saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias
        self.activation = "gelu" if linear.gelu else "none"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        run = torch.ops.mkldnn._linear_pointwise
        if residual is not None and self.activation == "none":
            y: Tensor = run.binary(x, residual, self.packed, self.bias, "add")
            return y
        y = run(x, self.packed, self.bias, self.activation, [], "none")
        return y if residual is None else y + residual


class Int8Linear(nn.Module):
    """int8 products summed in int32: one scale per output for the weights, one per token for the activations.

    Dettmers et al. 2022 (arXiv:2208.07339), section 2, call this vector-wise quantisation. What goes in and comes out
    is bf16; bias, GELU and residual are added in fp32 before that.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        from coldframe import kernels  # compiles them

        self.kernels = kernels
        weight = linear.weight.detach().float()  # (outputs, inputs)
        scales = weight.abs().amax(dim=1).clamp_min(1e-12) / kernels.LEVELS  # (outputs,)
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
        self.scales, self.zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self.bias = linear.bias.detach().float()
        self.gelu = linear.gelu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        rounded, steps = self.kernels.round_rows(x)
        product = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            self.kernels.ZERO_POINT,
            self.packed,
            self.scales,
            self.zeros,
            None,
            1.0,
            0,
            torch.bfloat16,
            "none",
            [],
            "",
        )  # (rows, outputs)
        if residual is not None and self.gelu:
            return self.kernels.scale_rows(product, steps, self.bias, gelu=True).add_(residual)
        return self.kernels.scale_rows(product, steps, self.bias, gelu=self.gelu, residual=residual)


def multiplies_bytes() -> bool:
    """Whether the processor sums products of bytes in 32 bits (VNNI, AMX), and torch was built to use it.

    Others sum them in 16 bits, which are not enough: what comes out is wrong, not only slow.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("amx_int8"))


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; without that bf16 is several times slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def runs(precision: str) -> bool:
    """Whether `prepare` has a twin for the precision on this processor, be it slow."""
    if precision == "fp32":
        return True
    bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bf16 and (precision == "bf16" or multiplies_bytes())


def prepare(model: nn.Module, precision: str) -> None:
    """Replaces every `Linear` of a model on the CPU by the twin for `precision`, which the processor `runs`."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        linears = {name: child for name, child in module.named_children() if isinstance(child, Linear)}
        for name, linear in linears.items():
            twin = Int8Linear if precision == "int8" and not linear.exact else PackedLinear
            setattr(module, name, twin(linear))  # the plain weights are freed with it
