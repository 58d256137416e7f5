"""The base class of schedules: the call, the horizon and the plot."""

from __future__ import annotations

import textwrap
from typing import Any

from fastvar import figures
from fastvar.hyper import Declared

POINTS = 2000  # the most points of a plot: more than its width in pixels


class LearningRateSchedule(Declared):
    """Base of schedules. A subclass declares parameters and defines `__call__(step)`.

    A schedule is a function of the iteration alone, in double precision. It can replace any number of an optimizer
    or of a group: `learning_rate`, `weight_decay`, `beta_1`, `clipnorm`, ... So can a plain function of the
    iteration, but a configuration or checkpoint cannot store it.

    Examples
    --------
    >>> import fastvar as fv
    >>> from fastvar.hyper import number
    >>> class InverseRoot(fv.schedules.LearningRateSchedule):
    ...     initial_learning_rate: float = number(low=0)
    ...     def __call__(self, step):
    ...         return self.initial_learning_rate / (1 + step) ** 0.5
    >>> InverseRoot(0.5)(3)
    0.25
    """

    def __call__(self, step: int) -> float:
        """Return the value at the iteration `step`, counted from 0."""
        raise NotImplementedError

    @property
    def horizon(self) -> int:
        """The number of steps that show the shape of the schedule: `plot` draws these by default."""
        return 1000

    def plot(self, steps: int | None = None, ax: Any = None) -> Any:
        """Draw the values of the first `steps` iterations with matplotlib, and return the axes.

        Parameters
        ----------
        steps : int, optional
            How many, >= 1; by default `horizon`.
        ax : matplotlib.axes.Axes, optional
            The axes to draw in; by default those of a new figure.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        steps = self.horizon if steps is None else steps
        if steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be >= 1, got {steps}")
        if ax is None:
            ax = figures.axes(type(self).__name__)
        at = [i * (steps - 1) // (POINTS - 1) for i in range(POINTS)] if steps > POINTS else list(range(steps))
        ax.plot(at, [self(step) for step in at], marker="." if steps <= 30 else None)
        title = textwrap.fill(repr(self), 76, break_long_words=False)
        ax.set(title=title, ylabel="value")
        figures.label_steps(ax)
        ax.title.set_fontsize("medium" if "\n" not in title else "small")
        ax.grid(visible=True, alpha=0.4)
        ax.margins(x=0.01)
        return ax

    def __repr__(self) -> str:
        values = {k: v for k, v in self._parameters.items() if v != self.parameters[k].default}
        shown = [f"{k}={list(v) if isinstance(v, tuple) else v!r}" for k, v in values.items()]
        return f"{type(self).__name__}({', '.join(shown)})"


def value_at(schedule: Any, step: int) -> float:
    """Return the value of a nested schedule, function or number at `step`."""
    value: float = schedule(step) if callable(schedule) else schedule
    return value


def horizon_of(schedule: Any) -> int:
    """Return the horizon of a nested schedule, or 1 for a function or number."""
    return schedule.horizon if isinstance(schedule, LearningRateSchedule) else 1
