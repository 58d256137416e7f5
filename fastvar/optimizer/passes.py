"""The pass of a step over all variables, and the sums before it for rules that need norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar.buffers import Array
from fastvar.place import Place

DOWN, UP = 2.0**-600, 2.0**600  # squares of float64 numbers times these neither overflow nor vanish
VANISHING = 2.0**-960  # a smaller sum of squares may have lost some of them


class Pass(NamedTuple):
    """The update of variables of one kind: a rule, its slots, and its scalars at update number t.

    The other attributes are for rules that need norms. These first compute sums, which changes nothing, and then
    update.
    """

    rule: Any
    slots: Sequence[str]
    scalars: Callable[[Any, int], Sequence[Any]]
    sums: Sequence[tuple[str, ...]] = ()
    """What is summed of each variable: products of two of "weights", "gradient", "direction" and slots, or
    absolute values of one. Slots after those that the rule takes are only for sums."""
    step: Callable[[Any], float] | None = None
    """The multiple of the rule's direction to add to the weights, or None if the rule updates them."""
    matrices: bool = False
    """Whether to sum the squares of rows and columns of the gradient first, see `Rule.scale_matrices`."""
    keeps_directions: bool = False
    """Whether to keep directions, so that `Rule.adjust` can replace them."""


class Measured:
    """The sums of a step, and what the rule derives from them before the update.

    Attributes
    ----------
    t : int
        Number of the update, from 1.
    counts : ndarray
        Number of the update of each variable, from 1; `t` unless the rule counts per variable.
    variables : list of Place
        Those of the optimizer.
    groups : list
        The hyperparameters of each group, on which attributes for `scalars` may be left.
    group_of : ndarray
        The group of each variable.
    present : ndarray of bool
        Which variables have a gradient.
    sums : ndarray
        What `Pass.sums` asks for, one row per variable.
    sizes : ndarray
        What gradients (or directions, where the rule makes them) are multiplied with, at first 1.
    directions : list of (ndarray or None)
        Those that are kept, to be written in place.
    units : Units
        The matrices of `Pass.matrices`; their factors are to be set.
    row_sums, column_sums : ndarray
        The sums of squares of their rows and columns.
    commits : list of (ndarray, ndarray)
        State, and what it becomes with the update.
    """

    t: int
    variables: list[Place]
    groups: list[Any]
    group_of: Array
    counts: Array
    present: Array
    sizes: Array
    units: Any
    row_sums: Array
    column_sums: Array
    sums: Array

    def __init__(
        self,
        plan: Any,
        measuring: Any,
        variables: list[Place],
        groups: list[Any],
        group_of: Array,
        present: Array,
        t: int,
        missed: Array | float = 0.0,
    ) -> None:
        self.t, self.variables, self.groups, self.group_of = t, variables, groups, group_of
        self.counts = np.full(len(variables), float(t)) - missed
        self.present, self.sizes = present, np.ones(len(variables))
        self.directions: list[Any] = measuring.directions
        self.commits: list[tuple[Array, Array]] = []
        self._plan, self._wide = plan, measuring.wide
        self._scaled: dict[float, Array] = {}

    def sum_matrices(self, workers: int) -> None:
        """Sum the rows and columns of the plan's last matrices."""
        k = len(self._plan.units) - 1
        self.units = self._plan.units[k]
        self.row_sums, self.column_sums = self._plan.unit_sums(k, False, workers)

    def sum(self, sums: Callable[[float], Array]) -> None:
        """Set the sums. `sums` computes them with all numbers times a scale."""
        self.sums, self._sums = sums(1.0), sums

    def norms(self, k: int) -> Array:
        """Return the square roots of sum number k, also where squares overflow or vanish."""
        squares = self.sums[:, k]
        norms: Array = np.sqrt(squares)
        if self._wide is None:
            return norms
        for scale, lost in ((UP, squares < VANISHING), (DOWN, squares == np.inf)):
            if lost.any() and (lost := lost & self._wide & self.present).any():
                if scale not in self._scaled:
                    self._scaled[scale] = self._sums(scale)
                norms[lost] = np.sqrt(self._scaled[scale][lost, k]) / scale
        return norms

    def weight_norms(self, k: int) -> Array:
        """Return the norms of sum number k, which is of weights, after decay."""
        norms: Array = self.norms(k) * np.abs(1 - self._plan.stages["decay"])
        return norms

    def of_variables(self, name: str) -> Array:
        """Return a hyperparameter of each variable."""
        values: Array = np.array([getattr(group, name) for group in self.groups])[self.group_of]
        return values
