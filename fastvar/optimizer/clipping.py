"""Clipping by value, by the norm of each gradient or of all, and by the norms of units of weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, inf, nan, prod
from typing import Any

import numpy as np

from fastvar.optimizer.passes import DOWN

SMALL_WEIGHTS = 1e-3  # the least norm of a unit's weights in adaptive clipping, as in the paper
SMALL_GRADIENT = 1e-6


def limit_of_values(options: Any) -> float:
    """Return the limit of the elements of gradients."""
    return inf if options.clipvalue is None else options.clipvalue


def by_norm(options: Any) -> bool:
    """Return whether gradients are clipped by norm."""
    return options.clipnorm is not None or options.global_clipnorm is not None


def coefficients(plan: Any, options: Any, variables: Sequence[Any], workers: int) -> Any:
    """Return the factor by which clipping by norm scales the bound gradients, of each variable or of all.

    Parameters
    ----------
    plan : Plan
        The plan to which the gradients are bound.
    options : namespace
        Its `clipnorm` or `global_clipnorm` is the limit.
    variables : sequence of Variable
        The variables of the plan.
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
        return nan  # as in Keras, so that it does not look clipped
    return limit / np.maximum(norms, limit)


def norm_of_all(plan: Any, weights: Sequence[Any], workers: int) -> float:
    """Return the norm of all bound gradients together, finite also where only their squares are not."""
    norm = float(np.sqrt(plan.sums_of_squares(False, workers)[0]))
    return hypot(*_norms_scaled_down(plan, weights, workers)) / DOWN if norm == inf else norm


def _norms_scaled_down(plan: Any, variables: Sequence[Any], workers: int) -> Any:
    """Return the norm of each gradient times `DOWN`: finite if the gradient is."""
    norms: Any = np.sqrt(plan.sums_of_squares(True, workers)) * DOWN
    huge = [v.dtype == np.float64 for v in variables] & ~np.isfinite(norms)
    norms[huge] = np.sqrt(plan.sums_of_squares(True, workers, DOWN))[huge]
    return norms


def clip_units(plan: Any, clipping: float, workers: int) -> None:
    """Set the factors that scale each unit's part of the gradient to at most `clipping` times its weights' norm.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021 (arXiv:2102.06171),
    equation 3. A unit is what one output depends on, a column of the plan's first matrices (see `units`).
    """
    g_norms, w_norms = (_unit_norms(plan, weights, workers) for weights in (False, True))
    most = clipping * np.maximum(w_norms, SMALL_WEIGHTS)
    scale = np.where(g_norms < most, 1.0, most / np.maximum(g_norms, SMALL_GRADIENT))
    plan.units[0].by_column[...] = scale


def _unit_norms(plan: Any, weights: bool, workers: int) -> Any:
    _, squares = plan.unit_sums(0, weights, workers)
    norms = np.sqrt(squares)
    if np.isinf(squares).any():
        _, small = plan.unit_sums(0, weights, workers, DOWN)
        norms = np.where(np.isinf(squares), np.sqrt(small) / DOWN, norms)
    return norms


def units(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many elements a unit of an array has, and how many units there are: the shape of a matrix.

    Kernels are (inputs, outputs), or (height, width, inputs, outputs); a vector is one unit.
    """
    if sum(n != 1 for n in shape) <= 1:
        return prod(shape), 1
    inputs = shape[:1] if len(shape) <= 3 else shape[:-1]
    return prod(inputs), prod(shape[len(inputs) :])
