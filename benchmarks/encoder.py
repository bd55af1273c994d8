"""The encoder beside its peers: python -m benchmarks.encoder --corpus FILE [--architecture base|minilm]

In one run, group of articles by group, so that a slow moment of the machine strikes all alike: the notebook's loop
(transformers.LongformerModel, one article at a time, recipe "seed"), sentence-transformers in padded batches, and this
encoder in each precision. The ratio is the median over the groups. How long one text takes, before that. `base` is the
architecture of allenai/longformer-base-4096 with random weights, reading the word pieces of the smaller model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from benchmarks.machine import Peak, describe, gemm_ceiling, in_precisions
from coldframe import models
from coldframe.encoder import Encoder
from coldframe.recipe import RECIPES
from coldframe.text import article_text
from indexer.corpus import Article, Columns, find_sources, read

if TYPE_CHECKING:
    from coldframe.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
LATENCY_LENGTHS = (8, 20, 60, 300, 1000, 4096)
GROUP = 16

Documents = Sequence[Sequence[int]]
Peer = Callable[[Sequence[str]], object]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--architecture", choices=("base", "minilm"), default="base")
    parser.add_argument("--groups", type=int, default=8, help=f"of {GROUP} articles each")
    parser.add_argument("--without-sentence-transformers", action="store_true", help="they take most of the time")
    args = parser.parse_args()
    model = models.load("minilm") if args.architecture == "minilm" else random_base()
    print(describe(), args.architecture, sep="\n")
    encoders: dict[str, Encoder] = dict(in_precisions(model, RECIPES["seed"], PRECISIONS))
    texts = documents(args.corpus, args.groups * GROUP)
    latency(model, encoders)  # as a server has them
    for encoder in encoders.values():
        encoder.compile()  # as an indexer has them, for thousands of articles
    with tempfile.TemporaryDirectory() as directory:
        peer = None if args.without_sentence_transformers else sentence_transformers(model, Path(directory))
        throughput(model, encoders, texts, peer)


def random_base() -> models.Model:
    """allenai/longformer-base-4096 with random weights, and no tokenizer."""
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=50_265,
        attention_window=[512] * 12,
        max_position_embeddings=4_098,
        pad_token_id=1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    weights = transformers.LongformerModel(config, add_pooling_layer=False).state_dict()
    return models.Model("base, random weights", config.to_dict(), weights, None, RECIPES["seed"])


def documents(corpus: str, count: int) -> list[str]:
    """The texts of `count` articles of the corpus, drawn at random."""
    articles = [row for row in read(find_sources([corpus]), Columns()) if isinstance(row, Article)]
    chosen = np.random.default_rng(0).choice(len(articles), min(count, len(articles)), replace=False)
    return [article_text(articles[n].title, articles[n].content) for n in chosen]


def throughput(model: models.Model, encoders: dict[str, Encoder], texts: Sequence[str], peer: Peer | None) -> None:
    """Tokens and articles per second of every way, the ratio to the notebook's, and the share of the GEMM ceiling."""
    docs = [t.ids for t in Encoder.load("minilm", precision="fp32").tokenize(texts)]
    ways: dict[str, Callable[[slice], object]] = {"notebook's loop": over(docs, notebook(model))}
    if peer is not None:
        ways["sentence-transformers"] = lambda group: peer(texts[group])
    ways |= {f"coldframe {precision}": over(docs, encoder.embed_ids) for precision, encoder in encoders.items()}
    groups = [slice(start, start + GROUP) for start in range(0, len(docs), GROUP)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for run in ways.values():
        run(slice(2))
    for group in groups:
        for way, run in ways.items():
            with Peak() as peak:
                seconds[way].append(timed(run, group))
            peaks[way] = max(peaks[way], peak.mib)
    tokens = sum(map(len, docs))
    flops = tokens * linear_flops(model)
    print(f"\n{len(docs)} articles, {tokens:,} tokens, median {statistics.median(map(len, docs)):.0f}")
    print(f"{'':22} {'tokens/s':>9} {'articles/s':>10} {'ratio':>6} {'of GEMM':>8} {'MiB more':>8}")
    for way, spent in seconds.items():
        ratio = statistics.median(n / s for n, s in zip(seconds["notebook's loop"], spent, strict=True))
        share = "-"
        if way.startswith("coldframe"):
            share = f"{flops / sum(spent) / ceiling(model, way.split()[1]):.0%}"
        rates = f"{tokens / sum(spent):9,.0f} {len(docs) / sum(spent):10.2f}"
        print(f"{way:22} {rates} {ratio:5.1f}x {share:>8} {peaks[way]:8,.0f}")


def over(docs: Documents, run: Callable[[Documents], object]) -> Callable[[slice], object]:
    """The same for a part of the documents."""
    return lambda part: run(docs[part])


def timed(run: Callable[[Any], object], given: object) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run(given)
    return time.perf_counter() - start


def notebook(model: models.Model) -> Callable[[Documents], object]:
    """One article at a time through the reference, hidden states summed."""
    from tests.oracle import Reference

    reference = Reference(model.config, model.weights)
    return lambda docs: [reference.seed(ids) for ids in docs]


def sentence_transformers(model: models.Model, directory: Path) -> Peer:
    """The library itself: its own batches of 32, sorted by length and padded; token means."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from tests.oracle import Reference

    Reference(model.config, model.weights).model.save_pretrained(directory)
    tokenizer = models.read_tokenizer(models.locate("minilm"), "minilm")
    fast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=4096
    )
    fast.save_pretrained(directory)
    word_pieces = Transformer(str(directory), max_seq_length=4096)
    peer = SentenceTransformer(modules=[word_pieces, Pooling(model.config["hidden_size"])], device="cpu")
    return lambda texts: peer.encode(list(texts), show_progress_bar=False)


def linear_flops(model: models.Model) -> int:
    """Of one token: the query, key, value and output projections and the feed-forward of every layer."""
    config = model.longformer_config()
    return 2 * config.layers * (4 * config.hidden**2 + 2 * config.hidden * config.intermediate)


def ceiling(model: models.Model, precision: str) -> float:
    """FLOP/s of the same linear layers alone."""
    config = model.longformer_config()
    return gemm_ceiling(config.hidden, config.intermediate, precision)


def latency(model: models.Model, encoders: dict[str, Encoder]) -> None:
    """How long one text takes; the notebook's loop is the median of three calls."""
    loop = notebook(model)
    print(f"ms for one text, p50 / p99\n{'tokens':>6} {'loop':>7} " + " ".join(f"{p:>17}" for p in encoders))
    for length in LATENCY_LENGTHS:
        ids = np.random.default_rng(length).integers(1000, 30_000, length).tolist()
        cells = [f"{statistics.median(1e3 * timed(loop, [ids]) for _ in range(3)):7.0f}" if length <= 60 else f"{'':7}"]
        for encoder in encoders.values():
            calls = 100 if length <= 60 else 20 if length <= 300 else 4
            spent = [1e3 * timed(encoder.embed_ids, [ids]) for _ in range(calls)]
            cells.append(f"{np.percentile(spent, 50):8.1f} /{np.percentile(spent, 99):7.1f}")
        print(f"{length:6} " + " ".join(cells), flush=True)


if __name__ == "__main__":
    main()
