"""Longformer (Beltagy, Peters, Cohan 2020, arXiv:2004.05150) for inference, on packed tokens.

Documents lie end to end in one (tokens, hidden) matrix (`coldframe.packing`): linear layers, norms and GELU see every
token once and little else. Only attention knows where documents begin and end.

Three kinds of attention, each key counted once:
- a token attends to the tokens at most window/2 away in its document, and to the document's global tokens, its
  first and its last, all through the local projections;
- a global token attends to its whole document through projections of its own (`*_global`);
- a document of at most window/2 + 1 tokens is dense: the band covers all of it.

What is saved over the reference implementation, without changing a number beyond rounding: padding to multiples of
the window, the half of each overlapping chunk that is masked away, and the global key and value projections of all
tokens (see `GlobalAttention`). `tests/oracle.py` holds the slow obvious version.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from coldframe.flex import FlexMasks, flex_attention_on, moved
from coldframe.linear import Linear
from coldframe.packing import Group, evened, lay_out, pack, part_size
from coldframe.recipe import Pooler, Recipe, places
from coldframe.softmax import Band, CompiledSoftmax, Softmax, mask_of, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coldframe.packing import Bounds

# Measured, see docs/decisions/0003-banded-attention-in-blocks.md: what follows attention goes by at most ROWS tokens,
# which stay in the processor's cache.
ROWS = 384


@dataclass(frozen=True)
class LongformerConfig:
    """The shape of a model: the fields of its config.json that inference needs."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    max_positions: int  # rows of the position table
    pad_id: int
    windows: tuple[int, ...]  # attention window of each layer, both sides together
    norm_eps: float

    @property
    def max_tokens(self) -> int:
        """The longest document, special tokens included: token i uses position row pad_id + 1 + i."""
        return self.max_positions - self.pad_id - 1


class Embeddings(nn.Module):
    """Word + position + token type 0, normalised."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.first_position = config.pad_id + 1
        self.word = nn.Embedding(config.vocab_size, config.hidden)
        self.position = nn.Embedding(config.max_positions, config.hidden)
        self.token_type = nn.Embedding(1, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Of tokens, (tokens,), and their places in their documents, (tokens,): (tokens, hidden)."""
        x = self.word(ids) + self.position(positions + self.first_position) + self.token_type.weight[0]
        normed: Tensor = self.norm(x)  # (tokens, hidden)
        return normed


# --- how queries meet keys on a CPU; on a GPU: coldframe/flex.py ------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How queries of long documents meet keys on a CPU.

    Measured, see docs/decisions/0003-banded-attention-in-blocks.md.
    """

    attend: Callable[[Tensor, Tensor, Tensor, Softmax, Band | None], Tensor]
    """Queries, (1, heads, queries, head_dim), keys, values, their softmax, and who sees whom, None for everyone
    everything -> (1, heads, queries, head_dim)."""
    dense: int
    """Documents of at most so many tokens are one block."""
    block: int
    """Queries in a block of the band."""
    even: int
    """Keys come in multiples of so many, a few of them hidden."""
    projected: int
    """Of so many rows of short documents global keys and values are projected."""


def by_products(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax, band: Band | None) -> Tensor:
    """Two products and a softmax in place: the fastest where the processor multiplies vectors."""
    queries, keys = q.shape[2], k.shape[2]
    q, k, v = laid_evenly(q), laid_evenly(k), laid_evenly(v)
    scores = q @ k.transpose(2, 3)  # (1, heads, queries and a few, keys and a few)
    weights: Tensor = softmax(scores, queries, keys, band)
    return (weights @ v)[:, :, :queries]


def laid_evenly(x: Tensor) -> Tensor:
    """Head by head, and up to an even number of rows: (..., rows, head_dim) -> (..., rows and some zeros, head_dim)."""
    rows = x.shape[2]
    laid = x.new_empty(*x.shape[:2], evened(rows), x.shape[3])
    laid[:, :, :rows] = x
    laid[:, :, rows:] = 0
    return laid


def by_tiles(q: Tensor, k: Tensor, v: Tensor, _: Softmax, band: Band | None) -> Tensor:
    """The fused kernel and a mask: the fastest where the processor multiplies tiles."""
    return fused_kernel(q, k, v, None if band is None else mask_of(band, q.shape[2], k.shape[2], q.dtype))


def fused_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dao et al. 2022 (arXiv:2205.14135), as torch has it: the fewest calls, which is what short documents cost."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


PRODUCTS = Way(by_products, dense=600, block=128, even=1, projected=64)
TILES = Way(by_tiles, dense=800, block=256, even=16, projected=512)


@functools.cache
def way_of(dtype: torch.dtype) -> Way:
    """The faster of the two on this processor."""
    return TILES if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16") else PRODUCTS


# --- the model --------------------------------------------------------------------------------------------------------


class LocalAttention(nn.Module):
    """The sliding window and the global columns, for every token of every document."""

    def __init__(self, config: LongformerConfig, window: int) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.hidden // config.heads
        self.reach = window // 2
        self.qkv = Linear(config.hidden, 3 * config.hidden)  # queries come scaled, see `from_reference`
        self.softmax = Softmax()

    def forward(self, x: Tensor, groups: Sequence[Group], flex: FlexMasks | None = None) -> Tensor:
        qkv = self.qkv(x).view(-1, 3, self.heads, self.head_dim)  # (tokens, 3, heads, head_dim)
        if flex is not None:
            q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each (1, heads, tokens, head_dim)
            mask = flex.windows[self.reach]
            return flex_attention_on(x.device.type)(q, k, v, block_mask=mask, scale=1.0)[0].transpose(0, 1).flatten(1)
        out = torch.empty_like(x).view(-1, self.heads, self.head_dim)  # (tokens, heads, head_dim)
        out[groups[-1].rows.stop :] = 0  # of no document
        way = way_of(x.dtype)
        for group in groups:
            q, k, v = group.spread(qkv).permute(2, 0, 3, 1, 4)  # each (documents, heads, length, head_dim)
            if group.short:
                found = fused_kernel(q, k, v, group.hidden)
            elif group.length > max(way.dense, self.reach + 1):
                found = self._band(way, q, k, v)
            elif way.even > 1:
                _, k, v = group.seen(qkv).permute(2, 0, 3, 1, 4)  # each (1, heads, n, head_dim)
                found = fused_kernel(q, k, v, group.window(self.reach))
            else:
                found = way.attend(q, k, v, self.softmax, whole(group.length, self.reach))
            group.spread(out).copy_(found.transpose(1, 2))  # (documents, length, heads, head_dim)
        return out.view_as(x)  # (tokens, hidden)

    def _band(self, way: Way, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Blocks of queries against the keys that their windows cover, and the two global keys in front of them."""
        length, reach, out = q.shape[2], self.reach, torch.empty_like(q)
        ends = [0, length - 1]
        k_ends, v_ends = k[:, :, ends], v[:, :, ends]  # (1, heads, 2, head_dim)
        for first in range(0, length, way.block):
            last = min(first + way.block, length)
            # The global keys have columns of their own; the band leaves them out, so that each counts once.
            low, high = widened(max(first - reach, 1), min(last + reach, length - 1), length, way.even)
            shift = 2 - low  # from a key's place in the document to its column
            band = Band(2, 0, first - reach + shift, first + reach + 1 + shift)
            keys = torch.cat([k_ends, k[:, :, low:high]], dim=2)  # (1, heads, 2 + span, head_dim)
            values = torch.cat([v_ends, v[:, :, low:high]], dim=2)
            out[:, :, first:last] = way.attend(q[:, :, first:last], keys, values, self.softmax, band)
        return out


def widened(low: int, high: int, length: int, even: int) -> tuple[int, int]:
    """Keys low to high of a document and a few others, which the band hides: with its two global ones a multiple of
    `even`, where it has as many.
    """
    more = -(2 + high - low) % even
    after = min(more, length - 1 - high)
    return max(low - (more - after), 1), high + after


class GlobalAttention(nn.Module):
    """What the first and the last token of each document see: all of it, through projections of their own.

    Keys and values of all tokens are never projected. With q the projected query of one head,
    q . (W_k x_j + b_k) = (W_k' q) . x_j + const, and softmax forgets the constant; since the weights p sum to one,
    sum_j p_j (W_v x_j + b_v) = W_v (sum_j p_j x_j) + b_v. Two hidden x hidden products per token become two
    products with one vector per head and global token. (`key.bias` therefore has no effect, and is not kept.)

    But of a few short documents: there the weights take longer to read than to multiply by, and two products with all
    tokens are fewer calls. And of many on a GPU, where all probes meet all tokens: once there are more of them than
    numbers in a state, to project is less work.
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.hidden = config.heads, config.hidden // config.heads, config.hidden
        self.query = Linear(config.hidden, config.hidden, exact=True)  # queries come scaled, as the local ones
        self.key = nn.Linear(config.hidden, config.hidden, bias=False)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.kv = Linear(config.hidden, 2 * config.hidden, exact=True)  # both once more, laid out for many rows

    def forward(self, x: Tensor, groups: Sequence[Group], rows: Tensor, flex: FlexMasks | None = None) -> Tensor:
        """Outputs for the global tokens, whose row numbers are `rows`: (2 documents, hidden)."""
        q = self.query(x[rows]).view(-1, self.heads, self.head_dim)  # (2 docs, heads, head_dim)
        if groups and len(x) <= way_of(x.dtype).projected and all(group.short for group in groups):
            return self._projected(x, groups, q)
        if flex is not None and self.heads * len(q) > self.hidden:
            return self._projected_at_once(x, flex.own, q)
        split = (self.heads, self.head_dim, self.hidden)
        probes = torch.bmm(q.transpose(0, 1), self.key.weight.view(split))  # (heads, 2 docs, hidden)
        seen = self._by_group(x, groups, probes) if flex is None else self._at_once(x, flex.own, probes)
        out = torch.bmm(seen, self.value.weight.view(split).transpose(1, 2))  # (heads, 2 docs, head_dim)
        return out.transpose(0, 1).flatten(1) + self.value.bias  # (2 docs, hidden)

    def _projected(self, x: Tensor, groups: Sequence[Group], q: Tensor) -> Tensor:
        """The outputs by keys and values of all tokens."""
        kv, found, first = self.kv(x).view(-1, 2, self.heads, self.head_dim), [], 0  # (tokens, 2, heads, head_dim)
        for group in groups:
            pairs = slice(first, first := first + 2 * group.documents)
            k, v = group.spread(kv).permute(2, 0, 3, 1, 4)  # each (documents, heads, length, head_dim)
            asked = q[pairs].view(-1, 2, self.heads, self.head_dim).transpose(1, 2)  # (documents, heads, 2, head_dim)
            out = fused_kernel(asked, k, v, group.hidden)  # (documents, heads, 2, head_dim)
            found.append(out.transpose(1, 2).reshape(-1, self.hidden))
        return found[0] if len(found) == 1 else torch.cat(found)  # (2 docs, hidden)

    def _projected_at_once(self, x: Tensor, own: Tensor, q: Tensor) -> Tensor:
        """The same for all documents at once, whose tokens `own` tells."""
        kv = self.kv(x).view(1, -1, 2, self.heads, self.head_dim)  # (1, tokens, 2, heads, head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each (1, heads, tokens, head_dim)
        return fused_kernel(q.transpose(0, 1)[None], k, v, own)[0].transpose(0, 1).flatten(1)  # (2 docs, hidden)

    def _by_group(self, x: Tensor, groups: Sequence[Group], probes: Tensor) -> Tensor:
        """The mean of each document's states, weighted by what each probe makes of them, (heads, 2 docs, hidden)."""
        shape = (self.heads, -1, 2, self.hidden)
        seen, first = torch.empty_like(probes), 0
        for group in groups:
            pairs = slice(first, first := first + 2 * group.documents)
            states = group.seen(x)  # (documents, length, hidden)
            asked = probes[:, pairs].view(shape).transpose(0, 1).flatten(1, 2)  # (documents, 2 heads, hidden)
            scores = torch.bmm(asked, states.transpose(1, 2)) + group.own  # (documents, 2 heads, length)
            found = torch.bmm(torch.softmax(scores, dim=-1), states)  # (documents, 2 heads, hidden)
            seen[:, pairs] = found.view(-1, self.heads, 2, self.hidden).transpose(0, 1).flatten(1, 2)
        return seen

    def _at_once(self, x: Tensor, own: Tensor, probes: Tensor) -> Tensor:
        """The same in two products for all documents: on a GPU many small ones would take longer."""
        scores = (probes @ x.T).masked_fill(~own, -torch.inf)  # (heads, 2 docs, tokens)
        return torch.softmax(scores, dim=-1) @ x  # (heads, 2 docs, hidden)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by a residual sum and a norm."""

    def __init__(self, config: LongformerConfig, window: int) -> None:
        super().__init__()
        self.local = LocalAttention(config, window)
        self.global_ = GlobalAttention(config)
        self.attention_out = Linear(config.hidden, config.hidden)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.feed_in = Linear(config.hidden, config.intermediate, gelu=True)
        self.feed_out = Linear(config.intermediate, config.hidden)
        self.feed_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        groups: Sequence[Group],
        global_rows: Tensor,
        flex: FlexMasks | None = None,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Writes the next hidden state over `x`, (tokens, hidden)."""
        attended = self.local(x, groups, flex)  # (tokens, hidden)
        attended[global_rows] = self.global_(x, groups, global_rows, flex)
        size = part_size(len(x), ROWS) if flex is None else len(x)
        for rows, part in zip(torch.split(x, size), torch.split(attended, size), strict=True):
            mixed = self.attention_norm(self.attention_out(part, rows))  # (rows, hidden)
            rows.copy_(self.feed_norm(self.feed_out(self.feed_in(mixed), mixed)))
            if between is not None:
                between()
        return x


class Longformer(nn.Module):
    """The encoder without heads: packed token ids in, one vector per document and recipe out."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, window) for window in config.windows)

    def compile_softmax(self) -> None:
        """Compiles the softmax of bf16, where this processor takes one and a GPU does not."""
        weight = self.embeddings.word.weight
        if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and way_of(weight.dtype) is PRODUCTS:
            for module in list(self.modules()):
                if isinstance(module, LocalAttention):
                    module.softmax = CompiledSoftmax()

    @torch.inference_mode()
    def forward(
        self,
        documents: Sequence[Sequence[int]],
        recipes: Sequence[Recipe],
        between: Callable[[], None] | None = None,
    ) -> list[Tensor]:
        """Token ids of each document, special tokens included, none longer than `config.max_tokens`.

        `between` is called again and again on the way, after at most `ROWS` tokens of a layer: it may compute something
        shorter, and nothing here notices. Returns fp32 vectors for each recipe, (documents, recipe.dim(hidden)).
        """
        device = self.embeddings.word.weight.device
        lengths = [len(document) for document in documents]
        reaches = {window // 2 for window in self.config.windows}
        if device.type == "cuda":
            blocks, bounds = [], pack(lengths)
            rows, flex = bounds[-1][1], FlexMasks.of(bounds, reaches, device)
        else:
            blocks, flex = lay_out(lengths, min(reaches)), None
            bounds, rows = [bound for block in blocks for bound in block.bounds], evened(blocks[-1].end)
        ids, positions = self._laid(documents, bounds, rows)
        global_rows = moved(torch.tensor([row for start, end in bounds for row in (start, end - 1)]), device)
        total = 1 + len(self.layers)
        poolers = [Pooler(recipe, bounds, total_states=total, ids=ids) for recipe in recipes]
        x = self.embeddings(ids, positions)  # (rows, hidden)
        groups = [Group.of(block, x) for block in blocks]
        for pooler in poolers:
            pooler.see(x)
        for layer in self.layers:
            x = layer(x, groups, global_rows, flex, between)
            for pooler in poolers:
                pooler.see(x)
        return [pooler.vectors() for pooler in poolers]

    def _laid(self, documents: Sequence[Sequence[int]], bounds: Bounds, rows: int) -> tuple[Tensor, Tensor]:
        """Token ids and their places in their documents, (rows,) each. Rows of no token stand at first places: later
        ones a small model may not have.
        """
        device = self.embeddings.word.weight.device
        _, place, row = places(bounds)  # (tokens,) each
        ids, positions = torch.full((rows,), self.config.pad_id), torch.zeros(rows, dtype=torch.int64)
        ids[row] = torch.tensor([i for document in documents for i in document], dtype=torch.int64)
        positions[row] = place
        return moved(ids, device), moved(positions, device)
