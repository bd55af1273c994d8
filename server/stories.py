"""Which story a live article tells: the rules of the offline build (docs/decisions/0011-stories.md), one at a time.

The build holds whole texts against each other. Of a generation's articles the server has the title and the beginning,
and asks that those be found in the new text; of live articles it has the words of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.stories import SAME_WORDS, cosine, overlap, shingles
from coldframe.text import article_text
from server.columns import UNDATED, microseconds

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray

    from server.view import View

_NEIGHBOURS = 8
_PROBES = 4
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Telling:
    """What shows which story an article tells."""

    article_id: str
    vector: NDArray[np.float32]
    """(dim,), of unit length."""
    words: NDArray[np.uint64]
    """The shingles of its text."""
    digest: bytes
    """Of its text."""
    published_at: datetime | None


def story_of(view: View, new: Telling) -> int:
    """The row that began the story which an article tells: its own, the next live row, where nobody told it before."""
    rules = view.base.generation.manifest.parameters
    itself = view.row_of(new.article_id)
    copy = view.row_of_text(new.digest)
    if copy is not None and copy != itself and view.has(copy):  # however many there are of it
        return view.story(copy)
    allowed = view.allow(excluded=() if itself is None else (itself,))
    near, similarities = view.search(new.vector, _NEIGHBOURS, _PROBES, allowed)
    near = near[similarities >= rules.story_similarity]
    equal = [row for row in near.tolist() if view.article(row).text_digest == new.digest]
    if equal:
        return view.story(equal[0])
    best, most = len(view.base) + len(view.alive), 0.0
    for leader in np.unique(view.stories(near)).tolist():
        if _within(view, leader, new, rules.story_window_days) and _near(view, leader, new, rules.story_similarity):
            shared = overlap(new.words, _words_of(view, leader))
            if shared >= SAME_WORDS and shared > most:
                best, most = leader, shared
    return best


def _near(view: View, row: int, new: Telling, similarity: float) -> bool:
    return cosine(new.vector, view.vector(row)) >= similarity


def _within(view: View, row: int, new: Telling, days: float) -> bool:
    """Whether a row lies within the window, as far as anyone knows."""
    known, date = int(view.microseconds(np.array([row]))[0]), microseconds(new.published_at)
    return UNDATED in {known, date} or abs(known - date) <= days * _DAY_US


def _words_of(view: View, row: int) -> NDArray[np.uint64]:
    if view.is_live(row):
        return view.overlay.rows[row - len(view.base)].shingles
    article = view.article(row)
    return shingles(article_text(article.title, article.excerpt.removesuffix("…")))
