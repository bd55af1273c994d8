"""Which articles tell one story: copies of a text, and edited copies of it.

Copies, with equal digests, always share a story, however far apart their dates. An edited copy joins the story of an
earlier article that it is near to in three ways at once:

    in meaning   cosine of the vectors >= threshold; what that is belongs to the encoder (`indexer.calibrate`)
    in time      published within the window; an unknown date is within every window
    in words     the shorter text's word shingles are found in the other: `overlap` >= SAME_WORDS

Stories are stars and not chains. Texts are taken from the earliest to the latest; each is held against the *first*
article of every story that one of its neighbours belongs to, joins the one whose words it shares most (of equal ones
the earliest), or begins a story of its own (leader clustering: Hartigan, "Clustering Algorithms", 1975, chapter 3; the
single pass of topic detection and tracking: Allan et al. 1998). A report that is rewritten from day to day thus
becomes several stories, each as long as the window at most, and never one that has drifted to another subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from coldframe.storage import release
from coldframe.stories import SAME_WORDS, cosine, overlap, shingles
from indexer.sample import take
from indexer.spool import UNDATED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from coldframe.index import ClusterIndex

PROBES = 4
DAY_S = 86_400

_NEIGHBOURS = 8
# A text whose neighbours are all near is asked for four times as many, up to this. Who has more is mostly found from
# the other side, or through a neighbour that belongs to the story already.
_MOST_NEIGHBOURS = 128
_QUERIES = 32_768
_TEXTS_KEPT = 2_048
_JUDGED_AT_ONCE = 256  # before the pages that they touched are let go of
_FP32_NOISE = 1e-4  # candidates are sought in fp32, and judged in fp64


def find_stories(
    index: ClusterIndex,
    published_at: NDArray[np.int64],
    digests: Sequence[bytes],
    text_of: Callable[[int], str],
    *,
    threshold: float,
    window_days: float,
) -> NDArray[np.int32]:
    """The story of each row, (n,): the row of its first article, which is its own for the first or only one.

    The first article is the earliest, then the one of the lowest row; those without a date come after all dated ones.
    published_at: (n,), seconds since 1970 UTC, UNDATED where unknown. digests: of the n texts. text_of: the text of a
    row; asked for candidates only, and the shingles of some 2,000 are kept. threshold: least cosine. window_days: most
    days between an article and the first of its story.
    """
    texts = Texts.of(published_at, digests)
    pairs = _candidates(index, texts, threshold)
    judge = _Judge(index.vectors, texts, text_of, threshold, window_days)
    leader = np.arange(len(texts))
    later, earlier = np.divmod(pairs, len(texts))
    for judged, group in enumerate(np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(later)) + 1), 1):
        if len(group):
            text = int(later[group[0]])
            leader[text] = judge.story(text, np.unique(leader[earlier[group]]).tolist())
        if judged % _JUDGED_AT_ONCE == 0:
            release(index.vectors)
    stories: NDArray[np.int32] = texts.first[leader[texts.number]].astype(np.int32)
    return stories


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a corpus, numbered from the earliest to the latest."""

    first: NDArray[np.int64]
    """The row of each text's first article, (texts,)."""
    number: NDArray[np.int64]
    """The text of each row, (n,)."""
    seconds: NDArray[np.int64]
    """When each text was first published, (texts,); UNDATED where that is not known."""

    @classmethod
    def of(cls, published_at: NDArray[np.int64], digests: Sequence[bytes]) -> Texts:
        """Rows of equal digests are one text."""
        undated = published_at == UNDATED
        order = np.lexsort((published_at, undated))  # stable: equal ones stay in the order of rows
        numbers: dict[bytes, int] = {}
        first: list[int] = []
        number = np.empty(len(digests), np.int64)
        for row in order.tolist():
            number[row] = text = numbers.setdefault(digests[row], len(numbers))
            if text == len(first):
                first.append(row)
        rows = np.array(first, np.int64)
        return cls(rows, number, published_at[rows])

    def __len__(self) -> int:
        return len(self.first)

    def firsts(self) -> NDArray[np.bool_]:
        """Whether a row is the first article of its text, (n,): the copies of one would fill all neighbours' places."""
        firsts = np.zeros(len(self.number), bool)
        firsts[self.first] = True
        return firsts

    def days(self, text: int, other: int) -> float | None:
        """Days between two texts; None where a date is unknown."""
        one, two = int(self.seconds[text]), int(self.seconds[other])
        return None if UNDATED in {one, two} else abs(one - two) / DAY_S

    def within(self, text: int, other: int, window_days: float) -> bool:
        """Whether two texts lie within the window, as far as anyone knows."""
        days = self.days(text, other)
        return days is None or days <= window_days


def _candidates(index: ClusterIndex, texts: Texts, threshold: float) -> NDArray[np.int64]:
    """Pairs of near texts, each as later * texts + earlier, ascending, once."""
    asked = np.argsort(texts.first)  # in the order of rows, in which the vectors lie on the disk
    pairs = [np.empty(0, np.int64)]
    limit, firsts = _NEIGHBOURS, texts.firsts()
    while len(asked) and limit <= _MOST_NEIGHBOURS:
        crowded = []
        for start in range(0, len(asked), _QUERIES):
            block = asked[start : start + _QUERIES]
            rows, similarities = index.search_many(take(index.vectors, texts.first[block]), limit, PROBES, firsts)
            near = (rows >= 0) & (similarities >= threshold - _FP32_NOISE)
            asking, place = np.nonzero(near)
            pairs.append(_pairs(block[asking], texts.number[rows[asking, place]], len(texts)))
            crowded.append(block[near.all(axis=1)])
        asked = np.concatenate(crowded)
        limit *= 4
    return np.unique(np.concatenate(pairs))


def _pairs(texts: NDArray[np.int64], others: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    apart = texts != others
    texts, others = texts[apart], others[apart]
    pairs: NDArray[np.int64] = np.unique(np.maximum(texts, others) * count + np.minimum(texts, others))
    return pairs


class _Judge:
    """Decides whether a text belongs to the story that another one began."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        texts: Texts,
        text_of: Callable[[int], str],
        threshold: float,
        window_days: float,
    ) -> None:
        self._vectors, self._texts = vectors, texts
        self._threshold, self._window_days = threshold, window_days

        @lru_cache(maxsize=_TEXTS_KEPT)
        def shingles_of(text: int) -> NDArray[np.uint64]:
            return shingles(text_of(int(texts.first[text])))

        self._shingles = shingles_of

    def story(self, text: int, leaders: Sequence[int]) -> int:
        """The one of the stories, named by their first texts in ascending order, that a text joins; else itself."""
        best, most = text, 0.0
        for leader in leaders:
            if leader != text and self._near(text, leader):
                shared = overlap(self._shingles(text), self._shingles(leader))
                if shared >= SAME_WORDS and shared > most:
                    best, most = leader, shared
        return best

    def _near(self, text: int, leader: int) -> bool:
        if not self._texts.within(text, leader, self._window_days):
            return False
        rows = self._texts.first[[text, leader]]
        return cosine(self._vectors[rows[0]], self._vectors[rows[1]]) >= self._threshold
