"""What the core of an optimizer asks of what it updates: a place in memory, and what the user declared of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array
from fastvar.regularizers import Regularizer


class Place(Protocol):
    """Memory that an optimizer updates. A `Variable` is one kind of place.

    A kind takes the next number of `Structure` whenever `trainable`, `regularizer` or `constraint` changes.
    """

    @property
    def value(self) -> Array:
        """Its memory as an array, with the address, element count and format: always the same elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    @property
    def ndim(self) -> int:
        """Number of axes of the array."""

    @property
    def size(self) -> int:
        """Number of elements of the array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""

    @property
    def name(self) -> str | None:
        """Its name in messages and patterns, or None."""

    @property
    def trainable(self) -> bool:
        """Whether steps update it."""

    @property
    def regularizer(self) -> Regularizer | None:
        """Penalty in its gradient, or None."""

    @property
    def constraint(self) -> Callable[[Array], npt.ArrayLike] | None:
        """Projection after every update, or None."""

    def _zeroing(self, gradient: Any) -> tuple[Any, Any]:
        """Return how to zero its gradient: the target and its value, for `Atomic`."""


class Structure:
    """A version number of everything that plans depend on: a step compares it, and checks nothing else."""

    version = 0
    numbers = itertools.count(1)  # no two threads get the same


def label(place: Place, position: int) -> str:
    """Return how error messages call a place."""
    return repr(place.name) if place.name else f"variable {position}"
