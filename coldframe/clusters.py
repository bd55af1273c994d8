"""What a centroid means to people: a label, terms, a medoid, representative articles."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """A list of the inverted file, described. Its place in the file of clusters is its list's number."""

    id: str
    label: str
    """The first terms, for people."""
    terms: list[tuple[str, float]]
    """Terms that tell it from the others, best first; weights relative to the first term's."""
    size: int
    medoid: int
    """The row of the article nearest to the centroid."""
    representatives: list[int]
    """Rows of typical articles, the medoid first, no two with the same text."""


def cluster_id(number: int) -> str:
    """The id of list `number` in a first generation."""
    return f"c{number:04d}"


def write_clusters(path: Path, clusters: Sequence[Cluster]) -> None:
    """Writes them as JSON, in the order of the lists."""
    document = {"clusters": [asdict(cluster) for cluster in clusters]}
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_clusters(path: Path) -> list[Cluster]:
    """Reads what `write_clusters` wrote. Raises CorruptGeneration for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        clusters = [Cluster(**fields) for fields in document["clusters"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptGeneration(f"{path.name} cannot be read; verify the store and rebuild") from error
    return clusters
