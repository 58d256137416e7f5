"""The stages around a rule in plain NumPy: the twin of `stages.pxi`, which tells their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.kernels.numpy_rule import Rule


def conditioned(g: Array, w: Array, s: Any) -> Array:
    """Return the gradient in the arithmetic type of `w`, scaled, regularized and clipped."""
    real = w.dtype.type
    x = penalized(g, w, s)
    clip, limit = real(s["clip"]), real(s["limit"])
    if clip != 1:
        x = x * clip
    return np.where(x < -limit, -limit, np.where(x > limit, limit, x))


def penalized(g: Array, w: Array, s: Any) -> Array:
    """Return the gradient in the arithmetic type of `w`, before it is clipped."""
    real = w.dtype.type
    x: Array = g.astype(w.dtype) * real(s["scale"])
    l2, l1 = real(s["l2"]), real(s["l1"])
    if l2 != 0:
        x = x + l2 * w
    if l1 != 0:
        x = x + np.where(w > 0, l1, np.where(w < 0, -l1, real(0)))
    return x


def finish(w: Array, average: Array | None, s: Any, updated: bool) -> None:
    """Run the stages that come after a rule."""
    real = w.dtype.type
    if average is not None:
        average[...] = real(s["average"]) * average + real(1 - s["average"]) * w
        if s["overwrite"] != 0:
            w[...] = average
    low, high = real(s["low"]), real(s["high"])
    if updated and (low != -np.inf or high != np.inf):
        w[...] = np.where(w < low, low, np.where(w > high, high, w))


def update(
    rule: Rule, x: Array, w: Any, average: Any, slots: Sequence[Any], s: Any, scalars: Sequence[float]
) -> None:
    """Update weights, average and slots of one variable, or of some of its rows."""
    decay(w, s)
    rule.apply(w, x, slots, scalars)
    finish(w, average, s, True)


def decay(w: Array, s: Any) -> None:
    """Apply weight decay."""
    if s["decay"] != 0:
        w[...] = w - w.dtype.type(s["decay"]) * w


def follow(
    rule: Rule, x: Array, w: Array, kept: Array | None, slots: Sequence[Any], s: Any, scalars: Sequence[float]
) -> None:
    """Make a direction, and add a multiple of it, or of the kept one, to the weights."""
    direction = np.zeros_like(w)
    rule.apply(direction, x, slots, scalars)
    direction = direction if kept is None else kept
    w[...] = w + w.dtype.type(s["step"]) * (w.dtype.type(s["size"]) * direction)
