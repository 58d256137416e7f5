"""Optimizers whose step sizes depend on norms of whole variables: Lamb, Lars, Prodigy."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from fastvar import kernels
from fastvar.hyper import Number, OptionalNumber, flag, number
from fastvar.optimizer import Optimizer
from fastvar.optimizer.passes import Measured, Pass
from fastvar.optimizers.shared import momentum_of_keras, unbiased_root


class Lamb(Optimizer):
    r"""Adam with the step of each variable scaled to the norm of its weights.

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        r &= \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}, \qquad
        w \leftarrow w - \eta \frac{\lVert w \rVert}{\lVert r \rVert} r

    If either norm is 0, the ratio is 1.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, outside the corrected root, by default 1e-7 (optax: 1e-6).
    **options
        Options of every optimizer, see `Optimizer`. Weight decay is decoupled, outside the ratio, as in Keras;
        in optax it is inside.

    Notes
    -----
    Variables and the slots "momentum" and "velocity" are float32 or float64 of one shape. Gradients must be dense.

    References
    ----------
    You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020
    (arXiv:1904.00962), algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([3.0, 4.0])
    >>> optimizer = fv.optimizers.Lamb(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([2.6464, 4.3536])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-7, low=0)
    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["adam"]

    def pass_of(self, kind: str) -> Pass:
        return Pass(
            self.rule(),
            self.slots,
            self.scalars,
            sums=[("weights", "weights"), ("direction", "direction")],
            step=attrgetter("learning_rate"),
        )

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.beta_1, hyper.beta_2
        take_1, keep_2, take_2 = 1 - beta_1, beta_2, 1 - beta_2
        scale_m, scale_g, scale_root = 1 / (1 - beta_1**t), 0.0, unbiased_root(beta_2, t)
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, hyper.epsilon

    def adjust(self, step: Measured) -> None:
        w, r = step.weight_norms(0), step.norms(1)
        step.sizes[:] = np.where((w > 0) & (r > 0), w / r, 1.0)  # 1 also if one is NaN, as in Keras


class Lars(Optimizer):
    r"""Momentum with the gradient of each variable scaled to the norm of its weights.

    .. math::

        m \leftarrow \mu m - \eta\, c \frac{\lVert w \rVert}{\lVert g \rVert + \epsilon} g, \qquad
        w \leftarrow w + m

    With `nesterov`, :math:`w \leftarrow w + \mu m - \eta c \ldots g`. If either norm is 0, :math:`c` times the
    ratio is replaced by 1. The meaning is that of optax.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    momentum : float
        :math:`\mu` in [0, 1], by default 0.9.
    nesterov : bool
        Whether to use Nesterov momentum.
    trust_coefficient : float
        :math:`c` > 0, by default 0.001.
    epsilon : float
        :math:`\epsilon` >= 0, by default 0.
    **options
        Options of every optimizer, see `Optimizer`. `weight_decay` is decoupled. In the paper and in optax
        decay is inside the ratio; for that, give the variables `regularizers.L2(decay / 2)`.

    Notes
    -----
    Variables and the slot "momentum" are float32 or float64 of one shape. Gradients must be dense.

    References
    ----------
    You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017 (arXiv:1708.03888), algorithm 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([3.0, 4.0])
    >>> optimizer = fv.optimizers.Lars(0.5, trust_coefficient=0.1)
    >>> optimizer.apply([[0.0, 2.0]], [w])
    >>> w.value
    array([3.  , 3.75])
    """

    learning_rate: Number = number(default=0.001, low=0)
    momentum: Number = number(default=0.9, low=0, high=1)
    nesterov: bool = flag(default=False)
    trust_coefficient: Number = number(default=0.001, above=0)
    epsilon: Number = number(default=0.0, low=0)
    slots: ClassVar[Sequence[str]] = ("momentum",)

    def rule(self) -> Any:
        return kernels.RULES["momentum"]

    def pass_of(self, kind: str) -> Pass:
        sums = [("weights", "weights"), ("gradient", "gradient")]
        return Pass(self.rule(), self.slots, self.scalars, sums)

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        return momentum_of_keras(hyper.learning_rate, hyper.momentum, hyper.nesterov)

    def adjust(self, step: Measured) -> None:
        w, g = step.weight_norms(0), step.norms(1)
        coefficient, epsilon = step.of_variables("trust_coefficient"), step.of_variables("epsilon")
        step.sizes[:] = np.where((w != 0) & (g != 0), coefficient * w / (g + epsilon), 1.0)


class Prodigy(Optimizer):
    r"""Adam that estimates its learning rate: the distance :math:`d` to the solution, from below.

    Let :math:`\lambda = \eta d \sqrt{1-\beta_2^t} / (1-\beta_1^t)`, and :math:`w_0` the weights at the first
    gradient of a variable. Sums and products run over all variables:

    .. math::

        n &\leftarrow \beta_3 n + \tfrac{d}{d_0} \lambda \langle g, w_0 - w \rangle, \qquad
        s \leftarrow \beta_3 s + \tfrac{d}{d_0} \lambda g, \qquad
        d' = \max\left(d, c \frac{n}{\lVert s \rVert_1}\right) \\
        m &\leftarrow m + (1-\beta_1)(d g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) d^2 g^2, \qquad
        w \leftarrow w - \lambda \frac{m}{\sqrt{v} + d' \epsilon}

    Then :math:`d \leftarrow d'`. Meaning and defaults are those of optax.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 1: a factor of the estimate. Schedules should start at 1.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    beta_3 : float, optional
        Decay of the estimate, in [0, 1), by default the square root of `beta_2`.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-8.
    initial_distance : float
        :math:`d_0` > 0, by default 1e-6: the initial :math:`d`. Choose it far below the true distance.
    distance_coefficient : float
        :math:`c` > 0, by default 1: a factor of the estimated distance.
    **options
        Options of every optimizer, see `Optimizer`. Weight decay is :math:`\eta d \lambda_w w`, proportional to
        the estimate, as in optax apart from the bias correction.

    Notes
    -----
    Variables and the slots "momentum", "velocity", "gradient_sum" and "start" are float32 or float64 of one shape.
    Gradients must be dense. All groups share one estimate, with the parameters of the first group.

    References
    ----------
    Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2024 (arXiv:2306.06101),
    algorithm 4.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([3.0, 4.0])
    >>> optimizer = fv.optimizers.Prodigy()
    >>> for _ in range(100):
    ...     optimizer.apply([w.numpy()], [w])
    >>> bool((abs(w) < 3).all()), optimizer.distance > 1e-3
    (True, True)
    """

    learning_rate: Number = number(default=1.0, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    beta_3: OptionalNumber = number(default=None, low=0, below=1, optional=True)
    epsilon: Number = number(default=1e-8, low=0)
    initial_distance: Number = number(default=1e-6, above=0, per_group=False)
    distance_coefficient: Number = number(default=1.0, above=0, per_group=False)
    slots: ClassVar[Sequence[str]] = ("momentum", "velocity", "gradient_sum", "start")
    weight_copies: ClassVar[Sequence[str]] = ("start",)

    @property
    def distance(self) -> float:
        """The current estimate of the distance to the solution."""
        return (
            float(self._state.numbers["distance"]) if "distance" in self._state.numbers else self.initial_distance
        )

    def initial_numbers(self) -> dict[str, float]:
        return {"distance": self.initial_distance, "numerator": 0.0}

    def valid_number(self, name: str, number: Any) -> bool:
        return not number <= 0 if name == "distance" else super().valid_number(name, number)  # NaN can be

    def rule(self) -> Any:
        return kernels.RULES["prodigy"]

    def pass_of(self, kind: str) -> Pass:
        sums = [("gradient", "start"), ("gradient", "weights"), ("direction",)]  # which is the new gradient_sum
        slots = ("gradient_sum", "momentum", "velocity", "start")  # in the order of the rule
        return Pass(self.rule(), slots, self.scalars, sums)

    def decay_rate(self, hyper: Any) -> float:
        return super().decay_rate(hyper) * self.distance

    def _rate(self, hyper: Any, t: int) -> float:
        return hyper.learning_rate * self.distance * sqrt(1 - hyper.beta_2**t) / (1 - hyper.beta_1**t)  # type: ignore[no-any-return]

    def _weight(self, hyper: Any, t: int) -> float:
        return self.distance / self.initial_distance * self._rate(hyper, t)

    @staticmethod
    def _fading(hyper: Any) -> float:
        return sqrt(hyper.beta_2) if hyper.beta_3 is None else hyper.beta_3

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        distance, keep, take = self.distance, self._fading(hyper), self._weight(hyper, t)
        next_distance = getattr(hyper, "distance", distance)  # which `adjust` sets
        take_1, keep_2, take_2 = 1 - hyper.beta_1, hyper.beta_2, 1 - hyper.beta_2
        scale_m, epsilon = self._rate(hyper, t), hyper.epsilon * next_distance
        return keep, take, distance, take_1, keep_2, take_2, scale_m, epsilon

    def adjust(self, step: Measured) -> None:
        first, numbers = step.groups[0], self._state.numbers
        to_start, to_weights, absolute = step.sums.T
        weight = {t: self._weight(first, t) for t in {*step.counts.tolist()}}
        weights = np.array([weight[t] for t in step.counts.tolist()])
        correlation = in_order(((to_start - to_weights) * weights)[step.present])
        total = in_order(absolute)
        numerator = self._fading(first) * float(numbers["numerator"]) + correlation
        estimate = self.distance_coefficient * numerator / total if total else 0.0
        distance = self.distance if self.distance >= estimate else estimate  # NaN passes
        for hyper in step.groups:
            hyper.distance = distance
        step.commits += [
            (numbers["distance"], np.array(distance)),
            (numbers["numerator"], np.array(numerator)),
        ]


def in_order(values: Any) -> float:
    """Return the sum of values, added in their order."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0
