"""What a batch may cost beside computing: python -m benchmarks.batches --corpus FILE [--part mixed|memory|file] ...

mixed:  1,000 texts of 50 tokens, one of them of 4,096 instead, against the two kinds alone. The bar: 1.1 times the sum.
memory: the process's peak while `Encoder.embed` takes 1,000 and then 10,000 articles of the corpus, begun again where
        it ends. The bar: 1.2 times.
file:   read, tokenized, computed and written as the rebuild job does it, against computing the same tokens alone. The
        bar: 1.05 times.
Each ratio is the median over the repeats, which run in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.encoder import Documents, random_base, timed
from benchmarks.machine import Peak, describe
from coldframe import models
from coldframe.encoder import Encoder
from coldframe.text import article_text
from indexer.cache import Cache, Space
from indexer.corpus import Article, Columns, find_sources, read
from indexer.embed import Lengths, Rows, compute, reuse
from indexer.spool import Spool, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldframe.precision import Precision

PARTS = ("mixed", "memory", "file")


def main() -> None:
    """Print a line per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--architecture", choices=("base", "minilm"), default="minilm")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="bf16")
    parser.add_argument("--articles", type=int, default=200, help="of the corpus, for the file")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    parts = args.part or PARTS
    encoder = load(args.architecture, args.precision)
    print(f"{describe()}\n{args.architecture} in {encoder.precision}")
    if "mixed" in parts:
        mixed(encoder, args.repeats)
    if "memory" in parts:
        memory(encoder, [article_text(row.title, row.content) for row in articles(args.corpus)])
    if "file" in parts:
        file(encoder, articles(args.corpus)[: args.articles], args.repeats)


def load(architecture: str, precision: Precision) -> Encoder:
    """The base architecture reads the word pieces of the smaller model."""
    if architecture == "minilm":
        return Encoder.load("minilm", precision=precision, device="cpu")
    base = random_base()
    tokenizer = models.read_tokenizer(models.locate("minilm"), "minilm")
    model = models.Model(base.name, base.config, base.weights, tokenizer, base.recipe)
    return Encoder(model, base.recipe, precision, "cpu")


def mixed(encoder: Encoder, repeats: int) -> None:
    """One long text among many short ones."""
    rng = np.random.default_rng(0)
    short = [rng.integers(1000, 30_000, 50).tolist() for _ in range(999)]
    long = rng.integers(1000, 30_000, 4096).tolist()
    both = [*short[:500], long, *short[500:]]
    encoder.embed_ids(both[480:520])
    seconds = [[timed(encoder.embed_ids, part) for part in (short, [long], both)] for _ in range(repeats)]
    ratio = statistics.median(together / (few + one) for few, one, together in seconds)
    few, one, together = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"mixed: 999 short {few:.2f} s, one long {one:.2f} s, together {together:.2f} s: {ratio:.3f} times the sum")


def memory(encoder: Encoder, corpus: Sequence[str]) -> None:
    """The peak of the whole process, model included."""
    peaks = []
    for count in (1_000, 10_000):
        given = list(itertools.islice(itertools.cycle(corpus), count))
        with Peak() as peak:
            encoder.embed(given)
        peaks.append(peak.whole_mib)
    few, many = peaks
    print(f"memory: 1,000 articles {few:,.0f} MiB, 10,000 articles {many:,.0f} MiB: {many / few:.3f} times")


def file(encoder: Encoder, chosen: Sequence[Article], repeats: int) -> None:
    """The job's own reading and embedding, with a new cache each time, and the same chunks of tokens computed alone."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "corpus.jsonl")
        rows = ({"id": article.id, "title": article.title, "content": article.content} for article in chosen)
        corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        computed: list[Documents] = []
        embed_file(Recording(encoder, computed), corpus, Path(name, "first"))
        for n in range(repeats):
            whole = timed(lambda into: embed_file(encoder, corpus, into), Path(name, str(n)))
            seconds.append((whole, timed(lambda chunks: list(map(encoder.embed_ids, chunks)), computed)))
    whole, alone = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(one / other for one, other in seconds)
    print(f"file: {len(chosen)} articles {whole:.2f} s, computing alone {alone:.2f} s: {ratio:.3f} times")


class Recording:
    """An encoder that keeps the chunks of token ids which it was given."""

    def __init__(self, encoder: Encoder, chunks: list[Documents]) -> None:
        self._encoder, self._chunks = encoder, chunks

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def embed_ids(self, documents: Documents) -> object:
        """The encoder's own."""
        self._chunks.append(documents)
        return self._encoder.embed_ids(documents)


def embed_file(encoder: Any, corpus: Path, into: Path) -> None:
    """What the phases "read" and "embed" of the rebuild job do."""
    into.mkdir()
    with Spool(into / "spool.db") as spool:
        fill(spool, read(find_sources([str(corpus)]), Columns()), into / "rejects.jsonl", max_reject_share=0.0)
        vectors = np.lib.format.open_memmap(into / "vectors.npy", "w+", np.float32, (len(spool), encoder.dim))
        space = Space(encoder.fingerprint, encoder.precision, encoder.dim)
        with Cache(into / "embeddings.db", space, print) as cache:
            rows = Rows(spool, vectors, Lengths.of(len(spool)))
            compute(encoder, reuse(cache, rows), cache, rows, lambda *_: None)
        vectors.flush()


def articles(corpus: str) -> list[Article]:
    """All that can be used, in an order drawn at random."""
    rows = [row for row in read(find_sources([corpus]), Columns()) if isinstance(row, Article)]
    return [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]


if __name__ == "__main__":
    main()
