"""Projections of a variable, applied after every update, with Keras's names and meaning.

A constraint is any callable that maps the array of a variable to one of the same shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.hyper import Fixed, axes, number

EPSILON = 1e-7  # keras.config.epsilon(): avoids dividing by a norm of zero


class Constraint(Fixed):
    """Base of constraints. A subclass defines `__call__(w)`, which returns the projected array."""

    def __call__(self, w: Array) -> Array:
        raise NotImplementedError


def _rescaled(w: Array, axis: int | tuple[int, ...], wanted: Any) -> Array:
    norms = np.sqrt(np.sum(np.square(w), axis=axis, keepdims=True))
    scales: Array = (wanted(norms) / (w.dtype.type(EPSILON) + norms)).astype(w.dtype)
    return w * scales


class NonNeg(Constraint):
    """Set negative weights to 0, inside the pass of the update.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.constraints.NonNeg()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def __call__(self, w: Array) -> Array:
        return np.where(w < 0, w.dtype.type(0), w)


class MaxNorm(Constraint):
    """Scale `w` so that its norms along `axis` are at most `max_value`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.constraints.MaxNorm(1.0)(np.array([3.0, 4.0])).round(3)
    array([0.6, 0.8])
    """

    max_value: float = number(default=2.0, low=0)
    axis: int | tuple[int, ...] = axes(default=0)

    def __call__(self, w: Array) -> Array:
        return _rescaled(w, self.axis, lambda norms: np.clip(norms, 0, self.max_value))


class UnitNorm(Constraint):
    """Scale `w` so that its norms along `axis` are 1.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.constraints.UnitNorm()(np.array([3.0, 4.0])).round(3)
    array([0.6, 0.8])
    """

    axis: int | tuple[int, ...] = axes(default=0)

    def __call__(self, w: Array) -> Array:
        return _rescaled(w, self.axis, np.ones_like)


class MinMaxNorm(Constraint):
    """Scale `w` so that its norms along `axis` move by the fraction `rate` into [`min_value`, `max_value`].

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.constraints.MinMaxNorm(0.0, 1.0, rate=0.5)(np.array([3.0, 4.0])).round(3)
    array([1.8, 2.4])
    """

    min_value: float = number(default=0.0, low=0)
    max_value: float = number(default=1.0, low=0)
    rate: float = number(default=1.0, low=0, high=1)
    axis: int | tuple[int, ...] = axes(default=0)

    def __call__(self, w: Array) -> Array:
        return _rescaled(
            w,
            self.axis,
            lambda norms: self.rate * np.clip(norms, self.min_value, self.max_value) + (1 - self.rate) * norms,
        )


BUILTIN = (
    NonNeg,
    MaxNorm,
    UnitNorm,
    MinMaxNorm,
)  # exactly these classes cannot fail in the middle of a step
