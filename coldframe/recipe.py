"""Recipes: how the token states of a document become one vector.

A recipe says which hidden layers are summed, how their tokens are pooled, whether the vector is brought to unit
length, and whether the corpus mean is removed. The first three are the encoder's business (`Pooler`); the mean
belongs to a corpus, is fitted by the indexer, stored in the generation and applied by `Placement`, to articles and
to queries alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

Pooling = Literal["sum", "mean", "first"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Layers, pooling, normalisation and centring."""

    name: str
    layers: int
    """The last so many hidden states are summed (1: the last layer alone; the embedding layer counts as the first)."""
    pooling: Pooling
    """Over a document's tokens: their sum, their mean, or the first token ([CLS], <s>) alone."""
    normalize: bool
    """Whether the encoder returns vectors of unit length."""
    centre: bool = False
    """Whether an index removes the corpus mean before it compares vectors."""

    def describe(self) -> dict[str, object]:
        """The settings that change numbers, for fingerprints and manifests."""
        return {"layers": self.layers, "pooling": self.pooling, "normalize": self.normalize, "centre": self.centre}


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # The notebook that Coldframe grew from: last 4 layers summed, tokens summed, raw length kept.
        Recipe("seed", layers=4, pooling="sum", normalize=False),
        Recipe("seed-centred", layers=4, pooling="sum", normalize=False, centre=True),
        # What sentence encoders are trained for.
        Recipe("mean", layers=1, pooling="mean", normalize=True),
        Recipe("mean-centred", layers=1, pooling="mean", normalize=True, centre=True),
        Recipe("first", layers=1, pooling="first", normalize=True),
    )
}


def named(name: str) -> Recipe:
    """The recipe of that name. Raises InvalidArgument for a name that is none."""
    if name not in RECIPES:
        raise InvalidArgument(
            f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}, or none for the model's own",
            field="recipe",
        )
    return RECIPES[name]


@dataclass(slots=True)
class Pooler:
    """Collects what a recipe needs while the layers run, so that no hidden state outlives its layer.

    Sums run in fp32 whatever the layers compute in: over 4,096 tokens bf16 would lose half its digits.
    """

    recipe: Recipe
    bounds: Sequence[tuple[int, int]]
    """Where each document starts and ends in the packed tokens."""
    total_states: int
    """How many hidden states will be seen: the embedding layer's and one per layer."""
    _seen: int = 0
    _pooled: torch.Tensor | None = field(default=None)

    def see(self, states: torch.Tensor) -> None:
        """Takes the next hidden state, (tokens, hidden)."""
        self._seen += 1
        if self._seen <= self.total_states - self.recipe.layers:
            return
        part = self._pool(states)  # (documents, hidden)
        self._pooled = part if self._pooled is None else self._pooled + part

    def _pool(self, states: torch.Tensor) -> torch.Tensor:
        import torch

        if self.recipe.pooling == "first":
            firsts = [start for start, _ in self.bounds]
            return states[firsts].float()  # (documents, hidden)
        sums = torch.stack([states[start:end].sum(0, dtype=torch.float32) for start, end in self.bounds])
        if self.recipe.pooling == "sum":
            return sums
        lengths = torch.tensor([end - start for start, end in self.bounds], device=states.device)
        return sums / lengths[:, None]

    def vectors(self) -> torch.Tensor:
        """The pooled vectors, fp32, (documents, hidden)."""
        import torch

        assert self._pooled is not None, "no hidden state was seen"
        if not self.recipe.normalize:
            return self._pooled
        return torch.nn.functional.normalize(self._pooled, dim=-1, eps=1e-12)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length one, (n, dim); a vector of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Placement:
    """From the encoder's space to the index's: the unit sphere, the corpus mean removed where the recipe says so.

    Summed vectors grow with the length of the text, and raw distances then rank by length: an index compares
    directions, whatever the recipe.
    """

    mean: NDArray[np.float32] | None = None
    """(dim,), the mean of the corpus's unit vectors; None for recipes that do not centre."""

    @classmethod
    def fit(cls, recipe: Recipe, vectors: NDArray[np.float32], *, rows: int = 65_536) -> Placement:
        """Fits on a corpus, (n, dim), in blocks of `rows` so that a memory-mapped array stays on disk."""
        if not recipe.centre:
            return cls()
        total = np.zeros(vectors.shape[1], np.float64)
        for start in range(0, len(vectors), rows):
            total += unit(vectors[start : start + rows]).sum(axis=0, dtype=np.float64)
        return cls((total / len(vectors)).astype(np.float32))

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) -> (n, dim), each of unit length."""
        placed = unit(vectors)
        return placed if self.mean is None else unit(placed - self.mean)
