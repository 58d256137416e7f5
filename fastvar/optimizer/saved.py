"""Describe and resume an optimizer: all that it needs to continue, except its slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.hyper import Declared
from fastvar.hyper_json import (
    Difference,
    differences,
    from_json,
    merged,
    to_json,
    with_saved_state,
    with_saved_value,
)
from fastvar.optimizer.base import Optimizer
from fastvar.optimizer.quantized import Slot, format_of
from fastvar.optimizer.rule import MARKS
from fastvar.optimizer.slots import names_per_variable, wanted
from fastvar.optimizer.state import Slots
from fastvar.variable import Variable

MANY = 1 << 63  # steps
ACCUMULATION = "gradient_accumulation_steps"


def describe(optimizer: Optimizer, name_of: Callable[[Variable], str]) -> dict[str, Any]:
    """Return the optimizer's counters, hyperparameters and groups as JSON values."""
    return {
        "class_name": _class_name(optimizer),
        "steps": optimizer._steps,
        "numbers": {name: value.tolist() for name, value in optimizer._state.numbers.items()},
        "parameters": _parameters(optimizer),
        "groups": [
            {"variables": [name_of(v) for v in group.variables], "own": to_json(group._own)}
            for group in optimizer.groups
        ],
    }


def slots_of(optimizer: Optimizer) -> Slots:
    """Return the existing slots that the present hyperparameters need."""
    slots = optimizer._state.slots
    return {name: slots[name] for name in wanted(optimizer._updating) if name in slots}


def _class_name(optimizer: Optimizer) -> str:
    return f"{optimizer.namespace}{type(optimizer).__name__}"


def _parameters(optimizer: Optimizer) -> dict[str, Any]:
    return to_json({k: v for k, v in optimizer._parameters.items() if k != "name"})


class Resumption:
    """The restore of an optimizer. Everything is checked first, and nothing changes before `take_over`.

    An optimizer that is not built yet will be built on the variables with the names in the file. Another optimizer
    with the hyperparameters, the trial, shows which slots they need.

    Attributes
    ----------
    new : bool
        Whether the optimizer is not built yet.
    variables : list of Variable
        The variables on which it is or will be built.
    slots : dict of str to list of Variable
        The slots that it will have for them.
    differences : list of Difference
        Hyperparameters that differ from those of the file.

    Raises
    ------
    ValueError
        If the optimizer in the file has another class, other groups, or values out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        saved: dict[str, Any],
        name_of: Callable[[Variable], str],
        named: Mapping[str, Variable],
        program: bool,
    ) -> None:
        self.optimizer: Optimizer = optimizer
        self._owner = type(optimizer).__name__
        if saved["class_name"] != _class_name(optimizer):
            raise ValueError(f"{self._owner}: the saved optimizer is of class {saved['class_name']}")
        self.new: bool = not optimizer._state.variables
        self._members = self._find_members([g["variables"] for g in saved["groups"]], name_of, named)
        self.variables: list[Variable] = [v for member in self._members for v in member]
        self._steps = _checked_steps(saved["steps"], self._owner)
        self._saved = {"parameters": saved["parameters"], "groups": [g["own"] for g in saved["groups"]]}
        self.differences: list[Difference] = [*self._compare()]
        self._chosen = self._choose() if program else self._saved
        self._values, *self._own = self._load()
        self._trial = self._try(self._chosen)
        self._changes = self.new or bool(self.differences and not program)
        self.slots: Slots = self._find_slots()
        alike = self._trial if self._trial._state.variables else optimizer  # it has the same numbers
        sizes = [len(group["variables"]) for group in saved["groups"]]
        numbers = optimizer._updating.numbers_of_today(saved.get("numbers", {}), sizes)
        self._numbers = _checked_numbers(numbers, alike, self._updates)
        if not self.new:  # the variables of a group may be in another order
            place_of = {name: i for i, name in enumerate(n for g in saved["groups"] for n in g["variables"])}
            order = [place_of[name_of(v)] for v in self.variables]
            names = names_per_variable(optimizer._updating)
            self._numbers |= {name: self._numbers[name][order] for name in names if name in self._numbers}

    @property
    def _updates(self) -> int:
        return self._steps // (self._trial._updating.gradient_accumulation_steps or 1)

    def _find_members(
        self, saved: list[list[str]], name_of: Callable[[Variable], str], named: Mapping[str, Variable]
    ) -> list[list[Variable]]:
        """Return the variables of each group."""
        if self.new:
            absent = [name for names in saved for name in names if name not in named]
            if absent:
                raise ValueError(f"{self._owner}: the saved optimizer was built on {', '.join(absent)}, not here")
            return [[named[name] for name in names] for names in saved]
        if [{name_of(v) for v in g.variables} for g in self.optimizer.groups] != [*map(set, saved)]:
            raise ValueError(f"{self._owner}: the saved optimizer has other groups of variables")
        return [group.variables for group in self.optimizer.groups]

    def _compare(self) -> Iterator[Difference]:
        optimizer, saved = self.optimizer, self._saved["parameters"]
        here = {name: value for name, value in optimizer._parameters.items() if name in saved}
        there = {name: value for name, value in saved.items() if name in here}
        yield from differences(here, there, optimizer._given, optimizer.stateful, "", ("parameters",))
        for i, (group, own) in enumerate(zip(optimizer.groups, self._saved["groups"], strict=False)):
            yield from differences(group._own, own, group._given, (), f"groups[{i}].", ("groups", i))

    def _choose(self) -> dict[str, Any]:
        """Return the program's hyperparameters, and the saved ones of groups that it has not made."""
        for each in self.differences:
            if each.path[-1] == ACCUMULATION and self._steps:
                raise ValueError(f"{self._owner}: {each}; it is fixed once training has begun: it counts in calls")
        groups = [to_json(group._own) for group in self.optimizer.groups] or self._saved["groups"]
        chosen: dict[str, Any] = with_saved_state(
            {"parameters": _parameters(self.optimizer), "groups": groups}, self._saved
        )
        return chosen

    def _load(self) -> list[dict[str, Any]]:
        """Return the chosen hyperparameters of the optimizer and of each group."""
        current = [self.optimizer._parameters, *(g._own for g in self.optimizer.groups)]
        current += [{} for _ in self._members] if self.new else []
        whose = [self.optimizer, *(g._optimizer for g in self.optimizer.groups)]
        chosen = [self._chosen["parameters"], *self._chosen["groups"]]
        result = [from_json(v, c, self._owner) for v, c in zip(chosen, current, strict=True)]
        for owner, values in zip(whose, result, strict=False):  # `build` checks the groups of a new one
            for name, value in values.items():
                parameter = owner.parameters.get(name)
                if parameter is None or not (parameter.per_group or values is result[0]):
                    raise ValueError(f"{self._owner}: has no such parameter {name!r}, which was saved")
                values[name] = parameter.checked(owner, value)
                if isinstance(value, Optimizer) and type(value) is not type(owner._parameters[name]):
                    raise ValueError(f"{self._owner}: the saved {name} is of class {type(value).__name__}")
        return result

    def _try(self, chosen: dict[str, Any]) -> Optimizer:
        """Return another optimizer with these hyperparameters."""
        current = self.optimizer._parameters
        trial = type(self.optimizer)(**{**current, **from_json(chosen["parameters"], current, self._owner)})
        trial._state.groups = [SimpleNamespace(_own=own) for own in chosen["groups"]]  # type: ignore[misc]
        return trial

    def _find_slots(self) -> Slots:
        """Return the slots that the trial needs: existing ones, and new ones."""
        present, optimizer = slots_of(self.optimizer), self.optimizer
        self._changes = self._changes or {*present} != {*wanted(self._trial._updating)}
        if not self._changes or not self.variables:
            return present
        self._trial._state.take([])
        self._trial.build(self._groups())
        slots = {name: [*made] for name, made in self._trial._state.slots.items()}
        for name, made in slots.items():
            for i, old in enumerate(optimizer._state.slots.get(name, ())):
                place = made[i]
                if old is not None and place is not None and _alike(old, place):
                    made[i] = old
        return slots

    def _groups(self) -> list[dict[str, Any]]:
        return [{"variables": v, **own} for v, own in zip(self._members, self._own, strict=True)]

    def before(self) -> list[tuple[Any, Any]]:
        """Return pairs of target and value, with which `Atomic` undoes `take_over`."""
        optimizer = self.optimizer
        owns = [group._own for group in optimizer.groups]
        changed = [
            optimizer._state.count,
            optimizer._state.slots,
            *owns,
            *_of_declared([optimizer._parameters, *owns]),
        ]
        return [*optimizer._kept(), *((place, place.copy()) for place in changed)]

    def take_over(self) -> None:
        """Apply the restore to the optimizer. Others fill the slots."""
        optimizer = self.optimizer
        optimizer._parameters.update(merged(optimizer._parameters, self._values))
        if self._changes:
            optimizer._state.slots.clear()
            optimizer._state.slots.update(self.slots)
            optimizer._forget_plan()
        if self.new and self.variables:
            optimizer.build(self._groups())
            for group in optimizer.groups:
                group._given.clear()  # the program has set none of its parameters
        for group, mine in zip(optimizer.groups, self._own, strict=True):
            after = merged(group._own, mine)
            group._own.clear()
            group._own.update(after)
        optimizer._state.count[0] = self._steps
        for name, number in self._numbers.items():
            optimizer._state.numbers.setdefault(name, number)[...] = number
        optimizer._forget_plan()

    def explain(self) -> Iterator[str]:
        """Yield the program's hyperparameters that need other slots than those in the file."""
        here = {*wanted(self._trial._updating)}
        for each in self.differences:
            there = {*wanted(self._try(with_saved_value(self._chosen, self._saved, each.path))._updating)}
            for slot in sorted(here ^ there):
                yield f"{each}; {'here' if slot in here else 'in the file'} it wants the slot {slot!r}"


def _alike(slot: Slot, other: Slot) -> bool:
    return (slot.shape, slot.dtype, format_of(slot)) == (other.shape, other.dtype, format_of(other))


def _of_declared(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of all declared objects among values, such as schedules."""
    for value in values:
        if isinstance(value, Declared):
            yield value._parameters
            yield from _of_declared([value._parameters])
        elif isinstance(value, (dict, tuple)):
            yield from _of_declared(value.values() if isinstance(value, dict) else value)


def _checked_steps(steps: Any, owner: str) -> int:
    if type(steps) is not int or not 0 <= steps < MANY:
        raise ValueError(f"{owner}: steps must be a whole number from 0 to 2**63 - 1, got {steps!r}")
    return steps


def _checked_numbers(saved: dict[str, Any], optimizer: Optimizer, updates: int) -> dict[str, buffers.Array]:
    owner = type(optimizer).__name__
    marks = [name for name in MARKS if name in optimizer._state.numbers]
    here = optimizer._state.numbers
    numbers: dict[str, Any] = {name: np.ones_like(here[name]) for name in marks}  # for older files
    numbers |= {"missed": np.zeros_like(here["missed"])} if "missed" in here else {}
    for name, value in saved.items():
        if name in MARKS and name not in marks:  # it belongs to a slot that does not exist here
            continue
        given = value if isinstance(value, list) else [value]
        if any(type(element) is not float for element in given):
            raise ValueError(f"{owner}: {name} must be a float or a list of floats, got {value!r}")
        number = numbers[name] = np.array(value, np.float64)
        place = here.get(name)
        if place is None or place.shape != number.shape:
            raise ValueError(f"{owner}: keeps no {name!r} of shape {number.shape}, as was saved")
        if not optimizer.valid_number(name, number) or (name == "missed" and number.max(initial=0) > updates):
            raise ValueError(f"{owner}: {name} is out of range, got {value!r}")
    return numbers
