"""What an optimizer needs to continue as if it had never stopped, beside its slots (layer 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.hyper import Declared, deserialize, serialize
from fastvar.optimizer import Optimizer
from fastvar.variable import Variable

MANY = 1 << 63  # steps
FUNCTION = {"function": True}  # a schedule that is a plain function cannot be stored, only kept


def describe(optimizer: Optimizer, name_of: Callable[[Variable], str]) -> dict[str, Any]:
    """Return the optimizer's counters, hyperparameters and groups as JSON values."""
    return {
        "class_name": _class_name(optimizer),
        "steps": optimizer._steps,
        "numbers": {name: value.tolist() for name, value in optimizer._numbers.items()},
        "parameters": _stored({k: v for k, v in optimizer._parameters.items() if k != "name"}),
        "groups": [
            {"variables": [name_of(v) for v in group.variables], "own": _stored(group._own)}
            for group in optimizer.groups
        ],
    }


def _class_name(optimizer: Optimizer) -> str:
    return f"{optimizer.room}{type(optimizer).__name__}"


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _marked(serialize(value)) for name, value in values.items()}


def _marked(value: Any) -> Any:
    """Put the mark for each plain function, also those inside of schedules."""
    if callable(value):
        return FUNCTION
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list) else value


def build(optimizer: Optimizer, saved: dict[str, Any], named: dict[str, Variable]) -> None:
    """Build the optimizer on the variables, in the order and groups in which it was saved."""
    owner = type(optimizer).__name__
    groups = [
        {"variables": [named[name] for name in group["variables"]], **_loaded(group["own"], {}, owner)}
        for group in saved["groups"]
    ]
    optimizer.build(groups)


def prepare(optimizer: Optimizer, saved: dict[str, Any], name_of: Callable[[Variable], str]) -> Callable[[], None]:
    """Check what `describe` returned against the optimizer, and return what will take it over.

    Raises
    ------
    ValueError
        If it is of another class, or has other groups, or values out of range.
    """
    owner = type(optimizer).__name__
    if saved["class_name"] != _class_name(optimizer):
        raise ValueError(f"{owner}: the saved optimizer is of class {saved['class_name']}")
    here = [{name_of(v) for v in group.variables} for group in optimizer.groups]
    if here != [set(group["variables"]) for group in saved["groups"]]:
        raise ValueError(f"{owner}: the saved optimizer has other groups of variables")
    values = _loaded(saved["parameters"], optimizer._parameters, owner)
    own = [
        _loaded(g["own"], group._own, owner) for g, group in zip(saved["groups"], optimizer.groups, strict=True)
    ]
    taking = [optimizer, *(group._optimizer for group in optimizer.groups)]
    for whose, given in zip(taking, (values, *own), strict=True):
        for name, value in given.items():
            parameter = whose.parameters.get(name)
            if parameter is None or not (parameter.per_group or given is values):
                raise ValueError(f"{owner}: has no such parameter {name!r}, which was saved")
            given[name] = parameter.checked(whose, value)
    steps, numbers = saved["steps"], _numbers(saved.get("numbers", {}), optimizer, owner)
    if type(steps) is not int or not 0 <= steps < MANY:
        raise ValueError(f"{owner}: steps must be a whole number from 0 to 2**63 - 1, got {steps!r}")

    def take_over() -> None:
        optimizer._parameters.update(_adopted(optimizer._parameters, values))
        for group, mine in zip(optimizer.groups, own, strict=True):
            adopted = _adopted(group._own, mine)
            group._own.clear()
            group._own.update(adopted)
        optimizer._count[0] = steps
        for name, number in numbers.items():
            optimizer._numbers[name][...] = number
        optimizer._changed()

    return take_over


def _numbers(saved: dict[str, Any], optimizer: Optimizer, owner: str) -> dict[str, buffers.Array]:
    numbers = {}
    for name, value in saved.items():
        given = value if isinstance(value, list) else [value]
        if any(type(element) is not float for element in given):
            raise ValueError(f"{owner}: {name} must be a float or a list of floats, got {value!r}")
        number = numbers[name] = np.array(value, np.float64)
        place = optimizer._numbers.get(name)
        if place is None or place.shape != number.shape:
            raise ValueError(f"{owner}: keeps no {name!r} of shape {number.shape}, as was saved")
        if not optimizer.can_be(name, number):
            raise ValueError(f"{owner}: {name} is out of range, got {value!r}")
    return numbers


def _loaded(stored: dict[str, Any], current: dict[str, Any], owner: str) -> dict[str, Any]:
    return {name: deserialize(_unmarked(v, current.get(name), f"{owner}: {name}")) for name, v in stored.items()}


def _unmarked(stored: Any, current: Any, what: str) -> Any:
    """Put the program's functions where they were when it was saved."""
    if stored == FUNCTION:
        if not callable(current):
            raise ValueError(f"{what} was a function when it was saved; set it (in a group: build first)")
        return current
    if isinstance(stored, list):
        here = current if isinstance(current, tuple) and len(current) == len(stored) else [None] * len(stored)
        return [_unmarked(s, c, f"{what}[{i}]") for i, (s, c) in enumerate(zip(stored, here, strict=True))]
    if isinstance(stored, dict) and isinstance(stored.get("config"), dict):
        own = current._parameters if isinstance(current, Declared) else {}
        config = {k: _unmarked(v, own.get(k), f"{what}.{k}") for k, v in stored["config"].items()}
        return {**stored, "config": config}
    return stored


def _adopted(current: dict[str, Any], restored: dict[str, Any]) -> dict[str, Any]:
    """Return what was restored, but keep the schedule objects of the program where the class is the same."""
    return {name: _merged(current.get(name), value) for name, value in restored.items()}


def _merged(current: Any, restored: Any) -> Any:
    """Give the present schedule what was restored: `plateau.record` must go on reaching the optimizer."""
    if isinstance(restored, Declared) and type(current) is type(restored):
        current._parameters.update(_adopted(current._parameters, restored._parameters))
        return current
    if isinstance(restored, tuple) and isinstance(current, tuple) and len(current) == len(restored):
        return tuple(map(_merged, current, restored))
    return restored
