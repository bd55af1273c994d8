"""Stores whose vectors are drawn and not computed, and the server that serves them: what other benchmarks stand on.

    python -m benchmarks.drawn --rows 100000 --folder DIR

The corpus is that of `benchmarks.scale`, with attributes, and all but embedding is the rebuild job as it is. The
generation carries the fingerprint of the real `minilm`, so that a server serves it and embeds seed texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from benchmarks.scale import Corpus
from coldframe.encoder import Encoder
from coldframe.generation import VECTORS
from coldframe.store import Store
from indexer import build as job
from indexer.corpus import CorpusConfig
from indexer.draft import LENGTHS, begin
from indexer.gates import Limits
from indexer.plan import BuildConfig, Job
from indexer.progress import Reporter
from indexer.publish import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from coldframe.generation import Generation
    from indexer.draft import Build, Record, Say

DIM = 768
QUERIES = 1_000
DRAWS = 1_000
_STORE, _QUERIES = "store", "queries.npy"
_SAID = 3


@dataclass(frozen=True)
class Drawn:
    """Articles that nobody wrote, and questions of the same kind: the last ones drawn, kept out of the index."""

    rows: int
    seed: int = 0

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self.rows + QUERIES, DIM, self.seed)

    @cached_property
    def all_vectors(self) -> NDArray[np.float32]:
        """Of articles and questions, (rows + QUERIES, DIM), as an encoder would give them."""
        return np.concatenate([block for _, block in self._corpus.vectors()])

    @cached_property
    def topics(self) -> NDArray[np.int64]:
        """The topic that each article was drawn about, (rows,)."""
        return np.concatenate([chosen for _, chosen, _ in self._corpus.blocks()])[: self.rows]

    @cached_property
    def draws(self) -> NDArray[np.int64]:
        """A number below `DRAWS` for each article, (rows,), that has nothing to do with its vector."""
        return np.random.default_rng([self.seed, 5]).integers(0, DRAWS, self.rows)

    def articles(self) -> Iterator[dict[str, str]]:
        """As long as articles are in a reply: a headline, an excerpt that is full, four attributes."""
        topics, draws = self.topics.tolist(), self.draws.tolist()
        for n, article in enumerate(islice(self._corpus.articles(), self.rows)):
            said = " ".join([article["content"]] * _SAID)
            yield article | {
                "title": f"{article['title']}: {article['content'][:40]}",
                "content": said,
                "author": f"author {topics[n] % 97} of desk {topics[n] % 7}",
                "url": f"https://news.example/{topics[n]}/{n:08}/{article['title'].replace(' ', '-')}",
                "section": f"s{topics[n]}",
                "draw": str(draws[n]),
            }


def store_of(drawn: Drawn, folder: Path) -> tuple[Store, NDArray[np.float32]]:
    """The store of a corpus, built where the folder has none yet, and the questions in the index's space, (q, DIM)."""
    store = Store(folder / _STORE)
    if store.current() is None:
        build(drawn, folder)
    if not (folder / _QUERIES).exists():
        np.save(folder / _QUERIES, store.open().placement(drawn.all_vectors[drawn.rows :]))
    return store, np.load(folder / _QUERIES)


def queries_path(folder: Path) -> Path:
    """Where `store_of` leaves the questions."""
    return folder / _QUERIES


def build(drawn: Drawn, folder: Path, limits: Limits | None = None) -> None:
    """Builds one generation more in the folder's store, and publishes it unless it is beyond the limits."""
    path = folder / f"articles-{drawn.rows}-{drawn.seed}.jsonl"
    if not path.exists():  # a build that was broken off goes on where it stood, if its corpus is the same file
        with path.with_suffix(".partial").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(article) + "\n" for article in drawn.articles())
        path.with_suffix(".partial").rename(path)
    config = BuildConfig(
        corpus=CorpusConfig([str(path)]), store=folder / _STORE, seed=drawn.seed, limits=limits or Limits()
    )
    encoder = Encoder.load(config.model)
    with begin(
        Job(config, Store(config.store), config.corpus.sources(), encoder, Reporter(Console(stderr=True)))
    ) as building:
        building.phase("read", job.read)
        building.phase("embed", lambda build, say: _place(drawn, build, say))
        building.phase("train", job.train_clusters)
        building.phase("add", job.add)
        building.phase("describe", job.describe_clusters)
        building.phase("measure", job.measure_index)
        publish(building)


def _place(drawn: Drawn, building: Build, say: Say) -> Record:
    shape = (drawn.rows, DIM)
    vectors = np.lib.format.open_memmap(building.out / VECTORS, mode="w+", dtype=np.float32, shape=shape)
    vectors[:] = drawn.all_vectors[: drawn.rows]
    job.place(vectors, building.job.encoder.recipe, building.out)
    lengths = np.full(drawn.rows, 64)
    np.savez(building.draft.path / LENGTHS, seen=lengths, used=lengths)
    say("drawn, not embedded")
    return {"computed": 0, "reused": 0, "tokens": 0, "truncated": 0}


def exact(generation: Generation, queries: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """The true nearest rows of each question, (q, limit), by products of all with all."""
    scores = queries @ np.asarray(generation.index.vectors).T  # (q, rows)
    top = np.argpartition(-scores, limit, axis=1)[:, :limit]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def recall(found: list[set[int]], true: NDArray[np.int64]) -> float:
    """The share of the true nearest rows, (q, limit), that was found."""
    return sum(len(of & set(row.tolist())) for of, row in zip(found, true, strict=True)) / true.size


@contextmanager
def serving(store: Path, log: Path, *options: str) -> Iterator[str]:
    """`python -m server` in a process of its own; yields HOST:PORT."""
    command = [sys.executable, "-m", "server", "--store", str(store), "--listen", "127.0.0.1:0", *options]
    with announced(command, log) as address:
        yield address


@contextmanager
def announced(command: list[str], log: Path) -> Iterator[str]:
    """A server process that prints "listening on HOST:PORT" when it listens; yields the address, and ends it."""
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            line = next((line for line in server.stdout if line.startswith("listening on ")), None)
            if line is None:
                sys.exit(f"{' '.join(command)} ended: {log.read_text(encoding='utf-8')[-2_000:]}")
            yield line.removeprefix("listening on ").strip()
        finally:
            server.terminate()


def main() -> None:
    """Build, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store, _ = store_of(Drawn(args.rows, args.seed), args.folder)
    generation = store.open()
    found = generation.manifest.report["recall_at_10"]
    print(f"{generation.name}: {len(generation.clusters)} clusters; {generation.probes} of them find {found:.4f}")


if __name__ == "__main__":
    main()
