"""The gradients of a rank's micro-batches of a step, added as far as the order allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastvar.distributed.exchange import Sum
from fastvar.distributed.orders import Order, Piece, Stack
from fastvar.variable import Variable


class MicroBatches:
    """The sums of the micro-batches of this rank.

    Parameters
    ----------
    owner : str
        The beginning of error messages.
    order : Order
        The order of adding.
    total : int
        The number of micro-batches of all ranks.
    numbers : range
        Those of this rank.
    variables : sequence of Variable
        The variables of the gradients.
    sparse : sequence of int
        The numbers of those with sparse gradients.

    Attributes
    ----------
    present : list of bool
        Which variables have had a gradient.
    counts : list of int
        How many gradients have been added, how many of these with a count, and the sum of the counts.
    """

    def __init__(
        self,
        owner: str,
        order: Order,
        total: int,
        numbers: range,
        variables: Sequence[Variable],
        sparse: Sequence[int],
    ) -> None:
        self._owner, self._order, self._total, self._numbers = owner, order, total, numbers
        self._variables, self._sparse = variables, sparse
        self._spare: list[Sum] = []
        self.begin()

    def begin(self) -> None:
        """Begin the next step."""
        self._stack: Stack[Sum] = Stack(self._order, self._total, self._join)
        self._done = 0
        self._current: int | None = None
        self.present: list[bool] = [False] * len(self._variables)
        self.counts: list[int] = [0, 0, 0]

    def __iter__(self) -> Iterator[int]:
        if self._done or self._current is not None:
            raise RuntimeError(f"{self._owner}: micro_batches() has already begun; call step() first")
        for i in self._numbers:
            self._current = i
            yield i
            if self._current is not None:  # it had no data
                self._push(None, 0)

    def add(self, gradients: list[Any], count: int | None) -> None:
        """Add the gradients of the current micro-batch, times their count."""
        if self._current is None:
            raise RuntimeError(
                f"{self._owner}: call add once for each micro-batch, in a loop over micro_batches()"
            )
        self._push(gradients, 1 if count is None else count)
        self.counts = [self.counts[0] + 1, self.counts[1] + (count is not None), self.counts[2] + (count or 0)]

    def _push(self, gradients: list[Any] | None, times: int) -> None:
        piece = Piece(self._current, self._current + 1)  # type: ignore[arg-type, operator]
        left = self._stack.before(piece)
        sum_ = left or self._empty()
        if gradients is not None:
            try:
                sum_.check(gradients)
            except BaseException:
                self._spare += [] if left else [sum_]
                raise
            if times:
                sum_.add(float(times))
                self.present = [a or b is not None for a, b in zip(self.present, gradients, strict=True)]
        if left:
            self._stack.extend(piece)
        else:
            self._stack.push(piece, sum_)
        self._current = None
        self._done += 1

    def _empty(self) -> Sum:
        sum_ = self._spare.pop() if self._spare else Sum(self._owner, self._variables, self._sparse)
        sum_.fill(self._order.empty)
        return sum_

    def _join(self, first: Sum, second: Sum) -> None:
        first.join(second)
        self._spare.append(second)

    def finished(self) -> list[Sum]:
        """Return the sums that remain, in their order.

        Raises
        ------
        RuntimeError
            If micro-batches are missing.
        """
        if self._done < len(self._numbers):
            raise RuntimeError(
                f"{self._owner}: {self._done} of the {len(self._numbers)} micro-batches of this rank have been "
                "added; loop over micro_batches() to its end"
            )
        return [sum_ for _, sum_ in self._stack.held]

    def release(self) -> None:
        """Keep the memory of the sums for the next step, and begin it."""
        self._spare += [sum_ for _, sum_ in self._stack.held]
        self.begin()
