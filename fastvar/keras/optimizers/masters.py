"""Keras's variables of 16 bits, and what masters keep of them: variables `..._master` of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastvar import masters
from fastvar.buffers import Array
from fastvar.formats import OF_MASTERS, Master
from fastvar.keras.optimizers.slot_formats import as_array, beside


def are_in_16_bits(variables: list[Any]) -> bool:
    """Return whether any of the variables has 16 bits."""
    return any(v.dtype in OF_MASTERS for v in variables)


def made(add: Callable[..., Any], variable: Any) -> Any:
    """Return a new variable with what a master keeps, None for a variable without one.

    `add` is the method of Keras that makes variables.
    """
    if variable.dtype not in OF_MASTERS:
        return None
    return beside(add, variable, "master", masters.rest_of(as_array(variable)))


def exact(variable: Any, rest: Any) -> Array:
    """Return the float32 numbers of a variable with what its master keeps, if it has one."""
    weights = as_array(variable)
    return masters.exact(weights if rest is None else Master(weights, as_array(rest)))


def write(variable: Any, rest: Any, numbers: Array) -> None:
    """Write float32 numbers into a variable, and into what its master keeps if it has one."""
    if rest is None:
        variable.assign(numbers)
        return
    for each, part in zip((variable, rest), masters.parted(as_array(variable), numbers), strict=True):
        each.assign(part)
