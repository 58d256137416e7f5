"""Optimizers on memory that a framework owns: places whose slots exist."""

from __future__ import annotations

from typing import Any

from fastvar.optimizer.groups import Group
from fastvar.optimizer.slots import keep
from fastvar.optimizer.state import Slots
from fastvar.place import Place


def take(optimizer: Any, places: list[Place], slots: Slots) -> None:
    """Let an optimizer update `places` with the given `slots`, and make those that are missing.

    It does what `build` does for Variables. Averages and copies of weights among the slots have begun.
    """
    state = optimizer._state
    state.take([Group(optimizer, places, {})])
    state.slots = slots
    keep(optimizer, state)
    for mark in ("averaged", "begun"):
        if mark in state.numbers:
            state.numbers[mark][...] = 1
