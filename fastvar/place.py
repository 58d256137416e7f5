"""The interface of what an optimizer updates: memory, and the user's declarations about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array
from fastvar.formats import Master
from fastvar.regularizers import Regularizer


class Place(Protocol):
    """Memory that an optimizer updates. A `Variable` is one kind of place.

    If `trainable`, `regularizer` or `constraint` changes, it must set a new version of `Structure`.
    """

    @property
    def value(self) -> Array:
        """The memory as an array: always the same elements, with their address, count and format."""

    @property
    def memory(self) -> Array | Master:
        """The memory that a plan updates: the array, or with what a master keeps."""

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
        """Penalty added to its gradient, or None."""

    @property
    def constraint(self) -> Callable[[Array], npt.ArrayLike] | None:
        """Projection after every update, or None."""

    def _keep_master(self) -> None:
        """Make the master of 16 bits, if there is none."""

    def _zeroing(self, gradient: Any) -> tuple[Any, Any]:
        """Return how to zero its gradient: the target and its value, for `Atomic`."""


class Structure:
    """The version of everything that plans depend on: a step compares it, and checks nothing else.

    Every change makes a new object, so that no two threads set the same version.
    """

    version: object = object()


def label(place: Place, position: int) -> str:
    """Return the name of a place in error messages."""
    return repr(place.name) if place.name else f"variable {position}"
