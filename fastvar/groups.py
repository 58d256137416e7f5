"""Groups of variables with hyperparameters of their own (layer 6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastvar import buffers
from fastvar.hyper import Parameter
from fastvar.module import Module
from fastvar.variable import Variable

if TYPE_CHECKING:
    from fastvar.optimizer import Optimizer


class Group:
    """Variables of an optimizer with hyperparameters of their own; what is not set here is the optimizer's.

    Any hyperparameter that varies by variable is an attribute that can be read and set, also to a schedule.
    """

    def __init__(self, optimizer: Optimizer, variables: list[Variable], own: dict[str, Any]) -> None:
        self.__dict__.update(variables=variables, _optimizer=optimizer, _own={})
        for name, value in own.items():
            setattr(self, name, value)

    def _parameter(self, name: str) -> Parameter:
        parameter: Parameter | None = type(self._optimizer).parameters.get(name)
        if parameter is None or not parameter.per_group:
            known = [n for n, p in type(self._optimizer).parameters.items() if p.per_group]
            raise AttributeError(
                f"{type(self._optimizer).__name__}: a group has no {name!r}; it has {', '.join(known)}"
            )
        return parameter

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        parameter = self._parameter(name)
        value = self._own.get(name, self._optimizer._parameters[name])
        return self._optimizer._evaluate(parameter, value) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        checked = self._parameter(name).checked(self._optimizer, value)
        self._optimizer._stale = True  # also if a signal comes when it has changed
        self._own[name] = checked
        self._optimizer._changed()

    def __repr__(self) -> str:
        own = "".join(f", {name}={value!r}" for name, value in self._own.items())
        return f"<Group of {len(self.variables)} variables{own}>"


def parsed(variables: Module | Iterable[Any]) -> list[dict[str, Any]]:
    """Return what `Optimizer.build` is given as dicts of groups; variables that stand alone are the first."""
    entries = _listed(variables)
    grouped = [dict(entry) for entry in entries if isinstance(entry, dict)]
    alone = [entry for entry in entries if not isinstance(entry, dict)]
    if alone or not grouped:
        grouped.insert(0, {"variables": alone})
    for group in grouped:
        group["variables"] = _listed(group.get("variables", ()))
    return grouped


def _listed(variables: Module | Iterable[Any]) -> list[Any]:
    if isinstance(variables, Module):  # which may hold frozen counters, too
        return [v for v in variables.variables if v.trainable or v.dtype in buffers.REAL]
    return list(variables)


def check_variables(owner: str, variables: list[Any]) -> None:
    """Check that an optimizer can update the variables, each once."""
    seen: set[Any] = set()
    for i, v in enumerate(variables):
        if not isinstance(v, Variable):
            raise TypeError(f"{owner}: variables must be fastvar.Variable, got {type(v).__name__}")
        if v.dtype not in buffers.REAL:
            raise TypeError(f"{owner}: {label(v, i)} must be float32 or float64, got {v.dtype}")
        if id(v) in seen or v._name in seen:
            raise ValueError(f"{owner}: {label(v, i)} comes twice")
        seen |= {id(v), v._name} if v._name else {id(v)}


def label(variable: Variable, position: int) -> str:
    """Return how error messages call a variable."""
    return repr(variable.name) if variable.name else f"variable {position}"
