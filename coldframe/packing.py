"""How documents lie in one token matrix: end to end, short ones that are alike side by side at one distance.

There is no padding but a few rows after short documents and at the end of the matrix: oneDNN compiles a product for
each number of rows, and those shall be few.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from coldframe.softmax import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Bounds = list[tuple[int, int]]
"""Where each document starts and ends, (start, end) rows of the token matrix; there may be rows of none between two."""

# Documents up to SHORT tokens go through attention together.
SHORT = 128
# Products have multiples of EVEN rows, or of less where rows are few: oneDNN compiles one for every other shape, and
# keeps it, 400 KB each.
EVEN, _FEWEST = 32, 4


class Block(NamedTuple):
    """Consecutive documents of like length, one every so many rows; or one."""

    start: int
    stride: int
    lengths: list[int]
    short: bool
    """Whether all tokens of a document see each other."""

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.start + self.stride * len(self.lengths)

    @property
    def bounds(self) -> Bounds:
        """Of its documents."""
        starts = range(self.start, self.end, self.stride)
        return [(start, start + length) for start, length in zip(starts, self.lengths, strict=True)]


def lay_out(lengths: Sequence[int], reach: int) -> list[Block]:
    """Documents in blocks: short ones, in which all tokens see each other, none much longer than another; or one.

    A dozen seed texts one after the other cost more to ask for than to compute.
    """
    short = min(SHORT, reach + 1)
    alike: list[list[int]] = []
    for length in lengths:
        low, high = (min(*alike[-1], length), max(*alike[-1], length)) if alike else (length, length)
        if alike and high <= short and 4 * high <= 5 * low + 16:
            alike[-1].append(length)
        else:
            alike.append([length])
    blocks: list[Block] = []
    for group in alike:
        longest = max(group)
        stride = evened(longest) if longest <= short else longest
        blocks.append(Block(blocks[-1].end if blocks else 0, stride, group, longest <= short))
    return blocks


@dataclass(frozen=True)
class Group:
    """Documents that lie side by side and go through attention at once."""

    rows: slice
    """Of the token matrix."""
    documents: int
    length: int
    """Rows of each."""
    short: bool
    """Whether all tokens of a document see each other."""
    hidden: Tensor | None
    """Where documents have rows of no token: what to add to the scores of keys, -inf for those, (documents, 1, 1,
    length)."""
    around: slice
    """Their rows, and a few others beside a long document, an even number of them."""
    own: Tensor
    """What to add to scores of the rows around: -inf for those of no token of the document, (documents, 1, n)."""
    windows: dict[int, Tensor] = field(default_factory=dict)
    """By reach, the same and what lies beyond the windows; made once for all layers (`window`)."""

    @classmethod
    def of(cls, block: Block, x: Tensor) -> Group:
        """A block of the token matrix."""
        documents, rows = len(block.lengths), slice(block.start, block.end)
        if not block.short:
            width = min(evened(block.stride), len(x))
            low = min(block.start, len(x) - width)
            own = x.new_full((1, 1, width), -torch.inf)
            own[..., block.start - low : block.end - low] = 0
            return cls(rows, 1, block.stride, False, None, slice(low, low + width), own)
        ends = torch.tensor(block.lengths)[:, None]  # (documents, 1)
        missing = torch.arange(block.stride) >= ends  # (documents, length)
        own = x.new_zeros(missing.shape).masked_fill_(missing, -torch.inf)[:, None]
        hidden = own[:, None] if missing.any() else None
        return cls(rows, documents, block.stride, True, hidden, rows, own)

    def spread(self, x: Tensor) -> Tensor:
        """(all tokens, ...) -> (documents, length, ...)."""
        return x[self.rows].view(self.documents, self.length, *x.shape[1:])

    def seen(self, x: Tensor) -> Tensor:
        """The rows around, of which `own` hides others': (all tokens, ...) -> (documents, n, ...)."""
        return x[self.around].view(self.documents, -1, *x.shape[1:])

    def window(self, reach: int) -> Tensor:
        """What to add to scores of the rows around a long document, by its own: (1, 1, length or 1, n)."""
        band = whole(self.length, reach)
        if band is None:
            return self.own[None]
        if reach not in self.windows:
            self.windows[reach] = self.own[None].repeat(1, 1, self.length, 1)
            first = self.rows.start - self.around.start
            band.hide(self.windows[reach][..., first : first + self.length])
        return self.windows[reach]


def pack(lengths: Sequence[int]) -> Bounds:
    """Bounds of documents that lie end to end."""
    bounds, start = [], 0
    for length in lengths:
        bounds.append((start, start + length))
        start += length
    return bounds


def evened(rows: int) -> int:
    """So many rows or a few more, less than a quarter but for the fewest: a multiple of 4, 8, 16 or `EVEN`."""
    step = _FEWEST
    while step < EVEN and rows > 8 * step:
        step *= 2
    return -(-rows // step) * step


def part_size(rows: int, most: int) -> int:
    """The size, an even one, of as many parts as are needed, about equal and none larger than `most`."""
    return evened(-(-rows // -(-rows // most)))
