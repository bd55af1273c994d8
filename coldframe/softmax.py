"""Who sees whom in a block of attention, and the softmax over what is seen.

`Softmax` is plain PyTorch; `CompiledSoftmax` is faster, and takes some seconds to compile (`Encoder.compile`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

# More threads than this take a softmax faster by torch than one of them by itself.
_FEW_THREADS = 4


class Band(NamedTuple):
    """The keys that consecutive queries see: query i those from low + i on and before high + i, of those between the
    `front` first ones and the `back` last ones, which everyone sees.
    """

    front: int
    back: int
    low: int
    high: int

    def corners(self, queries: int, keys: int, like: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """What is hidden of (queries, keys): rows, columns, and the mask of -inf and zero to add to their scores."""
        behind, ahead = triangles(max(queries, keys), like.dtype, like.device)
        if self.low > self.front:  # all windows leave them behind
            yield slice(0, None), slice(self.front, min(self.low, keys - self.back)), like.new_full((1, 1), -torch.inf)
        first = max(0, self.front - self.low)  # after it, windows leave columns behind
        low, columns = self.low + first, min(self.low + queries - 1, keys - self.back)
        if columns > low:
            yield slice(first, None), slice(low, columns), behind[: queries - first, : columns - low]
        rows, columns = min(queries, keys - self.back - self.high), keys - self.back - self.high
        if rows > 0:
            yield slice(0, rows), slice(self.high, self.high + columns), ahead[:rows, :columns]

    def hide(self, scores: Tensor) -> None:
        """Adds -inf to what is hidden of scores, (..., queries, keys), in place."""
        for rows, columns, corner in self.corners(scores.shape[-2], scores.shape[-1], scores):
            scores[..., rows, columns] += corner


# Most blocks of a long document have the same.
@functools.lru_cache(maxsize=16)
def mask_of(band: Band, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """What to add to scores, for all heads: (1, 1, queries, keys)."""
    mask = torch.zeros(1, 1, queries, keys, dtype=dtype)
    band.hide(mask)
    return mask


def whole(length: int, reach: int) -> Band | None:
    """Of a document that is one block: its first and its last key are global. None where a window covers all of it."""
    return Band(1, 1, -reach, reach + 1) if length > reach + 1 else None


class Softmax(nn.Module):
    """Over the keys that each query sees, in place."""

    def forward(self, scores: Tensor, queries: int, keys: int, band: Band | None) -> Tensor:
        """Scores, (1, heads, queries and a few, keys and a few), of which a few are of none -> weights.

        Without a band everyone sees everything.
        """
        scores[..., keys:] = -torch.inf
        if band is not None:
            band.hide(scores[:, :, :queries, :keys])
        return torch.softmax(scores, dim=-1, out=scores)


class CompiledSoftmax(Softmax):
    """The same in one pass over each row of bf16, which leaves out what the row's query does not see."""

    def __init__(self) -> None:
        super().__init__()
        from coldframe import kernels  # compiles them

        self.kernels = kernels

    def forward(self, scores: Tensor, queries: int, keys: int, band: Band | None) -> Tensor:
        """Scores -> weights; rows of no query are left as they are."""
        if torch.get_num_threads() > _FEW_THREADS:
            return super().forward(scores, queries, keys, band)
        return self.kernels.softmax_rows(scores, (queries, keys), band or Band(0, 0, -queries, keys))


def triangles(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What lies before and after the windows of consecutive queries: masks of -inf and zero, (size, size) each.

    Query i is a row. The first mask's columns are keys from the first query's window on: those with j < i are behind
    it. The second's are the keys that follow the first query's window: those with j >= i are ahead.
    """
    behind, ahead = _triangles(-(-size // 1024) * 1024, dtype, device)
    return behind[:size, :size], ahead[:size, :size]


@functools.lru_cache(maxsize=16)
def _triangles(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    full = torch.full((size, size), -torch.inf, dtype=dtype, device=device)
    return full.tril(-1), full.triu()
