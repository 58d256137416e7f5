"""The metrics of the checkpoints in a folder, as columns, a table and a curve."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvar import figures
from fastvar.buffers import Array
from fastvar.checkpoint.retention import Found
from fastvar.tables import Shown, Table, moment


class History(Shown):
    """The checkpoints in a folder, oldest first: steps, times and metrics.

    It prints as a table. A notebook shows it as HTML, with a curve if matplotlib is installed.

    Attributes
    ----------
    step : array of int
    time : array of float
        When each was saved, in seconds since 1970.
    paths : list of str
    metrics : dict of str to array of float
        The metrics given to `CheckpointManager.save`, NaN where one is missing.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        self.step: Array = np.array([f.step for f in found], np.int64)
        self.time: Array = np.array([f.time for f in found], np.float64)
        self.paths: list[str] = [f.path for f in found]
        names = dict.fromkeys(name for f in found for name in f.metrics)
        self.metrics: dict[str, Array] = {
            name: np.array([f.metrics.get(name, math.nan) for f in found], np.float64) for name in names
        }

    def __len__(self) -> int:
        return len(self.paths)

    def plot(self, ax: Any = None) -> Any:
        """Draw every metric over the steps with matplotlib, and return the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            The axes to draw in; by default those of a new figure.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            ax = figures.axes("History")
        for name, values in self.metrics.items():
            known = ~np.isnan(values)
            ax.plot(self.step[known], values[known], marker=".", label=name)
        figures.label_steps(ax)
        ax.grid(visible=True, alpha=0.4)
        if self.metrics:
            ax.legend()
        return ax

    def _table(self) -> Table:
        columns = ["checkpoint", "step", "saved", *self.metrics]
        names = [os.path.basename(path) for path in self.paths]
        metrics = [[None if math.isnan(v) else float(v) for v in values] for values in self.metrics.values()]
        rows = [*zip(names, map(int, self.step), map(moment, self.time), *metrics, strict=True)]
        return Table(os.path.dirname(self.paths[0]) if rows else "no checkpoints", columns, rows)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + (self._curve() if len(self) > 1 and self.metrics else "")

    def _curve(self) -> str:
        """Return the plot as SVG in the colour of the page's text, or nothing without matplotlib."""
        try:
            return figures.svg(self.plot)
        except ImportError:
            return ""
