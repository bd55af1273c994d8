"""The phase that costs: every distinct text of the corpus has its vector, from the cache or computed, once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from indexer.cache import Cached, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder
    from coldframe.live import LiveStore
    from indexer.cache import Cache
    from indexer.spool import Spool

    Progress = Callable[[int, int, int], None]

# Texts computed and committed together, some batches of tokens: what a job that is killed computes again.
_CHARS_PER_CHUNK = 65_536
_TEXTS_PER_QUESTION = 256


@dataclass(frozen=True)
class Lengths:
    """Of the texts in tokens, by row, (n,) each: before and after the ends of those that are too long were cut off."""

    seen: NDArray[np.int32]
    used: NDArray[np.int32]

    @classmethod
    def of(cls, rows: int) -> Lengths:
        """Unknown ones."""
        return cls(np.zeros(rows, np.int32), np.zeros(rows, np.int32))


@dataclass(frozen=True)
class Missing:
    """The texts that have no vector yet, in the order in which they are computed."""

    firsts: array[int]
    """Where they lie in the spool: 8 bytes for each, whatever their length."""
    chars: int
    """Of all of them."""
    rows: int
    """That wait for them."""
    known_tokens: int
    """Of the texts that have one, each once."""


@dataclass(frozen=True)
class Computed:
    """What went through the model."""

    texts: int
    tokens: int


@dataclass(frozen=True)
class Rows:
    """The arrays that are filled: vectors, (n, dim), and lengths. Equal texts get equal vectors, to the bit."""

    spool: Spool
    vectors: NDArray[np.float32]
    lengths: Lengths

    def fill(self, known: Mapping[bytes, Cached]) -> int:
        """Writes what is known of some texts to the rows that have them; says how many rows."""
        places = self.spool.rows(list(known))
        for digest, rows in places.items():
            cached = known[digest]
            self.vectors[rows] = cached.vector
            self.lengths.seen[rows], self.lengths.used[rows] = cached.seen, cached.used
        return sum(map(len, places.values()))


def adopt(live: LiveStore, cache: Cache, space: Space, spool: Spool) -> int:
    """Puts into the cache what a server computed of texts of the corpus that the cache lacks; says of how many.

    Only those that this job would have computed itself: of the same encoder, with the same precision.
    """
    adopted, vectors = 0, _vectors(live, space)
    while batch := dict(islice(vectors, _TEXTS_PER_QUESTION)):
        wanted = [digest for digest, rows in spool.rows(list(batch)).items() if rows]
        new = set(wanted) - cache.get(wanted).keys()
        cache.keep({digest: batch[digest] for digest in wanted if digest in new})
        adopted += len(new)
    return adopted


def _vectors(live: LiveStore, space: Space) -> Iterator[tuple[bytes, Cached]]:
    for entry in live.since(0):
        held = entry.embedded
        if held is not None and Space(held.fingerprint, held.precision, len(held.vector)) == space:
            yield entry.digest, Cached(held.vector, held.tokens_seen, held.tokens_used)


def reuse(cache: Cache, rows: Rows) -> Missing:
    """Fills the rows whose texts were embedded before, and says which are missing."""
    firsts, chars, filled, tokens = array("q"), 0, 0, 0
    texts = rows.spool.texts()
    while batch := list(islice(texts, _TEXTS_PER_QUESTION)):
        known = cache.get([text.digest for text in batch])
        filled += rows.fill(known)
        tokens += sum(cached.used for cached in known.values())
        for text in batch:
            if text.digest not in known:
                firsts.append(text.first)
                chars += text.chars
    return Missing(firsts, chars, len(rows.vectors) - filled, tokens)


def compute(encoder: Encoder, missing: Missing, cache: Cache, rows: Rows, progress: Progress) -> Computed:
    """Computes the missing ones and fills their rows. `progress` is told rows, tokens and characters after each chunk.

    A chunk is formed from what is missing and committed whole. A job that is killed and begun again therefore forms
    the same chunks from where it stood, and gets the same vectors, to the bit.
    """
    texts = tokens = 0
    chunks = _chunks(map(rows.spool.read, missing.firsts))
    for chunk, tokenized in encoder.tokenize_ahead(chunks, lambda chunk: chunk.texts):
        vectors = encoder.embed_ids([token.ids for token in tokenized])  # (texts, dim)
        cache.put(chunk.digests, tokenized, vectors)
        parts = zip(chunk.digests, vectors, tokenized, strict=True)
        filled = rows.fill({digest: Cached(vector, token.seen, token.used) for digest, vector, token in parts})
        texts += len(chunk.digests)
        tokens += sum(token.used for token in tokenized)
        progress(filled, sum(token.used for token in tokenized), sum(map(len, chunk.texts)))
    return Computed(texts, tokens)


@dataclass(frozen=True)
class _Chunk:
    digests: list[bytes]
    texts: list[str]


def _chunks(texts: Iterable[tuple[bytes, str]]) -> Iterator[_Chunk]:
    """At least one text and about `_CHARS_PER_CHUNK` characters at a time."""
    chunk, chars = _Chunk([], []), 0
    for digest, text in texts:
        chunk.digests.append(digest)
        chunk.texts.append(text)
        chars += len(text)
        if chars >= _CHARS_PER_CHUNK:
            yield chunk
            chunk, chars = _Chunk([], []), 0
    if chunk.texts:
        yield chunk
