"""The rules in plain typed NumPy: the specification, and the oracle of the compiled kernels.

With `numpy_plan`, this module stands for one of the compiled ones: its rules agree with theirs bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.kernels.numpy_plan import Plan, Rule, copy, dot, max_threads, merge, openmp, unit_sums
from fastvar.kernels.stages import TINY

__all__ = ["RULES", "Plan", "Rule", "copy", "dot", "max_threads", "merge", "openmp", "unit_sums"]


def flush(x: Array) -> Array:
    return np.where(np.abs(x) < x.dtype.type(TINY[x.dtype]), x.dtype.type(0), x)


def sign(x: Array) -> Array:
    real = x.dtype.type
    return np.where(x > 0, real(1), np.where(x < 0, real(-1), x))


def larger(x: Array, other: Any) -> Array:
    return np.where(other > x, other, x)


def between(low: Any, x: Array, high: Any) -> Array:
    raised = np.where(x < low, low, x)
    return np.where(raised > high, high, raised)


def towards(x: Array, target: Array, rate: Any) -> Array:
    moved: Array = x + (target - x) * rate
    return moved


def blend(keep: Any, x: Array, take: Any, y: Array) -> Array:
    blended: Array = keep * x + take * y
    return blended


def scaled(x: Array, second: Array, by_v: Any, epsilon: Any) -> Array:
    quotient: Array = x / (by_v * np.sqrt(second) + epsilon)
    return quotient


def gradient_descent(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    w[...] = w - c[0] * g


def momentum(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    (m,) = slots
    first = blend(c[0], m, c[1], g)
    m[...] = flush(first)
    w[...] = w + c[2] * first + c[3] * g


def sign_momentum(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    (m,) = slots
    ahead = blend(c[0], m, c[1], g)
    m[...] = flush(blend(c[2], m, c[3], g))
    w[...] = w - c[4] * sign(ahead)


def adam(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first, second = towards(m, g, c[0]), towards(v, g * g, c[1])
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(blend(c[2], first, c[3], g), second, c[4], c[5])


def amsgrad(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v, peak = slots
    first, second = towards(m, g, c[0]), flush(towards(v, g * g, c[1]))
    m[...], v[...] = flush(first), second
    peak[...] = larger(peak, second)
    w[...] = w - scaled(blend(c[2], first, c[3], g), peak, c[4], c[5])


def adabelief(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first = towards(m, g, c[0])
    error = g - first
    second = towards(v, error * error, c[1]) + c[5]
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(c[2] * first, second, c[3], c[4])


def yogi(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first, square = towards(m, g, c[0]), g * g
    second = v - c[1] * sign(v - square) * square
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(c[2] * first, second, c[3], c[4])


def adamax(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, u = slots
    first, norm = towards(m, g, c[0]), larger(np.abs(g) + c[3], c[1] * u)
    m[...], u[...] = flush(first), flush(norm)
    w[...] = w - c[2] * first / (norm + c[4])


def ademamix(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, old, v = slots
    first, slow, second = towards(m, g, c[0]), towards(old, g, c[1]), towards(v, g * g, c[2])
    m[...], old[...], v[...] = flush(first), flush(slow), flush(second)
    w[...] = w - scaled(blend(c[3], first, c[4], slow), second, c[5], c[6])


def adan(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, d, v, previous = slots
    change = c[3] * (g - previous)
    ahead = g + c[4] * change
    first, drift, second = towards(m, g, c[0]), towards(d, change, c[1]), towards(v, ahead * ahead, c[2])
    m[...], d[...], v[...], previous[...] = flush(first), flush(drift), flush(second), g
    w[...] = w - scaled(blend(c[5], first, c[6], drift), second + c[9], c[7], c[8])


def adopt(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first = towards(m, between(-c[4], g / larger(np.sqrt(v), c[3]), c[4]), c[0])
    m[...], v[...] = flush(first), flush(towards(v, g * g, c[1]))
    w[...] = w - c[2] * first


def schedule_free(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    z, v = slots
    second = towards(v, g * g, c[0])
    fast = z - scaled(c[1] * g, second, c[2], c[3])
    w[...] = blend(c[4], w - c[5] * z, c[6], fast)
    z[...], v[...] = fast, flush(second)


def rmsprop(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    (v,) = slots
    second = blend(c[0], v, c[1], g * g)
    v[...] = flush(second)
    w[...] = w - scaled(c[2] * g, second + c[3], w.dtype.type(1), c[4])


def rmsprop_momentum(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, m = slots
    second = blend(c[0], v, c[1], g * g)
    first = c[5] * m + scaled(c[2] * g, second + c[3], w.dtype.type(1), c[4])
    v[...], m[...] = flush(second), flush(first)
    w[...] = w - c[6] * first


def rmsprop_centered(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, m, average = slots
    second, mean = blend(c[0], v, c[1], g * g), blend(c[0], average, c[1], g)
    spread = larger(second - mean * mean, w.dtype.type(0))
    first = c[5] * m + scaled(c[2] * g, spread + c[3], w.dtype.type(1), c[4])
    v[...], m[...], average[...] = flush(second), flush(first), flush(mean)
    w[...] = w - c[6] * first


def adadelta(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, d = slots
    second = blend(c[0], v, c[1], g * g)
    step = np.sqrt(d + c[3]) * g / np.sqrt(second + c[3])
    v[...], d[...] = flush(second), flush(blend(c[0], d, c[1], step * step))
    w[...] = w - c[2] * step


def follow_the_leader(
    w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any], raised: Callable[[Array], Array]
) -> None:
    accumulator, linear = slots
    total = accumulator + g * g
    before, after = raised(accumulator), raised(total)
    z = linear + (g + c[3] * w - (after - before) * c[0] * w)
    accumulator[...], linear[...] = total, z
    w[...] = (between(-c[1], z, c[1]) - z) / (after * c[0] + c[2])


def ftrl(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    follow_the_leader(w, g, slots, c, np.sqrt)


def ftrl_of_any_power(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    """`ftrl` for another power of the accumulator than 1/2: the last scalar. It has no compiled twin."""

    def raised(x: Array) -> Array:
        power: Array = np.power(x, c[4], dtype=np.float64).astype(w.dtype)
        return power

    follow_the_leader(w, g, slots, [w.dtype.type(scalar) for scalar in c[:4]], raised)


def rprop(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    previous, step = slots
    real = w.dtype.type
    turn = g * previous
    step[...] = between(c[2], step * np.where(turn > 0, c[1], np.where(turn < 0, c[0], real(1))), c[3])
    previous[...] = np.where(turn < 0, real(0), g)
    w[...] = w - sign(previous) * step


def asgd(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    (average,) = slots
    w[...] = c[1] * w - c[0] * g
    average[...] = blend(c[2], average, c[3], w)


RULES = {
    "gradient_descent": Rule(gradient_descent, slots=0, scalars=1),
    "momentum": Rule(momentum, slots=1, scalars=4),
    "sign_momentum": Rule(sign_momentum, slots=1, scalars=5),
    "adam": Rule(adam, slots=2, scalars=6),
    "amsgrad": Rule(amsgrad, slots=3, scalars=6),
    "adabelief": Rule(adabelief, slots=2, scalars=6),
    "yogi": Rule(yogi, slots=2, scalars=5),
    "adamax": Rule(adamax, slots=2, scalars=5),
    "ademamix": Rule(ademamix, slots=3, scalars=7),
    "adan": Rule(adan, slots=4, scalars=10),
    "adopt": Rule(adopt, slots=2, scalars=5),
    "schedule_free": Rule(schedule_free, slots=2, scalars=7),
    "rmsprop": Rule(rmsprop, slots=1, scalars=5),
    "rmsprop_momentum": Rule(rmsprop_momentum, slots=2, scalars=7),
    "rmsprop_centered": Rule(rmsprop_centered, slots=3, scalars=7),
    "adadelta": Rule(adadelta, slots=2, scalars=4),
    "ftrl": Rule(ftrl, slots=2, scalars=4),
    "rprop": Rule(rprop, slots=2, scalars=4),
    "asgd": Rule(asgd, slots=1, scalars=4),
}
