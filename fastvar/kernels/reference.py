"""The rules in plain typed NumPy: the specification, and the oracle of the compiled kernels.

With `numpy_plan`, this module stands for one of the compiled ones: its rules agree with theirs bit for bit, all
NaNs (whose sign and payload are the processor's) being one.
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


def finite(x: Array) -> Array:
    most = np.finfo(x.dtype).max
    return np.where(most < x, most, x)


def between(low: Any, x: Array, high: Any) -> Array:
    raised = np.where(x < low, low, x)
    return np.where(raised > high, high, raised)


def towards(x: Array, target: Array, rate: Any) -> Array:
    moved: Array = x + (target - x) * rate
    return moved


def blend(keep: Any, x: Array, take: Any, y: Array) -> Array:
    blended: Array = keep * x + take * y
    return blended


def mean_square(keep: Any, v: Array, take: Any, x: Array) -> Array:
    square: Array = keep * v + take * x * x
    return square


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
    first, second = towards(m, g, c[0]), mean_square(c[1], v, c[2], g)
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(blend(c[3], first, c[4], g), second, c[5], c[6])


def radam(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first, second = towards(m, g, c[0]), mean_square(c[1], v, c[2], g)
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - (c[3] * first + scaled(c[4] * first, second, w.dtype.type(1), c[5]))


def amsgrad(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v, peak = slots
    first, second = towards(m, g, c[0]), flush(mean_square(c[1], v, c[2], g))
    m[...], v[...] = flush(first), second
    peak[...] = larger(peak, second)
    w[...] = w - scaled(blend(c[3], first, c[4], g), peak, c[5], c[6])


def adabelief(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first = blend(c[0], m, c[1], g)
    second = mean_square(c[2], v, c[3], g - first) + c[7]
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(c[4] * first, second, c[5], c[6])


def yogi(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first, square = blend(c[0], m, c[1], g), g * g
    step = c[2] * square
    second = np.where(v == square, v, np.where(v > square, v - step, v + step))
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - scaled(c[3] * first, second, c[4], c[5])


def adamax(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, u = slots
    first, norm = towards(m, g, c[0]), larger(np.abs(g) + c[3], c[1] * u)
    m[...], u[...] = flush(first), flush(norm)
    w[...] = w - c[2] * first / (norm + c[4])


def ademamix(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, old, v = slots
    first, slow = blend(c[0], m, c[1], g), blend(c[2], old, c[3], g)
    second = mean_square(c[4], v, c[5], g)
    m[...], old[...], v[...] = flush(first), flush(slow), flush(second)
    w[...] = w - scaled(blend(c[6], first, c[7], slow), second, c[8], c[9])


def adan(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, d, v, previous = slots
    change = c[6] * (g - previous)
    first, drift = blend(c[0], m, c[1], g), blend(c[2], d, c[3], change)
    second = mean_square(c[4], v, c[5], g + c[7] * change)
    m[...], d[...], v[...], previous[...] = flush(first), flush(drift), flush(second), g
    w[...] = w - scaled(blend(c[8], first, c[9], drift), second + c[12], c[10], c[11])


def adopt(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    m, v = slots
    first = blend(c[0], m, c[1], between(-c[6], g / larger(np.sqrt(v), c[5]), c[6]))
    m[...], v[...] = flush(first), flush(mean_square(c[2], v, c[3], g))
    w[...] = w - c[4] * first


def schedule_free(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    z, v = slots
    second = mean_square(c[0], v, c[1], g)
    fast = z - scaled(c[2] * g, second, c[3], c[4])
    w[...] = blend(c[5], w - c[6] * z, c[7], fast)
    z[...], v[...] = fast, flush(second)


def rmsprop(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    (v,) = slots
    second = mean_square(c[0], v, c[1], g)
    v[...] = flush(second)
    w[...] = w - scaled(c[2] * g, second + c[3], w.dtype.type(1), c[4])


def rmsprop_momentum(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, m = slots
    second = mean_square(c[0], v, c[1], g)
    first = c[5] * m + scaled(c[2] * g, second + c[3], w.dtype.type(1), c[4])
    v[...], m[...] = flush(second), flush(first)
    w[...] = w - c[6] * first


def rmsprop_centered(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, m, average = slots
    second, mean = mean_square(c[0], v, c[1], g), blend(c[0], average, c[1], g)
    spread = larger(second - finite(mean * mean), w.dtype.type(0))
    first = c[5] * m + scaled(c[2] * g, spread + c[3], w.dtype.type(1), c[4])
    v[...], m[...], average[...] = flush(second), flush(first), flush(mean)
    w[...] = w - c[6] * first


def adadelta(w: Array, g: Array, slots: Sequence[Array], c: Sequence[Any]) -> None:
    v, d = slots
    second = mean_square(c[0], v, c[1], g)
    step = np.sqrt(d + c[3]) * g / np.sqrt(second + c[3])
    v[...], d[...] = flush(second), flush(mean_square(c[0], d, c[1], step))
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
    "adam": Rule(adam, slots=2, scalars=7),
    "radam": Rule(radam, slots=2, scalars=6),
    "amsgrad": Rule(amsgrad, slots=3, scalars=7),
    "adabelief": Rule(adabelief, slots=2, scalars=8),
    "yogi": Rule(yogi, slots=2, scalars=6),
    "adamax": Rule(adamax, slots=2, scalars=5),
    "ademamix": Rule(ademamix, slots=3, scalars=10),
    "adan": Rule(adan, slots=4, scalars=13),
    "adopt": Rule(adopt, slots=2, scalars=7),
    "schedule_free": Rule(schedule_free, slots=2, scalars=8),
    "rmsprop": Rule(rmsprop, slots=1, scalars=5),
    "rmsprop_momentum": Rule(rmsprop_momentum, slots=2, scalars=7),
    "rmsprop_centered": Rule(rmsprop_centered, slots=3, scalars=7),
    "adadelta": Rule(adadelta, slots=2, scalars=4),
    "ftrl": Rule(ftrl, slots=2, scalars=4),
    "rprop": Rule(rprop, slots=2, scalars=4),
    "asgd": Rule(asgd, slots=1, scalars=4),
}
