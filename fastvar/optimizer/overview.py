"""What notebooks show of an optimizer."""

from __future__ import annotations

from typing import Any

from fastvar.optimizer.groups import Group
from fastvar.optimizer.options import Options
from fastvar.tables import Table, count, size


def overview(optimizer: Options, iterations: int, groups: list[Group[Any]], slots: list[Any]) -> Table:
    """Return a table of the hyperparameters: their present values, and the schedules that they follow."""
    rows = []
    for name, parameter in sorted(optimizer.parameters.items(), key=lambda item: item[1].kw_only):
        value = optimizer._parameters[name]
        if not parameter.kw_only or value != parameter.default:
            rows.append(_row(name, optimizer, name))
    for k, group in enumerate(groups):
        rows += [_row(f"groups[{k}].{name}", group, name) for name in group._own]
    built = "not built yet"
    if groups:
        variables = count(sum(len(group.variables) for group in groups), "variable")
        built = f"{variables} in {count(len(groups), 'group')}, {size(sum(s.nbytes for s in slots))} of state"
    shown = 3 if any(schedule is not None for _, _, schedule in rows) else 2
    columns = ("hyperparameter", "value", "schedule")[:shown]
    title = f"{type(optimizer).__name__}, {count(iterations, 'iteration')}"
    return Table(title, columns, [row[:shown] for row in rows], built)


def _row(name: str, owner: Any, attribute: str) -> tuple[str, Any, Any]:
    return name, getattr(owner, attribute), owner.schedules.get(attribute)
