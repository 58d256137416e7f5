"""What an optimizer keeps: plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.variable import Variable

Slots = dict[str, list[Variable | None]]  # slot name -> one per variable, None where a variable has no such slot


class State:
    """What an optimizer keeps of the variables it is built on.

    Attributes
    ----------
    variables : list of Variable
        In the order of `build`.
    names : list of str
        Their names at `build`: what goes by names does not change with them.
    index : dict
        The position of each variable, by its `id`.
    slots : dict of str to list of (Variable or None)
        The state arrays of each variable; then "average" and "gradient_accumulator" where options ask for them.
    numbers : dict of str to ndarray
        What is kept for all variables together.
    asked_for : tuple
        What the slots were made for (see `slots.demand`).
    count : list of one int
        The calls so far. In a list, so that compiled code can count.
    """

    def __init__(
        self, variables: list[Variable], slots: Slots, numbers: dict[str, Array], count: list[int]
    ) -> None:
        self.variables, self.slots, self.numbers, self.count = variables, slots, numbers, count
        self.names = [v.name or "" for v in variables]
        self.index = {id(v): i for i, v in enumerate(variables)}
        self.asked_for: tuple[object, ...] = ()

    @classmethod
    def empty(cls) -> State:
        """Return the state of an optimizer that is not built."""
        return cls([], {}, {"skipped": np.zeros(())}, [0])

    def ordered(self, variables: list[Variable], values: list[Any]) -> list[Any]:
        """Return what is given for some of the variables in the order of `build`, None for the others."""
        ordered: list[Any] = [None] * len(self.variables)
        for v, value in zip(variables, values, strict=True):
            ordered[self.index[id(v)]] = value
        return ordered

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self.index = {id(v): i for i, v in enumerate(self.variables)}
