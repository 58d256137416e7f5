"""In which order gradients of micro-batches are added. It depends on their numbers alone, never on the ranks.

A sum is of consecutive micro-batches. Ranks add what they can of their own, in this order, and send what remains
to those who add the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Piece(NamedTuple):
    """A sum of the micro-batches from `start` up to `stop`."""

    start: int
    stop: int


class Order(Protocol):
    """An order of adding the numbers of a total of micro-batches."""

    name: ClassVar[str]
    empty: ClassVar[float]
    """The sum of no gradients."""

    def __hash__(self) -> int: ...

    def joins(self, left: Piece, right: Piece, total: int) -> bool:
        """Return whether two neighbours are added to each other, and to nothing else before."""


class Tree:
    """Pairs, then pairs of pairs, and so on: 0+1, 2+3, (0+1)+(2+3), ... An absent partner is left out.

    The sum of no gradients is -0.0, to which adding any number gives that number, also -0.0.
    """

    name: ClassVar[str] = "tree"
    empty: ClassVar[float] = -0.0

    def joins(self, left: Piece, right: Piece, total: int) -> bool:
        width = right.start - left.start
        aligned = left.stop == right.start and left.start % (2 * width) == 0
        return aligned and right.stop == min(right.start + width, total)


class Sequence:
    """One after another, from 0: as one process adds that accumulates them."""

    name: ClassVar[str] = "sequence"
    empty: ClassVar[float] = 0.0

    def joins(self, left: Piece, right: Piece, total: int) -> bool:
        return left.start == 0 and left.stop == right.start and right.stop == right.start + 1


ORDERS: dict[str, Order] = {order.name: order for order in (Tree(), Sequence())}


class Stack(Generic[T]):
    """Sums of neighbouring pieces, which are added as soon as the order allows.

    Parameters
    ----------
    order : Order
        The order.
    total : int
        The number of micro-batches of a step.
    add : callable
        Adds the second sum to the first, in place.
    """

    def __init__(self, order: Order, total: int, add: Callable[[T, T], None]) -> None:
        self.held: list[tuple[Piece, T]] = []
        self._order, self._total, self._add = order, total, add

    def push(self, piece: Piece, value: T) -> None:
        """Add the sum of the next piece."""
        self.held.append((piece, value))
        while len(self.held) > 1 and self.joins(self.held[-2][0], self.held[-1][0]):
            (left, first), (right, second) = self.held[-2:]
            self._add(first, second)
            self.held[-2:] = [(Piece(left.start, right.stop), first)]

    def extend(self, piece: Piece) -> None:
        """Note that the next piece has been added to the sum of `before`."""
        left, value = self.held.pop()
        self.push(Piece(left.start, piece.stop), value)

    def joins(self, left: Piece, right: Piece) -> bool:
        """Return whether two pieces are added."""
        return self._order.joins(left, right, self._total)

    def before(self, piece: Piece) -> T | None:
        """Return the sum to which the next piece is added at once, or None."""
        return self.held[-1][1] if self.held and self.joins(self.held[-1][0], piece) else None


@lru_cache
def pieces(order: Order, total: int, numbers: range) -> tuple[Piece, ...]:
    """Return the sums that remain of consecutive micro-batches, which other ranks must add."""
    stack: Stack[None] = Stack(order, total, lambda _first, _second: None)
    for i in numbers:
        stack.push(Piece(i, i + 1), None)
    return tuple(piece for piece, _ in stack.held)
