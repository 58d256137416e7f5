"""Tensors of any file: a checkpoint of fastvar, or a file of another library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import file_format
from fastvar.checkpoint.foreign import Foreign, open_foreign
from fastvar.checkpoint.foreign.source import Opaque, open_regular
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.sets import CheckpointFile


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether the file begins like a checkpoint of fastvar; the rest may be damaged."""
    with open_regular(os.fspath(path)) as stream:
        return stream.read(len(file_format.MAGIC)) == file_format.MAGIC


def open_any(path: str | os.PathLike[str], opaque: Opaque | None = None) -> File | Foreign:
    """Open a checkpoint of fastvar, or a file of another library, to which `opaque` applies."""
    return CheckpointFile(path) if is_checkpoint(path) else open_foreign(path, opaque=opaque)


def exported(file: File | Foreign) -> dict[str, str]:
    """Map the names of tensors outside fastvar to those in the file. Variables have their own names.

    Arrays of the state are left out, because they mean nothing without it.
    """
    if isinstance(file, Foreign):
        return {name: name for name in file.entries}
    names: dict[str, str] = {}
    for name in file.entries:
        if not name.startswith("state/"):
            bare = name.removeprefix("variables/")
            if names.setdefault(bare, name) != name:
                raise ValueError(f"{file.path}: {name!r} and {names[bare]!r} would have one name outside fastvar")
    return names


class Values(NamedTuple):
    """Statistics of the finite numbers in a tensor, and the count of those that are not finite."""

    norm: float
    low: float
    high: float
    nonfinite: int


def values_of(array: Array) -> Values:
    """Return the statistics of an array, computed in chunks. For complex numbers, use the magnitude.

    Examples
    --------
    >>> import numpy as np
    >>> values_of(np.float32([3, -4, np.nan]))
    Values(norm=5.0, low=-4.0, high=3.0, nonfinite=1)
    """
    norm, low, high, nonfinite = 0.0, math.inf, -math.inf, 0
    for (part,) in parts(array):
        numbers = np.abs(part) if part.dtype.kind == "c" else part
        finite = numbers[np.isfinite(numbers)]
        nonfinite += numbers.size - finite.size
        norm = math.hypot(norm, float(np.linalg.norm(finite)))
        low = min(low, finite.min(initial=math.inf))
        high = max(high, finite.max(initial=-math.inf))
    if low > high:  # no number is finite
        low = high = math.nan
    return Values(norm, float(low), float(high), nonfinite)


def parts(*arrays: Array) -> Iterator[tuple[Any, ...]]:
    """Yield arrays of one shape side by side, chunk by chunk, as float64 or complex128."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, file_format.CHUNK):
        stretch = [array[start : start + file_format.CHUNK] for array in flat]
        yield tuple(s.astype(np.complex128 if s.dtype.kind == "c" else np.float64) for s in stretch)
