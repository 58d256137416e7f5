"""What an optimizer keeps (layer 5): slots and numbers, and what they begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.kernels.atomic import Atomic
from fastvar.variable import Variable

if TYPE_CHECKING:
    from fastvar.optimizer import Optimizer

MARKS = (
    "accumulated",
    "averaged",
    "begun",
)  # numbers that are 1 where something has happened, see `first_numbers`
OF_VARIABLES = ("accumulated", "begun")  # those with one element per variable, in the order of `build`

Slots = dict[str, list[Variable | None]]  # slot name -> one per variable that keeps it


class Kept(NamedTuple):
    """The slots and the numbers of an optimizer."""

    slots: Slots
    numbers: dict[str, Array]


def shape_of(optimizer: Optimizer) -> tuple[object, ...]:
    """Return what slots and plans depend on; while it stays the same, hyperparameters may change freely."""
    given = optimizer._parameters
    kinds = tuple(map(optimizer.kind, optimizer._variables)) if optimizer.says("kind") else ()
    adaptive = given["adaptive_clipnorm"] is not None
    options = given["use_ema"], given["gradient_accumulation_steps"], adaptive, given["name"]
    return tuple(optimizer.slots), kinds, options


def first_numbers(optimizer: Optimizer) -> dict[str, Array]:
    """Return the numbers that the present hyperparameters ask for, as they are before the first step."""
    n = len(optimizer._variables)
    numbers = {name: np.array(float(value)) for name, value in optimizer.numbers().items()}
    if optimizer.gradient_accumulation_steps:
        numbers["accumulated"] = np.zeros(n)  # 1: got a gradient since the last update
    if optimizer.use_ema:
        numbers["averaged"] = np.zeros(())  # 1: the averages have begun
    if optimizer.copies:
        numbers["begun"] = np.zeros(n)  # 1: had a gradient; its `copies` have taken the weights
    return numbers


def change(optimizer: Optimizer, values: dict[str, Any], name: str, value: Any) -> None:
    """Set a hyperparameter, of the optimizer or of a group, with all that follows from it; or nothing."""
    firsts = _first_values(optimizer)
    slots = [optimizer._state[name][i]._array for name, i in firsts if i >= 0]  # type: ignore[union-attr]
    before = [*optimizer._kept(), (values, values.copy()), *((slot, slot.copy()) for slot in slots)]
    with Atomic(before, []):
        values[name] = value
        optimizer._stale = True
        optimizer._validate()
        if optimizer._variables:
            keep(optimizer)
            _begin_anew(optimizer, firsts)


def keep(optimizer: Optimizer) -> None:
    """Keep the slots and numbers that the present hyperparameters ask for."""
    shape = shape_of(optimizer)
    if shape != optimizer._shape:
        optimizer._state, optimizer._numbers = _kept(optimizer)
        optimizer._shape, optimizer._engine = shape, None


def _kept(optimizer: Optimizer) -> Kept:
    """Return what the present hyperparameters ask for: what is there as it is, and what is not, new.

    What they do not ask for is dropped, and so begins anew when they ask for it again.
    """
    wanted = optimizer._wanted
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"{optimizer._owner}: slots must have names of their own, got {', '.join(wanted)}")
    group_of = {id(v): group for group in optimizer.groups for v in group.variables}
    slots: Slots = {}
    for name in wanted:
        here = optimizer._state.get(name) or [None] * len(optimizer._variables)
        slots[name] = [
            None
            if not _keeps(optimizer, name, v)
            else _first(optimizer, name, v, group_of[id(v)])
            if place is None
            else place
            for v, place in zip(optimizer._variables, here, strict=True)
        ]
    numbers = first_numbers(optimizer)
    for name, number in optimizer._numbers.items():
        if name in numbers or name not in MARKS:
            numbers[name] = number
    return Kept(slots, numbers)


def _keeps(optimizer: Optimizer, slot: str, variable: Variable) -> bool:
    return slot not in optimizer.slots or optimizer.keeps(slot, variable)


def _first(optimizer: Optimizer, slot: str, variable: Variable, group: Any) -> Variable:
    """Make a slot of a variable."""
    ours = slot in optimizer.slots
    shape = optimizer.slot_shape(slot, variable) if ours else variable.shape
    value = optimizer.initial(slot, variable, group) if ours else 0
    if slot == "average":
        value = variable.value
    return Variable(buffers.full(shape, variable.dtype, value), False, slot, copy=False)


def _first_values(optimizer: Optimizer) -> dict[tuple[str, int], Any]:
    """Return what slots and numbers begin with, by name and variable, as long as no step has been made."""
    if not optimizer._variables or optimizer._steps:
        return {}
    values: dict[tuple[str, int], Any] = {(name, -1): value for name, value in optimizer.numbers().items()}
    if optimizer.says("initial"):
        for group in optimizer.groups:
            for v in group.variables:
                for slot in optimizer.slots:
                    if slot not in optimizer.copies and optimizer.keeps(slot, v):
                        values[slot, optimizer._index[id(v)]] = optimizer.initial(slot, v, group)
    return values


def _begin_anew(optimizer: Optimizer, before: dict[tuple[str, int], Any]) -> None:
    """Write what slots and numbers begin with, where it is another than `before`."""
    for (name, i), value in _first_values(optimizer).items():
        if (name, i) in before and not np.array_equal(value, before[name, i], equal_nan=True):
            place: Any = optimizer._numbers[name] if i < 0 else optimizer._state[name][i]
            place[...] = value


def beginnings(optimizer: Optimizer, unbegun: list[int], grads: list[Any]) -> list[tuple[Any, Any]]:
    """Return what is to take the weights before a step, and the marks of it: places, and what they become.

    These are slots at the first gradient of their variable, and averages at the first step with them.
    """
    numbers, variables = optimizer._numbers, optimizer._variables
    slots: dict[str, Any] = optimizer._state
    places: list[tuple[Any, Any]] = []
    new = [i for i in unbegun if grads[i] is not None and not numbers["begun"][i]]
    if new:
        begun = numbers["begun"].copy()
        begun[new] = 1
        places = [(slots[name][i]._array, variables[i]._array) for name in optimizer.copies for i in new]
        places.append((numbers["begun"], begun))
    if not numbers.get("averaged", True):
        places += [(a._array, v._array) for a, v in zip(slots["average"], variables, strict=True)]
        places.append((numbers["averaged"], np.ones(())))
    return places
