"""The phase that costs: every distinct text of the corpus through the encoder, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder
    from indexer.spool import Spool

# Texts taken from the spool at a time, about two batches of tokens: progress is reported after each.
_CHARS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class Embedded:
    """Lengths of the texts, by row; the vectors are in the array that `embed` was given."""

    tokens_seen: NDArray[np.int32]
    tokens_used: NDArray[np.int32]
    computed: int
    """Tokens that went through the model."""


def embed(
    encoder: Encoder,
    spool: Spool,
    rows: Mapping[bytes, Sequence[int]],
    vectors: NDArray[np.float32],
    progress: Callable[[int, int, int], None],
) -> Embedded:
    """Writes the vector of every row into `vectors`, (n, dim). Equal texts are computed once and get equal vectors.

    `rows` maps a text's digest to its rows. `progress` is told articles, tokens and characters after each batch.
    """
    seen, used = np.zeros(len(vectors), np.int32), np.zeros(len(vectors), np.int32)
    computed = 0
    for digests, texts in _chunks(spool.texts()):
        tokens = encoder.tokenize(texts)
        embedded = encoder.embed_ids([t.ids for t in tokens])  # (texts, dim)
        for digest, token, vector in zip(digests, tokens, embedded, strict=True):
            places = list(rows[digest])
            vectors[places] = vector
            seen[places], used[places] = token.seen, token.used
        chunk_tokens = sum(t.used for t in tokens)
        computed += chunk_tokens
        progress(sum(len(rows[d]) for d in digests), chunk_tokens, sum(map(len, texts)))
    return Embedded(seen, used, computed)


def _chunks(texts: Iterator[tuple[bytes, str]]) -> Iterator[tuple[list[bytes], list[str]]]:
    """Digests and texts, at least one and about `_CHARS_PER_CHUNK` characters at a time."""
    digests: list[bytes] = []
    chunk: list[str] = []
    chars = 0
    for digest, text in texts:
        digests.append(digest)
        chunk.append(text)
        chars += len(text)
        if chars >= _CHARS_PER_CHUNK:
            yield digests, chunk
            digests, chunk, chars = [], [], 0
    if chunk:
        yield digests, chunk
