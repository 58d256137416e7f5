"""Groups of variables with their own hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from fastvar.hyper import Parameter, Schedule
from fastvar.optimizer.options import Options, schedules_in
from fastvar.place import Place, label
from fastvar.tables import Table, count

FEW = 5  # the most names that a group shows
P = TypeVar("P", bound=Place)


class Group(Generic[P]):
    """Variables of an optimizer with their own hyperparameters. Those not set here are the optimizer's.

    Every hyperparameter that can differ between groups is an attribute. It can be read and set, also to a
    schedule.
    """

    def __init__(self, optimizer: Options, variables: list[P], own: dict[str, Any]) -> None:
        self.__dict__.update(_variables=variables, _optimizer=optimizer, _own={}, _given={*own})
        for name, value in own.items():
            self._own[name] = self._parameter(name).checked(optimizer, value)

    @property
    def variables(self) -> list[P]:
        """The variables, in the order of `build`."""
        return [*self._variables]

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The schedules that numbers of the group follow, by name; first those of the optimizer."""
        return schedules_in({**self._optimizer._parameters, **self._own})

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
        self._optimizer._change(self._own, name, checked)
        self._given.add(name)

    def _table(self) -> Table:
        shared = "" if self._own else "with the hyperparameters of the optimizer"
        schedules = self.schedules
        rows = [(name, getattr(self, name), schedules.get(name)) for name in self._own]
        return Table(f"Group of {names_of(self.variables)}", ("", "", ""), rows, shared)

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def __repr__(self) -> str:
        return repr(self._table())


def names_of(variables: Sequence[Place]) -> str:
    """Return the number of variables and the names of the first."""
    few = [label(v, i) for i, v in enumerate(variables[:FEW])]
    return f"{count(len(variables), 'variable')}: {', '.join(few)}{', ...' if len(variables) > FEW else ''}"
