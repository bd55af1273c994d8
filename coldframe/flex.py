"""Attention on a GPU: all documents of a pack through one FlexAttention kernel, with masks made once for all layers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.nn.attention.flex_attention import BlockMask

    from coldframe.packing import Bounds

# Queries and keys in a block of a mask: what FlexAttention has unless told otherwise.
BLOCK = 128


@dataclass(frozen=True)
class FlexMasks:
    """Who sees whom among all documents of a pack."""

    windows: Mapping[int, BlockMask]
    """By reach: a token sees its window within the document, and the document's two global tokens."""
    own: Tensor
    """Whether a token lies in the document of a global one, (2 documents, tokens)."""

    @classmethod
    def of(cls, bounds: Bounds, reaches: set[int], device: torch.device) -> FlexMasks:
        """Of documents that lie end to end, for layers that reach so far to either side."""
        starts, ends = torch.tensor(bounds).unbind(1)  # (documents,) each
        spans = torch.stack([starts, ends - 1]).repeat_interleave(ends - starts, dim=1)
        first, last = moved(spans, device)  # (tokens,) each: the rows of the two global tokens that a token sees
        own = moved(starts.repeat_interleave(2), device)[:, None] == first
        windows = {}
        for reach in reaches:
            partly, wholly = moved(torch.stack(blocks_seen(spans[0], spans[1], reach)), device)  # (blocks, blocks) each
            windows[reach] = _block_mask(partly, wholly, _sees(first, last, reach), len(first))
        return cls(windows, own)


def _sees(first: Tensor, last: Tensor, reach: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (first[query] == first[key]) & ((query - key).abs() <= reach)
        return near | (key == first[query]) | (key == last[query])

    return sees


def blocks_seen(first: Tensor, last: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Blocks of keys of which a block of queries sees some, and those of which each query sees each key,
    (blocks of queries, blocks of keys) each; no other is looked at. first, last: (tokens,), as in `FlexMasks.of`.

    Told by the first and the last row of a block: the rows that a token sees begin and end no earlier than those of the
    token before. `create_block_mask` would ask every pair of tokens.
    """
    tokens = len(first)
    low = torch.arange(0, tokens, BLOCK)  # (blocks,)
    high = (low + BLOCK).clamp(max=tokens) - 1
    key = torch.arange(len(low))
    nearest, farthest = torch.maximum(first[low], low - reach), torch.minimum(last[high], high + reach)
    near = (key >= (nearest // BLOCK)[:, None]) & (key <= (farthest // BLOCK)[:, None])
    ends = (key == (first[low] // BLOCK)[:, None]) | (key == (last[high] // BLOCK)[:, None])
    distance = torch.maximum(high[:, None] - low, high - low[:, None])  # of the two rows farthest from each other
    alone = (first[low] == first[high]) & (high - low == BLOCK - 1)  # of one document, and no row is missing
    wholly = alone[:, None] & alone & (first[low][:, None] == first[low]) & (distance <= reach)
    return (near | ends) & ~wholly, wholly


def _block_mask(partly: Tensor, wholly: Tensor, sees: Callable[..., Tensor], tokens: int) -> BlockMask:
    """Blocks in which nobody sees anybody are skipped: Dong et al. 2024, FlexAttention (arXiv:2412.05496)."""
    from torch.nn.attention.flex_attention import BlockMask

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        order = blocks.int().argsort(dim=1, descending=True, stable=True).int()
        return blocks.sum(1, dtype=torch.int32)[None, None], order[None, None]  # of any batch and head

    return BlockMask.from_kv_blocks(
        *listed(partly), *listed(wholly), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
    )


@functools.cache
def flex_attention_on(device: str) -> Callable[..., Tensor]:
    """A kernel compiled at its first call; on the CPU, where only tests ask for it, the slow version of the same."""
    from torch.nn.attention.flex_attention import flex_attention

    run: Any = torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    return cast("Callable[..., Tensor]", run)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
