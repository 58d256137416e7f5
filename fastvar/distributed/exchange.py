"""Adding the gradients of micro-batches over all ranks, and bringing the new weights to all.

Every rank adds its own gradients as far as the order allows. It sends of each remaining sum the part that another
rank updates, and gets the parts of others that it updates itself. Then it adds what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvar import buffers, kernels, threads
from fastvar.buffers import Array
from fastvar.distributed import partition
from fastvar.distributed.meeting import Meeting
from fastvar.distributed.orders import Order, Stack, pieces

SMALL = 1 << 15  # bytes of an array that is sent together with others


class Sum:
    """A sum of gradients: for each dtype one array, with a view for each variable.

    Attributes
    ----------
    flats : dict of dtype to ndarray
        The numbers of all variables of a dtype, in their order.
    views : list of ndarray
        One of the shape of each variable.
    """

    def __init__(self, owner: str, variables: Sequence[Any], labels: Sequence[str]) -> None:
        self.flats: dict[np.dtype[Any], Array] = {}
        for dtype in dict.fromkeys(v.dtype for v in variables):
            self.flats[dtype] = buffers.empty((sum(v.size for v in variables if v.dtype == dtype),), dtype)
        self.views: list[Array] = []
        used = dict.fromkeys(self.flats, 0)
        for v in variables:
            self.views.append(self.flats[v.dtype][used[v.dtype] : used[v.dtype] + v.size].reshape(v.shape))
            used[v.dtype] += v.size
        none, group = [()] * len(labels), [0] * len(labels)
        self._plan = kernels.Plan(owner, kernels.RULES["gradient_descent"], labels, self.views, none, group)

    def fill(self, value: float) -> None:
        """Set all numbers."""
        for flat in self.flats.values():
            flat.fill(value)

    def check(self, gradients: Sequence[Any]) -> int:
        """Check the gradients that `add` will add. Return how many there are."""
        return int(self._plan.bind(gradients))

    def add(self, times: float) -> None:
        """Add a multiple of the gradients that have been checked."""
        self._plan.run([(-times,)], threads.get_num_threads())

    def join(self, other: Sum) -> None:
        """Add another sum."""
        add_flats(self.flats, other.flats)


def add_flats(first: dict[Any, Array], second: dict[Any, Array]) -> None:
    """Add the second numbers to the first."""
    with np.errstate(all="ignore"):
        for dtype, flat in first.items():
            np.add(flat, second[dtype], out=flat)


class Exchange:
    """The exchange of a step.

    Parameters
    ----------
    meeting : Meeting
        The ranks.
    order : Order
        The order of adding.
    total : int
        The number of micro-batches of a step.
    variables : sequence of Variable
        In the same order on all ranks.
    whole : bool
        Whether variables must not be cut.

    Attributes
    ----------
    parts : list of list of slice
        For each rank the part of each variable that it updates, of the elements in C order.
    """

    def __init__(self, meeting: Meeting, order: Order, total: int, variables: Sequence[Any], whole: bool) -> None:
        self._meeting, self._order, self._total = meeting, order, total
        sizes = [v.size for v in variables]
        ends = partition.cuts(sizes, meeting.size, whole)
        self.parts: list[list[slice]] = partition.parts(sizes, ends)
        self._flat_parts = [_of_dtypes(variables, parts) for parts in self.parts]
        ranks = range(meeting.size)
        self._pieces = [pieces(order, total, partition.micro_batches(total, meeting.size, rank)) for rank in ranks]
        self._mine = self._flat_parts[meeting.rank]
        self._received = [self._room(rank) for rank in ranks]
        self._arriving = [
            _with_elements([array for flats in of_rank for array in flats.values()]) for of_rank in self._received
        ]
        self._weights = [
            Parcel([v.value.reshape(-1)[part] for v, part in zip(variables, parts, strict=True)])
            for parts in self.parts
        ]

    def _room(self, rank: int) -> list[dict[Any, Array]]:
        """Return memory for what a rank sends: my part of each of its sums."""
        if rank == self._meeting.rank:
            return []
        shape = {dtype: (part.stop - part.start,) for dtype, part in self._mine.items()}
        return [{dtype: buffers.empty(n, dtype) for dtype, n in shape.items()} for _ in self._pieces[rank]]

    def give_weights(self, arrays: list[Array]) -> None:
        """Give all ranks the arrays of rank 0: in each round, every rank that has them sends them to one more."""
        meeting, have = self._meeting, 1
        while have < meeting.size:
            to = meeting.rank + have if meeting.rank < have else -1
            since = meeting.rank - have if meeting.rank < 2 * have else -1
            sent = [arrays if rank == to else [] for rank in range(meeting.size)]
            received = [arrays if rank == since else [] for rank in range(meeting.size)]
            meeting.exchange(sent, received, "the weights of rank 0")
            have *= 2

    def mean_of(self, sums: Sequence[Sum], scale: float) -> dict[Any, Array]:
        """Return my part of the sum over all ranks, times a scale, given what remains of my sums."""
        meeting, mine = self._meeting, [sum_.flats for sum_ in sums]
        sent = [
            _with_elements([flats[dtype][part] for flats in mine for dtype, part in parts.items()])
            if rank != meeting.rank
            else []
            for rank, parts in enumerate(self._flat_parts)
        ]
        meeting.exchange(sent, self._arriving, "the sums of gradients")
        here = [{dtype: flats[dtype][part] for dtype, part in self._mine.items()} for flats in mine]
        stack: Stack[dict[Any, Array]] = Stack(self._order, self._total, add_flats)
        for rank, there in enumerate(self._pieces):
            for piece, flats in zip(there, here if rank == meeting.rank else self._received[rank], strict=True):
                stack.push(piece, flats)
        ((_, total),) = stack.held
        with np.errstate(all="ignore"):
            for dtype, flat in total.items():
                np.multiply(flat, dtype.type(scale), out=flat)
        return total

    def share_weights(self) -> None:
        """Send my part of the weights to all, and get theirs."""
        meeting, mine = self._meeting, self._weights[self._meeting.rank]
        mine.load()
        ranks = range(meeting.size)
        meeting.exchange(
            [[] if rank == meeting.rank else mine.arrays for rank in ranks],
            [[] if rank == meeting.rank else self._weights[rank].arrays for rank in ranks],
            "the new weights",
        )
        for rank in ranks:
            if rank != meeting.rank:
                self._weights[rank].unload()

    def own(self, flats: dict[Any, Array], variables: Sequence[Any]) -> list[Array]:
        """Return my part of each variable in flat arrays of my parts."""
        used = dict.fromkeys(flats, 0)
        views = []
        for v, part in zip(variables, self.parts[self._meeting.rank], strict=True):
            n = part.stop - part.start
            views.append(flats[v.dtype][used[v.dtype] : used[v.dtype] + n])
            used[v.dtype] += n
        return views


class Parcel:
    """Arrays to send or to receive. Small ones travel together in another one.

    Attributes
    ----------
    arrays : list of ndarray
        What travels.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        small = [a for a in arrays if 0 < a.nbytes <= SMALL]
        self._small = sorted(small, key=lambda a: -a.itemsize)  # so that all copies are aligned
        packed = buffers.empty((sum(a.nbytes for a in self._small),), np.uint8)
        self._copies: list[Array] = []
        used = 0
        for a in self._small:
            self._copies.append(packed[used : used + a.nbytes].view(a.dtype).reshape(a.shape))
            used += a.nbytes
        self.arrays: list[Array] = _with_elements([*(a for a in arrays if a.nbytes > SMALL), packed])

    def load(self) -> None:
        """Copy the small arrays to what travels."""
        kernels.copy(self._copies, self._small)

    def unload(self) -> None:
        """Copy what has arrived to the small arrays."""
        kernels.copy(self._small, self._copies)


def _with_elements(arrays: Sequence[Array]) -> list[Array]:
    return [array for array in arrays if array.size]


def _of_dtypes(variables: Sequence[Any], parts: Sequence[slice]) -> dict[np.dtype[Any], slice]:
    """Return the part that a rank has of the numbers of each dtype, which is contiguous."""
    begins: dict[np.dtype[Any], int] = {}
    used: dict[np.dtype[Any], int] = dict.fromkeys((v.dtype for v in variables), 0)
    counts = dict(used)
    for v, part in zip(variables, parts, strict=True):
        if part.stop > part.start:
            begins.setdefault(v.dtype, used[v.dtype] + part.start)
        used[v.dtype] += v.size
        counts[v.dtype] += part.stop - part.start
    return {dtype: slice(begins.get(dtype, 0), begins.get(dtype, 0) + n) for dtype, n in counts.items()}
