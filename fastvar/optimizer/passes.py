"""Passes of a step, and what stands between them for rules that need norms or matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar import buffers, kernels
from fastvar.buffers import Array
from fastvar.variable import Variable

DOWN, UP = 2.0**-600, 2.0**600  # float64 numbers times these: their squares neither overflow nor vanish
VANISHING = 2.0**-960  # a sum of squares below this may have lost some


class Pass(NamedTuple):
    """One pass over all variables: a rule, the slots it keeps, and what it takes at update number t.

    All but the last pass of a step write directions (what they would have added to the weights), which are the
    gradients of the next.
    """

    rule: Any
    slots: Sequence[str]
    scalars: Callable[[Any, int], Sequence[Any]]


def copying() -> Pass:
    """Return the pass whose direction is the gradient itself, as the options have conditioned it."""
    return Pass(kernels.RULES["gradient_descent"], (), _copying)


def _copying(hyper: Any, t: int) -> tuple[float, ...]:
    rate = -1.0
    return (rate,)


class Between:
    """The directions that one pass has written, to be looked at, replaced and scaled before the next.

    Attributes
    ----------
    number : int
        How many passes of the optimizer have run.
    t : int
        Number of the update, from 1.
    variables : list of Variable
        Those of the optimizer.
    hyper : list
        The hyperparameters of each.
    groups : list
        The hyperparameters of each group, on which scalars of later passes may be left as attributes.
    directions : list of (ndarray or None)
        What the pass wrote, None where there was no gradient. May be replaced.
    sizes : ndarray
        What the next pass multiplies them with, at first 1.
    commits : list of (ndarray, ndarray)
        State, and what it becomes with the last pass.
    """

    def __init__(
        self,
        number: int,
        t: int,
        variables: list[Variable],
        hyper: list[Any],
        groups: list[Any],
        directions: list[Any],
        decays: Array,
        threads: int,
    ) -> None:
        self.number, self.t = number, t
        self.variables, self.hyper, self.groups, self.directions = variables, hyper, groups, directions
        self.sizes = np.ones(len(variables))
        self.commits: list[tuple[Array, Array]] = []
        self._decays, self._threads = decays, threads

    def dot(self, x: Array, y: Array) -> float:
        """Return the sum of products, in double precision, the same on any number of threads."""
        return float(kernels.dot(x, y, self._threads))

    def norm(self, x: Array) -> float:
        """Return the L2 norm of an array."""
        squares, scale = self.dot(x, x), 1.0
        if x.dtype == np.float64 and not VANISHING <= squares < np.inf:
            scale = UP if squares < VANISHING else DOWN
            scaled = np.asarray(x * scale)  # NumPy returns scalars of arrays without axes
            squares = self.dot(scaled, scaled)
        return float(np.sqrt(squares)) / scale

    def weight_norm(self, i: int) -> float:
        """Return the L2 norm that the weights of a variable will have once they have decayed."""
        return self.norm(self.variables[i]._array) * abs(1 - float(self._decays[i]))


def scratch(variables: Sequence[Variable]) -> list[Array]:
    """Return an array like each variable."""
    return [buffers.empty(v.shape, v.dtype) for v in variables]
