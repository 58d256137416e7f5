"""Schedules that go from one value to another, once."""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Sequence

from fastvar.hyper import flag, integer, number, sequence, text
from fastvar.schedules.base import LearningRateSchedule

LARGEST = sys.float_info.max


class CosineDecay(LearningRateSchedule):
    r"""Half a cosine from `initial_learning_rate` to `alpha` times it, after an optional linear warmup.

    Without warmup, for iteration :math:`t` of :math:`T` = `decay_steps`:

    .. math:: \eta_t = \eta_0 \left((1-\alpha) \tfrac12 (1 + \cos(\pi \min(t/T, 1))) + \alpha\right)

    With `warmup_target`, the value first rises linearly from `initial_learning_rate` to `warmup_target` over
    `warmup_steps` iterations, and then decays from there.

    Parameters
    ----------
    initial_learning_rate : float
        Value at iteration 0, >= 0.
    decay_steps : int
        Iterations of the decay, > 0.
    alpha : float
        Final value as a fraction of the first, >= 0.
    name : str, optional
        For compatibility with Keras; has no effect.
    warmup_target : float, optional
        Value at the end of the warmup.
    warmup_steps : int
        Iterations of the warmup.

    References
    ----------
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017 (arXiv:1608.03983).

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.CosineDecay(0.1, decay_steps=10)
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 99)]
    [0.1, 0.05, 0.0, 0.0]
    """

    initial_learning_rate: float = number(low=0)
    decay_steps: float = number(above=0, exact=True)
    alpha: float = number(default=0.0, low=0)
    name: str | None = text(default="CosineDecay")
    warmup_target: float | None = number(default=None, low=0, optional=True)
    warmup_steps: int = integer(default=0, low=0)

    def __call__(self, step: int) -> float:
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * (step / self.warmup_steps)
            start, step = self.warmup_target, step - self.warmup_steps
        done = min(step, self.decay_steps) / self.decay_steps
        return start * ((1 - self.alpha) * half_cosine(done) + self.alpha)

    @property
    def horizon(self) -> int:
        warmup = 0 if self.warmup_target is None else self.warmup_steps
        return warmup + beyond(self.decay_steps)


class ExponentialDecay(LearningRateSchedule):
    r"""Multiply by `decay_rate` every `decay_steps` iterations, smoothly or as a `staircase`.

    .. math:: \eta_t = \eta_0 \gamma^{t/T}, \quad\text{or}\quad \eta_0 \gamma^{\lfloor t/T \rfloor}

    Parameters
    ----------
    initial_learning_rate : float
        :math:`\eta_0` >= 0.
    decay_steps : int
        :math:`T` > 0.
    decay_rate : float
        :math:`\gamma` >= 0. Above 1 the value grows, up to the largest double.
    staircase : bool
        Whether to change only every `decay_steps` iterations.
    name : str, optional
        For compatibility with Keras; has no effect.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """

    initial_learning_rate: float = number(low=0)
    decay_steps: float = number(above=0, exact=True)
    decay_rate: float = number(low=0)
    staircase: bool = flag(default=False)
    name: str | None = text(default="ExponentialDecay")

    def __call__(self, step: int) -> float:
        return scaled(self.initial_learning_rate, self.decay_rate, _periods(self, step))

    @property
    def horizon(self) -> int:
        return math.ceil(5 * self.decay_steps)


class InverseTimeDecay(LearningRateSchedule):
    r"""Divide by one plus the time, in units of `decay_steps` / `decay_rate` iterations.

    .. math:: \eta_t = \frac{\eta_0}{1 + \gamma t/T}, \quad\text{with } \lfloor t/T \rfloor \text{ by a staircase}

    Parameters
    ----------
    initial_learning_rate : float
        :math:`\eta_0` >= 0.
    decay_steps : int
        :math:`T` > 0.
    decay_rate : float
        :math:`\gamma` >= 0.
    staircase : bool
        Whether to change only every `decay_steps` iterations.
    name : str, optional
        For compatibility with Keras; has no effect.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.InverseTimeDecay(0.5, decay_steps=10, decay_rate=1.0)
    >>> [schedule(step) for step in (0, 10, 30)]
    [0.5, 0.25, 0.125]
    """

    initial_learning_rate: float = number(low=0)
    decay_steps: float = number(above=0, exact=True)
    decay_rate: float = number(low=0)
    staircase: bool = flag(default=False)
    name: str | None = text(default="InverseTimeDecay")

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate / (1 + self.decay_rate * _periods(self, step))

    @property
    def horizon(self) -> int:
        return math.ceil(5 * self.decay_steps)


class PolynomialDecay(LearningRateSchedule):
    r"""From `initial_learning_rate` to `end_learning_rate` along a power of the remaining time.

    .. math:: \eta_t = (\eta_0 - \eta_T) (1 - \min(t/T, 1))^p + \eta_T

    With `cycle`, :math:`T` is the first multiple of `decay_steps` that is at least :math:`t`: after each multiple
    the value jumps up and decays again, each time more slowly.

    Parameters
    ----------
    initial_learning_rate : float
        :math:`\eta_0` >= 0.
    decay_steps : int
        :math:`T` > 0.
    end_learning_rate : float
        :math:`\eta_T` >= 0.
    power : float
        :math:`p` >= 0.
    cycle : bool
        Whether to continue after `decay_steps`.
    name : str, optional
        For compatibility with Keras; has no effect.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.PolynomialDecay(0.5, decay_steps=10, end_learning_rate=0.0, power=2.0)
    >>> [schedule(step) for step in (0, 5, 10, 99)]
    [0.5, 0.125, 0.0, 0.0]
    """

    initial_learning_rate: float = number(low=0)
    decay_steps: float = number(above=0, exact=True)
    end_learning_rate: float = number(default=0.0001, low=0)
    power: float = number(default=1.0, low=0)
    cycle: bool = flag(default=False)
    name: str | None = text(default="PolynomialDecay")

    def __call__(self, step: int) -> float:
        total = self.decay_steps
        if self.cycle:
            total *= max(1, -(-step // total))
        left = 1 - min(step, total) / total
        start, end = self.initial_learning_rate, self.end_learning_rate
        return (start - end) * math.pow(left, self.power) + end

    @property
    def horizon(self) -> int:
        return math.ceil(3 * self.decay_steps) if self.cycle else beyond(self.decay_steps)


class LinearDecay(LearningRateSchedule):
    r"""A straight line from `initial_learning_rate` to `end_learning_rate`, which may be the higher of the two.

    .. math:: \eta_t = \eta_0 + (\eta_T - \eta_0) \min(t/T, 1)

    Parameters
    ----------
    initial_learning_rate : float
        :math:`\eta_0` >= 0.
    decay_steps : int
        :math:`T` > 0.
    end_learning_rate : float
        :math:`\eta_T` >= 0, by default 0.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.LinearDecay(0.5, decay_steps=10)
    >>> [schedule(step) for step in (0, 5, 10, 99)]
    [0.5, 0.25, 0.0, 0.0]
    """

    initial_learning_rate: float = number(low=0)
    decay_steps: float = number(above=0, exact=True)
    end_learning_rate: float = number(default=0.0, low=0)

    def __call__(self, step: int) -> float:
        done = min(step, self.decay_steps) / self.decay_steps
        return self.initial_learning_rate * (1 - done) + self.end_learning_rate * done

    @property
    def horizon(self) -> int:
        return beyond(self.decay_steps)


class PiecewiseConstantDecay(LearningRateSchedule):
    r"""Constant values in sequence: the first up to and including the first boundary, and so on.

    .. math:: \eta_t = v_i \quad\text{for } b_{i-1} < t \le b_i

    Parameters
    ----------
    boundaries : list of int
        :math:`b_0 < b_1 < \dots`, >= 0.
    values : list of float
        :math:`v_0, v_1, \dots` >= 0, one more than boundaries.
    name : str, optional
        For compatibility with Keras; has no effect.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1])
    >>> [schedule(step) for step in (0, 10, 11, 20, 21)]
    [1.0, 1.0, 0.5, 0.5, 0.1]
    """

    boundaries: Sequence[float] = sequence(number(low=0, exact=True))
    values: Sequence[float] = sequence(number(low=0))
    name: str | None = text(default="PiecewiseConstant")

    def _validate(self) -> None:
        check_pieces(self, "boundaries", "values")

    def __call__(self, step: int) -> float:
        return self.values[bisect.bisect_left(self.boundaries, step)]

    @property
    def horizon(self) -> int:
        return beyond(max(self.boundaries, default=0) + 1)


def half_cosine(done: float) -> float:
    """Return half a cosine from 1 to 0, for `done` from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def scaled(start: float, rate: float, exponent: float) -> float:
    """Return `start * rate**exponent`, at most the largest double."""
    try:
        return min(start * math.pow(rate, exponent), LARGEST)
    except OverflowError:
        return LARGEST if start else 0.0


def beyond(steps: float) -> int:
    """Return a little more than `steps`, so that a plot shows what comes after them."""
    return math.ceil(1.1 * steps) + 1


def check_pieces(owner: LearningRateSchedule, boundaries: str, pieces: str) -> None:
    """Check that boundaries rise, and that there is one more piece."""
    name, places = type(owner).__name__, getattr(owner, boundaries)
    if any(a >= b for a, b in itertools.pairwise(places)):
        raise ValueError(f"{name}: {boundaries} must be strictly increasing, got {list(places)}")
    if len(getattr(owner, pieces)) != len(places) + 1:
        raise ValueError(
            f"{name}: {pieces} must be one more than {boundaries}, "
            f"got {len(getattr(owner, pieces))} {pieces} and {len(places)} {boundaries}"
        )


def _periods(schedule: ExponentialDecay | InverseTimeDecay, step: int) -> float:
    steps = schedule.decay_steps
    return step // steps if schedule.staircase else step / steps
