"""Find what has become slower between two runs, by ratios: a machine that is slower as a whole changes none.

The yardsticks of a task are its rivals and limits, measured in the same run. A task has fallen if fastvar has
become slower beside most of them by more than the margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from fastvar.tables import Table

MARGIN = 0.1
Ratios = Mapping[str, Mapping[str, float]]  # by task, then by yardstick: its time in times of fastvar's


class Change(NamedTuple):
    """How a task has changed: 0.8 means that fastvar does 0.8 of the work in the same time."""

    id: str
    factor: float
    yardsticks: int


def ratios(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the ratios of all tasks that have any."""
    return {record["id"]: record["ratios"] for record in records if record.get("ratios")}


def changes(before: Ratios, after: Ratios) -> list[Change]:
    """Return how each task has changed that both have."""
    found = []
    for name, old in before.items():
        factors = [after[name][who] / old[who] for who in old if name in after and who in after[name]]
        if factors:
            found.append(Change(name, median(factors), len(factors)))
    return sorted(found, key=lambda change: change.factor)


def fallen(found: Sequence[Change], margin: float = MARGIN) -> list[Change]:
    """Return the changes that are beyond the margin."""
    return [change for change in found if change.factor < 1 - margin]


def table(found: Sequence[Change], margin: float = MARGIN) -> Table:
    """Return all changes, the worst first."""
    rows = [[c.id, round(c.factor, 3), c.yardsticks, "SLOWER" * (c.factor < 1 - margin)] for c in found]
    return Table("Speed after / before, by ratios", ("task", "factor", "yardsticks", ""), rows)
