"""The table of clusters on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.clusters import (
    Cluster,
    ClusterTable,
    Lineage,
    Residuals,
    Topic,
    Vanished,
    cluster_id,
    read_clusters,
    topic_id,
    write_clusters,
)
from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def cluster(number: int, lineage: Lineage, topic: str | None) -> Cluster:
    return Cluster(
        id=cluster_id(number),
        label="Küste, 海",
        terms=[("küste", 1.0), ("海", 0.3333)],
        size=12,
        medoid=3,
        representatives=[3, 1],
        residuals=Residuals(0.1, 0.09, 0.21, 0.3),
        outlier_below=0.1 + 0.2,
        outliers=1,
        lineage=lineage,
        topic=topic,
    )


TABLE = ClusterTable(
    clusters=[
        cluster(7, Lineage("merged", ["c0007", "c0002"], 0.987654), "t0009"),
        cluster(12_345, Lineage("new", [], None), None),
    ],
    topics=[Topic(topic_id(9), "Küste", [("küste", 1.0)], ["c0007"], 12)],
    vanished=[Vanished("c0002", "Berge", 4, ["c0007"])],
    next_number=12_346,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for table in (TABLE, ClusterTable([], [], [], 0)):
        write_clusters(tmp_path / "clusters.json", table)
        assert read_clusters(tmp_path / "clusters.json") == table


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    write_clusters(tmp_path / "clusters.json", TABLE)
    text = (tmp_path / "clusters.json").read_text(encoding="utf-8")
    assert "海" in text
    assert json.loads(text)["clusters"][0]["lineage"] == {
        "kind": "merged",
        "parents": ["c0007", "c0002"],
        "similarity": 0.987654,
    }


def test_ids_have_four_digits_or_more() -> None:
    assert [cluster_id(n) for n in (0, 9_999, 10_000)] == ["c0000", "c9999", "c10000"]
    assert topic_id(12) == "t0012"


def without(*path: str | int) -> Callable[[Any], None]:
    def remove(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return remove


@pytest.mark.parametrize(
    "damage",
    [
        without("clusters"),
        without("topics"),
        without("vanished"),
        without("next_number"),
        without("clusters", 0, "residuals", "p90"),
        without("clusters", 0, "lineage"),
        without("clusters", 1, "terms"),
        without("topics", 0, "terms"),
        lambda document: document["clusters"][0].update(colour="red"),
        lambda document: document.update(clusters=[1]),
        lambda document: document.update(next_number=None),
    ],
)
def test_another_document_is_refused(tmp_path: Path, damage: Callable[[Any], None]) -> None:
    path = tmp_path / "clusters.json"
    write_clusters(path, TABLE)
    document = json.loads(path.read_text(encoding="utf-8"))
    damage(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CorruptGeneration, match=r"clusters\.json cannot be read"):
        read_clusters(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{"])
def test_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clusters.json").write_bytes(content)
    with pytest.raises(CorruptGeneration, match=r"clusters\.json"):
        read_clusters(tmp_path / "clusters.json")
    with pytest.raises(CorruptGeneration, match=r"absent\.json"):
        read_clusters(tmp_path / "absent.json")
