"""The rules and stages in plain typed NumPy: the specification, and the oracle of the compiled kernels.

`Plan` here and the compiled `Plan` are interchangeable and agree bit for bit. A rule that a user writes in
NumPy runs here too (any object with `slots`, `scalars` and `__call__`), with every stage around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.kernels.stages import BLOCK, LANES, TINY, neutral

Block = Callable[[Array, Array, Sequence[Array], Sequence[Any]], None]


class Rule(NamedTuple):
    """An update rule: `block(w, g, slots, c)` writes `w` and the slots in place."""

    block: Block
    slots: int
    scalars: int
    whole: bool = False  # a user's own: takes the scalars as they are, not in the arithmetic type


def flush(x: Array) -> Array:
    return np.where(np.abs(x) < x.dtype.type(TINY[x.dtype]), x.dtype.type(0), x)


def sign(x: Array) -> Array:
    real = x.dtype.type
    return np.where(x > 0, real(1), np.where(x < 0, real(-1), x))


def larger(x: Array, other: Any) -> Array:
    return np.where(other > x, other, x)


def between(low: Any, x: Array, high: Any) -> Array:
    return np.where(x < low, low, np.where(x > high, high, x))


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
    first, second = towards(m, g, c[0]), towards(v, g * g, c[1])
    m[...], v[...] = flush(first), flush(second)
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


def conditioned(g: Array, w: Array, s: Any) -> Array:
    """Return the gradient in the arithmetic type of `w`, after the stages that come before a rule."""
    real = w.dtype.type
    x: Array = g.astype(w.dtype) * real(s["scale"])
    l2, l1, clip = real(s["l2"]), real(s["l1"]), real(s["clip"])
    if l2 != 0:
        x = x + l2 * w
    if l1 != 0:
        x = x + np.where(w > 0, l1, np.where(w < 0, -l1, real(0)))
    if clip != 1:
        x = x * clip
    limit = real(s["limit"])
    return np.where(x < -limit, -limit, np.where(x > limit, limit, x))


def finish(w: Array, average: Array | None, s: Any, updated: bool) -> None:
    """Run the stages that come after a rule."""
    real = w.dtype.type
    if average is not None:
        average[...] = real(s["average"]) * average + real(1 - s["average"]) * w
        if s["overwrite"] != 0:
            w[...] = average
    if updated and s["nonneg"] != 0:
        w[...] = np.where(w < 0, real(0), w)


class Plan:
    """All variables of a step and one rule.

    Parameters
    ----------
    owner : str
        Begins every error message.
    rule : Rule
        From `RULES`, or a user's own.
    names : sequence of str
        One per variable, for error messages.
    weights : sequence of ndarray
        float32 or float64, C-contiguous, writable; updated in place.
    slots : sequence of sequences of ndarray
        State arrays of each variable, of its shape and dtype.
    groups : sequence of int
        The group of each variable, whose scalars it takes.
    averages : sequence of (ndarray or None), optional
        Where the moving averages of the weights are kept.

    Attributes
    ----------
    stages : ndarray
        One record of `stages.STAGES` per variable, to be filled by the optimizer.
    """

    def __init__(
        self,
        owner: str,
        rule: Rule,
        names: Sequence[str],
        weights: Iterable[Array],
        slots: Iterable[Sequence[Array]],
        groups: Iterable[int],
        averages: Iterable[Array | None] | None = None,
    ) -> None:
        self.owner, self.rule, self.names = owner, rule, list(names)
        self._table = buffers.plan_table(owner, rule.slots, self.names, weights, slots, groups, averages)
        self._held: list[Array | None] | None = None
        self._zero = False
        self.stages = neutral(len(self._table.weights))

    def bind(self, gradients: Iterable[Any], zero: bool = False) -> int:
        """Check the gradients of the next step, hold them, and return how many are not None (no update).

        With `zero` they are zeroed once they are read.

        Raises
        ------
        TypeError, ValueError
            Naming the variable, if a gradient cannot be used; nothing has been written then.
        """
        self._held = None
        given = list(gradients)
        if len(given) != len(self._table.weights):
            raise ValueError(f"{self.owner}: must be given {len(self._table.weights)} gradients, got {len(given)}")
        held: list[Array | None] = []
        labels = [f"{self.owner}: gradient of {name}" for name in self.names]
        for gradient, like, label in zip(given, self._table.weights, labels, strict=True):
            array = None
            if gradient is not None:
                array = buffers.as_gradient(gradient, like, label)
                self._table.extents.refuse(array, label)
                if zero and not (array is gradient and array.flags.writeable):
                    buffers.refuse_zeroing(label)
            held.append(array)
        if zero:
            buffers.check_disjoint(zip(labels, held, strict=True))
        self._held, self._zero = held, zero
        return sum(g is not None for g in held)

    def _bound(self) -> list[Array | None]:
        if self._held is None:
            raise RuntimeError(f"{self.owner}: bind gradients first")
        return self._held

    def sums_of_squares(self, each: bool, threads: int = 1) -> Array:
        """Sum the squares of the conditioned gradients: one sum per variable, or one of all.

        In double precision, in fixed blocks and lanes of the concatenation of all variables, so that the
        result depends neither on threads nor, of all, on how the elements are split into variables.
        """
        parts = []
        with np.errstate(all="ignore"):
            for g, w, s in zip(self._bound(), self._table.weights, self.stages, strict=True):
                x = np.zeros(w.size) if g is None else conditioned(g, w, s).astype(np.float64).reshape(-1)
                parts.append(x)
            groups = parts if each else [np.concatenate([np.empty(0), *parts])]
            return np.array([sum_of_squares(x) for x in groups])

    def run(self, scalars: Sequence[Sequence[float]], threads: int = 1, count: list[int] | None = None) -> None:
        """Apply the rule with the scalars of each group, and every stage; release the gradients.

        `count[0]` is counted up in the same breath: no signal can come between in the compiled twin.
        """
        held = self._bound()
        if len(scalars) != self._table.groups:
            raise ValueError(
                f"{self.owner}: must be given scalars for {self._table.groups} groups, got {len(scalars)}"
            )
        for row in scalars:
            if len(row) != self.rule.scalars:
                raise ValueError(f"{self.owner}: the rule takes {self.rule.scalars} scalars, got {len(row)}")
        self._held = None
        with np.errstate(all="ignore"):
            for i, g in enumerate(held):
                self._advance(i, g, scalars[self._table.group_of[i]])
        if self._zero:
            for g in held:
                if g is not None:
                    g[...] = 0
        if count is not None:
            count[0] += 1

    def _advance(self, i: int, g: Array | None, scalars: Sequence[float]) -> None:
        w, average, *slots = self._table.arrays[i]
        s = self.stages[i]
        if g is not None:
            x = conditioned(g, w, s)
            if s["decay"] != 0:
                w[...] = w - w.dtype.type(s["decay"]) * w
            if self.rule.whole:
                self.rule.block(w, x, slots, scalars)
            else:
                self.rule.block(w, x, slots, [w.dtype.type(c) for c in scalars])
        finish(w, average, s, g is not None)


def sum_of_squares(x: Array) -> float:
    """Return the sum of squares of a flat float64 array, in `LANES` lanes within blocks of `BLOCK`."""
    blocks = -(-x.size // BLOCK)
    padded = np.zeros(blocks * BLOCK)
    padded[: x.size] = x
    rows = padded.reshape(blocks, BLOCK // LANES, LANES)
    lanes = np.zeros((blocks, LANES))
    for k in range(BLOCK // LANES):
        lanes += rows[:, k] * rows[:, k]
    return float(sum_in_order(sum_in_order(lanes.T)))


def sum_in_order(rows: Array) -> Any:
    """Sum along the first axis strictly from first to last."""
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total = total + row
    return total


def openmp() -> bool:
    return False


def max_threads() -> int:
    return 1
