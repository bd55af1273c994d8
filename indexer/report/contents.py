"""What the report speaks of: facts that the job knows, and the files of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.articles import Articles, beginning
from coldframe.clusters import Cluster, ClusterTable, read_clusters
from coldframe.errors import CorruptGeneration
from coldframe.generation import ARTICLES, CLUSTERS, VECTORS, CorpusInfo, Manifest, ModelInfo, Parameters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from numpy.typing import NDArray

SHORT_MODEL = 512
"""Tokens that most encoders read of a text."""
_HEADLINE_CHARS = 140
_COLOURS = 9


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the job knows of a build, and what it measured. All but the first four may be missing."""

    model: ModelInfo
    corpus: CorpusInfo
    parameters: Parameters
    precision: str
    report: Mapping[str, Any]
    """As in the manifest. A section whose keys are not there is left out."""
    name: str | None = None
    """The generation's; None while it has none."""
    created_at: datetime | None = None
    previous: str | None = None
    """Name of the generation that it is compared with."""

    @classmethod
    def of(cls, manifest: Manifest) -> ReportFacts:
        """The facts of a generation that was sealed."""
        return cls(
            model=manifest.model,
            corpus=manifest.corpus,
            parameters=manifest.parameters,
            precision=manifest.precision,
            report=manifest.report,
            name=manifest.name,
            created_at=manifest.created_at,
            previous=manifest.report.get("previous"),
        )


@dataclass(frozen=True, slots=True)
class Lost:
    """What a model that reads `SHORT_MODEL` tokens would not have read: shares from 0 to 1."""

    articles: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Story:
    """Articles that tell the same, and its first one's row."""

    row: int
    articles: int


@dataclass(frozen=True, slots=True)
class Group:
    """What has one colour: a topic, or a cluster where there are no topics, or all the smaller ones together."""

    label: str
    articles: int
    colour: str


class Contents:
    """The files of a generation, or of a draft of one. Raises CorruptGeneration for what cannot be read."""

    def __init__(self, directory: Path, facts: ReportFacts) -> None:
        self.facts = facts
        self.articles = Articles(directory / ARTICLES)
        self.table: ClusterTable = read_clusters(directory / CLUSTERS)
        try:
            self.vectors: NDArray[np.float32] = np.load(directory / VECTORS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CorruptGeneration(f"{VECTORS} cannot be read; verify the store and rebuild") from error

    @cached_property
    def by_size(self) -> list[Cluster]:
        """Clusters, the largest first, equal ones by id."""
        return sorted(self.table.clusters, key=lambda cluster: (-cluster.size, cluster.id))

    @cached_property
    def groups(self) -> list[Group]:
        """The largest topics, else clusters, a colour each; what has no colour left is the last group."""
        groups = [Group(label, size, f"c{n + 1}") for n, (label, size, _) in enumerate(self._coloured)]
        rest = sum(cluster.size for cluster in self.table.clusters) - sum(group.articles for group in groups)
        return [*groups, Group("all others", rest, "other")] if rest else groups

    @cached_property
    def group_of(self) -> NDArray[np.int64]:
        """Each cluster's group, (clusters,)."""
        groups = {name: n for n, (_, _, ids) in enumerate(self._coloured) for name in ids}
        return np.array([groups.get(cluster.id, len(self._coloured)) for cluster in self.table.clusters])

    @cached_property
    def _coloured(self) -> list[tuple[str, int, list[str]]]:
        """Label, articles and cluster ids of each group that has a colour of its own."""
        if self.table.topics:
            found = [(topic.label, topic.size, topic.clusters) for topic in self.table.topics]
        else:
            found = [(cluster.label, cluster.size, [cluster.id]) for cluster in self.by_size]
        return found[:_COLOURS]

    @cached_property
    def assignment(self) -> NDArray[np.int32]:
        """Each row's cluster, (n,)."""
        return self.articles.clusters()

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each article, those that were not read among them, (n,)."""
        return self._numbers("tokens_seen")

    @cached_property
    def lost(self) -> Lost:
        """What a short model would not have read."""
        beyond = np.maximum(self.lengths - SHORT_MODEL, 0)
        return Lost(float((beyond > 0).mean()), float(beyond.sum() / max(self.lengths.sum(), 1)))

    @cached_property
    def story_of(self) -> NDArray[np.int64]:
        """Each row's story, by the row of its first article, (n,)."""
        return self._numbers("story")

    def stories(self, most: int) -> list[Story]:
        """Stories of several articles, the largest first, equal ones by row."""
        rows, counts = np.unique(self.story_of, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        return [Story(int(rows[n]), int(counts[n])) for n in order if counts[n] > 1]

    def period(self) -> tuple[datetime, datetime] | None:
        """The first and the last date; None where no article has one."""
        import pyarrow.compute as pc

        ends = pc.min_max(self.articles.column("published_at")).as_py()
        return (ends["min"], ends["max"]) if ends["min"] is not None else None

    def headline(self, row: int) -> str:
        """The title of an article, else its beginning, else its id; cut as excerpts are where it is long."""
        article = self.articles[row]
        return beginning(" ".join((article.title or article.excerpt or article.id).split()), _HEADLINE_CHARS)

    def _numbers(self, column: str) -> NDArray[np.int64]:
        return np.asarray(self.articles.column(column).to_numpy(), np.int64)
