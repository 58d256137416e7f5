"""Storage formats: the dtypes in which kernels read gradients in place, and the formats of weights and slots.

`kernels/formats.pxi` decodes them. The NumPy twin of every decoder of a dtype is the cast to float32 or float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FORMATS = {  # bytes of a number, in the order of formats.pxi
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
}


OF_SLOTS = ("bfloat16", "8bit")  # the formats of slots, beside the dtype of the weights
GROUP = 256  # elements of a variable with one scale


class Codes(NamedTuple):
    """The memory of a slot of the format "8bit": a code for each element, and a scale for each group of 256."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]


OF_MASTERS: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.int16), "float16": np.dtype(np.float32)}
"""What a master keeps of weights in 16 bits: the lower bits of each float32 number, or the number itself."""


class Master(NamedTuple):
    """The memory of weights in 16 bits, and what they leave out of float32 numbers."""

    weights: npt.NDArray[Any]
    rest: npt.NDArray[Any]


@lru_cache
def name_of(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, which NumPy takes microseconds to make."""
    return dtype.name


@lru_cache
def kept_beside(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype of what a master keeps of weights of `dtype`, or None if these have no masters."""
    return OF_MASTERS.get(dtype.name)


def groups_of(size: int) -> int:
    """Return how many groups so many elements have; the last one may be smaller."""
    return -(-size // GROUP)


@lru_cache
def in_place(dtype: np.dtype[Any]) -> bool:
    """Return whether kernels read arrays of `dtype` in place (if they are contiguous and aligned)."""
    if FORMATS.get(dtype.name) != dtype.itemsize:
        return False
    try:
        return dtype == np.dtype(dtype.name)  # it is the dtype of that name, in native byte order
    except TypeError:  # NumPy does not know the name
        return False


def dtype_of(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return a dtype. Unlike NumPy, it knows the name "bfloat16"."""
    try:
        return np.dtype(dtype)
    except TypeError:
        if not (isinstance(dtype, str) and dtype in FORMATS):
            raise
        import ml_dtypes

        known: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        return known
