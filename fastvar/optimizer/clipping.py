"""Clipping: by value, by the norm of each gradient or of all, and by the norms of units of weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, inf, nan, prod
from typing import Any

import numpy as np

from fastvar import kernels
from fastvar.buffers import Array
from fastvar.optimizer.passes import DOWN

SMALL_WEIGHTS = 1e-3  # adaptive clipping takes the norm of a unit's weights to be at least this, as in the paper
SMALL_GRADIENT = 1e-6


def limit_of_values(options: Any) -> float:
    """Return what the first pass clips the elements of gradients to."""
    return inf if options.clipvalue is None else options.clipvalue


def by_norm(options: Any) -> bool:
    """Return whether gradients are scaled to a norm of theirs."""
    return options.clipnorm is not None or options.global_clipnorm is not None


def coefficients(plan: Any, options: Any, variables: Sequence[Any], workers: int) -> Any:
    """Return what clipping by norm multiplies the bound gradients with, of each variable or of all.

    Parameters
    ----------
    plan : Plan
        The plan of the first pass, whose gradients are bound.
    options : namespace
        Its `clipnorm` or `global_clipnorm` is the limit.
    variables : sequence of Variable
        Those of the plan.
    workers : int
        Threads.
    """
    plan.stages["clip"] = 1
    each = options.clipnorm is not None
    limit = options.clipnorm if each else options.global_clipnorm
    norms: Any = np.sqrt(plan.sums_of_squares(each, workers))
    if not np.isfinite(norms).all():  # or their squares are not
        norms, limit = _norms_scaled_down(plan, variables, workers), limit * DOWN
        norms = norms if each else np.array([hypot(*norms)])
    if not each and not np.isfinite(norms[0]):
        return nan  # as in Keras: nothing may pass for clipped
    return limit / np.maximum(norms, limit)


def _norms_scaled_down(plan: Any, variables: Sequence[Any], workers: int) -> Any:
    """Return the norm of each gradient times `DOWN`: finite if the gradient is."""
    norms: Any = np.sqrt(plan.sums_of_squares(True, workers)) * DOWN
    huge = [v.dtype == np.float64 for v in variables] & ~np.isfinite(norms)
    stages = plan.stages.copy()
    try:
        for field in ("scale", "l2", "l1"):
            plan.stages[field][huge] *= DOWN
        norms[huge] = np.sqrt(plan.sums_of_squares(True, workers))[huge]
    finally:
        plan.stages[...] = stages
    return norms


def clip_units(clipping: float, w: Array, g: Array, out: Array) -> None:
    """Write `g` into `out`, each unit's part scaled to at most `clipping` times the norm of its weights.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021 (arXiv:2102.06171),
    equation 3. A unit is what one output depends on: kernels are (inputs, outputs), or (height, width, inputs,
    outputs); a vector is one unit.
    """
    rows, columns = units(w.shape)
    if not g.size:
        return
    g_norms, w_norms = (unit_norms(x, rows, columns) for x in (g, w))
    most = clipping * np.maximum(w_norms, SMALL_WEIGHTS)
    scale = np.where(g_norms < most, 1.0, most / np.maximum(g_norms, SMALL_GRADIENT)).astype(g.dtype)
    np.multiply(g.reshape(rows, columns), scale, out=out.reshape(rows, columns))


def unit_norms(x: Array, rows: int, columns: int) -> Array:
    """Return the norm of each column of a matrix."""
    (squares,) = kernels.unit_sums(x, rows, columns)[1]
    norms: Array = np.sqrt(squares)
    if x.dtype == np.float64 and np.isinf(squares).any():
        (small,) = kernels.unit_sums(np.asarray(x * DOWN), rows, columns)[1]
        norms = np.where(np.isinf(squares), np.sqrt(small) / DOWN, norms)
    return norms


def units(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many elements a unit of an array has, and how many units there are."""
    if sum(n != 1 for n in shape) <= 1:
        return prod(shape), 1
    inputs = shape[:1] if len(shape) <= 3 else shape[:-1]
    return prod(inputs), prod(shape[len(inputs) :])
