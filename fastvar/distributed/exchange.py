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
from fastvar.distributed.meeting import Meeting
from fastvar.distributed.orders import Order, Piece, Stack, pieces
from fastvar.distributed.partition import Partition, micro_batches
from fastvar.distributed.rows import joined, read, summed, times, with_elements
from fastvar.masters import arrays_of
from fastvar.place import label
from fastvar.slices import Rows
from fastvar.tables import count

SMALL = 1 << 15  # bytes of an array that is sent together with others
ROUTES = 4  # that are kept for the next step


Flats = dict[np.dtype[Any], Array]
Runs = list[tuple[np.dtype[Any], slice]]


class Sum:
    """A sum of gradients.

    Parameters
    ----------
    owner : str
        The beginning of error messages.
    variables : sequence of Variable
        All variables.
    sparse : sequence of int
        The numbers of those with sparse gradients.

    Attributes
    ----------
    flats : dict of dtype to ndarray
        The numbers of all other variables of a dtype, in their order.
    rows : list of Rows or None
        The rows of those with sparse gradients.
    """

    def __init__(self, owner: str, variables: Sequence[Any], sparse: Sequence[int]) -> None:
        self._owner, self._n, self._sparse = owner, len(variables), {i: variables[i] for i in sparse}
        dense = [(i, variables[i], summed(variables[i]), place) for i, place in places(variables, sparse).items()]
        lengths = {dtype: place.stop for _, _, dtype, place in dense}
        self.flats: Flats = {dtype: buffers.empty((n,), dtype) for dtype, n in lengths.items()}
        views = [self.flats[dtype][place].reshape(v.shape) for _, v, dtype, place in dense]
        labels = [label(v, i) for i, v, _, _ in dense]
        none, group = [()] * len(labels), [0] * len(labels)
        self._plan = kernels.Plan(owner, kernels.RULES["gradient_descent"], labels, views, none, group)
        self.rows: list[Rows | None] = []
        self._read: list[Rows | None] = []

    def fill(self, value: float) -> None:
        """Set all numbers, and no rows."""
        for flat in self.flats.values():
            flat.fill(value)
        self.rows = [None] * len(self._sparse)

    def check(self, gradients: Sequence[Any]) -> None:
        """Check the gradients that `add` will add."""
        if len(gradients) != self._n:
            raise ValueError(f"{self._owner}: must be given {count(self._n, 'gradient')}, got {len(gradients)}")
        self._read = [
            None if gradients[i] is None else read(gradients[i], v, f"{self._owner}: gradient of {label(v, i)}")
            for i, v in self._sparse.items()
        ]
        self._plan.bind([g for i, g in enumerate(gradients) if i not in self._sparse])

    def add(self, factor: float) -> None:
        """Add a multiple of the gradients that have been checked."""
        self._plan.run([(-factor,)], threads.get_num_threads())
        for k, (v, gradient) in enumerate(zip(self._sparse.values(), self._read, strict=True)):
            if gradient is not None:
                self.rows[k] = joined(self.rows[k], times(gradient, factor, summed(v)))

    def join(self, other: Sum) -> None:
        """Add another sum."""
        with np.errstate(all="ignore"):
            add(self.flats, other.flats, [(dtype, slice(None)) for dtype in self.flats])
        self.rows = [joined(mine, rows) for mine, rows in zip(self.rows, other.rows, strict=True)]


def add(first: Flats, second: Flats, runs: Runs) -> None:
    """Add some of the second numbers to the first."""
    for dtype, run in runs:
        to = first[dtype][run]
        np.add(to, second[dtype][run], out=to)


def places(variables: Sequence[Any], sparse: Sequence[int]) -> dict[int, slice]:
    """Return where each variable is in the array of its dtype, but those with sparse gradients."""
    used: dict[np.dtype[Any], int] = {}
    found = {}
    for i, v in enumerate(variables):
        if i not in sparse:
            begin = used.get(dtype := summed(v), 0)
            used[dtype] = begin + v.size
            found[i] = slice(begin, used[dtype])
    return found


class Route:
    """What travels in a step.

    Attributes
    ----------
    owners : dict of int to list of (dtype, slice)
        For each rank that has some of it: where it is in the arrays of a `Sum`.
    weights : dict of int to Parcel
        For each of these ranks its weights.
    """

    def __init__(
        self, variables: Sequence[Any], partition: Partition, there: Array, places: dict[int, slice]
    ) -> None:
        self.owners: dict[int, Runs] = {}
        weights: dict[int, list[Array]] = {}
        for i in there.nonzero()[0].tolist():
            arrays = [array.reshape(-1) for array in arrays_of(variables[i].memory)]
            dtype = summed(variables[i])
            for rank, part in partition.holders(i):
                weights.setdefault(rank, []).extend(array[part] for array in arrays)
                if i not in places:
                    continue
                runs, begin = self.owners.setdefault(rank, []), places[i].start
                run = slice(begin + part.start, begin + part.stop)
                if runs and runs[-1][0] == dtype and runs[-1][1].stop == run.start:
                    run = slice(runs.pop()[1].start, run.stop)
                runs.append((dtype, run))
        self.weights: dict[int, Parcel] = {rank: Parcel(arrays) for rank, arrays in weights.items()}


class Exchange:
    """The exchange of a step, but for sparse gradients. Only what has a gradient on some rank travels.

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
    partition : Partition
        Who updates what.
    sparse : sequence of int
        The numbers of the variables with sparse gradients.

    Attributes
    ----------
    mine : list of slice
        The part of each variable that this rank updates, of the elements in C order.
    """

    def __init__(
        self,
        meeting: Meeting,
        order: Order,
        total: int,
        variables: Sequence[Any],
        partition: Partition,
        sparse: Sequence[int],
    ) -> None:
        self._meeting, self._order, self._total, self._variables = meeting, order, total, variables
        self._partition, self._places = partition, places(variables, sparse)
        self.mine: list[slice] = partition.of(meeting.rank)
        self._dtypes = [summed(v) for v in variables]
        self._lengths = dict.fromkeys(self._dtypes, 0)
        self._begins: dict[np.dtype[Any], int] = {}  # of my part, in the arrays of a `Sum`
        for i, place in self._places.items():
            dtype, part = self._dtypes[i], self.mine[i]
            self._lengths[dtype] += part.stop - part.start
            if part.stop > part.start:
                self._begins.setdefault(dtype, place.start + part.start)
        self._received = [self._room(rank) for rank in range(meeting.size)] if self._begins else []
        self._routes: dict[bytes, Route] = {}

    def _room(self, rank: int) -> list[tuple[Piece, Flats]]:
        """Return memory for my part of each of the sums that a rank sends."""
        numbers = micro_batches(self._total, self._meeting.size, rank)
        received = []
        for piece in pieces(self._order, self._total, numbers):
            lengths = self._lengths if rank != self._meeting.rank else {}
            received.append((piece, {dtype: buffers.empty((n,), dtype) for dtype, n in lengths.items()}))
        return received

    def _of(self, there: Array) -> Route:
        """Return how these variables travel."""
        key = there.tobytes()
        if key not in self._routes:
            if len(self._routes) == ROUTES:
                self._routes.clear()
            self._routes[key] = Route(self._variables, self._partition, there, self._places)
        return self._routes[key]

    def forget(self) -> None:
        """Forget where weights are, after new masters have taken the place of old ones."""
        self._routes.clear()

    def give_weights(self) -> None:
        """Give all ranks the weights of rank 0: in each round, every rank that has them sends them to one more."""
        meeting, have = self._meeting, 1
        arrays = [array for v in self._variables for array in arrays_of(v.memory) if array.size]
        while have < meeting.size:
            to, since = meeting.rank + have, meeting.rank - have
            meeting.exchange(
                {to: arrays} if meeting.rank < have and to < meeting.size else {},
                {since: arrays} if have <= meeting.rank < 2 * have else {},
                "the weights of rank 0",
            )
            have *= 2

    def mean_of(self, sums: Sequence[Sum], there: Array, scale: float) -> list[Array | None]:
        """Return the gradient of my part of each variable: the sum over all ranks, times a scale.

        Parameters
        ----------
        sums : sequence of Sum
            What remains of the sums of this rank.
        there : ndarray of bool
            Which variables have a gradient on some rank that is not sparse. That of the others is None.
        scale : float
            What the sum is multiplied with.
        """
        meeting, owners = self._meeting, self._of(there).owners
        runs = [(dtype, self._local(dtype, run)) for dtype, run in owners.get(meeting.rank, ())]
        sent = {
            rank: [s.flats[dtype][run] for s in sums for dtype, run in of_rank]
            for rank, of_rank in owners.items()
            if sums and rank != meeting.rank
        }
        received = {
            rank: [flats[dtype][run] for _, flats in of_rank for dtype, run in runs]
            for rank, of_rank in enumerate(self._received)
            if runs and of_rank and rank != meeting.rank
        }
        meeting.exchange(sent, received, "the sums of gradients")
        with np.errstate(all="ignore"):
            total = self._added([self._here(s) for s in sums], runs) if runs else {}
            for dtype, run in runs:
                mine = total[dtype][run]
                np.multiply(mine, dtype.type(scale), out=mine)
        return self._views(total, there)

    def _local(self, dtype: np.dtype[Any], run: slice) -> slice:
        """Return where a part of the arrays of a `Sum` is in those of my part."""
        return slice(run.start - self._begins[dtype], run.stop - self._begins[dtype])

    def _here(self, sum_: Sum) -> Flats:
        """Return my part of a sum of this rank."""
        return {
            dtype: sum_.flats[dtype][begin : begin + self._lengths[dtype]] for dtype, begin in self._begins.items()
        }

    def _added(self, mine: list[Flats], runs: Runs) -> Flats:
        """Add the sums of all ranks. The result is in the memory of one of them."""
        stack: Stack[Flats] = Stack(self._order, self._total, lambda first, second: add(first, second, runs))
        remaining = iter(mine)
        for rank, of_rank in enumerate(self._received):
            for piece, flats in of_rank:
                stack.push(piece, next(remaining) if rank == self._meeting.rank else flats)
        ((_, total),) = stack.held
        return total

    def _views(self, flats: Flats, there: Array) -> list[Array | None]:
        """Return my part of each variable in flat arrays of my parts; None where there is no gradient."""
        used = dict.fromkeys(self._lengths, 0)
        views: list[Array | None] = [None] * len(self._variables)
        for i in self._places:
            dtype, part = self._dtypes[i], self.mine[i]
            n, begin = part.stop - part.start, used[dtype]
            used[dtype] += n
            if there[i]:
                views[i] = flats[dtype][begin : begin + n] if n else np.empty(0, dtype)
        return views

    def share_weights(self, there: Array | None = None) -> None:
        """Send my part of the weights to all, and get theirs: of all variables, or of those that are given."""
        meeting = self._meeting
        weights = dict(self._of(np.ones(len(self._variables), bool) if there is None else there).weights)
        mine = weights.pop(meeting.rank, None)
        if mine:
            mine.load()
        others = [rank for rank in range(meeting.size) if rank != meeting.rank]
        meeting.exchange(
            dict.fromkeys(others, mine.arrays) if mine else {},
            {rank: parcel.arrays for rank, parcel in weights.items()},
            "the new weights",
        )
        for parcel in weights.values():
            parcel.unload()


class Parcel:
    """Arrays to send or to receive. Several small ones travel together in another one.

    Attributes
    ----------
    arrays : list of ndarray
        What travels.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        small = [a for a in arrays if 0 < a.nbytes <= SMALL]
        self._small: list[Array] = []
        self._copies: list[Array] = []
        self.arrays: list[Array] = with_elements(arrays)
        if len(small) <= 1:
            return
        self._small = sorted(small, key=lambda a: -a.itemsize)  # so that all copies are aligned
        packed = buffers.empty((sum(a.nbytes for a in self._small),), np.uint8)
        used = 0
        for a in self._small:
            self._copies.append(packed[used : used + a.nbytes].view(a.dtype).reshape(a.shape))
            used += a.nbytes
        self.arrays = [*(a for a in arrays if a.nbytes > SMALL), packed]

    def load(self) -> None:
        """Copy the small arrays to what travels."""
        if self._small:
            kernels.copy(self._copies, self._small)

    def unload(self) -> None:
        """Copy what has arrived to the small arrays."""
        if self._small:
            kernels.copy(self._small, self._copies)
