"""What a benchmark says of the machine it ran on: its name, its GEMM rate, the memory that a piece of work takes."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from coldframe import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coldframe.models import Model
    from coldframe.precision import Precision
    from coldframe.recipe import Recipe

_ROWS = (512, 2048)
_REPEATS = 9


def describe() -> str:
    """Processor, its instructions that matter here, threads, torch."""
    capabilities = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    has = ", ".join(name for name in wanted if capabilities.get(name))
    threads = torch.get_num_threads()
    return f"{capabilities.get('cpu_name', platform.processor())} ({has}), {threads} threads, torch {torch.__version__}"


def in_precisions(model: Model, recipe: Recipe, precisions: Sequence[Precision]) -> Iterator[tuple[Precision, Encoder]]:
    """The encoder on the CPU in each precision that it has there. One that gives way is told, not measured."""
    for precision in precisions:
        encoder = Encoder(model, recipe, precision, "cpu")
        if encoder.precision == precision:
            yield precision, encoder
        else:
            print(f"{precision} is not measured: a warning says why {encoder.precision} takes its place")


def gemm_ceiling(hidden: int, intermediate: int, precision: str) -> float:
    """FLOP/s of a layer's four linear products by oneDNN, nothing around them; the best of a few numbers of rows."""
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden)]
    return max(_rate(shapes, rows, precision) for rows in _ROWS)


@torch.inference_mode()
def _rate(shapes: list[tuple[int, int]], rows: int, precision: str) -> float:
    seconds = 0.0
    for inputs, outputs in shapes:
        product = _product(rows, inputs, outputs, precision)
        product()
        spent = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            product()
            spent.append(time.perf_counter() - start)
        seconds += sorted(spent)[_REPEATS // 2]
    return 2 * rows * sum(inputs * outputs for inputs, outputs in shapes) / seconds


def _product(rows: int, inputs: int, outputs: int, precision: str) -> Callable[[], object]:
    if precision == "int8":
        x = torch.randint(1, 256, (rows, inputs), dtype=torch.uint8)
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inputs])
        scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
        run = torch.ops.onednn.qlinear_pointwise
        return lambda: run(x, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    y = torch.randn(rows, inputs).to(dtype)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outputs, inputs).to(dtype), rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(y, laid_out, None, "none", [], "none")


class Peak:
    """The most that the process holds during the block, `whole_mib`, and how far that is over what it held at the
    start, `mib`; 0 where unknown.
    """

    def __enter__(self) -> Self:
        self.mib = self.whole_mib = 0.0
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the old peak
        except OSError:
            self._before = None
        else:
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            self.whole_mib = _status("VmHWM") / 1024
            self.mib = self.whole_mib - self._before / 1024


def _status(field: str) -> int:
    """KiB, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
