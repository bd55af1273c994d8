"""A rotation that spreads what a vector says evenly over its components, for codes of their signs.

Signs tell the same of every component. Those of an embedding differ: some vary several times as much as others, and
signs miss two to four times as many neighbours for that (docs/decisions/0027-codes-of-signs.md). Gao and Long 2024
(arXiv:2405.12497) turn all vectors at random; here signs are drawn once for all and a cosine transform mixes the
components (Ailon and Chazelle 2006), in two dimensions: 768 numbers as 24 x 32 take 43,000 products instead of 590,000,
and codes find as much.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEED = b"coldframe"


class Rotation:
    """The one rotation of vectors of a length, the same on every machine but for the rounding of fp32."""

    def __init__(self, dim: int) -> None:
        self._rows = next(count for count in range(isqrt(dim), 0, -1) if dim % count == 0)
        self._columns = dim // self._rows
        drawn = hashlib.shake_128(_SEED).digest(-(-dim // 8))
        bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[:dim]
        self._signs = 1 - 2 * bits.astype(np.float32)  # (dim,)
        self._left, self._right = _cosines(self._rows), np.ascontiguousarray(_cosines(self._columns).T)

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors, (..., dim), turned. Lengths and inner products stay as they are, to fp32's precision."""
        mixed = (vectors * self._signs).reshape(*vectors.shape[:-1], self._rows, self._columns)
        turned: NDArray[np.float32] = np.ascontiguousarray((self._left @ mixed @ self._right).reshape(vectors.shape))
        return turned


def _cosines(size: int) -> NDArray[np.float32]:
    """The orthonormal discrete cosine transform (type II), (size, size)."""
    k = np.arange(size)
    matrix = np.cos(np.pi * k[:, None] * (2 * k + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)
