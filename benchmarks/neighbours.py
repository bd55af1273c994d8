"""What rounding costs the neighbours: python -m benchmarks.neighbours --corpus FILE [--model minilm] [--articles N]

Embeds the corpus in fp32, bf16 and int8, and compares what each article's 10 nearest are: how many of the unrounded
model's ten are still there, and how many of the ten carry the article's label. The bars for int8: 95% of the ten, and
less than 0.005 of the agreement. Exact duplicates are left out; `--articles` draws so many of the labelled ones.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe, in_precisions
from coldframe import models
from coldframe.recipe import RECIPES
from indexer.corpus import CorpusConfig
from indexer.evaluate.baselines import Vectors, nearest
from indexer.evaluate.corpus import load
from indexer.evaluate.run import embed
from tests.oracle import cosine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from coldframe.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
NEIGHBOURS = 10


def main() -> None:
    """Print a line per recipe and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--articles", type=int)
    args = parser.parse_args()
    corpus = load(CorpusConfig([args.corpus]), None, args.articles, seed=0)
    model = models.load(args.model)
    recipes = list({recipe.name: recipe for recipe in (model.recipe, RECIPES["mean"], RECIPES["seed"])}.values())
    print(f"{describe()}\n{model.name}, {len(corpus.ids):,} articles")
    print(f"{'recipe':12} {'':5} {'cosine, least':>14} {'of the 10 kept':>15} {'label agreement':>16}")
    exact: dict[str, NDArray[np.float32]] = {}
    for precision, encoder in in_precisions(model, model.recipe, PRECISIONS):
        found = embed(encoder, corpus.texts, recipes, lambda _: None, {})
        exact = exact or found
        for name, vectors in found.items():
            least = cosine(vectors, exact[name])
            kept, agreement = overlap(exact[name], vectors), label_agreement(vectors, corpus.labels)
            print(f"{name:12} {precision:5} {least:14.5f} {kept:15.2%} {agreement:16.4f}", flush=True)


def neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The 10 nearest of each, (n, 10)."""
    return nearest(Vectors(vectors), [(row,) for row in range(len(vectors))], NEIGHBOURS)


def overlap(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """How many of the exact neighbours are found, on average."""
    pairs = zip(neighbours(exact), neighbours(found), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def label_agreement(vectors: NDArray[np.float32], labels: Sequence[str]) -> float:
    """The share of neighbours with the article's own label."""
    known = np.array(labels)
    return float((known[neighbours(vectors)] == known[:, None]).mean())


if __name__ == "__main__":
    main()
