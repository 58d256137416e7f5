"""Which elements of the variables each rank updates: a range of their concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastvar.buffers import Array
from fastvar.kernels.stages import BLOCK


def micro_batches(count: int, ranks: int, rank: int) -> range:
    """Return the numbers of the micro-batches of a rank: a contiguous part of all."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def cuts(sizes: Sequence[int], ranks: int, whole: bool) -> Array:
    """Return where the range of each rank begins, and the end of the last.

    Parameters
    ----------
    sizes : sequence of int
        The elements of each variable.
    ranks : int
        The number of ranks.
    whole : bool
        Whether a variable must not be cut. Otherwise it is cut between blocks of `BLOCK` elements, whose sums of
        squares are then the same however it is cut.
    """
    starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
    total = int(starts[-1])
    ends = [_place(starts, rank * total // ranks, whole) for rank in range(1, ranks)]
    return np.maximum.accumulate(np.array([0, *ends, total], np.int64))


def _place(starts: Array, wanted: int, whole: bool) -> int:
    """Return the last place for a cut before `wanted`; between whole variables, the nearest."""
    i = int(np.searchsorted(starts, wanted, "right")) - 1
    begin = int(starts[i])
    if not whole:
        return begin + (wanted - begin) // BLOCK * BLOCK
    end = int(starts[min(i + 1, len(starts) - 1)])
    return begin if wanted - begin <= end - wanted else end


def parts(sizes: Sequence[int], ends: Array) -> list[list[slice]]:
    """Return for each rank the part of each variable that it has, which may be empty."""
    stops = np.cumsum(np.asarray(sizes, np.int64))
    begins = stops - sizes
    of_ranks = []
    for low, high in pairwise(ends):
        firsts, lasts = np.clip([low - begins, high - begins], 0, sizes)
        of_ranks.append([slice(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)])
    return of_ranks
