"""What a build will take of time, memory and disk, before it takes it; and whether there is room for it.

`python -m indexer build --dry-run` reads the corpus for some seconds, to its end if it comes to it, and runs the model
over some of its texts. A build itself asks once more when it has read its corpus and knows its size (`require_room`).
"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Table

from coldframe.articles import excerpt
from coldframe.errors import FailedPrecondition, InvalidArgument
from coldframe.generation import ARTICLES, INDEX, VECTORS
from coldframe.storage import storage_bytes
from coldframe.text import article_text, text_digest
from indexer import cache
from indexer.choose import storages
from indexer.corpus import Article
from indexer.fold import live_changes
from indexer.plan import counted, plan
from indexer.progress import forget_peak_memory, peak_memory_mib
from indexer.train import choose_clusters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from coldframe.store import Store
    from indexer.corpus import Reject
    from indexer.draft import Build
    from indexer.plan import BuildConfig, Job
    from indexer.progress import Reporter

_READ_S = 10.0
_PROBE_TEXTS = 200
_PROBE_TOKENS = 16_384
_DIGESTS_PER_QUESTION = 4_096
# Beside texts and vectors: of an article in the scratch file, in the table, and of a text in the cache.
_ROW_SCRATCH, _TABLE_ROW, _CACHE_ROW = 200, 90, 110
_NOT_FULL = 1.05  # pages of SQLite's
_REPORT_BYTES = 2_000_000
_ROW_SHARES = 24  # bytes per article that the job holds at once: lengths, cluster, similarity, date
_READ_MIB, _WORDS_MIB = 48, 200
# What thousands of texts leave in a process and a few do not: shapes that oneDNN keeps, kernels that are compiled,
# pieces that malloc keeps. Of 60,000 short articles it was 283 (minilm in bf16).
_SETTLED_MIB = 300
_PRODUCTS_PER_S, _COMPONENTS_PER_S, _HASHED_BYTES_PER_S, _DESCRIBE_S = 2e10, 4e8, 4e8, 4e-4


# --- what there is ---------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """A corpus, or its beginning, in numbers."""

    rows: int = 0
    articles: int = 0
    chars: int = 0
    """Of all texts that are embedded, each once."""
    source_bytes: int = 0
    """Of the fields as they are stored."""
    table_bytes: int = 0
    """Of ids, titles, excerpts and attributes."""
    seconds: float = 0.0
    share: float | None = 1.0
    """How much of the corpus this is, by bytes as they are stored; None where nobody knows, and 1.0 for all of it."""
    digests: set[bytes] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    """Some, each as likely as any other (reservoir sampling; Vitter 1985, algorithm R)."""

    def add(self, row: Article | Reject, kept: random.Random) -> None:
        """Counts a row."""
        self.rows += 1
        if not isinstance(row, Article):
            return
        self.articles += 1
        text = article_text(row.title, row.content)
        attributes = sum(len(name) + len(value) for name, value in row.attributes.items())
        self.source_bytes += len(text.encode()) + attributes
        self.table_bytes += len(row.id) + len(row.title) + len(excerpt(row.content)) + attributes + _TABLE_ROW
        if (digest := text_digest(text)) in self.digests:
            return
        self.digests.add(digest)
        self.chars += len(text)
        place = kept.randrange(len(self.digests))
        if len(self.texts) < _PROBE_TEXTS:
            self.texts.append(text)
        elif place < _PROBE_TEXTS:
            self.texts[place] = text


# --- what it takes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """Bytes that a build writes, by file, and of them those that are gone when it has ended."""

    files: Mapping[str, int]
    scratch: int

    @property
    def total(self) -> int:
        """At the fullest moment."""
        return sum(self.files.values()) + self.scratch


def disk_for(job: Job, *, rows: int, missing: int, table_bytes: int, scratch: int) -> Disk:
    """Of so many articles, so many texts of which the cache has not. Raises InvalidArgument where no storage fits."""
    dim = job.encoder.dim
    storage = storages(rows, dim, job.config.budgets())[0]
    files = {
        VECTORS: 4 * dim * rows,
        INDEX: storage_bytes(storage, rows, dim),
        ARTICLES: table_bytes,
        "report.html, clusters.json": _REPORT_BYTES,
        cache.CACHE: int(_NOT_FULL * missing * (4 * dim + _CACHE_ROW)),
    }
    return Disk(files, scratch)


def free_bytes(store: Store) -> int:
    """Room on the disk that a store lies on, or will lie on."""
    path = store.path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_room(build: Build) -> None:
    """Asks once more when the corpus is read and its size known, and before hours have gone into it.

    Raises FailedPrecondition if the disk is too small for what is still to be written, InvalidArgument if the memory
    budget is too small for any index of it.
    """
    job, rows = build.job, build.record("read")["articles"]
    with build.spool() as spool:
        missing = spool.distinct() - _cached(job, (text.digest for text in spool.texts()))
    disk = disk_for(job, rows=rows, missing=max(missing, 0), table_bytes=_TABLE_ROW * rows, scratch=_ROW_SCRATCH * rows)
    written = sum(path.stat().st_size for path in build.out.iterdir())
    _refuse(job.store, disk.total - written)


def _refuse(store: Store, needed: int) -> None:
    free = free_bytes(store)
    if needed > free:
        raise FailedPrecondition(
            f"the build will write about {decimal(needed)}, and the disk of {store.path} has room for {decimal(free)}. "
            f"Make room (python -m indexer prune --help), or build into a store on another disk"
        )


def _cached(job: Job, digests: Iterable[bytes]) -> int:
    """How many of the texts have a vector in the cache."""
    asked, found = iter(digests), 0
    while batch := list(islice(asked, _DIGESTS_PER_QUESTION)):
        found += cache.count(job.cache, job.space, batch)
    return found


# --- a dry run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What `--dry-run` shows."""

    job: Job
    share: float | None
    """Of the corpus that was looked at, as `Sample` has it."""
    articles: int
    clusters: int
    missing: int
    """Texts to embed."""
    tokens: int
    """Of those."""
    tokens_per_s: float
    disk: Disk
    seconds: Mapping[str, float]
    memory_mib: Mapping[str, float]
    live: tuple[int, int]
    """Changes of live articles that will be folded in, and of them those that the current generation has not."""

    def show(self, console: Console) -> None:
        """Prints the plan; raises FailedPrecondition in the end where the disk is too small for it."""
        about = "at least " if self.share is None else "about " if self.share < 1 else ""
        config, encoder = self.job.config, self.job.encoder
        table = Table(box=None, show_header=False)
        table.add_row("corpus", f"{counted(self.job.sources)}, {about}{self.articles:,} articles")
        if self.live[0]:
            table.add_row("live", f"{self.live[0]:,} changes, {self.live[1]:,} of them since the current generation")
        table.add_row("model", f"{encoder.name}, recipe {encoder.recipe.name}, {encoder.precision}, {encoder.device}")
        table.add_row("texts", f"{about}{self.missing:,} to embed, the others are in the cache")
        table.add_row("tokens", f"about {self.tokens:,}, {self.tokens_per_s:,.0f} a second")
        storage = storages(self.articles, encoder.dim, config.budgets())[0]
        table.add_row("index", f"{self.clusters:,} clusters, {storage}, {decimal(self.disk.files[INDEX])}")
        console.print(table)
        phases = Table("phase", "about", "memory", box=None)
        for phase, seconds in self.seconds.items():
            phases.add_row(phase, _duration(seconds), f"{self.memory_mib[phase]:,.0f} MiB")
        console.print(phases)
        disk = Table("disk", "about", box=None)
        for name, size in [*self.disk.files.items(), ("while it builds", self.disk.scratch)]:
            disk.add_row(name, decimal(size))
        console.print(disk)
        console.print(f"{_duration(sum(self.seconds.values()))}, and {decimal(self.disk.total)} on the disk")
        _refuse(self.job.store, self.disk.total)
        console.print("nothing was built; leave --dry-run away to build it")


def estimate(config: BuildConfig, reporter: Reporter) -> Estimate:
    """Looks at the corpus, the cache and the model. Raises InvalidArgument for what cannot be built at all."""
    job = plan(config, reporter)
    with reporter.phase("look"):
        sample = look(job)
        share = sample.share or 1.0
        articles = max(1, round(sample.articles / share))
        distinct = max(1, round(len(sample.digests) / share))
        if sample.share == 1.0:
            config.require_enough_texts(distinct)
        missing = round(distinct * (1 - _cached(job, sample.digests) / max(len(sample.digests), 1)))
    with reporter.phase("probe"):
        forget_peak_memory()
        tokens_per_text, tokens_per_s = probe(job, sample)
        embedding_mib = peak_memory_mib()
    tokens = round(missing * tokens_per_text)
    table_bytes, scratch = (round(part / share) for part in (sample.table_bytes, sample.source_bytes))
    scratch += _ROW_SCRATCH * articles
    disk = disk_for(job, rows=articles, missing=missing, table_bytes=table_bytes, scratch=scratch)
    dim, clusters = job.encoder.dim, choose_clusters(articles, config.clusters, None)
    seconds = _seconds(sample.seconds / share, tokens / tokens_per_s, rows=articles, dim=dim, clusters=clusters)
    memory_mib = _memory_mib(embedding_mib, disk.files[INDEX], rows=articles, dim=dim, clusters=clusters)
    live = live_changes(job)
    return Estimate(
        job, sample.share, articles, clusters, missing, tokens, tokens_per_s, disk, seconds, memory_mib, live
    )


def look(job: Job) -> Sample:
    """Reads the corpus for `_READ_S`; its articles are counted, some of its texts kept."""
    sample, kept = Sample(), random.Random(job.config.seed)  # noqa: S311  # a sample, and no secret
    start = time.perf_counter()
    for row in job.read():
        sample.add(row, kept)
        if time.perf_counter() - start > _READ_S:
            sample.share = job.share_read(row)
            break
    sample.seconds = time.perf_counter() - start
    return sample


def probe(job: Job, sample: Sample) -> tuple[float, float]:
    """Tokens per text, and tokens per second, of some texts as they come."""
    encoder = job.encoder
    tokens = encoder.tokenize(sample.texts)
    if not tokens:
        raise InvalidArgument("the corpus has no article that can be used; see what a build says", field="corpus")
    chosen, total = [], 0
    for token in tokens:
        if total < _PROBE_TOKENS:
            chosen.append(token.ids)
            total += token.used
    encoder.embed_ids(chosen[:1])
    start = time.perf_counter()
    encoder.embed_ids(chosen)
    return sum(token.used for token in tokens) / len(tokens), total / (time.perf_counter() - start)


def _seconds(reading: float, embedding: float, *, rows: int, dim: int, clusters: int) -> dict[str, float]:
    """By phase. What is not measured is a rough guess."""
    products = min(rows, 256 * clusters) * clusters * dim * 25
    return {
        "read": 2 * reading,
        "embed": embedding,
        "train": products / _PRODUCTS_PER_S + 1,
        "add": rows * dim / _COMPONENTS_PER_S,
        "describe": rows * _DESCRIBE_S,
        "measure": 500 * rows * dim / _PRODUCTS_PER_S + 1,
        "publish": 3 + rows * dim * 8 / _HASHED_BYTES_PER_S,
    }


def _memory_mib(embedding: float, index_bytes: int, *, rows: int, dim: int, clusters: int) -> dict[str, float]:
    """By phase, pages of mapped files aside: what the model takes stays, and each phase adds its own."""
    by_row = _ROW_SHARES * rows / 2**20
    embedding += _SETTLED_MIB
    return {
        "read": embedding + _READ_MIB,
        "embed": embedding + _READ_MIB + by_row,
        "train": embedding + by_row + 2 * min(rows, 256 * clusters) * dim * 4 / 2**20,
        "add": embedding + by_row + index_bytes / 2**20,
        "describe": embedding + 4 * by_row + _WORDS_MIB,
        "measure": embedding + by_row,
        "publish": embedding + by_row + _WORDS_MIB,
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5_400 else f"{seconds / 3_600:,.1f} h"
