"""A rank's part of a variable, as a variable in the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.constraints import number_bounds
from fastvar.variable import Variable


def part(variable: Variable, elements: slice, uncut: bool) -> Variable:
    """Return this rank's part of a variable, in its memory."""
    memory = variable.value.reshape(-1)[elements]
    if uncut and memory.size == variable.size:
        memory = variable.value
    return Variable(
        memory,
        trainable=variable.trainable,
        name=variable.name,
        regularizer=variable.regularizer,
        constraint=constraint(variable, memory),
        copy=False,
    )


def take_master(part: Variable, master: Variable) -> None:
    """Give the part of a variable of 16 bits, which is all of it or nothing, that part of its master."""
    rest = master.value if part.size else master.value.reshape(-1)[:0]
    part._take_master(Variable(rest, False, copy=False))


def constraint(variable: Variable, part: Array) -> Any:
    """Return the constraint of a rank's part of a variable. One in Python sees no empty part."""
    if part.size or not variable.constraint:
        return variable.constraint
    return variable.constraint if number_bounds(variable.constraint) != (-np.inf, np.inf) else _elsewhere


def _elsewhere(values: Array) -> Array:
    """Stand for a constraint that another rank applies, so that this rank knows of it."""
    return values
