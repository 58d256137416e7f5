"""The slots and numbers that a rule needs, and their initial values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvar import buffers, formats
from fastvar.buffers import Array
from fastvar.masters import exact
from fastvar.optimizer.quantized import Quantized, Slot, converted, format_of
from fastvar.optimizer.rule import MARKS, Rule
from fastvar.optimizer.state import Slots, State
from fastvar.place import Place
from fastvar.variable import Variable


def wanted(rule: Rule) -> list[str]:
    """Return the names of the slots that the present hyperparameters need."""
    names = [*rule.slots, *["average"] * bool(rule.use_ema)]
    names += ["gradient_accumulator"] * bool(rule.gradient_accumulation_steps)
    if len(set(names)) != len(names):
        raise ValueError(f"{rule._owner}: slots must have names of their own, got {', '.join(names)}")
    return names


def demand(rule: Rule, variables: Sequence[Place]) -> tuple[object, ...]:
    """Return the values on which slots and plans depend. If these are equal, other changes need no new plan."""
    given = rule._parameters.get  # a class without the options has none of these
    kinds = tuple(map(rule.kind_of, variables)) if rule.overrides("kind_of") else ()
    adaptive = given("adaptive_clipnorm") is not None
    options = given("use_ema"), given("gradient_accumulation_steps"), adaptive, given("name")
    stored: tuple[object, ...] = ()
    if "slot_dtype" in rule.parameters:
        stored = tuple((group.slot_dtype, group.slot_dtype_min_size, group.master) for group in rule.groups)
    return tuple(rule.slots), kinds, options, stored


def first_numbers(rule: Rule, n: int) -> dict[str, Array]:
    """Return the numbers that the present hyperparameters need, with their initial values."""
    numbers = {name: np.array(float(value)) for name, value in rule.initial_numbers().items()}
    if rule.gradient_accumulation_steps:
        numbers["accumulated"] = np.zeros(n)  # 1: has had a gradient since the last update
    if rule.use_ema:
        numbers["averaged"] = np.zeros(())  # 1: the averages have begun
    if rule.weight_copies:
        numbers["begun"] = np.zeros(n)  # 1: has had a gradient, so its `weight_copies` are set
    if rule.counts_per_variable:
        numbers["missed"] = np.zeros(n)  # the number of updates in which a variable had no gradient
    return numbers | {name: np.full(n, value) for name, value in rule.initial_numbers_per_variable().items()}


def names_per_variable(rule: Rule) -> list[str]:
    """Return the names of the numbers with one element for each variable."""
    return ["accumulated", "begun", "missed", *rule.initial_numbers_per_variable()]


def keep(rule: Rule, state: State) -> bool:
    """Make or drop slots and numbers, as the present hyperparameters need. Return whether any changed.

    Existing ones do not change. One that is not needed is dropped, and starts at its initial value when it is
    needed again.
    """
    asked_for = demand(rule, state.variables)
    if asked_for == state.asked_for:
        return False
    for group in rule.groups if "master" in rule.parameters else ():
        for v in group.variables if group.master else ():
            v._keep_master()
    slots = _slots(rule, state)
    numbers = first_numbers(rule, len(state.variables))
    for name, number in state.numbers.items():
        if name in numbers or name not in MARKS:
            numbers[name] = number
    state.slots, state.numbers, state.asked_for = slots, numbers, asked_for
    return True


def _slots(rule: Rule, state: State) -> Slots:
    group_of = {id(v): group for group in rule.groups for v in group.variables}
    slots: Slots = {}
    own = {*rule.slots}
    for name in wanted(rule):
        here = state.slots.get(name) or [None] * len(state.variables)
        slots[name] = [
            None if name in own and not rule.has_slot(name, v) else _kept(rule, name, v, group_of[id(v)], place)
            for v, place in zip(state.variables, here, strict=True)
        ]
    return slots


def _kept(rule: Rule, slot: str, variable: Place, group: Any, here: Slot | None) -> Slot:
    """Return a slot in the format that it should have: the one that is there, or a new one."""
    if here is None:
        return _made(rule, slot, variable, group)
    wanted = slot_format(rule, slot, variable, group)
    return here if format_of(here) == wanted else converted(here, _empty(here.shape, wanted, variable, slot))


def slot_format(rule: Rule, slot: str, variable: Place, group: Any) -> str:
    """Return the format of a slot: one of `formats.OF_SLOTS`, or the dtype in which the variable is computed."""
    native = formats.name_of(buffers.arithmetic(variable.dtype))
    if group.slot_dtype is None or variable.size < max(group.slot_dtype_min_size, 1):
        return native
    return str(group.slot_dtype) if slot in stored_slots(rule, rule.kind_of(variable)) else native


def stored_slots(rule: Rule, kind: str) -> set[str]:
    """Return the slots of variables of a kind that can have other formats than the variable.

    A pass must update them, and they must not be declared exact.
    """
    one = rule.pass_of(kind)
    return {*one.slots[: len(one.rule.slots)]} - {*rule.exact_slots, *rule.weight_copies}


def _made(rule: Rule, slot: str, variable: Place, group: Any) -> Slot:
    ours = slot in rule.slots
    shape = rule.slot_shape(slot, variable) if ours else variable.shape
    value = rule.initial(slot, variable, group) if ours else 0
    if slot == "average":
        value = exact(variable.memory)
    made = _empty(shape, slot_format(rule, slot, variable, group), variable, slot)
    if not (type(value) in (int, float) and value == 0):
        made[...] = value
    return made


def _empty(shape: tuple[int, ...], wanted: str, variable: Place, slot: str) -> Slot:
    """Return a slot of zeros."""
    if wanted == "8bit":
        return Quantized.zeros(shape, buffers.arithmetic(variable.dtype), slot)
    return Variable(buffers.full(shape, formats.dtype_of(wanted), 0), False, slot, copy=False)


def first_values(rule: Rule, state: State) -> dict[tuple[str, int], Any]:
    """Return the initial values of slots and numbers, by name and variable (-1: none), before the first step."""
    if not state.variables or state.count[0]:
        return {}
    values: dict[tuple[str, int], Any] = {(name, -1): value for name, value in rule.initial_numbers().items()}
    if rule.overrides("initial"):
        for group in rule.groups:
            for v in group.variables:
                for slot in rule.slots:
                    if slot not in rule.weight_copies and rule.has_slot(slot, v):
                        values[slot, state.index[id(v)]] = rule.initial(slot, v, group)
    return values


def begin_anew(rule: Rule, state: State, before: dict[tuple[str, int], Any]) -> None:
    """Write the initial values of slots and numbers that differ from `before`."""
    for (name, i), value in first_values(rule, state).items():
        if (name, i) in before and not np.array_equal(value, before[name, i], equal_nan=True):
            place: Any = state.numbers[name] if i < 0 else state.slots[name][i]
            place[...] = value


def beginnings(rule: Rule, state: State, unbegun: list[int], grads: list[Any]) -> list[tuple[Any, Any]]:
    """Return pairs of target and value for slots and averages that copy the weights before a step, and for marks.

    Slots copy them at the first gradient of their variable, averages at their first step.
    """
    numbers, variables = state.numbers, state.variables
    slots: dict[str, Any] = state.slots
    places: list[tuple[Any, Any]] = []
    new = [i for i in unbegun if grads[i] is not None and not numbers["begun"][i]]
    if new:
        begun = numbers["begun"].copy()
        begun[new] = 1
        places = [(slots[name][i].value, exact(variables[i].memory)) for name in rule.weight_copies for i in new]
        places.append((numbers["begun"], begun))
    if not numbers.get("averaged", True):
        places += [(a.value, exact(v.memory)) for a, v in zip(slots["average"], variables, strict=True)]
        places.append((numbers["averaged"], np.ones(())))
    return places
