"""Optimizers on memory that a framework owns: places whose slots exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvar.optimizer.groups import Group
from fastvar.optimizer.slots import keep
from fastvar.optimizer.state import Slots
from fastvar.place import Place


def take(
    optimizer: Any, groups: Sequence[list[Place]], slots: Slots, of_groups: Sequence[dict[str, Any]] = ({},)
) -> None:
    """Let an optimizer update groups of places with the given `slots`, and make those that are missing.

    Each group has hyperparameters of its own; by default, there is one group without any. It does what `build`
    does for Variables. Averages and copies of weights among the slots have begun.
    """
    state = optimizer._state
    state.take([Group(optimizer, places, own) for places, own in zip(groups, of_groups, strict=True)])
    state.slots = slots
    keep(optimizer, state)
    for mark in ("averaged", "begun"):
        if mark in state.numbers:
            state.numbers[mark][...] = 1


def set_hyperparameters(optimizer: Any, of_groups: Sequence[dict[str, Any]]) -> None:
    """Give each group hyperparameters of its own, which must have been checked, for the next steps."""
    for group, own in zip(optimizer._state.groups, of_groups, strict=True):
        group._own.update(own)
    if optimizer._plan is not None:
        optimizer._plan.stale = True
