"""Learning-rate schedules (layer 2): callables of the iteration, with Keras's names and meaning."""

from __future__ import annotations

import math

from fastvar.hyper import Declared, integer, number


class LearningRateSchedule(Declared):
    """Base of schedules: subclasses declare parameters and write `__call__(step)`."""

    def __call__(self, step: int) -> float:
        """Return the value at the iteration `step`, counted from 0."""
        raise NotImplementedError


class CosineDecay(LearningRateSchedule):
    r"""Half a cosine from `initial_learning_rate` to `alpha` times it, after an optional linear warmup.

    Without warmup, for iteration :math:`t` of :math:`T` = `decay_steps`:

    .. math:: \eta_t = \eta_0 \left((1-\alpha) \tfrac12 (1 + \cos(\pi \min(t/T, 1))) + \alpha\right)

    With `warmup_target` the value rises linearly from `initial_learning_rate` to it over `warmup_steps`
    iterations, and then decays from `warmup_target`.

    Parameters
    ----------
    initial_learning_rate : float
        Value at iteration 0, >= 0.
    decay_steps : int
        Iterations of the decay, >= 1.
    alpha : float
        Final value as a fraction of the first, >= 0.
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
    decay_steps: int = integer(low=1)
    alpha: float = number(default=0.0, low=0)
    warmup_target: float | None = number(default=None, low=0, optional=True)
    warmup_steps: int = integer(default=0, low=0)

    def __call__(self, step: int) -> float:
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * step / self.warmup_steps
            start, step = self.warmup_target, step - self.warmup_steps
        cosine = 0.5 * (1 + math.cos(math.pi * min(step / self.decay_steps, 1.0)))
        return start * ((1 - self.alpha) * cosine + self.alpha)
