"""Builds that take a fraction of a second, and what their results are held against.

A random Longformer of `tests.models` reads words of single letters: articles of such words cost next to nothing.
Reports go without their figures, on which Matplotlib spends more than a small build on all else; `test_report`, the
store of `conftest` and builds in processes of their own have them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from markupsafe import Markup
from rich.console import Console

from indexer.build import BuildConfig, run
from indexer.corpus import CorpusConfig
from indexer.gates import Limits
from indexer.progress import Reporter
from tests.models import LETTERS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.generation import Manifest
    from tests.corpus_files import Row

ANYTHING = Limits(max_article_loss=1, recall_slack=1, max_empty_share=1, max_cell_share=1, min_survived=0, max_drift=1)


def letters(count: int, seed: int = 0) -> list[Row]:
    """Articles of 20 to 60 words, each of one of three subjects: a third of the alphabet is its own."""
    rng = np.random.default_rng(seed)
    own = [LETTERS[start : start + 8] for start in (0, 8, 16)]
    return [
        {
            "id": f"{n:03}",
            "title": f"{LETTERS[n % 26]} {LETTERS[n // 26]}",
            "content": " ".join(rng.choice([*(own[n % 3] * 3), *LETTERS], int(rng.integers(20, 61)))),
            "date": f"2026-01-{1 + n % 28:02}",
            "desk": "abc"[n % 3],
        }
        for n in range(count)
    ]


def build(store: Path, *corpus: Path, **options: Any) -> Manifest:
    """Builds a generation in this process, in fp32, says nothing, and publishes it however bad it is."""
    return build_aloud(store, *corpus, **options)[0]


def undrawn() -> AbstractContextManager[object]:
    """Reports go without their figures meanwhile."""
    return patch("indexer.report.figures._draw", lambda *_: Markup())


def build_aloud(store: Path, *corpus: Path, out: io.StringIO | None = None, **options: Any) -> tuple[Manifest, str]:
    """The same, and what it said; `out` has that too where the build fails."""
    said = out or io.StringIO()
    files = CorpusConfig([str(path) for path in corpus])
    usual: dict[str, Any] = {"corpus": files, "precision": "fp32", "limits": ANYTHING}
    config = BuildConfig(store=store, **usual | options)
    with undrawn():
        manifest = run(config, Reporter(Console(file=said, width=400)))
    return manifest, said.getvalue()


def recall_at_10(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    assignment: NDArray[np.int64],
    probes: int,
    stories: NDArray[np.int64] | None = None,
) -> float:
    """The share of the 10 nearest rows of other stories that lie in the lists visited, over all rows, by the book.

    A search that finds fewer rows than it wants in its lists visits twice as many, and so on. A row that is as similar
    as the last of the 10 is as good.
    """
    wide = vectors.astype(np.float64)
    scores = _dots(wide, wide).astype(np.float32)
    lists = np.argsort(-_dots(wide, centroids.astype(np.float64)), axis=1, kind="stable")
    told = np.arange(len(vectors)) if stories is None else stories
    wanted = found = 0
    for row in range(len(vectors)):
        others = np.flatnonzero(told != told[row])
        least = np.sort(scores[row, others])[::-1][:10]
        visited = probes
        enough = min(10 + int((told == told[row]).sum()), len(vectors))
        while np.isin(assignment, lists[row, :visited]).sum() < enough and visited < len(centroids):
            visited *= 2
        seen = np.sort(scores[row, others[np.isin(assignment[others], lists[row, :visited])]])[::-1][:10]
        wanted += len(least)
        found += int((seen >= least[-1:]).sum())
    return found / wanted if wanted else 1.0


def _dots(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner products, (rows, others), summed in one order, so that equal rows have equal ones."""
    return np.stack([(others * row).sum(axis=1) for row in rows])
