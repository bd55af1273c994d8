"""What an int8 layer does beside its products: rounding what goes in, scaling what comes out, and the softmax of
attention, one pass over each row.

Torch needs a pass over the matrix for each step of either, most of them in fp32: together they take longer than the
products. Numba compiles these at import, for the processor at hand, in some seconds; int8 layers import them, and
`Encoder.compile`. bf16, which Numba does not know, is the upper half of fp32 and comes as unsigned 16-bit numbers.
Kernels run on the calling thread, without Python's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from numba import float32, int64, types, uint8, uint16, void
from torch import Tensor

if TYPE_CHECKING:
    from coldframe.softmax import Band

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

# 2^x = a polynomial within 6e-6 of it where x is at most a half; fitted for the least squares of the relative error.
_LOG2_E = np.float32(1.4426950408889634)
_E0, _E1, _E2, _E3, _E4 = map(np.float32, (0.99999944, 0.69312799, 0.24024699, 0.05587073, 0.00955405))
_WHOLE, _LEAST_POWER = np.float32(1.5 * 2.0**23), np.float32(-126)
_SIGNLESS_32 = np.int32(0x7FFFFFFF)

# Sums may be contracted to multiply-add; nothing here is infinite or no number.
_FAST = {"contract", "nnan", "ninf", "nsz"}
_inline = numba.njit(inline="always")
_Words, _Bytes, _Floats, _Scores = uint16[:, ::1], uint8[:, ::1], float32[::1], uint16[:, :, ::1]
_Shape, _Band = types.UniTuple(int64, 2), types.UniTuple(int64, 4)  # type: ignore[no-untyped-call]


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


@numba.njit(fastmath=_FAST)
def _largest(bits):  # type: ignore[no-untyped-def]
    """Of floats, by their bits: with all but the sign of negative ones turned, they are ordered as integers are."""
    largest = np.int32(-(2**31))
    for j in range(len(bits)):
        largest = max(largest, np.int32(bits[j] ^ ((bits[j] >> 31) & _SIGNLESS_32)))
    return np.int32(largest ^ ((largest >> 31) & _SIGNLESS_32))


@numba.njit(fastmath=_FAST)
def _exponentials(row, bits, powers, power_bits, top):  # type: ignore[no-untyped-def]
    """exp(x - top) as 2^n times a polynomial: the sum with `_WHOLE` rounds, and its last bits are n."""
    for j in range(len(row)):
        x = max((row[j] - top) * _LOG2_E, _LEAST_POWER)
        powers[j] = x + _WHOLE
        x -= powers[j] - _WHOLE
        row[j] = (((_E4 * x + _E3) * x + _E2) * x + _E1) * x + _E0
    for j in range(len(row)):
        bits[j] += power_bits[j] << 23


@numba.njit(fastmath=_FAST | {"reassoc"})
def _sum(row):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for j in range(len(row)):
        total += row[j]
    return total


@numba.njit(void(_Scores, _Shape, _Band), nogil=True, fastmath=_FAST)
def _softmax(scores, shape, band):  # type: ignore[no-untyped-def]
    (queries, keys), (front, back, low, high) = shape, band
    row, powers = np.empty(scores.shape[2], np.float32), np.empty(scores.shape[2], np.float32)
    bits, power_bits = row.view(np.int32), powers.view(np.int32)
    top = np.empty(1, np.int32)
    for n in range(scores.shape[0]):
        for i in range(queries):
            # What is seen is brought together: the window, the keys before it, and those after it.
            start = min(max(low + i, front), keys - back)
            stop = max(min(high + i, keys - back), start)
            first, second, seen = stop - start, stop - start + front, stop - start + front + back
            words = scores[n, i]  # a row of an iteration has no stride that the compiler knows: half as fast
            _widen(words[start:stop], bits[:first])
            _widen(words[:front], bits[first:second])
            _widen(words[keys - back : keys], bits[second:seen])
            top[0] = _largest(bits[:seen])
            _exponentials(row[:seen], bits[:seen], powers[:seen], power_bits[:seen], top.view(np.float32)[0])
            share = _ONE / _sum(row[:seen])
            for j in range(seen):
                row[j] *= share
            words[front:start] = 0
            words[stop:] = 0
            _narrow(bits[:first], words[start:stop])
            _narrow(bits[first:second], words[:front])
            _narrow(bits[second:seen], words[keys - back : keys])


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


def softmax_rows(scores: Tensor, shape: tuple[int, int], band: Band) -> Tensor:
    """Writes weights over scores, (documents, heads, queries and a few, keys and a few) in bf16, zero for what a query
    does not see. `shape` says how many queries and keys there are. Sums are fp32.
    """
    _softmax(_words(scores.flatten(0, 1)), shape, tuple(band))
    return scores


def _words(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.uint16]] = x.view(torch.uint16).numpy()
    return array
