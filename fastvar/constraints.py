"""Projections of a variable, applied after every update, with Keras's names and meaning.

A constraint is any callable that maps the array of a variable to one of the same shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array
from fastvar.hyper import Fixed, Parameter, axes, number
from fastvar.names import public as _public

__all__ = ["Box", "Constraint", "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"]

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


def _bound(default: float) -> Any:
    """Declare a number or an array of them, which may be infinite."""

    def check(value: Any) -> float | Array:
        if (given := np.asarray(value)).dtype.kind not in "fiu":
            raise TypeError(f"must be a real number or an array of them, got {value!r}")
        if np.isnan(given).any():
            raise ValueError(f"must not be NaN, got {value!r}")
        if given.ndim == 0:
            return float(given)
        array = given.astype(np.float64)
        array.flags.writeable = False
        return array

    return Parameter(default, check, kw_only=False, per_group=False, numeric=False)


class Box(Constraint):
    """Clip each weight to [`low`, `high`], as `numpy.clip` does.

    Parameters
    ----------
    low, high : float or array_like
        The bounds, `low <= high`, by default infinite: none. Arrays are broadcast to the shape of the variable.

    Raises
    ------
    TypeError
        If a bound is not a real number or an array of them.
    ValueError
        If a bound is NaN, or no number is within the bounds.

    Notes
    -----
    Numbers are applied inside the pass of the update, arrays after it. `optimizers.LBFGS` searches within either.
    Bounds are rounded to the dtype of the variable.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> fv.constraints.Box(-1, 1)(np.array([-2.0, 0.5, 3.0]))
    array([-1. ,  0.5,  1. ])
    >>> fv.constraints.Box(low=[0.0, 1.0])(np.array([-2.0, 0.5]))
    array([0., 1.])
    """

    low: npt.ArrayLike = _bound(-np.inf)
    high: npt.ArrayLike = _bound(np.inf)

    def _validate(self) -> None:
        try:
            low, high = np.broadcast_arrays(self.low, self.high)
        except ValueError as error:
            raise ValueError(f"Box: low and high: {error}") from None
        self.limits(low.shape, np.float64)
        if wrong := np.argwhere(low > high).tolist():
            at = tuple(wrong[0])
            where = f" at {wrong[0]}" if at else ""
            raise ValueError(f"Box: low must be <= high, got {low[at]:g} and {high[at]:g}{where}")

    def limits(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """Return the bounds in a dtype. Raise an error if they do not broadcast to a shape, or hold no number."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        try:
            fits = np.broadcast_shapes(low.shape, high.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"Box: bounds must broadcast to {shape}, got the shapes {low.shape} and {high.shape}")
        most = np.finfo(dtype).max
        if (low > most).any() or (high < -most).any():
            raise ValueError(f"Box: low must be <= {most:g} and high >= {-most:g} for {np.dtype(dtype)}")
        with np.errstate(over="ignore"):  # a bound that no number can reach
            return low.astype(dtype), high.astype(dtype)

    def __call__(self, w: Array) -> Array:
        low, high = self.limits(w.shape, np.result_type(w, np.float32))
        projected: Array = np.where(w < low, low, np.where(w > high, high, w))
        return projected


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


BUILTIN = (NonNeg, Box, MaxNorm, UnitNorm, MinMaxNorm)  # exactly these cannot fail in the middle of a step
_FREE, _NONNEG = Box(), Box(low=0.0)


def as_box(constraint: Any) -> Box | None:
    """Return the bounds of each weight if a constraint is nothing else."""
    if constraint is None:
        return _FREE
    if type(constraint) is NonNeg:
        return _NONNEG
    return constraint if type(constraint) is Box else None


def number_bounds(constraint: Any) -> tuple[float, float]:
    """Return the bounds that the pass of the update applies; infinite ones if the constraint runs after it."""
    if constraint is None:
        return -np.inf, np.inf
    box: Any = as_box(constraint)
    return (box.low, box.high) if box and np.ndim(box.low) == np.ndim(box.high) == 0 else (-np.inf, np.inf)


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.constraints", __all__)
