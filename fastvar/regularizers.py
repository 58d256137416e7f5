"""Penalties of a variable, with Keras's meaning: their gradients are added in the pass of the update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastvar.buffers import Array
from fastvar.hyper import Fixed, constant, number
from fastvar.names import public as _public

__all__ = ["L1", "L1L2", "L2", "Regularizer"]


class Regularizer(Fixed):
    """A penalty `l1 * sum(|w|) + l2 * sum(w**2)`, whose gradient is `l1 * sign(w) + 2 * l2 * w`."""

    l1: float = constant(0.0, init=False)
    l2: float = constant(0.0, init=False)

    def __call__(self, w: Array) -> float:
        """Return the penalty, which belongs to the loss. The optimizer adds its gradient."""
        w = w.astype(float)
        return float(self.l1 * abs(w).sum() + self.l2 * (w * w).sum())


class L1(Regularizer):
    """L1 penalty `l1 * sum(|w|)`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.regularizers.L1(0.5)(np.array([1.0, -2.0]))
    1.5
    """

    l1: float = number(default=0.01, low=0)


class L2(Regularizer):
    """L2 penalty `l2 * sum(w**2)`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.regularizers.L2(0.5)(np.array([1.0, -2.0]))
    2.5
    """

    l2: float = number(default=0.01, low=0)


class L1L2(Regularizer):
    """Both penalties: `l1 * sum(|w|) + l2 * sum(w**2)`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.regularizers.L1L2(l1=1.0, l2=0.5)(np.array([1.0, -2.0]))
    5.5
    """

    l1: float = number(default=0.0, low=0)
    l2: float = number(default=0.0, low=0)


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.regularizers", __all__)
