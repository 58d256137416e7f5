"""What an optimizer keeps: plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.optimizer.groups import Group
from fastvar.place import Place

Slots = dict[str, list[Any]]  # slot name -> a place per variable, None where a variable has no such slot


class State:
    """The state of an optimizer and the variables on which it is built.

    It is the same object for the life of the optimizer, so that an optimizer that wraps another can share it.

    Attributes
    ----------
    variables : list of Place
        In the order of `build`.
    names : list of str
        Their names at `build`. Later changes of names have no effect.
    index : dict
        The position of each variable, by its `id`.
    groups : list of Group
        In the order of `build`.
    slots : dict of str to list of (Place or None)
        The state arrays of each variable, and "average" and "gradient_accumulator" if options need them.
    numbers : dict of str to ndarray
        Numbers: for all variables together, or one for each.
    asked_for : tuple
        The values from which the slots were determined (see `slots.demand`).
    count : list of one int
        The calls so far. In a list, so that compiled code can count.
    across : callable or None
        Makes of a plan one whose sums and verdicts are of all processes that share the variables; None if there is
        one process.
    """

    def __init__(self) -> None:
        self.slots: Slots = {}
        self.numbers: dict[str, Array] = {"skipped": np.zeros(())}
        self.count: list[int] = [0]
        self.across: Callable[[Any], Any] | None = None
        self.take([])

    def take(self, groups: list[Group[Any]]) -> None:
        """Set the groups and variables on which the optimizer is built."""
        self.groups = groups
        self.variables: list[Any] = [v for group in groups for v in group.variables]
        self.names: list[Any | str] = [v.name or "" for v in self.variables]
        self.index: dict[int, int] = {id(v): i for i, v in enumerate(self.variables)}
        self.asked_for: tuple[object, ...] = ()

    def kept(self) -> list[tuple[Any, Any]]:
        """Return all but the slots and the count as pairs of target and value, with which `Atomic` restores it."""
        return [(self, {**vars(self)}), *((number, number.copy()) for number in self.numbers.values())]

    def ordered(self, variables: Sequence[Place], values: list[Any]) -> list[Any]:
        """Return the values of some variables in the order of `build`, with None for the other variables."""
        ordered: list[Any] = [None] * len(self.variables)
        for v, value in zip(variables, values, strict=True):
            ordered[self.index[id(v)]] = value
        return ordered

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self.index = {id(v): i for i, v in enumerate(self.variables)}
