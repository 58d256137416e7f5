"""Formats of weights and slots in plain NumPy: the specification, and the oracle of those of the kernels.

Encoders round stochastically: `random` has one number of 32 bits per element. Half of the range in place of random
numbers rounds to nearest, for values that are written only once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvar import formats
from fastvar.buffers import Array
from fastvar.formats import GROUP, Codes, Master, groups_of
from fastvar.masters import join, split

NEAREST = np.uint32(1 << 31)  # in place of random numbers
TWO, REST = np.uint32(0x40000000), np.uint32(19)  # see codes.pxi
LEAST = np.float32(2.0**-100)  # a group whose numbers are all smaller is stored as 0


def _number(bits: Any) -> Any:
    return np.asarray(bits, np.uint32).view(np.float32)


MOST_UNSIGNED, MOST_SIGNED = (_number(TWO + np.uint32(code << REST)) - np.float32(2) for code in (255, 127))


def encode_bfloat16(x: Array, random: Any) -> Array:
    """Return float32 numbers, rounded to bfloat16."""
    bits = x.view(np.uint32) + (random >> np.uint32(16))
    bits = np.where(np.isnan(x), np.uint32(0x7FC00000), bits)
    return (bits >> np.uint32(16)).astype(np.uint16).view(formats.dtype_of("bfloat16"))


def decode_codes(stored: Codes) -> Array:
    """Return the float32 numbers of an 8-bit slot."""
    codes, scales = _grouped(stored.codes.astype(np.uint32)), stored.scales[:, None]
    signed = scales < 0
    with np.errstate(all="ignore"):
        y = (_number(TWO + ((np.where(signed, codes & 127, codes)) << REST)) - np.float32(2)) * scales
    y = np.where(signed & (codes < 128), -y, y)
    return _ungrouped(y, stored.codes.shape)


def encode_codes(x: Array, random: Any) -> Codes:
    """Return float32 numbers as codes, and the scales of their groups."""
    groups = _grouped(x)
    random = _grouped(np.broadcast_to(random, x.shape))
    largest = np.abs(groups).view(np.uint32).max(1, initial=0).astype(np.uint32).view(np.float32)
    negative: Any = (groups < 0).any(1)
    most = np.where(negative, MOST_SIGNED, MOST_UNSIGNED)
    small: Any = largest < LEAST
    bad: Any = ~np.isfinite(largest)
    with np.errstate(all="ignore"):
        inverse = most / largest
        while (over := (largest * inverse > most) & ~small & ~bad).any():
            inverse = np.where(over, np.nextafter(inverse, np.float32(0)), inverse)
        scales = np.where(negative, -(largest / most), largest / most)
        bits = (np.abs(groups) * inverse[:, None] + np.float32(2)).view(np.uint32)
        codes = (bits + (random >> np.uint32(32 - REST)) >> REST) - (TWO >> REST)
    signs = np.where(groups < 0, np.uint32(128), np.uint32(0))
    positive = np.maximum(codes, np.uint32(1) * (groups > 0))
    codes = np.where(negative[:, None], codes | signs, positive)
    codes[small | bad] = 0
    scales = np.where(small, np.float32(0), np.where(bad, np.float32(np.nan), scales))
    return Codes(_ungrouped(codes.astype(np.uint8), x.shape), scales.astype(np.float32))


def _grouped(x: Array) -> Array:
    """Return an array as groups, the last one filled up with zeros."""
    flat = np.zeros(groups_of(x.size) * GROUP, x.dtype)
    flat[: x.size] = x.reshape(-1)
    return flat.reshape(-1, GROUP)


def _ungrouped(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(-1)[: int(np.prod(shape, dtype=np.intp))].reshape(shape)


def decoded(stored: Any, dtype: npt.DTypeLike) -> Array:
    """Return the numbers of an array in a dtype that rules compute in: the array itself if it has that dtype."""
    if isinstance(stored, Master):
        return join(stored).astype(dtype)
    if isinstance(stored, Codes):
        return decode_codes(stored).astype(dtype)
    array: Array = stored.astype(dtype, copy=False)
    return array


def encode(stored: Any, values: Array, random: Any, rows: Any = ...) -> None:
    """Store numbers in some rows of an array that is not in the dtype of rules, by default in all."""
    with np.errstate(all="ignore"):
        x = np.asarray(values, np.float32, order="C")
    if isinstance(stored, Master):
        split(stored, x)  # other rows are the same as before
        return
    if not isinstance(stored, Codes):
        stored[rows] = encode_bfloat16(x[rows], random[rows])
        return
    part = encode_codes(x[rows], random[rows])
    stored.codes[rows] = part.codes
    if rows is ...:
        stored.scales[...] = part.scales
    else:  # each row has whole groups
        groups = math.prod(x.shape[1:]) // GROUP
        stored.scales.reshape(len(x), groups)[rows] = part.scales.reshape(len(rows), groups)


def stored_copy(stored: Any) -> Any:
    """Return a copy of the memory of an array."""
    return type(stored)(*(part.copy() for part in stored)) if isinstance(stored, tuple) else stored.copy()


def put_back(stored: Any, copy: Any) -> None:
    """Write a copy of the memory of an array back."""
    for part, old in zip(stored, copy, strict=True) if isinstance(stored, tuple) else [(stored, copy)]:
        part[...] = old
