"""Kills builds with SIGKILL, at random moments and once at each boundary, and looks at what is left.

    python -m benchmarks.crash --corpus ../shared/data/reuters21578/articles.csv.gz --kills 200 [--only random]

Builds follow each other over a corpus whose window moves on, in one store without a kill and in one with kills. After
every kill the store must open, and CURRENT name a complete generation whose every file matches its checksum. A build
that is begun again must end with the digest of the undisturbed one, and compute no embedding twice but those of the
chunk that it was killed in.

A boundary is a call by which something reaches the disk, or moves there: fsync, rename, unlink, COMMIT and the like.
The programs know nothing of it: a child replaces these functions of its own process before it builds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from coldframe.encoder import Encoder
from coldframe.store import Store
from coldframe.text import text_digest
from indexer import embed
from indexer.build import BuildConfig, run
from indexer.corpus import Article, CorpusConfig
from indexer.gates import Limits
from indexer.progress import Reporter
from tests.builds import undrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from coldframe.generation import Generation

# Nothing is kept back here: it is the store that is judged, and not the corpus.
ANYTHING = Limits(max_article_loss=1, recall_slack=1, max_empty_share=1, max_cell_share=1, min_survived=0, max_drift=1)
# Less than a build's own, so that even a small corpus has many chunks to be killed between.
_CHARS_PER_CHUNK = 2_048
_KILLS_PER_BUILD = 8
_VERSIONS = 12
# What builds import late, and would each import anew.
_IMPORTED = [
    "indexer.build",
    "indexer.report.page",
    "matplotlib.backends.backend_svg",
    "sklearn.decomposition",
    "sklearn.feature_extraction.text",
    "sklearn.manifold",
]
_CALLS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")


# --- the child: a build that writes down what it computes and dies at a boundary -------------------------------------


@dataclass(frozen=True)
class Work:
    """A build to attempt. `log` is appended to."""

    corpus: Path
    store: Path
    model: str
    log: Path
    die_at: int | None = None
    """Number of the boundary at which to die."""


def attempt(work: Work) -> None:
    """Builds, in a process of its own."""
    if work.die_at is not None:
        _at_boundaries(work)
    _log_what_is_computed(work)
    embed._CHARS_PER_CHUNK = _CHARS_PER_CHUNK
    # The report's figures take longer than all else and write nothing: most kills would come while they are drawn.
    with undrawn(), open(os.devnull, "w", encoding="utf-8") as nowhere:
        run(_config(work), Reporter(Console(file=nowhere)))


def _config(work: Work) -> BuildConfig:
    return BuildConfig(
        corpus=CorpusConfig([str(work.corpus)]), store=work.store, model=work.model, precision="fp32", limits=ANYTHING
    )


def _at_boundaries(work: Work) -> None:
    """Lets each boundary be written down, or the process die before it."""
    numbers = itertools.count()

    def boundary(name: str) -> None:
        if next(numbers) == work.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        _append(work.log, {"boundary": name})

    for name in _CALLS:
        setattr(os, name, _announced(name, getattr(os, name), boundary))
    connect = sqlite3.connect

    def announced(path: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(path, *args, **kwargs)
        file = Path(str(path).partition("?")[0]).name
        db.set_trace_callback(lambda sql: boundary(f"COMMIT {file}") if sql.startswith("COMMIT") else None)
        return db

    sqlite3.connect = announced  # type: ignore[assignment]


def _announced(name: str, call: Callable[..., Any], boundary: Callable[[str], None]) -> Callable[..., Any]:
    def announced(target: Any, *args: Any, **kwargs: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        boundary(f"{name} {_anonymous(Path(path).name)}")
        return call(target, *args, **kwargs)

    return announced


def _anonymous(name: str) -> str:
    """The same for every run: no random and no dated parts."""
    name = re.sub(r"\.[0-9a-f]{32}\.partial$", ".partial", name)
    return re.sub(r"^\d{8}T\d{6}Z-[0-9a-f]+$", "<generation>", name)


def _log_what_is_computed(work: Work) -> None:
    """Before each chunk: which texts, by their token ids."""
    embed_ids = Encoder.embed_ids

    def logged(encoder: Encoder, documents: Sequence[Sequence[int]]) -> Any:
        _append(work.log, {"computed": [text_digest(str(list(ids))).hex() for ids in documents]})
        return embed_ids(encoder, documents)

    Encoder.embed_ids = logged  # type: ignore[assignment, method-assign]


def _append(log: Path, entry: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"process": os.getpid(), **entry}) + "\n")


# --- the parent: starts, kills, looks --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was seen."""

    random_kills: int = 0
    boundary_kills: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    computed: int = 0
    """Embeddings, those computed again among them."""
    twice: int = 0
    largest_chunk: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All of them."""
        return self.random_kills + self.boundary_kills.total()


@dataclass
class Crash:
    """A benchmark under way: the versions of the corpus, and the digest that each must end with."""

    folder: Path
    model: str
    versions: list[Path]
    seed: int
    outcome: Outcome = field(default_factory=Outcome)
    digests: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """What an undisturbed build takes, the first aside."""

    def work(self, version: int, store: Path, die_at: int | None = None) -> Work:
        """The attempt to build a version of the corpus in a store."""
        return Work(self.versions[version], store, self.model, store.with_suffix(".log"), die_at)

    def build_undisturbed(self) -> None:
        """Every version in turn: the digests to come to."""
        for version in range(len(self.versions)):
            start = time.perf_counter()
            ended = _wait(_start(self.work(version, self.folder / "undisturbed")))
            self.seconds = time.perf_counter() - start
            assert ended == 0, "an undisturbed build fails"
            self.digests.append(_current(self.folder / "undisturbed").manifest.digest)
            if version == 0:
                shutil.copytree(self.folder / "undisturbed", self.folder / "first")

    def kill_at_random(self, kills: int) -> None:
        """Builds every version in turn in one store, each killed some times; begins again where versions run out."""
        rng = np.random.default_rng(self.seed)
        for turn in itertools.count():
            for version in range(len(self.versions)):
                if self.outcome.random_kills >= kills:
                    return
                work = self.work(version, self.folder / f"random-{turn}")
                for _ in range(min(_KILLS_PER_BUILD, kills - self.outcome.random_kills)):
                    if not self.killed(work, rng.uniform(0, self.seconds)):
                        break
                    self.outcome.random_kills += 1
                    self.look(work.store, version, "at random")
                self.finish(work, version, "at random")

    @staticmethod
    def killed(work: Work, after_s: float) -> bool:
        """Attempts a build and kills it; False if it was faster."""
        process = _start(work)
        process.join(after_s)
        process.kill()
        return _wait(process) == -signal.SIGKILL

    def kill_at_boundaries(self) -> None:
        """Builds the second version over the first once for every boundary, dying there."""
        store = self.folder / "counted"
        shutil.copytree(self.folder / "first", store)
        _wait(_start(self.work(1, store, die_at=-1)))
        names = [entry["boundary"] for entry in _entries(store.with_suffix(".log")) if "boundary" in entry]
        for number, name in enumerate(names):
            store = self.folder / f"boundary-{number}"
            shutil.copytree(self.folder / "first", store)
            if _wait(_start(self.work(1, store, die_at=number))) != -signal.SIGKILL:
                self.outcome.faults.append(f"{name}: the build did not come to it")
            self.outcome.boundary_kills[name] += 1
            self.look(store, 1, name)
            self.finish(self.work(1, store), 1, name)
            shutil.rmtree(store)

    def look(self, store: Path, version: int, where: str) -> None:
        """Whether the store opens after a kill, and serves the version that was built or the one before."""
        if Store(store).current() is None and version == 0:
            return
        try:
            digest = _current(store).manifest.digest
        except Exception as error:  # whatever it is, the store did not open
            self.outcome.faults.append(f"killed {where}: {error}")
            return
        if digest not in self.digests[max(version - 1, 0) : version + 1]:
            self.outcome.faults.append(f"killed {where}: CURRENT names another generation")

    def finish(self, work: Work, version: int, where: str) -> None:
        """Lets a build end, and looks at its digest and at what all attempts at it computed."""
        ended = _wait(_start(work))
        self.outcome.builds += 1
        if ended != 0 or _current(work.store).manifest.digest != self.digests[version]:
            self.outcome.faults.append(f"killed {where}: the build ends with another digest, or not at all")
        self.count(work.log, where)

    def count(self, log: Path, where: str) -> None:
        """Which embeddings were computed again: only those of the chunk that a process was killed in may be."""
        computed = [entry for entry in _entries(log) if "computed" in entry]
        seen: set[str] = set()
        last: set[str] = set()
        for _, entries in itertools.groupby(computed, key=lambda entry: entry["process"]):
            chunks = [set(entry["computed"]) for entry in entries]
            texts = set().union(*chunks)
            again = texts & seen
            if again - last or sum(map(len, chunks)) != len(texts):
                self.outcome.faults.append(f"killed {where}: an embedding that was committed is computed again")
            self.outcome.computed += len(texts)
            self.outcome.twice += len(again)
            self.outcome.largest_chunk = max(self.outcome.largest_chunk, *map(len, chunks))
            seen |= texts
            last = chunks[-1]
        log.unlink(missing_ok=True)
        print(f"\r{self.outcome.kills} kills, {len(self.outcome.faults)} faults", end="", file=sys.stderr, flush=True)


def _start(work: Work) -> BaseProcess:
    process = _processes().Process(target=attempt, args=(work,))
    process.start()
    return process


def _wait(process: BaseProcess) -> int | None:
    process.join()
    code = process.exitcode
    process.close()
    return code


@cache
def _processes() -> ForkServerContext:
    """Children are forked from a process that has imported everything and computed nothing: they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _current(store: Path) -> Generation:
    """The generation that CURRENT names, every file of it verified."""
    return Store(store).open()


# --- what is built ---------------------------------------------------------------------------------------------------


def write_versions(corpus: Sequence[str], folder: Path, *, rows: int, versions: int) -> list[Path]:
    """Windows of so many articles over a corpus, each a fifth further on, as JSON lines."""
    step = max(rows // 5, 1)
    wanted = rows + step * (versions - 1)
    found = (row for row in CorpusConfig(corpus).read() if isinstance(row, Article))
    articles = list(itertools.islice(found, wanted))
    assert len(articles) == wanted, f"the corpus has {len(articles)} articles, and {wanted} are needed"
    paths = []
    for version in range(versions):
        path = folder / f"version-{version:02}.jsonl"
        window = articles[version * step :][:rows]
        path.write_text("".join(_line(article) for article in window), encoding="utf-8")
        paths.append(path)
    return paths


def _line(article: Article) -> str:
    date = article.published_at and article.published_at.isoformat()
    fields = {"id": article.id, "title": article.title, "content": article.content, "date": date}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def small_model(folder: Path) -> Path:
    """A random Longformer of two narrow layers that reads what minilm reads."""
    import transformers

    from coldframe import models

    tokenizer = models.load("minilm").tokenizer
    assert tokenizer is not None, "the embedded default has one"
    config = transformers.LongformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        attention_window=[64, 64],
        max_position_embeddings=4098,
        pad_token_id=0,
        type_vocab_size=1,
    )
    transformers.set_seed(0)
    transformers.LongformerModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def crash(folder: Path, model: str, versions: list[Path], *, kills: int, only: str | None, seed: int = 0) -> Outcome:
    """Runs it all in a folder; `kills` counts those at boundaries, if they are wanted, and the rest are at random."""
    benchmark = Crash(folder, model, versions, seed)
    benchmark.build_undisturbed()
    if only != "random":
        benchmark.kill_at_boundaries()
    if only != "boundaries":
        benchmark.kill_at_random(kills - benchmark.outcome.kills)
    return benchmark.outcome


def show(outcome: Outcome, seconds: float) -> None:
    """Prints what was seen."""
    table = Table("boundary", "kills", box=None)
    for name, count in outcome.boundary_kills.items():
        table.add_row(name, str(count))
    table.add_row("at random moments", str(outcome.random_kills))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{outcome.kills} kills and {outcome.builds} builds ended in {seconds:,.0f} s")
    console.print(
        f"{outcome.computed:,} embeddings computed, {outcome.twice:,} of them again after a kill; a chunk had up to "
        f"{outcome.largest_chunk}"
    )
    for fault in outcome.faults:
        console.print(f"FAULT: {fault}", style="red")
    console.print("no fault" if not outcome.faults else f"{len(outcome.faults)} faults")


def main() -> None:
    """Kills as often as asked, and exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, help="files of articles; the first ones are used")
    parser.add_argument("--rows", type=int, default=200, help="articles in each build")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", choices=["boundaries", "random"], help="leave the other kills away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="instead of a small random one")
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="coldframe-crash-") as name:
        folder = Path(name)
        versions = write_versions(args.corpus, folder, rows=args.rows, versions=_VERSIONS)
        model = args.model or str(small_model(folder / "small"))
        outcome = crash(folder, model, versions, kills=args.kills, only=args.only, seed=args.seed)
    show(outcome, time.perf_counter() - start)
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
