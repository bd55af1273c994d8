"""How far the encoder's numbers are from the reference's: python -m benchmarks.parity [--model minilm]

Recipe "seed" at every length where the attention changes its form, each document alone and all in one call in
shuffled order, against transformers.LongformerModel in fp32. Processors without bf16 take minutes for that part.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.machine import in_precisions
from coldframe import models
from coldframe.recipe import RECIPES
from tests.oracle import LENGTHS, Reference, cosine, relative_error


def main() -> None:
    """Print the largest relative error and the smallest cosine of each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    model = models.load(parser.parse_args().model)
    documents = [_document(model, length) for length in LENGTHS]
    reference = Reference(model.config, model.weights)
    wanted = np.stack([reference.seed(ids) for ids in documents])
    order = np.random.default_rng(0).permutation(len(documents))
    print(f"{model.name}, recipe seed, lengths {', '.join(map(str, LENGTHS))}")
    for precision, encoder in in_precisions(model, RECIPES["seed"], ("fp32", "bf16")):
        alone = np.concatenate([encoder.embed_ids([ids]) for ids in documents])
        packed = encoder.embed_ids([documents[n] for n in order])
        for name, found, true in (("alone", alone, wanted), ("packed", packed, wanted[order])):
            error, angle = relative_error(found, true), cosine(found, true)
            print(f"{precision} {name:6}  relative error at most {error:.1e}  cosine at least {angle:.7f}")


def _document(model: models.Model, length: int) -> list[int]:
    assert model.tokenizer is not None, "the benchmark takes its special tokens from there"
    special = model.tokenizer.encode("").ids
    body = np.random.default_rng(length).integers(1000, model.config["vocab_size"], max(length - 2, 0)).tolist()
    return [special[0], *body, special[-1]][:length]


if __name__ == "__main__":
    main()
