"""Sparse gradients of variables that are said to have them: only rows that some micro-batch names travel.

Each of these variables is updated as a whole by one rank, its owner. Rows are added in the order of micro-batches
as dense sums are; a row that a micro-batch does not name is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastvar import buffers, formats, kernels
from fastvar.buffers import Array
from fastvar.distributed.meeting import Meeting
from fastvar.distributed.orders import Order, Stack, pieces
from fastvar.distributed.partition import Partition, micro_batches
from fastvar.masters import arrays_of
from fastvar.optimizer import Optimizer
from fastvar.place import label
from fastvar.slices import IndexedSlices, Rows
from fastvar.variable import Variable


def summed(variable: Variable) -> np.dtype[Any]:
    """Return the dtype in which gradients of a variable are added."""
    return buffers.arithmetic(variable.dtype)


def read(gradient: Any, variable: Variable, owner: str) -> Rows:
    """Return a sparse gradient with each row once, in rising order."""
    found = buffers.as_gradient(gradient, variable.value, owner)
    if not isinstance(found, Rows):
        raise TypeError(f"{owner}: must be IndexedSlices, as build was told, got {type(gradient).__name__}")
    merged: Rows = kernels.merge(found, variable.dtype == np.float64)
    return merged


def times(gradient: Rows, factor: float, dtype: np.dtype[Any]) -> Rows:
    """Return a multiple of a gradient, in memory of its own."""
    with np.errstate(all="ignore"):
        return Rows(gradient.rows.copy(), gradient.values.astype(dtype) * dtype.type(factor))


def joined(first: Rows | None, second: Rows | None) -> Rows | None:
    """Return the sum of two gradients; None is that of no micro-batch."""
    if first is None or second is None:
        return first or second
    both = (np.concatenate(arrays) for arrays in zip(first, second, strict=True))
    merged: Rows = kernels.merge(Rows(*both), first.values.dtype == np.float64)
    return merged


def refuse_kinds(owner: str, optimizer: Optimizer, variables: dict[int, Variable]) -> None:
    """Raise an error if an optimizer cannot update rows of these variables."""
    for i, v in variables.items():
        one = optimizer.pass_of("")
        if one.sums or one.matrices or one.step is not None or optimizer.adaptive_clipnorm is not None:
            raise TypeError(
                f"{owner}: gradients of {label(v, i)} must be dense for this rule, which needs all of it"
            )
        if v.ndim == 0:
            raise TypeError(f"{owner}: {label(v, i)} has no rows: take it out of sparse")
        codes = any(group.slot_dtype == "8bit" for group in optimizer.groups) or optimizer.slot_dtype == "8bit"
        if codes and v.size >= optimizer.slot_dtype_min_size and v[:1].size % formats.GROUP:
            raise ValueError(
                f"{owner}: with slots in 8 bits, rows of {label(v, i)} must have a multiple of {formats.GROUP} "
                f"elements, got {v[:1].size}"
            )


class RowExchange:
    """The exchange of rows in a step.

    Parameters
    ----------
    meeting, order, total, partition
        As for `Exchange`.
    variables : sequence of Variable
        All variables.
    sparse : sequence of int
        The numbers of those with sparse gradients.
    """

    def __init__(
        self,
        meeting: Meeting,
        order: Order,
        total: int,
        variables: Sequence[Variable],
        partition: Partition,
        sparse: Sequence[int],
    ) -> None:
        self._meeting, self._order, self._total = meeting, order, total
        self._variables = {i: variables[i] for i in sparse}
        self._owners = {i: next((rank for rank, _ in partition.holders(i)), 0) for i in sparse}
        numbers = [micro_batches(total, meeting.size, rank) for rank in range(meeting.size if sparse else 0)]
        self._pieces = [pieces(order, total, of_rank) for of_rank in numbers]
        self._touched: dict[int, Array] = {}  # the rows of this step of which this rank is the owner
        self._lengths: dict[int, int] = {}  # how many rows of this step there are, on any rank

    def _empty(self, i: int, n: int) -> Rows:
        """Return memory for rows of a sum."""
        v = self._variables[i]
        return Rows(np.empty(n, np.intp), np.empty((n, *v.shape[1:]), summed(v)))

    def mean_of(
        self, sums: Sequence[Sequence[Rows | None]], counts: list[list[list[int]]], there: Array, scale: float
    ) -> dict[int, Any]:
        """Return the gradients of the variables that this rank owns: the sums over all ranks, times a scale.

        Parameters
        ----------
        sums : sequence of sequences of Rows
            For each sum that remains on this rank, the rows of each variable.
        counts : list of lists of lists of int
            How many rows there are, for each rank, sum and variable.
        there, scale
            As for `Exchange`.
        """
        me = self._meeting.rank
        self._touched, self._lengths = {}, {}
        active = [(k, i) for k, i in enumerate(self._variables) if there[i]]
        if not active:
            return {}
        mine = [(k, i) for k, i in active if self._owners[i] == me]
        sent: dict[int, list[Array]] = {}
        for held in sums:
            for k, i in active:
                if self._owners[i] != me and (rows := held[k]):
                    sent.setdefault(self._owners[i], []).extend(with_elements(rows))
        arrived = {
            rank: [[self._empty(i, of_sum[k]) if of_sum[k] else None for k, i in mine] for of_sum in of_rank]
            for rank, of_rank in enumerate(counts)
            if rank != me and mine
        }
        received = {
            rank: [array for of_sum in of_rank for rows in of_sum if rows for array in with_elements(rows)]
            for rank, of_rank in arrived.items()
        }
        self._meeting.exchange(
            sent, {rank: arrays for rank, arrays in received.items() if arrays}, "sparse gradients"
        )
        arrived[me] = [[held[k] for k, _ in mine] for held in sums]
        totals = {i: self._added(arrived, place) or self._empty(i, 0) for place, (_, i) in enumerate(mine)}
        self._agree_on(totals)
        with np.errstate(all="ignore"):
            return {i: IndexedSlices(g.values * g.values.dtype.type(scale), g.rows) for i, g in totals.items()}

    def _added(self, of_ranks: dict[int, list[list[Rows | None]]], place: int) -> Rows | None:
        """Add what all ranks have of one variable."""

        def add(first: list[Rows | None], second: list[Rows | None]) -> None:
            first[0] = joined(first[0], second[0])

        stack: Stack[list[Rows | None]] = Stack(self._order, self._total, add)
        for rank, of_rank in enumerate(self._pieces):
            for piece, of_sum in zip(of_rank, of_ranks[rank], strict=True):
                stack.push(piece, [of_sum[place]])
        ((_, (total,)),) = stack.held
        return total

    def _agree_on(self, totals: dict[int, Rows]) -> None:
        """Tell all ranks how many rows of each variable change."""
        self._touched = {i: total.rows for i, total in totals.items()}
        mine = np.array([(i, len(rows)) for i, rows in self._touched.items()], np.int64).reshape(-1, 2)
        of_ranks = self._meeting.gather(mine.tobytes(), "the number of rows")
        pairs = np.frombuffer(b"".join(of_ranks), np.int64).reshape(-1, 2)
        self._lengths = {int(i): int(n) for i, n in pairs}

    def elements(self) -> dict[int, int]:
        """Return how many elements of each variable with a gradient this step changes."""
        return {i: n * self._variables[i][:1].size for i, n in self._lengths.items()}

    def share_weights(self) -> None:
        """Send the rows that I have updated to all, and get theirs."""
        if not self._lengths:
            return
        me, size = self._meeting.rank, self._meeting.size
        sent: list[Array] = []
        received: dict[int, list[Array]] = {}
        written: list[tuple[Array, Array, Array]] = []
        for i, n in self._lengths.items():
            arrays = arrays_of(self._variables[i].memory)
            if self._owners[i] == me:
                rows = self._touched[i]
                sent += [rows, *(array[rows] for array in arrays)]
                continue
            rows, new = np.empty(n, np.intp), [np.empty((n, *array.shape[1:]), array.dtype) for array in arrays]
            received.setdefault(self._owners[i], []).extend(with_elements([rows, *new]))
            written += [(array, rows, values) for array, values in zip(arrays, new, strict=True)]
        sent = with_elements(sent)
        others = [rank for rank in range(size) if rank != me and sent]
        received = {rank: arrays for rank, arrays in received.items() if arrays}
        self._meeting.exchange(dict.fromkeys(others, sent), received, "the new rows")
        for array, rows, values in written:
            array[rows] = values


def with_elements(arrays: Iterable[Array]) -> list[Array]:
    """Return the arrays that are sent: no empty ones."""
    return [array for array in arrays if array.size]
