"""Storage formats: the dtypes in which kernels read gradients in place.

`kernels/formats.pxi` decodes them. The NumPy twin of every decoder is the cast to float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FORMATS = {  # bytes of a number, in the order of formats.pxi
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
}


def in_place(dtype: np.dtype[Any]) -> bool:
    """Return whether kernels read arrays of `dtype` in place (if they are contiguous and aligned)."""
    if FORMATS.get(dtype.name) != dtype.itemsize:
        return False
    try:
        return dtype == np.dtype(dtype.name)  # it is the dtype of that name, in native byte order
    except TypeError:  # NumPy does not know the name
        return False


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of a format."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
