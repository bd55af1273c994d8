"""A rebuild at scale, without a model: what each phase takes of time and memory, and what each storage costs and finds.

    python -m benchmarks.scale --rows 500000 --dim 768 [--storages] [--folder DIR]

Vectors are drawn, and all else is the job as it is: read, train, add, describe, measure, publish. Topics of unequal
size (Zipf) lie around broader subjects; an article lies about its topic at a distance with a heavy tail (log-normal),
in directions of which few carry most (a power law); one in ten repeats the article before it, nearly.

Memory is resident memory, by phase: its peak (VmHWM) and the anonymous part, sampled. The rest are pages of files,
which the system takes back when it needs them. The bar: from train to publish, no phase's peak exceeds 1.3 times the
index file plus 512 MiB for the libraries and a phase's working blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
from rich.console import Console

from coldframe.generation import INDEX, VECTORS
from coldframe.index import ClusterIndex
from coldframe.recipe import named, unit
from coldframe.storage import release
from coldframe.store import Store
from indexer import build as job
from indexer.corpus import CorpusConfig
from indexer.draft import LENGTHS, begin
from indexer.measure import measure
from indexer.plan import BuildConfig, Job
from indexer.progress import Reporter
from indexer.publish import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder
    from coldframe.generation import Generation
    from indexer.draft import Build, Record, Say

_BLOCK = 16_384
_ROWS_PER_TOPIC, _TOPICS_PER_SUBJECT = 200, 40
_REPEATED = 0.1
_DAYS = 60
_WORDS_OF_A_TOPIC, _WORDS_OF_ALL = 40, 20_000
_SAMPLE_S = 0.02
_BAR, _CONSTANT_MIB = 1.3, 512
_JUDGED = ("train", "add", "describe", "measure", "publish")


@dataclass(frozen=True)
class Corpus:
    """Articles that nobody wrote. Every block of rows comes from its own seed: the same whatever was drawn before."""

    rows: int
    dim: int
    seed: int

    def blocks(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
        """(first row, topics, whether a row repeats the one before it)."""
        topics = max(8, self.rows // _ROWS_PER_TOPIC)
        weights = (1.0 + np.arange(topics)) ** -0.7
        for start in range(0, self.rows, _BLOCK):
            count = min(_BLOCK, self.rows - start)
            rng = np.random.default_rng([self.seed, 1, start])
            repeats = (rng.random(count) < _REPEATED) & (np.arange(count) > 0)
            chosen = rng.choice(topics, count, p=weights / weights.sum())
            chosen = chosen[np.maximum.accumulate(np.where(repeats, 0, np.arange(count)))]
            yield start, chosen, repeats

    def vectors(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, vectors of unit length, (block, dim))."""
        rng = np.random.default_rng([self.seed, 2])
        rotation = np.linalg.qr(rng.standard_normal((self.dim, self.dim)))[0]
        spectrum = (1.0 + np.arange(self.dim)) ** -0.5
        basis = (spectrum[:, None] / np.linalg.norm(spectrum) * rotation).astype(np.float32)

        def directions(count: int) -> NDArray[np.float32]:
            drawn: NDArray[np.float32] = rng.standard_normal((count, self.dim), np.float32) @ basis
            return drawn

        topics = max(8, self.rows // _ROWS_PER_TOPIC)
        subjects = directions(max(4, topics // _TOPICS_PER_SUBJECT))
        centres = 0.6 * directions(1) + subjects[rng.integers(0, len(subjects), topics)] + 0.7 * directions(topics)
        for start, chosen, repeats in self.blocks():
            rng = np.random.default_rng([self.seed, 3, start])
            distance = 0.7 * np.exp(0.35 * rng.standard_normal((len(chosen), 1), np.float32))
            vectors = centres[chosen] + distance * directions(len(chosen))
            first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(chosen))))
            vectors = vectors[first] + np.where(repeats[:, None], 0.1, 0).astype(np.float32) * directions(len(chosen))
            yield start, unit(vectors)

    def articles(self) -> Iterator[dict[str, str]]:
        """A dozen words each, most of them of the topic; a repeated article says a few other words."""
        for start, chosen, repeats in self.blocks():
            rng = np.random.default_rng([self.seed, 4, start])
            own = rng.integers(0, _WORDS_OF_A_TOPIC, (len(chosen), 8))
            any_topic = rng.integers(0, _WORDS_OF_ALL, (len(chosen), 6))
            said: list[str] = []
            for n, topic in enumerate(chosen.tolist()):
                if not repeats[n]:
                    said = [*(f"t{topic}w{_letters(word)}" for word in own[n]), *map(_letters, any_topic[n].tolist())]
                content = " ".join([*said, _letters(int(any_topic[n, 0]))])
                published = 1_750_000_000 + int((start + n) * _DAYS * 86_400 / self.rows)
                yield {"id": f"{start + n:08}", "title": f"topic {topic}", "content": content, "date": str(published)}


def _letters(number: int) -> str:
    """A word for a number."""
    return "".join("bcdfghklmnprstvz"[int(digit, 16)] + "a" for digit in f"{number:x}")


class _Watch(Reporter):
    """A reporter that also notes the most anonymous memory of each phase."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.peak_anonymous_mib: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        done = threading.Event()
        samples: list[float] = []

        def sample() -> None:
            while not done.wait(_SAMPLE_S):
                samples.append(_resident_mib("RssAnon"))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            with super().phase(name) as say:
                yield say
        finally:
            done.set()
            thread.join()
        self.peak_anonymous_mib[name] = max([*samples, _resident_mib("RssAnon")])


def _resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def main() -> None:
    """Build, and print the tables; the exit status is 1 if the bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storages", action="store_true", help="also build and measure every storage")
    parser.add_argument("--folder", type=Path, help="where to build, and leave what was built; else a temporary one")
    args = parser.parse_args()
    corpus = Corpus(args.rows, args.dim, args.seed)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        kept = build(corpus, Path(args.folder or folder))
        if args.storages:
            compare(Store(Path(args.folder or folder) / "store").open())
    sys.exit(0 if kept else 1)


def build(corpus: Corpus, folder: Path) -> bool:
    """Runs the job's phases, prints what each took, and says whether the bar was kept."""
    path = folder / "articles.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(article) + "\n" for article in corpus.articles())
    watch = _Watch(Console())
    config = BuildConfig(corpus=CorpusConfig([str(path)]), store=folder / "store", seed=corpus.seed)
    print(f"{corpus.rows:,} x {corpus.dim}; the libraries alone take {_resident_mib('VmRSS'):,.0f} MiB")
    with begin(Job(config, Store(config.store), config.corpus.sources(), _no_encoder(corpus.dim), watch)) as building:
        building.phase("read", job.read)
        building.phase("embed", lambda build, say: _draw_vectors(corpus, build, say))
        building.phase("train", job.train_clusters)
        building.phase("add", job.add)
        building.phase("describe", job.describe_clusters)
        building.phase("measure", job.measure_index)
        index = (building.out / INDEX).stat().st_size / 2**20
        publish(building)
    return _tell(watch, index)


def _no_encoder(dim: int) -> Encoder:
    """What a build asks of an encoder that has nothing to embed."""
    stand_in = SimpleNamespace(
        name="drawn", fingerprint=f"drawn{dim}", precision="fp32", dim=dim, max_tokens=4_096, recipe=named("mean")
    )
    return cast("Encoder", stand_in)


def _draw_vectors(corpus: Corpus, building: Build, say: Say) -> Record:
    shape = (corpus.rows, corpus.dim)
    vectors = np.lib.format.open_memmap(building.out / VECTORS, mode="w+", dtype=np.float32, shape=shape)
    for start, block in corpus.vectors():
        vectors[start : start + len(block)] = block
        release(vectors)
    lengths = np.full(corpus.rows, 16)
    np.savez(building.draft.path / LENGTHS, seen=lengths, used=lengths)
    say("drawn, not embedded")
    return {"computed": 0, "reused": 0, "tokens": 0, "truncated": 0}


def _tell(watch: _Watch, index: float) -> bool:
    allowed = _BAR * index + _CONSTANT_MIB
    print(f"\nindex {index:,.0f} MiB; allowed {_BAR} x {index:,.0f} + {_CONSTANT_MIB} = {allowed:,.0f} MiB")
    print(f"{'phase':9} {'seconds':>8} {'peak MiB':>9} {'anonymous':>10} {'peak/index':>11}")
    for name, peak in watch.peak_memory_mib.items():
        anonymous = watch.peak_anonymous_mib[name]
        print(f"{name:9} {watch.seconds[name]:8.1f} {peak:9,.0f} {anonymous:10,.0f} {peak / index:11.2f}")
    kept = all(watch.peak_memory_mib[name] <= allowed for name in _JUDGED)
    print("the bar is kept" if kept else "THE BAR IS MISSED")
    return kept


def compare(generation: Generation) -> None:
    """Every storage over the same clusters: what its lists take, and what a search that finds 99% of ten costs."""
    index = generation.index
    assignment = generation.articles.clusters().astype(np.int64)
    stories = np.asarray(generation.articles.column("story"))
    print(f"\n{'storage':8} {'MiB':>7} {'built in s':>11} {'lists':>6} {'recall':>7} {'ms':>7}")
    for storage in ["flat", "fp16", "sq8", *(f"pq{index.dim // part}" for part in (4, 8, 16))]:
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder) / INDEX, time.perf_counter()
            ClusterIndex.build(index.centroids, index.vectors, assignment, storage).write(path)
            seconds = time.perf_counter() - start
            built = ClusterIndex.read(path, index.vectors)
            found = measure(built, 0.99, 0, stories=stories)
        print(
            f"{storage:8} {built.bytes / 2**20:7,.0f} {seconds:11.1f} {found.probes:6} {found.recall:7.4f} "
            f"{found.latency_ms:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
