"""The slow obvious versions that the fast code is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Where the attention of a model with window 512 changes its form, and the ends of what it reads.
LENGTHS = (1, 2, 3, 255, 256, 257, 258, 511, 512, 513, 1024, 1025, 4095, 4096)


class Reference:
    """`transformers.LongformerModel` run as the notebook ran it: one document at a time, recipe "seed"."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        self.model = transformers.LongformerModel(transformers.LongformerConfig(**config), add_pooling_layer=False)
        self.model.load_state_dict(dict(weights), strict=False)
        self.model.train(False)

    def hidden_states(self, ids: Sequence[int]) -> list[torch.Tensor]:
        """Every hidden state of one document, (length, hidden) each; the first and the last token are global."""
        tokens = torch.tensor([list(ids)])
        is_global = torch.zeros_like(tokens)
        is_global[0, [0, -1]] = 1
        with torch.no_grad():
            out = self.model(
                tokens,
                attention_mask=torch.ones_like(tokens),
                global_attention_mask=is_global,
                output_hidden_states=True,
            )
        return [states[0, : len(ids)] for states in out.hidden_states]

    def seed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The last 4 hidden states summed, then summed over all tokens: (hidden,)."""
        summed = torch.stack(self.hidden_states(ids)[-4:]).sum(0)
        return np.asarray(summed.sum(0).numpy(), np.float32)


def dense_attention(x: torch.Tensor, weights: Mapping[str, torch.Tensor], heads: int, window: int) -> torch.Tensor:
    """One layer's attention of one document, (length, hidden), by a full length x length matrix of scores.

    `weights` are named as below `attention.self.` in the reference: query, key, value and their `_global` twins.
    """
    length, hidden = x.shape

    def project(name: str) -> torch.Tensor:  # (heads, length, head_dim)
        out = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return out.view(length, heads, hidden // heads).transpose(0, 1)

    def attend(suffix: str, allowed: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(part + suffix) for part in ("query", "key", "value"))
        scores = q @ k.transpose(1, 2) / (hidden // heads) ** 0.5
        return torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1) @ v

    place = torch.arange(length)
    is_global = (place == 0) | (place == length - 1)
    near = (place[:, None] - place[None, :]).abs() <= window // 2
    local = attend("", near | is_global[None, :])
    everywhere = attend("_global", torch.ones(length, length, dtype=torch.bool))
    return torch.where(is_global[None, :, None], everywhere, local).transpose(0, 1).reshape(length, hidden)


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest over the rows of |found - wanted| / |wanted|."""
    difference = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1)
    return float((difference / np.linalg.norm(wanted, axis=-1)).max())


def cosine(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The smallest over the rows of their cosine similarity."""
    products = (found.astype(np.float64) * wanted).sum(-1)
    return float((products / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)).min())
