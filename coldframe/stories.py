"""Whether two articles tell one story, as far as two articles alone can show it: how near their vectors are, and how
many of their words they share.

The rebuild job sorts a corpus by it (`indexer.stories`), the server an article that has just come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import regex

from coldframe.text import seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME_WORDS = 0.6
"""Overlap from which two texts are versions of one; see docs/decisions/0011-stories.md for what was measured."""

_SHINGLE_WORDS = 3
# Little text proves little: to the shorter text's shingles so many are added that no other text shares.
_UNSHARED = 5
# Scripts without spaces. Chinese and Japanese are taken sign by sign; Thai, Lao, Burmese and Khmer by pieces of four
# that overlap: they have so few letters that half of all runs of three stand in any long text.
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTERS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_PIECE = 4
# Numbers are one word with their points and commas. To `re` a vowel sign is no part of a word, and words of Hindi or
# Tamil fall to pieces; to `regex` it is.
_SPACED = rf"[^\W{_SIGNS}{_LETTERS}]+"
_WORD = regex.compile(rf"[{_SIGNS}]|[{_LETTERS}]+|{_SPACED}(?:[.,]{_SPACED})*")
_RUN = regex.compile(rf"[{_LETTERS}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed: 2**64 divided by the golden ratio


def cosine(vector: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of two unit vectors, (dim,); in fp64, so that it does not depend on what else is multiplied."""
    return float((vector.astype(np.float64) * other.astype(np.float64)).sum())


def shingles(text: str) -> NDArray[np.uint64]:
    """Numbers that stand for the text's runs of three words, ascending, each once; case and punctuation are nothing,
    nor is how an accent is written or what is not seen.
    """
    words = [crc32(word.encode()) for word in _words(text)]
    if not words:
        return np.empty(0, np.uint64)
    hashed = np.array(words + [0] * (_SHINGLE_WORDS - len(words)), np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(hashed, _SHINGLE_WORDS)
    mixed = runs[:, 0]
    for place in range(1, _SHINGLE_WORDS):
        mixed = mixed * _MULTIPLIER + runs[:, place]  # modulo 2**64
    return np.unique(mixed)


def _words(text: str) -> list[str]:
    if text.isascii():
        found: list[str] = _WORD.findall(text.casefold())
        return found
    # Between words of scripts without spaces some put a space that has no width, and others do not.
    found = _WORD.findall(seen(text).replace("\u200b", "").casefold())
    return [piece for word in found for piece in (_pieces(word) if _RUN.match(word) else (word,))]


def _pieces(run: str) -> list[str]:
    return [run[start : start + _PIECE] for start in range(max(len(run) - _PIECE + 1, 1))]


def overlap(shingles_of_one: NDArray[np.uint64], shingles_of_other: NDArray[np.uint64]) -> float:
    """How far the shorter of two texts is contained in the other, 0 to 1, from their shingles.

    Containment (Broder 1997), so that a paragraph more does not matter; damped for short texts, of which two that
    report different things may share most words. Texts of the same words have 1, however short.
    """
    smaller = min(len(shingles_of_one), len(shingles_of_other))
    if smaller == 0:
        return 0.0
    if np.array_equal(shingles_of_one, shingles_of_other):
        return 1.0
    shared = len(np.intersect1d(shingles_of_one, shingles_of_other, assume_unique=True))
    return shared / (smaller + _UNSHARED)
