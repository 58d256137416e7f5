"""Which checkpoints to keep. The files themselves say what is needed, so the choice survives restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastvar.tables import count


@dataclass(frozen=True)
class Found:
    """A checkpoint in the folder.

    Attributes
    ----------
    counter : int
        The count of its save, which orders the checkpoints.
    step : int
    time : float
        When it was saved, in seconds since 1970.
    path : str
    metrics : mapping of str to float
        What `save` was given.
    pinned : bool
    parts : tuple of str
        The names of its part files.
    """

    counter: int
    step: int
    time: float
    path: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    pinned: bool = False
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retention:
    """Rules for what to keep; a checkpoint is kept if any of them keeps it.

    Parameters
    ----------
    newest : int or None
        How many of the newest; None keeps all.
    hours, steps : float, optional
        Starting with the oldest, each one that is at least this many hours (steps) after the last one kept.
    monitor : str, optional
        The metric that says which are the `best`. A checkpoint without it, or with NaN, is never best. Of equal
        ones the oldest is better.
    mode : {"min", "max"}
        Whether less or more is better.
    best : int
    """

    newest: int | None = 5
    hours: float | None = None
    steps: int | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    best: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_to_keep", self.newest, 1),
            ("keep_checkpoint_every_n_steps", self.steps, 1),
            ("keep_best", self.best, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"CheckpointManager: {name} must be at least {least} or None, got {value!r}")
        if self.hours is not None and not self.hours > 0:
            raise ValueError(
                f"CheckpointManager: keep_checkpoint_every_n_hours must be above 0 or None, got {self.hours!r}"
            )
        if self.mode not in ("min", "max"):
            raise ValueError(f"CheckpointManager: mode must be 'min' or 'max', got {self.mode!r}")

    def __str__(self) -> str:
        if self.newest is None:
            return "all"
        rules = [f"the newest {self.newest:,}"]
        if self.hours is not None:
            rules.append(f"one in {self.hours:g} h")
        if self.steps is not None:
            rules.append(f"one in {count(self.steps, 'step')}")
        if self.monitor is not None:
            rules.append(f"the best {self.best:,} by {self.monitor} ({self.mode})")
        return ", ".join(rules)

    def ranked(self, found: Sequence[Found]) -> list[Found]:
        """Return the checkpoints that have the metric, the best first."""
        if self.monitor is None:
            return []
        sign = 1 if self.mode == "min" else -1
        rated = [(sign * f.metrics.get(self.monitor, math.nan), f) for f in found]
        rated = [(value, f) for value, f in rated if not math.isnan(value)]
        return [f for _, f in sorted(rated, key=lambda pair: pair[0])]  # stable: of equal ones, the oldest first

    def dispensable(self, found: Sequence[Found]) -> list[Found]:
        """Return the checkpoints that no rule keeps; `found` is ordered from the oldest to the newest."""
        if self.newest is None:
            return []
        kept = [*found[-self.newest :], *self.ranked(found)[: self.best], *(f for f in found if f.pinned)]
        if self.hours is not None:
            kept += _apart(found, lambda f: f.time / 3600, self.hours)
        if self.steps is not None:
            kept += _apart(found, lambda f: f.step, self.steps)
        paths = {f.path for f in kept}
        return [f for f in found if f.path not in paths]


def _apart(found: Sequence[Found], place: Callable[[Found], Any], distance: float) -> list[Found]:
    """Return the first, and each that is at least `distance` from the last one returned, in either direction."""
    chosen: list[Found] = []
    for one in found:
        if not chosen or abs(place(one) - place(chosen[-1])) >= distance:
            chosen.append(one)
    return chosen
