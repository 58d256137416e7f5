"""Which elements of the variables each rank updates: a range of their concatenation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from fastvar.kernels.stages import BLOCK


def micro_batches(count: int, ranks: int, rank: int) -> range:
    """Return the numbers of the micro-batches of a rank: a contiguous part of all."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def cuts(sizes: Sequence[int], ranks: int, whole: Sequence[bool]) -> list[int]:
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
    starts = [*accumulate(sizes, initial=0)]
    total = starts[-1]
    ends = [_place(starts, rank * total // ranks, whole) for rank in range(1, ranks)]
    return [*accumulate([0, *ends, total], max)]


def _place(starts: Sequence[int], wanted: int, whole: Sequence[bool]) -> int:
    """Return the last place for a cut before `wanted`; between whole variables, the nearest."""
    i = bisect_right(starts, wanted) - 1
    begin = starts[i]
    if i < len(whole) and not whole[i]:
        return begin + (wanted - begin) // BLOCK * BLOCK
    end = starts[min(i + 1, len(starts) - 1)]
    return begin if wanted - begin <= end - wanted else end


class Partition:
    """The part of each variable that each rank updates.

    Parameters
    ----------
    sizes, ranks, whole
        As for `cuts`.
    """

    def __init__(self, sizes: Sequence[int], ranks: int, whole: Sequence[bool]) -> None:
        self._ranges = [*pairwise(accumulate(sizes, initial=0))]  # of the variables
        self._ends = cuts(sizes, ranks, whole)

    def of(self, rank: int) -> list[slice]:
        """Return the part of each variable that a rank has, which may be empty."""
        low, high = self._ends[rank : rank + 2]
        return [
            slice(min(max(low, begin), end) - begin, min(max(high, begin), end) - begin)
            for begin, end in self._ranges
        ]

    def holders(self, i: int) -> Iterator[tuple[int, slice]]:
        """Yield the ranks that have elements of a variable, and which."""
        begin, end = self._ranges[i]
        first, last = bisect_right(self._ends, begin), bisect_right(self._ends, end)
        for rank in range(first - 1, min(last, len(self._ends) - 1)):
            low, high = max(self._ends[rank], begin), min(self._ends[rank + 1], end)
            if low < high:
                yield rank, slice(low - begin, high - begin)
