"""Schedules made of other schedules."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from fastvar.hyper import integer, number, schedule, sequence
from fastvar.schedules.base import LearningRateSchedule, horizon_of, value_at
from fastvar.schedules.decay import check_pieces

Scheduled = float | Callable[[int], float]


class Warmup(LearningRateSchedule):
    r"""A line up to the first value of another schedule, followed by that schedule, counted from 0.

    For a schedule :math:`s`, from :math:`\eta_0` over :math:`T` = `warmup_steps` iterations:

    .. math:: \eta_t = \eta_0 + (s(0) - \eta_0) \, t/T \text{ for } t < T, \qquad s(t - T) \text{ afterwards}

    Parameters
    ----------
    schedule : float or callable
        What follows: a number >= 0, a schedule, or a function of the iteration.
    warmup_steps : int
        :math:`T` >= 0.
    initial_learning_rate : float
        :math:`\eta_0` >= 0, by default 0.

    References
    ----------
    Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv:1706.02677), section 2.2.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.Warmup(fv.schedules.LinearDecay(0.5, decay_steps=10), warmup_steps=4)
    >>> [schedule(step) for step in (0, 2, 4, 9, 14)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """

    schedule: Scheduled = schedule()
    warmup_steps: int = integer(low=0)
    initial_learning_rate: float = number(default=0.0, low=0)

    def __call__(self, step: int) -> float:
        if step >= self.warmup_steps:
            return value_at(self.schedule, step - self.warmup_steps)
        done = step / self.warmup_steps
        return self.initial_learning_rate * (1 - done) + value_at(self.schedule, 0) * done

    @property
    def horizon(self) -> int:
        return self.warmup_steps + max(horizon_of(self.schedule), self.warmup_steps // 4)


class Sequential(LearningRateSchedule):
    r"""Schedules in sequence, each counted from the iteration at which it begins.

    .. math:: \eta_t = s_i(t - b_{i-1}) \quad\text{for } b_{i-1} \le t < b_i, \quad b_{-1} = 0

    Parameters
    ----------
    schedules : list of float or callable
        :math:`s_0, s_1, \dots`: numbers >= 0, schedules, or functions of the iteration; one more than boundaries.
    boundaries : list of int
        :math:`b_0 < b_1 < \dots`, >= 1: the iterations at which the next schedule begins. (A boundary of
        `PiecewiseConstantDecay` is the last iteration of the value before, as in Keras.)

    Notes
    -----
    optax calls it `join_schedules`, PyTorch `SequentialLR`.

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.Sequential([0.5, fv.schedules.LinearDecay(0.25, decay_steps=10)], [100])
    >>> [schedule(step) for step in (0, 99, 100, 105, 110)]
    [0.5, 0.5, 0.25, 0.125, 0.0]
    """

    schedules: Sequence[Scheduled] = sequence(schedule())
    boundaries: Sequence[int] = sequence(integer(low=1))

    def _validate(self) -> None:
        check_pieces(self, "boundaries", "schedules")

    def __call__(self, step: int) -> float:
        i = bisect.bisect_right(self.boundaries, step)
        return value_at(self.schedules[i], step - self.boundaries[i - 1] if i else step)

    @property
    def horizon(self) -> int:
        last = self.boundaries[-1] if self.boundaries else 0
        return last + max(horizon_of(self.schedules[-1]), last // 4)
