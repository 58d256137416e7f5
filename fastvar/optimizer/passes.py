"""The pass of a step over all variables, and what is measured before it where a rule needs norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar.buffers import Array
from fastvar.place import Place

DOWN, UP = 2.0**-600, 2.0**600  # float64 numbers times these: their squares neither overflow nor vanish
VANISHING = 2.0**-960  # a sum of squares below this may have lost some


class Pass(NamedTuple):
    """How variables of one kind are updated: a rule, the slots that it keeps, its scalars at update number t.

    What follows is for rules that need norms. They measure first, change nothing, and update then.
    """

    rule: Any
    slots: Sequence[str]
    scalars: Callable[[Any, int], Sequence[Any]]
    sums: Sequence[tuple[str, ...]] = ()
    """What is summed of each variable: products of two of "weights", "gradient", "direction" and slots, or
    absolute values of one. Slots after those that the rule takes are only for sums."""
    step: Callable[[Any], float] | None = None
    """The rule makes a direction, and this part of it is added to the weights. None: the rule updates them."""
    matrices: bool = False
    """Whether the squares of rows and columns of the gradient are summed before, see `Rule.scale_matrices`."""
    keeps_directions: bool = False
    """Whether directions are kept, so that `Rule.adjust` can replace them."""


class Measured:
    """What a step has measured, and what it makes of that before it updates.

    Attributes
    ----------
    t : int
        Number of the update, from 1.
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
    ) -> None:
        self.t, self.variables, self.groups, self.group_of = t, variables, groups, group_of
        self.present, self.sizes = present, np.ones(len(variables))
        self.directions: list[Any] = measuring.directions
        self.commits: list[tuple[Array, Array]] = []
        self._plan, self._wide = plan, measuring.largest > np.finfo(np.float32).max
        self._scaled: dict[float, Array] = {}

    def sum_matrices(self, workers: int) -> None:
        """Sum the rows and columns of the plan's last matrices."""
        k = len(self._plan.units) - 1
        self.units = self._plan.units[k]
        self.row_sums, self.column_sums = self._plan.unit_sums(k, False, workers)

    def sum(self, sums: Callable[[float], Array]) -> None:
        """Take the sums; `sums` returns them of all numbers times a scale."""
        self.sums, self._sums = sums(1.0), sums

    def norms(self, k: int) -> Array:
        """Return the square roots of the sums of number k, also where squares overflow or vanish."""
        squares = self.sums[:, k]
        norms = np.sqrt(squares)
        for scale, lost in ((UP, squares < VANISHING), (DOWN, squares == np.inf)):
            if lost.any() and (lost := lost & self._wide & self.present).any():
                if scale not in self._scaled:
                    self._scaled[scale] = self._sums(scale)
                norms[lost] = np.sqrt(self._scaled[scale][lost, k]) / scale
        return norms

    def weight_norms(self, k: int) -> Array:
        """Return the norms of number k, of weights, once these have decayed."""
        norms: Array = self.norms(k) * np.abs(1 - self._plan.stages["decay"])
        return norms

    def of_variables(self, name: str) -> Array:
        """Return a hyperparameter of each variable."""
        values: Array = np.array([getattr(group, name) for group in self.groups])[self.group_of]
        return values
