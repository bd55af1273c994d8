"""What a centroid means to people: a label, terms, typical articles, and where it comes from.

`clusters.json` holds the table of one generation: its clusters in the order of the index's lists, the broad topics
that they form, and the clusters of the generation before it that are gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Residuals:
    """How far a cluster's articles are from its centroid: 1 - cosine, 0 (the same direction) to 2."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a cluster comes from; `indexer.lineage` has the rules."""

    kind: str
    """ "first" (there was no previous generation), "kept", "new", "split" or "merged"."""
    parents: list[str]
    """Ids of the previous generation's clusters whose articles it holds, by their share in it, largest first."""
    similarity: float | None
    """Cosine to the previous centroid of the same id; None where the id is new."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """A cluster of the previous generation whose id is gone."""

    id: str
    label: str
    size: int
    into: list[str]
    """Ids of this generation's clusters that hold its articles now, by how many, most first."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A broad subject: clusters that are like each other."""

    id: str
    label: str
    terms: list[tuple[str, float]]
    clusters: list[str]
    """Ids, the largest first."""
    size: int
    """Articles of all its clusters."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A list of the inverted file, described. Its place in the table is its list's number."""

    id: str
    label: str
    """The first terms, for people."""
    terms: list[tuple[str, float]]
    """Terms that tell it from the others, best first; weights relative to the first term's."""
    size: int
    medoid: int
    """The row of the article nearest to the centroid."""
    representatives: list[int]
    """Rows of typical articles, the medoid first, no two with the same text, none an outlier."""
    residuals: Residuals
    outlier_below: float
    """An article whose cosine to the centroid is less is an outlier: nearer to no other cluster, and not like this."""
    outliers: int
    lineage: Lineage
    topic: str | None
    """Id of its topic; None where no topics were made."""


@dataclass(frozen=True)
class ClusterTable:
    """All that is said of the clusters of one generation."""

    clusters: list[Cluster]
    """In the order of the lists."""
    topics: list[Topic]
    """The largest first."""
    vanished: list[Vanished]
    """The largest first."""
    next_number: int
    """Of the next new cluster or topic: a number is used once in the life of a store."""


def cluster_id(number: int) -> str:
    """The id of a cluster that was new when the store's next number was `number`."""
    return f"c{number:04d}"


def topic_id(number: int) -> str:
    """The id of a topic that was new when the store's next number was `number`."""
    return f"t{number:04d}"


def write_clusters(path: Path, table: ClusterTable) -> None:
    """Writes the table as JSON."""
    path.write_text(json.dumps(asdict(table), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_clusters(path: Path) -> ClusterTable:
    """Reads what `write_clusters` wrote. Raises CorruptGeneration for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return ClusterTable(
            clusters=[_cluster(fields) for fields in document["clusters"]],
            topics=[Topic(**fields | {"terms": _terms(fields)}) for fields in document["topics"]],
            vanished=[Vanished(**fields) for fields in document["vanished"]],
            next_number=int(document["next_number"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptGeneration(f"{path.name} cannot be read; verify the store and rebuild") from error


def _cluster(fields: Mapping[str, Any]) -> Cluster:
    nested = {"residuals": Residuals(**fields["residuals"]), "lineage": Lineage(**fields["lineage"])}
    return Cluster(**{**fields, **nested, "terms": _terms(fields)})


def _terms(fields: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(term, weight) for term, weight in fields["terms"]]
