"""The rules in plain NumPy: the specification, and the oracle of the compiled kernels.

Together with `numpy_plan`, this module can replace a compiled one: the rules of both agree bit for bit. All NaNs
count as equal, because processors differ in their sign and payload.

Each rule declares its names here: the slots are its parameters after `c`, the scalars are attributes of `c`. The
compiled rules take the names from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.kernels.numpy_plan import Plan
from fastvar.kernels.numpy_rows import merge
from fastvar.kernels.numpy_rule import Block, Rule
from fastvar.kernels.stages import TINY

__all__ = ["RULES", "Plan", "Rule", "copy", "merge"]

RULES: dict[str, Rule] = {}


def rule(scalars: str, measure: Block | None = None) -> Callable[[Block], Block]:
    """Add a function `name(w, g, c, *slots)` to `RULES`; `scalars` are names separated by spaces.

    `measure` is what sums before the update run in its place, see `Rule`.
    """

    def enter(block: Block) -> Block:
        _, _, _, *slots = inspect.signature(block).parameters
        RULES[block.__name__] = Rule(block, tuple(slots), tuple(scalars.split()), measure=measure)
        return block

    return enter


def flush(x: Array) -> Array:
    return np.where(np.abs(x) < x.dtype.type(TINY[x.dtype]), x.dtype.type(0), x)


def sign(x: Array) -> Array:
    real = x.dtype.type
    return np.where(x > 0, real(1), np.where(x < 0, real(-1), x))


def maximum(x: Array, other: Any) -> Array:
    return np.where(other > x, other, x)


def saturate(x: Array) -> Array:
    most = np.finfo(x.dtype).max
    return np.where(most < x, most, x)


def clamp(x: Array, low: Any, high: Any) -> Array:
    raised = np.where(x < low, low, x)
    return np.where(raised > high, high, raised)


def lerp(x: Array, target: Array, weight: Any) -> Array:
    moved: Array = x + (target - x) * weight
    return moved


def axpby(a: Any, x: Array, b: Any, y: Array) -> Array:
    total: Array = a * x + b * y
    return total


def mean_square(keep: Any, v: Array, take: Any, x: Array) -> Array:
    square: Array = keep * v + take * x * x
    return square


def over_root(x: Array, second: Array, scale_root: Any, epsilon: Any) -> Array:
    quotient: Array = x / (scale_root * np.sqrt(second) + epsilon)
    return quotient


@rule("rate")
def gradient_descent(w: Array, g: Array, c: Any) -> None:
    w[...] = w - c.rate * g


@rule("keep take scale_m scale_g")
def momentum(w: Array, g: Array, c: Any, m: Array) -> None:
    first = axpby(c.keep, m, c.take, g)
    m[...] = flush(first)
    w[...] = w + c.scale_m * first + c.scale_g * g


@rule("keep_ahead take_ahead keep take rate")
def sign_momentum(w: Array, g: Array, c: Any, m: Array) -> None:
    ahead = axpby(c.keep_ahead, m, c.take_ahead, g)
    m[...] = flush(axpby(c.keep, m, c.take, g))
    w[...] = w - c.rate * sign(ahead)


def adam_direction(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    adam(w, g, c, m.copy(), v.copy())


@rule("take_1 keep_2 take_2 scale_m scale_g scale_root epsilon", measure=adam_direction)
def adam(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    first, second = lerp(m, g, c.take_1), mean_square(c.keep_2, v, c.take_2, g)
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - over_root(axpby(c.scale_m, first, c.scale_g, g), second, c.scale_root, c.epsilon)


def prodigy_total(w: Array, g: Array, c: Any, total: Array) -> None:
    w[...] = flush(axpby(c.keep, total, c.take, g))


@rule("keep take distance take_1 keep_2 take_2 scale_m epsilon", measure=prodigy_total)
def prodigy(w: Array, g: Array, c: Any, total: Array, m: Array, v: Array) -> None:
    total[...] = flush(axpby(c.keep, total, c.take, g))
    x = c.distance * g
    first, second = lerp(m, x, c.take_1), mean_square(c.keep_2, v, c.take_2, x)
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - over_root(c.scale_m * first, second, w.dtype.type(1), c.epsilon)


@rule("take_1 keep_2 take_2 scale_m scale_ratio epsilon")
def radam(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    first, second = lerp(m, g, c.take_1), mean_square(c.keep_2, v, c.take_2, g)
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - (c.scale_m * first + over_root(c.scale_ratio * first, second, w.dtype.type(1), c.epsilon))


@rule("take_1 keep_2 take_2 scale_m scale_g scale_root epsilon")
def amsgrad(w: Array, g: Array, c: Any, m: Array, v: Array, peak: Array) -> None:
    first, second = lerp(m, g, c.take_1), flush(mean_square(c.keep_2, v, c.take_2, g))
    m[...], v[...] = flush(first), second
    peak[...] = maximum(peak, second)
    w[...] = w - over_root(axpby(c.scale_m, first, c.scale_g, g), peak, c.scale_root, c.epsilon)


@rule("keep_1 take_1 keep_2 take_2 rate scale_root epsilon epsilon_root")
def adabelief(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    first = axpby(c.keep_1, m, c.take_1, g)
    second = mean_square(c.keep_2, v, c.take_2, g - first) + c.epsilon_root
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - over_root(c.rate * first, second, c.scale_root, c.epsilon)


@rule("keep_1 take_1 take_2 rate scale_root epsilon")
def yogi(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    first, square = axpby(c.keep_1, m, c.take_1, g), g * g
    step = c.take_2 * square
    second = np.where(v == square, v, np.where(v > square, v - step, v + step))
    m[...], v[...] = flush(first), flush(second)
    w[...] = w - over_root(c.rate * first, second, c.scale_root, c.epsilon)


@rule("take_1 keep rate epsilon_g epsilon")
def adamax(w: Array, g: Array, c: Any, m: Array, u: Array) -> None:
    first, norm = lerp(m, g, c.take_1), maximum(np.abs(g) + c.epsilon_g, c.keep * u)
    m[...], u[...] = flush(first), flush(norm)
    w[...] = w - c.rate * first / (norm + c.epsilon)


@rule("keep_1 take_1 keep_slow take_slow keep_2 take_2 scale_m scale_slow scale_root epsilon")
def ademamix(w: Array, g: Array, c: Any, m: Array, m_slow: Array, v: Array) -> None:
    first, slow = axpby(c.keep_1, m, c.take_1, g), axpby(c.keep_slow, m_slow, c.take_slow, g)
    second = mean_square(c.keep_2, v, c.take_2, g)
    m[...], m_slow[...], v[...] = flush(first), flush(slow), flush(second)
    w[...] = w - over_root(axpby(c.scale_m, first, c.scale_slow, slow), second, c.scale_root, c.epsilon)


@rule(
    "keep_1 take_1 keep_d take_d keep_2 take_2 scale_change lookahead "
    "scale_m scale_d scale_root epsilon epsilon_root"
)
def adan(w: Array, g: Array, c: Any, m: Array, d: Array, v: Array, previous: Array) -> None:
    change = c.scale_change * (g - previous)
    first, drift = axpby(c.keep_1, m, c.take_1, g), axpby(c.keep_d, d, c.take_d, change)
    second = mean_square(c.keep_2, v, c.take_2, g + c.lookahead * change)
    m[...], d[...], v[...], previous[...] = flush(first), flush(drift), flush(second), g
    step = axpby(c.scale_m, first, c.scale_d, drift)
    w[...] = w - over_root(step, second + c.epsilon_root, c.scale_root, c.epsilon)


@rule("keep_1 take_1 keep_2 take_2 rate epsilon limit")
def adopt(w: Array, g: Array, c: Any, m: Array, v: Array) -> None:
    step = clamp(g / maximum(np.sqrt(v), c.epsilon), -c.limit, c.limit)
    first = axpby(c.keep_1, m, c.take_1, step)
    m[...], v[...] = flush(first), flush(mean_square(c.keep_2, v, c.take_2, g))
    w[...] = w - c.rate * first


@rule("keep_2 take_2 rate scale_root epsilon keep share_z take")
def schedule_free(w: Array, g: Array, c: Any, z: Array, v: Array) -> None:
    second = mean_square(c.keep_2, v, c.take_2, g)
    fast = z - over_root(c.rate * g, second, c.scale_root, c.epsilon)
    w[...] = axpby(c.keep, w - c.share_z * z, c.take, fast)
    z[...], v[...] = fast, flush(second)


@rule("keep take rate epsilon_root epsilon")
def rmsprop(w: Array, g: Array, c: Any, v: Array) -> None:
    second = mean_square(c.keep, v, c.take, g)
    v[...] = flush(second)
    w[...] = w - over_root(c.rate * g, second + c.epsilon_root, w.dtype.type(1), c.epsilon)


@rule("keep take rate epsilon_root epsilon keep_m scale_m")
def rmsprop_momentum(w: Array, g: Array, c: Any, v: Array, m: Array) -> None:
    second = mean_square(c.keep, v, c.take, g)
    first = c.keep_m * m + over_root(c.rate * g, second + c.epsilon_root, w.dtype.type(1), c.epsilon)
    v[...], m[...] = flush(second), flush(first)
    w[...] = w - c.scale_m * first


@rule("keep take rate epsilon_root epsilon keep_m scale_m")
def rmsprop_centered(w: Array, g: Array, c: Any, v: Array, m: Array, average: Array) -> None:
    second, mean = mean_square(c.keep, v, c.take, g), axpby(c.keep, average, c.take, g)
    spread = maximum(second - saturate(mean * mean), w.dtype.type(0))
    first = c.keep_m * m + over_root(c.rate * g, spread + c.epsilon_root, w.dtype.type(1), c.epsilon)
    v[...], m[...], average[...] = flush(second), flush(first), flush(mean)
    w[...] = w - c.scale_m * first


@rule("keep take rate epsilon")
def adadelta(w: Array, g: Array, c: Any, v: Array, d: Array) -> None:
    second = mean_square(c.keep, v, c.take, g)
    step = np.sqrt(d + c.epsilon) * g / np.sqrt(second + c.epsilon)
    v[...], d[...] = flush(second), flush(mean_square(c.keep, d, c.take, step))
    w[...] = w - c.rate * step


def follow_the_leader(
    w: Array, g: Array, c: Any, accumulator: Array, linear: Array, power: Callable[[Array], Array]
) -> None:
    total = accumulator + g * g
    before, after = power(accumulator), power(total)
    z = linear + (g + c.shrinkage * w - (after - before) * c.inverse_rate * w)
    accumulator[...], linear[...] = total, z
    w[...] = (clamp(z, -c.limit, c.limit) - z) / (after * c.inverse_rate + c.curvature)


@rule("inverse_rate limit curvature shrinkage")
def ftrl(w: Array, g: Array, c: Any, accumulator: Array, linear: Array) -> None:
    follow_the_leader(w, g, c, accumulator, linear, np.sqrt)


def ftrl_of_any_power(w: Array, g: Array, c: Any, accumulator: Array, linear: Array) -> None:
    """`ftrl` with another scalar, the `power` of the accumulator instead of 1/2. It has no compiled twin."""

    def power(x: Array) -> Array:
        raised: Array = np.power(x, c.power, dtype=np.float64).astype(w.dtype)
        return raised

    rounded = SimpleNamespace(**{name: w.dtype.type(scalar) for name, scalar in vars(c).items()})
    follow_the_leader(w, g, rounded, accumulator, linear, power)


@rule("down up low high")
def rprop(w: Array, g: Array, c: Any, previous: Array, step: Array) -> None:
    real = w.dtype.type
    turn = g * previous
    step[...] = clamp(step * np.where(turn > 0, c.up, np.where(turn < 0, c.down, real(1))), c.low, c.high)
    previous[...] = np.where(turn < 0, real(0), g)
    w[...] = w - sign(previous) * step


@rule("rate shrinkage keep take")
def asgd(w: Array, g: Array, c: Any, average: Array) -> None:
    w[...] = c.shrinkage * w - c.rate * g
    average[...] = axpby(c.keep, average, c.take, w)


def copy(targets: Iterable[Array], sources: Iterable[Array | bytes], threads: int = 1) -> None:
    """Copy the bytes of each source (an array of any dtype, or bytes) to the target at its place."""
    pairs = list(zip(targets, sources, strict=True))
    for target, source in pairs:
        if not (_plain(target) and target.flags.writeable and (type(source) is bytes or _plain(source))):
            buffers.refuse_copy(target, source)
        if target.nbytes != len(_bytes(source)) or np.may_share_memory(target, _bytes(source)):
            buffers.refuse_copy(target, source)
    for target, source in pairs:
        _bytes(target)[...] = _bytes(source)


def _plain(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.flags.c_contiguous and not array.dtype.hasobject


def _bytes(source: Array | bytes) -> Array:
    return np.frombuffer(source, np.uint8) if isinstance(source, bytes) else source.reshape(-1).view(np.uint8)
