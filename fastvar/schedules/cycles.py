"""Schedules that rise and fall."""

from __future__ import annotations

import math

from fastvar.hyper import choice, flag, integer, number, text
from fastvar.schedules.base import LearningRateSchedule
from fastvar.schedules.decay import beyond, half_cosine, scaled


class CosineDecayRestarts(LearningRateSchedule):
    r"""Half cosines in sequence, each `t_mul` times as long and `m_mul` times as high as the one before.

    The :math:`i`-th period (from 0) has the length :math:`T_i = T_0 t_{mul}^i`. After :math:`t` of its iterations:

    .. math:: \eta_t = \eta_0 \left((1-\alpha) m_{mul}^i \tfrac12 (1 + \cos(\pi t/T_i)) + \alpha\right)

    Parameters
    ----------
    initial_learning_rate : float
        :math:`\eta_0` >= 0.
    first_decay_steps : int
        :math:`T_0` > 0.
    t_mul : float
        Ratio of the length of a period to the one before, >= 1.
    m_mul : float
        Ratio of the height of a period to the one before, >= 0.
    alpha : float
        Lowest value as a fraction of `initial_learning_rate`, in [0, 1].
    name : str, optional
        For compatibility with Keras; has no effect.

    Notes
    -----
    Keras finds the period from a logarithm in single precision. After some millions of iterations it sometimes
    restarts one iteration early. Here every period begins at its exact iteration.

    References
    ----------
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017 (arXiv:1608.03983).

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.CosineDecayRestarts(0.5, first_decay_steps=10, m_mul=0.5)
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 20, 30)]
    [0.5, 0.25, 0.25, 0.125, 0.125]
    """

    initial_learning_rate: float = number(low=0)
    first_decay_steps: float = number(above=0, exact=True)
    t_mul: float = number(default=2.0, low=1)
    m_mul: float = number(default=1.0, low=0)
    alpha: float = number(default=0.0, low=0, high=1)
    name: str | None = text(default="SGDRDecay")

    def __call__(self, step: int) -> float:
        period, done = _period(step, self.first_decay_steps, self.t_mul)
        start = self.initial_learning_rate
        height = start * (1 - self.alpha) * half_cosine(done)
        return scaled(height, self.m_mul, period) + start * self.alpha

    @property
    def horizon(self) -> int:
        return math.ceil(self.first_decay_steps * (1 + self.t_mul + self.t_mul**2))


class OneCycle(LearningRateSchedule):
    r"""The "1cycle" policy: up to `max_learning_rate`, and down to almost nothing.

    The value rises from `max_learning_rate / div_factor` to `max_learning_rate` at iteration :math:`p T - 1`. Then
    it falls to `max_learning_rate / div_factor / final_div_factor` at :math:`T - 1`, where it stays; :math:`T` =
    `total_steps`, :math:`p` = `pct_start`. With `three_phase`, it first falls to its first value at
    :math:`2 p T - 2`. On the way from :math:`a` to :math:`b`, when the fraction :math:`x` is done:

    .. math:: b + (a-b) \tfrac12 (1 + \cos \pi x) \quad\text{or}\quad a + (b-a) x

    Parameters
    ----------
    max_learning_rate : float
        The highest value, >= 0.
    total_steps : int
        :math:`T` >= 1.
    pct_start : float
        :math:`p` in [0, 1]: the fraction of the steps in which the value rises; with `three_phase` at most 0.5.
    anneal_strategy : str
        The curve: "cos" or "linear".
    div_factor : float
        Ratio of the highest value to the first, > 0.
    final_div_factor : float
        Ratio of the first value to the last, > 0.
    three_phase : bool
        Whether to fall as fast as the value rose, before the last phase.

    Notes
    -----
    Names, defaults and values are those of PyTorch's `OneCycleLR`, which raises an error beyond `total_steps`. For
    its `cycle_momentum` (the momentum goes from 0.95 to 0.85 and back), give `beta_1` or `momentum` a schedule:
    `OneCycle(0.85, total_steps, div_factor=0.85 / 0.95, final_div_factor=1.0)`.

    References
    ----------
    Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2018
    (arXiv:1708.07120).

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.OneCycle(1.0, total_steps=11, pct_start=0.5, anneal_strategy="linear")
    >>> [round(schedule(step), 3) for step in (0, 2, 4, 5, 10, 99)]
    [0.04, 0.467, 0.893, 0.909, 0.0, 0.0]
    """

    max_learning_rate: float = number(low=0)
    total_steps: int = integer(low=1)
    pct_start: float = number(default=0.3, low=0, high=1)
    anneal_strategy: str = choice("cos", "linear", default="cos")
    div_factor: float = number(default=25.0, above=0)
    final_div_factor: float = number(default=1e4, above=0)
    three_phase: bool = flag(default=False)

    def _validate(self) -> None:
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"OneCycle: pct_start must be <= 0.5 with three_phase, got {self.pct_start}")

    def __call__(self, step: int) -> float:
        first = self.max_learning_rate / self.div_factor
        peak, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        phases = [(peak, self.max_learning_rate), (last, first / self.final_div_factor)]
        if self.three_phase:
            phases.insert(1, (2 * self.pct_start * self.total_steps - 2, first))
        begin, start, step = 0.0, first, min(step, last)
        for end, target in phases:
            if step <= end:
                return self._between(start, target, (step - begin) / (end - begin) if end > begin else 1.0)
            begin, start = end, target
        return start

    def _between(self, start: float, end: float, done: float) -> float:
        if self.anneal_strategy == "linear":
            return start * (1 - done) + end * done
        return end + (start - end) * half_cosine(done)

    @property
    def horizon(self) -> int:
        return self.total_steps


class Cyclic(LearningRateSchedule):
    r"""A triangular wave between two values.

    The value rises from `base_learning_rate` :math:`b` to `max_learning_rate` :math:`m` in `step_size_up`
    iterations, and falls again in `step_size_down`. With the wave :math:`x_t` between 0 and 1, and the cycle
    :math:`c` from 0:

    .. math:: \eta_t = b + (m - b) \, x_t \, s, \qquad s = 1, \; 2^{-c} \text{ or } \gamma^t

    Parameters
    ----------
    base_learning_rate : float
        :math:`b` >= 0.
    max_learning_rate : float
        :math:`m` >= 0; it can be the lower of the two, as for a momentum.
    step_size_up : int
        Iterations of the first half of a cycle, >= 1.
    step_size_down : int, optional
        Iterations of the second half, >= 1; by default as many as of the first.
    mode : str
        How the height changes: "triangular" keeps it, "triangular2" halves it in every cycle, "exp_range"
        multiplies it by `gamma` in every iteration.
    gamma : float
        :math:`\gamma` in [0, 1], for "exp_range".

    Notes
    -----
    The defaults and values are those of PyTorch's `CyclicLR`. For its `cycle_momentum`, give `beta_1`
    or `momentum` a schedule: `Cyclic(0.9, 0.8)`.

    References
    ----------
    Smith, Cyclical Learning Rates for Training Neural Networks, 2017 (arXiv:1506.01186).

    Examples
    --------
    >>> import fastvar as fv
    >>> schedule = fv.schedules.Cyclic(0.0, 1.0, step_size_up=4, mode="triangular2")
    >>> [schedule(step) for step in (0, 2, 4, 6, 8, 12)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    """

    base_learning_rate: float = number(low=0)
    max_learning_rate: float = number(low=0)
    step_size_up: int = integer(default=2000, low=1)
    step_size_down: int | None = integer(default=None, low=1, optional=True)
    mode: str = choice("triangular", "triangular2", "exp_range", default="triangular")
    gamma: float = number(default=1.0, low=0, high=1)

    def __call__(self, step: int) -> float:
        up = self.step_size_up
        down = self.step_size_down or up
        cycle, offset = divmod(step, up + down)
        height = offset / up if offset <= up else (up + down - offset) / down
        if self.mode == "triangular2":
            height = scaled(height, 0.5, cycle)
        elif self.mode == "exp_range":
            height = scaled(height, self.gamma, step)
        return self.base_learning_rate * (1 - height) + self.max_learning_rate * height

    @property
    def horizon(self) -> int:
        return beyond(3 * (self.step_size_up + (self.step_size_down or self.step_size_up)))


def _period(step: int, first: float, growth: float) -> tuple[int, float]:
    """Return the period of a step and the fraction of it that is done, exact for whole numbers."""
    if growth == 1:
        return int(step // first), (step % first) / first
    if growth.is_integer():
        growth = int(growth)

    def begin(i: int) -> float:
        powers = growth**i - 1
        return first * (powers // (growth - 1) if isinstance(growth, int) else powers / (growth - 1))

    period = int(math.log1p(step / first * (growth - 1)) / math.log(growth))
    while begin(period + 1) <= step:  # the logarithm may be rounded down
        period += 1
    while begin(period) > step:
        period -= 1
    return period, min((step - begin(period)) / (first * growth**period), 1.0)
