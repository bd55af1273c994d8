"""A build under way, on disk, and its journal: what is being built, and which phases are done.

STORE/drafts/job/job.json      the plan, and of each finished phase its record, its time, its memory and its files
STORE/drafts/job/generation/   what will be published
STORE/drafts/job/*             what phases leave for later ones

The journal is replaced atomically after all that a phase wrote has reached the disk. A job that is killed and begun
again with the same plan therefore goes on after the last phase that it names; what a broken phase left is overwritten.
With another plan it begins anew, and says what differs. Embeddings are in the cache either way.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coldframe.durable import replace_text, sync_tree
from coldframe.generation import INDEX, VECTORS
from coldframe.index import ClusterIndex
from coldframe.recipe import Placement
from indexer.embed import Lengths
from indexer.plan import open_previous
from indexer.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.generation import Generation
    from coldframe.store import Store
    from indexer.plan import BuildConfig, Job
    from indexer.progress import Reporter

    Record = dict[str, Any]
    Say = Callable[[str], None]

JOURNAL, SPOOL, LENGTHS, CLUSTERING = "job.json", "corpus.db", "lengths.npz", "clustering.npz"
_VERSION = 1


@dataclass
class Draft:
    """The folder. As a context, it is cleared away in the end if no phase was finished: nothing in it is of use."""

    path: Path
    store: Store
    reporter: Reporter
    plan: Mapping[str, Any]
    _done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, store: Store, reporter: Reporter, plan: Mapping[str, Any]) -> Self:
        """Goes on with what lies in the folder if it is of the same plan and whole, else begins anew and says why."""
        draft = cls(path, store, reporter, json.loads(json.dumps(plan)))
        with store.saving():
            left = _read(path / JOURNAL)
            reason = _why_not(left, draft.plan, _files(path)) if left else None
            if left and reason is None:
                draft._done = left["phases"]
                reporter.note(f"an unfinished build is gone on with, after the phase {[*draft._done][-1]}")
            elif left:
                reporter.note(f"an unfinished build is begun anew: {reason}; what it embedded is in the cache")
            draft._clear()
        return draft

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._done:
            self.store.discard()

    @property
    def out(self) -> Path:
        """The folder that will be the generation."""
        return self.path / "generation"

    def record(self, phase: str) -> Record:
        """What a finished phase has to say to later ones."""
        record: Record = self._done[phase]["record"]
        return record

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by finished phase, in this run or an earlier one."""
        return {phase: done["seconds"] for phase, done in self._done.items()}

    @property
    def peak_memory_mib(self) -> dict[str, float]:
        """The most memory that the process held during each finished phase."""
        return {phase: done["peak_memory_mib"] for phase, done in self._done.items()}

    def phase(self, name: str, work: Callable[[Say], Record]) -> Record:
        """Does the work, unless it is done already, and notes in the journal what came of it.

        Raises FailedPrecondition or InvalidArgument where the store has no room or cannot be written.
        """
        if name not in self._done:
            with self.store.saving():
                with self.reporter.phase(name) as say:
                    record = work(say)
                    sync_tree(self.path)
                self._done[name] = {
                    "seconds": round(self.reporter.seconds[name], 3),
                    "peak_memory_mib": round(self.reporter.peak_memory_mib[name], 1),
                    "record": json.loads(json.dumps(record)),
                    "files": _files(self.path),
                }
                self._write()
        return self.record(name)

    def _write(self) -> None:
        journal = {"version": _VERSION, "plan": self.plan, "phases": self._done}
        replace_text(self.path / JOURNAL, json.dumps(journal, ensure_ascii=False, indent=1) + "\n")

    def _clear(self) -> None:
        """Takes away what no finished phase left: half a file is never mistaken for a whole one."""
        if self._done:
            whole = [*self._done.values()][-1]["files"]
            for name in _files(self.path):
                if name not in whole:
                    (self.path / name).unlink()
        else:
            shutil.rmtree(self.path)
        self.out.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Build:
    """A job at work in a store: what every phase may look at."""

    job: Job
    draft: Draft
    previous: Generation | None
    """The current generation, whose clusters give the new ones their names."""

    @property
    def config(self) -> BuildConfig:
        """What a person chose."""
        return self.job.config

    @property
    def previous_name(self) -> str | None:
        """Of the current generation."""
        return None if self.previous is None else self.previous.name

    @property
    def ancestor(self) -> Generation | None:
        """The previous generation if its vectors may be compared with the new ones: it has the same encoder."""
        if self.previous is None or self.previous.manifest.model.fingerprint != self.job.encoder.fingerprint:
            return None
        return self.previous

    def inherited(self) -> NDArray[np.float32] | None:
        """The ancestor's centroids in the new generation's space, (clusters, dim); None without an ancestor."""
        if self.ancestor is None:
            return None
        centroids, before, now = self.ancestor.index.centroids, self.ancestor.placement, self.placement()
        return centroids if before.mean is None is now.mean else now(before.undone(centroids))

    def placement(self) -> Placement:
        """From the encoder's space to the index's, once the vectors were placed."""
        return Placement.load(self.out)

    @property
    def out(self) -> Path:
        """The folder that will be the generation."""
        return self.draft.out

    def phase(self, name: str, work: Callable[[Build, Say], Record]) -> None:
        """Does the work of a phase, unless it is done; what came of it is `record(name)`, now and after a crash."""
        self.draft.phase(name, partial(work, self))

    def record(self, phase: str) -> Record:
        """What a finished phase has to say."""
        return self.draft.record(phase)

    def spool(self) -> Spool:
        """The corpus that was read."""
        return Spool.reopen(self.draft.path / SPOOL)

    def vectors(self) -> NDArray[np.float32]:
        """By row, (n, dim), in the index's space, on the disk."""
        vectors: NDArray[np.float32] = np.load(self.out / VECTORS, mmap_mode="r", allow_pickle=False)
        return vectors

    def index(self) -> ClusterIndex:
        """The index, on the disk."""
        return ClusterIndex.read(self.out / INDEX, self.vectors())

    def lengths(self) -> Lengths:
        """Of the texts."""
        with np.load(self.draft.path / LENGTHS, allow_pickle=False) as arrays:
            return Lengths(arrays["seen"], arrays["used"])

    def clustering(self) -> Clustering:
        """Centroids, and each row's."""
        with np.load(self.draft.path / CLUSTERING, allow_pickle=False) as arrays:
            return Clustering(arrays["centroids"], arrays["assignment"], arrays["similarity"])


@dataclass(frozen=True)
class Clustering:
    """Centroids, (clusters, dim), and each row's cluster and similarity to its centroid, (n,)."""

    centroids: NDArray[np.float32]
    assignment: NDArray[np.int64]
    similarity: NDArray[np.float32]


@contextmanager
def begin(job: Job) -> Iterator[Build]:
    """Holds the store, and opens the draft of an unfinished build of the same plan, or an empty one."""
    with job.store.draft() as folder:
        previous = open_previous(job.store, job.reporter)
        identity = job.identity(None if previous is None else previous.name)
        with Draft.open(folder, job.store, job.reporter, identity) as draft:
            yield Build(job, draft, previous)


def _files(folder: Path) -> dict[str, int]:
    """Size by name of all that phases have left."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != JOURNAL
    }


def _why_not(left: Mapping[str, Any], plan: Mapping[str, Any], files: Mapping[str, int]) -> str | None:
    """Why what is left of a build cannot be gone on with; None if it can."""
    if left.get("version") != _VERSION or not left.get("phases"):
        return "its journal cannot be read"
    if left["plan"] != plan:
        return "; ".join(differences(left["plan"], plan))
    if any(version is None for *_, version in plan.get("corpus", [])):
        return "whether the corpus is the same only reading it again shows"
    whole = [*left["phases"].values()][-1]["files"]
    altered = [name for name, size in whole.items() if files.get(name) != size]
    return f"{', '.join(altered)} is not as it was" if altered else None


def _read(path: Path) -> dict[str, Any]:
    """The journal; {} where there is none, {"version": None} for one that cannot be read."""
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"version": None}
    return journal if isinstance(journal, dict) else {"version": None}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two plans, each in a few words."""
    said = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        brief = not any(isinstance(value, dict | list) for value in (old, new))
        said.append(f"{key} was {old} and is {new}" if brief else f"{key} is another")
    return said
