"""Small generations without an encoder: random vectors, and a file of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.articles import ArticleRow, write_articles
from coldframe.clusters import Cluster, ClusterTable, Lineage, Residuals, Topic, Vanished, write_clusters
from coldframe.generation import (
    ARTICLES,
    CLUSTERS,
    INDEX,
    REPORT,
    VECTORS,
    CorpusInfo,
    Manifest,
    ModelInfo,
    Parameters,
)
from coldframe.index import ClusterIndex, nearest_centroids
from coldframe.recipe import MEAN, unit
from coldframe.text import text_digest

if TYPE_CHECKING:
    from pathlib import Path

    from coldframe.store import Store

ROWS, DIM, LISTS = 30, 8, 3


def row(article_id: str, text: str = "", cluster: int = 0) -> ArticleRow:
    digest = text_digest(text or article_id)
    attributes = {"author": "Ö"}
    return ArticleRow(article_id, f"Title of {article_id}", "…", None, attributes, cluster, 5, 5, digest, 0, 0.5, False)


def table() -> ClusterTable:
    rest = (Residuals(0.1, 0.1, 0.2, 0.3), 0.4, 1, Lineage("first", [], None), "t0000")
    clusters = [Cluster(f"c{n}", "Küste", [("küste", 1.0)], 10, 0, [0], *rest) for n in range(LISTS)]
    topic = Topic("t0000", "Küste", [("küste", 1.0)], ["c0", "c1", "c2"], ROWS)
    return ClusterTable(clusters, [topic], [Vanished("c9", "Berge", 4, ["c1"])], next_number=10)


def write_generation(folder: Path, seed: int = 0, **sealed: Any) -> Manifest:
    """Writes the files of a generation into a folder and seals it."""
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((ROWS, DIM)).astype(np.float32))
    centroids = unit(random.standard_normal((LISTS, DIM)).astype(np.float32))
    numbers = nearest_centroids(centroids, vectors, 1)[0][:, 0]
    np.save(folder / VECTORS, vectors)
    np.save(folder / MEAN, vectors.mean(axis=0))
    ClusterIndex.build(centroids, vectors, numbers).write(folder / INDEX)
    write_articles(folder / ARTICLES, (row(f"a{n:02d}", cluster=int(number)) for n, number in enumerate(numbers)))
    write_clusters(folder / CLUSTERS, table())
    (folder / REPORT).write_text("<!doctype html><title>Küste</title>", encoding="utf-8")
    usual: dict[str, Any] = {
        "model": ModelInfo("minilm", "f1" * 32, "mean", DIM, 4096),
        "corpus": CorpusInfo("0" * 32, ROWS, ROWS, 0, 0, 150),
        "parameters": Parameters(LISTS, seed, 2, "flat", 0.9, 3.0, 0.8),
        "report": {"recall_at_10": 0.9931, "seconds": {"embed": 12.5}, "gates": []},
        "source": "minilm",
        "precision": "fp32",
        "requested": {"seed": seed},
    }
    return Manifest.seal(folder, **usual | sealed)


def draft(folder: Path, seed: int = 0, **sealed: Any) -> tuple[Path, str]:
    """A generation in a draft's folder, as a build leaves it, and its name."""
    (folder / "generation").mkdir()
    return folder / "generation", write_generation(folder / "generation", seed, **sealed).name


def publish(store: Store, seed: int = 0, **sealed: Any) -> str:
    """Publishes a small generation as a build does, and gives its name."""
    with store.draft() as folder:
        generation, name = draft(folder, seed, **sealed)
        store.publish(generation, name)
    return name
