"""Where a page begins: after the last hit of the page before, wherever that stands by now.

A page is a piece of a list that is made anew. Counted from the top, every article that came in above where a reader
stands would bring one again that he has seen, and every one that went away would cost him one.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.view import View

# What an article's score differs by where a seed text was embedded again, beside other texts.
_NOISE = 1e-4


class Last(NamedTuple):
    """The last hit of a page."""

    id: str
    score: float | None
    """What the list is in order of; None where it was among those that come after all others, in no order with them."""


class Place(NamedTuple):
    """Where a page begins, and what of the first page all others must know to follow it."""

    start: int = 0
    first: int = 0
    """How many hits the first page was asked for; 0: this is the first."""
    moment: int = 0
    """That its ages were counted to, in seconds since 1970; 0: now, or no age counts."""
    largest: float | None = None
    """That its popularity was held against; None where popularity does not count."""
    last: Last | None = None
    """The hit that the page comes after; `start` is what it is where nothing changed since, and holds without it."""


FIRST = Place()


def standing(view: View, last: Last, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> int | None:
    """The place of an article in a list, (n,); None where it is not there any more, or has become another one."""
    row = view.row_of(last.id)
    places = [] if row is None else np.flatnonzero(rows == row).tolist()
    if row is None or not places:
        return None
    place: int = places[0]
    # A row of the generation is what it was. A live one may have come in place of the one that was shown.
    same = not view.is_live(row) or last.score is None or abs(float(scores[place]) - last.score) <= _NOISE
    return place if same else None


def passed(view: View, last: Last, rows: NDArray[np.int64], scores: NDArray[Any], start: int) -> int:
    """How many of a list, (n,), which is in the order of `View.by_score`, come up to where an article stood; `start`
    where its score does not say that.
    """
    if last.score is None:
        return start
    keys = scores.astype(np.float64)  # as the token has it
    above, up_to = np.count_nonzero(keys > last.score), np.count_nonzero(keys >= last.score)
    return int(above) + bisect_right(rows[above:up_to].tolist(), last.id, key=view.id_of)
