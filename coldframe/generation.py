"""One immutable index on disk: its manifest, its files and their checksums.

    manifest.json    what it is, of what, made how, and how well it measured; size and sha256 of every file
    index.faiss      the IVF index                     vectors.npy     unit vectors by row, fp32
    articles.arrow   row -> id, title, excerpt, ...    clusters.json   list -> id, label, terms, medoid, ...
    mean.npy         the corpus mean, where the recipe removes it
    report.html      what was built, for people to look at

A generation is written in a draft folder and renamed into place when it is whole (`coldframe.store`).
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe import checksums
from coldframe.articles import Articles
from coldframe.clusters import Cluster, ClusterTable, read_clusters
from coldframe.errors import ColdframeError, CorruptGeneration, FailedPrecondition, FingerprintMismatch
from coldframe.index import ClusterIndex
from coldframe.recipe import MEAN, Placement
from coldframe.shortage import MAY_NOT_READ, MORE_FILES, NO_FILES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = 5
# Those of format 3 have no margin: a search of theirs visits the same number of lists whatever is asked. No list of
# those of format 4 is of rabitq.
_READ = range(3, FORMAT + 1)
MANIFEST, INDEX, VECTORS = "manifest.json", "index.faiss", "vectors.npy"
ARTICLES, CLUSTERS, REPORT = "articles.arrow", "clusters.json", "report.html"
_FILES = (INDEX, VECTORS, ARTICLES, CLUSTERS, MEAN, REPORT)
_DECIDES_NOTHING = {REPORT}
_SECOND = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The encoder that made the vectors."""

    name: str
    """For people and for the wire: never a path."""
    fingerprint: str
    recipe: str
    dimension: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """What was indexed."""

    digest: str
    articles: int
    distinct_texts: int
    rejected: int
    truncated: int
    """Articles longer than `max_tokens`, whose ends were not read."""
    tokens: int
    """Embedded, each distinct text once."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What decided the index's form."""

    clusters: int
    seed: int
    probes: int
    """Lists that a balanced search visits."""
    storage: str
    """How the lists hold their vectors: rabitq, flat, fp16, sq8 or pq<M>."""
    story_similarity: float
    """Articles at least so similar may tell one story."""
    story_window_days: float
    """If they were published within so many days."""
    min_cluster_similarity: float
    """Centroids of two generations at least so similar may be the same cluster."""
    margin: float | None = None
    """Of a balanced search (`ClusterIndex.search`)."""


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `digest` covers all that decides an answer, and nothing that two equal builds differ in."""

    name: str
    created_at: datetime
    digest: str
    model: ModelInfo
    corpus: CorpusInfo
    parameters: Parameters
    files: dict[str, dict[str, Any]]
    """File name -> {"size": bytes, "sha256": hex}."""
    report: dict[str, Any]
    """What was measured: recall, cluster health, stories, lineage, drift, seconds and memory per phase."""
    source: str
    """Where the server finds the model: "minilm", a hub id or a directory."""
    precision: str
    requested: dict[str, Any]
    """What the build was asked for, from which the parameters came: the same again, of the same corpus, is a no-op."""
    watermark: int
    """The number of the last live change (`coldframe.live`) that was folded in; those after it are replayed."""
    held: list[str]
    """Why it was kept and not published; empty for one that passed, or that was published all the same."""
    format: int = FORMAT

    @classmethod
    def seal(
        cls,
        directory: Path,
        *,
        model: ModelInfo,
        corpus: CorpusInfo,
        parameters: Parameters,
        report: Mapping[str, Any],
        source: str,
        precision: str,
        requested: Mapping[str, Any],
        watermark: int = 0,
        held: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> Manifest:
        """Takes checksums of the files in `directory`, names the generation and writes its manifest there.

        after: the names of the generations that are there, ascending; the new name comes after all of them.
        """
        files = {name: checksums.describe(directory / name) for name in sorted(_FILES) if (directory / name).exists()}
        created_at = datetime.now(UTC).replace(microsecond=0)
        digest = _digest(
            {
                "format": FORMAT,
                "model": asdict(model),
                "corpus": asdict(corpus),
                "parameters": asdict(parameters),
                "files": {name: file for name, file in files.items() if name not in _DECIDES_NOTHING},
            }
        )
        name = f"{_later(created_at, after):{_SECOND}}-{digest[:12]}"
        manifest = cls(
            name=name,
            created_at=created_at,
            digest=digest,
            model=model,
            corpus=corpus,
            parameters=parameters,
            files=files,
            report=json.loads(json.dumps(report)),
            source=source,
            precision=precision,
            requested=json.loads(json.dumps(requested)),
            watermark=watermark,
            held=list(held),
        )
        document = asdict(manifest) | {"created_at": created_at.isoformat()}
        (directory / MANIFEST).write_bytes(_sealed(document))
        return manifest

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CorruptGeneration for a manifest that is missing, altered, or of another format."""
        try:
            raw = (directory / MANIFEST).read_bytes()
            document = json.loads(raw.decode())
            found = document["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _unreadable(directory, MANIFEST, error) from error
        if found not in _READ:
            raise CorruptGeneration(
                f"{MANIFEST} of generation {directory.name} has format {found}, this Coldframe reads the formats "
                f"{min(_READ)} to {FORMAT}; rebuild it, or serve it with the Coldframe that built it"
            )
        try:
            del document["sha256"]
            if _sealed(document) != raw:
                raise _corrupt(directory, MANIFEST, "was altered")
            parts = {
                "created_at": datetime.fromisoformat(document["created_at"]),
                "model": ModelInfo(**document["model"]),
                "corpus": CorpusInfo(**document["corpus"]),
                "parameters": Parameters(**document["parameters"]),
            }
            return cls(**document | parts)
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(directory, MANIFEST, "was altered") from error


def _later(now: datetime, names: Sequence[str]) -> datetime:
    """Now, or the second after that in the last of some names: their order is that of the builds, whatever clocks say.

    By it `prune` tells which is the older. Two builds may share a second, and a clock that was ahead is put back.
    """
    for name in reversed(names):
        with suppress(ValueError, OverflowError):  # a folder that somebody else put there
            last = datetime.strptime(name.partition("-")[0], _SECOND).replace(tzinfo=UTC)
            return max(now, last + timedelta(seconds=1))
    return now


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _sealed(document: Mapping[str, Any]) -> bytes:
    """The bytes of manifest.json: the document, and its own checksum at the end."""
    checksum = hashlib.sha256(_json(document)).hexdigest()
    return _json({**document, "sha256": checksum})


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _corrupt(directory: Path, file: str, what: str) -> CorruptGeneration:
    return CorruptGeneration(
        f"{file} of generation {directory.name} {what}; activate another generation "
        f"(python -m indexer list, activate) or build anew"
    )


def _unreadable(directory: Path, file: str, error: Exception) -> ColdframeError:
    """Nothing is wrong with a generation whose files a process may not open for having too many open, or no right."""
    if isinstance(error, OSError) and error.errno in NO_FILES:
        return FailedPrecondition(
            f"{file} of generation {directory.name} cannot be opened ({os.strerror(error.errno)}); "
            f"{MORE_FILES}, and try again"
        )
    if isinstance(error, PermissionError):  # a build would leave the next one so, too
        return CorruptGeneration(f"{file} of generation {directory.name} {MAY_NOT_READ}")
    return _corrupt(directory, file, "is missing or cannot be read")


def verify(directory: Path) -> Manifest:
    """Compares every file with the manifest. Raises CorruptGeneration that names the first that differs, and
    FailedPrecondition where none may be opened.
    """
    manifest = Manifest.read(directory)
    described = checksums.described(directory, manifest.files)
    for name, expected in manifest.files.items():
        try:
            found = described[name].result()
        except OSError as error:
            raise _unreadable(directory, name, error) from error
        if found["size"] != expected["size"]:
            raise _corrupt(directory, name, f"has {found['size']:,} bytes instead of {expected['size']:,}")
        if found["sha256"] != expected["sha256"]:
            raise _corrupt(directory, name, "does not match its checksum")
    return manifest


class Generation:
    """A verified generation, open for reading; its files stay on disk and are mapped into memory."""

    def __init__(self, directory: Path) -> None:
        self.manifest = verify(directory)
        try:
            vectors = np.load(directory / VECTORS, mmap_mode="r", allow_pickle=False)
            self.placement = Placement.load(directory)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(directory, VECTORS, error) from error
        self.index = ClusterIndex.read(directory / INDEX, vectors)
        self.articles = Articles(directory / ARTICLES)
        self.table: ClusterTable = read_clusters(directory / CLUSTERS)
        self.clusters: list[Cluster] = self.table.clusters
        self.numbers = {cluster.id: number for number, cluster in enumerate(self.clusters)}
        """Cluster id -> number of its list."""

    @property
    def name(self) -> str:
        """The generation's name, "<UTC time>-<digest>"."""
        return self.manifest.name

    @property
    def probes(self) -> int:
        """Lists that a balanced search visits."""
        return self.manifest.parameters.probes

    @property
    def margin(self) -> float | None:
        """Where a balanced search visits fewer or more of them, by what it asks about."""
        return self.manifest.parameters.margin

    def warm(self) -> None:
        """Touches every page that answers are read from, so that the first of them are as quick as the others."""
        self.index.warm()
        self.articles.warm()

    def require(self, fingerprint: str) -> None:
        """Raises FingerprintMismatch unless the encoder of that fingerprint built this generation."""
        built_by = self.manifest.model
        if fingerprint != built_by.fingerprint:
            raise FingerprintMismatch(
                f"generation {self.name} was built by {built_by.name} with recipe {built_by.recipe} (fingerprint "
                f"{built_by.fingerprint[:12]}), this encoder is {fingerprint[:12]}: their vectors cannot be compared; "
                f"serve it with the model that built it, or rebuild"
            )
