"""A schedule that depends on a metric, not on the iteration."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, ClassVar

from fastvar.hyper import choice, integer, is_real, number
from fastvar.schedules.base import LearningRateSchedule


class ReduceOnPlateau(LearningRateSchedule):
    r"""Multiply by `factor` whenever a metric has stopped improving.

    The program calls `record` with the metric, usually once per epoch. The state of the schedule is among its
    parameters. It is saved and restored with the optimizer, which keeps following the same object.

    Parameters
    ----------
    initial_learning_rate : float
        The first value, >= 0.
    factor : float
        The multiplier of the value, in [0, 1).
    patience : int
        How many records without improvement to wait for, >= 0 (0 and 1 are the same).
    mode : str
        "min" if the metric should fall, "max" if it should rise.
    min_delta : float
        The smallest improvement, >= 0: `metric < best - min_delta`, or `metric > best + min_delta`.
    cooldown : int
        How many records after a reduction to ignore, >= 0.
    min_lr : float
        Lowest value, >= 0.
    best : float, optional
        State: the best metric so far.
    wait : int
        State: the number of records without improvement.
    cooldown_counter : int
        State: the remaining records of the cooldown.
    value : float, optional
        State: the present value; None means `initial_learning_rate`.

    Notes
    -----
    Names, defaults and meaning are those of Keras's callback `ReduceLROnPlateau`. PyTorch's class of the same name
    waits for one record more than its `patience`, and its `threshold` (our `min_delta`) is relative by default. A
    metric of NaN or infinity is never an improvement.

    Examples
    --------
    >>> import fastvar as fv
    >>> plateau = fv.schedules.ReduceOnPlateau(0.5, factor=0.5, patience=2)
    >>> optimizer = fv.optimizers.SGD(plateau)
    >>> for loss in [1.0, 0.9, 0.9, 0.9]:
    ...     rate = plateau.record(loss)
    >>> rate, optimizer.learning_rate
    (0.25, 0.25)
    """

    initial_learning_rate: float = number(low=0)
    factor: float = number(default=0.1, low=0, below=1)
    patience: int = integer(default=10, low=0)
    mode: str = choice("min", "max", default="min")
    min_delta: float = number(default=1e-4, low=0)
    cooldown: int = integer(default=0, low=0)
    min_lr: float = number(default=0.0, low=0)
    best: float | None = number(default=None, optional=True, kw_only=True)
    wait: int = integer(default=0, low=0, kw_only=True)
    cooldown_counter: int = integer(default=0, low=0, kw_only=True)
    value: float | None = number(default=None, low=0, optional=True, kw_only=True)
    stateful: ClassVar[Collection[str]] = ("best", "wait", "cooldown_counter", "value")

    def __call__(self, step: int = 0) -> float:
        """Return the present value, which does not depend on the iteration."""
        return self.initial_learning_rate if self.value is None else self.value

    def record(self, metric: Any) -> float:
        """Record a metric, and return the value from now on.

        Raises
        ------
        TypeError
            If `metric` is not a real number.
        """
        if not is_real(metric):
            raise TypeError(f"ReduceOnPlateau: metric must be a real number, got {metric!r}")
        metric = float(metric)
        cooling = max(self.cooldown_counter - 1, 0)
        wait = 0 if self.cooldown_counter else self.wait
        state: dict[str, Any] = {"cooldown_counter": cooling, "wait": wait}
        if self._improves(metric):
            state |= {"best": metric, "wait": 0}
        elif not cooling:
            state["wait"] = wait + 1
            if wait + 1 >= self.patience and self() > self.min_lr:
                reduced = max(self() * self.factor, self.min_lr)
                state |= {"value": reduced, "wait": 0, "cooldown_counter": self.cooldown}
        self._parameters.update(state)  # all at once, in case of an interrupt
        return self()

    def _improves(self, metric: float) -> bool:
        if self.best is None or not math.isfinite(metric):
            return math.isfinite(metric)
        return metric + self.min_delta < self.best if self.mode == "min" else metric - self.min_delta > self.best
