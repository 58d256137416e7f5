"""An optimizer of one's own. All options of fastvar's work with it, and so do checkpoints and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import fastvar as fv
from fastvar.hyper import Number, number

__all__ = ["NormalizedSteps"]


class NormalizedSteps(fv.Optimizer):
    """Momentum divided by a running mean of the sizes of gradients.

    Parameters
    ----------
    learning_rate : float or schedule
        By default 0.01.
    momentum : float
        In [0, 1), by default 0.9.
    **options
        Those of every optimizer, see `fastvar.Optimizer`.
    """

    learning_rate: Number = number(default=0.01, low=0)
    momentum: Number = number(default=0.9, low=0, below=1)
    slots = ("velocity", "length")

    def update(self, variable: npt.NDArray[Any], gradient: npt.NDArray[Any], slots: Any, hyper: Any) -> None:
        slots.velocity += (1 - hyper.momentum) * (gradient - slots.velocity)
        slots.length += (1 - hyper.momentum) * (np.abs(gradient) - slots.length)
        variable -= hyper.learning_rate * slots.velocity / (slots.length + 1e-8)
