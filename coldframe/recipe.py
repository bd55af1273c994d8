"""Recipes: how the token states of a document become one vector.

A recipe says which hidden layers are summed, how their tokens are pooled, whether the vector is brought to unit
length, whether a sketch of the text's words stands beside it, and whether the corpus mean is removed. All but the
last are the encoder's business (`Pooler`); the mean belongs to a corpus, is fitted by the indexer, stored in the
generation and applied by `Placement`, to articles and to queries alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

Pooling = Literal["sum", "mean", "first", "lead"]

# Measured, see docs/decisions/0015-minilm-recipe.md.
LEAD = 128
"""Tokens after which a token's weight under "lead" has halved: token i counts LEAD / (LEAD + i)."""
COMMONEST_ID = 1_996
"""Where the words begin in BERT's vocabularies, the commonest first; specials, letters and signs come before them."""
RARE = 100
"""The rank at which a word piece counts half: piece of rank r counts r / (r + RARE)."""
WORDS_SHARE = 0.125
"""What the word sketch adds to the cosine of two texts, the token states adding the rest. Once the corpus mean is
removed it is more: the mean holds most of what token states have in common, and little of the words."""
_BUCKETS = 8
_PIECES = 2**31  # more than any vocabulary has
# The variance of unit vectors under which they are one direction and rounding.
_ONE_DIRECTION = 1e-6
MEAN = "mean.npy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Layers, pooling, normalisation, centring, and whether the words themselves are looked at too."""

    name: str
    layers: int
    """The last so many hidden states are summed (1: the last layer alone; the embedding layer counts as the first)."""
    pooling: Pooling
    """Over a document's tokens: their sum, their mean, the first token ([CLS], <s>) alone, or the "lead": token
    states at unit length, weighted by LEAD / (LEAD + i), since an article says first what it is about."""
    normalize: bool
    """Whether the encoder returns vectors of unit length."""
    centre: bool = False
    """Whether an index removes the corpus mean before it compares vectors."""
    words: int = 0
    """Width of the sketch of the text's word pieces that stands beside the token states; 0 for none."""

    def dim(self, hidden: int) -> int:
        """Length of the vectors that a model of that hidden size gives."""
        return hidden + self.words

    def describe(self) -> dict[str, object]:
        """The settings that change numbers, for fingerprints and manifests."""
        settings: dict[str, object] = {
            "layers": self.layers,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "centre": self.centre,
        }
        if self.pooling == "lead":
            settings["lead"] = LEAD
        if self.words:
            settings["words"] = [self.words, _BUCKETS, WORDS_SHARE, COMMONEST_ID, RARE]
        return settings


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
        # For articles: their beginning counts more, and the words stand beside what the layers made of them.
        Recipe("lead", layers=3, pooling="lead", normalize=True, centre=True),
        Recipe("lead-words", layers=3, pooling="lead", normalize=True, centre=True, words=384),
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
    """Where each document starts and ends in the token matrix."""
    total_states: int
    """How many hidden states will be seen: the embedding layer's and one per layer."""
    ids: torch.Tensor | None = None
    """The token ids, (rows,); recipes with words need them."""
    _seen: int = 0
    _pooled: torch.Tensor | None = field(default=None)
    _shares: torch.Tensor | None = field(default=None)

    def see(self, states: torch.Tensor) -> None:
        """Takes the next hidden state, (rows, hidden)."""
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
        if self._shares is None:
            self._shares = self._weigh(states)
        states = states.float()  # (rows, hidden)
        if self.recipe.pooling == "lead":
            states = torch.nn.functional.normalize(states, dim=-1)
        return self._shares @ states  # (documents, hidden)

    def _weigh(self, states: torch.Tensor) -> torch.Tensor:
        """What each row counts in each document, (documents, rows)."""
        import torch

        document, place, row = places(self.bounds, states.device)  # (tokens,) each
        weights = lead_weights(place) if self.recipe.pooling == "lead" else torch.ones_like(place, dtype=torch.float32)
        shares = torch.zeros(len(self.bounds), len(states), device=states.device)
        shares[document, row] = weights
        return shares if self.recipe.pooling == "sum" else shares / shares.sum(1, keepdim=True)

    def vectors(self) -> torch.Tensor:
        """The pooled vectors, fp32, (documents, recipe.dim(hidden))."""
        import torch

        assert self._pooled is not None, "no hidden state was seen"
        if not self.recipe.normalize:
            return self._pooled
        states = torch.nn.functional.normalize(self._pooled, dim=-1, eps=1e-12)
        if not self.recipe.words:
            return states
        assert self.ids is not None, "a recipe with words needs the token ids"
        sketch = word_sketch(self.ids, self.bounds, self.recipe.words)
        return torch.cat([states * math.sqrt(1 - WORDS_SHARE), sketch * math.sqrt(WORDS_SHARE)], dim=-1)


def places(
    bounds: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The document of each token, its place there and its row, (tokens,) each, document by document."""
    import torch

    starts, ends = torch.tensor(bounds).unbind(1)  # (documents,) each
    lengths = ends - starts
    document = torch.arange(len(bounds)).repeat_interleave(lengths)  # on a GPU the host would wait for its size
    place = torch.arange(len(document)) - (lengths.cumsum(0) - lengths)[document]
    return document.to(device), place.to(device), (starts[document] + place).to(device)


def lead_weights(place: torch.Tensor) -> torch.Tensor:
    """The weight of tokens by their places in a document: 1 for the first, at place 0."""
    return LEAD / (LEAD + place.float())


def word_sketch(ids: torch.Tensor, bounds: Sequence[tuple[int, int]], width: int) -> torch.Tensor:
    """Bags of word pieces in few dimensions, each of unit length, (documents, width).

    A piece counts log(1 + the lead weights of its occurrences) times its rarity, which its id tells: vocabularies are
    ordered by frequency, so nothing has to be fitted on a corpus. Signed hashing (sparse Johnson-Lindenstrauss: Kane
    and Nelson 2014) keeps the cosine of two bags up to an error of about 1 / sqrt(width). A document's first and last
    tokens are special ones and no words; without any word the sketch is zero.
    """
    import torch

    document, place, row = places(bounds, ids.device)  # (tokens,) each
    ids = ids[row]
    lengths = torch.tensor([end - start for start, end in bounds], device=ids.device)
    words = (place > 0) & (place < lengths[document] - 1)
    # A piece of one document is a number of its own, so that all documents are counted at once.
    numbers = document[words] * _PIECES + ids[words]
    numbers, inverse = torch.unique(numbers, return_inverse=True)  # (pieces,), (words,)
    document, pieces = numbers // _PIECES, numbers % _PIECES
    lead = lead_weights(place[words]).double()
    counts = torch.zeros(len(pieces), dtype=torch.float64, device=ids.device).index_add_(0, inverse, lead)
    rank = (pieces - COMMONEST_ID + 1).clamp(min=1).double()
    weights = torch.log1p(counts) * rank / (rank + RARE)  # (pieces,)
    hashed = _hash(pieces[:, None] * _BUCKETS + torch.arange(_BUCKETS, device=ids.device))  # (pieces, _BUCKETS)
    signs = 1 - 2 * (hashed & 1).double()
    rows = document[:, None] * width + (hashed >> 1) % width
    sketches = torch.zeros(len(bounds) * width, dtype=torch.float64, device=ids.device)
    sketches.index_add_(0, rows.flatten(), (weights[:, None] * signs).flatten())
    return torch.nn.functional.normalize(sketches.view(-1, width), dim=-1).float()


def _hash(keys: torch.Tensor) -> torch.Tensor:
    """Well mixed 32-bit numbers, the same on every machine: the finaliser of MurmurHash3."""
    h = keys + 1  # 0 would stay 0
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF  # int64 wraps around, which leaves the low 32 bits right
    return h ^ (h >> 16)


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
    def fit(cls, recipe: Recipe, vectors: NDArray[np.float32], *, rows: int = 4_096) -> Placement:
        """Fits on a corpus, (n, dim), in blocks of `rows` so that a memory-mapped array stays on disk.

        A corpus of one direction, such as one text, is its own mean: nothing would be left, so nothing is removed.
        """
        if not recipe.centre or not len(vectors):
            return cls()
        total = np.zeros(vectors.shape[1], np.float64)
        for start in range(0, len(vectors), rows):
            total += unit(vectors[start : start + rows]).sum(axis=0, dtype=np.float64)
        mean = total / len(vectors)
        if mean @ mean > 1 - _ONE_DIRECTION:
            return cls()
        return cls(mean.astype(np.float32))

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) -> (n, dim), each of unit length."""
        placed = unit(vectors)
        return placed if self.mean is None else unit(placed - self.mean)

    def undone(self, placed: NDArray[np.float32]) -> NDArray[np.float32]:
        """What was placed, (n, dim), where it was on the unit sphere before; what was the mean itself comes back as it.

        For generations to be compared: each took another mean away, and with it what their corpora differ by.
        """
        if self.mean is None:
            return placed
        along = placed @ self.mean  # (n,)
        # The sphere's point from which the mean leads in this direction: |mean + t placed| = 1, t > 0.
        length = np.sqrt(along**2 + (1 - self.mean @ self.mean)) - along
        back: NDArray[np.float32] = self.mean + length[:, None] * placed
        return back

    @classmethod
    def load(cls, directory: Path) -> Placement:
        """What `save` wrote. Raises OSError or ValueError for a file that cannot be read."""
        file = directory / MEAN
        return cls(np.load(file, allow_pickle=False) if file.is_file() else None)

    def save(self, directory: Path) -> None:
        """Writes the mean where there is one, as MEAN in the directory."""
        if self.mean is not None:
            np.save(directory / MEAN, self.mean)
