"""Which elements of the variables each rank updates: a range of their concatenation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastvar.buffers import Array
from fastvar.kernels.stages import BLOCK


def micro_batches(count: int, ranks: int, rank: int) -> range:
    """Return the numbers of the micro-batches of a rank: a contiguous part of all."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def cuts(sizes: Sequence[int], ranks: int, whole: Sequence[bool]) -> Array:
    """Return where the range of each rank begins, and the end of the last.

    Parameters
    ----------
    sizes : sequence of int
        The elements of each variable.
    ranks : int
        The number of ranks.
    whole : sequence of bool
        Whether each variable must not be cut. Otherwise it is cut between blocks of `BLOCK` elements, whose sums
        of squares are then the same however it is cut.
    """
    starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
    total = int(starts[-1])
    ends = [_place(starts, rank * total // ranks, whole) for rank in range(1, ranks)]
    return np.maximum.accumulate(np.array([0, *ends, total], np.int64))


def _place(starts: Array, wanted: int, whole: Sequence[bool]) -> int:
    """Return the last place for a cut before `wanted`; between whole variables, the nearest."""
    i = int(np.searchsorted(starts, wanted, "right")) - 1
    begin = int(starts[i])
    if i < len(whole) and not whole[i]:
        return begin + (wanted - begin) // BLOCK * BLOCK
    end = int(starts[min(i + 1, len(starts) - 1)])
    return begin if wanted - begin <= end - wanted else end


class Partition:
    """The part of each variable that each rank updates.

    Parameters
    ----------
    sizes, ranks, whole
        As for `cuts`.
    """

    def __init__(self, sizes: Sequence[int], ranks: int, whole: Sequence[bool]) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._ends = cuts(sizes, ranks, whole)

    def of(self, rank: int) -> list[slice]:
        """Return the part of each variable that a rank has, which may be empty."""
        low, high = self._ends[rank : rank + 2]
        firsts, lasts = np.clip([low - self._begins, high - self._begins], 0, self._sizes).tolist()
        return [slice(a, b) for a, b in zip(firsts, lasts, strict=True)]

    def holders(self, i: int) -> Iterator[tuple[int, slice]]:
        """Yield the ranks that have elements of a variable, and which."""
        begin, size = int(self._begins[i]), int(self._sizes[i])
        first, last = np.searchsorted(self._ends, [begin, begin + size], "right")
        for rank in range(int(first) - 1, min(int(last), len(self._ends) - 1)):
            low, high = max(int(self._ends[rank]) - begin, 0), min(int(self._ends[rank + 1]) - begin, size)
            if low < high:
                yield rank, slice(low, high)
