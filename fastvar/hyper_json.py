"""Hyperparameters as JSON values: conversion, comparing those of a program and a file, and merging them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from fastvar.hyper import Declared, deserialize, serialize

PLAIN = {type(None), bool, int, float, str}  # most values, which are their own JSON values
FUNCTION = {"function": True}  # marks a schedule that is a plain function, which JSON cannot hold


def to_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON values."""
    return {
        name: value if type(value) in PLAIN else _without_functions(serialize(value))
        for name, value in values.items()
    }


def _without_functions(value: Any) -> Any:
    """Replace every plain function by its mark, also inside schedules."""
    if callable(value):
        return FUNCTION
    if isinstance(value, dict):
        return {key: _without_functions(item) for key, item in value.items()}
    return [_without_functions(item) for item in value] if isinstance(value, list) else value


def from_json(saved: dict[str, Any], current: dict[str, Any], owner: str) -> dict[str, Any]:
    """Reverse `to_json`. The program's functions take the places of the marks.

    Raises
    ------
    ValueError, TypeError
        If the program has no function there, or the classes refuse a value.
    """
    return {
        name: deserialize(_with_functions(v, current.get(name), f"{owner}: {name}")) for name, v in saved.items()
    }


def _with_functions(saved: Any, current: Any, what: str) -> Any:
    """Replace every mark by the program's function in the same place."""
    if saved == FUNCTION:
        if not callable(current):
            raise ValueError(f"{what} was a function when it was saved; set it (in a group: build first)")
        return current
    if isinstance(saved, list):
        here = current if isinstance(current, tuple) and len(current) == len(saved) else [None] * len(saved)
        return [_with_functions(s, c, f"{what}[{i}]") for i, (s, c) in enumerate(zip(saved, here, strict=True))]
    if isinstance(saved, dict) and isinstance(saved.get("config"), dict):
        own = current._parameters if isinstance(current, Declared) else {}
        config = {k: _with_functions(v, own.get(k), f"{what}.{k}") for k, v in saved["config"].items()}
        return {**saved, "config": config}
    return saved


def merged(current: dict[str, Any], restored: dict[str, Any]) -> dict[str, Any]:
    """Return the restored values, but in the program's schedule objects where the classes are the same."""
    return {name: _merged_value(current.get(name), value) for name, value in restored.items()}


def _merged_value(current: Any, restored: Any) -> Any:
    """Update the program's schedule in place, so that its `plateau.record` still reaches the optimizer."""
    if isinstance(restored, Declared):
        if type(current) is type(restored):
            current._parameters.update(merged(current._parameters, restored._parameters))
            return current
        restored._given.clear()  # the program has set none of its parameters
    if isinstance(restored, tuple) and isinstance(current, tuple) and len(current) == len(restored):
        return tuple(map(_merged_value, current, restored))
    return restored


def with_saved_state(here: Any, saved: Any) -> Any:
    """Return the program's values, but with the saved state of its schedules."""
    if isinstance(here, dict) and isinstance(saved, dict) and not _is_object(here):
        return {name: with_saved_state(value, saved.get(name)) for name, value in here.items()}
    if _is_object(here) and _is_object(saved) and here["class_name"] == saved["class_name"]:
        cls = Declared.registry.get(here["class_name"], Declared)
        state = {name: value for name, value in saved["config"].items() if name in cls.stateful}
        config = {
            name: with_saved_state(value, saved["config"].get(name)) for name, value in here["config"].items()
        }
        return {**here, "config": config | state}
    if isinstance(here, list) and isinstance(saved, list) and len(here) == len(saved):
        return [with_saved_state(*pair) for pair in zip(here, saved, strict=True)]
    return here


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"class_name", "config"}


class Difference(NamedTuple):
    """A hyperparameter that differs between program and file; `given` says whether the program has set it."""

    name: str
    here: str
    saved: str
    given: bool
    path: tuple[str | int, ...]  # in the stored values

    def __str__(self) -> str:
        return f"{self.name}: {self.here} here, {self.saved} in the file"


def differences(
    here: dict[str, Any],
    saved: dict[str, Any],
    given: Collection[str],
    state: Collection[str] = (),
    name: str = "",
    path: tuple[str | int, ...] = (),
) -> Iterator[Difference]:
    """Compare the program's parameters with stored ones, except those named in `state`."""
    for key in {**saved, **here}:
        inner = {s.removeprefix(f"{key}.") for s in state if s.startswith(f"{key}.")}
        if key not in state and key != "name":
            there = saved.get(key, _UNSET)
            yield from _compared(f"{name}{key}", (*path, key), here.get(key, _UNSET), there, key in given, inner)


_UNSET = object()


def _compared(
    name: str, path: tuple[str | int, ...], here: Any, saved: Any, given: bool, state: Collection[str]
) -> Iterator[Difference]:
    ours = _without_functions(serialize(here))
    if isinstance(here, Declared) and _is_object(saved) and ours["class_name"] == saved["class_name"]:
        there = {key: saved["config"].get(key, _UNSET) for key in here._parameters}
        known = {key: value for key, value in there.items() if value is not _UNSET}
        current = {key: here._parameters[key] for key in known}
        state = {*state, *here.stateful}
        yield from differences(current, known, here._given, state, f"{name}.", (*path, "config"))
    elif isinstance(here, tuple) and isinstance(saved, list) and len(here) == len(saved):
        if ours != saved:
            for i, pair in enumerate(zip(here, saved, strict=True)):
                yield from _compared(f"{name}[{i}]", (*path, i), *pair, given, ())
    elif ours != saved:
        yield Difference(name, _shown(ours), _shown(saved), given, path)


def _shown(value: Any) -> str:
    """Return stored values as a program would write them."""
    if value is _UNSET:
        return "unset"
    if value == FUNCTION:
        return "a function"
    if _is_object(value):
        config = (f"{key}={_shown(item)}" for key, item in value["config"].items())
        return f"{value['class_name'].rpartition('.')[2]}({', '.join(config)})"
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else repr(value)


def with_saved_value(here: Any, saved: Any, path: tuple[str | int, ...]) -> Any:
    """Return the program's values, but with the saved one at `path`."""
    if not path:
        return saved
    key, *rest = path
    if isinstance(here, list):
        return [with_saved_value(v, saved[i], (*rest,)) if i == key else v for i, v in enumerate(here)]
    if key not in saved:
        return {name: value for name, value in here.items() if name != key}
    return {**here, key: with_saved_value(here.get(key), saved[key], (*rest,))}
