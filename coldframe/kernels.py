"""What an int8 layer does beside its product: rounding what goes in, scaling what comes out, one pass over each row.

Torch needs a pass over the matrix for each step of either, most of them in fp32: together they take longer than the
products. Numba compiles these at import, for the processor at hand, in about a second; only int8 layers import them.
bf16, which Numba does not know, is the upper half of fp32 and comes as unsigned 16-bit numbers. Kernels run on the
calling thread, without Python's lock.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import float32, uint8, uint16, void
from torch import Tensor

ZERO_POINT = 128
"""Bytes are 1 to 255, around this: oneDNN multiplies unsigned by signed."""
LEVELS = 127
_LEAST_STEP = np.float32(1e-8)
_PER_LEVEL = np.float32(1 / LEVELS)
# A float of this size has no room for a fraction: the sum rounds, and its last byte is the result.
_PLACE = np.float32(2.0**23 + ZERO_POINT)
_ONE, _HALF = np.float32(1), np.float32(0.5)
_SIGNLESS = np.uint16(0x7FFF)

# GELU(x) = x (1/2 + t P(t^2)), t being x kept to +-4.25: a least-maximum fit, within 1e-4 of the exact one, whose
# bracket is 0 and 1 at the ends of the reach.
_REACH = np.float32(4.25)
_P0, _P1, _P2, _P3 = map(np.float32, (0.39841992, -0.065453343, 0.0092577487, -0.00094043073))
_P4, _P5, _P6, _P7 = map(np.float32, (6.5525062e-05, -2.9386679e-06, 7.570371e-08, -8.4597684e-10))

# Sums may be contracted to multiply-add; nothing here is infinite or no number.
_FAST = {"contract", "nnan", "ninf", "nsz"}
_inline = numba.njit(inline="always")
_Words, _Bytes, _Floats = uint16[:, ::1], uint8[:, ::1], float32[::1]


@_inline
def _widen(words, bits):  # type: ignore[no-untyped-def]
    for j in range(len(words)):
        bits[j] = np.int32(words[j]) << 16


@_inline
def _narrow(bits, words):  # type: ignore[no-untyped-def]
    for j in range(len(words)):  # to the nearest, ties to even
        words[j] = np.uint16((bits[j] + 0x7FFF + ((bits[j] >> 16) & 1)) >> 16)


@numba.njit(void(_Words, _Bytes, _Floats), nogil=True, fastmath=_FAST)
def _round_rows(x, rounded, steps):  # type: ignore[no-untyped-def]
    row = np.empty(x.shape[1], np.float32)
    bits = row.view(np.int32)
    for i in range(x.shape[0]):
        words, out = x[i], rounded[i]
        largest = np.uint16(0)  # without their signs, floats are ordered as integers are
        for j in range(len(words)):
            largest = max(largest, np.uint16(words[j] & _SIGNLESS))
        bits[0] = np.int32(largest) << 16
        step = max(row[0] * _PER_LEVEL, _LEAST_STEP)
        steps[i] = step
        _widen(words, bits)
        inverse = _ONE / step
        for j in range(len(words)):
            row[j] = row[j] * inverse + _PLACE
        for j in range(len(words)):
            out[j] = np.uint8(bits[j])


@numba.njit(void(_Words, _Floats, _Floats), nogil=True, fastmath=_FAST)
def _scale(product, steps, bias):  # type: ignore[no-untyped-def]
    row = np.empty(product.shape[1], np.float32)
    bits = row.view(np.int32)
    for i in range(product.shape[0]):
        _widen(product[i], bits)
        step = steps[i]
        for j in range(len(row)):
            row[j] = row[j] * step + bias[j]
        _narrow(bits, product[i])


@numba.njit(void(_Words, _Floats, _Floats, _Words), nogil=True, fastmath=_FAST)
def _scale_and_add(product, steps, bias, residual):  # type: ignore[no-untyped-def]
    row, more = np.empty(product.shape[1], np.float32), np.empty(product.shape[1], np.float32)
    bits, more_bits = row.view(np.int32), more.view(np.int32)
    for i in range(product.shape[0]):
        _widen(product[i], bits)
        _widen(residual[i], more_bits)
        step = steps[i]
        for j in range(len(row)):
            row[j] = row[j] * step + (bias[j] + more[j])
        _narrow(bits, product[i])


@numba.njit(void(_Words, _Floats, _Floats), nogil=True, fastmath=_FAST)
def _scale_and_gelu(product, steps, bias):  # type: ignore[no-untyped-def]
    row = np.empty(product.shape[1], np.float32)
    bits = row.view(np.int32)
    for i in range(product.shape[0]):
        _widen(product[i], bits)
        step = steps[i]
        for j in range(len(row)):
            x = row[j] * step + bias[j]
            t = min(max(x, -_REACH), _REACH)
            s = t * t
            p = ((_P7 * s + _P6) * s + _P5) * s + _P4
            p = (((p * s + _P3) * s + _P2) * s + _P1) * s + _P0
            row[j] = x * (_HALF + t * p)
        _narrow(bits, product[i])


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 rows as bytes around `ZERO_POINT`, (rows, n), and the size of a step in each, (rows,)."""
    x = x.contiguous()
    rounded, steps = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
    _round_rows(_words(x), rounded.numpy(), steps.numpy())
    return rounded, steps


def scale_rows(
    product: Tensor, steps: Tensor, bias: Tensor, *, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """Writes product * step + bias over the product, (rows, n) in bf16; GELU of it, or the residual added to it.

    `steps`, (rows,), and `bias`, (n,), are fp32; so are the sums, until they are written.
    """
    numbers = _words(product), steps.numpy(), bias.numpy()
    if gelu:
        _scale_and_gelu(*numbers)
    elif residual is not None:
        _scale_and_add(*numbers, _words(residual.contiguous()))
    else:
        _scale(*numbers)
    return product


def _words(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.uint16]] = x.view(torch.uint16).numpy()
    return array
