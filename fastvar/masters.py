"""Weights of 16 bits: the float32 numbers with which rules compute, and what a master keeps of them.

`kernels/masters.pxi` does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.formats import Master, kept_beside

PIECE = 1 << 14  # elements


def join(master: Master) -> Array:
    """Return the float32 numbers of weights with a master. Where somebody has written other weights, these count.

    In bfloat16 they count to within half the distance to the next number: the lower bits stay. A sum of both that
    is NaN, such as that of 0 and negative lower bits, shows that they do not belong together.
    """
    numbers: Array = np.empty(master.weights.shape, np.float32)
    for (weights, rest), part in _pieces(master, numbers):
        part[...] = (_join_float16 if weights.dtype == np.float16 else _join_bfloat16)(weights, rest)
    return numbers


def split(master: Master, x: Array) -> None:
    """Write float32 numbers into weights with a master. In bfloat16, every NaN becomes the same one."""
    for (weights, rest), part in _pieces(master, x):
        if weights.dtype == np.float16:
            weights[...], rest[...] = to_float16(part), part
            continue
        bits = np.where(np.isnan(part), np.uint32(0x7FC00000), part.view(np.uint32))
        weights.view(np.uint16)[...] = (bits + np.uint32(0x8000)) >> np.uint32(16)
        rest[...] = (bits & np.uint32(0xFFFF)).astype(np.uint16).view(np.int16)


def _pieces(master: Master, numbers: Array) -> Iterator[tuple[Master, Array]]:
    """Yield flat parts of contiguous arrays, so that temporary arrays stay small."""
    weights, rest, flat = (array.reshape(-1) for array in (*master, numbers))
    for k in range(0, flat.size, PIECE):
        yield Master(weights[k : k + PIECE], rest[k : k + PIECE]), flat[k : k + PIECE]


def _join_float16(weights: Array, rest: Array) -> Array:
    same = to_float16(rest).view(np.uint16) == weights.view(np.uint16)
    return np.where(same, rest, weights.astype(np.float32))


def _join_bfloat16(weights: Array, rest: Array) -> Array:
    high = weights.view(np.uint16).astype(np.uint32) << np.uint32(16)
    numbers = (high + rest.astype(np.int32).view(np.uint32)).view(np.float32)
    return np.where(np.isnan(numbers), high.view(np.float32), numbers)


def to_float16(x: Array) -> Array:
    """Round float32 to nearest, ties to even. Every NaN becomes the same one, with its sign.

    NumPy's cast raises a flag of the processor for each number that is too large or small: 60 times the time.
    """
    bits, half = x.view(np.uint32), np.float32(0.5)
    size = bits & np.uint32(0x7FFFFFFF)
    with np.errstate(invalid="ignore"):  # adding 0.5 rounds a number below 2^-14 to a multiple of 2^-24
        denormal = (size.view(np.float32) + half).view(np.uint32) - half.view(np.uint32)
    even = size >> np.uint32(13) & np.uint32(1)
    normal = (size + np.uint32(0xFFF) + even - np.uint32(0x38000000)) >> np.uint32(13)
    rounded = np.where(size < 0x38800000, denormal, np.minimum(normal, np.uint32(0x7C00)))
    rounded = np.where(size > 0x7F800000, np.uint32(0x7E00), rounded)
    halves: Array = (rounded | bits >> np.uint32(16) & np.uint32(0x8000)).astype(np.uint16).view(np.float16)
    return halves


def exact(memory: Array | Master) -> Array:
    """Return the numbers with which rules compute: the array itself if it has their dtype."""
    if isinstance(memory, Master):
        return join(memory)
    array: Array = memory.astype(buffers.arithmetic(memory.dtype), copy=False)
    return array


def parted(weights: Array, values: Any) -> Master:
    """Return numbers as new weights like these, and what a master keeps."""
    x: Array = np.array(values, np.float32, order="C")
    parts = Master(np.empty(x.shape, weights.dtype), np.empty(x.shape, kept_beside(weights.dtype)))
    split(parts, x)
    return parts


def arrays_of(memory: Array | Master) -> tuple[Array, ...]:
    """Return the weights, and what a master keeps if there is one."""
    return memory if isinstance(memory, Master) else (memory,)


def writes(memory: Array | Master, values: Any) -> list[tuple[Array, Any]]:
    """Return pairs of target and value that write numbers into the weights, and into what a master keeps."""
    if isinstance(memory, Master):
        return [*zip(memory, parted(memory.weights, values), strict=True)]
    return [(memory, values)]


def rest_of(weights: Array) -> Array:
    """Return what a master keeps of numbers that the weights have exactly, as a new aligned array."""
    kept: Any = kept_beside(weights.dtype)
    return buffers.full(weights.shape, kept, weights if weights.dtype == np.float16 else 0)
