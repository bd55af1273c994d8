"""How far an index has moved away from the articles that it was built of, and whether it is time to build it anew.

Clusters were found among the generation's articles. A live article joins the nearest of them, however far that is;
where many are outliers of theirs, the news has turned to what no cluster is about.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from coldframe.articles import ArticleRow
    from server.view import View

MOST_CHANGED = 0.2
"""Share of the articles that came, went or were replaced since the build: beyond it a rebuild is advised."""
LEAST_LIVE = 50
"""Fewer live articles say nothing of the others."""
MOST_OUTLIERS = 3.0
"""Times as many outliers among the live articles as among the generation's, and beyond `_SPARE` of them: likewise."""
_SPARE = 0.05


@dataclass(frozen=True, slots=True)
class Drift:
    """live: articles that came since the build. changed: share of articles that came, went or are not as they were.

    outliers: share of the live articles that are outliers of their clusters; built: the same of the generation's.
    """

    live: int
    changed: float
    outliers: float
    built: float

    @property
    def rebuild_advised(self) -> bool:
        """Whether a new generation would serve its readers better."""
        if self.changed > MOST_CHANGED:
            return True
        return self.live >= LEAST_LIVE and self.outliers > max(MOST_OUTLIERS * self.built, self.built + _SPARE)


class Drifts:
    """Tells the drift of the newest of views that follow each other, to whoever asks, on any thread.

    To read what the build had of an article takes longer than all else. So it is read once for each that came in its
    place: where articles come all the time, each scrape has a view of its own, and kept searches waiting otherwise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[View, Drift] | None = None
        self._same: dict[str, tuple[ArticleRow, bool]] = {}
        """By id, the live article that stands for one of the build, and whether it is as that was."""

    def of(self, view: View) -> Drift:
        """Looks at all live articles, once for each view."""
        with self._lock:
            if self._last is None or self._last[0] is not view:
                if self._last is not None and self._last[0].base is not view.base:
                    self._same = {}
                self._last = view, self._look(view)
            return self._last[1]

    def _look(self, view: View) -> Drift:
        live = [view.overlay.rows[row].article for row in np.flatnonzero(view.alive).tolist()]
        clusters, size = view.base.generation.clusters, len(view.base)
        # By id: one that was replaced is a live article, and one of the generation's that is hidden.
        came = {article.id: article for article in live}
        hidden = {view.id_of(row): row for row in view.replaced.tolist()}
        self._same = {name: self._compared(view, row, came[name]) for name, row in hidden.items() if name in came}
        back = {name for name, (_, same) in self._same.items() if same}
        changed = (came.keys() | hidden.keys()) - back
        return Drift(
            live=len(live),
            changed=len(changed) / max(size, 1),
            outliers=sum(article.outlier for article in live) / max(len(live), 1),
            built=sum(cluster.outliers for cluster in clusters) / max(size, 1),
        )

    def _compared(self, view: View, row: int, article: ArticleRow) -> tuple[ArticleRow, bool]:
        known = self._same.get(article.id)
        if known is not None and known[0] is article:
            return known
        return article, _is_the_same(article, view.article(row))


def _is_the_same(article: ArticleRow, built: ArticleRow) -> bool:
    """Whether an article was removed and came back as it was: a build of it makes nothing new, and none is due."""
    return (article.text_digest, article.title, article.published_at, article.attributes) == (
        built.text_digest,
        built.title,
        built.published_at,
        built.attributes,
    )
